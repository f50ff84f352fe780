/**
 * An issuer that publishes security events, and a guard that has no credentials for them: everything works, except that
 * a revoked token is good until it expires. Somebody should know, so this finds out, says so once, and shows in
 * `guard.health()`.
 */
import type { Fetch, Issuer } from '../issuer.ts'
import { Exchanges } from './exchanges.ts'
import { findConfiguration } from './transmitter.ts'

const FIRST_RETRY_MS = 5000
const MAX_RETRY_MS = 300_000

/** Issuers of which this process has been told. */
const mentioned = new Set<string>()

export class UnusedFeed {
  /** Whether the issuer publishes security events; `undefined` while that is not known. */
  isPublished: boolean | undefined
  readonly #issuer: Issuer
  readonly #exchanges: Exchanges
  #timer: NodeJS.Timeout | undefined
  #isClosed = false

  constructor(issuer: Issuer, fetch: Fetch) {
    this.#issuer = issuer
    this.#exchanges = new Exchanges(fetch, () => performance.now())
  }

  /** Whose it is. */
  get issuer(): string {
    return this.#issuer.name
  }

  /** Begins to look. Does not wait, does not throw. */
  start(): void {
    void this.#look(FIRST_RETRY_MS)
  }

  close(): void {
    this.#isClosed = true
    clearTimeout(this.#timer)
    this.#exchanges.close()
  }

  async #look(retryMs: number): Promise<void> {
    try {
      const configuration = await findConfiguration(this.#exchanges, this.#issuer)
      this.isPublished = typeof configuration?.['configuration_endpoint'] === 'string'
    } catch {
      // Not an answer either way. Nothing depends on it but a warning, so there is no hurry.
      if (this.#isClosed) return
      this.#timer = setTimeout(() => void this.#look(Math.min(2 * retryMs, MAX_RETRY_MS)), retryMs).unref()
      return
    }
    const { name } = this.#issuer
    if (!this.isPublished || mentioned.has(name)) return
    mentioned.add(name)
    process.emitWarning(
      `${name} publishes revocations, but this guard has no credentials for them: a revoked token is good until it ` +
        'expires. Give revocation: { clientId, clientSecret }, or say revocation: false.',
      { code: 'GUARD_REVOCATION_OFF' },
    )
  }
}
