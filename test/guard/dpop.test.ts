import { generateKeyPairSync, hash, randomUUID, sign } from 'node:crypto'
import { createGuard, GuardError, MemoryReplayStore } from '@latchkey/guard'
import type { DpopOptions, Guard } from '@latchkey/guard'
import { createTestIssuer } from '@latchkey/guard/testing'
import { beforeEach, describe, expect, it } from 'vitest'
import type { TestIssuer } from '@latchkey/guard/testing'

const URL_HERE = 'https://api.test/models/7'
let idp: TestIssuer
let guard: Guard
let token: string

function guardOf(dpop: DpopOptions = {}): Guard {
  return createGuard({ ...idp.options, dpop })
}

beforeEach(async () => {
  idp = await createTestIssuer({ algorithm: 'ES256' })
  guard = guardOf()
  token = await idp.mint({ bound: true })
})

/** `200`, or why not. */
async function outcome(
  asked: Guard,
  proof: string | undefined,
  scheme = 'DPoP',
  url = `${URL_HERE}?q=1`,
): Promise<string | number> {
  const headers: Record<string, string> = { authorization: `${scheme} ${token}` }
  if (proof !== undefined) headers['dpop'] = proof
  try {
    await asked.authenticate(new Request(url, { headers }))
    return 200
  } catch (error) {
    if (error instanceof GuardError) return error.reason
    throw error
  }
}

const proof = (claims: Record<string, unknown> = {}): Promise<string> => idp.dpop(token, 'GET', URL_HERE, claims)

const stranger = generateKeyPairSync('ec', { namedCurve: 'P-256' })

/** A proof made by hand, with a key of its own. */
function madeProof(header: Record<string, unknown> = {}, key = stranger): string {
  const jwk = key.publicKey.export({ format: 'jwk' })
  const now = Math.floor(idp.now() / 1000)
  const claims = { jti: randomUUID(), htm: 'GET', htu: URL_HERE, iat: now, ath: hash('sha256', token, 'base64url') }
  const signed = [{ alg: 'ES256', typ: 'dpop+jwt', jwk, ...header }, claims]
    .map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'))
    .join('.')
  const seal = sign('sha256', Buffer.from(signed), { key: key.privateKey, dsaEncoding: 'ieee-p1363' })
  return `${signed}.${seal.toString('base64url')}`
}

describe('a proof of possession (RFC 9449 §4.3)', () => {
  it('is good once, whatever the query', async () => {
    const one = await proof()
    expect(await outcome(guard, one)).toBe(200)
    expect(await outcome(guard, one)).toBe('dpop_replayed')
    expect(await outcome(guard, await proof())).toBe(200)
  })

  it('is good for one of fifty requests that come at the same time', async () => {
    const one = await proof()
    const outcomes = await Promise.all(Array.from({ length: 50 }, () => outcome(guard, one)))
    expect(outcomes.filter((each) => each === 200)).toHaveLength(1)
  })

  it('must be there, and the scheme must say so', async () => {
    expect(await outcome(guard, undefined)).toBe('dpop_missing')
    expect(await outcome(guard, await proof(), 'Bearer')).toBe('binding')
    expect(await outcome(guard, `${await proof()}, ${await proof()}`)).toBe('dpop_malformed')
  })

  it.each<[string, Record<string, unknown>, string]>([
    ['another method', { htm: 'POST' }, 'dpop_method'],
    ['the method in lower case', { htm: 'get' }, 'dpop_method'],
    ['another path', { htu: 'https://api.test/models/8' }, 'dpop_address'],
    ['another host', { htu: 'https://evil.test/models/7' }, 'dpop_address'],
    ['another scheme', { htu: 'http://api.test/models/7' }, 'dpop_address'],
    ['another port', { htu: 'https://api.test:8443/models/7' }, 'dpop_address'],
    ['no address', { htu: undefined }, 'dpop_address'],
    ['a list of addresses', { htu: [URL_HERE] }, 'dpop_address'],
    ['another token', { ath: hash('sha256', 'another', 'base64url') }, 'dpop_token'],
    ['no token', { ath: undefined }, 'dpop_token'],
    ['no time', { iat: undefined }, 'dpop_time'],
    ['a time that is text', { iat: '1' }, 'dpop_time'],
    ['the distant past', { iat: 1 }, 'dpop_time'],
    ['the distant future', { iat: 99_999_999_999 }, 'dpop_time'],
    ['no name', { jti: undefined }, 'dpop_claims'],
    ['an empty name', { jti: '' }, 'dpop_claims'],
    ['a name that is a number', { jti: 7 }, 'dpop_claims'],
    ['an endless name', { jti: 'x'.repeat(2000) }, 'dpop_claims'],
  ])('is refused when it is for %s', async (_what, claims, reason) => {
    expect(await outcome(guard, await proof(claims))).toBe(reason)
  })

  it('is refused when another key made it', async () => {
    expect(await outcome(guard, madeProof())).toBe('dpop_key')
  })

  it.each<[string, Record<string, unknown>]>([
    ['none', { alg: 'none' }],
    ['HS256', { alg: 'HS256' }],
    ['an algorithm that is not allowed', { alg: 'ES384' }],
    ['another type', { typ: 'JWT' }],
    ['no type', { typ: undefined }],
    ['an extension', { crit: ['x'] }],
    ['no key', { jwk: undefined }],
    ['a secret key', { jwk: { kty: 'oct', k: 'AAAA' } }],
    ['a private key', { jwk: stranger.privateKey.export({ format: 'jwk' }) }],
    ['a key by address', { jku: 'https://evil.test/jwks' }],
  ])('is refused with a header that says %s', async (_what, header) => {
    expect(await outcome(guard, madeProof(header))).toBe('dpop_malformed')
  })

  it.each(['', 'x', 'a.b.c', `${'a'.repeat(9000)}.b.c`])('is refused when it is no proof at all', async (junk) => {
    expect(['dpop_malformed', 'dpop_missing']).toContain(await outcome(guard, junk))
  })

  it('is refused when it is too old, and remembered for as long as it is not', async () => {
    const one = await proof()
    idp.advance(59)
    expect(await outcome(guard, one)).toBe(200)
    idp.advance(5)
    expect(await outcome(guard, one)).toBe('dpop_replayed')
    idp.advance(5)
    expect(await outcome(guard, one)).toBe('dpop_time')
  })

  it('does not make an unbound token better', async () => {
    token = await idp.mint()
    expect(await outcome(guard, await proof())).toBe('not_bound')
    expect(await outcome(guard, await proof(), 'Bearer')).toBe(200)
    expect(await outcome(guardOf({ mode: 'required' }), undefined, 'Bearer')).toBe('not_bound')
  })

  it('is not enough for a token that is bound to a certificate as well, which nobody here can prove', async () => {
    const claims = JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString()) as {
      cnf: { jkt: string }
    }
    expect(await outcome(guard, await proof())).toBe(200)
    token = await idp.mint({ claims: { cnf: { ...claims.cnf, 'x5t#S256': 'x'.repeat(43) } } })
    expect(await outcome(guard, await proof())).toBe('binding')
  })

  it('is not asked for where a token is only looked at', async () => {
    expect((await guard.inspect(token)).claims.cnf).toEqual({ jkt: expect.any(String) })
    await expect(guard.inspect(await idp.mint({ expiresIn: '-10s' }))).rejects.toMatchObject({ reason: 'expired' })
  })

  it('is compared with the address that clients use, never with the Host header', async () => {
    const behindProxy = guardOf({ publicUrl: 'https://api.test/models/' })
    // The proxy takes /models off, and passes a Host that the client chose.
    expect(await outcome(behindProxy, await proof(), 'DPoP', 'http://evil.test/7')).toBe(200)
    expect(
      await outcome(guard, await proof({ htu: 'http://evil.test/models/7' }), 'DPoP', 'http://evil.test/models/7'),
    ).toBe('dpop_address')
    expect(
      await outcome(guard, await proof({ htu: 'https://evil.test/models/7' }), 'DPoP', 'http://x//evil.test/models/7'),
    ).toBe('dpop_address')
  })

  it('must carry our nonce where nonces are asked for, and the answer brings one', async () => {
    const asking = guardOf({ nonceSecret: 'x'.repeat(32) })
    const refused = await asking
      .authenticate(new Request(URL_HERE, { headers: { authorization: `DPoP ${token}`, dpop: await proof() } }))
      .catch((error: unknown) => error)
    expect(refused).toMatchObject({ status: 401, reason: 'use_dpop_nonce' })
    const nonce = (refused as GuardError).headers['DPoP-Nonce']
    expect((refused as GuardError).headers['WWW-Authenticate']).toMatch(/DPoP error="use_dpop_nonce"/)
    expect(await outcome(asking, await proof({ nonce: 'made up' }))).toBe('use_dpop_nonce')
    expect(await outcome(asking, await proof({ nonce }))).toBe(200)
    // Another process that knows the secret accepts it as well; one that does not, does not.
    expect(await outcome(guardOf({ nonceSecret: 'x'.repeat(32) }), await proof({ nonce }))).toBe(200)
    expect(await outcome(guardOf({ nonceSecret: 'y'.repeat(32) }), await proof({ nonce }))).toBe('use_dpop_nonce')
    idp.advance(301)
    expect(await outcome(asking, await proof({ nonce }))).toBe('use_dpop_nonce')
  })

  it('is not let in when replay cannot be ruled out', async () => {
    const failing = guardOf({ replayStore: { claim: () => Promise.reject(new Error('the store is gone')) } })
    expect(await outcome(failing, await proof())).toBe('replay')
    const full = guardOf({ replayStore: new MemoryReplayStore(60, 2, idp.now) })
    expect(await outcome(full, await proof())).toBe(200)
    expect(await outcome(full, await proof())).toBe(200)
    expect(await outcome(full, await proof())).toBe('replay')
    idp.advance(130)
    token = await idp.mint({ bound: true })
    expect(await outcome(full, await proof())).toBe(200)
  })
})

describe('the memory of used proofs', () => {
  it('reaches back a whole window at every moment, and forgets after two', () => {
    let now = 1000
    const store = new MemoryReplayStore(70, 100, () => now * 1000)
    expect(store.claim('first')).toBe(true)
    now = 1065
    expect(store.claim('second')).toBe(true)
    now = 1071
    expect(store.claim('third')).toBe(true)
    now = 1134
    expect([store.claim('second'), store.claim('third')]).toEqual([false, false])
    now = 1300
    expect(store.claim('third')).toBe(true)
  })

  it('goes on forgetting when the clock is set back', () => {
    let now = 10_000
    const store = new MemoryReplayStore(70, 2, () => now * 1000)
    store.claim('first')
    store.claim('second')
    now = 5000
    expect(() => store.claim('third')).toThrow(/no room/)
    now = 5071
    expect(store.claim('first')).toBe(false)
    now = 5141
    expect(store.claim('third')).toBe(true)
  })
})
