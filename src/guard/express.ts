/**
 * The guard for Express. `authenticate(guard)` goes first and puts `req.auth` there; the middlewares answer their own
 * refusals, and `answerRefusals()`, last of all, those thrown by handlers.
 */
import type { Auth } from './caller.ts'
import type { AuthenticationRequirement } from './errors.ts'
import type { AuthorizeOptions, Guard } from './guard.ts'
import type { Resource } from './policy/decision.ts'
import { fromNodeRequest } from './request.ts'
import type { NodeRequest } from './request.ts'
import type { ResourceMetadataOptions } from './resource-metadata.ts'
import * as rules from './rule/requirements.ts'
import {
  admit,
  authorizeVisit,
  callerOfVisit,
  checkCaller,
  metadataReply,
  refusalOfVisit,
  resourceOfVisit,
} from './visit.ts'
import type { AuthenticateOptions } from './visit.ts'

/** What is used of Express's request. */
export interface ExpressRequest extends NodeRequest {
  readonly method: string
  readonly originalUrl: string
  readonly ip?: string | undefined
}

/** What is used of Express's response. */
export interface ExpressResponse {
  status(code: number): unknown
  set(headers: Record<string, string>): unknown
  end(body: string): unknown
}

type Next = (error?: unknown) => void

/** An Express middleware, by shape. */
export type ExpressMiddleware<Request extends ExpressRequest = ExpressRequest> = (
  req: Request,
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
 * app.use(answerRefusals())
 * ```
 */
export function authenticate(guard: Guard, options: AuthenticateOptions = {}): ExpressMiddleware {
  return step(async (req) => {
    const auth = await admit(guard, req, fromNodeRequest(req, req.originalUrl, req.ip), options)
    Object.assign(req, { auth })
  })
}

/** Who sent this request. @throws GuardError 401 when it was let pass as nobody's */
export const authOf = (req: ExpressRequest): Auth => callerOfVisit(req)

/** The resource that `authorize` found. */
export const resourceOf = (req: ExpressRequest): Resource => resourceOfVisit(req)

/** Lets pass whoever has all of these scopes. */
export const requireScopes = (...scopes: string[]): ExpressMiddleware =>
  step((req) => checkCaller(req, (auth) => rules.requireScopes(auth, ...scopes)))

/** Lets pass whoever has one of these scopes. */
export const requireAnyScope = (...scopes: string[]): ExpressMiddleware =>
  step((req) => checkCaller(req, (auth) => rules.requireAnyScope(auth, ...scopes)))

/** Lets pass whoever has one of these roles. */
export const requireRole = (...roles: string[]): ExpressMiddleware =>
  step((req) => checkCaller(req, (auth) => rules.requireRole(auth, ...roles)))

/** Lets pass whoever signed in strongly and recently enough (RFC 9470). */
export const requireAuthentication = (requirement: AuthenticationRequirement): ExpressMiddleware =>
  step((req) => checkCaller(req, (auth, guard) => guard.requireAuthentication(auth, requirement)))

/**
 * Lets pass whoever the policies allow this action on the resource the request is about.
 *
 * @param load - finds that resource; nothing found is answered 404
 */
export function authorize<Request extends ExpressRequest>(
  action: string,
  load: (req: Request) => Resource | null | undefined | Promise<Resource | null | undefined>,
  options: AuthorizeOptions = {},
): ExpressMiddleware<Request> {
  return step((req) => authorizeVisit(req, action, () => load(req), options))
}

/** Answers refusals thrown by handlers, and passes every other error on. Goes after the routes. */
export function answerRefusals(): (error: unknown, req: ExpressRequest, res: ExpressResponse, next: Next) => void {
  return function answerRefusals(error, req, res, next) {
    answer(error, req, res, next)
  }
}

/** Serves the metadata of this service (RFC 9728); goes before `authenticate`. */
export function protectedResourceMetadata(guard: Guard, options: ResourceMetadataOptions = {}): ExpressMiddleware {
  const replyTo = metadataReply(guard, options)
  return function protectedResourceMetadata(req, res, next) {
    const reply = replyTo(req.method, req.originalUrl)
    if (reply === undefined) return next()
    res.set(reply.headers)
    res.end(reply.body)
  }
}

function step<Request extends ExpressRequest>(run: (req: Request) => void | Promise<void>): ExpressMiddleware<Request> {
  async function passes(req: Request, res: ExpressResponse, next: Next): Promise<boolean> {
    try {
      await run(req)
      return true
    } catch (error) {
      answer(error, req, res, next)
      return false
    }
  }
  return function step(req, res, next) {
    void passes(req, res, next).then((passed) => passed && next())
  }
}

function answer(error: unknown, req: ExpressRequest, res: ExpressResponse, next: Next): void {
  try {
    const { status, headers, body } = refusalOfVisit(req, error)
    res.status(status)
    res.set(headers)
    res.end(JSON.stringify(body))
  } catch (other) {
    next(other)
  }
}
