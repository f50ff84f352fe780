import { once } from 'node:events'
import { BlockList, connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import type Koa from 'koa'
import { describe, expect, it, onTestFinished } from 'vitest'
import { deadline, handlerDeadline, withDeadline } from '../../src/http/deadline.ts'
import { overload } from '../../src/http/overload.ts'
import { problemResponse } from '../../src/http/problem-response.ts'
import { requestContext, type RequestState } from '../../src/http/request-context.ts'
import { onPostgres, openLocation } from '../support/databases.ts'
import { openProvider } from '../support/provider.ts'
import { openTestLog, serveApp } from '../support/serve-app.ts'
import { postForm } from '../support/user-agent.ts'

const issuer = 'http://localhost:3000'

type Handler = Koa.Middleware<RequestState>

async function serve(
  handler: Handler,
  { edgeSeconds = 0.3, handlerSeconds = 10 }: { edgeSeconds?: number; handlerSeconds?: number } = {},
) {
  const log = openTestLog()
  const url = await serveApp(
    requestContext({ trustProxy: new BlockList(), issuer }),
    problemResponse({ issuer, log: log.log, oauthPaths: ['/token'] }),
    deadline({ edgeSeconds, log: log.log }),
    handlerDeadline({ handlerSeconds, log: log.log }),
    handler,
  )
  return { url, log }
}

const never = () => new Promise<never>(() => undefined)

/** Sends text as it is and returns all that comes back until the server closes. */
async function exchange(url: string, text: string): Promise<string> {
  const { port, hostname } = new URL(url)
  const socket = connect(Number(port), hostname)
  onTestFinished(() => void socket.destroy())
  let received = ''
  socket.setEncoding('utf8').on('data', (chunk: string) => (received += chunk))
  socket.write(text)
  await once(socket, 'close')
  return received
}

describe('a handler that never answers', () => {
  it('is 504 at the edge, on a connection that is then closed', async () => {
    const { url } = await serve(never)
    const askedAt = performance.now()
    const answer = await fetch(`${url}/v1/models`)
    expect(performance.now() - askedAt).toBeLessThan(2_000)
    expect(answer.status).toBe(504)
    expect(answer.headers.get('connection')).toBe('close')
    expect(answer.headers.get('retry-after')).toBe('1')
    expect(await answer.json()).toMatchObject({
      status: 504,
      title: 'The answer took too long',
      error: { code: 'GATEWAY_TIMEOUT', retry_after: 1 },
    })
  })

  it('is 504 at its own deadline before that', async () => {
    const { url } = await serve(never, { edgeSeconds: 20, handlerSeconds: 0.2 })
    const answer = await fetch(url)
    expect([answer.status, answer.headers.get('connection')]).toEqual([504, 'keep-alive'])
  })

  it('is an error that its client can read where OAuth is spoken', async () => {
    const { url } = await serve(never)
    const answer = await fetch(`${url}/token`, { method: 'POST' })
    expect([answer.status, await answer.json()]).toEqual([
      504,
      { error: 'temporarily_unavailable', error_description: 'The answer took too long' },
    ])
  })

  it('is told by its signal, and so is one whose caller has left', async () => {
    const reasons: string[] = []
    const { url } = await serve((ctx) => {
      ctx.state.signal.addEventListener('abort', () => reasons.push((ctx.state.signal.reason as Error).name))
      return never()
    })
    await fetch(url)
    await expect.poll(() => reasons).toEqual(['Problem'])
    await fetch(url, { signal: AbortSignal.timeout(50) }).catch(() => undefined)
    await expect.poll(() => reasons).toEqual(['Problem', 'CallerLeft'])
  })
})

describe('an answer that comes too late', () => {
  it('is dropped: it changes nothing and is never written', async () => {
    let wasLate = false
    const { url, log } = await serve(async (ctx) => {
      await sleep(500)
      ctx.status = 200
      ctx.set('X-Late', 'yes')
      ctx.body = 'late'
      wasLate = true
    })
    const received = await exchange(url, 'GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n')
    expect(received.match(/HTTP\/1\.1 /g)).toHaveLength(1)
    expect(received).toMatch(/^HTTP\/1\.1 504 /)
    await expect.poll(() => wasLate).toBe(true)
    await sleep(50)
    expect(received).not.toMatch(/late\b|X-Late/i)
    expect(log.lines()).toEqual([])
  })

  it('is dropped also when the handler is woken up by its signal', async () => {
    const { url, log } = await serve(async (ctx) => {
      const { promise, resolve } = Promise.withResolvers<void>()
      ctx.state.signal.addEventListener('abort', () => resolve())
      await promise
      ctx.status = 200
      ctx.body = 'woken up'
    })
    const answer = await fetch(url)
    expect([answer.status, await answer.text()]).toEqual([504, expect.not.stringContaining('woken') as string])
    expect(log.lines()).toEqual([])
  })

  it('that is a failure is logged', async () => {
    const { url, log } = await serve(async () => {
      await sleep(400)
      throw new Error('a late bug')
    })
    expect((await fetch(url)).status).toBe(504)
    await expect.poll(() => log.text()).toContain('a late bug')
    expect(log.lines()).toMatchObject([{ level: 'WARN', message: 'a request failed after its time was over' }])
  })
})

describe('a caller that is still sending when the time is over', () => {
  it('is told so by 408', async () => {
    const { url } = await serve(async (ctx) => {
      for await (const chunk of ctx.req) void chunk
    })
    const received = await exchange(url, 'POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc')
    expect(received).toMatch(/^HTTP\/1\.1 408 /)
    expect(received).toContain('REQUEST_TIMEOUT')
  })

  it('but not when it is we who do not read', async () => {
    const { url } = await serve(never)
    const answer = await fetch(url, { method: 'POST', body: 'x'.repeat(1_000_000) })
    expect(answer.status).toBe(504)
  })
})

describe('withDeadline', () => {
  it('gives what the work gives in time, and its failure', async () => {
    expect(await withDeadline(1, async () => 'done')).toBe('done')
    await expect(
      withDeadline(1, async () => {
        throw new Error('no')
      }),
    ).rejects.toThrow('no')
  })

  it('ends a route sooner than its handler’s deadline, never later', async () => {
    const { url } = await serve(
      (ctx) => withDeadline(Number(ctx.query['seconds']), never, { signal: ctx.state.signal }),
      { edgeSeconds: 20, handlerSeconds: 0.5 },
    )
    const took = async (seconds: number) => {
      const askedAt = performance.now()
      expect((await fetch(`${url}?seconds=${seconds}`)).status).toBe(504)
      return performance.now() - askedAt
    }
    expect(await took(0.05)).toBeLessThan(400)
    expect(await took(60)).toBeGreaterThan(450)
  })

  it('passes on what aborts the whole request', async () => {
    const whole = new AbortController()
    const seen = withDeadline(
      5,
      (signal) => new Promise((resolve) => signal.addEventListener('abort', () => resolve(signal.reason))),
      { signal: whole.signal },
    )
    whole.abort('gone')
    expect(await seen).toBe('gone')
  })

  it('makes what a call to elsewhere waits for in vain a 504', async () => {
    const silent = await serveApp(never)
    const { url } = await serve(async () => void (await fetch(silent, { signal: AbortSignal.timeout(50) })))
    const answer = await fetch(url)
    expect([answer.status, await answer.json()]).toMatchObject([504, { error: { code: 'GATEWAY_TIMEOUT' } }])
  })
})

describe('more requests than may be under way', () => {
  it('are 503 at once, with Retry-After, and there is room again when one is done', async () => {
    const log = openTestLog()
    const waiting: (() => void)[] = []
    const url = await serveApp(
      requestContext({ trustProxy: new BlockList(), issuer }),
      problemResponse({ issuer, log: log.log }),
      overload(2),
      async (ctx) => {
        if (ctx.path === '/slow') await new Promise<void>((resolve) => waiting.push(resolve))
        ctx.body = 'done'
      },
    )
    const slow = [fetch(`${url}/slow`), fetch(`${url}/slow`)]
    await expect.poll(() => waiting.length).toBe(2)
    const askedAt = performance.now()
    const refused = await fetch(url)
    expect(performance.now() - askedAt).toBeLessThan(500)
    expect([refused.status, refused.headers.get('retry-after')]).toEqual([503, '1'])
    expect(await refused.json()).toMatchObject({ error: { code: 'SERVICE_UNAVAILABLE' } })
    // A flood of refusals is no flood of log lines.
    expect(log.lines()).toEqual([])
    for (const end of waiting) end()
    await Promise.all(slow.map(async (answer) => (await answer).text()))
    await expect.poll(async () => (await fetch(url)).status).toBe(200)
  })

  it('leave health alone', async () => {
    const provider = await openProvider('pglite', { environment: { LATCHKEY_MAX_REQUESTS_UNDER_WAY: '1' } })
    const { port } = new URL(provider.issuer)
    // A form that never ends keeps its request under way.
    const socket = connect(Number(port), '127.0.0.1')
    onTestFinished(() => void socket.destroy())
    socket.write(
      'POST /token HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 9\r\n\r\na=',
    )
    await expect.poll(async () => (await fetch(`${provider.issuer}/.well-known/jwks.json`)).status).toBe(503)
    const token = await postForm(`${provider.issuer}/token`, provider.demo.clients.service, {})
    expect([token.status, token.body.error]).toEqual([503, 'temporarily_unavailable'])
    expect((await fetch(`${provider.issuer}/health`)).status).toBe(200)
    expect((await fetch(`${provider.issuer}/health/ready`)).status).toBe(200)
  })
})

onPostgres((open) => {
  it('a statement that runs too long is 504; a pool without a free connection and a lock in other hands are 503', async () => {
    const database = await open()
    const small = await openLocation(database.location, {
      poolSize: 1,
      connectTimeoutSeconds: 1,
      statementTimeoutSeconds: 2,
      lockTimeoutMs: 300,
    })
    onTestFinished(() => small.close())
    const { url } = await serve(
      async (ctx) => {
        if (ctx.path === '/sleep') await sql`SELECT pg_sleep(30)`.execute(small.db)
        if (ctx.path === '/read') await small.db.selectFrom('users').select('id').execute()
        ctx.body = 'done'
      },
      { edgeSeconds: 20 },
    )
    const ask = async (path: string) => {
      const answer = await fetch(url + path)
      const { error } = (await answer.json()) as { error: { code: string } }
      return [answer.status, error.code, answer.headers.get('retry-after')]
    }
    const sleeping = ask('/sleep')
    await sleep(100)
    // The one connection sleeps for longer than anybody waits for it.
    expect(await ask('/read')).toEqual([503, 'SERVICE_UNAVAILABLE', '2'])
    expect(await sleeping).toEqual([504, 'GATEWAY_TIMEOUT', '1'])

    await database.db.transaction().execute(async (trx) => {
      await sql`LOCK TABLE users IN ACCESS EXCLUSIVE MODE`.execute(trx)
      expect(await ask('/read')).toEqual([503, 'SERVICE_UNAVAILABLE', '2'])
    })
    expect((await fetch(`${url}/read`)).status).toBe(200)
  })

  it('at the token endpoint both are 503, as RFC 6749 writes it', async () => {
    const provider = await openProvider('postgres', {
      environment: {
        LATCHKEY_DATABASE_STATEMENT_TIMEOUT_SECONDS: '1',
        LATCHKEY_DATABASE_LOCK_TIMEOUT_MS: '30000',
      },
    })
    const other = await openLocation(provider.location)
    onTestFinished(() => other.close())
    await other.db.transaction().execute(async (trx) => {
      await sql`LOCK TABLE artifacts IN ACCESS EXCLUSIVE MODE`.execute(trx)
      const { status, body, headers } = await postForm(`${provider.issuer}/token`, provider.demo.clients.web, {
        grant_type: 'refresh_token',
        refresh_token: 'x'.repeat(43),
      })
      expect([status, body.error, headers.get('retry-after')]).toEqual([503, 'temporarily_unavailable', '1'])
    })
  })
})
