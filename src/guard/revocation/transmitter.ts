/**
 * The issuer's side of the feed, as seen from here: where its endpoints are (Shared Signals Framework 1.0 §7), a token
 * for them (client credentials, RFC 6749 §4.4), a stream (SSF 1.0 §8), its polls (RFC 8936), and introspection (RFC
 * 7662) for when the feed is not to be had. What is done with the answers, and when to ask again, is `feed.ts`.
 */
import type { Fetch, Issuer } from '../issuer.ts'
import { assertAddress } from '../issuer.ts'
import { Exchanges } from './exchanges.ts'
import type { Answer } from './exchanges.ts'
import { basicCredentials, clientCredentials } from '../outbound/client-credentials.ts'
import type { TokenSource } from '../outbound/outbound.ts'
import { REQUESTED_EVENTS } from './security-event-token.ts'
import type { SetErrorCode } from './security-event-token.ts'

/** As whom, and with what, the transmitter is spoken to. */
export interface TransmitterParts {
  readonly issuer: Issuer
  readonly clientId: string
  readonly clientSecret: string
  readonly scope: string
  readonly fetch: Fetch
  /** Milliseconds, on a clock that only goes forward. */
  readonly clock: () => number
}

/** A stream of ours (SSF 1.0 §8.1.1). */
export interface Stream {
  readonly id: string
  readonly audiences: ReadonlySet<string>
  readonly pollAddress: string
  /** Where a verification event is asked for, if anywhere. */
  readonly verificationAddress: string | undefined
  readonly configurationAddress: string
  /** Seconds that must pass between two such requests. */
  readonly minVerificationInterval: number
  /** Those of the events asked for that it delivered when it was made. */
  readonly delivers: readonly string[]
}

/** What a poll tells (RFC 8936 §2.4). */
export interface Poll {
  /** Taken in; need not come again. */
  readonly acknowledged: readonly string[]
  /** Refused, and why. */
  readonly refused: ReadonlyMap<string, { readonly code: SetErrorCode; readonly message: string }>
  /** Wait for news, rather than be told at once that there are none. */
  readonly wait: boolean
  readonly timeoutMs: number
}

/** What a poll was answered (RFC 8936 §2.3). */
export interface PollAnswer {
  /** When the answer began to arrive: what it says was true then. On `clock`. */
  readonly at: number
  readonly sets: readonly (readonly [jti: string, token: unknown])[]
  readonly moreAvailable: boolean
}

/** An answer that is none of those hoped for. */
export class TransmitterError extends Error {
  override readonly name = 'TransmitterError'
  readonly status: number
  readonly retryAfterSeconds: number | undefined

  constructor(what: string, response: Response) {
    super(`${what} was answered ${response.status}`)
    this.status = response.status
    const retryAfter = response.headers.get('retry-after') ?? ''
    this.retryAfterSeconds = /^\d{1,5}$/.test(retryAfter) ? Number(retryAfter) : undefined
  }
}

const POLLING = 'urn:ietf:rfc:8936'
const INTROSPECTION_TIMEOUT_MS = 3000
const FAREWELL_MS = 1000
/** Asked for at once. A transmitter that sends more is heard all the same, up to the limits. */
const MAX_EVENTS = 250
const MAX_SETS = 2000
const MAX_POLL_BYTES = 8_388_608

interface Places {
  readonly tokenAddress: string
  readonly introspectionAddress: string | undefined
}

export class Transmitter {
  readonly #parts: TransmitterParts
  readonly #exchanges: Exchanges
  #places: Places | undefined
  #discovering: Promise<Places> | undefined
  #tokens: { readonly address: string; readonly resource: string; readonly source: TokenSource } | undefined

  constructor(parts: TransmitterParts) {
    this.#parts = parts
    this.#exchanges = new Exchanges(parts.fetch, parts.clock)
  }

  /**
   * Looks up the endpoints, which may have moved, and makes a stream.
   *
   * @throws whatever was in the way
   */
  async openStream(): Promise<Stream> {
    const configuration = await findConfiguration(this.#exchanges, this.#parts.issuer)
    const { issuer } = this.#parts
    if (configuration === undefined) throw new Error(`${issuer.name} publishes no ssf-configuration`)
    const places = await this.#discover()
    const configurationAddress = this.#address(configuration, 'configuration_endpoint')
    const resource = text(configuration['resource']) ?? `${issuer.name.replace(/\/$/, '')}/ssf`
    if (this.#tokens?.address !== places.tokenAddress || this.#tokens.resource !== resource) {
      this.#tokens = {
        address: places.tokenAddress,
        resource,
        source: this.#tokenSource(places.tokenAddress, resource),
      }
    }
    const { response } = await this.#call(configurationAddress, 'POST', {
      delivery: { method: POLLING },
      events_requested: REQUESTED_EVENTS,
      description: '@latchkey/guard',
    })
    if (response.status !== 201 && response.status !== 200) throw new TransmitterError('a new stream', response)
    const stream = await objectIn(response, 'the new stream')
    const id = text(stream['stream_id'])
    if (id === undefined) throw new Error('the new stream has no stream_id')
    if (stream['iss'] !== issuer.name) throw new Error(`the new stream is of ${JSON.stringify(stream['iss'])}`)
    const delivery = Object(stream['delivery']) as Record<string, unknown>
    const interval = stream['min_verification_interval']
    return {
      id,
      audiences: new Set([resource, ...[stream['aud']].flat().filter((one) => typeof one === 'string')]),
      pollAddress: this.#address(delivery, 'endpoint_url'),
      verificationAddress:
        configuration['verification_endpoint'] === undefined
          ? undefined
          : this.#address(configuration, 'verification_endpoint'),
      configurationAddress,
      minVerificationInterval: typeof interval === 'number' && interval > 0 ? interval : 0,
      delivers: deliveredBy(stream),
    }
  }

  /** What a stream delivered once and does not any more. @throws TransmitterError, or whatever else was in the way */
  async findUndelivered({ configurationAddress, id, delivers }: Stream): Promise<readonly string[]> {
    const address = new URL(configurationAddress)
    address.searchParams.set('stream_id', id)
    const { response } = await this.#call(address.href, 'GET')
    if (response.status !== 200) throw new TransmitterError('the configuration of the stream', response)
    const delivered = deliveredBy(await objectIn(response, 'the configuration of the stream'))
    return delivers.filter((type) => !delivered.includes(type))
  }

  /** Asks for a verification event with that state (SSF 1.0 §8.1.4). @returns when it was asked for, on `clock` */
  async requestVerification({ id, verificationAddress }: Stream, state: string): Promise<number> {
    const askedAt = this.#parts.clock()
    if (verificationAddress === undefined) throw new Error('the transmitter has no verification_endpoint')
    const { response } = await this.#call(verificationAddress, 'POST', { stream_id: id, state })
    if (!response.ok) throw new TransmitterError('the request for a verification', response)
    return askedAt
  }

  /**
   * @throws TransmitterError with status 404 or 410 when the stream is no more
   * @throws TimeoutError when no answer came within the time given
   */
  async poll(stream: Stream, { acknowledged, refused, wait, timeoutMs }: Poll): Promise<PollAnswer> {
    const body = {
      maxEvents: MAX_EVENTS,
      returnImmediately: !wait,
      ack: acknowledged,
      ...(refused.size > 0 && {
        setErrs: Object.fromEntries(
          [...refused].map(([jti, { code, message }]) => [jti, { err: code, description: message }]),
        ),
      }),
    }
    const { response, at } = await this.#call(stream.pollAddress, 'POST', body, timeoutMs, MAX_POLL_BYTES)
    if (response.status !== 200) throw new TransmitterError('a poll', response)
    const answer = await objectIn(response, 'a poll')
    const { sets = {} } = answer
    if (typeof sets !== 'object' || sets === null || Array.isArray(sets)) throw new Error('a poll: sets is no object')
    const entries = Object.entries(sets)
    if (entries.length > MAX_SETS) throw new Error(`a poll brought ${entries.length} tokens at once`)
    return { at, sets: entries, moreAvailable: answer['moreAvailable'] === true }
  }

  /** Whether the issuer calls a token active (RFC 7662 §2.2). @throws whatever was in the way */
  async introspect(token: string): Promise<boolean> {
    const { introspectionAddress } = this.#places ?? (await this.#discoverOnce())
    if (introspectionAddress === undefined) throw new Error('the issuer names no introspection_endpoint')
    const { response } = await this.#exchanges.send(
      introspectionAddress,
      {
        method: 'POST',
        headers: {
          accept: 'application/json',
          'content-type': 'application/x-www-form-urlencoded',
          authorization: basicCredentials(this.#parts),
        },
        body: new URLSearchParams({ token, token_type_hint: 'access_token' }).toString(),
      },
      INTROSPECTION_TIMEOUT_MS,
    )
    if (response.status !== 200) throw new TransmitterError('introspection', response)
    const { active } = await objectIn(response, 'introspection')
    if (typeof active !== 'boolean') throw new Error('introspection does not say whether the token is active')
    return active
  }

  /** Lets a stream go. Never rejects: one that nobody polls expires by itself. */
  async deleteStream({ configurationAddress, id }: Stream): Promise<void> {
    const address = new URL(configurationAddress)
    address.searchParams.set('stream_id', id)
    await this.#call(address.href, 'DELETE', undefined, FAREWELL_MS).catch(() => undefined)
  }

  /** Ends every exchange, and lets the stream go if that takes no longer than a moment. Never rejects. */
  async close(stream: Stream | undefined): Promise<void> {
    this.#exchanges.abort()
    if (stream !== undefined) {
      const timer = setTimeout(() => this.#exchanges.abort(), FAREWELL_MS).unref()
      await this.deleteStream(stream)
      clearTimeout(timer)
    }
    this.#exchanges.close()
  }

  /** Once for all tokens that are asked about, and no longer than asking may take. */
  #discoverOnce(): Promise<Places> {
    this.#discovering ??= this.#discover(INTROSPECTION_TIMEOUT_MS).finally(() => {
      this.#discovering = undefined
    })
    return this.#discovering
  }

  async #discover(timeoutMs?: number): Promise<Places> {
    const { issuer } = this.#parts
    const metadata = await this.#exchanges.limited((signal) => issuer.discover('token_endpoint', signal), timeoutMs)
    this.#places = {
      tokenAddress: this.#address(metadata, 'token_endpoint'),
      introspectionAddress:
        metadata['introspection_endpoint'] === undefined
          ? undefined
          : this.#address(metadata, 'introspection_endpoint'),
    }
    return this.#places
  }

  #tokenSource(tokenEndpoint: string, resource: string): TokenSource {
    const { clientId, clientSecret, scope, clock } = this.#parts
    return clientCredentials({
      outbound: {
        fetch: async (address, { method, headers, body } = {}) => {
          const init = { method: method ?? 'GET', headers: new Headers(headers), body: String(body) }
          return (await this.#exchanges.send(String(address), init)).response
        },
      },
      tokenEndpoint,
      clientId,
      clientSecret,
      resource,
      scope,
      allowHttp: true,
      now: clock,
    })
  }

  /** With an access token; one that is refused is replaced once (RFC 6750 §3.1). */
  async #call(address: string, method: string, body?: object, timeoutMs?: number, maxBytes?: number): Promise<Answer> {
    const tokens = this.#tokens?.source
    if (tokens === undefined) throw new Error('no stream was opened yet')
    for (let attempt = 1; ; attempt += 1) {
      const token = await tokens.get()
      const headers: Record<string, string> = { accept: 'application/json', authorization: `Bearer ${token}` }
      if (body !== undefined) headers['content-type'] = 'application/json'
      const init = { method, headers, ...(body !== undefined && { body: JSON.stringify(body) }) }
      const answer = await this.#exchanges.send(address, init, timeoutMs, maxBytes)
      if (answer.response.status !== 401 || !tokens.drop(token) || attempt === 2) return answer
    }
  }

  /** @throws Error when the document has no address there, or one that our secrets must not go to */
  #address(document: Readonly<Record<string, unknown>>, name: string): string {
    const address = text(document[name])
    if (address === undefined) throw new Error(`${name} is missing`)
    assertAddress(address, name, this.#parts.issuer.allowsHttp)
    return address
  }
}

/**
 * What the issuer says of its feed. `undefined` when it has none, which is an answer; anything else that is wrong is
 * thrown.
 */
export async function findConfiguration(
  exchanges: Exchanges,
  issuer: Issuer,
): Promise<Readonly<Record<string, unknown>> | undefined> {
  const { origin, pathname } = new URL(issuer.name)
  const path = pathname.replace(/\/$/, '')
  // SSF 1.0 §7.2 puts the well-known name before the issuer's path; behind it is where the issuer's others may be.
  const places = new Set([
    `${origin}/.well-known/ssf-configuration${path}`,
    `${origin}${path}/.well-known/ssf-configuration`,
  ])
  for (const place of places) {
    const { response } = await exchanges.send(place, { headers: { accept: 'application/json' } })
    if (response.status === 404 || response.status === 410) continue
    if (response.status !== 200) throw new TransmitterError(place, response)
    const configuration = await objectIn(response, place)
    if (configuration['issuer'] !== issuer.name) {
      throw new Error(`${place} speaks for ${JSON.stringify(configuration['issuer'])}, not ${issuer.name}`)
    }
    return configuration
  }
  return undefined
}

async function objectIn(response: Response, what: string): Promise<Readonly<Record<string, unknown>>> {
  const value: unknown = JSON.parse(await response.text())
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new Error(`${what}: no JSON object`)
  return value as Readonly<Record<string, unknown>>
}

function deliveredBy({ events_delivered: delivered }: Readonly<Record<string, unknown>>): readonly string[] {
  return REQUESTED_EVENTS.filter((type) => Array.isArray(delivered) && delivered.includes(type))
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' && value !== '' ? value : undefined
}
