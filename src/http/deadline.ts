/**
 * How long anything may take, each less than what waits for it: edge > handler > statement (config.ts checks the order).
 * PostgreSQL stops a statement; `handlerDeadline` and `withDeadline` give up on a handler; and `deadline` answers at the
 * edge whatever is still running. Nobody can stop a function that runs, so its signal tells it, and what it answers
 * later is dropped.
 */
import type { Middleware, ParameterizedContext } from 'koa'
import type { Logger } from 'pino'
import { Problem } from '../problems.ts'
import { onceOver, type RequestState } from './request-context.ts'

/** Why a signal is aborted when nobody is there any more to be answered. */
export class CallerLeft extends Error {
  override name = 'CallerLeft'
  constructor() {
    super('the caller left before the answer')
  }
}

/** What aborts a request's signal: the edge makes it, and the handler's deadline uses the same. Nobody else's. */
const controller = Symbol('controller')

interface DeadlineState extends RequestState {
  [controller]?: AbortController
}

/**
 * Answers 504 after `edgeSeconds` when there is no answer yet, and closes the connection. Puts a signal into
 * `ctx.state.signal` that is aborted then, and when the caller leaves. Stands behind problemResponse, in front of
 * everything that may wait.
 *
 * @param settings.edgeSeconds from the arrival of the request's headers
 */
export function deadline(settings: { readonly edgeSeconds: number; readonly log: Logger }): Middleware<RequestState> {
  const onLateFailure = logLateFailure(settings.log)
  return function deadline(ctx, next) {
    const over = new AbortController()
    const state: DeadlineState = ctx.state
    state.signal = over.signal
    state[controller] = over
    onceOver(ctx, () => {
      if (!ctx.res.writableFinished) over.abort(new CallerLeft())
    })
    const spentSeconds = (performance.now() - ctx.state.request.startedAt) / 1_000
    // Behind this answer something may still be under way: the connection is not used again.
    const late = () => tooLate(ctx, { Connection: 'close' })
    return giveUpAfter(settings.edgeSeconds - spentSeconds, over, next, { late, onLateFailure })
  }
}

/**
 * The deadline of everything that answers requests: 504 when it passes. What has one of its own, shorter, uses
 * {@link withDeadline} inside. Stands behind `deadline`.
 */
export function handlerDeadline(settings: {
  readonly handlerSeconds: number
  readonly log: Logger
}): Middleware<RequestState> {
  const onLateFailure = logLateFailure(settings.log)
  return function handlerDeadline(ctx, next) {
    const over = (ctx.state as DeadlineState)[controller]
    if (over === undefined) throw new Error('handlerDeadline stands behind deadline')
    return giveUpAfter(settings.handlerSeconds, over, next, { late: () => tooLate(ctx), onLateFailure })
  }
}

function logLateFailure(log: Logger): (error: unknown) => void {
  return (error) => log.warn({ error }, 'a request failed after its time was over')
}

/** Who is late: a caller that is still sending (408, RFC 9110 §15.5.9), or we. */
function tooLate({ req }: ParameterizedContext<RequestState>, headers: Readonly<Record<string, string>> = {}): Problem {
  const isOurs = req.complete || req.readableLength > 0
  return isOurs
    ? new Problem('GATEWAY_TIMEOUT', undefined, { retryAfterSeconds: 1, headers })
    : new Problem('REQUEST_TIMEOUT', undefined, { headers: { Connection: 'close' } })
}

interface Ending {
  /** what is thrown when the time is over; GATEWAY_TIMEOUT by default */
  readonly late?: () => Error
  /** told of a failure that came too late to be an answer */
  readonly onLateFailure?: (error: unknown) => void
}

export interface DeadlineOptions extends Ending {
  /** of whatever this is part of: aborts what is given to `work` too */
  readonly signal?: AbortSignal
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
  { signal, ...ending }: DeadlineOptions = {},
): Promise<T> {
  const over = new AbortController()
  const pass = () => over.abort(signal?.reason)
  if (signal?.aborted === true) pass()
  signal?.addEventListener('abort', pass, { once: true })
  try {
    return await giveUpAfter(seconds, over, () => work(over.signal), ending)
  } finally {
    signal?.removeEventListener('abort', pass)
  }
}

function giveUpAfter<T>(
  seconds: number,
  over: AbortController,
  work: () => Promise<T>,
  { late, onLateFailure }: Ending,
): Promise<T> {
  const { promise, resolve, reject } = Promise.withResolvers<T>()
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
  const attempt = async () => work()
  // What settles after the time is over settles nothing.
  attempt().then(
    (result) => {
      clearTimeout(timer)
      resolve(result)
    },
    (error: unknown) => {
      clearTimeout(timer)
      if (isLate && error !== over.signal.reason) onLateFailure?.(error)
      reject(error)
    },
  )
  return promise
}
