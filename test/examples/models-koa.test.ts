import { createGuard, loadPolicies, runPolicyTests } from '@latchkey/guard'
import type { AuditEvent } from '@latchkey/guard'
import { createTestIssuer } from '@latchkey/guard/testing'
import type { TestIssuer } from '@latchkey/guard/testing'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createModelsService } from '../../examples/models-koa/models-service.ts'
import { openModels } from '../../examples/models-koa/models.ts'
import type { Models } from '../../examples/models-koa/models.ts'
import { serving } from '../guard/support/plain-provider.ts'

const EVERYTHING = 'models:read models:write models:delete models:share'
const policies = loadPolicies({ path: 'examples/models-koa/policies.yaml' })
let idp: TestIssuer
let models: Models
let service: Awaited<ReturnType<typeof serving>>
const events: AuditEvent[] = []

beforeAll(async () => {
  idp = await createTestIssuer()
  models = await openModels()
  const guard = createGuard({ ...idp.options, policies, audit: (event) => events.push(event) })
  service = await serving(createModelsService(guard, models).callback())
})

afterAll(async () => {
  service.close()
  await models.close()
})

async function call(
  token: string | undefined,
  method: string,
  path: string,
  body?: object,
): Promise<[number, Record<string, unknown>]> {
  const headers: Record<string, string> = { 'content-type': 'application/json' }
  if (token !== undefined) headers['authorization'] = `Bearer ${token}`
  const response = await fetch(service.origin + path, { method, headers, ...(body && { body: JSON.stringify(body) }) })
  const text = await response.text()
  return [response.status, text.startsWith('{') ? (JSON.parse(text) as Record<string, unknown>) : {}]
}

const tokenOf = (sub: string, scope = EVERYTHING, roles: string[] = []): Promise<string> =>
  idp.mint({ sub, scope, roles })

async function create(token: string, name: string, isPublic = false): Promise<string> {
  const [, model] = await call(token, 'POST', '/models', { name, is_public: isPublic })
  return String(model['id'])
}

async function names(token: string): Promise<unknown> {
  const [, { models: list }] = await call(token, 'GET', '/models')
  return (list as { name: string }[]).map((model) => model.name)
}

describe('the models service', () => {
  it('refuses whoever has no token, and tokens without the scope', async () => {
    expect((await call(undefined, 'GET', '/models'))[0]).toBe(401)
    const reader = await tokenOf('alice', 'models:read')
    for (const [method, path] of [
      ['POST', '/models'],
      ['PATCH', '/models/x'],
      ['DELETE', '/models/x'],
      ['PUT', '/models/x/shares/user:bob'],
      ['POST', '/models/x/transfer'],
    ] as const) {
      expect(await call(reader, method, path, {}), `${method} ${path}`).toMatchObject([403, {}])
    }
    expect((await call(await tokenOf('alice', 'models:write'), 'GET', '/models/x'))[0]).toBe(403)
  })

  it('refuses what it cannot read', async () => {
    const alice = await tokenOf('alice')
    expect((await call(alice, 'POST', '/models', {}))[0]).toBe(400)
    expect((await call(alice, 'POST', '/models', { name: 'x', owner_id: 'user:bob' }))[0]).toBe(400)
    const id = await create(alice, 'x')
    expect((await call(alice, 'PUT', `/models/${id}/shares/bob`, { permissions: ['read'] }))[0]).toBe(400)
    expect((await call(alice, 'POST', `/models/${id}/transfer`, { to: 'bob' }))[0]).toBe(400)
    await call(alice, 'DELETE', `/models/${id}`)
  })

  it('keeps a model private until its owner shares it, and then to that extent', async () => {
    const [alice, bob] = [await tokenOf('alice'), await tokenOf('bob')]
    const id = await create(alice, 'private')
    expect((await call(bob, 'GET', `/models/${id}`))[0]).toBe(403)
    expect((await call(bob, 'PUT', `/models/${id}/shares/user:bob`, { permissions: ['read'] }))[0]).toBe(403)

    expect((await call(alice, 'PUT', `/models/${id}/shares/user:bob`, { permissions: ['read'] }))[0]).toBe(204)
    expect((await call(bob, 'GET', `/models/${id}`))[0]).toBe(200)
    expect((await call(bob, 'PATCH', `/models/${id}`, { name: 'mine' }))[0]).toBe(403)

    await call(alice, 'PUT', `/models/${id}/shares/user:bob`, { permissions: ['read', 'write'] })
    expect((await call(bob, 'PATCH', `/models/${id}`, { name: 'renamed' }))[0]).toBe(200)
    // Who writes does not decide who sees.
    expect((await call(bob, 'PATCH', `/models/${id}`, { is_public: true }))[0]).toBe(403)
    expect((await call(bob, 'DELETE', `/models/${id}`))[0]).toBe(403)

    await call(alice, 'PUT', `/models/${id}/shares/user:bob`, { permissions: [] })
    expect((await call(bob, 'GET', `/models/${id}`))[0]).toBe(403)
    expect((await call(alice, 'DELETE', `/models/${id}`))[0]).toBe(204)
    expect((await call(alice, 'GET', `/models/${id}`))[0]).toBe(404)
  })

  it('lists what reading one by one would show', async () => {
    const [carol, dave] = [await tokenOf('carol'), await tokenOf('dave')]
    await create(carol, 'c1 private')
    await create(carol, 'c2 public', true)
    const shared = await create(carol, 'c3 shared')
    await create(dave, 'd1 private')
    await call(carol, 'PUT', `/models/${shared}/shares/user:dave`, { permissions: ['read'] })
    expect(await names(dave)).toEqual(['c2 public', 'c3 shared', 'd1 private'])
    expect(events.at(-1)).toMatchObject({ kind: 'filter', action: 'read', resourceType: 'model', outcome: 'condition' })
    expect(await names(carol)).toEqual(['c1 private', 'c2 public', 'c3 shared'])
    expect(await names(await tokenOf('root', EVERYTHING, ['admin']))).toEqual([
      'c1 private',
      'c2 public',
      'c3 shared',
      'd1 private',
    ])
    // A client is not a user, though it be called like one; what is public is public.
    expect(await names(await idp.mint({ sub: 'carol', clientId: 'carol', scope: EVERYTHING }))).toEqual(['c2 public'])
  })

  it('gives a model away for good, and says so in the audit', async () => {
    const [erin, frank] = [await tokenOf('erin'), await tokenOf('frank')]
    const id = await create(erin, 'gift')
    expect((await call(frank, 'POST', `/models/${id}/transfer`, { to: 'user:frank' }))[0]).toBe(403)
    expect(await call(erin, 'POST', `/models/${id}/transfer`, { to: 'user:frank' })).toMatchObject([
      200,
      { owner_id: 'user:frank' },
    ])
    expect((await call(erin, 'GET', `/models/${id}`))[0]).toBe(403)
    expect((await call(frank, 'GET', `/models/${id}`))[0]).toBe(200)
    expect(events).toContainEqual(
      expect.objectContaining({
        kind: 'decision',
        action: 'transfer',
        subject: expect.objectContaining({ id: 'erin' }),
        resource: { type: 'model', id },
        decision: expect.objectContaining({ allowed: true, policy: 'owner-may-do-everything' }),
      }),
    )
  })

  it('keeps the promises written beside its policies', () => {
    const results = runPolicyTests(policies)
    expect(results.length).toBeGreaterThan(0)
    expect(results.filter((result) => !result.passed)).toEqual([])
  })
})
