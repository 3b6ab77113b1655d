// A guard's terminal over the plain JSON protocol: registers a visitor and waits for the decision.
// Run (once: npm install), with the gateway of `make demo` running and a token of your own:
//   TOKEN=$(target/debug/postern token --tenants examples/tenants --tenant green-valley --sub guard-1 --claim role=guard --claim society_id=green-valley) node examples/clients/plain-websocket.mjs "Meera Nair"

import WebSocket from 'ws';

const ANSWER_MS = 5_000;
const socket = new WebSocket(process.env.URL ?? 'ws://localhost:3000/ws', {
  headers: { authorization: `Bearer ${process.env.TOKEN}` },
});

// A message is one JSON object per line; what has an `id` answers our request of that id.
const waiting = new Map();
let lastId = 0;

function request(event, data) {
  return new Promise((resolve, reject) => {
    const id = (lastId += 1);
    const timer = setTimeout(() => reject(new Error(`no answer to ${event} within ${ANSWER_MS} ms`)), ANSWER_MS);
    waiting.set(id, (answer) => {
      clearTimeout(timer);
      waiting.delete(id);
      if (answer.error) reject(new Error(`${answer.error.code}: ${answer.error.message}`));
      else resolve(answer.data);
    });
    socket.send(JSON.stringify({ id, event, data }));
  });
}

socket.on('message', (text) => {
  for (const line of text.toString().split('\n')) {
    const message = JSON.parse(line);
    if (message.id !== undefined) waiting.get(message.id)?.(message);
    else pushed(message);
  }
});

function pushed({ event, room, data }) {
  console.log(event, room ?? '', JSON.stringify(data));
  if (['request_approved', 'request_denied', 'visitor_timeout'].includes(event)) socket.close(1000);
}

socket.on('open', async () => {
  const visitor_name = process.argv[2] ?? 'Meera Nair';
  try {
    const { visitor_id } = await request('visitor_create', { flat_id: 'A-101', visitor_name, purpose: 'Delivery' });
    console.log(`${visitor_name} is registered as ${visitor_id}, waiting for flat A-101`);
  } catch (error) {
    console.error(error.message);
    socket.close(1000);
  }
});
socket.on('unexpected-response', (_, response) => console.error(`refused: HTTP ${response.statusCode}`));
socket.on('error', (error) => console.error(error.message));
socket.on('close', (code, reason) => console.log(`closed: ${code} ${reason}`));
