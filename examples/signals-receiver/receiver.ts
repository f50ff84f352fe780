/**
 * Learns what has been revoked, by the standards alone: the Shared Signals Framework over polling (RFC 8936), tokens
 * checked with jose. A service that uses `@latchkey/guard` needs none of this; one in another language looks like it.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { createRemoteJWKSet, jwtVerify, type JWTPayload } from 'jose'

export interface Receiver {
  readonly issuer: string
  /** a machine client that may ask for `signals:receive` */
  readonly clientId: string
  readonly clientSecret: string
  /** Told of each event once its signature has been checked; it counts as received when this is over. */
  readonly onEvent: (claims: JWTPayload) => void | Promise<void>
  readonly signal: AbortSignal
}

/** Receives until the signal is aborted. Whatever fails is tried again: what was not acknowledged is sent again. */
export async function receive({ issuer, clientId, clientSecret, onEvent, signal }: Receiver): Promise<void> {
  const configuration = await call(`${issuer}/.well-known/ssf-configuration`, { signal })
  const keys = createRemoteJWKSet(new URL(configuration['jwks_uri'] as string))
  let token = ''
  let pollAt = ''
  let ack: string[] = []

  while (!signal.aborted) {
    try {
      if (token === '') token = await getToken()
      if (pollAt === '') pollAt = await createStream()
      // The answer comes when there is something to tell, or after a while without.
      const { sets } = await post(pollAt, { ack, maxEvents: 100 })
      ack = []
      for (const [jti, set] of Object.entries(sets as Record<string, string>)) {
        const audience = configuration['resource'] as string
        const { payload } = await jwtVerify(set, keys, { issuer, audience, typ: 'secevent+jwt' })
        await onEvent(payload)
        ack.push(jti)
      }
    } catch (error) {
      if (signal.aborted) return
      // 401: the token is over. 404: so is the stream; a new one begins with all that is still revoked.
      if (error instanceof Refused && error.status === 401) token = ''
      else if (error instanceof Refused && error.status === 404) pollAt = ''
      else await sleep(1_000, undefined, { signal }).catch(() => undefined)
    }
  }

  async function getToken(): Promise<string> {
    const credentials = Buffer.from(`${clientId}:${clientSecret}`).toString('base64')
    const answer = await call(`${issuer}/token`, {
      method: 'POST',
      headers: { Authorization: `Basic ${credentials}` },
      body: new URLSearchParams({ grant_type: 'client_credentials', resource: configuration['resource'] as string }),
      signal,
    })
    return answer['access_token'] as string
  }

  async function createStream(): Promise<string> {
    const stream = await post(configuration['configuration_endpoint'] as string, {
      delivery: { method: 'urn:ietf:rfc:8936' },
    })
    return (stream['delivery'] as { endpoint_url: string }).endpoint_url
  }

  function post(url: string, body: object): Promise<Record<string, unknown>> {
    const headers = { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' }
    return call(url, { method: 'POST', headers, body: JSON.stringify(body), signal })
  }
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
