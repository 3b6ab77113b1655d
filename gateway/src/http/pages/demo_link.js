// One person's connection: a Socket.IO client of its own, as an app would have it.

const ACK_TIMEOUT_MS = 5_000;
const TOKEN_SPARE_S = 60; // a token that ends sooner is fetched anew before it is used
const SHUTDOWN_RETRY_MS = 2_000; // when a stopping server gives no hint of its own
const CLOCK_SLACK_MS = 2_000; // the Date header has whole seconds: below this the clocks agree

let settings;

/** What the server says about the demo: tenant, tokens, time-out. */
export async function loadSettings() {
  const response = await fetch('/demo/tokens.json', { cache: 'no-store' });
  if (!response.ok) throw new Error(`the server answered ${response.status} to /demo/tokens.json; is it in demo mode?`);
  const date = Date.parse(response.headers.get('date') ?? '');
  if (Math.abs(date - Date.now()) > CLOCK_SLACK_MS) clock.skewMs = date - Date.now();
  settings = await response.json();
  return settings;
}

/** The server's clock as far as we know it; this machine's may be minutes off. */
export const clock = {
  skewMs: 0,
  now: () => Date.now() + clock.skewMs,
};

/** The claims of a token, to show a name; nothing here trusts them. */
export function claimsOf(token) {
  try {
    const text = token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/');
    const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return {};
  }
}

async function freshToken(pane) {
  const { exp } = claimsOf(settings.tokens[pane]);
  if (exp !== undefined && exp - clock.now() / 1000 < TOKEN_SPARE_S) {
    try {
      await loadSettings();
    } catch {
      // The server is away: connect with what we have and be told.
    }
  }
  return settings.tokens[pane];
}

/**
 * States: `connecting`, `online`, `waiting` (tries again by itself), `offline` (by
 * hand), `refused` (the server said no, or ended the connection).
 */
export class Link {
  /** @param on {{state, event, trace}} callbacks; `trace` gets every line for the log. */
  constructor(pane, on) {
    this.pane = pane;
    this.on = on;
    this.state = 'connecting';
    this.retry = undefined;
    this.socket = window.io({
      path: `/t/${encodeURIComponent(settings.tenant)}/socket.io/`,
      auth: (give) => freshToken(pane).then((token) => give({ token })),
      transports: ['websocket'],
      forceNew: true,
    });
    this.listen();
  }

  listen() {
    const { socket } = this;
    socket.on('connect', () => {
      this.trace('life', 'connect', { id: socket.id, recovered: socket.recovered });
      this.become('online', { recovered: socket.recovered });
    });
    socket.on('connect_error', (error) => {
      this.trace('life', 'connect_error', { message: error.message, ...(error.data && { data: error.data }) });
      this.become(socket.active ? 'waiting' : 'refused', { reason: error.message });
    });
    socket.on('disconnect', (reason) => {
      this.trace('life', 'disconnect', { reason });
      if (this.state === 'offline') return;
      if (reason === 'io server disconnect' && this.comeBackMs === undefined) this.become('refused', { reason: this.lastError ?? 'The server ended the connection.' });
      else this.become('waiting', { reason });
      if (reason === 'io server disconnect' && this.comeBackMs !== undefined) {
        this.retry = setTimeout(() => socket.connect(), this.comeBackMs);
      }
      this.comeBackMs = undefined;
    });
    socket.onAny((event, ...args) => {
      // With connection state recovery the last argument is the position to resume from.
      if (args.length > 1 && typeof args.at(-1) === 'string') args.pop();
      this.trace('in', event, args.length === 1 ? args[0] : args);
      if (event === 'server:shutdown') this.comeBackMs = Number(args[0]?.reconnect_after_ms ?? SHUTDOWN_RETRY_MS);
      if (event === 'error') this.lastError = args[0]?.message;
      this.on.event(event, args[0]);
    });
  }

  become(state, detail = {}) {
    this.state = state;
    this.on.state(state, detail);
  }

  trace(direction, event, data, ackMs) {
    this.on.trace({ pane: this.pane, direction, event, data, ackMs });
  }

  /** Sends an event and waits for its answer: `{ok, data, ackMs}` or `{ok: false, code, message}`. */
  request(event, data) {
    const started = performance.now();
    this.trace('out', event, data);
    return new Promise((resolve) => {
      this.socket.timeout(ACK_TIMEOUT_MS).emit(event, data, (lost, reply) => {
        const ackMs = performance.now() - started;
        const refusal = lost ? { code: 'timeout', message: 'No answer from the server.' } : reply?.error;
        this.trace('ack', event, refusal && lost ? refusal : reply, ackMs);
        resolve(refusal
          ? { ok: false, code: refusal.code ?? 'error', message: refusal.message ?? String(refusal), ackMs }
          : { ok: true, data: reply ?? {}, ackMs });
      });
    });
  }

  /** Cuts the connection as a lost network would: the server is not told goodbye. */
  cut() {
    clearTimeout(this.retry);
    this.become('offline');
    this.socket.io.reconnection(false);
    if (this.socket.io.engine?.readyState === 'open') this.socket.io.engine.close();
    else this.socket.disconnect();
  }

  /** Connects again, after a cut or a refusal. */
  reconnect() {
    this.become('connecting');
    this.socket.io.reconnection(true);
    this.socket.connect();
  }
}
