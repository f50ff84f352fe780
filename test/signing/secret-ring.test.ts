import { sql } from 'kysely'
import { expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import type { Database } from '../../src/database/database.ts'
import {
  findSecrets,
  openSecretRing,
  rotateSecret,
  secretPurposes,
  type SecretPurpose,
} from '../../src/signing/secret-ring.ts'
import { emptiedEachTime, eachDatabase, onPostgres } from '../support/databases.ts'
import { encryptionUnder, listenTo, openOtherHandle, openTestSecretRing, silent, until } from './rings.ts'

async function rotate({ db }: Pick<Database, 'db'>, purpose: SecretPurpose, acceptOldForSeconds: number, under = '1') {
  const encryption = encryptionUnder(under)
  return db.transaction().execute((trx) => rotateSecret(trx, systemActor, { purpose, acceptOldForSeconds, encryption }))
}

eachDatabase((openNew) => {
  const open = emptiedEachTime(openNew)
  it('refuses a secret that was altered', async () => {
    const database = await open()
    await openTestSecretRing(database)
    await sql`UPDATE secrets SET sealed_value = set_byte(sealed_value, 40, (get_byte(sealed_value, 40) + 1) % 256) WHERE purpose = 'csrf'`.execute(
      database.db,
    )
    await expect(openTestSecretRing(database)).rejects.toThrow(/\(secret:csrf\) does not open/)
  })

  it('refuses a secret that was given another purpose', async () => {
    const database = await open()
    await openTestSecretRing(database)
    await sql`DELETE FROM secrets WHERE purpose = 'csrf'`.execute(database.db)
    await sql`UPDATE secrets SET purpose = 'csrf' WHERE purpose = 'cursors'`.execute(database.db)
    await expect(openTestSecretRing(database)).rejects.toThrow(/\(secret:csrf\) does not open/)
  })

  it('refuses to open without the key-encryption key, and makes no secrets instead', async () => {
    const database = await open()
    await openTestSecretRing(database, { encryption: encryptionUnder('old') })
    await expect(openTestSecretRing(database, { encryption: encryptionUnder('new') })).rejects.toThrow(
      "the key-encryption key 'old', which is not known here",
    )
    expect(await database.db.selectFrom('secrets').select('id').execute()).toHaveLength(secretPurposes.length)
  })

  it('makes one of 32 bytes for each purpose, and finds them again', async () => {
    const database = await open()
    const ring = await openTestSecretRing(database)
    const again = await openTestSecretRing(database)
    const values = secretPurposes.map((purpose) => ring.current(purpose).toString('hex'))
    expect(new Set(values).size).toBe(secretPurposes.length)
    for (const purpose of secretPurposes) {
      expect(ring.current(purpose)).toHaveLength(32)
      expect(again.current(purpose)).toEqual(ring.current(purpose))
      expect(ring.all(purpose)).toEqual([ring.current(purpose)])
    }
  })

  it('makes the secret of a purpose that is new, and leaves the others', async () => {
    const database = await open()
    const csrf = (await openTestSecretRing(database)).current('csrf')
    await sql`DELETE FROM secrets WHERE purpose = 'devices'`.execute(database.db)
    const ring = await openTestSecretRing(database)
    expect(ring.current('csrf')).toEqual(csrf)
    expect(ring.current('devices')).toHaveLength(32)
  })

  it('takes up a replaced secret within a second, and accepts the old one until its time is over', async () => {
    const database = await open()
    const other = await openOtherHandle(database)
    const ring = await openTestSecretRing(database)
    const old = ring.current('cookies')
    let heard = 0
    ring.onChange(() => (heard += 1))
    await rotate(other, 'cookies', 3_600)
    expect(await until(() => !ring.current('cookies').equals(old))).toBeLessThan(1_000)
    expect(ring.all('cookies')).toEqual([ring.current('cookies'), old])
    expect(heard).toBe(1)

    await rotate(other, 'cookies', 3_600)
    await until(() => ring.all('cookies').length === 3)
    expect(ring.all('cookies')[2]).toEqual(old)
    const ended = new Date(Date.now() - 1_000)
    await database.db.updateTable('secrets').set({ expires_at: ended }).where('expires_at', 'is not', null).execute()
    await until(() => ring.all('cookies').length === 1)
    expect(ring.all('cookies')).toEqual([ring.current('cookies')])
  })

  it('accepts an old secret no longer than it was told, without hearing of it again', async () => {
    const database = await open()
    const ring = await openTestSecretRing(database)
    const old = ring.current('csrf')
    await rotate(database, 'csrf', 1)
    await until(() => !ring.current('csrf').equals(old))
    await until(() => ring.all('csrf').length === 1)
    expect(ring.all('csrf')).toEqual([ring.current('csrf')])
  })

  it('accepts nothing but the new secret when it was told to', async () => {
    const database = await open()
    const ring = await openTestSecretRing(database)
    const old = ring.current('throttle')
    const replaced = await rotate(database, 'throttle', 3_600)
    const id = await rotate(database, 'throttle', 0)
    await until(() => !ring.current('throttle').equals(old) && ring.all('throttle').length === 1)
    expect(ring.all('throttle')).toEqual([ring.current('throttle')])
    const audit = await database.db
      .selectFrom('audit_events')
      .select(['action', 'details'])
      .where('target_id', '=', id)
      .execute()
    expect(audit).toEqual([
      {
        action: 'secret.created',
        details: {
          purpose: 'throttle',
          accept_old_for_seconds: 0,
          before: {
            secrets: [
              { secret_id: replaced, expires_at: null },
              { secret_id: expect.any(String) as string, expires_at: expect.any(String) as string },
            ],
          },
          after: { secrets: [{ secret_id: id, expires_at: null }] },
        },
      },
    ])
  })

  it('gives a command the secrets that a server has, and none before there was one', async () => {
    const database = await open()
    const find = (under: string) =>
      findSecrets(database.db, { purpose: 'audit', encryption: () => encryptionUnder(under) })
    expect(await find('1')).toEqual([])
    const ring = await openTestSecretRing(database)
    const old = ring.current('audit')
    await rotate(database, 'audit', 3_600)
    await until(() => ring.all('audit').length === 2)
    expect(await find('1')).toEqual([ring.current('audit'), old])
    await expect(find('2')).rejects.toThrow("the key-encryption key '1', which is not known here")
  })

  it('serves on from memory when somebody deletes a secret', async () => {
    const database = await open()
    const ring = await openTestSecretRing(database)
    const csrf = ring.current('csrf')
    await sql`DELETE FROM secrets WHERE purpose = 'csrf'`.execute(database.db)
    // A later change of another purpose is not taken up either, so wait for what can be seen: nothing.
    await new Promise((resolve) => setTimeout(resolve, 300))
    expect(ring.current('csrf')).toBe(csrf)
  })

  it('can be mended when the key-encryption key was lost', async () => {
    const database = await open()
    await openTestSecretRing(database, { encryption: encryptionUnder('lost') })
    for (const purpose of secretPurposes) await rotate(database, purpose, 0, 'new')
    const ring = await openTestSecretRing(database, { encryption: encryptionUnder('new') })
    for (const purpose of secretPurposes) expect(ring.all(purpose)).toHaveLength(1)
  })
})

onPostgres((open) => {
  it('makes one of each when eight processes start at once', async () => {
    const database = await open()
    const handles = await Promise.all(Array.from({ length: 8 }, () => openOtherHandle(database)))
    const changes = await listenTo(database)
    const rings = await Promise.all(
      handles.map((handle) =>
        openSecretRing({ database: handle, changes, encryption: encryptionUnder('1'), log: silent }),
      ),
    )
    await Promise.all(rings.map((ring) => ring.close()))
    for (const purpose of secretPurposes) {
      expect(new Set(rings.map((ring) => ring.current(purpose).toString('hex'))).size).toBe(1)
    }
    expect(await database.db.selectFrom('secrets').select('id').execute()).toHaveLength(secretPurposes.length)
  })

  it('keeps one current secret when two operators replace it at once', async () => {
    const database = await open()
    const ring = await openTestSecretRing(database)
    await Promise.all([1, 2, 3, 4].map(() => rotate(database, 'cursors', 3_600)))
    await until(() => ring.all('cursors').length === 5)
    const current = await database.db
      .selectFrom('secrets')
      .select('id')
      .where('purpose', '=', 'cursors')
      .where('expires_at', 'is', null)
      .execute()
    expect(current).toHaveLength(1)
  })
})
