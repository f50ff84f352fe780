/**
 * The transaction around requests that spend or revoke: begun by the store when needed, and ended here by what the
 * provider answered. A success is committed with its sealed reply and audit row; a refusal is committed too, since what
 * it did must stay done (reuse ends the family), except that a code or refresh token is un-spent by a refusal that is not
 * about reuse; a failure is rolled back.
 */
import { decodeProtectedHeader } from 'jose'
import type { Context } from 'koa'
import type { KoaContextWithOIDC } from 'oidc-provider'
import { writeAudit, type Actor } from '../audit/audit.ts'
import type { Db } from '../database/database.ts'
import { versionOf } from './client-metadata.ts'
import { endpoints } from './endpoints.ts'
import { findReply, hashRefreshRequest, storeReply, type TokenReply } from './refresh-replies.ts'
import { endSession } from './sessions.ts'
import { runInTokenTransaction, TokenTransaction } from './token-transaction.ts'

export async function answerInTransaction(db: Db, ctx: Context, answer: () => Promise<void>): Promise<void> {
  const reason = ctx.method === 'POST' ? spendingRoutes.get(ctx.path) : undefined
  if (reason === undefined) return answer()
  const transaction = new TokenTransaction(db, {
    beginsOnFinding: ctx.path === endpoints.token,
    revocationReason: reason,
    requestId: requestId(ctx),
  })
  await runInTokenTransaction(transaction, async () => {
    try {
      await answer()
      await settle(transaction, ctx as unknown as KoaContextWithOIDC)
      // If this fails, the answer must not go out: Koa then sends 500 or 503 instead.
      if (ctx.status < 500) await transaction.commit()
      else await undo(transaction, ctx)
    } catch (error) {
      await undo(transaction, ctx).catch(() => undefined)
      throw error
    } finally {
      transaction.end()
    }
  })
}

/** Whoever could not be signed out keeps the cookie of the session that is still there. */
async function undo(transaction: TokenTransaction, ctx: Context): Promise<void> {
  ctx.remove('Set-Cookie')
  await transaction.rollback()
}

const spendingRoutes: ReadonlyMap<string, string> = new Map([
  [endpoints.token, 'revoked'],
  [endpoints.revocation, 'revoked by its client'],
  [`${endpoints.end_session}/confirm`, 'signed out'],
])

async function settle(transaction: TokenTransaction, ctx: KoaContextWithOIDC): Promise<void> {
  if (ctx.status >= 500) return
  const session = ctx.path.startsWith(endpoints.end_session) ? ctx.oidc?.session : undefined
  if (
    session !== undefined &&
    'destroyed' in session &&
    session.destroyed === true &&
    session.accountId !== undefined
  ) {
    const actor: Actor = { type: 'user', id: session.accountId, requestId: requestId(ctx) }
    await endSession(await transaction.begin(), actor, { sessionUid: session.uid, reason: 'signed out' })
    return
  }
  if (transaction.trx === undefined) return
  if (ctx.status !== 200) {
    if (transaction.lost !== undefined) await answerTheLoser(transaction, ctx, transaction.lost)
    else await transaction.unspend()
    return
  }
  if (ctx.path !== endpoints.token) return
  if (isOfChangedClient(transaction, ctx)) refuseForNow(ctx)
  else await recordIssue(transaction, ctx)
}

/**
 * Whoever ends a client's tokens holds its families meanwhile. A request that waited for one goes on afterwards, with
 * what it read of the client before: with permissions, or a secret, that are gone.
 */
function isOfChangedClient({ clientVersion }: TokenTransaction, { oidc: { client } }: KoaContextWithOIDC): boolean {
  return clientVersion !== undefined && client !== undefined && versionOf(client) !== clientVersion
}

/** RFC 6749 §5.2 has no word for it; §4.1.2.1 has. What was spent is not. */
function refuseForNow(ctx: KoaContextWithOIDC): void {
  ctx.status = 503
  ctx.set('Retry-After', '1')
  ctx.body = { error: 'temporarily_unavailable', error_description: 'this client is just being changed: try again' }
}

async function recordIssue(transaction: TokenTransaction, ctx: KoaContextWithOIDC): Promise<void> {
  const { trx, spent } = transaction
  const { client, account } = ctx.oidc
  if (trx === undefined || client === undefined) return
  const grantId = ctx.oidc.entities.Grant?.jti ?? spent?.grantId ?? ''
  if (spent !== undefined && spent.replaySeconds > 0) {
    await storeReply(trx, {
      ...spent,
      refreshToken: presentedToken(ctx),
      requestHash: hashRefreshRequest({ ...ctx.oidc.params, dpopKey: dpopKeyOf(ctx) }),
      reply: ctx.body as TokenReply,
    })
  }
  await writeAudit(
    trx,
    { type: 'client', id: client.clientId, onBehalfOf: account?.accountId, requestId: requestId(ctx) },
    {
      action: spent === undefined ? 'grant.token-issued' : 'grant.token-refreshed',
      target: { type: 'grant', id: grantId },
      details: { scope: (ctx.body as { scope?: string }).scope ?? '' },
    },
  )
}

/**
 * The loser of a race waited for the winner on the family's lock, so the winner's reply is there by now. If it is not,
 * the window has closed meanwhile, and using a spent token is reuse (RFC 9700 §4.14.2).
 */
async function answerTheLoser(
  transaction: TokenTransaction,
  ctx: KoaContextWithOIDC,
  lost: { readonly tokenId: string; readonly grantId: string },
): Promise<void> {
  const { trx } = transaction
  if (trx === undefined) return
  const found = await findReply(trx, {
    tokenId: lost.tokenId,
    refreshToken: presentedToken(ctx),
    requestHash: hashRefreshRequest({ ...ctx.oidc.params, dpopKey: dpopKeyOf(ctx) }),
  })
  if (found === 'other request') {
    ctx.body = {
      error: 'invalid_grant',
      error_description:
        'this refresh token was exchanged a moment ago for another scope or resource: use the refresh token of that answer',
    }
  } else if (found === undefined) {
    await transaction.revokeFamily(
      { type: 'system', id: 'token-endpoint', requestId: requestId(ctx) },
      { grantId: lost.grantId, reason: 'RefreshToken used twice' },
    )
  } else {
    ctx.status = 200
    ctx.body = found.reply
    ctx.state['isReplay'] = true
  }
}

/** The tokens of an answer that issued some: by their names in it (RFC 6749 §5.1). */
export function findIssued(ctx: KoaContextWithOIDC): { readonly grantType: string; readonly kinds: TokenKind[] } {
  const grantType = ctx.oidc?.params?.['grant_type']
  const { body } = ctx
  const isIssue = ctx.path === endpoints.token && ctx.status === 200 && ctx.state['isReplay'] !== true
  if (!isIssue || typeof grantType !== 'string' || typeof body !== 'object' || body === null) {
    return { grantType: '', kinds: [] }
  }
  return { grantType, kinds: tokenKinds.filter((kind) => kind in body) }
}

const tokenKinds = ['access_token', 'refresh_token', 'id_token'] as const
export type TokenKind = (typeof tokenKinds)[number]

function presentedToken(ctx: KoaContextWithOIDC): string {
  const token = ctx.oidc.params?.['refresh_token']
  if (typeof token !== 'string') throw new Error('a refresh without its token')
  return token
}

/** The public key in a DPoP proof, which the provider has checked by now (RFC 9449 §4.2). */
function dpopKeyOf(ctx: KoaContextWithOIDC): unknown {
  const proof = ctx.get('DPoP')
  return proof === '' ? undefined : decodeProtectedHeader(proof).jwk
}

function requestId(ctx: Pick<Context, 'state'>): string | undefined {
  const id: unknown = ctx.state['requestId']
  return typeof id === 'string' ? id : undefined
}
