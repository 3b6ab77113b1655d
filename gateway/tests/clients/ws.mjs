// A plain WebSocket client, driven by commands (see kit.mjs):
//
//   {"do":"connect","name":"ravi","url":"ws://127.0.0.1:3000/ws","headers":{},"query":{},"protocols":[],
//    "deflate":false,"timeout_ms":5000}
//        waits → open {name,extensions,protocol} | refused {name,status,headers,body} | error {name,message}
//   {"do":"send","name":"ravi","json":{…}}   or  "text":"…"  or  "bin":"BASE64"; several JSON values
//        in one message: "lines":[{…},{…}]
//   {"do":"close","name":"ravi","code":1000,"reason":""}    {"do":"cut","name":"ravi"}
//   {"do":"ping","name":"ravi"} → pong {name}
//   {"do":"pause","name":"ravi"} / {"do":"resume",…}   stops reading from the socket: a slow client
//
// Observed: message {name,json} per line that is JSON, otherwise {name,text}; {name,bin,bytes} when
// binary; closed {name,code,reason}.

import WebSocket from 'ws';
import { observe, run } from './kit.mjs';

const CONNECT_MS = 5_000;
const BODY_CHARS_MAX = 4_096;
const sockets = new Map();

function named(name) {
  const socket = sockets.get(name);
  if (!socket) throw new Error(`nobody named ${name} has connected`);
  return socket;
}

function connect({ name, url, headers, query = {}, protocols = [], deflate = false, timeout_ms: timeoutMs = CONNECT_MS }) {
  const address = new URL(url);
  for (const [key, value] of Object.entries(query)) address.searchParams.set(key, value);
  const socket = new WebSocket(address, protocols, { headers, perMessageDeflate: deflate, handshakeTimeout: timeoutMs });
  sockets.set(name, socket);
  socket.on('message', (data, binary) => received(name, data, binary));
  socket.on('pong', () => observe('pong', { name }));
  socket.on('close', (code, reason) => observe('closed', { name, code, reason: reason.toString() }));
  return new Promise((resolve) => {
    socket.on('open', () => {
      observe('open', { name, extensions: socket.extensions, protocol: socket.protocol });
      resolve();
    });
    socket.on('unexpected-response', async (request, response) => {
      const body = await text(response);
      observe('refused', { name, status: response.statusCode, headers: response.headers, body }, false);
      request.destroy();
      resolve();
    });
    socket.on('error', (error) => {
      observe('error', { name, message: error.message }, false);
      resolve();
    });
  });
}

async function text(response) {
  let body = '';
  for await (const chunk of response) body = (body + chunk).slice(0, BODY_CHARS_MAX);
  return body;
}

function received(name, data, binary) {
  if (binary) {
    observe('message', { name, bin: data.toString('base64'), bytes: data.length });
    return;
  }
  for (const line of data.toString().split('\n')) {
    try {
      observe('message', { name, json: JSON.parse(line) });
    } catch {
      observe('message', { name, text: line });
    }
  }
}

function send({ name, json, lines, text: plain, bin }) {
  const socket = named(name);
  if (bin !== undefined) socket.send(Buffer.from(bin, 'base64'));
  else if (plain !== undefined) socket.send(plain);
  else socket.send((lines ?? [json]).map((value) => JSON.stringify(value)).join('\n'));
}

await run({
  connect,
  send,
  close: ({ name, code = 1000, reason = '' }) => { named(name).close(code, reason); },
  cut: ({ name }) => { named(name).terminate(); },
  ping: ({ name }) => { named(name).ping(); },
  pause: ({ name }) => { named(name).pause(); },
  resume: ({ name }) => { named(name).resume(); },
}, () => sockets.forEach((socket) => socket.readyState === WebSocket.OPEN && socket.terminate()));
