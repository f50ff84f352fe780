/**
 * Removes expired rows, a page at a time, so that neither PGlite's single thread nor a PostgreSQL lock is held long.
 * Any process may run it; on PostgreSQL an advisory lock lets one at a time do so.
 */
import { sql } from 'kysely'
import type { Db } from './database.ts'

const pageSize = 500
const sweepLock = 0x1a7c_0001

/** What may be deleted: the table, its key, and when. */
const expirable = [
  { table: 'artifacts', key: sql`kind, id`, expired: sql`expires_at < now()` },
  { table: 'refresh_replies', key: sql`token_id`, expired: sql`expires_at < now()` },
  { table: 'revocations', key: sql`id`, expired: sql`expires_at < now()` },
  { table: 'known_devices', key: sql`id`, expired: sql`expires_at < now()` },
  { table: 'client_secrets', key: sql`id`, expired: sql`expires_at < now()` },
  { table: 'secrets', key: sql`id`, expired: sql`expires_at < now()` },
  { table: 'idempotency_keys', key: sql`caller_id, key`, expired: sql`expires_at < now()` },
  { table: 'api_keys', key: sql`id`, expired: sql`expires_at < now()` },
  // What is full, or over, is what a missing one means.
  { table: 'rate_buckets', key: sql`key`, expired: sql`full_at < now()` },
  { table: 'quota_counters', key: sql`key`, expired: sql`ends_at < now()` },
  {
    table: 'api_usage',
    key: sql`day, version, client_id, user_agent, endpoint`,
    expired: sql`day < (now() AT TIME ZONE 'UTC')::date - 400`,
  },
  // A bucket untouched for a day is full again, which is what a missing one means.
  { table: 'sign_in_throttle', key: sql`key`, expired: sql`updated_at < now() - interval '1 day'` },
] as const

/**
 * Deletes everything that has expired.
 * @returns how many rows went
 */
export async function sweep(db: Db, signal?: AbortSignal): Promise<number> {
  let swept = 0
  for (const { table, key, expired } of expirable) {
    for (;;) {
      if (signal?.aborted) return swept
      const page = await sweepPage(db, table, key, expired)
      swept += page
      if (page < pageSize) break
      // Let waiting requests through: on PGlite a statement blocks the main thread.
      await new Promise((resolve) => setImmediate(resolve))
    }
  }
  return swept
}

async function sweepPage(
  db: Db,
  table: string,
  key: ReturnType<typeof sql>,
  expired: ReturnType<typeof sql>,
): Promise<number> {
  return db.transaction().execute(async (trx) => {
    const { rows } = await sql<{ mine: boolean }>`SELECT pg_try_advisory_xact_lock(${sweepLock}) AS mine`.execute(trx)
    if (rows[0]?.mine !== true) return 0
    // A DELETE announces a change even where it finds nothing, and every process would read its copies anew.
    const { rows: found } = await sql`SELECT 1 FROM ${sql.table(table)} WHERE ${expired} LIMIT 1`.execute(trx)
    if (found.length === 0) return 0
    const { numAffectedRows } = await sql`
      DELETE FROM ${sql.table(table)} WHERE (${key}) IN (
        SELECT ${key} FROM ${sql.table(table)} WHERE ${expired} LIMIT ${pageSize} FOR UPDATE SKIP LOCKED
      )`.execute(trx)
    return Number(numAffectedRows ?? 0n)
  })
}

/**
 * Sweeps now and every `everySeconds` seconds.
 * @param more what subjects remove by functions of their own, because it is to be written down
 * @returns what stops it
 */
export function startSweeping(
  db: Db,
  everySeconds: number,
  onError: (error: unknown) => void,
  more: readonly ((db: Db, signal: AbortSignal) => Promise<unknown>)[] = [],
): () => Promise<void> {
  const stopped = new AbortController()
  let running: Promise<unknown> = Promise.resolve()
  const sweepAll = async () => {
    await sweep(db, stopped.signal)
    for (const sweepMore of more) await sweepMore(db, stopped.signal)
  }
  const run = () => {
    running = sweepAll().catch(onError)
  }
  const timer = setInterval(run, everySeconds * 1_000)
  timer.unref()
  run()
  return async () => {
    stopped.abort()
    clearInterval(timer)
    await running
  }
}
