import { BlockList } from 'node:net'
import { Router } from '@koa/router'
import Koa from 'koa'
import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { problemResponse, type ProblemResponseSettings } from '../../src/http/problem-response.ts'
import { requestContext, type RequestState } from '../../src/http/request-context.ts'
import { securityHeaders } from '../../src/http/security-headers.ts'
import { parseInput, Problem, problemCatalogue } from '../../src/problems.ts'
import { openTestLog, serveApp } from '../support/serve-app.ts'

const issuer = 'http://localhost:3000'

async function serve(
  handle: Koa.Middleware<RequestState>,
  settings: Partial<ProblemResponseSettings> = {},
): Promise<{ url: string; log: ReturnType<typeof openTestLog> }> {
  const log = openTestLog()
  const url = await serveApp(
    requestContext({ trustProxy: new BlockList(), issuer }),
    securityHeaders({ isProduction: false, issuer }),
    problemResponse({ issuer, log: log.log, ...settings }),
    handle,
  )
  return { url, log }
}

const throwing =
  (error: unknown): Koa.Middleware<RequestState> =>
  () => {
    throw error
  }

describe('an error', () => {
  it('that nobody expected is answered in general words and logged in full', async () => {
    const { url, log } = await serve(throwing(new TypeError('the secret recipe of /etc/latchkey')))
    const answer = await fetch(url, { headers: { 'X-Request-Id': 'r-1' } })
    const body = await answer.text()
    expect(answer.status).toBe(500)
    expect(body).not.toMatch(/secret|TypeError|\bat\b.*:\d+:\d+/)
    expect(JSON.parse(body)).toMatchObject({ error: { code: 'SERVER_ERROR' }, request_id: 'r-1' })
    expect(log.lines()).toMatchObject([
      { level: 'ERROR', error: { type: 'TypeError', message: 'the secret recipe of /etc/latchkey' } },
    ])
    expect(log.text()).toContain('problem-response.test.ts')
  })

  it('that is not even an Error is a 500 too', async () => {
    for (const thrown of ['text', undefined, null, { status: 200 }, { status: 404, message: 'x' }]) {
      const { url } = await serve(throwing(thrown))
      expect((await fetch(url)).status).toBe(500)
    }
  })

  it('of a database that is away is 503 with Retry-After', async () => {
    for (const code of ['ECONNREFUSED', '57P01', '53300', '55P03', '08006']) {
      const { url } = await serve(throwing(Object.assign(new Error('away'), { code })))
      const answer = await fetch(url)
      expect(answer.status).toBe(503)
      expect(Number(answer.headers.get('retry-after'))).toBeGreaterThan(0)
      expect(await answer.json()).toMatchObject({ error: { code: 'SERVICE_UNAVAILABLE' } })
    }
  })

  it('of a full queue is 503 with the queue’s own Retry-After, in whole seconds', async () => {
    const { url } = await serve(throwing(Object.assign(new Error('full'), { retryAfterSeconds: 2.2 })))
    const answer = await fetch(url)
    expect(answer.status).toBe(503)
    expect(answer.headers.get('retry-after')).toBe('3')
  })

  it('of Koa’s own, which is the caller’s doing, keeps its status and loses its text', async () => {
    const { url, log } = await serve((ctx) => ctx.throw(413, 'the limit is 5'))
    const answer = await fetch(url)
    expect(answer.status).toBe(413)
    expect(await answer.json()).toMatchObject({
      error: { code: 'PAYLOAD_TOO_LARGE' },
      detail: problemCatalogue.PAYLOAD_TOO_LARGE.title,
    })
    expect(log.lines()).toEqual([])
  })

  it('after a handler had set headers for its own answer leaves none of them', async () => {
    const { url } = await serve((ctx) => {
      ctx.set({ ETag: '"1"', Location: '/elsewhere', 'Cache-Control': 'public, max-age=3600' })
      ctx.type = 'text/csv'
      throw new Problem('CONFLICT')
    })
    const { headers } = await fetch(url)
    expect(headers.get('etag')).toBeNull()
    expect(headers.get('location')).toBeNull()
    expect(headers.get('cache-control')).toBe('no-store')
    expect(headers.get('content-type')).toBe('application/json; charset=utf-8')
  })
})

describe('a Problem', () => {
  it('is one body for both conventions', async () => {
    const details = [{ field: 'threshold', constraint: 'maximum', message: 'Must be at most 1.0', value: 1.5 }]
    const { url } = await serve(throwing(new Problem('VALIDATION_ERROR', 'One field is wrong.', { details })))
    const before = Date.now()
    const answer = await fetch(`${url}/v1/models?token=secret`, { headers: { 'X-Request-Id': 'r-2' } })
    const { timestamp, ...body } = (await answer.json()) as Record<string, unknown>
    expect(answer.status).toBe(400)
    expect(body).toEqual({
      type: `${issuer}/docs/errors#VALIDATION_ERROR`,
      title: 'The request is not valid',
      status: 400,
      detail: 'One field is wrong.',
      instance: '/v1/models',
      error: { code: 'VALIDATION_ERROR', message: 'One field is wrong.', details },
      request_id: 'r-2',
      documentation: `${issuer}/docs/errors#VALIDATION_ERROR`,
    })
    expect(Math.abs(Date.parse(String(timestamp)) - before)).toBeLessThan(5_000)
  })

  it('carries when to try again, and members of its own', async () => {
    const problem = new Problem('RATE_LIMIT_EXCEEDED', undefined, {
      retryAfterSeconds: 600,
      members: { limit: 1000, remaining: 0 },
    })
    const { url } = await serve(throwing(problem))
    const answer = await fetch(url)
    expect(answer.status).toBe(429)
    expect(answer.headers.get('retry-after')).toBe('600')
    expect(await answer.json()).toMatchObject({ error: { retry_after: 600, limit: 1000, remaining: 0 } })
  })

  it('that asks for authentication says how', async () => {
    const plain = await serve(throwing(new Problem('AUTHENTICATION_ERROR')))
    expect((await fetch(plain.url)).headers.get('www-authenticate')).toBe('Bearer')
    const own = await serve(
      throwing(new Problem('AUTHENTICATION_ERROR', undefined, { headers: { 'WWW-Authenticate': 'DPoP' } })),
    )
    expect((await fetch(own.url)).headers.get('www-authenticate')).toBe('DPoP')
  })

  for (const [accept, type] of Object.entries({
    '*/*': 'application/json; charset=utf-8',
    'application/json': 'application/json; charset=utf-8',
    'application/problem+json': 'application/problem+json',
    'image/png': 'application/json; charset=utf-8',
    '!!!': 'application/json; charset=utf-8',
    'text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8': 'text/html; charset=utf-8',
  })) {
    it(`answers ${accept} with ${type}`, async () => {
      const { url } = await serve(throwing(new Problem('CONFLICT')), {
        renderError: ({ title }) => `<h1>${title}</h1>`,
      })
      const { headers } = await fetch(url, { headers: { Accept: accept } })
      expect(headers.get('content-type')).toBe(type)
      expect(headers.get('vary')).toBe('Accept')
    })
  }

  it('is JSON to a browser too where there are no pages', async () => {
    const { url } = await serve(throwing(new Problem('CONFLICT')))
    expect((await fetch(url, { headers: { Accept: 'text/html' } })).headers.get('content-type')).toContain(
      'application/json',
    )
  })

  it('shows a page what to do, under the policy of pages', async () => {
    const { url } = await serve(throwing(new Problem('FORM_EXPIRED', 'Your sign-in took too long.')), {
      renderError: (shown) => JSON.stringify(shown),
    })
    const answer = await fetch(url, { headers: { Accept: 'text/html', 'X-Request-Id': 'r-3' } })
    expect(await answer.json()).toEqual({
      status: 403,
      title: problemCatalogue.FORM_EXPIRED.title,
      detail: 'Your sign-in took too long.',
      suggestion: problemCatalogue.FORM_EXPIRED.whatToDo,
      requestId: 'r-3',
    })
    expect(answer.headers.get('content-security-policy')).toContain("style-src 'self'")
  })

  it('names every field that a schema refuses, and repeats no value', async () => {
    const schema = z.strictObject({ email: z.email(), tags: z.array(z.number()), age: z.number().max(150) })
    const { url } = await serve(() => {
      parseInput(schema, { email: 'hunter2', tags: [1, 'NaN'], age: 151, surprise: true })
    })
    const body = await (await fetch(url)).text()
    expect(body).not.toContain('hunter2')
    expect(JSON.parse(body)).toMatchObject({
      detail: '4 fields are not valid.',
      error: {
        details: [
          { field: 'email', constraint: 'format' },
          { field: 'tags[1]', constraint: 'type' },
          { field: 'age', constraint: 'maximum' },
          { field: 'surprise', constraint: 'unknown' },
        ],
      },
    })
    const missing = await serve(() => void parseInput(z.object({ email: z.string() }), {}))
    expect(await (await fetch(missing.url)).json()).toMatchObject({
      error: { details: [{ field: 'email', constraint: 'required' }] },
    })
  })
})

describe('a request that nothing answers', () => {
  const router = new Router<RequestState>()
  router.get('/v1/users/:id', (ctx) => void (ctx.body = { id: ctx.params['id'] }))
  router.delete('/v1/users/:id', (ctx) => void (ctx.status = 204))

  async function serveRouter(): Promise<string> {
    const log = openTestLog()
    return serveApp(
      requestContext({ trustProxy: new BlockList(), issuer }),
      problemResponse({ issuer, log: log.log, methods: { '/token': 'POST' } }),
      router.routes() as Koa.Middleware<RequestState>,
      router.allowedMethods() as Koa.Middleware<RequestState>,
    )
  }

  it('is 404, with a body', async () => {
    const answer = await fetch(`${await serveRouter()}/nowhere`)
    expect(answer.status).toBe(404)
    expect(await answer.json()).toMatchObject({ error: { code: 'RESOURCE_NOT_FOUND' }, instance: '/nowhere' })
  })

  it('for its method alone is 405 and says which there are', async () => {
    const url = await serveRouter()
    for (const method of ['PUT', 'PROPFIND']) {
      const answer = await fetch(`${url}/v1/users/7`, { method })
      expect(answer.status).toBe(405)
      expect(answer.headers.get('allow')?.split(', ').sort()).toEqual(['DELETE', 'GET', 'HEAD'])
      expect(await answer.json()).toMatchObject({ error: { code: 'METHOD_NOT_ALLOWED' } })
    }
  })

  it('at a path that only others know is 405 too', async () => {
    const answer = await fetch(`${await serveRouter()}/token`)
    expect(answer.status).toBe(405)
    expect(answer.headers.get('allow')).toBe('POST')
  })

  it('is told from one whose answer has no body', async () => {
    expect((await fetch(`${await serveRouter()}/v1/users/7`, { method: 'DELETE' })).status).toBe(204)
  })
})
