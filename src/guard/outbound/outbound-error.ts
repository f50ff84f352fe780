import { GuardError } from '../errors.ts'

/**
 * Why a call to another service gave no usable answer.
 *
 * | reason | meaning |
 * |---|---|
 * | `circuit_open` | the host failed too often; it was not asked |
 * | `no_connection_free` | all connections to the host stayed busy, or too many calls were already waiting |
 * | `connect_timeout`, `connect_failed` | no connection was made, so nothing was sent |
 * | `read_timeout` | the complete answer did not arrive in time; whether the request took effect is not known |
 * | `connection_lost` | the connection broke after the request may have been sent |
 * | `deadline_exceeded` | the whole call, or the caller's own deadline, has run out |
 * | `still_failing` | the last answer was still 429, 500, 502, 503 or 504 (handed to `fallback` only) |
 * | `token_unavailable` | the token endpoint could not be reached or answered nonsense |
 * | `token_refused` | the token endpoint refused these credentials or this scope |
 * | `response_too_large`, `response_invalid` | the answer broke our own bounds |
 * | `closed` | `outbound.close()` was called |
 */
export type OutboundReason =
  | 'circuit_open'
  | 'no_connection_free'
  | 'connect_timeout'
  | 'connect_failed'
  | 'read_timeout'
  | 'connection_lost'
  | 'deadline_exceeded'
  | 'still_failing'
  | 'token_unavailable'
  | 'token_refused'
  | 'response_too_large'
  | 'response_invalid'
  | 'closed'

/** What an {@link OutboundError} may carry beside its reason. */
export interface OutboundErrorDetails {
  /** Origin of the host that was called, such as `https://users.example.com`. */
  readonly host?: string
  /** HTTP status of the last answer, if there was one. */
  readonly upstreamStatus?: number
  /** Seconds after which another try may succeed. @defaultValue 1 */
  readonly retryAfterSeconds?: number
  /** What went wrong underneath. */
  readonly cause?: unknown
}

/** Nothing of the request can have reached the host, so that even an unsafe method may be sent again. */
const NEVER_SENT: ReadonlySet<OutboundReason> = new Set(['connect_timeout', 'connect_failed'])

/** The host itself failed us: counts against its circuit breaker. */
const HOST_FAILED: ReadonlySet<OutboundReason> = new Set([...NEVER_SENT, 'read_timeout', 'connection_lost'])

/** Out of reach for now, which is what a fallback is for. A refused secret or a broken answer is not: those need mending. */
const OUT_OF_REACH: ReadonlySet<OutboundReason> = new Set([
  ...HOST_FAILED,
  'circuit_open',
  'no_connection_free',
  'deadline_exceeded',
  'still_failing',
  'token_unavailable',
])

/**
 * A call to another service that gave no usable answer. It is a refusal like any other of the guard: left uncaught, it
 * is answered with 503 and `Retry-After`, and only the log learns which host it was. Its message never holds a token,
 * a secret, a query string or a body.
 *
 * @example
 * ```ts
 * import { OutboundError, createOutbound } from '@latchkey/guard/outbound'
 *
 * const outbound = createOutbound({ caller: 'booking-service/2.1.0' })
 *
 * export async function isHealthy(): Promise<boolean> {
 *   try {
 *     return (await outbound.fetch('https://users.example.com/health')).ok
 *   } catch (error) {
 *     if (error instanceof OutboundError) return false
 *     throw error
 *   }
 * }
 * ```
 */
export class OutboundError extends GuardError {
  override readonly name = 'OutboundError'
  declare readonly reason: OutboundReason
  readonly host: string | undefined
  readonly upstreamStatus: number | undefined
  readonly retryAfterSeconds: number

  /**
   * @param reason - one of {@link OutboundReason}
   * @param debug - one sentence for the log
   * @param details - the host, its last status, and when to try again (seconds)
   */
  constructor(reason: OutboundReason, debug: string, details: OutboundErrorDetails = {}) {
    const retryAfterSeconds = Math.max(1, Math.ceil(details.retryAfterSeconds ?? 1))
    super({
      status: 503,
      code: 'SERVICE_UNAVAILABLE',
      reason,
      title: 'Temporarily unavailable',
      detail: 'Another service that this needs gave no answer. Try again shortly.',
      debug,
      headers: { 'Retry-After': String(retryAfterSeconds) },
      documentation: 'https://www.rfc-editor.org/rfc/rfc9110#section-15.6.4',
      cause: details.cause,
    })
    this.host = details.host
    this.upstreamStatus = details.upstreamStatus
    this.retryAfterSeconds = retryAfterSeconds
  }

  /** Nothing of the request can have reached the host. */
  get neverSent(): boolean {
    return NEVER_SENT.has(this.reason)
  }

  /** Counts against the host's circuit breaker. */
  get hostFailed(): boolean {
    return HOST_FAILED.has(this.reason)
  }

  /** A `fallback` may stand in for it. */
  get outOfReach(): boolean {
    return OUT_OF_REACH.has(this.reason)
  }
}
