/**
 * The one writer of errors, for everything but the OAuth endpoints, which speak RFC 6749 and write their own. Whatever
 * is thrown behind it becomes a Problem; whatever nobody answers becomes a 404; and a Problem becomes JSON, problem+json
 * or a page, as the Accept header asks. What is not expected is logged in full and answered in general words.
 */
import type { Middleware, ParameterizedContext } from 'koa'
import type { Logger } from 'pino'
import { isDatabaseUnavailable, isStatementTimeout } from '../database/database.ts'
import { Problem, problemCatalogue, toProblemBody, type ProblemCode } from '../problems.ts'
import { acceptedType } from './accepted-type.ts'
import { CallerLeft } from './deadline.ts'
import type { RequestState } from './request-context.ts'
import { setPageHeaders } from './security-headers.ts'

/** What a page about an error shows. */
export interface ShownProblem {
  readonly status: number
  readonly title: string
  readonly detail: string
  readonly suggestion: string
  readonly requestId: string
}

export interface ProblemResponseSettings {
  readonly issuer: string
  readonly log: Logger
  /** makes the whole document of an error page; without it, browsers get JSON too */
  readonly renderError?: (shown: ShownProblem) => string
  /** the methods of paths that no router of ours knows: `{'/token': 'POST'}` */
  readonly methods?: Readonly<Record<string, string>>
  /** where clients of RFC 6749 ask: there a 429, 503 or 504 is an error that they can read */
  readonly oauthPaths?: readonly string[]
}

export function problemResponse(settings: ProblemResponseSettings): Middleware<RequestState> {
  const methods = new Map(Object.entries(settings.methods ?? {}))
  return async function problemResponse(ctx, next) {
    try {
      await next()
    } catch (error) {
      if (error instanceof CallerLeft) return
      if (ctx.headerSent) {
        settings.log.error({ error }, 'a request failed after its answer had begun')
        ctx.res.destroy()
        return
      }
      write(ctx, toProblem(error, settings.log), settings)
      return
    }
    const unanswered = ctx.body == null || ctx.body === ''
    if (!unanswered || ctx.headerSent || ctx.respond === false) return
    // @koa/router's allowedMethods: 501 for a method that no route of it has, with no Allow where there is no such path.
    if (ctx.status === 404 || ctx.status === 405 || ctx.status === 501) {
      const allow = ctx.response.get('Allow') || methods.get(ctx.path)
      ctx.remove('Allow')
      if (allow !== undefined) write(ctx, methodNotAllowed(allow), settings)
      else write(ctx, new Problem('RESOURCE_NOT_FOUND', 'There is nothing at this address.'), settings)
    }
  }
}

function methodNotAllowed(allow: string): Problem {
  return new Problem('METHOD_NOT_ALLOWED', `The methods here are ${allow}.`, { headers: { Allow: allow } })
}

/**
 * Whether this is a request for what can only be read. OPTIONS has been answered when it returns, as a router does it.
 *
 * @throws Problem METHOD_NOT_ALLOWED
 */
export function isRead(ctx: ParameterizedContext): boolean {
  if (ctx.method === 'GET' || ctx.method === 'HEAD') return true
  if (ctx.method !== 'OPTIONS') throw methodNotAllowed('GET, HEAD')
  ctx.set('Allow', 'GET, HEAD')
  ctx.status = 200
  ctx.body = ''
  return false
}

/** What an error means to the caller. Anything unexpected, and anything that is our own fault, is logged in full. */
export function toProblem(error: unknown, log: Logger): Problem {
  if (error instanceof Problem) {
    // One that says when to come back is a limit that did its work, unless something is behind it.
    const isLimit = error.retryAfterSeconds !== undefined && error.cause === undefined
    if (error.status >= 500 && !isLimit) log.error({ error }, 'a request failed')
    return error
  }
  const retryAfterSeconds = readRetryAfter(error)
  if (retryAfterSeconds !== undefined) {
    log.warn({ error }, 'a request was turned away')
    return new Problem('SERVICE_UNAVAILABLE', undefined, { retryAfterSeconds, cause: error })
  }
  if (isStatementTimeout(error) || isTimeout(error)) {
    log.error({ error }, 'what a request waited for took too long')
    return new Problem('GATEWAY_TIMEOUT', undefined, { retryAfterSeconds: 1, cause: error })
  }
  if (isDatabaseUnavailable(error)) {
    log.error({ error }, 'the database is not available')
    return new Problem('SERVICE_UNAVAILABLE', undefined, { retryAfterSeconds: 2, cause: error })
  }
  const code = codeOfHttpError(error)
  if (code !== undefined) return new Problem(code, undefined, { cause: error })
  log.error({ error: error instanceof Error ? error : new Error(String(error)) }, 'a request failed unexpectedly')
  return new Problem('SERVER_ERROR', undefined, { cause: error })
}

/** Errors of a full queue carry when to try again; http does not know which queues there are. */
function readRetryAfter(error: unknown): number | undefined {
  if (!(error instanceof Error) || !('retryAfterSeconds' in error)) return undefined
  const { retryAfterSeconds: seconds } = error
  return typeof seconds === 'number' && Number.isFinite(seconds) ? Math.max(1, Math.ceil(seconds)) : undefined
}

/** Of a call to elsewhere: AbortSignal.timeout's, or undici's own (UND_ERR_HEADERS_TIMEOUT …). */
function isTimeout(error: unknown): boolean {
  if (!(error instanceof Error)) return false
  const code = 'code' in error && typeof error.code === 'string' ? error.code : ''
  return error.name === 'TimeoutError' || /^UND_ERR_\w+_TIMEOUT$/.test(code) || isTimeout(error.cause)
}

const codesByStatus: Readonly<Record<number, ProblemCode>> = {
  400: 'MALFORMED_REQUEST',
  401: 'AUTHENTICATION_ERROR',
  403: 'AUTHORIZATION_ERROR',
  404: 'RESOURCE_NOT_FOUND',
  408: 'REQUEST_TIMEOUT',
  413: 'PAYLOAD_TOO_LARGE',
  415: 'UNSUPPORTED_MEDIA_TYPE',
}

/** Koa and its libraries throw errors that carry a status; those below 500 are the caller's doing. */
function codeOfHttpError(error: unknown): ProblemCode | undefined {
  if (!(error instanceof Error) || !('status' in error) || !('expose' in error) || error.expose !== true)
    return undefined
  return typeof error.status === 'number' ? codesByStatus[error.status] : undefined
}

function write(ctx: ParameterizedContext<RequestState>, problem: Problem, settings: ProblemResponseSettings): void {
  const { requestId } = ctx.state
  ctx.state.errorMessage ??= `${problem.code}: ${problem.title}`
  // What a handler had set for its own answer is not true of this one.
  for (const name of ['Content-Encoding', 'Content-Type', 'ETag', 'Last-Modified', 'Location']) ctx.remove(name)
  ctx.status = problem.status
  ctx.set('Cache-Control', 'no-store')
  ctx.vary('Accept')
  // RFC 9110 §11.6.1: a 401 says how to authenticate.
  if (problem.status === 401) ctx.set('WWW-Authenticate', 'Bearer')
  if (problem.retryAfterSeconds !== undefined) ctx.set('Retry-After', String(problem.retryAfterSeconds))
  ctx.set(problem.headers)
  if ([429, 503, 504].includes(problem.status) && settings.oauthPaths?.includes(ctx.path) === true) {
    ctx.type = 'application/json'
    ctx.body = { error: 'temporarily_unavailable', error_description: problem.title }
    return
  }

  const wanted = acceptedType(ctx, ['application/json', 'application/problem+json', 'text/html'])
  if (wanted === 'text/html' && settings.renderError !== undefined) {
    const page = settings.renderError({
      status: problem.status,
      title: problem.title,
      detail: problem.message === problem.title ? '' : problem.message,
      // The catalogue marks names as Markdown does.
      suggestion: problemCatalogue[problem.code].whatToDo.replaceAll('`', ''),
      requestId,
    })
    setPageHeaders(ctx)
    ctx.type = 'text/html; charset=utf-8'
    ctx.body = page
    return
  }
  ctx.type = wanted === 'application/problem+json' ? wanted : 'application/json'
  ctx.body = JSON.stringify(
    toProblemBody(problem, { issuer: settings.issuer, path: ctx.path, requestId, at: new Date() }),
  )
}
