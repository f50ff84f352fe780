/**
 * Introspection (RFC 7662) and revocation (RFC 7009) of our own JWT access tokens. oidc-provider authenticates the
 * client and then declines, since it never stored the token; from there on it is ours: check the token as any resource
 * would, then ask the revocations table.
 */
import { jwtVerify, type JWTPayload } from 'jose'
import type { KoaContextWithOIDC } from 'oidc-provider'
import { z } from 'zod'
import { writeAudit } from '../audit/audit.ts'
import type { Db } from '../database/database.ts'
import { isRevoked, revoke } from '../revocation/revocations.ts'
import type { KeyRing } from '../signing/key-ring.ts'

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
type AccessTokenClaims = z.infer<typeof claimsSchema> & JWTPayload

export interface JwtAccessTokens {
  /** Answers what the provider declined; does nothing to any other answer. */
  answerDeclined(ctx: KoaContextWithOIDC): Promise<void>
}

export function openJwtAccessTokens({
  db,
  keyRing,
  issuer,
}: {
  readonly db: Db
  readonly keyRing: KeyRing
  readonly issuer: string
}): JwtAccessTokens {
  /** @returns undefined for anything but a living access token of ours */
  async function findLiving(token: string): Promise<AccessTokenClaims | undefined> {
    const verified = await verify(token)
    if (verified === undefined) return undefined
    return (await isRevoked(db, verified)) ? undefined : verified
  }

  async function verify(token: string): Promise<(AccessTokenClaims & { kid: string }) | undefined> {
    let kid = ''
    const result = await jwtVerify(
      token,
      (header) => {
        kid = header.kid ?? ''
        const key = keyRing.verificationKey(kid)
        if (key === undefined) throw new Error('not signed by a key of ours')
        return key
      },
      { issuer, algorithms: ['RS256'], typ: 'at+jwt', requiredClaims: ['exp', 'aud'] },
    ).catch(() => undefined)
    const claims = claimsSchema.safeParse(result?.payload)
    return claims.success ? { ...(claims.data as AccessTokenClaims), kid } : undefined
  }

  async function introspect(ctx: KoaContextWithOIDC, token: string): Promise<void> {
    const claims = await findLiving(token)
    const mayKnow =
      claims !== undefined &&
      // A public client proves nothing about itself, so it learns about its own tokens only.
      (ctx.oidc.client?.clientAuthMethod !== 'none' || claims.client_id === ctx.oidc.client.clientId)
    const { kid: _kid, ...members } = (mayKnow ? claims : {}) as Record<string, unknown>
    ctx.status = 200
    ctx.body = mayKnow
      ? { active: true, ...members, token_type: claims.cnf?.['jkt'] === undefined ? 'Bearer' : 'DPoP' }
      : { active: false }
  }

  async function revokeToken(ctx: KoaContextWithOIDC, token: string): Promise<void> {
    const claims = await verify(token)
    ctx.status = 200
    ctx.body = ''
    // RFC 7009 §2.1: only by the client it was issued to. §2.2: an invalid token is no error.
    if (claims === undefined || claims.client_id !== ctx.oidc.client?.clientId) return
    await db.transaction().execute(async (trx) => {
      const expiresAt = new Date((claims.exp + 60) * 1_000)
      await revoke(trx, { kind: 'token', subject: claims.jti, reason: 'revoked by its client', expiresAt })
      await writeAudit(
        trx,
        { type: 'client', id: claims.client_id, requestId: ctx.state['requestId'] as string | undefined },
        { action: 'access-token.revoked', target: { type: 'token', id: claims.jti } },
      )
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
      await (route === 'introspection' ? introspect(ctx, token) : revokeToken(ctx, token))
    },
  }
}
