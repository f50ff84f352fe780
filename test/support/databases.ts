/**
 * Fresh migrated databases for tests, on both engines: PGlite from a copied folder, PostgreSQL from a template
 * database. Each is removed after the test that opened it.
 */
import { randomBytes } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { sql } from 'kysely'
import { pino } from 'pino'
import { afterAll, beforeAll, describe, inject, onTestFinished, TestRunner } from 'vitest'
import { openDatabase, type Database, type DatabaseSettings } from '../../src/database/database.ts'
import { copyPgliteTemplate } from './pglite-template.ts'
import { runStatement, withDatabase } from './postgres.ts'

export type Engine = Database['engine']

/** Where a fresh migrated database is: what a server process or `openDatabase` needs to open it. */
export interface DatabaseLocation {
  readonly engine: Engine
  /** undefined on PGlite */
  readonly databaseUrl: string | undefined
  /** holds the embedded database on PGlite; on PostgreSQL a folder that does not exist yet */
  readonly dataDir: string
  remove(): Promise<void>
}

/** An open database that is closed and removed after the test. */
export interface TestDatabase extends Database {
  readonly location: DatabaseLocation
}

/**
 * Describes the tests inside once for each engine. A database opened in a test, or in a `beforeEach`, is gone after that
 * test; one opened in a `beforeAll` after the last.
 *
 * @example
 * eachDatabase((open) => {
 *   it('keeps what was written', async () => {
 *     const { db } = await open()
 *   })
 * })
 */
export function eachDatabase(define: (open: () => Promise<TestDatabase>, engine: Engine) => void): void {
  describe('on pglite', () => {
    define(openerOf('pglite'), 'pglite')
  })
  onPostgres((open) => define(open, 'postgres'))
}

/** The same for what needs more than one connection, such as races: PostgreSQL alone. */
export function onPostgres(define: (open: () => Promise<TestDatabase>) => void): void {
  describe.runIf(hasPostgres())('on postgres', () => {
    define(openerOf('postgres'))
  })
}

/**
 * One database for all tests of a group, which each of them finds as if it had just been made: emptied, but for what
 * migrations put in. Making one takes half a second, and this a few milliseconds. Numbers of rows go on, and handles that
 * a test leaves open see what comes after it.
 *
 * @example
 * eachDatabase((openNew) => {
 *   const open = emptiedEachTime(openNew)
 *   it('finds nobody', async () => {
 *     const { db } = await open()
 *   })
 * })
 */
export function emptiedEachTime(openNew: () => Promise<TestDatabase>): () => Promise<TestDatabase> {
  let database: TestDatabase
  let tables: readonly string[]
  const kept = new Map<string, string>()
  beforeAll(async () => {
    database = await openNew()
    const { rows } = await sql<{ name: string }>`
      SELECT tablename AS name FROM pg_tables WHERE schemaname = current_schema()`.execute(database.db)
    tables = rows.map(({ name }) => name)
    for (const name of tables) {
      const { rows: found } = await sql<{ all: string | null }>`
        SELECT jsonb_agg(to_jsonb(t))::text AS all FROM ${sql.table(name)} AS t`.execute(database.db)
      if (found[0]?.all != null) kept.set(name, found[0].all)
    }
  })
  return async () => {
    await database.db.transaction().execute(async (trx) => {
      // Without triggers and foreign keys: in any order, and also what is only ever added to.
      await sql`SET LOCAL session_replication_role = replica`.execute(trx)
      for (const name of tables) await sql`DELETE FROM ${sql.table(name)}`.execute(trx)
      for (const [name, rows] of kept) {
        await sql`
          INSERT INTO ${sql.table(name)} OVERRIDING SYSTEM VALUE
          SELECT * FROM jsonb_populate_recordset(NULL::${sql.table(name)}, ${rows}::jsonb)`.execute(trx)
      }
    })
    return database
  }
}

/** Whether this run has a PostgreSQL. The run's end says so when it has none. */
export function hasPostgres(): boolean {
  return inject('postgresUrl') !== ''
}

/** Makes a database without opening it, for processes that do so themselves; removed like those of {@link eachDatabase}. */
export async function createDatabase(engine: Engine): Promise<DatabaseLocation> {
  const location = await makeDatabase(engine)
  if (TestRunner.getCurrentTest() === undefined) afterAll(() => location.remove())
  else onTestFinished(() => location.remove())
  return location
}

/** Opens another handle on a database: on PostgreSQL as a second process would. The caller closes it. */
export function openLocation(location: DatabaseLocation, settings: Partial<DatabaseSettings> = {}): Promise<Database> {
  return openDatabase(
    {
      databaseUrl: location.databaseUrl,
      dataDir: location.dataDir,
      poolSize: 10,
      connectTimeoutSeconds: 10,
      statementTimeoutSeconds: 20,
      ...settings,
    },
    pino({ level: 'silent' }),
  )
}

/** Takes all clients of a PostgreSQL off their usage plans, for tests that ask faster than any plan allows. */
export async function liftPlans({ databaseUrl }: DatabaseLocation): Promise<void> {
  if (databaseUrl === undefined) throw new Error('an embedded database is open in its server')
  await runStatement(databaseUrl, 'UPDATE clients SET plan = NULL')
}

function openerOf(engine: Engine): () => Promise<TestDatabase> {
  const leftOpen = new Set<() => Promise<void>>()
  afterAll(async () => {
    for (const close of leftOpen) await close()
  })
  return async () => {
    const location = await makeDatabase(engine)
    const database = await openLocation(location)
    const close = async () => {
      leftOpen.delete(close)
      await database.close()
      await location.remove()
    }
    leftOpen.add(close)
    if (TestRunner.getCurrentTest() !== undefined) onTestFinished(close)
    return { ...database, location }
  }
}

async function makeDatabase(engine: Engine): Promise<DatabaseLocation> {
  const name = `latchkey_${randomBytes(6).toString('hex')}`
  const dataDir = join(inject('temporaryFolder'), name)
  const removeFolder = () => rm(dataDir, { recursive: true, force: true })
  if (engine === 'pglite') {
    copyPgliteTemplate(inject('pgliteTemplate'), dataDir)
    return { engine, databaseUrl: undefined, dataDir, remove: removeFolder }
  }
  const server = inject('postgresUrl')
  await runStatement(server, `CREATE DATABASE ${name} TEMPLATE ${inject('postgresTemplate')}`)
  return {
    engine,
    databaseUrl: withDatabase(server, name),
    dataDir,
    async remove() {
      await runStatement(server, `DROP DATABASE IF EXISTS ${name} WITH (FORCE)`)
      await removeFolder()
    },
  }
}
