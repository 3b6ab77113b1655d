// A resident's app: waits for visitors at the gate of flat A-101 and lets everyone in.
// Run (once: npm install), with the gateway of `make demo` running and a token of your own:
//   TOKEN=$(target/debug/postern token --tenants examples/tenants --tenant green-valley --sub asha --claim role=resident --claim 'flats=["A-101"]') node examples/clients/socketio.mjs

import { io } from 'socket.io-client';

const ANSWER_MS = 5_000;

const socket = io(process.env.URL ?? 'http://localhost:3000', {
  path: '/t/green-valley/socket.io/',
  auth: { token: process.env.TOKEN },
  transports: ['websocket'],
});

socket.on('connect', async () => {
  console.log(socket.recovered ? 'back, nothing missed' : `connected as ${socket.id}`);
  const { visitors, error } = await ask('visitor_list', { status: 'pending' });
  if (error) console.error('no list:', error.code);
  else visitors.forEach(welcome);
});
socket.on('connect_error', (error) => console.error('refused:', error.message, error.data ?? ''));
socket.on('disconnect', (reason) => console.log('disconnected:', reason));

socket.on('visitor_request', welcome);
socket.on('request_approved', ({ visitor_name, decided_by }) => console.log(`${visitor_name} was let in by ${decided_by}`));
socket.on('request_denied', ({ visitor_name, decided_by }) => console.log(`${visitor_name} was sent away by ${decided_by}`));
socket.on('visitor_timeout', ({ visitor_name }) => console.log(`${visitor_name} waited in vain`));

async function welcome({ visitor_id, visitor_name, purpose }) {
  console.log(`${visitor_name} is at the gate (${purpose || 'no purpose given'})`);
  const { error } = await ask('visitor_respond', { visitor_id, decision: 'approve' });
  if (error) console.log(`not let in by us: ${error.code}`); // for example already_resolved
}

/** The server's answer; `{error: {code, message}}` when it refuses or stays silent. */
function ask(event, data) {
  return socket.timeout(ANSWER_MS).emitWithAck(event, data)
    .catch((error) => ({ error: { code: 'timeout', message: error.message } }));
}
