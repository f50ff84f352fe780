/**
 * The transmitter of the issuer for tests: what a real one says over HTTP about revocations, said in memory, so that a
 * test drives the very feed that runs in production. Streams, long polls, acknowledgements, verification events, access
 * tokens that run out, introspection; and outages, streams that are paused, and streams that are lost.
 */
import { randomUUID } from 'node:crypto'
import type { RevocationFeedOptions } from './feed-options.ts'

/** What the issuer for tests lends it. */
export interface MemoryTransmitterParts {
  readonly issuer: string
  readonly sign: (header: object, claims: object) => string
  /** Milliseconds since 1970, on the issuer's clock. */
  readonly now: () => number
  /** Whether the issuer stands by an access token (RFC 7662). */
  readonly isActive: (token: string) => boolean
}

/** SSF 1.0 §8.1.2. */
export type StreamStatus = 'enabled' | 'paused' | 'disabled'

/** What an event says, and for how long it is sent. */
export interface MemoryEvent {
  readonly type?: 'session-revoked' | 'credential-change' | 'token-claims-change'
  /** Members of the event beside those that all have. */
  readonly more?: object
  /** @defaultValue a day */
  readonly expiresInSeconds?: number | undefined
}

interface MemoryStream {
  readonly id: string
  status: StreamStatus
  /** What was not acknowledged, by `jti`, in the order it was made. Signed when it is sent. */
  readonly waiting: Map<string, Sent>
  /** Lets the polls that wait look again. */
  readonly listeners: Set<() => void>
}

interface Sent {
  readonly jti: string
  readonly claims: object
  /** Seconds since 1970: from then on it is not sent any more. */
  readonly expiresAt: number
  /** Is about the stream itself: sent whatever its status. */
  readonly isNotice: boolean
}

const CAEP = 'https://schemas.openid.net/secevent/caep/event-type/'
const SSF = 'https://schemas.openid.net/secevent/ssf/event-type/'
const EVENTS = ['session-revoked', 'credential-change', 'token-claims-change'].map((name) => CAEP + name)
const HOLD_MS = 25_000
const TOKEN_SECONDS = 300
const KEPT_SECONDS = 86_400
/** A guard that is not listening must not hold up the test for longer. */
const DELIVERY_MS = 5000

export class MemoryTransmitter {
  /** The client of the guards under test. */
  readonly client: Required<Pick<RevocationFeedOptions, 'clientId' | 'clientSecret'>> = {
    clientId: 'guard-under-test',
    clientSecret: randomUUID(),
  }
  readonly #parts: MemoryTransmitterParts
  readonly #tokens = new Map<string, number>()
  readonly #streams = new Map<string, MemoryStream>()
  readonly #sent: Sent[] = []
  #isFeedOut = false
  #isIntrospectionOut = false
  #isVerificationOut = false

  constructor(parts: MemoryTransmitterParts) {
    this.#parts = parts
  }

  /** Addresses for the issuer's own description. */
  get metadata(): Readonly<Record<string, string>> {
    const { issuer } = this.#parts
    return { token_endpoint: `${issuer}/token`, introspection_endpoint: `${issuer}/introspect` }
  }

  get configuration(): Readonly<Record<string, unknown>> {
    const { issuer } = this.#parts
    return {
      spec_version: '1_0',
      issuer,
      jwks_uri: `${issuer}/jwks`,
      delivery_methods_supported: ['urn:ietf:rfc:8936'],
      configuration_endpoint: `${issuer}/ssf/streams`,
      verification_endpoint: `${issuer}/ssf/verification`,
      authorization_schemes: [{ spec_urn: 'urn:ietf:rfc:6749' }],
      default_subjects: 'ALL',
      resource: `${issuer}/ssf`,
    }
  }

  /** Polls that wait fail at once when the feed goes, and so does whatever comes until it is mended. */
  setOutage(out: { readonly feed: boolean; readonly introspection: boolean; readonly verification: boolean }): void {
    this.#isFeedOut = out.feed
    this.#isIntrospectionOut = out.introspection
    this.#isVerificationOut = out.verification
    this.elapse()
  }

  /**
   * Does to all streams there are what somebody who administers the issuer would. Unless they are `enabled`, no event
   * is sent, and no verification; one that was `disabled` has lost them.
   *
   * @param isAnnounced - by a stream-updated event (SSF 1.0 §8.1.5)
   */
  setStatus(status: StreamStatus, isAnnounced: boolean): void {
    for (const stream of this.#streams.values()) {
      stream.status = status
      if (status === 'disabled') stream.waiting.clear()
      if (!isAnnounced) continue
      const notice = this.#setOf({ format: 'opaque', id: stream.id }, `${SSF}stream-updated`, { status })
      stream.waiting.set(notice.jti, { ...notice, isNotice: true })
    }
    this.elapse()
  }

  /** The streams are gone: 404 for whoever polls one. */
  loseStreams(): void {
    const lost = [...this.#streams.values()]
    this.#streams.clear()
    for (const { listeners } of lost) for (const listener of listeners) listener()
  }

  /** The issuer's clock moved on: polls that were held for long enough are answered. */
  elapse(): void {
    for (const { listeners } of this.#streams.values()) for (const listener of listeners) listener()
  }

  /** Answers one request; `undefined` when it is about something else. */
  answer(address: string, init: RequestInit): Promise<Response> | undefined {
    const { pathname, searchParams } = new URL(address)
    const path = pathname.slice(new URL(this.#parts.issuer).pathname.replace(/\/$/, '').length)
    if (path === '/introspect') return this.#introspect(init)
    if (path === '/token') return this.#grant(init)
    if (!path.startsWith('/ssf/')) return undefined
    return this.#authorized(path, searchParams, init)
  }

  /**
   * Sends one event and waits until every guard that listens has taken it in.
   *
   * @param subject - `sub_id` (RFC 9493)
   */
  async revoke(
    subject: object,
    { type = 'session-revoked', more = {}, expiresInSeconds = KEPT_SECONDS }: MemoryEvent = {},
  ): Promise<void> {
    const now = Math.floor(this.#parts.now() / 1000)
    const expiresAt = now + expiresInSeconds
    const reason = { en: 'revoked by a test' }
    const event = { event_timestamp: now, reason_admin: reason, initiating_entity: 'admin', expires_at: expiresAt }
    const sent = { ...this.#setOf(subject, CAEP + type, { ...event, ...more }), expiresAt }
    this.#sent.push(sent)
    const streams = [...this.#streams.values()].filter(({ status }) => status !== 'disabled')
    for (const { waiting } of streams) waiting.set(sent.jti, sent)
    this.elapse()
    if (!this.#isFeedOut) await Promise.all(streams.map((stream) => this.#takenIn(stream, sent.jti)))
  }

  #setOf(subject: object, type: string, event: object): Sent {
    const { issuer, now } = this.#parts
    const jti = randomUUID()
    const claims = {
      iss: issuer,
      jti,
      iat: Math.floor(now() / 1000),
      aud: `${issuer}/ssf`,
      sub_id: subject,
      events: { [type]: event },
    }
    return { jti, claims, expiresAt: Number.POSITIVE_INFINITY, isNotice: false }
  }

  /** What a poll would be answered now. */
  #sendable({ status, waiting }: MemoryStream): Sent[] {
    const now = this.#parts.now() / 1000
    return [...waiting.values()].filter(
      ({ isNotice, expiresAt }) => (isNotice || status === 'enabled') && expiresAt > now,
    )
  }

  async #takenIn(stream: MemoryStream, jti: string): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const look = (): void => {
      const isListening = !this.#isFeedOut && this.#streams.has(stream.id) && stream.status === 'enabled'
      if (!isListening || !stream.waiting.has(jti)) resolve()
    }
    look()
    const timer = setTimeout(resolve, DELIVERY_MS).unref()
    stream.listeners.add(look)
    await promise
    stream.listeners.delete(look)
    clearTimeout(timer)
  }

  async #introspect(init: RequestInit): Promise<Response> {
    assertInOrder(!this.#isIntrospectionOut)
    if (!this.#isClient(init)) return new Response(null, { status: 401 })
    const token = new URLSearchParams(bodyOf(init)).get('token') ?? ''
    return Response.json({ active: this.#parts.isActive(token) })
  }

  async #grant(init: RequestInit): Promise<Response> {
    assertInOrder(!this.#isFeedOut)
    if (!this.#isClient(init)) return Response.json({ error: 'invalid_client' }, { status: 401 })
    const asked = new URLSearchParams(bodyOf(init))
    if (asked.get('resource') !== `${this.#parts.issuer}/ssf`) {
      return Response.json({ error: 'invalid_target' }, { status: 400 })
    }
    const token = randomUUID()
    this.#tokens.set(token, this.#parts.now() + TOKEN_SECONDS * 1000)
    return Response.json({ access_token: token, token_type: 'Bearer', expires_in: TOKEN_SECONDS })
  }

  async #authorized(path: string, query: URLSearchParams, init: RequestInit): Promise<Response> {
    assertInOrder(!this.#isFeedOut)
    const token = /^Bearer (.+)$/.exec(new Headers(init.headers).get('authorization') ?? '')?.[1] ?? ''
    if ((this.#tokens.get(token) ?? 0) <= this.#parts.now()) return new Response(null, { status: 401 })
    const stream = this.#streams.get(/^\/ssf\/streams\/([^/]+)\/poll$/.exec(path)?.[1] ?? '')
    if (stream !== undefined) return this.#poll(stream, init)
    if (path === '/ssf/streams' && init.method === 'POST') return this.#openStream()
    if (path === '/ssf/streams' && init.method === 'GET') {
      const asked = this.#streams.get(query.get('stream_id') ?? '')
      return asked === undefined ? new Response(null, { status: 404 }) : Response.json(this.#describe(asked))
    }
    if (path === '/ssf/streams' && init.method === 'DELETE') {
      const isKnown = this.#streams.delete(query.get('stream_id') ?? '')
      this.elapse()
      return new Response(null, { status: isKnown ? 204 : 404 })
    }
    if (path === '/ssf/verification') return this.#verify(init)
    return new Response(null, { status: 404 })
  }

  #openStream(): Response {
    const { now } = this.#parts
    const id = randomUUID()
    const current = this.#sent.filter(({ expiresAt }) => expiresAt > now() / 1000)
    const stream: MemoryStream = {
      id,
      status: 'enabled',
      waiting: new Map(current.map((sent) => [sent.jti, sent])),
      listeners: new Set(),
    }
    this.#streams.set(id, stream)
    return Response.json(this.#describe(stream), { status: 201 })
  }

  #describe({ id }: MemoryStream): object {
    const { issuer } = this.#parts
    return {
      stream_id: id,
      iss: issuer,
      aud: `${issuer}/ssf`,
      events_supported: EVENTS,
      events_delivered: EVENTS,
      delivery: { method: 'urn:ietf:rfc:8936', endpoint_url: `${issuer}/ssf/streams/${id}/poll` },
      min_verification_interval: 0,
    }
  }

  #verify(init: RequestInit): Response {
    const { stream_id: id, state } = JSON.parse(bodyOf(init)) as { stream_id: string; state: string }
    const stream = this.#streams.get(id)
    if (stream === undefined) return new Response(null, { status: 404 })
    if (this.#isVerificationOut) return new Response(null, { status: 500 })
    if (stream.status === 'enabled') {
      const verification = this.#setOf({ format: 'opaque', id }, `${SSF}verification`, { state })
      stream.waiting.set(verification.jti, verification)
      this.elapse()
    }
    return new Response(null, { status: 204 })
  }

  async #poll(stream: MemoryStream, init: RequestInit): Promise<Response> {
    const poll = JSON.parse(bodyOf(init)) as {
      maxEvents: number
      returnImmediately: boolean
      ack: string[]
      setErrs?: object
    }
    for (const jti of [...poll.ack, ...Object.keys(poll.setErrs ?? {})]) stream.waiting.delete(jti)
    this.elapse()
    if (this.#sendable(stream).length === 0 && !poll.returnImmediately)
      await this.#hold(stream, init.signal ?? undefined)
    assertInOrder(!this.#isFeedOut)
    if (!this.#streams.has(stream.id)) return new Response(null, { status: 404 })
    const sendable = this.#sendable(stream)
    const sets = sendable
      .slice(0, poll.maxEvents)
      .map(({ jti, claims }) => [jti, this.#parts.sign({ typ: 'secevent+jwt' }, claims)])
    return Response.json({ sets: Object.fromEntries(sets), moreAvailable: sendable.length > sets.length })
  }

  async #hold(stream: MemoryStream, signal: AbortSignal | undefined): Promise<void> {
    const { now } = this.#parts
    const until = now() + HOLD_MS
    const { promise, resolve } = Promise.withResolvers<void>()
    const look = (): void => {
      const isOver = this.#isFeedOut || !this.#streams.has(stream.id) || now() >= until
      if (isOver || this.#sendable(stream).length > 0 || signal?.aborted === true) resolve()
    }
    const timer = setTimeout(resolve, HOLD_MS).unref()
    stream.listeners.add(look)
    signal?.addEventListener('abort', look, { once: true })
    await promise
    clearTimeout(timer)
    stream.listeners.delete(look)
  }

  #isClient(init: RequestInit): boolean {
    const { clientId, clientSecret } = this.client
    const expected = `Basic ${Buffer.from(`${clientId}:${clientSecret}`).toString('base64')}`
    return new Headers(init.headers).get('authorization') === expected
  }
}

/** @throws TypeError as `fetch` does when there is no connection */
function assertInOrder(isInOrder: boolean): void {
  if (!isInOrder) throw new TypeError('the issuer is out of order')
}

function bodyOf({ body }: RequestInit): string {
  return typeof body === 'string' ? body : ''
}
