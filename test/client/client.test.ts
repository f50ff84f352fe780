/** The typed client against a real provider, refusals first; between the two a gateway that loses and refuses. */
import { createClient, ifMatch, LatchkeyApiError, OutboundError, paginate } from '@latchkey/client'
import type { ClientAuth, ClientOptions, components, DeprecationNotice, LatchkeyClient } from '@latchkey/client'
import { createOutbound } from '@latchkey/guard/outbound'
import type { AttemptLog } from '@latchkey/guard/outbound'
import { setTimeout as sleep } from 'node:timers/promises'
import { beforeAll, describe, expect, expectTypeOf, it, onTestFinished } from 'vitest'
import { version } from '../../src/client/version.ts'
import { openManagement, type Management } from '../support/management.ts'
import { findFreePort } from '../support/ports.ts'
import { openGateway, type Gateway } from './gateway.ts'

type User = components['schemas']['User']

let gateway: Gateway
let api: Management
let auth: ClientAuth
/** a machine that may do everything, as fast as it likes */
let latchkey: LatchkeyClient

beforeAll(async () => {
  gateway = await openGateway()
  gateway.port = await findFreePort()
  api = await openManagement('pglite', {
    environment: { LATCHKEY_ISSUER: gateway.url, PORT: String(gateway.port) },
  })
  auth = credentialsOf(api.machine)
  latchkey = createClient({ baseUrl: gateway.url, auth, backoffMs: 20 })
})

function credentialsOf(client: { client_id: string; client_secret?: string }): ClientAuth {
  return { clientId: client.client_id, clientSecret: client.client_secret ?? '' }
}

/** A client of its own, with its attempts beside it. */
function open(options: Partial<ClientOptions> = {}): { client: LatchkeyClient; attempts: () => string[] } {
  const log: AttemptLog[] = []
  const client = createClient({
    baseUrl: gateway.url,
    auth,
    backoffMs: 20,
    log: (entry) => log.push(entry),
    ...options,
  })
  onTestFinished(() => client.close())
  return {
    client,
    attempts: () => log.filter(({ endpoint }) => endpoint !== '/token').map(({ status }) => status),
  }
}

async function errorOf(call: Promise<unknown>): Promise<unknown> {
  return call.then(
    () => 'no error',
    (error: unknown) => error,
  )
}

async function refusalOf(call: Promise<unknown>): Promise<LatchkeyApiError> {
  const error = await errorOf(call)
  if (error instanceof LatchkeyApiError) return error
  throw new Error('not refused by the API', { cause: error })
}

const create = async (name: string): Promise<User> =>
  (await latchkey.POST('/v1/users', { body: { email: `${name}@example.org`, name } })).data

async function all<Item>(items: AsyncIterable<Item>): Promise<Item[]> {
  const found: Item[] = []
  for await (const item of items) found.push(item)
  return found
}

async function peopleNamed(email: string): Promise<number | undefined> {
  const { data } = await latchkey.GET('/v1/users', { params: { query: { email } } })
  return data.pagination.total
}

describe('what is not sent at all', () => {
  it('is a secret over http to another machine', () => {
    for (const auth of [{ apiKey: 'k' }, { token: 't' }, { clientId: 'c', clientSecret: 's' }]) {
      expect(() => createClient({ baseUrl: 'http://id.example.com', auth })).toThrow(/must be https/)
      expect(() => createClient({ baseUrl: 'https://id.example.com/?a=b', auth })).toThrow(TypeError)
      expect(() => createClient({ baseUrl: 'id.example.com', auth })).toThrow(TypeError)
      expect(() => createClient({ baseUrl: 'http://id.internal', auth, allowHttp: true })).not.toThrow()
    }
    expect(() => createClient({ baseUrl: 'https://id.example.com', auth, retries: 11 })).toThrow(RangeError)
  })

  it('is an identifier that would lead to another resource', async () => {
    gateway.plan()
    for (const user_id of ['..', '.', '']) {
      const call = latchkey.GET('/v1/users/{user_id}/sessions', { params: { path: { user_id } } })
      await expect(call).rejects.toThrow(TypeError)
    }
    expect(gateway.seen).toEqual([])
    const odd = await refusalOf(latchkey.GET('/v1/users/{user_id}', { params: { path: { user_id: '../roles' } } }))
    expect(odd.status).toBe(404)
  })
})

describe('a refusal', () => {
  it('is an error with the code, every field, and the request by which the operator finds it', async () => {
    const error = await refusalOf(latchkey.POST('/v1/users', { body: { email: 'not-an-email', name: '' } }))
    expect([error.status, error.code]).toEqual([400, 'VALIDATION_ERROR'])
    expect(error.details.map(({ field }) => field).sort()).toEqual(['email', 'name'])
    expect(error.message).toContain('email: ')
    expect(error.requestId).toBe(error.body?.request_id)
    expect(error.idempotencyKey).toMatch(/^[\da-f-]{36}$/)
    expect(api.provider.log()).toContain(String(error.requestId))
  })

  it('says what is not there', async () => {
    const error = await refusalOf(latchkey.GET('/v1/users/{user_id}', { params: { path: { user_id: 'usr_nobody' } } }))
    expect([error.status, error.code, error.retryAfter]).toEqual([404, 'RESOURCE_NOT_FOUND', undefined])
    expect(error.body?.error).toMatchObject({ resource_type: 'user', resource_id: 'usr_nobody' })
  })

  it('is a scope that the client lacks, and it is not tried again', async () => {
    const { client, attempts } = open({ auth: credentialsOf(await api.newMachine(['roles:read'])) })
    const error = await refusalOf(client.GET('/v1/users'))
    expect([error.status, error.code]).toEqual([403, 'AUTHORIZATION_ERROR'])
    expect(attempts()).toEqual(['http_403'])
    expect((await client.GET('/v1/roles')).data.roles.length).toBeGreaterThan(0)
  })

  it('of the credentials is an OutboundError that does not hold them', async () => {
    const { client } = open({ auth: { ...credentialsOf(api.machine), clientSecret: 'lk_secret_wrong' } })
    const error = await errorOf(client.GET('/v1/users'))
    expect(error).toBeInstanceOf(OutboundError)
    expect(error).toMatchObject({ reason: 'token_refused' })
    expect(JSON.stringify(error) + String(error)).not.toContain('lk_secret_wrong')
  })

  it('is a proxy’s page, whatever its status', async () => {
    const page = { headers: { 'content-type': 'text/html' }, body: '<p>Bad gateway</p>' }
    gateway.plan({ answer: 404, ...page })
    expect(await refusalOf(latchkey.GET('/v1/roles'))).toMatchObject({ code: 'UNEXPECTED_ANSWER', status: 404 })
    gateway.plan({ answer: 200, ...page })
    expect(await refusalOf(latchkey.GET('/v1/roles'))).toMatchObject({ code: 'UNEXPECTED_ANSWER', status: 200 })
    gateway.plan({ answer: 302, headers: { location: 'https://elsewhere.example/' } })
    expect(await refusalOf(latchkey.GET('/v1/roles'))).toMatchObject({ code: 'UNEXPECTED_ANSWER', status: 302 })
    for (const body of ['{"error":{"code":7,"message":"x"}}', '{"error":"x"}', 'null', '{"error":{"code":"A"}}']) {
      gateway.plan({ answer: 418, headers: { 'content-type': 'application/json' }, body })
      expect(await refusalOf(latchkey.GET('/v1/roles'))).toMatchObject({ code: 'UNEXPECTED_ANSWER', details: [] })
    }
  })

  it('is a 304 for whoever asked for one', async () => {
    const { response } = await latchkey.GET('/v1/roles')
    const header = { 'If-None-Match': response.headers.get('etag') ?? '' }
    const error = await refusalOf(latchkey.GET('/v1/roles', { params: { header } }))
    expect([error.status, error.code]).toEqual([304, 'NOT_MODIFIED'])
  })

  it('is a change that is not based on what is there', async () => {
    const { user_id } = await create('fought-over')
    const path = { user_id }
    const { response } = await latchkey.GET('/v1/users/{user_id}', { params: { path } })
    const header = ifMatch(response)
    const first = await latchkey.PATCH('/v1/users/{user_id}', { params: { path, header }, body: { name: 'First' } })
    expect(first.data.name).toBe('First')
    const second = latchkey.PATCH('/v1/users/{user_id}', { params: { path, header }, body: { name: 'Second' } })
    expect((await refusalOf(second)).code).toBe('PRECONDITION_FAILED')
    const third = { params: { path, header: ifMatch(first.response) }, body: { name: 'Third' } }
    expect((await latchkey.PATCH('/v1/users/{user_id}', third)).data.name).toBe('Third')
    // A list has a tag too, on which nothing can be based.
    expect(() => ifMatch('W/"abc"')).toThrow(TypeError)
  })
})

describe('an answer', () => {
  it('is the body as the document has it, typed, or nothing', async () => {
    const { data, response } = await latchkey.POST('/v1/users', { body: { email: 'typed@example.org' } })
    expectTypeOf(data).toMatchTypeOf<{ user_id: string; email: string; is_active: boolean }>()
    expect([response.status, response.headers.get('location')]).toEqual([201, `/v1/users/${data.user_id}`])
    const params = { path: { user_id: data.user_id } }
    const gone = await latchkey.DELETE('/v1/users/{user_id}', { params })
    expectTypeOf(gone.data).toEqualTypeOf<undefined>()
    expect([gone.response.status, gone.data]).toEqual([204, undefined])
    const put = { params: { path: { name: 'typed' } }, body: { description: 'A role' } }
    const made = await latchkey.PUT('/v1/roles/{name}', put)
    expectTypeOf(made.data.permissions).toEqualTypeOf<{ resource: string; permission: string }[]>()
    expect([made.response.status, (await latchkey.PUT('/v1/roles/{name}', put)).response.status]).toEqual([201, 200])
  })

  it('comes of a resource whose identifier is an address', async () => {
    const resource_id = 'https://api.example.org/a b?c'
    const path = { resource_id: encodeURI(resource_id) }
    const body = { name: 'An API' }
    const { data } = await latchkey.PUT('/v1/resources/{resource_id}', { params: { path }, body })
    const found = await latchkey.GET('/v1/resources/{resource_id}', { params: { path } })
    expect(found.data).toEqual(data)
  })

  it('comes of a merge patch, whose null removes what may be removed, and that alone', async () => {
    const { user_id } = await create('merged')
    const params = { path: { user_id } }
    const patch = async (body: components['schemas']['PatchUser']) =>
      (await latchkey.PATCH('/v1/users/{user_id}', { params, body })).data
    const profile = { given_name: 'Mer', family_name: 'Ged', address: { country: 'DE', locality: 'Ulm' } }
    expect((await patch({ profile, email_verified: true })).profile).toEqual(profile)
    const fewer = await patch({ profile: { given_name: null, address: { country: null } } })
    expect(fewer.profile).toEqual({ family_name: 'Ged', address: { locality: 'Ulm' } })
    // What is left out is not what a new one would have.
    expect(fewer).toMatchObject({ name: 'merged', email_verified: true })
    const bare = await patch({ profile: null, name: null, attributes: null, email_verified: null })
    expect(bare).toMatchObject({ profile: {}, name: null, attributes: {}, email_verified: false, is_active: true })
    // @ts-expect-error nobody is without an address
    expect((await refusalOf(patch({ email: null }))).code).toBe('VALIDATION_ERROR')
  })

  it('comes of a read or a change that is wanted only of what it is thought to be', async () => {
    const { data, response } = await latchkey.PUT('/v1/roles/{name}', {
      params: { path: { name: 'conditional' }, header: { 'If-None-Match': '*' } },
      body: {},
    })
    const path = { name: data.name }
    const header = { 'If-Match': response.headers.get('etag') ?? '' }
    expect((await latchkey.GET('/v1/roles/{name}', { params: { path, header } })).data).toEqual(data)
    const again = { params: { path, header: { 'If-None-Match': '*' } }, body: { description: 'Another' } }
    expect((await refusalOf(latchkey.PUT('/v1/roles/{name}', again))).code).toBe('PRECONDITION_FAILED')
  })

  it('comes of a JSON Patch too', async () => {
    const { user_id } = await create('patched')
    const { data } = await latchkey.PATCH('/v1/users/{user_id}', {
      params: { path: { user_id } },
      headers: { 'content-type': 'application/json-patch+json' },
      body: [
        { op: 'test', path: '/name', value: 'patched' },
        { op: 'replace', path: '/name', value: 'By patch' },
      ],
    })
    expect(data.name).toBe('By patch')
  })

  it('was asked for by name, and every POST and PATCH has a key of its own', async () => {
    const { client } = open({ userAgent: 'hr-sync/2.1' })
    gateway.plan()
    const { data } = await client.POST('/v1/users', { body: { email: 'keyed@example.org' } })
    const params = { path: { user_id: data.user_id } }
    for (const name of ['A', 'B']) await client.PATCH('/v1/users/{user_id}', { params, body: { name } })
    await client.GET('/v1/users/{user_id}', { params })
    const own = { ...params, header: { 'Idempotency-Key': 'my-own-key' } }
    await client.PATCH('/v1/users/{user_id}', { params: own, body: { name: 'C' } })
    const names = new Set(gateway.seen.map(({ headers }) => headers['user-agent']))
    expect([...names]).toEqual([`hr-sync/2.1 latchkey-client/${version}`])
    const keys = gateway.seen.slice(1).map(({ headers }) => headers['idempotency-key'])
    expect(keys.map((key) => typeof key)).toEqual(['string', 'string', 'string', 'undefined', 'string'])
    expect(new Set(keys).size).toBe(5)
    expect(keys[4]).toBe('my-own-key')
  })
})

describe('what fails for the moment', () => {
  it.each([429, 500, 502, 503, 504])('is tried again after %d, under the same key, with one effect', async (status) => {
    const { client, attempts } = open()
    const email = `again-${status}@example.org`
    gateway.plan({ answer: status }, 'lose the request')
    const { data } = await client.POST('/v1/users', { body: { email } })
    expect(attempts()).toEqual([`http_${status}`, 'connection_lost', 'success'])
    const keys = gateway.seen.filter(({ operation }) => operation === 'POST /v1/users')
    expect(new Set(keys.map(({ headers }) => headers['idempotency-key'])).size).toBe(1)
    expect([data.email, await peopleNamed(email)]).toEqual([email, 1])
  })

  it('has one effect when the answer is lost after it', async () => {
    const email = 'lost-answer@example.org'
    gateway.plan({ loseAnswer: true }, { loseAnswer: true })
    const { data, response } = await latchkey.POST('/v1/users', { body: { email } })
    expect(response.headers.get('idempotency-replayed')).toBe('true')
    expect([data.email, await peopleNamed(email)]).toEqual([email, 1])

    gateway.plan({ loseAnswer: true })
    const params = { path: { user_id: data.user_id } }
    const patched = await latchkey.PATCH('/v1/users/{user_id}', { params, body: { name: 'Once' } })
    expect(patched.response.headers.get('idempotency-replayed')).toBe('true')
    const query = { target_id: data.user_id, action: 'user.updated' }
    const { data: record } = await latchkey.GET('/v1/audit', { params: { query } })
    expect(record.pagination.total).toBe(1)
  })

  it('gives a secret that was lost with its answer, the same one', async () => {
    const body = { type: 'machine', name: 'Lost and found' } as const
    gateway.plan({ loseAnswer: true })
    const { data } = await latchkey.POST('/v1/clients', { body })
    const { client } = open({ auth: { clientId: data.client_id, clientSecret: data.client_secret ?? '' } })
    // The secret is right, though the client may do nothing.
    const error = await errorOf(client.GET('/v1/users'))
    expect(error).toMatchObject({ reason: 'token_refused', message: expect.stringContaining('invalid_target') })
  })

  it('is waited for while the first try is still under way', async () => {
    const { client, attempts } = open()
    const email = 'under-way@example.org'
    const params = { header: { 'Idempotency-Key': 'under-way-1' } }
    const body = { email, password: 'a phrase that takes a while' }
    const answers = await Promise.all([1, 2, 3].map(() => client.POST('/v1/users', { params, body })))
    expect(new Set(answers.map(({ data }) => data.user_id)).size).toBe(1)
    expect(attempts()).toContain('http_409')
    expect(await peopleNamed(email)).toBe(1)
  })

  it('is not confused with a conflict that stays', async () => {
    const { client, attempts } = open()
    await create('taken')
    const error = await refusalOf(client.POST('/v1/users', { body: { email: 'taken@example.org' } }))
    expect(error.code).toBe('CONFLICT')
    expect(attempts()).toEqual(['http_409'])
  })

  it('is given up after the retries, with what was said last and the key to go on with', async () => {
    const { client, attempts } = open({ retries: 1 })
    gateway.plan({ answer: 503 }, { answer: 503, headers: { 'retry-after': '0' } })
    const error = await refusalOf(client.POST('/v1/users', { body: { email: 'later@example.org' } }))
    expect([error.status, error.code, error.retryAfter]).toEqual([503, 'UNEXPECTED_ANSWER', 0])
    expect(attempts()).toEqual(['http_503', 'http_503'])
    gateway.plan()
    const params = { header: { 'Idempotency-Key': error.idempotencyKey ?? '' } }
    await client.POST('/v1/users', { params, body: { email: 'later@example.org' } })
    expect(await peopleNamed('later@example.org')).toBe(1)
  })

  it('is not tried again once the caller has gone', async () => {
    const { client, attempts } = open({ backoffMs: 60_000, maxBackoffMs: 60_000, random: () => 0.4 })
    const cancel = new AbortController()
    gateway.plan({ answer: 503 })
    const call = client.GET('/v1/roles', { signal: cancel.signal })
    await expect.poll(attempts).toEqual(['http_503'])
    cancel.abort(new Error('the user went away'))
    await expect(call).rejects.toThrow('the user went away')
  })
})

describe('limits', () => {
  async function limited(plan: object): Promise<ClientAuth> {
    const machine = await api.newMachine(['roles:read'])
    const name = `plan of ${machine.client_id}`
    await latchkey.PUT('/v1/plans/{name}', { params: { path: { name } }, body: { name, ...plan } })
    const path = { client_id: machine.client_id }
    await latchkey.PUT('/v1/clients/{client_id}/plan', { params: { path }, body: { plan: name } })
    return credentialsOf(machine)
  }

  it('are kept to: whoever asks too fast waits as long as Retry-After says', async () => {
    const { client, attempts } = open({ auth: await limited({ throttle: { rateLimit: 1, burstLimit: 1 } }) })
    const startedAt = performance.now()
    for (let i = 0; i < 3; i += 1) await client.GET('/v1/roles')
    expect(attempts().filter((status) => status === 'http_429').length).toBeGreaterThanOrEqual(1)
    expect(performance.now() - startedAt).toBeGreaterThan(1000)
  })

  it('that end tomorrow are said at once', async () => {
    const { client, attempts } = open({ auth: await limited({ quota: { limit: 3, period: 'MONTH' } }) })
    // The token counts too.
    for (let i = 0; i < 2; i += 1) await client.GET('/v1/roles')
    const error = await refusalOf(client.GET('/v1/roles'))
    expect([error.status, error.code]).toEqual([429, 'RATE_LIMIT_EXCEEDED'])
    // Somewhere in the last minute of a month it could be had by waiting.
    expect(error.retryAfter).toBeGreaterThan(0)
    expect(attempts()).toEqual(['success', 'success', 'http_429'])
  })
})

describe('tokens', () => {
  const tokenRequests = () => gateway.seen.filter(({ operation }) => operation === 'POST /token').length

  it('are fetched once for many calls', async () => {
    const { client } = open()
    gateway.plan()
    await Promise.all([1, 2, 3, 4, 5].map(() => client.GET('/v1/roles')))
    await client.GET('/v1/roles')
    expect(tokenRequests()).toBe(1)
  })

  it('that were revoked are replaced, once, without the caller noticing', async () => {
    const machine = await api.newMachine(['users:write', 'users:read'])
    const { client, attempts } = open({ auth: credentialsOf(machine) })
    gateway.plan()
    await client.GET('/v1/users')
    const path = { client_id: machine.client_id }
    // A token that is refused right after it was made would be refused again.
    await sleep(1100)
    await latchkey.POST('/v1/clients/{client_id}/revocations', { params: { path }, body: {} })
    // A token of the same second cannot be told from those that were revoked.
    await sleep(1000)
    const email = 'after-revocation@example.org'
    await client.POST('/v1/users', { body: { email } })
    expect(attempts()).toEqual(['success', 'http_401', 'success'])
    expect(tokenRequests()).toBe(2)
    expect(await peopleNamed(email)).toBe(1)
  })

  it('of a client that was disabled are not to be had any more', async () => {
    const machine = await api.newMachine(['roles:read'])
    const { client } = open({ auth: credentialsOf(machine) })
    await client.GET('/v1/roles')
    await sleep(1100)
    const params = { path: { client_id: machine.client_id } }
    await latchkey.PATCH('/v1/clients/{client_id}', { params, body: { is_active: false } })
    expect(await errorOf(client.GET('/v1/roles'))).toMatchObject({ reason: 'token_refused' })
  })

  it('are taken from whoever has them, and asked for again after a 401', async () => {
    const tokens = ['stale', api.machine.token]
    const { client, attempts } = open({ auth: { token: async () => tokens.shift() ?? api.machine.token } })
    await client.GET('/v1/roles')
    await client.GET('/v1/roles')
    expect(attempts()).toEqual(['http_401', 'success', 'success'])
    const fixed = open({ auth: { token: 'stale' } })
    expect((await refusalOf(fixed.client.GET('/v1/roles'))).code).toBe('AUTHENTICATION_ERROR')
    expect(fixed.attempts()).toEqual(['http_401'])
    const person = open({ auth: { token: api.user.token } })
    const me = await person.client.GET('/v1/users/{user_id}', { params: { path: { user_id: 'me' } } })
    expect(me.data.user_id).toBe(api.user.id)
  })

  it('are not needed with an API key, which is refused when it is bad', async () => {
    const machine = await api.newMachine(['roles:read'])
    const body = { client_id: machine.client_id, name: 'An appliance' }
    const { data: key } = await latchkey.POST('/v1/api-keys', { body })
    const { client } = open({ auth: { apiKey: key.api_key } })
    gateway.plan()
    expect((await client.GET('/v1/roles')).data.roles.length).toBeGreaterThan(0)
    expect((await refusalOf(client.GET('/v1/users'))).code).toBe('AUTHORIZATION_ERROR')
    expect(tokenRequests()).toBe(0)
    expect(gateway.seen.map(({ headers }) => headers.authorization)).toEqual([undefined, undefined])
    const bad = await refusalOf(open({ auth: { apiKey: `${key.api_key}x` } }).client.GET('/v1/roles'))
    expect([bad.status, bad.code]).toEqual([403, 'AUTHORIZATION_ERROR'])
  })
})

describe('a walk over a list', () => {
  it('sees each once while rows come and go', async () => {
    const names = Array.from({ length: 23 }, (_, i) => `walker-${String(i).padStart(2, '0')}`)
    const role = 'walkers'
    await latchkey.PUT('/v1/roles/{name}', { params: { path: { name: role } }, body: { description: 'walk' } })
    const join = async (user: User) => {
      const path = { user_id: user.user_id, name: role }
      await latchkey.PUT('/v1/users/{user_id}/roles/{name}', { params: { path } })
    }
    const walkers: User[] = []
    for (const name of names) {
      const user = await create(name)
      await join(user)
      walkers.push(user)
    }
    const seen: string[] = []
    const query = { role, sort: 'email', limit: 5, offset: 0 }
    for await (const user of paginate(latchkey, '/v1/users', { params: { query } })) {
      seen.push(user.email ?? '')
      // While a page is read: one that was seen goes, one of the next page goes, one comes before and one behind.
      if (seen.length % 5 !== 3) continue
      const page = Math.floor(seen.length / 5)
      const [before, behind] = [walkers[page * 5], walkers[page * 5 + 6]]
      for (const gone of [before, page === 1 ? behind : undefined]) {
        const params = gone && { path: { user_id: gone.user_id } }
        if (params !== undefined) await latchkey.DELETE('/v1/users/{user_id}', { params })
      }
      await join(await create(`walker-00-late-${page}`))
      if (page === 0) await join(await create('walker-99'))
    }
    const stay = names.map((name) => `${name}@example.org`).filter((email) => !email.startsWith('walker-11'))
    expect(seen).toEqual([...stay, 'walker-99@example.org'])
  })

  it('goes along a path, asks for the members that are wanted, and ends where there is nothing', async () => {
    const params = { path: { user_id: api.user.id }, query: { fields: 'session_id' } }
    const sessions = await all(paginate(latchkey, '/v1/users/{user_id}/sessions', { params }))
    expect(sessions.map((session) => Object.keys(session))).toEqual([['session_id']])
    expectTypeOf(sessions).toMatchTypeOf<{ session_id: string }[]>()
    const nobody = { params: { query: { email: 'nobody@example.org' } } }
    expect(await all(paginate(latchkey, '/v1/users', nobody))).toEqual([])
  })

  it('reads no further than it is followed, and ends in the refusal', async () => {
    gateway.plan()
    for await (const event of paginate(latchkey, '/v1/audit', { params: { query: { limit: 2 } } })) {
      expect(event.audit_event_id).toMatch(/^aud_/)
      break
    }
    expect(gateway.seen.filter(({ operation }) => operation === 'GET /v1/audit')).toHaveLength(1)
    const wrong = all(paginate(latchkey, '/v1/users', { params: { query: { sort: 'shoe_size' } } }))
    expect((await refusalOf(wrong)).code).toBe('VALIDATION_ERROR')
  })
})

describe('the end of an operation', () => {
  it('is told once for each, with its dates and what follows', async () => {
    const notices: DeprecationNotice[] = []
    const { client } = open({ onDeprecation: (notice) => notices.push(notice) })
    const headers = {
      deprecation: '@1767225600',
      sunset: 'Wed, 01 Jul 2026 00:00:00 GMT',
      link: '</v2/roles>; rel="successor-version", <https://id.example.com/docs/v2>; rel="deprecation"; type="text/html"',
    }
    gateway.plan({ addHeaders: headers }, { addHeaders: headers })
    await client.GET('/v1/roles')
    await client.GET('/v1/roles')
    expect(notices).toEqual([
      {
        method: 'GET',
        path: '/v1/roles',
        deprecatedAt: new Date('2026-01-01T00:00:00Z'),
        sunsetAt: new Date('2026-07-01T00:00:00Z'),
        successor: '/v2/roles',
        migrationGuide: 'https://id.example.com/docs/v2',
      },
    ])
    // The draft that RFC 9745 came from said "true".
    gateway.plan({ addHeaders: { deprecation: 'true' } })
    await client.GET('/v1/keys')
    expect(notices[1]).toMatchObject({ path: '/v1/keys', deprecatedAt: undefined, sunsetAt: undefined })
  })
})

describe('connections', () => {
  it('that were given stay open when the client is closed', async () => {
    const outbound = createOutbound({ caller: 'a-service/1.0' })
    onTestFinished(() => outbound.close())
    const client = createClient({ baseUrl: gateway.url, auth, outbound })
    await client.GET('/v1/roles')
    await client.close()
    await client.GET('/v1/roles')
    expect(outbound.metrics().hosts[gateway.url]?.calls).toBeGreaterThan(2)

    const own = createClient({ baseUrl: gateway.url, auth })
    await own.close()
    expect(await errorOf(own.GET('/v1/roles'))).toMatchObject({ reason: 'closed' })
  })
})
