/**
 * JSON as a token may contain it: strict UTF-8, bounded depth, no member named twice (RFC 8725 §3.7 leaves parsers
 * free to disagree about those, and two parsers that disagree are a hole), frozen all the way down. The parsing itself
 * is the runtime's own.
 */
import { isUtf8 } from 'node:buffer'

const MAX_DEPTH = 16

/**
 * @param bytes - what was between two dots of a token, decoded
 * @returns a frozen object
 * @throws SyntaxError when the bytes are not one JSON object, or break one of the rules above
 */
export function parseStrictObject(bytes: Buffer): Readonly<Record<string, unknown>> {
  if (!isUtf8(bytes)) throw new SyntaxError('not UTF-8')
  const text = bytes.toString('utf8')
  const written = countMembers(text)
  const value: unknown = JSON.parse(text)
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new SyntaxError('not an object')
  if (freezeCounting(value) !== written) throw new SyntaxError('a member is named twice')
  return value as Readonly<Record<string, unknown>>
}

/**
 * What the parser will not tell: how many members were written. Goes from string to string, so that only what is
 * between them is looked at. Of text that is no JSON it says nothing true, and the parser refuses that text.
 *
 * @throws SyntaxError when the text is nested too deeply, before anything is parsed
 */
function countMembers(text: string): number {
  let members = 0
  let depth = 0
  let at = 0
  while (at < text.length) {
    const quote = text.indexOf('"', at)
    const end = quote === -1 ? text.length : quote
    for (; at < end; at += 1) {
      const character = text[at]
      if (character === ':') members += 1
      else if (character === '{' || character === '[') {
        depth += 1
        if (depth > MAX_DEPTH) throw new SyntaxError('nested too deeply')
      } else if (character === '}' || character === ']') depth -= 1
    }
    at = endOfString(text, end)
  }
  return members
}

/** The place after the string that begins here: after the first quote that no backslash escapes. */
function endOfString(text: string, start: number): number {
  for (let quote = text.indexOf('"', start + 1); quote !== -1; quote = text.indexOf('"', quote + 1)) {
    let backslashes = 0
    while (text[quote - 1 - backslashes] === '\\') backslashes += 1
    if (backslashes % 2 === 0) return quote + 1
  }
  return text.length
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
