/**
 * HalfSipHash-2-4 with 64 bits of output (Aumasson and Bernstein): SipHash on words of 32 bits, the largest that
 * JavaScript adds without a detour. Whoever does not know the key can neither find two texts of one hash nor tell
 * where in a table a text will land; that, and no more, is what it is for.
 */

/** Eight bytes that nobody outside the process knows. */
export type HashKey = readonly [number, number]

/**
 * @param key - two words of 32 bits
 * @param text - its UTF-16 code units are hashed, little end first
 * @param out - two words, written over: returning a pair would make one for every look-up
 */
export function halfSipHash([k0, k1]: HashKey, text: string, out: Uint32Array): void {
  let v0 = k0 | 0
  let v1 = k1 ^ 0xee
  let v2 = k0 ^ 0x6c796765
  let v3 = k1 ^ 0x74656462
  const { length } = text
  const whole = length & ~1
  let word = 0
  // One round more than there are whole words: the last takes what is left over, and the length in bytes modulo 256.
  for (let at = 0; at <= whole; at += 2) {
    if (at < whole) word = text.charCodeAt(at) | (text.charCodeAt(at + 1) << 16)
    else word = (length << 25) | (at < length ? text.charCodeAt(at) : 0) | 0
    v3 ^= word
    for (let round = 0; round < 2; round += 1) {
      v0 = (v0 + v1) | 0
      v1 = ((v1 << 5) | (v1 >>> 27)) ^ v0
      v0 = (v0 << 16) | (v0 >>> 16)
      v2 = (v2 + v3) | 0
      v3 = ((v3 << 8) | (v3 >>> 24)) ^ v2
      v0 = (v0 + v3) | 0
      v3 = ((v3 << 7) | (v3 >>> 25)) ^ v0
      v2 = (v2 + v1) | 0
      v1 = ((v1 << 13) | (v1 >>> 19)) ^ v2
      v2 = (v2 << 16) | (v2 >>> 16)
    }
    v0 ^= word
  }
  v2 ^= 0xee
  for (let half = 0; half < 2; half += 1) {
    for (let round = 0; round < 4; round += 1) {
      v0 = (v0 + v1) | 0
      v1 = ((v1 << 5) | (v1 >>> 27)) ^ v0
      v0 = (v0 << 16) | (v0 >>> 16)
      v2 = (v2 + v3) | 0
      v3 = ((v3 << 8) | (v3 >>> 24)) ^ v2
      v0 = (v0 + v3) | 0
      v3 = ((v3 << 7) | (v3 >>> 25)) ^ v0
      v2 = (v2 + v1) | 0
      v1 = ((v1 << 13) | (v1 >>> 19)) ^ v2
      v2 = (v2 << 16) | (v2 >>> 16)
    }
    out[half] = v1 ^ v3
    v1 ^= 0xdd
  }
}
