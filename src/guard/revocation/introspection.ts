/**
 * Asking the issuer about one token (RFC 7662), for when the feed is not fresh: what keeps a service going, at a price,
 * until it is. An answer serves for a few seconds, the same question is not asked twice at a time, and a flood of
 * requests becomes no flood at the issuer: beyond a number of questions, and for a moment after several that failed, the
 * answer is that it cannot be known.
 */
import { hash } from 'node:crypto'
import type { RevocationVerdict } from './revocation-check.ts'

const FRESH_MS = 5000
const COOLDOWN_MS = 1000
/** This many failures in a row are no accident. */
const MAX_FAILURES = 3
const MAX_REMEMBERED = 10_000
const MAX_AT_ONCE = 16
const MAX_WAITING = 256

interface Remembered {
  readonly verdict: RevocationVerdict
  readonly until: number
}

export class Introspection {
  asked = 0
  failed = 0
  lastError: string | undefined
  readonly #ask: (token: string) => Promise<boolean>
  readonly #clock: () => number
  // Two generations: when the young one is full it becomes the old one, and what was there is forgotten.
  #young = new Map<string, Remembered>()
  #old = new Map<string, Remembered>()
  readonly #pending = new Map<string, Promise<RevocationVerdict>>()
  readonly #waiting: (() => void)[] = []
  #atOnce = 0
  #failuresInRow = 0
  #failedAt = Number.NEGATIVE_INFINITY

  /**
   * @param ask - whether the issuer calls this token active
   * @param clock - milliseconds, on a clock that only goes forward
   */
  constructor(ask: (token: string) => Promise<boolean>, clock: () => number) {
    this.#ask = ask
    this.#clock = clock
  }

  /** Never rejects. */
  verdict(token: string): RevocationVerdict | Promise<RevocationVerdict> {
    // Not the token itself: what is kept here may end in a heap dump.
    const key = hash('sha256', token, 'base64')
    const known = this.#young.get(key) ?? this.#old.get(key)
    if (known !== undefined && this.#clock() < known.until) return known.verdict
    const pending = this.#pending.get(key)
    if (pending !== undefined) return pending
    if (this.#isCoolingDown() || this.#waiting.length >= MAX_WAITING) return 'unknown'
    const asking = this.#look(key, token).finally(() => this.#pending.delete(key))
    this.#pending.set(key, asking)
    return asking
  }

  async #look(key: string, token: string): Promise<RevocationVerdict> {
    if (this.#atOnce >= MAX_AT_ONCE) await new Promise<void>((resolve) => this.#waiting.push(resolve))
    // Those who waited for one that failed do not ask in their turn: the issuer would be waited for again and again.
    if (this.#isCoolingDown()) {
      this.#waiting.shift()?.()
      return 'unknown'
    }
    this.#atOnce += 1
    this.asked += 1
    try {
      const verdict = (await this.#ask(token)) ? 'active' : 'revoked'
      this.lastError = undefined
      this.#failuresInRow = 0
      this.#remember(key, { verdict, until: this.#clock() + FRESH_MS })
      return verdict
    } catch (error) {
      this.failed += 1
      this.#failuresInRow += 1
      this.lastError = error instanceof Error ? error.message : String(error)
      this.#failedAt = this.#clock()
      return 'unknown'
    } finally {
      this.#atOnce -= 1
      this.#waiting.shift()?.()
    }
  }

  #isCoolingDown(): boolean {
    return this.#failuresInRow >= MAX_FAILURES && this.#clock() - this.#failedAt < COOLDOWN_MS
  }

  #remember(key: string, answer: Remembered): void {
    if (this.#young.size >= MAX_REMEMBERED / 2) {
      this.#old = this.#young
      this.#young = new Map()
    }
    this.#young.set(key, answer)
  }
}
