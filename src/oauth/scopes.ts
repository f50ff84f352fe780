/**
 * Which scopes a token gets: those asked for, that the client may ask of that resource, and that the person's roles
 * allow. Beyond the client is the client's mistake: `invalid_scope`. Beyond the roles is left out, and the token
 * response's `scope` says so (RFC 6749 §3.3).
 */
import { errors, type Client, type KoaContextWithOIDC, type ResourceServer } from 'oidc-provider'
import type { UserAccount } from './account.ts'
import type { ClientDirectory, ClientEntry } from './client-directory.ts'

/** Scopes of OpenID Connect, that no resource owns. */
export const openidScopes = ['openid', 'offline_access', 'profile', 'email', 'address', 'phone'] as const

/** Which claims about a person each of those scopes asks for (OpenID Connect Core §5.4). */
export const claimsOfScopes = {
  profile: [
    'birthdate',
    'family_name',
    'gender',
    'given_name',
    'locale',
    'middle_name',
    'name',
    'nickname',
    'picture',
    'preferred_username',
    'profile',
    'updated_at',
    'website',
    'zoneinfo',
  ],
  email: ['email', 'email_verified'],
  address: ['address'],
  phone: ['phone_number', 'phone_number_verified'],
}

const isOpenidScope = (scope: string) => (openidScopes as readonly string[]).includes(scope)

/** The scope parameter, apart from OpenID Connect's own. */
function askedOfResources(ctx: KoaContextWithOIDC): string[] {
  return [...(ctx.oidc.requestParamScopes ?? [])].filter((scope) => scope !== '' && !isOpenidScope(scope))
}

/** For oidc-provider's resourceIndicators.getResourceServerInfo. */
export async function describeResource(
  directory: ClientDirectory,
  ctx: KoaContextWithOIDC,
  resource: string,
  { clientId }: Client,
): Promise<ResourceServer> {
  const [client, entry] = await Promise.all([directory.findClient(clientId), directory.findResource(resource)])
  const mayAsk = client?.permissions.get(resource)
  if (client === undefined || entry === undefined || mayAsk === undefined) {
    throw new errors.InvalidTarget('this client may not ask for that resource')
  }
  if (ctx.oidc.params?.['grant_type'] === 'client_credentials') askForAllWhenNoneIsNamed(ctx, mayAsk)
  refuseBeyondClient(ctx, client)
  const account = ctx.oidc.entities.Account as UserAccount | undefined
  const allowedByRoles = account?.permissions.get(resource)
  const scopes = account === undefined ? [...mayAsk] : [...mayAsk].filter((scope) => allowedByRoles?.has(scope))
  return {
    scope: scopes.join(' '),
    audience: resource,
    accessTokenFormat: 'jwt',
    accessTokenTTL: entry.row.access_token_lifetime_seconds,
    jwt: { sign: { alg: 'RS256' } },
  }
}

/** For oidc-provider's resourceIndicators.defaultResource: what is meant when the request names none. */
export async function findDefaultResource(
  directory: ClientDirectory,
  ctx: KoaContextWithOIDC,
  { clientId }: Client,
  oneOf?: string[],
): Promise<string | string[] | undefined> {
  const client = await directory.findClient(clientId)
  const fallback = client?.row.default_resource ?? undefined
  if (oneOf !== undefined) return fallback !== undefined && oneOf.includes(fallback) ? fallback : oneOf
  if (fallback !== undefined) return fallback
  if (client === undefined) return undefined
  const resources = [...client.permissions.keys()]
  if (ctx.oidc.params?.['grant_type'] === 'client_credentials') {
    throw new errors.InvalidTarget(
      resources.length === 0
        ? 'this client may not ask for any resource'
        : 'name the resource that the token is for, with the resource parameter',
    )
  }
  const owned = askedOfResources(ctx).find((scope) => resources.some((r) => client.permissions.get(r)?.has(scope)))
  if (owned !== undefined) {
    throw new errors.InvalidTarget(`name the resource that ${owned} belongs to, with the resource parameter`)
  }
  return undefined
}

/** RFC 6749 §3.3 lets a server choose a default for an omitted scope: a machine gets what it is registered for. */
function askForAllWhenNoneIsNamed(ctx: KoaContextWithOIDC, mayAsk: ReadonlySet<string>): void {
  if (ctx.oidc.params !== undefined && ctx.oidc.params['scope'] === undefined) {
    ctx.oidc.params['scope'] = [...mayAsk].join(' ')
  }
}

function refuseBeyondClient(ctx: KoaContextWithOIDC, client: ClientEntry): void {
  const grantType = ctx.oidc.params?.['grant_type']
  if (grantType === 'refresh_token' || grantType === 'authorization_code') return
  const resources = [ctx.oidc.params?.['resource']].flat()
  const mayAsk = (scope: string) =>
    resources.some((resource) => typeof resource === 'string' && client.permissions.get(resource)?.has(scope) === true)
  // A machine is nobody about whom there were anything to know: OpenID Connect's scopes are beyond it too.
  const asked = grantType === 'client_credentials' ? [...ctx.oidc.requestParamScopes] : askedOfResources(ctx)
  const beyond = asked.find((scope) => scope !== '' && !mayAsk(scope))
  if (beyond !== undefined) throw new errors.InvalidScope('this client may not ask for this scope', beyond)
}
