// Visitors as cards: what is known about each, and how it looks.

import { clock } from './demo_link.js';

/** Status words as the server says them → as people read them. */
const STATUSES = {
  pending: 'Waiting',
  approved: 'Approved',
  denied: 'Denied',
  timed_out: 'Timed out',
};

/** The visitors one pane knows, by id; a decided one never becomes pending again. */
export class Visitors {
  constructor() {
    this.known = new Map();
  }

  merge(visitor) {
    const before = this.known.get(visitor.visitor_id);
    const after = { ...before, ...visitor };
    if (before && before.status !== 'pending' && visitor.status === 'pending') after.status = before.status;
    after.seen = before?.seen ?? visitor.created_at ?? clock.now();
    this.known.set(after.visitor_id, after);
    return after;
  }

  /** The server's list is the truth: what it does not name is gone. */
  replace(visitors) {
    const ids = new Set(visitors.map((visitor) => visitor.visitor_id));
    for (const id of this.known.keys()) if (!ids.has(id)) this.known.delete(id);
    // Newest first on the wire; merged oldest first, so that later ones come out on top.
    [...visitors].reverse().forEach((visitor) => this.merge(visitor));
  }

  pending() {
    return [...this.known.values()].filter((visitor) => visitor.status === 'pending');
  }
}

/** `Asha Rao` → `AR`. */
export function initials(name) {
  const words = String(name).trim().split(/\s+/).filter(Boolean);
  return words.slice(0, 2).map((word) => [...word][0].toUpperCase()).join('') || '?';
}

/** One visitor's card; `update` brings it up to date in place, so focus stays where it is. */
export class Card {
  /** @param options {{answers: boolean, nameOf, answer}} */
  constructor(options) {
    this.options = options;
    this.root = document.getElementById('card-template').content.cloneNode(true).firstElementChild;
    this.part = (selector) => this.root.querySelector(selector);
    for (const button of this.root.querySelectorAll('[data-decision]')) {
      button.addEventListener('click', () => options.answer(this.visitor, button.dataset.decision));
    }
  }

  update(visitor, { note, busy } = {}) {
    this.visitor = visitor;
    const pending = visitor.status === 'pending';
    const name = visitor.visitor_name ?? 'Visitor';
    this.root.dataset.status = visitor.status;
    this.root.dataset.visitor = visitor.visitor_id;
    this.part('.avatar').textContent = initials(name);
    this.part('.card-name').textContent = name;
    this.part('.card-detail').textContent = [visitor.flat_id && `Flat ${visitor.flat_id}`, visitor.purpose].filter(Boolean).join(' · ');
    this.part('.answers').hidden = !(pending && this.options.answers);
    for (const button of this.root.querySelectorAll('[data-decision]')) {
      button.disabled = Boolean(busy);
      button.setAttribute('aria-label', `${button.textContent} ${name}`);
    }
    const outcome = this.part('.outcome');
    outcome.textContent = note ?? (pending ? '' : this.story());
    outcome.classList.toggle('note', Boolean(note));
    outcome.hidden = !outcome.textContent;
    this.tick();
  }

  story() {
    const { status, decided_by: by, decided_at: at } = this.visitor;
    if (status === 'timed_out') return 'Nobody answered in time';
    const time = at ? new Date(at).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit' }) : '';
    return [by ? `by ${this.options.nameOf(by)}` : '', time && `at ${time}`].filter(Boolean).join(' ');
  }

  /** The part that time changes. */
  tick(totalMs = this.totalMs ?? 0) {
    this.totalMs = totalMs;
    const { status, expires_at: expires } = this.visitor;
    const pill = this.part('.pill');
    this.part('.timer').hidden = status !== 'pending' || !expires;
    if (status !== 'pending' || !expires) {
      setText(pill, STATUSES[status] ?? status);
      return;
    }
    const leftMs = Math.max(0, expires - clock.now());
    const seconds = Math.ceil(leftMs / 1000);
    setText(pill, seconds ? `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}` : 'Time is up');
    this.root.classList.toggle('urgent', leftMs < totalMs / 4);
    this.part('.timer span').style.transform = `scaleX(${totalMs ? Math.min(1, leftMs / totalMs) : 0})`;
  }
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
