/**
 * Seals what must not lie readable in the database: private signing keys, the ring of secrets, and the credentials with
 * which security events are pushed. AES-256-GCM under a key-encryption key that the database never sees: configured in
 * production, a file in the keys folder in development. Each sealed value names the key that sealed it, so that several
 * may be known while one replaces another.
 *
 * A sealed value is
 *   version (1 byte) ‖ length of the key id (1 byte) ‖ key id ‖ nonce (12 bytes) ‖ tag (16 bytes) ‖ ciphertext
 * and its header and the row that it belongs to are authenticated with it: a value moved to another row does not open.
 */
import { createCipheriv, createDecipheriv, createHash, randomBytes } from 'node:crypto'
import {
  closeSync,
  fstatSync,
  fsyncSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  unlinkSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import type { Logger } from 'pino'
import { writeAudit, type Actor } from '../audit/audit.ts'
import type { Config, KeyEncryptionKey } from '../config.ts'
import type { Trx } from '../database/database.ts'
import { lockSigningTables } from './signing-lock.ts'

/** The row that a sealed value belongs to; a value sealed for one row does not open for another. */
export interface SealedRow {
  /** what the value is for: `signing-key`, `secret:` and the purpose of the secret, or `signal-stream` */
  readonly purpose: string
  /** the row's primary key */
  readonly id: string
}

export interface KeyEncryption {
  /** the id of the key that seals */
  readonly keyId: string
  seal(row: SealedRow, bytes: Uint8Array): Buffer
  /** @throws KeyEncryptionError when the value was sealed under a key that is not known here, or was altered */
  open(row: SealedRow, sealed: Uint8Array): Buffer
}

/** A key-encryption key is missing or wrong, or a sealed row was altered; the message says which, and what to do. */
export class KeyEncryptionError extends Error {
  override name = 'KeyEncryptionError'
}

export type KeyEncryptionConfig = Pick<Config, 'isProduction' | 'keyEncryptionKeys' | 'keysDir'>

const version = 1
const nonceLength = 12
const tagLength = 16

/**
 * Takes the configured key-encryption keys; in development, where none is configured, the one in the keys folder, which
 * is made at first start.
 * @throws KeyEncryptionError in production without a configured key, or when the file in the keys folder is unreadable
 */
export function openKeyEncryption({ config, log }: { config: KeyEncryptionConfig; log: Logger }): KeyEncryption {
  const keys = config.keyEncryptionKeys ?? [developmentKey(config, log)]
  const [sealing] = keys
  if (sealing === undefined) throw new KeyEncryptionError('LATCHKEY_KEY_ENCRYPTION_KEY holds no key')
  return {
    keyId: sealing.id,
    seal: (row, bytes) => seal(sealing, row, bytes),
    open: (row, sealed) => open(keys, row, sealed),
  }
}

function seal({ id, key }: KeyEncryptionKey, row: SealedRow, bytes: Uint8Array): Buffer {
  const name = Buffer.from(id, 'ascii')
  const header = Buffer.concat([Buffer.of(version, name.length), name])
  const nonce = randomBytes(nonceLength)
  const cipher = createCipheriv('aes-256-gcm', key, nonce, { authTagLength: tagLength })
  cipher.setAAD(additionalData(header, row))
  const ciphertext = Buffer.concat([cipher.update(bytes), cipher.final()])
  return Buffer.concat([header, nonce, cipher.getAuthTag(), ciphertext])
}

function open(keys: readonly KeyEncryptionKey[], row: SealedRow, sealed: Uint8Array): Buffer {
  const id = sealedUnder(sealed)
  if (id === undefined) {
    throw new KeyEncryptionError(
      `The sealed value of ${describe(row)} is not one that this version of Latchkey wrote: restore the row from a backup.`,
    )
  }
  const found = keys.find((candidate) => candidate.id === id)
  if (found === undefined) {
    throw new KeyEncryptionError(
      `${describe(row)} is sealed under the key-encryption key '${id}', which is not known here (known: ${keys.map((key) => `'${key.id}'`).join(', ')}). ` +
        `Add it to LATCHKEY_KEY_ENCRYPTION_KEY after the key that seals ('new-id:base64,${id}:base64'), or put the file of the keys folder back. keys/README.md says what to do when it is lost.`,
    )
  }
  const bytes = Buffer.from(sealed)
  const header = bytes.subarray(0, 2 + id.length)
  const nonce = bytes.subarray(header.length, header.length + nonceLength)
  const tag = bytes.subarray(header.length + nonceLength, header.length + nonceLength + tagLength)
  const ciphertext = bytes.subarray(header.length + nonceLength + tagLength)
  try {
    // A fixed tag length, so that a shortened tag is refused (NIST SP 800-38D Appendix C).
    const decipher = createDecipheriv('aes-256-gcm', found.key, nonce, { authTagLength: tagLength })
    decipher.setAAD(additionalData(header, row))
    decipher.setAuthTag(tag)
    return Buffer.concat([decipher.update(ciphertext), decipher.final()])
  } catch (error) {
    throw new KeyEncryptionError(
      `${describe(row)} does not open under the key-encryption key '${id}': either that is not the key that sealed it (two keys must never have one id), or the row was altered. ` +
        'Configure the right key, or restore the row from a backup.',
      { cause: error },
    )
  }
}

/** The id of the key-encryption key that sealed a value; undefined when the value is none of ours. */
export function sealedUnder(sealed: Uint8Array): string | undefined {
  const length = sealed[1] ?? 0
  if (sealed[0] !== version || length === 0 || sealed.length < 2 + length + nonceLength + tagLength) return undefined
  return Buffer.from(sealed.subarray(2, 2 + length)).toString('latin1')
}

function additionalData(header: Buffer, { purpose, id }: SealedRow): Buffer {
  return Buffer.concat([header, Buffer.from(JSON.stringify([purpose, id]), 'utf8')])
}

function describe({ purpose, id }: SealedRow): string {
  return `The row '${id}' (${purpose})`
}

// ---- replacing the key-encryption key ----

const pageSize = 100

/**
 * Seals every row anew under the key that seals now, so that the keys it replaces can be taken out of the
 * configuration. Rows that are already under it are left alone, so that it may be run again at any time. Run it when
 * every process has the new key: one that has not cannot open what this writes.
 * @throws KeyEncryptionError that names the first row that does not open; nothing is changed then
 */
export async function reseal(
  trx: Trx,
  actor: Actor,
  { encryption }: { encryption: KeyEncryption },
): Promise<{ resealed: number; unchanged: number }> {
  await lockSigningTables(trx)
  let resealed = 0
  let unchanged = 0
  const replaced = new Set<string>()

  // Few at any time: those that are used no more are erased.
  const keys = await trx
    .selectFrom('signing_keys')
    .select(['kid', 'sealed_private_jwk'])
    .where('sealed_private_jwk', 'is not', null)
    .forUpdate()
    .execute()
  for (const { kid, sealed_private_jwk: sealed } of keys) {
    if (sealed === null) continue
    const again = sealAgain(encryption, signingKeyRow(kid), sealed)
    if (again === undefined) unchanged += 1
    else {
      await trx.updateTable('signing_keys').set({ sealed_private_jwk: again }).where('kid', '=', kid).execute()
      replaced.add(sealedUnder(sealed) ?? '')
      resealed += 1
    }
  }

  for (let last = ''; ;) {
    const page = await trx
      .selectFrom('secrets')
      .select(['id', 'purpose', 'sealed_value'])
      .where('id', '>', last)
      .orderBy('id')
      .limit(pageSize)
      .forUpdate()
      .execute()
    for (const { id, purpose, sealed_value: sealed } of page) {
      const again = sealAgain(encryption, secretRow(purpose, id), sealed)
      if (again === undefined) unchanged += 1
      else {
        await trx.updateTable('secrets').set({ sealed_value: again }).where('id', '=', id).execute()
        replaced.add(sealedUnder(sealed) ?? '')
        resealed += 1
      }
    }
    last = page.at(-1)?.id ?? ''
    if (page.length < pageSize) break
  }

  for (let last = ''; ;) {
    const page = await trx
      .selectFrom('signal_streams')
      .select(['stream_id', 'sealed_authorization_header as sealed'])
      .where('sealed_authorization_header', 'is not', null)
      .where('stream_id', '>', last)
      .orderBy('stream_id')
      .limit(pageSize)
      .forUpdate()
      .execute()
    for (const { stream_id: id, sealed } of page) {
      if (sealed === null) continue
      const again = sealAgain(encryption, signalStreamRow(id), sealed)
      if (again === undefined) unchanged += 1
      else {
        await trx
          .updateTable('signal_streams')
          .set({ sealed_authorization_header: again })
          .where('stream_id', '=', id)
          .execute()
        replaced.add(sealedUnder(sealed) ?? '')
        resealed += 1
      }
    }
    last = page.at(-1)?.stream_id ?? ''
    if (page.length < pageSize) break
  }

  if (resealed > 0) {
    await writeAudit(trx, actor, {
      action: 'key-encryption-key.replaced',
      target: { type: 'key-encryption-key', id: encryption.keyId },
      details: {
        resealed,
        before: { key_encryption_keys: [...replaced].sort() },
        after: { key_encryption_keys: [encryption.keyId] },
      },
    })
  }
  return { resealed, unchanged }
}

function sealAgain(encryption: KeyEncryption, row: SealedRow, sealed: Uint8Array): Buffer | undefined {
  // Opened even when it stays as it is: a run that succeeds says that every row can be opened.
  const bytes = encryption.open(row, sealed)
  return sealedUnder(sealed) === encryption.keyId ? undefined : encryption.seal(row, bytes)
}

/** What the private part of a signing key is sealed for. */
export function signingKeyRow(kid: string): SealedRow {
  return { purpose: 'signing-key', id: kid }
}

/** What a secret of the ring is sealed for. */
export function secretRow(purpose: string, id: string): SealedRow {
  return { purpose: `secret:${purpose}`, id }
}

/** What the credentials of a stream's receiver are sealed for. */
export function signalStreamRow(streamId: string): SealedRow {
  return { purpose: 'signal-stream', id: streamId }
}

// ---- the key that development makes for itself ----

function developmentKey({ isProduction, keysDir }: KeyEncryptionConfig, log: Logger): KeyEncryptionKey {
  if (isProduction) {
    throw new KeyEncryptionError(
      'LATCHKEY_KEY_ENCRYPTION_KEY (or …_FILE) is required in production: 32 bytes of base64, made with: openssl rand -base64 32',
    )
  }
  const file = join(keysDir, 'development.key')
  const existing = readKeyFile(file, log)
  if (existing !== undefined) return existing
  mkdirSync(keysDir, { recursive: true, mode: 0o700 })
  if (makeKeyFile(keysDir, file)) log.info({ file }, 'made a key-encryption key for development')
  const made = readKeyFile(file, log)
  if (made === undefined) throw new KeyEncryptionError(`${file} was removed while it was being made: start again`)
  return made
}

function readKeyFile(file: string, log: Logger): KeyEncryptionKey | undefined {
  let text: string
  try {
    const descriptor = openSync(file, 'r')
    try {
      const { mode } = fstatSync(descriptor)
      if (process.platform !== 'win32' && (mode & 0o077) !== 0) {
        log.warn({ file }, 'others on this machine can read the key-encryption key: chmod 600 it')
      }
      text = readFileSync(descriptor, 'utf8').trim()
    } finally {
      closeSync(descriptor)
    }
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined
    throw new KeyEncryptionError(`The key-encryption key ${file} cannot be read`, { cause: error })
  }
  const [, id, base64 = ''] = /^([\w.-]{1,32}):([A-Za-z0-9+/]{43}=)$/.exec(text) ?? []
  const key = Buffer.from(base64, 'base64')
  if (id === undefined || key.length !== 32) {
    throw new KeyEncryptionError(
      `${file} does not hold a key-encryption key (id:base64 of 32 bytes). Restore it; or, when nothing of value is sealed under it, remove it together with the database.`,
    )
  }
  return { id, key }
}

/**
 * Makes the file whole or not at all: written under another name, then linked to its own, which fails when another
 * process was first. A reader never sees half a key, and two processes that start at once agree on one.
 * @returns false when another process was first
 */
function makeKeyFile(folder: string, file: string): boolean {
  const key = randomBytes(32)
  // The id tells one development key from another, so that a lost one can be named.
  const id = `development-${createHash('sha256').update(key).digest('hex').slice(0, 8)}`
  const draft = join(folder, `.${randomBytes(8).toString('hex')}.key`)
  const descriptor = openSync(draft, 'wx', 0o600)
  try {
    writeSync(descriptor, `${id}:${key.toString('base64')}\n`)
    fsyncSync(descriptor)
    linkSync(draft, file)
    return true
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'EEXIST') return false
    throw new KeyEncryptionError(`The key-encryption key ${file} cannot be made`, { cause: error })
  } finally {
    closeSync(descriptor)
    unlinkSync(draft)
  }
}
