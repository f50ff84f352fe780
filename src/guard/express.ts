/**
 * The guard for Express. `authenticate(guard)` goes first and puts `req.auth` there; the middlewares answer their own
 * refusals, and `answerRefusals`, last of all, those thrown by handlers.
 */
import type { Auth } from './caller.ts'
import type { Guard } from './guard.ts'
import type { AuthorizeOptions, FoundResource } from './guard-options.ts'
import type { Resource } from './policy/decision.ts'
import { fromNodeRequest } from './request.ts'
import type { NodeRequest } from './request.ts'
import type { ResourceMetadataOptions } from './resource-metadata.ts'
import * as visit from './visit.ts'
import type { AuthenticateOptions } from './visit.ts'

/** What is used of Express's request. */
export interface ExpressRequest extends NodeRequest {
  readonly method: string
  readonly originalUrl: string
  readonly ip?: string | undefined
}

/** What is used of Express's response: Node's own part of it. */
export interface ExpressResponse {
  writeHead(status: number, headers: Record<string, string>): { end(body: string): unknown }
}

type Next = (error?: unknown) => void

/** An Express middleware, by shape. */
export type ExpressMiddleware<R extends ExpressRequest = ExpressRequest> = (
  req: R,
  res: ExpressResponse,
  next: Next,
) => void

/**
 * Lets in whoever has a good token.
 *
 * @example
 * ```ts
 * import { createGuard } from '@latchkey/guard'
 * import { answerRefusals, authenticate, authOf, requireScopes } from '@latchkey/guard/express'
 * import express from 'express'
 *
 * const guard = createGuard({ issuer: 'https://id.example.com', audience: 'https://api.example.com' })
 * const app = express()
 * app.use(authenticate(guard))
 * app.get('/hello', requireScopes('models:read'), (req, res) => {
 *   res.json({ hello: authOf(req).subject.id })
 * })
 * app.use(answerRefusals)
 * ```
 */
export function authenticate(guard: Guard, options?: AuthenticateOptions): ExpressMiddleware {
  return step(async (req) => {
    const auth = await visit.admit(guard, req, fromNodeRequest(req, req.originalUrl, req.ip), options)
    Object.assign(req, { auth })
  })
}

/** Who sent this request. @throws GuardError 401 when it was let pass as nobody's */
export const authOf = (req: ExpressRequest): Auth => visit.callerOf(req)

/** The resource that `authorize` found. */
export const resourceOf = (req: ExpressRequest): Resource => visit.resourceOf(req)

export const { requireScopes, requireAnyScope, requireRole, requireAuthentication } = visit.ruleSteps((rule) =>
  step((req: ExpressRequest) => visit.check(req, rule)),
)

/**
 * Lets pass whoever the policies allow this action on the resource the request is about.
 *
 * @param load - finds that resource; nothing found is answered 404
 */
export function authorize<R extends ExpressRequest>(
  action: string,
  load: (req: R) => FoundResource,
  options?: AuthorizeOptions,
): ExpressMiddleware<R> {
  return step((req) => visit.authorize(req, action, () => load(req), options))
}

/** An error handler, for after the routes: answers refusals thrown by handlers, and passes every other error on. */
export function answerRefusals(error: unknown, req: ExpressRequest, res: ExpressResponse, next: Next): void {
  try {
    const { status, headers, body } = visit.refusal(req, error)
    res.writeHead(status, headers).end(JSON.stringify(body))
  } catch (other) {
    next(other)
  }
}

/** Serves the metadata of this service (RFC 9728); goes before `authenticate`. */
export function protectedResourceMetadata(guard: Guard, options?: ResourceMetadataOptions): ExpressMiddleware {
  const replyTo = visit.metadataReply(guard, options)
  return function protectedResourceMetadata(req, res, next) {
    const reply = replyTo(req.method, req.originalUrl)
    if (reply === undefined) next()
    else res.writeHead(200, reply.headers).end(reply.body)
  }
}

function step<R extends ExpressRequest>(run: (req: R) => void | Promise<void>): ExpressMiddleware<R> {
  async function attempt(req: R, res: ExpressResponse, next: Next): Promise<void> {
    try {
      await run(req)
    } catch (error) {
      return answerRefusals(error, req, res, next)
    }
    next()
  }
  return (req, res, next) => void attempt(req, res, next)
}
