/**
 * The OpenAPI 3.1 document, made from the endpoints themselves, so that what is documented is what is parsed and checked.
 * Refusals that follow from an endpoint's parts (a scope, a body, a version) are documented by those parts.
 */
import { z } from 'zod'
import { createDocument, type ZodOpenApiOperationObject } from 'zod-openapi'
import { problemCatalogue, toProblemBody, Problem, type ProblemCode } from '../problems.ts'
import { vendorMediaType, type ApiVersion } from './api-version.ts'
import type { Endpoint } from './endpoint.ts'
import { mergePatchOf } from './merge-patch-schema.ts'
import { patchMediaTypes } from './patch.ts'

export interface ApiDescription {
  readonly issuer: string
  /** of the document: semver, raised with it */
  readonly version: string
  /** of the API, that all of the paths are under: its media type and its end are documented */
  readonly apiVersion: ApiVersion
  readonly title: string
  readonly description: string
  readonly endpoints: readonly Endpoint[]
  /** scope → what it allows */
  readonly scopes: Readonly<Record<string, string>>
  /** heading → what stands under it */
  readonly tags: Readonly<Record<string, string>>
}

/** The document as it is served, ready to be written as JSON. */
export type OpenApiDocument = ReturnType<typeof createDocument>

export function describeApi(api: ApiDescription): OpenApiDocument {
  const paths: Record<string, Record<string, ZodOpenApiOperationObject>> = {}
  for (const endpoint of api.endpoints) {
    const operations = (paths[endpoint.path] ??= {})
    operations[endpoint.method.toLowerCase()] = describeOperation(endpoint, api.apiVersion)
  }
  return createDocument(
    {
      openapi: '3.1.0',
      info: {
        title: api.title,
        version: api.version,
        description: api.description,
        license: { name: 'MIT', identifier: 'MIT' },
      },
      servers: [{ url: api.issuer }],
      externalDocs: { url: `${api.issuer}/docs/errors`, description: 'Every error code, and what to do' },
      tags: Object.entries(api.tags).map(([name, description]) => ({ name, description })),
      paths,
      components: {
        schemas: { Error: errorBody },
        responses: describeRefusals(api.issuer) as never,
        securitySchemes: {
          oauth2: {
            type: 'oauth2',
            description: `An access token for the resource ${api.issuer}/v1`,
            flows: {
              authorizationCode: {
                authorizationUrl: `${api.issuer}/authorize`,
                tokenUrl: `${api.issuer}/token`,
                refreshUrl: `${api.issuer}/token`,
                scopes: { ...api.scopes },
              },
              clientCredentials: { tokenUrl: `${api.issuer}/token`, scopes: { ...api.scopes } },
            },
          },
          api_key: {
            type: 'apiKey',
            in: 'header',
            name: 'x-api-key',
            description: 'For callers that cannot do OAuth: it may do what its client may.',
          },
        },
      },
    },
    {
      override({ jsonSchema, io }) {
        // A client must let pass members that are added later.
        if (io === 'output' && jsonSchema.additionalProperties === false) delete jsonSchema.additionalProperties
      },
      reused: 'inline',
    },
  )
}

function describeOperation(endpoint: Endpoint, version: ApiVersion): ZodOpenApiOperationObject {
  const { access, lifecycle } = endpoint
  const headers = requestHeaders(endpoint)
  const requestParams = {
    ...(endpoint.params === undefined ? {} : { path: endpoint.params }),
    ...(endpoint.query === undefined ? {} : { query: endpoint.query }),
    ...(headers === undefined ? {} : { header: headers }),
  } as NonNullable<ZodOpenApiOperationObject['requestParams']>
  return {
    operationId: endpoint.name,
    summary: endpoint.summary,
    ...(endpoint.description === undefined ? {} : { description: endpoint.description }),
    tags: [endpoint.tag],
    security: [
      { oauth2: [access.scope] },
      ...(access.self === undefined ? [] : [{ oauth2: [access.self.scope] }]),
      { api_key: [] },
    ],
    ...(isDeprecated(endpoint, version) ? { deprecated: true } : {}),
    ...(lifecycle?.since === undefined ? {} : { 'x-since': lifecycle.since }),
    requestParams,
    ...(endpoint.body === undefined ? {} : { requestBody: describeBody(endpoint, endpoint.body, version) }),
    responses: {
      ...Object.fromEntries(
        Object.entries(endpoint.responses).map(([status, schema]) => [
          status,
          describeSuccess(endpoint, status, schema, version),
        ]),
      ),
      ...Object.fromEntries(
        refusalsOf(endpoint, version).map((status) => [status, { $ref: `#/components/responses/${status}` }]),
      ),
    },
  }
}

function describeBody(
  endpoint: Endpoint,
  body: z.ZodType,
  version: ApiVersion,
): NonNullable<ZodOpenApiOperationObject['requestBody']> {
  if (endpoint.method !== 'PATCH') return { required: true, content: inBothMediaTypes(endpoint, body, version) }
  const merge = withExample(endpoint, describeMergePatch(endpoint, body))
  const [mergePatch, jsonPatch, json] = patchMediaTypes
  return {
    required: true,
    content: {
      [mergePatch]: merge,
      [json]: merge,
      [jsonPatch]: { schema: jsonPatchBody, example: [{ op: 'test', path: '/name', value: 'Alice' }] },
    },
  }
}

/** By the schema of the whole; but what the document says of that is not true of a patch. */
function describeMergePatch({ mergePatch }: Endpoint, body: z.ZodType): z.ZodType {
  const { $schema: _s, id: _i, description: _d, example: _e, ...whole } = z.toJSONSchema(body, { io: 'input' })
  return z.unknown().meta({
    description:
      'A merge patch (RFC 7396): what is left out stays as it is, null removes a member, and an array takes the place of the whole one.',
    example: exampleOf(body),
    ...mergePatch,
    override: mergePatchOf(whole) as object,
  })
}

function describeSuccess(endpoint: Endpoint, status: string, schema: z.ZodType | null, version: ApiVersion) {
  const headers = successHeaders(endpoint, status, version)
  return {
    description: successText[status] ?? 'Done',
    headers,
    ...(schema === null ? {} : { content: inBothMediaTypes(endpoint, schema, version) }),
  }
}

/** The version's own media type is another name for the same; the example is the schema's. */
function inBothMediaTypes(endpoint: Endpoint, schema: z.ZodType, { version }: ApiVersion) {
  return { 'application/json': withExample(endpoint, schema), [vendorMediaType(version)]: { schema } }
}

function withExample(endpoint: Endpoint, schema: z.ZodType): { schema: z.ZodType; example: unknown } {
  const example = exampleOf(schema)
  if (example === undefined) throw new Error(`${endpoint.name} has a body without an example`)
  return { schema, example }
}

/** The example that a schema was given, or one put together from those of its members. */
export function exampleOf(schema: z.ZodType): unknown {
  const { example } = (schema.meta() ?? {}) as { example?: unknown }
  if (example !== undefined) return example
  if (schema instanceof z.ZodObject) {
    const members = Object.entries(schema.shape as Record<string, z.ZodType>).flatMap(([name, member]) => {
      const inside = exampleOf(member)
      return inside === undefined ? [] : [[name, inside] as const]
    })
    return members.length === 0 ? undefined : Object.fromEntries(members)
  }
  if (schema instanceof z.ZodArray) {
    const inside = exampleOf(schema.element as z.ZodType)
    return inside === undefined ? undefined : [inside]
  }
  if (schema instanceof z.ZodOptional || schema instanceof z.ZodNullable || schema instanceof z.ZodDefault) {
    return exampleOf(schema.unwrap() as z.ZodType)
  }
  return undefined
}

const successText: Readonly<Record<string, string>> = {
  200: 'The answer',
  201: 'Created; `Location` says where',
  202: 'Accepted',
  204: 'Done; there is nothing to say',
}

/** A header that answers may have, described once. */
function header(id: string, description: string): z.ZodOptional<z.ZodString> {
  return z.string().optional().meta({ description, header: { id } })
}

const requestIdHeader = z
  .string()
  .meta({ description: 'Which request this was, for the log and for support', header: { id: 'RequestId' } })
const versionHeader = z.string().meta({ description: 'Which version answered', header: { id: 'ApiVersion' } })
const maybeVersionHeader = header('MaybeApiVersion', 'Which version answered, where one was found')
const locationHeader = z.string().meta({ description: 'Where it is', header: { id: 'Location' } })
const tagHeader = header('Tag', 'For `If-Match` and `If-None-Match`')
const replayedHeader = header('IdempotencyReplayed', '`true` when this is the answer of an earlier request')
const challengeHeader = header('Challenge', 'How to authenticate, and what is lacking (RFC 6750, RFC 9728)')
const retryHeader = header('RetryAfter', 'When to try again, in seconds')
const allowHeader = header('Allow', 'The methods that there are')
const acceptPatchHeader = header('AcceptPatch', 'For PATCH: the media types that are understood (RFC 5789)')
const linkHeader = header('Link', 'What takes its place, and how to move (RFC 8288)')

/** Of callers with a usage plan; and where a network is held off. */
const limitHeaders = {
  RateLimit: header('RateLimit', 'What is left of each limit, and until when'),
  'RateLimit-Policy': header('RateLimitPolicy', 'Each limit: how many in how many seconds'),
  'X-RateLimit-Limit': header('XRateLimitLimit', 'The limit of which least is left'),
  'X-RateLimit-Remaining': header('XRateLimitRemaining', 'What is left of it'),
  'X-RateLimit-Reset': header('XRateLimitReset', 'When there is all of it again, in seconds since 1970'),
}

function successHeaders(endpoint: Endpoint, status: string, version: ApiVersion): z.ZodObject {
  const { method } = endpoint
  return z.object({
    'API-Version': versionHeader,
    'X-Request-Id': requestIdHeader,
    ...(status === '201' ? { Location: locationHeader } : {}),
    ...(method !== 'DELETE' && status !== '204' ? { ETag: tagHeader } : {}),
    ...(method === 'POST' || method === 'PATCH' ? { 'Idempotency-Replayed': replayedHeader } : {}),
    ...(isDeprecated(endpoint, version)
      ? {
          Deprecation: header('Deprecation', 'Since when it is deprecated (RFC 9745)'),
          Sunset: header('Sunset', 'When it will be gone (RFC 8594)'),
          Link: linkHeader,
        }
      : {}),
    ...limitHeaders,
  })
}

function refusalHeaders(status: string): z.ZodObject {
  return z.object({
    'API-Version': maybeVersionHeader,
    'X-Request-Id': requestIdHeader,
    ...(status === '401' || status === '403' ? { 'WWW-Authenticate': challengeHeader } : {}),
    ...(status === '405' ? { Allow: allowHeader } : {}),
    ...(['409', '429', '503', '504'].includes(status) ? { 'Retry-After': retryHeader } : {}),
    ...(status === '415' ? { 'Accept-Patch': acceptPatchHeader } : {}),
    ...(status === '304' || status === '412' ? { ETag: tagHeader } : {}),
    ...(status === '410' ? { Link: linkHeader } : {}),
    ...limitHeaders,
  })
}

function requestHeaders(endpoint: Endpoint): z.ZodObject | undefined {
  const { method, requiresMatch = false } = endpoint
  const headers: Record<string, z.ZodType> = {}
  if (method === 'POST' || method === 'PATCH') {
    headers['Idempotency-Key'] = z.string().optional().meta({
      description: 'The same key and request within 24 hours get the same answer, and there is one effect.',
      example: '8e03978e-40d5-43dd-bc93-6894a57f9324',
    })
  }
  // POST makes something that is not there yet: there is nothing to compare.
  if (method !== 'POST') {
    const tag = (description: string) => ({ description, example: '"3.k7Hq0ZbE"' })
    const match = requiresMatch ? z.string() : z.string().optional()
    headers['If-Match'] = match.meta(tag(matchText(endpoint)))
    headers['If-None-Match'] = z
      .string()
      .optional()
      .meta(tag(noneMatchText(endpoint)))
  }
  return Object.keys(headers).length === 0 ? undefined : z.object(headers)
}

function matchText({ method, isVersioned = false }: Endpoint): string {
  if (method === 'GET') {
    return 'The `ETag` that is to be read again; 412 when it is another by now. A weak one, as of lists, never fits.'
  }
  return isVersioned
    ? 'The `ETag` that this change is based on; 412 when the resource has changed since.'
    : 'Nothing here has a version: 412 for whatever is named but `*`.'
}

function noneMatchText({ method, responses }: Endpoint): string {
  if (method === 'GET') return 'The `ETag` that you have; 304 when it is still so.'
  return responses[201] === undefined
    ? '412 when it names the `ETag` of what is there, or is `*`.'
    : '`*`: create, never replace; 412 when there is one, or one with a named `ETag`.'
}

/** Its answers may say that it will end: itself, or the version that it is of (api-version.ts). */
function isDeprecated({ lifecycle }: Endpoint, version: ApiVersion): boolean {
  return (lifecycle?.deprecatedAt ?? version.deprecatedAt) !== undefined
}

function ends({ method, lifecycle }: Endpoint, version: ApiVersion): boolean {
  return (lifecycle?.goneAt ?? version.goneAt ?? (method === 'GET' ? undefined : version.readOnlyAt)) !== undefined
}

const always = [400, 401, 403, 406, 429, 500, 503, 504] as const

/** Which refusals follow from what an endpoint is made of. */
export function refusalsOf(endpoint: Endpoint, version: ApiVersion): number[] {
  const { method } = endpoint
  // Whoever chooses the identifier finds nothing missing, but may choose a bad one: 400.
  const makesAnything = method === 'PUT' && endpoint.responses[201] !== undefined
  return [
    ...new Set<number>([
      ...always,
      ...(method === 'GET' ? [304] : []),
      ...(endpoint.path.includes('{') && !makesAnything ? [404] : []),
      ...(endpoint.body === undefined ? [] : [408, 413, 415]),
      ...(method === 'POST' || method === 'PATCH' ? [409, 422] : []),
      ...(method === 'POST' ? [] : [412]),
      ...(endpoint.requiresMatch === true ? [428] : []),
      ...(ends(endpoint, version) ? [410] : []),
      ...(endpoint.problems ?? []).map((code) => problemCatalogue[code].status),
    ]),
  ].sort((a, b) => a - b)
}

const statusText: Readonly<Record<number, string>> = {
  304: 'What you have is still so',
  400: 'The request is not valid: `details` names every field',
  401: 'A valid access token is needed',
  403: 'The token lacks the scope, the API key is not valid, or this is beyond the caller’s own rights',
  404: 'There is no such thing',
  405: 'There is something here, but not under this method: `Allow` names those that there are',
  406: 'The answer cannot be given in that media type',
  408: 'The body did not arrive in time',
  409: 'The request conflicts with what is there; or one with the same Idempotency-Key is still running',
  410: 'This is not here any more',
  412: 'The resource is not as If-Match or If-None-Match want it: in most cases, it has changed since you read it',
  413: 'The body is too large',
  415: 'The body is in a media type that is not understood here',
  422: 'The Idempotency-Key was used for another request',
  428: 'Say in If-Match what this change is based on',
  429: 'Too many requests: `Retry-After` says when to come back',
  500: 'A mistake of ours',
  503: 'Overloaded or without its database for the moment: `Retry-After` says when to come back',
  504: 'Something behind took too long',
}

/** Each documented refusal, and 405, which is a path's and no operation's, with an example of the body that is really written. */
function describeRefusals(issuer: string): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(statusText).map(([status, description]) => {
      const headers = refusalHeaders(status)
      if (status === '304') return [status, { description, headers }]
      const problem = exampleProblem(Number(status))
      const example = toProblemBody(problem, {
        issuer,
        path: '/v1/users',
        requestId: '7f3c6b2a-5d9e-4f8b-a1c3-9e8d7c6b5a4f',
        at: new Date('2026-01-15T14:35:22Z'),
      })
      const content = { schema: { $ref: '#/components/schemas/Error' }, example }
      const page = { schema: { type: 'string' }, example: `<!doctype html><title>${problem.title}</title>` }
      return [
        status,
        {
          description,
          headers,
          content: { 'application/json': content, 'application/problem+json': content, 'text/html': page },
        },
      ]
    }),
  )
}

function exampleProblem(status: number): Problem {
  if (status === 400) {
    return new Problem('VALIDATION_ERROR', 'Request validation failed', {
      details: [{ field: 'email', value: 'not-an-email', constraint: 'format', message: 'must be an email address' }],
    })
  }
  if (status === 429) {
    return new Problem('RATE_LIMIT_EXCEEDED', 'API rate limit exceeded', {
      retryAfterSeconds: 600,
      members: { limit: 1_000, remaining: 0, reset_at: '2026-01-15T15:00:00Z' },
    })
  }
  const [code] = Object.entries(problemCatalogue).find(([, entry]) => (entry.status as number) === status) ?? [
    'SERVER_ERROR',
  ]
  return new Problem(code as ProblemCode)
}

const detail = z.object({
  field: z.string(),
  constraint: z.string().optional(),
  message: z.string(),
  value: z.union([z.string(), z.number(), z.boolean(), z.null()]).optional(),
  expected_format: z.string().optional(),
  suggestion: z.string().optional(),
})

/** The one body of every refusal: the members of RFC 9457, and the envelope beside them. */
export const errorBody = z
  .object({
    type: z.string(),
    title: z.string(),
    status: z.int(),
    detail: z.string(),
    instance: z.string(),
    error: z.object({
      code: z.enum(Object.keys(problemCatalogue) as [string, ...string[]]),
      message: z.string(),
      details: z.array(detail).optional(),
      retry_after: z.number().optional(),
      limit: z.number().optional(),
      remaining: z.number().optional(),
      reset_at: z.string().optional(),
      resource_type: z.string().optional(),
      resource_id: z.string().optional(),
      suggestions: z.array(z.string()).optional(),
      shutdown_date: z.string().optional(),
      migration_guide: z.string().optional(),
      support: z.string().optional(),
    }),
    request_id: z.string(),
    timestamp: z.string(),
    documentation: z.string(),
  })
  .meta({ id: 'Error', description: 'Why a request was refused, and what to do' })

const jsonPatchBody = z
  .array(
    z.object({
      op: z.enum(['add', 'remove', 'replace', 'move', 'copy', 'test']),
      path: z.string(),
      from: z.string().optional(),
      value: z.unknown().optional(),
    }),
  )
  .max(100)
  .meta({ id: 'JsonPatch', description: 'RFC 6902' })
