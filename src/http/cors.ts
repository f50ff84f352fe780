import koaCors from '@koa/cors'
import type { Context, Middleware, Next, ParameterizedContext } from 'koa'
import type { RequestState } from './request-context.ts'

export interface CorsSettings {
  /** which paths other origins may ask; the protocol's endpoints have their own rule */
  readonly appliesTo: (path: string) => boolean
  /** whether a client is registered there; it must not throw */
  readonly isRegisteredOrigin: (origin: string) => Promise<boolean>
}

/** What a program of another origin may read of an answer, besides what the Fetch standard always lets it. */
const exposeHeaders = [
  'ETag',
  'Location',
  'Link',
  'Deprecation',
  'Sunset',
  'API-Version',
  'RateLimit',
  'RateLimit-Policy',
  'X-RateLimit-Limit',
  'X-RateLimit-Remaining',
  'X-RateLimit-Reset',
  'Retry-After',
  'X-Request-Id',
  'Accept-Patch',
  'Allow',
  'WWW-Authenticate',
  'Idempotency-Replayed',
]

const allowHeaders = [
  'Authorization',
  'Content-Type',
  'Accept',
  'If-Match',
  'If-None-Match',
  'Idempotency-Key',
  'API-Version',
  'X-API-Version',
  'X-Api-Key',
  'X-Request-Id',
  'Traceparent',
  'Tracestate',
  'DPoP',
]

const maxAgeSeconds = 600
const longestOrigin = 300

/**
 * Lets programs in browsers call the API from the origins of registered clients, and from no other. It is no check of
 * access: the request of a foreign origin is answered too, and its browser keeps the answer to itself. Cookies count for
 * nothing here, so credentials are never allowed.
 *
 * Stands in front of whatever may refuse, so that refusals can be read too.
 *
 * @source https://fetch.spec.whatwg.org/#http-cors-protocol
 */
export function cors({ appliesTo, isRegisteredOrigin }: CorsSettings): Middleware<RequestState> {
  const answer = koaCors({
    origin: async (ctx) => ((await isAllowed(ctx, isRegisteredOrigin)) ? ctx.get('Origin') : ''),
    allowMethods: ['GET', 'HEAD', 'PUT', 'POST', 'PATCH', 'DELETE'],
    allowHeaders,
    exposeHeaders,
    maxAge: maxAgeSeconds,
    // The answers to errors are written by problemResponse, which leaves these headers where they are.
    keepHeadersOnError: false,
  })

  return function cors(ctx, next) {
    return appliesTo(ctx.path) ? answerFor(ctx, next) : next()
  }

  async function answerFor(ctx: ParameterizedContext<RequestState>, next: Next): Promise<void> {
    // No browser asks from elsewhere without it.
    if (ctx.get('Origin') === '') {
      ctx.vary('Origin')
      await next()
      ctx.vary('Origin')
      return
    }
    if (isPreflight(ctx)) ctx.state.endpoint = '(preflight)'
    await answer(ctx, async () => {
      if (isPreflight(ctx)) {
        // An allowed one has been answered already.
        ctx.status = 204
        return
      }
      if (ctx.res.hasHeader('Access-Control-Allow-Origin')) ctx.set('Cross-Origin-Resource-Policy', 'cross-origin')
      await next()
    })
    // Whoever set Vary anew behind this has forgotten it.
    ctx.vary('Origin')
  }
}

/**
 * Lets programs of registered origins read what the protocol's endpoints refuse before the provider sees it: too many
 * requests of a network, too many at once. The headers come with the refusal and no earlier, since the provider leaves its
 * own rule, which knows the client, to whoever has set some.
 *
 * Stands in front of whatever may refuse. An origin is looked for once something was refused, and never in its way.
 */
export function corsOfRefusals({ appliesTo, isRegisteredOrigin }: CorsSettings): Middleware<RequestState> {
  return async function corsOfRefusals(ctx, next) {
    try {
      await next()
    } catch (error) {
      if (appliesTo(ctx.path) && !ctx.res.hasHeader('Access-Control-Allow-Origin')) {
        ctx.vary('Origin')
        if (await isAllowed(ctx, isRegisteredOrigin)) {
          ctx.set('Access-Control-Allow-Origin', ctx.get('Origin'))
          ctx.set('Access-Control-Expose-Headers', exposeHeaders.join(','))
        }
      }
      throw error
    }
  }
}

async function isAllowed(
  ctx: Context | ParameterizedContext<RequestState>,
  isRegisteredOrigin: CorsSettings['isRegisteredOrigin'],
): Promise<boolean> {
  const origin = ctx.get('Origin')
  // `null` is every sandbox and every file: nobody's.
  if (origin === '' || origin === 'null' || origin.length > longestOrigin) return false
  return isRegisteredOrigin(origin)
}

function isPreflight(ctx: ParameterizedContext<RequestState>): boolean {
  return ctx.method === 'OPTIONS' && ctx.get('Origin') !== '' && ctx.get('Access-Control-Request-Method') !== ''
}
