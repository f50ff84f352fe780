/**
 * The streams: who receives, how, and which events. Each belongs to the client that made it, and to nobody else it is
 * not there. How far a stream is, is deliveries.ts's.
 */
import { randomUUID } from 'node:crypto'
import { isDeepStrictEqual } from 'node:util'
import { sql, type Selectable } from 'kysely'
import { z } from 'zod'
import { systemActor, writeAudit, type Actor } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
import type { SignalStreamsTable } from '../database/tables.ts'
import { findOutgoingProblem } from '../http/outgoing.ts'
import { rateLimitExceeded } from '../http/rate-limit.ts'
import { notFound, Problem } from '../problems.ts'
import { signalStreamRow, type KeyEncryption } from '../signing/key-encryption.ts'
import { isAlive } from './deliveries.ts'
import { eventTypes, eventUri } from './events.ts'

export const pollMethod = 'urn:ietf:rfc:8936'
export const pushMethod = 'urn:ietf:rfc:8935'

/** How long a stream lasts of which nothing is heard, in seconds. */
export const inactivitySeconds = 86_400

/** How much time must lie between two requests for verification, in seconds. */
export const minVerificationIntervalSeconds = 1

const mostStreams = 1_000
/** A receiver that polls is never away for so long: its stream may give way to a new one. In seconds. */
const abandonedAfterSeconds = 600

export type Stream = Omit<
  Selectable<SignalStreamsTable>,
  'cursor_transaction_id' | 'cursor_id' | 'beginnings' | 'sealed_authorization_header'
> & { readonly has_authorization_header: boolean }

const streamColumns = [
  'stream_id',
  'client_id',
  'delivery_method',
  'endpoint_url',
  'events_requested',
  'events_delivered',
  'description',
  'status',
  'status_reason',
  'status_jti',
  'client_token_version',
  'verification_jti',
  'verification_state',
  'verification_requested_at',
  'failing_since',
  'last_error',
  'refusals',
  'last_refused_at',
  'last_refusal',
  'active_at',
  'expires_at',
  'created_at',
  sql<boolean>`(sealed_authorization_header IS NOT NULL)`.as('has_authorization_header'),
] as const

const delivery = z.discriminatedUnion('method', [
  // Where it is polled is told by us; told back, it is not looked at.
  z.strictObject({ method: z.literal(pollMethod), endpoint_url: z.string().max(2_000).optional() }),
  z.strictObject({
    method: z.literal(pushMethod),
    endpoint_url: z.string().max(2_000),
    authorization_header: z
      .string()
      .min(1)
      .max(4_000)
      .regex(/^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$/, 'must be the value of a header: printable ASCII')
      .optional(),
  }),
])
const eventsRequested = z.array(z.string().max(500)).max(100)
const description = z.string().max(2_000)

/** What a receiver may say of a stream (SSF 1.0 §8.1.1). */
export const receiverSupplied = {
  delivery: delivery.optional(),
  events_requested: eventsRequested.optional(),
  description: description.optional(),
} as const

type Delivery = z.output<typeof delivery>

export interface StreamSettings {
  readonly delivery?: Delivery | undefined
  readonly events_requested?: readonly string[] | undefined
  readonly description?: string | undefined
}

/** What is needed to write a stream's delivery down. */
export interface StreamParts {
  readonly encryption: Pick<KeyEncryption, 'seal'>
  /** in development: push to http and to this very machine */
  readonly allowLoopback: boolean
}

/** Whoever asks, as its token says. */
export interface Caller {
  readonly clientId: string
  /** The token's: what it agrees to lasts no longer than such tokens do, where no other is asked for. */
  readonly tokenVersion: number
}

/**
 * Makes a stream. It begins with everything that is still revoked.
 * @throws Problem VALIDATION_ERROR about the endpoint, CONFLICT when the client has as many as it may
 */
export async function createStream(
  trx: Trx,
  actor: Actor,
  input: Caller & { readonly settings: StreamSettings; readonly parts: StreamParts },
): Promise<Stream> {
  const { clientId, tokenVersion, settings, parts } = input
  await makeRoom(trx, actor, clientId)
  const streamId = randomUUID()
  const chosen = settings.delivery ?? { method: pollMethod }
  const stream = await trx
    .insertInto('signal_streams')
    .values({
      stream_id: streamId,
      client_id: clientId,
      client_token_version: tokenVersion,
      ...deliveryColumns(streamId, chosen, parts),
      ...eventColumns(settings.events_requested),
      description: settings.description ?? null,
    })
    .returning(streamColumns)
    .executeTakeFirstOrThrow()
  await writeAudit(trx, actor, {
    action: 'signal-stream.created',
    target: { type: 'signal-stream', id: streamId },
    details: { after: described(stream) },
  })
  return stream
}

/** One process of a service makes one stream, and forgets it when it is restarted: the oldest of these give way. */
async function makeRoom(trx: Trx, actor: Actor, clientId: string): Promise<void> {
  await sql`SELECT pg_advisory_xact_lock(${roomLock}, hashtext(${clientId}))`.execute(trx)
  const { count } = await trx
    .selectFrom('signal_streams')
    .select(({ fn }) => fn.countAll<number>().as('count'))
    .where('client_id', '=', clientId)
    .executeTakeFirstOrThrow()
  if (count < mostStreams) return
  const removed = await trx
    .deleteFrom('signal_streams')
    .where('stream_id', 'in', (eb) =>
      eb
        .selectFrom('signal_streams')
        .select('stream_id')
        .where('client_id', '=', clientId)
        .where('delivery_method', '=', 'poll')
        .where(sql<boolean>`active_at < clock_timestamp() - make_interval(secs => ${abandonedAfterSeconds}::int)`)
        .orderBy('active_at')
        .limit(100),
    )
    .returning(streamColumns)
    .execute()
  await recordEnd(trx, actor, removed, 'made room for another')
  if (removed.length > 0) return
  throw new Problem(
    'CONFLICT',
    `This client has ${count} streams, the most that one may have: delete those that are not used.`,
    { members: { limit: mostStreams } },
  )
}

const roomLock = 0x1a7c_0013

async function recordEnd(trx: Trx, actor: Actor, streams: readonly Stream[], reason: string): Promise<void> {
  for (const stream of streams) {
    await writeAudit(trx, actor, {
      action: 'signal-stream.deleted',
      target: { type: 'signal-stream', id: stream.stream_id },
      details: { reason, before: described(stream) },
    })
  }
}

/**
 * Removes the streams that have expired, some at a time.
 * @returns how many went
 */
export async function endExpiredStreams(db: Db, signal?: AbortSignal): Promise<number> {
  for (let ended = 0; ;) {
    if (signal?.aborted === true) return ended
    const page = await db.transaction().execute(async (trx) => {
      // A DELETE announces a change even where it finds nothing.
      const isExpired = sql<boolean>`expires_at < now()`
      const expired = await trx
        .selectFrom('signal_streams')
        .select(streamColumns)
        .where(isExpired)
        .orderBy('stream_id')
        .limit(expiredAtOnce)
        .forUpdate()
        .skipLocked()
        .execute()
      if (expired.length === 0) return 0
      const ids = expired.map(({ stream_id: id }) => id)
      await trx.deleteFrom('signal_streams').where('stream_id', 'in', ids).execute()
      await recordEnd(trx, systemActor, expired, `nothing was heard of it for ${inactivitySeconds} seconds`)
      return expired.length
    })
    ended += page
    if (page < expiredAtOnce) return ended
  }
}

const expiredAtOnce = 100

/** @throws Problem RESOURCE_NOT_FOUND when this client has no such stream */
export async function getStream(db: Db, clientId: string, streamId: string): Promise<Stream> {
  const stream = await db
    .selectFrom('signal_streams as s')
    .select(streamColumns)
    .where('stream_id', '=', streamId)
    .where('client_id', '=', clientId)
    .where(isAlive)
    .executeTakeFirst()
  if (stream === undefined) throw noStream(streamId)
  return stream
}

/** So that what is decided by what it is stays true until it is written. */
async function lockStream(trx: Trx, clientId: string, streamId: string): Promise<Stream> {
  await sql`SELECT FROM signal_streams WHERE stream_id = ${streamId} AND client_id = ${clientId} FOR UPDATE`.execute(
    trx,
  )
  return getStream(trx, clientId, streamId)
}

export function listStreams(db: Db, clientId: string): Promise<Stream[]> {
  return db
    .selectFrom('signal_streams as s')
    .select(streamColumns)
    .where('client_id', '=', clientId)
    .where(isAlive)
    .orderBy('created_at')
    .orderBy('stream_id')
    .execute()
}

/** In the same words whether there is no such stream or it is another client's. */
export function noStream(streamId: string): Problem {
  return notFound('stream', streamId, '/ssf/streams')
}

/**
 * Changes what a receiver said of a stream; what is undefined stays. The deliveries go on from where they were. What is
 * said again is agreed to again, and leaves no record, but for an authorization header: which it was cannot be said.
 * @throws Problem RESOURCE_NOT_FOUND, VALIDATION_ERROR
 */
export async function updateStream(
  trx: Trx,
  actor: Actor,
  input: Caller & {
    readonly streamId: string
    /** null: as if it had never been said */
    readonly settings: {
      readonly delivery?: Delivery | null | undefined
      readonly events_requested?: readonly string[] | null | undefined
      readonly description?: string | null | undefined
    }
    readonly parts: StreamParts
  },
): Promise<Stream> {
  const { clientId, tokenVersion, streamId, settings, parts } = input
  const before = await lockStream(trx, clientId, streamId)
  const changes = {
    ...(settings.delivery === undefined
      ? {}
      : {
          ...deliveryColumns(streamId, settings.delivery ?? { method: pollMethod }, parts),
          client_token_version: tokenVersion,
          failing_since: null,
          last_error: null,
        }),
    ...(settings.events_requested === undefined ? {} : changedEvents(before, settings.events_requested ?? undefined)),
    ...(settings.description === undefined ? {} : { description: settings.description }),
  }
  if (Object.keys(changes).length === 0) return before
  const stream = await trx
    .updateTable('signal_streams')
    .set(changes)
    .where('stream_id', '=', streamId)
    .where('client_id', '=', clientId)
    .returning(streamColumns)
    .executeTakeFirst()
  if (stream === undefined) throw noStream(streamId)
  const hasNewHeader = settings.delivery?.method === pushMethod && settings.delivery.authorization_header !== undefined
  if (!hasNewHeader && isDeepStrictEqual(described(before), described(stream))) return stream
  await writeAudit(trx, actor, {
    action: 'signal-stream.updated',
    target: { type: 'signal-stream', id: streamId },
    details: {
      before: described(before),
      after: described(stream),
      // Of a header that takes another's place, nothing else can be said.
      ...(hasNewHeader ? { has_new_authorization_header: true } : {}),
    },
  })
  return stream
}

/** @throws Problem RESOURCE_NOT_FOUND */
export async function deleteStream(
  trx: Trx,
  actor: Actor,
  { clientId, streamId }: { readonly clientId: string; readonly streamId: string },
): Promise<void> {
  const stream = await getStream(trx, clientId, streamId)
  await trx.deleteFrom('signal_streams').where('stream_id', '=', streamId).execute()
  await recordEnd(trx, actor, [stream], 'deleted by its client')
}

/**
 * Stops a stream, or lets it go on, and has its receiver told so, whoever decided it: a service may have many processes,
 * and the one that receives takes silence for good news. What was revoked while the stream stood still and is still active
 * is sent then, whether it was paused or disabled: nobody is better off without it.
 * @param input.tokenVersion of the caller's token; undefined: it is decided here
 * @throws Problem RESOURCE_NOT_FOUND
 */
export async function setStreamStatus(
  trx: Trx,
  actor: Actor,
  input: {
    readonly clientId: string
    readonly tokenVersion?: number
    readonly streamId: string
    readonly status: Stream['status']
    readonly reason?: string | undefined
  },
): Promise<Stream> {
  const { clientId, tokenVersion, streamId, status, reason } = input
  const before = await lockStream(trx, clientId, streamId)
  const stream = await trx
    .updateTable('signal_streams')
    .set({
      status,
      status_reason: reason ?? null,
      ...(status === before.status ? {} : { status_jti: randomUUID() }),
      ...(status === 'enabled' ? { failing_since: null, last_error: null } : {}),
      ...(status === 'enabled' && tokenVersion !== undefined ? { client_token_version: tokenVersion } : {}),
      active_at: sql<Date>`clock_timestamp()`,
      // A push stream lasts for as long as it is pushed to.
      expires_at: before.delivery_method === 'push' && status === 'enabled' ? null : expiry,
    })
    .where('stream_id', '=', streamId)
    .returning(streamColumns)
    .executeTakeFirst()
  if (stream === undefined) throw noStream(streamId)
  // Said again: it lasts longer by it, and is what it was.
  if (isDeepStrictEqual(statusOf(before), statusOf(stream))) return stream
  await writeAudit(trx, actor, {
    action: 'signal-stream.status-changed',
    target: { type: 'signal-stream', id: streamId },
    details: { before: statusOf(before), after: statusOf(stream) },
  })
  return stream
}

/**
 * Has a verification event sent, behind everything that was revoked until now. One at a time: a later request takes the
 * place of one whose event has not been acknowledged.
 * @throws Problem RESOURCE_NOT_FOUND, RATE_LIMIT_EXCEEDED
 */
export async function requestVerification(
  trx: Trx,
  {
    clientId,
    streamId,
    state,
  }: { readonly clientId: string; readonly streamId: string; readonly state: string | null },
): Promise<void> {
  await getStream(trx, clientId, streamId)
  const { numUpdatedRows } = await trx
    .updateTable('signal_streams')
    .set({
      verification_jti: randomUUID(),
      verification_state: state,
      verification_requested_at: sql<Date>`clock_timestamp()`,
    })
    .where('stream_id', '=', streamId)
    .where(
      sql<boolean>`(verification_requested_at IS NULL OR verification_requested_at <= clock_timestamp() - make_interval(secs => ${minVerificationIntervalSeconds}::int))`,
    )
    .executeTakeFirstOrThrow()
  if (numUpdatedRows > 0n) return
  throw rateLimitExceeded(
    {
      limit: 1,
      remaining: 0,
      resetAt: new Date(Date.now() + minVerificationIntervalSeconds * 1_000),
      retryAfterSeconds: minVerificationIntervalSeconds,
    },
    {},
    `A verification may be asked for every ${minVerificationIntervalSeconds} seconds.`,
  )
}

/** In seconds: activity is written down this often, and not with every request. */
const renewedEverySeconds = 300

/** The receiver is there: the stream's time begins anew (SSF 1.0 §8.1.1, `inactivity_timeout`). */
export async function renewStream(
  db: Db,
  stream: Pick<Stream, 'stream_id' | 'active_at' | 'expires_at'>,
): Promise<void> {
  if (Date.now() - stream.active_at.getTime() < renewedEverySeconds * 1_000) return
  await db
    .updateTable('signal_streams')
    .set({
      active_at: sql<Date>`clock_timestamp()`,
      ...(stream.expires_at === null ? {} : { expires_at: expiry }),
    })
    .where('stream_id', '=', stream.stream_id)
    .execute()
}

const expiry = sql<Date>`clock_timestamp() + make_interval(secs => ${inactivitySeconds}::int)`

function deliveryColumns(streamId: string, chosen: Delivery, { encryption, allowLoopback }: StreamParts) {
  if (chosen.method === pollMethod) {
    return {
      delivery_method: 'poll',
      endpoint_url: null,
      sealed_authorization_header: null,
      expires_at: expiry,
    } as const
  }
  const problem = findOutgoingProblem(chosen.endpoint_url, allowLoopback)
  if (problem !== undefined) {
    throw new Problem('VALIDATION_ERROR', `delivery.endpoint_url ${problem}`, {
      details: [{ field: 'delivery.endpoint_url', constraint: 'format', message: problem }],
    })
  }
  const { authorization_header: header } = chosen
  return {
    delivery_method: 'push',
    endpoint_url: chosen.endpoint_url,
    sealed_authorization_header:
      header === undefined ? null : encryption.seal(signalStreamRow(streamId), Buffer.from(header, 'latin1')),
    expires_at: null,
  } as const
}

/** What is not known is not delivered, and no mistake (SSF 1.0 §8.1.1). */
function eventColumns(requested: readonly string[] | undefined) {
  const delivered = eventTypes.filter((type) => requested === undefined || requested.includes(eventUri(type)))
  return {
    events_requested: requested === undefined ? null : JSON.stringify(requested),
    events_delivered: JSON.stringify(delivered),
  }
}

/**
 * Events that are new to a stream may have been passed over: it begins anew, and learns all that is still revoked. Of those
 * that come no more the receiver is told, as of a status: it may be another process than the one that decided it, and
 * takes silence for good news.
 */
function changedEvents(before: Stream, requested: readonly string[] | undefined) {
  const columns = eventColumns(requested)
  const [known, delivered] = [
    new Set(before.events_delivered),
    new Set(JSON.parse(columns.events_delivered) as string[]),
  ]
  const isWider = eventTypes.some((type) => delivered.has(type) && !known.has(type))
  const isNarrower = eventTypes.some((type) => known.has(type) && !delivered.has(type))
  const beginning = { cursor_transaction_id: '0', cursor_id: 0, beginnings: sql<number>`beginnings + 1` }
  return { ...columns, ...(isWider ? beginning : {}), ...(isNarrower ? { status_jti: randomUUID() } : {}) }
}

function statusOf({ status, status_reason }: Stream) {
  return { status, status_reason }
}

/** All that was said of a stream, for the audit record: that there is an authorization header, but not which. */
function described(stream: Stream) {
  const { client_id, delivery_method, endpoint_url, has_authorization_header } = stream
  const { events_requested, events_delivered, description } = stream
  return {
    client_id,
    delivery_method,
    endpoint_url,
    has_authorization_header,
    events_requested,
    events_delivered,
    description,
    ...statusOf(stream),
  }
}
