import { randomUUID } from 'node:crypto'
import { createOutbound } from '@latchkey/guard/outbound'
import type { Outbound, OutboundOptions } from '@latchkey/guard/outbound'
import createOpenapiClient, { defaultPathSerializer } from 'openapi-fetch'
import type { HeadersOptions, Middleware, ParamsOption, RequestBodyOption } from 'openapi-fetch'
import type { paths } from './api.ts'
import { isInProgress, LatchkeyApiError } from './api-error.ts'
import { tokenSource } from './credentials.ts'
import type { ClientAuth } from './credentials.ts'
import { readDeprecation } from './deprecation.ts'
import type { DeprecationNotice } from './deprecation.ts'
import { version } from './version.ts'

/**
 * Where, as whom, and how calls behave. Of the guard's options for calls, `retries` (3), `totalTimeoutMs` (30000) and
 * `log` are those most often wanted.
 */
export interface ClientOptions extends Omit<OutboundOptions, 'caller'> {
  /** The provider's issuer, such as `https://id.example.com`: without `/v1`. https, or http to this machine alone. */
  readonly baseUrl: string
  readonly auth: ClientAuth
  /** What calls, such as `hr-sync/2.1`: it goes before the client's own name in `User-Agent` (RFC 9110 §10.1.5). */
  readonly userAgent?: string
  /** Calls go through this one, with its limits and connections, in place of one made from the options here. */
  readonly outbound?: Outbound
  /** Told once for each operation whose answers say that it will end. */
  readonly onDeprecation?: (notice: DeprecationNotice) => void
  /** Take http to any host: for a network that encrypts by itself. @defaultValue false */
  readonly allowHttp?: boolean
}

export type Method = 'get' | 'put' | 'post' | 'delete' | 'patch'

/** The paths that have this method. */
export type PathWith<M extends Method> = {
  [Path in keyof paths]: paths[Path] extends Record<M, object> ? Path : never
}[keyof paths]

/** An answer that is a success; every other one is thrown. */
export interface Answer<Data> {
  /** Its body; undefined where it has none. */
  readonly data: Data
  /** Its status and headers. The body has been read. */
  readonly response: Response
}

/** What is sent: as the document has it, and left out where all of it may be. */
export type CallInit<Operation> = object extends Init<Operation> ? [init?: Init<Operation>] : [init: Init<Operation>]

type Init<Operation> = ParamsOption<Operation> &
  RequestBodyOption<Operation> & {
    readonly headers?: HeadersOptions
    /** Cancels the call; it then rejects with the signal's reason. */
    readonly signal?: AbortSignal
  }

/** The body of its successes. */
export type DataOf<Operation> = Operation extends { responses: infer Answers }
  ? JsonOf<Answers[keyof Answers & (200 | 201 | 202 | 204)]>
  : undefined

type JsonOf<Answer> = Answer extends { content: { 'application/json': infer Body } } ? Body : undefined

/**
 * One call.
 *
 * @param path - as in the document: `/v1/users/{user_id}`
 * @param init - `params` (`path`, `query`, `header`), `body`, `headers`, `signal`
 * @throws LatchkeyApiError for an answer that is no success, OutboundError when there is none, the signal's reason
 */
export type Call<M extends Method> = <Path extends PathWith<M>>(
  path: Path,
  ...init: CallInit<paths[Path][M]>
) => Promise<Answer<DataOf<paths[Path][M]>>>

/** The management API, one member for each method. */
export interface LatchkeyClient {
  readonly GET: Call<'get'>
  readonly PUT: Call<'put'>
  readonly POST: Call<'post'>
  readonly DELETE: Call<'delete'>
  readonly PATCH: Call<'patch'>
  /** Lets the calls under way finish and closes their connections, but for those of an `outbound` that was given. */
  close(): Promise<void>
}

/**
 * Opens the management API. What fails for the moment is tried again within the time limit: 429, 500, 502, 503 and 504,
 * lost connections, and a 409 that says that the first try is still under way. That has one effect, because POST and PATCH
 * carry an `Idempotency-Key` that stays the same over all tries.
 *
 * @throws TypeError when the address is none, or would have secrets sent over http; RangeError for options out of bounds
 * @example
 * ```ts
 * import { createClient } from '@latchkey/client'
 *
 * const latchkey = createClient({
 *   baseUrl: 'https://id.example.com',
 *   auth: { clientId: 'hr-sync', clientSecret: process.env['CLIENT_SECRET'] ?? '' },
 *   userAgent: 'hr-sync/2.1',
 * })
 * const { data: user } = await latchkey.POST('/v1/users', { body: { email: 'carol@example.com', name: 'Carol Chen' } })
 * await latchkey.PATCH('/v1/users/{user_id}', {
 *   params: { path: { user_id: user.user_id } },
 *   body: { is_active: false },
 * })
 * ```
 */
export function createClient(options: ClientOptions): LatchkeyClient {
  const { baseUrl, auth, userAgent, outbound: shared, onDeprecation, allowHttp = false, ...calls } = options
  const issuer = checkAddress(baseUrl, allowHttp)
  const caller = [...(userAgent === undefined ? [] : [userAgent]), `latchkey-client/${version}`].join(' ')
  const outbound = shared ?? createOutbound({ ...calls, caller })
  const { now } = calls
  const token = tokenSource(auth, { issuer, outbound, allowHttp, ...(now !== undefined && { now }) })
  const destination = outbound.to(issuer, token && { token })

  async function send(request: Request): Promise<Response> {
    const { url, method, headers, signal } = request
    const body = await request.text()
    return destination.fetch(url.slice(issuer.length), {
      method,
      headers,
      signal,
      retryOn: isInProgress,
      ...(body !== '' && { body }),
    })
  }

  const told = new Set<string>()
  const middleware: Middleware = {
    onRequest({ request: { method, headers } }) {
      headers.set('user-agent', caller)
      if ('apiKey' in auth) headers.set('x-api-key', auth.apiKey)
      if ((method === 'POST' || method === 'PATCH') && !headers.has('idempotency-key')) {
        headers.set('idempotency-key', randomUUID())
      }
    },
    async onResponse({ request, response, schemaPath: path }) {
      const notice = readDeprecation(response.headers)
      const operation = `${request.method} ${path}`
      if (notice !== undefined && !told.has(operation)) {
        told.add(operation)
        onDeprecation?.({ method: request.method, path, ...notice })
      }
      const isJson = /^application\/([\w.-]+\+)?json\b/.test(response.headers.get('content-type') ?? '')
      if (!response.ok || (response.body !== null && !isJson)) {
        throw new LatchkeyApiError(request, response, await response.text())
      }
    },
  }
  const api = createOpenapiClient<paths>({ baseUrl: issuer, fetch: send, pathSerializer: writePath })
  api.use(middleware)
  // The types say what the middleware does: whatever is no success has been thrown.
  const { GET, PUT, POST, DELETE, PATCH } = api as unknown as Omit<LatchkeyClient, 'close'>
  return {
    GET,
    PUT,
    POST,
    DELETE,
    PATCH,
    async close() {
      if (shared === undefined) await outbound.close()
    },
  }
}

const LOOPBACK: ReadonlySet<string> = new Set(['localhost', '127.0.0.1', '[::1]'])

/** @returns without a slash at its end */
function checkAddress(baseUrl: string, allowHttp: boolean): string {
  const { protocol, hostname, href, search, hash, username } = new URL(baseUrl)
  if (protocol !== 'https:' && !(protocol === 'http:' && (allowHttp || LOOPBACK.has(hostname)))) {
    throw new TypeError(`baseUrl ${baseUrl} must be https (or say allowHttp: true inside a network you trust)`)
  }
  if (search !== '' || hash !== '' || username !== '') {
    throw new TypeError('baseUrl is an issuer: it has no user, query or fragment')
  }
  return href.replace(/\/$/, '')
}

/** An identifier that is a dot segment would lead to another resource (RFC 3986 §5.2.4), an empty one to the list. */
function writePath(template: string, parameters: Record<string, unknown>): string {
  for (const [name, value] of Object.entries(parameters)) {
    if (value === '' || value === '.' || value === '..') throw new TypeError(`${name} cannot be '${value}'`)
  }
  return defaultPathSerializer(template, parameters)
}
