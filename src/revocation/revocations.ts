/**
 * What is revoked, in one table: the denylist behind introspection and revocation, the provider's own check, and what
 * services will be told. Every change that must end somebody's access calls `revoke` in its own transaction. A row
 * outlives every token that it speaks of, and no longer.
 */
import { setImmediate as endOfTurn } from 'node:timers/promises'
import { sql, type RawBuilder } from 'kysely'
import { compileOnce } from '../database/compile-once.ts'
import type { Db, Trx } from '../database/database.ts'

/** The longest that any access token may live, in seconds: the resources table allows no more. */
export const maxAccessTokenLifetimeSeconds = 86_400

/** What the event about a revocation is called by: services may react differently to each. */
export type RevocationCause = 'password-change' | 'claims-change' | 'other'

/** Who revokes: an actor of the audit record. */
export interface RevokedBy {
  readonly type: 'user' | 'client' | 'operator' | 'system' | 'anonymous'
  readonly id: string
  readonly requestId?: string | undefined
}

export type Revocation = {
  /** as the audit record and the services will read it */
  readonly reason: string
  /** `other` when left out */
  readonly cause?: RevocationCause
  /** the system itself when left out */
  readonly by?: RevokedBy
  /** When the last token concerned has expired; by default the longest lifetime from now. */
  readonly expiresAt?: Date
} & (
  | { readonly kind: 'token' | 'grant' | 'session' | 'key'; readonly subject: string }
  /**
   * Of a person's tokens those with a lower token_version are dead, and of a client's own; of those that a client holds
   * for people, what was issued until now.
   */
  | { readonly kind: 'user' | 'client'; readonly subject: string; readonly tokenVersion: number }
)

type RevocationKind = Revocation['kind']
type Listener = (kind: RevocationKind, count: number) => void
const listeners = new Set<Listener>()

/**
 * Calls `listener` with every row that this process writes, for the metrics: nobody acts by it, since its transaction may
 * yet be rolled back. Whoever revokes has a transaction in hand and nothing else, so this is of the process.
 * @returns what ends it
 */
export function onRevoked(listener: Listener): () => void {
  listeners.add(listener)
  return () => void listeners.delete(listener)
}

function tell(kind: RevocationKind, count: number): void {
  for (const listener of listeners) listener(kind, count)
}

export async function revoke(trx: Trx, revocation: Revocation): Promise<void> {
  await trx
    .insertInto('revocations')
    .values({
      kind: revocation.kind,
      subject: revocation.subject,
      token_version: 'tokenVersion' in revocation ? revocation.tokenVersion : null,
      reason: revocation.reason,
      cause: revocation.cause ?? 'other',
      initiated_by: initiatorOf(revocation.by, revocation.subject),
      request_id: revocation.by?.requestId ?? null,
      revoked_at: now,
      expires_at: revocation.expiresAt ?? lastExpiry,
    })
    .execute()
  tell(revocation.kind, 1)
}

/**
 * Ends the access tokens of many people by one statement, however many they are.
 * @param input.users a query for `id` and `token_version`, such as an `UPDATE … RETURNING`
 * @returns how many people they are
 */
export async function revokeUsers(
  trx: Trx,
  {
    users,
    reason,
    cause = 'other',
    by,
  }: {
    readonly users: RawBuilder<{ id: string; token_version: number }>
    readonly reason: string
    readonly cause?: RevocationCause
    readonly by?: RevokedBy
  },
): Promise<number> {
  const { numAffectedRows = 0n } = await sql`
    WITH concerned AS (${users})
    INSERT INTO revocations
      (kind, subject, token_version, reason, cause, initiated_by, request_id, revoked_at, expires_at)
    SELECT 'user', id, token_version, ${reason}, ${cause}, ${initiatorOf(by, undefined)}, ${by?.requestId ?? null}, ${now},
      ${lastExpiry}
    FROM concerned ORDER BY id`.execute(trx)
  tell('user', Number(numAffectedRows))
  return Number(numAffectedRows)
}

/** As CAEP 1.0 §2 divides them: whoever acts on somebody else is an administrator. */
function initiatorOf(by: RevokedBy | undefined, subject: string | undefined): 'admin' | 'user' | 'system' {
  if (by?.type === 'operator') return 'admin'
  if (by?.type !== 'user') return 'system'
  return subject === by.id || subject?.startsWith('usr_') === false ? 'user' : 'admin'
}

/** Of now, not of the transaction's beginning: it may have waited for a lock, while tokens went on being issued. */
const now = sql<Date>`clock_timestamp()`
const lastExpiry = sql<Date>`clock_timestamp() + make_interval(secs => ${maxAccessTokenLifetimeSeconds + 60}::int)`

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
  const [revoked] = await areRevoked(db, [claims])
  return revoked !== false
}

/** The same of several tokens, in one statement and in their order. */
export async function areRevoked(db: Db, tokens: readonly RevocableClaims[]): Promise<boolean[]> {
  const asked = tokens.map(({ jti, sub, client_id, iat, sid, grant_id, token_version = 0, kid }, place) => ({
    place,
    jti,
    sub,
    client_id,
    iat,
    sid,
    grant_id,
    token_version,
    kid,
  }))
  const rows = await selectRevoked(db, JSON.stringify(asked))
  return tokens.map((_, i) => rows[i]?.revoked !== false)
}

/** @param asked the claims of each, as JSON */
const selectRevoked = compileOnce(
  (_db, asked: string) => sql<{ revoked: boolean }>`
    SELECT
      EXISTS (
        SELECT 1 FROM revocations r WHERE
          (r.kind = 'token' AND r.subject = t.jti)
          OR (r.kind = 'grant' AND r.subject = t.grant_id)
          OR (r.kind = 'session' AND r.subject = t.sid)
          OR (r.kind = 'key' AND r.subject = t.kid)
          OR (r.kind = 'user' AND r.subject = t.sub AND r.token_version > t.token_version)
          OR (
            r.kind = 'client' AND r.subject = t.client_id AND CASE
              WHEN t.sub = t.client_id THEN r.token_version > t.token_version
              -- iat counts whole seconds: a token of the same second is dead too, on the safe side
              ELSE to_timestamp(t.iat) <= r.revoked_at
            END
          )
      )
      OR NOT EXISTS (
        SELECT 1 FROM clients c WHERE c.id = t.client_id AND c.status = 'active'
          AND (t.sub <> t.client_id OR c.token_version <= t.token_version)
      )
      OR (t.sub <> t.client_id AND NOT EXISTS (
        SELECT 1 FROM users u WHERE u.id = t.sub AND u.account_status = 'active' AND u.token_version <= t.token_version
      )) AS revoked
    FROM jsonb_to_recordset(${asked}::jsonb) AS t (
      place integer, jti text, sub text, client_id text, iat double precision, sid text, grant_id text,
      token_version bigint, kid text
    )
    ORDER BY t.place`,
)

/**
 * Asks of every token each time, and still not once for each: those that come within two turns of the event loop are asked
 * about together, and whoever comes while a question is under way waits for the next one. The answer is of after the
 * asking, as it must be.
 */
export function openRevocationCheck(db: Db): (claims: RevocableClaims) => Promise<boolean> {
  let waiting = new Map<RevocableClaims, PromiseWithResolvers<boolean>>()
  let isAsking = false

  async function ask(): Promise<void> {
    isAsking = true
    while (waiting.size > 0) {
      // Who was answered in one turn asks again in the next.
      for (let turn = 0; turn < 2; turn += 1) await endOfTurn()
      const asked = waiting
      waiting = new Map()
      try {
        const revoked = await areRevoked(db, [...asked.keys()])
        for (const [i, { resolve }] of [...asked.values()].entries()) resolve(revoked[i] !== false)
      } catch (error) {
        for (const { reject } of asked.values()) reject(error)
      }
    }
    isAsking = false
  }

  return (claims) => {
    // Claims that are one object are one token: the guard hands out the same for each request that carries it.
    const joined = waiting.get(claims) ?? Promise.withResolvers<boolean>()
    waiting.set(claims, joined)
    if (!isAsking) void ask()
    return joined.promise
  }
}
