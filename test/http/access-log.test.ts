import { execFileSync, spawnSync } from 'node:child_process'
import { BlockList } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { Router } from '@koa/router'
import type Koa from 'koa'
import { expect, it } from 'vitest'
import { accessLog } from '../../src/http/access-log.ts'
import { problemResponse } from '../../src/http/problem-response.ts'
import { requestContext, requestLogFields, type RequestState } from '../../src/http/request-context.ts'
import { Problem } from '../../src/problems.ts'
import { openTestLog, serveApp } from '../support/serve-app.ts'

const issuer = 'http://localhost:3000'

async function serve(): Promise<{ url: string; log: ReturnType<typeof openTestLog> }> {
  const log = openTestLog({ fields: requestLogFields })
  const router = new Router<RequestState>()
  router.post('/v1/users/:id', async (ctx) => {
    ctx.state.userId = 'usr_1'
    ctx.state.clientId = 'web'
    log.log.info('in the middle')
    await sleep(30)
    ctx.body = {}
  })
  router.get('/conflict', () => {
    throw new Problem('CONFLICT', 'ada@example.com exists already.')
  })
  router.get('/bug', () => {
    throw new Error('a bug')
  })
  router.get('/never', () => new Promise<void>(() => undefined))
  router.get('/grant', (ctx) => {
    ctx.status = 400
    ctx.body = { error: 'invalid_grant', error_description: 'about ada@example.com' }
  })
  const url = await serveApp(
    requestContext({ trustProxy: new BlockList(), issuer }),
    accessLog(log.log),
    problemResponse({ issuer, log: log.log }),
    router.routes() as Koa.Middleware<RequestState>,
  )
  return { url, log }
}

it('is one line for each request, with the matched pattern and never the path or query', async () => {
  const { url, log } = await serve()
  await fetch(`${url}/v1/users/ada@example.com?token=abc`, { method: 'POST', headers: { 'X-Request-Id': 'r-1' } })
  await expect.poll(() => log.lines().length).toBe(2)
  const [, line] = log.lines()
  expect(line).toEqual({
    level: 'INFO',
    timestamp: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/) as string,
    pid: process.pid,
    request_id: 'r-1',
    trace_id: expect.stringMatching(/^[\da-f]{32}$/) as string,
    user_id: 'usr_1',
    client_id: 'web',
    endpoint: 'POST /v1/users/:id',
    duration_ms: expect.any(Number) as number,
    status_code: 200,
    message: 'request',
  })
  expect(line?.['duration_ms']).toBeGreaterThan(25)
  // By more than what the ids' hexadecimal digits could spell.
  expect(log.text()).not.toMatch(/ada@|example\.com|token/)
})

it('shares its request_id with every other line of the request', async () => {
  const { url, log } = await serve()
  await fetch(`${url}/v1/users/7`, { method: 'POST', headers: { 'X-Request-Id': 'r-2' } })
  await expect.poll(() => log.lines().length).toBe(2)
  expect(log.lines().map((line) => [line['message'], line['request_id']])).toEqual([
    ['in the middle', 'r-2'],
    ['request', 'r-2'],
  ])
})

it('says why a request failed, by code alone', async () => {
  const { url, log } = await serve()
  await fetch(`${url}/conflict`)
  await fetch(`${url}/grant`)
  await fetch(`${url}/nowhere/ada@example.com`)
  await expect.poll(() => log.lines().length).toBe(3)
  expect(log.lines()).toMatchObject([
    {
      status_code: 409,
      endpoint: 'GET /conflict',
      error_message: 'CONFLICT: The request conflicts with what is there',
    },
    { status_code: 400, endpoint: 'GET /grant', error_message: 'invalid_grant' },
    { status_code: 404, endpoint: 'GET (no route)', error_message: 'RESOURCE_NOT_FOUND: There is nothing here' },
  ])
  expect(log.text()).not.toContain('ada@')
})

it('tells a caller who left from one who was answered', async () => {
  const { url, log } = await serve()
  await fetch(`${url}/never`, { signal: AbortSignal.timeout(100) }).catch(() => undefined)
  await expect.poll(() => log.lines()).toMatchObject([{ status_code: 499, endpoint: 'GET /never' }])
})

const hasJq = spawnSync('jq', ['--version']).status === 0

it.runIf(hasJq)('answers the three questions of a log: what failed, what was slow, how often was what', async () => {
  const { url, log } = await serve()
  await fetch(`${url}/bug`)
  await fetch(`${url}/conflict`)
  await fetch(`${url}/conflict`)
  await expect.poll(() => log.lines().filter(({ message }) => message === 'request').length).toBe(3)
  const requests = log
    .text()
    .split('\n')
    .filter((line) => line.includes('"message":"request"'))
  const slow = (requests[1] ?? '').replace(/"duration_ms":[\d.]+/, '"duration_ms":1500')
  const ask = (script: string) =>
    execFileSync('sh', ['-c', script], { input: [requests[0], slow, requests[2], ''].join('\n'), encoding: 'utf8' })
  expect(ask(`jq 'select(.status_code >= 500)'`)).toContain('"endpoint": "GET /bug"')
  expect(ask(`jq 'select(.status_code >= 500)'`)).not.toContain('/conflict')
  expect(ask(`jq 'select(.duration_ms > 1000)'`)).toContain('"duration_ms": 1500')
  expect(ask(`jq '.endpoint' | sort | uniq -c`)).toMatch(/^\s+1 "GET \/bug"\n\s+2 "GET \/conflict"\n$/)
})
