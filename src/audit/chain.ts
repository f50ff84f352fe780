/**
 * How the rows of the audit record hang together. Each sealed row holds the hash of the one before it and its own, over
 * all its columns; the head (the table `audit_chain`) holds the last row's, under a seal that takes a secret to make.
 * sealer.ts writes the chain, verify.ts reads it.
 */
import { createHash, createHmac } from 'node:crypto'
import { sql } from 'kysely'
import type { Db } from '../database/database.ts'

/** What stands before the first row, in hexadecimal. */
export const firstPreviousHash = '00'.repeat(32)

/** Of a row which says that the head before it was not one of ours: what is before it may have been rewritten. */
export const brokenChainAction = 'audit-chain.broken'

// Of what is hashed. Whoever adds a column gives the rows from then on a form of another name, and keeps this one for
// those that were sealed in it.
const rowForm = 'latchkey-audit-row/1'
const headForm = 'latchkey-audit-head/1'

/** A row as it is hashed: the text that PostgreSQL has for each column, so that no driver has a say in it. */
export type ChainableRow = Awaited<ReturnType<ReturnType<typeof selectChainable>['executeTakeFirstOrThrow']>>

export interface Link {
  readonly sequence: number | string
  /** in hexadecimal */
  readonly previousHash: string | null
}

/** The head as it is stored; hashes in hexadecimal. */
export interface StoredHead {
  readonly sequence: number
  readonly hash: string
  readonly seal: string | null
}

/**
 * The rows with every column that a hash covers. `details` is canonical as it is: jsonb orders the members of objects,
 * drops duplicates and keeps numbers exactly, and its text comes back the same from a dump. Parsed as JavaScript does,
 * two large numbers could become one.
 */
export function selectChainable(db: Db) {
  return db
    .selectFrom('audit_events')
    .select([
      sql<string>`id::text`.as('rowId'),
      sql<string>`transaction_id::text`.as('transactionId'),
      sql<string>`trim_scale(extract(epoch FROM occurred_at) * 1000000)::text`.as('occurredAtMicroseconds'),
      'action',
      'actor_type as actorType',
      'actor_id as actorId',
      'on_behalf_of as onBehalfOf',
      'request_id as requestId',
      'target_type as targetType',
      'target_id as targetId',
      sql<string>`details::text`.as('details'),
    ])
}

/**
 * SHA-256 in hexadecimal over a JSON array of the form's name and every column: strings and nulls in a fixed order, so
 * that no two rows have one serialisation.
 */
export function hashRow(row: ChainableRow, { sequence, previousHash }: Link): string {
  const columns = [
    rowForm,
    String(sequence),
    previousHash,
    row.rowId,
    row.transactionId,
    row.occurredAtMicroseconds,
    row.action,
    row.actorType,
    row.actorId,
    row.onBehalfOf,
    row.requestId,
    row.targetType,
    row.targetId,
    row.details,
  ]
  return createHash('sha256').update(JSON.stringify(columns)).digest('hex')
}

/** @returns HMAC-SHA256 in hexadecimal */
export function sealHead(key: Uint8Array, { sequence, hash }: Pick<StoredHead, 'sequence' | 'hash'>): string {
  return createHmac('sha256', key)
    .update(JSON.stringify([headForm, String(sequence), hash]))
    .digest('hex')
}

/** Whether one of these keys sealed the head; an empty record has none to seal. */
export function isSealedBy(keys: readonly Uint8Array[], head: StoredHead): boolean {
  if (head.sequence === 0 && head.seal === null) return head.hash === firstPreviousHash
  return keys.some((key) => sealHead(key, head) === head.seal)
}

/** A head as an operator notes it, and as the log has it. */
export function nameHead({ sequence, hash }: Pick<StoredHead, 'sequence' | 'hash'>): string {
  return `${sequence}:${hash}`
}

/** undefined: somebody removed it, since the schema has one from the beginning */
export async function findStoredHead(db: Db): Promise<(StoredHead & { readonly sealedAt: Date }) | undefined> {
  return db
    .selectFrom('audit_chain')
    .select([
      'sequence',
      sql<string>`encode(hash, 'hex')`.as('hash'),
      sql<string | null>`encode(seal, 'hex')`.as('seal'),
      'sealed_at as sealedAt',
    ])
    .executeTakeFirst()
}
