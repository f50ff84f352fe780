import { once } from 'node:events'
import { createServer } from 'node:http'
import { describe, expect, it, onTestFinished } from 'vitest'
import { findOutgoingProblem, openOutgoing } from '../../src/http/outgoing.ts'

const refusedEverywhere = [
  'example.com',
  '/events',
  'ftp://example.com/',
  'javascript:alert(1)',
  'https:example.com',
  'https://user:password@example.com/',
  'https://example.com/#fragment',
  'https://10.1.2.3/',
  'https://172.16.0.1/',
  'https://192.168.1.1/',
  'https://169.254.169.254/latest/meta-data',
  'https://100.64.0.1/',
  'https://0.0.0.0/',
  'https://[::]/',
  'https://[fe80::1]/',
  'https://[fd12:3456::1]/',
  'https://[::ffff:10.0.0.1]/',
  // What else is set apart, by IANA's registries of special-purpose addresses.
  'https://192.0.0.170/',
  'https://192.31.196.1/',
  'https://192.52.193.1/',
  'https://192.88.99.1/',
  'https://192.175.48.6/',
  'https://198.19.255.255/',
  'https://224.0.0.251/',
  'https://255.255.255.255/',
  'https://[::7f00:1]/',
  'https://[::10.0.0.1]/',
  'https://[::ffff:8.8.8.8]/',
  'https://[::ffff:0:10.0.0.1]/',
  'https://[64:ff9b::10.0.0.1]/',
  'https://[64:ff9b:1::10.0.0.1]/',
  'https://[100::1]/',
  'https://[100:0:0:1::1]/',
  'https://[2001::1]/',
  'https://[2001:10::1]/',
  'https://[2001:db8::1]/',
  'https://[2002:a00:1::1]/',
  'https://[2620:4f:8000::1]/',
  'https://[3fff::1]/',
  'https://[4000::1]/',
  'https://[5f00::1]/',
  'https://[fec0::1]/',
  'https://[feff::1]/',
  'https://[ff02::1]/',
  // Other spellings of 10.0.0.1.
  'https://167772161/',
  'https://0x0a000001/',
  'https://012.0.0.1/',
]
const refusedInProduction = [
  'http://example.com/',
  'https://127.0.0.1/',
  'https://[::1]/',
  'https://[::ffff:127.0.0.1]/',
  'https://localhost/',
  'https://localhost./',
  'https://some.localhost/',
]

describe('an address that requests of ours go to', () => {
  it.each(refusedEverywhere)('is not %s', (url) => {
    expect(findOutgoingProblem(url, true)).toMatch(/^must/)
    expect(findOutgoingProblem(url, false)).toMatch(/^must/)
  })

  it.each(refusedInProduction)('is %s in development alone', (url) => {
    expect(findOutgoingProblem(url, true)).toBeUndefined()
    expect(findOutgoingProblem(url, false)).toMatch(/^must/)
  })

  it.each([
    'https://example.com/',
    'https://events.example.com:8443/feed?of=latchkey',
    'https://[2606:4700::1]/',
    'https://[2a00:1450::1]/',
  ])('may be %s', (url) => {
    expect(findOutgoingProblem(url, false)).toBeUndefined()
  })

  it('is looked at again when it is called: a name may lead anywhere', async () => {
    let calls = 0
    const server = createServer((_req, res) => {
      calls += 1
      res.end()
    }).listen(0, '127.0.0.1')
    await once(server, 'listening')
    const address = server.address()
    if (address === null || typeof address === 'string') throw new Error('a listening server has no port')
    const development = openOutgoing({ allowLoopback: true })
    const production = openOutgoing({ allowLoopback: false })
    onTestFinished(async () => {
      server.closeAllConnections()
      server.close()
      await development.close()
      await production.close()
    })
    const call = ({ fetch }: typeof production, url: string) => fetch(url).then(({ status }) => status)
    expect(await call(development, `http://localhost:${address.port}/`)).toBe(200)
    await expect(call(production, `https://localhost:${address.port}/`)).rejects.toMatchObject({
      cause: { message: 'localhost is not a public address' },
    })
    await expect(call(production, `https://127.0.0.1:${address.port}/`)).rejects.toThrow(/not a public address/)
    await expect(call(production, `http://example.com/`)).rejects.toThrow(/http: is not used/)
    expect(calls).toBe(1)
  })
})
