import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import { accountClientId, docsClientId } from '../../src/access/rights.ts'
import type { Db } from '../../src/database/database.ts'
import { createApiKey } from '../../src/metering/api-keys.ts'
import { createClient, deleteClient, getClient } from '../../src/oauth/clients.ts'
import { ensureOwnEntries } from '../../src/oauth/own-entries.ts'
import { systemActor } from '../../src/audit/audit.ts'
import { eachDatabase, onPostgres } from '../support/databases.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { ask, signInAt, userinfo } from '../support/relying-party.ts'

const ids = [accountClientId, docsClientId]
const attacker = 'https://attacker.example/callback'

/** All of a client that anybody sees or that decides anything. */
async function read(db: Db, id: string) {
  const { created_at: _c, updated_at: _u, row_version: _r, token_version: _t, ...client } = await getClient(db, id)
  return client
}

/** What the record says of our clients from a row on. */
async function recordAfter(db: Db, last: string) {
  const { rows } = await sql<{ id: string; what: string }>`
    SELECT id::text, actor_type || ' ' || actor_id || ' ' || action || ' ' || target_id AS what FROM audit_events
    WHERE id > ${last}::bigint AND target_type = 'client' ORDER BY id`.execute(db)
  return rows.map(({ what }) => what)
}

async function lastOfRecord(db: Db): Promise<string> {
  const { rows } = await sql<{ last: string }>`SELECT max(id)::text AS last FROM audit_events`.execute(db)
  return rows[0]?.last ?? '0'
}

const madeAnew = (id: string) => ['client.deleted', 'client.created'].map((action) => `system latchkey ${action} ${id}`)

/** As a program of before could, or somebody at the database. */
const changes: readonly (readonly [what: string, change: (db: Db, id: string) => Promise<unknown>])[] = [
  [
    'where codes are sent',
    (db, id) =>
      sql`UPDATE clients SET redirect_uris = redirect_uris || ${JSON.stringify([attacker])}::jsonb WHERE id = ${id}`.execute(
        db,
      ),
  ],
  ['whether it is shut out', (db, id) => sql`UPDATE clients SET status = 'disabled' WHERE id = ${id}`.execute(db)],
  [
    'whether people are asked',
    (db, id) => sql`UPDATE clients SET first_party = NOT first_party WHERE id = ${id}`.execute(db),
  ],
  [
    'how it proves who it is',
    (db, id) => sql`UPDATE clients SET token_endpoint_auth_method = 'client_secret_basic' WHERE id = ${id}`.execute(db),
  ],
  [
    'what it may do',
    async (db, id) => {
      await sql`DELETE FROM client_permissions WHERE client_id = ${id}`.execute(db)
      await sql`
        INSERT INTO client_permissions (client_id, resource, permission)
        SELECT ${id}, resource, permission FROM permissions WHERE permission LIKE 'models:%'`.execute(db)
    },
  ],
  [
    'how it gets tokens',
    (db, id) =>
      sql`UPDATE clients SET grant_types = '["authorization_code", "refresh_token"]' WHERE id = ${id}`.execute(db),
  ],
  [
    'who hears of sign-outs',
    (db, id) => sql`UPDATE clients SET backchannel_logout_uri = ${attacker} WHERE id = ${id}`.execute(db),
  ],
  [
    'how often it may ask',
    async (db, id) => {
      await sql`INSERT INTO usage_plans (name) VALUES ('Zero') ON CONFLICT DO NOTHING`.execute(db)
      await sql`UPDATE clients SET plan = 'Zero' WHERE id = ${id}`.execute(db)
    },
  ],
]

eachDatabase((_open, engine) => {
  let provider: TestProvider
  let db: Db
  beforeAll(async () => {
    provider = await openProvider(engine)
    ;({ db } = provider.database)
  })
  const start = () => ensureOwnEntries(db, provider.issuer)

  describe('a client of the provider itself', () => {
    it.each(changes)('is mended at a start when somebody has changed %s', async (_what, change) => {
      for (const id of ids) {
        const before = await read(db, id)
        const last = await lastOfRecord(db)
        await change(db, id)
        expect(await read(db, id)).not.toEqual(before)
        await start()
        expect(await read(db, id)).toEqual(before)
        expect(await recordAfter(db, last)).toEqual(madeAnew(id))
      }
    })

    it('is left alone at every other start: no row of the record, no new version', async () => {
      const versions = () =>
        db.selectFrom('clients').select(['id', 'row_version', 'updated_at']).orderBy('id').execute()
      const [before, last] = [await versions(), await lastOfRecord(db)]
      await start()
      await start()
      expect([await versions(), await lastOfRecord(db)]).toEqual([before, last])
    })

    it('is made of another that took its name meanwhile, of which nothing stays', async () => {
      const before = await read(db, accountClientId)
      await db.transaction().execute(async (trx) => {
        await deleteClient(trx, systemActor, { id: accountClientId })
        const input = { id: accountClientId, type: 'machine', name: 'Another', first_party: true } as const
        await createClient(trx, systemActor, input)
        await createApiKey(trx, systemActor, { client_id: accountClientId, name: 'Another’s' })
      })
      await start()
      expect(await read(db, accountClientId)).toEqual(before)
      expect(await db.selectFrom('api_keys').selectAll().where('client_id', '=', accountClientId).execute()).toEqual([])
    })

    it('sends codes to the provider alone again, and what came by the change is dead', async () => {
      await db
        .updateTable('clients')
        .set({ redirect_uris: JSON.stringify([attacker]) })
        .where('id', '=', accountClientId)
        .execute()
      const client = { client_id: accountClientId, redirect_uri: attacker }
      const { access_token: token } = (await signInAt(provider, client)).body
      expect((await userinfo(provider, token)).status).toBe(200)
      await start()
      expect((await userinfo(provider, token)).status).toBe(401)
      const answer = await fetch(ask(provider, client).url, { redirect: 'manual' })
      expect([answer.status, answer.headers.get('location')]).toEqual([400, null])
    })
  })
})

onPostgres(() => {
  it('many processes that start at once mend it once', async () => {
    const provider = await openProvider('postgres')
    const { db } = provider.database
    const before = await read(db, accountClientId)
    const last = await lastOfRecord(db)
    await sql`UPDATE clients SET status = 'disabled' WHERE id = ${accountClientId}`.execute(db)
    await Promise.all(Array.from({ length: 8 }, () => ensureOwnEntries(db, provider.issuer)))
    expect(await recordAfter(db, last)).toEqual(madeAnew(accountClientId))
    expect(await read(db, accountClientId)).toEqual(before)
  })
})
