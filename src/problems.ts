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
  NOT_ACCEPTABLE: {
    status: 406,
    title: 'The answer cannot be given in that media type',
    whatToDo: 'Ask for `application/json`, or leave out the `Accept` header.',
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
  IDEMPOTENCY_IN_PROGRESS: {
    status: 409,
    title: 'A request with this Idempotency-Key is still under way',
    whatToDo: 'Wait for as many seconds as `Retry-After` says, and send it again with the same key.',
  },
  GONE: {
    status: 410,
    title: 'This is not here any more',
    whatToDo: 'Follow the migration guide in the answer.',
  },
  PRECONDITION_FAILED: {
    status: 412,
    title: 'The resource has changed since you read it',
    whatToDo: 'Read it again, and decide on what you find.',
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
  IDEMPOTENCY_KEY_REUSED: {
    status: 422,
    title: 'This Idempotency-Key belongs to another request',
    whatToDo: 'Use a new key for each request, and the same one only to send the same request again.',
  },
  PRECONDITION_REQUIRED: {
    status: 428,
    title: 'This change needs to say what it is based on',
    whatToDo: 'Read the resource, and send its `ETag` in `If-Match`.',
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
  GATEWAY_TIMEOUT: {
    status: 504,
    title: 'The answer took too long',
    whatToDo:
      'Wait for as many seconds as `Retry-After` says, look whether the change was made all the same, and try again.',
  },
} as const satisfies Record<string, CatalogueEntry>

export type ProblemCode = keyof typeof problemCatalogue

/** What is wrong with one field of a request. */
export interface FieldError {
  /** as the caller wrote it: `email`, `features[3]` */
  readonly field: string
  /** the rule that it breaks: `type`, `maximum`, `required` */
  readonly constraint: string
  readonly message: string
  /** what was sent; never a secret, and never more than a few words of it */
  readonly value?: string | number | boolean | null
  /** of a parameter: `YYYY-MM-DD` */
  readonly expected_format?: string
  /** the name that was probably meant */
  readonly suggestion?: string
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
 * A refusal for something that is not there, in the words that every collection uses.
 *
 * @param type in words, as `resource_type` says it: `user`
 * @param id as the caller wrote it
 * @param collection where those that there are can be listed: `/v1/users`
 * @param parameter that the identifier was given as, where that is not the type with `_id`: `name`
 * @example
 * throw notFound('user', 'usr_1', '/v1/users')
 */
export function notFound(
  type: string,
  id: string,
  collection?: string,
  parameter = `${type.replaceAll(/[ -]/g, '_')}_id`,
): Problem {
  const shown = id.slice(0, 200)
  const name = `${type.charAt(0).toUpperCase()}${type.slice(1)}`
  return new Problem('RESOURCE_NOT_FOUND', `${name} '${shown}' not found`, {
    members: {
      resource_type: type,
      resource_id: shown,
      suggestions: [
        ...(collection === undefined
          ? []
          : [`Use GET ${collection} to list available ${collection.split('/').at(-1)}`]),
        `Check ${parameter} spelling`,
      ],
    },
  })
}

/**
 * What a schema makes of input from outside.
 *
 * @throws Problem VALIDATION_ERROR with every field that is wrong. What was sent is not repeated: it may be a secret.
 * @example
 * const { email } = parseInput(z.strictObject({ email: z.email() }), body)
 */
export function parseInput<S extends z.ZodType>(schema: S, input: unknown): z.output<S> {
  const result = checkInput(schema, input)
  if (result.success) return result.data
  throw invalidFields(result.details.map(({ value: _value, ...detail }) => detail))
}

/** A refusal of these fields, for readers of its one sentence too. */
export function invalidFields(details: readonly FieldError[]): Problem {
  const [first] = details
  const message =
    details.length === 1 && first !== undefined
      ? `${first.field === '' ? 'The request' : first.field}: ${first.message}`
      : `${details.length} fields are not valid.`
  return new Problem('VALIDATION_ERROR', message, { details })
}

/** The members of a refused body that their own schemas let pass, as those read them: what is wrong has no key here. */
export function fittingMembers<S extends z.ZodObject>(
  schema: S,
  body: Readonly<Record<string, unknown>>,
): Partial<z.output<S>> {
  return Object.fromEntries(
    Object.entries(schema.shape).flatMap(([name, member]) => {
      const checked = (member as z.ZodType).safeParse(body[name])
      return checked.success ? [[name, checked.data]] : []
    }),
  ) as Partial<z.output<S>>
}

export type CheckedInput<T> =
  | { readonly success: true; readonly data: T }
  | { readonly success: false; readonly details: readonly FieldError[] }

/** The same, for whoever has several inputs to check at once; the details repeat what was sent, but for secrets. */
export function checkInput<S extends z.ZodType>(schema: S, input: unknown): CheckedInput<z.output<S>> {
  const result = schema.safeParse(input, { error: readableMessage, reportInput: true })
  if (result.success) return { success: true, data: result.data }
  return { success: false, details: result.error.issues.slice(0, mostDetails).flatMap(fieldErrors) }
}

const mostDetails = 50

/** For whatever says nothing of its own. */
function readableMessage(issue: z.core.$ZodRawIssue): string | undefined {
  switch (issue.code) {
    case 'invalid_type':
      return issue.input === undefined ? 'Required property missing' : `Must be ${nounOf(issue.expected)}`
    case 'invalid_value':
      return issue.input === undefined
        ? 'Required property missing'
        : `Value must be one of: ${issue.values.join(', ')}`
    case 'too_big':
    case 'too_small':
      return sizeMessage(issue)
    case 'invalid_union': {
      const word = readDiscriminator(issue)
      if (word === undefined) return undefined
      return word.given === undefined ? 'Required property missing' : `Value must be one of: ${word.options.join(', ')}`
    }
    default:
      return undefined
  }
}

/** The word that says which of several shapes is meant, when it names none of them; its field is the issue's own. */
function readDiscriminator(
  issue: z.core.$ZodIssue | z.core.$ZodRawIssue,
): { readonly given: unknown; readonly options: readonly unknown[] } | undefined {
  if (issue.code !== 'invalid_union' || typeof issue['discriminator'] !== 'string') return undefined
  const { discriminator, input } = issue
  const options: unknown = 'options' in issue ? issue['options'] : undefined
  return {
    given: (input as Readonly<Record<string, unknown>>)[discriminator],
    options: Array.isArray(options) ? options : [],
  }
}

function sizeMessage(
  issue: z.core.$ZodIssueTooBig | z.core.$ZodIssueTooSmall | z.core.$ZodRawIssue,
): string | undefined {
  const isMost = issue.code === 'too_big'
  const bound = isMost ? issue['maximum'] : issue['minimum']
  const word = isMost ? 'at most' : 'at least'
  if (issue['origin'] === 'string') return `Must have ${word} ${String(bound)} characters`
  if (issue['origin'] === 'array') {
    const found = Array.isArray(issue.input) ? `, found ${issue.input.length}` : ''
    return `Array must contain ${word} ${String(bound)} items${found}`
  }
  if (issue['origin'] === 'number' || issue['origin'] === 'int') return `Must be ${word} ${String(bound)}`
  return undefined
}

function nounOf(expected: string): string {
  const noun = expected === 'int' ? 'integer' : expected === 'record' ? 'object' : expected
  return `${/^[aeiou]/.test(noun) ? 'an' : 'a'} ${noun}`
}

/** Names of fields whose value is nobody's business, wherever they stand. */
const secretField = /pass|secret|token|api_?key|authorization|private|^k$|^d$|cookie/i

/** What was sent for one field, when that may be said and is short. */
function shownValue(issue: z.core.$ZodIssue): Pick<FieldError, 'value'> {
  const input = readDiscriminator(issue)?.given ?? issue.input
  // All that was sent has no name, and may be what its address is for: a password.
  if (issue.path.length === 0 || issue.path.some((key) => secretField.test(String(key)))) return {}
  if (typeof input === 'string') return input.length <= 64 ? { value: input } : {}
  return typeof input === 'number' || typeof input === 'boolean' || input === null ? { value: input } : {}
}

function fieldErrors(issue: z.core.$ZodIssue): FieldError[] {
  const field = fieldName(issue.path)
  // Of a record the name of a member: what is wrong with it is said inside.
  if (issue.code === 'invalid_key')
    return issue.issues.flatMap((inside) => fieldErrors({ ...inside, path: issue.path }))
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.slice(0, mostDetails).map((key) => ({
      field: fieldName([...issue.path, key.slice(0, 60)]),
      constraint: 'unknown',
      message: 'There is no such field',
    }))
  }
  return [
    { field, ...shownValue(issue), constraint: constraintOf(issue), message: issue.message, ...ownMembers(issue) },
  ]
}

/** What a schema of ours says in its issue's `params`. */
function ownMembers(
  issue: z.core.$ZodIssue,
): Partial<Pick<FieldError, 'constraint' | 'expected_format' | 'suggestion'>> {
  const params = issue.code === 'custom' ? (issue.params ?? {}) : {}
  const members = ['constraint', 'expected_format', 'suggestion'] as const
  return Object.fromEntries(members.flatMap((name) => (typeof params[name] === 'string' ? [[name, params[name]]] : [])))
}

function constraintOf(issue: z.core.$ZodIssue): string {
  if (issue.code === 'too_big') return 'maximum'
  if (issue.code === 'too_small') return 'minimum'
  if (issue.code === 'invalid_type') return issue.input === undefined ? 'required' : 'type'
  if (issue.code === 'invalid_format') return 'format'
  if (issue.code === 'invalid_value') return issue.input === undefined ? 'required' : 'enum'
  if (issue.code === 'invalid_union') {
    const word = readDiscriminator(issue)
    if (word === undefined) return 'type'
    return word.given === undefined ? 'required' : 'enum'
  }
  // A rule of ours says in `ownMembers` which it is.
  if (issue.code === 'custom') return 'format'
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
