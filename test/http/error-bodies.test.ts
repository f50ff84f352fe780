/**
 * The error bodies that the lecture teaches, in error-bodies/, compared member for member with what this pipeline writes
 * in the same situation; and its seven codes, each with its status. Where an older slide has its members at the top, they
 * are inside of `error` here, as its own chapter on errors wants it.
 */
import { readFileSync } from 'node:fs'
import { BlockList } from 'node:net'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { z } from 'zod'
import type { Db } from '../../src/database/database.ts'
import { apiMiddlewares } from '../../src/http/api.ts'
import type { ApiVersion } from '../../src/http/api-version.ts'
import { endpoint, holdersOf, reply } from '../../src/http/endpoint.ts'
import { problemResponse } from '../../src/http/problem-response.ts'
import { dateParameter, optional } from '../../src/http/query-parameters.ts'
import { rateLimitExceeded } from '../../src/http/rate-limit.ts'
import { requestContext } from '../../src/http/request-context.ts'
import { notFound, Problem } from '../../src/problems.ts'
import { createDatabase, openLocation } from '../support/databases.ts'
import { openTestLog, serveApp } from '../support/serve-app.ts'

const issuer = 'https://api.example.com'
const readBody = (name: string) =>
  JSON.parse(readFileSync(join(import.meta.dirname, 'error-bodies', `${name}.json`), 'utf8')) as Record<string, unknown>

const access = holdersOf('models:read')
const predict = endpoint({
  method: 'POST',
  path: '/v1/models/{model_id}/predictions',
  name: 'predict',
  summary: 'Ask a model',
  tag: 'Models',
  access,
  params: z.object({ model_id: z.string() }),
  body: z.strictObject({
    features: z.array(z.number()),
    threshold: z.number().max(1, 'Must be at most 1.0').optional(),
  }),
  responses: { 200: z.object({ prediction: z.number() }) },
  problems: ['CONFLICT'],
  async handle({ params: { model_id: id } }) {
    if (id === 'classifier-xyz') throw notFound('model', id, '/models')
    if (id === 'busy') throw new Problem('CONFLICT', 'This model is being trained.')
    if (id === 'broken') throw new TypeError("Cannot read properties of undefined (reading 'weights')")
    return reply(200, { prediction: 0.87 })
  },
})
const signUp = endpoint({
  method: 'POST',
  path: '/v1/accounts',
  name: 'signUp',
  summary: 'Sign up',
  tag: 'Accounts',
  access,
  body: z.strictObject({ email: z.email(), password: z.string().min(8), client_secret: z.number().optional() }),
  responses: { 204: null },
  handle: async () => reply(204, undefined),
})
const listFlights = endpoint({
  method: 'GET',
  path: '/v1/flights',
  name: 'listFlights',
  summary: 'Flights of a day',
  tag: 'Flights',
  access,
  query: z.strictObject({ date: optional(dateParameter('The day')) }),
  responses: { 200: z.object({ flights: z.array(z.string()) }) },
  handle: async () => reply(200, { flights: [] }),
})

let db: Db
beforeAll(async () => {
  const database = await openLocation(await createDatabase('pglite'))
  ;({ db } = database)
  return () => database.close()
})

interface Refused {
  readonly status: number
  readonly headers: Headers
  readonly body: Record<string, unknown> & { readonly error: Record<string, unknown> }
}

type Ask = (path: string, options?: { body?: unknown; caller?: string; requestId?: string }) => Promise<Refused>

async function serve(version: ApiVersion = { version: '1' }, log = openTestLog()): Promise<Ask> {
  const middlewares = apiMiddlewares({
    db,
    endpoints: [predict, listFlights, signUp],
    versions: [version],
    async authenticate(ctx) {
      const id = ctx.get('x-caller')
      if (id === 'nobody') throw new Problem('AUTHENTICATION_ERROR')
      return {
        type: 'client',
        id,
        userId: undefined,
        clientId: id,
        scopes: new Set(id === 'stranger' ? [] : ['models:read']),
        network: '127.0.0.1',
        actor: { type: 'client', id },
      }
    },
    async limitCaller(caller) {
      if (caller.id !== 'hasty') return {}
      throw rateLimitExceeded({
        limit: 1_000,
        remaining: 0,
        retryAfterSeconds: 600,
        resetAt: new Date('2025-01-15T15:00:00Z'),
      })
    },
    idempotency: { begin: () => Promise.reject(new Error('no key was sent')) },
  })
  const url = await serveApp(
    requestContext({ trustProxy: new BlockList(), issuer }),
    problemResponse({ issuer, log: log.log }),
    ...(middlewares as Parameters<typeof serveApp>),
  )
  return async (path, { body, caller = 'client', requestId = 'r-1' } = {}) => {
    const answer = await fetch(url + path, {
      method: body === undefined ? 'GET' : 'POST',
      headers: { 'x-caller': caller, 'x-request-id': requestId, 'content-type': 'application/json' },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
    return { status: answer.status, headers: answer.headers, body: (await answer.json()) as Refused['body'] }
  }
}

const features = [0.1, 0.2, 0.3, 0.4]

describe('the lecture’s bodies', () => {
  it('validation: what is wrong with each field, at once', async () => {
    const ask = await serve()
    const { status, body } = await ask('/models/classifier/predictions', {
      body: { features: [0.1, 0.2, 0.3, 'NaN'], threshold: 1.5 },
    })
    expect(status).toBe(400)
    expect(body.error).toEqual(readBody('validation')['error'])
    expect(body.error).toMatchObject(readBody('basic')['error'] as object)
  })

  it('rate limit: how many, how many are left, and when to come back', async () => {
    const ask = await serve()
    const { status, headers, body } = await ask('/models/classifier/predictions', {
      body: { features },
      caller: 'hasty',
    })
    expect([status, headers.get('retry-after')]).toEqual([429, '600'])
    expect(body.error).toEqual(readBody('rate-limit')['error'])
  })

  it('not found: what, and what to do about it', async () => {
    const ask = await serve()
    const { status, body } = await ask('/models/classifier-xyz/predictions', { body: { features } })
    expect(status).toBe(404)
    expect(body.error).toEqual(readBody('not-found')['error'])
  })

  it('correlation and documentation: beside every error', async () => {
    const { request_id } = readBody('correlation')
    const ask = await serve()
    const { body } = await ask('/models/classifier-xyz/predictions', {
      body: { features },
      requestId: String(request_id),
    })
    const shape = { ...readBody('not-found'), ...readBody('correlation'), ...readBody('documentation') }
    const rfc9457 = ['type', 'title', 'status', 'detail', 'instance']
    expect(
      Object.keys(body)
        .filter((name) => !rfc9457.includes(name))
        .sort(),
    ).toEqual(Object.keys(shape).sort())
    expect(body['request_id']).toBe(request_id)
    expect(body['timestamp']).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z$/)
    expect(body['documentation']).toMatch(/^https:\/\/api\.example\.com\/docs\/errors\b/)
  })

  it('a version that is gone: since when, where to, and whom to ask', async () => {
    const retired = readBody('retired-version')
    const ask = await serve({
      version: '1',
      goneAt: new Date('2025-09-15T00:00:00Z'),
      migrationGuide: '/docs/v1-to-v2',
      support: 'api-support@example.com',
    })
    const { status, body } = await ask('/v1/flights')
    expect(status).toBe(410)
    const { error: message, ...members } = retired
    expect(body.error).toEqual({ code: 'GONE', message, ...members })
  })

  it('a date in another format: which parameter, and which format', async () => {
    const { parameter, expected_format } = readBody('bad-date')
    const ask = await serve()
    const { status, body } = await ask('/flights?date=Feb-15-2025')
    expect(status).toBe(400)
    expect(body.error['details']).toEqual([
      expect.objectContaining({ field: parameter, value: 'Feb-15-2025', constraint: 'format', expected_format }),
    ])
  })
})

describe('the lecture’s seven codes', () => {
  const cases: readonly [code: string, status: number, path: string, caller?: string, body?: unknown][] = [
    ['VALIDATION_ERROR', 400, '/models/classifier/predictions', 'client', { features: 'none' }],
    ['AUTHENTICATION_ERROR', 401, '/models/classifier/predictions', 'nobody'],
    ['AUTHORIZATION_ERROR', 403, '/models/classifier/predictions', 'stranger'],
    ['RATE_LIMIT_EXCEEDED', 429, '/models/classifier/predictions', 'hasty'],
    ['RESOURCE_NOT_FOUND', 404, '/models/classifier-xyz/predictions'],
    ['CONFLICT', 409, '/models/busy/predictions'],
    ['SERVER_ERROR', 500, '/models/broken/predictions'],
  ]
  it.each(cases)('%s is %i', async (code, status, path, caller = 'client', body = { features }) => {
    const log = openTestLog()
    const ask = await serve({ version: '1' }, log)
    const refused = await ask(path, { caller, body })
    expect([refused.status, refused.body.error['code']]).toEqual([status, code])
    expect(refused.body).toMatchObject({ status, request_id: 'r-1', documentation: `${issuer}/docs/errors#${code}` })
    // What went wrong inside is in the log, and nowhere else.
    expect(JSON.stringify(refused.body)).not.toMatch(/weights|TypeError|error-bodies\.test/)
    expect(log.text().includes('weights')).toBe(status === 500)
  })

  it('and a value that may be a secret is never repeated, whatever is wrong with it', async () => {
    const ask = await serve()
    const { body } = await ask('/accounts', {
      body: { email: 'alice', password: 'hunter2', client_secret: 'lk_secret_x' },
    })
    const details = body.error['details'] as { readonly field: string; readonly value?: unknown }[]
    expect(details.map(({ field }) => field)).toEqual(['email', 'password', 'client_secret'])
    expect(JSON.stringify(details)).not.toMatch(/hunter2|lk_secret_x/)
    expect(details[0]).toMatchObject({ value: 'alice' })
  })
})
