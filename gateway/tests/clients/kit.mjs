// What the client scripts share: commands in, observations out, one JSON line each.
//
//   node SCRIPT '{"limit_ms":20000,"commands":[…]}'      further commands on standard input
//
// A command is `{"do":WORD,…}`; an observation `{"ok":BOOL,"what":WORD,…}` with the milliseconds
// since the start in `at_ms`. `ok` says whether what was asked for came about: a refused
// connection or a lost answer is `"ok":false`, yet expected by many a test. Commands run in
// order. The script ends when its commands and standard input do; it ends with code 1 when an
// `expect` was not met, a command was not understood, or the time limit passed.
//
// Every script knows:
//   {"do":"expect","match":{…},"timeout_ms":3000}   waits for an observation that contains `match`
//                                                   and that no earlier `expect` has taken
//   {"do":"absent","match":{…},"within_ms":300}     … and that none comes
//   {"do":"sleep","ms":100}
//   {"do":"quit"}
//
// Bytes are written `{"$bin":"BASE64"}`.

import { createInterface } from 'node:readline';
import process from 'node:process';

const LIMIT_MS_MAX = 20_000;
const EXPECT_MS = 3_000;
const ABSENT_MS = 300;
const OBSERVATIONS_MAX = 100_000;

const started = performance.now();
const untaken = [];
const waiters = new Set();
let failures = 0;

/** Prints one observation and hands it to whoever waits for it. */
export function observe(what, details = {}, ok = true) {
  const line = { ok, what, ...details, at_ms: Math.round(performance.now() - started) };
  process.stdout.write(`${JSON.stringify(line)}\n`);
  untaken.push(line);
  if (untaken.length > OBSERVATIONS_MAX) untaken.shift();
  for (const waiter of waiters) waiter();
}

/** Something that must not be: the script will end with code 1. */
function fail(what, details) {
  failures += 1;
  process.stdout.write(`${JSON.stringify({ ok: false, what, ...details })}\n`);
}

/** Runs the commands of the configuration, then those on standard input. */
export async function run(actions, closeAll) {
  const config = JSON.parse(process.argv[2] ?? '{}');
  const limitMs = Math.min(config.limit_ms ?? LIMIT_MS_MAX, LIMIT_MS_MAX);
  setTimeout(() => {
    fail('time_limit', { limit_ms: limitMs });
    exit(1);
  }, limitMs).unref();

  const all = { expect, absent, sleep, ...actions };
  for await (const command of commandsOf(config)) {
    if (command?.do === 'quit') break;
    const action = Object.hasOwn(all, command?.do ?? '') ? all[command.do] : undefined;
    if (!action) {
      fail('unknown_command', { command, known: [...Object.keys(all), 'quit'] });
      continue;
    }
    try {
      await action(command);
    } catch (error) {
      fail('command_failed', { command, message: error.message });
    }
  }
  await closeAll();
  exit(failures > 0 ? 1 : 0);
}

async function* commandsOf(config) {
  yield* config.commands ?? [];
  for await (const line of createInterface({ input: process.stdin })) {
    if (!line.trim()) continue;
    let command;
    try {
      command = JSON.parse(line);
    } catch {
      command = { unreadable: line };
    }
    yield command;
  }
}

/** Ends the process once what was written has left it. */
export function exit(code) {
  process.stdout.write('', () => process.exit(code));
}

async function expect({ match, timeout_ms: timeoutMs = EXPECT_MS }) {
  if (!(await taken(match, timeoutMs))) fail('expected', { match, timeout_ms: timeoutMs });
}

async function absent({ match, within_ms: withinMs = ABSENT_MS }) {
  const line = await taken(match, withinMs);
  if (line) fail('unexpected', { match, observation: line });
}

function sleep({ ms }) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** The first untaken observation that contains `match`, waited for; undefined if none came. */
function taken(match, timeoutMs) {
  return new Promise((resolve) => {
    const look = () => {
      const index = untaken.findIndex((line) => contains(line, match));
      if (index >= 0) done(untaken.splice(index, 1)[0]);
    };
    const done = (line) => {
      clearTimeout(timer);
      waiters.delete(look);
      resolve(line);
    };
    const timer = setTimeout(done, timeoutMs);
    waiters.add(look);
    look();
  });
}

/** Does `whole` have everything that `part` has? Arrays item by item, from the start. */
export function contains(whole, part) {
  if (part === null || typeof part !== 'object') return whole === part;
  if (whole === null || typeof whole !== 'object') return false;
  return Object.entries(part).every(([key, value]) => contains(whole[key], value));
}

/** `{"$bin":…}` → Buffer, at any depth. */
export function withBytes(value) {
  if (value === null || typeof value !== 'object') return value;
  if (typeof value.$bin === 'string') return Buffer.from(value.$bin, 'base64');
  if (Array.isArray(value)) return value.map(withBytes);
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, withBytes(inner)]));
}

/** Buffers and typed arrays → `{"$bin":…}`, at any depth. */
export function withoutBytes(value) {
  if (value === null || typeof value !== 'object') return value;
  if (value instanceof ArrayBuffer) return { $bin: Buffer.from(value).toString('base64') };
  if (ArrayBuffer.isView(value)) return { $bin: Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('base64') };
  if (Array.isArray(value)) return value.map(withoutBytes);
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, withoutBytes(inner)]));
}
