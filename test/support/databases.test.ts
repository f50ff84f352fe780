import { access } from 'node:fs/promises'
import { expect, it } from 'vitest'
import { findPendingMigrations } from '../../src/database/migrate.ts'
import { eachDatabase, type DatabaseLocation } from './databases.ts'
import { runStatement } from './postgres.ts'

async function useAgain(location: DatabaseLocation): Promise<void> {
  if (location.engine === 'pglite') return access(location.dataDir)
  await runStatement(location.databaseUrl ?? '', 'SELECT 1')
}

eachDatabase((open, engine) => {
  let last: DatabaseLocation | undefined

  it('gives a migrated database', async () => {
    const database = await open()
    last = database.location
    expect(database.engine).toBe(engine)
    expect(await findPendingMigrations(database.db)).toEqual([])
    await database.db.insertInto('roles').values({ name: 'left-over' }).execute()
  })

  it('gives the next test another one, and has removed the last', async () => {
    const { db } = await open()
    expect(await db.selectFrom('roles').selectAll().where('name', '=', 'left-over').execute()).toEqual([])
    if (last === undefined) throw new Error('the test before did not run')
    await expect(useAgain(last)).rejects.toThrow(/does not exist|ENOENT/)
  })
})
