/** The feed of revocations: what is taken for true, whom it kills, and how old it may be. */
import { generateKeyPairSync, sign } from 'node:crypto'
import { createGuard } from '@latchkey/guard'
import type { Guard, GuardOptions, RevocationFeedOptions } from '@latchkey/guard'
import { createTestIssuer } from '@latchkey/guard/testing'
import type { MintOptions, TestIssuer, TestRevocation } from '@latchkey/guard/testing'
import { afterEach, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import {
  caughtUp,
  CLAIMS_CHANGED,
  CREDENTIAL_CHANGED,
  feedOf,
  guardOn,
  outcome,
  SESSION_REVOKED,
  setOf,
  until,
  Wire,
} from '../support/wire.ts'

let idp: TestIssuer
const mends: (() => void)[] = []

beforeAll(async () => {
  idp = await createTestIssuer()
})

afterEach(() => {
  for (const mend of mends.splice(0)) mend()
})

function outage(part: 'events' | 'feed' | 'jwks'): () => void {
  const mend = idp.outage(part)
  mends.push(mend)
  return mend
}

const seconds = (): number => Math.floor(idp.now() / 1000)

function feedOptions(more: Partial<RevocationFeedOptions> = {}): Pick<GuardOptions, 'revocation'> {
  return { revocation: { ...idp.options.revocation, ...more } }
}

async function listening(options: Partial<GuardOptions> = {}): Promise<{ guard: Guard; wire: Wire }> {
  const wire = new Wire(idp)
  const guard = guardOn(idp, wire, options)
  await caughtUp(guard)
  return { guard, wire }
}

/** Puts one token on the wire and waits for what the guard says to it. */
async function deliver(wire: Wire, set: { jti: string; token: string }): Promise<string | undefined> {
  wire.inject({ [set.jti]: set.token })
  await until('an answer to the event', () => wire.verdictOn(set.jti) !== undefined)
  return wire.verdictOn(set.jti)
}

const jwtId = (jti: string): object => ({ format: 'jwt_id', iss: idp.issuer, jti })
const issSub = (sub: string): object => ({ format: 'iss_sub', iss: idp.issuer, sub })
const opaque = (id: string): object => ({ format: 'opaque', id })
const revokedNow = (more: object = {}): object => ({ [SESSION_REVOKED]: { event_timestamp: seconds(), ...more } })

function jtiOf(token: string): string {
  const claims = JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString()) as { jti: string }
  return claims.jti
}

describe('an event that is not the issuer’s word to us', () => {
  let victim: string
  let feed: { guard: Guard; wire: Wire }

  /** Refused with that error, reported to the issuer, counted, and without effect. */
  async function expectRefused(set: { jti: string; token: string }, error: string): Promise<void> {
    const before = feedOf(feed.guard)
    expect(await deliver(feed.wire, set)).toBe(error)
    expect(await outcome(feed.guard, victim)).toBe('alice')
    const after = feedOf(feed.guard)
    expect(after.errors).toBe(before.errors + 1)
    expect(after.lastRefusal).toContain(error)
    expect(after.entries).toBe(before.entries)
  }

  async function set(changed: { claims?: object; header?: object } = {}, events: object = revokedNow()) {
    feed = await listening()
    victim = await idp.mint()
    return setOf(idp, jwtId(jtiOf(victim)), events, changed)
  }

  /** Without effect, and neither acknowledged nor refused: it may be verified later, and until then it is owed. */
  async function expectOwed(set: { jti: string; token: string }, error: string): Promise<void> {
    const polls = feed.wire.polls.length
    feed.wire.inject({ [set.jti]: set.token })
    await until('a reason', () => feedOf(feed.guard).lastError?.includes(error) === true)
    await until('another poll', () => feed.wire.polls.length > polls)
    expect(feed.wire.verdictOn(set.jti)).toBeUndefined()
    expect(await outcome(feed.guard, victim)).toBe('alice')
    expect(feedOf(feed.guard)).toMatchObject({ entries: 0, lastRefusal: undefined })
    expect(feedOf(feed.guard).lastError).toContain(error)
  }

  it('is not believed without a signature that fits', async () => {
    const { jti, token } = await set()
    const seal = token.split('.')[2] ?? ''
    const forged = token.replace(seal, seal.startsWith('A') ? `B${seal.slice(1)}` : `A${seal.slice(1)}`)
    await expectOwed({ jti, token: forged }, 'authentication_failed')
  })

  it('is not believed when somebody else signed it, under our issuer’s key name or its own', async () => {
    const { jti, token } = await set()
    const attacker = generateKeyPairSync('rsa', { modulusLength: 2048 })
    const [head = '', body = ''] = token.split('.')
    const sealed = (header: string): string => {
      const seal = sign('sha256', Buffer.from(`${header}.${body}`), attacker.privateKey).toString('base64url')
      return `${header}.${body}.${seal}`
    }
    await expectOwed({ jti, token: sealed(head) }, 'authentication_failed')
    const strange = Buffer.from(JSON.stringify({ alg: 'RS256', typ: 'secevent+jwt', kid: 'mine' })).toString(
      'base64url',
    )
    feed = await listening()
    await expectOwed({ jti: 'again', token: sealed(strange) }, 'invalid_key')
    // Asked of the issuer once more, before it was called unknown.
    expect(feed.wire.count('GET /jwks')).toBeGreaterThan(1)
  })

  it('is not believed when it is signed in a way that was not agreed to', async () => {
    await expectOwed(await set({ header: { alg: 'PS256' } }), 'invalid_key')
  })

  it.each<[string, { claims?: object; header?: object }, string]>([
    ['for another audience', { claims: { aud: 'https://issuer.test/other' } }, 'invalid_audience'],
    ['for nobody', { claims: { aud: undefined } }, 'invalid_audience'],
    ['of another issuer', { claims: { iss: 'https://evil.test' } }, 'invalid_issuer'],
    ['that is an access token', { header: { typ: 'at+jwt' } }, 'invalid_request'],
    ['that is no more than a JWT', { header: { typ: 'JWT' } }, 'invalid_request'],
    ['without a type', { header: { typ: undefined } }, 'invalid_request'],
    ['that brings its own key', { header: { jwk: { kty: 'RSA' } } }, 'invalid_request'],
    ['that must be understood in some other way', { header: { crit: ['exp'] } }, 'invalid_request'],
    ['without a signature', { header: { alg: 'none' } }, 'invalid_request'],
    ['without an id', { claims: { jti: undefined } }, 'invalid_request'],
    ['that came under another id', { claims: { jti: 'another' } }, 'invalid_request'],
    ['without events', { claims: { events: undefined } }, 'invalid_request'],
    ['whose events are a list', { claims: { events: [] } }, 'invalid_request'],
    ['that does not say when', { claims: { iat: undefined, events: { [SESSION_REVOKED]: {} } } }, 'invalid_request'],
  ])('is refused: one %s', async (_what, changed, error) => {
    await expectRefused(await set(changed), error)
  })

  it.each([
    ['a version that is no number', { token_version: '7' }],
    ['a negative version', { token_version: -1 }],
  ])('is refused: %s', async (_what, more) => {
    feed = await listening()
    victim = await idp.mint()
    await expectRefused(await setOf(idp, issSub('alice'), revokedNow(more)), 'invalid_request')
  })

  it('is refused when it is no token, or a monstrous one', async () => {
    await set()
    await expectRefused({ jti: 'a', token: 'junk' }, 'invalid_request')
    await expectRefused({ jti: 'b', token: `${'a'.repeat(9000)}.${'b'.repeat(9000)}.c` }, 'invalid_request')
    await expectRefused({ jti: 'c', token: 7 as unknown as string }, 'invalid_request')
    // A name that means something to JavaScript is a name like any other.
    await expectRefused({ jti: 'constructor', token: 'junk' }, 'invalid_request')
  })

  it('does not keep the good ones around it from being taken in', async () => {
    const good = await set()
    feed.wire.inject({ bad: 'junk', [good.jti]: good.token, worse: 'junk' })
    await until('all three answered', () => feed.wire.verdictOn('worse') !== undefined)
    expect(feed.wire.verdictOn(good.jti)).toBe('ack')
    expect(await outcome(feed.guard, victim)).toBe('401 revoked')
  })
})

describe('an event that means nothing here', () => {
  it.each<[string, (alice: string) => [object | undefined, object]]>([
    [
      'of an unknown type',
      (jti) => [jwtId(jti), { 'https://example.com/tea-is-ready': { event_timestamp: seconds() } }],
    ],
    ['about nobody', () => [undefined, revokedNow()]],
    ['about a subject of unknown form', () => [{ format: 'email', email: 'alice@example.com' }, revokedNow()]],
    ['about another issuer’s token', (jti) => [{ format: 'jwt_id', iss: 'https://other.test', jti }, revokedNow()]],
    ['about another issuer’s user', () => [{ ...issSub('alice'), iss: 'https://other.test' }, revokedNow()]],
    ['about a device', () => [{ format: 'complex', device: opaque('phone') }, revokedNow()]],
    [
      'about a user on a device, who is not dead everywhere',
      () => [{ format: 'complex', user: issSub('alice'), device: opaque('phone') }, revokedNow()],
    ],
    [
      'about a user at a client, who is not dead everywhere',
      () => [{ format: 'complex', user: issSub('alice'), application: opaque('test-client') }, revokedNow()],
    ],
    ['of changed claims of a token', (jti) => [jwtId(jti), { [CLAIMS_CHANGED]: { event_timestamp: seconds() } }]],
  ])('is acknowledged, counted and ignored: one %s', async (_what, about) => {
    const { guard, wire } = await listening()
    const alice = await idp.mint()
    const [subject, events] = about(jtiOf(alice))
    expect(await deliver(wire, await setOf(idp, subject, events))).toBe('ack')
    expect(guard.metrics().revocation).toMatchObject({ ignored: 1, refused: 0, events: 0 })
    expect(await outcome(guard, alice)).toBe('alice')
  })
})

describe('what is revoked is dead at once, seen before or not', () => {
  const kinds: readonly (readonly [string, MintOptions, MintOptions, (dead: string) => TestRevocation, string])[] = [
    ['a token', {}, {}, (dead) => ({ jti: jtiOf(dead) }), 'carol'],
    ['a session', { claims: { sid: 's1' } }, { claims: { sid: 's2' } }, () => ({ sid: 's1' }), 'carol'],
    ['a session, its user named', { claims: { sid: 's3' } }, {}, () => ({ sid: 's3', sub: 'carol' }), 'carol'],
    ['a family', { claims: { grant_id: 'g1' } }, { claims: { grant_id: 'g2' } }, () => ({ grantId: 'g1' }), 'carol'],
    ['a user', {}, { sub: 'dave' }, () => ({ sub: 'carol' }), 'dave'],
    ['a client', { clientId: 'app-1' }, { clientId: 'app-2' }, () => ({ clientId: 'app-1' }), 'carol'],
    [
      'what fits two things',
      { clientId: 'app-3', claims: { sid: 's4' } },
      { clientId: 'app-3' },
      () => ({ clientId: 'app-3', sid: 's4' }),
      'carol',
    ],
  ]

  it.each(kinds)('%s', async (_kind, doomed, other, revocation, survivor) => {
    const { guard } = await listening()
    const mint = (options: MintOptions): Promise<string> => idp.mint({ sub: 'carol', ...options })
    const [seen, unseen, seenOther, unseenOther] = [
      await mint(doomed),
      await mint(doomed),
      await mint(other),
      await mint(other),
    ]
    expect([await outcome(guard, seen), await outcome(guard, seenOther)]).toEqual(['carol', survivor])
    const what = revocation(seen)
    await idp.revoke(what)
    const hits = guard.metrics().cacheHits
    expect(await outcome(guard, seen)).toBe('401 revoked')
    expect(guard.metrics().cacheHits).toBe(hits + 1)
    expect(await outcome(guard, unseen)).toBe(what.jti === undefined ? '401 revoked' : 'carol')
    expect([await outcome(guard, seenOther), await outcome(guard, unseenOther)]).toEqual([survivor, survivor])
    // And whoever comes back with a new token is let in: but for a session or a family, which do not come back.
    const again = await mint(doomed)
    const isOver = what.sid !== undefined || what.grantId !== undefined
    expect(await outcome(guard, again)).toBe(isOver && what.clientId === undefined ? '401 revoked' : 'carol')
  })

  it('everything signed with a key, and what is signed with it afterwards', async () => {
    const own = await createTestIssuer()
    const guard = createGuard({ ...own.options })
    onTestFinished(() => guard.close())
    const [seen, unseen] = [await own.mint(), await own.mint()]
    expect(await outcome(guard, seen)).toBe('alice')
    const { kid } = own
    own.rotateKeys()
    const bySecondKey = await own.mint()
    expect(await outcome(guard, bySecondKey)).toBe('alice')
    await own.revoke({ kid })
    expect([await outcome(guard, seen), await outcome(guard, unseen)]).toEqual(['401 revoked', '401 revoked'])
    expect(await outcome(guard, bySecondKey)).toBe('alice')
    expect(await outcome(guard, await own.mint())).toBe('alice')
    await own.revoke({ kid: own.kid })
    expect(await outcome(guard, await own.mint())).toBe('401 revoked')
  })

  it.each([SESSION_REVOKED, CLAIMS_CHANGED, CREDENTIAL_CHANGED])('a user’s tokens until now, by %s', async (type) => {
    const { guard, wire } = await listening()
    const sub = `eve of ${type}`
    const at = seconds() - 100
    const mint = (iat: number): Promise<string> => idp.mint({ sub, claims: { iat } })
    const [before, then, after] = [await mint(at - 1), await mint(at), await mint(at + 1)]
    expect(await outcome(guard, then)).toBe(sub)
    await deliver(wire, await setOf(idp, issSub(sub), { [type]: { event_timestamp: at } }))
    expect(await outcome(guard, before)).toBe('401 revoked')
    expect(await outcome(guard, then)).toBe('401 revoked')
    expect(await outcome(guard, after)).toBe(sub)
  })

  it.each([SESSION_REVOKED, CLAIMS_CHANGED, CREDENTIAL_CHANGED])('a user’s older versions, by %s', async (type) => {
    const { guard, wire } = await listening()
    const sub = `frank of ${type}`
    const mint = (version?: number): Promise<string> => idp.mint({ sub, claims: { token_version: version } })
    const [none, lower, same, higher] = [await mint(), await mint(6), await mint(7), await mint(8)]
    expect(await outcome(guard, lower)).toBe(sub)
    const subject = { format: 'complex', user: issSub(sub) }
    await deliver(wire, await setOf(idp, subject, { [type]: { event_timestamp: seconds(), token_version: 7 } }))
    const outcomes = await Promise.all([none, lower, same, higher].map((token) => outcome(guard, token)))
    expect(outcomes).toEqual(['401 revoked', '401 revoked', sub, sub])
  })

  it('a client’s own older versions, whenever they were issued, and what it holds for people until now', async () => {
    const { guard, wire } = await listening()
    const at = seconds() - 100
    const mint = (sub: string, iat: number, version?: number): Promise<string> =>
      idp.mint({ sub, clientId: 'batch', claims: { iat, token_version: version } })
    const tokens = await Promise.all([
      mint('batch', at - 1, 6),
      mint('batch', at + 50, 6),
      mint('batch', at + 50),
      mint('batch', at - 50, 7),
      mint('niaj', at, 9),
      mint('niaj', at + 1, 0),
    ])
    const subject = { format: 'complex', application: opaque('batch') }
    await deliver(wire, await setOf(idp, subject, { [SESSION_REVOKED]: { event_timestamp: at, token_version: 7 } }))
    expect(await Promise.all(tokens.map((token) => outcome(guard, token)))).toEqual([
      '401 revoked',
      '401 revoked',
      '401 revoked',
      'batch',
      '401 revoked',
      'niaj',
    ])
  })

  it('in whatever order the events come: an older one never weakens a newer one', async () => {
    const { guard, wire } = await listening()
    const at = seconds()
    const token = await idp.mint({ sub: 'grace', claims: { iat: at - 50, token_version: 4 } })
    const about = (sub: string, more: object) => setOf(idp, issSub(sub), { [SESSION_REVOKED]: more })
    await deliver(wire, await about('grace', { event_timestamp: at - 50 }))
    await deliver(wire, await about('grace', { event_timestamp: at - 500 }))
    expect(await outcome(guard, token)).toBe('401 revoked')
    const other = await idp.mint({ sub: 'heidi', claims: { token_version: 4 } })
    await deliver(wire, await about('heidi', { event_timestamp: at, token_version: 5 }))
    await deliver(wire, await about('heidi', { event_timestamp: at, token_version: 3 }))
    expect(await outcome(guard, other)).toBe('401 revoked')
  })

  it('for as long as the event says, and a little longer', async () => {
    const { guard, wire } = await listening()
    const token = await idp.mint({ expiresIn: '2h' })
    await deliver(wire, await setOf(idp, jwtId(jtiOf(token)), revokedNow({ expires_at: seconds() + 600 })))
    expect(feedOf(guard).entries).toBeGreaterThan(0)
    idp.advance(890)
    expect(await outcome(guard, token)).toBe('401 revoked')
    idp.advance(20)
    await until('fresh again', () => feedOf(guard).status === 'current')
    expect(await outcome(guard, token)).toBe('alice')
  })
})

describe('how old the news may be', () => {
  /** A guard whose clock stands still until it is told otherwise. */
  async function frozen(options: Partial<RevocationFeedOptions>): Promise<{
    guard: Guard
    wire: Wire
    clock: { ms: number }
  }> {
    const clock = { ms: idp.now() }
    const { guard, wire } = await listening({ now: () => clock.ms, ...feedOptions(options) })
    return { guard, wire, clock }
  }

  it.each<[RevocationFeedOptions['onStale'], string]>([
    ['deny', '503 revocation'],
    ['introspect', '503 revocation'],
    ['allow', 'alice'],
  ])('flips exactly at the budget, for a token seen before too; then %s', async (onStale, expected) => {
    const { guard, clock } = await frozen({ maxStaleness: '90s', ...(onStale && { onStale }) })
    const [seen, dead] = [await idp.mint(), await idp.mint({ sub: 'mallory' })]
    expect(await outcome(guard, seen)).toBe('alice')
    await idp.revoke({ sub: 'mallory' })
    outage('events')
    clock.ms += 90_000
    expect(await outcome(guard, seen)).toBe('alice')
    expect(await outcome(guard, await idp.mint())).toBe('alice')
    expect(feedOf(guard)).toMatchObject({ status: 'current', ageSeconds: 90 })
    clock.ms += 1
    expect(await outcome(guard, seen)).toBe(expected)
    expect(await outcome(guard, await idp.mint())).toBe(expected)
    // What is known to be dead stays dead.
    expect(await outcome(guard, dead)).toBe('401 revoked')
    expect(feedOf(guard)).toMatchObject({ status: 'stale', onStale, caughtUp: true })
    expect(guard.health().status).toBe(onStale === 'deny' ? 'unavailable' : 'degraded')
    clock.ms -= 1
    expect(await outcome(guard, seen)).toBe('alice')
  })

  it('says 503 with Retry-After, never 401', async () => {
    const { guard, clock } = await frozen({ onStale: 'deny' })
    const token = await idp.mint()
    outage('events')
    clock.ms += 60_001
    const request = new Request('https://service.test/', { headers: { authorization: `Bearer ${token}` } })
    const refusal: unknown = await guard.authenticate(request).catch((error: unknown) => error)
    expect(refusal).toMatchObject({ status: 503, reason: 'revocation', headers: { 'Retry-After': '1' } })
  })

  it('does not take old news for fresh when the clock is set back', async () => {
    const { guard, clock } = await frozen({ onStale: 'deny' })
    outage('events')
    clock.ms -= 3_600_000
    const claims = { iat: seconds() - 7200, exp: seconds() + 7200 }
    expect(await outcome(guard, await idp.mint({ claims }))).toBe('503 revocation')
  })

  it.each([-120, 120])('is not measured by the issuer’s clock: %i s apart, all is as ever', async (skew) => {
    const { guard } = await listening({ now: () => idp.now() + skew * 1000, ...feedOptions({ onStale: 'deny' }) })
    const iat = seconds() - 300
    const mint = (sub: string): Promise<string> => idp.mint({ sub, clientId: `${sub} at ${skew}`, claims: { iat } })
    const tokens = [await mint('judy'), await mint('niaj'), await mint('olivia')]
    expect(await Promise.all(tokens.map((token) => outcome(guard, token)))).toEqual(['judy', 'niaj', 'olivia'])
    await idp.revoke({ sub: 'judy' })
    await idp.revoke({ clientId: `niaj at ${skew}` })
    const outcomes = await Promise.all(tokens.map((token) => outcome(guard, token)))
    expect(outcomes).toEqual(['401 revoked', '401 revoked', 'olivia'])
  })

  it('asks the issuer about each token when the feed is gone, once in five seconds for each', async () => {
    const { guard, wire, clock } = await frozen({})
    const [alice, revokedMeanwhile] = [await idp.mint(), await idp.mint({ sub: 'peggy' })]
    expect(await outcome(guard, revokedMeanwhile)).toBe('peggy')
    outage('feed')
    await idp.revoke({ sub: 'peggy' })
    // Not known yet, and within the budget.
    expect(await outcome(guard, revokedMeanwhile)).toBe('peggy')
    clock.ms += 60_001
    expect(await outcome(guard, revokedMeanwhile)).toBe('401 revoked')
    const many = await Promise.all(Array.from({ length: 50 }, () => outcome(guard, alice)))
    expect(new Set(many)).toEqual(new Set(['alice']))
    expect(wire.count('POST /introspect')).toBe(2)
    clock.ms += 4999
    expect(await outcome(guard, alice)).toBe('alice')
    expect(wire.count('POST /introspect')).toBe(2)
    clock.ms += 2
    expect(await outcome(guard, alice)).toBe('alice')
    expect(wire.count('POST /introspect')).toBe(3)
    expect(guard.metrics().revocation).toMatchObject({ introspections: 3, introspectionFailures: 0 })
  })

  it('asks about few tokens at a time, and about none for a moment when that keeps failing', async () => {
    const { guard, wire, clock } = await frozen({})
    const mend = outage('feed')
    clock.ms += 60_001
    let atOnce = 0
    let most = 0
    const held: (() => void)[] = []
    wire.intercept = (address) => {
      if (!address.endsWith('/introspect')) return undefined
      atOnce += 1
      most = Math.max(most, atOnce)
      return new Promise((resolve) => {
        held.push(() => {
          atOnce -= 1
          resolve(Response.json({ active: true }))
        })
      })
    }
    const tokens = await Promise.all(Array.from({ length: 300 }, () => idp.mint()))
    const outcomes = tokens.map((token) => outcome(guard, token))
    await until('as many as may be', () => held.length === 16)
    const drain = setInterval(() => held.splice(0).forEach((release) => release()), 1)
    const seen = await Promise.all(outcomes)
    clearInterval(drain)
    expect(most).toBeLessThanOrEqual(17)
    // Sixteen were asked about, 256 waited, the others were too many.
    expect(seen.filter((one) => one === 'alice').length).toBeGreaterThan(250)
    expect(seen.filter((one) => one === '503 revocation').length).toBeGreaterThan(10)

    let failures = 0
    wire.intercept = (address) => {
      if (!address.endsWith('/introspect')) return undefined
      failures += 1
      return new Response('', { status: 500 })
    }
    for (let request = 0; request < 20; request += 1)
      expect(await outcome(guard, await idp.mint())).toBe('503 revocation')
    expect(failures).toBe(3)
    wire.intercept = () => undefined
    clock.ms += 1000
    expect(await outcome(guard, await idp.mint())).toBe('alice')
    mend()
  })
})

describe('a feed that is broken off', () => {
  it('comes back by itself and has lost nothing', async () => {
    const { guard, wire } = await listening(feedOptions({ onStale: 'deny' }))
    const streams = wire.count('POST /ssf/streams')
    const tokens = await Promise.all(['ruth', 'sybil', 'trent'].map((sub) => idp.mint({ sub })))
    expect(await Promise.all(tokens.map((token) => outcome(guard, token)))).toEqual(['ruth', 'sybil', 'trent'])
    const mend = outage('events')
    await until('noticed', () => feedOf(guard).lastError !== undefined)
    await idp.revoke({ sub: 'ruth' })
    await idp.revoke({ sub: 'sybil' })
    expect(await outcome(guard, tokens[0] ?? '')).toBe('ruth')
    idp.advance('61s')
    expect(await outcome(guard, tokens[0] ?? '')).toBe('503 revocation')
    mend()
    await caughtUp(guard)
    const outcomes = await Promise.all(tokens.map((token) => outcome(guard, token)))
    expect(outcomes).toEqual(['401 revoked', '401 revoked', 'trent'])
    expect(feedOf(guard).lastError).toBeUndefined()
    // The same stream, which kept what came meanwhile.
    expect(wire.count('POST /ssf/streams')).toBe(streams)
  })

  it('opens a new stream when the old one is gone, and catches up anew', async () => {
    const { guard, wire } = await listening(feedOptions({ onStale: 'deny' }))
    const token = await idp.mint({ sub: 'victor' })
    const { streamId } = feedOf(guard)
    let isGone = true
    wire.intercept = (address) =>
      isGone && address.endsWith('/poll') ? new Response(null, { status: 404 }) : undefined
    wire.inject({})
    // The wire holds the poll that was under way: it ends with the stream.
    await idp.fetch(`${idp.issuer}/ssf/streams?stream_id=${streamId}`, {
      method: 'DELETE',
      headers: { authorization: await bearer() },
    })
    await until('gone', () => feedOf(guard).streamId === undefined)
    await idp.revoke({ sub: 'victor' })
    // Within the budget it goes on with what it knows.
    expect(feedOf(guard)).toMatchObject({ status: 'current', caughtUp: false })
    isGone = false
    await until('caught up anew', () => feedOf(guard).caughtUp)
    expect(feedOf(guard).streamId).not.toBe(streamId)
    expect(await outcome(guard, token)).toBe('401 revoked')
  })

  it('opens a new stream when the old one is paused or disabled', async () => {
    const { guard, wire } = await listening()
    const { streamId } = feedOf(guard)
    const type = 'https://schemas.openid.net/secevent/ssf/event-type/stream-updated'
    const set = await setOf(idp, opaque(streamId ?? ''), { [type]: { status: 'paused' } })
    wire.inject({ [set.jti]: set.token })
    await until(
      'another stream',
      () => ![streamId, undefined].includes(feedOf(guard).streamId) && feedOf(guard).caughtUp,
    )
  })

  it('gets a new access token when its own has run out, or is refused all the same', async () => {
    const { guard, wire } = await listening()
    expect(wire.count('POST /token')).toBe(1)
    idp.advance('10m')
    await until('polled again', () => wire.count('POST /token') === 2 && feedOf(guard).status === 'current')
    let refusals = 1
    wire.intercept = (address) => {
      if (!address.endsWith('/poll') || refusals === 0) return undefined
      refusals -= 1
      return new Response(null, { status: 401 })
    }
    // The token at hand must be older than a second to be worth replacing.
    idp.advance(2)
    wire.inject(await oneSet())
    await until('a third', () => wire.count('POST /token') === 3 && refusals === 0)
    idp.advance('1s')
    await until('current', () => feedOf(guard).status === 'current')
  })

  it('waits longer after each failure, and not longer than the transmitter asks for', async () => {
    const { guard, wire } = await listening()
    const times: number[] = []
    wire.intercept = (address) => {
      if (!address.endsWith('/poll')) return undefined
      times.push(performance.now())
      return new Response(null, { status: 500 })
    }
    wire.inject(await oneSet())
    await until('four attempts', () => times.length === 4)
    const gaps = times.slice(1).map((time, at) => time - (times[at] ?? 0))
    expect(gaps[0]).toBeGreaterThan(100)
    expect(gaps[1]).toBeGreaterThan(220)
    expect(gaps[2]).toBeGreaterThan(450)
    expect(feedOf(guard).lastError).toContain('500')
    wire.intercept = (address) => {
      if (!address.endsWith('/poll')) return undefined
      times.push(performance.now())
      return new Response(null, { status: 503, headers: { 'retry-after': '2' } })
    }
    await until('told to wait', () => times.length === 5, 5000)
    await until('waited', () => times.length === 6, 5000)
    expect((times[5] ?? 0) - (times[4] ?? 0)).toBeGreaterThan(1900)
  })

  it('asks ever more slowly when the transmitter answers at once and says nothing', async () => {
    const { guard, wire } = await listening()
    wire.intercept = (address) => (address.endsWith('/poll') ? Response.json({ sets: {} }) : undefined)
    const before = wire.polls.length
    wire.inject(await oneSet())
    await new Promise((resolve) => setTimeout(resolve, 1500))
    expect(wire.polls.length - before).toBeLessThan(20)
    expect(feedOf(guard).status).toBe('current')
  })

  it.each<[string, () => Response]>([
    ['no JSON', () => new Response('<html>')],
    ['a list', () => Response.json([])],
    ['sets that are a list', () => Response.json({ sets: [] })],
    [
      'far too many',
      () => Response.json({ sets: Object.fromEntries(Array.from({ length: 3000 }, (_, at) => [at, 'x'])) }),
    ],
    ['an endless body', () => new Response(endless())],
  ])('does not choke on an answer of %s', async (_what, answer) => {
    const { guard, wire } = await listening()
    const token = await idp.mint()
    let isBad = true
    wire.intercept = (address) => (isBad && address.endsWith('/poll') ? answer() : undefined)
    wire.inject(await oneSet())
    await until('noticed', () => feedOf(guard).lastError !== undefined)
    expect(await outcome(guard, token)).toBe('alice')
    isBad = false
    await until('well again', () => feedOf(guard).lastError === undefined)
  })

  it('takes in what it could not verify as soon as it can, and is not fresh before', async () => {
    const own = await createTestIssuer()
    const clock = { ms: own.now() }
    const wire = new Wire(own)
    const guard = guardOn(own, wire, { now: () => clock.ms })
    await caughtUp(guard)
    const token = await own.mint({ sub: 'walter' })
    expect(await outcome(guard, token)).toBe('walter')
    own.rotateKeys()
    const mend = own.outage('jwks')
    const revoking = own.revoke({ sub: 'walter' })
    await until('not verified', () => feedOf(guard).lastError !== undefined)
    expect(wire.polls.at(-1)?.setErrs).toBeUndefined()
    mend()
    clock.ms += 60_000
    await until('asked again', () => wire.count('GET /jwks') > 1)
    await revoking
    expect(await outcome(guard, token)).toBe('401 revoked')
    expect(feedOf(guard)).toMatchObject({ status: 'current', lastRefusal: undefined })
  })

  it('is not fresh while there is something that it could not take in, though nothing else comes', async () => {
    const own = await createTestIssuer()
    const clock = { ms: own.now() }
    const wire = new Wire(own)
    const guard = guardOn(own, wire, { now: () => clock.ms })
    await caughtUp(guard)
    own.rotateKeys()
    const mend = own.outage('jwks')
    const subject = { format: 'complex', session: opaque('s9') }
    const { jti, token } = await setOf(own, subject, revokedNow())
    wire.inject({ [jti]: token })
    await until('not verified', () => feedOf(guard).lastError !== undefined)
    clock.ms += 20_000
    const polls = guard.metrics().revocation?.['polls'] ?? 0
    await until('an answer that says nothing', () => (guard.metrics().revocation?.['polls'] ?? 0) > polls)
    expect(feedOf(guard)).toMatchObject({ status: 'current', ageSeconds: 20 })
    clock.ms += 40_001
    expect(feedOf(guard).status).toBe('stale')
    mend()
    clock.ms += 60_000
    wire.inject({ [jti]: token })
    await until('taken in', () => wire.verdictOn(jti) === 'ack')
    expect(feedOf(guard)).toMatchObject({ status: 'current', entries: 1 })
  })

  it('looks for a new key at once when the issuer names it, whatever strangers did before', async () => {
    const own = await createTestIssuer()
    const wire = new Wire(own)
    const guard = guardOn(own, wire, { issuer: own.issuer })
    await caughtUp(guard)
    expect(await outcome(guard, await own.mint({ header: { kid: 'made up' } }))).toBe('401 unknown_key')
    const token = await own.mint({ sub: 'walter' })
    own.rotateKeys()
    // A stranger's key is not looked for again so soon.
    expect(await outcome(guard, await own.mint())).toBe('401 unknown_key')
    await own.revoke({ sub: 'walter' })
    expect(await outcome(guard, token)).toBe('401 revoked')
    expect(feedOf(guard).lastRefusal).toBeUndefined()
  })

  const oneSet = async (): Promise<Record<string, string>> => {
    const { jti, token } = await setOf(idp, jwtId('nobody’s'), revokedNow())
    return { [jti]: token }
  }

  async function bearer(): Promise<string> {
    const { clientId, clientSecret } = idp.options.revocation
    const response = await idp.fetch(`${idp.issuer}/token`, {
      method: 'POST',
      headers: { authorization: `Basic ${Buffer.from(`${clientId}:${clientSecret}`).toString('base64')}` },
      body: new URLSearchParams({ grant_type: 'client_credentials', resource: `${idp.issuer}/ssf` }).toString(),
    })
    return `Bearer ${((await response.json()) as { access_token: string }).access_token}`
  }
})

describe('a stream that says nothing', () => {
  async function onOwnIssuer(options: Partial<RevocationFeedOptions> = {}) {
    const own = await createTestIssuer()
    const wire = new Wire(own)
    const guard = guardOn(own, wire, { revocation: { ...own.options.revocation, onStale: 'deny', ...options } })
    await caughtUp(guard)
    await until('a poll waits', () => wire.polls.at(-1)?.returnImmediately === false)
    return { own, wire, guard, streamId: feedOf(guard).streamId }
  }

  /** Lets time pass in steps, so that the guard lives through it. */
  async function pass(own: TestIssuer, wire: Wire, seconds: number, step = 5): Promise<void> {
    for (let passed = 0; passed < seconds; passed += step) {
      const { length } = wire.requests
      own.advance(step)
      // Whatever comes of that, and nothing may.
      await until('', () => wire.requests.length > length, 40).catch(() => undefined)
    }
  }

  it.each(['paused', 'disabled'] as const)('because somebody %s it is not believed, and given up', async (status) => {
    const { own, wire, guard, streamId } = await onOwnIssuer()
    const token = await own.mint({ expiresIn: '1h' })
    own.setStreams(status, { silently: true })
    await own.revoke({ sub: 'alice' })
    expect(await outcome(guard, token)).toBe('alice')
    await pass(own, wire, 65)
    // Answers came, and were not taken for proof.
    expect(await outcome(guard, token)).not.toBe('alice')
    await pass(own, wire, 60)
    await until('another stream', () => ![streamId, undefined].includes(feedOf(guard).streamId))
    await caughtUp(guard)
    expect(await outcome(guard, token)).toBe('401 revoked')
    expect(wire.count('DELETE /ssf/streams')).toBe(1)
  })

  it('although there is more, is not believed either, and given up within half a minute', async () => {
    const { own, wire, guard, streamId } = await onOwnIssuer()
    const token = await own.mint({ expiresIn: '1h' })
    own.setStreams('paused', { silently: true })
    await own.revoke({ sub: 'alice' })
    wire.intercept = (address) =>
      address.includes(`${streamId}/poll`) ? Response.json({ sets: {}, moreAvailable: true }) : undefined
    own.advance(25)
    await until('asked', () => wire.polls.length > 4)
    const { ageSeconds } = feedOf(guard)
    own.advance(20)
    expect(feedOf(guard).ageSeconds).toBe((ageSeconds ?? 0) + 20)
    own.advance(11)
    await until('another stream', () => ![streamId, undefined].includes(feedOf(guard).streamId))
    await until('caught up', () => feedOf(guard).caughtUp)
    expect(await outcome(guard, token)).toBe('401 revoked')
  })

  it('because nothing happens goes on, at the price of a verification in half a minute or more', async () => {
    const { own, wire, guard, streamId } = await onOwnIssuer()
    for (let minutes = 0; minutes < 5; minutes += 1) {
      await pass(own, wire, 60, 10)
      await until('current', () => feedOf(guard).status === 'current')
    }
    expect(feedOf(guard)).toMatchObject({ streamId, errors: 0, lastError: undefined })
    expect(wire.count('POST /ssf/verification')).toBeGreaterThan(5)
    expect(wire.count('POST /ssf/verification')).toBeLessThan(12)
  })

  it('is not asked more often than it wants to be', async () => {
    const own = await createTestIssuer()
    const wire = new Wire(own)
    wire.intercept = (address, init) => {
      if (!address.endsWith('/ssf/streams') || init.method !== 'POST') return undefined
      return (async () => {
        const stream = (await (await own.fetch(address, init)).json()) as object
        return Response.json({ ...stream, min_verification_interval: 200 }, { status: 201 })
      })()
    }
    const guard = guardOn(own, wire)
    await caughtUp(guard)
    await pass(own, wire, 195)
    expect(wire.count('POST /ssf/verification')).toBe(1)
    expect(feedOf(guard).status).toBe('current')
    await pass(own, wire, 70)
    expect(wire.count('POST /ssf/verification')).toBe(2)
  })

  it('of what it could not be told the first time is given up for one that begins with everything', async () => {
    const { own, wire, guard, streamId } = await onOwnIssuer()
    const token = await own.mint({ expiresIn: '1h' })
    const mend = own.outage('stale-jwks')
    own.rotateKeys()
    void own.revoke({ sub: 'alice' })
    await until('owed', () => feedOf(guard).lastError?.includes('invalid_key') === true)
    // The transmitter believes that it was taken in.
    let isLost = true
    wire.intercept = (address) =>
      isLost && address.includes(`${streamId}/poll`) ? Response.json({ sets: {} }) : undefined
    mend()
    const polls = wire.polls.length
    await until('answers', () => wire.polls.length > polls + 2)
    expect(feedOf(guard).lastError).toContain('invalid_key')
    await pass(own, wire, 40)
    await until('another stream', () => ![streamId, undefined].includes(feedOf(guard).streamId))
    isLost = false
    await caughtUp(guard)
    expect(await outcome(guard, token)).toBe('401 revoked')
    expect(feedOf(guard).lastError).toBeUndefined()
  })
})

describe('a key that the guard cannot know yet', () => {
  /** An HTTP cache in front of the keys, which keeps them for five minutes. */
  function cached(own: TestIssuer, heedsNoCache: boolean): Wire {
    const wire = new Wire(own)
    let kept: { text: string; until: number } | undefined
    wire.intercept = (address, init) => {
      if (!address.endsWith('/jwks')) return undefined
      const isPast = heedsNoCache && new Headers(init.headers).get('cache-control') === 'no-cache'
      return (async () => {
        if (kept === undefined || isPast || own.now() >= kept.until) {
          kept = { text: await (await own.fetch(address, init)).text(), until: own.now() + 300_000 }
        }
        return new Response(kept.text, { headers: { 'cache-control': 'max-age=300' } })
      })()
    }
    return wire
  }

  /** The key that signs is revoked: what tells of that is signed with one that nobody has heard of. */
  function revokeKey(own: TestIssuer): void {
    const { kid } = own
    own.rotateKeys()
    void own.revoke({ kid })
  }

  it('is asked for past the caches in between', async () => {
    const own = await createTestIssuer()
    const guard = guardOn(own, cached(own, true), { revocation: { ...own.options.revocation, onStale: 'deny' } })
    const token = await own.mint()
    expect(await outcome(guard, token)).toBe('alice')
    revokeKey(own)
    await until('known', () => feedOf(guard).entries === 1)
    expect(await outcome(guard, token)).toBe('401 revoked')
    expect(feedOf(guard)).toMatchObject({ errors: 0, lastError: undefined })
  })

  it('leaves the feed stale when caches keep it back, says so, and heals', async () => {
    const own = await createTestIssuer()
    const wire = cached(own, false)
    const guard = guardOn(own, wire, { revocation: { ...own.options.revocation, onStale: 'deny' } })
    const token = await own.mint({ expiresIn: '1h' })
    expect(await outcome(guard, token)).toBe('alice')
    await caughtUp(guard)
    const { streamId } = feedOf(guard)
    revokeKey(own)
    await until('noticed', () => feedOf(guard).lastError !== undefined)
    own.advance(61)
    expect(await outcome(guard, token)).toBe('503 revocation')
    const polls = wire.polls.length
    await until('asked again', () => wire.polls.length > polls + 1)
    expect(feedOf(guard)).toMatchObject({ status: 'stale', entries: 0, lastRefusal: undefined })
    expect(feedOf(guard).lastError).toContain('invalid_key')
    expect(wire.polls.every(({ setErrs }) => setErrs === undefined)).toBe(true)
    own.advance(300)
    await caughtUp(guard)
    expect(await outcome(guard, token)).toBe('401 revoked')
    expect(feedOf(guard)).toMatchObject({ streamId, lastError: undefined })
  }, 60_000)
})

describe('revocations for which there is no room', () => {
  it('leave the feed stale, say so, and matter no more when they have run out, although they never come again', async () => {
    const own = await createTestIssuer()
    const wire = new Wire(own)
    const revocation = { ...own.options.revocation, onStale: 'deny' as const, maxEntries: 2 }
    const guard = guardOn(own, wire, { revocation })
    await caughtUp(guard)
    for (const jti of ['a', 'b', 'c']) void own.revoke({ jti }, { expiresIn: '10m' })
    await until('full', () => feedOf(guard).lastError?.includes('no room') === true)
    own.advance(61)
    expect(await outcome(guard, await own.mint())).toBe('503 revocation')
    const polls = wire.polls.length
    await until('asked again', () => wire.polls.length > polls)
    expect(feedOf(guard)).toMatchObject({ status: 'stale', entries: 2 })
    expect(feedOf(guard).lastError).toContain('no room')
    // The issuer sends what has run out no more.
    own.advance(600)
    own.advance(301)
    await caughtUp(guard)
    expect(await outcome(guard, await own.mint())).toBe('alice')
    expect(feedOf(guard).lastError).toBeUndefined()
  }, 40_000)
})

function endless(): ReadableStream<Uint8Array> {
  return new ReadableStream({
    pull(controller) {
      controller.enqueue(new Uint8Array(1_048_576))
    },
  })
}
