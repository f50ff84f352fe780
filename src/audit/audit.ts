/**
 * The record of who did what as whom: append-only, written in the change's own transaction, never with a secret in it.
 * The columns that chain the rows by hash are filled within a second by one sealer (sealer.ts), since a chain head in
 * every transaction would serialise them all; verify.ts finds what was changed afterwards. audit-log.ts reads the record.
 */
import type { Trx } from '../database/database.ts'

/** Who makes a change. */
export interface Actor {
  readonly type: 'user' | 'client' | 'operator' | 'system' | 'anonymous'
  /** a user's or client's id; for an operator the name of the account at the command line */
  readonly id: string
  /** the user that a service acts for */
  readonly onBehalfOf?: string | undefined
  readonly requestId?: string | undefined
}

export const systemActor: Actor = { type: 'system', id: 'latchkey' }

export interface AuditEvent {
  /** what happened, as `noun.verb`: `user.created`, `refresh-token.reused` */
  readonly action: string
  readonly target: { readonly type: string; readonly id: string }
  /**
   * Of a change its `before` and `after`, each an object of the fields that are not secret: of what is made only the
   * latter, of what ends only the former. Beside them what else says why and of what: a reason, how many people it
   * concerned. What changes nothing, such as a sign-in that was refused, has neither.
   */
  readonly details?: Record<string, unknown>
}

/** Appends one row; the caller's transaction decides whether it ever existed. */
export async function writeAudit(trx: Trx, actor: Actor, event: AuditEvent): Promise<void> {
  await trx
    .insertInto('audit_events')
    .values({
      action: event.action,
      actor_type: actor.type,
      actor_id: actor.id,
      on_behalf_of: actor.onBehalfOf ?? null,
      request_id: actor.requestId ?? null,
      target_type: event.target.type,
      target_id: event.target.id,
      details: JSON.stringify(event.details ?? {}),
    })
    .execute()
}
