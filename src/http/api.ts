/**
 * Carries requests to the endpoints that were declared (endpoint.ts), in the order in which everything about a request
 * is decided: version, network limit, media type, who it is, their limits, whether they may, what they ask, what it is
 * based on, whether it was asked before, and only then the handler. The answer is checked against its declaration before
 * it is sent; for a change, before it is committed.
 */
import { Router } from '@koa/router'
import type { Context, Middleware, Next, ParameterizedContext } from 'koa'
import compose from 'koa-compose'
import { z } from 'zod'
import type { Db, Trx } from '../database/database.ts'
import { checkInput, notFound, Problem, type FieldError } from '../problems.ts'
import { acceptedType } from './accepted-type.ts'
import { checkLifecycle, chooseVersion, vendorMediaType, type ApiVersion, type ChosenVersion } from './api-version.ts'
import { withDeadline } from './deadline.ts'
import type { Caller, Endpoint, ErasedReply, ErasedRequest, OwnerOf } from './endpoint.ts'
import { bodyTag, matchesNone, matchesStrongly, namesTag, readIfMatch, readIfNoneMatch, versionTag } from './etag.ts'
import {
  fingerprintRequest,
  readIdempotencyKey,
  type Begun,
  type Idempotency,
  type StoredAnswer,
} from './idempotency.ts'
import { isStorableText, readJson, type JsonBody } from './json-body.ts'
import { applyPatch, patchMediaTypes, setsMember, type JsonObject, type PatchMediaType } from './patch.ts'
import { checkQuery } from './query-parameters.ts'
import { onceOver, type RequestState } from './request-context.ts'

/** What the limits say of a request that is let pass: headers for its answer. */
export type LimitHeaders = Readonly<Record<string, string>>

export interface ApiParts {
  readonly db: Db
  readonly endpoints: readonly Endpoint[]
  /** the one that is meant when a request names none first */
  readonly versions: readonly ApiVersion[]
  /** @throws Problem AUTHENTICATION_ERROR or AUTHORIZATION_ERROR with its challenge */
  readonly authenticate: (ctx: ParameterizedContext<RequestState>) => Promise<Caller>
  /** Before anybody is known, and whether or not there is such a path. @throws Problem RATE_LIMIT_EXCEEDED */
  readonly limitNetwork?: (ctx: ParameterizedContext<RequestState>) => Promise<void>
  /** @throws Problem RATE_LIMIT_EXCEEDED */
  readonly limitCaller?: (caller: Caller, ctx: ParameterizedContext<RequestState>) => Promise<LimitHeaders>
  readonly idempotency: Idempotency
  /** Told of every answer, for the count of who still calls what. */
  readonly onAnswer?: (answer: ApiAnswer) => void
  readonly now?: () => Date
}

export interface ApiAnswer {
  readonly version: string
  readonly clientId: string | undefined
  readonly userAgent: string
  /** `GET /v1/users/:user_id` */
  readonly endpoint: string
  readonly status: number
}

const defaultMaxBodyBytes = 256 * 1_024

/** The middlewares of the API, in their order. */
export function apiMiddlewares(parts: ApiParts): Middleware[] {
  const { endpoints, versions } = parts
  const now = parts.now ?? (() => new Date())
  const nouns = new Set(endpoints.map(({ path }) => nounOf(path) ?? ''))
  // One for each kind of path: a router holds a path against each of its routes.
  const routers = new Map<string, Router>()
  for (const endpoint of endpoints) {
    const pattern = endpoint.path.replaceAll(/\{(\w+)\}/g, ':$1')
    // A path has one spelling: `/V1/Users/` is another, and nothing is there.
    const router = routers.get(kindOf(endpoint.path)) ?? new Router({ sensitive: true, strict: true })
    routers.set(kindOf(endpoint.path), router)
    router.register(pattern, [endpoint.method], async (ctx: Context) => {
      const version = (ctx.state as ApiState).version
      if (version === undefined) throw new Error('a route of the API without a version')
      await answer(parts, endpoint, version, ctx as unknown as ApiContext, now())
    })
  }

  /** Everything under a version says which; a path without one is led to the one that was asked for. */
  function version(ctx: Context, next: Next): Promise<unknown> {
    const chosen = chooseVersion(ctx, { versions, nouns })
    return chosen === undefined ? next() : enter(chosen, ctx, next)
  }

  async function enter(chosen: ChosenVersion, ctx: Context, next: Next): Promise<void> {
    const state = ctx.state as ApiState
    state.version = chosen.version
    state.apiVersion = chosen.version.version
    ctx.set('API-Version', chosen.version.version)
    if (ctx.path !== chosen.path) {
      for (const name of ['API-Version', 'X-API-Version', 'Accept']) ctx.vary(name)
      ctx.path = chosen.path
    }
    if (parts.onAnswer !== undefined) onceOver(ctx, () => count(parts, ctx as unknown as ApiContext))
    await parts.limitNetwork?.(ctx)
    if (chosen.refusal !== undefined) throw chosen.refusal
    // A version that is gone answers so whatever is asked of it.
    checkLifecycle(chosen.version, { method: 'GET' }, ctx.path, now())
    await next()
  }

  const routes = new Map(
    [...routers].map(([kind, router]) => [
      kind,
      compose<ParameterizedContext>([router.routes() as never, router.allowedMethods() as never]),
    ]),
  )
  function route(ctx: Context, next: Next): Promise<unknown> {
    const found = (ctx.state as ApiState).version === undefined ? undefined : routes.get(kindOf(ctx.path))
    return found === undefined ? next() : found(ctx, next)
  }

  return [version as Middleware, route as Middleware]
}

/** `/v1/users/{user_id}` → `users 2`: its noun, and how many steps there are behind the version */
function kindOf(path: string): string {
  const [, , noun, ...rest] = path.split('/')
  return `${noun} ${rest.length + 1}`
}

/** `/v1/users/{user_id}` → `users` */
function nounOf(path: string): string | undefined {
  return path.split('/', 3)[2]
}

interface ApiState extends RequestState {
  version?: ApiVersion
  apiVersion?: string
  rateLimitHeaders?: LimitHeaders
}
type ApiContext = ParameterizedContext<ApiState> & { params: Record<string, string> }

function count({ onAnswer }: ApiParts, ctx: ApiContext): void {
  if (!ctx.res.writableFinished) return
  const { _matchedRoute: pattern } = ctx as unknown as { _matchedRoute?: unknown }
  onAnswer?.({
    version: ctx.state.apiVersion ?? '',
    clientId: ctx.state.clientId,
    userAgent: ctx.get('User-Agent'),
    endpoint: `${ctx.method} ${typeof pattern === 'string' ? pattern : '(no route)'}`,
    status: ctx.res.statusCode,
  })
}

async function answer(
  parts: ApiParts,
  endpoint: Endpoint,
  version: ApiVersion,
  ctx: ApiContext,
  now: Date,
): Promise<void> {
  ctx.set(checkLifecycle(version, endpoint, ctx.path, now))
  const mediaType = negotiate(ctx, version)
  const caller = await parts.authenticate(ctx)
  ctx.state.clientId = caller.clientId
  if (caller.userId !== undefined) ctx.state.userId = caller.userId
  if (parts.limitCaller !== undefined) ctx.set(await parts.limitCaller(caller, ctx))
  const rawParams = readParams(ctx, caller)
  if (!caller.scopes.has(endpoint.access.scope)) await requireOwn(parts.db, endpoint, caller, rawParams)

  const maxBytes = endpoint.maxBodyBytes ?? defaultMaxBodyBytes
  const json = endpoint.body === undefined ? undefined : await readBody(ctx, endpoint, version, maxBytes)
  const checked = checkRequest(endpoint, ctx.path, rawParams, ctx.querystring, json)
  if ('details' in checked) throw await refuseAll(parts.db, endpoint, checked)
  const { params, query, body } = checked
  const { unwantedTags, ...conditions } = readConditions(endpoint, ctx)

  const begun = await beginWithKey(parts.idempotency, endpoint, ctx, caller, json)
  if (begun?.kind === 'replay') {
    send(ctx, { ...begun.answer, headers: { ...begun.answer.headers, 'Idempotency-Replayed': 'true' } }, endpoint)
    return
  }
  const claim = begun?.claim
  let written: StoredAnswer | undefined
  let refusedPatch: Refused | undefined
  const render = (reply: ErasedReply) => renderReply(endpoint, reply, mediaType)
  const request: ErasedRequest = {
    params,
    query,
    body,
    caller,
    db: parts.db,
    ...conditions,
    path: ctx.path,
    signal: ctx.state.signal,
    patched(current) {
      if (json === undefined || endpoint.body === undefined) throw new Error(`${endpoint.name} takes no patch`)
      const document = applyPatch(current as JsonObject, json.mediaType as PatchMediaType, json.value)
      const patched = checkInput(endpoint.body, document)
      if (patched.success) return patched.data
      refusedPatch = { details: patched.details, body: document, params: rawParams }
      throw invalid(patched.details)
    },
    patches: (member) => setsMember(json?.mediaType as PatchMediaType, json?.value, member),
    async write(change) {
      if (written !== undefined) throw new Error(`${endpoint.name} writes twice`)
      return parts.db.transaction().execute(async (trx: Trx) => {
        const present =
          unwantedTags.length === 0 ? undefined : await findTag(parts.endpoints, endpoint, { ...request, db: trx })
        const reply = await change(trx, caller.actor)
        // What would be refused without the condition is refused as it would be (RFC 9110 §13.2.1).
        if (present !== undefined && namesTag(unwantedTags, present)) throw preconditionFailed(present)
        written = render(reply)
        await claim?.complete(trx, written)
        return reply
      })
    },
  }
  try {
    // The handlers' common deadline stands around it.
    const { deadlineSeconds } = endpoint
    const reply =
      deadlineSeconds === undefined
        ? await endpoint.handle(request)
        : await withDeadline(deadlineSeconds, (signal) => endpoint.handle({ ...request, signal }), ctx.state)
    if (claim !== undefined && written === undefined) throw new Error(`${endpoint.name} takes a key and writes nothing`)
    send(ctx, written ?? render(reply), endpoint, conditions.mustExist)
  } catch (error) {
    // Nothing happened, so the same key may try again; what was committed before the error stays answered.
    await claim?.abandon()
    throw refusedPatch === undefined ? error : await refuseAll(parts.db, endpoint, refusedPatch)
  }
}

/** @throws Problem NOT_ACCEPTABLE; what the answer is sent as */
function negotiate(ctx: ApiContext, version: ApiVersion): string {
  const vendor = vendorMediaType(version.version)
  ctx.vary('Accept')
  const wanted = ctx.get('Accept')
  if (wanted === '' || wanted === 'application/json') return 'application/json'
  const accepted = acceptedType(ctx, ['application/json', vendor, 'application/problem+json'])
  if (accepted === vendor) return vendor
  if (accepted === undefined) throw new Problem('NOT_ACCEPTABLE', `This API answers in application/json or ${vendor}.`)
  return 'application/json'
}

function readParams(ctx: ApiContext, caller: Caller): Record<string, string> {
  const params = { ...ctx.params }
  if (params['user_id'] === 'me') {
    if (caller.userId === undefined) throw notFound('user', 'me')
    params['user_id'] = caller.userId
  }
  return params
}

/**
 * Lets a person without the endpoint's scope do what may be done to their own.
 *
 * @throws Problem AUTHORIZATION_ERROR without the scope for that or about somebody else's, RESOURCE_NOT_FOUND where even the
 *   existence of somebody else's is nobody's business
 */
async function requireOwn(
  db: Db,
  { access, path }: Endpoint,
  caller: Caller,
  params: Readonly<Record<string, string>>,
): Promise<void> {
  const { self } = access
  if (self === undefined || !caller.scopes.has(self.scope) || caller.userId === undefined) {
    throw insufficientScope(self === undefined ? [access.scope] : [access.scope, self.scope])
  }
  if (typeof self.owner === 'string') {
    if (params[self.owner] !== caller.userId) throw insufficientScope([access.scope])
  } else if ((await ownerOf(self.owner, params, db)) !== caller.userId) {
    throw nothingThere(path, Object.entries(params).at(-1), self.listedAt)
  }
}

async function ownerOf(owner: Exclude<OwnerOf, string>, params: Readonly<Record<string, string>>, db: Db) {
  return Object.values(params).every(isStorableText) ? owner(params, db) : undefined
}

/** RFC 6750 §3.1 */
function insufficientScope(scopes: readonly string[]): Problem {
  return new Problem('AUTHORIZATION_ERROR', `This needs the scope ${scopes.join(' or ')}.`, {
    headers: { 'WWW-Authenticate': `Bearer error="insufficient_scope", scope="${scopes.join(' ')}"` },
  })
}

async function readBody(ctx: ApiContext, endpoint: Endpoint, version: ApiVersion, maxBytes: number): Promise<JsonBody> {
  const mediaTypes =
    endpoint.method === 'PATCH' ? patchMediaTypes : ['application/json', vendorMediaType(version.version)]
  return readJson(ctx, { mediaTypes, maxBytes, acceptPatch: endpoint.method === 'PATCH' })
}

// Schemas are dear to make.
const noParams = z.object({})
const noQuery = z.strictObject({})

/** What is wrong with a request, and its body where more of that can be judged. */
interface Refused {
  readonly details: readonly FieldError[]
  readonly body?: unknown
  readonly params: Readonly<Record<string, string>>
}

/**
 * Everything that is wrong with a request, at once.
 *
 * @throws Problem RESOURCE_NOT_FOUND for an identifier that nothing can have
 */
function checkRequest(
  endpoint: Endpoint,
  path: string,
  rawParams: Record<string, string>,
  rawQuery: string,
  json: JsonBody | undefined,
): { params: unknown; query: unknown; body: unknown } | Refused {
  const params = checkInput(endpoint.params ?? noParams, rawParams)
  const unstorable = Object.entries(rawParams).filter(([, value]) => !isStorableText(value))
  const wrongParams = params.success ? unstorable.map(([field]) => unstorableParameter(field)) : params.details
  // Whoever chooses an identifier is told what is wrong with it; else none of that form can exist, so nothing is there.
  if (wrongParams.length > 0 && (endpoint.method !== 'PUT' || endpoint.responses[201] === undefined)) {
    const wrong = Object.entries(rawParams).find(([name]) => wrongParams.some(({ field }) => field === name))
    const step = endpoint.path.split('/').indexOf(`{${wrong?.[0] ?? ''}}`)
    throw nothingThere(endpoint.path, wrong, path.split('/').slice(0, step).join('/'))
  }
  const query = checkQuery(endpoint.query ?? noQuery, rawQuery)
  // A patch is checked once it has been applied to what is there.
  const body =
    endpoint.body === undefined || endpoint.method === 'PATCH'
      ? ({ success: true, data: undefined } as const)
      : checkInput(endpoint.body, json?.value)
  if (wrongParams.length === 0 && params.success && query.success && body.success) {
    return { params: params.data, query: query.data, body: body.data }
  }
  const details = [...wrongParams, ...(query.success ? [] : query.details), ...(body.success ? [] : body.details)]
  // What no database holds must not be looked for there; a patch is not yet what it makes.
  const isReadable = unstorable.length === 0 && endpoint.method !== 'PATCH'
  return { details, params: rawParams, ...(isReadable ? { body: json?.value } : {}) }
}

const mostDetails = 50

/** With whatever else the handler would find wrong with the body. */
async function refuseAll(db: Db, endpoint: Endpoint, { details, body, params }: Refused): Promise<Problem> {
  if (endpoint.alsoWrong === undefined || typeof body !== 'object' || body === null) return invalid(details)
  const known = new Set(details.map(({ field }) => field))
  const more = await endpoint.alsoWrong({ body: body as Readonly<Record<string, unknown>>, params, db })
  return invalid([...details, ...more.filter(({ field }) => !known.has(field))].slice(0, mostDetails))
}

/** What is said of an identifier that nothing has, or nothing that the caller may know of. */
function nothingThere(path: string, parameter: readonly [string, string] | undefined, collection?: string): Problem {
  const [name, value] = parameter ?? ['id', '']
  return notFound(typeOf(path, name), isStorableText(value) ? value : '', collection, name)
}

function unstorableParameter(field: string): FieldError {
  return { field, constraint: 'format', message: 'Holds a character that is not text (U+0000)' }
}

/** What a parameter of a path names, in words: `{client_id}` a client, `/roles/{name}` a role. */
function typeOf(path: string, parameter: string): string {
  if (parameter.endsWith('_id')) return parameter.slice(0, -3).replaceAll('_', ' ')
  const steps = path.split('/')
  const collection = steps[steps.indexOf(`{${parameter}}`) - 1] ?? parameter
  return collection.replace(/s$/, '').replaceAll('-', ' ')
}

function invalid(details: readonly FieldError[]): Problem {
  return new Problem('VALIDATION_ERROR', 'Request validation failed', { details })
}

/**
 * What a change is to be based on. GET looks at both conditions when there is something to compare them with; POST makes
 * something that is not there yet.
 *
 * @throws Problem PRECONDITION_REQUIRED, or PRECONDITION_FAILED for a condition that nothing at this path can meet
 */
function readConditions(
  { method, requiresMatch = false, isVersioned = false, responses }: Endpoint,
  ctx: ApiContext,
): Pick<ErasedRequest, 'expectedVersions' | 'mustExist' | 'mustNotExist'> & {
  readonly unwantedTags: readonly string[]
} {
  const { versions: expectedVersions, mustExist } = readIfMatch(ctx.get('If-Match'))
  if (requiresMatch && expectedVersions === undefined && !mustExist) throw new Problem('PRECONDITION_REQUIRED')
  const isChange = method !== 'GET' && method !== 'POST'
  const { unwantedTags, mustNotExist } = readIfNoneMatch(isChange ? ctx.get('If-None-Match') : '')
  if (isChange && expectedVersions !== undefined && !isVersioned) {
    throw new Problem('PRECONDITION_FAILED', 'Nothing here has a version that a change could be based on.')
  }
  if (mustNotExist && responses[201] === undefined) {
    throw new Problem('PRECONDITION_FAILED', 'This changes what is there, and creates nothing.')
  }
  return { expectedVersions, mustExist, mustNotExist, unwantedTags }
}

/** The tag that a read at the path of a change would have; undefined where nothing is, or can be read. */
async function findTag(
  endpoints: readonly Endpoint[],
  { path }: Endpoint,
  request: ErasedRequest,
): Promise<string | undefined> {
  const read = endpoints.find((one) => one.method === 'GET' && one.path === path)
  if (read === undefined) return undefined
  try {
    const reply = await read.handle({ ...request, query: (read.query ?? noQuery).parse({}), body: undefined })
    return renderReply(read, reply, '').headers['ETag']
  } catch (error) {
    if (error instanceof Problem && error.code === 'RESOURCE_NOT_FOUND') return undefined
    throw error
  }
}

/** @param present the tag of what there is */
function preconditionFailed(present: string): Problem {
  return new Problem('PRECONDITION_FAILED', undefined, { headers: { ETag: present } })
}

/** POST and PATCH may carry a key; the others are idempotent by themselves (RFC 9110 §9.2.2). */
async function beginWithKey(
  idempotency: Idempotency,
  endpoint: Endpoint,
  ctx: ApiContext,
  caller: Caller,
  json: JsonBody | undefined,
): Promise<Begun | undefined> {
  if (endpoint.method !== 'POST' && endpoint.method !== 'PATCH') return undefined
  const key = readIdempotencyKey(ctx.req.headers['idempotency-key']?.toString())
  if (key === undefined) return undefined
  const fingerprint = fingerprintRequest({
    method: ctx.method,
    url: ctx.querystring === '' ? ctx.path : `${ctx.path}?${ctx.querystring}`,
    contentType: json?.mediaType ?? '',
    body: json?.bytes ?? new Uint8Array(),
  })
  return idempotency.begin({ caller: `${caller.clientId} ${caller.id}`, key, fingerprint })
}

/** @throws Error when the handler's answer is not what was declared: a mistake of ours */
function renderReply(endpoint: Endpoint, reply: ErasedReply, mediaType: string): StoredAnswer {
  const schema = endpoint.responses[reply.status]
  if (schema === undefined) throw new Error(`${endpoint.name} answers ${reply.status}, which it does not declare`)
  const headers: Record<string, string> = { ...reply.headers }
  if (schema === null) return { status: reply.status, headers, body: '' }
  const checked = schema.safeParse(reply.body)
  if (!checked.success) {
    throw new Error(`${endpoint.name} answers what it does not declare: ${z.prettifyError(checked.error)}`)
  }
  const body = JSON.stringify(checked.data)
  headers['Content-Type'] = mediaType
  if (reply.version !== undefined) headers['ETag'] = versionTag(reply.version, body)
  else if (endpoint.method === 'GET') headers['ETag'] = bodyTag(body)
  return { status: reply.status, headers, body }
}

/**
 * @param isConditional If-Match was sent with a read
 * @throws Problem PRECONDITION_FAILED
 */
function send(
  ctx: ApiContext,
  { status, headers, body }: StoredAnswer,
  endpoint: Endpoint,
  isConditional = false,
): void {
  for (const name in headers) ctx.set(name, headers[name] ?? '')
  ctx.set('Cache-Control', endpoint.cacheControl ?? (endpoint.method === 'GET' ? 'private, no-cache' : 'no-store'))
  const { ETag: tag } = headers
  if (endpoint.method === 'GET' && tag !== undefined) {
    // In this order (RFC 9110 §13.2.2).
    if (isConditional && !matchesStrongly(ctx.get('If-Match'), tag)) throw preconditionFailed(tag)
    if (!matchesNone(ctx.get('If-None-Match'), tag)) {
      ctx.status = 304
      return
    }
  }
  // Koa makes 204 of null, and leaves the media type that a string has been given.
  ctx.body = body === '' ? null : body
  ctx.status = status
}
