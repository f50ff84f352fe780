/**
 * JSON as a token may contain it: strict UTF-8, bounded depth, no member named twice (RFC 8725 §3.7 leaves parsers
 * free to disagree about those, and two parsers that disagree are a hole), frozen all the way down. The parsing itself
 * is the runtime's own.
 */
import { isUtf8 } from 'node:buffer'

const MAX_DEPTH = 16
const QUOTE = 0x22
const BACKSLASH = 0x5c
const COLON = 0x3a

/**
 * @param bytes - what was between two dots of a token, decoded
 * @returns a frozen object
 * @throws SyntaxError when the bytes are not one JSON object, or break one of the rules above
 */
export function parseStrictObject(bytes: Buffer): Readonly<Record<string, unknown>> {
  if (!isUtf8(bytes)) throw new SyntaxError('not UTF-8')
  // One pass over the bytes counts what the parser will not tell: how deep it goes, and how many members were written.
  let depth = 0
  let members = 0
  let inString = false
  for (let at = 0; at < bytes.length; at += 1) {
    const byte = bytes[at]
    if (inString) {
      if (byte === BACKSLASH) at += 1
      else if (byte === QUOTE) inString = false
    } else if (byte === QUOTE) inString = true
    else if (byte === COLON) members += 1
    else if (byte === 0x7b || byte === 0x5b) {
      depth += 1
      if (depth > MAX_DEPTH) throw new SyntaxError('nested too deeply')
    } else if (byte === 0x7d || byte === 0x5d) depth -= 1
  }
  const value: unknown = JSON.parse(bytes.toString('utf8'))
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new SyntaxError('not an object')
  if (freezeCounting(value) !== members) throw new SyntaxError('a member is named twice')
  return value as Readonly<Record<string, unknown>>
}

/** Freezes a parsed value and everything in it, and counts the members of its objects. */
function freezeCounting(value: object): number {
  let members = 0
  if (Array.isArray(value)) {
    for (const entry of value) {
      if (typeof entry === 'object' && entry !== null) members += freezeCounting(entry)
    }
  } else {
    for (const name in value) {
      // JSON.parse makes this an ordinary member, but the next copy of the object would make it the prototype.
      if (name === '__proto__') throw new SyntaxError('a member is named __proto__')
      members += 1
      const entry: unknown = (value as Record<string, unknown>)[name]
      if (typeof entry === 'object' && entry !== null) members += freezeCounting(entry)
    }
  }
  Object.freeze(value)
  return members
}
