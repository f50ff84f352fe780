/**
 * Our client rows as the metadata that oidc-provider validates (RFC 7591 names). Secrets are not among it: they are
 * hashed, so `client_secret` holds a value that nothing can match and the comparison is ours (clients.ts).
 */
import { randomBytes } from 'node:crypto'
import type { AdapterPayload, Client } from 'oidc-provider'
import type { ClientEntry } from './client-directory.ts'
import { deviceGrant } from './client-rules.ts'

/** Never handed to anyone; random for each process, so that a comparison that is not ours fails closed. */
const unmatchableSecret = randomBytes(32).toString('base64url')

export function isPublicClient({ row }: ClientEntry): boolean {
  return row.token_endpoint_auth_method === 'none'
}

/** @param options.deviceFlow whether that grant is switched on: the provider refuses a client with a grant it does not know */
export function clientMetadata({ row }: ClientEntry, options: { readonly deviceFlow: boolean }): AdapterPayload {
  const grantTypes = row.grant_types.filter((grant) => grant !== deviceGrant || options.deviceFlow)
  const usesCodes = row.grant_types.includes('authorization_code')
  return {
    client_id: row.id,
    client_name: row.name,
    application_type: row.application_type,
    token_endpoint_auth_method: row.token_endpoint_auth_method,
    grant_types: grantTypes,
    response_types: usesCodes ? ['code'] : [],
    redirect_uris: row.redirect_uris,
    post_logout_redirect_uris: row.post_logout_redirect_uris,
    require_pushed_authorization_requests: row.require_pushed_authorization_requests,
    dpop_bound_access_tokens: row.dpop_bound_access_tokens,
    require_pkce: row.require_pkce,
    token_version: row.token_version,
    ...(row.token_endpoint_auth_method === 'client_secret_basic' ? { client_secret: unmatchableSecret } : {}),
    ...optional('backchannel_logout_uri', row.backchannel_logout_uri),
    ...(row.backchannel_logout_uri === null ? {} : { backchannel_logout_session_required: true }),
    ...optional('jwks', row.jwks),
    ...optional('jwks_uri', row.jwks_uri),
    ...optional('client_uri', row.client_uri),
    ...optional('logo_uri', row.logo_uri),
    ...optional('policy_uri', row.policy_uri),
    ...optional('tos_uri', row.tos_uri),
  }
}

/**
 * The version of a client as it was when the request authenticated it: whatever the request is given afterwards is of
 * this version or a later one, so that a token which says this one is dead with any change that came meanwhile.
 */
export function versionOf(client: Client): number {
  const { token_version: version } = client as { token_version?: unknown }
  if (typeof version !== 'number') throw new Error('a client without its version')
  return version
}

function optional(name: string, value: unknown): Record<string, unknown> {
  return value === null ? {} : { [name]: value }
}
