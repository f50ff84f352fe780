import { requestIdFrom } from '../request.ts'

/**
 * The header in which the milliseconds left are passed on, as Envoy names it: how long the caller will wait for the
 * complete answer, from the moment of sending. A duration and not a time of day, because the clocks of two machines
 * differ by more than a deadline may.
 */
export const DEADLINE_HEADER = 'x-envoy-expected-rq-timeout-ms'

/** Milliseconds since 1970, unmoved by corrections of the system clock, so that those end no deadline. */
export const monotonicNow = (): number => performance.timeOrigin + performance.now()

/** What one request hands on to every call made for it. */
export interface CallContext {
  /** Names the request in the logs of all services it passes through. */
  readonly requestId: string
  /** W3C Trace Context, as received. */
  readonly traceparent?: string
  readonly tracestate?: string
  /** When whoever asked stops waiting, in milliseconds since 1970. */
  readonly deadlineAt?: number
}

/** Headers as a Web `Request` or as Node's `http` has them. */
export type IncomingHeaders = Headers | Readonly<Record<string, string | readonly string[] | undefined>>

/**
 * Reads from a request being served what the calls made for it pass on. All of it comes from outside: a request id that
 * the guard would not accept is replaced by one of our own (the same that the guard answers with), a malformed
 * `traceparent` or deadline is ignored. A deadline can only make a call shorter than it would be.
 *
 * @param headers - of the request being served
 * @param options.reserveMs - milliseconds kept back for our own work after the last call, 100 unless told
 * @param options.now - milliseconds since 1970; the same clock as `createOutbound` is given
 * @see https://www.w3.org/TR/trace-context/
 * @example
 * ```ts
 * import { callContext } from '@latchkey/guard/outbound'
 *
 * const context = callContext(new Headers({ 'x-request-id': '7f3c6b2a-5d9e-4f8b-a1c3-9e8d7c6b5a4f' }))
 * console.log(context.requestId)
 * ```
 */
export function callContext(
  headers: IncomingHeaders,
  options: { reserveMs?: number; now?: () => number } = {},
): CallContext {
  const { reserveMs = 100, now = monotonicNow } = options
  const read = (name: string): string | undefined => {
    const value = headers instanceof Headers ? headers.get(name) : headers[name]
    return typeof value === 'string' ? value : undefined
  }
  const traceparent = read('traceparent')
  const tracestate = read('tracestate')
  const announced = read(DEADLINE_HEADER)
  const traced = traceparent !== undefined && isTraceparent(traceparent)
  return Object.freeze({
    requestId: requestIdFrom(read('x-request-id'), () => headers),
    ...(traced && { traceparent }),
    // Trace Context §3.3: tracestate means nothing without a traceparent that could be read.
    ...(traced && tracestate !== undefined && /^[\x20-\x7e]{1,512}$/.test(tracestate) && { tracestate }),
    ...(announced !== undefined &&
      /^\d{1,9}$/.test(announced) && { deadlineAt: now() + Math.max(0, Number(announced) - reserveMs) }),
  })
}

function isTraceparent(value: string): boolean {
  // Trace Context §3.2.2: version ff and all-zero ids are invalid.
  return /^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$/.test(value)
}
