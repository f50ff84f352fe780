import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { connect, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { beforeAll, describe, expect, it, onTestFinished, vi } from 'vitest'
import type { DemoData } from '../../src/demo/demo-data.ts'
import { openMetrics } from '../../src/metering/metrics.ts'
import { pushMethod, Receiver } from '../signals/receiving.ts'
import { createDatabase, hasPostgres, type DatabaseLocation } from '../support/databases.ts'
import { findFreePort } from '../support/ports.ts'
import { startServer, type ServerProcess } from '../support/server-process.ts'
import { obtainTokens, postForm, UserAgent, authorizationRequest } from '../support/user-agent.ts'

vi.setConfig({ testTimeout: 120_000 })

const cheap = { LATCHKEY_PASSWORD_MEMORY_KIB: '19456', LATCHKEY_PASSWORD_TIME_COST: '2' }

async function start(engine: 'pglite' | 'postgres', environment: Record<string, string> = {}) {
  const database = await createDatabase(engine)
  const managementPort = await findFreePort()
  const server = await startServer({
    database,
    environment: { ...cheap, LATCHKEY_MANAGEMENT_PORT: String(managementPort), ...environment },
  })
  return { server, demo: readDemo(database), management: `http://127.0.0.1:${managementPort}` }
}

function readDemo(database: DatabaseLocation): DemoData {
  return JSON.parse(readFileSync(join(database.dataDir, 'demo.json'), 'utf8')) as DemoData
}

async function readMetrics(management: string): Promise<string> {
  const answer = await fetch(`${management}/metrics`)
  expect(answer.status).toBe(200)
  expect(answer.headers.get('content-type')).toBe('text/plain; version=0.0.4; charset=utf-8')
  return answer.text()
}

/** The sum of the samples of a metric that have all of these labels. */
function valueOf(text: string, name: string, labels: Readonly<Record<string, string>> = {}): number {
  return text
    .split('\n')
    .filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `))
    .filter((line) => Object.entries(labels).every(([label, value]) => line.includes(`${label}="${value}"`)))
    .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0)
}

interface Json {
  readonly stream_id: string
}

const workerLines = (server: ServerProcess) =>
  [...server.stdout().matchAll(/"worker_pid":(\d+),"message":"a worker is ready"/g)].map(([, pid]) => Number(pid))

describe('one process', () => {
  let one: Awaited<ReturnType<typeof start>>
  beforeAll(async () => {
    one = await start('pglite')
  })

  it('shows its metrics on the management port, by pattern and never by what was sent', async () => {
    const { server, demo, management } = one
    const agent = new UserAgent()
    const request = authorizationRequest(server.url, demo)
    const page = await agent.open(request.url)
    await agent.submit(page, { login: demo.user.email, password: 'not the password' })
    const tokens = await obtainTokens(server.url, demo, { parameters: { scope: 'openid models:read offline_access' } })
    const { access_token: token = '', refresh_token: refreshToken = '' } = tokens.body
    const refresh = { grant_type: 'refresh_token', refresh_token: refreshToken }
    const [first, again] = [
      await postForm(`${server.url}/token`, demo.clients.web, refresh),
      // The same answer, given again.
      await postForm(`${server.url}/token`, demo.clients.web, refresh),
    ]
    expect([first.status, again.body.refresh_token]).toEqual([200, first.body.refresh_token])
    await postForm(`${server.url}/token`, demo.clients.service, { grant_type: 'client_credentials' })
    await fetch(`${server.url}/v1/users/${demo.user.id}/nothing?access_token=${token}`)
    await fetch(`${server.url}/interaction/hunter2hunter2`)
    await fetch(`${server.url}/hunter2/${token}`, { method: 'DELETE' })
    await fetch(`${server.url}/hunter2`, { method: 'PROPFIND' })

    await expect.poll(async () => valueOf(await readMetrics(management), 'latchkey_http_requests_under_way')).toBe(0)
    const text = await readMetrics(management)
    expect(valueOf(text, 'latchkey_http_requests_total', { method: 'POST', route: '/token', status: '200' })).toBe(4)
    expect(valueOf(text, 'latchkey_http_requests_total', { route: '/interaction/:uid' })).toBeGreaterThan(0)
    expect(valueOf(text, 'latchkey_http_requests_total', { method: 'DELETE', status: '404' })).toBe(1)
    expect(valueOf(text, 'latchkey_http_requests_total', { method: 'other' })).toBe(1)
    expect(
      valueOf(text, 'latchkey_http_request_duration_seconds_count', {
        method: 'POST',
        route: '/token',
        status_class: '2xx',
      }),
    ).toBe(4)
    for (const [grantType, kind, count] of [
      ['authorization_code', 'access_token', 1],
      ['authorization_code', 'id_token', 1],
      ['authorization_code', 'refresh_token', 1],
      ['refresh_token', 'refresh_token', 1],
      ['client_credentials', 'access_token', 1],
    ] as const) {
      const issued = valueOf(text, 'latchkey_tokens_issued_total', { grant_type: grantType, kind })
      expect([grantType, kind, issued]).toEqual([grantType, kind, count])
    }
    expect(valueOf(text, 'latchkey_sign_ins_total', { outcome: 'signed-in' })).toBe(1)
    expect(valueOf(text, 'latchkey_sign_ins_total', { outcome: 'refused' })).toBe(1)
    expect(text).toMatch(/^latchkey_hashing_queue_length 0$/m)
    expect(text).toMatch(/^latchkey_hashing_under_way 0$/m)
    expect(valueOf(text, 'process_cpu_seconds_total')).toBeGreaterThan(0)
    expect(text).toContain('nodejs_eventloop_lag_p99_seconds')

    for (const secret of [
      'hunter2',
      'PROPFIND',
      token,
      token.split('.')[2] ?? token,
      refreshToken,
      demo.user.id,
      demo.user.email,
      demo.clients.web.client_id,
      demo.clients.service.client_id,
    ]) {
      expect(text).not.toContain(secret)
    }
    expect(new Set([...text.matchAll(/route="([^"]*)"/g)].map(([, route]) => route)).size).toBeLessThan(20)
  })

  it('shows what is revoked, how it is told, and whom it has not reached', async () => {
    const { server, demo, management } = one
    const statuses: number[] = [202]
    const listener = createServer((_req, res) => res.writeHead(statuses.shift() ?? 400).end()).listen(0, '127.0.0.1')
    onTestFinished(() => void listener.close())
    await once(listener, 'listening')
    const { port } = listener.address() as AddressInfo
    const receiver = await new Receiver(server.url, demo.clients.models).signIn()
    const polled = await receiver.createStream()
    for (const at of [port, 1]) {
      await receiver.createStream({ delivery: { method: pushMethod, endpoint_url: `http://127.0.0.1:${at}/` } })
    }
    const paused = await receiver.createStream()
    await receiver.request('POST', '/ssf/status', { stream_id: paused, status: 'paused' })

    const revokeOne = async () => {
      const { body } = await postForm(`${server.url}/token`, demo.clients.service, { grant_type: 'client_credentials' })
      await postForm(`${server.url}/revoke`, demo.clients.service, { token: body.access_token ?? '' })
    }
    await revokeOne()
    await revokeOne()
    expect(Object.keys((await receiver.poll(polled)).sets)).toHaveLength(2)

    const value = async (name: string, labels = {}) => valueOf(await readMetrics(management), name, labels)
    expect(await value('latchkey_revocations_total')).toBe(await value('latchkey_revocations_total', { kind: 'token' }))
    expect(await value('latchkey_revocations_total')).toBe(2)
    expect(await value('latchkey_signal_events_delivered_total', { way: 'poll' })).toBe(2)
    const within = { timeout: 20_000 }
    await expect.poll(() => value('latchkey_signal_events_delivered_total', { way: 'push' }), within).toBe(1)
    await expect.poll(() => value('latchkey_signal_push_failures_total', { reason: 'refused' }), within).toBe(1)
    const unreachable = { reason: 'unreachable' }
    await expect.poll(() => value('latchkey_signal_push_failures_total', unreachable), within).toBeGreaterThan(0)
    for (const [status, delivery, count] of [
      ['enabled', 'poll', 1],
      ['enabled', 'push', 2],
      ['paused', 'poll', 1],
      ['disabled', 'push', 0],
    ] as const) {
      const found = await value('latchkey_signal_streams', { status, delivery })
      expect([status, delivery, found]).toEqual([status, delivery, count])
    }
    // The pushes that could not be made wait, and are not acknowledged.
    expect(await value('latchkey_signal_oldest_pending_seconds')).toBeGreaterThan(0)
    for (const { stream_id: id } of (await receiver.request('GET', '/ssf/streams')).body as unknown as Json[]) {
      if (id !== polled) await receiver.request('DELETE', `/ssf/streams?stream_id=${id}`)
    }
    const { sets } = await receiver.poll(polled, { returnImmediately: true })
    await receiver.poll(polled, { returnImmediately: true, ack: Object.keys(sets) })
    await expect.poll(() => readMetrics(management), within).toMatch(/^latchkey_signal_oldest_pending_seconds 0$/m)
    expect(await readMetrics(management)).not.toContain(polled)
  })

  it('tells on the management port how it is, and nothing else; the public port shows no metrics', async () => {
    const { server, management } = one
    for (const path of ['/health', '/health/live', '/health/ready']) {
      expect((await fetch(management + path)).status).toBe(200)
    }
    expect((await fetch(`${server.url}/metrics`)).status).toBe(404)
    expect((await fetch(`${management}/metrics`, { method: 'POST' })).status).toBe(405)
    for (const path of ['/token', '/authorize', '/', '/.well-known/jwks.json']) {
      expect((await fetch(management + path)).status).toBe(404)
    }
  })

  it('does not start when another program has the management port, and says what to do', async () => {
    const { server } = one
    const second = await startServer({
      database: await createDatabase('pglite'),
      environment: { ...cheap, LATCHKEY_MANAGEMENT_PORT: String(server.port) },
      waitUntilReady: false,
    })
    expect(await second.ended).toEqual({ code: 1, signal: null })
    expect(second.stderr()).toContain(`LATCHKEY_MANAGEMENT_PORT=${server.port + 1}`)
  })

  it('stops all the same while somebody is connected to the management port', async () => {
    const { server, management } = one
    const socket = connect(Number(new URL(management).port), '127.0.0.1')
    onTestFinished(() => void socket.destroy())
    socket.on('error', () => socket.destroy())
    await once(socket, 'connect')
    expect(await server.stop('SIGTERM')).toEqual({ code: 0, signal: null })
  })
})

it('a database that does not answer keeps no metrics back, and what it would have said is not shown', async () => {
  const { promise: never } = Promise.withResolvers<never>()
  for (const feed of [() => never, () => Promise.reject(new Error('away'))]) {
    const hashing = () => ({ running: 0, waiting: 0 })
    const metrics = openMetrics({ hashing, pool: undefined, feed, withProcess: false })
    metrics.countRevoked('key', 1)
    const text = await metrics.text()
    expect(text).toMatch(/^latchkey_revocations_total\{kind="key"\} 1$/m)
    expect(text).not.toMatch(/^latchkey_signal_(streams|oldest)/m)
  }
})

it.runIf(hasPostgres())('the primary sums over two workers, and goes on when one hangs or dies', async () => {
  const { server, demo, management } = await start('postgres', { LATCHKEY_WORKERS: '2' })
  await expect.poll(() => workerLines(server).length, { timeout: 30_000 }).toBe(2)
  const countTokens = async () =>
    valueOf(await readMetrics(management), 'latchkey_http_requests_total', { route: '/token', status: '200' })
  const obtain = async (count: number) => {
    const answers = await Promise.all(
      Array.from({ length: count }, () =>
        postForm(
          `${server.url}/token`,
          demo.clients.service,
          { grant_type: 'client_credentials' },
          {
            Connection: 'close',
          },
        ),
      ),
    )
    expect(answers.map(({ status }) => status)).toEqual(answers.map(() => 200))
  }
  await obtain(40)
  expect(await countTokens()).toBe(40)
  // What each of them reads from the one database is no sum.
  await (await new Receiver(server.url, demo.clients.models).signIn()).createStream()
  const streams = async () => valueOf(await readMetrics(management), 'latchkey_signal_streams')
  expect(await streams()).toBe(1)
  const text = await readMetrics(management)
  // Each worker has the one connection that polls, at least.
  expect(valueOf(text, 'latchkey_database_pool_total')).toBeGreaterThanOrEqual(2)
  expect(valueOf(text, 'latchkey_tokens_issued_total', { grant_type: 'client_credentials' })).toBe(41)
  expect((await fetch(`${management}/health/ready`)).status).toBe(200)
  expect((await fetch(`${server.url}/metrics`)).status).toBe(404)

  // One that stands still is waited for, not for long; what it said last counts.
  const [victim = 0] = workerLines(server)
  process.kill(victim, 'SIGSTOP')
  const askedAt = performance.now()
  expect(await countTokens()).toBe(41)
  expect(performance.now() - askedAt).toBeLessThan(6_000)

  process.kill(victim, 'SIGKILL')
  await expect.poll(() => server.stdout()).toContain('a worker died')
  expect(await countTokens()).toBe(41)
  await obtain(5)
  expect(await countTokens()).toBe(46)
  await expect.poll(() => workerLines(server).length, { timeout: 30_000 }).toBe(3)
  await obtain(5)
  expect(await countTokens()).toBe(51)
  expect(await server.stop('SIGTERM')).toEqual({ code: 0, signal: null })
})
