import { execFile } from 'node:child_process'
import { chmodSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { pino } from 'pino'
import { describe, expect, it, onTestFinished } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import { KeyEncryptionError, openKeyEncryption, reseal, sealedUnder } from '../../src/signing/key-encryption.ts'
import { secretPurposes } from '../../src/signing/secret-ring.ts'
import { eachDatabase } from '../support/databases.ts'
import { encryptionUnder, openTestKeyRing, openTestSecretRing, silent } from './rings.ts'

const run = promisify(execFile)
const row = { purpose: 'signing-key', id: 'a' }

function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'latchkey-keys-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  return folder
}

const developmentIn = (keysDir: string) => ({ isProduction: false, keyEncryptionKeys: undefined, keysDir })

describe('sealing', () => {
  it('refuses a value that was altered in any one bit', () => {
    const encryption = encryptionUnder('1')
    const sealed = encryption.seal(row, Buffer.from('a private key'))
    for (let bit = 0; bit < sealed.length * 8; bit += 1) {
      const altered = Buffer.from(sealed)
      altered[bit >> 3] = (altered[bit >> 3] ?? 0) ^ (1 << (bit & 7))
      expect(() => encryption.open(row, altered), `bit ${bit}`).toThrow(KeyEncryptionError)
    }
  })

  it('refuses a value that was cut short anywhere', () => {
    const encryption = encryptionUnder('1')
    const sealed = encryption.seal(row, Buffer.from('a private key'))
    for (let length = 0; length < sealed.length; length += 1) {
      expect(() => encryption.open(row, sealed.subarray(0, length)), `${length} bytes`).toThrow(KeyEncryptionError)
    }
  })

  it('refuses a value that was moved to another row, or is used for another purpose', () => {
    const encryption = encryptionUnder('1')
    const sealed = encryption.seal(row, Buffer.from('a private key'))
    expect(() => encryption.open({ ...row, id: 'b' }, sealed)).toThrow("The row 'b' (signing-key) does not open")
    expect(() => encryption.open({ ...row, purpose: 'secret:csrf' }, sealed)).toThrow(KeyEncryptionError)
  })

  it('refuses a value under a key that it does not have, names that key and says where it belongs', () => {
    const sealed = encryptionUnder('old').seal(row, Buffer.from('a private key'))
    expect(() => encryptionUnder('new', 'newer').open(row, sealed)).toThrow(
      /under the key-encryption key 'old', which is not known here \(known: 'new', 'newer'\)\. Add it to LATCHKEY_KEY_ENCRYPTION_KEY .*'new-id:base64,old:base64'/,
    )
  })

  it('refuses a value under another key of the same id', () => {
    const sealed = encryptionUnder('1').seal(row, Buffer.from('a private key'))
    expect(() => encryptionUnder('1!').open(row, sealed)).toThrow(/key-encryption key '1': either that is not the key/)
  })

  it('opens what it sealed, an empty value and a long one too, and never seals the same twice', () => {
    const encryption = encryptionUnder('1')
    for (const bytes of [Buffer.alloc(0), Buffer.from('a'), Buffer.alloc(100_000, 7)]) {
      const sealed = encryption.seal(row, bytes)
      expect(encryption.open(row, sealed)).toEqual(bytes)
      // as PGlite hands it over
      expect(encryption.open(row, new Uint8Array(sealed))).toEqual(bytes)
      expect(encryption.seal(row, bytes)).not.toEqual(sealed)
    }
    expect(encryption.seal(row, Buffer.from('a private key')).includes('private')).toBe(false)
  })

  it('seals under the first of several keys and opens under all', () => {
    const both = encryptionUnder('new', 'old')
    expect(both.open(row, encryptionUnder('old').seal(row, Buffer.from('x')))).toEqual(Buffer.from('x'))
    expect(encryptionUnder('new').open(row, both.seal(row, Buffer.from('x')))).toEqual(Buffer.from('x'))
    expect(sealedUnder(both.seal(row, Buffer.from('x')))).toBe('new')
  })
})

describe('the key of the keys folder', () => {
  it('is refused in production, and not made', () => {
    const keysDir = temporaryFolder()
    const config = { ...developmentIn(keysDir), isProduction: true }
    expect(() => openKeyEncryption({ config, log: silent })).toThrow(
      /LATCHKEY_KEY_ENCRYPTION_KEY .* is required in production/,
    )
    writeFileSync(join(keysDir, 'development.key'), `development-1:${Buffer.alloc(32, 1).toString('base64')}\n`)
    expect(() => openKeyEncryption({ config, log: silent })).toThrow(/is required in production/)
    expect(readdirSync(keysDir)).toEqual(['development.key'])
  })

  it.each(['', 'development-1:', 'AAAA', `x:${Buffer.alloc(31).toString('base64')}`, 'x:AAAA'.repeat(1_000)])(
    'is refused when the file holds %j, and the file is left alone',
    (text) => {
      const keysDir = temporaryFolder()
      const file = join(keysDir, 'development.key')
      writeFileSync(file, text)
      expect(() => openKeyEncryption({ config: developmentIn(keysDir), log: silent })).toThrow(
        `${file} does not hold a key-encryption key`,
      )
      expect(readFileSync(file, 'utf8')).toBe(text)
    },
  )

  it('is made once, for its owner alone, and used again', () => {
    const keysDir = join(temporaryFolder(), 'keys')
    const config = developmentIn(keysDir)
    const first = openKeyEncryption({ config, log: silent })
    expect(readdirSync(keysDir)).toEqual(['development.key'])
    expect(statSync(keysDir).mode & 0o777).toBe(0o700)
    expect(statSync(join(keysDir, 'development.key')).mode & 0o777).toBe(0o600)
    const again = openKeyEncryption({ config, log: silent })
    expect(again.keyId).toBe(first.keyId)
    expect(again.open(row, first.seal(row, Buffer.from('x')))).toEqual(Buffer.from('x'))
  })

  it('has another id when it is another key, so that a lost one can be named', () => {
    const lost = openKeyEncryption({ config: developmentIn(temporaryFolder()), log: silent })
    const made = openKeyEncryption({ config: developmentIn(temporaryFolder()), log: silent })
    expect(() => made.open(row, lost.seal(row, Buffer.from('x')))).toThrow(`the key-encryption key '${lost.keyId}'`)
  })

  it('is not made when a key is configured', () => {
    const keysDir = join(temporaryFolder(), 'keys')
    const keyEncryptionKeys = [{ id: '7', key: Buffer.alloc(32, 1) }]
    expect(openKeyEncryption({ config: { ...developmentIn(keysDir), keyEncryptionKeys }, log: silent }).keyId).toBe('7')
    expect(existsSync(keysDir)).toBe(false)
  })

  it('is warned of when others can read it', () => {
    const keysDir = temporaryFolder()
    const lines: string[] = []
    const log = pino({ level: 'warn' }, { write: (line: string) => void lines.push(line) })
    openKeyEncryption({ config: developmentIn(keysDir), log })
    expect(lines).toEqual([])
    chmodSync(join(keysDir, 'development.key'), 0o644)
    openKeyEncryption({ config: developmentIn(keysDir), log })
    expect(lines.join('')).toContain('chmod 600')
  })

  it('is one key for six processes that start at once', async () => {
    const keysDir = join(temporaryFolder(), 'keys')
    const module = new URL('../../src/signing/key-encryption.ts', import.meta.url).href
    const script = `
      import { openKeyEncryption } from ${JSON.stringify(module)}
      const log = { info() {}, warn() {} }
      const start = Number(process.argv[1])
      while (Date.now() < start);
      const config = { isProduction: false, keyEncryptionKeys: undefined, keysDir: process.argv[2] }
      console.log(openKeyEncryption({ config, log }).keyId)`
    const start = Date.now() + 2_000
    const ids = await Promise.all(
      Array.from({ length: 6 }, async () => {
        const { stdout } = await run(process.execPath, [
          '--no-warnings',
          '--input-type=module',
          '-e',
          script,
          String(start),
          keysDir,
        ])
        return stdout.trim()
      }),
    )
    expect(ids[0]).toMatch(/^development-[0-9a-f]{8}$/)
    expect(new Set(ids).size).toBe(1)
    expect(readdirSync(keysDir)).toEqual(['development.key'])
  })
})

describe('replacing the key-encryption key', () => {
  eachDatabase((open) => {
    it('refuses when a row does not open, names it, and changes nothing', async () => {
      const database = await open()
      await openTestKeyRing(database, { encryption: encryptionUnder('old') })
      await openTestSecretRing(database, { encryption: encryptionUnder('lost') })
      const encryption = encryptionUnder('new', 'old')
      const attempt = database.db.transaction().execute((trx) => reseal(trx, systemActor, { encryption }))
      await expect(attempt).rejects.toThrow(/\(secret:.*under the key-encryption key 'lost'/)
      const rows = await database.db.selectFrom('signing_keys').select('sealed_private_jwk').execute()
      expect(rows.map((row) => sealedUnder(row.sealed_private_jwk ?? Buffer.alloc(0)))).toEqual(['old', 'old'])
    })

    it('seals every row anew, page after page, and then needs the old key no more', async () => {
      const database = await open()
      const { db } = database
      const old = encryptionUnder('old')
      const before = await openTestKeyRing(database, { encryption: old })
      const secrets = await openTestSecretRing(database, { encryption: old })
      // secrets that were replaced, enough for several pages
      await db
        .insertInto('secrets')
        .values(
          Array.from({ length: 230 }, (_, i) => ({
            id: `sec_${i}`,
            purpose: 'cursors',
            sealed_value: old.seal({ purpose: 'secret:cursors', id: `sec_${i}` }, Buffer.from(`value ${i}`)),
            expires_at: new Date(Date.now() + 3_600_000),
          })),
        )
        .execute()

      const encryption = encryptionUnder('new', 'old')
      const first = await db.transaction().execute((trx) => reseal(trx, systemActor, { encryption }))
      const all = 2 + secretPurposes.length + 230
      expect(first).toEqual({ resealed: all, unchanged: 0 })
      const second = await db.transaction().execute((trx) => reseal(trx, systemActor, { encryption }))
      expect(second).toEqual({ resealed: 0, unchanged: all })

      const after = await openTestKeyRing(database, { encryption: encryptionUnder('new') })
      expect(after.publicJwks()).toEqual(before.publicJwks())
      const secretsAfter = await openTestSecretRing(database, { encryption: encryptionUnder('new') })
      expect(secretsAfter.current('csrf')).toEqual(secrets.current('csrf'))
      expect(secretsAfter.all('cursors')).toHaveLength(231)
      const audit = await db
        .selectFrom('audit_events')
        .select(['target_id', 'details'])
        .where('action', '=', 'key-encryption-key.replaced')
        .execute()
      expect(audit).toEqual([
        {
          target_id: 'new',
          details: {
            resealed: all,
            before: { key_encryption_keys: ['old'] },
            after: { key_encryption_keys: ['new'] },
          },
        },
      ])
    })

    it('leaves what was erased alone', async () => {
      const database = await open()
      await openTestKeyRing(database)
      await database.db.updateTable('signing_keys').set({ sealed_private_jwk: null }).execute()
      const encryption = encryptionUnder('2', '1')
      const result = await database.db.transaction().execute((trx) => reseal(trx, systemActor, { encryption }))
      expect(result).toEqual({ resealed: 0, unchanged: 0 })
    })
  })
})
