/**
 * The catalogue of errors that the API and the pages answer with: code, HTTP status, title and what to do. Codes are
 * API: they may be added, never changed. The body holds the members of RFC 9457 and, beside them, the envelope
 * `{error: {code, message, details}, request_id, timestamp, documentation}`. OAuth endpoints do not speak this; they
 * speak RFC 6749.
 */

import type { z } from 'zod'

interface CatalogueEntry {
  readonly status: number
  readonly title: string
  /** for whoever called: how to get another answer */
  readonly whatToDo: string
}

export const problemCatalogue = {
  VALIDATION_ERROR: {
    status: 400,
    title: 'The request is not valid',
    whatToDo: 'Correct the fields that `details` names, and send it again.',
  },
  MALFORMED_REQUEST: {
    status: 400,
    title: 'The request cannot be read',
    whatToDo: 'Send what the media type promises: well-formed, in UTF-8, each field once.',
  },
  AUTHENTICATION_ERROR: {
    status: 401,
    title: 'A valid access token is needed',
    whatToDo: 'Get an access token for this resource and send it as `Authorization: Bearer …`.',
  },
  AUTHORIZATION_ERROR: {
    status: 403,
    title: 'This is not allowed',
    whatToDo: 'Ask for the scope or role that this needs.',
  },
  FORM_EXPIRED: {
    status: 403,
    title: 'This form is no longer valid',
    whatToDo: 'Open the page again and submit it from there, with cookies allowed.',
  },
  RESOURCE_NOT_FOUND: {
    status: 404,
    title: 'There is nothing here',
    whatToDo: 'Check the address and the identifier in it.',
  },
  METHOD_NOT_ALLOWED: {
    status: 405,
    title: 'This method is not allowed here',
    whatToDo: 'Use one of the methods in the `Allow` header.',
  },
  REQUEST_TIMEOUT: {
    status: 408,
    title: 'The request took too long to arrive',
    whatToDo: 'Send it again.',
  },
  CONFLICT: {
    status: 409,
    title: 'The request conflicts with what is there',
    whatToDo: 'Read the present state, then decide again.',
  },
  PAYLOAD_TOO_LARGE: {
    status: 413,
    title: 'The request body is too large',
    whatToDo: 'Send less at once.',
  },
  UNSUPPORTED_MEDIA_TYPE: {
    status: 415,
    title: 'This media type is not understood here',
    whatToDo: 'Send the body in a media type that the documentation names, in UTF-8 and not compressed.',
  },
  RATE_LIMIT_EXCEEDED: {
    status: 429,
    title: 'Too many requests',
    whatToDo: 'Wait for as many seconds as `Retry-After` says.',
  },
  SERVER_ERROR: {
    status: 500,
    title: 'Something went wrong here',
    whatToDo: 'Try again; if it stays, report the `request_id`.',
  },
  SERVICE_UNAVAILABLE: {
    status: 503,
    title: 'The service cannot answer at the moment',
    whatToDo: 'Wait for as many seconds as `Retry-After` says, and try again.',
  },
} as const satisfies Record<string, CatalogueEntry>

export type ProblemCode = keyof typeof problemCatalogue

/** What is wrong with one field of a request. */
export interface FieldError {
  /** as the caller wrote it: `email`, `features[3]` */
  readonly field: string
  /** the rule that it breaks: `type`, `maximum`, `required` */
  readonly constraint?: string
  readonly message: string
  /** what was sent; never a secret, and never more than a few words of it */
  readonly value?: string | number | boolean | null
}

export interface ProblemOptions {
  readonly details?: readonly FieldError[]
  /** further members of `error`: `resource_type`, `limit`, `suggestions` … */
  readonly members?: Readonly<Record<string, unknown>>
  readonly headers?: Readonly<Record<string, string>>
  /** when to try again, in whole seconds: the `Retry-After` header and `error.retry_after` */
  readonly retryAfterSeconds?: number
  readonly cause?: unknown
}

/**
 * An expected refusal. Anything else that is thrown is a bug, and answered with a generic 500.
 *
 * @example
 * throw new Problem('VALIDATION_ERROR', 'The user cannot be created.', {
 *   details: [{ field: 'email', constraint: 'format', message: 'Must be an email address' }],
 * })
 */
export class Problem extends Error {
  override name = 'Problem'
  readonly code: ProblemCode
  readonly status: number
  readonly title: string
  readonly details: readonly FieldError[]
  readonly members: Readonly<Record<string, unknown>>
  readonly headers: Readonly<Record<string, string>>
  readonly retryAfterSeconds: number | undefined

  /**
   * @param detail one sentence for the caller about this occurrence; the title when left out. Never a secret, and
   *   nothing that the caller may not know.
   */
  constructor(code: ProblemCode, detail?: string, options: ProblemOptions = {}) {
    const { status, title } = problemCatalogue[code]
    super(detail ?? title, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.status = status
    this.title = title
    this.details = options.details ?? []
    this.members = options.members ?? {}
    this.headers = options.headers ?? {}
    this.retryAfterSeconds = options.retryAfterSeconds
  }
}

/**
 * What a schema makes of input from outside.
 *
 * @throws Problem VALIDATION_ERROR with every field that is wrong. What was sent is not repeated: it may be a secret.
 * @example
 * const { email } = parseInput(z.strictObject({ email: z.email() }), body)
 */
export function parseInput<S extends z.ZodType>(schema: S, input: unknown): z.output<S> {
  const result = schema.safeParse(input)
  if (result.success) return result.data
  const details = result.error.issues.slice(0, mostDetails).flatMap(fieldErrors)
  const [first] = details
  throw new Problem(
    'VALIDATION_ERROR',
    details.length === 1 && first !== undefined
      ? `${first.field === '' ? 'The request' : first.field}: ${first.message}`
      : `${details.length} fields are not valid.`,
    { details },
  )
}

const mostDetails = 50

function fieldErrors(issue: z.core.$ZodIssue): FieldError[] {
  const field = fieldName(issue.path)
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.slice(0, mostDetails).map((key) => ({
      field: fieldName([...issue.path, key.slice(0, 60)]),
      constraint: 'unknown',
      message: 'There is no such field',
    }))
  }
  return [{ field, constraint: constraintOf(issue), message: issue.message }]
}

function constraintOf(issue: z.core.$ZodIssue): string {
  if (issue.code === 'too_big') return 'maximum'
  if (issue.code === 'too_small') return 'minimum'
  if (issue.code === 'invalid_type') return issue.message.endsWith('received undefined') ? 'required' : 'type'
  if (issue.code === 'invalid_format') return 'format'
  if (issue.code === 'invalid_value') return 'enum'
  return issue.code
}

/** `features[3].name`, as a caller would write it. */
function fieldName(path: readonly PropertyKey[]): string {
  return path
    .map((key, i) => (typeof key === 'number' ? `[${key}]` : i === 0 ? String(key) : `.${String(key)}`))
    .join('')
}

/** One body for both conventions: RFC 9457, and the envelope beside it. */
export interface ProblemBody {
  readonly type: string
  readonly title: string
  readonly status: number
  readonly detail: string
  readonly instance: string
  readonly error: { readonly code: ProblemCode; readonly message: string; readonly details?: readonly FieldError[] }
  readonly request_id: string
  readonly timestamp: string
  readonly documentation: string
}

/**
 * @param occurrence.issuer where the documentation of errors is served
 * @param occurrence.path of the request, without its query
 */
export function toProblemBody(
  problem: Problem,
  occurrence: { readonly issuer: string; readonly path: string; readonly requestId: string; readonly at: Date },
): ProblemBody {
  const documentation = `${occurrence.issuer}/docs/errors#${problem.code}`
  return {
    type: documentation,
    title: problem.title,
    status: problem.status,
    detail: problem.message,
    instance: occurrence.path,
    error: {
      code: problem.code,
      message: problem.message,
      ...(problem.details.length > 0 ? { details: problem.details } : {}),
      ...(problem.retryAfterSeconds === undefined ? {} : { retry_after: problem.retryAfterSeconds }),
      ...problem.members,
    },
    request_id: occurrence.requestId,
    timestamp: occurrence.at.toISOString(),
    documentation,
  }
}
