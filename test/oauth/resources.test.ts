import { describe, expect, it } from 'vitest'
import { createRole, getRole } from '../../src/access/roles.ts'
import type { Actor } from '../../src/audit/audit.ts'
import type { Database } from '../../src/database/database.ts'
import { createClient, getClient, rotateClientSecret, setClientPermissions } from '../../src/oauth/clients.ts'
import {
  createResource,
  deleteResource,
  findResource,
  getResource,
  listResources,
  updateResource,
} from '../../src/oauth/resources.ts'
import { isRevoked } from '../../src/revocation/revocations.ts'
import { emptiedEachTime, eachDatabase, onPostgres } from '../support/databases.ts'

const operator: Actor = { type: 'operator', id: 'test' }
const api = 'https://api.example.com'
const read = { resource: api, permission: 'models:read' }
const write = { resource: api, permission: 'models:write' }

type CreateInput = Parameters<typeof createResource>[2]
const create = ({ db }: Database, input: CreateInput) =>
  db.transaction().execute((trx) => createResource(trx, operator, input))
const update = ({ db }: Database, input: Parameters<typeof updateResource>[2]) =>
  db.transaction().execute((trx) => updateResource(trx, operator, input))

/** The API, a role that allows all of it, and two clients: one may write, one only read. */
async function makeWorld(database: Database) {
  const { db } = database
  await create(database, { id: api, permissions: [{ permission: 'models:read' }, { permission: 'models:write' }] })
  await db.transaction().execute((trx) => createRole(trx, operator, { name: 'editor', permissions: [read, write] }))
  const register = async (permissions: (typeof read)[]) => {
    const { client } = await db
      .transaction()
      .execute((trx) => createClient(trx, operator, { type: 'machine', name: 'x', permissions, default_resource: api }))
    return client.id
  }
  const [writer, reader] = [await register([read, write]), await register([read])]
  await db.insertInto('users').values({ id: 'usr_1', email: 'a@b', email_normalized: 'a@b' }).execute()
  const consents = [read, write].map(({ permission: scope }) => ({
    user_id: 'usr_1',
    client_id: writer,
    resource: api,
    scope,
  }))
  await db.insertInto('consents').values(consents).execute()
  return { writer, reader }
}

const isDead = ({ db }: Database, clientId: string, iat: number) =>
  isRevoked(db, { jti: 'a token', sub: clientId, client_id: clientId, iat, token_version: 1 })

eachDatabase((openNew) => {
  const open = emptiedEachTime(openNew)
  describe('registering a resource', () => {
    it('refuses an id that is no absolute URI without a fragment (RFC 8707 §2)', async () => {
      const database = await open()
      for (const id of ['', 'api', '/api', 'https://api.example.com#x', 'https://api.example.com/#', 'https://a b/']) {
        await expect(create(database, { id })).rejects.toMatchObject({ details: [{ field: 'id' }] })
      }
    })

    it('refuses an attribute that would pose as a claim of the token itself', async () => {
      const database = await open()
      for (const claim of ['sub', 'aud', 'exp', 'scope', 'roles', 'token_version', 'client_id', 'cnf', 'act']) {
        const attribute_claims = { [claim]: 'department' }
        await expect(create(database, { id: api, attribute_claims })).rejects.toMatchObject({
          code: 'VALIDATION_ERROR',
        })
      }
    })

    it('refuses a permission that is not type:action, one named twice, and a lifetime out of bounds', async () => {
      const database = await open()
      const refused: Partial<CreateInput>[] = [
        { permissions: [{ permission: 'read' }] },
        { permissions: [{ permission: 'Models:read' }] },
        { permissions: [{ permission: 'models:read write' }] },
        { permissions: [{ permission: 'models:read' }, { permission: 'models:read' }] },
        { access_token_lifetime_seconds: 9 },
        { access_token_lifetime_seconds: 86_401 },
        { access_token_lifetime_seconds: 900.5 },
      ]
      for (const input of refused) {
        await expect(create(database, { id: api, ...input })).rejects.toMatchObject({ code: 'VALIDATION_ERROR' })
      }
      expect(await listResources(database.db)).toEqual([])
    })

    it('refuses an id that is taken, and keeps the first', async () => {
      const database = await open()
      await create(database, { id: api, name: 'First' })
      await expect(create(database, { id: api, name: 'Second' })).rejects.toMatchObject({ code: 'CONFLICT' })
      expect((await getResource(database.db, api)).name).toBe('First')
    })

    it('keeps what it is given, and says who registered it', async () => {
      const database = await open()
      const created = await create(database, {
        id: api,
        name: 'Models',
        access_token_lifetime_seconds: 300,
        attribute_claims: { department: 'department', 'https://example.com/level': 'clearance' },
        permissions: [{ permission: 'models:write', description: 'Change models' }, { permission: 'models:read' }],
      })
      expect(created).toMatchObject({
        id: api,
        name: 'Models',
        access_token_lifetime_seconds: 300,
        attribute_claims: { department: 'department', 'https://example.com/level': 'clearance' },
        permissions: [
          { permission: 'models:read', description: '' },
          { permission: 'models:write', description: 'Change models' },
        ],
      })
      expect(await listResources(database.db)).toEqual([created])
      const events = await database.db.selectFrom('audit_events').select(['action', 'target_id', 'actor_id']).execute()
      expect(events).toEqual([{ action: 'resource.created', target_id: api, actor_id: 'test' }])
    })
  })

  describe('changing a resource', () => {
    it('takes a permission that is left out from roles, clients and consents, and ends the tokens that may carry it', async () => {
      const database = await open()
      const { writer, reader } = await makeWorld(database)
      const issuedAt = Math.floor(Date.now() / 1_000)
      const after = await update(database, {
        id: api,
        permissions: [{ permission: 'models:read', description: 'Read' }],
      })

      expect(after.permissions).toEqual([{ permission: 'models:read', description: 'Read' }])
      expect((await getRole(database.db, 'editor')).permissions).toEqual([read])
      expect((await getClient(database.db, writer)).permissions).toEqual([read])
      expect(await database.db.selectFrom('consents').select('scope').execute()).toEqual([{ scope: 'models:read' }])
      expect(await isDead(database, writer, issuedAt)).toBe(true)
      expect(await isDead(database, reader, issuedAt)).toBe(false)
    })

    it('leaves what is not given as it is', async () => {
      const database = await open()
      const { writer } = await makeWorld(database)
      const issuedAt = Math.floor(Date.now() / 1_000)
      const before = await getResource(database.db, api)
      const after = await update(database, { id: api, access_token_lifetime_seconds: 60 })
      expect(after).toEqual({
        ...before,
        access_token_lifetime_seconds: 60,
        row_version: before.row_version + 1,
        updated_at: after.updated_at,
      })
      expect(await isDead(database, writer, issuedAt)).toBe(false)
    })

    it('says that there is no such resource', async () => {
      const database = await open()
      await expect(update(database, { id: api, name: 'x' })).rejects.toMatchObject({ code: 'RESOURCE_NOT_FOUND' })
      expect(await findResource(database.db, api)).toBeUndefined()
    })
  })

  describe('deleting a resource', () => {
    it('ends the tokens of every client that could ask for it, and leaves nothing that names it', async () => {
      const database = await open()
      const { writer, reader } = await makeWorld(database)
      const issuedAt = Math.floor(Date.now() / 1_000)
      await database.db.transaction().execute((trx) => deleteResource(trx, operator, { id: api }))

      expect(await listResources(database.db)).toEqual([])
      for (const id of [writer, reader]) {
        expect(await isDead(database, id, issuedAt)).toBe(true)
        expect(await getClient(database.db, id)).toMatchObject({ permissions: [], default_resource: null })
      }
      expect((await getRole(database.db, 'editor')).permissions).toEqual([])
      expect(await database.db.selectFrom('consents').selectAll().execute()).toEqual([])
    })
  })
})

onPostgres((open) => {
  it('a permission may be removed while its clients get new secrets: neither waits for the other for ever', async () => {
    const database = await open()
    const { db } = database
    const { writer, reader } = await makeWorld(database)
    const both = [read, write].map(({ permission }) => ({ permission }))
    for (let round = 0; round < 10; round += 1) {
      await update(database, { id: api, permissions: both })
      for (const id of [writer, reader]) {
        await db.transaction().execute((trx) => setClientPermissions(trx, operator, { id, permissions: [read, write] }))
      }
      await Promise.all([
        update(database, { id: api, permissions: [{ permission: 'models:read' }] }),
        ...[writer, reader].map((id) =>
          db.transaction().execute((trx) => rotateClientSecret(trx, operator, { id, overlap_seconds: 0 })),
        ),
      ])
    }
    expect((await getResource(db, api)).permissions).toHaveLength(1)
  })
})
