import { createHash } from 'node:crypto'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs'
import { join } from 'node:path'
import { pino } from 'pino'
import { openDatabase } from '../../src/database/database.ts'
import { migrate } from '../../src/database/migrate.ts'

const root = join(import.meta.dirname, '..', '..')
const cache = join(root, 'node_modules', '.cache', 'latchkey')
const dayMs = 86_400_000

/**
 * The folder of a migrated, empty embedded database, to be copied. Making one takes seconds, so it is kept beside the
 * installed packages under a name that changes with the migrations and with PGlite.
 */
export async function preparePgliteTemplate(): Promise<string> {
  const template = join(cache, `pglite-${fingerprint()}`)
  if (existsSync(template)) return template
  mkdirSync(cache, { recursive: true })
  removeOldTemplates()
  const building = mkdtempSync(join(cache, 'building-'))
  const database = await openDatabase(
    { databaseUrl: undefined, dataDir: building, poolSize: 1, connectTimeoutSeconds: 1, statementTimeoutSeconds: 1 },
    pino({ level: 'silent' }),
  )
  await migrate(database.db)
  await database.close()
  try {
    renameSync(building, template)
  } catch (error) {
    // Another run made the same one meanwhile.
    if (!existsSync(template)) throw error
    rmSync(building, { recursive: true })
  }
  return template
}

/** @param folder a data folder that does not exist yet */
export function copyPgliteTemplate(template: string, folder: string): void {
  cpSync(template, folder, { recursive: true })
  rmSync(join(folder, 'lock'), { force: true })
}

function fingerprint(): string {
  const migrations = join(root, 'migrations')
  const hash = createHash('sha256')
  for (const name of readdirSync(migrations).sort()) hash.update(name).update(readFileSync(join(migrations, name)))
  for (const name of ['database/migrate.ts', 'database/database.ts']) hash.update(readFileSync(join(root, 'src', name)))
  hash.update(readFileSync(join(root, 'node_modules', '@electric-sql', 'pglite', 'package.json')))
  return hash.digest('hex').slice(0, 16)
}

function removeOldTemplates(): void {
  for (const name of readdirSync(cache)) {
    const folder = join(cache, name)
    if (Date.now() - statSync(folder).mtimeMs > dayMs) rmSync(folder, { recursive: true, force: true })
  }
}
