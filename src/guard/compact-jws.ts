/**
 * The three segments of a signed token or proof (RFC 7515 §3.1), taken apart and decoded strictly. What they say is
 * judged elsewhere: `access-token.ts` and `dpop.ts`.
 */

/** A token taken apart, nothing of it believed. */
export interface CompactJws {
  readonly head: string
  readonly body: string
  readonly seal: Buffer
  /** What the signature is over (RFC 7515 §5.2). */
  readonly signed: Buffer
}

/** Three base64url segments, none empty; five would be an encrypted token, which is refused unread. */
const COMPACT_JWS = /^([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)$/

/**
 * Header members that ask the verifier to fetch or believe a key (RFC 8725 §3.10), or to read the token differently.
 * No extension is understood here, so `crit` can never be met (RFC 7515 §4.1.11).
 */
export const REFUSED_HEADER_MEMBERS: readonly string[] = ['crit', 'b64', 'jku', 'x5u', 'zip', 'enc']

/** @throws SyntaxError when this is no compact JWS */
export function readCompactJws(token: string): CompactJws {
  const [, head, body, seal] = COMPACT_JWS.exec(token) ?? []
  if (head === undefined || body === undefined || seal === undefined) throw new SyntaxError('not three segments')
  return { head, body, seal: decodeSegment(seal), signed: Buffer.from(token.slice(0, -seal.length - 1), 'latin1') }
}

/**
 * Base64url as RFC 7515 §2 has it, and only the one spelling of each value: a token with other spare bits would be the
 * same token under another hash. The alphabet has been checked by `readCompactJws`.
 *
 * @throws SyntaxError when this is no base64url, or not the canonical one
 */
export function decodeSegment(segment: string): Buffer {
  const spare = segment.length % 4
  const last = segment.at(-1) ?? ''
  if (spare === 1 || (spare === 2 && !'AQgw'.includes(last)) || (spare === 3 && !'AEIMQUYcgkosw048'.includes(last))) {
    throw new SyntaxError('not base64url')
  }
  return Buffer.from(segment, 'base64url')
}
