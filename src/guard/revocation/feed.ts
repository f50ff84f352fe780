/**
 * The receiver of an issuer's security events: how a guard knows, without a call per request, which tokens are dead.
 *
 * The flow: a stream of its own is opened (`transmitter.ts`) and polled for as long as the guard lives, each poll
 * waiting at the issuer for news. What comes is verified (`security-event-token.ts`), put into the table
 * (`revocation-table.ts`), and acknowledged with the next poll. A new stream first brings all that is still revoked;
 * a verification event, asked for with a random state, comes behind it, and when it arrives the guard has caught up.
 *
 * How fresh the table is, is the time since the last answer that left nothing behind, on this process's own clock: no
 * two clocks are ever compared. Older than `maxStaleness`, or before the first catching up, `onStale` decides.
 *
 * That nothing comes proves nothing: somebody may have paused the stream. So a verification event is asked for again
 * and again, and answers count for as long as the last one that came is recent. A stream that is silent where it should
 * speak is given up for another, and so is one that was stopped or narrowed, of which the transmitter tells. What came
 * and could not be verified, or found no room, is owed: as long as it is, no answer counts.
 */
import { randomUUID } from 'node:crypto'
import { setImmediate as immediate } from 'node:timers/promises'
import type { AccessTokenClaims } from '../caller.ts'
import { GuardError } from '../errors.ts'
import type { Fetch, Issuer } from '../issuer.ts'
import { assertAddress } from '../issuer.ts'
import type { Algorithm, VerificationKey } from '../verification-key.ts'
import { TimeoutError } from './exchanges.ts'
import { durationSeconds } from './feed-options.ts'
import type { RevocationFeedHealth, RevocationFeedOptions } from './feed-options.ts'
import { Introspection } from './introspection.ts'
import type { CheckedToken, RevocationCheck, RevocationVerdict } from './revocation-check.ts'
import { RevocationTable } from './revocation-table.ts'
import { readSecurityEventToken, SetError } from './security-event-token.ts'
import type { SecurityEvents, SetRules } from './security-event-token.ts'
import { Transmitter, TransmitterError } from './transmitter.ts'
import type { PollAnswer, Stream } from './transmitter.ts'

/** What a feed is made of. */
export interface RevocationFeedParts {
  readonly issuer: Issuer
  readonly fetch: Fetch
  /** Milliseconds since 1970: when entries run out. */
  readonly now: () => number
  /** Milliseconds, on a clock that nobody sets: how fresh the feed is. */
  readonly clock: () => number
  readonly algorithms: ReadonlySet<Algorithm>
  /** Longest life of an access token, in seconds. */
  readonly maxLifetimeSeconds: number
}

/** How long an issuer may hold a poll (RFC 8936 §2.4 leaves it open), and what a slow network may add. */
const HOLD_MS = 25_000
const GRACE_MS = 10_000
const FIRST_CATCH_UP_MS = 5000
/** Least time between two requests for verification: a thousand guards are then 33 requests a second, at most. */
const VERIFICATION_MS = 30_000
/** A stream that says nothing where it should speak is given up after this time, and the next one later and later. */
const SILENCE_MS = 30_000
const MAX_SILENT_STREAMS = 5
const MAX_PAUSE_MS = 15_000
/** An entry is kept a little longer than the issuer says: what if a clock is set back by minutes? */
const MARGIN_SECONDS = 300
/** Events are verified for this long at a time, so that requests need not wait for a large answer. */
const SLICE_MS = 4
const MAX_OWED = 10_000
/** A transmitter that answers at once and says nothing is asked again at once this often, then ever more slowly. */
const PATIENT_POLLS = 4

const NO_VERIFICATION = 'the verification event that was asked for does not come'

/** An event that came and could not be taken in. */
interface Owed {
  /** Seconds since 1970: then it matters no more. */
  readonly until: number
  readonly why: string
}

export class RevocationFeed implements RevocationCheck {
  readonly #parts: RevocationFeedParts
  readonly #onStale: 'introspect' | 'deny' | 'allow'
  readonly #maxStalenessMs: number
  readonly #table: RevocationTable
  readonly #transmitter: Transmitter
  readonly #introspection: Introspection

  #stream: Stream | undefined
  #caughtUp = false
  /** The verification that was asked for: its arrival proves the table true as of then. */
  #verification: { readonly state: string; readonly askedAt: number } | undefined
  #askAgainAt = Number.NEGATIVE_INFINITY
  /** When the last verification that came was asked for. */
  #provenAt = Number.NEGATIVE_INFINITY
  /** When the first of those was asked for that did not come since. */
  #unansweredSince: number | undefined
  #verificationFailures = 0
  #verificationError: string | undefined
  /** What this stream should have said and did not, and since when. */
  #silence: { readonly since: number; readonly what: string } | undefined
  /** Streams in a row that were given up for that. */
  #silentStreams = 0
  #acknowledged: string[] = []
  #refused = new Map<string, SetError>()
  /** Came, and could not be taken in yet: as long as there are any, nothing is fresh. */
  #owed = new Map<string, Owed>()
  /** The last poll failed, or was cut short: ask without waiting whether there is anything. */
  #isHurried = false
  /** Polls in a row that brought nothing, although they were answered at once. */
  #idlePolls = 0

  #freshAt = Number.NEGATIVE_INFINITY
  #freshUntil = Number.NEGATIVE_INFINITY
  #version = 1
  #failures = 0
  #lastError: string | undefined
  #lastRefusal: string | undefined
  #lastEvent: { readonly jti: string; readonly at: Date } | undefined
  readonly #counts = { polls: 0, failures: 0, events: 0, ignored: 0, refused: 0 }

  #running: Promise<void> | undefined
  #isClosed = false
  #hasWarned = false
  #pause: { readonly until: number; readonly end: () => void } | undefined
  /** The first catching up, or the first failure: what requests at the very beginning wait for. */
  readonly #settled = Promise.withResolvers<void>()
  #hasSettled = false
  #settlingTimer: NodeJS.Timeout | undefined

  /** @throws TypeError when an option cannot be meant */
  constructor(options: RevocationFeedOptions, parts: RevocationFeedParts) {
    const { clientId, clientSecret, maxStaleness = 60, onStale = 'introspect', maxEntries = 4_000_000 } = options
    if (typeof clientId !== 'string' || clientId === '' || typeof clientSecret !== 'string' || clientSecret === '') {
      throw new TypeError('revocation needs a clientId and a clientSecret, or is false')
    }
    if (!['introspect', 'deny', 'allow'].includes(onStale)) {
      throw new TypeError(`onStale is 'introspect', 'deny' or 'allow', not ${JSON.stringify(onStale)}`)
    }
    if (!Number.isInteger(maxEntries) || maxEntries < 1 || maxEntries > 50_000_000) {
      throw new TypeError('maxEntries is a number from 1 to 50000000')
    }
    const { issuer, fetch, clock } = parts
    // The client's secret goes there.
    assertAddress(issuer.name, 'issuer', issuer.allowsHttp)
    this.#parts = parts
    this.#onStale = onStale
    this.#maxStalenessMs = durationSeconds(maxStaleness, 'maxStaleness') * 1000
    this.#table = new RevocationTable(maxEntries)
    this.#transmitter = new Transmitter({
      issuer,
      clientId,
      clientSecret,
      scope: options.scope ?? 'signals:receive',
      fetch,
      clock,
    })
    this.#introspection = new Introspection((token) => this.#transmitter.introspect(token), clock)
  }

  /** Begins to listen. Does not wait, does not throw. */
  start(): void {
    this.#running ??= this.#run()
  }

  check(claims: AccessTokenClaims, token: CheckedToken): RevocationVerdict | Promise<RevocationVerdict> {
    // What is known to be dead is dead, however old the news.
    if (this.#table.isRevoked(claims, token.kid, this.#parts.now() / 1000)) return 'revoked'
    if (this.#isFresh) return 'active'
    this.#wake()
    if (!this.#hasSettled) return this.#afterSettling(claims, token)
    return this.#whenStale(token)
  }

  version(): number | undefined {
    return this.#isFresh ? this.#version : undefined
  }

  health(): RevocationFeedHealth {
    const { clock, issuer } = this.#parts
    const age = clock() - this.#freshAt
    const { failures, refused } = this.#counts
    return {
      issuer: issuer.name,
      status: this.#isFresh ? 'current' : this.#hasSettled ? 'stale' : 'starting',
      onStale: this.#onStale,
      caughtUp: this.#caughtUp,
      ageSeconds: Number.isFinite(age) ? Math.max(0, Math.round(age / 1000)) : undefined,
      maxStalenessSeconds: this.#maxStalenessMs / 1000,
      streamId: this.#stream?.id,
      lastEvent: this.#lastEvent,
      entries: this.#table.size,
      bytes: this.#table.bytes,
      errors: failures + refused,
      lastError: this.#lastError ?? this.#verificationError ?? this.#hindrance() ?? this.#introspection.lastError,
      lastRefusal: this.#lastRefusal,
    }
  }

  metrics(): Readonly<Record<string, number>> {
    const { asked, failed } = this.#introspection
    return { ...this.#counts, introspections: asked, introspectionFailures: failed }
  }

  /** How the guard is doing, as far as revocation goes. */
  get standing(): 'ok' | 'degraded' | 'unavailable' {
    if (this.#isFresh) return 'ok'
    return this.#onStale === 'deny' ? 'unavailable' : 'degraded'
  }

  /** Ends everything under way, and lets the stream go. */
  async close(): Promise<void> {
    this.#isClosed = true
    this.#pause?.end()
    await this.#transmitter.close(this.#stream)
    await this.#running
    this.#settle()
  }

  get #isFresh(): boolean {
    const now = this.#parts.clock()
    // A clock that was set back all the same must not make old news fresh.
    return now <= this.#freshUntil && now >= this.#freshAt
  }

  /** Why the feed is not fresh, though exchanges go well. */
  #hindrance(): string | undefined {
    const [owed] = this.#owed.values()
    if (owed !== undefined) return `${this.#owed.size} events could not be taken in: ${owed.why}`
    if (this.#isFresh || !this.#hasSettled) return undefined
    if (this.#silence !== undefined) return this.#silence.what
    if (this.#unansweredSince !== undefined) return NO_VERIFICATION
    return this.#caughtUp ? 'no answer that left nothing behind' : 'not caught up yet'
  }

  /** At the start of a process the first answer is moments away: worth waiting for, as keys are. */
  async #afterSettling(claims: AccessTokenClaims, token: CheckedToken): Promise<RevocationVerdict> {
    // One time limit for all: whoever comes later than that does not wait again.
    this.#settlingTimer ??= setTimeout(() => this.#settle(), FIRST_CATCH_UP_MS).unref()
    await this.#settled.promise
    if (this.#table.isRevoked(claims, token.kid, this.#parts.now() / 1000)) return 'revoked'
    return this.#isFresh ? 'active' : this.#whenStale(token)
  }

  #whenStale({ token }: CheckedToken): RevocationVerdict | Promise<RevocationVerdict> {
    if (this.#onStale === 'introspect') return this.#introspection.verdict(token)
    return this.#onStale === 'allow' ? 'active' : 'unknown'
  }

  async #run(): Promise<void> {
    while (!this.#isClosed) {
      try {
        this.#stream ??= await this.#transmitter.openStream()
        await this.#poll(this.#stream)
        this.#failures = 0
        if (this.#idlePolls > PATIENT_POLLS) await this.#rest(50 * 2 ** (this.#idlePolls - PATIENT_POLLS), 1000)
      } catch (error) {
        if (this.#isClosed) return
        this.#note(error)
        // The stream ran out, was taken away or says nothing: another one, which brings everything once more.
        if (isGone(error)) this.#forgetStream()
        // An outage is not the stream's silence.
        this.#silence = undefined
        if (this.#unansweredSince !== undefined) this.#unansweredSince = this.#parts.clock()
        this.#settle()
        // Whoever waited through an outage wants to know at once whether it is over.
        this.#isHurried = true
        const longest = Math.min(MAX_PAUSE_MS, Math.max(1000, this.#maxStalenessMs / 4))
        await this.#rest(250 * 2 ** (this.#failures - 1), longest, retryAfterOf(error))
      }
    }
  }

  async #poll(stream: Stream): Promise<void> {
    await this.#seeToVerification(stream)
    const { clock } = this.#parts
    // No longer than the news may be old, and not past the time to ask for a verification again, or to give up.
    const isAsking = (this.#unansweredSince !== undefined || this.#verificationFailures > 0) && this.#owed.size === 0
    const untilAsking = isAsking ? this.#askAgainAt - clock() : Number.POSITIVE_INFINITY
    const untilGivingUp =
      this.#silence === undefined ? Number.POSITIVE_INFINITY : this.#silence.since + this.#maxSilenceMs - clock()
    const patience = Math.min(this.#maxStalenessMs / 2, Math.max(Math.min(untilAsking, untilGivingUp), 1000))
    const wait = !this.#isHurried
    const isCutShort = wait && patience < HOLD_MS
    const began = performance.now()
    let answer
    try {
      answer = await this.#transmitter.poll(stream, {
        acknowledged: this.#acknowledged,
        refused: this.#refused,
        wait,
        timeoutMs: isCutShort ? patience : wait ? HOLD_MS + GRACE_MS : GRACE_MS,
      })
    } catch (error) {
      if (!(isCutShort && error instanceof TimeoutError)) throw error
      this.#isHurried = true
      return
    }
    this.#isHurried = false
    this.#lastError = undefined
    this.#counts.polls += 1
    this.#acknowledged = []
    this.#refused = new Map()
    await this.#take(answer, stream)
    const isIdle = wait && this.#acknowledged.length === 0 && performance.now() - began < 500
    this.#idlePolls = isIdle ? this.#idlePolls + 1 : 0
  }

  /**
   * Asks for a verification event when the last one that came is not recent, or none did. That it cannot be had is no
   * reason not to listen.
   */
  async #seeToVerification(stream: Stream): Promise<void> {
    const { clock } = this.#parts
    if (stream.verificationAddress === undefined || clock() < this.#askAgainAt) return
    // It would make nothing fresh, and may take the place of one that is among what is owed.
    if (this.#owed.size > 0) return
    const state = randomUUID()
    const leastMs = stream.minVerificationInterval * 1000
    try {
      const askedAt = await this.#transmitter.requestVerification(stream, state)
      this.#verification = { state, askedAt }
      this.#unansweredSince ??= askedAt
      this.#verificationFailures = 0
      this.#verificationError = undefined
      this.#askAgainAt = askedAt + Math.max(VERIFICATION_MS, leastMs)
    } catch (error) {
      if (isGone(error) || this.#isClosed) throw error
      this.#note(error)
      this.#verificationError = describe(error)
      const pause = Math.min(1000 * 2 ** this.#verificationFailures, VERIFICATION_MS)
      this.#verificationFailures += 1
      this.#askAgainAt =
        clock() + Math.max(pause, leastMs, Math.min((retryAfterOf(error) ?? 0) * 1000, 2 * MAX_PAUSE_MS))
      this.#settle()
    }
  }

  /** How often silence has to be proven to be nothing else. */
  #verificationMs({ minVerificationInterval }: Stream): number {
    return Math.max(VERIFICATION_MS, this.#maxStalenessMs / 2, minVerificationInterval * 1000)
  }

  get #maxSilenceMs(): number {
    return SILENCE_MS * 2 ** Math.min(this.#silentStreams, MAX_SILENT_STREAMS)
  }

  async #take(answer: PollAnswer, stream: Stream): Promise<void> {
    const rules = this.#rulesOf(stream)
    let trouble: unknown
    let ended: StreamEnded | undefined
    let sliceBegan = performance.now()
    for (const [jti, token] of answer.sets) {
      let events: SecurityEvents | undefined
      try {
        events = await readSecurityEventToken(token, rules)
        if (events.jti !== jti) throw new SetError('invalid_request', 'its jti is another than the one it came under')
        this.#absorb(events)
        if (events.streamStatus !== undefined) await this.#requireWhole(stream)
        if (events.verification !== undefined && events.verification === this.#verification?.state) this.#prove(stream)
        this.#acknowledged.push(jti)
        this.#owed.delete(jti)
      } catch (error) {
        if (error instanceof StreamEnded) {
          ended = error
        } else if (error instanceof SetError && !error.isUnverified) {
          this.#counts.refused += 1
          this.#lastRefusal = describe(error)
          this.#refused.set(jti, error)
          this.#owed.delete(jti)
        } else {
          // Not acknowledged, so that it comes again.
          this.#owe(jti, events, describe(error))
          trouble ??= error
        }
      }
      if (performance.now() - sliceBegan > SLICE_MS) {
        await immediate()
        sliceBegan = performance.now()
      }
    }
    const now = this.#parts.now() / 1000
    this.#table.sweep(now)
    for (const [jti, { until }] of this.#owed) if (until <= now) this.#owed.delete(jti)
    if (ended !== undefined) throw ended
    this.#listenForSilence(answer)
    if (trouble !== undefined) throw trouble
    this.#considerFresh(answer, stream)
  }

  /** @param events - what it says, if that is known */
  #owe(jti: string, events: SecurityEvents | undefined, why: string): void {
    if (this.#owed.size >= MAX_OWED && !this.#owed.has(jti)) return
    // When all tokens that it can speak of are dead by themselves, it matters no more, and may never come again.
    const { now, maxLifetimeSeconds } = this.#parts
    const until =
      events === undefined
        ? (this.#owed.get(jti)?.until ?? now() / 1000 + maxLifetimeSeconds + MARGIN_SECONDS)
        : Math.max(0, ...events.revoked.map(({ expiresAt }) => expiresAt)) + MARGIN_SECONDS
    this.#owed.set(jti, { until, why })
  }

  /** @throws StreamEnded when the stream did not say what it should have for too long */
  #listenForSilence({ at, sets, moreAvailable }: PollAnswer): void {
    let what: string | undefined
    let since = at
    if (sets.length === 0 && moreAvailable) {
      what = 'the transmitter says that there is more, and sends nothing'
    } else if (sets.length === 0 && this.#unansweredSince !== undefined) {
      what = NO_VERIFICATION
      since = this.#unansweredSince
    } else if (!moreAvailable && this.#owed.size > 0) {
      const sent = new Set(sets.map(([jti]) => jti))
      const isMissing = [...this.#owed.keys()].some((jti) => !sent.has(jti))
      if (isMissing) what = 'events that could not be taken in do not come again'
    }
    this.#silence = what === undefined ? undefined : { since: this.#silence?.since ?? since, what }
    if (what === undefined || at - (this.#silence?.since ?? at) < this.#maxSilenceMs) return
    this.#silentStreams += 1
    throw new StreamEnded(what)
  }

  /** The verification came: all that was revoked when it was asked for is known. */
  #prove(stream: Stream): void {
    this.#caughtUp = true
    this.#provenAt = this.#verification?.askedAt ?? this.#provenAt
    this.#askAgainAt = this.#provenAt + this.#verificationMs(stream)
    this.#verification = undefined
    this.#unansweredSince = undefined
  }

  #considerFresh({ at, moreAvailable }: PollAnswer, stream: Stream): void {
    const isVerifiable = stream.verificationAddress !== undefined
    // Without verification events an answer that leaves nothing behind must do.
    if (!isVerifiable && !moreAvailable) {
      this.#caughtUp = true
      this.#provenAt = at
    }
    if (!this.#caughtUp || this.#owed.size > 0) return
    // With more to come, all is known that was revoked when the verification was asked for.
    this.#freshAt = moreAvailable ? Math.max(this.#provenAt, Math.min(this.#freshAt, at)) : at
    const proofMs = Math.max(this.#maxStalenessMs, 2 * this.#verificationMs(stream))
    this.#freshUntil = Math.min(this.#freshAt + this.#maxStalenessMs, this.#provenAt + proofMs)
    if (!this.#isFresh) return
    this.#silentStreams = 0
    this.#settle()
  }

  /** @throws Error when there is no room for it */
  #absorb(events: SecurityEvents): void {
    const now = this.#parts.now() / 1000
    for (const entry of events.revoked) {
      const outcome = this.#table.add({ ...entry, expiresAt: entry.expiresAt + MARGIN_SECONDS }, now)
      if (outcome === 'full') throw new Error(`no room for more than ${this.#table.size} revocations`)
      // After the table, so that whoever sees the new version sees the new entry.
      if (outcome === 'changed') this.#version += 1
    }
    if (events.streamStatus !== undefined && events.streamStatus !== 'enabled') {
      throw new StreamEnded(`the stream is ${events.streamStatus.slice(0, 100)}`)
    }
    this.#counts.ignored += events.ignored
    if (events.revoked.length === 0) return
    this.#counts.events += 1
    this.#lastEvent = { jti: events.jti, at: new Date(events.happenedAt * 1000) }
  }

  /**
   * Somebody changed the stream, and it goes on: what it delivers no more, no answer would tell of.
   *
   * @throws StreamEnded when there is such; whatever kept it from being seen, so that it is owed
   */
  async #requireWhole(stream: Stream): Promise<void> {
    const missing = await this.#transmitter.findUndelivered(stream)
    if (missing.length > 0) throw new StreamEnded(`the stream does not deliver ${missing.join(' and ')} any more`)
  }

  #rulesOf(stream: Stream): SetRules {
    const { issuer, algorithms, maxLifetimeSeconds } = this.#parts
    let hasReloaded = false
    const keyFor = async (kid: string | undefined, algorithm: Algorithm): Promise<VerificationKey> => {
      try {
        return await issuer.keyFor(kid, algorithm)
      } catch (error) {
        if (!isUnknownKey(error)) throw error
        // The issuer itself names the key, so it is worth a look, once for an answer.
        if (!hasReloaded) {
          hasReloaded = true
          await issuer.reloadKeys()
          return keyFor(kid, algorithm)
        }
        throw new SetError('invalid_key', 'signed with a key that the issuer does not publish')
      }
    }
    return { issuer: issuer.name, audiences: stream.audiences, algorithms, keyFor, maxLifetimeSeconds }
  }

  #forgetStream(): void {
    if (this.#stream !== undefined) void this.#transmitter.deleteStream(this.#stream)
    this.#stream = undefined
    this.#caughtUp = false
    this.#verification = undefined
    this.#askAgainAt = Number.NEGATIVE_INFINITY
    this.#provenAt = Number.NEGATIVE_INFINITY
    this.#unansweredSince = undefined
    this.#verificationFailures = 0
    this.#verificationError = undefined
    this.#silence = undefined
    this.#acknowledged = []
    this.#refused = new Map()
    this.#owed = new Map()
  }

  #note(error: unknown): void {
    this.#failures += 1
    this.#counts.failures += 1
    this.#lastError = describe(error)
    if (this.#hasWarned || !(error instanceof GuardError) || error.reason !== 'token_refused') return
    // Nothing that heals by itself: somebody has to look at the credentials.
    this.#hasWarned = true
    process.emitWarning(`The feed of revocations of ${this.#parts.issuer.name} cannot be had: ${this.#lastError}`, {
      code: 'GUARD_REVOCATION_REFUSED',
    })
  }

  /**
   * A pause: never as long for two processes, which a provider that comes back would otherwise meet all at once.
   *
   * @param ms - before chance has its share
   * @param retryAfterSeconds - what the other side asked for, which counts up to a limit
   */
  async #rest(ms: number, longest: number, retryAfterSeconds = 0): Promise<void> {
    const own = Math.min(ms, longest) * (0.5 + Math.random() / 2)
    const pause = Math.max(own, Math.min(retryAfterSeconds * 1000, 2 * MAX_PAUSE_MS))
    const { promise, resolve } = Promise.withResolvers<void>()
    const timer = setTimeout(resolve, pause).unref()
    this.#pause = { until: this.#parts.clock() + pause, end: resolve }
    if (this.#isClosed) resolve()
    await promise
    clearTimeout(timer)
    this.#pause = undefined
  }

  /** Somebody waits for news, and the pause is over by the clock, whatever its timer says. */
  #wake(): void {
    if (this.#pause !== undefined && this.#parts.clock() >= this.#pause.until) this.#pause.end()
  }

  #settle(): void {
    clearTimeout(this.#settlingTimer)
    this.#hasSettled = true
    this.#settled.resolve()
  }
}

/**
 * The stream was paused, disabled (SSF 1.0 §8.1.5) or narrowed, or is silent where it should speak: nothing more will come
 * of it.
 */
class StreamEnded extends Error {
  override readonly name = 'StreamEnded'
}

function isGone(error: unknown): boolean {
  return (
    error instanceof StreamEnded ||
    (error instanceof TransmitterError && (error.status === 404 || error.status === 410))
  )
}

function isUnknownKey(error: unknown): boolean {
  return error instanceof GuardError && error.status === 401
}

function retryAfterOf(error: unknown): number | undefined {
  return error instanceof TransmitterError ? error.retryAfterSeconds : undefined
}

function describe(error: unknown): string {
  if (error instanceof SetError) return `${error.code}: ${error.message}`
  // What a GuardError says to callers says nothing here.
  if (error instanceof GuardError && error.debug !== undefined) return error.debug
  if (!(error instanceof Error)) return String(error)
  const { message, cause } = error
  // `fetch failed` alone says nothing.
  return cause instanceof Error && cause.message !== '' ? `${message}: ${cause.message}` : message
}
