// Chance from a seed: the same seed makes the same choices in the same order.

export class Chance {
  #state;

  constructor(seed, name = '') {
    this.#state = (fnv(name) ^ seed) >>> 0;
  }

  /** From 0 to below 1 (mulberry32). */
  next() {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  }

  /** A whole number from 0 to below `n`. */
  below(n) {
    return Math.floor(this.next() * n);
  }

  between(low, high) {
    return low + this.next() * (high - low);
  }

  of(list) {
    return list[this.below(list.length)];
  }

  onceIn(n) {
    return this.below(n) === 0;
  }

  /** Milliseconds until the next of something that happens every `mean` on average. */
  until(mean) {
    return -Math.log(1 - this.next()) * mean;
  }
}

/** 32 bits of FNV-1a. */
export function fnv(text) {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i += 1) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}
