// One client of the swarm: it hops between nodes, is in a few rooms, publishes, and notes what it sees.

import { Chance, fnv } from './chance.mjs';
import { received, record } from './history.mjs';
import { PlainLine, SocketIoLine } from './lines.mjs';

const RETRY_MS = [100, 1_000];
const ANSWER_WITHIN_MS = 80;
/** How long a client that was told of a loss stays where it is. */
const SETTLED_AFTER_LOSS_MS = 2_000;

/** What a publication of the swarm says; the hash covers all that must not be mixed up. */
export function body(by, n, room) {
  return { by, n, room, hash: fnv(`${by} ${n} ${room}`) };
}

export class Member {
  state = 'off'; // off → opening → on
  joined = new Set();
  published = 0;
  asking = 0;
  #hopAt;
  #timer;
  /** Joins and leaves one after the other: which of two came last would be anybody's guess. */
  #moving = false;
  #seen = new Set();

  constructor(swarm, { id, tenant, user, kind, rooms, role, token }) {
    Object.assign(this, { swarm, id, tenant, user, kind, rooms, role });
    this.name = `${tenant}/c${id}`;
    this.chance = new Chance(swarm.seed, this.name);
    this.wanted = new Set(rooms);
    this.node = this.chance.below(swarm.urls.length);
    this.line = kind === 'json'
      ? new PlainLine(this, tenant, token, this.chance.onceIn(2))
      : new SocketIoLine(this, tenant, token);
    this.#plan();
  }

  /** For a history that begins while everybody is there. */
  introduce() {
    const { id, tenant, user, kind, node, state } = this;
    record('member', { c: id, tenant, user, kind, node, on: state === 'on', rooms: [...this.joined] });
    this.#seen.clear();
  }

  conclude() {
    record('end', { c: this.id, on: this.state === 'on', rooms: [...this.joined] });
  }

  #plan() {
    this.#hopAt = Date.now() + this.chance.until(this.swarm.hopMeanMs);
  }

  /** Called often: hops when it is time. */
  tick(now) {
    if (this.state !== 'on' || now < this.#hopAt) return;
    if (this.chance.onceIn(5)) this.#leaveAndRejoin();
    else this.hop();
  }

  /** Is gone without a goodbye, and comes back on another node. */
  hop() {
    this.#plan();
    this.#off('cut', '', true);
    this.line.cut();
    const short = this.chance.below(10) < 9;
    const away = short ? this.chance.between(0, 3_000) : this.chance.between(3_000, 10_000);
    this.node = (this.node + 1 + this.chance.below(this.swarm.urls.length - 1)) % this.swarm.urls.length;
    this.#openIn(away);
  }

  /** Everybody is to be there soon. */
  hurry() {
    if (this.state === 'off') this.#openIn(this.chance.between(0, 500));
  }

  start() {
    this.#openIn(this.chance.between(0, 1_500));
  }

  #openIn(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.open(), ms);
  }

  async open() {
    if (this.state !== 'off') return;
    this.state = 'opening';
    const began = Date.now();
    try {
      const { recovered, rooms, refused, reason } = await this.line.open(this.swarm.urls[this.node]);
      this.state = 'on';
      record('on', { c: this.id, node: this.node, recovered: recovered ?? null, rooms, refused, reason, ms: Date.now() - began });
      if (recovered !== true) this.joined.clear();
      if (rooms) this.joined = new Set(rooms.filter((room) => this.wanted.has(room)));
      await this.#join();
    } catch (error) {
      if (this.state === 'opening') this.state = 'off';
      record('refused', { c: this.id, node: this.node, code: error.code ?? 'failed', message: error.message });
      this.node = this.chance.below(this.swarm.urls.length);
      this.#openIn(this.chance.between(...RETRY_MS));
    }
  }

  /** Joins what it wants and is not in; again, while that is refused. */
  async #join() {
    const missing = [...this.wanted].filter((room) => !this.joined.has(room));
    if (missing.length === 0 || this.state !== 'on' || this.#moving) return;
    this.#moving = true;
    record('joining', { c: this.id, rooms: missing });
    const { data, error } = await this.#ask('subscribe', missing);
    this.#moving = false;
    if (data) {
      for (const room of data.channels) this.joined.add(room);
      record('joined', { c: this.id, rooms: data.channels });
      if (data.channels.length === missing.length) return;
    }
    if (error) record('nack', { c: this.id, what: 'subscribe', code: error.code });
    setTimeout(() => this.#join(), this.chance.between(...RETRY_MS));
  }

  async #leaveAndRejoin() {
    this.#plan();
    const room = this.chance.of([...this.joined].filter((room) => room.startsWith('r:')));
    if (!room || this.#moving) return;
    this.#moving = true;
    this.joined.delete(room);
    record('leaving', { c: this.id, rooms: [room] });
    const { data } = await this.#ask('unsubscribe', [room]);
    this.#moving = false;
    if (data) record('left', { c: this.id, rooms: [room] });
    setTimeout(() => this.#join(), this.chance.between(100, 1_500));
  }

  async #ask(event, data) {
    this.asking += 1;
    const answer = await this.line.ask(event, data);
    this.asking -= 1;
    return answer;
  }

  /** One publication, or a few in one commit. Each number is sent once: what is not acknowledged is not repeated. */
  async publish(rooms) {
    const parts = rooms.map((room) => ({ room, event: 'm', data: body(this.name, (this.published += 1), room) }));
    const [first, last] = [parts[0].data.n, parts.at(-1).data.n];
    record('sent', { c: this.id, first, last, rooms });
    const answer = await (parts.length === 1 ? this.#ask('publish', parts[0]) : this.#ask('batch_update', parts));
    if (answer.data) record('acked', { c: this.id, first, last, pos: answer.data.pos });
    else if (answer.error) record('nack', { c: this.id, what: 'publish', first, code: answer.error.code });
    else if (answer.late) record('nack', { c: this.id, what: 'publish', first, code: 'no_answer' });
    return answer;
  }

  async register(flat, mode) {
    const { data, error } = await this.#ask('visitor_create', { flat_id: flat, visitor_name: mode });
    if (data) this.swarm.registered(this.tenant, data.visitor_id, data.expires_at, mode);
    else if (error) record('nack', { c: this.id, what: 'visitor_create', code: error.code });
  }

  async #answer(visitor) {
    const decision = this.role.second ? 'deny' : 'approve';
    const { data, error } = await this.#ask('visitor_respond', { visitor_id: visitor, decision });
    if (data || error) record('answered', { c: this.id, id: visitor, ok: Boolean(data), code: error?.code });
  }

  heard(event, data, pos) {
    if (event === 'm') {
      const { by, n, room, hash } = data ?? {};
      if (hash !== fnv(`${by} ${n} ${room}`)) record('bad', { c: this.id, what: 'not what was published', data });
      if (pos === undefined && this.kind === 'json') record('bad', { c: this.id, what: 'a publication without a position', data });
      received(this.id, room, pos, `${by}:${n}`);
      this.swarm.seen(room, by, n, this);
    } else if (event === 'visitor_request') {
      received(this.id, `flat:${data.flat_id}`, pos, `v:${data.visitor_id}:${event}`);
      if (data.visitor_name === 'race' && !this.#seen.has(data.visitor_id)) {
        this.#seen.add(data.visitor_id);
        setTimeout(() => this.#answer(data.visitor_id), this.chance.between(0, ANSWER_WITHIN_MS));
      }
    } else if (event === 'request_approved' || event === 'request_denied' || event === 'visitor_timeout') {
      const room = this.role.guard ? `society:${this.role.society}` : `flat:${data.flat_id}`;
      received(this.id, room, pos, `v:${data.visitor_id}:${event}`);
      this.swarm.decided(data.visitor_id);
    } else if (event === 'reset') {
      // With `recovered` it is the other half of an answer to `resume`.
      if (data?.recovered !== undefined) return;
      // It stays a moment: what the node has to write again after a loss is not there at once.
      this.#hopAt = Math.max(this.#hopAt, Date.now() + SETTLED_AFTER_LOSS_MS);
      if (this.line.welcomed) record('reset', { c: this.id, pos: data?.pos ?? null });
      else record('bad', { c: this.id, what: 'told of a loss before it was let in', data });
    } else if (event.startsWith('presence:')) {
      record('presence', { c: this.id, event, data });
    } else if (event === 'degraded' || event === 'restored') {
      record('notice', { c: this.id, event });
    }
  }

  ended(code, reason) {
    this.#off(code, reason, false);
    this.node = this.chance.below(this.swarm.urls.length);
    this.#openIn(this.chance.between(...RETRY_MS));
  }

  #off(code, reason, own) {
    this.state = 'off';
    record('off', { c: this.id, code: String(code), reason, own });
  }

  /** Who is in a room, as the gateway says. */
  async presence(room) {
    return (await this.#ask('presence', { room })).data;
  }
}
