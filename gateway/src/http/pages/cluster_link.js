// One client's connection to the cluster, in either protocol. Both tell the node that they are on:
// the JSON protocol in its welcome, Socket.IO in the answer to `heartbeat`.

const RETRY_MS = [500, 1_000, 2_000, 4_000]; // then every 4 s
const ACK_TIMEOUT_MS = 5_000;

/**
 * States: `connecting`, `online` (with the node), `waiting` (tries again by itself), `offline` (by hand).
 * @param on {{state, event}} callbacks
 */
export function link(protocol, settings, token, on) {
  return protocol === 'socketio' ? new SocketIoLink(settings, token, on) : new PlainLink(settings, token, on);
}

class SocketIoLink {
  constructor(settings, token, on) {
    this.socket = window.io(settings.namespace, {
      path: `/t/${encodeURIComponent(settings.tenant)}/socket.io/`,
      auth: { token },
      transports: ['websocket'],
      forceNew: true,
      reconnectionDelay: RETRY_MS[0],
      reconnectionDelayMax: RETRY_MS.at(-1),
    });
    on.state('connecting');
    this.socket.on('connect', () => {
      this.socket.timeout(ACK_TIMEOUT_MS).emit('heartbeat', {}, (lost, answer) => {
        if (!lost && this.socket.connected) on.state('online', answer.server);
      });
    });
    this.socket.on('connect_error', (error) => on.state(this.socket.active ? 'waiting' : 'offline', error.message));
    this.socket.on('disconnect', () => on.state(this.socket.active ? 'waiting' : 'offline'));
    this.socket.onAny((event, data) => on.event(event, data));
  }

  send(event, data) {
    this.socket.emit(event, data);
  }

  cut() {
    this.socket.disconnect();
  }

  reconnect() {
    this.socket.connect();
  }
}

class PlainLink {
  constructor(settings, token, on) {
    this.on = on;
    this.tries = 0;
    const query = new URLSearchParams({ namespace: settings.namespace, token });
    this.url = new URL(`/t/${encodeURIComponent(settings.tenant)}/ws?${query}`, location.href);
    this.url.protocol = this.url.protocol.replace('http', 'ws');
    this.reconnect();
  }

  reconnect() {
    clearTimeout(this.retry);
    this.wanted = true;
    this.on.state('connecting');
    const socket = new WebSocket(this.url);
    this.socket = socket;
    socket.addEventListener('message', ({ data }) => {
      const message = JSON.parse(data);
      if (message.event === 'connected') {
        this.tries = 0;
        this.on.state('online', message.data.server);
      } else if (message.event) {
        this.on.event(message.event, message.data);
      }
    });
    socket.addEventListener('close', ({ reason }) => {
      if (socket !== this.socket) return;
      if (!this.wanted) return this.on.state('offline');
      this.on.state('waiting', reason);
      this.retry = setTimeout(() => this.reconnect(), RETRY_MS[this.tries] ?? RETRY_MS.at(-1));
      this.tries += 1;
    });
  }

  send(event, data) {
    this.socket.send(JSON.stringify({ event, data }));
  }

  cut() {
    clearTimeout(this.retry);
    this.wanted = false;
    if (this.socket.readyState === WebSocket.CLOSED) this.on.state('offline');
    else this.socket.close(1000);
  }
}
