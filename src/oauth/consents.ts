/**
 * What people agreed that clients may do: remembered for each person, client and scope, over all sessions, until they
 * withdraw it. Withdrawing ends every family of that person at that client.
 */
import { sql } from 'kysely'
import { writeAudit, type Actor } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
import { revokeFamiliesOf } from './families.ts'

/** resource → scopes; resource '' holds OpenID Connect's own */
export type Consents = ReadonlyMap<string, ReadonlySet<string>>

/** @param options.isSettled true: waits for whoever is just withdrawing them */
export async function findConsents(
  db: Db,
  userId: string,
  clientId: string,
  options: { readonly isSettled?: boolean } = {},
): Promise<Consents> {
  const query = db
    .selectFrom('consents')
    .select(['resource', 'scope'])
    .where('user_id', '=', userId)
    .where('client_id', '=', clientId)
  const rows = await (options.isSettled === true ? query.forShare() : query).execute()
  const consents = new Map<string, Set<string>>()
  for (const { resource, scope } of rows) consents.set(resource, (consents.get(resource) ?? new Set()).add(scope))
  return consents
}

export interface GiveConsent {
  readonly userId: string
  readonly clientId: string
  readonly scopes: Consents
}

export async function giveConsent(trx: Trx, actor: Actor, { userId, clientId, scopes }: GiveConsent): Promise<void> {
  const rows = [...scopes].flatMap(([resource, names]) =>
    [...names].map((scope) => ({ user_id: userId, client_id: clientId, resource, scope })),
  )
  if (rows.length === 0) return
  const before = listOf(await findConsents(trx, userId, clientId))
  const { numInsertedOrUpdatedRows } = await trx
    .insertInto('consents')
    .values(rows)
    .onConflict((conflict) => conflict.doNothing())
    .executeTakeFirstOrThrow()
  if (numInsertedOrUpdatedRows === 0n) return
  const after = listOf(await findConsents(trx, userId, clientId))
  await writeAudit(trx, actor, {
    action: 'consent.given',
    target: { type: 'client', id: clientId },
    details: { user_id: userId, before: { scopes: before }, after: { scopes: after } },
  })
}

function listOf(consents: Consents): { readonly resource: string; readonly scope: string }[] {
  return [...consents].flatMap(([resource, scopes]) => [...scopes].map((scope) => ({ resource, scope })))
}

/** Forgets what a person agreed to and ends their families at the client; also those that are just beginning. */
export async function withdrawConsent(
  trx: Trx,
  actor: Actor,
  { userId, clientId }: { readonly userId: string; readonly clientId: string },
): Promise<void> {
  // In this order: grants.ts says why.
  const withdrawn = await trx
    .deleteFrom('consents')
    .where('user_id', '=', userId)
    .where('client_id', '=', clientId)
    .returning(['resource', 'scope'])
    .execute()
  await revokeFamiliesOf(trx, actor, { userId, clientId, reason: 'consent withdrawn' })
  await writeAudit(trx, actor, {
    action: 'consent.withdrawn',
    target: { type: 'client', id: clientId },
    details: { user_id: userId, before: { scopes: withdrawn } },
  })
}

/**
 * Forgets what people agreed to of scopes that a client, or every client, cannot ask for any more: should they come back,
 * people are asked again. One row a client says which scopes of how many people.
 * @param input.scopes undefined: all of the resource
 */
export async function forgetConsents(
  trx: Trx,
  actor: Actor,
  {
    clientId,
    resource,
    scopes,
    reason,
  }: {
    readonly clientId?: string
    readonly resource: string
    readonly scopes?: readonly string[]
    readonly reason: string
  },
): Promise<void> {
  const { rows } = await sql<{ clientId: string; scopes: string[]; people: number }>`
    WITH forgotten AS (
      DELETE FROM consents WHERE resource = ${resource}
        ${clientId === undefined ? sql`` : sql`AND client_id = ${clientId}`}
        ${scopes === undefined ? sql`` : sql`AND jsonb_exists(${JSON.stringify(scopes)}::jsonb, scope)`}
      RETURNING client_id, user_id, scope
    )
    SELECT client_id AS "clientId", jsonb_agg(DISTINCT scope) AS scopes, count(DISTINCT user_id)::int AS people
    FROM forgotten GROUP BY client_id ORDER BY client_id`.execute(trx)
  for (const row of rows) {
    await writeAudit(trx, actor, {
      action: 'consent.forgotten',
      target: { type: 'client', id: row.clientId },
      details: {
        reason,
        people: row.people,
        before: { scopes: row.scopes.map((scope) => ({ resource, scope })) },
      },
    })
  }
}

/** A client that may act for a person: by consent, or, first-party, by having been signed in to. */
export interface AuthorizedClient {
  readonly clientId: string
  readonly clientName: string
  readonly clientUri: string | null
  readonly firstParty: boolean
  readonly grantedAt: Date
  readonly scopes: readonly { readonly resource: string; readonly scope: string }[]
}

/** Everything that may act for this person now. */
export async function listAuthorizedClients(db: Db, userId: string): Promise<AuthorizedClient[]> {
  const { rows } = await sql<AuthorizedClient>`
    SELECT c.id AS "clientId", c.name AS "clientName", c.client_uri AS "clientUri", c.first_party AS "firstParty",
      least(min(s.granted_at), (
        SELECT min(created_at) FROM artifacts WHERE kind = 'Grant' AND user_id = ${userId} AND client_id = c.id AND expires_at > now()
      )) AS "grantedAt",
      coalesce(
        jsonb_agg(DISTINCT jsonb_build_object('resource', s.resource, 'scope', s.scope)) FILTER (WHERE s.scope IS NOT NULL),
        '[]'
      ) AS scopes
    FROM clients c LEFT JOIN consents s ON s.client_id = c.id AND s.user_id = ${userId}
    WHERE s.user_id IS NOT NULL OR EXISTS (
      SELECT 1 FROM artifacts a JOIN users u ON u.id = a.user_id
      WHERE a.kind = 'Grant' AND a.user_id = ${userId} AND a.client_id = c.id AND a.expires_at > now()
        AND a.sign_in_version = u.sign_in_version
    )
    GROUP BY c.id ORDER BY c.name, c.id LIMIT 200`.execute(db)
  return rows
}
