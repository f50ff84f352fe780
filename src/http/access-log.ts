import type { Middleware, ParameterizedContext } from 'koa'
import type { Logger } from 'pino'
import { describeEndpoint, onceOver, type RequestState } from './request-context.ts'

/** What oidc-provider knows of a request, as far as the log wants to. */
interface ProtocolContext {
  readonly oidc?: {
    readonly client?: { readonly clientId: string }
    readonly session?: { readonly accountId?: string }
    readonly account?: { readonly accountId: string }
  }
}

/**
 * One line for each request, when its answer has been sent or the caller has gone: who (by id), what (the matched
 * pattern, never the path or query), how long, and how it ended. Stands behind requestContext.
 */
export function accessLog(log: Logger): Middleware<RequestState> {
  return function accessLog(ctx, next) {
    onceOver(ctx, () => log.info(describe(ctx), 'request'))
    return next()
  }
}

function describe(ctx: ParameterizedContext<RequestState>): Record<string, unknown> {
  const { request, userId, clientId, errorMessage, apiVersion, rateLimited } = ctx.state
  const { oidc } = ctx as ProtocolContext
  const wasSent = ctx.res.writableFinished
  return {
    request_id: request.requestId,
    trace_id: request.traceId,
    user_id: userId ?? oidc?.account?.accountId ?? oidc?.session?.accountId,
    client_id: clientId ?? oidc?.client?.clientId,
    endpoint: describeEndpoint(ctx),
    api_version: apiVersion,
    rate_limited: rateLimited,
    duration_ms: Math.round((performance.now() - request.startedAt) * 10) / 10,
    // 499 as nginx writes it: the caller left before the answer.
    status_code: wasSent ? ctx.res.statusCode : 499,
    error_message: wasSent ? (errorMessage ?? oauthError(ctx)) : 'the caller left before the answer was sent',
  }
}

/** RFC 6749 §5.2: the code alone, since a description may repeat what was sent. */
function oauthError({ status, body }: ParameterizedContext<RequestState>): string | undefined {
  if (status < 400 || typeof body !== 'object' || body === null || !('error' in body)) return undefined
  return typeof body.error === 'string' ? body.error : undefined
}
