/**
 * Statements are prepared on PostgreSQL, which must never be seen but in the time that they take: not after a pooler
 * dropped one, not after a column changed its type.
 */
import { sql } from 'kysely'
import { expect, it } from 'vitest'
import { isDatabaseUnavailable, type Db } from '../../src/database/database.ts'
import { onPostgres } from '../support/databases.ts'

const nameOf = async (db: Db, name: string) => {
  const { rows } = await sql<{ name: string }>`SELECT name FROM roles WHERE name = ${name}`.execute(db)
  return rows[0]?.name
}
const findPrepared = async (db: Db) => {
  const { rows } = await sql<{ statement: string }>`SELECT statement FROM pg_prepared_statements`.execute(db)
  return rows.map(({ statement }) => statement)
}

onPostgres((open) => {
  it('fails once, in a way that may be tried again, when a pooler has dropped a statement, and then goes on', async () => {
    const { db } = await open()
    await db.insertInto('roles').values({ name: 'reader' }).execute()
    await db.connection().execute(async (connection) => {
      expect(await nameOf(connection, 'reader')).toBe('reader')
      await sql`DEALLOCATE ALL`.execute(connection)
      const failure: unknown = await nameOf(connection, 'reader').catch((error: unknown) => error)
      expect(failure).toMatchObject({ code: '26000' })
      expect(isDatabaseUnavailable(failure)).toBe(true)
      expect(await nameOf(connection, 'reader')).toBe('reader')
      expect(await findPrepared(connection)).toEqual([])
    })
  })

  it('fails once, in a way that may be tried again, when a column has changed its type, and then goes on', async () => {
    const { db } = await open()
    await sql`CREATE TABLE things (name text)`.execute(db)
    await sql`INSERT INTO things VALUES ('one')`.execute(db)
    const find = (connection: Db) =>
      sql<{ name: string }>`SELECT name FROM things WHERE name = ${'one'}`.execute(connection)
    await db.connection().execute(async (connection) => {
      await find(connection)
      await sql`ALTER TABLE things ALTER COLUMN name TYPE varchar(20)`.execute(connection)
      const failure: unknown = await find(connection).catch((error: unknown) => error)
      expect(isDatabaseUnavailable(failure)).toBe(true)
      expect((await find(connection)).rows).toEqual([{ name: 'one' }])
    })
  })

  it('does not prepare what takes its columns from the table, so that a migration beside it is not noticed', async () => {
    const { db } = await open()
    await db.connection().execute(async (connection) => {
      const find = () => connection.selectFrom('roles').selectAll().where('name', '=', 'reader').execute()
      await find()
      await sql`ALTER TABLE roles ADD COLUMN colour text`.execute(connection)
      expect(await find()).toEqual([])
      expect(await findPrepared(connection)).toEqual([])
    })
  })

  it('prepares a statement once for each connection, and finds by the values of each use', async () => {
    const { db } = await open()
    await db
      .insertInto('roles')
      .values([{ name: 'reader' }, { name: 'writer' }])
      .execute()
    await db.connection().execute(async (connection) => {
      expect(await nameOf(connection, 'reader')).toBe('reader')
      expect(await nameOf(connection, 'writer')).toBe('writer')
      expect(await nameOf(connection, 'nobody')).toBeUndefined()
      const ours = (await findPrepared(connection)).filter((statement) =>
        statement.startsWith('SELECT name FROM roles'),
      )
      expect(ours).toEqual(['SELECT name FROM roles WHERE name = $1'])
    })
  })

  it('keeps a bounded number of statements ready, however many there are', async () => {
    const { db } = await open()
    await db.connection().execute(async (connection) => {
      for (let i = 0; i < 300; i += 1) {
        const { rows } = await sql<{ n: number }>`SELECT ${i}::integer + ${sql.raw(String(i))} AS n`.execute(connection)
        expect(rows).toEqual([{ n: 2 * i }])
      }
      expect((await findPrepared(connection)).length).toBeLessThanOrEqual(200)
    })
  })
})
