/**
 * The life of a signing key: next (published, so that everybody has it before it signs) → current (signs) → retiring
 * (published until the last token it signed is dead) → retired; or, from any of these, revoked. Each step is a function
 * of a transaction; `startRotation` takes the steps when they are due. Times are the database's own, so that processes
 * need not agree on a clock.
 */
import { sql, type SqlBool } from 'kysely'
import type { Logger } from 'pino'
import { systemActor, writeAudit, type Actor } from '../audit/audit.ts'
import type { Config } from '../config.ts'
import type { Database, Db, Trx } from '../database/database.ts'
import { maxAccessTokenLifetimeSeconds, revoke } from '../revocation/revocations.ts'
import { sealedUnder, type KeyEncryption } from './key-encryption.ts'
import { lockSigningTables, tryLockSigningTables } from './signing-lock.ts'
import { prepareSigningKey, type PreparedKey } from './signing-key.ts'

export type KeyState = 'next' | 'current' | 'retiring' | 'retired' | 'revoked'

export type RotationConfig = Pick<Config, 'keyPublishAheadSeconds' | 'keyRotationDays' | 'rsaBits'>

/** A signing key as an operator may see it: nothing secret. */
export interface SigningKeyInfo {
  readonly kid: string
  readonly state: KeyState
  readonly algorithm: string
  readonly createdAt: Date
  readonly currentSince: Date | undefined
  readonly publishedUntil: Date | undefined
  /** the id of the key-encryption key that its private part rests under; undefined once that part is erased */
  readonly sealedUnder: string | undefined
}

/** The next key may not sign yet: somebody's copy of the JWKS may not hold it. */
export class SigningKeyNotReady extends Error {
  override name = 'SigningKeyNotReady'
  /** how long until it may, in seconds; undefined when there is no next key */
  readonly waitSeconds: number | undefined
  constructor(message: string, waitSeconds: number | undefined) {
    super(message)
    this.waitSeconds = waitSeconds
  }
}

/** No signing key has this kid. */
export class UnknownSigningKey extends Error {
  override name = 'UnknownSigningKey'
  constructor(kid: string) {
    super(`There is no signing key ${JSON.stringify(kid.slice(0, 100))}: \`latchkey keys list\` shows them`)
  }
}

const algorithm = 'RS256'

/**
 * How long a key that signs no more stays published, in seconds. The longest that the schema allows, not the longest
 * that a resource has now: a lifetime may have been lowered a minute ago, with tokens of the old one still about. (ID
 * tokens live an hour.) Five minutes more for clocks that differ and for processes that hear of the rotation late.
 */
export const retiringSeconds = maxAccessTokenLifetimeSeconds + 300

/** All keys that there ever were, the newest first. */
export async function findSigningKeys(db: Db): Promise<SigningKeyInfo[]> {
  const rows = await db.selectFrom('signing_keys').selectAll().orderBy('created_at', 'desc').orderBy('kid').execute()
  return rows.map((row) => ({
    kid: row.kid,
    state: row.state,
    algorithm: row.algorithm,
    createdAt: row.created_at,
    currentSince: row.current_since ?? undefined,
    publishedUntil: row.published_until ?? undefined,
    sealedUnder: row.sealed_private_jwk === null ? undefined : sealedUnder(row.sealed_private_jwk),
  }))
}

/** How many keys are missing of the one that signs and the one that waits. */
export async function countMissingKeys(db: Db): Promise<number> {
  const { current, next } = await findWorkingKeys(db)
  return (current === undefined ? 1 : 0) + (next === undefined ? 1 : 0)
}

/**
 * Sees to it that one key signs and one waits: at the very first start, and after an accident.
 * @param input.fresh as many keys as `countMissingKeys` said; those that turn out not to be needed are dropped
 * @returns the kids of the keys that were added
 */
export async function makeMissingKeys(
  trx: Trx,
  actor: Actor,
  { fresh }: { fresh: readonly PreparedKey[] },
): Promise<string[]> {
  await lockSigningTables(trx)
  const { current, next } = await findWorkingKeys(trx)
  const spare = [...fresh]
  const added: string[] = []
  const add = async (state: 'current' | 'next') => {
    const key = spare.shift()
    if (key === undefined) return
    await insertKey(trx, actor, key, state)
    added.push(key.kid)
  }
  if (current === undefined && next !== undefined) await promote(trx, actor, next)
  // Nobody has a copy of a JWKS that this key would be missing from: there was no key to sign with.
  if (current === undefined && next === undefined) await add('current')
  if (current === undefined || next === undefined) await add('next')
  return added
}

/**
 * The next key signs from now on, the current one is retiring, and a fresh one waits.
 * @param input.fresh the key that will wait; made before the transaction
 * @param input.publishAheadSeconds how long the next key must have been published, in seconds
 * @param input.now rotate even when it has not: whoever keeps a copy of the JWKS must fetch it anew to know the key
 * @returns the keys' new places; `isEarly` when the next key had been published for less than `publishAheadSeconds`
 * @throws SigningKeyNotReady when it has not been published long enough, or there is none
 */
export async function rotateKeys(
  trx: Trx,
  actor: Actor,
  { fresh, publishAheadSeconds, now = false }: { fresh: PreparedKey; publishAheadSeconds: number; now?: boolean },
): Promise<{ current: string; next: string; retiring: string | undefined; isEarly: boolean }> {
  await lockSigningTables(trx)
  const { current, next } = await findWorkingKeys(trx)
  if (next === undefined) {
    throw new SigningKeyNotReady('There is no next key: a running server makes one within a minute', undefined)
  }
  const waitSeconds = Math.ceil(publishAheadSeconds - next.published_seconds)
  if (waitSeconds > 0 && !now) {
    throw new SigningKeyNotReady(
      `The next key ${next.kid} has been published for ${Math.floor(next.published_seconds)} of ${publishAheadSeconds} seconds: try again in ${waitSeconds} seconds`,
      waitSeconds,
    )
  }
  if (current !== undefined) await retire(trx, actor, current.kid)
  await promote(trx, actor, next, { early: waitSeconds > 0 })
  await insertKey(trx, actor, fresh, 'next')
  return { current: next.kid, next: fresh.kid, retiring: current?.kid, isEarly: waitSeconds > 0 }
}

/**
 * For a key that somebody else may have: it leaves the JWKS at once, its private part is erased, every token it signed
 * is dead, and if it was the one that signs, the next one does, however short a time that has been published. Erasing
 * needs no key-encryption key, so this also mends a database whose own was lost.
 * @param input.fresh takes the place that becomes free; made before the transaction
 * @returns the kid of the key that signs instead, when that changed; `isChanged` false when the key was revoked before
 * @throws UnknownSigningKey
 */
export async function revokeKey(
  trx: Trx,
  actor: Actor,
  { kid, reason, fresh }: { kid: string; reason: string; fresh: PreparedKey },
): Promise<{ isChanged: boolean; promoted: string | undefined; created: string | undefined }> {
  await lockSigningTables(trx)
  const key = await trx
    .selectFrom('signing_keys')
    .select(['kid', 'state', 'published_until'])
    .where('kid', '=', kid)
    .executeTakeFirst()
  if (key === undefined) throw new UnknownSigningKey(kid)
  if (key.state === 'revoked') return { isChanged: false, promoted: undefined, created: undefined }

  await trx
    .updateTable('signing_keys')
    .set({ state: 'revoked', sealed_private_jwk: null, published_until: null })
    .where('kid', '=', kid)
    .execute()
  await revoke(trx, { kind: 'key', subject: kid, reason, by: actor })
  await writeAudit(trx, actor, {
    action: 'signing-key.revoked',
    target: { type: 'signing-key', id: kid },
    details: {
      reason,
      before: { state: key.state, published_until: key.published_until },
      after: { state: 'revoked', published_until: null },
    },
  })
  if (key.state !== 'current' && key.state !== 'next') {
    return { isChanged: true, promoted: undefined, created: undefined }
  }

  const { next } = await findWorkingKeys(trx)
  if (key.state === 'current' && next !== undefined) await promote(trx, actor, next, { emergency: true })
  await insertKey(trx, actor, fresh, key.state === 'current' && next === undefined ? 'current' : 'next')
  const promoted = key.state === 'current' ? (next?.kid ?? fresh.kid) : undefined
  return { isChanged: true, promoted, created: fresh.kid }
}

/**
 * Erases the private part of each key whose last token is dead, and publishes it no more.
 * @returns their kids
 */
export async function retireExpiredKeys(trx: Trx, actor: Actor): Promise<string[]> {
  await lockSigningTables(trx)
  const expired = await trx
    .selectFrom('signing_keys')
    .select('kid')
    .where('state', '=', 'retiring')
    .where(sql<SqlBool>`published_until <= clock_timestamp()`)
    .execute()
  for (const { kid } of expired) {
    await trx
      .updateTable('signing_keys')
      .set({ state: 'retired', sealed_private_jwk: null })
      .where('kid', '=', kid)
      .execute()
    await writeAudit(trx, actor, {
      action: 'signing-key.retired',
      target: { type: 'signing-key', id: kid },
      details: { before: { state: 'retiring' }, after: { state: 'retired' } },
    })
  }
  return expired.map(({ kid }) => kid)
}

interface WorkingKey {
  readonly kid: string
  readonly published_seconds: number
  /** 0 for a key that has never signed */
  readonly current_seconds: number
}

async function findWorkingKeys(db: Db): Promise<{ current: WorkingKey | undefined; next: WorkingKey | undefined }> {
  const rows = await db
    .selectFrom('signing_keys')
    .select([
      'kid',
      'state',
      sql<number>`extract(epoch FROM clock_timestamp() - created_at)::float8`.as('published_seconds'),
      sql<number>`coalesce(extract(epoch FROM clock_timestamp() - current_since), 0)::float8`.as('current_seconds'),
    ])
    .where('algorithm', '=', algorithm)
    .where('state', 'in', ['current', 'next'])
    .execute()
  return { current: rows.find(({ state }) => state === 'current'), next: rows.find(({ state }) => state === 'next') }
}

async function insertKey(trx: Trx, actor: Actor, key: PreparedKey, state: 'current' | 'next'): Promise<void> {
  await trx
    .insertInto('signing_keys')
    .values({
      kid: key.kid,
      algorithm,
      state,
      public_jwk: JSON.stringify(key.publicJwk),
      sealed_private_jwk: key.sealedPrivateJwk,
      created_at: sql<Date>`clock_timestamp()`,
      current_since: state === 'current' ? sql<Date>`clock_timestamp()` : null,
    })
    .execute()
  await writeAudit(trx, actor, {
    action: 'signing-key.created',
    target: { type: 'signing-key', id: key.kid },
    details: { after: { state, algorithm } },
  })
}

async function promote(
  trx: Trx,
  actor: Actor,
  { kid, published_seconds }: WorkingKey,
  details: Record<string, boolean> = {},
): Promise<void> {
  await trx
    .updateTable('signing_keys')
    .set({ state: 'current', current_since: sql<Date>`clock_timestamp()` })
    .where('kid', '=', kid)
    .execute()
  await writeAudit(trx, actor, {
    action: 'signing-key.promoted',
    target: { type: 'signing-key', id: kid },
    details: {
      published_seconds: Math.floor(published_seconds),
      ...details,
      before: { state: 'next' },
      after: { state: 'current' },
    },
  })
}

async function retire(trx: Trx, actor: Actor, kid: string): Promise<void> {
  const { published_until } = await trx
    .updateTable('signing_keys')
    .set({
      state: 'retiring',
      published_until: sql<Date>`clock_timestamp() + make_interval(secs => ${retiringSeconds}::int)`,
    })
    .where('kid', '=', kid)
    .returning('published_until')
    .executeTakeFirstOrThrow()
  await writeAudit(trx, actor, {
    action: 'signing-key.retiring',
    target: { type: 'signing-key', id: kid },
    details: { before: { state: 'current', published_until: null }, after: { state: 'retiring', published_until } },
  })
}

// ---- when they are due ----

interface DueSteps {
  readonly isExpired: boolean
  readonly missing: number
  readonly isRotation: boolean
}

async function findDueSteps(db: Db, config: RotationConfig): Promise<DueSteps> {
  const { current, next } = await findWorkingKeys(db)
  const expired = await db
    .selectFrom('signing_keys')
    .select('kid')
    .where('state', '=', 'retiring')
    .where(sql<SqlBool>`published_until <= clock_timestamp()`)
    .executeTakeFirst()
  return {
    isExpired: expired !== undefined,
    missing: (current === undefined ? 1 : 0) + (next === undefined ? 1 : 0),
    isRotation:
      current !== undefined &&
      next !== undefined &&
      current.current_seconds >= config.keyRotationDays * 86_400 &&
      next.published_seconds >= config.keyPublishAheadSeconds,
  }
}

/**
 * Takes the steps that are due, in one of the processes that ask at the same time.
 * @returns whether anything was changed
 */
export async function rotateWhenDue(
  { db }: Pick<Database, 'db'>,
  { encryption, config }: { encryption: KeyEncryption; config: RotationConfig },
): Promise<boolean> {
  const seen = await findDueSteps(db, config)
  if (!seen.isExpired && seen.missing === 0 && !seen.isRotation) return false
  // Made before the transaction, which others may be waiting for.
  const fresh: PreparedKey[] = []
  for (let needed = Math.max(seen.missing, seen.isRotation ? 1 : 0); needed > 0; needed -= 1) {
    fresh.push(await prepareSigningKey({ encryption, rsaBits: config.rsaBits }))
  }
  return db.transaction().execute(async (trx) => {
    if (!(await tryLockSigningTables(trx))) return false
    // Another process may have been faster.
    const due = await findDueSteps(trx, config)
    const [first] = fresh
    if (due.isExpired) await retireExpiredKeys(trx, systemActor)
    if (due.missing > 0) await makeMissingKeys(trx, systemActor, { fresh })
    else if (due.isRotation && first !== undefined) {
      await rotateKeys(trx, systemActor, { fresh: first, publishAheadSeconds: config.keyPublishAheadSeconds })
    }
    return due.isExpired || due.missing > 0 || due.isRotation
  })
}

/**
 * Looks now and every so often whether a step is due. Every process may run it: one at a time acts.
 * @param everySeconds in seconds
 * @returns what stops it, once a step under way is over
 */
export function startRotation({
  database,
  encryption,
  config,
  log,
  everySeconds = 60,
}: {
  database: Pick<Database, 'db'>
  encryption: KeyEncryption
  config: RotationConfig
  log: Logger
  everySeconds?: number
}): () => Promise<void> {
  let running: Promise<void> | undefined
  const look = async () => {
    try {
      if (await rotateWhenDue(database, { encryption, config })) log.info('the signing keys were rotated')
    } catch (error) {
      log.error({ error_message: error instanceof Error ? error.message : String(error) }, 'key rotation failed')
    } finally {
      running = undefined
    }
  }
  const run = () => void (running ??= look())
  const timer = setInterval(run, everySeconds * 1_000)
  timer.unref()
  run()
  return async () => {
    clearInterval(timer)
    await running
  }
}
