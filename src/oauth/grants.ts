/**
 * Which Grant an authorization request continues: one for each session and client. What the person may do and has
 * agreed to is added to it here; what is missing makes oidc-provider show the consent page.
 */
import { errors, type Grant, type KoaContextWithOIDC } from 'oidc-provider'
import type { Db } from '../database/database.ts'
import type { UserAccount } from './account.ts'
import type { ClientDirectory } from './client-directory.ts'
import { findConsents } from './consents.ts'
import { requestDb } from './token-transaction.ts'

/** What an authorization request asks, sorted by what becomes of it. */
export interface AskedScopes {
  readonly openid: readonly string[]
  /** resource → scopes that the person's roles allow */
  readonly permitted: ReadonlyMap<string, readonly string[]>
  /** resource → scopes that the person's roles do not allow: left out of the token */
  readonly beyondRoles: ReadonlyMap<string, readonly string[]>
}

export function sortAskedScopes(
  asked: { readonly openid: Iterable<string>; readonly all: Iterable<string>; readonly resources: Iterable<string> },
  account: UserAccount,
  clientPermissions: ReadonlyMap<string, ReadonlySet<string>>,
): AskedScopes {
  const permitted = new Map<string, string[]>()
  const beyondRoles = new Map<string, string[]>()
  const all = [...asked.all]
  for (const resource of asked.resources) {
    const ofResource = all.filter((scope) => clientPermissions.get(resource)?.has(scope))
    const roles = account.permissions.get(resource)
    permitted.set(
      resource,
      ofResource.filter((scope) => roles?.has(scope)),
    )
    beyondRoles.set(
      resource,
      ofResource.filter((scope) => !roles?.has(scope)),
    )
  }
  return { openid: [...asked.openid], permitted, beyondRoles }
}

/** For oidc-provider's loadExistingGrant. */
export async function loadGrant(
  db: Db,
  directory: ClientDirectory,
  ctx: KoaContextWithOIDC,
): Promise<Grant | undefined> {
  const { client, session, account, provider } = ctx.oidc
  if (client === undefined || session === undefined || account === undefined) return undefined
  const entry = await directory.findClient(client.clientId)
  if (entry === undefined) return undefined
  const asked = sortAskedScopes(
    {
      openid: ctx.oidc.requestParamOIDCScopes,
      all: ctx.oidc.requestParamScopes,
      resources: Object.keys(ctx.oidc.resourceServers ?? {}),
    },
    account as UserAccount,
    entry.permissions,
  )
  const agreed = entry.row.first_party
    ? 'everything'
    : await findConsents(requestDb(db), account.accountId, client.clientId)
  const isAgreed = (resource: string, scope: string) =>
    agreed === 'everything' || agreed.get(resource)?.has(scope) === true

  const grantId = session.grantIdFor(client.clientId)
  const existing = grantId === undefined ? undefined : await provider.Grant.find(grantId)
  const grant = existing ?? new provider.Grant({ accountId: account.accountId, clientId: client.clientId })
  const before = JSON.stringify([grant.openid, grant.resources, grant.rejected])
  // Refusals are of now: roles may have been given or taken since the last time.
  delete grant.rejected
  const { login } = (ctx.oidc.result ?? {}) as { login?: { signInVersion?: number } }
  if (login?.signInVersion !== undefined) Object.assign(session, { signInVersion: login.signInVersion })
  // A grant must not outlive the sign-in that it came from, so it is as old as the session.
  const { signInVersion } = session as { signInVersion?: number }
  if (existing === undefined && signInVersion !== undefined) Object.assign(grant, { signInVersion })

  const openid = asked.openid.filter((scope) => isAgreed('', scope))
  if (openid.length > 0) grant.addOIDCScope(openid.join(' '))
  for (const [resource, scopes] of asked.permitted) {
    const granted = scopes.filter((scope) => isAgreed(resource, scope))
    if (granted.length > 0) grant.addResourceScope(resource, granted.join(' '))
  }
  for (const [resource, scopes] of asked.beyondRoles) {
    if (scopes.length > 0) grant.rejectResourceScope(resource, scopes.join(' '))
  }
  const hasAnything = openid.length > 0 || [...asked.permitted.values()].some((scopes) => scopes.length > 0)
  if (existing === undefined && !hasAnything) return undefined
  if (existing === undefined || before !== JSON.stringify([grant.openid, grant.resources, grant.rejected])) {
    await grant.save()
    await refuseWithdrawn(requestDb(db), grant, agreed)
    await refuseRemoved(requestDb(db), grant)
  }
  return grant
}

/*
 * What was read before the Grant was saved may be gone since. Whoever takes something away removes the row that allows
 * it first and then looks for the families that hold it; here it is the other way round, the family first and then, by a
 * lock that waits for the other, the row: one of the two finds the other.
 */

async function refuseWithdrawn(
  db: Db,
  grant: Grant,
  agreed: ReadonlyMap<string, ReadonlySet<string>> | 'everything',
): Promise<void> {
  if (agreed === 'everything') return
  const now = await findConsents(db, grant.accountId ?? '', grant.clientId ?? '', { isSettled: true })
  const isWithdrawn = [...agreed].some(([resource, scopes]) =>
    [...scopes].some((scope) => now.get(resource)?.has(scope) !== true),
  )
  if (!isWithdrawn) return
  await grant.destroy()
  throw new errors.AccessDenied('this consent has just been withdrawn')
}

async function refuseRemoved(db: Db, grant: Grant): Promise<void> {
  const rows = await db
    .selectFrom('client_permissions')
    .select(['resource', 'permission'])
    .where('client_id', '=', grant.clientId ?? '')
    .forShare()
    .execute()
  const resources = Object.entries(grant.resources ?? {}).map(([resource, scope]) => {
    const allowed = new Set(rows.flatMap((row) => (row.resource === resource ? [row.permission] : [])))
    return {
      resource,
      scope,
      kept: scope
        .split(' ')
        .filter((name) => allowed.has(name))
        .join(' '),
    }
  })
  if (resources.every(({ scope, kept }) => scope === kept)) return
  grant.resources = Object.fromEntries(resources.map(({ resource, kept }) => [resource, kept]))
  await grant.save()
  throw new errors.AccessDenied('what this client may ask for has just changed: try again')
}
