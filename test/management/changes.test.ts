/**
 * What the management API changes: who may, what ends with it, what the record says of it, and that nothing secret is ever
 * read back.
 */
import { createHash } from 'node:crypto'
import { decodeJwt, decodeProtectedHeader } from 'jose'
import { sql } from 'kysely'
import { beforeAll, describe, expect, it, vi } from 'vitest'
import { eachDatabase } from '../support/databases.ts'
import {
  openManagement,
  type Called,
  type CallOptions,
  type Json,
  type Management,
  type Person,
} from '../support/management.ts'
import { refresh, registerClient, signInAt } from '../support/relying-party.ts'
import { postForm } from '../support/user-agent.ts'

eachDatabase((_open, engine) => {
  let api: Management
  let resource: string
  beforeAll(async () => {
    api = await openManagement(engine)
    resource = `${api.provider.issuer}/v1`
  })

  const refusal = ({ status, body }: Called) => [status, body.error.code]
  const isAlive = async (token: string) => (await api.call('/v1/users/me', { token })).status === 200
  const idOf = ({ headers }: Called) => (headers.get('location') ?? '').split('/').at(-1) ?? ''
  const claimsOf = (token: string) => decodeJwt<{ sid: string; grant_id: string }>(token)
  const list = (body: Json, name: string) => body[name] as readonly Readonly<Record<string, unknown>>[]

  async function newKey(clientId: string, more: object = {}): Promise<{ id: string; key: string }> {
    const body = { client_id: clientId, name: 'A key', ...more }
    const made = await api.call('/v1/api-keys', { method: 'POST', body })
    expect(made.status).toBe(201)
    return { id: String(made.body['api_key_id']), key: String(made.body['api_key']) }
  }
  const withKey = (key: string, path = '/v1/users', options: CallOptions = {}) =>
    api.call(path, { ...options, token: null, headers: { 'x-api-key': key } })

  describe('an API key', () => {
    it('that is none, ended, or of a client that is shut out, is 403', async () => {
      const machine = await api.newMachine(['users:read'])
      const { id, key } = await newKey(machine.client_id)
      const wrong = `${key.slice(0, -1)}${key.endsWith('A') ? 'B' : 'A'}`
      for (const presented of ['nonsense', 'lk_key_', wrong, machine.token, machine.client_secret ?? '']) {
        expect(refusal(await withKey(presented))).toEqual([403, 'AUTHORIZATION_ERROR'])
      }
      const path = `/v1/clients/${machine.client_id}`
      await api.call(path, { method: 'PATCH', body: { is_active: false } })
      expect(refusal(await withKey(key))).toEqual([403, 'AUTHORIZATION_ERROR'])
      await api.call(path, { method: 'PATCH', body: { is_active: true } })
      expect((await withKey(key)).status).toBe(200)
      await api.call(`/v1/api-keys/${id}`, { method: 'DELETE' })
      expect(refusal(await withKey(key))).toEqual([403, 'AUTHORIZATION_ERROR'])
    })

    it('comes alone: beside a token it is 400, whichever of the two is good', async () => {
      const { key } = await newKey(api.machine.client_id)
      for (const [presented, token] of [
        [key, api.administrator.token],
        [key, 'nonsense'],
        ['nonsense', api.administrator.token],
      ] as const) {
        const answer = await api.call('/v1/users', { token, headers: { 'x-api-key': presented } })
        expect(refusal(answer)).toEqual([400, 'MALFORMED_REQUEST'])
      }
    })

    it('is not made for a client that may do more than whoever makes it', async () => {
      const { token } = await api.newMachine(['clients:write', 'users:read'])
      const make = (clientId: string) =>
        api.call('/v1/api-keys', { method: 'POST', token, body: { client_id: clientId, name: 'Taken over' } })
      expect(refusal(await make(api.machine.client_id))).toEqual([403, 'AUTHORIZATION_ERROR'])
      const { client_id: weaker } = await api.newMachine(['users:read'])
      expect((await make(weaker)).status).toBe(201)
    })

    it('may do what its client may, and no more, and is nobody’s own', async () => {
      const { client_id: clientId } = await api.newMachine(['users:read', 'users:write'])
      const { id, key } = await newKey(clientId)
      expect((await withKey(key)).status).toBe(200)
      expect(refusal(await withKey(key, '/v1/roles'))).toEqual([403, 'AUTHORIZATION_ERROR'])
      expect(refusal(await withKey(key, '/v1/users/me'))).toEqual([404, 'RESOURCE_NOT_FOUND'])
      const created = await withKey(key, '/v1/users', { method: 'POST', body: { email: 'by-key@changes.example' } })
      expect(created.status).toBe(201)
      const { body } = await api.call(`/v1/audit?actor_id=${clientId}`)
      expect(list(body, 'audit_events').map(({ action }) => action)).toEqual(['user.created'])
      expect((await api.call(`/v1/api-keys/${id}`)).body['last_used_at']).not.toBeNull()
    })

    it('over its plan is 429, with the limit, what is left, when it comes back, and when to try again', async () => {
      await api.call('/v1/plans/two-a-month', {
        method: 'PUT',
        body: { name: 'two-a-month', quota: { limit: 2, period: 'MONTH' } },
      })
      const { key } = await newKey(api.machine.client_id, { plan: 'two-a-month' })
      for (const remaining of ['1', '0']) {
        const { status, headers } = await withKey(key)
        expect([status, headers.get('x-ratelimit-remaining')]).toEqual([200, remaining])
        expect(headers.get('ratelimit')).toMatch(new RegExp(`^"quota";r=${remaining};t=\\d+$`))
        expect(headers.get('ratelimit-policy')).toMatch(/^"quota";q=2;w=\d+$/)
      }
      const answer = await withKey(key)
      expect(refusal(answer)).toEqual([429, 'RATE_LIMIT_EXCEEDED'])
      expect(await api.provider.metrics()).toMatch(/^latchkey_rate_limited_total\{limit="quota"\} [1-9]/m)
      expect(api.provider.log()).toMatch(/"rate_limited":"quota".*"status_code":429/)
      const { reset_at: resetAt, retry_after: retryAfter, ...error } = answer.body.error
      expect(error).toEqual({
        code: 'RATE_LIMIT_EXCEEDED',
        message: 'API rate limit exceeded',
        limit: 2,
        remaining: 0,
      })
      expect(resetAt).toMatch(/^\d{4}-\d\d-01T00:00:00Z$/)
      expect(answer.headers.get('retry-after')).toBe(String(retryAfter))
      expect(answer.headers.get('x-ratelimit-limit')).toBe('2')
      expect(answer.headers.get('x-ratelimit-reset')).toBe(String(Date.parse(String(resetAt)) / 1_000))
      // Its client is on no plan, and so are the client's tokens.
      expect((await api.call('/v1/users', { token: api.machine.token })).status).toBe(200)
      const inUse = await api.call('/v1/plans/two-a-month', { method: 'DELETE' })
      expect(refusal(inUse)).toEqual([409, 'CONFLICT'])
    })
  })

  describe('sessions', () => {
    let person: Person
    let other: string
    beforeAll(async () => {
      person = await api.newPerson('of-two-devices')
      other = await api.signIn(person)
    })

    it('of somebody else are neither seen nor ended: 404 by their own path, as if there were none; 403 beneath the person', async () => {
      const { sid } = claimsOf(person.token)
      const { token } = api.user
      for (const method of ['GET', 'DELETE']) {
        const theirs = await api.call(`/v1/sessions/${sid}`, { method, token })
        const nothing = await api.call('/v1/sessions/none', { method, token })
        expect([refusal(theirs), refusal(nothing)]).toEqual([
          [404, 'RESOURCE_NOT_FOUND'],
          [404, 'RESOURCE_NOT_FOUND'],
        ])
        expect(JSON.parse(JSON.stringify(theirs.body.error).replaceAll(sid, 'none'))).toEqual(nothing.body.error)
      }
      const nested = await api.call(`/v1/users/${person.id}/sessions`, { token })
      expect(refusal(nested)).toEqual([403, 'AUTHORIZATION_ERROR'])
      expect(refusal(await api.call('/v1/sessions', { token }))).toEqual([403, 'AUTHORIZATION_ERROR'])
      expect(await isAlive(person.token)).toBe(true)
    })

    it('are seen by their own, beneath the person and by their own path, and by who may see all', async () => {
      const { sid } = claimsOf(person.token)
      const own = await api.call('/v1/users/me/sessions', { token: person.token })
      expect(list(own.body, 'sessions').map(({ session_id: id }) => id)).toContain(sid)
      expect(own.body.pagination.total).toBe(2)
      const direct = await api.call(`/v1/sessions/${sid}`, { token: other })
      expect(direct.body).toMatchObject({ session_id: sid, user_id: person.id, client_ids: ['console'], amr: ['pwd'] })
      const support = await api.call(`/v1/sessions?user_id=${person.id}`, { token: api.support.token })
      expect(list(support.body, 'sessions')).toContainEqual(direct.body)
    })

    it('end at once, with their tokens, on one device: 204, then 404', async () => {
      const { sid } = claimsOf(person.token)
      const ended = await api.call(`/v1/sessions/${sid}`, { method: 'DELETE', token: other })
      expect(ended.status).toBe(204)
      expect(await isAlive(person.token)).toBe(false)
      expect(await isAlive(other)).toBe(true)
      const again = await api.call(`/v1/sessions/${sid}`, { method: 'DELETE', token: other })
      expect(again.status).toBe(404)
      const left = await api.call('/v1/users/me/sessions', { token: other })
      expect(list(left.body, 'sessions').map(({ session_id: id }) => id)).toEqual([claimsOf(other).sid])
    })

    it('are ended by support too', async () => {
      const path = `/v1/sessions/${claimsOf(other).sid}`
      expect((await api.call(path, { method: 'DELETE', token: api.support.token })).status).toBe(204)
      expect(await isAlive(other)).toBe(false)
    })
  })

  describe('grants', () => {
    let person: Person
    let tokens: Awaited<ReturnType<typeof signInAt>>['body']
    beforeAll(async () => {
      person = await api.newPerson('of-one-application')
      const parameters = { scope: 'self:read self:write', resource }
      tokens = (await signInAt(api.provider, api.console, { person, parameters })).body
    })

    it('of somebody else are neither seen nor taken away', async () => {
      const { grant_id: id } = claimsOf(tokens.access_token ?? '')
      const { token } = api.user
      for (const method of ['GET', 'DELETE']) {
        const theirs = await api.call(`/v1/grants/${id}`, { method, token })
        expect(refusal(theirs)).toEqual([404, 'RESOURCE_NOT_FOUND'])
        const nothing = await api.call('/v1/grants/none', { method, token })
        expect(JSON.parse(JSON.stringify(theirs.body.error).replaceAll(id, 'none'))).toEqual(nothing.body.error)
      }
      expect(refusal(await api.call(`/v1/users/${person.id}/grants`, { token }))).toEqual([403, 'AUTHORIZATION_ERROR'])
    })

    it('say which application may do what, and end with its refresh token and access tokens', async () => {
      const { access_token: token = '', refresh_token: refreshToken } = tokens
      const { grant_id: id } = claimsOf(token)
      const own = await api.call('/v1/users/me/grants?client_id=console', { token })
      expect(own.body.pagination.total).toBe(2)
      const direct = await api.call(`/v1/grants/${id}`, { token })
      expect(direct.body).toMatchObject({ grant_id: id, user_id: person.id, client_id: 'console' })
      expect((direct.body['scopes'] as Record<string, string>)[resource]?.split(' ').sort()).toEqual([
        'self:read',
        'self:write',
      ])
      expect((await api.call(`/v1/grants/${id}`, { method: 'DELETE', token })).status).toBe(204)
      expect(await isAlive(token)).toBe(false)
      expect((await refresh(api.provider, api.console, refreshToken)).body.error).toBe('invalid_grant')
      const again = await api.call(`/v1/grants/${id}`, { method: 'DELETE', token: person.token })
      expect(again.status).toBe(404)
      // What came from another sign-in lives.
      expect(await isAlive(person.token)).toBe(true)
    })
  })

  describe('everything at once', () => {
    it('of somebody else is not ended: 403', async () => {
      for (const [path, token] of [
        [`/v1/users/${api.otherUser.id}/revocations`, api.user.token],
        [`/v1/clients/${api.machine.client_id}/revocations`, api.support.token],
      ] as const) {
        const answer = await api.call(path, { method: 'POST', token, body: { reason: 'because' } })
        expect([path, ...refusal(answer)]).toEqual([path, 403, 'AUTHORIZATION_ERROR'])
      }
      expect(await isAlive(api.otherUser.token)).toBe(true)
    })

    it('that a person began ends by their own word, and what they agreed to is forgotten when they say so', async () => {
      const person = await api.newPerson('signs-out-everywhere')
      const third = await registerClient(api.provider, {
        name: 'Somebody else’s application',
        first_party: false,
        permissions: [{ resource, permission: 'self:read' }],
      })
      const parameters = { scope: 'self:read', resource }
      const elsewhere = (await signInAt(api.provider, third, { person, parameters })).body
      const revoke = (token: string, body: object) =>
        api.call('/v1/users/me/revocations', { method: 'POST', token, body })
      const first = await revoke(person.token, {})
      expect([first.status, first.headers.get('location')]).toEqual([201, `/v1/users/${person.id}/sessions`])
      expect(first.body).toEqual({ user_id: person.id, sessions_ended: 2, grants_ended: 2, consents_forgotten: 0 })
      expect(await isAlive(person.token)).toBe(false)
      expect(await isAlive(elsewhere.access_token ?? '')).toBe(false)
      expect((await refresh(api.provider, third, elsewhere.refresh_token)).body.error).toBe('invalid_grant')
      // The account stays open.
      const token = await api.signIn(person)
      const second = await revoke(token, { consents: true, reason: 'a laptop was stolen' })
      expect(second.body).toMatchObject({ sessions_ended: 1, grants_ended: 1, consents_forgotten: 1 })
      expect(await isAlive(token)).toBe(false)
    })

    it('that a client has ends at once, and it may begin anew', async () => {
      const machine = await api.newMachine(['users:read'])
      expect((await api.call('/v1/users', { token: machine.token })).status).toBe(200)
      const path = `/v1/clients/${machine.client_id}`
      const revoked = await api.call(`${path}/revocations`, { method: 'POST', body: { reason: 'it was copied' } })
      expect([revoked.status, revoked.headers.get('location')]).toEqual([201, path])
      expect(revoked.body).toEqual({ client_id: machine.client_id, grants_ended: 0 })
      expect((await api.call('/v1/users', { token: machine.token })).status).toBe(401)
      // A token says in which second it was issued, and those of the revocation's own second are dead too.
      await vi.waitFor(
        async () => {
          const parameters = { grant_type: 'client_credentials', resource }
          const { body } = await postForm(`${api.provider.issuer}/token`, machine, parameters)
          expect((await api.call('/v1/users', { token: body.access_token ?? '' })).status).toBe(200)
        },
        { timeout: 10_000, interval: 300 },
      )
    })
  })

  it('use is counted by version, client and program, errors apart', async () => {
    const { client_id: clientId, token } = await api.newMachine(['users:read'], 'counted')
    const headers = { 'user-agent': 'batch-processor/1.5 (nightly)' }
    for (let i = 0; i < 3; i += 1) await api.call('/v1/users', { token, headers })
    await api.call('/v1/roles', { token, headers })
    await vi.waitFor(
      async () => {
        const { body } = await api.call('/v1/usage?version=1')
        expect(list(body, 'callers').find((caller) => caller['client_id'] === clientId)).toMatchObject({
          version: '1',
          user_agent: 'batch-processor/1.5',
          requests: 4,
          errors: 1,
          error_percent: 25,
        })
        expect(list(body, 'versions')).toEqual([expect.objectContaining({ version: '1', share_percent: 100 })])
      },
      { timeout: 20_000, interval: 250 },
    )
    expect(list((await api.call('/v1/usage?version=9')).body, 'callers')).toEqual([])
  })

  /** What this test has made that nobody may read again. */
  const secrets: string[] = []

  describe('the record', () => {
    let token: string
    let requests = 0
    /** `PATCH /v1/users/{user_id}`: what was carried out here */
    const carriedOut = new Set<string>()
    let operations: readonly (readonly [operation: string, pattern: RegExp])[]

    beforeAll(async () => {
      token = api.administrator.token
      const { body } = await api.call('/openapi.json', { token: null })
      operations = Object.entries(body['paths'] as Record<string, object>).flatMap(([path, methods]) =>
        Object.keys(methods).map((method): [string, RegExp] => [
          `${method.toUpperCase()} ${path}`,
          new RegExp(`^${path.replaceAll(/\{\w+\}/g, '[^/]+')}$`),
        ]),
      )
    })

    async function change(method: string, path: string, body?: unknown, headers: Record<string, string> = {}) {
      const requestId = `change-${(requests += 1)}`
      const options = { method, token, headers: { ...headers, 'x-request-id': requestId } }
      const answer = await api.call(path, body === undefined ? options : { ...options, body })
      if (answer.status < 300) {
        const found = operations.find(([name, pattern]) => name.startsWith(`${method} `) && pattern.test(path))
        carriedOut.add(found?.[0] ?? `${method} ${path}`)
      }
      const record = await api.call(`/v1/audit?request_id=${requestId}&sort=audit_event_id`, { token })
      const events = list(record.body, 'audit_events') as readonly {
        action: string
        actor: object
        target: { type: string; id: string }
        details: Readonly<Record<string, unknown>>
      }[]
      for (const { actor } of events) {
        expect(actor).toEqual({ type: 'user', id: api.administrator.id, on_behalf_of: null })
      }
      return { answer, events, actions: events.map(({ action, target }) => `${action} ${target.id}`) }
    }

    it('holds nothing of what was refused, or was so already', async () => {
      const path = `/v1/users/${api.user.id}`
      await change('PATCH', path, { name: 'Recorded' })
      const nothing = [
        await change('PATCH', path, { name: 'Recorded' }),
        await change('PATCH', path, { email: 7 }),
        await change('PATCH', path, { name: 'Lost' }, { 'if-match': '"0"' }),
        await change('POST', '/v1/users', { email: api.user.email }),
        await change('DELETE', '/v1/roles/administrator'),
        await change('PUT', '/v1/roles/nobody', { permissions: [{ resource, permission: 'no:such' }] }),
        await change('PUT', `${path}/roles/nothing`),
      ]
      expect(nothing.map(({ answer }) => answer.status)).toEqual([200, 400, 412, 409, 409, 400, 404])
      expect(nothing.map(({ actions }) => actions)).toEqual(nothing.map(() => []))
    })

    it('of a person: one row for each change, with who, which request, before and after', async () => {
      const password = 'a password that nobody may read'
      secrets.push(password, 'another password nobody reads')
      const created = await change('POST', '/v1/users', { email: 'audited@changes.example', password, name: 'Before' })
      const id = idOf(created.answer)
      const path = `/v1/users/${id}`
      expect(created.actions).toEqual([`user.created ${id}`])
      const updated = await change('PATCH', path, { name: 'After', attributes: { clearance: 3 } })
      expect(updated.actions).toEqual([`user.updated ${id}`])
      expect(updated.events[0]?.details).toEqual({
        before: { name: 'Before', attributes: {} },
        after: { name: 'After', attributes: { clearance: 3 } },
      })
      const replaced = await change('PUT', path, { email: 'audited@changes.example', name: 'Replaced' })
      expect(replaced.actions).toEqual([`user.updated ${id}`])
      const both = await change('PATCH', path, { name: 'Shut out', is_active: false })
      expect(both.actions).toEqual([`user.updated ${id}`, `user.disabled ${id}`])
      expect((await change('PATCH', path, { is_active: true })).actions).toEqual([`user.enabled ${id}`])
      const changed = await change('PUT', `${path}/password`, { password: 'another password nobody reads' })
      expect(changed.actions).toEqual([`user.password-changed ${id}`])
      const roles = await change('PUT', `${path}/roles`, { roles: ['member', 'support'] }, { 'if-match': '*' })
      expect(roles.actions).toEqual([`user.role-assigned ${id}`, `user.role-assigned ${id}`])
      expect(roles.events.map(({ details }) => details)).toEqual([
        { role: 'member', before: { roles: [] }, after: { roles: ['member'] } },
        { role: 'support', before: { roles: ['member'] }, after: { roles: ['member', 'support'] } },
      ])
      expect((await change('DELETE', `${path}/roles/member`)).actions).toEqual([`user.role-unassigned ${id}`])
      expect((await change('PUT', `${path}/roles/member`)).actions).toEqual([`user.role-assigned ${id}`])
      const revoked = await change('POST', `${path}/revocations`, { reason: 'because' })
      expect(revoked.actions).toEqual([`user.access-revoked ${id}`])
      expect(revoked.events[0]?.details).toMatchObject({ reason: 'because', before: { sessions: [], grants: [] } })
      expect((await change('DELETE', path)).actions).toEqual([`user.deleted ${id}`])
    })

    it('of roles, resources and plans', async () => {
      const permissions = [{ resource, permission: 'users:read' }]
      expect((await change('POST', '/v1/roles', { name: 'posted' })).actions).toEqual(['role.created posted'])
      expect((await change('PUT', '/v1/roles/put', { permissions })).actions).toEqual(['role.created put'])
      const role = await change('PUT', '/v1/roles/put', { description: 'Another' })
      expect(role.actions).toEqual(['role.updated put'])
      expect(role.events[0]?.details).toEqual({
        before: { description: '', permissions, includes: [] },
        after: { description: 'Another', permissions: [], includes: [] },
        users: 0,
      })
      expect((await change('DELETE', '/v1/roles/put')).actions).toEqual(['role.deleted put'])

      const id = 'https://audited.example'
      const path = `/v1/resources/${encodeURIComponent(id)}`
      expect((await change('PUT', path, { name: 'Before' })).actions).toEqual([`resource.created ${id}`])
      const updated = await change('PUT', path, { name: 'After' })
      expect(updated.events[0]?.details).toMatchObject({ before: { name: 'Before' }, after: { name: 'After' } })
      expect((await change('DELETE', path)).actions).toEqual([`resource.deleted ${id}`])

      const plan = (limit: number) => ({ name: 'Audited', quota: { limit, period: 'DAY' } })
      expect((await change('PUT', '/v1/plans/Audited', plan(1))).actions).toEqual(['plan.created Audited'])
      const raised = await change('PUT', '/v1/plans/Audited', plan(2))
      expect(raised.events[0]?.details).toMatchObject({
        before: { quota: { limit: 1 } },
        after: { quota: { limit: 2 } },
      })
      expect((await change('DELETE', '/v1/plans/Audited')).actions).toEqual(['plan.deleted Audited'])
    })

    it('of clients, their secrets and API keys', async () => {
      const id = 'audited'
      const path = `/v1/clients/${id}`
      const permissions = [{ resource, permission: 'users:read' }]
      const created = await change('POST', '/v1/clients', {
        client_id: id,
        type: 'machine',
        name: 'Before',
        default_resource: resource,
        permissions,
      })
      expect(created.actions).toEqual([`client.created ${id}`])
      secrets.push(String(created.answer.body['client_secret']))
      const updated = await change('PATCH', path, { name: 'After' })
      expect(updated.events).toEqual([
        expect.objectContaining({
          action: 'client.updated',
          details: { before: { name: 'Before' }, after: { name: 'After' } },
        }),
      ])
      const replaced = await change('PUT', path, { name: 'After', grant_types: ['client_credentials'] })
      expect(replaced.actions).toEqual([`client.updated ${id}`])
      const narrowed = await change('PATCH', path, { permissions: [] })
      expect(narrowed.events[0]?.details).toEqual({ before: { permissions }, after: { permissions: [] } })
      expect((await change('PATCH', path, { is_active: false })).actions).toEqual([`client.disabled ${id}`])
      expect((await change('PATCH', path, { is_active: true })).actions).toEqual([`client.enabled ${id}`])

      const rotated = await change('POST', `${path}/secrets`, { overlap_seconds: 60 })
      expect(rotated.actions).toEqual([`client.secret-rotated ${id}`])
      secrets.push(String(rotated.answer.body['client_secret']))
      const present = list((await api.call(`${path}/secrets`, { token })).body, 'secrets')
      expect(present).toHaveLength(2)
      const ended = await change('DELETE', `${path}/secrets/${String(present[0]?.['secret_id'])}`)
      expect(ended.actions).toEqual([`client.secret-revoked ${id}`])
      expect((await change('POST', `${path}/revocations`, {})).actions).toEqual([`client.access-revoked ${id}`])
      const plan = await change('PUT', `${path}/plan`, { plan: 'Basic Plan' })
      expect(plan.events).toEqual([
        expect.objectContaining({
          action: 'client.plan-set',
          details: { before: { plan: null }, after: { plan: 'Basic Plan' } },
        }),
      ])

      const key = await change('POST', '/v1/api-keys', { client_id: id, name: 'Audited key' })
      const keyId = idOf(key.answer)
      expect(key.actions).toEqual([`api-key.created ${keyId}`])
      secrets.push(String(key.answer.body['api_key']))
      expect((await change('DELETE', `/v1/api-keys/${keyId}`)).actions).toEqual([`api-key.revoked ${keyId}`])
      const kept = await change('POST', '/v1/api-keys', { client_id: 'counted', name: 'Kept' })
      secrets.push(String(kept.answer.body['api_key']))
      expect((await change('DELETE', path)).actions).toEqual([`client.deleted ${id}`])
    })

    it('of sessions and grants', async () => {
      const person = await api.newPerson('audited-person')
      const [first, second] = [claimsOf(person.token), claimsOf(await api.signIn(person))]
      secrets.push(person.password)
      const grant = await change('DELETE', `/v1/grants/${first.grant_id}`)
      expect(grant.actions).toEqual([`grant.revoked ${first.grant_id}`])
      const session = await change('DELETE', `/v1/sessions/${second.sid}`)
      expect(session.actions).toEqual([`grant.revoked ${second.grant_id}`, `session.ended ${second.sid}`])
      expect(session.events[1]?.details).toMatchObject({ before: { user_id: person.id } })
    })

    /** Whoever changes the keys has no need to hear of it: what is answered is so, at this process, at once. */
    async function unannounced<T>(work: () => Promise<T>): Promise<T> {
      const { db } = api.provider.database
      await sql`ALTER TABLE signing_keys DISABLE TRIGGER USER`.execute(db)
      try {
        return await work()
      } finally {
        await sql`ALTER TABLE signing_keys ENABLE TRIGGER USER`.execute(db)
      }
    }
    const published = async () => (await api.call('/.well-known/jwks.json', { token: null })).text

    it('of signing keys: the next one must have been published for long enough, unless it has to be now', async () => {
      const { kid: current = '' } = decodeProtectedHeader(token)
      const early = await change('POST', '/v1/keys', {})
      expect(refusal(early.answer)).toEqual([409, 'CONFLICT'])
      expect(Number(early.answer.headers.get('retry-after'))).toBeGreaterThan(60)
      expect(early.answer.body.error['retry_after']).toBe(Number(early.answer.headers.get('retry-after')))
      expect(early.actions).toEqual([])

      const waiting = list((await api.call('/v1/keys', { token })).body, 'keys').find(({ state }) => state === 'next')
      const rotated = await unannounced(() => change('POST', '/v1/keys', { now: true }))
      expect(await published()).toContain(idOf(rotated.answer))
      expect([rotated.answer.status, rotated.answer.body['state']]).toEqual([201, 'next'])
      const fresh = idOf(rotated.answer)
      expect(rotated.actions.toSorted()).toEqual(
        [
          `signing-key.created ${fresh}`,
          `signing-key.promoted ${String(waiting?.['kid'])}`,
          `signing-key.retiring ${current}`,
        ].toSorted(),
      )
      expect((await api.call(`/v1/keys/${current}`, { token })).body['state']).toBe('retiring')
      // Nobody notices a rotation.
      expect(await isAlive(token)).toBe(true)
    })

    it('of a signing key that somebody else may have: every token that it signed is dead at once', async () => {
      const { kid: old = '' } = decodeProtectedHeader(token)
      const before = token
      token = await api.signIn(api.administrator)
      expect(decodeProtectedHeader(token).kid).not.toBe(old)
      const revoke = () => change('POST', `/v1/keys/${old}/revocations`, { reason: 'a backup was stolen' })
      const revoked = await unannounced(revoke)
      expect(await published()).not.toContain(old)
      expect([revoked.answer.status, revoked.answer.body['state']]).toEqual([201, 'revoked'])
      expect(revoked.actions).toEqual([`signing-key.revoked ${old}`])
      expect(revoked.events[0]?.details).toMatchObject({ reason: 'a backup was stolen' })
      expect(await isAlive(before)).toBe(false)
      expect(await isAlive(token)).toBe(true)
    })

    it('was looked at here for every change that there is', () => {
      const changes = operations.map(([name]) => name).filter((name) => !name.startsWith('GET '))
      expect(changes.filter((name) => !carriedOut.has(name))).toEqual([])
    })
  })

  it('nothing secret is read back: not at any path, not in the record, not in the log', async () => {
    const token = await api.signIn(api.administrator)
    const { body } = await api.call('/openapi.json', { token: null })
    const paths = body['paths'] as Record<string, object>
    const collections = Object.keys(paths).filter((path) => 'get' in (paths[path] ?? {}) && !path.includes('{'))
    const texts: string[] = []
    const members = new Set<string>()
    const read = async (path: string) => {
      const answer = await api.call(path, { token })
      expect([path, answer.status]).toEqual([path, 200])
      texts.push(answer.text)
      JSON.parse(answer.text, (name: string, value: unknown) => {
        members.add(name)
        return value
      })
      return answer.body
    }
    for (const path of collections) {
      const isPaged = JSON.stringify(paths[path]).includes('"name":"cursor"')
      for (let next: string | null = isPaged ? `${path}?limit=100` : path; next !== null;) {
        const page: Json = await read(next)
        next = isPaged ? page.pagination.next : null
      }
    }
    const clients = list((await api.call('/v1/clients?limit=100', { token })).body, 'clients')
    for (const { client_id: id } of clients) await read(`/v1/clients/${String(id)}/secrets`)
    const people = list((await api.call('/v1/users?limit=100', { token })).body, 'users')
    for (const { user_id: id } of people) {
      for (const beneath of ['', '/roles', '/sessions', '/grants']) await read(`/v1/users/${String(id)}${beneath}`)
    }

    expect(secrets.length).toBeGreaterThan(5)
    const made = [...secrets, api.console.client_secret ?? '', api.machine.client_secret ?? '', api.user.password]
    const everything = [...texts, api.provider.log()].join('\n')
    for (const secret of made) {
      const digest = createHash('sha256').update(secret).digest()
      for (const shape of [secret, digest.toString('hex'), digest.toString('base64'), digest.toString('base64url')]) {
        expect(everything.includes(shape), shape).toBe(false)
      }
    }
    expect(everything).not.toMatch(/\$argon2|lk_secret_|lk_key_[\w-]{20}|"(d|p|q|dp|dq|qi)":/)
    // `hash` is the record's chain, and `has_password` a yes or no.
    const suspicious = [...members].filter((name) => /hash|secret|password|private|sealed|payload|salt/i.test(name))
    expect(suspicious.sort()).toEqual(['has_password', 'hash', 'password_changed_at', 'secret_id', 'secrets'])
  })
})
