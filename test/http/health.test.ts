import { BlockList } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it, onTestFinished } from 'vitest'
import { health, type HealthSettings, type Phase } from '../../src/http/health.ts'
import { problemResponse } from '../../src/http/problem-response.ts'
import { requestContext } from '../../src/http/request-context.ts'
import { eachDatabase, hasPostgres, openLocation } from '../support/databases.ts'
import { startPostgres } from '../support/postgres.ts'
import { openTestLog, serveApp } from '../support/serve-app.ts'

const issuer = 'http://localhost:3000'

async function serveHealth(
  settings: HealthSettings,
): Promise<(path: string, method?: string) => Promise<[number, unknown]>> {
  const url = await serveApp(
    requestContext({ trustProxy: new BlockList(), issuer }),
    problemResponse({ issuer, log: openTestLog().log }),
    health(settings),
  )
  return async (path, method = 'GET') => {
    const answer = await fetch(url + path, { method })
    return [answer.status, await answer.json()]
  }
}

const answering = () => Promise.resolve()

describe('health', () => {
  it('is 503 while the process starts and while it drains, and the process is alive all the same', async () => {
    for (const phase of ['starting', 'draining'] as const) {
      const get = await serveHealth({ phase: () => phase, ping: answering })
      expect(await get('/health')).toEqual([503, { status: 'unhealthy' }])
      expect(await get('/health/ready')).toEqual([503, { status: phase }])
      expect(await get('/health/live')).toEqual([200, { status: 'live' }])
    }
  })

  it('asks the database once, however many ask for it', async () => {
    let asked = 0
    const get = await serveHealth({
      phase: (): Phase => 'ready',
      ping: async () => {
        asked += 1
        await sleep(1_500)
      },
    })
    await Promise.all(Array.from({ length: 50 }, () => get('/health/ready')))
    expect(asked).toBe(1)
  })

  it('answers other methods with 405, and other paths not at all', async () => {
    const get = await serveHealth({ phase: (): Phase => 'ready', ping: answering })
    expect(await get('/health', 'POST')).toMatchObject([405, { error: { code: 'METHOD_NOT_ALLOWED' } }])
    expect(await get('/health/constructor')).toMatchObject([404, { error: { code: 'RESOURCE_NOT_FOUND' } }])
    expect(await get('/constructor')).toMatchObject([404, {}])
  })

  it('says which version this is', async () => {
    const get = await serveHealth({ phase: (): Phase => 'ready', ping: answering })
    expect(await get('/version')).toEqual([
      200,
      { name: 'latchkey', version: expect.stringMatching(/^\d+\.\d+\.\d+/) as string },
    ])
  })

  eachDatabase((open) => {
    it('is 200 with the database', async () => {
      const database = await open()
      const get = await serveHealth({ phase: (): Phase => 'ready', ping: (ms) => database.ping(ms) })
      expect(await get('/health')).toEqual([200, { status: 'healthy' }])
      expect(await get('/health/ready')).toEqual([200, { status: 'ready' }])
    })
  })

  it.runIf(hasPostgres())(
    'is 503 within two seconds of losing the database, and 200 again when it is back',
    async () => {
      const postgres = await startPostgres({ durable: false })
      onTestFinished(() => postgres.remove())
      const database = await openLocation({
        engine: 'postgres',
        databaseUrl: postgres.url,
        dataDir: '',
        remove: answering,
      })
      onTestFinished(() => database.close())
      const get = await serveHealth({ phase: (): Phase => 'ready', ping: (ms) => database.ping(ms) })
      expect(await get('/health')).toEqual([200, { status: 'healthy' }])
      await postgres.halt('QUIT')
      const lostAt = performance.now()
      await expect.poll(() => get('/health/ready'), { timeout: 5_000 }).toEqual([503, { status: 'no database' }])
      expect(performance.now() - lostAt).toBeLessThan(2_000)
      expect(await get('/health/live')).toEqual([200, { status: 'live' }])
      await postgres.resume()
      await expect.poll(() => get('/health'), { timeout: 5_000 }).toEqual([200, { status: 'healthy' }])
    },
  )
})
