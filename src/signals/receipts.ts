/**
 * What has arrived: the cursor of each stream and the receipts beyond it (deliveries.ts says why there are both). Every
 * statement stands for itself: receipts are only ever added, and the cursor only moves on over what has arrived, so
 * neither a crash between two of them nor another process doing the same can lose anything.
 */
import { sql, type RawBuilder, type Selectable } from 'kysely'
import type { Db } from '../database/database.ts'
import type { SignalStreamsTable } from '../database/tables.ts'
import { isAlive } from './deliveries.ts'
import { eventTypeOfRow } from './events.ts'

/** What a receiver says of what it was sent, by `jti`. */
export interface Receipt {
  readonly acknowledged: readonly string[]
  /** It could not make use of these, and says why (RFC 8935 §2.4); most are sent again after a while. */
  readonly refused?: Readonly<Record<string, RefusalCode>>
}

/**
 * What a receiver may say against an event, by the names of RFC 8935 §2.4 and RFC 8936 §2.6. Whatever else it says is
 * `unknown`: its words go to logs and to operators.
 */
const refusalCodes = [
  'invalid_request',
  'invalid_key',
  'invalid_issuer',
  'invalid_audience',
  'authentication_failed',
  'access_denied',
] as const
export type RefusalCode = (typeof refusalCodes)[number] | 'unknown'

export function readRefusalCode(said: unknown): RefusalCode {
  return refusalCodes.find((code) => code === said) ?? 'unknown'
}

/** The events about a stream itself, which its row holds. */
export type OwnEvents = Pick<Selectable<SignalStreamsTable>, 'stream_id' | 'verification_jti' | 'status_jti'>

/** A stream that is heard of. */
export interface HeardStream extends OwnEvents {
  readonly delivery_method: 'poll' | 'push'
  readonly active_at: Date
  readonly expires_at: Date | null
}

export interface Receipts {
  /**
   * Takes down what a client says of its stream. A hundred streams that were sent the same are heard of at the same time:
   * whatever comes while the database is being asked is asked of it together.
   * @returns undefined when the client has no such stream
   */
  take(heard: Heard): Promise<HeardStream | undefined>
}

interface Heard {
  readonly clientId: string
  readonly streamId: string
  readonly receipt: Receipt
}

interface Waiter extends Heard {
  readonly resolve: (stream: HeardStream | undefined) => void
  readonly reject: (error: unknown) => void
}

/** As many as one statement takes. */
const mostAtOnce = 200

export function openReceipts(db: Db): Receipts {
  const queue: Waiter[] = []
  let isTaking = false

  async function takeAll(): Promise<void> {
    isTaking = true
    // Those that come in the same turn of the event loop go together.
    await new Promise((resolve) => setImmediate(resolve))
    while (queue.length > 0) {
      const batch = queue.splice(0, mostAtOnce)
      try {
        const streams = await takeBatch(db, batch)
        for (const [n, { resolve }] of batch.entries()) resolve(streams[n])
      } catch (error) {
        for (const { reject } of batch) reject(error)
      }
    }
    isTaking = false
  }

  return {
    take(heard) {
      const { promise, resolve, reject } = Promise.withResolvers<HeardStream | undefined>()
      queue.push({ ...heard, resolve, reject })
      if (!isTaking) void takeAll()
      return promise
    },
  }
}

interface WalkedRow {
  readonly id: number
  readonly transaction_id: string
  readonly jti: string | null
  /** it has arrived before, or is not for this stream */
  readonly is_over: boolean
}

async function takeBatch(db: Db, batch: readonly Heard[]): Promise<(HeardStream | undefined)[]> {
  const asked = JSON.stringify(
    batch.map(({ clientId, streamId, receipt }, n) => ({
      n,
      client_id: clientId,
      stream_id: streamId,
      // One more than what was acknowledged says whether it was all.
      steps: isUsual(receipt) ? receipt.acknowledged.length + 1 : 0,
    })),
  )
  const { rows } = await sql<HeardStream & { n: number; beginnings: number; walk: WalkedRow[] | null }>`
    SELECT asked.n, s.stream_id, s.delivery_method, s.verification_jti, s.status_jti, s.active_at, s.expires_at,
      s.beginnings, walked.walk
    FROM jsonb_to_recordset(${asked}::jsonb) AS asked (n integer, client_id text, stream_id text, steps integer)
    JOIN signal_streams s ON s.stream_id = asked.stream_id AND s.client_id = asked.client_id AND ${isAlive}
    LEFT JOIN LATERAL (
      SELECT jsonb_agg(to_jsonb(step) ORDER BY step.transaction_id::xid8, step.id) AS walk
      FROM (${walkFrom(sql`asked.steps`)}) AS step
    ) AS walked ON asked.steps > 0`.execute(db)
  const streams: (HeardStream | undefined)[] = batch.map(() => undefined)
  const moves: Move[] = []
  const others: [HeardStream, Receipt][] = []
  for (const { n, walk, beginnings, ...stream } of rows) {
    streams[n] = stream
    const receipt = batch[n]?.receipt
    if (receipt === undefined || isEmpty(receipt)) continue
    const end = isUsual(receipt) ? endOfAcknowledged(receipt.acknowledged, walk ?? []) : undefined
    if (end === undefined) others.push([stream, receipt])
    else moves.push({ n, stream_id: stream.stream_id, beginnings, transaction_id: end.transaction_id, id: end.id })
  }
  const moved = await moveCursors(db, moves)
  for (const { n } of moves) {
    const [stream, receipt] = [streams[n], batch[n]?.receipt]
    // Its order began anew meanwhile: what it acknowledged has arrived all the same.
    if (!moved.has(n) && stream !== undefined && receipt !== undefined) others.push([stream, receipt])
  }
  for (const [stream, receipt] of others) await recordReceipt(db, stream, receipt)
  return streams
}

interface Move extends Pick<WalkedRow, 'id' | 'transaction_id'> {
  readonly n: number
  readonly stream_id: string
  /** of the order that was walked */
  readonly beginnings: number
}

/**
 * Moves cursors on, never back. What a stream has passed over holds for the events that it was walked for and the order
 * that they had: when either has changed since (`beginnings`), its cursor stays where it now is.
 * @returns the `n` of those whose order is still the one that was walked
 */
async function moveCursors(db: Db, moves: readonly Move[]): Promise<ReadonlySet<number>> {
  if (moves.length === 0) return new Set()
  const { rows } = await sql<{ n: number }>`
    UPDATE signal_streams s SET
      cursor_transaction_id = CASE WHEN ${isBehind} THEN moved.transaction_id::xid8 ELSE s.cursor_transaction_id END,
      cursor_id = CASE WHEN ${isBehind} THEN moved.id ELSE s.cursor_id END
    FROM jsonb_to_recordset(${JSON.stringify(moves)}::jsonb)
      AS moved (n integer, stream_id text, beginnings integer, transaction_id text, id bigint)
    WHERE s.stream_id = moved.stream_id AND s.beginnings = moved.beginnings
    RETURNING moved.n`.execute(db)
  return new Set(rows.map(({ n }) => n))
}

const isBehind = sql<boolean>`(s.cursor_transaction_id, s.cursor_id) < (moved.transaction_id::xid8, moved.id)`

function isEmpty({ acknowledged, refused = {} }: Receipt): boolean {
  return acknowledged.length === 0 && Object.keys(refused).length === 0
}

/** Nothing refused, and not so much that it is better walked over in several steps. */
function isUsual({ acknowledged, refused = {} }: Receipt): boolean {
  return acknowledged.length > 0 && acknowledged.length < mostSteps && Object.keys(refused).length === 0
}

/**
 * The last row of what was acknowledged, when that is just what comes next, and nothing behind it has arrived before: what
 * was sent last has arrived.
 */
function endOfAcknowledged(acknowledged: readonly string[], walk: readonly WalkedRow[]): WalkedRow | undefined {
  const wanted = new Set(acknowledged)
  const isPassed = ({ jti, is_over }: WalkedRow) => !is_over && jti !== null && wanted.delete(jti)
  let last: WalkedRow | undefined
  for (const row of walk) {
    if (wanted.size === 0) return row.is_over ? undefined : last
    if (!isPassed(row)) return undefined
    last = row
  }
  return wanted.size === 0 ? last : undefined
}

/**
 * What comes next of `revocations r` behind the cursor of `signal_streams s`, as far as no transaction that is still open
 * can add anything before it.
 */
function walkFrom(most: RawBuilder<unknown>): RawBuilder<WalkedRow> {
  return sql<WalkedRow>`
    SELECT r.id, r.transaction_id::text AS transaction_id, e.jti, (
      NOT jsonb_exists(s.events_delivered, ${eventTypeOfRow})
      OR EXISTS (
        SELECT 1 FROM signal_receipts a
        WHERE a.stream_id = s.stream_id AND a.revocation_id = r.id AND a.retry_at IS NULL
      )) AS is_over
    FROM revocations r LEFT JOIN security_events e ON e.revocation_id = r.id
    WHERE (r.transaction_id, r.id) > (s.cursor_transaction_id, s.cursor_id)
      AND r.transaction_id < pg_snapshot_xmin(pg_current_snapshot()) AND r.expires_at > clock_timestamp()
    ORDER BY r.transaction_id, r.id LIMIT ${most}`
}

/**
 * A receiver says of one event that it is no good (`invalid_request`): so often it is believed to have made a mistake.
 * Everything else that it can say is about keys, names and rights, here or there, which somebody will mend: such an event
 * is sent again until it expires.
 */
const mostRefusals = 5
/** Before an event that was refused is sent again; each time twice as long. In seconds. */
const retryRefusedSeconds = { least: 30, most: 600 }

/**
 * Takes down what has arrived, and moves the cursor as far as it can; without any receipt it does only that.
 * @param stream its events about itself are those that may have been sent
 */
export async function recordReceipt(db: Db, stream: OwnEvents, receipt: Receipt): Promise<void> {
  const { stream_id: streamId } = stream
  const acknowledged = new Set(receipt.acknowledged)
  const refused = new Map(Object.entries(receipt.refused ?? {}))
  const codes = [...refused.values()]
  for (const jti of [stream.verification_jti, stream.status_jti]) {
    if (jti === null || !(acknowledged.delete(jti) || refused.delete(jti))) continue
    await sql`
      UPDATE signal_streams SET
        verification_state = CASE WHEN verification_jti = ${jti} THEN NULL ELSE verification_state END,
        verification_jti = nullif(verification_jti, ${jti}), status_jti = nullif(status_jti, ${jti})
      WHERE stream_id = ${streamId}`.execute(db)
  }
  for (const jti of acknowledged) refused.delete(jti)
  if (refused.size > 0) await refuse(db, streamId, refused)
  if (codes.length > 0) await noteRefusals(db, streamId, codes.length, codes.at(-1) ?? 'unknown')
  for (let steps = acknowledged.size + fewestSteps; ; steps = Math.min(4 * steps, mostSteps)) {
    const walk = await walkOn(db, streamId, acknowledged, Math.min(steps, mostSteps))
    if (walk.isOver) break
  }
  // They are not next to the cursor: something before them has not arrived.
  if (acknowledged.size > 0) await acknowledgeAhead(db, streamId, [...acknowledged])
}

const fewestSteps = 20
const mostSteps = 2_000

/**
 * Moves the cursor over what has arrived, what is being acknowledged, and what is not for this stream, up to the first
 * that is missing or that a transaction which is still open could come before.
 * @param acknowledged what it passes is taken out
 */
async function walkOn(
  db: Db,
  streamId: string,
  acknowledged: Set<string>,
  steps: number,
): Promise<{ readonly isOver: boolean }> {
  const { rows } = await sql<WalkedRow & { beginnings: number }>`
    SELECT step.*, s.beginnings
    FROM signal_streams s CROSS JOIN LATERAL (${walkFrom(sql`${steps}::int`)}) AS step
    WHERE s.stream_id = ${streamId} ORDER BY step.transaction_id::xid8, step.id`.execute(db)
  const missing = rows.findIndex(({ jti, is_over }) => !is_over && (jti === null || !acknowledged.has(jti)))
  const passed = missing === -1 ? rows : rows.slice(0, missing)
  const last = passed.at(-1)
  if (last === undefined) return { isOver: true }
  const { beginnings, transaction_id, id } = last
  const moved = await moveCursors(db, [{ n: 0, stream_id: streamId, beginnings, transaction_id, id }])
  // Its order began anew meanwhile, and so does the walk.
  if (moved.size === 0) return { isOver: false }
  if (passed.some(({ is_over }) => is_over)) await forgetPassed(db, streamId)
  for (const { jti } of passed) if (jti !== null) acknowledged.delete(jti)
  return { isOver: missing !== -1 || rows.length < steps }
}

async function forgetPassed(db: Db, streamId: string): Promise<void> {
  await sql`
    DELETE FROM signal_receipts a USING signal_streams s, revocations r
    WHERE a.stream_id = ${streamId} AND s.stream_id = a.stream_id AND r.id = a.revocation_id
      AND (r.transaction_id, r.id) <= (s.cursor_transaction_id, s.cursor_id)`.execute(db)
}

async function acknowledgeAhead(db: Db, streamId: string, jtis: readonly string[]): Promise<void> {
  await sql`
    INSERT INTO signal_receipts (stream_id, revocation_id)
    SELECT s.stream_id, r.id
    FROM signal_streams s JOIN security_events e ON e.jti = ANY (${jtis}::text[])
    JOIN revocations r ON r.id = e.revocation_id
      AND (r.transaction_id, r.id) > (s.cursor_transaction_id, s.cursor_id)
    WHERE s.stream_id = ${streamId}
    ON CONFLICT (stream_id, revocation_id) DO UPDATE SET retry_at = NULL`.execute(db)
}

async function refuse(db: Db, streamId: string, refused: ReadonlyMap<string, RefusalCode>): Promise<void> {
  const said = JSON.stringify([...refused].map(([jti, code]) => ({ jti, is_final: code === 'invalid_request' })))
  const retryAt = (refusals: RawBuilder<number>) => sql`
    clock_timestamp() + make_interval(secs => least(
      ${retryRefusedSeconds.most}::int, ${retryRefusedSeconds.least}::int * 2 ^ least(20, ${refusals})
    ))`
  await sql`
    INSERT INTO signal_receipts AS a (stream_id, revocation_id, refusals, retry_at)
    SELECT s.stream_id, r.id, 1, ${retryAt(sql`0`)}
    FROM signal_streams s CROSS JOIN jsonb_to_recordset(${said}::jsonb) AS said (jti text, is_final boolean)
    JOIN security_events e ON e.jti = said.jti
    JOIN revocations r ON r.id = e.revocation_id
      AND (r.transaction_id, r.id) > (s.cursor_transaction_id, s.cursor_id)
    WHERE s.stream_id = ${streamId}
    ON CONFLICT (stream_id, revocation_id) DO UPDATE SET
      refusals = a.refusals + 1,
      retry_at = CASE
        -- What has arrived has arrived.
        WHEN a.retry_at IS NULL THEN NULL
        WHEN a.refusals + 1 >= ${mostRefusals}::int AND EXISTS (
          SELECT 1 FROM jsonb_to_recordset(${said}::jsonb) AS said (jti text, is_final boolean)
          JOIN security_events e ON e.jti = said.jti
          WHERE e.revocation_id = a.revocation_id AND said.is_final
        ) THEN NULL
        ELSE ${retryAt(sql`a.refusals`)}
      END`.execute(db)
}

/** For whoever looks after the service: what it refuses it does not know. */
async function noteRefusals(db: Db, streamId: string, count: number, last: RefusalCode): Promise<void> {
  await sql`
    UPDATE signal_streams
    SET refusals = refusals + ${count}::int, last_refused_at = clock_timestamp(), last_refusal = ${last}
    WHERE stream_id = ${streamId}`.execute(db)
}
