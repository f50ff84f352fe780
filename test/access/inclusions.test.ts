import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { sql } from 'kysely'
import { describe, expect, it } from 'vitest'
import {
  assignRole,
  createRole,
  deleteRole,
  excludeRole,
  getRole,
  grantPermission,
  includeRole,
  putRole,
  revokePermission,
} from '../../src/access/roles.ts'
import type { Database, Trx } from '../../src/database/database.ts'
import { findUserAccount } from '../../src/oauth/account.ts'
import { updateResource } from '../../src/oauth/resources.ts'
import { emptiedEachTime, eachDatabase } from '../support/databases.ts'
import { api, inTransaction, makeApiAndPeople, operator, read, write } from './world.ts'

/** Two people, nobody with a role; and `viewer`, who may read. */
async function makeWorld(database: Database): Promise<void> {
  await inTransaction(database, async (trx) => {
    await makeApiAndPeople(trx)
    await createRole(trx, operator, { name: 'viewer', permissions: [read] })
  })
}

const versionOf = async ({ db }: Database, id: string) =>
  (await db.selectFrom('users').select('token_version').where('id', '=', id).executeTakeFirstOrThrow()).token_version
const allowed = ({ permissions }: { readonly permissions: ReadonlyMap<string, ReadonlySet<string>> }) => [
  ...(permissions.get(api) ?? []),
]

/** What roles reach, as it stands and as it would be found by walking. */
async function reachOf({ db }: Database) {
  const kept = await sql<{ pair: string }>`SELECT role || ' > ' || reached AS pair FROM role_reach`.execute(db)
  const walked = await sql<{ pair: string }>`
    WITH RECURSIVE reach (role, reached) AS (
      SELECT name, name FROM roles
      UNION SELECT reach.role, i.included FROM reach JOIN role_inclusions i ON i.role = reach.reached
    ) SELECT role || ' > ' || reached AS pair FROM reach`.execute(db)
  const sorted = (rows: readonly { pair: string }[]) => rows.map(({ pair }) => pair).sort()
  return { kept: sorted(kept.rows), walked: sorted(walked.rows) }
}

/** The same numbers in every run (mulberry32). */
function randomFrom(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) % below
  }
}

eachDatabase((openNew) => {
  const open = emptiedEachTime(openNew)
  describe('what roles include', () => {
    it('is what one would find by walking, after any changes, and holds no circle', async () => {
      const database = await open()
      const random = randomFrom(17)
      const names = Array.from({ length: 8 }, (_, i) => `role-${i}`)
      const any = () => names[random(names.length)] ?? ''
      const counts = { done: 0, refused: 0 }
      for (const [i, name] of [...names.entries()].toReversed()) {
        await inTransaction(database, (trx) => createRole(trx, operator, { name, includes: names.slice(i + 1, i + 3) }))
      }
      for (let step = 0; step < 80; step += 1) {
        // Early ones mostly include later ones, so that most changes are none that would close a circle.
        const place = random(names.length)
        const name = names[place] ?? ''
        const includes = Array.from({ length: random(3) }, () => names[place + 1 + random(4)] ?? any())
        const put = (trx: Trx) => putRole(trx, operator, { name, includes })
        const change = [
          put,
          put,
          put,
          put,
          (trx: Trx) => includeRole(trx, operator, { role: name, included: any() }),
          (trx: Trx) => excludeRole(trx, operator, { role: name, included: any() }),
          (trx: Trx) => deleteRole(trx, operator, { name }),
        ][random(7)]
        try {
          await inTransaction(database, async (trx) => change?.(trx))
          counts.done += 1
        } catch (error) {
          expect(error).toMatchObject({
            code: expect.stringMatching(/^(CONFLICT|VALIDATION_ERROR|RESOURCE_NOT_FOUND)$/),
          })
          counts.refused += 1
        }
        const { kept, walked } = await reachOf(database)
        expect({ step, kept }).toEqual({ step, kept: walked })
        const pairs = new Set(walked)
        const circles = walked.filter((pair) => {
          const [role = '', reached = ''] = pair.split(' > ')
          return role !== reached && pairs.has(`${reached} > ${role}`)
        })
        expect(circles).toEqual([])
      }
      expect(counts.done).toBeGreaterThan(30)
      expect(counts.refused).toBeGreaterThan(10)
    })

    it('is nothing for the roles of before there were any: each reaches itself, and goes on allowing what it did', async () => {
      const database = await open()
      await makeWorld(database)
      await inTransaction(database, (trx) => assignRole(trx, operator, { user_id: 'usr_1', role: 'viewer' }))
      const migration = readFileSync(join(import.meta.dirname, '../../migrations/0011-role-inclusions.sql'), 'utf8')
      await inTransaction(database, async (trx) => {
        await sql`DROP TABLE role_inclusions, role_reach`.execute(trx)
        for (const statement of migration.split(/;\s*\n/)) {
          if (statement.replaceAll(/^--.*$/gm, '').trim() !== '') await sql.raw(statement).execute(trx)
        }
      })
      expect(await getRole(database.db, 'viewer')).toMatchObject({ includes: [], effective_permissions: [read] })
      const account = await findUserAccount(database.db, 'usr_1')
      expect(account?.roles).toEqual(['viewer'])
      expect(account && allowed(account)).toEqual(['models:read'])
    })

    it('everybody has, and loses, of what the role of everybody includes', async () => {
      const database = await open()
      await makeWorld(database)
      await inTransaction(database, async (trx) => {
        await createRole(trx, operator, { name: 'everyone' })
        expect(await includeRole(trx, operator, { role: 'everyone', included: 'viewer' })).toBe(true)
        expect(await includeRole(trx, operator, { role: 'everyone', included: 'viewer' })).toBe(false)
      })
      const account = await findUserAccount(database.db, 'usr_1')
      // By its name too, which the role of everybody is not told by.
      expect(account?.roles).toEqual(['viewer'])
      expect(account && allowed(account)).toEqual(['models:read'])
      await inTransaction(database, (trx) => revokePermission(trx, operator, { role: 'viewer', ...read }))
      expect([await versionOf(database, 'usr_1'), await versionOf(database, 'usr_2')]).toEqual([2, 2])
      await inTransaction(database, (trx) => excludeRole(trx, operator, { role: 'everyone', included: 'viewer' }))
      expect([await versionOf(database, 'usr_1'), await versionOf(database, 'usr_2')]).toEqual([3, 3])
    })

    it('ends the tokens of all who lose by a change, and says so in the record', async () => {
      const database = await open()
      await makeWorld(database)
      await inTransaction(database, async (trx) => {
        await createRole(trx, operator, { name: 'editor', includes: ['viewer'] })
        await assignRole(trx, operator, { user_id: 'usr_1', role: 'editor' })
        await grantPermission(trx, operator, { role: 'viewer', ...write })
      })
      expect(await getRole(database.db, 'editor')).toMatchObject({ effective_permissions: [read, write] })
      const exclude = () =>
        inTransaction(database, (trx) => excludeRole(trx, operator, { role: 'editor', included: 'viewer' }))
      expect(await exclude()).toBe(true)
      expect(await exclude()).toBe(false)
      expect([await versionOf(database, 'usr_1'), await versionOf(database, 'usr_2')]).toEqual([2, 1])
      const revoked = await database.db.selectFrom('revocations').select(['kind', 'subject', 'token_version']).execute()
      expect(revoked).toEqual([{ kind: 'user', subject: 'usr_1', token_version: 2 }])
      const [last] = await database.db
        .selectFrom('audit_events')
        .select(['action', 'target_id', 'details'])
        .orderBy('id', 'desc')
        .limit(1)
        .execute()
      expect(last).toEqual({
        action: 'role.role-excluded',
        target_id: 'editor',
        details: { included: 'viewer', before: { includes: ['viewer'] }, after: { includes: [] }, users: 1 },
      })
    })

    it('loses with an API’s permission what that allowed, in every role that reaches it', async () => {
      const database = await open()
      await makeWorld(database)
      await inTransaction(database, async (trx) => {
        await createRole(trx, operator, { name: 'editor', permissions: [write], includes: ['viewer'] })
        await assignRole(trx, operator, { user_id: 'usr_1', role: 'editor' })
        await updateResource(trx, operator, { id: api, permissions: [{ permission: 'models:write' }] })
      })
      expect(await getRole(database.db, 'editor')).toMatchObject({ effective_permissions: [write] })
      const account = await findUserAccount(database.db, 'usr_1')
      expect(account && allowed(account)).toEqual(['models:write'])
    })
  })
})
