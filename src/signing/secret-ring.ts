/**
 * The secrets that a server needs besides its signing keys, one ring for each purpose: made once, by whichever process
 * is first, and the same in all of them. A secret that was replaced is still accepted for as long as the one who
 * replaced it said.
 */
import { randomBytes, randomUUID } from 'node:crypto'
import { sql, type SqlBool } from 'kysely'
import type { Logger } from 'pino'
import { systemActor, writeAudit, type Actor } from '../audit/audit.ts'
import type { Changes } from '../database/changes.ts'
import type { Database, Db, Trx } from '../database/database.ts'
import { secretRow, type KeyEncryption } from './key-encryption.ts'
import { openReloading } from './reload.ts'
import { lockSigningTables } from './signing-lock.ts'

/**
 * What the secrets are for: `cookies` signs the provider's cookies, `csrf` the forms, `cursors` the pages of a list,
 * `throttle` blurs the names in the throttle's table, `dpop-nonce` makes DPoP nonces (RFC 9449 §8), `devices` stands for
 * a device code that somebody typed the user code of (RFC 8628), `audit` seals the head of the audit record,
 * `idempotency` seals answers that may be asked for again.
 */
export const secretPurposes = [
  'cookies',
  'csrf',
  'cursors',
  'throttle',
  'dpop-nonce',
  'devices',
  'audit',
  'idempotency',
] as const
export type SecretPurpose = (typeof secretPurposes)[number]

export interface SecretRing {
  /** The secret to sign or derive with: 32 bytes. */
  current(purpose: SecretPurpose): Buffer
  /** Every secret to accept: the current one first, then those it replaced, the newest first. */
  all(purpose: SecretPurpose): Buffer[]
  /** Calls `listener` after a secret was replaced or is accepted no more; returns what ends it. */
  onChange(listener: () => void): () => void
  close(): Promise<void>
}

/** The notification usually takes milliseconds; this is how long a lost one can matter, in seconds. */
const pollSeconds = 20

const secretBytes = 32

interface Secret {
  readonly id: string
  readonly purpose: string
  readonly value: Buffer
  /** in milliseconds since 1970; Infinity for the current one */
  readonly expiresAt: number
}

/**
 * Opens the secrets, and makes those that there are not yet: any number of processes that start at once agree on one.
 * @throws KeyEncryptionError when a secret cannot be opened
 */
export async function openSecretRing({
  database: { db },
  changes,
  encryption,
  log,
}: {
  database: Pick<Database, 'db'>
  changes: Changes
  encryption: KeyEncryption
  log: Logger
}): Promise<SecretRing> {
  const listeners = new Set<() => void>()
  let secrets: readonly Secret[] = []

  async function read(): Promise<Secret[]> {
    const rows = await selectLive(db).execute()
    return rows.map((row) => ({
      id: row.id,
      purpose: row.purpose,
      value:
        secrets.find(({ id }) => id === row.id)?.value ??
        encryption.open(secretRow(row.purpose, row.id), row.sealed_value),
      expiresAt: row.expires_at?.getTime() ?? Infinity,
    }))
  }

  const missingOf = (found: readonly Secret[]) =>
    secretPurposes.filter(
      (purpose) => !found.some((secret) => secret.purpose === purpose && secret.expiresAt === Infinity),
    )

  async function load(): Promise<void> {
    const found = await read()
    const [missing] = missingOf(found)
    // Somebody deleted it: the copy in memory still serves, and the next start makes a new one.
    if (missing !== undefined) throw new Error(`the secret for ${missing} is gone from the database`)
    const before = idsOf(secrets)
    secrets = found
    if (idsOf(secrets) === before) return
    for (const listener of listeners) {
      try {
        listener()
      } catch (error) {
        log.error({ error_message: String(error) }, 'new secrets could not be taken up')
      }
    }
  }

  const missing = missingOf(await read())
  if (missing.length > 0) {
    await db.transaction().execute((trx) => makeMissingSecrets(trx, systemActor, { purposes: missing, encryption }))
  }
  const { close } = await openReloading({ changes, topic: 'keys', everySeconds: pollSeconds, log }, load)

  return {
    current(purpose) {
      const secret = secrets.find((candidate) => candidate.purpose === purpose && candidate.expiresAt === Infinity)
      if (secret === undefined) throw new Error(`There is no secret for ${purpose}`)
      return secret.value
    },
    all: (purpose) =>
      secrets
        .filter((candidate) => candidate.purpose === purpose && candidate.expiresAt > Date.now())
        .map(({ value }) => value),
    onChange(listener) {
      listeners.add(listener)
      return () => void listeners.delete(listener)
    },
    close,
  }
}

/**
 * Every secret to accept for a purpose, the current one first, for a command, which needs them once.
 * @param input.encryption opened only when there is something to open: in development that may make a key
 * @returns none where no server has started yet
 * @throws KeyEncryptionError when a secret cannot be opened
 */
export async function findSecrets(
  db: Db,
  { purpose, encryption }: { purpose: SecretPurpose; encryption: () => KeyEncryption },
): Promise<Buffer[]> {
  const rows = await selectLive(db).where('purpose', '=', purpose).execute()
  if (rows.length === 0) return []
  const opened = encryption()
  return rows.map((row) => opened.open(secretRow(row.purpose, row.id), row.sealed_value))
}

function selectLive(db: Db) {
  return db
    .selectFrom('secrets')
    .select(['id', 'purpose', 'sealed_value', 'expires_at'])
    .where(sql<SqlBool>`(expires_at IS NULL OR expires_at > clock_timestamp())`)
    .orderBy(sql`expires_at DESC NULLS FIRST`)
    .orderBy('id')
}

/** Makes a first secret for each purpose that has none. */
async function makeMissingSecrets(
  trx: Trx,
  actor: Actor,
  { purposes, encryption }: { purposes: readonly SecretPurpose[]; encryption: KeyEncryption },
): Promise<void> {
  await lockSigningTables(trx)
  const existing = await trx.selectFrom('secrets').select('purpose').where('expires_at', 'is', null).execute()
  for (const purpose of purposes) {
    if (!existing.some((row) => row.purpose === purpose)) await insertSecret(trx, actor, purpose, encryption)
  }
}

/**
 * Replaces a secret. It opens nothing, so this also mends a database whose key-encryption key was lost.
 * @param input.acceptOldForSeconds how long what was made with the old one still counts, in seconds; 0: no longer
 * @returns the id of the new secret, which is not secret
 */
export async function rotateSecret(
  trx: Trx,
  actor: Actor,
  {
    purpose,
    acceptOldForSeconds,
    encryption,
  }: { purpose: SecretPurpose; acceptOldForSeconds: number; encryption: KeyEncryption },
): Promise<string> {
  await lockSigningTables(trx)
  const before = await describeSecrets(trx, purpose)
  if (acceptOldForSeconds > 0) {
    await trx
      .updateTable('secrets')
      .set({ expires_at: sql<Date>`clock_timestamp() + make_interval(secs => ${acceptOldForSeconds}::float8)` })
      .where('purpose', '=', purpose)
      .where('expires_at', 'is', null)
      .execute()
  } else {
    // Those that were replaced before go as well: the caller wants only the new one accepted.
    await trx.deleteFrom('secrets').where('purpose', '=', purpose).execute()
  }
  return insertSecret(trx, actor, purpose, encryption, { accept_old_for_seconds: acceptOldForSeconds, before })
}

/** Those that are accepted and until when, for the audit record: never their values. */
async function describeSecrets(trx: Trx, purpose: SecretPurpose) {
  const secrets = await selectLive(trx).where('purpose', '=', purpose).execute()
  return { secrets: secrets.map(({ id, expires_at }) => ({ secret_id: id, expires_at })) }
}

async function insertSecret(
  trx: Trx,
  actor: Actor,
  purpose: SecretPurpose,
  encryption: KeyEncryption,
  details: Record<string, unknown> = {},
): Promise<string> {
  const id = `sec_${randomUUID()}`
  const sealedValue = encryption.seal(secretRow(purpose, id), randomBytes(secretBytes))
  await trx.insertInto('secrets').values({ id, purpose, sealed_value: sealedValue }).execute()
  await writeAudit(trx, actor, {
    action: 'secret.created',
    target: { type: 'secret', id },
    details: { purpose, ...details, after: await describeSecrets(trx, purpose) },
  })
  return id
}

function idsOf(secrets: readonly Secret[]): string {
  return secrets.map(({ id, expiresAt }) => `${id} ${expiresAt}`).join(',')
}
