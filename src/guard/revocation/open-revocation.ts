/**
 * How this guard knows of revocations: by a check that was handed in, by the issuers' feeds, or not at all. Decided
 * once, from the options; `guard.ts` asks what came of it and need not know which.
 */
import type { AccessTokenClaims } from '../caller.ts'
import type { Fetch, Issuer, TrustedIssuer } from '../issuer.ts'
import type { Algorithm } from '../verification-key.ts'
import { RevocationFeed } from './feed.ts'
import type { RevocationFeedOptions } from './feed-options.ts'
import type { CheckedToken, RevocationCheck, RevocationVerdict } from './revocation-check.ts'
import { UnusedFeed } from './unused-feed.ts'

/** What `GuardOptions.revocation` may be. */
export type RevocationOption = RevocationCheck | RevocationFeedOptions | false

/** What is open for the guard's life. */
export interface OpenRevocation {
  /** Asked about every token that is otherwise good; `undefined` when there is nothing to ask. */
  readonly check: RevocationCheck | undefined
  readonly standing: 'ok' | 'degraded' | 'unavailable'
  start(): void
  health(): Readonly<Record<string, unknown>> | undefined
  close(): Promise<void>
}

/** What the feeds are made with; see `RevocationFeedParts`. */
export interface RevocationParts {
  readonly fetch: Fetch
  readonly now: () => number
  readonly clock: () => number
  readonly algorithms: ReadonlySet<Algorithm>
  readonly maxLifetimeSeconds: number
}

/**
 * @param issuers - those the guard trusts, with their settings
 * @throws TypeError when the options cannot be meant
 */
export function openRevocation(
  option: RevocationOption | undefined,
  issuers: readonly { readonly issuer: Issuer; readonly settings: TrustedIssuer }[],
  parts: RevocationParts,
): OpenRevocation {
  const own = issuers.some(({ settings }) => settings.revocation !== undefined)
  if (option !== undefined && own) throw new TypeError('revocation is said for the guard or for its issuers, not both')
  if (option !== undefined && option !== false && 'check' in option) return handedIn(option)
  if (option !== undefined && option !== false && issuers.length > 1) {
    throw new TypeError(
      'With several issuers each says its own revocation: credentials of one are no business of another',
    )
  }
  const feeds = new Map<string, RevocationFeed>()
  const unused: UnusedFeed[] = []
  for (const { issuer, settings } of issuers) {
    const wanted = settings.revocation ?? option
    if (wanted === false) continue
    if (wanted !== undefined) feeds.set(issuer.name, new RevocationFeed(wanted, { issuer, ...parts }))
    else if (issuer.isDiscovered) unused.push(new UnusedFeed(issuer, parts.fetch))
  }
  return new IssuersFeeds(issuers.length, feeds, unused)
}

function handedIn(check: RevocationCheck): OpenRevocation {
  return {
    check,
    standing: 'ok',
    start: () => undefined,
    health: () => check.health?.(),
    close: async () => check.close?.(),
  }
}

class IssuersFeeds implements OpenRevocation {
  readonly check: RevocationCheck | undefined
  readonly #issuerCount: number
  readonly #feeds: readonly RevocationFeed[]
  readonly #unused: readonly UnusedFeed[]

  constructor(issuerCount: number, feeds: ReadonlyMap<string, RevocationFeed>, unused: readonly UnusedFeed[]) {
    this.#issuerCount = issuerCount
    this.#feeds = [...feeds.values()]
    this.#unused = unused
    // The one feed of the only issuer need not ask whose token it is.
    this.check = feeds.size === 0 ? undefined : issuerCount === 1 ? this.#feeds[0] : new ByIssuer(feeds)
  }

  get standing(): 'ok' | 'degraded' | 'unavailable' {
    const all = this.#feeds.map((feed) => feed.standing)
    // One issuer's callers who cannot be let in do not keep those of another out.
    if (all.length > 0 && all.every((one) => one === 'unavailable')) return 'unavailable'
    return all.every((one) => one === 'ok') ? 'ok' : 'degraded'
  }

  start(): void {
    for (const feed of [...this.#feeds, ...this.#unused]) feed.start()
  }

  health(): Readonly<Record<string, unknown>> | undefined {
    const off = { status: 'off', reason: 'no credentials' }
    const unheard = this.#unused.filter(({ isPublished }) => isPublished)
    if (this.#issuerCount === 1) return this.#feeds[0]?.health() ?? (unheard.length > 0 ? off : undefined)
    const feeds = [...this.#feeds.map((one) => one.health()), ...unheard.map(({ issuer }) => ({ issuer, ...off }))]
    return feeds.length > 0 ? { feeds } : undefined
  }

  async close(): Promise<void> {
    for (const feed of this.#unused) feed.close()
    await Promise.all(this.#feeds.map((feed) => feed.close()))
  }
}

/** Each token is a matter of its own issuer's feed. */
class ByIssuer implements RevocationCheck {
  readonly #feeds: ReadonlyMap<string, RevocationFeed>

  constructor(feeds: ReadonlyMap<string, RevocationFeed>) {
    this.#feeds = feeds
  }

  check(claims: AccessTokenClaims, token: CheckedToken): RevocationVerdict | Promise<RevocationVerdict> {
    return this.#feeds.get(claims.iss)?.check(claims, token) ?? 'active'
  }

  version(): number | undefined {
    // Each only ever grows, so no two states have the same sum.
    let sum = 0
    for (const feed of this.#feeds.values()) {
      const version = feed.version()
      if (version === undefined) return undefined
      sum += version
    }
    return sum
  }

  metrics(): Readonly<Record<string, number>> {
    const sums: Record<string, number> = {}
    for (const feed of this.#feeds.values()) {
      for (const [name, count] of Object.entries(feed.metrics())) sums[name] = (sums[name] ?? 0) + count
    }
    return sums
  }
}
