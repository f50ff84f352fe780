/**
 * Requests to the issuer on the feed's behalf: each has a time limit and a size limit, is read to its end, follows no
 * redirect, and all of them can be ended together.
 */
import type { Fetch } from '../issuer.ts'
import { aborted, readBounded } from '../issuer.ts'

/** A complete answer. */
export interface Answer {
  readonly response: Response
  /** When it began to arrive, on the clock given: what it says was true then. */
  readonly at: number
}

/** No answer in time. */
export class TimeoutError extends Error {
  override readonly name = 'TimeoutError'
}

const TIMEOUT_MS = 10_000
const MAX_BYTES = 262_144

export class Exchanges {
  readonly #fetch: Fetch
  readonly #clock: () => number
  readonly #inFlight = new Set<AbortController>()
  #closed = false

  /** @param clock - milliseconds, on a clock that only goes forward */
  constructor(fetch: Fetch, clock: () => number) {
    this.#fetch = fetch
    this.#clock = clock
  }

  /**
   * One request and its answer, whatever its status.
   *
   * @throws TimeoutError when it takes longer than that; whatever else was in the way of an answer
   */
  send(address: string, init: RequestInit, timeoutMs?: number, maxBytes: number = MAX_BYTES): Promise<Answer> {
    return this.limited(async (signal) => {
      // A redirect would lead to an address nobody configured, with our token.
      const request = this.#fetch(address, { ...init, signal, redirect: 'error' })
      const response = await Promise.race([request, aborted(signal)])
      const at = this.#clock()
      const body = await Promise.race([readBounded(response, address, maxBytes), aborted(signal)])
      const { status, headers } = response
      return { response: new Response(body === '' ? null : body, { status, headers }), at }
    }, timeoutMs)
  }

  /** @throws TimeoutError after that time */
  async limited<T>(work: (signal: AbortSignal) => Promise<T>, timeoutMs: number = TIMEOUT_MS): Promise<T> {
    if (this.#closed) throw new Error('closed')
    const controller = new AbortController()
    let isLate = false
    const timer = setTimeout(() => {
      isLate = true
      controller.abort()
    }, timeoutMs).unref()
    this.#inFlight.add(controller)
    try {
      return await work(controller.signal)
    } catch (error) {
      throw isLate ? new TimeoutError(`no answer within ${timeoutMs} ms`) : error
    } finally {
      clearTimeout(timer)
      this.#inFlight.delete(controller)
    }
  }

  /** Ends what is under way. */
  abort(): void {
    for (const controller of this.#inFlight) controller.abort()
  }

  /** The same, for good. */
  close(): void {
    this.#closed = true
    this.abort()
  }
}
