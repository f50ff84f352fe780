/**
 * The guard for Fastify. `app.addHook('onRequest', authenticate(guard))` goes first and puts `request.auth` there; the
 * rules are `preHandler`s. Hooks answer their own refusals, and `app.setErrorHandler(answerRefusals())` answers those
 * thrown by handlers.
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

/** What is used of Fastify's request. */
export interface FastifyRequest {
  readonly raw: NodeRequest
  readonly method: string
  readonly originalUrl: string
  readonly ip: string
}

/** What is used of Fastify's reply. */
export interface FastifyReply {
  code(status: number): unknown
  headers(headers: Record<string, string>): unknown
  send(body: string): unknown
}

/** A Fastify hook, by shape. */
export type FastifyHook<Request extends FastifyRequest = FastifyRequest> = (
  request: Request,
  reply: FastifyReply,
) => Promise<unknown>

/**
 * Lets in whoever has a good token.
 *
 * @example
 * ```ts
 * import { createGuard } from '@latchkey/guard'
 * import { answerRefusals, authenticate, authOf, requireScopes } from '@latchkey/guard/fastify'
 * import { fastify } from 'fastify'
 *
 * const guard = createGuard({ issuer: 'https://id.example.com', audience: 'https://api.example.com' })
 * const app = fastify()
 * app.addHook('onRequest', authenticate(guard))
 * app.setErrorHandler(answerRefusals())
 * app.get('/hello', { preHandler: requireScopes('models:read') }, async (request) => ({
 *   hello: authOf(request).subject.id,
 * }))
 * ```
 */
export function authenticate(guard: Guard, options: AuthenticateOptions = {}): FastifyHook {
  return step(async (request) => {
    const { raw, originalUrl, ip } = request
    const auth = await admit(guard, raw, fromNodeRequest(raw, originalUrl, ip), options)
    Object.assign(request, { auth })
  })
}

/** Who sent this request. @throws GuardError 401 when it was let pass as nobody's */
export const authOf = (request: FastifyRequest): Auth => callerOfVisit(request.raw)

/** The resource that `authorize` found. */
export const resourceOf = (request: FastifyRequest): Resource => resourceOfVisit(request.raw)

/** Lets pass whoever has all of these scopes. */
export const requireScopes = (...scopes: string[]): FastifyHook => check((auth) => rules.requireScopes(auth, ...scopes))

/** Lets pass whoever has one of these scopes. */
export const requireAnyScope = (...scopes: string[]): FastifyHook =>
  check((auth) => rules.requireAnyScope(auth, ...scopes))

/** Lets pass whoever has one of these roles. */
export const requireRole = (...roles: string[]): FastifyHook => check((auth) => rules.requireRole(auth, ...roles))

/** Lets pass whoever signed in strongly and recently enough (RFC 9470). */
export const requireAuthentication = (requirement: AuthenticationRequirement): FastifyHook =>
  check((auth, guard) => guard.requireAuthentication(auth, requirement))

/**
 * Lets pass whoever the policies allow this action on the resource the request is about.
 *
 * @param load - finds that resource; nothing found is answered 404
 */
export function authorize<Request extends FastifyRequest>(
  action: string,
  load: (request: Request) => Resource | null | undefined | Promise<Resource | null | undefined>,
  options: AuthorizeOptions = {},
): FastifyHook<Request> {
  return step((request) => authorizeVisit(request.raw, action, () => load(request), options))
}

/** For `app.setErrorHandler`: answers refusals thrown by handlers, and passes every other error on. */
export function answerRefusals(): (error: unknown, request: FastifyRequest, reply: FastifyReply) => unknown {
  return answer
}

/** Serves the metadata of this service (RFC 9728): an `onRequest` hook before `authenticate`. */
export function protectedResourceMetadata(guard: Guard, options: ResourceMetadataOptions = {}): FastifyHook {
  const replyTo = metadataReply(guard, options)
  return async function protectedResourceMetadata(request, reply) {
    const document = replyTo(request.method, request.originalUrl)
    if (document === undefined) return undefined
    reply.headers(document.headers)
    return reply.send(document.body)
  }
}

function check(rule: (auth: Auth, guard: Guard) => void): FastifyHook {
  return step((request) => checkCaller(request.raw, rule))
}

function step<Request extends FastifyRequest>(run: (request: Request) => void | Promise<void>): FastifyHook<Request> {
  return async function step(request, reply) {
    try {
      await run(request)
      return undefined
    } catch (error) {
      return answer(error, request, reply)
    }
  }
}

function answer(error: unknown, request: FastifyRequest, reply: FastifyReply): unknown {
  const { status, headers, body } = refusalOfVisit(request.raw, error)
  reply.code(status)
  reply.headers(headers)
  return reply.send(JSON.stringify(body))
}
