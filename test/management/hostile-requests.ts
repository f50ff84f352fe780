/**
 * Requests that nobody would think of, made from the schemas of the document: valid ones, valid ones with one thing wrong,
 * and worse. They are written byte by byte, since `fetch` would mend them: paths are not normalized, JSON may hold what
 * JavaScript cannot, and headers come as they are.
 */
import { Agent, request as httpRequest } from 'node:http'
import * as fc from 'fast-check'
import type { Answer } from '../support/contract.ts'
import { resolve, type Document, type Operation, type Schema } from '../openapi/document.ts'
import type { Request } from './scenarios.ts'

export interface HostileRequest {
  readonly method: string
  /** path and query, as they go out */
  readonly target: string
  readonly headers: Readonly<Record<string, string>>
  /** '' for none */
  readonly body: string
}

/** JSON as text, for what no value of JavaScript becomes: `1e999`, a member twice, half of a surrogate pair. */
class Raw {
  readonly text: string
  constructor(text: string) {
    this.text = text
  }
  toString(): string {
    return this.text
  }
}

/** @param valid a request about something that is there, from which many of these are made */
export function hostileRequests(
  document: Document,
  operation: Operation,
  valid: Pick<Request, 'parameters' | 'body' | 'headers'>,
): fc.Arbitrary<HostileRequest> {
  const types = Object.entries(operation.requestBody?.content ?? {})
  const body: fc.Arbitrary<{ readonly type: string; readonly text: string }> =
    types.length === 0
      ? fc.constant({ type: '', text: '' })
      : fc
          .constantFrom(...types)
          .chain(([type, { schema = {} }]) => bodies(document, schema, valid.body).map((text) => ({ type, text })))
  return fc
    .record({
      path: paths(document, operation, valid.parameters ?? {}),
      query: queries(document, operation),
      headers: headers(operation),
      body,
    })
    .map(({ path, query, headers, body }) => ({
      method: operation.method,
      target: query === '' ? path : `${path}?${query}`,
      headers: { ...valid.headers, ...(body.type === '' ? {} : { 'content-type': body.type }), ...headers },
      body: body.text,
    }))
}

// ---- bodies ----

function bodies(document: Document, schema: Schema, example: unknown): fc.Arbitrary<string> {
  const valid = fc.oneof(valuesOf(document, schema), fc.constant(example))
  return fc.oneof(
    { weight: 3, arbitrary: valid.map(write) },
    {
      weight: 6,
      arbitrary: fc.tuple(valid, fc.nat(), hostileValues).map(([value, at, wrong]) => write(spoil(value, at, wrong))),
    },
    { weight: 1, arbitrary: hostileValues.map(write) },
    { weight: 1, arbitrary: fc.json() },
    {
      weight: 1,
      arbitrary: fc.constantFrom('', ' ', '{', '{"a":1}{', 'NaN', "{'a':1}", '\ufeff{}', '{"a":1,}', 'null', '['),
    },
  )
}

/** Values that a schema lets pass, and now and then its example. */
function valuesOf(document: Document, given: Schema, depth = 0): fc.Arbitrary<unknown> {
  const schema = resolve(document, given)
  const { anyOf, oneOf, enum: words, example, items } = schema
  const made = ((): fc.Arbitrary<unknown> => {
    const union = anyOf ?? oneOf
    if (union !== undefined) return fc.oneof(...union.map((one) => valuesOf(document, one, depth)))
    if (schema.const !== undefined) return fc.constant(schema.const)
    if (words !== undefined) return fc.constantFrom(...words)
    if (Array.isArray(schema.type)) {
      return fc.oneof(...(schema.type as string[]).map((type) => valuesOf(document, { ...schema, type }, depth)))
    }
    switch (schema.type) {
      case 'string':
        return textsOf(schema)
      case 'integer':
        return fc.integer({ min: schema.minimum ?? -(2 ** 31), max: Math.min(schema.maximum ?? 2 ** 31, 2 ** 53 - 1) })
      case 'number':
        return fc.double({ min: schema.minimum ?? -1e9, max: schema.maximum ?? 1e9, noNaN: true })
      case 'boolean':
        return fc.boolean()
      case 'null':
        return fc.constant(null)
      case 'array':
        return fc.array(valuesOf(document, items ?? {}, depth + 1), {
          minLength: schema.minItems ?? 0,
          maxLength: Math.min(schema.maxItems ?? 3, 3),
        })
      case 'object':
        return objectsOf(document, schema, depth)
      default:
        return fc.jsonValue({ maxDepth: 2 })
    }
  })()
  return example === undefined
    ? made
    : fc.oneof({ weight: 4, arbitrary: made }, { weight: 1, arbitrary: fc.constant(example) })
}

function textsOf({ pattern, format, minLength = 0, maxLength = 1_000 }: Schema): fc.Arbitrary<string> {
  const most = Math.min(maxLength, 1_000)
  if (format === 'uri') return fc.webUrl()
  if (pattern !== undefined) {
    return matching(pattern)
      .map((text) => Array.from(text).slice(0, most).join(''))
      .filter((text) => new RegExp(pattern, 'u').test(text))
  }
  return fc.oneof(
    fc.string({ minLength, maxLength: Math.min(most, 40), unit: 'grapheme' }),
    fc.emailAddress(),
    fc.constant('x'.repeat(most)),
  )
}

const known = new Map<string, fc.Arbitrary<string>>()

/** Made once for each pattern: to find all characters of a class takes a while. */
function matching(pattern: string): fc.Arbitrary<string> {
  const found =
    known.get(pattern) ??
    (pattern.includes(String.raw`\P{`)
      ? fc.string({ unit: 'grapheme', minLength: 1, maxLength: 40 })
      : fc.stringMatching(new RegExp(pattern, 'u')))
  known.set(pattern, found)
  return found
}

function objectsOf(document: Document, schema: Schema, depth: number): fc.Arbitrary<unknown> {
  const { properties = {}, required = [], additionalProperties } = schema
  const members = Object.fromEntries(
    Object.entries(properties).map(([name, member]) => [name, valuesOf(document, member, depth + 1)]),
  )
  const named = fc.record(members, { requiredKeys: required.filter((name) => name in members) })
  if (typeof additionalProperties !== 'object' || depth > 4) return named
  const more = fc.dictionary(
    fc.string({ minLength: 1, maxLength: 10 }),
    valuesOf(document, additionalProperties, depth + 1),
    {
      maxKeys: 3,
    },
  )
  return fc.tuple(more, named).map(([others, own]) => ({ ...others, ...own }))
}

const long = 'x'.repeat(5_000)

/** Wrong types, numbers and texts at the edges, names of prototypes, and depth. */
const hostileValues: fc.Arbitrary<unknown> = fc.oneof(
  fc.constantFrom<unknown>(
    null,
    true,
    0,
    -1,
    0.1,
    2 ** 53,
    new Raw('1e999'),
    new Raw('-0'),
    new Raw('123456789012345678901234567890'),
    '',
    ' ',
    long,
    `${long}\u{1f984}`,
    '\u{1f984}\u202e\u0301',
    "'; DROP TABLE users; --",
    '<script>alert(1)</script>',
    '../../etc/passwd',
    '%00',
    '__proto__',
    '9999999-01-01T00:00:00Z',
    '0000-00-00',
    'http://[::1',
    'javascript:alert(1)',
    new Raw('"\\u0000"'),
    new Raw('"\\ud800"'),
    new Raw('"\\udc00\\ud800"'),
    [],
    [[]],
    {},
    new Raw('{"__proto__":{"admin":true}}'),
    new Raw('{"constructor":{"prototype":{"admin":true}}}'),
    new Raw('{"toString":1,"valueOf":1,"hasOwnProperty":1}'),
    new Raw('{"a":1,"a":2}'),
    new Raw(`${'['.repeat(80)}1${']'.repeat(80)}`),
    new Raw(`${'{"a":'.repeat(80)}1${'}'.repeat(80)}`),
    new Raw(`[${Array.from({ length: 2_000 }, () => '0').join()}]`),
  ),
  fc.string({ unit: 'binary', maxLength: 20 }),
  fc.double(),
)

/** Puts something else in one place of a value, or one member more, or one fewer. */
function spoil(value: unknown, at: number, wrong: unknown): unknown {
  if (Array.isArray(value)) {
    const i = at % (value.length + 1)
    return i === value.length ? [...(value as unknown[]), wrong] : value.with(i, spoil(value[i], at >> 2, wrong))
  }
  if (typeof value !== 'object' || value === null || value instanceof Raw) return wrong
  const entries = Object.entries(value)
  const i = at % (entries.length + 2)
  const [name = '', inside] = entries[i] ?? []
  if (i === entries.length)
    return { ...value, [['constructor', 'toString', 'user_id', 'is_active', 'x y', long][at % 6] ?? '']: wrong }
  if (i > entries.length) return Object.fromEntries(entries.slice(1))
  return { ...value, [name]: spoil(inside, at >> 2, wrong) }
}

function write(value: unknown): string {
  if (value instanceof Raw) return value.text
  if (Array.isArray(value)) return `[${value.map(write).join()}]`
  if (typeof value === 'object' && value !== null) {
    return `{${Object.entries(value)
      .map(([name, member]) => `${JSON.stringify(name)}:${write(member)}`)
      .join()}}`
  }
  // NaN, Infinity and undefined, which are no JSON, go out as such.
  if (typeof value === 'number' && !Number.isFinite(value)) return String(value)
  return value === undefined ? 'undefined' : JSON.stringify(value)
}

// ---- paths and queries ----

const segments = [
  '%00',
  'a%00b',
  '%2e%2e',
  '..',
  '.',
  '%2F',
  '..%2f..%2fadmin',
  '%',
  '%zz',
  '%ff%fe',
  '%ED%A0%80',
  '%F0%9F%A6%84',
  '__proto__',
  'constructor',
  'toString',
  '*',
  ';a=b',
  'a,b',
  "'%20OR%201=1--",
  '%0d%0aX-Evil:%20yes',
  '-1',
  '99999999999999999999',
  'usr_',
  'null',
  'undefined',
  'x'.repeat(2_000),
  '%E2%80%AE',
  ':user_id',
  '{user_id}',
  'me',
  'me%20',
  'ME',
]

function paths(
  document: Document,
  { path, parameters = [] }: Operation,
  known: Readonly<Record<string, string>>,
): fc.Arbitrary<string> {
  const named = parameters.filter((parameter) => parameter.in === 'path')
  const values = fc.tuple(
    ...named.map(({ name, schema = {} }) =>
      fc.oneof(
        { weight: 5, arbitrary: fc.constant(encodeURIComponent(known[name] ?? '')) },
        {
          weight: 1,
          arbitrary: textsOf(resolve(document, schema))
            .filter((text) => text.isWellFormed() && text !== '')
            .map(encodeURIComponent),
        },
        { weight: 2, arbitrary: fc.constantFrom(...segments) },
      ),
    ),
  )
  return values.map((chosen) =>
    named.reduce((filled, { name }, i) => filled.replace(`{${name}}`, () => chosen[i] ?? ''), path),
  )
}

function queries(document: Document, { parameters = [] }: Operation): fc.Arbitrary<string> {
  const named = parameters.filter((parameter) => parameter.in === 'query')
  const value = fc.oneof(
    fc.constantFrom(
      '',
      '0',
      '-1',
      '1e3',
      '99999999999999999999',
      'NaN',
      'true',
      'null',
      '%00',
      '%',
      '%zz',
      '%ff',
      '%ED%A0%80',
      'a%00b',
      '__proto__',
      'x'.repeat(3_000),
      '2026-02-30T00:00:00Z',
      "'",
      '%F0%9F%A6%84',
      '+',
      ',',
      ',,',
      '-',
    ),
    fc.string({ unit: 'grapheme-ascii', maxLength: 20 }).map(encodeURIComponent),
  )
  const pairs = named.map(({ name, schema = {} }) =>
    fc.oneof(
      { weight: 3, arbitrary: valuesOf(document, schema).map((one) => `${name}=${encodeText(one)}`) },
      { weight: 2, arbitrary: value.map((one) => `${name}=${one}`) },
    ),
  )
  const strange = fc.constantFrom(
    '__proto__=1',
    'constructor=1',
    'toString',
    '=',
    '&',
    'limit[]=1',
    'limit=1&limit=2',
    '%6Cimit=1',
    'a=b=c',
    '%=1',
    '?',
    'fields=',
    'cursor=AAAA',
  )
  const some = pairs.length === 0 ? fc.constant<string[]>([]) : fc.array(fc.oneof(...pairs), { maxLength: 3 })
  return fc.oneof(
    { weight: 3, arbitrary: fc.constant('') },
    { weight: 4, arbitrary: some.map((list) => list.join('&')) },
    { weight: 1, arbitrary: fc.tuple(some, strange).map(([list, one]) => [...list, one].join('&')) },
  )
}

function encodeText(value: unknown): string {
  return encodeURIComponent(String(value).toWellFormed())
}

// ---- headers ----

function headers({ method }: Operation): fc.Arbitrary<Readonly<Record<string, string>>> {
  const line = fc.constantFrom(
    '',
    '*',
    '"1"',
    '"1", "2"',
    'W/"1"',
    '"',
    'x',
    '"999999999999999999999"',
    '""',
    'x'.repeat(1_000),
    '"\xe4"',
  )
  const wrongType = fc.constantFrom(
    'application/json; charset=utf-16',
    'application/json;;',
    'text/plain',
    'application/xml',
    '*/*',
    'multipart/form-data; boundary=x',
    'application/json, text/plain',
  )
  return fc
    .record(
      {
        'if-match': line,
        'if-none-match': line,
        'idempotency-key': fc.constantFrom('', 'x', '"quoted"', '"', 'k'.repeat(255), 'k'.repeat(256), 'a b', '\xe4'),
        accept: fc.constantFrom(
          '*/*',
          'application/json',
          'application/problem+json',
          'application/vnd.latchkey.v1+json',
          'application/vnd.latchkey.v9+json',
          'image/*;q=0.1',
          ';;',
          'application/json;q=0',
        ),
        'api-version': fc.constantFrom('1', 'v1', '2', '1.0', '', '-1', '9'.repeat(100)),
        'x-request-id': fc.constantFrom('', 'r-1', 'x'.repeat(500), '"><script>', '\xe4'),
        traceparent: fc.constantFrom('00-0-0-0', '', 'x'.repeat(300)),
        ...(method === 'GET' ? {} : { 'content-type': wrongType }),
      },
      { requiredKeys: [] },
    )
    .chain((all) =>
      // Most requests have one of them at most, so that the others are not hidden behind its refusal.
      fc
        .subarray(Object.keys(all), { maxLength: 1 })
        .map((names) => Object.fromEntries(Object.entries(all).filter(([name]) => names.includes(name)))),
    )
}

// ---- sending ----

const agent = new Agent({ keepAlive: true, maxSockets: 4 })

/** @throws Error when there is no whole answer in time */
export function sendRaw(
  origin: string,
  { method, target, headers, body }: HostileRequest,
  authorization: string,
): Promise<Answer> {
  const { hostname, port } = new URL(origin)
  const bytes = Buffer.from(body, 'utf8')
  return new Promise((done, fail) => {
    const outgoing = httpRequest(
      {
        hostname,
        port,
        method,
        path: target,
        agent,
        headers: { authorization, ...headers, ...(body === '' ? {} : { 'content-length': bytes.length }) },
        timeout: 30_000,
      },
      (incoming) => {
        const chunks: Buffer[] = []
        incoming.on('data', (chunk: Buffer) => chunks.push(chunk))
        incoming.on('error', fail)
        incoming.on('end', () =>
          done({
            status: incoming.statusCode ?? 0,
            headers: new Headers(Object.entries(incoming.headers).map(([name, value]) => [name, String(value)])),
            text: Buffer.concat(chunks).toString('utf8'),
          }),
        )
      },
    )
    outgoing.on('timeout', () => outgoing.destroy(new Error(`no answer in time: ${method} ${target.slice(0, 200)}`)))
    outgoing.on('error', fail)
    outgoing.end(bytes)
  })
}
