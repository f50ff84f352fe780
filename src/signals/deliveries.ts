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
import type { Db, Trx } from '../database/database.ts'
import { eventTypeOfRow } from './events.ts'

/** A stream that asks, and how many events it takes at most. */
export interface Asking {
  readonly streamId: string
  readonly most: number
}

/** An event about the stream itself, which is signed when it is sent, under this `jti` each time. */
export interface StatusEvent {
  readonly jti: string
  readonly status: 'enabled' | 'paused' | 'disabled'
  readonly reason: string | null
}

/** A revocation that is to be sent. */
export interface PendingEvent {
  readonly id: number
  /** of its event; null: it has not been signed yet */
  readonly jti: string | null
}

/** What a stream is to be sent. */
export interface Pending {
  /** of revocations, in order; at most as many as asked for, and none while the stream stands still */
  readonly events: readonly PendingEvent[]
  /** there is more than these; of a stream that stands still: something is held back */
  readonly hasMore: boolean
  /** to be sent before everything else */
  readonly statusEvent: StatusEvent | undefined
  /** to be sent behind everything else: what was revoked before it was asked for has arrived when it arrives */
  readonly verification: { readonly jti: string; readonly state: string | null } | undefined
}

/**
 * What these streams are to be sent now, by one query for all of them; nothing about a stream that is gone, or whose
 * client may not receive any more.
 * @param resource the feed's own, which a client needs a permission of
 */
export async function findPending(db: Db, streams: readonly Asking[], resource: string): Promise<Map<string, Pending>> {
  const asked = JSON.stringify(streams.map(({ streamId, most }) => ({ stream_id: streamId, most })))
  const { rows } = await sql<{
    stream_id: string
    status: StatusEvent['status']
    status_reason: string | null
    status_jti: string | null
    most: number
    events: PendingEvent[] | null
    verification_jti: string | null
    verification_state: string | null
  }>`
    SELECT s.stream_id, s.status, s.status_reason, s.status_jti, asked.most, pending.events, s.verification_jti,
      s.verification_state
    FROM jsonb_to_recordset(${asked}::jsonb) AS asked (stream_id text, most integer)
    JOIN signal_streams s ON s.stream_id = asked.stream_id AND ${isAlive}
    LEFT JOIN LATERAL (
      SELECT jsonb_agg(jsonb_build_object('id', page.id, 'jti', e.jti) ORDER BY page.transaction_id, page.id) AS events
      FROM (
        SELECT r.id, r.transaction_id FROM revocations r
        WHERE ${isPending} ORDER BY r.transaction_id, r.id
        LIMIT CASE WHEN s.status = 'enabled' THEN asked.most + 1 ELSE 1 END
      ) AS page
      LEFT JOIN security_events e ON e.revocation_id = page.id
    ) AS pending ON true
    -- Whose client may not receive is sent nothing but that it stands still, where it does not have to ask.
    WHERE ${mayReceive(resource)} OR (s.delivery_method = 'push' AND s.status <> 'enabled')`.execute(db)
  return new Map(
    rows.map(({ stream_id, status, most, verification_jti, ...row }) => {
      const isEnabled = status === 'enabled'
      const events = row.events ?? []
      const { status_reason: reason, status_jti: jti } = row
      return [
        stream_id,
        {
          events: isEnabled ? events.slice(0, most) : [],
          hasMore: isEnabled ? events.length > most : events.length > 0 || verification_jti !== null,
          statusEvent: jti === null ? undefined : { jti, status, reason },
          verification:
            verification_jti === null || !isEnabled
              ? undefined
              : { jti: verification_jti, state: row.verification_state },
        },
      ]
    }),
  )
}

/**
 * Of `signal_streams s`: its client may still be told what is revoked. A poll brings a token that says so; a push does
 * not, and must not outlive the credentials by which it was asked for.
 */
export function mayReceive(resource: string): RawBuilder<boolean> {
  return sql`EXISTS (
    SELECT 1 FROM clients c JOIN client_permissions p ON p.client_id = c.id
    WHERE c.id = s.client_id AND c.status = 'active' AND p.resource = ${resource} AND p.permission = ${receivePermission}
      AND (s.delivery_method = 'poll' OR s.client_token_version >= c.token_version)
  )`
}

/** What a client needs to receive anything, as a permission and as the scope of its tokens. */
export const receivePermission = 'signals:receive'

/** Of `signal_streams s`: it has not expired. Whether a sweep was there already makes no difference. */
export const isAlive: RawBuilder<boolean> = sql`(s.expires_at IS NULL OR s.expires_at > clock_timestamp())`

/** Of `revocations r` and `signal_streams s`: it is to be sent, since it has neither arrived nor just been refused. */
const isPending = isMissing(sql`(a.retry_at IS NULL OR a.retry_at > clock_timestamp())`)

/** The same with what was refused and is to be sent again some time. */
const isOutstanding = isMissing(sql`a.retry_at IS NULL`)

/** @param isDealtWith of its receipt `signal_receipts a`, if there is one */
function isMissing(isDealtWith: RawBuilder<boolean>): RawBuilder<boolean> {
  return sql`(
  (r.transaction_id, r.id) > (s.cursor_transaction_id, s.cursor_id)
  AND r.expires_at > clock_timestamp()
  AND jsonb_exists(s.events_delivered, ${eventTypeOfRow})
  AND NOT EXISTS (
    SELECT 1 FROM signal_receipts a
    WHERE a.stream_id = s.stream_id AND a.revocation_id = r.id AND ${isDealtWith}
  ))`
}

/** How far behind a stream is, as an operator may see it. */
export interface StreamLag {
  readonly stream_id: string
  readonly client_id: string
  readonly delivery_method: 'poll' | 'push'
  readonly status: StatusEvent['status']
  readonly status_reason: string | null
  readonly active_at: Date
  readonly failing_since: Date | null
  readonly last_error: string | null
  /** how often its receiver could not make use of an event, when last, and the error by its name */
  readonly refusals: number
  readonly last_refused_at: Date | null
  readonly last_refusal: string | null
  /** how many events have not arrived; not counted beyond {@link mostCounted} */
  readonly pending: number
  /** since when the oldest of them waits, in seconds; null: none does */
  readonly pending_seconds: number | null
}

export const mostCounted = 10_000

/** Every stream, those that are most behind first. */
export async function listStreamLags(db: Db): Promise<StreamLag[]> {
  const { rows } = await sql<StreamLag>`
    SELECT s.stream_id, s.client_id, s.delivery_method, s.status, s.status_reason, s.active_at, s.failing_since,
      s.last_error, s.refusals, s.last_refused_at, s.last_refusal, lag.pending, lag.pending_seconds
    FROM signal_streams s CROSS JOIN LATERAL (
      SELECT count(*)::int AS pending,
        floor(extract(epoch FROM clock_timestamp() - min(late.revoked_at)))::float8 AS pending_seconds
      FROM (SELECT r.revoked_at FROM revocations r WHERE ${isOutstanding} LIMIT ${mostCounted}) AS late
    ) AS lag
    WHERE ${isAlive}
    ORDER BY lag.pending DESC, s.client_id, s.created_at, s.stream_id`.execute(db)
  return rows
}

/** How the feed stands, over all processes. */
export interface FeedFigures {
  readonly streams: readonly {
    readonly status: StatusEvent['status']
    readonly delivery: 'poll' | 'push'
    readonly count: number
  }[]
  /** since when the event waits that has waited for longest, of any stream that is enabled; in seconds, 0: none does */
  readonly oldestPendingSeconds: number
}

/** A stream that has just been made begins with what is old: that waits for it only since then. */
export async function readFeedFigures(db: Db): Promise<FeedFigures> {
  const { rows } = await sql<FeedFigures['streams'][number] & { oldest: number }>`
    SELECT s.status, s.delivery_method AS delivery, count(*)::int AS count,
      coalesce(max(extract(epoch FROM clock_timestamp() - late.since)), 0)::float8 AS oldest
    FROM signal_streams s LEFT JOIN LATERAL (
      SELECT greatest(r.revoked_at, s.created_at) AS since FROM revocations r
      WHERE s.status = 'enabled' AND ${isOutstanding} ORDER BY r.transaction_id, r.id LIMIT 1
    ) AS late ON true
    WHERE ${isAlive}
    GROUP BY s.status, s.delivery_method`.execute(db)
  return {
    streams: rows.map(({ status, delivery, count }) => ({ status, delivery, count })),
    oldestPendingSeconds: Math.max(0, ...rows.map(({ oldest }) => oldest)),
  }
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
  await db.transaction().execute(beginAnew)
  return true
}

/** The statements of {@link mendOrder}: whoever walks meanwhile (receipts.ts) moves no cursor. */
export async function beginAnew(trx: Trx): Promise<void> {
  await sql`
    UPDATE revocations SET transaction_id = '0' WHERE transaction_id >= pg_snapshot_xmax(pg_current_snapshot())
    `.execute(trx)
  await sql`
    UPDATE signal_streams SET cursor_transaction_id = '0', cursor_id = 0, beginnings = beginnings + 1`.execute(trx)
}
