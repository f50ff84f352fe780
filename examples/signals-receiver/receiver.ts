/**
 * Learns what has been revoked, by the standards alone: the Shared Signals Framework over polling (RFC 8936), tokens
 * checked with jose. A service that uses `@latchkey/guard` needs none of this; one in another language looks like it.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { createRemoteJWKSet, errors, jwtVerify, type JWTPayload } from 'jose'

export interface Receiver {
  readonly issuer: string
  /** a machine client that may ask for `signals:receive` */
  readonly clientId: string
  readonly clientSecret: string
  /** Told of each event once its signature has been checked; it counts as received when this is over. */
  readonly onEvent: (claims: JWTPayload) => void | Promise<void>
  readonly signal: AbortSignal
}

type Configuration = Record<'jwks_uri' | 'configuration_endpoint' | 'resource', string>

/**
 * Receives until the signal is aborted. Whatever fails is tried again, the provider's being away at the start included:
 * what was not acknowledged is sent again.
 */
export async function receive({ issuer, clientId, clientSecret, onEvent, signal }: Receiver): Promise<void> {
  let configuration: Configuration | undefined
  let keys: ReturnType<typeof createRemoteJWKSet> | undefined
  let token = ''
  let pollAt = ''
  let ack: string[] = []
  let setErrs: Record<string, { err: string; description: string }> = {}

  while (!signal.aborted) {
    try {
      configuration ??= (await call(`${issuer}/.well-known/ssf-configuration`, { signal })) as Configuration
      keys ??= createRemoteJWKSet(new URL(configuration.jwks_uri))
      if (token === '') token = await getToken(configuration)
      if (pollAt === '') pollAt = await createStream(configuration)
      // The answer comes when there is something to tell, or after a while without.
      const { sets } = await post(pollAt, { ack, setErrs, maxEvents: 100 })
      ack = []
      setErrs = {}
      // One that is no good, or that cannot be dealt with now, must not keep the others from being known.
      let failure: unknown
      for (const [jti, set] of Object.entries(sets as Record<string, string>)) {
        try {
          const audience = configuration.resource
          const { payload } = await jwtVerify(set, keys, { issuer, audience, typ: 'secevent+jwt' })
          await onEvent(payload)
          ack.push(jti)
          if (isChanged(payload)) pollAt = ''
        } catch (error) {
          const err = errorOf(error)
          // Without an error of its own it is not the token that is at fault: it is sent again.
          if (err === undefined) failure ??= error
          else setErrs[jti] = { err, description: String(error) }
        }
      }
      if (failure !== undefined) throw failure
    } catch (error) {
      if (signal.aborted) return
      // 401: the token is over. 404: so is the stream; a new one begins with all that is still revoked.
      if (error instanceof Refused && error.status === 401) token = ''
      else if (error instanceof Refused && error.status === 404) pollAt = ''
      else await sleep(1_000, undefined, { signal }).catch(() => undefined)
    }
  }

  async function getToken({ resource }: Configuration): Promise<string> {
    const credentials = Buffer.from(`${clientId}:${clientSecret}`).toString('base64')
    const answer = await call(`${issuer}/token`, {
      method: 'POST',
      headers: { Authorization: `Basic ${credentials}` },
      body: new URLSearchParams({ grant_type: 'client_credentials', resource }),
      signal,
    })
    return answer['access_token'] as string
  }

  async function createStream({ configuration_endpoint: at }: Configuration): Promise<string> {
    const stream = await post(at, {
      delivery: { method: 'urn:ietf:rfc:8936' },
    })
    return (stream['delivery'] as { endpoint_url: string }).endpoint_url
  }

  function post(url: string, body: object): Promise<Record<string, unknown>> {
    const headers = { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' }
    return call(url, { method: 'POST', headers, body: JSON.stringify(body), signal })
  }
}

/** What is wrong with a token, in the words of RFC 8935 §2.4; undefined: nothing that is known of. */
function errorOf(error: unknown): string | undefined {
  if (error instanceof errors.JWSSignatureVerificationFailed) return 'authentication_failed'
  if (error instanceof errors.JWKSNoMatchingKey || error instanceof errors.JOSEAlgNotAllowed) return 'invalid_key'
  if (error instanceof errors.JWTClaimValidationFailed && error.claim === 'iss') return 'invalid_issuer'
  if (error instanceof errors.JWTClaimValidationFailed && error.claim === 'aud') return 'invalid_audience'
  const isMalformed = [
    errors.JWTClaimValidationFailed,
    errors.JWTExpired,
    errors.JWTInvalid,
    errors.JWSInvalid,
    errors.JOSENotSupported,
  ].some((type) => error instanceof type)
  return isMalformed ? 'invalid_request' : undefined
}

/** Of a stream that somebody stopped or narrowed (SSF 1.0 §8.1.5) nothing, or less, is to come: another is made. */
function isChanged({ events }: JWTPayload): boolean {
  return 'https://schemas.openid.net/secevent/ssf/event-type/stream-updated' in Object(events)
}

class Refused extends Error {
  readonly status: number
  constructor(url: string, status: number) {
    super(`${url} answered ${status}`)
    this.status = status
  }
}

async function call(url: string, init: RequestInit): Promise<Record<string, unknown>> {
  const response = await fetch(url, init)
  if (!response.ok) throw new Refused(url, response.status)
  return (await response.json()) as Record<string, unknown>
}
