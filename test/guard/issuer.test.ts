import { generateKeyPairSync } from 'node:crypto'
import { createGuard, GuardError } from '@latchkey/guard'
import type { Guard, GuardOptions, KeyCaching } from '@latchkey/guard'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { AUDIENCE, jwkOf, NOW, ours, request, token } from './support/forge.ts'
import { KeyServer } from './support/key-server.ts'
import type { Behaviour } from './support/key-server.ts'

const rotated = generateKeyPairSync('rsa', { modulusLength: 2048 })
const first = jwkOf(ours.publicKey, { kid: 'key-1', alg: 'RS256', use: 'sig' })
const second = jwkOf(rotated.publicKey, { kid: 'key-2', alg: 'RS256', use: 'sig' })

let server: KeyServer
/** Seconds since the guard was made. */
let clock = 0

beforeEach(async () => {
  clock = 0
  server = await new KeyServer().open()
  server.keys = [first]
})

afterEach(() => server.close())

function guardOf(keyCaching: KeyCaching = {}, options: Partial<GuardOptions> = {}): Guard {
  return createGuard({
    issuer: { issuer: server.issuer, keyCaching },
    audience: AUDIENCE,
    now: () => (NOW + clock) * 1000,
    // Tokens outlive the days that these tests let pass.
    maxLifetimeSeconds: 1_000_000,
    cacheEntries: 0,
    // Whether there is a feed of revocations is asked beside the keys, and no matter here.
    revocation: false,
    ...options,
  })
}

const claims = (): Record<string, unknown> => ({ iss: server.issuer, exp: NOW + 500_000 })
const oldToken = (): string => token(claims())
const newToken = (): string => token(claims(), { kid: 'key-2' }, rotated.privateKey)
const strangeToken = (kid: string): string => token(claims(), { kid }, rotated.privateKey)

/** `200`, or the status of the refusal. */
async function status(guard: Guard, credential: string): Promise<number> {
  try {
    await guard.authenticate(request(`Bearer ${credential}`))
    return 200
  } catch (error) {
    if (error instanceof GuardError) return error.status
    throw error
  }
}

/** Lets a refresh that nobody waits for come to its end. */
async function settled(guard: Guard, done: () => boolean): Promise<void> {
  for (let turn = 0; turn < 400 && !done(); turn += 1) await new Promise((resolve) => setTimeout(resolve, 5))
  if (!done()) throw new Error(`did not settle: ${JSON.stringify(guard.health())}`)
}

describe('when the keys cannot be had', () => {
  it.each<Behaviour>(['error', 'hang', 'drip', 'huge', 'redirect', 'html', 'empty', 'foreign'])(
    'answers 503 with Retry-After, not 401, to an issuer that answers: %s',
    async (behaviour) => {
      server.behaviour = behaviour
      const guard = guardOf({ timeoutSeconds: 0.2 })
      const refusal = await guard.authenticate(request(`Bearer ${oldToken()}`)).catch((error: unknown) => error)
      expect(refusal).toMatchObject({ status: 503, reason: 'keys' })
      expect((refusal as GuardError).headers['Retry-After']).toBe('1')
      expect(guard.health().status).toBe('unavailable')
      expect(server.requests).not.toContain('/other')
    },
  )

  it('is made at once all the same, and lets people in as soon as the issuer is back', async () => {
    server.behaviour = 'error'
    const guard = guardOf()
    expect(await status(guard, oldToken())).toBe(503)
    server.behaviour = 'good'
    clock += 2
    expect(await status(guard, oldToken())).toBe(200)
    expect(guard.health().status).toBe('ok')
  })

  it('pauses longer after each failure: fifty requests a second for a minute make few fetches', async () => {
    server.behaviour = 'error'
    const guard = guardOf()
    for (let second = 0; second < 60; second += 1) {
      clock += 1
      const seen = await Promise.all(Array.from({ length: 50 }, () => status(guard, oldToken())))
      expect(new Set(seen)).toEqual(new Set([503]))
    }
    expect(server.jwksRequests).toBeLessThanOrEqual(8)
    expect(server.jwksRequests).toBeGreaterThanOrEqual(5)
  })

  it('goes on with the last good keys for as long as it was told, and not longer', async () => {
    const guard = guardOf({ staleIfErrorSeconds: 3600 })
    expect(await status(guard, oldToken())).toBe(200)
    server.behaviour = 'error'
    for (clock of [500, 599, 601, 1200, 3000, 4199]) expect(await status(guard, oldToken())).toBe(200)
    expect(guard.health().status).toBe('degraded')
    clock = 4201
    expect(await status(guard, oldToken())).toBe(503)
    server.behaviour = 'good'
    clock = 4300
    expect(await status(guard, oldToken())).toBe(200)
  })

  it('lets nobody wait for a dead issuer once it is known to be dead', async () => {
    const guard = guardOf({ timeoutSeconds: 0.3 })
    expect(await status(guard, oldToken())).toBe(200)
    server.behaviour = 'hang'
    clock = 490
    expect(await status(guard, oldToken())).toBe(200)
    await settled(guard, () => guard.health().issuers[0]?.lastError !== undefined)
    clock = 900
    const started = performance.now()
    expect(await status(guard, oldToken())).toBe(200)
    expect(performance.now() - started).toBeLessThan(150)
  })
})

describe('a key that nobody has heard of', () => {
  it('makes at most one fetch in thirty seconds, however many there are', async () => {
    const guard = guardOf()
    expect(await status(guard, oldToken())).toBe(200)
    expect(server.jwksRequests).toBe(1)
    for (let round = 0; round < 3; round += 1) {
      const seen = await Promise.all(Array.from({ length: 100 }, (_, at) => status(guard, strangeToken(`no-${at}`))))
      expect(new Set(seen)).toEqual(new Set([401]))
    }
    expect(server.jwksRequests).toBe(2)
    clock += 29
    await status(guard, strangeToken('no'))
    expect(server.jwksRequests).toBe(2)
    clock += 1
    await status(guard, strangeToken('no'))
    expect(server.jwksRequests).toBe(3)
  })

  it('is a 503, not a 401, while the issuer cannot be asked about it', async () => {
    const guard = guardOf()
    expect(await status(guard, oldToken())).toBe(200)
    server.behaviour = 'error'
    const seen = await Promise.all(Array.from({ length: 100 }, () => status(guard, newToken())))
    expect(new Set(seen)).toEqual(new Set([503]))
    expect(server.jwksRequests).toBe(2)
    expect(await status(guard, oldToken())).toBe(200)
  })

  it('is found when it is new: a hundred requests with it, one fetch, nobody refused', async () => {
    const guard = guardOf()
    expect(await status(guard, oldToken())).toBe(200)
    server.keys = [second, first]
    const seen = await Promise.all(Array.from({ length: 100 }, () => status(guard, newToken())))
    expect(new Set(seen)).toEqual(new Set([200]))
    expect(server.jwksRequests).toBe(2)
  })
})

describe('keys in good times', () => {
  it('are fetched once, by however many first requests', async () => {
    const guard = guardOf()
    const seen = await Promise.all(Array.from({ length: 100 }, () => status(guard, oldToken())))
    expect(new Set(seen)).toEqual(new Set([200]))
    expect(server.requests).toEqual(['/.well-known/openid-configuration', '/jwks'])
  })

  it('are refreshed at four fifths of their life, while the request goes on', async () => {
    const guard = guardOf()
    expect(await status(guard, oldToken())).toBe(200)
    clock = 479
    expect(await status(guard, oldToken())).toBe(200)
    expect(server.jwksRequests).toBe(1)
    clock = 481
    expect(await status(guard, oldToken())).toBe(200)
    await settled(guard, () => server.jwksRequests === 2)
  })

  it.each([
    ['max-age=120', 120],
    ['public, max-age=99999', 600],
    ['no-store', 60],
    ['max-age=1', 60],
    [undefined, 600],
  ])('live as long as the issuer says, within bounds: %s', async (cacheControl, life) => {
    server.cacheControl = cacheControl
    const guard = guardOf()
    expect(await status(guard, oldToken())).toBe(200)
    clock = life * 0.8 - 1
    await status(guard, oldToken())
    expect(server.jwksRequests).toBe(1)
    clock = life * 0.8 + 1
    await status(guard, oldToken())
    await settled(guard, () => server.jwksRequests === 2)
  })

  it('that were withdrawn while nobody asked are not believed for even one request', async () => {
    const guard = guardOf()
    expect(await status(guard, oldToken())).toBe(200)
    server.keys = [second]
    clock = 10_000
    expect(await status(guard, oldToken())).toBe(401)
    expect(await status(guard, newToken())).toBe(200)
  })

  it('that were withdrawn take the tokens they verified before with them', async () => {
    const guard = guardOf({}, { cacheEntries: 100 })
    const credential = oldToken()
    expect(await status(guard, credential)).toBe(200)
    expect(await status(guard, credential)).toBe(200)
    expect(guard.metrics()).toMatchObject({ cacheHits: 1, cacheMisses: 1 })
    server.keys = [second]
    // A token with the new key makes the guard fetch; the remembered one then finds its key gone.
    expect(await status(guard, newToken())).toBe(200)
    expect(await status(guard, credential)).toBe(401)
  })

  it('that were withdrawn are found out where nothing but remembered tokens comes', async () => {
    const guard = guardOf({}, { cacheEntries: 100 })
    const credential = oldToken()
    expect(await status(guard, credential)).toBe(200)
    server.keys = [second]
    // Refreshed ahead of need, beside the requests; the life is that of the default, ten minutes.
    clock = 590
    expect(await status(guard, credential)).toBe(200)
    await expect.poll(() => status(guard, credential)).toBe(401)
  })

  it('that were withdrawn while nobody asked are not believed for a remembered token either', async () => {
    const guard = guardOf({}, { cacheEntries: 100 })
    const credential = oldToken()
    expect(await status(guard, credential)).toBe(200)
    server.keys = [second]
    clock = 10_000
    expect(await status(guard, credential)).toBe(401)
  })

  it('that are stale serve remembered tokens during an outage, with one fetch at a time', async () => {
    const guard = guardOf({}, { cacheEntries: 100 })
    const credential = oldToken()
    expect(await status(guard, credential)).toBe(200)
    server.behaviour = 'error'
    clock = 10_000
    expect(await status(guard, credential)).toBe(200)
    const { jwksRequests } = server
    for (let request = 0; request < 20; request += 1) expect(await status(guard, credential)).toBe(200)
    expect(server.jwksRequests).toBe(jwksRequests)
    expect(guard.metrics().cacheHits).toBeGreaterThanOrEqual(20)
  })

  it('are passed over when they are not for signatures, too weak, private or not understood', async () => {
    const weak = generateKeyPairSync('rsa', { modulusLength: 1024 })
    const unusable = [
      jwkOf(weak.publicKey, { kid: 'weak' }),
      jwkOf(rotated.publicKey, { kid: 'encryption', use: 'enc' }),
      jwkOf(rotated.publicKey, { kid: 'wrong-operation', key_ops: ['encrypt'] }),
      jwkOf(rotated.privateKey, { kid: 'private' }),
      jwkOf(rotated.publicKey, { kid: 'other-algorithm', alg: 'RS512' }),
      { kty: 'oct', k: 'AAAA', kid: 'secret' },
      { kty: 'RSA', kid: 'half' },
      { kid: '__proto__' },
      {},
    ]
    server.keys = [...unusable, first]
    const guard = guardOf()
    expect(await status(guard, oldToken())).toBe(200)
    for (const { kid } of unusable) {
      const key = kid === 'weak' ? weak.privateKey : rotated.privateKey
      expect(await status(guard, token(claims(), { kid }, key))).toBe(401)
    }
  })

  it('survive a clock that is set back ten minutes', async () => {
    const guard = guardOf()
    expect(await status(guard, oldToken())).toBe(200)
    clock = -600
    expect(await status(guard, token({ ...claims(), iat: NOW - 700 }))).toBe(200)
    await settled(guard, () => server.jwksRequests === 2)
  })
})

describe('where keys come from', () => {
  it('is the place RFC 8414 names, when there is no OpenID Connect document', async () => {
    const asked: string[] = []
    const issuer = 'https://id.example.com/tenant'
    const guard = createGuard({
      issuer,
      audience: AUDIENCE,
      now: () => NOW * 1000,
      fetch: async (address) => {
        asked.push(address)
        if (address === 'https://id.example.com/.well-known/oauth-authorization-server/tenant') {
          return Response.json({ issuer, jwks_uri: 'https://keys.example.com/jwks' })
        }
        if (address === 'https://keys.example.com/jwks') return Response.json({ keys: [first] })
        return new Response('', { status: 404 })
      },
    })
    expect(await status(guard, token({ iss: issuer }))).toBe(200)
    expect(asked[0]).toBe('https://id.example.com/tenant/.well-known/openid-configuration')
  })

  it('is never an unsafe address that a document names', async () => {
    const asked: string[] = []
    const guard = createGuard({
      issuer: 'https://id.example.com',
      audience: AUDIENCE,
      now: () => NOW * 1000,
      fetch: async (address) => {
        asked.push(address)
        return Response.json({ issuer: 'https://id.example.com', jwks_uri: 'http://169.254.169.254/keys' })
      },
    })
    expect(await status(guard, token())).toBe(503)
    expect(asked.join(' ')).not.toContain('169.254')
  })

  it('can be a function in the same process, which is asked again for a key nobody has heard of', async () => {
    let keys = [first]
    let asked = 0
    const guard = createGuard({
      issuer: {
        issuer: 'https://id.example.com',
        keys: () => {
          asked += 1
          return { keys }
        },
      },
      audience: AUDIENCE,
      now: () => NOW * 1000,
    })
    expect(await status(guard, token())).toBe(200)
    keys = [second, first]
    expect(await status(guard, token({}, { kid: 'key-2' }, rotated.privateKey))).toBe(200)
    expect(asked).toBe(2)
  })

  it('is one issuer each: the same name at two of them is two people', async () => {
    const partner = 'https://partner.example'
    const guard = createGuard({
      issuers: [
        { issuer: 'https://id.example.com', keys: { keys: [first] }, subjectPrefix: '' },
        { issuer: partner, keys: { keys: [second] }, subjectPrefix: 'partner:', claims: { roles: ['realm', 'roles'] } },
      ],
      audience: AUDIENCE,
      now: () => NOW * 1000,
    })
    const own = await guard.authenticate(request(`Bearer ${token()}`))
    const theirs = await guard.authenticate(
      request(`Bearer ${token({ iss: partner, realm: { roles: ['x'] } }, { kid: 'key-2' }, rotated.privateKey)}`),
    )
    expect([own.subject.id, own.subject.roles]).toEqual(['alice', ['developer']])
    expect([theirs.subject.id, theirs.subject.roles]).toEqual(['partner:alice', ['x']])
    // Each other's keys are worth nothing.
    expect(await status(guard, token({ iss: partner }))).toBe(401)
    expect(await status(guard, token({}, { kid: 'key-2' }, rotated.privateKey))).toBe(401)
  })
})

describe('a guard that cannot be meant', () => {
  const trusted = { issuer: 'https://id.example.com', keys: { keys: [first] } }

  it.each<[string, GuardOptions]>([
    ['no issuer', { audience: AUDIENCE }],
    ['an issuer by plain http', { audience: AUDIENCE, issuer: 'http://id.example.com' }],
    ['an issuer with a query', { audience: AUDIENCE, issuer: 'https://id.example.com?x' }],
    ['an issuer that is no address', { audience: AUDIENCE, issuer: 'id.example.com' }],
    [
      'keys by plain http',
      { audience: AUDIENCE, issuer: { issuer: 'https://a.example', jwksUri: 'http://b.example' } },
    ],
    [
      'two issuers that share their people',
      { audience: AUDIENCE, issuers: [trusted, { issuer: 'https://b.example' }] },
    ],
    [
      'two issuers with one prefix',
      {
        audience: AUDIENCE,
        issuers: [
          { ...trusted, subjectPrefix: 'a' },
          { issuer: 'https://b.example', subjectPrefix: 'a' },
        ],
      },
    ],
    ['one issuer twice', { audience: AUDIENCE, issuers: [trusted, trusted] }],
    ['issuer and issuers', { audience: AUDIENCE, issuer: 'https://a.example', issuers: [trusted] }],
    ['no audience', { audience: [], issuer: trusted }],
    ['an empty audience', { audience: '', issuer: trusted }],
    ['no algorithm', { audience: AUDIENCE, issuer: trusted, algorithms: [] }],
    ['a tolerance of a minute', { audience: AUDIENCE, issuer: trusted, clockToleranceSeconds: 60 }],
    ['keys that are none', { audience: AUDIENCE, issuer: { issuer: 'https://a.example', keys: { keys: [] } } }],
    ['DPoP at an address nobody knows', { audience: 'models', issuer: trusted, dpop: 'required' }],
    ['a short nonce secret', { audience: AUDIENCE, issuer: trusted, dpop: { nonceSecret: 'short' } }],
    ['a policy file that is not there', { audience: AUDIENCE, issuer: trusted, policies: '/nowhere/policies.yaml' }],
  ])('is refused when it is made: %s', (_what, options) => {
    expect(() => createGuard(options)).toThrow(/./)
  })

  it('does not know the algorithms none and HS256', () => {
    for (const name of ['none', 'HS256', 'toString']) {
      const algorithms = [name] as unknown as readonly ['RS256']
      expect(() => createGuard({ audience: AUDIENCE, issuer: trusted, algorithms })).toThrow(/no algorithm/)
    }
  })
})
