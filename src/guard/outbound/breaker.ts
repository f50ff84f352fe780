import { CircuitState, ConsecutiveBreaker, circuitBreaker, handleWhen } from 'cockatiel'
import type { CircuitBreakerPolicy, FailureReason, IBackoff } from 'cockatiel'
import { OutboundError } from './outbound-error.ts'

/** The three states of a circuit breaker, written as they are logged. */
export type BreakerState = 'closed' | 'open' | 'half_open'

/** Checked settings of one breaker. */
export interface BreakerSettings {
  /** Failures in a row that open the circuit. */
  failures: number
  /** Seconds the circuit stays open before a probe is let through. */
  recoverySeconds: number
  /** Successful probes, one after the other, that close it again. */
  successes: number
}

/** A probe that ended without telling anything about the host, because its caller gave up. */
class AbandonedProbe extends Error {}

/**
 * One host's circuit breaker: cockatiel's state machine, with two things settled that it leaves open. While one probe
 * is under way everybody else is refused at once (cockatiel would let them wait for its outcome, which may take as
 * long as the probe's timeout), and a probe that its caller cancelled counts neither way (cockatiel would take it as
 * a success and close the circuit). Time comes from the clock handed in.
 */
export class Breaker {
  readonly #policy: CircuitBreakerPolicy
  readonly #now: () => number
  readonly #recoveryMs: number
  #probing = false
  #opened = 0
  #probeAllowedAt = 0

  constructor(settings: BreakerSettings, now: () => number) {
    this.#now = now
    this.#recoveryMs = settings.recoverySeconds * 1000
    const counted = handleWhen((error) => error instanceof AbandonedProbe || isHostFailure(error)).orWhenResult(
      (answer) => answer instanceof Response && answer.status >= 500,
    )
    this.#policy = circuitBreaker(counted, {
      breaker: new ConsecutiveBreaker(settings.failures),
      halfOpenAfter: { next: ({ result }) => this.#pause(result) },
      halfOpenSampling: { calls: settings.successes, threshold: 0 },
    })
    this.#policy.onBreak(() => {
      this.#opened += 1
    })
  }

  get state(): BreakerState {
    if (this.#policy.state === CircuitState.Closed) return 'closed'
    return this.#policy.state === CircuitState.HalfOpen ? 'half_open' : 'open'
  }

  /** How often the circuit has opened since the start. */
  get opened(): number {
    return this.#opened
  }

  /** Milliseconds until a call may be let through; 0 when it may now. */
  refusesForMs(): number {
    if (this.state === 'open') return Math.max(0, this.#probeAllowedAt - this.#now())
    return this.#probing ? 1000 : 0
  }

  /**
   * Runs one attempt, or refuses it.
   *
   * @param host - origin, for the message
   * @param attempt - sends the request once; a `Response` from 500 up and a host failure count against the host
   * @throws OutboundError `circuit_open`, or whatever the attempt throws
   */
  async run(host: string, attempt: () => Promise<Response>): Promise<Response> {
    const refusedForMs = this.refusesForMs()
    if (refusedForMs > 0) {
      const retryAfterSeconds = refusedForMs / 1000
      throw new OutboundError('circuit_open', `The circuit to ${host} is open`, { host, retryAfterSeconds })
    }
    if (this.state === 'closed') return this.#policy.execute(attempt)

    this.#probing = true
    try {
      return await this.#policy.execute(() =>
        attempt().catch((error: unknown) => {
          throw isHostFailure(error) ? error : new AbandonedProbe('The probe was given up', { cause: error })
        }),
      )
    } catch (error) {
      throw error instanceof AbandonedProbe ? error.cause : error
    } finally {
      this.#probing = false
    }
  }

  /**
   * When the circuit opens: from when on a probe may be let through. cockatiel is told that the pause is over already,
   * because it reads a clock of its own, and is not asked before ours says so.
   */
  #pause(reason: FailureReason<unknown>): IBackoff<{ result: FailureReason<unknown> }> {
    const abandoned = 'error' in reason && reason.error instanceof AbandonedProbe
    this.#probeAllowedAt = this.#now() + (abandoned ? 0 : this.#recoveryMs)
    return { duration: -Infinity, next: ({ result }) => this.#pause(result) }
  }
}

function isHostFailure(error: unknown): boolean {
  return error instanceof OutboundError && error.hostFailed
}
