/**
 * Every refusal the guard makes, and the only place that writes one. A `GuardError` carries what the caller may know
 * (`status`, `code`, `detail`, the challenge of RFC 6750) apart from what only the log may know (`reason`, `debug`,
 * `cause`). The functions below make the refusals there are; `reply` turns one into a status, headers and a body that
 * holds both the members of RFC 9457 and the error envelope of the Latchkey API. Sending it is left to the adapters.
 */

/** For programs: the kinds of refusal, the same words the Latchkey API uses. */
export type GuardErrorCode =
  | 'VALIDATION_ERROR'
  | 'AUTHENTICATION_ERROR'
  | 'AUTHORIZATION_ERROR'
  | 'RESOURCE_NOT_FOUND'
  | 'SERVICE_UNAVAILABLE'

/** Parameters of a `WWW-Authenticate` challenge (RFC 6750 §3, RFC 9449 §7.1, RFC 9470 §3). */
export interface Challenge {
  readonly error?: string
  readonly error_description?: string
  readonly scope?: string
  readonly acr_values?: string
  readonly max_age?: string
}

/** How a guard presents its refusals: the parts that do not depend on what was refused. */
export interface ErrorPresentation {
  /** `realm` of the challenge. */
  readonly realm?: string
  /** Address of the protected resource's metadata (RFC 9728 §5.1). */
  readonly resourceMetadata?: string
  /** Which schemes are offered, in order. @defaultValue `['Bearer']` */
  readonly schemes?: readonly ('Bearer' | 'DPoP')[]
  /** The scheme the request used: what is wrong is said of that one alone (RFC 9449 §7.2). */
  readonly used?: 'Bearer' | 'DPoP'
  /** Algorithms for DPoP proofs, named in the DPoP challenge (RFC 9449 §7.1). */
  readonly dpopAlgorithms?: readonly string[]
  /** Where your own error pages live; `#CODE` is appended. Without it, the RFC that rules the case is named. */
  readonly documentation?: string
}

/** What of a refusal depends on the one request that is refused. */
export interface ReplyOptions {
  /** Told to the caller and to the log, to find one in the other. */
  readonly requestId?: string
  /** The request's `Accept` header: `application/problem+json` is answered when it is asked for. */
  readonly accept?: string | undefined
  /** Milliseconds since 1970. @defaultValue `Date.now()` */
  readonly now?: number
}

/** A refusal ready to be sent by any framework. */
export interface GuardReply {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: ProblemDetails
}

/** One body for two readers: RFC 9457 members, and the envelope of the Latchkey API. */
export interface ProblemDetails {
  readonly type: string
  readonly title: string
  readonly status: number
  readonly detail: string
  readonly error: { readonly code: GuardErrorCode; readonly message: string; readonly details: readonly unknown[] }
  readonly request_id?: string
  readonly timestamp: string
  readonly documentation: string
}

/** What a `GuardError` is made of. */
export interface GuardErrorFields {
  readonly status: 400 | 401 | 403 | 404 | 503
  readonly code: GuardErrorCode
  /** A stable word for logs and metrics, finer than `code`; never sent. */
  readonly reason: string
  readonly title: string
  /** One sentence the caller may read. */
  readonly detail: string
  /** One sentence only the log may read. */
  readonly debug?: string
  readonly challenge?: Challenge
  readonly headers?: Readonly<Record<string, string>>
  readonly details?: readonly unknown[]
  readonly documentation: string
  readonly cause?: unknown
}

/**
 * A refusal: the request must not go on. Adapters answer it by themselves; a handler that catches one can send
 * `error.toResponse()`, or take `error.reply()` apart.
 *
 * @example
 * ```ts
 * import { GuardError } from '@latchkey/guard'
 *
 * export function answer(error: unknown): Response {
 *   if (error instanceof GuardError) return error.toResponse()
 *   throw error
 * }
 * ```
 */
export class GuardError extends Error {
  override readonly name: string = 'GuardError'
  readonly status: GuardErrorFields['status']
  readonly code: GuardErrorCode
  /** Stable, for logs and metrics; never sent. */
  readonly reason: string
  readonly title: string
  readonly detail: string
  /** For the log; never sent. */
  readonly debug: string | undefined
  readonly challenge: Challenge
  readonly details: readonly unknown[]
  /** Set by the guard that refuses, so that a refusal caught anywhere is answered as that guard would. */
  presentation: ErrorPresentation = {}
  readonly #headers: Readonly<Record<string, string>>
  readonly #documentation: string

  constructor(fields: GuardErrorFields) {
    super(fields.debug === undefined ? fields.detail : `${fields.detail} (${fields.debug})`, { cause: fields.cause })
    this.status = fields.status
    this.code = fields.code
    this.reason = fields.reason
    this.title = fields.title
    this.detail = fields.detail
    this.debug = fields.debug
    this.challenge = fields.challenge ?? {}
    this.details = fields.details ?? []
    this.#headers = fields.headers ?? {}
    this.#documentation = fields.documentation
  }

  /** Headers of the answer, `WWW-Authenticate` among them wherever RFC 9110 §11.6.1 or RFC 6750 §3 asks for it. */
  get headers(): Record<string, string> {
    const headers: Record<string, string> = { ...this.#headers }
    if (this.status === 401 || this.challenge.error !== undefined) {
      headers['WWW-Authenticate'] = this.#challenges()
    }
    return headers
  }

  /** The whole answer: status, headers and body. */
  reply(options: ReplyOptions = {}): GuardReply {
    const { documentation } = this.presentation
    const page = documentation === undefined ? this.#documentation : `${documentation}#${this.code}`
    const wantsProblem = /\bapplication\/problem\+json\b/i.test(options.accept ?? '')
    return {
      status: this.status,
      headers: {
        ...this.headers,
        'Content-Type': wantsProblem ? 'application/problem+json' : 'application/json',
        // A refusal belongs to one caller and one moment: no cache may hand it to another.
        'Cache-Control': 'no-store',
        Vary: 'Accept, Authorization',
      },
      body: {
        type: documentation === undefined ? 'about:blank' : page,
        title: this.title,
        status: this.status,
        detail: this.detail,
        error: { code: this.code, message: this.detail, details: this.details },
        ...(options.requestId === undefined ? {} : { request_id: options.requestId }),
        timestamp: new Date(options.now ?? Date.now()).toISOString(),
        documentation: page,
      },
    }
  }

  /** The body alone. */
  toProblem(options: ReplyOptions = {}): ProblemDetails {
    return this.reply(options).body
  }

  /** The whole answer as a Web `Response`. */
  toResponse(options: ReplyOptions = {}): Response {
    const { status, headers, body } = this.reply(options)
    return new Response(JSON.stringify(body), { status, headers })
  }

  /** Hono's name for `toResponse`: its own error handler asks an error for this. */
  getResponse(): Response {
    return this.toResponse()
  }

  #challenges(): string {
    const { realm, resourceMetadata, schemes = ['Bearer'], used, dpopAlgorithms } = this.presentation
    // What is wrong is wrong with the way the request was sent; the other way is merely offered (RFC 9449 §7.2).
    const blamed = used !== undefined && schemes.includes(used) ? used : schemes[0]
    return schemes
      .map((scheme) => {
        const parameters = {
          realm,
          ...(scheme === blamed ? this.challenge : {}),
          algs: scheme === 'DPoP' ? dpopAlgorithms?.join(' ') : undefined,
          resource_metadata: resourceMetadata,
        }
        const written = Object.entries(parameters)
          .filter(([, value]) => value !== undefined)
          .map(([name, value]) => `${name}="${quotable(String(value))}"`)
        return written.length === 0 ? scheme : `${scheme} ${written.join(', ')}`
      })
      .join(', ')
  }
}

/** Inside a quoted-string only printable ASCII is safe, and `"` and `\` would end it (RFC 6750 §3). */
function quotable(value: string): string {
  return value.replaceAll(/[^\x20-\x7E]|["\\]/g, "'")
}

const RFC = 'https://www.rfc-editor.org/rfc/'

/** 401 without `error`: nothing was sent, so nothing is wrong with it (RFC 6750 §3.1). */
export function missingCredentials(): GuardError {
  return new GuardError({
    status: 401,
    code: 'AUTHENTICATION_ERROR',
    reason: 'missing_credentials',
    title: 'Authentication required',
    detail: 'This needs an access token in the Authorization header.',
    documentation: `${RFC}rfc6750#section-2.1`,
  })
}

/** 400 `invalid_request`: the credentials cannot be read as one token in one place (RFC 6750 §3.1). */
export function invalidRequest(detail: string): GuardError {
  return new GuardError({
    status: 400,
    code: 'VALIDATION_ERROR',
    reason: 'invalid_request',
    title: 'Malformed credentials',
    detail,
    challenge: { error: 'invalid_request', error_description: detail },
    documentation: `${RFC}rfc6750#section-3.1`,
  })
}

/**
 * 401 `invalid_token`. The caller learns of expiry and revocation, which it can mend by asking for a new token, and of
 * nothing else: what exactly failed would only help whoever forges.
 *
 * @param reason - `expired`, `revoked`, or any other stable word for the log
 * @param debug - for the log
 */
export function invalidToken(reason: string, debug?: string, cause?: unknown): GuardError {
  const detail =
    reason === 'expired'
      ? 'The access token expired.'
      : reason === 'revoked'
        ? 'The access token was revoked.'
        : 'The access token is not valid here.'
  return new GuardError({
    status: 401,
    code: 'AUTHENTICATION_ERROR',
    reason,
    title: 'Invalid access token',
    detail,
    ...(debug === undefined ? {} : { debug }),
    challenge: { error: 'invalid_token', error_description: detail },
    documentation: `${RFC}rfc6750#section-3.1`,
    cause,
  })
}

/** 401 `invalid_dpop_proof` (RFC 9449 §7.1). */
export function invalidDpopProof(reason: string, debug?: string, cause?: unknown): GuardError {
  const detail = 'The DPoP proof does not fit this request.'
  return new GuardError({
    status: 401,
    code: 'AUTHENTICATION_ERROR',
    reason,
    title: 'Invalid DPoP proof',
    detail,
    ...(debug === undefined ? {} : { debug }),
    challenge: { error: 'invalid_dpop_proof', error_description: detail },
    documentation: `${RFC}rfc9449#section-7.1`,
    cause,
  })
}

/** 401 `use_dpop_nonce`: the proof must carry the nonce that comes with this answer (RFC 9449 §9). */
export function useDpopNonce(nonce: string): GuardError {
  const detail = 'The DPoP proof must carry the nonce of this answer.'
  return new GuardError({
    status: 401,
    code: 'AUTHENTICATION_ERROR',
    reason: 'use_dpop_nonce',
    title: 'DPoP nonce required',
    detail,
    challenge: { error: 'use_dpop_nonce', error_description: detail },
    headers: { 'DPoP-Nonce': nonce },
    documentation: `${RFC}rfc9449#section-9`,
  })
}

/** What a route may ask of the login behind a token (RFC 9470). */
export interface AuthenticationRequirement {
  /** Any one of these satisfies. */
  readonly acrValues?: readonly string[]
  readonly maxAgeSeconds?: number
}

/** 401 `insufficient_user_authentication`: the user must sign in again, or more strongly (RFC 9470 §3). */
export function insufficientAuthentication(requirement: AuthenticationRequirement): GuardError {
  const detail = 'This needs a more recent or a stronger sign-in.'
  return new GuardError({
    status: 401,
    code: 'AUTHENTICATION_ERROR',
    reason: 'insufficient_user_authentication',
    title: 'Stronger authentication required',
    detail,
    challenge: {
      error: 'insufficient_user_authentication',
      error_description: detail,
      ...(requirement.acrValues === undefined ? {} : { acr_values: requirement.acrValues.join(' ') }),
      ...(requirement.maxAgeSeconds === undefined ? {} : { max_age: String(requirement.maxAgeSeconds) }),
    },
    documentation: `${RFC}rfc9470#section-3`,
  })
}

/** 403 `insufficient_scope`, naming the scopes that would do (RFC 6750 §3.1). */
export function insufficientScope(required: readonly string[]): GuardError {
  const detail = 'The access token lacks a scope that this needs.'
  return new GuardError({
    status: 403,
    code: 'AUTHORIZATION_ERROR',
    reason: 'insufficient_scope',
    title: 'Insufficient scope',
    detail,
    challenge: { error: 'insufficient_scope', error_description: detail, scope: required.join(' ') },
    details: required.map((scope) => ({ field: 'scope', constraint: 'required', value: scope })),
    documentation: `${RFC}rfc6750#section-3.1`,
  })
}

/**
 * 403 without a challenge: the token is good, and no other token of this caller would do better.
 *
 * @param reason - stable word for the log: `role`, `policy`, …
 * @param debug - for the log: which policy, which role
 * @param shown - what the caller may learn of it; nothing by default
 */
export function accessDenied(
  reason: string,
  debug?: string,
  shown?: { readonly policy?: string; readonly reason: string },
): GuardError {
  return new GuardError({
    status: 403,
    code: 'AUTHORIZATION_ERROR',
    reason,
    title: 'Access denied',
    detail: 'You may not do this.',
    ...(debug === undefined ? {} : { debug }),
    ...(shown === undefined ? {} : { details: [{ constraint: shown.reason, policy: shown.policy }] }),
    documentation: `${RFC}rfc9110#section-15.5.4`,
  })
}

/** 404: it does not exist, or the caller may not learn that it does (RFC 9110 §15.5.4 allows it). */
export function notFound(debug?: string): GuardError {
  return new GuardError({
    status: 404,
    code: 'RESOURCE_NOT_FOUND',
    reason: 'not_found',
    title: 'Not found',
    detail: 'There is nothing here under this name.',
    ...(debug === undefined ? {} : { debug }),
    documentation: `${RFC}rfc9110#section-15.5.5`,
  })
}

/**
 * 503 with `Retry-After`: the guard cannot know. Never a 401, which would make clients throw good tokens away.
 *
 * @param reason - stable word for the log: `keys`, `revocation`, `resource`, …
 * @param retryAfterSeconds - whole seconds
 */
export function unavailable(reason: string, retryAfterSeconds: number, debug?: string, cause?: unknown): GuardError {
  return new GuardError({
    status: 503,
    code: 'SERVICE_UNAVAILABLE',
    reason,
    title: 'Temporarily unavailable',
    detail: 'This cannot be decided right now. Try again shortly.',
    ...(debug === undefined ? {} : { debug }),
    headers: { 'Retry-After': String(Math.max(1, Math.ceil(retryAfterSeconds))) },
    documentation: `${RFC}rfc9110#section-15.6.4`,
    cause,
  })
}
