/**
 * Requests that the provider itself makes, to URLs that clients registered: their keys, their back-channel logout, and
 * where they want security events pushed. Such a URL could point into the operator's own network, so addresses are
 * checked after the name is resolved, literal ones before, and no redirect is followed. In development loopback is
 * allowed, since everything runs there.
 */
import { lookup as resolveName, type LookupAddress } from 'node:dns'
import { BlockList, isIP } from 'node:net'
import { Agent, fetch as undiciFetch, Headers, type RequestInit } from 'undici'
import { findCurrentRequest } from './request-context.ts'

// IANA's registries of special-purpose addresses, and multicast: nobody's receiver is there, but something of the
// operator's may be. Those that are globally reachable by it (6to4, AS112, AMT, Teredo) are relays and sinks.
const internal = new BlockList()
for (const [network, prefix] of [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['169.254.0.0', 16],
  ['172.16.0.0', 12],
  ['192.0.0.0', 24],
  ['192.0.2.0', 24],
  ['192.31.196.0', 24],
  ['192.52.193.0', 24],
  ['192.88.99.0', 24],
  ['192.168.0.0', 16],
  ['192.175.48.0', 24],
  ['198.18.0.0', 15],
  ['198.51.100.0', 24],
  ['203.0.113.0', 24],
  ['224.0.0.0', 3],
] as const) {
  internal.addSubnet(network, prefix, 'ipv4')
}
for (const [network, prefix] of [
  // Nothing outside 2000::/3 has been given out for global unicast: not the forms that hold an IPv4 address (::/96,
  // ::ffff:0:0/96, 64:ff9b::/96, 64:ff9b:1::/48), and not 100::/64, 5f00::/16, fc00::/7, fe80::/10, fec0::/10,
  // ff00::/8.
  ['::', 3],
  ['4000::', 2],
  ['8000::', 1],
  ['2001::', 23],
  ['2001:db8::', 32],
  ['2002::', 16],
  ['2620:4f:8000::', 48],
  ['3fff::', 20],
] as const) {
  internal.addSubnet(network, prefix, 'ipv6')
}
const loopback = new BlockList()
loopback.addSubnet('127.0.0.0', 8, 'ipv4')
loopback.addAddress('::1', 'ipv6')

function isForbidden(address: string, allowLoopback: boolean): boolean {
  // BlockList matches IPv4-mapped IPv6 addresses against the IPv4 rules.
  const family = isIP(address) === 6 ? 'ipv6' : 'ipv4'
  return loopback.check(address, family) ? !allowLoopback : internal.check(address, family)
}

/**
 * What is wrong with such a URL, as far as it can be seen before its name is resolved; undefined: nothing.
 *
 * @param allowLoopback in development: http, and this very machine
 */
export function findOutgoingProblem(url: string, allowLoopback: boolean): string | undefined {
  const parsed = URL.parse(url)
  if (parsed === null || !/^https?:\/\/[^/]/i.test(url)) return 'must be an absolute https URL'
  if (parsed.username !== '' || parsed.password !== '') return 'must not hold credentials'
  if (parsed.hash !== '') return 'must have no fragment'
  if (parsed.protocol !== 'https:' && !allowLoopback) return 'must be https'
  const literal = literalAddress(parsed.hostname)
  const isLocalName = /(^|\.)localhost\.?$/i.test(parsed.hostname)
  const isForbiddenHere = isIP(literal) !== 0 && isForbidden(literal, allowLoopback)
  return isForbiddenHere || (isLocalName && !allowLoopback)
    ? 'must not be an address of an internal network'
    : undefined
}

function literalAddress(hostname: string): string {
  return hostname.replace(/^\[|\]$/g, '')
}

export type OutgoingFetch = (url: string | URL, options?: RequestInit) => Promise<Response>

/**
 * @param timeoutMs of the connection and of the whole answer, in milliseconds
 */
export function openOutgoing({
  allowLoopback,
  timeoutMs = 2_500,
}: {
  readonly allowLoopback: boolean
  readonly timeoutMs?: number
}) {
  const agent = new Agent({
    connections: 10,
    headersTimeout: timeoutMs,
    bodyTimeout: timeoutMs,
    maxResponseSize: 256 * 1_024,
    connect: {
      timeout: timeoutMs,
      lookup(hostname, options, callback) {
        resolveName(hostname, { ...options, all: true }, (error, addresses: LookupAddress[]) => {
          const [first] = addresses ?? []
          const forbidden = (addresses ?? []).some(({ address }) => isForbidden(address, allowLoopback))
          if (error !== null || first === undefined || forbidden) {
            callback(error ?? new Error(`${hostname} is not a public address`), '', 4)
          } else if (options.all === true) {
            callback(null, addresses)
          } else {
            callback(null, first.address, first.family)
          }
        })
      },
    },
  })
  const fetch = async (url: string | URL, options: RequestInit = {}): Promise<Response> => {
    const { hostname, protocol } = new URL(url)
    const literal = literalAddress(hostname)
    if (protocol !== 'https:' && !allowLoopback) throw new Error(`${protocol} is not used for outgoing requests`)
    if (isIP(literal) !== 0 && isForbidden(literal, allowLoopback))
      throw new Error(`${hostname} is not a public address`)
    const response = await undiciFetch(url, {
      ...options,
      headers: withTrace(new Headers(options.headers)),
      redirect: 'manual',
      signal: AbortSignal.timeout(timeoutMs),
      dispatcher: agent,
    })
    return response as unknown as Response
  }
  return { fetch, close: () => agent.close() }
}

/** So that the logs of whoever is called can be read beside ours. */
function withTrace(headers: Headers): Headers {
  const request = findCurrentRequest()
  if (request === undefined) return headers
  headers.set('X-Request-Id', request.requestId)
  headers.set('Traceparent', request.traceparent)
  if (request.tracestate !== undefined) headers.set('Tracestate', request.tracestate)
  return headers
}
