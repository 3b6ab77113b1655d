// Many plain WebSocket clients that send events at a rate and note which version answered.
//
//   node swap.mjs
//
// Standard input, one JSON object a line; each is answered by one line on standard output:
//   {"urls":[…],"tokens":[…],"per_second":N}  a client for each token, spread over the urls, and events from them in
//                                             turn, from now on → {"connected":N}
//   {"do":"end"}                              no more events; once all are answered, or 10 s later:
//       {sent, answered, unanswered, twice, errors, closed, by: {version: answers}, last, by_url: [{unanswered, closed}]}

import process from 'node:process';
import { createInterface } from 'node:readline';
import WebSocket from 'ws';

const TICK_MS = 5;
const CONNECTING_MAX = 50;
const ANSWERS_MS = 10_000;

const result = { sent: 0, answered: 0, twice: 0, errors: 0, closed: 0, by: {}, last: null, by_url: [] };
const clients = [];
/** The events that were sent: 1 when answered. */
const answered = new Map();
let ending = false;

function connect(url, place, token) {
  return new Promise((resolve, reject) => {
    const address = new URL(url);
    address.searchParams.set('token', token);
    const socket = new WebSocket(address, { perMessageDeflate: false });
    const client = { socket, place, open: true, waiting: 0 };
    socket.on('message', (data) => {
      for (const line of data.toString().split('\n')) {
        const message = JSON.parse(line);
        if (message.event === 'connected') {
          clients.push(client);
          resolve();
        } else if (message.id !== undefined) {
          answer(client, message);
        }
      }
    });
    socket.on('close', () => {
      client.open = false;
      if (!ending) {
        result.closed += 1;
        result.by_url[place].closed += 1;
      }
      reject(new Error('closed before it was in'));
    });
    socket.on('error', () => {});
  });
}

function answer(client, message) {
  if (answered.get(message.id)) {
    result.twice += 1;
    return;
  }
  answered.set(message.id, 1);
  client.waiting -= 1;
  if (message.error) {
    result.errors += 1;
    result.error = message.error;
    return;
  }
  result.answered += 1;
  result.by[message.data] = (result.by[message.data] ?? 0) + 1;
  result.last = message.data;
}

async function start({ urls, tokens, per_second: perSecond }) {
  result.by_url = urls.map(() => ({ unanswered: 0, closed: 0 }));
  for (let from = 0; from < tokens.length; from += CONNECTING_MAX) {
    const some = tokens.slice(from, from + CONNECTING_MAX);
    await Promise.all(some.map((token, n) => connect(urls[(from + n) % urls.length], (from + n) % urls.length, token)));
  }
  const begun = performance.now();
  const timer = setInterval(() => {
    if (ending) {
      clearInterval(timer);
      return;
    }
    const due = ((performance.now() - begun) * perSecond) / 1_000;
    for (let tried = 0; result.sent < due && tried < clients.length * 2; tried += 1) send(result.sent + tried);
  }, TICK_MS);
  return { connected: clients.length };
}

function send(turn) {
  const client = clients[turn % clients.length];
  if (!client.open) return;
  result.sent += 1;
  client.waiting += 1;
  answered.set(result.sent, 0);
  client.socket.send(JSON.stringify({ id: result.sent, event: 'count', data: {} }));
}

async function end() {
  ending = true;
  const deadline = Date.now() + ANSWERS_MS;
  const open = () => clients.some((client) => client.open && client.waiting > 0);
  while (open() && Date.now() < deadline) await new Promise((resolve) => setTimeout(resolve, 20));
  // What is answered twice is answered soon after.
  await new Promise((resolve) => setTimeout(resolve, 200));
  for (const client of clients) result.by_url[client.place].unanswered += client.waiting;
  result.unanswered = result.by_url.reduce((sum, { unanswered }) => sum + unanswered, 0);
  return result;
}

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  const done = command.do === 'end' ? await end() : await start(command);
  process.stdout.write(`${JSON.stringify(done)}\n`);
}
