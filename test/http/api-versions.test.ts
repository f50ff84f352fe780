/**
 * Two versions of one API, as the lecture has it: `is_active` of version 1 became `account_status` in version 2, and
 * version 1 goes, in stages, while somebody still calls it.
 */
import { BlockList } from 'node:net'
import { beforeAll, describe, expect, it } from 'vitest'
import { z } from 'zod'
import { systemActor } from '../../src/audit/audit.ts'
import { apiMiddlewares } from '../../src/http/api.ts'
import type { ApiVersion } from '../../src/http/api-version.ts'
import { endpoint, holdersOf, reply } from '../../src/http/endpoint.ts'
import type { Idempotency } from '../../src/http/idempotency.ts'
import { problemResponse } from '../../src/http/problem-response.ts'
import { requestContext } from '../../src/http/request-context.ts'
import { openUsage, summarizeUsage } from '../../src/metering/usage.ts'
import { createUser, getUser } from '../../src/users/users.ts'
import { eachDatabase, type TestDatabase } from '../support/databases.ts'
import { openTestLog, serveApp } from '../support/serve-app.ts'

const issuer = 'http://localhost:3000'
const params = z.object({ user_id: z.string() })
const access = holdersOf('users:read')

const getUserV1 = endpoint({
  method: 'GET',
  path: '/v1/users/{user_id}',
  name: 'getUserV1',
  summary: 'One person',
  tag: 'Users',
  access,
  params,
  responses: { 200: z.object({ user_id: z.string(), email: z.string(), is_active: z.boolean() }) },
  async handle({ db, params }) {
    const { id, email, account_status } = await getUser(db, params.user_id)
    return reply(200, { user_id: id, email, is_active: account_status === 'active' })
  },
})

const getUserV2 = endpoint({
  method: 'GET',
  path: '/v2/users/{user_id}',
  name: 'getUserV2',
  summary: 'One person',
  tag: 'Users',
  access,
  params,
  responses: { 200: z.object({ user_id: z.string(), email: z.string(), account_status: z.string() }) },
  async handle({ db, params }) {
    const { id, email, account_status, email_verified } = await getUser(db, params.user_id)
    const suffix = email_verified ? '_verified' : ''
    return reply(200, { user_id: id, email, account_status: `${account_status}${suffix}` })
  },
})

const touchUserV1 = endpoint({
  method: 'PUT',
  path: '/v1/users/{user_id}',
  name: 'touchUserV1',
  summary: 'Changes nothing',
  tag: 'Users',
  access,
  params,
  responses: { 204: null },
  handle: async () => reply(204, undefined),
})

/** The lecture's plan, on days that exist. */
const v1: ApiVersion = {
  version: '1',
  deprecatedAt: new Date('2025-03-01T00:00:00Z'),
  readOnlyAt: new Date('2025-06-01T00:00:00Z'),
  goneAt: new Date('2025-09-15T00:00:00Z'),
  successor: '2',
  migrationGuide: '/docs/v1-to-v2',
  support: 'api-support@example.com',
}
const v2: ApiVersion = { version: '2' }

// None of these requests carries a key.
const noKeys: Idempotency = { begin: () => Promise.reject(new Error('no key was sent')) }

let people = 0

async function serve({ db }: TestDatabase, at: string, versions: readonly ApiVersion[] = [v1, v2]) {
  const { log } = openTestLog()
  const usage = openUsage({ db, log })
  const middlewares = apiMiddlewares({
    db,
    endpoints: [getUserV1, getUserV2, touchUserV1],
    versions,
    authenticate: async (ctx) => ({
      type: 'client',
      id: ctx.get('x-client'),
      userId: undefined,
      clientId: ctx.get('x-client') === '' ? 'booking' : ctx.get('x-client'),
      scopes: new Set(['users:read']),
      network: '127.0.0.1',
      actor: { type: 'client', id: 'booking' },
    }),
    idempotency: noKeys,
    onAnswer: (answer) => usage.record(answer),
    now: () => new Date(at),
  })
  const url = await serveApp(
    requestContext({ trustProxy: new BlockList(), issuer }),
    problemResponse({ issuer, log }),
    ...(middlewares as Parameters<typeof serveApp>),
  )
  const user = await db
    .transaction()
    .execute((trx) =>
      createUser(trx, systemActor, { email: `alice-${(people += 1)}@example.com`, emailVerified: true }),
    )
  const get = async (path: string, headers: Record<string, string> = {}, method = 'GET') => {
    const answer = await fetch(url + path.replace('{id}', user.id), { method, headers })
    const text = await answer.text()
    return { status: answer.status, headers: answer.headers, body: (text === '' ? {} : JSON.parse(text)) as never }
  }
  return { get, user, usage, db }
}

const before = '2025-01-15T00:00:00Z'

eachDatabase((open) => {
  let database: TestDatabase
  beforeAll(async () => {
    database = await open()
  })

  describe('the path', () => {
    it('decides: each version answers in its own shape, and says which it is', async () => {
      const { get, user } = await serve(database, before)
      const old = await get('/v1/users/{id}')
      expect(old.body).toEqual({ user_id: user.id, email: user.email, is_active: true })
      expect(old.headers.get('api-version')).toBe('1')
      const next = await get('/v2/users/{id}')
      expect(next.body).toEqual({ user_id: user.id, email: user.email, account_status: 'active_verified' })
      expect(next.headers.get('api-version')).toBe('2')
    })

    it('that names no version there is, is nothing', async () => {
      const { get } = await serve(database, before)
      expect((await get('/v3/users/{id}')).status).toBe(404)
    })

    it('and a header that disagree are refused', async () => {
      const { get } = await serve(database, before)
      const { status, body } = await get('/v1/users/{id}', { 'API-Version': '2' })
      expect(status).toBe(400)
      expect(body).toMatchObject({ error: { code: 'VALIDATION_ERROR', details: [{ constraint: 'conflict' }] } })
      expect((await get('/v1/users/{id}', { 'API-Version': '1' })).status).toBe(200)
    })
  })

  describe('without a version in the path', () => {
    it('a header chooses: API-Version, X-API-Version, or the media type', async () => {
      const { get } = await serve(database, before)
      for (const headers of [
        { 'API-Version': '2' },
        { 'X-API-Version': '2' },
        { Accept: 'application/vnd.latchkey.v2+json' },
      ]) {
        const { status, headers: answered, body } = await get('/users/{id}', headers)
        expect([status, answered.get('api-version')]).toEqual([200, '2'])
        expect(body).toHaveProperty('account_status')
        expect(answered.get('vary')).toMatch(/API-Version/)
      }
      const vendor = await get('/users/{id}', { Accept: 'application/vnd.latchkey.v2+json' })
      expect(vendor.headers.get('content-type')).toMatch(/^application\/vnd\.latchkey\.v2\+json/)
    })

    it('the first version is meant when nothing is said', async () => {
      const { get } = await serve(database, before)
      expect((await get('/users/{id}')).body).toHaveProperty('is_active')
    })

    it('two headers that disagree, and a version that there is not, are refused', async () => {
      const { get } = await serve(database, before)
      expect((await get('/users/{id}', { 'API-Version': '1', 'X-API-Version': '2' })).status).toBe(400)
      const { status, body } = await get('/users/{id}', { 'API-Version': '7' })
      expect(status).toBe(400)
      expect(body).toMatchObject({ error: { details: [{ message: 'Value must be one of: 1, 2' }] } })
    })
  })

  describe('the end of a version', () => {
    it('begins with nothing, before it is deprecated', async () => {
      const { get } = await serve(database, before)
      const { headers } = await get('/v1/users/{id}')
      expect([headers.get('deprecation'), headers.get('sunset'), headers.get('link')]).toEqual([null, null, null])
    })

    it('is announced by Deprecation, Sunset and Link, on that version alone', async () => {
      const { get, user } = await serve(database, '2025-03-01T00:00:00Z')
      const { status, headers } = await get('/v1/users/{id}')
      expect(status).toBe(200)
      // RFC 9745 §2.1: an item of type date.
      expect(headers.get('deprecation')).toBe('@1740787200')
      expect(headers.get('sunset')).toBe('Mon, 15 Sep 2025 00:00:00 GMT')
      expect(headers.get('link')).toBe(
        `</v2/users/${user.id}>; rel="successor-version", </docs/v1-to-v2>; rel="deprecation"; type="text/html"`,
      )
      expect((await get('/v2/users/{id}')).headers.get('deprecation')).toBeNull()
    })

    it('goes on read-only: reading works, writing is 410 with where to go', async () => {
      const { get } = await serve(database, '2025-06-01T00:00:00Z')
      expect((await get('/v1/users/{id}')).status).toBe(200)
      const { status, body } = await get('/v1/users/{id}', {}, 'PUT')
      expect(status).toBe(410)
      expect(body).toMatchObject({
        error: { code: 'GONE', shutdown_date: '2025-09-15', migration_guide: '/docs/v1-to-v2' },
      })
    })

    it('is 410 for everything: when, how to move, and whom to ask', async () => {
      const { get } = await serve(database, '2025-09-15T00:00:00Z')
      for (const path of ['/v1/users/{id}', '/v1/users', '/users/{id}']) {
        const { status, body, headers } = await get(path)
        expect([path, status]).toEqual([path, 410])
        expect(body).toMatchObject({
          error: {
            message: 'API v1 has been retired',
            shutdown_date: '2025-09-15',
            migration_guide: '/docs/v1-to-v2',
            support: 'api-support@example.com',
          },
        })
        expect(headers.get('api-version')).toBe('1')
        expect(headers.get('link')).toContain('rel="successor-version"')
      }
      expect((await get('/v2/users/{id}')).status).toBe(200)
    })

    it('shows who still calls it: version, client, program, errors', async () => {
      const { get, usage, db } = await serve(await open(), before)
      for (let i = 0; i < 3; i += 1) {
        await get('/v1/users/{id}', { 'x-client': 'batch-job-1', 'User-Agent': 'batch-processor/1.5 (Linux)' })
      }
      await get('/v1/users/usr_nobody', { 'x-client': 'batch-job-1', 'User-Agent': 'batch-processor/1.5 (Linux)' })
      await get('/v2/users/{id}', { 'x-client': 'web', 'User-Agent': 'web-app/2.3' })
      await usage.close()
      const today = new Date().toISOString().slice(0, 10)
      const { versions, callers } = await summarizeUsage(db, { from: today, to: today })
      expect(versions).toMatchObject([
        { version: '1', requests: 4, errors: 1, share_percent: 80 },
        { version: '2', requests: 1, errors: 0, share_percent: 20 },
      ])
      expect(callers).toMatchObject([
        { version: '1', client_id: 'batch-job-1', user_agent: 'batch-processor/1.5', requests: 4, errors: 1 },
        { version: '2', client_id: 'web', user_agent: 'web-app/2.3', requests: 1 },
      ])
    })
  })

  it('an operation can end before its version does', async () => {
    const { log } = openTestLog()
    const ending = {
      ...getUserV1,
      lifecycle: {
        deprecatedAt: new Date('2025-01-01T00:00:00Z'),
        goneAt: new Date('2025-02-01T00:00:00Z'),
        successor: '/v1/people',
        migrationGuide: '/docs/people',
      },
    }
    const statuses = []
    for (const at of ['2025-01-15T00:00:00Z', '2025-02-01T00:00:00Z']) {
      const middlewares = apiMiddlewares({
        db: database.db,
        endpoints: [ending],
        versions: [{ version: '1' }],
        authenticate: () => Promise.reject(new Error('not asked once it is gone')),
        idempotency: noKeys,
        now: () => new Date(at),
      })
      const url = await serveApp(
        requestContext({ trustProxy: new BlockList(), issuer }),
        problemResponse({ issuer, log }),
        ...(middlewares as Parameters<typeof serveApp>),
      )
      const answer = await fetch(`${url}/v1/users/usr_1`)
      statuses.push([answer.status, answer.headers.get('deprecation') ?? answer.headers.get('link')])
    }
    expect(statuses).toEqual([
      [500, '@1735689600'],
      [410, '</v1/people>; rel="successor-version", </docs/people>; rel="deprecation"; type="text/html"'],
    ])
  })
})
