import { hash } from 'node:crypto'
import { Problem } from '../problems.ts'

/**
 * The entity tag of a row as it is read: its version, and what the body says, which may change without the row: with time,
 * with how many others speak of it, with the chosen fields, with who `me` is. So no two bodies have one tag (RFC 9110
 * §8.8.1). If-Match looks at the version alone: where that is the same, nothing that could be lost has changed.
 */
export function versionTag(version: number, body: string): string {
  return `"${version}.${digest(body).slice(0, 8)}"`
}

/** A weak tag of a body that has no version of its own, such as a list's. */
export function bodyTag(body: string | Uint8Array): string {
  return `W/"${digest(body).slice(0, 22)}"`
}

function digest(body: string | Uint8Array): string {
  return hash('sha256', body, 'base64url')
}

/** What a change may be based on; undefined: anything. `[]` fits nothing. */
export type ExpectedVersions = readonly number[] | undefined

/**
 * Reads If-Match: the versions that the caller has seen. A weak tag, or one that is not ours, fits nothing (RFC 9110
 * §13.1.1). `*` fits whatever there is.
 *
 * @throws Problem MALFORMED_REQUEST for a header that is no list of entity tags
 */
export function readIfMatch(header: string): { readonly versions: ExpectedVersions; readonly mustExist: boolean } {
  if (header === '') return { versions: undefined, mustExist: false }
  if (header.trim() === '*') return { versions: undefined, mustExist: true }
  const versions = readTags(header, 'If-Match').flatMap((tag) => {
    const [, version] = /^"(\d{1,15})(?:\.[\w-]{1,32})?"$/.exec(tag) ?? []
    return version === undefined ? [] : [Number(version)]
  })
  return { versions, mustExist: true }
}

/**
 * Whether If-None-Match names this tag, so that the answer is 304 (RFC 9110 §13.1.2: weak comparison).
 *
 * @throws Problem MALFORMED_REQUEST for a header that is no list of entity tags
 */
export function matchesNone(header: string, tag: string): boolean {
  if (header === '') return true
  if (header.trim() === '*') return false
  const opaque = (one: string) => one.replace(/^W\//, '')
  return !readTags(header, 'If-None-Match').some((one) => opaque(one) === opaque(tag))
}

/**
 * Whether If-Match names this tag of what was read (RFC 9110 §13.1.1: strong comparison, so that nobody can name a weak
 * one).
 */
export function matchesStrongly(header: string, tag: string): boolean {
  return header.trim() === '*' || (!tag.startsWith('W/') && readTags(header, 'If-Match').includes(tag))
}

/**
 * Reads If-None-Match of a change: what must not be there (RFC 9110 §13.1.2).
 *
 * @throws Problem MALFORMED_REQUEST for a header that is no list of entity tags
 */
export function readIfNoneMatch(header: string): {
  readonly unwantedTags: readonly string[]
  readonly mustNotExist: boolean
} {
  if (header === '') return { unwantedTags: [], mustNotExist: false }
  if (header.trim() === '*') return { unwantedTags: [], mustNotExist: true }
  return { unwantedTags: readTags(header, 'If-None-Match'), mustNotExist: false }
}

/** Whether one of these is the tag of what a change found, in whatever variant; compared weakly. */
export function namesTag(tags: readonly string[], present: string): boolean {
  const versionOf = (tag: string) => tag.replace(/^W\//, '').replace(/^"(\d{1,15})\.[\w-]{1,32}"$/, '"$1"')
  return tags.some((tag) => versionOf(tag) === versionOf(present))
}

function readTags(header: string, name: string): string[] {
  const tags = header.match(/(?:W\/)?"[\x21\x23-\x7e\x80-\xff]*"/g) ?? []
  const rest = header.replaceAll(/(?:W\/)?"[\x21\x23-\x7e\x80-\xff]*"/g, '').replaceAll(/[\s,]/g, '')
  if (rest !== '' || tags.length === 0 || tags.length > 50) {
    throw new Problem('MALFORMED_REQUEST', `${name} is * or a list of entity tags, such as "3".`)
  }
  return tags
}

/**
 * Refuses a change that is not based on the row as it is.
 *
 * @throws Problem PRECONDITION_FAILED with the version that there is, as If-Match takes it
 */
export function requireVersion(expected: ExpectedVersions, version: number): void {
  if (expected === undefined || expected.includes(version)) return
  throw new Problem('PRECONDITION_FAILED', undefined, { headers: { ETag: `"${version}"` } })
}
