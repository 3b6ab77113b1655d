// What may be said in a chat, without a gateway: texts and settings in, decisions out.

/** The longest message, in characters. */
export const TEXT_CHARS_MAX = 2000;

/**
 * The plugin's settings, from `config.get`: `words`, separated by commas; `strikes`, after how many starred-out
 * messages within an hour one is muted (3); `mute_ms`, for how long (60,000).
 */
export function settings(get) {
  const number = (name, otherwise) => {
    const value = Number(get(name) ?? otherwise);
    if (!Number.isSafeInteger(value) || value < 1) throw new Error(`the setting \`${name}\` is a whole number from 1`);
    return value;
  };
  const words = (get('words') ?? '').split(',').map((word) => word.trim()).filter((word) => word !== '');
  return { words, strikes: number('strikes', 3), muteMs: number('mute_ms', 60_000) };
}

/** The text with every unwanted word starred out, as a whole word and in any case. */
export function clean(text, words) {
  if (words.length === 0) return text;
  const any = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('|');
  // The engine that is packed into the component comes without Unicode's tables: no \p{L}.
  const letter = '[\\w\\u00c0-\\uffff]';
  const unwanted = new RegExp(`(?<!${letter})(?:${any})(?!${letter})`, 'gi');
  return text.replace(unwanted, (word) => '*'.repeat([...word].length));
}

/** What a client sent, or `undefined` if it is not a message for a channel. */
export function message(args) {
  const { channel, text } = args[0] ?? {};
  const fits = typeof text === 'string' && text.trim() !== '' && [...text].length <= TEXT_CHARS_MAX;
  return fits && typeof channel === 'string' && /^[\w.-]{1,64}$/.test(channel) ? { channel, text } : undefined;
}

/** May the bearer of these claims (JSON) speak in the channel? */
export function maySpeak(claims, channel) {
  const { channels } = JSON.parse(claims);
  return Array.isArray(channels) && channels.map(String).includes(channel);
}
