/**
 * Chains the rows of the audit record by hash, after their transactions are over: a chain head in every transaction
 * would make them wait for each other. One process at a time does it, whichever is first, a page in each transaction.
 * Rows commit in another order than that of their ids, so the order of the chain is that in which they were seen: a row
 * that commits late is sealed late.
 *
 * The chain goes on only from a head that one of us sealed. Otherwise whoever can write to the database, but does not
 * have the key-encryption key, could rewrite the record and have us vouch for it. Where the head is not ours, the chain
 * goes on all the same, so that no later row is left open, but from a row that says so and that `verify` stops at.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { sql } from 'kysely'
import type { Logger } from 'pino'
import type { Db, Trx } from '../database/database.ts'
import { systemActor, writeAudit } from './audit.ts'
import {
  brokenChainAction,
  findStoredHead,
  firstPreviousHash,
  hashRow,
  isSealedBy,
  nameHead,
  sealHead,
  selectChainable,
} from './chain.ts'

const sealerLock = 0x1a7c_0006
/** On PGlite a page holds the main thread, for some twenty milliseconds. */
const pageSize = 100
/** How often the log tells where the chain stands, for whoever compares. */
const noteEveryMs = 3_600_000

export interface SealerSettings {
  readonly db: Db
  /** The secrets that seal the head: the first one seals, each of them is accepted. */
  readonly keys: () => readonly Uint8Array[]
  readonly log: Logger
  /** how often it looks, in milliseconds */
  readonly everyMs?: number
  /**
   * How long a head must be in doubt before the chain goes on from it, in milliseconds: another process may have sealed
   * it with a secret that this one does not know yet.
   */
  readonly patienceMs?: number
}

type Page =
  | { readonly outcome: 'sealed'; readonly rows: number; readonly head: string }
  /** the one row is sealed that says so */
  | { readonly outcome: 'begun anew'; readonly head: string }
  | { readonly outcome: 'nothing to seal' }
  | { readonly outcome: 'another is at it' }
  | { readonly outcome: 'head in doubt' }

/**
 * Seals whatever is committed, now and every `everyMs` milliseconds. Every process may run it.
 * @returns what stops it, once the page under way is over
 */
export function startSealing({
  db,
  keys,
  log,
  everyMs = 500,
  patienceMs = 60_000,
}: SealerSettings): () => Promise<void> {
  const stopped = new AbortController()
  let running: Promise<void> | undefined
  let isFailing = false
  let inDoubtSince: number | undefined
  let head: string | undefined
  let noted = { head, at: performance.now() }

  const seal = async () => {
    while (!stopped.signal.aborted) {
      const isPatient = inDoubtSince === undefined || performance.now() - inDoubtSince < patienceMs
      const page = await sealPage(db, { keys: keys(), knownHead: head, whenInDoubt: isPatient ? 'wait' : 'go on' })
      if (page.outcome === 'another is at it') return
      if (page.outcome === 'head in doubt') {
        if (inDoubtSince === undefined) log.warn('the head of the audit record is not one that this process knows')
        inDoubtSince ??= performance.now()
        return
      }
      if (page.outcome === 'begun anew') {
        log.error('the audit record was changed by somebody else: run `latchkey audit verify`')
      }
      inDoubtSince = undefined
      // Or another process has sealed everything, who was in no doubt.
      if (page.outcome === 'nothing to seal') return
      head = page.head
      if (page.outcome === 'sealed' && page.rows < pageSize) return
      // Let waiting requests through.
      await nextTurn()
    }
  }
  const noteHead = () => {
    if (head !== undefined && head !== noted.head) log.info({ audit_head: head }, 'the audit record')
    noted = { head, at: performance.now() }
  }
  const look = async () => {
    try {
      await seal()
      if (performance.now() - noted.at >= noteEveryMs) noteHead()
      isFailing = false
    } catch (error) {
      // Once, not twice a second, for as long as the database is away.
      if (!isFailing) log.warn({ error_message: String(error) }, 'the audit record cannot be sealed at the moment')
      isFailing = true
    } finally {
      running = undefined
    }
  }
  const run = () => void (running ??= look())
  const timer = setInterval(run, everyMs)
  timer.unref()
  run()
  return async () => {
    stopped.abort()
    clearInterval(timer)
    await running
    noteHead()
  }
}

interface PageSettings {
  readonly keys: readonly Uint8Array[]
  /** the one that this process wrote, which it knows again without its secret */
  readonly knownHead: string | undefined
  readonly whenInDoubt: 'wait' | 'go on'
}

async function sealPage(db: Db, { keys, knownHead, whenInDoubt }: PageSettings): Promise<Page> {
  const [key] = keys
  if (key === undefined) throw new Error('there is no secret to seal the audit record with')
  // Outside a transaction: nearly always there is nothing to do.
  const waiting = await db
    .selectFrom('audit_events')
    .select('id')
    .where('sequence', 'is', null)
    .limit(1)
    .executeTakeFirst()
  if (waiting === undefined) return { outcome: 'nothing to seal' }

  return db.transaction().execute(async (trx): Promise<Page> => {
    if (!(await tryLockChain(trx))) return { outcome: 'another is at it' }
    // Read after the lock was taken, so that everything the last holder wrote is seen.
    const stored = await findStoredHead(trx)
    const last = await trx
      .selectFrom('audit_events')
      .select(['sequence', sql<string | null>`encode(hash, 'hex')`.as('hash')])
      .where('sequence', 'is not', null)
      .orderBy('sequence', 'desc')
      .limit(1)
      .executeTakeFirst()
    const lastSequence = last?.sequence ?? 0
    // Rows beyond the head are nobody's of ours either: rows and head are written in one transaction.
    const isOurs =
      stored !== undefined &&
      lastSequence <= stored.sequence &&
      (isSealedBy(keys, stored) || nameHead(stored) === knownHead)
    if (!isOurs && whenInDoubt === 'wait') return { outcome: 'head in doubt' }
    if (!isOurs) {
      await writeAudit(trx, systemActor, {
        action: brokenChainAction,
        target: { type: 'audit-chain', id: 'head' },
        details: { head: stored === undefined ? null : nameHead(stored), last: lastSequence },
      })
    }

    const unsealed = selectChainable(trx).where('sequence', 'is', null)
    const rows = await (
      isOurs
        ? unsealed.orderBy('id').limit(pageSize)
        : // Sealed before any other row, and alone: without it there is no chain that begins anew.
          unsealed.where('action', '=', brokenChainAction).orderBy('id', 'desc').limit(1)
    ).execute()
    if (rows.length === 0) return { outcome: 'nothing to seal' }

    let sequence = isOurs ? stored.sequence : lastSequence
    let hash = isOurs ? stored.hash : (last?.hash ?? firstPreviousHash)
    const links = rows.map((row) => {
      const previousHash = hash
      sequence += 1
      hash = hashRow(row, { sequence, previousHash })
      return { id: row.rowId, sequence, previous_hash: previousHash, hash }
    })
    const { numAffectedRows } = await sql`
      UPDATE audit_events AS event
      SET sequence = link.sequence, previous_hash = decode(link.previous_hash, 'hex'), hash = decode(link.hash, 'hex')
      FROM jsonb_to_recordset(${JSON.stringify(links)}::jsonb)
        AS link (id bigint, sequence bigint, previous_hash text, hash text)
      WHERE event.id = link.id AND event.sequence IS NULL`.execute(trx)
    if (Number(numAffectedRows) !== links.length)
      throw new Error('audit rows were changed while they were being sealed')
    await storeHead(trx, { sequence, hash, seal: sealHead(key, { sequence, hash }) })
    const head = nameHead({ sequence, hash })
    return isOurs ? { outcome: 'sealed', rows: rows.length, head } : { outcome: 'begun anew', head }
  })
}

async function tryLockChain(trx: Trx): Promise<boolean> {
  const { rows } = await sql<{ mine: boolean }>`SELECT pg_try_advisory_xact_lock(${sealerLock}) AS mine`.execute(trx)
  return rows[0]?.mine === true
}

async function storeHead(
  trx: Trx,
  { sequence, hash, seal }: { sequence: number; hash: string; seal: string },
): Promise<void> {
  const columns = {
    sequence,
    hash: Buffer.from(hash, 'hex'),
    seal: Buffer.from(seal, 'hex'),
    sealed_at: sql<Date>`clock_timestamp()`,
  }
  await trx
    .insertInto('audit_chain')
    .values(columns)
    .onConflict((conflict) => conflict.column('id').doUpdateSet(columns))
    .execute()
}
