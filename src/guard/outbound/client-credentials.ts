import { assertAddress } from '../issuer.ts'
import { OutboundError } from './outbound-error.ts'
import type { CallContext } from './call-context.ts'
import { monotonicNow } from './call-context.ts'
import type { Outbound, TokenSource } from './outbound.ts'

/** How a service gets tokens for itself (RFC 6749 §4.4). */
export interface ClientCredentialsOptions {
  /** Makes the calls to the token endpoint, with its limits, retries and breaker. */
  readonly outbound: Pick<Outbound, 'fetch'>
  /** Absolute. https, or http to this machine alone (RFC 6749 §3.2). */
  readonly tokenEndpoint: string
  readonly clientId: string
  readonly clientSecret: string
  /** @defaultValue `'client_secret_basic'` (RFC 6749 §2.3.1) */
  readonly authentication?: 'client_secret_basic' | 'client_secret_post'
  /** The API the token is for (RFC 8707). */
  readonly resource?: string
  /** Scopes, separated by spaces. */
  readonly scope?: string
  /** What your provider asks for beside these, such as `{ audience: '…' }`. */
  readonly parameters?: Readonly<Record<string, string>>
  /** Take http to any host: for a network that encrypts by itself. @defaultValue false */
  readonly allowHttp?: boolean
  /** Told when refreshing ahead fails; the token at hand stays in use until it expires. */
  readonly onRefreshError?: (error: unknown) => void
  /** Milliseconds since 1970. */
  readonly now?: () => number
}

/** A token at hand. Times are milliseconds since 1970. */
interface Held {
  readonly token: string
  readonly obtainedAt: number
  /** From here on, another is fetched while this one still serves. */
  readonly refreshAt: number
  readonly unusableAt: number
}

/** Without `expires_in` (only RECOMMENDED, RFC 6749 §5.1) a token is kept this long; none is kept longer than a day. */
const UNKNOWN_LIFETIME_SECONDS = 60
const LONGEST_LIFETIME_SECONDS = 86_400

/** After a failure, and for a token refused when it was this young: a wrong set-up must not become a flood of requests. */
const COOLDOWN_MS = 1000

/**
 * Tokens by client credentials: kept in memory, fetched again when four fifths of their life are over while the old one
 * still serves, and never fetched twice at the same time.
 *
 * @param options - where, as whom, for what
 * @throws TypeError when the token endpoint is neither https nor on this machine
 * @example
 * ```ts
 * import { clientCredentials, createOutbound } from '@latchkey/guard/outbound'
 *
 * const token = clientCredentials({
 *   outbound: createOutbound({ caller: 'report-job/1.0' }),
 *   tokenEndpoint: 'https://id.example.com/token',
 *   clientId: 'report-job',
 *   clientSecret: process.env['CLIENT_SECRET'] ?? '',
 *   resource: 'https://api.example.com',
 * })
 * console.log((await token.get()).length)
 * ```
 */
export function clientCredentials(options: ClientCredentialsOptions): TokenSource {
  const { outbound, now = monotonicNow, onRefreshError } = options
  // A client secret goes there (RFC 6749 §3.2).
  assertAddress(options.tokenEndpoint, 'tokenEndpoint', options.allowHttp === true)
  const endpoint = new URL(options.tokenEndpoint)
  let held: Held | undefined
  let pending: Promise<Held> | undefined
  let failure: { error: unknown; until: number } | undefined

  async function request(context: CallContext | undefined): Promise<Held> {
    const obtainedAt = now()
    const answer = await outbound.fetch(endpoint, {
      method: 'POST',
      ...tokenRequest(options),
      // Each request gives a token of its own and takes none away.
      repeatable: true,
      // The id of the request that needed it, but not its deadline: others wait for this token too.
      ...(context !== undefined && { context: withoutDeadline(context) }),
    })
    const { token, lifetimeSeconds } = await readTokenResponse(endpoint.origin, answer)
    const lifetimeMs = lifetimeSeconds * 1000
    return {
      token,
      obtainedAt,
      refreshAt: obtainedAt + 0.8 * lifetimeMs,
      // A token must still be good when it arrives and is looked at.
      unusableAt: obtainedAt + lifetimeMs - Math.min(10_000, lifetimeMs / 10),
    }
  }

  function renew(context: CallContext | undefined): Promise<Held> {
    pending ??= request(context)
      .then(
        (fresh) => {
          failure = undefined
          held = fresh
          return fresh
        },
        (error: unknown) => {
          failure = { error, until: now() + COOLDOWN_MS }
          throw error
        },
      )
      .finally(() => {
        pending = undefined
      })
    return pending
  }

  return {
    async get(context) {
      const time = now()
      const coolingDown = failure !== undefined && time < failure.until
      if (held !== undefined && time < held.unusableAt) {
        if (time >= held.refreshAt && pending === undefined && !coolingDown) {
          renew(undefined).catch((error: unknown) => onRefreshError?.(error))
        }
        return held.token
      }
      if (coolingDown) throw failure?.error
      return (await renew(context)).token
    },
    drop(token) {
      // Somebody else dropped it already, so that another one is at hand or on its way.
      if (held?.token !== token) return true
      if (now() - held.obtainedAt < COOLDOWN_MS) return false
      held = undefined
      return true
    },
  }
}

function tokenRequest(options: ClientCredentialsOptions): { headers: Headers; body: URLSearchParams } {
  const body = new URLSearchParams({ ...options.parameters, grant_type: 'client_credentials' })
  if (options.resource !== undefined) body.set('resource', options.resource)
  if (options.scope !== undefined) body.set('scope', options.scope)
  const headers = new Headers({ accept: 'application/json', 'content-type': 'application/x-www-form-urlencoded' })
  if (options.authentication === 'client_secret_post') {
    body.set('client_id', options.clientId)
    body.set('client_secret', options.clientSecret)
  } else {
    headers.set('authorization', basicCredentials(options))
  }
  return { headers, body }
}

/** How a client names itself by `client_secret_basic`. */
export function basicCredentials(client: { readonly clientId: string; readonly clientSecret: string }): string {
  const pair = `${formEncoded(client.clientId)}:${formEncoded(client.clientSecret)}`
  return `Basic ${Buffer.from(pair).toString('base64')}`
}

/** RFC 6749 §2.3.1: both halves are form-encoded before they are joined, or a `:` in one would end it. */
function formEncoded(value: string): string {
  return new URLSearchParams({ '': value }).toString().slice(1)
}

async function readTokenResponse(host: string, answer: Response): Promise<{ token: string; lifetimeSeconds: number }> {
  const body = parseObject(await answer.text())
  if (answer.status === 400 || answer.status === 401) {
    const code = typeof body?.['error'] === 'string' ? body['error'] : 'no reason given'
    // RFC 6749 §5.2 allows only these characters; anything else stays out of our log.
    const reason = /^[\x20-\x7e]{1,100}$/.test(code) ? code : 'an unreadable reason'
    throw new OutboundError('token_refused', `${host} refused a token: ${reason}`, {
      host,
      upstreamStatus: answer.status,
      retryAfterSeconds: 60,
    })
  }
  const broken = (what: string) =>
    new OutboundError('token_unavailable', `${host} ${what}`, { host, upstreamStatus: answer.status })
  if (answer.status !== 200) throw broken(`answered a token request with ${answer.status}`)
  if (body === undefined) throw broken('answered a token request with something that is not a JSON object')
  const { access_token: token, token_type: type, expires_in: expiresIn } = body
  // RFC 6750 §2.1: b68token, which also keeps line breaks out of our Authorization header.
  if (typeof token !== 'string' || token.length > 16_384 || !/^[A-Za-z0-9\-._~+/]+=*$/.test(token)) {
    throw broken('sent no usable access_token')
  }
  if (typeof type !== 'string' || type.toLowerCase() !== 'bearer') throw broken('sent a token that is no bearer token')
  if (expiresIn !== undefined && !(typeof expiresIn === 'number' && Number.isFinite(expiresIn) && expiresIn > 0)) {
    throw broken('sent a token with an expires_in that is not a positive number')
  }
  return { token, lifetimeSeconds: Math.min(LONGEST_LIFETIME_SECONDS, expiresIn ?? UNKNOWN_LIFETIME_SECONDS) }
}

function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : undefined
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}

function withoutDeadline({ requestId, traceparent, tracestate }: CallContext): CallContext {
  return {
    requestId,
    ...(traceparent !== undefined && { traceparent }),
    ...(tracestate !== undefined && { tracestate }),
  }
}
