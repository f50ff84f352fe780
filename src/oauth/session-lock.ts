/**
 * Ending a session and saving it take turns. A request that carries the session saves it as its last step, and nothing
 * that it began is handed out unless that succeeds: whoever ends the session, and waits for those that are just saving
 * it, finds everything that will ever come from it.
 */
import { sql, type RawBuilder } from 'kysely'
import type { Trx } from '../database/database.ts'

/** Apart from the locks that have no session. */
const lockClass = 0x1a7c_0014

/** Waits for those who are just saving the session, and keeps others waiting until the transaction is over. */
export async function lockSession(trx: Trx, sessionUid: string): Promise<void> {
  await sql`SELECT pg_advisory_xact_lock(${lockClass}::int, hashtext(${sessionUid}))`.execute(trx)
}

/** A condition, always true, of the statement that saves: any number may save at the same time. */
export function whileSaving(sessionUid: string): RawBuilder<boolean> {
  return sql<boolean>`pg_advisory_xact_lock_shared(${lockClass}::int, hashtext(${sessionUid})) IS NOT NULL`
}
