/** What the tests of this folder do to the audit record: write rows, have them sealed, look at the chain. */
import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import { onTestFinished } from 'vitest'
import { writeAudit, type Actor } from '../../src/audit/audit.ts'
import { startSealing, type SealerSettings } from '../../src/audit/sealer.ts'
import type { Db } from '../../src/database/database.ts'

export const key = createHash('sha256').update('the secret of the ring').digest()
export const otherKey = createHash('sha256').update('another secret').digest()

const ada: Actor = { type: 'operator', id: 'ada', onBehalfOf: 'usr_grace', requestId: 'req-1' }

/** Writes one row in a transaction of its own. */
export async function write(db: Db, name: string): Promise<void> {
  await db.transaction().execute((trx) => writeAudit(trx, ada, eventOf(name)))
}

export function eventOf(name: string) {
  return {
    action: 'role.created',
    target: { type: 'role', id: name },
    details: { after: { name, size: 1.5 }, é: [null] },
  }
}

export { ada }

/** Starts a sealer that is stopped after the test at the latest; returns what stops it. */
export function startTestSealing(db: Db, settings: Partial<SealerSettings> = {}): () => Promise<void> {
  const stop = startSealing({ db, keys: () => [key], log: pino({ level: 'silent' }), everyMs: 20, ...settings })
  onTestFinished(stop)
  return stop
}

/** Has everything sealed that is there, by a sealer that is gone afterwards. */
export async function sealAll(db: Db, keys: readonly Uint8Array[] = [key]): Promise<void> {
  const stop = startSealing({ db, keys: () => keys, log: pino({ level: 'silent' }), everyMs: 20 })
  try {
    await untilSealed(db)
  } finally {
    await stop()
  }
}

/** Waits until no row is unsealed; returns after how many milliseconds. */
export async function untilSealed(db: Db, withinMs = 10_000): Promise<number> {
  const startedAt = performance.now()
  for (;;) {
    const left = await db.selectFrom('audit_events').select('id').where('sequence', 'is', null).execute()
    if (left.length === 0) return performance.now() - startedAt
    if (performance.now() - startedAt > withinMs) throw new Error(`${left.length} rows are not sealed yet`)
    await sleep(20)
  }
}

/** The names of the rows in the order of the chain; `?` for those that are not in it. */
export async function chainedNames(db: Db): Promise<string[]> {
  const rows = await db
    .selectFrom('audit_events')
    .select(['sequence', 'target_id'])
    .orderBy('sequence')
    .orderBy('id')
    .execute()
  return rows.map(({ sequence, target_id: name }) => `${sequence ?? '?'} ${name}`)
}
