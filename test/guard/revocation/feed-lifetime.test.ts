/** From the first request to the last: how a guard begins to listen, what it says of that, and how it ends. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { createGuard } from '@latchkey/guard'
import type { GuardOptions, RevocationFeedOptions } from '@latchkey/guard'
import { createTestIssuer } from '@latchkey/guard/testing'
import type { TestIssuer } from '@latchkey/guard/testing'
import { afterEach, beforeEach, describe, expect, it, onTestFinished } from 'vitest'
import { RevocationFeed } from '../../../src/guard/revocation/feed.ts'
import { Issuer } from '../../../src/guard/issuer.ts'
import { bodyOf, caughtUp, feedOf, guardOn, outcome, until, Wire } from '../support/wire.ts'

let idp: TestIssuer
let wire: Wire
let issuers = 0
const warnings: Error[] = []
const hear = (warning: Error): void => void warnings.push(warning)

beforeEach(async () => {
  // An issuer of which the process was not warned before.
  idp = await createTestIssuer({ issuer: `https://issuer-${(issuers += 1)}.test`, algorithm: 'ES256' })
  wire = new Wire(idp)
  warnings.length = 0
  process.on('warning', hear)
})

afterEach(() => process.off('warning', hear))

const told = (code: string): string[] =>
  warnings.filter((warning) => (warning as { code?: string }).code === code).map(({ message }) => message)

function feedOptions(more: Partial<RevocationFeedOptions>): Pick<GuardOptions, 'revocation'> {
  return { revocation: { ...idp.options.revocation, ...more } }
}

/** Nothing about it is known to the guard, as if it were never said. */
function withoutRevocation(): Omit<GuardOptions, 'revocation'> {
  const { revocation: _revocation, ...others } = idp.options
  return { ...others, fetch: wire.fetch }
}

describe('a guard without credentials for the feed', () => {
  it('works, says once that it knows of no revocations, and shows it', async () => {
    const guard = createGuard(withoutRevocation())
    const another = createGuard(withoutRevocation())
    onTestFinished(async () => void (await Promise.all([guard.close(), another.close()])))
    const token = await idp.mint()
    expect(await outcome(guard, token)).toBe('alice')
    await until('shown', () => another.health().revocation !== undefined && guard.health().revocation !== undefined)
    expect(guard.health()).toMatchObject({ status: 'ok', revocation: { status: 'off', reason: 'no credentials' } })
    await idp.revoke({ sub: 'alice' })
    expect(await outcome(guard, token)).toBe('alice')
    await until('warned', () => told('GUARD_REVOCATION_OFF').length > 0)
    expect(told('GUARD_REVOCATION_OFF')).toEqual([expect.stringContaining(idp.issuer)])
    expect(guard.metrics().revocation).toBeUndefined()
  })

  it('says nothing when that is meant, and does not even ask', async () => {
    const guard = guardOn(idp, wire, { revocation: false })
    expect(await outcome(guard, await idp.mint())).toBe('alice')
    expect(wire.requests.filter((request) => request.includes('ssf'))).toEqual([])
    expect(guard.health().revocation).toBeUndefined()
  })

  it('says nothing when the issuer has no feed', async () => {
    let asked = 0
    wire.intercept = (address) => {
      if (!address.includes('ssf-configuration')) return undefined
      asked += 1
      return new Response('not found', { status: 404 })
    }
    const guard = createGuard(withoutRevocation())
    onTestFinished(() => guard.close())
    expect(await outcome(guard, await idp.mint())).toBe('alice')
    await until('asked', () => asked > 0)
    await new Promise((resolve) => setTimeout(resolve, 50))
    expect(guard.health().revocation).toBeUndefined()
    expect(told('GUARD_REVOCATION_OFF')).toEqual([])
  })

  it('asks nobody when the keys were handed in', async () => {
    const jwks = (await (await idp.fetch(`${idp.issuer}/jwks`, {})).json()) as { keys: object[] }
    const guard = createGuard({
      ...withoutRevocation(),
      issuer: { issuer: idp.issuer, keys: { keys: jwks.keys.map((key) => ({ ...key })) } },
    })
    expect(await outcome(guard, await idp.mint())).toBe('alice')
    expect(wire.requests).toEqual([])
    await guard.close()
  })
})

describe('a guard that cannot have the feed', () => {
  it('falls back on asking the issuer, and says what is in the way: no such configuration', async () => {
    wire.intercept = (address) =>
      address.includes('ssf-configuration') ? new Response('', { status: 404 }) : undefined
    const guard = guardOn(idp, wire)
    expect(await outcome(guard, await idp.mint())).toBe('alice')
    expect(guard.health().status).toBe('degraded')
    expect(feedOf(guard)).toMatchObject({
      status: 'stale',
      caughtUp: false,
      ageSeconds: undefined,
      streamId: undefined,
    })
    expect(feedOf(guard).lastError).toContain('ssf-configuration')
    wire.intercept = () => undefined
    await caughtUp(guard)
    expect(guard.health().status).toBe('ok')
  })

  it('warns once when its credentials are refused, without telling them', async () => {
    const secret = 'a-secret-that-is-wrong'
    const guard = guardOn(idp, wire, feedOptions({ clientSecret: secret, onStale: 'deny' }))
    expect(await outcome(guard, await idp.mint())).toBe('503 revocation')
    expect(guard.health().status).toBe('unavailable')
    expect(feedOf(guard).lastError).toContain('invalid_client')
    await until('more attempts', () => wire.count('POST /token') > 2)
    const [warning, ...others] = told('GUARD_REVOCATION_REFUSED')
    expect(others).toEqual([])
    expect(warning).toContain('invalid_client')
    expect(JSON.stringify([warning, guard.health()])).not.toContain(secret)
  })

  it.each<[string, (document: Record<string, unknown>) => void, string]>([
    ['a configuration that speaks for another', (document) => (document['issuer'] = 'https://evil.test'), 'speaks for'],
    [
      'an endpoint that is not safe',
      (document) => (document['configuration_endpoint'] = 'http://issuer.test/ssf/streams'),
      'https',
    ],
    ['no endpoint', (document) => delete document['configuration_endpoint'], 'configuration_endpoint'],
  ])('sends its secret nowhere else: %s', async (_what, change, error) => {
    wire.intercept = async (address, init) => {
      const answer = await idp.fetch(address, init)
      if (!address.includes('ssf-configuration')) return answer
      const document = (await answer.json()) as Record<string, unknown>
      change(document)
      return Response.json(document)
    }
    const guard = guardOn(idp, wire, feedOptions({ onStale: 'allow' }))
    expect(await outcome(guard, await idp.mint())).toBe('alice')
    expect(feedOf(guard).lastError).toContain(error)
    expect(wire.count('POST /ssf/streams')).toBe(0)
    expect(wire.count('POST /token')).toBe(0)
  })

  it.each<[string, object, string]>([
    ['of another issuer', { iss: 'https://evil.test' }, 'is of "https://evil.test"'],
    ['without an id', { stream_id: undefined }, 'stream_id'],
    ['polled somewhere unsafe', { delivery: { endpoint_url: 'http://10.0.0.1/poll' } }, 'https'],
    ['polled nowhere', { delivery: undefined }, 'endpoint_url'],
  ])('takes no stream %s', async (_what, change, error) => {
    wire.intercept = async (address, init) => {
      const answer = await idp.fetch(address, init)
      if (!address.endsWith('/ssf/streams') || init.method !== 'POST') return answer
      return Response.json({ ...((await answer.json()) as object), ...change }, { status: 201 })
    }
    const guard = guardOn(idp, wire, feedOptions({ onStale: 'allow' }))
    await until('an error', () => feedOf(guard).lastError !== undefined)
    expect(feedOf(guard).lastError).toContain(error)
    expect(wire.polls).toEqual([])
  })
})

describe('at the beginning', () => {
  it('the first requests wait for the feed to catch up, and know what was revoked before', async () => {
    const [dead, alive] = [await idp.mint({ sub: 'mallory' }), await idp.mint()]
    await idp.revoke({ sub: 'mallory' })
    const guard = guardOn(idp, wire, feedOptions({ onStale: 'deny' }))
    expect(feedOf(guard)).toMatchObject({ status: 'starting', caughtUp: false, entries: 0, errors: 0 })
    expect(await Promise.all([outcome(guard, dead), outcome(guard, alive)])).toEqual(['401 revoked', 'alice'])
    expect(wire.count('POST /introspect')).toBe(0)
    expect(feedOf(guard)).toMatchObject({ status: 'current', caughtUp: true, entries: 1, ageSeconds: 0 })
  })

  it('an answer is not enough: only the verification event proves that nothing is left', async () => {
    let state: string | undefined
    wire.intercept = (address, init) => {
      if (!address.endsWith('/ssf/verification')) return undefined
      state = (JSON.parse(bodyOf(init)) as { state: string }).state
      return new Response(null, { status: 204 })
    }
    const guard = guardOn(idp, wire, feedOptions({ onStale: 'deny' }))
    const dead = await idp.mint({ sub: 'mallory' })
    await idp.revoke({ sub: 'mallory' })
    const alive = await idp.mint()
    await until('events', () => feedOf(guard).entries === 1)
    expect(feedOf(guard)).toMatchObject({ status: 'starting', caughtUp: false })
    const [first, second] = [outcome(guard, dead), outcome(guard, alive)]
    // Known to be dead is known.
    expect(await first).toBe('401 revoked')
    expect(state).toMatch(/^[0-9a-f-]{36}$/)
    const type = 'https://schemas.openid.net/secevent/ssf/event-type/verification'
    const verification = async (answered: string): Promise<void> => {
      const jti = `verification ${answered}`
      const claims = { jti, aud: `${idp.issuer}/ssf`, events: { [type]: { state: answered } } }
      wire.inject({ [jti]: await idp.mint({ header: { typ: 'secevent+jwt' }, claims }) })
      await until('taken', () => wire.verdictOn(jti) === 'ack')
    }
    await verification('somebody else’s')
    expect(feedOf(guard).caughtUp).toBe(false)
    await verification(state ?? '')
    expect(feedOf(guard)).toMatchObject({ status: 'current', caughtUp: true })
    expect(await second).toBe('alice')
  })

  it('a request waits for five seconds at most: then it is as if the feed were stale', async () => {
    wire.intercept = (address) => (address.endsWith('/poll') ? new Promise(() => undefined) : undefined)
    const guard = guardOn(idp, wire, feedOptions({ onStale: 'deny' }))
    const began = performance.now()
    expect(await outcome(guard, await idp.mint())).toBe('503 revocation')
    expect(performance.now() - began).toBeLessThan(7000)
    expect(performance.now() - began).toBeGreaterThan(4500)
  })

  it('a verification endpoint that always fails is waited for by nobody, and said to be in the way', async () => {
    idp.outage('verification')
    const guard = guardOn(idp, wire, feedOptions({ onStale: 'allow', maxStaleness: '10s' }))
    const began = performance.now()
    expect(await outcome(guard, await idp.mint())).toBe('alice')
    expect(performance.now() - began).toBeLessThan(2000)
    for (let request = 0; request < 20; request += 1) {
      expect(await outcome(guard, await idp.mint())).toBe('alice')
      expect(feedOf(guard).status).toBe('stale')
      expect(feedOf(guard).lastError).toContain('verification')
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    // It listens all the same, and wastes no breath.
    void idp.revoke({ sub: 'alice' })
    await until('known', () => feedOf(guard).entries === 1)
    expect(wire.count('POST /ssf/verification')).toBeLessThan(4)
    expect(wire.count('POST /ssf/streams')).toBe(1)
  })

  it('a verification that never comes is waited for once, by all requests together', async () => {
    wire.intercept = (address) =>
      address.endsWith('/ssf/verification') ? new Response(null, { status: 204 }) : undefined
    const guard = guardOn(idp, wire, feedOptions({ onStale: 'allow' }))
    const began = performance.now()
    await new Promise((resolve) => setTimeout(resolve, 50))
    const first = outcome(guard, await idp.mint())
    await new Promise((resolve) => setTimeout(resolve, 2500))
    expect(await Promise.all([first, outcome(guard, await idp.mint())])).toEqual(['alice', 'alice'])
    expect(performance.now() - began).toBeLessThan(6500)
    const again = performance.now()
    expect(await outcome(guard, await idp.mint())).toBe('alice')
    expect(performance.now() - again).toBeLessThan(500)
    expect(feedOf(guard)).toMatchObject({ status: 'stale', caughtUp: false })
    expect(feedOf(guard).lastError).toContain('verification')
  })

  it('two thousand revocations are caught up with, and all of them count', async () => {
    const tokens: string[] = []
    for (let at = 0; at < 10; at += 1) tokens.push(await idp.mint({ sub: `user-${at * 222}` }))
    for (let at = 0; at < 2000; at += 1) await idp.revoke({ sub: `user-${at}` })
    const guard = guardOn(idp, wire, feedOptions({ onStale: 'deny' }))
    await until('caught up', () => feedOf(guard).caughtUp, 40_000)
    expect(feedOf(guard)).toMatchObject({ entries: 2000, errors: 0 })
    expect(guard.metrics().revocation).toMatchObject({ events: 2000 })
    for (const token of tokens) expect(await outcome(guard, token)).toBe('401 revoked')
    expect(await outcome(guard, await idp.mint())).toBe('alice')
  })
})

describe('what the guard tells of its feed', () => {
  it('is how far it has come', async () => {
    const guard = guardOn(idp, wire)
    await caughtUp(guard)
    const { streamId } = feedOf(guard)
    expect(feedOf(guard)).toMatchObject({ issuer: idp.issuer, onStale: 'introspect', maxStalenessSeconds: 60 })
    expect(streamId).toMatch(/^[0-9a-f-]{36}$/)
    const dead = await idp.mint({ sub: 'mallory' })
    expect(await outcome(guard, dead)).toBe('mallory')
    await idp.revoke({ sub: 'mallory' })
    expect(feedOf(guard)).toMatchObject({ entries: 1, streamId, lastEvent: { jti: expect.any(String) as string } })
    expect(Math.abs((feedOf(guard).lastEvent?.at.getTime() ?? 0) - idp.now())).toBeLessThan(2000)
    expect(feedOf(guard).bytes).toBeGreaterThan(0)
    expect(guard.metrics().revocation).toMatchObject({ events: 1, ignored: 0, refused: 0, failures: 0 })
    expect(guard.metrics().revocation?.['polls']).toBeGreaterThanOrEqual(2)
    expect(await outcome(guard, dead)).toBe('401 revoked')
    expect(guard.metrics().refused).toEqual({ revoked: 1 })
  })

  it('is nothing that a caller who was refused could see', async () => {
    const guard = guardOn(idp, wire, feedOptions({ onStale: 'deny' }))
    await caughtUp(guard)
    idp.outage('events')
    idp.advance('61s')
    const request = new Request('https://service.test/', { headers: { authorization: `Bearer ${await idp.mint()}` } })
    const refusal: unknown = await guard.authenticate(request).catch((error: unknown) => error)
    expect(await (refusal as { toResponse: () => Response }).toResponse().text()).not.toMatch(/feed|stream|introspect/)
  })
})

describe('options that cannot be meant', () => {
  it.each<[string, object]>([
    ['no secret', { clientSecret: '' }],
    ['no client', { clientId: undefined }],
    ['a budget of nothing', { maxStaleness: 0 }],
    ['a budget that is no time', { maxStaleness: 'soon' }],
    ['a budget of more than a day', { maxStaleness: '25h' }],
    ['a budget that is no number', { maxStaleness: Number.NaN }],
    ['a way out that there is not', { onStale: 'hope' }],
    ['no room', { maxEntries: 0 }],
  ])('are refused when the guard is made: %s', (_what, more) => {
    expect(() => createGuard({ ...idp.options, ...feedOptions(more as Partial<RevocationFeedOptions>) })).toThrow(
      TypeError,
    )
  })

  it('are those that would send a secret to an unsafe address', () => {
    const issuer = { issuer: 'http://id.example.com', keys: { keys: [] }, allowHttp: false }
    expect(() => createGuard({ ...idp.options, issuer })).toThrow(TypeError)
  })

  it('are taken in whatever unit they are said', () => {
    for (const [maxStaleness, seconds] of [
      [90, 90],
      ['90s', 90],
      ['5m', 300],
      ['24h', 86_400],
      [1.5, 1.5],
    ] as const) {
      const settings = new Issuer({ issuer: idp.issuer }, idp.fetch, Date.now)
      const feed = new RevocationFeed(
        { ...idp.options.revocation, maxStaleness },
        {
          issuer: settings,
          fetch: idp.fetch,
          now: Date.now,
          clock: Date.now,
          algorithms: new Set(),
          maxLifetimeSeconds: 9,
        },
      )
      expect(feed.health().maxStalenessSeconds).toBe(seconds)
    }
  })
})

describe('several issuers', () => {
  let other: TestIssuer
  let fetch: NonNullable<GuardOptions['fetch']>

  beforeEach(async () => {
    other = await createTestIssuer({ issuer: 'https://other.test', algorithm: 'ES256' })
    fetch = (address, init) =>
      address.startsWith(other.issuer) ? other.fetch(address, init) : wire.fetch(address, init)
  })

  const about = (one: TestIssuer, subjectPrefix: string, revocation: RevocationFeedOptions | false) => ({
    issuer: one.issuer,
    subjectPrefix,
    revocation,
  })
  const rest = { audience: 'https://api.test', algorithms: ['ES256' as const] }

  it('have a feed each, and a token is a matter of its own issuer’s', async () => {
    const issuers = [about(idp, 'a:', idp.options.revocation), about(other, 'b:', other.options.revocation)]
    const guard = createGuard({ ...rest, issuers, fetch })
    onTestFinished(() => guard.close())
    const [ours, theirs] = [await idp.mint(), await other.mint()]
    expect([await outcome(guard, ours), await outcome(guard, theirs)]).toEqual(['a:alice', 'b:alice'])
    await other.revoke({ sub: 'alice' })
    expect([await outcome(guard, ours), await outcome(guard, theirs)]).toEqual(['a:alice', '401 revoked'])
    await idp.revoke({ sub: 'alice' })
    expect(await outcome(guard, ours)).toBe('401 revoked')
    const { feeds } = guard.health().revocation as { feeds: { issuer: string; entries: number }[] }
    expect(feeds.map(({ issuer, entries }) => [issuer, entries])).toEqual([
      [idp.issuer, 1],
      [other.issuer, 1],
    ])
    expect(guard.metrics().revocation).toMatchObject({ events: 2 })
  })

  it('may have one or none', async () => {
    const guard = createGuard({
      ...rest,
      issuers: [about(idp, 'a:', idp.options.revocation), about(other, 'b:', false)],
      fetch,
    })
    onTestFinished(() => guard.close())
    const [ours, theirs] = [await idp.mint(), await other.mint()]
    await Promise.all([idp.revoke({ sub: 'alice' }), other.revoke({ sub: 'alice' })])
    expect([await outcome(guard, ours), await outcome(guard, theirs)]).toEqual(['401 revoked', 'b:alice'])
  })

  it('are all shown, one that is not listened to as well', async () => {
    const [ours, theirs] = [about(idp, 'a:', idp.options.revocation), { issuer: other.issuer, subjectPrefix: 'b:' }]
    const guard = createGuard({ ...rest, issuers: [ours, theirs], fetch })
    onTestFinished(() => guard.close())
    const feeds = (): { issuer: string; status: string }[] =>
      (guard.health().revocation as { feeds: { issuer: string; status: string }[] }).feeds
    await until('both known', () => feeds().length === 2 && feeds()[0]?.status === 'current')
    expect(guard.health().status).toBe('ok')
    expect(feeds()).toEqual([
      expect.objectContaining({ issuer: idp.issuer, status: 'current' }),
      { issuer: other.issuer, status: 'off', reason: 'no credentials' },
    ])
    const deaf = createGuard({ ...rest, issuers: [{ ...ours, revocation: false }, theirs], fetch })
    onTestFinished(() => deaf.close())
    await until('known', () => deaf.health().revocation !== undefined)
    // `false` was meant, and is not spoken of.
    expect(deaf.health().revocation).toEqual({
      feeds: [{ issuer: other.issuer, status: 'off', reason: 'no credentials' }],
    })
  })

  it('are not told each other’s secrets', () => {
    const both = [about(idp, 'a:', false), about(other, 'b:', false)]
    const { revocation } = idp.options
    expect(() => createGuard({ ...rest, issuers: both, fetch, revocation })).toThrow(TypeError)
    const plain = both.map(({ issuer, subjectPrefix }) => ({ issuer, subjectPrefix }))
    expect(() => createGuard({ ...rest, issuers: plain, fetch, revocation })).toThrow(TypeError)
  })
})

describe('in the end', () => {
  it('everything stops at once, and the stream is let go', async () => {
    const guard = guardOn(idp, wire)
    await caughtUp(guard)
    const began = performance.now()
    await guard.close()
    expect(performance.now() - began).toBeLessThan(500)
    expect(wire.count('DELETE /ssf/streams')).toBe(1)
    const { length } = wire.requests
    await new Promise((resolve) => setTimeout(resolve, 600))
    expect(wire.requests.length).toBe(length)
    await guard.close()
  })

  it('an issuer that does not answer keeps nobody waiting', async () => {
    const guard = guardOn(idp, wire)
    await caughtUp(guard)
    wire.intercept = () => new Promise(() => undefined)
    const began = performance.now()
    await guard.close()
    expect(performance.now() - began).toBeLessThan(2000)
  })

  it('a pause after a failure is no reason to wait', async () => {
    wire.intercept = () => new Response('', { status: 503, headers: { 'retry-after': '30' } })
    const guard = guardOn(idp, wire)
    await until('failed', () => feedOf(guard).errors > 0)
    const began = performance.now()
    await guard.close()
    expect(performance.now() - began).toBeLessThan(500)
  })

  it('the process goes, with the guard closed or never used', async () => {
    const program = `
      import { createServer } from 'node:http'
      import { createGuard } from '@latchkey/guard'
      import { createTestIssuer } from '@latchkey/guard/testing'
      const server = createServer(async (request, response) => {
        const chunks = []
        for await (const chunk of request) chunks.push(chunk)
        const { method, headers, url } = request
        const answer = await idp.fetch(idp.issuer + url, { method, headers, body: Buffer.concat(chunks).toString() })
        response.writeHead(answer.status, Object.fromEntries(answer.headers)).end(await answer.text())
      })
      await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
      server.unref()
      const idp = await createTestIssuer({ issuer: 'http://127.0.0.1:' + server.address().port })
      const { fetch, now, ...options } = idp.options
      const guard = createGuard(options)
      const headers = { authorization: 'Bearer ' + (await idp.mint()) }
      const auth = await guard.authenticate(new Request('http://service.test', { headers }))
      console.log(auth.subject.id, guard.health().revocation.status)
      await guard.close()
      createGuard({ ...options, issuer: 'http://127.0.0.1:1' })
      await new Promise((resolve) => setTimeout(resolve, 300))`
    const run = promisify(execFile)
    const { stdout } = await run(process.execPath, ['--input-type=module', '--eval', program], { timeout: 20_000 })
    expect(stdout.trim()).toBe('alice current')
  })
})
