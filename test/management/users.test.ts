/** `/v1/users` over HTTP, refusals first. */
import { beforeAll, describe, expect, it } from 'vitest'
import { eachDatabase } from '../support/databases.ts'
import { openManagement, type Management } from '../support/management.ts'

eachDatabase((_open, engine) => {
  let api: Management
  beforeAll(async () => {
    api = await openManagement(engine)
  })

  const create = async (name: string, more: object = {}) => {
    const created = await api.call('/v1/users', { method: 'POST', body: { email: `${name}@example.org`, ...more } })
    expect(created.status).toBe(201)
    return created
  }

  describe('what is refused', () => {
    it('is everything without a token: 401 with a challenge that leads to the metadata', async () => {
      const { status, headers, body } = await api.call('/v1/users', { token: null })
      expect(status).toBe(401)
      expect(headers.get('www-authenticate')).toContain('/.well-known/oauth-protected-resource/v1')
      expect(body.error.code).toBe('AUTHENTICATION_ERROR')
      const metadata = await api.call('/.well-known/oauth-protected-resource/v1', { token: null })
      expect(metadata.body['resource']).toBe(`${api.provider.issuer}/v1`)
    })

    it('is a token for another resource', async () => {
      const { demo, issuer } = api.provider
      const answer = await fetch(`${issuer}/token`, {
        method: 'POST',
        headers: {
          authorization: `Basic ${Buffer.from(`${demo.clients.service.client_id}:${demo.clients.service.client_secret}`).toString('base64')}`,
        },
        body: new URLSearchParams({ grant_type: 'client_credentials' }),
      })
      const { access_token: token } = (await answer.json()) as { access_token: string }
      expect((await api.call('/v1/users', { token })).status).toBe(401)
    })

    it('is a scope that the token lacks, with its name', async () => {
      const { status, headers, body } = await api.call('/v1/users', { token: api.user.token })
      expect(status).toBe(403)
      expect(headers.get('www-authenticate')).toContain('scope="users:read"')
      expect(body.error.code).toBe('AUTHORIZATION_ERROR')
    })

    it("is somebody else's record", async () => {
      expect((await api.call(`/v1/users/${api.otherUser.id}`, { token: api.user.token })).status).toBe(403)
      // Whether there is such a person is not said either.
      expect((await api.call('/v1/users/usr_nobody', { token: api.user.token })).status).toBe(403)
    })

    it('is a machine that asks for what is its own: it is nobody', async () => {
      const { client_id: id, token } = await api.newMachine(['self:read', 'self:write'])
      for (const path of ['/v1/users/me', '/v1/users/me/sessions']) {
        const { status, body } = await api.call(path, { token })
        expect([path, status, body.error['resource_id']]).toEqual([path, 404, 'me'])
      }
      expect((await api.call(`/v1/users/${id}`, { token })).status).toBe(403)
      expect((await api.call(`/v1/users/${id}/grants`, { token })).status).toBe(403)
    })

    it('is every field that is wrong, at once, and no secret is repeated', async () => {
      const { status, text, body } = await api.call('/v1/users', {
        method: 'POST',
        body: { email: 'not-an-email', password: 12_345_678, role: 'administrator', name: 7 },
      })
      expect(status).toBe(400)
      expect(body.error.details.map(({ field }) => field).sort()).toEqual(['email', 'name', 'password', 'role'])
      expect(body.error.details.find(({ field }) => field === 'email')).toMatchObject({ value: 'not-an-email' })
      expect(text).not.toContain('12345678')
      // Nor one that is all of the body.
      const bare = await api.call('/v1/users/me/password', { method: 'PUT', body: 'twelve blue kettles' })
      expect([bare.status, bare.body.error.details[0]]).toMatchObject([400, { field: '', constraint: 'type' }])
      expect(bare.text).not.toContain('kettles')
    })

    it('is a password that is too short or too common', async () => {
      const { status, body } = await api.call('/v1/users', {
        method: 'POST',
        body: { email: 'weak@example.org', password: 'password' },
      })
      expect(status).toBe(400)
      expect(body.error.details[0]).toMatchObject({ field: 'password' })
    })

    it('is a password that says who it is of, or that is weak, whether it is the first or another', async () => {
      const email = 'seven.otters@example.org'
      const created = await api.call('/v1/users', { method: 'POST', body: { email } })
      const path = `/v1/users/${String(created.body['user_id'])}/password`
      // Beside something else that is wrong it is said too.
      for (const more of [{}, { unknown: true }]) {
        for (const password of ['seven.otters@example.org', 'password']) {
          const first = { email: 'Seven.Otters@example.org', password, ...more }
          for (const [method, target, body] of [
            ['POST', '/v1/users', first],
            ['PUT', path, { password, ...more }],
          ] as const) {
            const answer = await api.call(target, { method, body })
            expect([method, password, answer.status]).toEqual([method, password, 400])
            expect(answer.body.error.details.map(({ field }) => field)).toContain('password')
          }
        }
      }
    })

    it('is all that is wrong with a person at once: schema, password and attributes', async () => {
      const fieldsOf = async (path: string, method: string, body: object) => {
        const answer = await api.call(path, { method, body })
        expect(answer.status).toBe(400)
        for (const detail of answer.body.error.details) {
          expect(detail).toEqual(
            expect.objectContaining({ constraint: expect.stringMatching(/^(?!custom)./), message: expect.any(String) }),
          )
        }
        return answer.body.error.details.map(({ field }) => field).sort()
      }
      const attributes = { clearance: 'high', shoe_size: 43 }
      const wrongAttributes = ['attributes.clearance', 'attributes.shoe_size']
      expect(await fieldsOf('/v1/users', 'POST', { email: 'not-an-email', password: 'xq7#vv' })).toEqual([
        'email',
        'password',
      ])
      expect(await fieldsOf('/v1/users', 'POST', { email: 'a@example.org', password: 'xq7#vv', attributes })).toEqual([
        ...wrongAttributes,
        'password',
      ])
      const all = { email: 'not-an-email', password: 'xq7#vv', attributes, role: 'administrator' }
      expect(await fieldsOf('/v1/users?dry=1', 'POST', all)).toEqual([
        ...wrongAttributes,
        'dry',
        'email',
        'password',
        'role',
      ])
      const path = `/v1/users/${api.otherUser.id}`
      for (const method of ['PUT', 'PATCH']) {
        expect(await fieldsOf(path, method, { email: 'not-an-email', attributes })).toEqual([
          ...wrongAttributes,
          'email',
        ])
      }
      const password = { password: 'xq7#vv', current: 'x' }
      expect(await fieldsOf(`${path}/password`, 'PUT', password)).toEqual(['current', 'password'])
    })

    it('is what nobody may set: ids, versions and hashes', async () => {
      for (const member of ['user_id', 'token_version', 'password_hash', 'row_version', 'created_at', 'roles']) {
        const { status, body } = await api.call('/v1/users', {
          method: 'POST',
          body: { email: 'mass@example.org', [member]: 'x' },
        })
        expect([status, body.error.details[0]?.field]).toEqual([400, member])
      }
    })

    it('is an address that somebody has, in any spelling', async () => {
      await create('taken')
      const { status, body } = await api.call('/v1/users', { method: 'POST', body: { email: ' TAKEN@Example.org ' } })
      expect([status, body.error.code]).toEqual([409, 'CONFLICT'])
      const other = await create('not-taken')
      const patched = await api.call(`/v1/users/${String(other.body['user_id'])}`, {
        method: 'PATCH',
        body: { email: 'taken@example.org' },
      })
      expect(patched.status).toBe(409)
    })
  })

  it('are created with 201, Location and ETag, and read at that place', async () => {
    const created = await create('carol', { name: 'Carol Chen', password: 'a long enough phrase' })
    const location = created.headers.get('location') ?? ''
    expect(location).toBe(`/v1/users/${String(created.body['user_id'])}`)
    expect(created.headers.get('cache-control')).toBe('no-store')
    const read = await api.call(location)
    expect(read.status).toBe(200)
    expect(read.body).toEqual(created.body)
    expect(read.headers.get('etag')).toBe(created.headers.get('etag'))
    expect(read.body).toMatchObject({ email: 'carol@example.org', name: 'Carol Chen', is_active: true })
    expect(read.text).not.toMatch(/hash|argon|password"/)
  })

  it('are replaced by PUT: what is left out is gone, but roles and status stay', async () => {
    const { body } = await create('put', { name: 'Put', profile: { given_name: 'P' }, attributes: { clearance: 2 } })
    await api.call(`/v1/users/${String(body['user_id'])}/roles/support`, { method: 'PUT' })
    await api.call(`/v1/users/${String(body['user_id'])}`, { method: 'PATCH', body: { is_active: false } })
    const replaced = await api.call(`/v1/users/${String(body['user_id'])}`, {
      method: 'PUT',
      body: { email: 'put.new@example.org' },
    })
    expect(replaced.status).toBe(200)
    expect(replaced.body).toMatchObject({
      email: 'put.new@example.org',
      name: null,
      profile: {},
      attributes: {},
      is_active: false,
    })
    const roles = await api.call(`/v1/users/${String(body['user_id'])}/roles`)
    expect(roles.body['roles']).toEqual(['support'])
  })

  it('have the address that a PUT says, verified or not as it says, and the same PUT again changes nothing', async () => {
    const created = await create('verified', { email_verified: true })
    const path = `/v1/users/${String(created.body['user_id'])}`
    const put = (body: object, headers: Record<string, string> = {}) => api.call(path, { method: 'PUT', body, headers })
    const document = { email: 'verified.new@example.org', email_verified: true, name: 'Verified' }
    const first = await put(document, { 'if-match': created.headers.get('etag') ?? '' })
    expect([first.status, first.body['email_verified']]).toEqual([200, true])
    const again = await put(document, { 'if-match': created.headers.get('etag') ?? '' })
    expect([again.status, again.text, again.headers.get('etag')]).toEqual([200, first.text, first.headers.get('etag')])
    const unverified = await put({ email: 'verified.newer@example.org', name: 'Verified' })
    expect(unverified.body['email_verified']).toBe(false)
    // What is left out has its default, whether or not the address changes.
    await put({ ...document, email_verified: true })
    expect((await put({ email: document.email })).body['email_verified']).toBe(false)
  })

  it('have an unverified address when a patch changes it, unless the patch says otherwise', async () => {
    const created = await create('to-verify', { email_verified: true })
    const path = `/v1/users/${String(created.body['user_id'])}`
    const patch = async (body: unknown, type: string) => {
      const headers = { 'content-type': `application/${type}+json` }
      await api.call(path, { method: 'PATCH', body: { email: 'to-verify@example.org', email_verified: true } })
      const answer = await api.call(path, { method: 'PATCH', rawBody: JSON.stringify(body), headers })
      expect([body, answer.status]).toEqual([body, 200])
      return answer.body['email_verified']
    }
    const email = 'to-verify.new@example.org'
    expect(await patch({ name: 'Only the name' }, 'merge-patch')).toBe(true)
    expect(await patch({ email }, 'merge-patch')).toBe(false)
    expect(await patch({ email, email_verified: true }, 'merge-patch')).toBe(true)
    expect(await patch({ email, email_verified: false }, 'merge-patch')).toBe(false)
    const replace = { op: 'replace', path: '/email', value: email }
    expect(await patch([replace], 'json-patch')).toBe(false)
    expect(await patch([{ op: 'test', path: '/email_verified', value: true }, replace], 'json-patch')).toBe(false)
    expect(await patch([replace, { op: 'replace', path: '/email_verified', value: true }], 'json-patch')).toBe(true)
    expect(await patch([{ op: 'replace', path: '', value: { email, email_verified: true } }], 'json-patch')).toBe(true)
    expect(await patch([{ op: 'replace', path: '', value: { email } }], 'json-patch')).toBe(false)
  })

  it('are patched by merge patch and by JSON Patch', async () => {
    const { body } = await create('patch', { name: 'Before', profile: { given_name: 'A', family_name: 'B' } })
    const path = `/v1/users/${String(body['user_id'])}`
    const merged = await api.call(path, { method: 'PATCH', body: { name: null, profile: { given_name: null } } })
    expect(merged.body).toMatchObject({ name: null, profile: { family_name: 'B' } })
    expect(merged.body['profile']).not.toHaveProperty('given_name')
    const operations = [
      { op: 'test', path: '/email', value: 'patch@example.org' },
      { op: 'replace', path: '/name', value: 'After' },
      { op: 'add', path: '/profile/locale', value: 'de' },
    ]
    const patched = await api.call(path, {
      method: 'PATCH',
      rawBody: JSON.stringify(operations),
      headers: { 'content-type': 'application/json-patch+json' },
    })
    expect(patched.body).toMatchObject({ name: 'After', profile: { family_name: 'B', locale: 'de' } })
    const failed = await api.call(path, {
      method: 'PATCH',
      rawBody: JSON.stringify([
        { op: 'replace', path: '/name', value: 'never' },
        { op: 'test', path: '/name', value: 'other' },
      ]),
      headers: { 'content-type': 'application/json-patch+json' },
    })
    expect(failed.status).toBe(409)
    expect((await api.call(path)).body['name']).toBe('After')
    const wrong = await api.call(path, {
      method: 'PATCH',
      rawBody: 'name=x',
      headers: { 'content-type': 'text/plain' },
    })
    expect(wrong.status).toBe(415)
    expect(wrong.headers.get('accept-patch')).toContain('application/merge-patch+json')
  })

  it('are disabled by PATCH: their tokens are dead at once', async () => {
    const person = await api.newPerson('to-be-disabled')
    expect((await api.call('/v1/users/me', { token: person.token })).status).toBe(200)
    const patched = await api.call(`/v1/users/${person.id}`, { method: 'PATCH', body: { is_active: false } })
    expect(patched.body['is_active']).toBe(false)
    expect((await api.call('/v1/users/me', { token: person.token })).status).toBe(401)
  })

  it('are deleted: 204, then 404', async () => {
    const { body } = await create('gone')
    const path = `/v1/users/${String(body['user_id'])}`
    const deleted = await api.call(path, { method: 'DELETE' })
    expect([deleted.status, deleted.text]).toEqual([204, ''])
    const again = await api.call(path, { method: 'DELETE' })
    expect(again.status).toBe(404)
    expect(again.body.error).toMatchObject({
      resource_type: 'user',
      resource_id: body['user_id'],
      suggestions: ['Use GET /v1/users to list available users', 'Check user_id spelling'],
    })
  })

  describe('people and their own record', () => {
    it('read and change their name and profile, by id and as `me`', async () => {
      const { token, id } = api.user
      expect((await api.call('/v1/users/me', { token })).body['user_id']).toBe(id)
      const patched = await api.call(`/v1/users/${id}`, { method: 'PATCH', token, body: { name: 'My own name' } })
      expect([patched.status, patched.body['name']]).toEqual([200, 'My own name'])
    })

    it('change nothing that says who they are or what they may do', async () => {
      const { token } = api.user
      const patches = [
        { email: 'another@example.org' },
        { email_verified: false },
        { attributes: { clearance: 9 } },
        { is_active: false },
        { profile: { phone_number_verified: true } },
      ]
      for (const body of patches) {
        const answer = await api.call('/v1/users/me', { method: 'PATCH', token, body })
        expect([body, answer.status]).toEqual([body, 403])
      }
      expect((await api.call('/v1/users/me', { method: 'DELETE', token })).status).toBe(403)
    })

    it('change their password with the present one, which ends everything', async () => {
      const person = await api.newPerson('password-changer')
      const path = '/v1/users/me/password'
      const put = (body: object) => api.call(path, { method: 'PUT', token: person.token, body })
      expect((await put({ password: 'quite another phrase' })).status).toBe(403)
      expect((await put({ password: 'quite another phrase', current_password: 'wrong' })).status).toBe(403)
      const changed = await put({ password: 'quite another phrase', current_password: person.password })
      expect(changed.status).toBe(204)
      expect((await api.call('/v1/users/me', { token: person.token })).status).toBe(401)
      await expect(api.signIn({ email: person.email, password: 'quite another phrase' })).resolves.toBeTypeOf('string')
    })

    it('are held off after too many wrong guesses of it', async () => {
      const person = await api.newPerson('guessed')
      const guess = () =>
        api.call('/v1/users/me/password', {
          method: 'PUT',
          token: person.token,
          body: { password: 'quite another phrase', current_password: 'a guess' },
        })
      for (let i = 0; i < 10; i += 1) expect((await guess()).status).toBe(403)
      const { status, headers, body } = await guess()
      expect(status).toBe(429)
      expect(body.error).toEqual({
        code: 'RATE_LIMIT_EXCEEDED',
        message: 'Too many wrong passwords',
        limit: 10,
        remaining: 0,
        reset_at: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/),
        retry_after: Number(headers.get('retry-after')),
      })
      expect(Date.parse(String(body.error['reset_at']))).toBeGreaterThan(Date.now() + 60_000)
    })
  })

  describe('rights', () => {
    it('bound whom one may change: support cannot touch an administrator, nor make one', async () => {
      const manager = await api.newPerson('user-manager')
      await api.call('/v1/roles/user-manager', {
        method: 'PUT',
        body: {
          permissions: ['users:read', 'users:write', 'roles:write'].map((permission) => ({
            resource: `${api.provider.issuer}/v1`,
            permission,
          })),
        },
      })
      await api.call(`/v1/users/${manager.id}/roles/user-manager`, { method: 'PUT' })
      const token = await api.signIn(manager)
      const admin = `/v1/users/${api.administrator.id}`
      const password = { password: 'a takeover, nearly' }
      expect((await api.call(`${admin}/password`, { method: 'PUT', token, body: password })).status).toBe(403)
      expect((await api.call(admin, { method: 'PATCH', token, body: { email: 'mine@example.org' } })).status).toBe(403)
      expect((await api.call(admin, { method: 'PATCH', token, body: { is_active: false } })).status).toBe(403)
      expect((await api.call(`/v1/users/${manager.id}/roles/administrator`, { method: 'PUT', token })).status).toBe(403)
      const own = await api.call('/v1/roles/user-manager', {
        method: 'PUT',
        token,
        body: { permissions: [{ resource: `${api.provider.issuer}/v1`, permission: 'keys:write' }] },
      })
      expect(own.status).toBe(403)
    })

    it('keep the last administrator', async () => {
      const { id } = api.administrator
      const statuses = await Promise.all([
        api.call(`/v1/users/${id}`, { method: 'DELETE' }),
        api.call(`/v1/users/${id}`, { method: 'PATCH', body: { is_active: false } }),
        api.call(`/v1/users/${id}/roles/administrator`, { method: 'DELETE' }),
        api.call('/v1/roles/administrator', { method: 'DELETE' }),
        api.call('/v1/roles/administrator', { method: 'PUT', body: { permissions: [] } }),
      ])
      expect(statuses.map(({ status }) => status)).toEqual([409, 409, 409, 409, 409])
    })
  })
})
