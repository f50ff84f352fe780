/**
 * The guard for anything that answers a Web `Request` with a `Response`: Deno, Bun, edge functions, route handlers of
 * full-stack frameworks. There is no middleware here: a handler is wrapped, and calls the rules itself.
 */
import type { Auth } from './caller.ts'
import type { Guard } from './guard.ts'
import { fromWebRequest } from './request.ts'
import type { ResourceMetadataOptions } from './resource-metadata.ts'
import { metadataReply } from './visit.ts'

/** A handler that is told who sent the request. */
export type ProtectedHandler<Caller> = (request: Request, auth: Caller) => Response | Promise<Response>

/** Besides the request itself. */
export interface ProtectOptions {
  /** Let requests without any credentials pass, as nobody. A bad token is refused all the same. @defaultValue false */
  readonly optional?: boolean
  /** The client's address, when the runtime knows it. */
  readonly ip?: (request: Request) => string | undefined
}

/**
 * Wraps a handler: it is called only for whoever has a good token, and every refusal it throws is answered.
 *
 * @example
 * ```ts
 * import { createGuard, requireScopes } from '@latchkey/guard'
 * import { protect } from '@latchkey/guard/web'
 *
 * const guard = createGuard({ issuer: 'https://id.example.com', audience: 'https://api.example.com' })
 *
 * export const hello = protect(guard, (_request, auth) => {
 *   requireScopes(auth, 'models:read')
 *   return Response.json({ hello: auth.subject.id })
 * })
 * ```
 */
export function protect(
  guard: Guard,
  handle: ProtectedHandler<Auth>,
  options?: ProtectOptions & { readonly optional?: false },
): (request: Request) => Promise<Response>
export function protect(
  guard: Guard,
  handle: ProtectedHandler<Auth | undefined>,
  options: ProtectOptions,
): (request: Request) => Promise<Response>
export function protect(
  guard: Guard,
  handle: (request: Request, auth: never) => Response | Promise<Response>,
  options: ProtectOptions = {},
): (request: Request) => Promise<Response> {
  return async function protectedHandler(request) {
    const facts = fromWebRequest(request, options.ip?.(request))
    try {
      const auth = await guard.authenticate(facts, options)
      // Whether it may be undefined is settled by the overloads: `optional` and the handler's type go together.
      return await handle(request, auth as never)
    } catch (error) {
      const { status, headers, body } = guard.refuse(error, facts)
      return new Response(JSON.stringify(body), { status, headers })
    }
  }
}

/**
 * Serves the metadata of this service (RFC 9728).
 *
 * @returns a handler that answers `undefined` when the request is for something else
 */
export function protectedResourceMetadata(
  guard: Guard,
  options: ResourceMetadataOptions = {},
): (request: Request) => Response | undefined {
  const replyTo = metadataReply(guard, options)
  return function protectedResourceMetadata(request) {
    const reply = replyTo(request.method, new URL(request.url).pathname)
    return reply && new Response(reply.body, { headers: reply.headers })
  }
}
