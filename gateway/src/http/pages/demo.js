// The demo page: a guard and two residents of one flat, each on a connection of its own.

import { Link, claimsOf, clock, loadSettings } from './demo_link.js';
import { EventLog } from './demo_log.js';
import { Card, Visitors, initials } from './demo_cards.js';
import { followTheme } from './theme.js';

const TICK_MS = 250;
const ARRIVAL_MS = 3_000; // for a request to reach both residents
const SHOWN_MAX = 40; // cards in one list
const FLAT = 'A-101'; // where both residents live
const WALK_INS = ['Meera Nair', 'Imran Shaikh', 'Divya Menon', 'Arjun Das', 'Kavya Iyer', 'Rohit Sen'];

const element = (id) => document.getElementById(id);
const fromTemplate = (id) => element(id).content.cloneNode(true).firstElementChild;
const announce = (text) => { element('live').textContent = text; };
let walkedIn = 0;
const nextWalkIn = () => WALK_INS[walkedIn++ % WALK_INS.length];

class Pane {
  constructor(id, person, board) {
    Object.assign(this, { id, person, board });
    this.isGuard = id === 'guard';
    this.visitors = new Visitors();
    this.cards = new Map();
    this.notes = new Map();
    this.busy = new Set();
    this.late = new Set();
    this.missed = 0;
    this.catchingUp = true;
    this.root = fromTemplate('pane-template');
    this.root.id = `pane-${id}`;
    this.root.dataset.pane = id;
    this.part = (selector) => this.root.querySelector(selector);
    this.build();
    this.link = new Link(id, {
      state: (state, detail) => this.onState(state, detail),
      event: (event, data) => this.onEvent(event, data),
      trace: (line) => board.log.add(line),
    });
    this.onState('connecting', {});
  }

  build() {
    const { person } = this;
    this.part('h2').textContent = person.name;
    this.part('.role').textContent = person.role;
    this.part('.avatar').textContent = initials(person.name);
    this.root.setAttribute('aria-label', `${person.name}, ${person.role}`);
    this.part('.open-title').textContent = this.isGuard ? 'Waiting for an answer' : 'At the gate';
    this.part('[data-empty=open]').textContent = this.isGuard
      ? 'Nobody is waiting.' : 'Nobody is waiting for you. Requests appear here at once.';
    const own = this.part('.pane-actions a');
    own.href = `/demo?pane=${this.id}`;
    own.setAttribute('aria-label', `Open ${person.name} in an own window`);
    own.hidden = this.board.single;
    this.part('[data-do=switch]').addEventListener('click', () => this.toggleConnection());
    if (this.isGuard) this.buildForm();
  }

  buildForm() {
    this.form = fromTemplate('form-template');
    this.part('.pane-body').prepend(this.form);
    this.form.addEventListener('submit', async (submit) => {
      submit.preventDefault();
      const { visitor_name: name, flat_id: flat, purpose } = Object.fromEntries(new FormData(this.form));
      const done = await this.register(name.trim(), flat, purpose.trim());
      const problem = this.form.querySelector('.form-error');
      problem.hidden = done.ok;
      problem.textContent = done.ok ? '' : `Not registered: ${done.message}`;
      if (!done.ok) return;
      this.form.elements.visitor_name.value = '';
      this.form.elements.purpose.value = '';
      this.form.elements.visitor_name.focus({ preventScroll: true });
    });
  }

  async register(name, flat, purpose) {
    const visitor = { flat_id: flat, visitor_name: name, ...(purpose && { purpose }) };
    const done = await this.request('visitor_create', visitor);
    if (done.ok) {
      this.learnClock(done.data.expires_at);
      this.learn({ ...visitor, requested_by: this.person.subject, ...done.data });
      announce(`${name} is registered for flat ${flat}`);
    }
    return done;
  }

  /** A request that has just been made says what time it is at the server. */
  learnClock(expiresAt) {
    const skew = expiresAt - this.board.timeoutMs - Date.now();
    if (Number.isFinite(skew)) clock.skewMs = skew;
  }

  async request(event, data) {
    const done = await this.link.request(event, data);
    this.part('.latency').textContent = `${done.ackMs.toFixed(done.ackMs < 10 ? 1 : 0)} ms`;
    return done;
  }

  /** One answer to a request: exactly one resident's counts, whoever else is told so. */
  async answer(visitor, decision) {
    const id = visitor.visitor_id;
    this.busy.add(id);
    this.draw(id);
    const done = await this.request('visitor_respond', { visitor_id: id, decision });
    this.busy.delete(id);
    if (done.ok) this.learn({ visitor_id: id, decided_by: this.person.subject, ...done.data });
    else if (done.code === 'already_resolved') this.tooLate(id);
    else this.notes.set(id, `${done.message} (${done.code})`);
    this.draw(id);
    this.cards.get(id)?.root.focus({ preventScroll: true });
  }

  tooLate(id) {
    const { decided_by: by, status } = this.visitors.known.get(id) ?? {};
    const how = { approved: 'and approved', denied: 'and denied' }[status] ?? '';
    if (status === 'timed_out') this.notes.set(id, 'Too late: the time was up.');
    else if (by) this.notes.set(id, `${this.board.nameOf(by)} was faster ${how}. Your answer changed nothing.`.replace(/ +\./, '.'));
    else this.notes.set(id, 'Somebody was faster. Your answer changed nothing.');
    // The word of the decision may arrive just after our refusal.
    this.late.add(id);
  }

  onEvent(event, data) {
    if (!data?.visitor_id) return;
    if (event === 'visitor_request') {
      if (!this.catchingUp) this.learnClock(data.expires_at);
      this.learn({ status: 'pending', ...data });
      announce(`${data.visitor_name} is at the gate for flat ${data.flat_id}`);
    } else if (event === 'request_approved' || event === 'request_denied') {
      const status = event === 'request_approved' ? 'approved' : 'denied';
      this.learn({ ...data, status });
      announce(`${data.visitor_name}: ${status} by ${this.board.nameOf(data.decided_by)}`);
    } else if (event === 'visitor_timeout') {
      this.learn({ ...data, status: 'timed_out' });
      announce(`${data.visitor_name}: nobody answered in time`);
    } else {
      return;
    }
    if (this.catchingUp) this.missed += 1;
  }

  learn(visitor) {
    const merged = this.visitors.merge({ ...visitor });
    if (merged.status !== 'pending' && this.late.has(merged.visitor_id)) {
      this.late.delete(merged.visitor_id);
      if (merged.decided_by) this.tooLate(merged.visitor_id);
    }
    this.draw(merged.visitor_id);
  }

  async onState(state, detail) {
    const words = { connecting: 'Connecting', online: 'Online', waiting: 'Reconnecting', offline: 'Offline', refused: 'Refused' };
    this.root.dataset.state = state;
    this.part('.state-word').textContent = words[state];
    this.board.showTab(this);
    const button = this.part('[data-do=switch]');
    const away = state === 'offline' || state === 'refused';
    button.textContent = away ? 'Reconnect' : 'Disconnect';
    button.setAttribute('aria-label', `${button.textContent} ${this.person.name}`);
    if (this.form) this.form.querySelector('[type=submit]').disabled = state !== 'online';
    this.notice({
      offline: 'Cut off, as by a lost network. What happens meanwhile is not lost.',
      refused: detail.reason,
    }[state]);
    this.board.refreshScenarios();
    for (const id of this.cards.keys()) this.draw(id);
    if (state === 'offline' || state === 'waiting') this.beginCatchingUp();
    if (state === 'online') await this.catchUp(detail.recovered);
  }

  notice(text) {
    const notice = this.part('.notice');
    notice.textContent = text ?? '';
    notice.hidden = !text;
  }

  beginCatchingUp() {
    if (!this.catchingUp) this.missed = 0;
    this.catchingUp = true;
  }

  /** Whatever was missed arrives before the answer to the list, so it can be counted. */
  async catchUp(recovered) {
    const again = this.hasBeenOnline;
    this.hasBeenOnline = true;
    const done = await this.request('visitor_list', {});
    this.catchingUp = false;
    if (!done.ok) return this.notice(`The list could not be loaded: ${done.message}`);
    this.visitors.replace(done.data.visitors ?? []);
    this.drawAll();
    if (again && recovered) {
      this.notice(this.missed ? `Session recovered: ${this.missed} missed ${this.missed === 1 ? 'event' : 'events'} delivered in order.` : 'Session recovered: nothing was missed.');
    } else if (again) {
      this.notice('New session; the list was loaded from the server.');
    }
    if (again) setTimeout(() => this.link.state === 'online' && this.notice(), 8_000);
  }

  toggleConnection() {
    if (this.link.state === 'offline' || this.link.state === 'refused') this.link.reconnect();
    else this.link.cut();
  }

  drawAll() {
    for (const [id, card] of this.cards) {
      if (!this.visitors.known.has(id)) {
        card.root.remove();
        this.cards.delete(id);
      }
    }
    for (const id of this.visitors.known.keys()) this.draw(id);
    this.count();
  }

  draw(id) {
    const visitor = this.visitors.known.get(id);
    if (!visitor) return;
    let card = this.cards.get(id);
    if (!card) {
      card = new Card({
        answers: !this.isGuard,
        nameOf: (subject) => this.board.nameOf(subject),
        answer: (...args) => this.answer(...args),
      });
      card.totalMs = this.board.timeoutMs;
      this.cards.set(id, card);
    }
    card.update(visitor, { note: this.notes.get(id), busy: this.busy.has(id) || this.link.state !== 'online' });
    const list = this.part(`[data-list=${visitor.status === 'pending' ? 'open' : 'past'}]`);
    if (card.root.parentElement !== list) list.prepend(card.root);
    while (list.childElementCount > SHOWN_MAX) this.forget(list.lastElementChild.dataset.visitor);
    this.count();
  }

  forget(id) {
    this.cards.get(id)?.root.remove();
    for (const store of [this.cards, this.visitors.known, this.notes]) store.delete(id);
  }

  count() {
    for (const kind of ['open', 'past']) {
      const length = this.part(`[data-list=${kind}]`).childElementCount;
      this.part(`[data-count=${kind}]`).textContent = length;
      this.part(`[data-empty=${kind}]`).hidden = length > 0;
    }
    this.board.showTab(this);
    this.board.refreshScenarios();
  }

  tick() {
    for (const card of this.cards.values()) if (card.visitor.status === 'pending') card.tick();
  }
}

/** The page: the panes that are shown, what they share, and the scenarios that need several. */
class Board {
  constructor(settings, only) {
    this.timeoutMs = settings.timeout_ms;
    this.single = Boolean(only);
    this.people = people(settings);
    const shown = only ? [only] : Object.keys(this.people);
    document.body.dataset.panes = shown.length;
    element('subtitle').textContent = `${settings.tenant} · ${seconds(this.timeoutMs)} to answer`;
    this.log = new EventLog(
      Object.fromEntries(shown.map((id) => [id, this.people[id].name])),
      (pane, event, data, direction) => roomOf(this.people[pane], event, data, direction),
    );
    this.panes = new Map();
    this.buildTabs(shown);
    for (const id of shown) {
      const pane = new Pane(id, this.people[id], this);
      this.panes.set(id, pane);
      element('panes').append(pane.root);
      this.showTab(pane);
    }
    element('panes').append(element('log'));
    element('log-pane').parentElement.hidden = this.single;
    this.followScroll();
    element('scenarios').hidden = !this.panes.has('guard');
    element('race-run').hidden = this.single;
    element('timeout-run').addEventListener('click', () => this.letOneTimeOut());
    element('race-run').addEventListener('click', () => this.race());
    this.refreshScenarios();
    setInterval(() => this.panes.forEach((pane) => pane.tick()), TICK_MS);
  }

  nameOf(subject) {
    return Object.values(this.people).find((person) => person.subject === subject)?.name ?? subject ?? 'somebody';
  }

  letOneTimeOut() {
    return this.panes.get('guard').register(nextWalkIn(), FLAT, 'Leave unanswered');
  }

  /** Approve and deny in the same moment; the server lets exactly one of them decide. */
  async race() {
    const [first, second] = Math.random() < 0.5 ? ['resident1', 'resident2'] : ['resident2', 'resident1'];
    const panes = [this.panes.get(first), this.panes.get(second)];
    const { ok, data } = await this.panes.get('guard').register(nextWalkIn(), FLAT, 'Both answer at once');
    const visitor = { visitor_id: data?.visitor_id };
    const known = () => panes.every((pane) => pane.visitors.known.has(visitor.visitor_id));
    if (!ok || !(await within(ARRIVAL_MS, known))) return;
    await Promise.all([panes[0].answer(visitor, 'approve'), panes[1].answer(visitor, 'deny')]);
  }

  refreshScenarios() {
    const online = (id) => this.panes.get(id)?.link?.state === 'online';
    element('timeout-run').disabled = !online('guard');
    element('race-run').disabled = !['guard', 'resident1', 'resident2'].every(online);
  }

  buildTabs(shown) {
    const label = (id) => this.people[id]?.name.split(' ')[0] ?? 'Log';
    for (const id of [...shown, 'log']) {
      const tab = document.createElement('button');
      tab.type = 'button';
      tab.dataset.tab = id;
      const dot = document.createElement('span');
      dot.className = 'dot';
      const text = document.createElement('span');
      text.textContent = label(id);
      const badge = document.createElement('span');
      badge.className = 'badge';
      badge.hidden = true;
      tab.append(...(id === 'log' ? [text] : [dot, text, badge]));
      tab.addEventListener('click', () => this.section(id).scrollIntoView({ behavior: 'smooth', inline: 'start', block: 'nearest' }));
      element('tabs').append(tab);
    }
  }

  section(id) {
    return id === 'log' ? element('log') : this.panes.get(id).root;
  }

  showTab(pane) {
    const tab = element('tabs').querySelector(`[data-tab=${pane.id}]`);
    tab.dataset.state = pane.root.dataset.state ?? 'connecting';
    const open = pane.visitors.pending().length;
    const badge = tab.querySelector('.badge');
    badge.hidden = pane.isGuard || open === 0;
    badge.textContent = open;
    badge.setAttribute('aria-label', `${open} waiting`);
  }

  /** On a phone the panes are pages: the tab of the one in view is the current one. */
  followScroll() {
    const tabs = [...element('tabs').children];
    const seen = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        for (const tab of tabs) tab.setAttribute('aria-current', String(this.section(tab.dataset.tab) === target));
      }
    }, { root: element('panes'), threshold: 0.6 });
    tabs.forEach((tab) => seen.observe(this.section(tab.dataset.tab)));
  }
}

function people(settings) {
  const fallback = { guard: 'Guard', resident1: 'Resident 1', resident2: 'Resident 2' };
  return Object.fromEntries(Object.keys(fallback).map((id) => {
    const claims = claimsOf(settings.tokens[id]);
    const subject = String(claims.sub ?? id);
    const role = id === 'guard'
      ? `Guard · ${claims.society_id ?? settings.tenant}`
      : `Resident · flat ${(claims.flats ?? [FLAT]).join(', ')}`;
    const rooms = id === 'guard' ? [`society:${claims.society_id ?? settings.tenant}`] : (claims.flats ?? [FLAT]).map((flat) => `flat:${flat}`);
    return [id, { subject, role, rooms, name: String(claims.name ?? fallback[id]) }];
  }));
}

/** Socket.IO events carry no room: the one through which this person got it, or the one the event names. */
function roomOf(person, event, data, direction) {
  if (typeof data?.room_name === 'string') return data.room_name;
  if (typeof data?.room === 'string') return data.room;
  if (direction !== 'in' || !data?.visitor_id) return '';
  return person.rooms.find((room) => room === `flat:${data.flat_id}`) ?? person.rooms[0];
}

async function within(limitMs, condition) {
  const end = performance.now() + limitMs;
  while (!condition()) {
    if (performance.now() > end) return false;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return true;
}

function seconds(ms) {
  return ms >= 120_000 ? `${Math.round(ms / 60_000)} minutes` : `${Math.round(ms / 1000)} s`;
}

followTheme();
try {
  const settings = await loadSettings();
  const wanted = new URLSearchParams(location.search).get('pane');
  new Board(settings, Object.hasOwn(settings.tokens, wanted ?? '') ? wanted : undefined);
} catch (error) {
  element('banner').textContent = `The demo cannot start: ${error.message}`;
  element('banner').hidden = false;
}
