/**
 * A family is everything that came from one sign-in of one person at one client: the Grant, its codes, refresh tokens
 * and access tokens. Whoever touches a family locks its Grant row first, on every path, so that a revocation beside a
 * refresh neither misses the successor nor deadlocks with it.
 */
import { sql } from 'kysely'
import { writeAudit, type Actor } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
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
    .select([
      'client_id',
      'user_id',
      sql<string | null>`payload->'openid'->>'scope'`.as('openid_scope'),
      sql<Record<string, string> | null>`payload->'resources'`.as('scopes'),
    ])
    .where('kind', '=', 'Grant')
    .where('id', '=', grantId)
    .forUpdate()
    .executeTakeFirst()
  if (grant === undefined) return false
  await trx.deleteFrom('artifacts').where('grant_id', '=', grantId).execute()
  await trx.deleteFrom('refresh_replies').where('grant_id', '=', grantId).execute()
  await revoke(trx, { kind: 'grant', subject: grantId, reason, by: actor })
  await writeAudit(trx, actor, {
    action: 'grant.revoked',
    target: { type: 'grant', id: grantId },
    details: { reason, before: grant },
  })
  return true
}

/** The person of a family; undefined when there is none. */
export async function findOwnerOfFamily(db: Db, grantId: string): Promise<string | undefined> {
  const row = await db
    .selectFrom('artifacts')
    .select('user_id')
    .where('kind', '=', 'Grant')
    .where('id', '=', grantId)
    .executeTakeFirst()
  return row?.user_id ?? undefined
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
    ORDER BY id COLLATE "C" FOR UPDATE`.execute(trx)
  for (const { id } of rows) await revokeFamily(trx, actor, { grantId: id, reason })
}

/**
 * For whatever concerns all families of some clients: without it, a refresh under way would leave its successor behind.
 * Locked in one order, as everywhere, so that those who lock many do not wait for each other.
 */
export async function lockFamiliesOfClients(trx: Trx, clientIds: readonly string[]): Promise<void> {
  await sql`
    SELECT count(*) FROM (
      SELECT id FROM artifacts
      WHERE kind = 'Grant' AND client_id IN (SELECT jsonb_array_elements_text(${JSON.stringify(clientIds)}::jsonb))
      ORDER BY id COLLATE "C" FOR UPDATE
    ) AS families`.execute(trx)
}

/**
 * Takes scopes out of every family of a client, for permissions that it has lost: should they come back, people are
 * asked again, and a refresh token from before does not have them.
 */
export async function forgetScopes(
  trx: Trx,
  { clientId, resource, scopes }: { readonly clientId: string; readonly resource: string; readonly scopes: string[] },
): Promise<void> {
  const { rows } = await sql<{ id: string }>`
    SELECT id FROM artifacts
    WHERE kind = 'Grant' AND client_id = ${clientId} AND jsonb_exists(payload->'resources', ${resource})
    ORDER BY id COLLATE "C" FOR UPDATE`.execute(trx)
  if (rows.length === 0) return
  await sql`
    UPDATE artifacts SET payload = jsonb_set(payload, array['resources', ${resource}], to_jsonb((
      SELECT coalesce(string_agg(scope, ' '), '')
      FROM unnest(string_to_array(payload->'resources'->>${resource}, ' ')) AS scope
      WHERE NOT jsonb_exists(${JSON.stringify(scopes)}::jsonb, scope)
    )))
    WHERE kind = 'Grant' AND client_id = ${clientId} AND jsonb_exists(payload->'resources', ${resource})`.execute(trx)
}
