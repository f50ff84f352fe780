/**
 * The same refresh token, asked again inside the replay window, gets the same answer again: two tabs, a lost response
 * or a crash between commit and reply then log nobody out, and there is still only one successor. The answer rests
 * sealed under the refresh token that asked for it, which the database does not hold.
 */
import { createCipheriv, createDecipheriv, createHash, hkdfSync, randomBytes } from 'node:crypto'
import { sql } from 'kysely'
import type { Trx } from '../database/database.ts'

/** The answer of a token endpoint (RFC 6749 §5.1). */
export interface TokenReply {
  readonly expires_in?: number
  readonly [member: string]: unknown
}

interface SealedReply {
  readonly answeredAt: number
  readonly reply: TokenReply
}

/** What two requests must have in common to get the same answer. */
export function hashRefreshRequest(parameters: {
  readonly scope?: unknown
  readonly resource?: unknown
  /** the key of its DPoP proof: an access token bound to one is of no use to the holder of another */
  readonly dpopKey?: unknown
}): Buffer {
  const words = (value: unknown) =>
    (Array.isArray(value) ? value : [value]).flatMap((v) => (typeof v === 'string' ? v.split(' ') : [])).sort()
  return createHash('sha256')
    .update(JSON.stringify([words(parameters.scope), words(parameters.resource), parameters.dpopKey ?? null]))
    .digest()
}

export async function storeReply(
  trx: Trx,
  stored: {
    readonly tokenId: string
    readonly refreshToken: string
    readonly grantId: string
    readonly requestHash: Buffer
    readonly reply: TokenReply
    readonly replaySeconds: number
  },
): Promise<void> {
  const sealed: SealedReply = { answeredAt: Date.now(), reply: stored.reply }
  await trx
    .insertInto('refresh_replies')
    .values({
      token_id: stored.tokenId,
      grant_id: stored.grantId,
      request_hash: stored.requestHash,
      sealed_reply: seal(stored.refreshToken, stored.tokenId, Buffer.from(JSON.stringify(sealed))),
      expires_at: sql<Date>`now() + make_interval(secs => ${stored.replaySeconds})`,
    })
    .execute()
}

export type FoundReply = { readonly reply: TokenReply } | 'other request' | undefined

/** @returns undefined when there is none any more, `'other request'` when it answered another scope or resource */
export async function findReply(
  trx: Trx,
  asked: { readonly tokenId: string; readonly refreshToken: string; readonly requestHash: Buffer },
): Promise<FoundReply> {
  const row = await trx
    .selectFrom('refresh_replies')
    .select(['request_hash', 'sealed_reply'])
    .where('token_id', '=', asked.tokenId)
    .where('expires_at', '>', sql<Date>`now()`)
    .executeTakeFirst()
  if (row === undefined) return undefined
  if (!asked.requestHash.equals(row.request_hash)) return 'other request'
  const opened = open(asked.refreshToken, asked.tokenId, Buffer.from(row.sealed_reply))
  const { answeredAt, reply } = JSON.parse(opened.toString('utf8')) as SealedReply
  if (reply.expires_in === undefined) return { reply }
  const elapsed = Math.max(0, Math.round((Date.now() - answeredAt) / 1_000))
  return { reply: { ...reply, expires_in: Math.max(0, reply.expires_in - elapsed) } }
}

// AES-256-GCM under a key derived from the token (RFC 5869): a token is 256 bits of randomness, so no stretching.
function keyFrom(refreshToken: string): Buffer {
  return Buffer.from(hkdfSync('sha256', refreshToken, '', 'latchkey refresh reply', 32))
}

function seal(refreshToken: string, tokenId: string, text: Buffer): Buffer {
  const nonce = randomBytes(12)
  const cipher = createCipheriv('aes-256-gcm', keyFrom(refreshToken), nonce).setAAD(Buffer.from(tokenId))
  return Buffer.concat([nonce, cipher.update(text), cipher.final(), cipher.getAuthTag()])
}

function open(refreshToken: string, tokenId: string, sealed: Buffer): Buffer {
  const decipher = createDecipheriv('aes-256-gcm', keyFrom(refreshToken), sealed.subarray(0, 12))
  decipher.setAAD(Buffer.from(tokenId)).setAuthTag(sealed.subarray(-16))
  return Buffer.concat([decipher.update(sealed.subarray(12, -16)), decipher.final()])
}
