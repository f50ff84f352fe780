import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { accessDenied, insufficientScope } from '../../src/guard/errors.ts'
import {
  createGuard,
  fromNodeRequest,
  fromWebRequest,
  GuardError,
  loadPolicies,
  resourceMetadata,
} from '@latchkey/guard'
import type { Guard, GuardOptions } from '@latchkey/guard'
import { afterEach, describe, expect, it } from 'vitest'
import { AUDIENCE, guardAt, ISSUER, ourJwks, request, token } from './support/forge.ts'

const closing: (() => Promise<unknown>)[] = []
afterEach(async () => {
  for (const close of closing.splice(0)) await close()
})

async function refusalOf(guard: Guard, authorization: string | undefined): Promise<GuardError> {
  const error = await guard.authenticate(request(authorization)).catch((reason: unknown) => reason)
  if (error instanceof GuardError) return error
  throw new Error('accepted')
}

describe('a refusal', () => {
  it('that is caught is answered as the guard that made it would', async () => {
    const guard = guardAt({ realm: 'models', documentation: 'https://docs.example.com/errors' })
    const response = (await refusalOf(guard, undefined)).toResponse({ requestId: 'r-1' })
    expect(response.status).toBe(401)
    expect(response.headers.get('www-authenticate')).toMatch(/^Bearer realm="models", resource_metadata="https:/)
    expect(await response.json()).toMatchObject({
      type: 'https://docs.example.com/errors#AUTHENTICATION_ERROR',
      documentation: 'https://docs.example.com/errors#AUTHENTICATION_ERROR',
      request_id: 'r-1',
    })
  })

  it('blames the scheme that was used, and merely offers the other (RFC 9449 §7.2)', async () => {
    const guard = guardAt()
    const bound = token({ cnf: { jkt: 'x'.repeat(43) } })
    const asBearer = (await refusalOf(guard, `Bearer ${bound}`)).headers['WWW-Authenticate'] ?? ''
    expect(asBearer).toMatch(/^Bearer error="invalid_token".*, DPoP algs="[^"]*", resource_metadata="[^"]*"$/)
    const asDpop = (await refusalOf(guard, `DPoP ${bound}`)).headers['WWW-Authenticate'] ?? ''
    expect(asDpop).toMatch(/^Bearer resource_metadata="[^"]*", DPoP error="invalid_dpop_proof"/)
    expect((await refusalOf(guardAt({ dpop: 'off' }), 'Bearer x')).headers['WWW-Authenticate']).not.toContain('DPoP')
    const required = (await refusalOf(guardAt({ dpop: 'required' }), 'Bearer x')).headers['WWW-Authenticate']
    expect(required).toMatch(/^DPoP error="invalid_token"/)
  })

  it('cannot be made to write headers', () => {
    const { headers } = insufficientScope(['a"b', 'c\\d', 'e\r\nSet-Cookie: x=1'])
    expect(headers['WWW-Authenticate']).toContain(`scope="a'b c'd e''Set-Cookie: x=1"`)
  })

  it('keeps what is for the log out of the answer', async () => {
    const error = accessDenied('policy', 'denied-by-policy secret-policy')
    expect(JSON.stringify(error.reply())).not.toContain('secret-policy')
    expect(error.message).toContain('secret-policy')
  })

  it('is told apart from a bug: only refusals are answered', () => {
    const bug = new Error('a bug')
    expect(() => guardAt().refuse(bug, fromWebRequest(request(undefined)))).toThrow(bug)
  })
})

describe('a denied decision', () => {
  const policies = loadPolicies(`
policies:
  - { id: nobody-writes, effect: deny, subjects: ["*"], actions: [write], resources: ["*"] }
`)

  it.each([
    [false, []],
    [true, [{ constraint: 'denied-by-policy', policy: 'nobody-writes' }]],
  ])('names its policy to the caller only where that is wanted: %s', async (exposeReason, details) => {
    const guard = guardAt({ policies, exposeReason })
    const auth = await guard.authenticate(request(`Bearer ${token()}`))
    const error = await guard.assert(auth, 'write', { type: 'model' }).catch((reason: unknown) => reason)
    expect(error).toMatchObject({ status: 403, details, debug: 'denied-by-policy nobody-writes' })
    expect(guard.filter(auth, 'write', 'model')).toEqual({ kind: 'none' })
  })

  it('is every decision, where there are no policies', async () => {
    const guard = guardAt()
    const auth = await guard.authenticate(request(`Bearer ${token()}`))
    expect((await guard.can(auth, 'read', { type: 'model' })).allowed).toBe(false)
    expect(guard.filter(auth, 'read', 'model')).toEqual({ kind: 'none' })
  })
})

describe('a resource that cannot be loaded', () => {
  it.each([
    [Object.assign(new Error('no such model'), { status: 404 }), { message: 'no such model' }],
    [Object.assign(new Error('no such model'), { statusCode: 410 }), { message: 'no such model' }],
    [Object.assign(new Error('broken'), { status: 500 }), { status: 503, reason: 'resource' }],
    [Object.assign(new Error('moved'), { status: 302 }), { status: 503, reason: 'resource' }],
    [new Error('broken'), { status: 503, reason: 'resource' }],
    ['thrown text', { status: 503, reason: 'resource' }],
    [null, { status: 503, reason: 'resource' }],
  ])('is 503, unless the loader has an answer of its own: %s', async (thrown, expected) => {
    const guard = guardAt()
    const auth = await guard.authenticate(request(`Bearer ${token()}`))
    await expect(guard.authorize(auth, 'read', () => Promise.reject(thrown))).rejects.toMatchObject(expected)
  })
})

describe('a policy file', () => {
  it('is followed; a version that does not load changes nothing, and shows', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'guard-policies-'))
    const path = join(folder, 'policies.yaml')
    const allowing = (id: string): string =>
      `policies:\n  - { id: ${id}, effect: allow, subjects: ["*"], actions: [read], resources: ["*"] }\n`
    await writeFile(path, allowing('first'))
    const guard = guardAt({ policies: path })
    closing.push(
      () => guard.close(),
      () => rm(folder, { recursive: true }),
    )
    const auth = await guard.authenticate(request(`Bearer ${token()}`))
    const decidedBy = async (): Promise<string | undefined> => (await guard.can(auth, 'read', { type: 'model' })).policy
    expect(await decidedBy()).toBe('first')
    await writeFile(path, 'policies: [{ id: broken }]')
    await expect.poll(() => guard.metrics().policyReloadsRefused, { timeout: 5000 }).toBe(1)
    expect(await decidedBy()).toBe('first')
    expect(guard.health()).toMatchObject({
      status: 'degraded',
      policyError: expect.stringContaining('policies.yaml:1'),
    })
    await writeFile(path, allowing('second'))
    await expect.poll(decidedBy, { timeout: 5000 }).toBe('second')
    expect(guard.health()).toMatchObject({ status: 'ok', policyError: undefined })
  })
})

describe('the metadata of a service (RFC 9728 §3.1)', () => {
  it.each([
    ['https://api.example.com', 'https://api.example.com/.well-known/oauth-protected-resource'],
    ['https://api.example.com/', 'https://api.example.com/.well-known/oauth-protected-resource'],
    ['https://api.example.com/models', 'https://api.example.com/.well-known/oauth-protected-resource/models'],
    ['models', undefined],
  ])('of %s is at %s', (audience, address) => {
    expect(guardAt({ audience }).metadataAddress).toBe(address)
  })

  it('says what was asked to be said, and leaves out the rest', () => {
    const guard = guardAt({ dpop: 'off', audience: [AUDIENCE, 'other'] })
    expect(resourceMetadata(guard, { resourceName: 'Models' })).toEqual({
      resource: AUDIENCE,
      authorization_servers: [ISSUER],
      bearer_methods_supported: ['header'],
      resource_name: 'Models',
    })
    expect(guardAt({ resourceMetadata: false }).metadataAddress).toBeUndefined()
  })
})

describe('a request of Node', () => {
  it('shows every value of a header, whatever its case, and only values', () => {
    const facts = fromNodeRequest(
      { method: 'POST', rawHeaders: ['Host', 'authorization', 'AUTHORIZATION', 'a', 'X', 'y', 'authorization', 'b'] },
      '/',
      undefined,
    )
    expect(facts.header('authorization')).toEqual(['a', 'b'])
    expect(facts.header('dpop')).toEqual([])
  })
})

describe('a guard', () => {
  it('is ready before its issuer is, and waits for nothing', () => {
    const options: GuardOptions = {
      issuer: ISSUER,
      audience: AUDIENCE,
      fetch: () => new Promise(() => undefined),
    }
    const guard = createGuard(options)
    expect(guard.health()).toMatchObject({ status: 'unavailable', issuers: [{ keys: 0, ageSeconds: undefined }] })
    expect(guardAt({ issuer: { issuer: ISSUER, keys: ourJwks } }).health().status).toBe('ok')
  })
})
