import type { IncomingMessage } from 'node:http'
import type { Context, ParameterizedContext } from 'koa'
import { Problem } from '../problems.ts'

/** The fields of a form, each once. It has no prototype, so that a field named `__proto__` is a field. */
export type Form = Readonly<Record<string, string>>

const mostFields = 100

/**
 * Reads the body of a form that a page of ours posts: `application/x-www-form-urlencoded`, in UTF-8. Nothing is guessed:
 * what cannot be read in exactly one way is refused.
 *
 * @param maxBytes of the body
 * @throws Problem UNSUPPORTED_MEDIA_TYPE, PAYLOAD_TOO_LARGE or MALFORMED_REQUEST
 * @source https://url.spec.whatwg.org/#application/x-www-form-urlencoded
 * @example
 * const { login = '', password = '' } = await readForm(ctx)
 */
export async function readForm(ctx: Context | ParameterizedContext, maxBytes = 64 * 1024): Promise<Form> {
  return parseForm(await readFormText(ctx, maxBytes))
}

/** The same, as it came: one character a byte, nothing decoded. */
export async function readFormText(ctx: Context | ParameterizedContext, maxBytes: number): Promise<string> {
  checkMediaType(ctx.req)
  return (await readBody(ctx.req, maxBytes)).toString('latin1')
}

function checkMediaType({ headers }: IncomingMessage): void {
  const [type = '', ...parameters] = (headers['content-type'] ?? '').toLowerCase().split(';')
  const charset = parameters.map((parameter) => parameter.trim()).find((parameter) => parameter.startsWith('charset='))
  const isForm = type.trim() === 'application/x-www-form-urlencoded'
  if (!isForm || (charset !== undefined && !/^charset="?utf-8"?$/.test(charset))) {
    throw new Problem('UNSUPPORTED_MEDIA_TYPE', 'A form is sent as application/x-www-form-urlencoded, in UTF-8.')
  }
  if ((headers['content-encoding'] ?? 'identity') !== 'identity') {
    throw new Problem('UNSUPPORTED_MEDIA_TYPE', 'A compressed form is not read.')
  }
}

/**
 * The bytes of a body, whatever it holds.
 *
 * @throws Problem PAYLOAD_TOO_LARGE, or MALFORMED_REQUEST when the caller leaves before its end
 */
export async function readBody(req: IncomingMessage, maxBytes: number): Promise<Buffer> {
  // The rest of a body that is too large stays unread, so the connection cannot be used again.
  const tooLarge = new Problem('PAYLOAD_TOO_LARGE', `A body may have ${maxBytes} bytes here.`, {
    headers: { Connection: 'close' },
  })
  if (Number(req.headers['content-length'] ?? 0) > maxBytes) {
    // Read and thrown away until the answer is sent: a caller who is still writing would not see it otherwise.
    req.resume()
    throw tooLarge
  }
  if (req.destroyed) throw endedEarly()
  const chunks: Buffer[] = []
  let bytes = 0
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  req
    .on('data', (chunk: Buffer) => {
      bytes += chunk.length
      if (bytes > maxBytes) reject(tooLarge)
      else chunks.push(chunk)
    })
    .on('end', resolve)
    .on('error', () => reject(endedEarly()))
    .on('close', () => reject(endedEarly()))
  await promise
  return Buffer.concat(chunks)
}

function endedEarly(): Problem {
  return new Problem('MALFORMED_REQUEST', 'The body ended early.')
}

/**
 * @param text one character a byte
 * @throws Problem MALFORMED_REQUEST
 */
export function parseForm(text: string): Form {
  const form = Object.create(null) as Record<string, string>
  const pairs = text === '' ? [] : text.split('&')
  if (pairs.length > mostFields) throw new Problem('MALFORMED_REQUEST', `A form may have ${mostFields} fields.`)
  for (const pair of pairs) {
    const equals = pair.indexOf('=')
    const name = decode(equals < 0 ? pair : pair.slice(0, equals))
    if (name in form) throw new Problem('MALFORMED_REQUEST', 'A field of the form came twice.')
    form[name] = equals < 0 ? '' : decode(pair.slice(equals + 1))
  }
  return form
}

function decode(text: string): string {
  const refused = (cause?: unknown) =>
    new Problem('MALFORMED_REQUEST', 'A field of the form is not UTF-8 text.', { cause })
  let decoded: string
  try {
    // Browsers escape everything beyond ASCII; a byte that is not escaped is taken as UTF-8 all the same.
    const escaped = text
      .replaceAll('+', ' ')
      .replaceAll(/[\x80-\xff]/g, (byte) => `%${byte.charCodeAt(0).toString(16)}`)
    decoded = decodeURIComponent(escaped)
  } catch (error) {
    throw refused(error)
  }
  // PostgreSQL's text cannot hold it, and nobody types it.
  if (decoded.includes('\0')) throw refused()
  return decoded
}
