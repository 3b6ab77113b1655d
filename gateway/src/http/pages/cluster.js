// The page across nodes: three clients of one tenant, wherever the balancer puts them, and one event for all.

import { link } from './cluster_link.js';
import { followTheme } from './theme.js';

const ROWS_MAX = 50; // older rows are dropped
const NODE_CHARS = 8; // of a node's id: enough to tell a few apart
const EVENT = 'test-event';
const CLIENTS = [
  { id: 'ana', name: 'Ana', protocol: 'socketio', role: 'Socket.IO' },
  { id: 'ben', name: 'Ben', protocol: 'socketio', role: 'Socket.IO' },
  { id: 'cleo', name: 'Cleo', protocol: 'json', role: 'Plain WebSocket' },
];
const WORDS = { connecting: 'Connecting', online: 'Online', waiting: 'Reconnecting', offline: 'Offline' };

const element = (id) => document.getElementById(id);
const fromTemplate = (id) => element(id).content.cloneNode(true).firstElementChild;

class Pane {
  constructor(client, settings, board) {
    Object.assign(this, client, { board, received: 0, rows: new Map() });
    this.root = fromTemplate('pane-template');
    this.root.id = `pane-${this.id}`;
    this.root.dataset.pane = this.id;
    this.part = (selector) => this.root.querySelector(selector);
    this.part('h2').textContent = this.name;
    this.part('.role').textContent = `${this.role} · ${settings.namespace}`;
    this.part('.avatar').textContent = this.name[0];
    this.root.setAttribute('aria-label', `${this.name}, ${this.role}`);
    this.part('[data-do=send]').addEventListener('click', () => this.send());
    this.part('[data-do=switch]').addEventListener('click', () => this.toggle());
    this.link = link(this.protocol, settings, settings.tokens[this.id], {
      state: (state, detail) => this.onState(state, detail),
      event: (event, data) => this.onEvent(event, data),
    });
  }

  onState(state, detail) {
    this.state = state;
    this.node = state === 'online' ? detail : undefined;
    this.root.dataset.state = state;
    this.part('.state-word').textContent = WORDS[state];
    this.part('[data-do=send]').disabled = state !== 'online';
    const button = this.part('[data-do=switch]');
    button.textContent = state === 'offline' ? 'Connect' : 'Disconnect';
    button.setAttribute('aria-label', `${button.textContent} ${this.name}`);
    const notice = this.part('.notice');
    notice.hidden = state === 'online' || !detail;
    notice.textContent = state === 'online' ? '' : detail ?? '';
    this.board.refresh();
  }

  showNode() {
    const number = this.node === undefined ? undefined : this.board.numberOf(this.node);
    const node = this.part('.node');
    if (number === undefined) delete node.dataset.node;
    else node.dataset.node = number;
    this.root.dataset.server = this.node ?? '';
    this.part('.node-id').textContent = this.node?.slice(0, NODE_CHARS) ?? '…';
  }

  toggle() {
    if (this.state === 'offline') this.link.reconnect();
    else this.link.cut();
  }

  send() {
    this.link.send(EVENT, { id: `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 8)}`, from: this.name });
  }

  /** One row per event; an event that came twice says so. */
  onEvent(event, data) {
    if (event === 'error') {
      this.part('.notice').textContent = data?.message ?? 'The server refused.';
      this.part('.notice').hidden = false;
    }
    if (event !== EVENT || !data?.id) return;
    this.received += 1;
    this.part('.count').textContent = this.received;
    this.part('.empty').hidden = true;
    const known = this.rows.get(data.id);
    if (known) {
      known.classList.add('twice');
      known.dataset.times = Number(known.dataset.times) + 1;
      known.querySelector('.event-time').textContent = `${known.dataset.times} times`;
      return;
    }
    const row = fromTemplate('event-template');
    row.dataset.event = data.id;
    row.dataset.times = 1;
    row.querySelector('.event-name').textContent = event;
    row.querySelector('.event-from').textContent = `from ${data.from}`;
    row.querySelector('.event-time').textContent = new Date().toLocaleTimeString([], { hour12: false });
    this.rows.set(data.id, row);
    const list = this.part('.events');
    list.prepend(row);
    while (list.childElementCount > ROWS_MAX) {
      this.rows.delete(list.lastElementChild.dataset.event);
      list.lastElementChild.remove();
    }
    this.board.arrived(data);
  }
}

/** The three clients, and what is said about all of them. */
class Board {
  constructor(settings) {
    this.nodes = [];
    this.panes = [];
    this.turn = 0;
    for (const client of CLIENTS) {
      const pane = new Pane(client, settings, this);
      this.panes.push(pane);
      element('panes').append(pane.root);
    }
    element('send').addEventListener('click', () => this.send());
    element('spread').addEventListener('click', () => this.spread());
    this.refresh();
  }

  /** Nodes in the order in which they were met, so that each keeps its colour. */
  numberOf(node) {
    if (!this.nodes.includes(node)) this.nodes.push(node);
    return this.nodes.indexOf(node) % 4;
  }

  online() {
    return this.panes.filter((pane) => pane.state === 'online');
  }

  refresh() {
    for (const pane of this.panes) pane.showNode();
    const online = this.online();
    const nodes = new Set(online.map((pane) => pane.node)).size;
    element('send').disabled = online.length === 0;
    element('summary').textContent = online.length === 0
      ? 'No client is connected.'
      : `${plural(online.length, 'client')} on ${plural(nodes, 'node')} · behind one address`;
  }

  /** Another client sends each time. */
  send() {
    const online = this.online();
    online[this.turn++ % online.length]?.send();
  }

  spread() {
    for (const pane of this.panes) {
      pane.link.cut();
      setTimeout(() => pane.link.reconnect(), 300);
    }
  }

  arrived(data) {
    const all = this.panes.every((pane) => pane.rows.has(data.id));
    if (all) element('live').textContent = `The event from ${data.from} has reached all three.`;
  }
}

function plural(count, word) {
  return `${count} ${word}${count === 1 ? '' : 's'}`;
}

followTheme();
try {
  const response = await fetch('/demo/cluster_tokens.json', { cache: 'no-store' });
  const settings = await response.json();
  if (!response.ok) throw new Error(settings.error?.message ?? `the server answered ${response.status}`);
  new Board(settings);
} catch (error) {
  element('banner').textContent = `The page cannot start: ${error.message}`;
  element('banner').hidden = false;
}
