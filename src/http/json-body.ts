import type { Context, ParameterizedContext } from 'koa'
import { Problem, type ProblemCode } from '../problems.ts'
import { readBody } from './form-body.ts'
import { findRepeatedMember } from './repeated-member.ts'

export interface JsonBody {
  readonly value: unknown
  /** in lower case, without its parameters: `application/merge-patch+json` */
  readonly mediaType: string
  /** as it came */
  readonly bytes: Buffer
}

/**
 * Reads a body of JSON: in UTF-8, not compressed, and of a media type that the endpoint takes. What PostgreSQL cannot
 * hold as text (the null character, half of a surrogate pair) is refused here, once for all of it; and so are a member
 * `__proto__`, which some that read it would drop and others follow, and one that is there twice.
 *
 * @param options.mediaTypes those that are taken, in lower case
 * @param options.acceptPatch for a PATCH: a 415 then says what is taken (RFC 5789 §3.1)
 * @throws Problem UNSUPPORTED_MEDIA_TYPE, PAYLOAD_TOO_LARGE or MALFORMED_REQUEST
 */
export async function readJson(
  ctx: Context | ParameterizedContext,
  options: { readonly mediaTypes: readonly string[]; readonly maxBytes: number; readonly acceptPatch?: boolean },
): Promise<JsonBody> {
  const mediaType = checkMediaType(ctx, options.mediaTypes, options.acceptPatch === true)
  const bytes = await readBody(ctx.req, options.maxBytes)
  if (bytes.length === 0) throw new Problem('MALFORMED_REQUEST', 'This request needs a body of JSON.')
  let text: string
  let value: unknown
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
    value = JSON.parse(text)
  } catch (error) {
    throw new Problem('MALFORMED_REQUEST', 'The body is not JSON in UTF-8.', { cause: error })
  }
  refuseUnusable(value, '')
  const repeated = findRepeatedMember(text)
  if (repeated !== undefined) throw refused('MALFORMED_REQUEST', repeated, 'repeated', 'Must be given once')
  return { value, mediaType, bytes }
}

function checkMediaType(
  ctx: Context | ParameterizedContext,
  mediaTypes: readonly string[],
  acceptPatch: boolean,
): string {
  const [type = '', ...parameters] = (ctx.req.headers['content-type'] ?? '').toLowerCase().split(';')
  const mediaType = type.trim()
  const charset = parameters.map((parameter) => parameter.trim()).find((parameter) => parameter.startsWith('charset='))
  const headers = acceptPatch ? { 'Accept-Patch': mediaTypes.join(', ') } : {}
  if (!mediaTypes.includes(mediaType) || (charset !== undefined && !/^charset="?utf-8"?$/.test(charset))) {
    throw new Problem(
      'UNSUPPORTED_MEDIA_TYPE',
      `Send the body as ${mediaTypes.join(' or ')}, in UTF-8${mediaType === '' ? ', and say so in Content-Type' : ''}.`,
      { headers },
    )
  }
  if ((ctx.req.headers['content-encoding'] ?? 'identity') !== 'identity') {
    throw new Problem('UNSUPPORTED_MEDIA_TYPE', 'A compressed body is not read.', { headers })
  }
  return mediaType
}

const deepest = 64

function refuseUnusable(value: unknown, path: string, depth = 0): void {
  if (depth > deepest) throw new Problem('MALFORMED_REQUEST', `The body is nested deeper than ${deepest} levels.`)
  if (typeof value === 'string') {
    if (!isStorableText(value)) throw unstorable(path)
  } else if (Array.isArray(value)) {
    for (const [i, item] of value.entries()) refuseUnusable(item, `${path}[${i}]`, depth + 1)
  } else if (typeof value === 'object' && value !== null) {
    for (const [name, member] of Object.entries(value)) {
      const inside = path === '' ? name : `${path}.${name}`
      if (!isStorableText(name)) throw unstorable(path)
      if (name === '__proto__') throw refused('VALIDATION_ERROR', inside, 'unknown', 'There is no such field')
      refuseUnusable(member, inside, depth + 1)
    }
  }
}

/** Whether PostgreSQL can hold it: no null character, no half of a surrogate pair. */
export function isStorableText(text: string): boolean {
  return !text.includes('\0') && text.isWellFormed()
}

function unstorable(field: string): Problem {
  return refused(
    'VALIDATION_ERROR',
    field,
    'format',
    'Holds a character that is not text (U+0000, or half of a surrogate pair)',
  )
}

function refused(code: ProblemCode, field: string, constraint: string, message: string): Problem {
  return new Problem(code, field === '' ? message : `${field.slice(0, 200)}: ${message}`, {
    details: [{ field: field.slice(0, 200), constraint, message }],
  })
}
