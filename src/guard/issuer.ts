/**
 * One trusted issuer and its keys. Keys come from discovery (OpenID Connect Discovery 1.0 §4, RFC 8414 §3), from a
 * given address, or are handed in. They are refreshed ahead of need, by one request at a time, and not again too soon
 * after a success or a failure; when the issuer cannot be reached, the last good keys serve on, up to a limit. Only
 * addresses that follow from configuration are ever fetched: nothing a token says leads anywhere.
 */
import type { ClaimNames } from './caller.ts'
import { invalidToken, unavailable } from './errors.ts'
import type { RevocationFeedOptions } from './revocation/feed-options.ts'
import { VerificationKey } from './verification-key.ts'
import type { Algorithm, Jwk } from './verification-key.ts'

/** A set of keys as issuers publish it (RFC 7517 §5). */
export interface Jwks {
  readonly keys: readonly Jwk[]
}

/** How keys are kept. All times in seconds. */
export interface KeyCaching {
  /** Longest time between two refreshes; a shorter `max-age` of the issuer wins. @defaultValue 600 */
  readonly maxAgeSeconds?: number
  /** How long after that the last good keys serve on when refreshing fails. @defaultValue 86400 */
  readonly staleIfErrorSeconds?: number
  /** Least time between two fetches caused by keys nobody has heard of. @defaultValue 30 */
  readonly cooldownSeconds?: number
  /** For one refresh, everything included. @defaultValue 5 */
  readonly timeoutSeconds?: number
}

/** An issuer whose tokens are accepted. */
export interface TrustedIssuer {
  /** Compared with `iss` character by character (RFC 9068 §4). `https`, or `http` on this very machine. */
  readonly issuer: string
  /** Where the keys are, when the issuer has no discovery document. */
  readonly jwksUri?: string
  /** Keys handed in, or a function that is asked for them whenever they would be fetched. Then nothing is fetched. */
  readonly keys?: Jwks | (() => Jwks | Promise<Jwks>)
  /** Where this issuer keeps roles, groups and scopes. */
  readonly claims?: ClaimNames
  /**
   * Put before `sub` to make `subject.id`. With several issuers each must say its own (one may say `''`), because two
   * issuers' `alice` are two people.
   */
  readonly subjectPrefix?: string
  /** Accept `http` addresses of other machines, inside a network you trust. @defaultValue false */
  readonly allowHttp?: boolean
  readonly keyCaching?: KeyCaching
  /** How its revocations are known, where several issuers are trusted; with one, `GuardOptions.revocation` says it. */
  readonly revocation?: RevocationFeedOptions | false
}

/** The one function of `fetch` that is used. */
export type Fetch = (address: string, init: RequestInit) => Promise<Response>

/** What `guard.health()` tells of an issuer. */
export interface IssuerHealth {
  readonly issuer: string
  readonly keys: number
  /** Since the keys were last confirmed; `undefined` when there never were any. */
  readonly ageSeconds: number | undefined
  readonly lastError: string | undefined
}

const MAX_DOCUMENT_BYTES = 1_048_576
const MAX_KEYS = 100
/** Refresh when this much of the keys' life is over, so that nobody waits for it. */
const REFRESH_AT = 0.8
const MIN_MAX_AGE_SECONDS = 60

export class Issuer {
  readonly name: string
  readonly claimNames: ClaimNames
  readonly subjectPrefix: string
  /** How often keys were asked for over the network or from the function handed in. */
  fetches = 0

  readonly #settings: TrustedIssuer
  readonly #caching: Required<KeyCaching>
  readonly #fetch: Fetch
  readonly #now: () => number

  #keys: VerificationKey[] = []
  #jwksUri: string | undefined
  #inFlight: Promise<void> | undefined
  #failures = 0
  #lastError: string | undefined
  // Milliseconds, on the guard's clock. Zero: never.
  #loadedAt = 0
  #refreshAt = 0
  #expiresAt = 0
  #retryAt = 0
  #strangerFetchAt = Number.NEGATIVE_INFINITY

  /**
   * @throws TypeError when the settings cannot be trusted: a bad address, or keys of which none can verify
   */
  constructor(settings: TrustedIssuer, fetch: Fetch, now: () => number) {
    const allowHttp = settings.allowHttp === true
    if (typeof settings.keys !== 'object') assertAddress(settings.issuer, 'issuer', allowHttp)
    if (settings.jwksUri !== undefined) assertAddress(settings.jwksUri, 'jwksUri', allowHttp)
    this.name = settings.issuer
    this.claimNames = settings.claims ?? {}
    this.subjectPrefix = settings.subjectPrefix ?? ''
    this.#settings = settings
    this.#jwksUri = settings.jwksUri
    this.#fetch = fetch
    this.#now = now
    this.#caching = {
      maxAgeSeconds: seconds(settings.keyCaching?.maxAgeSeconds, 600, 'maxAgeSeconds'),
      staleIfErrorSeconds: seconds(settings.keyCaching?.staleIfErrorSeconds, 86_400, 'staleIfErrorSeconds'),
      cooldownSeconds: seconds(settings.keyCaching?.cooldownSeconds, 30, 'cooldownSeconds'),
      timeoutSeconds: seconds(settings.keyCaching?.timeoutSeconds, 5, 'timeoutSeconds'),
    }
    if (typeof settings.keys === 'object') {
      this.#keys = usableKeys(settings.keys)
      this.#loadedAt = now()
      this.#refreshAt = this.#expiresAt = Number.POSITIVE_INFINITY
    }
  }

  /** Begins to load the keys, so that the first request finds them. Does not wait, does not throw. */
  start(): void {
    if (this.#loadedAt === 0) void this.#refresh()
  }

  /**
   * Whether a token that one of the keys verified before is good without another look at its key. Sees to it that keys
   * are refreshed even where nothing but remembered tokens comes: else a withdrawn key would live as long as they do.
   */
  vouches(now: number): boolean {
    if (now < this.#refreshAt && now >= this.#loadedAt) return true
    // As for a new token: keys that ran out are waited for, unless an outage is known.
    if (!this.isUsable(now) || (now >= this.#expiresAt && this.#failures === 0)) return false
    void this.#refresh()
    return true
  }

  /** Whether its own documents say where things are; else that was said by configuration. */
  get isDiscovered(): boolean {
    return this.#settings.keys === undefined && this.#settings.jwksUri === undefined
  }

  /** Whether an address that its documents name may be `http` on another machine. */
  get allowsHttp(): boolean {
    // An issuer reached safely must not send us somewhere unsafe, for its keys or with our secrets.
    return this.#settings.allowHttp === true && this.name.startsWith('http:')
  }

  /** Whether the keys may still be relied on. */
  isUsable(now: number): boolean {
    return now < this.#expiresAt + this.#caching.staleIfErrorSeconds * 1000
  }

  /**
   * The key to verify a token with. Answers at once while the keys are fresh.
   *
   * @throws GuardError 401 when the issuer has no such key, 503 when that cannot be known
   */
  keyFor(kid: string | undefined, algorithm: Algorithm): VerificationKey | Promise<VerificationKey> {
    const now = this.#now()
    // A clock set back must not keep keys for longer than they were given.
    if (now < this.#refreshAt && now >= this.#loadedAt) {
      const key = this.#select(kid, algorithm)
      if (key !== undefined) return key
    }
    return this.#keyAfterRefresh(kid, algorithm, now)
  }

  /** Asks for the keys once more, because something by the issuer itself names one that nobody has heard of. */
  async reloadKeys(): Promise<void> {
    // One that is under way may be answered by a cache that does not know the key either.
    await this.#inFlight
    await this.#refresh(true)
  }

  /**
   * Its own description, wherever it is published.
   *
   * @param needed - an address that must be in there
   * @throws Error when there is none to be had
   */
  async discover(needed: string, signal: AbortSignal): Promise<Readonly<Record<string, unknown>>> {
    const { origin, pathname } = new URL(this.name)
    const path = pathname.replace(/\/$/, '')
    // OpenID Connect puts the well-known name after the issuer's path, RFC 8414 §3.1 before it.
    const places = [
      `${origin}${path}/.well-known/openid-configuration`,
      `${origin}/.well-known/oauth-authorization-server${path}`,
    ]
    let failure: unknown
    for (const place of places) {
      try {
        const { document } = await this.#get(place, signal)
        const metadata = document as Record<string, unknown>
        // RFC 8414 §3.3: a document that speaks for somebody else must not be used.
        if (metadata['issuer'] !== this.name) {
          throw new Error(`${place} speaks for ${JSON.stringify(metadata['issuer'])}, not ${this.name}`)
        }
        const address = metadata[needed]
        if (typeof address !== 'string') throw new Error(`${place} names no ${needed}`)
        assertAddress(address, needed, this.allowsHttp)
        return metadata
      } catch (error) {
        // The first place is the usual one, so its failure says most.
        failure ??= error
      }
    }
    throw failure
  }

  health(): IssuerHealth {
    return {
      issuer: this.name,
      keys: this.#keys.length,
      ageSeconds: this.#loadedAt === 0 ? undefined : Math.max(0, Math.round((this.#now() - this.#loadedAt) / 1000)),
      lastError: this.#lastError,
    }
  }

  async #keyAfterRefresh(kid: string | undefined, algorithm: Algorithm, now: number): Promise<VerificationKey> {
    if (this.#loadedAt === 0 || !this.isUsable(now)) {
      await this.#refresh()
      if (this.#loadedAt === 0 || !this.isUsable(this.#now())) throw this.#unreachable()
    } else if (now >= this.#expiresAt && this.#failures === 0) {
      // Nobody asked for so long that the keys ran out: a key may have been withdrawn meanwhile, so wait for the news.
      // While an outage is known, nobody waits: the last good keys serve, and the next attempt runs beside them.
      await this.#refresh()
    } else if (now >= this.#refreshAt || now < this.#loadedAt) {
      void this.#refresh()
    }
    const key = this.#select(kid, algorithm)
    if (key !== undefined) return key

    // A key nobody has heard of: new, or made up. Made-up ones must not become a flood at the issuer's door.
    if (this.#inFlight !== undefined) {
      await this.#inFlight
    } else if (this.#now() - this.#strangerFetchAt >= this.#caching.cooldownSeconds * 1000) {
      this.#strangerFetchAt = this.#now()
      await this.#refresh(true)
    }
    const news = this.#select(kid, algorithm)
    if (news !== undefined) return news
    if (this.#failures > 0) throw this.#unreachable()
    throw invalidToken('unknown_key', `${this.name} has no key for kid ${JSON.stringify(kid)} and ${algorithm}`)
  }

  /** By `kid`, or, for a token that names none, the only key there is for its algorithm. */
  #select(kid: string | undefined, algorithm: Algorithm): VerificationKey | undefined {
    let found: VerificationKey | undefined
    for (const key of this.#keys) {
      if ((kid !== undefined && key.kid !== kid) || !key.fits(algorithm)) continue
      if (kid !== undefined) return key
      if (found !== undefined) return undefined
      found = key
    }
    return found
  }

  #unreachable(): Error {
    const wait = this.#retryAt - this.#now()
    return unavailable('keys', wait / 1000, `no keys of ${this.name}: ${this.#lastError ?? 'not loaded yet'}`)
  }

  /**
   * One at a time, and not before a failure's pause is over. Never rejects: what went wrong is kept for `health`.
   *
   * @param pastCaches - what a cache in between has kept is known to be too old
   */
  #refresh(pastCaches = false): Promise<void> {
    if (this.#inFlight !== undefined) return this.#inFlight
    if (typeof this.#settings.keys === 'object') return Promise.resolve()
    if (this.#failures > 0 && this.#now() < this.#retryAt) return Promise.resolve()
    this.fetches += 1
    this.#inFlight = this.#load(pastCaches).then(
      ({ keys, maxAgeSeconds }) => {
        this.#adopt(keys)
        const now = this.#now()
        const maxAge = Math.min(Math.max(maxAgeSeconds, MIN_MAX_AGE_SECONDS), this.#caching.maxAgeSeconds) * 1000
        this.#loadedAt = now
        this.#refreshAt = now + maxAge * REFRESH_AT
        this.#expiresAt = now + maxAge
        this.#failures = 0
        this.#lastError = undefined
        this.#inFlight = undefined
      },
      (error: unknown) => {
        this.#failures += 1
        this.#lastError = error instanceof Error ? error.message : String(error)
        // 1 s, 2 s, 4 s … up to 30 s: a provider that starts a little late is found soon, a dead one is left in peace.
        this.#retryAt = this.#now() + Math.min(1000 * 2 ** (this.#failures - 1), 30_000)
        // The address may be what was wrong: look it up again next time.
        this.#jwksUri = this.#settings.jwksUri
        this.#inFlight = undefined
      },
    )
    return this.#inFlight
  }

  /** Keys that stay keep their identity, so that tokens they verified stay known; the others are withdrawn. */
  #adopt(fresh: VerificationKey[]): void {
    const before = new Map(this.#keys.map((key) => [identity(key), key]))
    this.#keys = fresh.map((key) => before.get(identity(key)) ?? key)
    const kept = new Set(this.#keys)
    for (const key of before.values()) key.withdrawn = !kept.has(key)
  }

  async #load(pastCaches: boolean): Promise<{ keys: VerificationKey[]; maxAgeSeconds: number }> {
    const signal = AbortSignal.timeout(this.#caching.timeoutSeconds * 1000)
    const { keys } = this.#settings
    if (typeof keys === 'function') {
      const jwks = await Promise.race([keys(), aborted(signal)])
      return { keys: usableKeys(jwks), maxAgeSeconds: this.#caching.maxAgeSeconds }
    }
    this.#jwksUri ??= String((await this.discover('jwks_uri', signal))['jwks_uri'])
    const { document, maxAgeSeconds } = await this.#get(this.#jwksUri, signal, pastCaches)
    return { keys: usableKeys(document), maxAgeSeconds: maxAgeSeconds ?? this.#caching.maxAgeSeconds }
  }

  async #get(
    address: string,
    signal: AbortSignal,
    pastCaches = false,
  ): Promise<{ document: object; maxAgeSeconds: number | undefined }> {
    const headers: Record<string, string> = { accept: 'application/json' }
    // RFC 9111 §5.2.1.4: not without asking the issuer itself.
    if (pastCaches) headers['cache-control'] = 'no-cache'
    // A redirect would lead to an address nobody configured.
    const request = this.#fetch(address, { signal, redirect: 'error', headers })
    const response = await Promise.race([request, aborted(signal)])
    if (response.status !== 200) throw new Error(`${address} answered ${response.status}`)
    const text = await Promise.race([readBounded(response, address, MAX_DOCUMENT_BYTES), aborted(signal)])
    const document: unknown = JSON.parse(text)
    if (typeof document !== 'object' || document === null) throw new Error(`${address} is no JSON object`)
    return { document, maxAgeSeconds: freshness(response.headers) }
  }
}

function identity(key: VerificationKey): string {
  return `${key.thumbprint} ${key.kid ?? ''}`
}

/** @throws Error when there is not one key to verify with: that is an accident of the issuer's, not a withdrawal. */
function usableKeys(jwks: object): VerificationKey[] {
  const list: unknown = (jwks as { keys?: unknown }).keys
  if (!Array.isArray(list)) throw new TypeError('A JWKS is an object with a list of keys (RFC 7517 §5)')
  if (list.length > MAX_KEYS) throw new TypeError(`A JWKS of ${list.length} keys is too large`)
  const keys: VerificationKey[] = []
  const unusable: string[] = []
  for (const jwk of list) {
    try {
      keys.push(new VerificationKey(jwk as Jwk))
    } catch (error) {
      // RFC 7517 §5: keys that are not understood are passed over.
      unusable.push(error instanceof Error ? error.message : String(error))
    }
  }
  if (keys.length === 0) throw new TypeError(`A JWKS without a key to verify with: ${unusable.join(', ') || 'empty'}`)
  return keys
}

/** RFC 9111 §4.2: how long an answer stays fresh from now on. */
function freshness(headers: Headers): number | undefined {
  const control = headers.get('cache-control') ?? ''
  if (/\bno-(?:store|cache)\b/i.test(control)) return 0
  const maxAge = /\bmax-age\s*=\s*"?(\d{1,9})/i.exec(control)?.[1]
  if (maxAge === undefined) return undefined
  const age = Number(headers.get('age') ?? 0)
  return Number(maxAge) - (Number.isFinite(age) && age > 0 ? age : 0)
}

/**
 * The text of an answer, if it is no longer than that.
 *
 * @throws Error when it is
 */
export async function readBounded(response: Response, address: string, maxBytes: number): Promise<string> {
  const chunks: Uint8Array[] = []
  let size = 0
  for await (const chunk of response.body ?? []) {
    size += chunk.length
    // Leaving the loop cancels the body.
    if (size > maxBytes) throw new Error(`${address} is larger than ${maxBytes} bytes`)
    chunks.push(chunk)
  }
  return new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks))
}

/** Rejects when the signal is given: for what does not listen to it itself. */
export function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    signal.addEventListener('abort', () => reject(new Error('timed out')), { once: true })
  })
}

const LOOPBACK = new Set(['localhost', '127.0.0.1', '[::1]'])

/**
 * Where keys come from and secrets go: `https`, or `http` on this very machine.
 *
 * @throws TypeError naming `what` it is
 */
export function assertAddress(address: string, what: string, allowHttp: boolean): void {
  if (!URL.canParse(address)) throw new TypeError(`${what} ${JSON.stringify(address)} is not an address`)
  const { protocol, hostname, search, hash, username } = new URL(address)
  if (protocol !== 'https:' && !(protocol === 'http:' && (allowHttp || LOOPBACK.has(hostname)))) {
    throw new TypeError(`${what} ${address} must be https (or say allowHttp: true inside a network you trust)`)
  }
  if (username !== '' || hash !== '' || (what === 'issuer' && search !== '')) {
    throw new TypeError(`${what} ${address} must have no user, query or fragment (RFC 8414 §2)`)
  }
}

function seconds(given: number | undefined, otherwise: number, name: string): number {
  if (given === undefined) return otherwise
  if (!Number.isFinite(given) || given < 0) throw new TypeError(`${name} is a number of seconds, not ${given}`)
  return given
}
