/**
 * The guard for Koa. `authenticate(guard)` goes first: it puts `ctx.state.auth` there and answers every refusal below
 * it, thrown by a rule, by `authorize` or by a handler.
 */
import type { Auth } from './caller.ts'
import type { Guard } from './guard.ts'
import type { AuthorizeOptions, FoundResource } from './guard-options.ts'
import type { Resource } from './policy/decision.ts'
import { fromNodeRequest } from './request.ts'
import type { NodeRequest } from './request.ts'
import type { ResourceMetadataOptions } from './resource-metadata.ts'
import * as visit from './visit.ts'
import type { AuthenticateOptions, Rule } from './visit.ts'

/** What is used of Koa's context. */
export interface KoaContext {
  readonly req: NodeRequest
  readonly method: string
  readonly path: string
  readonly originalUrl: string
  readonly ip: string
  readonly state: object
  status: number
  body: unknown
  set(headers: Record<string, string>): void
}

/** A Koa middleware, by shape. */
export type KoaMiddleware<C extends KoaContext = KoaContext> = (ctx: C, next: () => Promise<unknown>) => Promise<void>

/**
 * Lets in whoever has a good token.
 *
 * @example
 * ```ts
 * import { createGuard } from '@latchkey/guard'
 * import { authenticate, authOf, requireScopes } from '@latchkey/guard/koa'
 * import Koa from 'koa'
 *
 * const guard = createGuard({ issuer: 'https://id.example.com', audience: 'https://api.example.com' })
 * const app = new Koa()
 * app.use(authenticate(guard))
 * app.use(requireScopes('models:read'))
 * app.use((ctx) => {
 *   ctx.body = { hello: authOf(ctx).subject.id }
 * })
 * ```
 */
export function authenticate(guard: Guard, options?: AuthenticateOptions): KoaMiddleware {
  return async function authenticate(ctx, next) {
    try {
      const auth = await visit.admit(guard, ctx.req, fromNodeRequest(ctx.req, ctx.originalUrl, ctx.ip), options)
      Object.assign(ctx.state, { auth })
      await next()
    } catch (error) {
      const { status, headers, body } = visit.refusal(ctx.req, error)
      ctx.status = status
      ctx.set(headers)
      ctx.body = JSON.stringify(body)
    }
  }
}

/** Who sent this request. @throws GuardError 401 when it was let pass as nobody's */
export const authOf = (ctx: KoaContext): Auth => visit.callerOf(ctx.req)

/** The resource that `authorize` found. */
export const resourceOf = (ctx: KoaContext): Resource => visit.resourceOf(ctx.req)

export const { requireScopes, requireAnyScope, requireRole, requireAuthentication } = visit.ruleSteps(check)

/**
 * Lets pass whoever the policies allow this action on the resource the request is about.
 *
 * @param load - finds that resource; nothing found is answered 404
 */
export function authorize<C extends KoaContext>(
  action: string,
  load: (ctx: C) => FoundResource,
  options?: AuthorizeOptions,
): KoaMiddleware<C> {
  return async function authorize(ctx, next) {
    await visit.authorize(ctx.req, action, () => load(ctx), options)
    await next()
  }
}

/** Serves the metadata of this service (RFC 9728); goes before `authenticate`. */
export function protectedResourceMetadata(guard: Guard, options?: ResourceMetadataOptions): KoaMiddleware {
  const replyTo = visit.metadataReply(guard, options)
  return async function protectedResourceMetadata(ctx, next) {
    const reply = replyTo(ctx.method, ctx.path)
    if (reply === undefined) await next()
    else {
      ctx.set(reply.headers)
      ctx.body = reply.body
    }
  }
}

function check(rule: Rule): KoaMiddleware {
  return async function check(ctx, next) {
    visit.check(ctx.req, rule)
    await next()
  }
}
