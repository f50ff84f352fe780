/**
 * Reads the chain of the audit record from one end to the other and says what is the first thing wrong with it: a row
 * that was changed, is missing, or stands in another's place; rows missing at the end; a head that is not ours.
 *
 * What it cannot find: a row that somebody wrote as the product does, before it was sealed; an earlier state of the whole
 * database, put back; and whatever is done by somebody who has the key-encryption key besides the database. The last two
 * are found by comparing with a head that was noted elsewhere: the log has one an hour.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { sql, type SqlBool } from 'kysely'
import type { Db } from '../database/database.ts'
import { brokenChainAction, findStoredHead, firstPreviousHash, hashRow, isSealedBy, selectChainable } from './chain.ts'

/** Where the chain ends, or ended when it was noted. */
export interface AuditHead {
  /** of the last row, counted from 1; 0: nothing is sealed yet */
  readonly sequence: number
  /** in hexadecimal */
  readonly hash: string
}

export interface AuditProblem {
  /**
   * `changed`: a column is not what was sealed, which includes rows that changed places. `missing`: there is no row of
   * this sequence. `replaced`: the row before it was another one. `inserted`: nobody sealed the row. `backdated`: the
   * row says that it is much older than those sealed before it. `broken`: the sealer found a head that was not ours.
   * `head`: the head is not that of the last row, not ours, or not the expected one. `unsealed`: no server seals.
   */
  readonly kind: 'changed' | 'missing' | 'replaced' | 'inserted' | 'backdated' | 'broken' | 'head' | 'unsealed'
  readonly sequence: number | undefined
  /** the row's id, as in the column */
  readonly id: number | undefined
  /** one sentence for an operator */
  readonly message: string
}

export type AuditVerification =
  | { readonly isSound: true; readonly count: number; readonly head: AuditHead }
  | { readonly isSound: false; readonly problem: AuditProblem }

export interface VerifyOptions {
  /** The sequence to begin at; what is before it is taken on trust. */
  readonly from?: number
  /** The secrets that may have sealed the head; undefined: the head's seal is not looked at. */
  readonly keys?: readonly Uint8Array[] | undefined
  /** A head that was noted before; the row must still be there. Not before `from`. */
  readonly expectedHead?: AuditHead | undefined
}

const pageSize = 500
/** Transactions end sooner than that; a clock that is set back may not. */
const mostBackdatedMicroseconds = 3_600_000_000
/** A running server needs one. */
const mostUnsealedSeconds = 60

/** The present head; undefined when somebody removed it. */
export async function findAuditHead(db: Db): Promise<(AuditHead & { readonly sealedAt: Date }) | undefined> {
  const stored = await findStoredHead(db)
  return stored === undefined ? undefined : { sequence: stored.sequence, hash: stored.hash, sealedAt: stored.sealedAt }
}

/**
 * Reads a page at a time, so that neither memory nor the embedded database's thread is held; rows may be written and
 * sealed meanwhile. It changes nothing.
 */
export async function verifyAuditChain(
  db: Db,
  { from = 1, keys, expectedHead }: VerifyOptions = {},
): Promise<AuditVerification> {
  const ends = await findEnds(db)
  const { head } = ends
  if (head === undefined) return wrong('head', undefined, undefined, 'the table audit_chain has lost its row')
  if (ends.first !== undefined && ends.first < 1) {
    return wrong('inserted', ends.first, undefined, `a row has the sequence ${ends.first}, and the first one is 1`)
  }
  if (from > head.sequence + 1) return missing(head.sequence + 1, from - 1)

  let expected = from
  let previousHash = from === 1 ? firstPreviousHash : await findHash(db, from - 1)
  let latest = -Infinity
  for (;;) {
    const page = await findPage(db, expected, head.sequence)
    for (const row of page) {
      const { sequence } = row
      const id = Number(row.rowId)
      if (sequence !== expected) return missing(expected, sequence - 1)
      if (hashRow(row, row) !== row.hash) {
        return wrong('changed', sequence, id, 'it was changed after it was sealed')
      }
      if (row.previousHash !== (previousHash ?? row.previousHash)) {
        return wrong('replaced', sequence, id, 'it was sealed after another row than the one that is before it now')
      }
      if (row.action === brokenChainAction) {
        return wrong('broken', sequence, id, 'the head before it was not one of ours: rows before it may be forged')
      }
      const occurredAt = Number(row.occurredAtMicroseconds)
      if (occurredAt < latest - mostBackdatedMicroseconds) {
        return wrong('backdated', sequence, id, 'it is dated more than an hour before a row that was sealed earlier')
      }
      if (sequence === expectedHead?.sequence && row.hash !== expectedHead.hash) {
        return wrong('head', sequence, id, `its hash is ${row.hash}, not the expected one`)
      }
      latest = Math.max(latest, occurredAt)
      previousHash = row.hash
      expected = sequence + 1
    }
    if (page.length < pageSize) break
    await nextTurn()
  }

  const end = Math.max(head.sequence, expectedHead?.sequence ?? 0)
  if (expected <= end) return missing(expected, end)
  if (previousHash !== undefined && previousHash !== head.hash) {
    return wrong('head', head.sequence, undefined, 'the head holds another hash than the last row')
  }
  if (keys !== undefined && !isSealedBy(keys, head)) {
    return wrong('head', head.sequence, undefined, 'the head was not sealed by this provider: all of it may be forged')
  }
  if (ends.last !== undefined && ends.last > head.sequence) {
    return wrong('inserted', ends.last, undefined, `it is beyond the head, which is ${head.sequence}`)
  }
  const unsealed = await findForgotten(db)
  if (unsealed !== undefined) {
    return wrong(
      'unsealed',
      undefined,
      unsealed,
      `it was not sealed within ${mostUnsealedSeconds} seconds; a running server does that`,
    )
  }
  return { isSound: true, count: expected - from, head: { sequence: head.sequence, hash: head.hash } }
}

/** The head and the sequences of the first row and the last, in one snapshot: the sealer may be at work. */
async function findEnds(db: Db) {
  const { rows } = await sql<{
    sequence: number | null
    hash: string
    seal: string | null
    first: number | null
    last: number | null
  }>`
    SELECT head.sequence, encode(head.hash, 'hex') AS hash, encode(head.seal, 'hex') AS seal, ends.first, ends.last
    FROM (SELECT min(sequence) AS first, max(sequence) AS last FROM audit_events) AS ends
    LEFT JOIN audit_chain AS head ON true`.execute(db)
  const [row] = rows
  const sequence = row?.sequence ?? undefined
  return {
    head: row === undefined || sequence === undefined ? undefined : { sequence, hash: row.hash, seal: row.seal },
    first: row?.first ?? undefined,
    last: row?.last ?? undefined,
  }
}

async function findHash(db: Db, sequence: number): Promise<string | undefined> {
  const row = await db
    .selectFrom('audit_events')
    .select(sql<string | null>`encode(hash, 'hex')`.as('hash'))
    .where('sequence', '=', sequence)
    .executeTakeFirst()
  return row?.hash ?? undefined
}

async function findPage(db: Db, from: number, to: number) {
  return selectChainable(db)
    .select([
      sql<number>`sequence`.as('sequence'),
      sql<string | null>`encode(previous_hash, 'hex')`.as('previousHash'),
      sql<string>`coalesce(encode(hash, 'hex'), '')`.as('hash'),
    ])
    .where('sequence', '>=', from)
    .where('sequence', '<=', to)
    .orderBy('sequence')
    .limit(pageSize)
    .execute()
}

async function findForgotten(db: Db): Promise<number | undefined> {
  const row = await db
    .selectFrom('audit_events')
    .select('id')
    .where('sequence', 'is', null)
    .where(sql<SqlBool>`occurred_at < clock_timestamp() - make_interval(secs => ${mostUnsealedSeconds}::int)`)
    .orderBy('id')
    .limit(1)
    .executeTakeFirst()
  return row?.id
}

function missing(first: number, last: number): AuditVerification {
  return wrong('missing', first, undefined, first === last ? 'it is missing' : `it and all up to ${last} are missing`)
}

function wrong(
  kind: AuditProblem['kind'],
  sequence: number | undefined,
  id: number | undefined,
  what: string,
): AuditVerification {
  const row = [
    ...(sequence === undefined ? [] : [`sequence ${sequence}`]),
    ...(id === undefined ? [] : [`id ${id}`]),
  ].join(', ')
  return { isSound: false, problem: { kind, sequence, id, message: row === '' ? what : `${row}: ${what}` } }
}
