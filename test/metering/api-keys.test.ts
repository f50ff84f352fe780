import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import type { Actor } from '../../src/audit/audit.ts'
import type { Trx } from '../../src/database/database.ts'
import { sweep } from '../../src/database/sweep.ts'
import { createApiKey, findApiKey, findApiKeyByValue, listApiKeys, revokeApiKey } from '../../src/metering/api-keys.ts'
import { putPlan } from '../../src/metering/plans.ts'
import { createClient, disableClient, enableClient } from '../../src/oauth/clients.ts'
import { eachDatabase, type TestDatabase } from '../support/databases.ts'

const actor: Actor = { type: 'operator', id: 'ada' }

eachDatabase((open) => {
  let database: TestDatabase
  const write = <T>(change: (trx: Trx) => Promise<T>) => database.db.transaction().execute(change)
  beforeAll(async () => {
    database = await open()
    await write((trx) => createClient(trx, actor, { type: 'machine', id: 'owner', name: 'Owner' }))
  })
  const make = (input: Partial<Parameters<typeof createApiKey>[2]> = {}) =>
    write((trx) => createApiKey(trx, actor, { client_id: 'owner', name: 'Nightly export', ...input }))

  describe('an API key', () => {
    it('is not made for nobody, on no such plan, or for a time that has passed', async () => {
      await expect(make({ client_id: 'nobody' })).rejects.toMatchObject({
        code: 'VALIDATION_ERROR',
        details: [{ field: 'client_id', constraint: 'exists' }],
      })
      const refused = { code: 'VALIDATION_ERROR' }
      await expect(make({ plan: 'tin' })).rejects.toMatchObject({ ...refused, details: [{ field: 'plan' }] })
      for (const expires_at of ['2020-01-01T00:00:00Z', 'tomorrow', '0000-01-01T00:00:00Z']) {
        await expect(make({ expires_at })).rejects.toMatchObject({ ...refused, details: [{ field: 'expires_at' }] })
      }
      await expect(make({ name: ' ' })).rejects.toMatchObject({ ...refused, details: [{ field: 'name' }] })
      expect(await listApiKeys(database.db)).toEqual([])
    })

    it('is shown once: what is kept does not give it away', async () => {
      await write((trx) => putPlan(trx, actor, { name: 'gold' }))
      const { api_key, key } = await make({ plan: 'gold', expires_at: '2100-01-01T19:38:00+20:38' })
      expect(key).toMatch(/^lk_key_[\w-]{43}$/)
      expect(api_key).toEqual({
        api_key_id: expect.stringMatching(/^key_[\w-]{16}$/) as string,
        client_id: 'owner',
        name: 'Nightly export',
        prefix: key.slice(0, 12),
        plan: 'gold',
        created_at: expect.any(Date) as Date,
        last_used_at: null,
        expires_at: new Date('2099-12-31T23:00:00Z'),
      })
      expect(await findApiKey(database.db, api_key.api_key_id)).toEqual(api_key)
      expect(await listApiKeys(database.db, 'owner')).toContainEqual(api_key)
      expect(await listApiKeys(database.db, 'demo')).toEqual([])
      const { rows } = await sql<{ text: string }>`
        SELECT row_to_json(k)::text AS text FROM api_keys k
        UNION ALL SELECT row_to_json(a)::text FROM audit_events a`.execute(database.db)
      expect(rows.filter(({ text }) => text.includes(key.slice(12)))).toEqual([])
      const audit = await database.db
        .selectFrom('audit_events')
        .select(['action', 'details'])
        .where('target_id', '=', api_key.api_key_id)
        .execute()
      expect(audit).toEqual([
        {
          action: 'api-key.created',
          details: {
            after: {
              client_id: 'owner',
              name: 'Nightly export',
              plan: 'gold',
              expires_at: '2099-12-31T23:00:00.000Z',
            },
          },
        },
      ])
    })

    it('is unknown when it is wrong, too long, ended, revoked, or of a client that is disabled', async () => {
      const { api_key, key } = await make()
      const find = (presented: string) => findApiKeyByValue(database.db, presented)
      const last = key.endsWith('A') ? 'B' : 'A'
      for (const wrong of [
        '',
        'x',
        key.slice(0, -1),
        key + 'A',
        key.slice(0, -1) + last,
        'x'.repeat(1_000_000),
        `${key}\0`,
        ` ${key}`,
      ]) {
        expect(await find(wrong)).toBeUndefined()
      }
      expect(await find(key)).toMatchObject({ api_key_id: api_key.api_key_id, client_id: 'owner', plan: null })

      await write((trx) => disableClient(trx, actor, { id: 'owner' }))
      expect(await find(key)).toBeUndefined()
      await write((trx) => enableClient(trx, actor, { id: 'owner' }))
      expect(await find(key)).toBeDefined()

      await sql`UPDATE api_keys SET expires_at = now() - interval '1 second' WHERE id = ${api_key.api_key_id}`.execute(
        database.db,
      )
      expect(await find(key)).toBeUndefined()
      await sweep(database.db)
      expect(await findApiKey(database.db, api_key.api_key_id)).toBeUndefined()

      const revoked = await make()
      const revoke = () => write((trx) => revokeApiKey(trx, actor, { api_key_id: revoked.api_key.api_key_id }))
      await revoke()
      expect(await find(revoked.key)).toBeUndefined()
      await expect(revoke()).rejects.toMatchObject({ code: 'RESOURCE_NOT_FOUND' })
    })

    it('remembers when it was used, to the minute', async () => {
      const { api_key, key } = await make()
      const lastUsed = async () => (await findApiKey(database.db, api_key.api_key_id))?.last_used_at
      await Promise.all(Array.from({ length: 5 }, () => findApiKeyByValue(database.db, key)))
      const first = await lastUsed()
      expect(first).toBeInstanceOf(Date)
      await findApiKeyByValue(database.db, key)
      expect(await lastUsed()).toEqual(first)
      await sql`UPDATE api_keys SET last_used_at = now() - interval '61 seconds' WHERE id = ${api_key.api_key_id}`.execute(
        database.db,
      )
      await findApiKeyByValue(database.db, key)
      expect((await lastUsed())?.getTime()).toBeGreaterThanOrEqual(first?.getTime() ?? Infinity)
    })

    it('goes with its client', async () => {
      await write((trx) => createClient(trx, actor, { type: 'machine', id: 'gone', name: 'Gone' }))
      const { key } = await make({ client_id: 'gone' })
      await database.db.deleteFrom('clients').where('id', '=', 'gone').execute()
      expect(await findApiKeyByValue(database.db, key)).toBeUndefined()
    })
  })
})
