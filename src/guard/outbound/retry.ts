/** Answers after which another try may succeed. 400, 401, 403 and 404 are not among them: they would only say it again. */
const TRANSIENT_STATUSES: ReadonlySet<number> = new Set([429, 500, 502, 503, 504])

/** RFC 9110 §9.2.2: doing it twice has the effect of doing it once. */
const IDEMPOTENT_METHODS: ReadonlySet<string> = new Set(['GET', 'HEAD', 'OPTIONS', 'PUT', 'DELETE'])

/** The answer says that the host is overloaded or failing, not that the request is wrong. */
export function isTransient(status: number): boolean {
  return TRANSIENT_STATUSES.has(status)
}

/**
 * May this request be sent again although the first one may have taken effect?
 *
 * @param method - upper case
 * @param headers - an `Idempotency-Key` makes the receiver recognise the repetition
 */
export function isRepeatable(method: string, headers: Headers): boolean {
  return IDEMPOTENT_METHODS.has(method) || headers.has('idempotency-key')
}

/**
 * Reads `Retry-After` (RFC 9110 §10.2.3): seconds or an HTTP date. Anything else is ignored.
 *
 * @param value - the header as received
 * @param now - milliseconds since 1970
 * @returns milliseconds to wait, or undefined
 */
export function parseRetryAfter(value: string | null, now: number): number | undefined {
  if (value === null) return undefined
  if (/^\d{1,9}$/.test(value)) return Number(value) * 1000
  // Date.parse alone would take "1.5" or "2024" for a date; an HTTP date names its day and ends in GMT.
  if (!/^[A-Z][a-z]{2,8}, .{9,24} GMT$/.test(value)) return undefined
  const at = Date.parse(value)
  return Number.isNaN(at) ? undefined : Math.max(0, at - now)
}

/**
 * How long to wait before a retry: full jitter, so that callers that failed together do not come back together. What
 * the host asked for by `Retry-After` comes on top of it, never instead.
 *
 * @param retry - 0 for the first retry
 * @param backoffMs - upper bound of the first wait, doubled for each retry
 * @param maxBackoffMs - upper bound of any wait
 * @param random - from 0 (inclusive) to 1 (exclusive)
 * @param retryAfterMs - what the host asked for
 * @returns milliseconds
 */
export function retryDelayMs(
  retry: number,
  backoffMs: number,
  maxBackoffMs: number,
  random: () => number,
  retryAfterMs: number | undefined,
): number {
  return (retryAfterMs ?? 0) + Math.floor(random() * Math.min(maxBackoffMs, backoffMs * 2 ** retry))
}
