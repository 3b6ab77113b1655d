// The real socket.io-client, driven by commands (see kit.mjs):
//
//   {"do":"connect","name":"asha","url":"http://127.0.0.1:3000","path":"/socket.io/","namespace":"/",
//    "auth":{},"query":{},"headers":{},"transports":["websocket"],"reconnection":false,"timeout_ms":5000}
//        waits → connect {name,id,recovered,transport} | connect_error {name,message,data,active}
//        further: "auths":[{},…] instead of "auth": what a function answers, one each time, the last for ever;
//        "options":{…}: any of socket.io-client's own
//   {"do":"emit","name":"asha","event":"visitor_list","args":[{}],"ack":true,"timeout_ms":3000,"tag":"t1"}
//        does not wait → ack {name,event,tag,args,ack_ms}; `"ok":false` without args when none came
//   {"do":"cut","name":"asha"}         closes the transport without a goodbye, as a lost network
//   {"do":"kill","name":"asha"}        as `cut`, without waiting for the other side's goodbye
//   {"do":"disconnect","name":"asha"}  leaves the namespace
//   {"do":"reconnect","name":"asha","auth":{…},"url":"…"}   waits as `connect`; keeps pid and offset
//
// Also observed: event {name,event,args}, disconnect {name,reason,active}, upgrade {name,transport}. `active`: the
// client tries again by itself.
// `args` are as they came: with connection state recovery the last one is the offset.

import { io } from 'socket.io-client';
import { observe, run, withBytes, withoutBytes } from './kit.mjs';

const CONNECT_MS = 5_000;
const ACK_MS = 3_000;
const sockets = new Map();

function named(name) {
  const socket = sockets.get(name);
  if (!socket) throw new Error(`nobody named ${name} has connected`);
  return socket;
}

function connect({ name, url, path, namespace = '/', auth = {}, auths, query, headers, transports = ['websocket'], reconnection = false, timeout_ms: timeoutMs = CONNECT_MS, options = {} }) {
  const socket = io(new URL(namespace, url).href, {
    path, auth: auths ? oneByOne(auths) : auth, query, transports, reconnection, extraHeaders: headers, timeout: timeoutMs,
    forceNew: true, autoConnect: false, ...options,
  });
  sockets.set(name, socket);
  const transport = () => socket.io.engine?.transport.name;
  socket.io.on('open', () => socket.io.engine.on('upgrade', () => observe('upgrade', { name, transport: transport() })));
  socket.on('connect', () => observe('connect', { name, id: socket.id, recovered: socket.recovered, transport: transport() }));
  socket.on('connect_error', (error) => {
    const details = { name, message: error.message, data: error.data ?? null, active: socket.active };
    if (error.context?.status) Object.assign(details, { status: error.context.status, body: error.context.responseText });
    observe('connect_error', details, false);
  });
  socket.on('disconnect', (reason) => observe('disconnect', { name, reason, active: socket.active }));
  socket.onAny((event, ...args) => observe('event', { name, event, args: withoutBytes(args) }));
  return opened(socket, timeoutMs);
}

/** An `auth` function, as apps have that fetch a token before each connection. */
function oneByOne(auths) {
  let asked = 0;
  return (answer) => answer(auths[Math.min(asked++, auths.length - 1)]);
}

/** Connects and waits until it is known how that went. */
function opened(socket, timeoutMs = CONNECT_MS) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`neither connected nor refused within ${timeoutMs} ms`)), timeoutMs);
    const done = () => {
      clearTimeout(timer);
      socket.off('connect', done).off('connect_error', done);
      resolve();
    };
    socket.on('connect', done).on('connect_error', done).connect();
  });
}

function emit({ name, event, args = [], ack = false, timeout_ms: timeoutMs = ACK_MS, tag }) {
  const socket = named(name);
  if (!ack) {
    socket.emit(event, ...withBytes(args));
    return;
  }
  const sent = performance.now();
  socket.timeout(timeoutMs).emit(event, ...withBytes(args), (lost, ...answer) => {
    const details = { name, event, tag, ack_ms: Math.round((performance.now() - sent) * 1000) / 1000 };
    if (lost) observe('ack', { ...details, message: lost.message }, false);
    else observe('ack', { ...details, args: withoutBytes(answer) });
  });
}

function reconnect({ name, auth, url, timeout_ms: timeoutMs }) {
  const socket = named(name);
  if (auth) socket.auth = auth;
  if (url) socket.io.uri = url;
  return opened(socket, timeoutMs);
}

await run({
  connect,
  emit,
  reconnect,
  cut: ({ name }) => { named(name).io.engine.close(); },
  kill: ({ name }) => { named(name).io.engine.transport.ws.terminate(); },
  disconnect: ({ name }) => { named(name).disconnect(); },
}, () => sockets.forEach((socket) => socket.disconnect()));
