/**
 * One change at a time to the signing keys and the secrets, whichever process makes it: taken first in every
 * transaction that writes to them, and gone with the transaction.
 */
import { sql } from 'kysely'
import type { Trx } from '../database/database.ts'

const signingLock = 0x1a7c_0002

/** Waits until no other transaction changes signing keys or secrets. */
export async function lockSigningTables(trx: Trx): Promise<void> {
  await sql`SELECT pg_advisory_xact_lock(${signingLock})`.execute(trx)
}

/** @returns false when another transaction is changing signing keys or secrets */
export async function tryLockSigningTables(trx: Trx): Promise<boolean> {
  const { rows } = await sql<{ mine: boolean }>`SELECT pg_try_advisory_xact_lock(${signingLock}) AS mine`.execute(trx)
  return rows[0]?.mine === true
}
