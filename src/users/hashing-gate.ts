/**
 * Lets only so many password hashes run at once. Each takes a thread of the pool that signing, file and name look-ups
 * share, and tens of MiB: without a gate, a few logins make every token wait, and a flood of them exhausts the memory.
 * What does not fit in the queue is refused at once, so that the answer is a quick 503 instead of a slow timeout.
 */

export interface HashingGateSettings {
  /** how many hashes run at once */
  readonly concurrency: number
  /** how many more may wait */
  readonly queue: number
}

export interface HashingGateStats {
  readonly running: number
  readonly waiting: number
  /** hashes that ended, well or not, since the gate was opened */
  readonly completed: number
  /** hashes that were refused because the queue was full */
  readonly refused: number
  /** how long the hashes begun so far waited for their turn, together, in milliseconds */
  readonly waitedMs: number
  /** the longest that one of them waited, in milliseconds */
  readonly longestWaitMs: number
  /** how long one hash takes at present, in milliseconds: an average in which recent ones count most; 0 before the first */
  readonly recentHashMs: number
}

export interface HashingGate {
  /**
   * Runs `work` when it is its turn: first come, first served.
   * @throws HashingOverloaded at once when the queue is full; `work` is then never called
   */
  run<T>(work: () => Promise<T>): Promise<T>
  stats(): HashingGateStats
}

/** Too many passwords are being checked already: answer 503 with Retry-After (RFC 9110 §15.6.4). */
export class HashingOverloaded extends Error {
  override name = 'HashingOverloaded'
  /** when the queue should have room again, in whole seconds, at least 1 */
  readonly retryAfterSeconds: number
  constructor(retryAfterSeconds: number) {
    super('Too many passwords are being checked at the moment')
    this.retryAfterSeconds = retryAfterSeconds
  }
}

/** The weight of the newest hash in the running average. */
const newestWeight = 0.2
const longestRetryAfterSeconds = 60

export function openHashingGate({ concurrency, queue }: HashingGateSettings): HashingGate {
  const turns: (() => void)[] = []
  let running = 0
  let completed = 0
  let refused = 0
  let waitedMs = 0
  let longestWaitMs = 0
  let recentHashMs = 0

  async function takeTurn(): Promise<void> {
    if (running < concurrency) {
      running += 1
      return
    }
    if (turns.length >= queue) {
      refused += 1
      const queueMs = ((turns.length + 1) / concurrency) * recentHashMs
      throw new HashingOverloaded(Math.min(longestRetryAfterSeconds, Math.max(1, Math.ceil(queueMs / 1_000))))
    }
    const arrivedAt = performance.now()
    // Whoever ends hands its place over without giving it back, so that nobody can slip in between.
    await new Promise<void>((resolve) => turns.push(resolve))
    const waited = performance.now() - arrivedAt
    waitedMs += waited
    longestWaitMs = Math.max(longestWaitMs, waited)
  }

  function endTurn(): void {
    const next = turns.shift()
    if (next === undefined) running -= 1
    else next()
  }

  return {
    async run(work) {
      await takeTurn()
      const startedAt = performance.now()
      try {
        return await work()
      } finally {
        const took = performance.now() - startedAt
        recentHashMs = recentHashMs === 0 ? took : recentHashMs + newestWeight * (took - recentHashMs)
        completed += 1
        endTurn()
      }
    },
    stats: () => ({ running, waiting: turns.length, completed, refused, waitedMs, longestWaitMs, recentHashMs }),
  }
}
