/**
 * Events as they are sent. Each is signed once, by whichever process needs it first, and stored beside its revocation, so
 * that every stream of every process sends the same token with the same `jti`. A token whose key was revoked since is
 * signed anew, under its old `jti`: a receiver that has it knows it again.
 *
 * What a process keeps, it keeps by `jti` and uses only when the database says that this row has this `jti`. By its id
 * alone a row cannot be known: when the database is restored under a running process, ids are given out anew.
 */
import { randomUUID } from 'node:crypto'
import { sql } from 'kysely'
import type { Db } from '../database/database.ts'
import type { KeyRing } from '../signing/key-ring.ts'
import type { PendingEvent } from './deliveries.ts'
import { describeRevocation, eventTypeOfRow, tokenType, type DescribedRevocation } from './events.ts'

export interface SignedEvent {
  readonly jti: string
  /** the security event token */
  readonly token: string
}

export interface SignedEvents {
  /**
   * The tokens of these revocations, by their ids. One that was swept meanwhile is missing.
   * @throws Error when there is no key to sign with, and the database's errors
   */
  find(pending: readonly PendingEvent[]): Promise<ReadonlyMap<number, SignedEvent>>
}

interface Stored extends SignedEvent {
  readonly kid: string
}

type StoredRow = { readonly id: number } & {
  readonly [name in 'jti' | 'kid' | 'token']: string | null
}

/** Tokens that each process keeps, about a kilobyte each: what is sent to one stream is soon sent to the next. */
const mostKept = 10_000
/** Signing shares its threads with everything else that signs: a long backlog must not fill their queue. */
const signedAtOnce = 8

export function openSignedEvents({
  db,
  keyRing,
  issuer,
  audience,
}: {
  readonly db: Db
  readonly keyRing: Pick<KeyRing, 'sign' | 'verificationKey'>
  readonly issuer: string
  readonly audience: string
}): SignedEvents {
  const kept = new Map<string, Stored>()
  const underWay = new Map<number, Promise<ReadonlyMap<number, Stored>>>()

  const isGood = ({ kid }: { readonly kid: string }) => keyRing.verificationKey(kid) !== undefined

  async function load(ids: readonly number[]): Promise<ReadonlyMap<number, Stored>> {
    const { rows } = await sql<DescribedRevocation & StoredRow>`
      SELECT r.id, r.kind, r.subject, r.token_version, r.reason, r.initiated_by, r.request_id, r.revoked_at,
        r.expires_at, ${eventTypeOfRow} AS event_type, e.jti, e.kid, e.signed_set AS token
      FROM revocations r LEFT JOIN security_events e ON e.revocation_id = r.id
      WHERE r.id = ANY (${ids}::bigint[])`.execute(db)
    const found = new Map<number, Stored>()
    const fresh: (Stored & { readonly id: number })[] = []
    const replaced: (Stored & { readonly id: number; readonly before: string })[] = []
    const unsigned: (typeof rows)[number][] = []
    for (const row of rows) {
      const { id, jti, kid, token } = row
      if (jti !== null && kid !== null && token !== null && isGood({ kid })) found.set(id, { jti, kid, token })
      else unsigned.push(row)
    }
    for (let at = 0; at < unsigned.length; at += signedAtOnce) {
      await Promise.all(
        unsigned.slice(at, at + signedAtOnce).map(async (row) => {
          const jti = row.jti ?? randomUUID()
          const { jwt, kid } = await keyRing.sign(tokenType, describeRevocation(row, { issuer, audience, jti }))
          const stored = { id: row.id, jti, kid, token: jwt }
          if (row.kid === null) fresh.push(stored)
          else replaced.push({ ...stored, before: row.kid })
        }),
      )
    }
    if (fresh.length > 0) for (const [id, event] of await store(db, fresh)) found.set(id, event)
    for (const { before, ...event } of replaced) {
      found.set(event.id, event)
      await db
        .updateTable('security_events')
        .set({ kid: event.kid, signed_set: event.token, signed_at: sql<Date>`now()` })
        .where('revocation_id', '=', event.id)
        .where('kid', '=', before)
        .execute()
    }
    return found
  }

  function loadOnce(ids: readonly number[]): Promise<ReadonlyMap<number, Stored>> {
    const loading = load(ids)
      .then((found) => {
        for (const event of found.values()) kept.set(event.jti, event)
        for (const oldest of kept.keys()) {
          if (kept.size <= mostKept) break
          kept.delete(oldest)
        }
        return found
      })
      .finally(() => {
        for (const id of ids) underWay.delete(id)
      })
    for (const id of ids) underWay.set(id, loading)
    return loading
  }

  return {
    async find(pending) {
      const found = new Map<number, SignedEvent>()
      const loads = new Set<Promise<ReadonlyMap<number, Stored>>>()
      const missing: number[] = []
      const wanted = new Set<number>()
      for (const { id, jti } of pending) {
        const event = jti === null ? undefined : kept.get(jti)
        const loading = underWay.get(id)
        if (event !== undefined && isGood(event)) {
          found.set(id, event)
          continue
        }
        wanted.add(id)
        if (loading !== undefined) loads.add(loading)
        else missing.push(id)
      }
      if (missing.length > 0) loads.add(loadOnce(missing))
      for (const loaded of await Promise.all(loads)) {
        for (const [id, event] of loaded) if (wanted.has(id)) found.set(id, event)
      }
      return found
    },
  }
}

/** Another process may have been faster: its token is then everybody's. */
async function store(
  db: Db,
  events: readonly (Stored & { readonly id: number })[],
): Promise<ReadonlyMap<number, Stored>> {
  const json = JSON.stringify(events.map(({ id, jti, kid, token }) => ({ id, jti, kid, token })))
  await sql`
    INSERT INTO security_events (revocation_id, jti, kid, signed_set)
    SELECT v.id, v.jti, v.kid, v.token
    FROM jsonb_to_recordset(${json}::jsonb) AS v (id bigint, jti text, kid text, token text)
    -- It may have been swept while it was being signed.
    JOIN revocations r ON r.id = v.id
    ON CONFLICT (revocation_id) DO NOTHING`.execute(db)
  const { rows } = await sql<Stored & { id: number }>`
    SELECT revocation_id AS id, jti, kid, signed_set AS token FROM security_events
    WHERE revocation_id = ANY (${events.map(({ id }) => id)}::bigint[])`.execute(db)
  return new Map(rows.map(({ id, jti, kid, token }) => [id, { jti, kid, token }]))
}
