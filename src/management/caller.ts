/**
 * Who calls the management API: whoever holds an access token for it, as its guard says; or, for those that cannot do
 * OAuth, whoever holds an API key, which may do what its client may.
 */
import { fromNodeRequest, GuardError, type Auth } from '@latchkey/guard'
import type { ParameterizedContext } from 'koa'
import type { Actor } from '../audit/audit.ts'
import type { Db } from '../database/database.ts'
import type { Caller } from '../http/endpoint.ts'
import type { RequestState } from '../http/request-context.ts'
import { findApiKeyByValue, type ApiKey } from '../metering/api-keys.ts'
import type { ClientDirectory } from '../oauth/client-directory.ts'
import { Problem } from '../problems.ts'
import type { OwnGuard } from '../revocation/own-guard.ts'

export interface ManagementCaller extends Caller {
  readonly apiKey?: ApiKey
}

export interface CallerParts {
  readonly db: Db
  readonly guard: OwnGuard
  readonly directory: ClientDirectory
  /** the management API as a resource */
  readonly resource: string
}

/** @throws Problem AUTHENTICATION_ERROR with its challenge, or AUTHORIZATION_ERROR for a bad API key */
export function openCallers(
  parts: CallerParts,
): (ctx: ParameterizedContext<RequestState>) => Promise<ManagementCaller> {
  return async (ctx) => {
    const presented = ctx.get('x-api-key')
    if (presented === '') return authenticate(parts, ctx)
    if (ctx.get('authorization') !== '') {
      throw new Problem('MALFORMED_REQUEST', 'Send an access token or an API key, not both.')
    }
    return callerOfKey(parts, ctx, presented)
  }
}

async function authenticate(
  { guard }: CallerParts,
  ctx: ParameterizedContext<RequestState>,
): Promise<ManagementCaller> {
  const request = fromNodeRequest(ctx.req, ctx.originalUrl, ctx.state.request.clientAddress)
  try {
    return callerOfToken(await guard.guard().authenticate(request), ctx)
  } catch (error) {
    if (!(error instanceof GuardError)) throw error
    // Whoever cannot be told apart for want of the database has not been refused.
    if (error.status === 503 && error.cause !== undefined) throw error.cause
    const { 'WWW-Authenticate': challenge } = guard.guard().refuse(error, request).headers
    throw new Problem(error.code, error.detail, {
      cause: error,
      ...(challenge === undefined ? {} : { headers: { 'WWW-Authenticate': challenge } }),
    })
  }
}

function callerOfToken({ subject, scopes, claims }: Auth, ctx: ParameterizedContext<RequestState>): ManagementCaller {
  const { requestId, network } = ctx.state
  const clientId = claims.client_id ?? ''
  const act = claims.act?.sub
  const actor: Actor =
    act === undefined
      ? { type: subject.type, id: subject.id, requestId }
      : { type: act.startsWith('usr_') ? 'user' : 'client', id: act, onBehalfOf: subject.id, requestId }
  const userId = subject.type === 'user' ? subject.id : undefined
  return { type: subject.type, id: subject.id, userId, clientId, scopes, network, actor }
}

/** As AWS API Gateway does it: a key that is not valid is 403. */
async function callerOfKey(
  { db, directory, resource }: CallerParts,
  ctx: ParameterizedContext<RequestState>,
  presented: string,
): Promise<ManagementCaller> {
  const apiKey = await findApiKeyByValue(db, presented)
  const client = apiKey === undefined ? undefined : await directory.findClient(apiKey.client_id)
  if (apiKey === undefined || client === undefined) {
    throw new Problem('AUTHORIZATION_ERROR', 'This API key is not valid.')
  }
  const { client_id: id } = apiKey
  const { requestId, network } = ctx.state
  const scopes = client.permissions.get(resource) ?? new Set<string>()
  return {
    type: 'client',
    id,
    userId: undefined,
    clientId: id,
    scopes,
    network,
    actor: { type: 'client', id, requestId },
    apiKey,
  }
}
