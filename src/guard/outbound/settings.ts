import type { BreakerSettings } from './breaker.ts'
import type { OutboundReason } from './outbound-error.ts'
import type { SlotSettings } from './connection-slots.ts'

/** One line for each attempt, in the names a log is searched by. */
export interface AttemptLog {
  /** The same for all attempts of a call and for all services the request passes through. */
  readonly request_id: string
  /** Origin of the host that is called. */
  readonly service: string
  /** Path, without the query. */
  readonly endpoint: string
  /** 0 for the first. */
  readonly attempt: number
  /** Milliseconds, or null when nothing was sent. */
  readonly duration_ms: number | null
  /** `success` is any answer below 400; `not_sendable` is a request that breaks a rule of `fetch` itself. */
  readonly status: OutboundReason | 'success' | 'cancelled' | 'not_sendable' | `http_${number}`
  /** After the attempt. */
  readonly circuit_breaker_state: 'closed' | 'open' | 'half_open'
}

/** How calls to other services behave. Everything has a default; times are milliseconds unless the name says otherwise. */
export interface OutboundOptions {
  /** `User-Agent` of every call, such as `booking-service/2.1.0` (RFC 9110 §10.1.5). */
  readonly caller?: string
  /** To a connection, TLS included. @defaultValue 3000 */
  readonly connectTimeoutMs?: number
  /** One attempt, from its start to the last byte of the answer. Each retry gets 2 s less … @defaultValue 10000 */
  readonly readTimeoutMs?: number
  /** … down to this. @defaultValue 5000 */
  readonly retryReadTimeoutMs?: number
  /** The whole call: waiting, all attempts and the pauses between them. @defaultValue 30000 */
  readonly totalTimeoutMs?: number
  /** Attempts after the first, 0 to 10. @defaultValue 3 */
  readonly retries?: number
  /** Upper bound of the pause before the first retry; doubles for each. @defaultValue 1000 */
  readonly backoffMs?: number
  /** Upper bound of any pause. @defaultValue 8000 */
  readonly maxBackoffMs?: number
  readonly breaker?: {
    /** Failures in a row that open the circuit to a host, 3 to 10. @defaultValue 5 */
    readonly failures?: number
    /** How long it stays open before one probe is let through, 30 to 300. @defaultValue 60 */
    readonly recoverySeconds?: number
    /** Successful probes that close it again, 1 to 3. @defaultValue 1 */
    readonly successes?: number
  }
  /** Calls to one host at a time, 1 to 1000. @defaultValue 20 */
  readonly connectionsPerHost?: number
  /** Calls that may wait for one of them, 0 to 10000. @defaultValue 100 */
  readonly maxWaiting?: number
  /** How long a call waits for one. @defaultValue 1000 */
  readonly maxWaitMs?: number
  /** Largest answer taken, decoded, in bytes. @defaultValue 10 MiB */
  readonly maxResponseBytes?: number
  /** Hosts remembered at a time; an idle healthy one makes room. @defaultValue 256 */
  readonly maxHosts?: number
  /** Called once for each attempt. */
  readonly log?: (entry: AttemptLog) => void
  /** Milliseconds since 1970. Unless told, the process's monotonic clock: a corrected system clock ends no deadline. */
  readonly now?: () => number
  /** From 0 to 1. @defaultValue `Math.random` */
  readonly random?: () => number
  /** The pause before a retry. Rejects with the signal's reason. @defaultValue a timer */
  readonly sleep?: (ms: number, signal: AbortSignal | undefined) => Promise<void>
}

/** The same with the defaults filled in and the bounds checked. */
export interface OutboundSettings extends SlotSettings {
  readonly connectTimeoutMs: number
  readonly readTimeoutMs: number
  readonly retryReadTimeoutMs: number
  readonly totalTimeoutMs: number
  readonly retries: number
  readonly backoffMs: number
  readonly maxBackoffMs: number
  readonly maxResponseBytes: number
  readonly maxHosts: number
  readonly breaker: BreakerSettings
}

const LONGEST_TIMER_MS = 2 ** 31 - 1

/** @throws RangeError naming every value that is out of bounds */
export function settingsOf(options: OutboundOptions): OutboundSettings {
  const wrong: string[] = []
  const whole = (name: string, value: number | undefined, preset: number, min: number, max: number): number => {
    const chosen = value ?? preset
    if (!Number.isSafeInteger(chosen) || chosen < min || chosen > max) {
      wrong.push(`${name} must be a whole number from ${min} to ${max}, not ${chosen}`)
    }
    return chosen
  }
  const settings: OutboundSettings = {
    connectTimeoutMs: whole('connectTimeoutMs', options.connectTimeoutMs, 3000, 1, LONGEST_TIMER_MS),
    readTimeoutMs: whole('readTimeoutMs', options.readTimeoutMs, 10_000, 1, LONGEST_TIMER_MS),
    retryReadTimeoutMs: whole('retryReadTimeoutMs', options.retryReadTimeoutMs, 5000, 1, LONGEST_TIMER_MS),
    totalTimeoutMs: whole('totalTimeoutMs', options.totalTimeoutMs, 30_000, 1, LONGEST_TIMER_MS),
    retries: whole('retries', options.retries, 3, 0, 10),
    backoffMs: whole('backoffMs', options.backoffMs, 1000, 0, LONGEST_TIMER_MS),
    maxBackoffMs: whole('maxBackoffMs', options.maxBackoffMs, 8000, 0, LONGEST_TIMER_MS),
    connections: whole('connectionsPerHost', options.connectionsPerHost, 20, 1, 1000),
    maxWaiting: whole('maxWaiting', options.maxWaiting, 100, 0, 10_000),
    maxWaitMs: whole('maxWaitMs', options.maxWaitMs, 1000, 0, LONGEST_TIMER_MS),
    maxResponseBytes: whole('maxResponseBytes', options.maxResponseBytes, 10 * 2 ** 20, 1, 2 ** 31),
    maxHosts: whole('maxHosts', options.maxHosts, 256, 1, 100_000),
    breaker: {
      failures: whole('breaker.failures', options.breaker?.failures, 5, 3, 10),
      recoverySeconds: whole('breaker.recoverySeconds', options.breaker?.recoverySeconds, 60, 30, 300),
      successes: whole('breaker.successes', options.breaker?.successes, 1, 1, 3),
    },
  }
  if (wrong.length > 0) throw new RangeError(wrong.join('; '))
  return settings
}
