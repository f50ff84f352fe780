/** What the tests of this folder open: encryption under keys of their own, and rings that are closed after the test. */
import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import { onTestFinished } from 'vitest'
import { openChanges, type Changes } from '../../src/database/changes.ts'
import type { Database } from '../../src/database/database.ts'
import { openKeyEncryption, type KeyEncryption } from '../../src/signing/key-encryption.ts'
import { openKeyRing, type KeyRing } from '../../src/signing/key-ring.ts'
import type { KeyState } from '../../src/signing/rotation.ts'
import { openSecretRing, type SecretRing } from '../../src/signing/secret-ring.ts'
import { openLocation, type TestDatabase } from '../support/databases.ts'

export const silent = pino({ level: 'silent' })

export const rotationConfig = { rsaBits: 2048, keyPublishAheadSeconds: 3_600, keyRotationDays: 90 }

/** Encryption under keys that follow from their ids; `<id>!` is another key with the id `<id>`. */
export function encryptionUnder(...names: string[]): KeyEncryption {
  return openKeyEncryption({
    config: {
      isProduction: true,
      keysDir: '/nowhere',
      keyEncryptionKeys: names.map((name) => ({
        id: name.replace('!', ''),
        key: createHash('sha256').update(name).digest(),
      })),
    },
    log: silent,
  })
}

export async function listenTo(database: TestDatabase, handle: Database = database): Promise<Changes> {
  const changes = await openChanges(handle, database.location.databaseUrl, silent)
  onTestFinished(() => changes.close())
  return changes
}

export async function openTestKeyRing(
  database: TestDatabase,
  { encryption = encryptionUnder('1'), handle = database }: { encryption?: KeyEncryption; handle?: Database } = {},
): Promise<KeyRing> {
  const changes = await listenTo(database, handle)
  const ring = await openKeyRing({ database: handle, changes, encryption, config: rotationConfig, log: silent })
  onTestFinished(() => ring.close())
  return ring
}

export async function openTestSecretRing(
  database: TestDatabase,
  { encryption = encryptionUnder('1'), handle = database }: { encryption?: KeyEncryption; handle?: Database } = {},
): Promise<SecretRing> {
  const changes = await listenTo(database, handle)
  const ring = await openSecretRing({ database: handle, changes, encryption, log: silent })
  onTestFinished(() => ring.close())
  return ring
}

/** Another process's handle on the database: on PostgreSQL a pool of its own; PGlite has but one. */
export async function openOtherHandle(database: TestDatabase): Promise<Database> {
  if (database.engine === 'pglite') return database
  const handle = await openLocation(database.location)
  onTestFinished(() => handle.close())
  return handle
}

/** The kids in each state. */
export async function kidsByState({ db }: Pick<Database, 'db'>): Promise<Record<KeyState, string[]>> {
  const rows = await db.selectFrom('signing_keys').select(['kid', 'state']).orderBy('created_at').execute()
  const inState = (state: KeyState) => rows.filter((row) => row.state === state).map(({ kid }) => kid)
  return {
    next: inState('next'),
    current: inState('current'),
    retiring: inState('retiring'),
    retired: inState('retired'),
    revoked: inState('revoked'),
  }
}

/** Waits until `holds`; returns after how many milliseconds it did. */
export async function until(holds: () => boolean, withinMs = 5_000): Promise<number> {
  const startedAt = performance.now()
  while (!holds()) {
    if (performance.now() - startedAt > withinMs) throw new Error(`it did not happen within ${withinMs} ms`)
    await sleep(5)
  }
  return performance.now() - startedAt
}
