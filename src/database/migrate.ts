/**
 * Brings the schema up to date from migrations/*.sql, forward only, each file in name order. Kysely's Migrator holds a
 * lock, so that any number of processes may start at once; a database that is ahead of this program is refused.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { sql, type Kysely } from 'kysely'
import { Migrator, type Migration, type MigrationProvider } from 'kysely/migration'
import type { Db } from './database.ts'

const migrationsFolder = join(import.meta.dirname, '..', '..', 'migrations')

export interface MigrationReport {
  /** the names of the migrations that this call applied */
  readonly applied: readonly string[]
}

/** @throws Error when a migration fails, or when the database was made by a newer Latchkey */
export async function migrate(db: Db): Promise<MigrationReport> {
  const { error, results = [] } = await migrator(db).migrateToLatest()
  if (error !== undefined) throw readable(error)
  return { applied: results.filter(({ status }) => status === 'Success').map(({ migrationName }) => migrationName) }
}

/** The names of migrations that this program knows and the database has not had. */
export async function findPendingMigrations(db: Db): Promise<string[]> {
  const migrations = await migrator(db).getMigrations()
  return migrations.filter(({ executedAt }) => executedAt === undefined).map(({ name }) => name)
}

function migrator(db: Db): Migrator {
  return new Migrator({ db, provider: sqlFiles })
}

const sqlFiles: MigrationProvider = {
  async getMigrations() {
    const names = readdirSync(migrationsFolder).filter((name) => /^\d{4}-[a-z-]+\.sql$/.test(name))
    return Object.fromEntries(
      names.map((name) => [
        name.replace(/\.sql$/, ''),
        migrationOf(readFileSync(join(migrationsFolder, name), 'utf8')),
      ]),
    )
  },
}

function migrationOf(text: string): Migration {
  return {
    async up(db: Kysely<unknown>) {
      for (const statement of splitStatements(text)) await sql.raw(statement).execute(db)
    },
  }
}

/** PGlite takes one statement at a time: split at a line's closing semicolon, except inside a $$ body. */
export function splitStatements(text: string): string[] {
  const statements: string[] = []
  let current: string[] = []
  let insideBody = false
  for (const line of text.split('\n')) {
    if (!insideBody && /^\s*(--.*)?$/.test(line)) continue
    if ((line.match(/\$\$/g)?.length ?? 0) % 2 === 1) insideBody = !insideBody
    current.push(line)
    if (!insideBody && line.trimEnd().endsWith(';')) {
      statements.push(current.join('\n'))
      current = []
    }
  }
  if (current.length > 0) throw new Error(`A migration ends without a semicolon: ${current.join(' ').slice(0, 80)}`)
  return statements
}

function readable(error: unknown): Error {
  const message = error instanceof Error ? error.message : String(error)
  if (message.includes('corrupted migrations')) {
    return new Error(
      'This database was made by a newer version of Latchkey than this one. Start that version, or restore a backup made before the upgrade.',
      { cause: error },
    )
  }
  return new Error(`The database could not be brought up to date: ${message}`, { cause: error })
}
