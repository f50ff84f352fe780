/**
 * What is revoked, in one table: the denylist behind introspection and revocation, the provider's own check, and what
 * services will be told. Every change that must end somebody's access calls `revoke` in its own transaction. A row
 * outlives every token that it speaks of, and no longer.
 */
import { sql } from 'kysely'
import type { Db, Trx } from '../database/database.ts'

/** The longest that any access token may live, in seconds: the resources table allows no more. */
export const maxAccessTokenLifetimeSeconds = 86_400

export type Revocation = {
  readonly reason: string
  /** When the last token concerned has expired; by default the longest lifetime from now. */
  readonly expiresAt?: Date
} & (
  | { readonly kind: 'token' | 'grant' | 'session' | 'client' | 'key'; readonly subject: string }
  | { readonly kind: 'user'; readonly subject: string; readonly tokenVersion: number }
)

export async function revoke(trx: Trx, revocation: Revocation): Promise<void> {
  await trx
    .insertInto('revocations')
    .values({
      kind: revocation.kind,
      subject: revocation.subject,
      token_version: revocation.kind === 'user' ? revocation.tokenVersion : null,
      reason: revocation.reason,
      // Of now, not of the transaction's beginning: it may have waited for a lock, while tokens went on being issued.
      revoked_at: sql<Date>`clock_timestamp()`,
      expires_at: revocation.expiresAt ?? new Date(Date.now() + (maxAccessTokenLifetimeSeconds + 60) * 1_000),
    })
    .execute()
}

/** The claims of a verified access token by which it can have been revoked. */
export interface RevocableClaims {
  readonly jti: string
  readonly sub: string
  readonly client_id: string
  /** seconds since 1970 */
  readonly iat: number
  readonly sid?: string | undefined
  readonly grant_id?: string | undefined
  readonly token_version?: number | undefined
  /** of the token's header */
  readonly kid?: string | undefined
}

/**
 * Whether an access token of ours, whose signature and expiry have been checked, is dead all the same.
 * A person's token is also dead when that person is gone, disabled, or at a higher token_version; a machine's, when its
 * client is.
 */
export async function isRevoked(db: Db, claims: RevocableClaims): Promise<boolean> {
  const isMachine = claims.sub === claims.client_id
  const { rows } = await sql<{ revoked: boolean }>`
    SELECT
      EXISTS (
        SELECT 1 FROM revocations r WHERE
          (r.kind = 'token' AND r.subject = ${claims.jti})
          OR (r.kind = 'grant' AND r.subject = ${claims.grant_id ?? null})
          OR (r.kind = 'session' AND r.subject = ${claims.sid ?? null})
          OR (r.kind = 'key' AND r.subject = ${claims.kid ?? null})
          OR (r.kind = 'user' AND r.subject = ${claims.sub} AND r.token_version > ${claims.token_version ?? 0})
          -- iat counts whole seconds: a token of the same second is dead too, on the safe side
          OR (r.kind = 'client' AND r.subject = ${claims.client_id} AND to_timestamp(${claims.iat}) <= r.revoked_at)
      )
      OR NOT EXISTS (SELECT 1 FROM clients c WHERE c.id = ${claims.client_id} AND c.status = 'active')
      OR (${isMachine} AND NOT EXISTS (
        SELECT 1 FROM clients c WHERE c.id = ${claims.client_id} AND c.token_version <= ${claims.token_version ?? 0}
      ))
      OR (NOT ${isMachine} AND NOT EXISTS (
        SELECT 1 FROM users u
        WHERE u.id = ${claims.sub} AND u.account_status = 'active' AND u.token_version <= ${claims.token_version ?? 0}
      )) AS revoked`.execute(db)
  return rows[0]?.revoked !== false
}
