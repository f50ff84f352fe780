import { randomBytes } from 'node:crypto'
import { expect, inject, it, onTestFinished } from 'vitest'
import { findPendingMigrations, migrate } from '../../src/database/migrate.ts'
import { onPostgres, openLocation, type DatabaseLocation } from '../support/databases.ts'
import { runStatement, withDatabase } from '../support/postgres.ts'

onPostgres(() => {
  it('migrations that several processes begin at once are applied once, and leave nothing pending', async () => {
    const name = `latchkey_empty_${randomBytes(6).toString('hex')}`
    const postgresUrl = inject('postgresUrl')
    await runStatement(postgresUrl, `CREATE DATABASE ${name}`)
    const remove = () => runStatement(postgresUrl, `DROP DATABASE ${name} WITH (FORCE)`)
    onTestFinished(remove)
    const location: DatabaseLocation = {
      engine: 'postgres',
      databaseUrl: withDatabase(postgresUrl, name),
      dataDir: '',
      remove,
    }
    const databases = await Promise.all([1, 2, 3, 4].map(() => openLocation(location)))
    try {
      const [{ db } = { db: undefined }] = databases
      if (db === undefined) throw new Error('no database was opened')
      const pending = await findPendingMigrations(db)
      expect(pending.length).toBeGreaterThan(3)
      const reports = await Promise.all(databases.map((database) => migrate(database.db)))
      expect(reports.flatMap(({ applied }) => applied).toSorted()).toEqual(pending.toSorted())
      expect(await findPendingMigrations(db)).toEqual([])
    } finally {
      for (const database of databases) await database.close()
    }
  })
})
