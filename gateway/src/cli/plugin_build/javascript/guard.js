// Stands between the gateway and a plugin in JavaScript: what the plugin throws without meaning to
// becomes a line in the tenant's log that says where, and what JavaScript takes for granted (time,
// chance, the console) comes from the gateway.
import * as invocation from 'postern:plugin/invocation@0.1.0';
import { log } from 'postern:plugin/log@0.1.0';

const FRAMES_TOLD = 6;
const RealDate = Date;
let started = false;
let chance = 0n;

// An interface that the plugin's world does not have must not be exported: nobody would ever call it.
export function unwanted(plugin, name, world, others) {
  if (name in plugin) {
    throw new Error(`the plugin exports \`${name}\`, which its world ${world} does not have: set postern.world in package.json to ${others}`);
  }
}

// The functions of one interface that the plugin exports. `canFail`: may they answer `failure`?
export function guarded(plugin, name, functions, canFail) {
  const its = plugin[name];
  for (const fn of functions) {
    if (typeof its?.[fn] !== 'function') {
      throw new Error(`the plugin does not export \`${name}.${fn}\`, which its world needs: export const ${name} = { ${fn}(…) { … } }`);
    }
  }
  const guard = (fn) => (...args) => {
    begin();
    const broke = (error) => { throw told(error, canFail); };
    try {
      const answer = its[fn](...args);
      return typeof answer?.then === 'function' ? answer.then((value) => value, broke) : answer;
    } catch (error) {
      broke(error);
    }
  };
  return Object.fromEntries(functions.map((fn) => [fn, guard(fn)]));
}

// What is said about something thrown. Plain objects are answers of the contract and stay what they are.
function told(error, canFail) {
  if (typeof error === 'object' && error !== null && !isError(error)) return error;
  const refused = isError(error) ? error.payload : undefined;
  const what = refused?.tag ? hostError(refused) : `${error}`.replace(/^out of memory$/, 'out of memory: call_limits.memory_bytes');
  const frames = frame(error);
  log('error', [what, ...frames].join('\n  at '));
  if (!canFail) return error;
  if (refused?.tag === 'unavailable') return { tag: 'retry', val: 'the gateway cannot reach the state now' };
  return { tag: 'fatal', val: frames.length > 0 ? `${what} (${frames[0]})` : what };
}

// Not `instanceof`: what calls of the gateway throw was made with another global object's Error.
function isError(value) {
  return Object.prototype.toString.call(value) === '[object Error]';
}

function hostError({ tag, val }) {
  return `the gateway did not take a call: ${tag}${val === undefined ? '' : ` (${val})`}`;
}

// Where it was thrown: the plugin's own lines, innermost first.
function frame(error) {
  const lines = typeof error?.stack === 'string' ? error.stack.split('\n') : [];
  const ours = /target\/postern\/build\/|\/initializer\.js:/;
  return lines.filter((line) => line !== '' && !ours.test(line)).slice(0, FRAMES_TOLD);
}

// Before every call: an instance may be used again. While the component is built there is no gateway.
function begin() {
  chance = 0n;
  if (started) return;
  started = true;
  const now = () => Number(invocation.now());
  globalThis.Date = new Proxy(RealDate, {
    construct: (target, args, made) => Reflect.construct(target, args.length === 0 ? [now()] : args, made),
    apply: () => new RealDate(now()).toString(),
    get: (target, key) => (key === 'now' ? now : target[key]),
  });
  Math.random = random;
  for (const [method, level] of Object.entries({ debug: 'debug', log: 'info', info: 'info', warn: 'warn', error: 'error' })) {
    console[method] = (...args) => log(level, args.map(text).join(' '));
  }
  const missing = (what, instead) => () => { throw new Error(`there is no ${what} here: ${instead}`); };
  globalThis.setTimeout = missing('setTimeout', 'an instance lives for one call; timers.set of postern:plugin/timers outlives it');
  globalThis.setInterval = missing('setInterval', 'an instance lives for one call; timers.set of postern:plugin/timers outlives it');
  globalThis.fetch = missing('fetch', 'plugins have no network');
  crypto.getRandomValues = missing('crypto.getRandomValues', 'nothing in a plugin is secret; invocation.id() is unique');
  crypto.randomUUID = missing('crypto.randomUUID', 'invocation.id() is unique, and the same for every attempt');
}

// splitmix64, begun with the id of the input: other numbers for other inputs, the same for every attempt at one.
function random() {
  if (chance === 0n) {
    chance = 0xcbf29ce484222325n;
    for (const char of invocation.id()) chance = BigInt.asUintN(64, (chance ^ BigInt(char.codePointAt(0))) * 0x100000001b3n);
  }
  chance = BigInt.asUintN(64, chance + 0x9e3779b97f4a7c15n);
  let z = chance;
  z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
  z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn);
  return Number((z ^ (z >> 31n)) >> 11n) / 2 ** 53;
}

function text(value) {
  if (typeof value === 'string') return value;
  if (isError(value)) return [`${value}`, ...frame(value)].join('\n  at ');
  try {
    return JSON.stringify(value, (_, inner) => (typeof inner === 'bigint' ? `${inner}` : inner)) ?? `${value}`;
  } catch {
    return `${value}`;
  }
}
