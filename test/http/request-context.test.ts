import { BlockList } from 'node:net'
import { describe, expect, it } from 'vitest'
import {
  findCurrentRequest,
  networkOf,
  normalizeAddress,
  requestContext,
  requestLogFields,
  type RequestContext,
} from '../../src/http/request-context.ts'
import { serveApp } from '../support/serve-app.ts'

const issuer = 'https://id.example.com'

/** Sends one request and returns what is known of it, and the answer's headers. */
async function describeRequest(
  headers: Record<string, string>,
  trusted: readonly string[] = [],
): Promise<{ request: RequestContext; seen: { url: string; ip: string; forwarded: string }; headers: Headers }> {
  const trustProxy = new BlockList()
  for (const address of trusted) trustProxy.addAddress(address, address.includes(':') ? 'ipv6' : 'ipv4')
  const url = await serveApp(requestContext({ trustProxy, issuer }), async (ctx) => {
    await Promise.resolve()
    const seen = { url: ctx.href, ip: ctx.ip, forwarded: ctx.get('Forwarded') }
    ctx.body = { request: findCurrentRequest(), seen }
  })
  const answer = await fetch(`${url}/somewhere`, { headers })
  return { ...((await answer.json()) as { request: RequestContext; seen: never }), headers: answer.headers }
}

describe('X-Request-Id', () => {
  for (const id of ['a b', 'x'.repeat(129), 'a"b', '<script>', 'a,b', 'naïve']) {
    it(`is not taken over when it is ${JSON.stringify(id.slice(0, 12))}`, async () => {
      const { request, headers } = await describeRequest({ 'X-Request-Id': Buffer.from(id).toString('latin1') })
      expect(request.requestId).toMatch(/^[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$/)
      expect(headers.get('x-request-id')).toBe(request.requestId)
    })
  }

  it('is taken over and echoed when it is harmless', async () => {
    const { request, headers } = await describeRequest({ 'X-Request-Id': 'order-7.f_3' })
    expect(request.requestId).toBe('order-7.f_3')
    expect(headers.get('x-request-id')).toBe('order-7.f_3')
  })

  it('is on every log line within the request, and on none outside', async () => {
    expect(requestLogFields()).toEqual({})
    const url = await serveApp(requestContext({ trustProxy: new BlockList(), issuer }), async (ctx) => {
      await new Promise((resolve) => setTimeout(resolve, 20))
      ctx.body = requestLogFields()
    })
    const ids = ['first', 'second', 'third']
    const answers = await Promise.all(
      ids.map(async (id) => (await fetch(url, { headers: { 'X-Request-Id': id } })).json()),
    )
    expect(answers).toEqual(ids.map((id) => ({ request_id: id, trace_id: expect.any(String) as string })))
  })
})

describe('traceparent', () => {
  const trace = '4bf92f3577b34da6a3ce929d0e0e4736'
  const parent = '00f067aa0ba902b7'

  for (const header of [
    `00-${trace.toUpperCase()}-${parent}-01`,
    `00-${'0'.repeat(32)}-${parent}-01`,
    `00-${trace}-${'0'.repeat(16)}-01`,
    `ff-${trace}-${parent}-01`,
    `00-${trace}-${parent}-01-more`,
    `00-${trace}-${parent}`,
    `01-${trace}-${parent}-01more`,
    `00-${trace}-${parent}-01, 00-${trace}-${parent}-01`,
    'nonsense',
  ]) {
    it(`begins a new trace for ${header}`, async () => {
      const { request } = await describeRequest({ traceparent: header, tracestate: 'vendor=1' })
      expect(request.traceparent).toMatch(/^00-[\da-f]{32}-[\da-f]{16}-00$/)
      expect(request.traceId).not.toContain(trace)
      expect(request.tracestate).toBeUndefined()
    })
  }

  it('is continued under a new span, and answered', async () => {
    const { request, headers } = await describeRequest({
      traceparent: `00-${trace}-${parent}-03`,
      tracestate: 'vendor=1',
    })
    expect(request.traceId).toBe(trace)
    expect(request.traceparent).toMatch(new RegExp(`^00-${trace}-[\\da-f]{16}-01$`))
    expect(request.traceparent).not.toContain(parent)
    expect(request.tracestate).toBe('vendor=1')
    expect(headers.get('traceparent')).toBe(request.traceparent)
  })

  it('is continued from a version that is not known yet', async () => {
    expect((await describeRequest({ traceparent: `cc-${trace}-${parent}-00-later` })).request.traceId).toBe(trace)
  })
})

describe('forwarding headers', () => {
  it('of a peer that is no configured proxy are not believed, and not left for others', async () => {
    const { request, seen } = await describeRequest({
      'X-Forwarded-For': '203.0.113.7',
      'X-Forwarded-Host': 'evil.example',
      'X-Forwarded-Proto': 'http',
      Forwarded: 'for=203.0.113.7;host=evil.example',
    })
    expect(request.clientAddress).toBe('127.0.0.1')
    expect(seen).toEqual({ url: `${issuer}/somewhere`, ip: '127.0.0.1', forwarded: '' })
  })

  it('name the right-most address that is no proxy, whatever the caller wrote before it', async () => {
    const { request, seen } = await describeRequest({ 'X-Forwarded-For': '198.51.100.99, 203.0.113.7, 10.0.0.2' }, [
      '127.0.0.1',
      '10.0.0.2',
    ])
    expect(request.clientAddress).toBe('203.0.113.7')
    expect(seen.ip).toBe('203.0.113.7')
  })

  it('name the last known hop when what is before it cannot be read', async () => {
    for (const hop of ['unknown', '', '999.1.1.1', '_hidden', '10.0.0.3:port']) {
      const { request } = await describeRequest({ 'X-Forwarded-For': `203.0.113.7, ${hop}, 10.0.0.2` }, [
        '127.0.0.1',
        '10.0.0.2',
      ])
      expect(request.clientAddress).toBe('10.0.0.2')
    }
  })

  it('may carry ports and IPv6 in any spelling', async () => {
    const trusted = ['127.0.0.1']
    const cases = {
      '203.0.113.7:4711': '203.0.113.7',
      '[2001:DB8:0:0::1]:443': '2001:db8::1',
      '::ffff:192.0.2.1': '192.0.2.1',
    }
    for (const [written, meant] of Object.entries(cases)) {
      expect((await describeRequest({ 'X-Forwarded-For': written }, trusted)).request.clientAddress).toBe(meant)
    }
  })

  it('of a proxy that sends none leave the proxy itself', async () => {
    expect((await describeRequest({}, ['127.0.0.1'])).request.clientAddress).toBe('127.0.0.1')
  })
})

describe('addresses', () => {
  it('have one spelling', () => {
    expect(normalizeAddress('::ffff:192.0.2.1')).toBe('192.0.2.1')
    expect(normalizeAddress('::FFFF:C000:0201')).toBe('192.0.2.1')
    expect(normalizeAddress('0:0:0:0:0:0:0:1')).toBe('::1')
    expect(normalizeAddress('fe80::1%eth0')).toBe('fe80::1')
    expect(normalizeAddress('')).toBe('')
  })

  it('of IPv6 count by their /64, since whoever has one address has them all', () => {
    expect(networkOf('2001:db8:1:2:3:4:5:6')).toBe('2001:db8:1:2::/64')
    expect(networkOf('2001:db8:1:2::6')).toBe(networkOf('2001:db8:1:2:ffff::'))
    expect(networkOf('2001:db8::6')).toBe('2001:db8:0:0::/64')
    expect(networkOf('::1')).toBe('0:0:0:0::/64')
    expect(networkOf('192.0.2.1')).toBe('192.0.2.1')
  })
})
