import type { components } from './api.ts'

/** The body of every refusal. */
export type ErrorBody = components['schemas']['Error']

/** What is wrong with one field of a request. */
export type FieldError = NonNullable<ErrorBody['error']['details']>[number]

/**
 * The API's own codes and two of the client's: `NOT_MODIFIED` for a 304, and `UNEXPECTED_ANSWER` for one that the API does
 * not give, such as a proxy's page. A newer server may have codes that are not among them.
 */
export type ErrorCode =
  | ErrorBody['error']['code']
  | 'NOT_MODIFIED'
  | 'UNEXPECTED_ANSWER'
  | (string & Record<never, never>)

/**
 * An answer that is no success, after the last retry. Its message holds what the API says and no secret. When there is no
 * answer at all, an `OutboundError` is thrown in its place.
 *
 * @example
 * ```ts
 * import { createClient, LatchkeyApiError } from '@latchkey/client'
 *
 * const latchkey = createClient({ baseUrl: 'https://id.example.com', auth: { apiKey: process.env['API_KEY'] ?? '' } })
 * try {
 *   await latchkey.POST('/v1/users', { body: { email: 'carol@example.com' } })
 * } catch (error) {
 *   if (!(error instanceof LatchkeyApiError) || error.code !== 'CONFLICT') throw error
 *   console.log('Carol is there already')
 * }
 * ```
 */
export class LatchkeyApiError extends Error {
  override readonly name = 'LatchkeyApiError'
  /** HTTP status. */
  readonly status: number
  readonly code: ErrorCode
  /** Every field that is wrong, for `VALIDATION_ERROR`; else empty. */
  readonly details: readonly FieldError[]
  /** By which the operator finds it in the log. */
  readonly requestId: string | undefined
  /** Seconds after which another try may succeed, when the API says so. */
  readonly retryAfter: number | undefined
  /** What the request was sent under: with the same key and body it may be sent again, and there is one effect. */
  readonly idempotencyKey: string | undefined
  /** All that the API said; undefined when it is not the API that answered. */
  readonly body: ErrorBody | undefined

  /**
   * @param request - as sent
   * @param answer - its status and headers
   * @param text - its body
   */
  constructor(request: Request, answer: Response, text: string) {
    const body = readErrorBody(text)
    const details = body?.error.details ?? []
    const fields = details.map(({ field, message }) => `${field}: ${message}`).join('; ')
    const saying = body?.error.message ?? `${new URL(request.url).origin} answered ${answer.status}`
    super(fields === '' ? saying : `${saying}: ${fields}`)
    this.status = answer.status
    this.code = body?.error.code ?? (answer.status === 304 ? 'NOT_MODIFIED' : 'UNEXPECTED_ANSWER')
    this.details = details
    this.requestId = answer.headers.get('x-request-id') ?? undefined
    this.retryAfter = body?.error.retry_after ?? readSeconds(answer.headers.get('retry-after'))
    this.idempotencyKey = request.headers.get('idempotency-key') ?? undefined
    this.body = body
  }
}

function readSeconds(value: string | null): number | undefined {
  return value !== null && /^\d{1,9}$/.test(value) ? Number(value) : undefined
}

/** What stands between the API and us may answer in its place, so the members that are relied on are looked at. */
function readErrorBody(text: string): ErrorBody | undefined {
  const body = parseJson(text)
  if (!isObject(body) || !isObject(body['error'])) return undefined
  const { code, message, details = [], retry_after: retryAfter } = body['error']
  const isOurs =
    typeof code === 'string' &&
    typeof message === 'string' &&
    (retryAfter === undefined || typeof retryAfter === 'number') &&
    Array.isArray(details) &&
    details.every((detail) => isObject(detail) && typeof detail['field'] === 'string')
  return isOurs ? (body as unknown as ErrorBody) : undefined
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null
}

/** Another request with the same Idempotency-Key is still under way: the answer is to be had in a moment. */
export async function isInProgress(answer: Response): Promise<boolean> {
  return answer.status === 409 && readErrorBody(await answer.text())?.error.code === 'IDEMPOTENCY_IN_PROGRESS'
}
