/** Reading the audit record: the newest events that match, and an event as the API and the command line show it. */
import { sql, type Selectable, type SqlBool } from 'kysely'
import type { Db } from '../database/database.ts'
import type { AuditEventsTable } from '../database/tables.ts'

export type AuditEventRow = Selectable<AuditEventsTable>

/** An event on the wire. */
export interface AuditEventDescription {
  /** `aud_` and the row's id */
  readonly audit_event_id: string
  readonly occurred_at: string
  readonly action: string
  readonly actor: {
    readonly type: AuditEventRow['actor_type']
    readonly id: string
    readonly on_behalf_of: string | null
  }
  readonly target: { readonly type: string; readonly id: string }
  readonly request_id: string | null
  readonly details: Record<string, unknown>
  /** null for the moment between the change and the sealer */
  readonly sequence: number | null
  /** in hexadecimal */
  readonly hash: string | null
}

export interface AuditFilter {
  /** the id of who did it, or of whom it was done for */
  readonly actor?: string | undefined
  readonly action?: string | undefined
  /** the id of what was changed */
  readonly target?: string | undefined
  readonly since?: Date | undefined
  /** how many at most */
  readonly limit: number
}

/** The newest first: in the order in which they were written, whether they are sealed yet or not. */
export async function findAuditEvents(
  db: Db,
  { actor, action, target, since, limit }: AuditFilter,
): Promise<AuditEventRow[]> {
  let query = db.selectFrom('audit_events').selectAll().orderBy('id', 'desc').limit(limit)
  if (actor !== undefined) query = query.where(sql<SqlBool>`${actor} IN (actor_id, on_behalf_of)`)
  if (action !== undefined) query = query.where('action', '=', action)
  if (target !== undefined) query = query.where('target_id', '=', target)
  if (since !== undefined) query = query.where('occurred_at', '>=', since)
  return query.execute()
}

export function describeAuditEvent(row: AuditEventRow): AuditEventDescription {
  return {
    audit_event_id: auditEventId(row.id),
    occurred_at: row.occurred_at.toISOString(),
    action: row.action,
    actor: { type: row.actor_type, id: row.actor_id, on_behalf_of: row.on_behalf_of },
    target: { type: row.target_type, id: row.target_id },
    request_id: row.request_id,
    details: row.details,
    sequence: row.sequence,
    hash: row.hash === null ? null : Buffer.from(row.hash).toString('hex'),
  }
}

/** The id that the API shows for a row's. */
export function auditEventId(id: number): string {
  return `aud_${id}`
}
