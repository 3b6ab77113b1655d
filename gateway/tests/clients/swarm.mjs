// Hundreds of clients of both protocols that hop between nodes, publish, race and note what they see.
//
//   node swarm.mjs CONFIG.json
//
// CONFIG: {seed, secret, urls, tenants, clients, rooms, rooms_each, publishes_per_s, hop_mean_ms, visitors_per_s}
// Commands on standard input, one JSON object a line; each is answered by one line on standard output:
//   {"do":"start"}                       everybody connects       → {"what":"started","on":N}
//   {"do":"begin","history":PATH}        a new history; the bustle starts
//   {"do":"settle","within_ms":N}        the bustle ends, everybody is there, what is on its way arrives
//   {"do":"presence"}                    what a member of each room is told of who is in it, and who is
//   {"do":"conclude"}                    ends the history
//   {"do":"status"}
// The history is described in tests/faults/history.rs, which reads it.

import { createHmac } from 'node:crypto';
import { readFileSync } from 'node:fs';
import process from 'node:process';
import { createInterface } from 'node:readline';
import { Chance } from './swarm/chance.mjs';
import { begin, end, record } from './swarm/history.mjs';
import { Member } from './swarm/member.mjs';

const TICK_MS = 10;
const LAG_WATCH_MS = 50;
const POLL_MS = 50;
const MARK_RETRY_MS = 200;
const SOCIETY = 'gv';
const FLATS = 3;
const GUARDS = 2;
/** How long nothing may have come until it counts as quiet. */
const QUIET_MS = 400;

const config = JSON.parse(readFileSync(process.argv[2], 'utf8'));

const base64 = (text) => Buffer.from(text).toString('base64url');
function token(tenant, subject, claims) {
  const all = { tenant, sub: subject, exp: Math.floor(Date.now() / 1_000) + 6 * 3_600, ...claims };
  const text = `${base64('{"alg":"HS256","typ":"JWT"}')}.${base64(JSON.stringify(all))}`;
  return `${text}.${createHmac('sha256', config.secret).update(text).digest('base64url')}`;
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

class Swarm {
  seed = config.seed;
  urls = config.urls;
  hopMeanMs = config.hop_mean_ms;
  quiet = true;
  members = [];
  #chance = new Chance(config.seed, 'swarm');
  #publishDue = 0;
  #visitorDue = 0;
  #undecided = new Map();
  #decidedEarly = new Set();
  #marks = new Map();
  #lastHeard = Date.now();
  lagMs = 0;

  constructor() {
    const counts = new Map();
    for (let id = 0; id < config.clients; id += 1) {
      const tenant = config.tenants[id % config.tenants.length];
      const number = counts.get(tenant) ?? 0;
      counts.set(tenant, number + 1);
      this.members.push(this.#member(id, tenant, number));
    }
    setInterval(() => this.#tick(), TICK_MS);
    let expected = performance.now() + LAG_WATCH_MS;
    setInterval(() => {
      const now = performance.now();
      this.lagMs = Math.max(this.lagMs, now - expected);
      expected = now + LAG_WATCH_MS;
    }, LAG_WATCH_MS);
  }

  #member(id, tenant, number) {
    const rooms = new Set();
    while (rooms.size < Math.min(config.rooms_each, config.rooms)) rooms.add(`r:${this.#chance.below(config.rooms)}`);
    const role = {};
    let claims = {};
    if (number < GUARDS) {
      Object.assign(role, { guard: true, society: SOCIETY });
      claims = { role: 'guard', society_id: SOCIETY };
      rooms.add(`society:${SOCIETY}`);
    } else if (number < GUARDS + 2 * FLATS) {
      const flat = `A-${Math.floor((number - GUARDS) / 2)}`;
      Object.assign(role, { flat, second: (number - GUARDS) % 2 === 1 });
      claims = { role: 'resident', society_id: SOCIETY, flats: [flat] };
      rooms.add(`flat:${flat}`);
    }
    // Every fifth is another device of the one before it.
    const user = number > GUARDS + 2 * FLATS && number % 5 === 0 ? `u${number - 1}` : `u${number}`;
    const kind = (Math.floor(id / config.tenants.length) % 2 === 0) ? 'json' : 'socketio';
    return new Member(this, { id, tenant, user, kind, rooms: [...rooms], role, token: token(tenant, user, claims) });
  }

  on() {
    return this.members.filter((member) => member.state === 'on');
  }

  complete() {
    return this.members.every((member) => member.state === 'on' && member.joined.size === member.wanted.size);
  }

  #tick() {
    if (this.quiet) return;
    const now = Date.now();
    for (const member of this.members) member.tick(now);
    this.#publishDue += (config.publishes_per_s * TICK_MS) / 1_000;
    while (this.#publishDue >= 1) {
      this.#publishDue -= 1;
      this.#publish();
    }
    this.#visitorDue += (config.visitors_per_s * TICK_MS) / 1_000;
    while (this.#visitorDue >= 1) {
      this.#visitorDue -= 1;
      this.#visitor();
    }
  }

  #publish() {
    const member = this.#chance.of(this.members);
    const rooms = [...member.joined].filter((room) => room.startsWith('r:'));
    if (member.state !== 'on' || rooms.length === 0) return;
    const count = this.#chance.onceIn(20) ? Math.min(2 + this.#chance.below(2), rooms.length) : 1;
    const first = this.#chance.below(rooms.length);
    member.publish(Array.from({ length: count }, (_, index) => rooms[(first + index) % rooms.length]));
  }

  #visitor() {
    const guards = this.on().filter((member) => member.role.guard && member.joined.has(`society:${SOCIETY}`));
    if (guards.length === 0) return;
    const mode = this.#chance.below(5) < 3 ? 'race' : 'timeout';
    this.#chance.of(guards).register(`A-${this.#chance.below(FLATS)}`, mode);
  }

  registered(tenant, id, expiresAt, mode) {
    record('visitor', { tenant, id, expires_at: expiresAt, mode });
    if (!this.#decidedEarly.delete(id)) this.#undecided.set(id, { tenant, expires_at: expiresAt });
  }

  decided(id) {
    this.#lastHeard = Date.now();
    if (!this.#undecided.delete(id)) this.#decidedEarly.add(id);
  }

  seen(room, by, n, member) {
    this.#lastHeard = Date.now();
    this.#marks.get(`${member.tenant} ${room}`)?.seen(by, n, member);
  }

  undecided() {
    return [...this.#undecided].map(([id, visitor]) => ({ id, ...visitor }));
  }

  begin(path) {
    this.#undecided.clear();
    this.#decidedEarly.clear();
    this.lagMs = 0;
    begin(path);
    for (const member of this.members) member.introduce();
    this.quiet = false;
  }

  /** Waits for something, but not for ever. */
  async #until(deadline, holds) {
    while (!holds()) {
      if (Date.now() > deadline) return false;
      await sleep(POLL_MS);
    }
    return true;
  }

  async settle(withinMs) {
    this.quiet = true;
    record('settling', {});
    const deadline = Date.now() + withinMs;
    for (const member of this.members) member.hurry();
    const complete = await this.#until(deadline, () => this.complete());
    const answered = await this.#until(deadline, () => this.members.every((member) => member.asking === 0));
    const marked = await this.#mark(deadline);
    const calm = await this.#until(deadline, () => Date.now() - this.#lastHeard > QUIET_MS);
    return { complete, answered, marked, calm, undecided: this.undecided() };
  }

  /** One more publication to each room, so that a silent loss before it shows; waits until all members have it. */
  async #mark(deadline) {
    const rooms = new Map();
    for (const member of this.on()) {
      for (const room of member.joined) {
        const name = `${member.tenant} ${room}`;
        if (!rooms.has(name)) rooms.set(name, new Set());
        rooms.get(name).add(member);
      }
    }
    const marks = [...rooms].map(async ([name, members]) => {
      const room = name.split(' ')[1];
      const waiting = new Set(members);
      this.#marks.set(name, { seen: (by, n, member) => by === sender?.name && n >= from && waiting.delete(member) });
      let sender;
      let from = Infinity;
      while (Date.now() < deadline) {
        sender = [...members].find((member) => member.state === 'on');
        if (sender) {
          from = sender.published + 1;
          const answer = await sender.publish([room]);
          if (answer.data) break;
        }
        await sleep(MARK_RETRY_MS);
      }
      return this.#until(deadline, () => waiting.size === 0);
    });
    const all = await Promise.all(marks);
    this.#marks.clear();
    return all.every(Boolean);
  }

  async presence() {
    const rooms = new Map();
    for (const member of this.on()) {
      for (const room of member.joined) {
        const name = `${member.tenant} ${room}`;
        if (!rooms.has(name)) rooms.set(name, []);
        rooms.get(name).push(member);
      }
    }
    return Promise.all([...rooms].map(async ([name, members]) => {
      const [tenant, room] = name.split(' ');
      const told = await members[0].presence(room);
      const users = [...new Set(members.map((member) => member.user))].sort();
      return { tenant, room, count: members.length, users, told: told ?? null };
    }));
  }

  status() {
    const states = { on: 0, opening: 0, off: 0 };
    for (const member of this.members) states[member.state] += 1;
    const unjoined = this.on().filter((member) => member.joined.size < member.wanted.size).length;
    return { ...states, unjoined, undecided: this.#undecided.size, lag_ms: Math.round(this.lagMs) };
  }
}

const swarm = new Swarm();
const say = (what, details = {}) => process.stdout.write(`${JSON.stringify({ what, ...details })}\n`);

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  if (command.do === 'start') {
    for (const member of swarm.members) member.start();
    const deadline = Date.now() + command.within_ms;
    while (!swarm.complete() && Date.now() < deadline) await sleep(POLL_MS);
    say('started', swarm.status());
  } else if (command.do === 'begin') {
    swarm.begin(command.history);
    say('begun');
  } else if (command.do === 'settle') {
    say('settled', { ...(await swarm.settle(command.within_ms)), ...swarm.status() });
  } else if (command.do === 'status') {
    say('status', { ...swarm.status(), visitors: swarm.undecided() });
  } else if (command.do === 'presence') {
    say('presence', { rooms: await swarm.presence() });
  } else if (command.do === 'conclude') {
    for (const member of swarm.members) member.conclude();
    end();
    say('concluded', swarm.status());
  } else {
    say('unknown', { command });
  }
}
process.exit(0);
