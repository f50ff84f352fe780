import { OutboundError } from './outbound-error.ts'

/** Bounds on the calls one host may have at a time. */
export interface SlotSettings {
  /** Calls under way at once, each on its own connection. */
  connections: number
  /** Calls that may wait for a free connection. */
  maxWaiting: number
  /** Milliseconds a call waits for one. */
  maxWaitMs: number
}

/**
 * Connections to one host, handed out in the order of asking. A pool alone would let any number of calls wait for any
 * time, which turns one slow host into our own outage.
 */
export class ConnectionSlots {
  readonly #settings: SlotSettings
  readonly #waiting = new Set<() => void>()
  #taken = 0

  constructor(settings: SlotSettings) {
    this.#settings = settings
  }

  get taken(): number {
    return this.#taken
  }

  get waiting(): number {
    return this.#waiting.size
  }

  /**
   * Takes a slot, waiting for at most `maxWaitMs` or the time left, whichever is shorter. Every success is paired with
   * one {@link release}.
   *
   * @param host - origin, for the message
   * @param remainingMs - milliseconds left to the whole call
   * @param signal - the caller's own cancellation
   * @throws OutboundError `no_connection_free`, or the signal's reason
   */
  async take(host: string, remainingMs: number, signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted()
    if (this.#taken < this.#settings.connections) {
      this.#taken += 1
      return
    }
    if (this.#waiting.size >= this.#settings.maxWaiting) {
      throw new OutboundError('no_connection_free', `Too many calls wait for ${host}`, { host, retryAfterSeconds: 1 })
    }
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const cancel = () => reject(signal?.reason)
    const timer = setTimeout(
      () =>
        reject(
          new OutboundError('no_connection_free', `No connection to ${host} came free`, { host, retryAfterSeconds: 1 }),
        ),
      Math.min(this.#settings.maxWaitMs, remainingMs),
    )
    signal?.addEventListener('abort', cancel, { once: true })
    this.#waiting.add(resolve)
    try {
      await promise
    } finally {
      clearTimeout(timer)
      signal?.removeEventListener('abort', cancel)
      this.#waiting.delete(resolve)
    }
  }

  /** Gives the slot to whoever has waited longest, or back. */
  release(): void {
    const [next] = this.#waiting
    if (next === undefined) {
      this.#taken -= 1
      return
    }
    this.#waiting.delete(next)
    next()
  }
}
