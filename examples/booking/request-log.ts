import { callContext } from '@latchkey/guard/outbound'
import type { CallContext } from '@latchkey/guard/outbound'
import type { Context, Middleware } from 'koa'

/** Writes one line of a log; `console.log` of its JSON, for instance. */
export type WriteLog = (line: object) => void

/**
 * Goes first: finds out under which id the request travels, tells the caller, and writes one line when it is over.
 * What must not be in a log is not in the line: no token, no body, no query.
 */
export function logRequests(service: string, write: WriteLog): Middleware {
  return async function logRequests(ctx, next) {
    const startedAt = performance.now()
    const context = callContext(ctx.headers)
    ctx.state['context'] = context
    ctx.set('X-Request-Id', context.requestId)
    let failed = false
    try {
      await next()
    } catch (error) {
      failed = true
      throw error
    } finally {
      const statusCode = failed ? 500 : ctx.status
      write({
        timestamp: new Date().toISOString(),
        level: statusCode >= 500 ? 'ERROR' : 'INFO',
        service,
        request_id: context.requestId,
        user_id: (ctx.state as { auth?: { subject: { id: string } } }).auth?.subject.id ?? null,
        endpoint: `${ctx.method} ${ctx.path}`,
        duration_ms: Math.round(performance.now() - startedAt),
        status_code: statusCode,
      })
    }
  }
}

/** What calls made for this request pass on. */
export function contextOf(ctx: Context): CallContext {
  return ctx.state['context'] as CallContext
}
