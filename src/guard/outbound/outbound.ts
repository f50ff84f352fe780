import { setTimeout as pause } from 'node:timers/promises'
import { Agent } from 'undici'
import { Breaker } from './breaker.ts'
import type { BreakerState } from './breaker.ts'
import { requestIdFrom } from '../request.ts'
import { DEADLINE_HEADER, monotonicNow } from './call-context.ts'
import type { CallContext } from './call-context.ts'
import { ConnectionSlots } from './connection-slots.ts'
import { OutboundError } from './outbound-error.ts'
import { isRepeatable, isTransient, parseRetryAfter, retryDelayMs } from './retry.ts'
import { send } from './send.ts'
import type { ReplayableBody } from './send.ts'
import { settingsOf } from './settings.ts'
import type { AttemptLog, OutboundOptions, OutboundSettings } from './settings.ts'

/** Where calls get their access token from; {@link clientCredentials} makes one. */
export interface TokenSource {
  /**
   * A token that is good for now, from memory wherever possible.
   *
   * @throws OutboundError `token_unavailable` or `token_refused`
   */
  get(context?: CallContext): Promise<string>
  /**
   * The resource refused this token with 401: forget it.
   *
   * @returns whether asking for another one is worth a try
   */
  drop(token: string): boolean
}

/** One call. Everything but the URL may be left out. */
export interface CallOptions {
  /** @defaultValue `'GET'` */
  readonly method?: string
  readonly headers?: ConstructorParameters<typeof Headers>[0]
  /** Text, bytes or a form; no stream, because it could not be sent twice. */
  readonly body?: ReplayableBody
  /** What the request being served hands on: its id, its trace, its deadline. Without it a fresh request id is made. */
  readonly context?: CallContext
  /** Milliseconds for the whole call. It can end earlier, by `totalTimeoutMs` or by the context's deadline, not later. */
  readonly timeoutMs?: number
  /** This request may be sent again although its method is not idempotent by itself (RFC 9110 §9.2.2). */
  readonly repeatable?: boolean
  /**
   * Try again after such an answer too, if the request may be sent again: some APIs say "not yet" with a status of their
   * own.
   *
   * @param answer - one that is no success and would not be tried again otherwise; a copy, to be read or not
   */
  readonly retryOn?: (answer: Response) => boolean | Promise<boolean>
  /** Cancels the call; it then rejects with the signal's reason. */
  readonly signal?: AbortSignal
  /** Answers in the host's place when it is out of reach or keeps failing. Not asked when our own credentials are wrong. */
  readonly fallback?: (reason: OutboundError) => Response | Promise<Response>
}

/** What is known of one host. Counters run since the start, or since the host was last forgotten (`maxHosts`). */
export interface HostMetrics {
  readonly breaker: BreakerState
  /** How often the circuit opened. */
  readonly opened: number
  readonly calls: number
  /** Attempts that were sent, retries included. */
  readonly attempts: number
  /** Attempts made again after one that failed. */
  readonly retries: number
  /** Attempts answered with a status that is not transient. */
  readonly answered: number
  /** Attempts that got no answer, or 429, 500, 502, 503 or 504. */
  readonly failed: number
  /** Attempts not sent because the circuit was open. */
  readonly refused: number
  readonly fallbacks: number
  readonly inFlight: number
  readonly waiting: number
}

/** Hosts by origin. */
export interface OutboundMetrics {
  readonly hosts: Readonly<Record<string, HostMetrics>>
}

/** Calls to one base URL, with one source of tokens. */
export interface Destination {
  /**
   * @param path - begins with `/` and stays below the base URL
   * @param options - see {@link CallOptions}
   * @returns the answer, whatever its status
   * @throws OutboundError when there is none
   */
  fetch(path: string, options?: CallOptions): Promise<Response>
}

/** Calls to other services. One for each process, so that all calls to a host share its connections and its breaker. */
export interface Outbound {
  /**
   * Like the platform's `fetch`, with time limits, retries and the host's circuit breaker. The answer is complete when
   * it is returned. A status that says "failed" is an answer too, also when it is still 503 after the last retry: look
   * at `ok` or give a `fallback`.
   *
   * @param url - absolute, http or https
   * @param options - see {@link CallOptions}
   * @throws OutboundError when there is no answer, the signal's reason when cancelled, TypeError for a request that
   *   cannot be sent at all
   */
  fetch(url: string | URL, options?: CallOptions): Promise<Response>
  /**
   * Calls to one service. Its tokens go to this base URL and nowhere else.
   *
   * @param baseUrl - such as `https://users.example.com/v1`
   * @param options.token - without it, calls carry no token of ours
   */
  to(baseUrl: string | URL, options?: { readonly token?: TokenSource }): Destination
  /** Breakers, connections and counters, for a metrics endpoint. */
  metrics(): OutboundMetrics
  /** Lets the calls under way finish and closes their connections; later calls are refused. */
  close(): Promise<void>
}

/**
 * Opens the way out: connections, breakers and limits for the calls this process makes to other services.
 *
 * @param options - every one has a default
 * @throws RangeError naming every option that is out of bounds
 * @example
 * ```ts
 * import { callContext, clientCredentials, createOutbound } from '@latchkey/guard/outbound'
 *
 * const outbound = createOutbound({ caller: 'booking-service/2.1.0', log: (entry) => console.log(JSON.stringify(entry)) })
 * const users = outbound.to('https://users.example.com', {
 *   token: clientCredentials({
 *     outbound,
 *     tokenEndpoint: 'https://id.example.com/token',
 *     clientId: 'booking-service',
 *     clientSecret: process.env['CLIENT_SECRET'] ?? '',
 *     resource: 'https://users.example.com',
 *     scope: 'users:read',
 *   }),
 * })
 *
 * export async function isActive(request: Request, userId: string): Promise<boolean> {
 *   const answer = await users.fetch(`/users/${encodeURIComponent(userId)}`, { context: callContext(request.headers) })
 *   return answer.ok && ((await answer.json()) as { is_active: boolean }).is_active
 * }
 * ```
 */
export function createOutbound(options: OutboundOptions = {}): Outbound {
  return new Calls(options)
}

/** A host's breaker and connections, and what has been counted of it. */
interface Host {
  readonly breaker: Breaker
  readonly slots: ConnectionSlots
  calls: number
  /** Calls not yet over, between two attempts too. */
  open: number
  attempts: number
  retries: number
  answered: number
  failed: number
  refused: number
  fallbacks: number
}

/** A call as it stays over all its attempts. */
interface Call {
  readonly url: URL
  readonly host: Host
  readonly method: string
  readonly headers: Headers
  readonly body: ReplayableBody | undefined
  readonly repeatable: boolean
  readonly retryOn: CallOptions['retryOn']
  readonly requestId: string
  readonly context: CallContext | undefined
  /** By `totalTimeoutMs` and `timeoutMs`. */
  readonly ownDeadlineAt: number
  /** By the context too, whichever is earlier. */
  readonly deadlineAt: number
  readonly signal: AbortSignal | undefined
  readonly token: TokenSource | undefined
}

class Calls implements Outbound {
  readonly #settings: OutboundSettings
  readonly #agent: Agent
  readonly #hosts = new Map<string, Host>()
  readonly #caller: string | undefined
  readonly #log: NonNullable<OutboundOptions['log']> | undefined
  readonly #now: () => number
  readonly #random: () => number
  readonly #sleep: NonNullable<OutboundOptions['sleep']>
  #closing: Promise<void> | undefined

  constructor(options: OutboundOptions) {
    this.#settings = settingsOf(options)
    this.#caller = options.caller
    this.#log = options.log
    this.#now = options.now ?? monotonicNow
    this.#random = options.random ?? Math.random
    this.#sleep = options.sleep ?? (async (ms, signal) => pause(ms, undefined, signal && { signal }))
    this.#agent = new Agent({
      connections: this.#settings.connections,
      connect: { timeout: this.#settings.connectTimeoutMs },
      // Our own timer ends an attempt, to the millisecond; undici's would end it in steps of half a second.
      headersTimeout: 0,
      bodyTimeout: 0,
    })
  }

  async fetch(url: string | URL, options: CallOptions = {}): Promise<Response> {
    return this.#call(new URL(url), options, undefined)
  }

  to(baseUrl: string | URL, { token }: { readonly token?: TokenSource } = {}): Destination {
    const base = new URL(baseUrl)
    if (base.search !== '' || base.hash !== '') throw new TypeError('A base URL has neither query nor fragment')
    const root = base.href.replace(/\/$/, '')
    return {
      fetch: async (path, options = {}) => {
        const url = new URL(root + path)
        // `..`, also written %2e%2e, is gone by now: what is left must still be below the base, or the token would
        // reach a part of the host it was not meant for.
        if (!path.startsWith('/') || !url.href.startsWith(`${root}/`)) {
          throw new TypeError(`A path begins with / and stays below ${root}`)
        }
        return this.#call(url, options, token)
      },
    }
  }

  metrics(): OutboundMetrics {
    const hosts = [...this.#hosts].map(([origin, host]): [string, HostMetrics] => {
      const { breaker, slots, calls, attempts, retries, answered, failed, refused, fallbacks } = host
      const counters = { calls, attempts, retries, answered, failed, refused, fallbacks }
      const { state, opened } = breaker
      return [origin, { breaker: state, opened, ...counters, inFlight: slots.taken, waiting: slots.waiting }]
    })
    return { hosts: Object.fromEntries(hosts) }
  }

  async close(): Promise<void> {
    this.#closing ??= this.#agent.close()
    await this.#closing
  }

  async #call(url: URL, options: CallOptions, token: TokenSource | undefined): Promise<Response> {
    if (url.protocol !== 'https:' && url.protocol !== 'http:') throw new TypeError(`Cannot call ${url.protocol}`)
    if (url.username !== '' || url.password !== '') throw new TypeError('Credentials do not belong into a URL')
    const host = this.#host(url.origin)
    const call = this.#prepare(url, host, options, token)
    host.calls += 1
    host.open += 1
    const { fallback } = options
    let failure: OutboundError
    try {
      const answer = await this.#attempts(call)
      if (fallback === undefined || !isTransient(answer.status)) return answer
      failure = stillFailing(url.origin, answer, this.#now())
    } catch (error) {
      if (fallback === undefined || !(error instanceof OutboundError) || !error.outOfReach) throw error
      failure = error
    } finally {
      host.open -= 1
    }
    host.fallbacks += 1
    return fallback(failure)
  }

  #prepare(url: URL, host: Host, options: CallOptions, token: TokenSource | undefined): Call {
    const { context } = options
    const method = (options.method ?? 'GET').toUpperCase()
    if (options.body !== undefined && (method === 'GET' || method === 'HEAD')) {
      throw new TypeError(`${method} carries no body`)
    }
    const totalMs = Math.min(this.#settings.totalTimeoutMs, options.timeoutMs ?? Infinity)
    if (!(totalMs > 0)) throw new TypeError(`timeoutMs is a positive number, not ${options.timeoutMs}`)
    const headers = new Headers(options.headers)
    const preset = (name: string, value: string | undefined) => {
      if (value !== undefined && !headers.has(name)) headers.set(name, value)
    }
    const requestId = requestIdFrom(headers.get('x-request-id') ?? context?.requestId)
    headers.set('x-request-id', requestId)
    preset('traceparent', context?.traceparent)
    preset('tracestate', context?.tracestate)
    preset('user-agent', this.#caller)
    const ownDeadlineAt = this.#now() + totalMs
    return {
      url,
      host,
      method,
      headers,
      body: options.body,
      repeatable: options.repeatable ?? isRepeatable(method, headers),
      retryOn: options.retryOn,
      requestId,
      context,
      ownDeadlineAt,
      deadlineAt: Math.min(ownDeadlineAt, context?.deadlineAt ?? Infinity),
      signal: options.signal,
      // A token the caller brought, such as its user's, is neither replaced nor renewed.
      token: headers.has('authorization') ? undefined : token,
    }
  }

  /** Attempt after attempt, until there is an answer to hand back or no sense in another try. */
  async #attempts(call: Call): Promise<Response> {
    const { url, host, token } = call
    let retries = 0
    let tokenRenewed = false
    let lastError: OutboundError | undefined
    for (let attempt = 0; ; attempt += 1) {
      const accessToken = token === undefined ? undefined : await this.#tokenInTime(call, token)
      const remainingMs = call.deadlineAt - this.#now()
      if (remainingMs < 1) throw tooLate(url.origin, lastError)

      const outcome = await this.#attempt(call, attempt, retries, remainingMs, accessToken)
      if (outcome instanceof Response) {
        if (outcome.status === 401 && token !== undefined && accessToken !== undefined && !tokenRenewed) {
          // Revoked, or signed with a key that is gone. A 401 says that nothing was done (RFC 9110 §15.5.2), so any
          // method may be sent again, once, and it is not counted as a retry.
          tokenRenewed = true
          if (token.drop(accessToken)) continue
        }
        if (!call.repeatable) return outcome
        const again = isTransient(outcome.status) || (!outcome.ok && (await call.retryOn?.(outcome.clone())))
        if (again !== true) return outcome
      } else if (!outcome.hostFailed || !(call.repeatable || outcome.neverSent)) {
        throw outcome
      }
      const delayMs = this.#delayMs(retries, outcome)
      const giveUp = retries >= this.#settings.retries || this.#now() + delayMs >= call.deadlineAt
      if (giveUp || host.breaker.refusesForMs() > delayMs) {
        if (outcome instanceof Response) return outcome
        throw outcome
      }
      lastError = outcome instanceof Response ? undefined : outcome
      retries += 1
      host.retries += 1
      await this.#rest(delayMs, call.signal)
    }
  }

  /** One attempt, logged. Failures of the host come back as values, because a retry may follow. */
  async #attempt(
    call: Call,
    attempt: number,
    retries: number,
    remainingMs: number,
    accessToken: string | undefined,
  ): Promise<Response | OutboundError> {
    const { host, url } = call
    let startedAt: number | undefined
    let status: AttemptLog['status'] = 'not_sendable'
    try {
      const answer = await this.#sendWithinBounds(call, retries, remainingMs, accessToken, () => {
        startedAt = this.#now()
        host.attempts += 1
      })
      status = answer.status < 400 ? 'success' : `http_${answer.status}`
      if (isTransient(answer.status)) host.failed += 1
      else host.answered += 1
      return answer
    } catch (error) {
      if (!(error instanceof OutboundError)) {
        if (call.signal?.aborted === true) status = 'cancelled'
        throw error
      }
      status = error.reason
      if (error.reason === 'circuit_open') host.refused += 1
      else host.failed += 1
      return error
    } finally {
      this.#log?.({
        request_id: call.requestId,
        service: url.origin,
        endpoint: url.pathname,
        attempt,
        duration_ms: startedAt === undefined ? null : Math.round(this.#now() - startedAt),
        status,
        circuit_breaker_state: host.breaker.state,
      })
    }
  }

  async #sendWithinBounds(
    call: Call,
    retries: number,
    remainingMs: number,
    accessToken: string | undefined,
    onStart: () => void,
  ): Promise<Response> {
    const { host, url, signal } = call
    const { readTimeoutMs, retryReadTimeoutMs, maxResponseBytes } = this.#settings
    if (this.#closing !== undefined) throw new OutboundError('closed', 'Calls to other services have been closed')
    await host.slots.take(url.origin, remainingMs, signal)
    try {
      return await host.breaker.run(url.origin, async () => {
        onStart()
        const leastMs = Math.min(readTimeoutMs, retryReadTimeoutMs)
        const allowedMs = Math.max(readTimeoutMs - 2000 * retries, leastMs)
        const timeoutMs = Math.floor(Math.min(allowedMs, Math.max(1, call.deadlineAt - this.#now())))
        // A few requests that come with a tiny deadline must not open a healthy host's circuit for everybody: a
        // timeout counts against the host only if it had the time that any attempt of ours would have given it.
        const hostHadItsTime = timeoutMs >= leastMs || call.deadlineAt === call.ownDeadlineAt
        const onTimeout = hostHadItsTime ? 'read_timeout' : 'deadline_exceeded'
        const headers = new Headers(call.headers)
        if (accessToken !== undefined) headers.set('authorization', `Bearer ${accessToken}`)
        headers.set(DEADLINE_HEADER, String(timeoutMs))
        const { method, body } = call
        return send(this.#agent, { url, method, headers, body, timeoutMs, onTimeout, maxResponseBytes, signal })
      })
    } finally {
      host.slots.release()
    }
  }

  /** Others may wait for the same token with more time left, so a call stops waiting without stopping the request. */
  async #tokenInTime(call: Call, token: TokenSource): Promise<string> {
    const { signal, context, requestId } = call
    signal?.throwIfAborted()
    const { promise: ended, reject } = Promise.withResolvers<never>()
    const remainingMs = Math.max(0, call.deadlineAt - this.#now())
    const timer = setTimeout(() => reject(tooLate(call.url.origin, undefined)), remainingMs)
    const cancel = () => reject(signal?.reason)
    signal?.addEventListener('abort', cancel, { once: true })
    try {
      return await Promise.race([token.get({ ...context, requestId }), ended])
    } finally {
      clearTimeout(timer)
      signal?.removeEventListener('abort', cancel)
    }
  }

  #delayMs(retries: number, outcome: Response | OutboundError): number {
    const { backoffMs, maxBackoffMs } = this.#settings
    const asked = outcome instanceof Response ? outcome.headers.get('retry-after') : null
    return retryDelayMs(retries, backoffMs, maxBackoffMs, this.#random, parseRetryAfter(asked, this.#now()))
  }

  async #rest(ms: number, signal: AbortSignal | undefined): Promise<void> {
    try {
      await this.#sleep(ms, signal)
    } catch (error) {
      signal?.throwIfAborted()
      throw error
    }
  }

  #host(origin: string): Host {
    const known = this.#hosts.get(origin)
    if (known !== undefined) return known
    if (this.#hosts.size >= this.#settings.maxHosts) {
      // Hosts whose names come from outside must not fill the memory, nor push out a breaker that is open.
      const idle = [...this.#hosts].find(([, host]) => host.open === 0 && host.breaker.state === 'closed')
      if (idle === undefined) throw new OutboundError('no_connection_free', 'Too many hosts', { host: origin })
      this.#hosts.delete(idle[0])
    }
    const counters = { calls: 0, open: 0, attempts: 0, retries: 0, answered: 0, failed: 0, refused: 0, fallbacks: 0 }
    const breaker = new Breaker(this.#settings.breaker, this.#now)
    const host: Host = { breaker, slots: new ConnectionSlots(this.#settings), ...counters }
    this.#hosts.set(origin, host)
    return host
  }
}

function tooLate(host: string, cause: OutboundError | undefined): OutboundError {
  return new OutboundError('deadline_exceeded', `No time left for ${host}`, {
    host,
    ...(cause !== undefined && { cause }),
  })
}

function stillFailing(host: string, answer: Response, now: number): OutboundError {
  const retryAfterMs = parseRetryAfter(answer.headers.get('retry-after'), now)
  return new OutboundError('still_failing', `${host} still answers ${answer.status}`, {
    host,
    upstreamStatus: answer.status,
    ...(retryAfterMs !== undefined && { retryAfterSeconds: retryAfterMs / 1000 }),
  })
}
