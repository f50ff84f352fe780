/**
 * The end of a person's session, on whichever page and by whomever: the session, the families that belong to it and the
 * revocation in one transaction; then word of it to the clients that asked for back-channel logout.
 */
import { sql } from 'kysely'
import type { Provider } from 'oidc-provider'
import type { Actor } from '../audit/audit.ts'
import { writeAudit } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
import { revoke } from '../revocation/revocations.ts'
import { revokeFamily } from './families.ts'
import { lockSession } from './session-lock.ts'

/** What a session's row says of each client that was signed in to. */
interface Authorization {
  readonly grantId?: string
  /** offline access was granted: the family outlives the session */
  readonly persistsLogout?: boolean
}

export interface EndedSession {
  readonly userId: string
  readonly sessionUid: string
  /** those that were signed in to, for `tellClients` */
  readonly clientIds: readonly string[]
}

/**
 * Ends a session, and of its families all but those with offline access.
 * @param input.sessionUid the `sid` of its tokens
 * @param input.reason for the audit record and the services
 * @returns undefined when there was no such session any more
 */
export async function endSession(
  trx: Trx,
  actor: Actor,
  { sessionUid, reason }: { readonly sessionUid: string; readonly reason: string },
): Promise<EndedSession | undefined> {
  await lockSession(trx, sessionUid)
  // It has a new id after each sign-in: a request beside that one may have saved it under the old one once more.
  const { rows } = await sql<{
    userId: string
    authorizations: Record<string, Authorization> | null
    createdAt: Date
    expiresAt: Date
  }>`
    SELECT user_id AS "userId", payload->'authorizations' AS authorizations, created_at AS "createdAt",
      expires_at AS "expiresAt"
    FROM artifacts WHERE kind = 'Session' AND session_uid = ${sessionUid} AND user_id IS NOT NULL`.execute(trx)
  const [session] = rows
  if (session === undefined) return undefined
  const { userId, createdAt, expiresAt } = session
  const authorizations = rows.flatMap((row) => Object.entries(row.authorizations ?? {}))
  const named = authorizations.flatMap(([, { grantId, persistsLogout }]) =>
    grantId === undefined || persistsLogout === true ? [] : [grantId],
  )
  for (const grantId of await findFamilies(trx, sessionUid, named)) await revokeFamily(trx, actor, { grantId, reason })
  await trx.deleteFrom('artifacts').where('kind', '=', 'Session').where('session_uid', '=', sessionUid).execute()
  await revoke(trx, { kind: 'session', subject: sessionUid, reason, by: actor })
  const clientIds = [...new Set(authorizations.map(([clientId]) => clientId))]
  await writeAudit(trx, actor, {
    action: 'session.ended',
    target: { type: 'session', id: sessionUid },
    details: {
      reason,
      before: { user_id: userId, client_ids: clientIds, created_at: createdAt, expires_at: expiresAt },
    },
  })
  return { userId, sessionUid, clientIds }
}

/**
 * The families that end with a session. Its own row names them, but is written as a whole by every request that carries
 * it: of two tabs beside each other, one is lost there, and found by what came from it.
 * @returns in the one order in which families are locked
 */
async function findFamilies(trx: Trx, sessionUid: string, named: readonly string[]): Promise<string[]> {
  const { rows } = await sql<{ grantId: string }>`
    SELECT family.grant_id AS "grantId" FROM (
      SELECT jsonb_array_elements_text(${JSON.stringify(named)}::jsonb) AS grant_id
      UNION
      SELECT grant_id FROM artifacts WHERE session_uid = ${sessionUid} AND grant_id IS NOT NULL
    ) AS family
    WHERE NOT EXISTS (
      SELECT 1 FROM artifacts lasting
      WHERE lasting.grant_id = family.grant_id
        AND 'offline_access' = ANY (string_to_array(coalesce(lasting.payload->>'scope', ''), ' '))
    )
    ORDER BY family.grant_id COLLATE "C"`.execute(trx)
  return rows.map(({ grantId }) => grantId)
}

/** A part of the provider's Client that its type declarations leave out. */
interface LogoutClient {
  readonly backchannelLogoutUri?: string
  backchannelLogout(subject: string, sid: string): Promise<unknown>
}

type OnUnreachable = (clientId: string, error: unknown) => void

/**
 * Tells the clients of a session that it has ended (OpenID Connect Back-Channel Logout 1.0): to be called once that is
 * committed. One that does not answer is skipped.
 */
export async function tellClients(
  provider: Provider,
  { userId, sessionUid, clientIds }: EndedSession,
  onUnreachable: OnUnreachable,
): Promise<void> {
  await Promise.all(
    clientIds.map(async (clientId) => {
      const client = (await provider.Client.find(clientId)) as LogoutClient | undefined
      if (client?.backchannelLogoutUri === undefined) return
      await client.backchannelLogout(userId, sessionUid).catch((error: unknown) => onUnreachable(clientId, error))
    }),
  )
}

/** Ends a session in a transaction of its own and tells its clients. */
export async function signOut(
  db: Db,
  provider: Provider,
  actor: Actor,
  sessionUid: string,
  onUnreachable: OnUnreachable,
): Promise<void> {
  const ended = await db.transaction().execute((trx) => endSession(trx, actor, { sessionUid, reason: 'signed out' }))
  if (ended !== undefined) await tellClients(provider, ended, onUnreachable)
}
