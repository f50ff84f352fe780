/**
 * Roles that include others: whoever has one may do what those allow too, and loses it in the moment that any of them
 * does. Nobody comes to more by it than they have, nothing is included in a circle, and administrators are named.
 */
import { decodeJwt } from 'jose'
import { beforeAll, describe, expect, it } from 'vitest'
import { openTargets, type Targets } from '../support/api-targets.ts'
import { eachDatabase } from '../support/databases.ts'
import { openManagement, type Called, type Management, type Person } from '../support/management.ts'

eachDatabase((_open, engine) => {
  let api: Management
  let targets: Targets
  let resource: string
  beforeAll(async () => {
    api = await openManagement(engine)
    targets = openTargets(api)
    resource = `${api.provider.issuer}/v1`
  })

  interface RoleInput {
    readonly description?: string
    readonly permissions?: readonly string[]
    readonly includes?: readonly unknown[]
  }
  const at = (permission: string) => ({ resource, permission })
  const bodyOf = ({ permissions = [], ...rest }: RoleInput) => ({ ...rest, permissions: permissions.map(at) })
  const put = (name: string, input: RoleInput, token?: string) =>
    api.call(`/v1/roles/${name}`, { method: 'PUT', body: bodyOf(input), ...(token === undefined ? {} : { token }) })
  const post = (body: object) => api.call('/v1/roles', { method: 'POST', body })
  const read = (name: string) => api.call(`/v1/roles/${name}`)
  const refusal = ({ status, body }: Called) => [status, body?.error?.code]
  const detailsOf = ({ body }: Called) => body.error.details.map(({ field, constraint }) => [field, constraint])
  const effective = ({ body }: Called) =>
    (body['effective_permissions'] as { permission: string }[]).map(({ permission }) => permission)

  /** @returns its name */
  async function make(prefix: string, input: RoleInput): Promise<string> {
    const name = targets.unique(prefix)
    const { status, text } = await put(name, input)
    if (status !== 201) throw new Error(text)
    return name
  }
  async function newPerson(...roles: readonly string[]): Promise<Person> {
    return api.newPerson(targets.unique('person'), roles)
  }

  describe('an inclusion is refused', () => {
    it('of what is no role, of the role itself, and of the two that are built in, with all else that is wrong', async () => {
      const permissions = [at('no:such')]
      const wrong = [
        ['permissions[0]', 'exists'],
        ['includes[0]', 'exists'],
        ['includes[1]', 'self'],
      ]
      const impossible = [
        ['includes[2]', 'reserved'],
        ['includes[3]', 'reserved'],
        ['includes[4]', 'format'],
        ['includes[5]', 'type'],
        ...wrong,
      ]
      const refused = [400, 'VALIDATION_ERROR']
      const name = await make('wrong', {})
      for (const [more, details] of [
        [['support'], wrong],
        [['administrator', 'everyone', 'NO', 1], impossible],
      ] as const) {
        const changed = await api.call(`/v1/roles/${name}`, {
          method: 'PUT',
          body: { permissions, includes: ['nope', name, ...more] },
        })
        expect([refusal(changed), detailsOf(changed)]).toEqual([refused, details])
        const fresh = targets.unique('wrong')
        const made = await post({ name: fresh, permissions, includes: ['nope', fresh, ...more] })
        expect([refusal(made), detailsOf(made)]).toEqual([refused, details])
        expect((await read(fresh)).status).toBe(404)
      }
      const { body } = await put(name, { includes: ['administrator', 'everyone'] })
      expect(body.error.details.map((detail) => String((detail as { message?: unknown }).message))).toEqual([
        expect.stringContaining('who is an administrator is said of each of them'),
        expect.stringContaining('everybody has it already'),
      ])
      const many = Array.from({ length: 51 }, (_, i) => `role-${i}`)
      expect(detailsOf(await put(name, { includes: many }))[0]).toEqual(['includes', 'maximum'])
      expect((await read(name)).body['includes']).toEqual([])
    })

    it.each([2, 3, 4])('that would close a circle of %i, which is named, and nothing changes', async (length) => {
      const names = Array.from({ length }, (_, i) => targets.unique(`circle-${i}`))
      const first = names[0] ?? ''
      for (const [i, name] of [...names.entries()].toReversed()) {
        await put(name, { includes: names.slice(i + 1, i + 2) })
      }
      const last = names.at(-1) ?? ''
      const before = (await read(last)).text
      const answer = await put(last, { description: 'Changed', permissions: ['users:read'], includes: [first] })
      expect(refusal(answer)).toEqual([409, 'CONFLICT'])
      expect(answer.body.error.message).toContain(`${[last, ...names].join(' → ')}. Leave ${first} out of ${last}`)
      expect((await read(last)).text).toBe(before)
      // Once the way there is open, it may be.
      expect((await put(first, {})).status).toBe(200)
      expect((await put(last, { includes: [first] })).status).toBe(200)
    })

    it('of a role that gives more than one has, however far off; and who reaches that is as out of reach', async () => {
      const inner = await make('inner', { permissions: ['audit:read'] })
      const middle = await make('middle', { includes: [inner] })
      const outer = await make('outer', { permissions: ['users:read'], includes: [middle] })
      const own = await make('own', { permissions: ['users:read'] })
      const manager = await make('manager', { permissions: ['users:read', 'users:write', 'roles:write'] })
      const { token } = await newPerson(manager)
      const strong = await newPerson(outer)
      const forbidden = [403, 'AUTHORIZATION_ERROR']
      const call = async (method: string, path: string, body?: unknown) =>
        refusal(await api.call(path, { method, token, ...(body === undefined ? {} : { body }) }))

      const more = await put(own, { permissions: ['users:read'], includes: [outer] }, token)
      expect([...refusal(more), more.body.error.message]).toEqual([
        ...forbidden,
        `This gives away more than you have: audit:read@${resource}.`,
      ])
      expect(await call('POST', '/v1/roles', { name: targets.unique('new'), includes: [middle] })).toEqual(forbidden)
      expect(await call('PUT', `/v1/roles/${targets.unique('new')}`, { includes: [inner] })).toEqual(forbidden)
      const path = `/v1/users/${(await newPerson()).id}/roles`
      for (const name of [outer, middle]) {
        expect(await call('PUT', `${path}/${name}`)).toEqual(forbidden)
        expect(await call('PUT', `/v1/roles/${name}`, { description: 'Changed' })).toEqual(forbidden)
        expect(await call('DELETE', `/v1/roles/${name}`)).toEqual(forbidden)
      }
      expect(await call('PATCH', `/v1/users/${strong.id}`, { name: 'Changed' })).toEqual(forbidden)
      expect(await call('DELETE', `/v1/users/${strong.id}/roles/${outer}`)).toEqual(forbidden)

      // What is theirs they include, and take back.
      const less = await make('less', { permissions: ['users:write'] })
      expect((await put(own, { includes: [less] }, token)).status).toBe(200)
      expect((await put(own, {}, token)).status).toBe(200)
    })

    it('as a way to be an administrator without the rights that this has: a first-party client needs those too', async () => {
      const elsewhere = `https://${targets.unique('resource')}.example`
      const permissions = [{ permission: 'models:read' }]
      await api.call(`/v1/resources/${encodeURIComponent(elsewhere)}`, { method: 'PUT', body: { permissions } })
      const name = targets.unique('elsewhere')
      await post({ name, permissions: [{ resource: elsewhere, permission: 'models:read' }] })
      const own = (await read('administrator')).body['permissions']
      const administrator = (includes: string[]) =>
        api.call('/v1/roles/administrator', { method: 'PUT', body: { permissions: own, includes } })
      expect((await administrator([name])).status).toBe(200)
      const client = { type: 'web', name: 'Ours', first_party: true, redirect_uris: ['https://ours.example/callback'] }
      const register = async () =>
        (await api.call('/v1/clients', { method: 'POST', body: client, token: api.machine.token })).status
      expect(await register()).toBe(403)
      // What it came to include it may lose, though nothing of its own.
      expect((await administrator([])).status).toBe(200)
      Object.assign(api.administrator, { token: await api.signIn(api.administrator) })
      expect(await register()).toBe(201)
      expect(refusal(await put('administrator', { includes: [name] }))).toEqual([409, 'CONFLICT'])
    })
  })

  describe('a role that includes others', () => {
    it('says which, sorted and each once, and what it comes to allow', async () => {
      const inner = await make('a', { permissions: ['users:read', 'audit:read'] })
      const middle = await make('b', { permissions: ['roles:read', 'users:read'], includes: [inner] })
      const name = targets.unique('c')
      const made = await post({ name, ...bodyOf({ permissions: ['users:read'], includes: [middle, inner, middle] }) })
      expect(made.status).toBe(201)
      expect(made.body).toMatchObject({ includes: [inner, middle], permissions: [at('users:read')], user_count: 0 })
      expect(effective(made)).toEqual(['audit:read', 'roles:read', 'users:read'])
      expect((await read(name)).body).toEqual(made.body)
      // The same again changes nothing.
      const again = await put(name, { permissions: ['users:read'], includes: [middle, inner] })
      expect([again.status, again.headers.get('etag')]).toEqual([200, made.headers.get('etag')])
      const { body } = await api.call(`/v1/roles?resource=${encodeURIComponent(resource)}&fields=includes&limit=100`)
      expect(body['roles']).toContainEqual({ name, includes: [inner, middle] })
      const empty = await make('empty', { includes: [inner] })
      const filtered = await api.call(`/v1/roles?resource=${encodeURIComponent(resource)}&fields=name&limit=100`)
      expect(filtered.body['roles']).toContainEqual({ name: empty })
    })

    it('is in another version once any of them allows something else, and only then', async () => {
      const other = `https://${targets.unique('resource')}.example`
      const address = `/v1/resources/${encodeURIComponent(other)}`
      const offer = (...names: string[]) =>
        api.call(address, { method: 'PUT', body: { permissions: names.map((permission) => ({ permission })) } })
      await offer('models:read')
      const inner = await make('inner', {})
      const middle = await make('middle', { includes: [inner] })
      const outer = await make('outer', { includes: [middle] })
      const tag = async () => (await read(outer)).headers.get('etag') ?? ''
      const setInner = (permissions: unknown[], description = '') =>
        api.call(`/v1/roles/${inner}`, { method: 'PUT', body: { description, permissions } })
      const changes: readonly [string, () => Promise<Called>, boolean][] = [
        ['words', () => setInner([], 'In other words'), false],
        ['gains', () => setInner([at('users:read'), { resource: other, permission: 'models:read' }]), true],
        ['removed from its API', () => offer(), true],
        ['loses', () => setInner([]), true],
        ['excluded', () => put(middle, {}), true],
        ['included', () => put(middle, { includes: [inner] }), true],
        ['deleted', () => api.call(`/v1/roles/${inner}`, { method: 'DELETE' }), true],
      ]
      for (const [what, change, isOther] of changes) {
        const before = await tag()
        expect([what, (await change()).status < 300]).toEqual([what, true])
        expect([what, (await tag()) !== before]).toEqual([what, isOther])
        const based = await api.call(`/v1/roles/${outer}`, {
          method: 'PUT',
          body: { description: what, includes: [middle] },
          headers: { 'if-match': before },
        })
        expect([what, based.status]).toEqual([what, isOther ? 412 : 200])
      }
      expect((await read(middle)).body['includes']).toEqual([])
    })

    it('gives its holders what those allow: in the scope of their tokens, and by name to services that ask', async () => {
      const inner = await make('inner', { permissions: ['audit:read'] })
      const middle = await make('middle', { includes: [inner] })
      const outer = await make('outer', { permissions: ['users:read'], includes: [middle] })
      const person = await newPerson(outer)
      const claims = decodeJwt<{ roles: string[]; scope: string }>(person.token)
      expect(claims.roles).toEqual([inner, middle, outer].sort())
      expect(claims.scope.split(' ').sort()).toEqual(['audit:read', 'self:read', 'self:write', 'users:read'])
      expect((await api.call('/v1/audit?limit=1', { token: person.token })).status).toBe(200)

      // Assigned is what was assigned.
      expect((await api.call(`/v1/users/${person.id}/roles`)).body['roles']).toEqual([outer])
      const counts = [await read(inner), await read(outer)].map(({ body }) => body['user_count'])
      expect(counts).toEqual([0, 1])
      const found = async (role: string) => (await api.call(`/v1/users?role=${role}`)).body.pagination.total
      expect([await found(inner), await found(outer)]).toEqual([0, 1])
    })

    it('costs nobody their tokens when it comes to include more, nor when it reaches what it did some other way', async () => {
      const inner = await make('inner', { permissions: ['audit:read'] })
      const middle = await make('middle', { includes: [inner] })
      const outer = await make('outer', { includes: [middle] })
      const { token } = await newPerson(outer)
      const isAlive = async () => (await api.call('/v1/users/me', { token })).status === 200
      const more = await make('more', { permissions: ['users:read'] })
      expect((await put(outer, { includes: [middle, more, inner] })).status).toBe(200)
      expect((await put(inner, { permissions: ['audit:read', 'keys:read'] })).status).toBe(200)
      // Through the middle all the same.
      expect((await put(outer, { includes: [middle, more] })).status).toBe(200)
      expect((await put(inner, { description: 'Changed', permissions: ['audit:read', 'keys:read'] })).status).toBe(200)
      expect(await isAlive()).toBe(true)
      expect((await put(outer, { includes: [middle] })).status).toBe(200)
      expect(await isAlive()).toBe(false)
    })
  })

  describe('the tokens of its holders are dead at once, and nobody else’s, when', () => {
    interface Chain {
      readonly inner: string
      readonly middle: string
      readonly outer: string
    }
    const losses: readonly [string, (chain: Chain) => Promise<Called>][] = [
      ['a role that it reaches loses a permission', ({ inner }) => put(inner, {})],
      ['it includes a role no more', ({ outer }) => put(outer, { permissions: ['users:read'] })],
      ['a role that it includes includes one no more', ({ middle }) => put(middle, {})],
      ['a role that it reaches is deleted', ({ inner }) => api.call(`/v1/roles/${inner}`, { method: 'DELETE' })],
      ['a role that it includes is deleted', ({ middle }) => api.call(`/v1/roles/${middle}`, { method: 'DELETE' })],
    ]
    it.each(losses)('%s', async (_what, lose) => {
      const inner = await make('inner', { permissions: ['audit:read'] })
      const middle = await make('middle', { includes: [inner] })
      const outer = await make('outer', { permissions: ['users:read'], includes: [middle] })
      const beside = await make('beside', { permissions: ['users:read'] })
      const [person, other] = [await newPerson(outer), await newPerson(beside)]
      const status = async ({ token }: Person) => (await api.call('/v1/users?limit=1', { token })).status
      expect([await status(person), await status(other)]).toEqual([200, 200])
      expect((await lose({ inner, middle, outer })).status).toBeLessThan(300)
      expect([await status(person), await status(other)]).toEqual([401, 200])
      const renewed = await api.signIn(person)
      expect(decodeJwt<{ scope: string }>(renewed).scope.split(' ').sort()).toEqual([
        'self:read',
        'self:write',
        'users:read',
      ])
      expect((await api.call('/v1/users?limit=1', { token: renewed })).status).toBe(200)
    })
  })

  it('the audit record says what was included before and after, also in whom a deleted role was', async () => {
    const inner = await make('inner', {})
    const outer = await make('outer', { includes: [inner] })
    await put(outer, { description: 'Without' })
    await put(outer, { includes: [inner] })
    await api.call(`/v1/roles/${inner}`, { method: 'DELETE' })
    const rows = await api.provider.database.db
      .selectFrom('audit_events')
      .select(['action', 'target_id', 'details'])
      .where('target_type', '=', 'role')
      .where('target_id', 'in', [inner, outer])
      .orderBy('id')
      .execute()
    const includes = (side: unknown) => (side as { includes?: unknown } | undefined)?.includes
    const seen = rows.map(({ action, target_id, details }) => {
      const { before, after } = details as { before?: unknown; after?: unknown }
      return [action, target_id, includes(before), includes(after)]
    })
    expect(seen).toEqual([
      ['role.created', inner, undefined, []],
      ['role.created', outer, undefined, [inner]],
      ['role.updated', outer, [inner], []],
      ['role.updated', outer, [], [inner]],
      ['role.deleted', inner, [], undefined],
      ['role.updated', outer, [inner], []],
    ])
  })
})
