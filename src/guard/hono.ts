/**
 * The guard for Hono, on any runtime that has `node:crypto`. `authenticate(guard)` goes first: it sets `auth` and
 * answers every refusal below it, thrown by a rule, by `authorize` or by a handler.
 */
import type { Auth } from './caller.ts'
import { GuardError } from './errors.ts'
import type { GuardReply } from './errors.ts'
import type { Guard } from './guard.ts'
import type { AuthorizeOptions, FoundResource } from './guard-options.ts'
import type { Resource } from './policy/decision.ts'
import { fromWebRequest } from './request.ts'
import type { ResourceMetadataOptions } from './resource-metadata.ts'
import * as visit from './visit.ts'
import type { AuthenticateOptions, Rule } from './visit.ts'

/** What is used of Hono's context. */
export interface HonoContext {
  readonly req: { readonly raw: Request; readonly method: string; readonly path: string }
  readonly error: Error | undefined
  get res(): Response
  set res(response: Response | undefined)
  set(key: 'auth', auth: Auth | undefined): void
}

type Next = () => Promise<void>

/** A Hono middleware, by shape. */
export type HonoMiddleware<C extends HonoContext = HonoContext> = (c: C, next: Next) => Promise<Response | void>

/** For Hono's own environment type: `new Hono<GuardEnv>()` knows `c.get('auth')`. */
export interface GuardEnv {
  Variables: { auth: Auth | undefined }
}

/** Besides what every adapter can be told. */
export interface HonoAuthenticateOptions extends AuthenticateOptions {
  /** The client's address, which Hono itself does not know: for instance by its `getConnInfo`. */
  readonly ip?: (c: HonoContext) => string | undefined
}

/**
 * Lets in whoever has a good token.
 *
 * @example
 * ```ts
 * import { createGuard } from '@latchkey/guard'
 * import { authenticate, authOf, requireScopes } from '@latchkey/guard/hono'
 * import type { GuardEnv } from '@latchkey/guard/hono'
 * import { Hono } from 'hono'
 *
 * const guard = createGuard({ issuer: 'https://id.example.com', audience: 'https://api.example.com' })
 * const app = new Hono<GuardEnv>()
 * app.use(authenticate(guard))
 * app.get('/hello', requireScopes('models:read'), (c) => c.json({ hello: authOf(c).subject.id }))
 * ```
 */
export function authenticate(guard: Guard, options: HonoAuthenticateOptions = {}): HonoMiddleware {
  return async function authenticate(c, next) {
    try {
      c.set('auth', await visit.admit(guard, c, fromWebRequest(c.req.raw, options.ip?.(c)), options))
    } catch (error) {
      return toResponse(visit.refusal(c, error))
    }
    await next()
    // Hono has answered what was thrown below; a refusal is answered again, as this guard does.
    if (c.error instanceof GuardError) {
      c.res = undefined
      c.res = toResponse(visit.refusal(c, c.error))
    }
    return undefined
  }
}

/** Who sent this request. @throws GuardError 401 when it was let pass as nobody's */
export const authOf = (c: object): Auth => visit.callerOf(c)

/** The resource that `authorize` found. */
export const resourceOf = (c: object): Resource => visit.resourceOf(c)

export const { requireScopes, requireAnyScope, requireRole, requireAuthentication } = visit.ruleSteps(check)

/**
 * Lets pass whoever the policies allow this action on the resource the request is about.
 *
 * @param load - finds that resource; nothing found is answered 404
 */
export function authorize<C extends HonoContext>(
  action: string,
  load: (c: C) => FoundResource,
  options?: AuthorizeOptions,
): HonoMiddleware<C> {
  return async function authorize(c, next) {
    await visit.authorize(c, action, () => load(c), options)
    await next()
  }
}

/** Serves the metadata of this service (RFC 9728); goes before `authenticate`. */
export function protectedResourceMetadata(guard: Guard, options?: ResourceMetadataOptions): HonoMiddleware {
  const replyTo = visit.metadataReply(guard, options)
  return async function protectedResourceMetadata(c, next) {
    const reply = replyTo(c.req.method, c.req.path)
    return reply === undefined ? await next() : new Response(reply.body, { headers: reply.headers })
  }
}

function check(rule: Rule): HonoMiddleware {
  return async function check(c, next) {
    visit.check(c, rule)
    await next()
  }
}

function toResponse({ status, headers, body }: GuardReply): Response {
  return new Response(JSON.stringify(body), { status, headers })
}
