import { createGuard, GuardError, loadPolicies } from '@latchkey/guard'
import type { Guard, GuardOptions, RevocationCheck, RevocationVerdict } from '@latchkey/guard'
import { createTestIssuer } from '@latchkey/guard/testing'
import type { TestAlgorithm } from '@latchkey/guard/testing'
import { describe, expect, it } from 'vitest'
import { AUDIENCE, guardAt, ISSUER, NOW, ourJwks, request, token } from './support/forge.ts'

async function refusal(guard: Guard, credential: string): Promise<GuardError | undefined> {
  try {
    await guard.authenticate(request(`Bearer ${credential}`))
    return undefined
  } catch (error) {
    if (error instanceof GuardError) return error
    throw error
  }
}

function guardWith(options: Partial<GuardOptions>): Guard {
  return createGuard({
    issuer: { issuer: ISSUER, keys: ourJwks },
    audience: AUDIENCE,
    now: () => NOW * 1000,
    ...options,
  })
}

describe('a token seen before', () => {
  it('is refused from the moment it expires', async () => {
    let now = NOW
    const guard = guardWith({ now: () => now * 1000, clockToleranceSeconds: 0 })
    const credential = token({ exp: NOW + 100 })
    expect(await refusal(guard, credential)).toBeUndefined()
    now = NOW + 99
    expect(await refusal(guard, credential)).toBeUndefined()
    now = NOW + 100
    expect((await refusal(guard, credential))?.reason).toBe('expired')
    expect(guard.metrics()).toMatchObject({ cacheHits: 2, cacheMisses: 1 })
  })

  it('is refused when the clock is set back to before it was issued', async () => {
    let now = NOW
    const guard = guardWith({ now: () => now * 1000 })
    const credential = token({ nbf: NOW - 10 })
    expect(await refusal(guard, credential)).toBeUndefined()
    now = NOW - 600
    expect((await refusal(guard, credential))?.reason).toBe('not_yet_valid')
  })

  it('is another one when a single character differs: nothing rides on a signature that was seen', async () => {
    const guard = guardAt()
    const credential = token()
    expect(await refusal(guard, credential)).toBeUndefined()
    const [head, , seal] = credential.split('.')
    const claims = { iss: ISSUER, sub: 'admin', aud: AUDIENCE, client_id: 'w', iat: NOW, exp: NOW + 9, jti: 'x' }
    const forged = `${head}.${Buffer.from(JSON.stringify(claims)).toString('base64url')}.${seal}`
    expect((await refusal(guard, forged))?.reason).toBe('signature')
  })

  it('is forgotten, and no more than that, when there are too many', async () => {
    const guard = guardWith({ cacheEntries: 10 })
    const tokens = Array.from({ length: 30 }, () => token())
    for (const credential of tokens) await guard.authenticate(request(`Bearer ${credential}`))
    const { cacheMisses } = guard.metrics()
    expect(cacheMisses).toBe(30)
    for (const credential of tokens.slice(-5)) await guard.authenticate(request(`Bearer ${credential}`))
    expect(guard.metrics()).toMatchObject({ cacheMisses: 30, cacheHits: 5 })
    for (const credential of tokens.slice(0, 20)) await guard.authenticate(request(`Bearer ${credential}`))
    expect(guard.metrics().cacheMisses).toBe(50)
  })

  it('stays known while it is used, however many others come and go', async () => {
    const guard = guardWith({ cacheEntries: 10 })
    const credential = token()
    for (let round = 0; round < 40; round += 1) {
      await guard.authenticate(request(`Bearer ${credential}`))
      await guard.authenticate(request(`Bearer ${token()}`))
    }
    expect(guard.metrics()).toMatchObject({ cacheMisses: 41, cacheHits: 39 })
  })

  it('gives every request the same claims, which none of them can change', async () => {
    const guard = guardAt()
    const credential = token({ act: { sub: 'service' }, address: { country: 'NL' } })
    const first = await guard.authenticate(request(`Bearer ${credential}`))
    const tamper: (() => unknown)[] = [
      () => Object.assign(first.claims, { sub: 'admin' }),
      () => Object.assign(first.claims['address'] as object, { country: 'XX' }),
      () => Object.assign(first.subject, { id: 'admin' }),
      () => (first.subject.roles as string[]).push('admin'),
      () => (first.claims['roles'] as string[]).push('admin'),
      () => Object.assign(first.subject.act ?? {}, { sub: 'x' }),
      () => (first.scopes as Set<string>).add('admin'),
      () => (first.scopes as Set<string>).clear(),
      () => (first.scopes as Set<string>).delete('models:read'),
    ]
    for (const attempt of tamper) expect(attempt).toThrow(TypeError)
    // What can be changed belongs to one request alone.
    first.expiresAt.setFullYear(9999)
    const second = await guard.authenticate(request(`Bearer ${credential}`))
    expect(second.claims).toBe(first.claims)
    expect(second.expiresAt).toEqual(new Date((NOW + 890) * 1000))
    expect([...second.scopes]).toEqual(['models:read'])
  })
})

/** A revocation check that is told what to say, and counts how often it is asked. */
class ToldRevocation implements RevocationCheck {
  verdict: RevocationVerdict | (() => Promise<RevocationVerdict>) = 'active'
  current: number | undefined = 1
  asked = 0

  check(): RevocationVerdict | Promise<RevocationVerdict> {
    this.asked += 1
    return typeof this.verdict === 'function' ? this.verdict() : this.verdict
  }

  version(): number | undefined {
    return this.current
  }
}

describe('a revoked token', () => {
  it('is refused the next time, though it was seen before', async () => {
    const revocation = new ToldRevocation()
    const guard = guardWith({ revocation })
    const credential = token()
    expect(await refusal(guard, credential)).toBeUndefined()
    revocation.verdict = 'revoked'
    revocation.current = 2
    const error = await refusal(guard, credential)
    expect([error?.status, error?.reason, error?.detail]).toEqual([401, 'revoked', 'The access token was revoked.'])
    // And again: a refusal does not count as having looked.
    expect((await refusal(guard, credential))?.reason).toBe('revoked')
  })

  it('is looked up once for each change of the feed, not once for each request', async () => {
    const revocation = new ToldRevocation()
    const guard = guardWith({ revocation })
    const credential = token()
    for (let round = 0; round < 10; round += 1) await refusal(guard, credential)
    expect(revocation.asked).toBe(1)
    revocation.current = 2
    for (let round = 0; round < 10; round += 1) await refusal(guard, credential)
    expect(revocation.asked).toBe(2)
  })

  it('is looked up every time when the feed cannot vouch for its version', async () => {
    const revocation = new ToldRevocation()
    revocation.current = undefined
    const guard = guardWith({ revocation })
    const credential = token()
    for (let round = 0; round < 10; round += 1) await refusal(guard, credential)
    expect(revocation.asked).toBe(10)
  })

  it('that is revoked during the look-up is looked up again', async () => {
    const revocation = new ToldRevocation()
    const guard = guardWith({ revocation })
    const credential = token()
    revocation.verdict = async () => {
      revocation.current = 2
      return 'active'
    }
    expect(await refusal(guard, credential)).toBeUndefined()
    revocation.verdict = 'revoked'
    expect((await refusal(guard, credential))?.reason).toBe('revoked')
  })

  it.each<[string, () => Promise<RevocationVerdict>]>([
    ['says it does not know', async () => 'unknown'],
    ['says something else', async () => 'perhaps' as RevocationVerdict],
    ['fails', () => Promise.reject(new Error('the feed is gone'))],
  ])('cannot slip through when the check %s: 503, not 401, not 200', async (_what, verdict) => {
    const revocation = new ToldRevocation()
    revocation.verdict = verdict
    const guard = guardWith({ revocation })
    const error = await refusal(guard, token())
    expect([error?.status, error?.headers['Retry-After']]).toEqual([503, '1'])
  })
})

describe('what a guard can be told to accept', () => {
  it.each<TestAlgorithm>(['RS256', 'PS256', 'ES256', 'EdDSA'])(
    'tokens signed with %s, and then no others',
    async (algorithm) => {
      const idp = await createTestIssuer({ algorithm })
      const credential = await idp.mint()
      const asked = new Request(idp.audience, { headers: { authorization: `Bearer ${credential}` } })
      const auth = await createGuard({ ...idp.options }).authenticate(asked)
      expect(auth.subject.id).toBe('alice')
      const other = algorithm === 'RS256' ? 'ES256' : 'RS256'
      const strict = createGuard({ ...idp.options, algorithms: [other] })
      await expect(strict.authenticate(asked)).rejects.toMatchObject({ reason: 'algorithm' })
    },
  )

  it('tokens of issuers that do not follow RFC 9068 to the letter', async () => {
    const guard = guardWith({
      tokenTypes: ['JWT'],
      requiredClaims: [],
      issuer: { issuer: ISSUER, keys: ourJwks, claims: { scope: 'scp', roles: ['realm_access', 'roles'] } },
    })
    const credential = token(
      { scp: ['a', 'b'], realm_access: { roles: ['editor'] }, jti: undefined, client_id: undefined },
      { typ: 'JWT' },
    )
    const auth = await guard.authenticate(request(`Bearer ${credential}`))
    expect([...auth.scopes]).toEqual(['a', 'b'])
    expect(auth.subject.roles).toEqual(['editor'])
    expect((await refusal(guard, token()))?.reason).toBe('type')
  })
})

describe('the caller', () => {
  it('is a client when it calls for itself (RFC 9068 §5), else a user', async () => {
    const guard = guardAt()
    const service = await guard.authenticate(request(`Bearer ${token({ sub: 'web' })}`))
    const user = await guard.authenticate(request(`Bearer ${token()}`))
    expect([service.subject.type, user.subject.type]).toEqual(['client', 'user'])
  })

  it('has the attributes its issuer vouches for, but cannot name itself by them', async () => {
    const credential = token({ department: 'ml', clearance: 3, type: 'client', id: 'admin', issuer: 'me', acr: 'mfa' })
    const { subject } = await guardAt().authenticate(request(`Bearer ${credential}`))
    expect(subject).toEqual({
      type: 'user',
      id: 'alice',
      issuer: ISSUER,
      roles: ['developer'],
      groups: [],
      client_id: 'web',
      department: 'ml',
      clearance: 3,
      acr: 'mfa',
    })
  })

  it('is the user, with the service that acts for it at its side (RFC 8693 §4.1)', async () => {
    const credential = token({ act: { sub: 'booking', act: { sub: 'gateway' } } })
    const { subject } = await guardAt().authenticate(request(`Bearer ${credential}`))
    expect(subject.id).toBe('alice')
    expect(subject.act).toEqual({ sub: 'booking', act: { sub: 'gateway' } })
  })
})

describe('the audit hook', () => {
  it('decides nothing by failing', async () => {
    const guard = guardWith({
      audit: () => {
        throw new Error('the disk is full')
      },
    })
    const auth = await guard.authenticate(request(`Bearer ${token()}`))
    const decision = await guard.can(auth, 'read', { type: 'model' })
    expect(decision).toEqual({ allowed: false, reason: 'no-matching-policy', errors: [] })
    expect(guard.metrics()).toMatchObject({ auditFailures: 1, decisionsDenied: 1 })
  })

  it('is told what the caller is not: why a token was refused, and never the token', async () => {
    const events: object[] = []
    const guard = guardWith({ audit: (event) => events.push(event) })
    const credential = token({ aud: 'https://other.example' })
    const error = await refusal(guard, credential)
    const facts = { method: 'GET', url: '/7', header: () => [] }
    const reply = guard.refuse(error, facts)
    expect(events).toMatchObject([{ reason: 'audience', debug: 'aud "https://other.example"' }])
    expect(JSON.stringify(reply)).not.toContain('other.example')
    expect(JSON.stringify(events)).not.toContain(credential.split('.')[2])
  })
})

describe('the context of a decision', () => {
  const policies = loadPolicies(`
policies:
  - id: at-work-from-the-office
    effect: allow
    subjects: ["user:*"]
    actions: ["read"]
    resources: ["model"]
    condition: "context.hour >= 9 AND context.hour < 18 AND context.network == 'office' AND context.tenant == 'a'"
`)

  // NOW is 08:00 UTC on a Friday.
  it.each([
    ['Europe/Berlin', '10.1.2.3', 'a', true],
    ['UTC', '10.1.2.3', 'a', false],
    ['Europe/Berlin', '192.0.2.1', 'a', false],
    ['Europe/Berlin', undefined, 'a', false],
    ['Europe/Berlin', '10.1.2.3', 'b', false],
  ])('is the time in %s, the network of %s and the tenant %s', async (timeZone, ip, tenant, allowed) => {
    const guard = guardWith({
      policies,
      context: { timeZone, networks: { office: ['10.0.0.0/8'] }, more: () => ({ tenant }) },
    })
    const auth = await guard.authenticate(request(`Bearer ${token()}`))
    const decision = await guard.can(auth, 'read', { type: 'model' }, ip === undefined ? {} : { ip })
    expect(decision.allowed).toBe(allowed)
    const facts = { method: 'GET', url: '/7', ip, header: () => [] }
    const outcome = guard
      .authorize(auth, 'read', () => ({ type: 'model' }), { request: facts })
      .then(
        () => true,
        (error: unknown) => (error instanceof GuardError ? false : error),
      )
    expect(await outcome).toBe(allowed)
  })
})
