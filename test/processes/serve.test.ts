import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it, vi } from 'vitest'
import { createDatabase, hasPostgres, type DatabaseLocation } from '../support/databases.ts'
import { runStatement } from '../support/postgres.ts'
import { startServer, type ServerProcess } from '../support/server-process.ts'

// A whole server is started more than once in most of these.
vi.setConfig({ testTimeout: 120_000 })

interface Demo {
  readonly clients: {
    readonly service: { readonly client_id: string; readonly client_secret: string; readonly scope: string }
  }
  readonly user: { readonly email: string; readonly password: string }
}

/** Cheap hashes: what is tested here is not how long they take. */
const environment = { LATCHKEY_PASSWORD_MEMORY_KIB: '19456', LATCHKEY_PASSWORD_TIME_COST: '2' }

function readDemo(database: DatabaseLocation): Demo {
  return JSON.parse(readFileSync(join(database.dataDir, 'demo.json'), 'utf8')) as Demo
}

async function getServiceToken(server: ServerProcess, { clients: { service } }: Demo): Promise<Response> {
  return fetch(`${server.url}/token`, {
    method: 'POST',
    headers: { Authorization: `Basic ${btoa(`${service.client_id}:${service.client_secret}`)}` },
    body: new URLSearchParams({ grant_type: 'client_credentials', scope: service.scope }),
  })
}

const logLines = (server: ServerProcess) =>
  server
    .stdout()
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as Record<string, unknown>)

for (const engine of ['pglite', 'postgres'] as const) {
  describe.runIf(engine === 'pglite' || hasPostgres())(`latchkey serve on ${engine}`, () => {
    it('answers with the headers and bodies that every answer has, and stops with 0', async () => {
      const server = await startServer({ database: await createDatabase(engine), environment })
      const health = await fetch(`${server.url}/health`, { headers: { 'X-Request-Id': 'r-1' } })
      expect([health.status, await health.json()]).toEqual([200, { status: 'healthy' }])
      expect(health.headers.get('x-request-id')).toBe('r-1')
      expect(health.headers.get('x-content-type-options')).toBe('nosniff')

      const nothing = await fetch(`${server.url}/nothing/here?token=hunter2`)
      expect(nothing.status).toBe(404)
      expect(await nothing.json()).toMatchObject({ error: { code: 'RESOURCE_NOT_FOUND' }, instance: '/nothing/here' })
      const page = await fetch(`${server.url}/nothing/here`, { headers: { Accept: 'text/html' } })
      expect(await page.text()).toMatch(/<!doctype html>/i)
      expect((await fetch(`${server.url}/token`)).status).toBe(405)

      expect(await server.stop('SIGTERM')).toEqual({ code: 0, signal: null })
    })

    it('serves the same data again after kill -9', async () => {
      const database = await createDatabase(engine)
      const first = await startServer({ database, environment })
      const demo = readDemo(database)
      expect((await getServiceToken(first, demo)).status).toBe(200)
      expect(await first.stop('SIGKILL')).toEqual({ code: null, signal: 'SIGKILL' })
      const second = await startServer({ database, environment, port: first.port })
      expect((await getServiceToken(second, demo)).status).toBe(200)
    })

    it('logs one line for each request, and no secret in any', async () => {
      const database = await createDatabase(engine)
      const server = await startServer({ database, environment: { ...environment, LOG_LEVEL: 'trace' } })
      const demo = readDemo(database)
      const { service } = demo.clients
      const answer = await getServiceToken(server, demo)
      const { access_token: token = '' } = (await answer.json()) as { access_token?: string }
      expect(token).not.toBe('')
      await fetch(`${server.url}/userinfo?access_token=${token}`, { headers: { Authorization: `Bearer ${token}` } })
      await fetch(`${server.url}/token`, {
        method: 'POST',
        body: new URLSearchParams({ client_secret: service.client_secret }),
      })
      await fetch(`${server.url}/authorize?login_hint=${demo.user.email}&state=hunter2`, { redirect: 'manual' })
      await server.stop('SIGTERM')

      const requests = logLines(server).filter(
        ({ message, endpoint }) => message === 'request' && endpoint !== 'GET /health/ready',
      )
      expect(requests.map(({ endpoint, status_code: status }) => [endpoint, status])).toEqual([
        ['POST /token', 200],
        ['GET /userinfo', expect.any(Number)],
        ['POST /token', expect.any(Number)],
        ['GET /authorize', expect.any(Number)],
      ])
      expect(requests[0]).toMatchObject({ client_id: service.client_id })
      // Development prints the demo's secrets once, for people, beside the log: standard output holds nothing but JSON.
      const logged = server.stdout()
      expect(logLines(server)).toHaveLength(logged.trimEnd().split('\n').length)
      for (const secret of [
        token,
        token.split('.')[2] ?? token,
        service.client_secret,
        demo.user.email,
        demo.user.password,
        'hunter2',
      ]) {
        expect(logged).not.toContain(secret)
      }
    })
  })
}

it('a second process on the embedded database’s folder says what to do, and the first is unharmed', async () => {
  const database = await createDatabase('pglite')
  const first = await startServer({ database, environment })
  const second = await startServer({ database, environment, waitUntilReady: false })
  expect(await second.ended).toEqual({ code: 1, signal: null })
  expect(second.stderr() + second.stdout()).toContain('Another Latchkey process is using the data folder')
  expect((await getServiceToken(first, readDemo(database))).status).toBe(200)
})

it.runIf(hasPostgres())('two workers serve one port, and one that is killed is replaced', async () => {
  const database = await createDatabase('postgres')
  const server = await startServer({ database, environment: { ...environment, LATCHKEY_WORKERS: '2' } })
  const demo = readDemo(database)
  const ready = () => logLines(server).filter(({ message }) => message === 'a worker is ready')
  await expect.poll(() => ready().length, { timeout: 30_000 }).toBe(2)
  process.kill(Number(ready()[0]?.['worker_pid']), 'SIGKILL')
  await expect.poll(() => server.stdout()).toContain('a worker died')
  const answers = await Promise.all(Array.from({ length: 20 }, () => getServiceToken(server, demo)))
  expect(answers.map(({ status }) => status)).toEqual(Array.from({ length: 20 }, () => 200))
  await expect.poll(() => ready().length, { timeout: 30_000 }).toBe(3)
  expect(await server.stop('SIGTERM')).toEqual({ code: 0, signal: null })
})

it.runIf(hasPostgres())('workers that cannot serve end, and say why', async () => {
  const database = await createDatabase('postgres')
  await runStatement(database.databaseUrl ?? '', 'DROP SCHEMA public CASCADE')
  await runStatement(database.databaseUrl ?? '', 'CREATE SCHEMA public')
  const server = await startServer({
    database,
    environment: {
      ...environment,
      NODE_ENV: 'production',
      LATCHKEY_WORKERS: '2',
      LATCHKEY_ISSUER: 'https://id.example.test',
      LATCHKEY_KEY_ENCRYPTION_KEY: Buffer.alloc(32, 7).toString('base64'),
    },
    waitUntilReady: false,
  })
  expect((await server.ended).code).toBe(1)
  expect(server.stderr()).toContain('run `latchkey migrate` first')
})

it('workers on the embedded database are refused at once', async () => {
  const server = await startServer({ environment: { LATCHKEY_WORKERS: '2' }, waitUntilReady: false })
  const { code } = await server.ended
  expect(code).not.toBe(0)
  expect(server.stderr()).toContain('LATCHKEY_WORKERS above 1 needs PostgreSQL')
})
