import { createHash, generateKeyPairSync } from 'node:crypto'
import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import type { Actor } from '../../src/audit/audit.ts'
import type { Database } from '../../src/database/database.ts'
import {
  addClientSecret,
  clientSecretMatches,
  createClient,
  disableClient,
  enableClient,
  findClient,
  getClient,
  listClients,
  revokeClientSecret,
  rotateClientSecret,
  setClientPermissions,
  updateClient,
} from '../../src/oauth/clients.ts'
import { createResource } from '../../src/oauth/resources.ts'
import { Problem } from '../../src/problems.ts'
import { isRevoked } from '../../src/revocation/revocations.ts'
import { eachDatabase, onPostgres } from '../support/databases.ts'

const operator: Actor = { type: 'operator', id: 'test' }
const api = 'https://api.example.com'
const read = { resource: api, permission: 'models:read' }
const write = { resource: api, permission: 'models:write' }

type CreateInput = Parameters<typeof createClient>[2]
const web = (changes: Partial<CreateInput> = {}): CreateInput => ({
  type: 'web',
  name: 'Web',
  redirect_uris: ['https://app.example.com/callback'],
  ...changes,
})
const machine = (changes: Partial<CreateInput> = {}): CreateInput => ({ type: 'machine', name: 'Machine', ...changes })

const register = ({ db }: Database, input: CreateInput) =>
  db.transaction().execute((trx) => createClient(trx, operator, input))

async function problemOf(work: Promise<unknown>): Promise<Problem> {
  const error = await work.then(
    () => undefined,
    (thrown: unknown) => thrown,
  )
  if (error instanceof Problem) return error
  throw new Error('no Problem was thrown', { cause: error })
}

const fieldsOf = async (work: Promise<unknown>) => (await problemOf(work)).details.map(({ field }) => field)

/** Those that are registered all the same, or refused for another field than the one named with them. */
async function notRefused(database: Database, inputs: readonly (readonly [CreateInput, string])[]) {
  const wrong: unknown[] = []
  for (const [input, field] of inputs) {
    const fields = await fieldsOf(register(database, input)).catch(() => 'registered')
    if (JSON.stringify(fields) !== JSON.stringify([field])) wrong.push({ input, fields })
  }
  return wrong
}

const makeApi = ({ db }: Database) =>
  db.transaction().execute((trx) =>
    createResource(trx, operator, {
      id: api,
      permissions: [{ permission: 'models:read' }, { permission: 'models:write' }],
    }),
  )

/** As the token endpoint reads them. */
async function storedSecrets({ db }: Database, clientId: string) {
  return db
    .selectFrom('client_secrets')
    .select(['secret_hash as hash', 'expires_at as expiresAt'])
    .where('client_id', '=', clientId)
    .execute()
}

/** A family of a client: its Grant, a refresh token and a sealed reply. */
async function insertFamily({ db }: Database, clientId: string, grantId: string): Promise<void> {
  const expires_at = new Date(Date.now() + 60_000)
  const row = { client_id: clientId, grant_id: grantId, payload: '{}', expires_at }
  await db
    .insertInto('artifacts')
    .values([
      { kind: 'Grant', id: grantId, ...row },
      { kind: 'RefreshToken', id: `refresh of ${grantId}`, ...row },
    ])
    .execute()
  await db
    .insertInto('refresh_replies')
    .values({
      token_id: `refresh of ${grantId}`,
      grant_id: grantId,
      request_hash: Buffer.alloc(32),
      sealed_reply: Buffer.alloc(32),
      expires_at,
    })
    .execute()
}

const machineClaims = (id: string, iat: number, token_version: number) => ({
  jti: 'a token',
  sub: id,
  client_id: id,
  iat,
  token_version,
})
const now = () => Math.floor(Date.now() / 1_000)

eachDatabase((open) => {
  // For whatever has to do with clients of its own alone.
  let database: Database
  beforeAll(async () => {
    database = await open()
  })

  describe('registering a client', () => {
    it('refuses an id that could be a person’s, in any spelling', async () => {
      for (const id of ['usr_1', 'USR_1', 'Usr_abc']) {
        expect(await fieldsOf(register(database, machine({ id })))).toEqual(['id'])
      }
      expect(await listClients(database.db)).toEqual([])
    })

    it('refuses every scheme by which a redirect could run code or leave the web, in any spelling, in every address', async () => {
      const addresses = [
        'javascript:alert(1)',
        'JavaScript:alert(1)',
        'java.script:alert(1)',
        'data:text/html,hello',
        'DATA:text/html,hello',
        'file:///etc/passwd',
        'vbscript:x',
        'blob:https://app.example.com/1',
        'about:blank',
        'ftp://app.example.com/',
        'ws://app.example.com/',
        'view-source:https://app.example.com/',
        'com.example.app:/callback',
      ]
      const inputs = addresses.flatMap((address) => [
        [web({ redirect_uris: [address] }), 'redirect_uris[0]'] as const,
        [web({ post_logout_redirect_uris: [address] }), 'post_logout_redirect_uris[0]'] as const,
        ...(['backchannel_logout_uri', 'client_uri', 'logo_uri', 'policy_uri', 'tos_uri'] as const).map(
          (field) => [web({ [field]: address }), field] as const,
        ),
      ])
      expect(await notRefused(database, inputs)).toEqual([])
      expect(await listClients(database.db)).toEqual([])
    })

    it('refuses a scheme without a dot for a native client too', async () => {
      const addresses = ['javascript:alert(1)', 'JAVASCRIPT:x', 'data:,x', 'file:/x', 'myapp:/callback', 'a..b:/']
      const inputs = addresses.map((address): [CreateInput, string] => [
        { type: 'native', name: 'Native', redirect_uris: [address] },
        'redirect_uris[0]',
      ])
      expect(await notRefused(database, inputs)).toEqual([])
    })

    it('refuses an address that is not absolute, exact and plain', async () => {
      const addresses = [
        '/callback',
        'app.example.com/callback',
        'https://app.example.com/callback#',
        'https://app.example.com/callback#x',
        'https://user:secret@app.example.com/',
        'https://*.example.com/callback',
        'https:app.example.com/callback',
        'https:/app.example.com/callback',
        'https:///app.example.com/callback',
        'https:\\\\app.example.com\\callback',
        'https://app.example.com/call back',
        ' https://app.example.com/',
        'https://app.example.com/\n',
        'https://äpp.example.com/',
        'http://app.example.com/callback',
        'http://127.0.0.1.example.com/callback',
        'http://localhost.example.com/callback',
        'http://localhost@example.com/',
        'http://[::2]/',
        'http://0.0.0.0/',
      ]
      const inputs = addresses.map((address) => [web({ redirect_uris: [address] }), 'redirect_uris[0]'] as const)
      expect(await notRefused(database, inputs)).toEqual([])
    })

    it('names every field that is wrong at once', async () => {
      const fields = await fieldsOf(
        register(database, {
          type: 'spa',
          name: 'Browser',
          token_endpoint_auth_method: 'client_secret_basic',
          redirect_uris: [],
          tos_uri: 'javascript:x',
        }),
      )
      expect(fields.sort()).toEqual(['redirect_uris', 'token_endpoint_auth_method', 'tos_uri'])
    })

    it('refuses grants that do not go with the proof of identity', async () => {
      const redirect_uris = ['https://app.example.com/']
      const inputs: [CreateInput, string][] = [
        [
          { type: 'spa', name: 'x', redirect_uris, grant_types: ['authorization_code', 'client_credentials'] },
          'grant_types',
        ],
        [{ type: 'machine', name: 'x', redirect_uris, grant_types: ['authorization_code'] }, 'grant_types'],
        [machine({ grant_types: ['refresh_token'] }), 'grant_types'],
        [machine({ redirect_uris }), 'redirect_uris'],
        [{ type: 'native', name: 'x', redirect_uris, require_pkce: false }, 'require_pkce'],
        [web({ token_endpoint_auth_method: 'none' }), 'token_endpoint_auth_method'],
        [machine({ token_endpoint_auth_method: 'private_key_jwt' }), 'jwks'],
        [machine({ jwks_uri: 'https://app.example.com/jwks' }), 'jwks'],
        [machine({ grant_types: ['implicit' as 'client_credentials'] }), 'grant_types[0]'],
        [machine({ grant_types: [] }), 'grant_types'],
      ]
      expect(await notRefused(database, inputs)).toEqual([])
    })

    it('refuses a private, symmetric, weak or broken key', async () => {
      const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2_048 })
      const weak = generateKeyPairSync('rsa', { modulusLength: 1_024 }).publicKey.export({ format: 'jwk' })
      const keys: object[] = [
        privateKey.export({ format: 'jwk' }),
        { kty: 'oct', k: 'c2VjcmV0' },
        weak,
        { kty: 'RSA' },
        {},
      ]
      for (const key of keys) {
        const input = machine({
          token_endpoint_auth_method: 'private_key_jwt',
          jwks: { keys: [{ ...key }] },
        })
        expect(await fieldsOf(register(database, input))).toEqual(['jwks.keys[0]'])
      }
    })

    it('refuses a permission or default resource that does not exist, a taken id, and a field that it does not know', async () => {
      const database = await open()
      expect((await problemOf(register(database, machine({ permissions: [read] })))).message).toContain('models:read')
      expect(await fieldsOf(register(database, machine({ default_resource: api })))).toEqual(['default_resource'])
      await register(database, machine({ id: 'taken' }))
      await expect(register(database, machine({ id: 'taken' }))).rejects.toMatchObject({ code: 'CONFLICT' })
      const unknown = { ...machine(), client_secret: 'chosen' } as CreateInput
      expect(await fieldsOf(register(database, unknown))).toEqual(['client_secret'])
    })

    it('makes a secret of 256 random bits that scanners find, and keeps only its SHA-256', async () => {
      const { client, secret = '' } = await register(database, web())
      expect(secret).toMatch(/^lk_secret_[\w-]{43}$/)
      expect(client.id).toMatch(/^cli_[\w-]{22}$/)
      const [stored] = await storedSecrets(database, client.id)
      expect(Buffer.from(stored?.hash ?? [])).toEqual(createHash('sha256').update(secret).digest())
      const everything = await sql<{ text: string }>`
        SELECT row_to_json(c)::text || (SELECT string_agg(row_to_json(a)::text, '') FROM audit_events a) AS text
        FROM clients c`.execute(database.db)
      expect(everything.rows[0]?.text).not.toContain(secret)
      expect(JSON.stringify(client)).not.toContain(Buffer.from(stored?.hash ?? []).toString('hex'))
    })

    it('gives public clients and clients with keys no secret', async () => {
      const { publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
      const inputs: CreateInput[] = [
        { type: 'spa', name: 'x', redirect_uris: ['http://localhost:5173/'] },
        { type: 'native', name: 'x', redirect_uris: ['com.example.app:/callback', 'http://127.0.0.1/callback'] },
        machine({
          token_endpoint_auth_method: 'private_key_jwt',
          jwks: { keys: [{ ...publicKey.export({ format: 'jwk' }), kid: '1' }] },
        }),
        machine({ token_endpoint_auth_method: 'private_key_jwt', jwks_uri: 'https://app.example.com/jwks' }),
      ]
      for (const input of inputs) {
        const { client, ...rest } = await register(database, input)
        expect(rest).toEqual({})
        expect(client.secrets).toEqual([])
      }
    })

    it('records who registered it', async () => {
      const database = await open()
      const { client } = await register(database, machine())
      const events = await database.db.selectFrom('audit_events').selectAll().execute()
      expect(events).toMatchObject([
        {
          action: 'client.created',
          actor_type: 'operator',
          actor_id: 'test',
          target_type: 'client',
          target_id: client.id,
        },
      ])
    })
  })

  describe('changing a client', () => {
    it('judges the whole anew, as at registration', async () => {
      const { client } = await register(database, web())
      const change = (input: Omit<Parameters<typeof updateClient>[2], 'id'>) =>
        database.db.transaction().execute((trx) => updateClient(trx, operator, { id: client.id, ...input }))
      expect(await fieldsOf(change({ redirect_uris: ['JavaScript:alert(1)'] }))).toEqual(['redirect_uris[0]'])
      expect(await fieldsOf(change({ redirect_uris: [] }))).toEqual(['redirect_uris'])
      expect(await fieldsOf(change({ grant_types: ['client_credentials'] }))).toEqual(['redirect_uris'])
      expect(await fieldsOf(change({ jwks_uri: 'https://app.example.com/jwks' }))).toEqual(['jwks'])
      expect(await getClient(database.db, client.id)).toEqual(client)

      const renamed = await change({ name: 'Renamed', redirect_uris: ['https://app.example.com/other'] })
      expect(renamed).toMatchObject({
        name: 'Renamed',
        redirect_uris: ['https://app.example.com/other'],
        grant_types: client.grant_types,
        row_version: client.row_version + 1,
        token_version: 1,
      })
    })

    it('says that there is no such client', async () => {
      const { db } = database
      const work = db.transaction().execute((trx) => updateClient(trx, operator, { id: 'nobody', name: 'x' }))
      await expect(work).rejects.toMatchObject({ code: 'RESOURCE_NOT_FOUND' })
      expect(await findClient(db, 'nobody')).toBeUndefined()
    })

    it('ends its tokens and forgets consent when it loses a permission, and only then', async () => {
      const database = await open()
      const { db } = database
      await makeApi(database)
      const { client } = await register(database, machine({ permissions: [read] }))
      const set = (permissions: (typeof read)[]) =>
        db.transaction().execute((trx) => setClientPermissions(trx, operator, { id: client.id, permissions }))
      const issuedAt = now()

      expect((await set([read, write])).permissions).toEqual([read, write])
      expect(await isRevoked(db, machineClaims(client.id, issuedAt, 1))).toBe(false)

      await db.insertInto('users').values({ id: 'usr_1', email: 'a@b', email_normalized: 'a@b' }).execute()
      const consents = [read, write].map(({ resource, permission: scope }) => ({
        user_id: 'usr_1',
        client_id: client.id,
        resource,
        scope,
      }))
      await db.insertInto('consents').values(consents).execute()

      expect((await set([read])).permissions).toEqual([read])
      expect(await isRevoked(db, machineClaims(client.id, issuedAt, 1))).toBe(true)
      expect(await isRevoked(db, machineClaims(client.id, now() + 1, 2))).toBe(false)
      expect(await db.selectFrom('consents').select('scope').execute()).toEqual([{ scope: 'models:read' }])
      await expect(set([{ resource: api, permission: 'models:delete' }])).rejects.toMatchObject({
        code: 'VALIDATION_ERROR',
      })
    })
  })

  describe('narrowing a client', () => {
    it('ends its tokens when it loses a grant or must bind them, and not when it is renamed', async () => {
      const database = await open()
      const { db } = database
      const { client } = await register(
        database,
        web({ grant_types: ['authorization_code', 'refresh_token', 'client_credentials'] }),
      )
      const versionAfter = async (input: Omit<Parameters<typeof updateClient>[2], 'id'>) => {
        const after = await db.transaction().execute((trx) => updateClient(trx, operator, { id: client.id, ...input }))
        return after.token_version
      }
      const issuedAt = now()
      expect(await versionAfter({ name: 'Renamed', first_party: true })).toBe(1)
      expect(await isRevoked(db, machineClaims(client.id, issuedAt, 1))).toBe(false)
      expect(await versionAfter({ grant_types: ['authorization_code', 'refresh_token'] })).toBe(2)
      expect(await isRevoked(db, machineClaims(client.id, issuedAt, 1))).toBe(true)
      expect(await versionAfter({ dpop_bound_access_tokens: true })).toBe(3)
    })
  })

  describe('disabling a client', () => {
    it('ends its families, replies and tokens, and nobody else’s; enabling brings none of them back', async () => {
      const database = await open()
      const { db } = database
      const { client } = await register(database, web())
      const { client: other } = await register(database, web())
      await insertFamily(database, client.id, 'grant of one')
      await insertFamily(database, other.id, 'grant of another')
      const issuedAt = now()

      const disabled = await db.transaction().execute((trx) => disableClient(trx, operator, { id: client.id }))
      expect(disabled).toMatchObject({ status: 'disabled', token_version: 2 })
      expect(await isRevoked(db, machineClaims(other.id, issuedAt, 1))).toBe(false)
      const left = await db.selectFrom('artifacts').select('id').orderBy('id').execute()
      expect(left).toEqual([{ id: 'grant of another' }, { id: 'refresh of grant of another' }])
      expect(await db.selectFrom('refresh_replies').select('grant_id').execute()).toEqual([
        { grant_id: 'grant of another' },
      ])

      const enabled = await db.transaction().execute((trx) => enableClient(trx, operator, { id: client.id }))
      expect(enabled).toMatchObject({ status: 'active', token_version: 2 })
      expect(await isRevoked(db, machineClaims(client.id, issuedAt, 1))).toBe(true)
      expect(await isRevoked(db, machineClaims(client.id, now() + 1, 2))).toBe(false)
      const events = await db.selectFrom('audit_events').select('action').where('target_id', '=', client.id).execute()
      expect(events.map(({ action }) => action)).toEqual(['client.created', 'client.disabled', 'client.enabled'])
    })

    it('does nothing the second time', async () => {
      const { client } = await register(database, machine())
      const disable = () => database.db.transaction().execute((trx) => disableClient(trx, operator, { id: client.id }))
      const once = await disable()
      expect(await disable()).toEqual(once)
    })
  })

  describe('a client’s secrets', () => {
    const rotate = ({ db }: Database, id: string, overlap_seconds?: number) =>
      db.transaction().execute((trx) => rotateClientSecret(trx, operator, { id, overlap_seconds }))

    it('refuses the old one once the overlap is over, and at once without an overlap', async () => {
      const { client, secret: first = '' } = await register(database, machine())
      const { secret: second } = await rotate(database, client.id, 60)
      const soon = new Date(Date.now() + 30_000)
      const later = new Date(Date.now() + 90_000)
      const afterOne = await storedSecrets(database, client.id)
      expect(clientSecretMatches(afterOne, first, soon)).toBe(true)
      expect(clientSecretMatches(afterOne, second, soon)).toBe(true)
      expect(clientSecretMatches(afterOne, first, later)).toBe(false)
      expect(clientSecretMatches(afterOne, second, later)).toBe(true)

      const { secret: third, client: after } = await rotate(database, client.id, 0)
      const afterTwo = await storedSecrets(database, client.id)
      expect(clientSecretMatches(afterTwo, second, new Date())).toBe(false)
      expect(clientSecretMatches(afterTwo, third, new Date())).toBe(true)
      expect(after.secrets).toHaveLength(1)
    })

    it('keeps two at most: the oldest of three ends at once', async () => {
      const { client, secret: first = '' } = await register(database, machine())
      const { secret: second } = await rotate(database, client.id)
      const { secret: third, client: after } = await rotate(database, client.id)
      const stored = await storedSecrets(database, client.id)
      expect([first, second, third].map((secret) => clientSecretMatches(stored, secret, new Date()))).toEqual([
        false,
        true,
        true,
      ])
      expect(after.secrets).toHaveLength(2)
    })

    it('does not lengthen the life of one that is ending', async () => {
      const { client } = await register(database, machine())
      await database.db
        .updateTable('client_secrets')
        .set({ expires_at: sql<Date>`now() + interval '10 seconds'` })
        .execute()
      const { client: after } = await rotate(database, client.id, 1_000)
      expect(after.secrets[0]?.expires_at?.getTime()).toBeLessThan(Date.now() + 20_000)
    })

    it('refuses to add a third, and adds one again when one has been revoked', async () => {
      const { db } = database
      const { client, secret: first = '' } = await register(database, machine())
      const add = () => db.transaction().execute((trx) => addClientSecret(trx, operator, { id: client.id }))
      const { client: withTwo, secret: second } = await add()
      await expect(add()).rejects.toMatchObject({ code: 'CONFLICT' })

      const [oldest] = withTwo.secrets
      const revokeOldest = () =>
        db
          .transaction()
          .execute((trx) => revokeClientSecret(trx, operator, { id: client.id, secret_id: oldest?.id ?? '' }))
      await revokeOldest()
      const stored = await storedSecrets(database, client.id)
      expect(clientSecretMatches(stored, first, new Date())).toBe(false)
      expect(clientSecretMatches(stored, second, new Date())).toBe(true)
      await expect(revokeOldest()).rejects.toMatchObject({ code: 'RESOURCE_NOT_FOUND' })
      expect((await add()).client.secrets).toHaveLength(2)
    })

    it('refuses to revoke another client’s', async () => {
      const { client: one } = await register(database, machine())
      const { client: other } = await register(database, machine())
      const work = database.db
        .transaction()
        .execute((trx) => revokeClientSecret(trx, operator, { id: one.id, secret_id: other.secrets[0]?.id ?? '' }))
      await expect(work).rejects.toMatchObject({ code: 'RESOURCE_NOT_FOUND' })
      expect((await getClient(database.db, other.id)).secrets).toHaveLength(1)
    })

    it('cannot be given to a public client', async () => {
      const { client } = await register(database, { type: 'spa', name: 'x', redirect_uris: ['http://localhost/'] })
      await expect(rotate(database, client.id)).rejects.toMatchObject({ code: 'CONFLICT' })
      expect(await storedSecrets(database, client.id)).toEqual([])
    })

    it('match neither their own hash, nor a part of themselves, nor nothing', async () => {
      const { client, secret = '' } = await register(database, machine())
      const stored = await storedSecrets(database, client.id)
      const hash = createHash('sha256').update(secret).digest()
      const wrong = ['', hash.toString('hex'), hash.toString('base64'), secret.slice(0, -1), `${secret} `]
      for (const candidate of wrong) expect(clientSecretMatches(stored, candidate, new Date())).toBe(false)
      expect(clientSecretMatches([], secret, new Date())).toBe(false)
      expect(clientSecretMatches(stored, secret, new Date())).toBe(true)
    })
  })
})

onPostgres((open) => {
  it('a client whose secret is rotated ten times at once has two secrets, both of them handed out', async () => {
    const database = await open()
    const { client } = await register(database, machine())
    const rotated = await Promise.all(
      Array.from({ length: 10 }, () =>
        database.db.transaction().execute((trx) => rotateClientSecret(trx, operator, { id: client.id })),
      ),
    )
    const stored = await storedSecrets(database, client.id)
    expect(stored).toHaveLength(2)
    expect(rotated.filter(({ secret }) => clientSecretMatches(stored, secret, new Date()))).toHaveLength(2)
  })
})
