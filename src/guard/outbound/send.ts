import { fetch } from 'undici'
import type { Dispatcher } from 'undici'
import { OutboundError } from './outbound-error.ts'

/** What can be sent again exactly as it was: no streams. */
export type ReplayableBody = string | Uint8Array<ArrayBuffer> | URLSearchParams

/** One request, to be sent once. */
export interface Sending {
  readonly url: URL
  readonly method: string
  readonly headers: Headers
  readonly body: ReplayableBody | undefined
  /** Milliseconds from here to the last byte of the answer, connecting included. */
  readonly timeoutMs: number
  /** What running out of it means. */
  readonly onTimeout: 'read_timeout' | 'deadline_exceeded'
  readonly maxResponseBytes: number
  /** The caller's own cancellation. */
  readonly signal: AbortSignal | undefined
}

/**
 * Sends a request once and reads its whole answer, within one time limit. The answer is read here and not later by the
 * caller, so that a host that sends its headers at once and its body drop by drop is a timeout like any other: it is
 * retried, it counts against the breaker, and it gives its connection back.
 *
 * Redirects are not followed: they are handed back as they came, because a token must not travel to where a host points.
 *
 * @throws OutboundError, the caller's abort reason, or a `TypeError` for a request that cannot be sent at all
 */
export async function send(dispatcher: Dispatcher, sending: Sending): Promise<Response> {
  const { url, method, body, maxResponseBytes, signal } = sending
  const host = url.origin
  signal?.throwIfAborted()
  const attempt = new AbortController()
  let timedOut = false
  const timer = setTimeout(() => {
    timedOut = true
    attempt.abort()
  }, sending.timeoutMs)
  const cancel = () => attempt.abort(signal?.reason)
  signal?.addEventListener('abort', cancel, { once: true })
  try {
    const answer = await fetch(url, {
      dispatcher,
      method,
      // As plain pairs: the platform's Headers and undici's are two classes.
      headers: [...sending.headers],
      ...(body !== undefined && { body }),
      redirect: 'manual',
      signal: attempt.signal,
    })
    if (answer.status < 200 || answer.status > 599) {
      attempt.abort()
      throw new OutboundError('response_invalid', `${host} answered with status ${answer.status}`, { host })
    }
    const chunks: Uint8Array[] = []
    let bytes = 0
    for await (const chunk of answer.body ?? []) {
      bytes += chunk.byteLength
      if (bytes > maxResponseBytes) {
        attempt.abort()
        throw new OutboundError('response_too_large', `${host} sent more than ${maxResponseBytes} bytes`, { host })
      }
      chunks.push(chunk)
    }
    const headers = new Headers([...answer.headers])
    if (headers.has('content-encoding')) {
      // The body is decoded by now; these two would describe another one.
      headers.delete('content-encoding')
      headers.delete('content-length')
    }
    const hasNoBody = answer.status === 204 || answer.status === 205 || answer.status === 304
    return new Response(hasNoBody ? null : Buffer.concat(chunks), { status: answer.status, headers })
  } catch (error) {
    signal?.throwIfAborted()
    if (timedOut) {
      throw new OutboundError(sending.onTimeout, `${host} gave no complete answer in ${sending.timeoutMs} ms`, { host })
    }
    if (error instanceof OutboundError) throw error
    // undici reports a failure of the network as a TypeError that says in `cause` what happened. Without one, or with
    // a bare Error, it is a request that fetch will never send, such as one to a port it blocks.
    if (!(error instanceof TypeError) || !(error.cause instanceof Error) || isBare(error.cause)) throw error
    throw networkFailure(host, error.cause)
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', cancel)
  }
}

function networkFailure(host: string, cause: unknown): OutboundError {
  const errors: unknown[] = cause instanceof AggregateError ? cause.errors : [cause]
  if (errors.every((error) => property(error, 'code') === 'UND_ERR_CONNECT_TIMEOUT')) {
    return new OutboundError('connect_timeout', `No connection to ${host} in time`, { host, cause })
  }
  // Only what failed while looking up or connecting was surely not sent: ECONNRESET on a live connection proves nothing.
  if (errors.every((error) => ['connect', 'getaddrinfo'].includes(String(property(error, 'syscall'))))) {
    return new OutboundError('connect_failed', `No connection to ${host}`, { host, cause })
  }
  return new OutboundError('connection_lost', `The connection to ${host} broke`, { host, cause })
}

function isBare(error: Error): boolean {
  return error.name === 'Error' && property(error, 'code') === undefined
}

function property(error: unknown, name: 'code' | 'syscall'): unknown {
  return error instanceof Error ? (error as Error & { code?: unknown; syscall?: unknown })[name] : undefined
}
