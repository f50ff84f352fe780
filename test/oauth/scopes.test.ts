import { sql } from 'kysely'
import { decodeJwt } from 'jose'
import { beforeAll, describe, expect, it } from 'vitest'
import { assignRole, unassignRole } from '../../src/access/roles.ts'
import { systemActor } from '../../src/audit/audit.ts'
import { setClientPermissions } from '../../src/oauth/clients.ts'
import { createResource } from '../../src/oauth/resources.ts'
import { findUserByLogin } from '../../src/users/users.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import {
  authorize,
  exchange,
  isActive,
  query,
  refresh,
  registerClient,
  signInAt,
  userinfo,
  type RegisteredClient,
} from '../support/relying-party.ts'
import { postForm } from '../support/user-agent.ts'

describe('what a token allows', () => {
  const second = 'https://reports.example.test'
  let provider: TestProvider
  let rp: RegisteredClient
  let models: { readonly scope: string; readonly resource: string }
  beforeAll(async () => {
    provider = await openProvider('pglite')
    const { resource } = provider.demo
    await provider.database.db.transaction().execute((trx) =>
      createResource(trx, systemActor, {
        id: second,
        name: 'Reports',
        permissions: [{ permission: 'reports:read', description: 'see reports' }],
      }),
    )
    const permissions = ['models:read', 'models:write', 'models:delete'].map((permission) => ({
      resource,
      permission,
    }))
    rp = await registerClient(provider, {
      permissions: [...permissions, { resource: second, permission: 'reports:read' }],
    })
    models = { resource, scope: 'openid models:read models:delete' }
  })

  const machine = (client: RegisteredClient | undefined, parameters: Parameters<typeof query>[0] = {}) =>
    postForm(
      `${provider.issuer}/token`,
      client ?? provider.demo.clients.service,
      query({ grant_type: 'client_credentials', ...parameters }),
    )

  it('a machine that asks beyond its registration: invalid_scope, and nothing of it', async () => {
    for (const scope of ['models:delete', 'models:read models:delete', 'openid', 'offline_access', 'nonsense']) {
      const { status, body } = await machine(undefined, { scope })
      expect([status, body.error, body.access_token], scope).toEqual([400, 'invalid_scope', undefined])
    }
  })

  it('a machine that names no resource and has no default, an unknown one, or somebody else’s: invalid_target', async () => {
    const homeless = await registerClient(provider, { type: 'machine' })
    const nothing = await registerClient(provider, { type: 'machine', permissions: [] })
    const answers = [
      await machine(homeless),
      await machine(nothing),
      await machine(nothing, { resource: provider.demo.resource }),
      await machine(undefined, { resource: 'https://api.example.test' }),
      await machine(undefined, { resource: second }),
      await machine(undefined, { resource: `${provider.issuer}/v1` }),
      await machine(undefined, { resource: [provider.demo.resource, second] }),
    ]
    for (const { status, body } of answers) expect([status, body.error]).toEqual([400, 'invalid_target'])
  })

  it('a machine that names no scope gets all that it is registered for, for its default resource', async () => {
    const { body } = await machine(undefined)
    expect(body).toMatchObject({ scope: 'models:read models:write', token_type: 'Bearer', expires_in: 900 })
    expect(body).not.toHaveProperty('refresh_token')
    const claims = decodeJwt(body.access_token ?? '')
    const { client_id } = provider.demo.clients.service
    expect(claims).toMatchObject({ sub: client_id, client_id, aud: provider.demo.resource })
    expect(claims).not.toHaveProperty('roles')
    expect((await machine(undefined, { scope: 'models:read' })).body.scope).toBe('models:read')
  })

  it('beyond a person’s roles: left out of the token, and the answer says so', async () => {
    const { body } = await signInAt(provider, rp, { parameters: models })
    expect(body.scope).toBe('models:read')
    expect(decodeJwt(body.access_token ?? '')).toMatchObject({ scope: 'models:read', aud: provider.demo.resource })
    const admin = await signInAt(provider, rp, { parameters: models, person: provider.demo.admin })
    expect(admin.body.scope).toBe('models:read models:delete')
  })

  it('a role that was taken counts from the next refresh, one that was given from the next sign-in', async () => {
    const { db } = provider.database
    const user = await findUserByLogin(db, provider.demo.admin.email)
    const assignment = { user_id: user?.id ?? '', role: 'models-admin' }
    const { body } = await signInAt(provider, rp, { parameters: models, person: provider.demo.admin })
    await db.transaction().execute((trx) => unassignRole(trx, systemActor, assignment))
    const without = await refresh(provider, rp, body.refresh_token)
    expect(without.status, JSON.stringify(without.body)).toBe(200)
    expect(without.body.scope ?? '').toBe('')
    await db.transaction().execute((trx) => assignRole(trx, systemActor, assignment))
    const again = await signInAt(provider, rp, { parameters: models, person: provider.demo.admin })
    expect(again.body.scope).toBe('models:read models:delete')
  })

  it('what a client may no longer ask is gone from its next refresh, and its tokens are dead at once', async () => {
    const narrowed = await registerClient(provider)
    const { resource } = models
    const parameters = { resource, scope: 'openid models:read models:write' }
    const { body } = await signInAt(provider, narrowed, { parameters })
    expect(body.scope).toBe('models:read models:write')
    await provider.database.db.transaction().execute((trx) =>
      setClientPermissions(trx, systemActor, {
        id: narrowed.client_id,
        permissions: [{ resource, permission: 'models:read' }],
      }),
    )
    expect(await isActive(provider, narrowed, body.access_token)).toBe(false)
    const next = await refresh(provider, narrowed, body.refresh_token)
    expect([next.status, next.body.scope], JSON.stringify(next.body)).toEqual([200, 'models:read'])
  })

  it('a token for a resource is no good at userinfo, and one without is no JWT and good for nothing else', async () => {
    const forModels = await signInAt(provider, rp, { parameters: models })
    const atUserinfo = await userinfo(provider, forModels.body.access_token)
    expect([atUserinfo.status, atUserinfo.body.error]).toEqual([401, 'invalid_token'])
    const plain = await signInAt(provider, rp)
    expect(plain.body.access_token).toMatch(/^[\w-]{43,}$/)
    expect((await userinfo(provider, plain.body.access_token)).status).toBe(200)
    expect(plain.body.scope).toBe('openid')
  })

  it('of two resources asked for, a token is for one at a time', async () => {
    const answered = await authorize(provider, rp, {
      parameters: { scope: 'openid models:read', resource: [provider.demo.resource, second] },
    })
    const both = await exchange(provider, rp, answered)
    expect([both.status, both.body.error]).toEqual([400, 'invalid_target'])
    const one = await exchange(provider, rp, answered, { parameters: { resource: provider.demo.resource } })
    expect(one.status, JSON.stringify(one.body)).toBe(200)
    expect(decodeJwt(one.body.access_token ?? '')).toMatchObject({
      aud: provider.demo.resource,
      scope: 'models:read',
    })
    const other = await refresh(provider, rp, one.body.refresh_token, { parameters: { resource: second } })
    expect(decodeJwt(other.body.access_token ?? '').aud).toBe(second)
    expect(other.body.scope ?? '').toBe('')
  })

  it('a narrower scope may be asked at refresh, and the whole again after that', async () => {
    const parameters = { ...models, scope: 'openid models:read models:write' }
    const { body } = await signInAt(provider, rp, { parameters })
    const narrow = await refresh(provider, rp, body.refresh_token, { parameters: { scope: 'models:read' } })
    expect(narrow.body.scope).toBe('models:read')
    const whole = await refresh(provider, rp, narrow.body.refresh_token)
    expect(whole.body.scope).toBe('models:read models:write')
  })

  it('a token too large for the headers that carry it is refused, and neither code nor refresh token is lost', async () => {
    const { db } = provider.database
    const { email } = provider.demo.user
    const setDepartment = (department: string) =>
      sql`UPDATE users SET attributes = jsonb_set(attributes, '{department}', to_jsonb(${department}::text)) WHERE email = ${email}`.execute(
        db,
      )
    const { body } = await signInAt(provider, rp, { parameters: models })
    const answered = await authorize(provider, rp, { parameters: models })
    await setDepartment('x'.repeat(6_000))
    const refused = [await exchange(provider, rp, answered), await refresh(provider, rp, body.refresh_token)]
    await setDepartment('engineering')
    for (const answer of refused) {
      expect([answer.status, answer.body.error]).toEqual([400, 'invalid_request'])
      expect(answer.body.error_description).toContain('bytes')
    }
    expect((await exchange(provider, rp, answered)).status).toBe(200)
    expect((await refresh(provider, rp, body.refresh_token)).status).toBe(200)
  })
})
