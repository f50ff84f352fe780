import { expect, it } from 'vitest'
import { halfSipHash } from '../../../src/guard/revocation/half-sip-hash.ts'

const out = new Uint32Array(2)

function hashOf(key: readonly [number, number], text: string): string {
  halfSipHash(key, text, out)
  const bytes = Buffer.alloc(8)
  bytes.writeUInt32LE(out[0] ?? 0, 0)
  bytes.writeUInt32LE(out[1] ?? 0, 4)
  return bytes.toString('hex')
}

/** Published with the algorithm, for the key 00 01 … 07: the hash of the bytes 00 01 02 … */
const vectors: readonly (readonly [length: number, hash: string])[] = [
  [0, '218d1f59b9b83cc8'],
  [2, '064f39ef7c50eb57'],
  [4, 'd5e78a175be52ea1'],
  [6, 'ce3e91358aa2bc25'],
  [8, 'edfee820bce4858c'],
  [10, '95b0469f06a6f2ee'],
  [62, 'f90b3ab572d46693'],
]

it.each(vectors)('gives the published hash of %i bytes', (length, hash) => {
  const bytes = Buffer.from(Array.from({ length }, (_, at) => at))
  expect(hashOf([0x03020100, 0x07060504], bytes.toString('utf16le'))).toBe(hash)
})

it('tells apart texts that end alike, and one text under two keys', () => {
  const key = [1, 2] as const
  const texts = ['', '\0', '\0\0', 'a', 'a\0', 'ab', 'ba', 'a'.repeat(128), 'a'.repeat(256), 'é', 'e\u0301', '🔑']
  expect(new Set(texts.map((text) => hashOf(key, text))).size).toBe(texts.length)
  expect(hashOf(key, 'alice')).not.toBe(hashOf([1, 3], 'alice'))
  expect(hashOf(key, 'alice')).toBe(hashOf(key, ['al', 'ice'].join('')))
})
