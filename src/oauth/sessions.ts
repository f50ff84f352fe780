/**
 * Ending a person's session from our own pages: the session, the families that belong to it, and word of it to the
 * clients that asked for back-channel logout.
 */
import { sql } from 'kysely'
import type { Provider } from 'oidc-provider'
import { writeAudit, type Actor } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
import { revoke } from '../revocation/revocations.ts'
import { revokeFamiliesOfSession, revokeFamily } from './families.ts'

/** What a session's row says of each client that was signed in to. */
interface Authorization {
  readonly grantId?: string
  readonly sid?: string
  /** offline access was granted: the family outlives the session */
  readonly persistsLogout?: boolean
}

export interface EndedSession {
  readonly userId: string
  readonly clientIds: readonly string[]
}

/** @returns undefined when there was no such session any more */
export async function endSession(
  trx: Trx,
  actor: Actor,
  { sessionUid, reason }: { readonly sessionUid: string; readonly reason: string },
): Promise<EndedSession | undefined> {
  const { rows } = await sql<{ userId: string | null; authorizations: Record<string, Authorization> | null }>`
    SELECT user_id AS "userId", payload->'authorizations' AS authorizations
    FROM artifacts WHERE kind = 'Session' AND session_uid = ${sessionUid}`.execute(trx)
  const [session] = rows
  if (session === undefined || session.userId === null) return undefined
  const authorizations = Object.entries(session.authorizations ?? {})
  // Families first, in one order everywhere: whoever locks several locks them so.
  const grantIds = authorizations.flatMap(([, { grantId, persistsLogout }]) =>
    grantId === undefined || persistsLogout === true ? [] : [grantId],
  )
  for (const grantId of grantIds.sort()) await revokeFamily(trx, actor, { grantId, reason })
  await trx.deleteFrom('artifacts').where('kind', '=', 'Session').where('session_uid', '=', sessionUid).execute()
  await revoke(trx, { kind: 'session', subject: sessionUid, reason })
  await writeAudit(trx, actor, {
    action: 'session.ended',
    target: { type: 'session', id: sessionUid },
    details: { reason, user_id: session.userId },
  })
  return { userId: session.userId, clientIds: authorizations.map(([clientId]) => clientId) }
}

/**
 * To be called after a session's end is committed: from then on no request can save it, and without that no code of it
 * is handed out, so that what is found now is all there will ever be.
 */
export async function endRemainingFamilies(
  db: Db,
  actor: Actor,
  session: { readonly sessionUid: string; readonly reason: string },
): Promise<void> {
  await db.transaction().execute((trx) => revokeFamiliesOfSession(trx, actor, session))
}

/** A part of the provider's Client that its type declarations leave out. */
interface LogoutClient {
  readonly backchannelLogoutUri?: string
  backchannelLogout(subject: string, sid: string): Promise<unknown>
}

/** Ends a session and tells its clients (OpenID Connect Back-Channel Logout 1.0); one that does not answer is skipped. */
export async function signOut(
  db: Db,
  provider: Provider,
  actor: Actor,
  sessionUid: string,
  onUnreachable: (clientId: string, error: unknown) => void,
): Promise<void> {
  const reason = 'signed out'
  const ended = await db.transaction().execute((trx) => endSession(trx, actor, { sessionUid, reason }))
  await endRemainingFamilies(db, actor, { sessionUid, reason })
  await Promise.all(
    (ended?.clientIds ?? []).map(async (clientId) => {
      const client = (await provider.Client.find(clientId)) as LogoutClient | undefined
      if (client?.backchannelLogoutUri === undefined) return
      await client
        .backchannelLogout(ended?.userId ?? '', sessionUid)
        .catch((error: unknown) => onUnreachable(clientId, error))
    }),
  )
}
