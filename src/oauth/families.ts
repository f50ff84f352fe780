/**
 * A family is everything that came from one sign-in of one person at one client: the Grant, its codes, refresh tokens
 * and access tokens. Whoever touches a family locks its Grant row first, on every path, so that a revocation beside a
 * refresh neither misses the successor nor deadlocks with it.
 */
import { sql } from 'kysely'
import { writeAudit, type Actor } from '../audit/audit.ts'
import type { Trx } from '../database/database.ts'
import { revoke } from '../revocation/revocations.ts'

export interface RevokeFamily {
  readonly grantId: string
  /** why, as the audit record and the services will read it */
  readonly reason: string
}

/**
 * Ends a family: nothing of it can be used again, its access tokens included.
 * @returns false when there was no such family any more
 */
export async function revokeFamily(trx: Trx, actor: Actor, { grantId, reason }: RevokeFamily): Promise<boolean> {
  const grant = await trx
    .selectFrom('artifacts')
    .select(['id', 'client_id', 'user_id'])
    .where('kind', '=', 'Grant')
    .where('id', '=', grantId)
    .forUpdate()
    .executeTakeFirst()
  if (grant === undefined) return false
  await trx.deleteFrom('artifacts').where('grant_id', '=', grantId).execute()
  await trx.deleteFrom('refresh_replies').where('grant_id', '=', grantId).execute()
  await revoke(trx, { kind: 'grant', subject: grantId, reason })
  await writeAudit(trx, actor, {
    action: 'grant.revoked',
    target: { type: 'grant', id: grantId },
    details: { reason, client_id: grant.client_id, user_id: grant.user_id },
  })
  return true
}

/** Ends every family of a person at a client, on all devices. */
export async function revokeFamiliesOf(
  trx: Trx,
  actor: Actor,
  { userId, clientId, reason }: { readonly userId: string; readonly clientId: string; readonly reason: string },
): Promise<void> {
  const { rows } = await sql<{ id: string }>`
    SELECT id FROM artifacts
    WHERE kind = 'Grant' AND user_id = ${userId} AND client_id = ${clientId}
    ORDER BY id FOR UPDATE`.execute(trx)
  for (const { id } of rows) await revokeFamily(trx, actor, { grantId: id, reason })
}
