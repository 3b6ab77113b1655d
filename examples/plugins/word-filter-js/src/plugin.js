// A word filter for chats. `chat_send {channel, text}` goes to the room `channel:{channel}` as
// `chat_message`, with the unwanted words starred out. Who insists is muted; a timer lifts that.
// The rules are in rules.js; this file speaks to the gateway.
import * as config from 'postern:plugin/config@0.1.0';
import * as invocation from 'postern:plugin/invocation@0.1.0';
import * as rooms from 'postern:plugin/rooms@0.1.0';
import * as state from 'postern:plugin/state@0.1.0';
import * as timers from 'postern:plugin/timers@0.1.0';
import { clean, maySpeak, message, settings, TEXT_CHARS_MAX } from './rules.js';

/** Strikes are forgotten an hour after the last one. */
const STRIKES_KEPT_MS = 3_600_000n;
const UNMUTE = 'unmute/';

export const describe = {
  info: () => JSON.stringify({ name: 'word-filter', version: '1.0.0', events: ['chat_send'] }),
};

export const events = {
  handle({ data, sender }) {
    const said = message(JSON.parse(data.args));
    if (!said) refuse('invalid', `a message has a \`channel\` and a \`text\` of 1 to ${TEXT_CHARS_MAX} characters`);
    // Without a sender it comes from the tenant's own back end, which may say anything anywhere.
    if (!sender) return say(said.channel, { from: 'backend', text: said.text });
    if (!maySpeak(sender.claims, said.channel)) refuse('forbidden', `you are not in the channel ${said.channel}`);
    const { words, strikes, muteMs } = settings(config.get);
    const until = read(`muted/${sender.subject}`);
    if (until) refuse('muted', `you are muted until ${new Date(until).toISOString()}`);

    const text = clean(said.text, words);
    say(said.channel, { from: sender.subject, text });
    const left = text === said.text ? undefined : strikes - strike(sender.subject, strikes, muteMs);
    reply({ text, strikes_left: left });
  },
};

export const timerEvents = {
  fire({ name }) {
    const subject = name.slice(UNMUTE.length);
    state.delete(`muted/${subject}`);
    rooms.publish(`user:${subject}`, 'chat_unmuted', payload({}));
  },
};

/** Counts one more strike against a user, and mutes who has too many. */
function strike(subject, allowed, muteMs) {
  const key = `strikes/${subject}`;
  const count = (read(key) ?? 0) + 1;
  if (count < allowed) {
    write(key, count, STRIKES_KEPT_MS);
  } else {
    const until = Number(invocation.now()) + muteMs;
    state.delete(key);
    write(`muted/${subject}`, until, undefined);
    timers.set(UNMUTE + subject, BigInt(muteMs), '{}');
    rooms.publish(`user:${subject}`, 'chat_muted', payload({ until }));
  }
  return count;
}

function say(channel, what) {
  rooms.publish(`channel:${channel}`, 'chat_message', payload({ channel, ...what, at: Number(invocation.now()) }));
}

function reply(data) {
  rooms.reply(payload(data));
}

/** An event's arguments are a JSON array; most events have one. */
function payload(data) {
  return { args: JSON.stringify([data]), attachments: [] };
}

/** Values are bytes: here, JSON. */
function read(key) {
  const bytes = state.get(key);
  return bytes && JSON.parse(new TextDecoder().decode(bytes));
}

function write(key, value, ttl) {
  state.put(key, new TextEncoder().encode(JSON.stringify(value)), ttl);
}

/** Nothing of what was done takes effect; the client is told why. */
function refuse(code, message) {
  throw { tag: 'refused', val: { code, message } };
}
