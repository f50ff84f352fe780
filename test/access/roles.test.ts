import { describe, expect, it } from 'vitest'
import {
  assignRole,
  createRole,
  deleteRole,
  findRole,
  findRolesOf,
  getRole,
  grantPermission,
  listRoles,
  putRole,
  revokePermission,
  setRolesOf,
  unassignRole,
} from '../../src/access/roles.ts'
import type { Database } from '../../src/database/database.ts'
import { emptiedEachTime, eachDatabase } from '../support/databases.ts'
import { api, inTransaction, makeApiAndPeople, operator, read, write } from './world.ts'

/** Two people; the first is an editor, who may read and write. */
async function makeWorld(database: Database): Promise<void> {
  await inTransaction(database, async (trx) => {
    await makeApiAndPeople(trx)
    await createRole(trx, operator, { name: 'editor', permissions: [read, write] })
    await assignRole(trx, operator, { user_id: 'usr_1', role: 'editor' })
  })
}

async function versionsOf({ db }: Database, id: string) {
  return db
    .selectFrom('users')
    .select(['token_version', 'sign_in_version'])
    .where('id', '=', id)
    .executeTakeFirstOrThrow()
}

const revocationsIn = ({ db }: Database) =>
  db.selectFrom('revocations').select(['kind', 'subject', 'token_version']).orderBy('id').execute()

eachDatabase((openNew) => {
  const open = emptiedEachTime(openNew)
  describe('a role', () => {
    it('is refused under a name that is taken or malformed, or with a permission that does not exist', async () => {
      const database = await open()
      await makeWorld(database)
      const make = (name: string, permissions = [read]) =>
        inTransaction(database, (trx) => createRole(trx, operator, { name, permissions }))
      await expect(make('editor')).rejects.toMatchObject({ code: 'CONFLICT' })
      await expect(make('Editor')).rejects.toMatchObject({ code: 'VALIDATION_ERROR' })
      await expect(make('')).rejects.toMatchObject({ code: 'VALIDATION_ERROR' })
      await expect(make('viewer', [{ resource: api, permission: 'models:fly' }])).rejects.toMatchObject({
        code: 'VALIDATION_ERROR',
      })
      expect((await listRoles(database.db)).map(({ name }) => name)).toEqual(['editor'])
    })

    it('cannot be given to nobody, nor can one be given that is none', async () => {
      const database = await open()
      await makeWorld(database)
      const assign = (user_id: string, role: string) =>
        inTransaction(database, (trx) => assignRole(trx, operator, { user_id, role }))
      await expect(assign('usr_9', 'editor')).rejects.toMatchObject({ code: 'RESOURCE_NOT_FOUND' })
      await expect(assign('usr_1', 'pilot')).rejects.toMatchObject({ code: 'RESOURCE_NOT_FOUND' })
    })

    it('that there is not can neither allow something nor stop allowing it', async () => {
      const database = await open()
      await makeWorld(database)
      for (const change of [grantPermission, revokePermission]) {
        const changed = inTransaction(database, (trx) => change(trx, operator, { role: 'pilot', ...read }))
        await expect(changed).rejects.toMatchObject({ code: 'RESOURCE_NOT_FOUND' })
      }
    })

    it('costs nobody their tokens when it is given or allows more', async () => {
      const database = await open()
      await makeWorld(database)
      await inTransaction(database, async (trx) => {
        await createRole(trx, operator, { name: 'viewer' })
        expect(await grantPermission(trx, operator, { role: 'viewer', ...read })).toBe(true)
        expect(await grantPermission(trx, operator, { role: 'viewer', ...read })).toBe(false)
        expect(await assignRole(trx, operator, { user_id: 'usr_1', role: 'viewer' })).toBe(true)
        expect(await assignRole(trx, operator, { user_id: 'usr_1', role: 'viewer' })).toBe(false)
      })
      expect(await findRolesOf(database.db, 'usr_1')).toEqual(['editor', 'viewer'])
      expect(await getRole(database.db, 'viewer')).toMatchObject({ permissions: [read], users: 1 })
      expect(await versionsOf(database, 'usr_1')).toEqual({ token_version: 1, sign_in_version: 1 })
      expect(await revocationsIn(database)).toEqual([])
    })

    it('ends the tokens, and not the sessions, of the one from whom it is taken', async () => {
      const database = await open()
      await makeWorld(database)
      const take = () =>
        inTransaction(database, (trx) => unassignRole(trx, operator, { user_id: 'usr_1', role: 'editor' }))
      expect(await take()).toBe(true)
      expect(await versionsOf(database, 'usr_1')).toEqual({ token_version: 2, sign_in_version: 1 })
      expect(await revocationsIn(database)).toEqual([{ kind: 'user', subject: 'usr_1', token_version: 2 }])
      expect(await findRolesOf(database.db, 'usr_1')).toEqual([])

      expect(await take()).toBe(false)
      expect(await versionsOf(database, 'usr_1')).toEqual({ token_version: 2, sign_in_version: 1 })
    })

    it('ends the tokens of all who have it, and of nobody else, when it loses a permission', async () => {
      const database = await open()
      await makeWorld(database)
      const lose = () => inTransaction(database, (trx) => revokePermission(trx, operator, { role: 'editor', ...write }))
      expect(await lose()).toBe(true)
      expect((await getRole(database.db, 'editor')).permissions).toEqual([read])
      expect(await versionsOf(database, 'usr_1')).toEqual({ token_version: 2, sign_in_version: 1 })
      expect(await versionsOf(database, 'usr_2')).toEqual({ token_version: 1, sign_in_version: 1 })
      expect(await revocationsIn(database)).toEqual([{ kind: 'user', subject: 'usr_1', token_version: 2 }])

      expect(await lose()).toBe(false)
      expect(await revocationsIn(database)).toHaveLength(1)
    })

    it('that is put with less ends the tokens of all who have it, and with as much or more nobody’s', async () => {
      const database = await open()
      await makeWorld(database)
      const put = (description: string, permissions = [read]) =>
        inTransaction(database, (trx) => putRole(trx, operator, { name: 'editor', description, permissions }))
      await put('Edits', [write, read])
      expect(await revocationsIn(database)).toEqual([])
      await put('Edits')
      expect(await revocationsIn(database)).toEqual([{ kind: 'user', subject: 'usr_1', token_version: 2 }])
      await put('Only looks')
      await put('Edits', [read, write])
      expect(await revocationsIn(database)).toHaveLength(1)
      // One for another is one less.
      await put('Edits', [write])
      expect(await versionsOf(database, 'usr_1')).toEqual({ token_version: 3, sign_in_version: 1 })
      expect(await versionsOf(database, 'usr_2')).toEqual({ token_version: 1, sign_in_version: 1 })
    })

    it('that is not among those that somebody shall have is taken from them, with their tokens', async () => {
      const database = await open()
      await makeWorld(database)
      await inTransaction(database, (trx) => createRole(trx, operator, { name: 'viewer', permissions: [read] }))
      const set = (roles: readonly string[]) =>
        inTransaction(database, (trx) => setRolesOf(trx, operator, { user_id: 'usr_1', roles, check() {} }))
      await set(['editor', 'viewer'])
      expect(await revocationsIn(database)).toEqual([])
      await set(['viewer'])
      expect(await findRolesOf(database.db, 'usr_1')).toEqual(['viewer'])
      expect(await revocationsIn(database)).toEqual([{ kind: 'user', subject: 'usr_1', token_version: 2 }])
    })

    it('is taken from everyone when it is deleted, with their tokens', async () => {
      const database = await open()
      await makeWorld(database)
      await inTransaction(database, (trx) => assignRole(trx, operator, { user_id: 'usr_2', role: 'editor' }))
      await inTransaction(database, (trx) => deleteRole(trx, operator, { name: 'editor' }))
      expect(await findRole(database.db, 'editor')).toBeUndefined()
      expect(await revocationsIn(database)).toEqual([
        { kind: 'user', subject: 'usr_1', token_version: 2 },
        { kind: 'user', subject: 'usr_2', token_version: 2 },
      ])
      const again = inTransaction(database, (trx) => deleteRole(trx, operator, { name: 'editor' }))
      await expect(again).rejects.toMatchObject({ code: 'RESOURCE_NOT_FOUND' })
    })

    it('leaves no trace of a change that is rolled back', async () => {
      const database = await open()
      await makeWorld(database)
      const work = inTransaction(database, async (trx) => {
        await unassignRole(trx, operator, { user_id: 'usr_1', role: 'editor' })
        throw new Error('a crash')
      })
      await expect(work).rejects.toThrow('a crash')
      expect(await versionsOf(database, 'usr_1')).toEqual({ token_version: 1, sign_in_version: 1 })
      expect(await revocationsIn(database)).toEqual([])
      const actions = await database.db.selectFrom('audit_events').select('action').execute()
      expect(actions.map(({ action }) => action)).not.toContain('user.role-unassigned')
    })

    it('records each change with who made it', async () => {
      const database = await open()
      await makeWorld(database)
      await inTransaction(database, async (trx) => {
        await revokePermission(trx, operator, { role: 'editor', ...write })
        await unassignRole(trx, operator, { user_id: 'usr_1', role: 'editor' })
        await deleteRole(trx, operator, { name: 'editor' })
      })
      const events = await database.db
        .selectFrom('audit_events')
        .select(['action', 'actor_id', 'target_id'])
        .orderBy('id')
        .execute()
      expect(events.slice(1)).toEqual([
        { action: 'role.created', actor_id: 'test', target_id: 'editor' },
        { action: 'user.role-assigned', actor_id: 'test', target_id: 'usr_1' },
        { action: 'role.permission-revoked', actor_id: 'test', target_id: 'editor' },
        { action: 'user.role-unassigned', actor_id: 'test', target_id: 'usr_1' },
        { action: 'role.deleted', actor_id: 'test', target_id: 'editor' },
      ])
    })
  })
})
