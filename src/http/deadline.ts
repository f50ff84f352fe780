/**
 * How long anything may take, each less than what waits for it: edge > handler > statement (config.ts checks the order).
 * PostgreSQL stops a statement; `handlerDeadline` and `withDeadline` give up on a handler; and `deadline` answers at the
 * edge whatever is still running. Nobody can stop a function that runs, so its signal tells it, and what it answers
 * later is dropped.
 */
import type { Middleware, ParameterizedContext } from 'koa'
import type { Logger } from 'pino'
import { Problem } from '../problems.ts'
import type { RequestState } from './request-context.ts'

/** Why a signal is aborted when nobody is there any more to be answered. */
export class CallerLeft extends Error {
  override name = 'CallerLeft'
  constructor() {
    super('the caller left before the answer')
  }
}

/**
 * Answers 504 after `edgeSeconds` when there is no answer yet, and closes the connection. Puts a signal into
 * `ctx.state.signal` that is aborted then, and when the caller leaves. Stands behind problemResponse, in front of
 * everything that may wait.
 *
 * @param settings.edgeSeconds from the arrival of the request's headers
 */
export function deadline(settings: { readonly edgeSeconds: number; readonly log: Logger }): Middleware<RequestState> {
  return async function deadline(ctx, next) {
    const left = new AbortController()
    ctx.res.once('close', () => {
      if (!ctx.res.writableFinished) left.abort(new CallerLeft())
    })
    const spentSeconds = (performance.now() - ctx.state.request.startedAt) / 1_000
    await answerWithin(settings.edgeSeconds - spentSeconds, ctx, next, {
      signal: left.signal,
      log: settings.log,
      // Behind this answer something may still be under way: the connection is not used again.
      headers: { Connection: 'close' },
    })
  }
}

/**
 * The deadline of everything that answers requests: 504 when it passes. What has one of its own, shorter, uses
 * {@link withDeadline} inside.
 */
export function handlerDeadline(settings: {
  readonly handlerSeconds: number
  readonly log: Logger
}): Middleware<RequestState> {
  return async function handlerDeadline(ctx, next) {
    await answerWithin(settings.handlerSeconds, ctx, next, { signal: ctx.state.signal, log: settings.log, headers: {} })
  }
}

interface WithinOptions {
  readonly signal: AbortSignal
  readonly log: Logger
  readonly headers: Readonly<Record<string, string>>
}

async function answerWithin(
  seconds: number,
  ctx: ParameterizedContext<RequestState>,
  next: () => Promise<unknown>,
  { signal, log, headers }: WithinOptions,
): Promise<void> {
  await withDeadline(
    seconds,
    (narrower) => {
      ctx.state.signal = narrower
      return next()
    },
    {
      signal,
      late: () => tooLate(ctx, headers),
      onLateFailure: (error) => log.warn({ error }, 'a request failed after its time was over'),
    },
  )
}

/** Who is late: a caller that is still sending (408, RFC 9110 §15.5.9), or we. */
function tooLate({ req }: ParameterizedContext<RequestState>, headers: Readonly<Record<string, string>>): Problem {
  const isOurs = req.complete || req.readableLength > 0
  return isOurs
    ? new Problem('GATEWAY_TIMEOUT', undefined, { retryAfterSeconds: 1, headers })
    : new Problem('REQUEST_TIMEOUT', undefined, { headers: { Connection: 'close' } })
}

export interface DeadlineOptions {
  /** of whatever this is part of: aborts what is given to `work` too */
  readonly signal?: AbortSignal
  /** what is thrown when the time is over, instead of GATEWAY_TIMEOUT */
  readonly late?: () => Error
  /** told of a failure that came too late to be an answer */
  readonly onLateFailure?: (error: unknown) => void
}

/**
 * What `work` gives, unless it takes too long: it is not waited for then, and what it gives later is dropped.
 *
 * @param seconds what is longer than the handler's deadline has no effect, since that one stands around it
 * @param work should pass the signal on to what it waits for
 * @throws Problem GATEWAY_TIMEOUT
 * @example
 * await withDeadline(5, (signal) => fetch(url, { signal }), { signal: ctx.state.signal })
 */
export async function withDeadline<T>(
  seconds: number,
  work: (signal: AbortSignal) => Promise<T>,
  { signal, late, onLateFailure }: DeadlineOptions = {},
): Promise<T> {
  const over = new AbortController()
  const pass = () => over.abort(signal?.reason)
  if (signal?.aborted === true) pass()
  signal?.addEventListener('abort', pass, { once: true })
  const { promise: isOver, reject } = Promise.withResolvers<never>()
  let isLate = false
  const timer = setTimeout(
    () => {
      isLate = true
      const error = late?.() ?? new Problem('GATEWAY_TIMEOUT', undefined, { retryAfterSeconds: 1 })
      reject(error)
      // After the answer: what this wakes up must not change it.
      setImmediate(() => over.abort(error))
    },
    Math.max(0, seconds) * 1_000,
  )
  const working = (async () => work(over.signal))()
  working.catch((error: unknown) => {
    if (isLate && error !== over.signal.reason) onLateFailure?.(error)
  })
  try {
    return await Promise.race([working, isOver])
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', pass)
  }
}
