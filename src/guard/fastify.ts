/**
 * The guard for Fastify. `app.addHook('onRequest', authenticate(guard))` goes first and puts `request.auth` there; the
 * rules are `preHandler`s. Hooks answer their own refusals, and `app.setErrorHandler(answerRefusals)` answers those
 * thrown by handlers.
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

/** What is used of Fastify's request. */
export interface FastifyRequest {
  readonly raw: NodeRequest
  readonly method: string
  readonly originalUrl: string
  readonly ip: string
}

/** What is used of Fastify's reply. */
export interface FastifyReply {
  code(status: number): FastifyReply
  headers(headers: Record<string, string>): FastifyReply
  send(body: string): unknown
}

/** A Fastify hook, by shape. */
export type FastifyHook<R extends FastifyRequest = FastifyRequest> = (
  request: R,
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
 * app.setErrorHandler(answerRefusals)
 * app.get('/hello', { preHandler: requireScopes('models:read') }, async (request) => ({
 *   hello: authOf(request).subject.id,
 * }))
 * ```
 */
export function authenticate(guard: Guard, options?: AuthenticateOptions): FastifyHook {
  return step(async (request) => {
    const { raw, originalUrl, ip } = request
    const auth = await visit.admit(guard, raw, fromNodeRequest(raw, originalUrl, ip), options)
    Object.assign(request, { auth })
  })
}

/** Who sent this request. @throws GuardError 401 when it was let pass as nobody's */
export const authOf = (request: FastifyRequest): Auth => visit.callerOf(request.raw)

/** The resource that `authorize` found. */
export const resourceOf = (request: FastifyRequest): Resource => visit.resourceOf(request.raw)

export const { requireScopes, requireAnyScope, requireRole, requireAuthentication } = visit.ruleSteps(check)

/**
 * Lets pass whoever the policies allow this action on the resource the request is about.
 *
 * @param load - finds that resource; nothing found is answered 404
 */
export function authorize<R extends FastifyRequest>(
  action: string,
  load: (request: R) => FoundResource,
  options?: AuthorizeOptions,
): FastifyHook<R> {
  return step((request) => visit.authorize(request.raw, action, () => load(request), options))
}

/** For `app.setErrorHandler`: answers refusals thrown by handlers, and passes every other error on. */
export function answerRefusals(error: unknown, request: FastifyRequest, reply: FastifyReply): unknown {
  const { status, headers, body } = visit.refusal(request.raw, error)
  return reply.code(status).headers(headers).send(JSON.stringify(body))
}

/** Serves the metadata of this service (RFC 9728): an `onRequest` hook before `authenticate`. */
export function protectedResourceMetadata(guard: Guard, options?: ResourceMetadataOptions): FastifyHook {
  const replyTo = visit.metadataReply(guard, options)
  return async function protectedResourceMetadata(request, reply) {
    const document = replyTo(request.method, request.originalUrl)
    if (document === undefined) return undefined
    return reply.headers(document.headers).send(document.body)
  }
}

function check(rule: Rule): FastifyHook {
  return step((request) => visit.check(request.raw, rule))
}

function step<R extends FastifyRequest>(run: (request: R) => void | Promise<void>): FastifyHook<R> {
  return async function step(request, reply) {
    try {
      await run(request)
      return undefined
    } catch (error) {
      return answerRefusals(error, request, reply)
    }
  }
}
