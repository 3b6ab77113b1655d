// What the swarm saw, as JSON lines in a file: written in the order in which it happened.

import { closeSync, openSync, writeSync } from 'node:fs';

const FLUSH_MS = 100;

let file;
let lines = [];

setInterval(flush, FLUSH_MS).unref();

function flush() {
  if (file === undefined || lines.length === 0) return;
  writeSync(file, `${lines.join('\n')}\n`);
  lines = [];
}

/** Ends the present history, if there is one, and begins another. */
export function begin(path) {
  end();
  file = openSync(path, 'w');
}

export function end() {
  flush();
  if (file !== undefined) closeSync(file);
  file = undefined;
  lines = [];
}

/** Something that happened: `k` says what. */
export function record(k, details) {
  if (file !== undefined) lines.push(JSON.stringify({ k, t: Date.now(), ...details }));
}

/** A publication that a client received: most of the history, so it is short. */
export function received(client, room, pos, key) {
  if (file !== undefined) lines.push(JSON.stringify(['g', Date.now(), client, room, pos ?? '', key]));
}
