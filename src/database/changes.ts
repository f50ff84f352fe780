/**
 * News of what other processes changed: clients, keys, settings, streams, revocations. PostgreSQL says it by NOTIFY
 * within milliseconds; since a notification can be lost with its connection, a poll stands behind it. It reads the
 * counters; revocations have none, since it would be one row that every transaction waits for: of them it counts those
 * that can have come since the last time. Whoever keeps a copy of rows asks `isFresh()` first and reads the database when
 * the news may be late.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { Client } from 'pg'
import type { Logger } from 'pino'
import type { Database } from './database.ts'

export type Topic = 'clients' | 'keys' | 'settings' | 'signals' | 'revocations'

export interface Changes {
  /** Calls `listener` after any committed change of the topic, from any process; returns what ends it. */
  on(topic: Topic, listener: () => void): () => void
  /** false when the last poll is longer ago than `maxAgeMs` milliseconds: copies may be stale. */
  isFresh(): boolean
  close(): Promise<void>
}

const pollMs = 500
const maxAgeMs = 2_000
/** of all that xid8 can count: nothing has come since */
const lastTransaction = '18446744073709551615'

export async function openChanges(database: Database, databaseUrl: string | undefined, log: Logger): Promise<Changes> {
  const listeners = new Map<string, Set<() => void>>()
  const announce = (topic: string) => {
    for (const listener of listeners.get(topic) ?? []) listener()
  }
  const on = (topic: Topic, listener: () => void) => {
    const set = listeners.get(topic) ?? new Set()
    listeners.set(topic, set.add(listener))
    return () => void set.delete(listener)
  }

  if (database.pglite !== undefined) {
    // One process, one connection: the notification cannot be lost.
    const unlisten = await database.pglite.listen('latchkey', announce)
    return { on, isFresh: () => true, close: unlisten }
  }

  const stopped = new AbortController()
  const versions = new Map<string, number>()
  /** the oldest transaction that was open at the last poll: what was not seen then is of it or a later one */
  let horizon = lastTransaction
  /** how many revocations of such transactions were seen all the same, because they were faster than it */
  let seenBeyond = 0
  let readAt = -Infinity

  async function poll(): Promise<void> {
    const startedAt = performance.now()
    const { rows } = await sql<{
      versions: Record<string, number>
      horizon: string
      beyondLast: number
      beyondThis: number
    }>`
      SELECT (SELECT jsonb_object_agg(topic, version) FROM change_counters) AS versions,
        pg_snapshot_xmin(pg_current_snapshot())::text AS horizon,
        (SELECT count(*) FROM revocations WHERE transaction_id >= ${horizon}::xid8) AS "beyondLast",
        (SELECT count(*) FROM revocations WHERE transaction_id >= pg_snapshot_xmin(pg_current_snapshot()))
          AS "beyondThis"`.execute(database.db)
    const [now] = rows
    if (now === undefined) throw new Error('no answer')
    const isFirst = readAt === -Infinity
    // Transactions begin anew where a standby has taken over that had not heard of the last of them.
    const hasRevocations = now.beyondLast !== seenBeyond || BigInt(now.horizon) < BigInt(horizon)
    readAt = startedAt
    horizon = now.horizon
    seenBeyond = now.beyondThis
    for (const [topic, version] of Object.entries(now.versions)) {
      const known = versions.get(topic)
      versions.set(topic, version)
      if (known !== undefined && known !== version) announce(topic)
    }
    if (hasRevocations && !isFirst) announce('revocations' satisfies Topic)
  }

  async function keepPolling(): Promise<void> {
    while (!stopped.signal.aborted) {
      await poll().catch((error: unknown) => log.debug({ error_message: String(error) }, 'change poll failed'))
      await pause(pollMs)
    }
  }

  async function listen(): Promise<void> {
    for (let failures = 0; !stopped.signal.aborted; failures += 1) {
      const client = new Client({
        connectionString: databaseUrl,
        application_name: 'latchkey listen',
        keepAlive: true,
        connectionTimeoutMillis: 5_000,
      })
      const { promise: ended, resolve: end } = Promise.withResolvers<void>()
      client.on('error', () => end())
      client.on('end', () => end())
      client.on('notification', ({ payload }) => announce(payload ?? ''))
      stopped.signal.addEventListener('abort', () => end(), { once: true })
      try {
        await client.connect()
        await client.query('LISTEN latchkey')
        failures = 0
        await ended
      } catch (error) {
        log.debug({ error_message: String(error) }, 'LISTEN failed')
      }
      await client.end().catch((error: unknown) => log.debug({ error_message: String(error) }, 'LISTEN did not end'))
      if (!stopped.signal.aborted) await pause(Math.min(5_000, 100 * 2 ** failures))
    }
  }

  const pause = (ms: number) => sleep(ms, undefined, { signal: stopped.signal, ref: false }).catch(() => undefined)

  await poll()
  const tasks = [keepPolling(), listen()]
  return {
    on,
    isFresh: () => performance.now() - readAt < maxAgeMs,
    async close() {
      stopped.abort()
      await Promise.all(tasks)
    },
  }
}
