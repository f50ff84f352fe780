/**
 * News of what other processes changed: clients, keys, settings, revocations. PostgreSQL says it by NOTIFY within
 * milliseconds; since a notification can be lost with its connection, a poll of the counters stands behind it. Whoever
 * keeps a copy of rows asks `isFresh()` first and reads the database when the news may be late.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { Client } from 'pg'
import type { Logger } from 'pino'
import type { Database } from './database.ts'

export type Topic = 'clients' | 'keys' | 'settings' | 'revocations'

export interface Changes {
  /** Calls `listener` after any committed change of the topic, from any process; returns what ends it. */
  on(topic: Topic, listener: () => void): () => void
  /** false when the counters have not been read for `maxAgeMs` milliseconds: copies may be stale. */
  isFresh(): boolean
  close(): Promise<void>
}

const pollMs = 500
const maxAgeMs = 2_000

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
  let readAt = -Infinity

  async function readCounters(): Promise<void> {
    const startedAt = performance.now()
    const rows = await database.db.selectFrom('change_counters').select(['topic', 'version']).execute()
    readAt = startedAt
    for (const { topic, version } of rows) {
      const known = versions.get(topic)
      versions.set(topic, version)
      if (known !== undefined && known !== version) announce(topic)
    }
  }

  async function poll(): Promise<void> {
    while (!stopped.signal.aborted) {
      await readCounters().catch((error: unknown) => log.debug({ error_message: String(error) }, 'change poll failed'))
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

  await readCounters()
  const tasks = [poll(), listen()]
  return {
    on,
    isFresh: () => performance.now() - readAt < maxAgeMs,
    async close() {
      stopped.abort()
      await Promise.all(tasks)
    },
  }
}
