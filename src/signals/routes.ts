/**
 * What receivers ask of the feed: its configuration, their streams, and their events (SSF 1.0 §7 and §8, RFC 8936).
 * Everything but the configuration needs a token for the feed's own resource, got by client credentials.
 */
import { Router } from '@koa/router'
import { authenticate, authOf, requireScopes } from '@latchkey/guard/koa'
import type { Context, Middleware, Next } from 'koa'
import compose from 'koa-compose'
import type { Logger } from 'pino'
import { z } from 'zod'
import type { Actor } from '../audit/audit.ts'
import type { Db } from '../database/database.ts'
import { CallerLeft } from '../http/deadline.ts'
import { isStorableText, readJson } from '../http/json-body.ts'
import { parseInput, Problem } from '../problems.ts'
import type { OwnGuard } from '../revocation/own-guard.ts'
import { receivePermission } from './deliveries.ts'
import { complexMembers, eventTypes, eventUri } from './events.ts'
import { pollSchema, pollStream } from './poll.ts'
import type { Receipts } from './receipts.ts'
import { openRepetitions } from './repetitions.ts'
import {
  createStream,
  deleteStream,
  getStream,
  inactivitySeconds,
  listStreams,
  minVerificationIntervalSeconds,
  noStream,
  pollMethod,
  pushMethod,
  receiverSupplied,
  renewStream,
  requestVerification,
  setStreamStatus,
  updateStream,
  type Caller,
  type Stream,
  type StreamParts,
} from './streams.ts'
import type { Waiting } from './waiting.ts'

export const configurationPath = '/.well-known/ssf-configuration'

const mostBodyBytes = 256 * 1_024

export interface RouteParts {
  readonly db: Db
  readonly issuer: string
  /** the feed's resource: its URL, and the audience of its tokens and of every event */
  readonly audience: string
  readonly jwksUri: string
  /** how long others may keep a copy of the configuration, in seconds */
  readonly maxAgeSeconds: number
  readonly guard: OwnGuard
  readonly receipts: Receipts
  readonly waiting: Waiting
  readonly streams: StreamParts
  /** how long a poll that finds nothing waits, in milliseconds */
  readonly holdMs: number
  readonly log: Logger
  /** told how many events were answered */
  readonly onPolled: (count: number) => void
}

const streamId = z.string().min(1).max(100).refine(isStorableText, 'holds a character that is not text')

/** What we supply may be sent back, and must then be what it is (SSF 1.0 §8.1.1.3). */
const transmitterSupplied = {
  iss: z.unknown().optional(),
  aud: z.unknown().optional(),
  events_supported: z.unknown().optional(),
  events_delivered: z.unknown().optional(),
  min_verification_interval: z.unknown().optional(),
  inactivity_timeout: z.unknown().optional(),
} as const

const createSchema = z.object(receiverSupplied)
const changeSchema = z.object({ stream_id: streamId, ...receiverSupplied, ...transmitterSupplied })
const statusSchema = z.object({
  stream_id: streamId,
  status: z.enum(['enabled', 'paused', 'disabled']),
  reason: z.string().max(500).optional(),
})
const verificationSchema = z.object({ stream_id: streamId, state: z.string().max(2_000).optional() })

export function signalRoutes(parts: RouteParts): Middleware {
  const { db, audience, receipts, waiting, streams: streamParts, holdMs, log } = parts
  const repetitions = openRepetitions()
  const { pathname: root } = new URL(audience)
  const router = new Router()

  router.get(configurationPath, (ctx) => {
    ctx.set('Cache-Control', `public, max-age=${parts.maxAgeSeconds}`)
    ctx.body = describeConfiguration(parts)
  })

  const protect: Middleware[] = [
    // The guard of this moment; it answers its own refusals.
    (ctx, next) => authenticate(parts.guard.guard())(ctx, next),
    requireScopes(receivePermission) as Middleware,
    requireMachine,
  ]
  const show = (stream: Stream) => describeStream(parts, stream)

  router.post(`${root}/streams`, ...protect, async (ctx) => {
    const settings = parseInput(createSchema, await read(ctx, 'may be empty'))
    const stream = await db
      .transaction()
      .execute((trx) => createStream(trx, actorOf(ctx), { ...callerOf(ctx), settings, parts: streamParts }))
    ctx.status = 201
    ctx.set('Location', `${audience}/streams?stream_id=${stream.stream_id}`)
    ctx.body = show(stream)
  })

  router.get(`${root}/streams`, ...protect, async (ctx) => {
    const { stream_id: id } = parseInput(z.object({ stream_id: streamId.optional() }), ctx.query)
    if (id === undefined) {
      ctx.body = (await listStreams(db, clientOf(ctx))).map(show)
    } else {
      const stream = await getStream(db, clientOf(ctx), id)
      await renewStream(db, stream)
      ctx.body = show(stream)
    }
  })

  /** PATCH changes what is there, PUT what is missing too (SSF 1.0 §8.1.1.3, §8.1.1.4). */
  const change = (isWhole: boolean) => async (ctx: Context) => {
    const body = parseInput(changeSchema, await read(ctx))
    const caller = callerOf(ctx)
    const stream = await db.transaction().execute(async (trx) => {
      requireAsItIs(body, show(await getStream(trx, caller.clientId, body.stream_id)))
      return updateStream(trx, actorOf(ctx), {
        ...caller,
        streamId: body.stream_id,
        settings: {
          delivery: body.delivery ?? (isWhole ? null : undefined),
          events_requested: body.events_requested ?? (isWhole ? null : undefined),
          description: body.description ?? (isWhole ? null : undefined),
        },
        parts: streamParts,
      })
    })
    await renewStream(db, stream)
    ctx.body = show(stream)
  }
  router.patch(`${root}/streams`, ...protect, change(false))
  router.put(`${root}/streams`, ...protect, change(true))

  router.delete(`${root}/streams`, ...protect, async (ctx) => {
    const id = parseInput(z.object({ stream_id: streamId }), ctx.query).stream_id
    await db.transaction().execute((trx) => deleteStream(trx, actorOf(ctx), { clientId: clientOf(ctx), streamId: id }))
    ctx.status = 204
  })

  router.get(`${root}/status`, ...protect, async (ctx) => {
    const id = parseInput(z.object({ stream_id: streamId }), ctx.query).stream_id
    const stream = await getStream(db, clientOf(ctx), id)
    await renewStream(db, stream)
    ctx.body = describeStatus(stream)
  })

  router.post(`${root}/status`, ...protect, async (ctx) => {
    const { stream_id: id, status, reason } = parseInput(statusSchema, await read(ctx))
    const stream = await db
      .transaction()
      .execute((trx) => setStreamStatus(trx, actorOf(ctx), { ...callerOf(ctx), streamId: id, status, reason }))
    ctx.body = describeStatus(stream)
  })

  router.post(`${root}/verification`, ...protect, async (ctx) => {
    const { stream_id: id, state = null } = parseInput(verificationSchema, await read(ctx))
    await db.transaction().execute((trx) => requestVerification(trx, { clientId: clientOf(ctx), streamId: id, state }))
    ctx.status = 204
  })

  router.post(`${root}/streams/:stream_id/events`, ...protect, async (ctx) => {
    const request = parseInput(pollSchema, await read(ctx, 'may be empty'))
    const id = ctx.params['stream_id'] ?? ''
    if (!streamId.safeParse(id).success) throw noStream(isStorableText(id) ? id : '')
    const left = new AbortController()
    ctx.res.once('close', () => {
      if (!ctx.res.writableFinished) left.abort(new CallerLeft())
    })
    if (ctx.res.closed) return
    const answer = await pollStream(
      { db, receipts, waiting, repetitions },
      {
        clientId: clientOf(ctx),
        streamId: id,
        request,
        holdMs,
        signal: left.signal,
        onRefused: (errors) =>
          log.warn(
            {
              stream_id: id,
              errors: Object.entries(errors)
                .slice(0, 10)
                .map(([jti, { err }]) => ({ jti, err })),
            },
            'a receiver refused events',
          ),
      },
    )
    parts.onPolled(Object.keys(answer.sets).length)
    ctx.body = answer
  })

  const routes = compose<Context>([router.routes() as never, router.allowedMethods() as never])
  return (ctx, next) => (ctx.path === configurationPath || ctx.path.startsWith(`${root}/`) ? routes(ctx, next) : next())
}

/** A stream is a machine's: nobody receives for a person. */
async function requireMachine(ctx: Context, next: Next): Promise<void> {
  const { claims } = authOf(ctx)
  if (claims.client_id === undefined || claims.sub !== claims.client_id) {
    throw new Problem('AUTHORIZATION_ERROR', 'Security events are for clients as themselves: use client credentials.')
  }
  ctx.state['clientId'] = claims.client_id
  await next()
}

function clientOf(ctx: Context): string {
  return authOf(ctx).claims.sub
}

/** A token without `token_version` agrees to nothing that must outlive it. */
function callerOf(ctx: Context): Caller {
  const { token_version: version } = authOf(ctx).claims
  return { clientId: clientOf(ctx), tokenVersion: typeof version === 'number' ? version : 0 }
}

function actorOf(ctx: Context): Actor {
  return { type: 'client', id: clientOf(ctx), requestId: ctx.state['requestId'] as string | undefined }
}

async function read(ctx: Context, emptiness?: 'may be empty'): Promise<unknown> {
  if (emptiness !== undefined && ctx.req.headers['content-length'] === '0') return {}
  const { value } = await readJson(ctx, { mediaTypes: ['application/json'], maxBytes: mostBodyBytes })
  return value
}

/** @throws Problem VALIDATION_ERROR that names every member of ours that was sent with another value */
function requireAsItIs(body: z.output<typeof changeSchema>, stream: ReturnType<typeof describeStream>): void {
  const wrong = (Object.keys(transmitterSupplied) as (keyof typeof transmitterSupplied)[]).filter(
    (name) => body[name] !== undefined && JSON.stringify(body[name]) !== JSON.stringify(stream[name]),
  )
  if (wrong.length === 0) return
  throw new Problem('VALIDATION_ERROR', `${wrong.join(' and ')} cannot be changed.`, {
    details: wrong.map((field) => ({ field, constraint: 'constant', message: 'Is decided by the transmitter' })),
  })
}

/** SSF 1.0 §7.1; `resource` is ours: what to ask a token for. */
function describeConfiguration({ issuer, audience, jwksUri }: RouteParts) {
  return {
    spec_version: '1_0',
    issuer,
    jwks_uri: jwksUri,
    delivery_methods_supported: [pollMethod, pushMethod],
    configuration_endpoint: `${audience}/streams`,
    status_endpoint: `${audience}/status`,
    verification_endpoint: `${audience}/verification`,
    authorization_schemes: [{ spec_urn: 'urn:ietf:rfc:6749' }],
    default_subjects: 'ALL',
    // §3.6: whoever cannot tell whom an event is about must not take it for another's.
    critical_subject_members: complexMembers,
    resource: audience,
  }
}

/** SSF 1.0 §8.1.1. What authorizes us at a receiver is not told to anybody. */
function describeStream({ issuer, audience }: RouteParts, stream: Stream) {
  const supported = eventTypes.map(eventUri)
  const isPolled = stream.delivery_method === 'poll'
  return {
    stream_id: stream.stream_id,
    iss: issuer,
    aud: audience,
    events_supported: supported,
    events_requested: stream.events_requested ?? supported,
    events_delivered: eventTypes.filter((type) => stream.events_delivered.includes(type)).map(eventUri),
    delivery: isPolled
      ? { method: pollMethod, endpoint_url: `${audience}/streams/${stream.stream_id}/events` }
      : { method: pushMethod, endpoint_url: stream.endpoint_url },
    min_verification_interval: minVerificationIntervalSeconds,
    // One that is pushed to lasts for as long as it is pushed to.
    inactivity_timeout: isPolled ? inactivitySeconds : undefined,
    description: stream.description ?? undefined,
  }
}

function describeStatus({ stream_id, status, status_reason }: Stream) {
  return { stream_id, status, ...(status_reason === null ? {} : { reason: status_reason }) }
}
