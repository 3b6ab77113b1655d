// The two kinds of line that a member of the swarm can have to a node: plain WebSocket and Socket.IO.
// Both offer:
//   open(url)        → Promise: how it went, {recovered, rooms?, refused?, pos?}; throws when it did not come about
//   ask(event,data)  → Promise: {data} | {error} | {lost}
//   cut()            ends it as a lost network does
// and tell their owner: heard(event, data, pos), ended(code, reason).

import { io } from 'socket.io-client';
import WebSocket from 'ws';

const CONNECT_MS = 8_000;
const ASK_MS = 40_000;

class NotOpened extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** The JSON protocol: comes back with `resume`, or with the session in the address. */
export class PlainLine {
  #owner;
  #token;
  #path;
  #socket;
  #asked = new Map();
  #id = 0;
  #session;
  #pos;
  /** The latest position on this connection. */
  #here;
  /** Has the gateway let it in? */
  welcomed = false;
  /** Name the session at connecting, where the gateway can? */
  #byAddress;

  constructor(owner, tenant, token, byAddress) {
    this.#owner = owner;
    this.#token = token;
    this.#path = `/t/${tenant}/ws`;
    this.#byAddress = byAddress;
  }

  async open(url) {
    const address = new URL(this.#path, url.replace('http', 'ws'));
    address.searchParams.set('token', this.#token);
    const inAddress = this.#byAddress && this.#session !== undefined;
    if (inAddress) {
      address.searchParams.set('session', this.#session);
      address.searchParams.set('pos', this.#pos);
    }
    const welcome = await this.#connected(address);
    if (!this.#session) return this.#anew(welcome, undefined);
    if (welcome.recovered !== undefined && inAddress) {
      if (!welcome.recovered) return this.#anew(welcome, false);
      this.#session = welcome.session;
      return { recovered: true, rooms: welcome.rooms, refused: welcome.refused };
    }
    // The old session stays in hand until the answer is here: without it nothing was taken up.
    const answer = await this.ask('resume', { session: this.#session, pos: this.#pos });
    if (answer.lost || answer.error) {
      this.cut();
      throw new NotOpened(answer.error?.code ?? 'lost', `resume: ${answer.error?.message ?? 'no answer'}`);
    }
    if (!answer.data.recovered) return this.#anew(welcome, false, answer.data.reason);
    this.#session = welcome.session;
    return { recovered: true, rooms: answer.data.rooms, refused: answer.data.refused };
  }

  #anew(welcome, recovered, reason) {
    this.#session = welcome.session;
    this.#pos = this.#here ?? welcome.pos;
    return { recovered, reason };
  }

  #connected(address) {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(address, { perMessageDeflate: false, handshakeTimeout: CONNECT_MS });
      this.#socket = socket;
      this.#here = undefined;
      const late = setTimeout(() => socket.terminate(), CONNECT_MS);
      this.welcomed = false;
      socket.on('message', (data) => {
        if (this.#socket !== socket) return;
        for (const line of data.toString().split('\n')) {
          const message = JSON.parse(line);
          if (message.event === 'connected') {
            this.welcomed = true;
            clearTimeout(late);
            resolve(message.data);
          } else {
            this.#message(message);
          }
        }
      });
      socket.on('error', () => {}); // told by `close`
      socket.on('close', (code, reason) => {
        clearTimeout(late);
        const mine = this.#socket === socket;
        if (mine) this.#lose();
        if (!this.welcomed || !mine) reject(new NotOpened(code, reason.toString()));
        else this.#owner.ended(code, reason.toString());
      });
    });
  }

  #message(message) {
    if (message.id !== undefined) {
      const asked = this.#asked.get(message.id);
      this.#asked.delete(message.id);
      clearTimeout(asked?.timer);
      asked?.done(message.error ? { error: message.error } : { data: message.data });
      return;
    }
    const pos = message.pos ?? (message.event === 'reset' ? message.data?.pos : undefined);
    if (pos !== undefined) this.#pos = this.#here = pos;
    this.#owner.heard(message.event, message.data, message.pos);
  }

  ask(event, data) {
    return new Promise((resolve) => {
      if (this.#socket?.readyState !== WebSocket.OPEN) return resolve({ lost: true });
      const id = (this.#id += 1);
      const timer = setTimeout(() => this.#asked.delete(id) && resolve({ lost: true, late: true }), ASK_MS);
      this.#asked.set(id, { done: resolve, timer });
      this.#socket.send(JSON.stringify({ id, event, data }));
    });
  }

  #lose() {
    this.#socket = undefined;
    for (const { done, timer } of this.#asked.values()) {
      clearTimeout(timer);
      done({ lost: true });
    }
    this.#asked.clear();
  }

  cut() {
    const socket = this.#socket;
    this.#lose();
    socket?.terminate();
  }
}

/** The real socket.io-client; whether it is recovered is its own word. */
export class SocketIoLine {
  #owner;
  #socket;
  #opening;
  #cameBefore = false;
  #cut = false;

  constructor(owner, tenant, token) {
    this.#owner = owner;
    this.#socket = io('http://127.0.0.1:1', {
      path: `/t/${tenant}/socket.io/`, auth: { token }, transports: ['websocket'], reconnection: false,
      timeout: CONNECT_MS, forceNew: true, autoConnect: false,
    });
    const socket = this.#socket;
    socket.on('connect', () => this.#opening?.done({ recovered: this.#cameBefore ? socket.recovered : undefined }));
    socket.on('connect_error', (error) => this.#opening?.failed(error.data?.code ?? error.message, error.message));
    socket.on('disconnect', (reason, details) => {
      const code = details?.context?.code ?? reason;
      if (this.#opening) this.#opening.failed(code, reason);
      else if (!this.#cut) this.#owner.ended(code, reason);
    });
    socket.onAny((event, ...args) => {
      const last = args.at(-1);
      const pos = args.length > 0 && typeof last === 'string' && /^\d+-\d+/.test(last) ? last : undefined;
      this.#owner.heard(event, args[0], pos);
    });
  }

  async open(url) {
    const manager = this.#socket.io;
    this.#endTransport();
    manager.uri = url;
    this.#cut = false;
    const opened = await new Promise((resolve, reject) => {
      const settle = (how, value) => {
        clearTimeout(late);
        this.#opening = undefined;
        how(value);
      };
      const late = setTimeout(() => this.#opening?.failed('late', 'no answer to CONNECT'), CONNECT_MS);
      this.#opening = {
        done: (value) => settle(resolve, value),
        failed: (code, message) => {
          settle(reject, new NotOpened(code, message)); // first: ending the transport is told as a disconnect
          this.#endTransport();
        },
      };
      this.#socket.connect();
    });
    this.#cameBefore = true;
    return opened;
  }

  get welcomed() {
    return this.#socket.connected;
  }

  ask(event, data) {
    return new Promise((resolve) => {
      if (!this.#socket.connected) return resolve({ lost: true });
      this.#socket.timeout(ASK_MS).emit(event, data, (lost, answer) => {
        if (lost) resolve({ lost: true, late: this.#socket.connected });
        else resolve(answer?.error ? { error: answer.error } : { data: answer });
      });
    });
  }

  /** Nothing of what the old transport still says is heard. */
  #endTransport() {
    this.#cut = true;
    this.#socket.io.engine?.transport?.ws?.terminate();
    this.#socket.io.disconnect();
  }

  cut() {
    this.#endTransport();
  }
}
