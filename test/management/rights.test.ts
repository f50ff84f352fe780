/**
 * Nobody gives away more than they have, or takes over or shuts out who has more, whatever their scope: clients, their
 * keys and plans, people and what they are signed in to. And the clients of the provider itself stay as they are.
 */
import { decodeJwt } from 'jose'
import { beforeAll, describe, expect, it } from 'vitest'
import { openTargets, type Targets } from '../support/api-targets.ts'
import { eachDatabase } from '../support/databases.ts'
import { allScopes, openManagement, type Called, type CallOptions, type Management } from '../support/management.ts'
import { callbackUri, registerClient, type RegisteredClient } from '../support/relying-party.ts'

type Change = readonly [method: string, path: string, body?: unknown]
type Machine = RegisteredClient & { readonly token: string }

const forbidden = [403, 'AUTHORIZATION_ERROR']
const conflict = [409, 'CONFLICT']

eachDatabase((_open, engine) => {
  let api: Management
  let targets: Targets
  let resource: string
  /** may write all that this is about, and do nothing else */
  let weak: Machine
  beforeAll(async () => {
    api = await openManagement(engine)
    targets = openTargets(api)
    resource = `${api.provider.issuer}/v1`
    weak = await api.newMachine(['clients:write', 'plans:write', 'users:write', 'roles:write', 'sessions:write'])
  })

  const send = ([method, path, body]: Change, token: string, more: CallOptions = {}) =>
    api.call(path, { method, token, ...(body === undefined ? {} : { body }), ...more })
  const refusal = ({ status, body }: Called) => [status, body?.error?.code]
  const isAlive = async (token: string) => (await api.call('/v1/users/me', { token })).status !== 401

  async function refusalsOf(changes: readonly Change[], token: string) {
    const answers: unknown[] = []
    for (const change of changes) answers.push([...change.slice(0, 2), refusal(await send(change, token))])
    return answers
  }
  const all = (changes: readonly Change[], expected: unknown) =>
    changes.map((change) => [...change.slice(0, 2), expected])

  describe('a client of the provider itself', () => {
    it.each(['latchkey-account', 'latchkey-docs'])('is nobody’s to change: %s', async (id) => {
      const path = `/v1/clients/${id}`
      const before = (await api.call(path)).text
      const taken = 'https://attacker.example/callback'
      const changes: Change[] = [
        ['PATCH', path, { redirect_uris: [taken] }],
        ['PATCH', path, { backchannel_logout_uri: taken }],
        ['PATCH', path, { is_active: false }],
        ['PATCH', path, { permissions: [{ resource, permission: 'clients:write' }] }],
        ['PATCH', path, { name: 'Another' }],
        ['PUT', path, { name: 'Another', grant_types: ['authorization_code'], redirect_uris: [taken] }],
        ['DELETE', path],
        ['POST', `${path}/secrets`, {}],
        ['DELETE', `${path}/secrets/sec_none`],
        ['PUT', `${path}/plan`, { plan: await targets.plan() }],
        ['POST', '/v1/api-keys', { client_id: id, name: 'Taken over' }],
        ['POST', '/v1/clients', { client_id: id, type: 'machine', name: 'Taken over' }],
      ]
      for (const token of [weak.token, api.machine.token, api.administrator.token]) {
        expect(await refusalsOf(changes, token)).toEqual(all(changes, conflict))
      }
      expect((await api.call(path)).text).toBe(before)
    })

    it('loses what it was given when somebody with its rights says so, and works on', async () => {
      const change: Change = ['POST', '/v1/clients/latchkey-docs/revocations', {}]
      expect(refusal(await send(change, weak.token))).toEqual(forbidden)
      expect((await send(change, api.administrator.token)).status).toBe(201)
    })
  })

  describe('a first-party client, by which people are not asked,', () => {
    const web = (more: object = {}) => ({
      type: 'web',
      name: 'Ours',
      first_party: true,
      redirect_uris: ['https://attacker.example/callback'],
      ...more,
    })

    it('is not made by whoever lacks a right that administrators have', async () => {
      const nearly = await api.newMachine(allScopes.filter((scope) => scope !== 'keys:write'))
      for (const { token } of [weak, nearly]) {
        expect(refusal(await send(['POST', '/v1/clients', web()], token))).toEqual(forbidden)
        const made = await send(['POST', '/v1/clients', web({ first_party: false })], token)
        expect(made.status).toBe(201)
        const path = made.headers.get('location') ?? ''
        const changes: Change[] = [
          ['PATCH', path, { first_party: true }],
          ['PUT', path, { ...web(), type: undefined, grant_types: ['authorization_code'] }],
        ]
        expect(await refusalsOf(changes, token)).toEqual(all(changes, forbidden))
        expect((await api.call(path)).body['first_party']).toBe(false)
      }
    })

    it('is made by an administrator, and by a machine that may do as much', async () => {
      for (const token of [api.administrator.token, api.machine.token]) {
        const made = await send(['POST', '/v1/clients', web()], token)
        expect([made.status, made.body['first_party']]).toEqual([201, true])
        const path = made.headers.get('location') ?? ''
        const moved = await send(['PATCH', path, { redirect_uris: ['https://ours.example/callback'] }], token)
        expect(moved.status).toBe(200)
      }
    })

    it('keeps where codes are sent, how they are got and what for, unless an administrator changes it', async () => {
      const permissions: { resource: string; permission: string }[] = []
      const { client_id: id } = await registerClient(api.provider, { permissions, dpop_bound_access_tokens: true })
      const path = `/v1/clients/${id}`
      const document = {
        name: 'Relying party',
        grant_types: ['authorization_code', 'refresh_token'],
        first_party: true,
      }
      const changes: Change[] = [
        ['PATCH', path, { redirect_uris: [callbackUri, 'https://attacker.example/callback'] }],
        ['PATCH', path, { redirect_uris: ['https://attacker.example/callback'], name: 'Another' }],
        ['PATCH', path, { grant_types: [...document.grant_types, 'urn:ietf:params:oauth:grant-type:device_code'] }],
        ['PATCH', path, { require_pkce: false }],
        ['PATCH', path, { dpop_bound_access_tokens: false }],
        ['PATCH', path, { permissions: [{ resource, permission: 'users:write' }] }],
        ['PUT', path, { ...document, redirect_uris: ['https://attacker.example/callback'] }],
        ['POST', `${path}/secrets`, {}],
      ]
      expect(await refusalsOf(changes, weak.token)).toEqual(all(changes, forbidden))
      // The rest of it is as any client's.
      expect(
        (await send(['PATCH', path, { name: 'Another', logo_uri: 'https://ours.example/l' }], weak.token)).status,
      ).toBe(200)
      for (const change of changes) expect((await send(change, api.machine.token)).status).toBeLessThan(300)
      const asked = await send(['PATCH', path, { first_party: false, redirect_uris: [callbackUri] }], weak.token)
      expect(asked.status).toBe(200)
    })
  })

  describe('a client that may do more', () => {
    async function changesOf(clientId: string): Promise<Change[]> {
      const plan = targets.unique('plan')
      await send(['PUT', `/v1/plans/${plan}`, { name: plan }], api.administrator.token)
      await send(['PUT', `/v1/clients/${clientId}/plan`, { plan }], api.administrator.token)
      const ofKeys = targets.unique('plan')
      await send(['PUT', `/v1/plans/${ofKeys}`, { name: ofKeys }], api.administrator.token)
      const key = { client_id: clientId, name: 'On a plan of its own', plan: ofKeys }
      await send(['POST', '/v1/api-keys', key], api.administrator.token)
      const path = `/v1/clients/${clientId}`
      const quota = { limit: 1, period: 'MONTH' }
      const { api_key_id: keyId } = await targets.apiKey(clientId)
      const { body } = await api.call(`${path}/secrets`)
      const [secret] = body['secrets'] as { secret_id: string }[]
      return [
        ['PUT', `${path}/plan`, { plan: await targets.plan() }],
        ['PUT', `/v1/plans/${plan}`, { name: plan, quota }],
        ['PUT', `/v1/plans/${ofKeys}`, { name: ofKeys, quota }],
        ['DELETE', `/v1/api-keys/${keyId}`],
        ['POST', '/v1/api-keys', { client_id: clientId, name: 'Taken over' }],
        ['POST', `${path}/revocations`, {}],
        ['PATCH', path, { is_active: false }],
        ['PATCH', path, { is_active: true, name: 'Another' }],
        ['POST', `${path}/secrets`, {}],
        ['DELETE', `${path}/secrets/${secret?.secret_id ?? ''}`],
        ['DELETE', path],
      ]
    }

    it('is neither taken over nor shut out: not it, not its keys, not by the plan that it is on', async () => {
      const strong = await api.newMachine(['users:read', 'audit:read'])
      const changes = await changesOf(strong.client_id)
      expect(await refusalsOf(changes, weak.token)).toEqual(all(changes, forbidden))
      expect((await api.call('/v1/users', { token: strong.token })).status).toBe(200)
    })

    it('does not stand for one that may do as much or less, nor for itself', async () => {
      const { client_id: less } = await api.newMachine(['clients:write'])
      for (const change of await changesOf(less)) {
        const { status } = await send(change, weak.token)
        expect([...change.slice(0, 2), status < 300]).toEqual([...change.slice(0, 2), true])
      }
      const itself = await api.newMachine(['clients:write'])
      const own = await send(['POST', `/v1/clients/${itself.client_id}/revocations`, {}], itself.token)
      expect(own.status).toBe(201)
    })
  })

  describe('a person who may do more', () => {
    const claimsOf = (token: string) => decodeJwt<{ sid: string; grant_id: string }>(token)

    it('is not signed out, in whatever way', async () => {
      const token = await api.signIn(api.administrator)
      const { sid, grant_id: grantId } = claimsOf(token)
      const changes: Change[] = [
        ['DELETE', `/v1/sessions/${sid}`],
        ['DELETE', `/v1/grants/${grantId}`],
        ['POST', `/v1/users/${api.administrator.id}/revocations`, {}],
      ]
      const machine = await api.newMachine(['sessions:write', 'grants:write'])
      for (const caller of [api.support.token, machine.token]) {
        expect(await refusalsOf(changes, caller)).toEqual(all(changes, forbidden))
      }
      expect(await isAlive(token)).toBe(true)
      expect((await send(['DELETE', `/v1/grants/${grantId}`], api.machine.token)).status).toBe(204)
      expect(await isAlive(token)).toBe(false)
    })

    it('elsewhere, and not here, is signed out by support all the same', async () => {
      const person = await api.newPerson('works-with-models', ['member'])
      const [first, second] = [claimsOf(person.token), claimsOf(await api.signIn(person))]
      const changes: Change[] = [
        ['DELETE', `/v1/sessions/${first.sid}`],
        ['DELETE', `/v1/grants/${second.grant_id}`],
        ['POST', `/v1/users/${person.id}/revocations`, {}],
      ]
      for (const change of changes) expect((await send(change, api.support.token)).status).toBeLessThan(300)
    })

    it('is given no role', async () => {
      const { id } = await api.newPerson('sees-the-record')
      const role = targets.unique('role')
      const permissions = [{ resource, permission: 'audit:read' }]
      await send(['PUT', `/v1/roles/${role}`, { permissions }], api.administrator.token)
      await send(['PUT', `/v1/users/${id}/roles/${role}`], api.administrator.token)
      const change: Change = ['PUT', `/v1/users/${id}/roles/${await targets.role()}`]
      expect(refusal(await send(change, weak.token))).toEqual(forbidden)
      expect((await send(change, api.administrator.token)).status).toBe(204)
    })

    it('and is the last administrator is refused as any other (403): 409 is for who could remove them', async () => {
      const path = `/v1/users/${api.administrator.id}`
      const changes: Change[] = [
        ['PATCH', path, { is_active: false }],
        ['PUT', path, { email: api.administrator.email, is_active: false }],
        ['DELETE', path],
        ['DELETE', `${path}/roles/administrator`],
      ]
      expect(await refusalsOf(changes, weak.token)).toEqual(all(changes, forbidden))
      expect(await refusalsOf(changes, api.administrator.token)).toEqual(all(changes, conflict))
    })
  })

  describe('a resource whose permissions somebody has who may do more', () => {
    const read = { permission: 'things:read', description: '' }
    const write = { permission: 'things:write', description: '' }
    const permissionsOf = async (path: string) => (await api.call(path)).body['permissions']

    /** a resource with two permissions; `things:write` is a role's or a client's that may do more */
    async function newThings(holder: 'role' | 'client') {
      const id = `https://${targets.unique('things')}.example`
      const path = `/v1/resources/${encodeURIComponent(id)}`
      await send(['PUT', path, { permissions: [read, write] }], api.administrator.token)
      const permissions = [
        { resource, permission: 'users:read' },
        { resource: id, permission: 'things:write' },
      ]
      const held =
        holder === 'role'
          ? `/v1/roles/${targets.unique('role')}`
          : `/v1/clients/${(await api.newMachine(['users:read'])).client_id}`
      const given = await send([holder === 'role' ? 'PUT' : 'PATCH', held, { permissions }], api.administrator.token)
      expect(given.status).toBeLessThan(300)
      return { id, path, held, permissions }
    }

    it.each(['role', 'client'] as const)(
      'keeps them, unless an administrator takes them away: a %s',
      async (holder) => {
        const { token } = await api.newMachine(['resources:write'])
        const { id, path, held, permissions } = await newThings(holder)
        const changes: Change[] = [
          ['PUT', path, { permissions: [read] }],
          ['DELETE', path],
        ]
        expect(await refusalsOf(changes, token)).toEqual(all(changes, forbidden))
        expect(await permissionsOf(path)).toEqual([read, write])
        expect(await permissionsOf(held)).toEqual(expect.arrayContaining(permissions))
        // What nobody has is taken from nobody.
        expect((await send(['PUT', path, { permissions: [write] }], token)).status).toBe(200)
        expect((await send(['PUT', path, { permissions: [read] }], api.administrator.token)).status).toBe(200)
        expect(await permissionsOf(held)).toEqual([{ resource, permission: 'users:read' }])
        expect((await send(['DELETE', path], token)).status).toBe(204)
        expect((await api.call(`/v1/resources/${encodeURIComponent(id)}`)).status).toBe(404)
      },
    )

    it('stays what a client that may do more asks for when it names none', async () => {
      const { token } = await api.newMachine(['resources:write'])
      const id = `https://${targets.unique('things')}.example`
      const path = `/v1/resources/${encodeURIComponent(id)}`
      await send(['PUT', path, { permissions: [read] }], api.administrator.token)
      const client = `/v1/clients/${(await api.newMachine(['users:read'])).client_id}`
      await send(['PATCH', client, { default_resource: id }], api.administrator.token)
      expect(refusal(await send(['DELETE', path], token))).toEqual(forbidden)
      expect((await api.call(client)).body['default_resource']).toBe(id)
      expect((await send(['DELETE', path], api.machine.token)).status).toBe(204)
    })
  })
})
