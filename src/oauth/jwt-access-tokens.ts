/**
 * Introspection (RFC 7662) and revocation (RFC 7009) of our own JWT access tokens. oidc-provider authenticates the
 * client and then declines, since it never stored the token; from there on it is ours: check the token as any resource
 * would, then ask the revocations table.
 */
import { createGuard, GuardError, type Guard } from '@latchkey/guard'
import { decodeJwt, decodeProtectedHeader } from 'jose'
import type { KoaContextWithOIDC } from 'oidc-provider'
import { z } from 'zod'
import { writeAudit, type Actor } from '../audit/audit.ts'
import type { Db } from '../database/database.ts'
import { isRevoked, revoke } from '../revocation/revocations.ts'
import type { KeyRing } from '../signing/key-ring.ts'
import type { ClientDirectory } from './client-directory.ts'

const claimsSchema = z.looseObject({
  jti: z.string(),
  sub: z.string(),
  client_id: z.string(),
  iat: z.number().int(),
  exp: z.number().int(),
  sid: z.string().optional(),
  grant_id: z.string().optional(),
  token_version: z.number().int().optional(),
  cnf: z.looseObject({}).optional(),
})
type AccessTokenClaims = z.infer<typeof claimsSchema>

export interface JwtAccessTokens {
  /** Answers what the provider declined; does nothing to any other answer. */
  answerDeclined(ctx: KoaContextWithOIDC): Promise<void>
  close(): Promise<void>
}

export interface JwtAccessTokensParts {
  readonly db: Db
  readonly directory: ClientDirectory
  readonly keyRing: KeyRing
  readonly issuer: string
}

export function openJwtAccessTokens({ db, directory, keyRing, issuer }: JwtAccessTokensParts): JwtAccessTokens {
  // A resource's token is checked as that resource checks it: by a guard with its audience, on keys of this process.
  const guards = new Map<string, Guard>()
  const forget = async () => {
    const old = [...guards.values()]
    guards.clear()
    for (const guard of old) await guard.close()
  }
  const unsubscribe = keyRing.onChange(() => void forget())

  async function findGuard(token: string): Promise<Guard | undefined> {
    const audience = audienceOf(token)
    // Only registered resources get one, so that there are no more of them than of those.
    if (audience === undefined || (await directory.findResource(audience)) === undefined) return undefined
    const guard =
      guards.get(audience) ??
      createGuard({
        issuer: {
          issuer,
          keys: () => ({ keys: keyRing.publicJwks().keys.map((key) => ({ ...key })) }),
          allowHttp: true,
        },
        audience,
        dpop: 'off',
        resourceMetadata: false,
        cacheEntries: 1_000,
      })
    guards.set(audience, guard)
    return guard
  }

  /** @returns undefined for anything but an access token of ours that has not expired */
  async function verify(token: string): Promise<AccessTokenClaims | undefined> {
    const guard = await findGuard(token)
    const auth = await guard?.inspect(token).catch((error: unknown) => {
      if (error instanceof GuardError && error.status < 500) return undefined
      throw error
    })
    return auth === undefined ? undefined : claimsSchema.parse(auth.claims)
  }

  async function findLiving(token: string): Promise<AccessTokenClaims | undefined> {
    const claims = await verify(token)
    if (claims === undefined) return undefined
    return (await isRevoked(db, { ...claims, kid: decodeProtectedHeader(token).kid })) ? undefined : claims
  }

  async function introspect(ctx: KoaContextWithOIDC, token: string): Promise<void> {
    const claims = await findLiving(token)
    const mayKnow =
      claims !== undefined &&
      // A public client proves nothing about itself, so it learns about its own tokens only.
      (ctx.oidc.client?.clientAuthMethod !== 'none' || claims.client_id === ctx.oidc.client.clientId)
    ctx.status = 200
    ctx.body = mayKnow
      ? { ...claims, active: true, token_type: claims.cnf?.['jkt'] === undefined ? 'Bearer' : 'DPoP' }
      : { active: false }
  }

  async function revokeToken(ctx: KoaContextWithOIDC, token: string): Promise<void> {
    // Living ones alone: a client that repeats itself must not fill the tables.
    const claims = await findLiving(token)
    ctx.status = 200
    ctx.body = ''
    // RFC 7009 §2.1: only by the client it was issued to. §2.2: an invalid token is no error.
    if (claims === undefined || claims.client_id !== ctx.oidc.client?.clientId) return
    await db.transaction().execute(async (trx) => {
      const expiresAt = new Date((claims.exp + 60) * 1_000)
      const actor: Actor = {
        type: 'client',
        id: claims.client_id,
        requestId: ctx.state['requestId'] as string | undefined,
      }
      await revoke(trx, { kind: 'token', subject: claims.jti, reason: 'revoked by its client', expiresAt, by: actor })
      const { client_id, sub, grant_id, aud, scope, exp } = claims
      const before = { client_id, sub, grant_id, aud, scope, expires_at: new Date(exp * 1_000) }
      await writeAudit(trx, actor, {
        action: 'access-token.revoked',
        target: { type: 'token', id: claims.jti },
        details: { before },
      })
    })
  }

  return {
    async answerDeclined(ctx) {
      const route = ctx.oidc?.route
      if (route !== 'introspection' && route !== 'revocation') return
      const answer = ctx.body as { error?: unknown } | undefined
      if (ctx.status !== 400 || answer?.error !== 'unsupported_token_type') return
      const token = ctx.oidc.params?.['token']
      if (typeof token !== 'string') return
      // What the provider declined is no error of this request.
      delete ctx.state['errorMessage']
      await (route === 'introspection' ? introspect(ctx, token) : revokeToken(ctx, token))
    },
    async close() {
      unsubscribe()
      await forget()
    },
  }
}

/** What a token claims to be for, before anything is believed. */
function audienceOf(token: string): string | undefined {
  try {
    const { aud } = decodeJwt(token)
    return typeof aud === 'string' ? aud : undefined
  } catch (error) {
    if (error instanceof TypeError || (error instanceof Error && 'code' in error)) return undefined
    throw error
  }
}
