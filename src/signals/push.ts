/**
 * Pushes events to receivers that want to be called (RFC 8935). One process at a time does it for all of them, by a lease
 * in the database that another takes over when it ends. To each receiver it is a poll of our own: wait for what is next,
 * post it, take down what has arrived. A receiver that fails is tried again with growing pauses; what is to be sent to it
 * is nowhere but in the table, so nothing is lost meanwhile.
 *
 * Nobody shows a token here before anything is sent. So a stream is pushed to for as long as its client may receive and
 * the token by which it was asked for would still be good; then it is paused, until the client says that it may go on.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql, type RawBuilder } from 'kysely'
import type { Logger } from 'pino'
import { systemActor } from '../audit/audit.ts'
import type { Changes } from '../database/changes.ts'
import type { Db } from '../database/database.ts'
import type { OutgoingFetch } from '../http/outgoing.ts'
import { signalStreamRow, type KeyEncryption } from '../signing/key-encryption.ts'
import { mayReceive, receivePermission } from './deliveries.ts'
import { readRefusalCode, recordReceipt, type OwnEvents, type RefusalCode } from './receipts.ts'
import type { SignedEvent } from './signed-events.ts'
import { setStreamStatus } from './streams.ts'
import type { NextEvent, Waiting } from './waiting.ts'

export interface PushParts {
  readonly db: Db
  readonly changes: Pick<Changes, 'on'>
  readonly waiting: Pick<Waiting, 'next'>
  readonly encryption: Pick<KeyEncryption, 'open'>
  /** refuses addresses that are nobody's business (http/outgoing.ts) */
  readonly fetch: OutgoingFetch
  /** the feed's own, which a client needs a permission of */
  readonly resource: string
  readonly log: Logger
  /** told how many events were accepted */
  readonly onPushed: (count: number) => void
  readonly onFailed: (reason: PushFailureReason) => void
}

/** The receiver refused this event (400), or it could not be had. */
export type PushFailureReason = 'refused' | 'unreachable'

interface PushStream extends OwnEvents {
  readonly client_id: string
  readonly endpoint_url: string
  readonly sealed_authorization_header: Uint8Array | null
  readonly status: 'enabled' | 'paused' | 'disabled'
  /** for longer than is waited for */
  readonly is_hopeless: boolean
}

const leaseSeconds = 5
const everyMs = 1_000
const holdMs = 20_000
const eventsAtOnce = 100
const requestsAtOnce = 8
const pauseMs = { least: 500, most: 60_000 }
/** After so long without one success a stream is paused, and says why; its receiver can let it go on. In seconds. */
const patienceSeconds = 3_600

/** @returns what ends it, and gives the lease back */
export function startPushing(parts: PushParts): () => Promise<void> {
  const { db, changes, resource, log } = parts
  const me = randomUUID()
  const running = new Map<string, { readonly stop: AbortController; readonly ended: Promise<void> }>()
  const stopped = new AbortController()
  let rounds: Promise<void> = Promise.resolve()
  let isWanted = false

  /** Takes the lease, or holds on to it; nobody does while there is nothing to push. */
  async function isMine(): Promise<boolean> {
    const { rows } = await sql`
      UPDATE signal_pusher SET holder = ${me},
        leased_until = clock_timestamp() + make_interval(secs => ${leaseSeconds}::int)
      WHERE (holder = ${me} OR leased_until < clock_timestamp())
        AND EXISTS (
          SELECT 1 FROM signal_streams WHERE delivery_method = 'push' AND (status = 'enabled' OR status_jti IS NOT NULL)
        )
      RETURNING holder`.execute(db)
    return rows.length > 0
  }

  async function round(): Promise<void> {
    try {
      const mine = await isMine()
      if (mine) await pauseEnded(parts)
      const wanted = new Set(mine ? await findPushStreams(db, resource) : [])
      for (const [streamId, { stop }] of running) {
        if (!wanted.has(streamId)) stop.abort()
      }
      for (const streamId of wanted) {
        if (running.has(streamId) || stopped.signal.aborted) continue
        const stop = new AbortController()
        const ended = pushUntilStopped(parts, streamId, stop.signal).finally(() => running.delete(streamId))
        running.set(streamId, { stop, ended })
      }
    } catch (error) {
      // Whether the lease is still ours cannot be known: another may push too by now, which harms nobody.
      log.warn({ error_message: String(error) }, 'the streams to push to could not be read')
    }
  }

  function run(): void {
    isWanted = true
    rounds = rounds.then(async () => {
      if (!isWanted || stopped.signal.aborted) return
      isWanted = false
      await round()
    })
  }

  const timer = setInterval(run, everyMs)
  timer.unref()
  const unsubscribe = changes.on('signals', run)
  run()
  return async () => {
    stopped.abort()
    clearInterval(timer)
    unsubscribe()
    await rounds
    for (const { stop } of running.values()) stop.abort()
    await Promise.all([...running.values()].map(({ ended }) => ended))
    await sql`UPDATE signal_pusher SET leased_until = clock_timestamp() WHERE holder = ${me}`
      .execute(db)
      .catch((error: unknown) => log.debug({ error_message: String(error) }, 'the lease was not given back'))
  }
}

/** One that stands still is pushed to until its receiver knows. */
async function findPushStreams(db: Db, resource: string): Promise<string[]> {
  const { rows } = await sql<{ stream_id: string }>`
    SELECT s.stream_id FROM signal_streams s WHERE ${isPushedTo(resource)}`.execute(db)
  return rows.map(({ stream_id }) => stream_id)
}

function isPushedTo(resource: string): RawBuilder<boolean> {
  return sql`(s.delivery_method = 'push' AND CASE
    WHEN s.status = 'enabled' THEN ${mayReceive(resource)} ELSE s.status_jti IS NOT NULL
  END)`
}

/** Stops the streams whose client may not receive any more, or whose credentials have been ended since. */
async function pauseEnded({ db, resource, log }: PushParts): Promise<void> {
  const { rows } = await sql<{ stream_id: string; client_id: string; reason: string }>`
    SELECT s.stream_id, s.client_id, CASE
      WHEN c.status <> 'active' THEN 'the client is disabled'
      WHEN s.client_token_version < c.token_version THEN 'the tokens of the client were revoked since it was asked for'
      ELSE ${`the client has no permission ${receivePermission}`}
    END AS reason
    FROM signal_streams s JOIN clients c ON c.id = s.client_id
    WHERE s.delivery_method = 'push' AND s.status = 'enabled' AND NOT ${mayReceive(resource)}`.execute(db)
  for (const { stream_id: streamId, client_id: clientId, reason } of rows) {
    await db
      .transaction()
      .execute((trx) => setStreamStatus(trx, systemActor, { clientId, streamId, status: 'paused', reason }))
    log.warn({ stream_id: streamId, client_id: clientId, reason }, 'a stream is paused: nothing more may be pushed')
  }
}

async function pushUntilStopped(parts: PushParts, streamId: string, signal: AbortSignal): Promise<void> {
  const { waiting, log } = parts
  for (let failures = 0; !signal.aborted;) {
    let failure: PushFailure | undefined
    try {
      const { events } = await waiting.next({ streamId, most: eventsAtOnce, holdMs, signal })
      if (events.length === 0) continue
      failure = await pushAll(parts, streamId, events, signal)
    } catch (error) {
      if (signal.aborted) return
      // Ours, not the receiver's: the database is away, or the stream is gone and the next round says so.
      log.warn({ stream_id: streamId, error_message: String(error) }, 'pushing was interrupted')
      failure = { message: String(error), retryAfterMs: 0 }
    }
    failures = failure === undefined ? 0 : failures + 1
    if (failure !== undefined) await pause(failures, failure.retryAfterMs, signal)
  }
}

async function pause(failures: number, retryAfterMs: number, signal: AbortSignal): Promise<void> {
  const most = Math.min(pauseMs.most, pauseMs.least * 2 ** Math.min(20, failures - 1))
  // Half of it is chance, so that receivers that failed together are not all tried together.
  const ms = Math.min(pauseMs.most, Math.max(retryAfterMs, most * (0.5 + Math.random() / 2)))
  await sleep(ms, undefined, { signal }).catch(() => undefined)
}

interface PushFailure {
  /** for the log and the stream's row: no secret, and not what the receiver said */
  readonly message: string
  readonly retryAfterMs: number
}

/** @returns why it has to be tried again, if it has to */
async function pushAll(
  parts: PushParts,
  streamId: string,
  events: readonly NextEvent[],
  signal: AbortSignal,
): Promise<PushFailure | undefined> {
  const { db, resource, log } = parts
  const stream = await findPushStream(db, streamId, resource)
  if (stream === undefined) return { message: 'the stream is not pushed to any more', retryAfterMs: everyMs }
  const acknowledged: string[] = []
  const refused: Record<string, RefusalCode> = {}
  let failure: PushFailure | undefined
  const queue: SignedEvent[] = []
  const worker = async () => {
    for (;;) {
      const event = queue.shift()
      if (event === undefined || failure !== undefined || signal.aborted) return
      const outcome = await push(parts, stream, event)
      if (outcome === 'arrived') {
        acknowledged.push(event.jti)
        parts.onPushed(1)
      } else if ('refusedAs' in outcome) {
        refused[event.jti] = outcome.refusedAs
        parts.onFailed('refused')
      } else {
        failure = outcome
        parts.onFailed('unreachable')
      }
    }
  }
  for (const together of inTurn(events)) {
    queue.push(...together)
    await Promise.all(Array.from({ length: Math.min(requestsAtOnce, together.length) }, worker))
  }
  if (Object.keys(refused).length > 0) {
    log.warn({ stream_id: streamId, refused: Object.entries(refused).slice(0, 10) }, 'a receiver refused events')
  }
  await recordReceipt(db, stream, { acknowledged, refused })
  return noteHealth(parts, stream, failure, {
    hasHeard: acknowledged.length > 0 || Object.keys(refused).length > 0,
  })
}

/**
 * What may be sent at once. What tells of the stream itself is sent when all before it has arrived, and all behind it is
 * sent when it has.
 */
function inTurn(events: readonly NextEvent[]): NextEvent[][] {
  const turns: NextEvent[][] = [[]]
  for (const event of events) {
    if (event.isAboutStream) turns.push([event], [])
    else turns.at(-1)?.push(event)
  }
  return turns.filter(({ length }) => length > 0)
}

async function findPushStream(db: Db, streamId: string, resource: string): Promise<PushStream | undefined> {
  const { rows } = await sql<PushStream>`
    SELECT s.stream_id, s.client_id, s.endpoint_url, s.sealed_authorization_header, s.status, s.verification_jti,
      s.status_jti,
      coalesce(s.failing_since < clock_timestamp() - make_interval(secs => ${patienceSeconds}::int), false)
        AS is_hopeless
    FROM signal_streams s WHERE s.stream_id = ${streamId} AND ${isPushedTo(resource)}`.execute(db)
  return rows[0]
}

/** One request for one token (RFC 8935 §2.1). */
async function push(
  { fetch, encryption }: Pick<PushParts, 'fetch' | 'encryption'>,
  stream: PushStream,
  { token }: SignedEvent,
): Promise<'arrived' | { readonly refusedAs: RefusalCode } | PushFailure> {
  const { sealed_authorization_header: sealed } = stream
  try {
    const response = await fetch(stream.endpoint_url, {
      method: 'POST',
      headers: {
        'Content-Type': 'application/secevent+jwt',
        Accept: 'application/json',
        ...(sealed === null
          ? {}
          : { Authorization: encryption.open(signalStreamRow(stream.stream_id), sealed).toString('latin1') }),
      },
      body: token,
    })
    // §2.4: this token is at fault, not the connection. It alone is put off.
    if (response.status === 400) return { refusedAs: await readError(response) }
    await response.body?.cancel()
    // §2.2 has it answer 202; whoever answers 200 or 204 has it too.
    if (response.ok) return 'arrived'
    return { message: `the receiver answered ${response.status}`, retryAfterMs: readRetryAfter(response) }
  } catch (error) {
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
    return { message: cause instanceof Error ? cause.message.slice(0, 200) : 'unknown', retryAfterMs: 0 }
  }
}

/** `err` of RFC 8935 §2.4; what else there may be is nobody's business. */
async function readError(response: Response): Promise<RefusalCode> {
  try {
    const said: unknown = JSON.parse(await response.text())
    return readRefusalCode((said as { readonly err?: unknown } | null)?.err)
  } catch {
    // A 400 all the same, of something that does not speak RFC 8935.
    return 'unknown'
  }
}

function readRetryAfter(response: Response): number {
  const seconds = response.headers.get('retry-after') ?? ''
  return /^\d{1,5}$/.test(seconds) ? Number(seconds) * 1_000 : 0
}

/**
 * Writes down since when a receiver has failed, and pauses its stream when that is too long.
 * @returns why it has to be tried again, if it has to
 */
async function noteHealth(
  parts: PushParts,
  stream: PushStream,
  failure: PushFailure | undefined,
  { hasHeard }: { readonly hasHeard: boolean },
): Promise<PushFailure | undefined> {
  const { db, log } = parts
  if (failure === undefined) {
    await sql`
      UPDATE signal_streams SET failing_since = NULL, last_error = NULL, active_at = clock_timestamp()
      WHERE stream_id = ${stream.stream_id}
        AND (failing_since IS NOT NULL OR active_at < clock_timestamp() - interval '5 minutes')`.execute(db)
    return undefined
  }
  log.warn({ stream_id: stream.stream_id, error_message: failure.message }, 'a receiver could not be pushed to')
  await sql`
    UPDATE signal_streams
    SET failing_since = CASE WHEN ${hasHeard}::boolean THEN clock_timestamp() ELSE coalesce(failing_since, clock_timestamp()) END,
      last_error = ${failure.message}
    WHERE stream_id = ${stream.stream_id}`.execute(db)
  if (hasHeard || !stream.is_hopeless) return failure
  const { stream_id: streamId, client_id: clientId } = stream
  if (stream.status !== 'enabled') {
    // It stands still already, and its receiver cannot be told.
    await sql`UPDATE signal_streams SET status_jti = NULL WHERE stream_id = ${streamId}`.execute(db)
    return undefined
  }
  const reason = `no event could be pushed for more than ${patienceSeconds} seconds: ${failure.message}`
  await db
    .transaction()
    .execute((trx) => setStreamStatus(trx, systemActor, { clientId, streamId, status: 'paused', reason }))
  log.error({ stream_id: streamId, client_id: clientId }, 'a stream is paused: its receiver fails')
  // SSF 1.0 §8.1.5: now it is told, if it can be.
  return undefined
}
