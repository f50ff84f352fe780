/**
 * A request as the guard sees it, whatever the framework, and where in it the token is: in the `Authorization` header
 * and nowhere else. A token in the query string ends up in logs and histories (RFC 9700 §4.3.2), and a request with
 * two tokens may be read differently by whoever stands in front of us, so neither is accepted.
 */
import { randomUUID } from 'node:crypto'
import { invalidRequest, missingCredentials } from './errors.ts'

/** The facts of a request that the guard may look at. */
export interface GuardRequest {
  readonly method: string
  /** Path and query as the client sent them, before any router cut pieces off. */
  readonly url: string
  /** The client's address, as far as the framework trusts its own idea of it. */
  readonly ip?: string | undefined
  /** Every value of a header, in order; names are asked for in lower case. */
  header(name: string): readonly string[]
  /** The framework's own object that holds the headers, the same each time: by it an id that was invented is remembered. */
  readonly headers?: (() => object) | undefined
}

/** A token, and the way it was presented. */
export interface Credentials {
  readonly scheme: 'Bearer' | 'DPoP'
  readonly token: string
}

/** What Koa, Express and Fastify all have underneath: Node's own request, by shape. */
export interface NodeRequest {
  readonly method?: string | undefined
  readonly rawHeaders: readonly string[]
  readonly headers?: object
}

/** @param url - path and query as the client sent them; routers rewrite the one on the request */
export function fromNodeRequest(request: NodeRequest, url: string, ip: string | undefined): GuardRequest {
  const { rawHeaders, method = 'GET' } = request
  return {
    method,
    url,
    ip,
    // Not `headers`: of two Authorization headers it keeps the first and tells nobody.
    header: (name) => {
      const values: string[] = []
      for (let at = 0; at + 1 < rawHeaders.length; at += 2) {
        const candidate = rawHeaders[at] ?? ''
        if (candidate.length === name.length && candidate.toLowerCase() === name) values.push(rawHeaders[at + 1] ?? '')
      }
      return values
    },
    headers: () => request.headers ?? request,
  }
}

/** A Web `Request`. Two headers of one name arrive joined by a comma, which no token contains. */
export function fromWebRequest(request: Request, ip?: string): GuardRequest {
  return {
    method: request.method,
    url: request.url,
    ip,
    header: (name) => {
      const value = request.headers.get(name)
      return value === null ? [] : [value]
    },
    headers: () => request.headers,
  }
}

/** RFC 6750 §2.1 and RFC 9449 §7.1: the scheme, in any case (RFC 9110 §11.1), then one token. */
const SCHEME = /^(?:bearer|dpop)(?: +|$)/i
const USUAL_START = 'Bearer '

/**
 * Finds the token. Whether its characters are those of a token is left to whoever reads it: looking at each of them
 * here would cost a token seen before more than everything else together.
 *
 * @returns `undefined` when the request carries no credentials at all
 * @throws GuardError 400 when they cannot be read as one token in one place; 401 when they are of some other kind
 */
export function readCredentials(request: GuardRequest): Credentials | undefined {
  const values = request.header('authorization')
  const [value] = values
  if (value === undefined) return undefined
  if (values.length > 1) throw invalidRequest('There must be one Authorization header.')
  const start = value.startsWith(USUAL_START) ? USUAL_START : SCHEME.exec(value)?.[0]
  // Some other scheme, Basic for one, is no token at all; it does not make anybody known, so it is not let pass either.
  if (start === undefined) throw missingCredentials()
  const rest = value.slice(start.length)
  const token = rest.startsWith(' ') ? rest.replace(/^ +/, '') : rest
  if (token === '' || token.includes(' ') || token.includes(',')) {
    throw invalidRequest('The Authorization header must be a scheme, a space and one token.')
  }
  // RFC 6750 §2: not more than one way of sending a token in each request.
  if (request.url.includes('access_token=')) throw invalidRequest('The token must be in one place, the header.')
  return { scheme: start.startsWith('d') || start.startsWith('D') ? 'DPoP' : 'Bearer', token }
}

const REQUEST_ID = /^[A-Za-z0-9._~-]{1,128}$/

const invented = new WeakMap<object, string>()

/** The `X-Request-Id` a client or a proxy gave, when it is one that may be logged and sent back; else one of our own. */
export function requestIdOf(request: GuardRequest): string {
  return requestIdFrom(request.header('x-request-id')[0], request.headers)
}

/**
 * @param given - the header's value
 * @param headers - gives the object that holds the headers: whoever asks about the same one again, the refusal of a
 * request or the calls made for it, gets the same invented id
 */
export function requestIdFrom(given: string | undefined, headers?: () => object): string {
  if (given !== undefined && REQUEST_ID.test(given)) return given
  const key = headers?.()
  const known = key === undefined ? undefined : invented.get(key)
  if (known !== undefined) return known
  const id = randomUUID()
  if (key !== undefined) invented.set(key, id)
  return id
}
