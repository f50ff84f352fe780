/**
 * What an access token says beyond the protocol's own claims (RFC 9068 §2.2): how and when the person signed in, the
 * session and family by which it can be revoked, the roles, and the attributes that its resource asks for.
 */
import { errors, type AccessToken, type ClientCredentials, type KoaContextWithOIDC } from 'oidc-provider'
import type { UserAccount } from './account.ts'
import type { ClientDirectory } from './client-directory.ts'
import { versionOf } from './client-metadata.ts'

type IssuedToken = AccessToken | ClientCredentials

export async function accessTokenClaims(
  directory: ClientDirectory,
  ctx: KoaContextWithOIDC,
  token: IssuedToken,
): Promise<Record<string, unknown> | undefined> {
  // An opaque token, good for /userinfo only, says nothing by itself.
  if (token.aud === undefined || typeof token.aud !== 'string') return undefined
  if (token.kind === 'ClientCredentials') {
    if (ctx.oidc.client === undefined) throw new Error("a client's own token needs the client")
    return { token_version: versionOf(ctx.oidc.client) }
  }
  const account = ctx.oidc.entities.Account as UserAccount | undefined
  if (account === undefined) throw new Error('an access token for a person needs the account')
  const resource = await directory.findResource(token.aud)
  const source = ctx.oidc.entities.AuthorizationCode ?? ctx.oidc.entities.RefreshToken ?? ctx.oidc.entities.DeviceCode
  const attributes = Object.entries(resource?.row.attribute_claims ?? {}).flatMap(([claim, attribute]) => {
    const value = account.user.attributes[attribute]
    return value === undefined ? [] : [[claim, value] as const]
  })
  return {
    ...Object.fromEntries(attributes),
    auth_time: source?.authTime,
    acr: source?.acr,
    amr: source?.amr,
    // Offline access outlives the session, so its tokens must not die with the session's id.
    sid: source?.scopes.has('offline_access') === true ? undefined : token.sid,
    grant_id: token.grantId,
    roles: account.roles,
    token_version: account.user.token_version,
  }
}

/** A signature of RS256 with 2048 bits, and the header. */
const signatureAndHeaderBytes = 342 + 120

/**
 * Refuses a token too large for the headers that carry it: many servers stop at 8 KiB.
 * @throws errors.InvalidRequest
 */
export function checkTokenSize(payload: unknown, maxBytes: number): void {
  const bytes = Math.ceil((Buffer.byteLength(JSON.stringify(payload)) * 4) / 3) + signatureAndHeaderBytes
  if (bytes > maxBytes) {
    throw new errors.InvalidRequest(
      `the access token would be ${bytes} bytes, more than the ${maxBytes} that are issued: ask for fewer scopes`,
    )
  }
}
