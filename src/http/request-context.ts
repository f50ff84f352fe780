/**
 * What is known of any request before anybody looks at its subject: its id and trace, where it comes from, and when it
 * began. The first middleware of all. It believes X-Forwarded-For of configured proxies alone, and leaves no forwarding
 * header behind for others to believe: behind it they say what was verified here, and what the issuer's URL says.
 */
import { AsyncLocalStorage } from 'node:async_hooks'
import { randomUUID } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import { BlockList, isIP, isIPv4 } from 'node:net'
import type { Context, Middleware, ParameterizedContext } from 'koa'

export interface RequestContext {
  /** the caller's X-Request-Id when it is harmless, else a UUID */
  readonly requestId: string
  /** 32 hexadecimal digits (W3C Trace Context) */
  readonly traceId: string
  /** what to send as `traceparent` with calls made for this request */
  readonly traceparent: string
  /** what to send as `tracestate` beside it */
  readonly tracestate: string | undefined
  /** the caller's address, in its shortest form; '' when the connection is gone already */
  readonly clientAddress: string
  /** what a limit counts as one caller: an IPv4 address, or the /64 of an IPv6 address */
  readonly network: string
  /** of performance.now() */
  readonly startedAt: number
}

/** What the middlewares of http/ keep in `ctx.state`. Subjects add who it was, for the log. */
export interface RequestState {
  request: RequestContext
  /** shorthands of `request.requestId` and `request.network` */
  requestId: string
  network: string
  /** called back when the answer has been sent or the caller has gone: {@link onceOver} */
  over: (() => void)[]
  /** aborted at the deadline and when the caller leaves (deadline.ts, behind which it is there) */
  signal: AbortSignal
  userId?: string
  clientId?: string
  /** the matched pattern, where no router of ours matched: `/authorize/:uid` */
  endpoint?: string
  /** why it failed, in words that name nobody */
  errorMessage?: string
  /** of the API, where the request chose one */
  apiVersion?: string
  /** the limit that turned it away, by name */
  rateLimited?: string
}

// What a write or a timer of a request keeps for a while: no more than this, or it would be all of the request.
const requests = new AsyncLocalStorage<RequestContext>()

/**
 * Calls back when the answer has been sent or the caller has gone; `ctx.res.writableFinished` tells which. One listener
 * for everybody who wants to know: there are half a dozen.
 */
export function onceOver(ctx: { readonly state: Pick<RequestState, 'over'> }, callback: () => void): void {
  ctx.state.over.push(callback)
}

/** The request that the caller is part of; undefined outside of any. */
export function findCurrentRequest(): RequestContext | undefined {
  return requests.getStore()
}

/** The fields that every log line written during a request carries. */
export function requestLogFields(): { request_id?: string; trace_id?: string } {
  const request = findCurrentRequest()
  return request === undefined ? {} : { request_id: request.requestId, trace_id: request.traceId }
}

export interface RequestContextSettings {
  /** peers whose X-Forwarded-For counts */
  readonly trustProxy: BlockList
  /** decides the host and scheme of every URL that is made: a header never does */
  readonly issuer: string
}

/**
 * Needs `app.proxy = true` (and `provider.proxy = true`), because the forwarding headers are then ours.
 */
export function requestContext({ trustProxy, issuer }: RequestContextSettings): Middleware<RequestState> {
  const { host, protocol } = new URL(issuer)
  // Asking a list is not free, and most installations trust nobody.
  const proxies = trustProxy.rules.length === 0 ? undefined : trustProxy
  return function requestContext(ctx, next) {
    const request = describeRequest(ctx.req, proxies)
    ctx.state.request = request
    ctx.state.requestId = request.requestId
    ctx.state.network = request.network
    const over: (() => void)[] = []
    ctx.state.over = over
    ctx.res.once('close', () => {
      for (const callback of over) callback()
    })
    ctx.set('X-Request-Id', request.requestId)
    ctx.set('Traceparent', request.traceparent)
    const { headers } = ctx.req
    if (headers['forwarded'] !== undefined) delete headers['forwarded']
    headers['x-forwarded-for'] = request.clientAddress
    headers['x-forwarded-host'] = host
    headers['x-forwarded-proto'] = protocol.slice(0, -1)
    return requests.run(request, next)
  }
}

/** What a log line says of who and where, once a request is done. */
export function describeEndpoint(ctx: ParameterizedContext<RequestState>): string {
  return `${ctx.method} ${describeRoute(ctx)}`
}

/** The matched pattern, once a request is done: one of as many as there are routes. A raw path may hold anything. */
export function describeRoute(ctx: ParameterizedContext<RequestState>): string {
  // Both routers, ours and the provider's, leave it here.
  const { _matchedRoute: pattern } = ctx as Context & { _matchedRoute?: unknown }
  return ctx.state.endpoint ?? (typeof pattern === 'string' ? pattern : '(no route)')
}

function describeRequest(req: IncomingMessage, proxies: BlockList | undefined): RequestContext {
  const peer = normalizeAddress(req.socket.remoteAddress ?? '')
  const clientAddress =
    proxies !== undefined && isTrusted(peer, proxies)
      ? findClientAddress(peer, req.headers['x-forwarded-for'], proxies)
      : peer
  const trace = readTraceparent(req.headers['traceparent'])
  // A request that begins here has one id, in two spellings.
  const id = randomUUID()
  const traceId = trace?.traceId ?? id.replaceAll('-', '')
  return {
    requestId: readRequestId(req.headers['x-request-id']) ?? id,
    traceId,
    traceparent: `00-${traceId}-${randomSpanId()}-${trace?.flags ?? '00'}`,
    tracestate: trace === undefined ? undefined : readTracestate(req.headers['tracestate']),
    clientAddress,
    network: networkOf(clientAddress),
    startedAt: performance.now(),
  }
}

/** 16 hexadecimal digits, never all zero: the end of a UUID, which Node makes from randomness that it holds ready. */
function randomSpanId(): string {
  return randomUUID().slice(19).replace('-', '')
}

function readRequestId(value: string | string[] | undefined): string | undefined {
  return typeof value === 'string' && /^[\w.-]{1,128}$/.test(value) ? value : undefined
}

/** W3C Trace Context §3.2: a header that does not follow the grammar is as good as none. */
function readTraceparent(value: string | string[] | undefined): { traceId: string; flags: string } | undefined {
  if (typeof value !== 'string') return undefined
  const [, version, traceId, parentId, flags, rest] =
    /^([\da-f]{2})-([\da-f]{32})-([\da-f]{16})-([\da-f]{2})(-.{0,200})?$/.exec(value) ?? []
  if (version === undefined || traceId === undefined || flags === undefined) return undefined
  if (version === 'ff' || (version === '00' && rest !== undefined)) return undefined
  if (/^0+$/.test(traceId) || /^0+$/.test(parentId ?? '')) return undefined
  // Only the bit "sampled" has a meaning that may be passed on in version 00.
  return { traceId, flags: Number.parseInt(flags, 16) % 2 === 1 ? '01' : '00' }
}

function readTracestate(value: string | string[] | undefined): string | undefined {
  const text = Array.isArray(value) ? value.join(',') : value
  return text !== undefined && /^[\x20-\x7e]{1,512}$/.test(text) ? text : undefined
}

const mostHops = 20

/**
 * The right-most address that is not a trusted proxy's: everything to its left was written by whoever that is.
 */
function findClientAddress(peer: string, header: string | string[] | undefined, trustProxy: BlockList): string {
  const hops = (Array.isArray(header) ? header.join(',') : (header ?? '')).split(',').slice(-mostHops)
  let client = peer
  for (const hop of hops.toReversed()) {
    const address = normalizeAddress(withoutPort(hop.trim()))
    // Unreadable: the proxy that passed it on is the last that is known.
    if (isIP(address) === 0) return client
    client = address
    if (!isTrusted(address, trustProxy)) return client
  }
  return client
}

function withoutPort(hop: string): string {
  return /^\[([^\]]+)\](?::\d{1,5})?$/.exec(hop)?.[1] ?? /^([\d.]+):\d{1,5}$/.exec(hop)?.[1] ?? hop
}

function isTrusted(address: string, trustProxy: BlockList): boolean {
  const family = isIP(address)
  return family !== 0 && trustProxy.check(address, family === 6 ? 'ipv6' : 'ipv4')
}

/** One spelling for one address: IPv4 out of IPv6 (`::ffff:192.0.2.1`), no zone, IPv6 shortened. */
export function normalizeAddress(address: string): string {
  if (isIPv4(address)) return address
  const [bare = ''] = address.split('%')
  const mapped = /^::ffff:(\d{1,3}(?:\.\d{1,3}){3})$/i.exec(bare)?.[1]
  if (mapped !== undefined && isIP(mapped) === 4) return mapped
  if (isIP(bare) !== 6) return bare
  const short = new URL(`http://[${bare}]`).hostname.slice(1, -1)
  const [, high, low] = /^::ffff:([\da-f]{1,4}):([\da-f]{1,4})$/.exec(short) ?? []
  if (high === undefined || low === undefined) return short
  const bits = [Number.parseInt(high, 16), Number.parseInt(low, 16)]
  return bits.flatMap((word) => [word >> 8, word & 0xff]).join('.')
}

/**
 * @param address as {@link normalizeAddress} writes it
 * @returns an IPv6 address's /64 (whoever holds one holds all of it), anything else as it is
 */
export function networkOf(address: string): string {
  if (isIP(address) !== 6) return address
  const [head = '', tail] = address.split('::')
  const left = head === '' ? [] : head.split(':')
  const right = tail === undefined || tail === '' ? [] : tail.split(':')
  const zeros = tail === undefined ? 0 : 8 - left.length - right.length
  const groups = [...left, ...Array.from({ length: zeros }, () => '0'), ...right].slice(0, 4)
  return `${groups.join(':')}::/64`
}
