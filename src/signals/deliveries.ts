/**
 * What each stream is still to be sent. The database alone decides it, so any process can answer any stream, and a crash
 * changes nothing but that something is sent twice.
 *
 * Revocations are ordered by their transaction and then by their id. Ids alone will not do: one that was drawn early can
 * be committed late. Neither will transactions alone: an old one that is still open can add rows far behind. So a stream
 * has a cursor, below which nothing can be added any more (every transaction before it is over: the snapshot's xmin), and
 * receipts for what has arrived beyond it (receipts.ts). What is committed is sent at once, wherever it stands; the cursor
 * follows when it can. An open transaction therefore delays nobody but itself.
 */
import { sql, type RawBuilder } from 'kysely'
import type { Db } from '../database/database.ts'
import { eventTypeOfRow } from './events.ts'

/** A stream that asks, and how many events it takes at most. */
export interface Asking {
  readonly streamId: string
  readonly most: number
}

/** What a stream is to be sent. */
export interface Pending {
  readonly status: 'enabled' | 'paused' | 'disabled'
  /** of revocations, in order; at most as many as asked for */
  readonly ids: readonly number[]
  /** there are more than these */
  readonly hasMore: boolean
  /** to be sent behind everything else: what was revoked before it was asked for has arrived when it arrives */
  readonly verification: { readonly jti: string; readonly state: string | null } | undefined
}

/**
 * What these streams are to be sent now, by one query for all of them; nothing about a stream that is gone, or whose
 * client is.
 */
export async function findPending(db: Db, streams: readonly Asking[]): Promise<Map<string, Pending>> {
  const asked = JSON.stringify(streams.map(({ streamId, most }) => ({ stream_id: streamId, most })))
  const { rows } = await sql<{
    stream_id: string
    status: Pending['status']
    most: number
    ids: number[] | null
    verification_jti: string | null
    verification_state: string | null
  }>`
    SELECT s.stream_id, s.status, asked.most, pending.ids, s.verification_jti, s.verification_state
    FROM jsonb_to_recordset(${asked}::jsonb) AS asked (stream_id text, most integer)
    JOIN signal_streams s ON s.stream_id = asked.stream_id AND ${isAlive}
    JOIN clients c ON c.id = s.client_id AND c.status = 'active'
    LEFT JOIN LATERAL (
      SELECT jsonb_agg(page.id ORDER BY page.transaction_id, page.id) AS ids FROM (
        SELECT r.id, r.transaction_id FROM revocations r
        WHERE ${isPending} ORDER BY r.transaction_id, r.id LIMIT asked.most + 1
      ) AS page
    ) AS pending ON s.status = 'enabled'`.execute(db)
  return new Map(
    rows.map(({ stream_id, status, most, ids, verification_jti: jti, verification_state: state }) => [
      stream_id,
      {
        status,
        ids: (ids ?? []).slice(0, most),
        hasMore: (ids ?? []).length > most,
        verification: jti === null || status !== 'enabled' ? undefined : { jti, state },
      },
    ]),
  )
}

/** Of `signal_streams s`: it has not expired. Whether a sweep was there already makes no difference. */
export const isAlive: RawBuilder<boolean> = sql`(s.expires_at IS NULL OR s.expires_at > clock_timestamp())`

/** Of `revocations r` and `signal_streams s`: it is to be sent, since it has neither arrived nor just been refused. */
const isPending: RawBuilder<boolean> = sql`(
  (r.transaction_id, r.id) > (s.cursor_transaction_id, s.cursor_id)
  AND r.expires_at > clock_timestamp()
  AND jsonb_exists(s.events_delivered, ${eventTypeOfRow})
  AND NOT EXISTS (
    SELECT 1 FROM signal_receipts a
    WHERE a.stream_id = s.stream_id AND a.revocation_id = r.id
      AND (a.retry_at IS NULL OR a.retry_at > clock_timestamp())
  ))`

/** How far behind a stream is, as an operator may see it. */
export interface StreamLag {
  readonly stream_id: string
  readonly client_id: string
  readonly delivery_method: 'poll' | 'push'
  readonly status: Pending['status']
  readonly active_at: Date
  readonly failing_since: Date | null
  readonly last_error: string | null
  /** how many events have not arrived; not counted beyond {@link mostCounted} */
  readonly pending: number
  /** since when the oldest of them waits, in seconds; null: none does */
  readonly pending_seconds: number | null
}

export const mostCounted = 10_000

/** Every stream, those that are most behind first. */
export async function listStreamLags(db: Db): Promise<StreamLag[]> {
  const { rows } = await sql<StreamLag>`
    SELECT s.stream_id, s.client_id, s.delivery_method, s.status, s.active_at, s.failing_since, s.last_error,
      lag.pending, lag.pending_seconds
    FROM signal_streams s CROSS JOIN LATERAL (
      SELECT count(*)::int AS pending,
        floor(extract(epoch FROM clock_timestamp() - min(late.revoked_at)))::float8 AS pending_seconds
      FROM (SELECT r.revoked_at FROM revocations r WHERE ${isPending} LIMIT ${mostCounted}) AS late
    ) AS lag
    WHERE ${isAlive}
    ORDER BY lag.pending DESC, s.client_id, s.created_at, s.stream_id`.execute(db)
  return rows
}

/**
 * Begins the order anew where it cannot be right: in a database that was restored into another cluster, whose
 * transactions count from the beginning, and after a standby took over that had not heard of the last ones. Everything
 * that is still active is sent again; nothing is missed.
 * @returns whether it had to
 */
export async function mendOrder(db: Db): Promise<boolean> {
  const { rows } = await sql<{ is_broken: boolean }>`
    SELECT EXISTS (SELECT 1 FROM revocations WHERE transaction_id >= pg_snapshot_xmax(pg_current_snapshot()))
      OR EXISTS (
        SELECT 1 FROM signal_streams WHERE cursor_transaction_id >= pg_snapshot_xmax(pg_current_snapshot())
      ) AS is_broken`.execute(db)
  if (rows[0]?.is_broken !== true) return false
  await db.transaction().execute(async (trx) => {
    await sql`
      UPDATE revocations SET transaction_id = '0' WHERE transaction_id >= pg_snapshot_xmax(pg_current_snapshot())
      `.execute(trx)
    await sql`UPDATE signal_streams SET cursor_transaction_id = '0', cursor_id = 0`.execute(trx)
  })
  return true
}
