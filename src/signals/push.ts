/**
 * Pushes events to receivers that want to be called (RFC 8935). One process at a time does it for all of them, by a lease
 * in the database that another takes over when it ends. To each receiver it is a poll of our own: wait for what is next,
 * post it, take down what has arrived. A receiver that fails is tried again with growing pauses; what is to be sent to it
 * is nowhere but in the table, so nothing is lost meanwhile.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import type { Logger } from 'pino'
import { systemActor } from '../audit/audit.ts'
import type { Changes } from '../database/changes.ts'
import type { Db } from '../database/database.ts'
import type { OutgoingFetch } from '../http/outgoing.ts'
import { signalStreamRow, type KeyEncryption } from '../signing/key-encryption.ts'
import { recordReceipt } from './receipts.ts'
import type { SignedEvent } from './signed-events.ts'
import { setStreamStatus } from './streams.ts'
import type { Waiting } from './waiting.ts'

export interface PushParts {
  readonly db: Db
  readonly changes: Pick<Changes, 'on'>
  readonly waiting: Pick<Waiting, 'next'>
  readonly encryption: Pick<KeyEncryption, 'open'>
  /** refuses addresses that are nobody's business (http/outgoing.ts) */
  readonly fetch: OutgoingFetch
  /** the token that tells a receiver that its stream has been stopped */
  readonly signStreamUpdate: (streamId: string, status: string, reason: string) => Promise<SignedEvent>
  readonly log: Logger
}

interface PushStream {
  readonly stream_id: string
  readonly client_id: string
  readonly endpoint_url: string
  readonly sealed_authorization_header: Uint8Array | null
  readonly verification_jti: string | null
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
  const { db, changes, log } = parts
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
        AND EXISTS (SELECT 1 FROM signal_streams WHERE delivery_method = 'push' AND status = 'enabled')
      RETURNING holder`.execute(db)
    return rows.length > 0
  }

  async function round(): Promise<void> {
    try {
      const wanted = new Set((await isMine()) ? await findPushStreams(db) : [])
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

async function findPushStreams(db: Db): Promise<string[]> {
  const { rows } = await sql<{ stream_id: string }>`
    SELECT s.stream_id FROM signal_streams s JOIN clients c ON c.id = s.client_id AND c.status = 'active'
    WHERE s.delivery_method = 'push' AND s.status = 'enabled'`.execute(db)
  return rows.map(({ stream_id }) => stream_id)
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
  events: readonly SignedEvent[],
  signal: AbortSignal,
): Promise<PushFailure | undefined> {
  const { db, log } = parts
  const stream = await findPushStream(db, streamId)
  if (stream === undefined) return { message: 'the stream is not pushed to any more', retryAfterMs: everyMs }
  const acknowledged: string[] = []
  const refused: string[] = []
  let failure: PushFailure | undefined
  const queue = [...events]
  const worker = async () => {
    for (;;) {
      const event = queue.shift()
      if (event === undefined || failure !== undefined || signal.aborted) return
      const outcome = await push(parts, stream, event)
      if (outcome === 'arrived') acknowledged.push(event.jti)
      else if (outcome === 'refused') refused.push(event.jti)
      else failure = outcome
    }
  }
  await Promise.all(Array.from({ length: requestsAtOnce }, worker))
  if (refused.length > 0) log.warn({ stream_id: streamId, jtis: refused.slice(0, 10) }, 'a receiver refused events')
  await recordReceipt(db, { streamId, verificationJti: stream.verification_jti }, { acknowledged, refused })
  await noteHealth(parts, stream, failure)
  return failure
}

async function findPushStream(db: Db, streamId: string): Promise<PushStream | undefined> {
  const { rows } = await sql<PushStream>`
    SELECT stream_id, client_id, endpoint_url, sealed_authorization_header, verification_jti,
      coalesce(failing_since < clock_timestamp() - make_interval(secs => ${patienceSeconds}::int), false) AS is_hopeless
    FROM signal_streams
    WHERE stream_id = ${streamId} AND delivery_method = 'push' AND status = 'enabled'`.execute(db)
  return rows[0]
}

/** One request for one token (RFC 8935 §2.1). */
async function push(
  { fetch, encryption }: Pick<PushParts, 'fetch' | 'encryption'>,
  stream: PushStream,
  { token }: SignedEvent,
): Promise<'arrived' | 'refused' | PushFailure> {
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
    await response.body?.cancel()
    if (response.status >= 200 && response.status <= 204) return 'arrived'
    // §2.3: this token is at fault, not the connection. It alone is put off.
    if (response.status === 400) return 'refused'
    return { message: `the receiver answered ${response.status}`, retryAfterMs: readRetryAfter(response) }
  } catch (error) {
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
    return { message: cause instanceof Error ? cause.message.slice(0, 200) : 'unknown', retryAfterMs: 0 }
  }
}

function readRetryAfter(response: Response): number {
  const seconds = response.headers.get('retry-after') ?? ''
  return /^\d{1,5}$/.test(seconds) ? Number(seconds) * 1_000 : 0
}

/** Writes down since when a receiver has failed, and pauses its stream when that is too long. */
async function noteHealth(parts: PushParts, stream: PushStream, failure: PushFailure | undefined): Promise<void> {
  const { db, log } = parts
  if (failure === undefined) {
    await sql`
      UPDATE signal_streams SET failing_since = NULL, last_error = NULL, active_at = clock_timestamp()
      WHERE stream_id = ${stream.stream_id}
        AND (failing_since IS NOT NULL OR active_at < clock_timestamp() - interval '5 minutes')`.execute(db)
    return
  }
  log.warn({ stream_id: stream.stream_id, error_message: failure.message }, 'a receiver could not be pushed to')
  await sql`
    UPDATE signal_streams
    SET failing_since = coalesce(failing_since, clock_timestamp()), last_error = ${failure.message}
    WHERE stream_id = ${stream.stream_id}`.execute(db)
  if (!stream.is_hopeless) return
  const reason = `no event could be pushed for more than ${patienceSeconds} seconds: ${failure.message}`
  // SSF 1.0 §8.1.5: it is told before the stream stops, if it can be.
  const told = await parts.signStreamUpdate(stream.stream_id, 'paused', reason)
  await push(parts, stream, told)
  await db.transaction().execute((trx) =>
    setStreamStatus(trx, systemActor, {
      clientId: stream.client_id,
      streamId: stream.stream_id,
      status: 'paused',
      reason,
    }),
  )
  log.error({ stream_id: stream.stream_id, client_id: stream.client_id }, 'a stream is paused: its receiver fails')
}
