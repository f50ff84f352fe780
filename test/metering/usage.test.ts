import { sql } from 'kysely'
import { beforeAll, beforeEach, describe, expect, it, onTestFinished } from 'vitest'
import type { Db } from '../../src/database/database.ts'
import { sweep } from '../../src/database/sweep.ts'
import { openUsage, summarizeUsage, type Usage, type UsedEndpoint } from '../../src/metering/usage.ts'
import { eachDatabase, onPostgres, openLocation } from '../support/databases.ts'
import { openTestLog } from '../support/serve-app.ts'

const today = () => new Date().toISOString().slice(0, 10)
const ofToday = () => ({ from: today(), to: today() })

function openCounting(db: Db, now?: () => number): Usage {
  const usage = openUsage({ db, log: openTestLog().log, ...(now === undefined ? {} : { now }) })
  onTestFinished(() => usage.close())
  return usage
}

function recordMany(usage: Usage, n: number, used: Partial<UsedEndpoint>): void {
  for (let i = 0; i < n; i += 1) usage.record({ version: 'v1', endpoint: 'GET /v1/users', status: 200, ...used })
}

eachDatabase((open) => {
  let db: Db
  beforeAll(async () => {
    ;({ db } = await open())
  })
  beforeEach(async () => {
    await db.deleteFrom('api_usage').execute()
  })

  describe('who calls what', () => {
    it('is not told for days that are none, and is empty where nobody called', async () => {
      for (const wrong of [
        { from: 'yesterday', to: today() },
        { from: today(), to: '2025-02-30' },
      ]) {
        await expect(summarizeUsage(db, wrong)).rejects.toMatchObject({ code: 'VALIDATION_ERROR' })
      }
      expect(await summarizeUsage(db, ofToday())).toEqual({ versions: [], callers: [] })
    })

    it('is summed for each version with its share, and for each client and program', async () => {
      const usage = openCounting(db)
      recordMany(usage, 35, {
        version: 'v1',
        clientId: 'batch-job-1',
        userAgent: 'batch-processor/1.5 (Python/3.11; Linux)',
      })
      recordMany(usage, 5, { version: 'v1', clientId: 'mobile-app', userAgent: 'mobile-app/1.0', status: 500 })
      recordMany(usage, 5, { version: 'v1', clientId: 'mobile-app', userAgent: 'mobile-app/1.0' })
      recordMany(usage, 3, {
        version: 'v1',
        clientId: 'mobile-app',
        userAgent: 'mobile-app/1.0',
        endpoint: 'GET /v1/keys',
      })
      recordMany(usage, 2, { version: 'v1', status: 401 })
      recordMany(usage, 50, { version: 'v2', clientId: 'web-app', userAgent: 'web-app/2.3' })
      await usage.flush()
      recordMany(usage, 100, { version: 'v2', clientId: 'web-app', userAgent: 'web-app/2.3' })
      await usage.close()

      const { versions, callers } = await summarizeUsage(db, ofToday())
      const last_seen_at = expect.any(Date) as Date
      expect(versions).toEqual([
        { version: 'v1', requests: 50, errors: 7, error_percent: 14, share_percent: 25, last_seen_at },
        { version: 'v2', requests: 150, errors: 0, error_percent: 0, share_percent: 75, last_seen_at },
      ])
      expect(callers).toEqual([
        {
          version: 'v2',
          client_id: 'web-app',
          user_agent: 'web-app/2.3',
          requests: 150,
          errors: 0,
          error_percent: 0,
          share_percent: 100,
          endpoints: ['GET /v1/users'],
          last_seen_at,
        },
        {
          version: 'v1',
          client_id: 'batch-job-1',
          user_agent: 'batch-processor/1.5',
          requests: 35,
          errors: 0,
          error_percent: 0,
          share_percent: 70,
          endpoints: ['GET /v1/users'],
          last_seen_at,
        },
        {
          version: 'v1',
          client_id: 'mobile-app',
          user_agent: 'mobile-app/1.0',
          requests: 13,
          errors: 5,
          error_percent: 38.5,
          share_percent: 26,
          endpoints: ['GET /v1/users', 'GET /v1/keys'],
          last_seen_at,
        },
        {
          version: 'v1',
          client_id: null,
          user_agent: null,
          requests: 2,
          errors: 2,
          error_percent: 100,
          share_percent: 4,
          endpoints: ['GET /v1/users'],
          last_seen_at,
        },
      ])
      // The share is of everything, whichever version was asked about.
      const ofV1 = await summarizeUsage(db, { ...ofToday(), version: 'v1' })
      expect(ofV1.versions).toEqual(versions.slice(0, 1))
      expect(ofV1.callers).toEqual(callers.slice(1))
      expect((await summarizeUsage(db, { from: '2020-01-01', to: '2020-12-31' })).versions).toEqual([])
    })

    it('is written by itself every two seconds', async () => {
      recordMany(openCounting(db), 3, { clientId: 'c' })
      await expect
        .poll(async () => (await summarizeUsage(db, ofToday())).versions[0]?.requests, {
          timeout: 10_000,
          interval: 100,
        })
        .toBe(3)
    })

    it('knows a program by the first word it says of itself, cut to what can be printed', async () => {
      const usage = openCounting(db)
      const said = [
        'booking-service/2.1.0 (Python/3.11; Linux)',
        '  curl/8.0  ',
        'a'.repeat(200),
        '\u0007bell',
        'x\u0000y',
        '',
      ]
      for (const userAgent of said) recordMany(usage, 1, { clientId: 'c', userAgent })
      await usage.flush()
      const { callers } = await summarizeUsage(db, ofToday())
      expect(callers.map(({ user_agent }) => user_agent ?? '').toSorted()).toEqual(
        ['booking-service/2.1.0', 'curl/8.0', 'a'.repeat(64), 'x', ''].toSorted(),
      )
    })

    it('tells so many programs of one client apart, and neither hides another client nor fills the table', async () => {
      let now = Date.now()
      const usage = openCounting(db, () => now)
      for (let n = 0; n < 500; n += 1) {
        recordMany(usage, 1, { clientId: 'inventive', userAgent: `program/${n}` })
        recordMany(usage, 1, { userAgent: `nobody/${n}` })
      }
      recordMany(usage, 7, { clientId: 'plain', userAgent: 'plain/1' })
      await usage.flush()
      const { callers } = await summarizeUsage(db, ofToday())
      expect(callers).toHaveLength(101 + 101 + 1)
      expect(callers.find(({ client_id }) => client_id === 'plain')).toMatchObject({
        user_agent: 'plain/1',
        requests: 7,
      })
      const rest = callers.filter(({ user_agent }) => user_agent === 'other')
      expect(rest.map(({ client_id, requests }) => [client_id, requests])).toEqual([
        ['inventive', 400],
        [null, 400],
      ])
      // Those of a new day are told apart again.
      now += 86_400_000
      recordMany(usage, 1, { clientId: 'inventive', userAgent: 'program/499' })
      await usage.flush()
      const later = await summarizeUsage(db, ofToday())
      expect(later.callers.map(({ user_agent }) => user_agent)).toContain('program/499')
    })

    it('holds at most 10,000 rows apart, and counts the rest together', async () => {
      const usage = openCounting(db)
      for (let n = 0; n < 10_500; n += 1) recordMany(usage, 1, { clientId: `client-${n}` })
      await usage.flush()
      const rows = await db.selectFrom('api_usage').select(['client_id', 'requests']).execute()
      expect(rows).toHaveLength(10_001)
      expect(rows.find(({ client_id }) => client_id === 'other')?.requests).toBe(500)
    })

    it('is kept for 400 days', async () => {
      await sql`
        INSERT INTO api_usage (day, version, client_id, user_agent, endpoint, requests, errors, last_seen_at)
        SELECT current_date - n, 'v1', 'c', '', 'GET /v1/users', 1, 0, now() FROM unnest(ARRAY[398, 402]) AS n`.execute(
        db,
      )
      await sweep(db)
      expect((await db.selectFrom('api_usage').select('requests').execute()).length).toBe(1)
    })
  })
})

onPostgres((open) => {
  it('what two processes count at the same time is added', async () => {
    const database = await open()
    const other = await openLocation(database.location)
    const usages = [openCounting(database.db), openCounting(other.db)]
    for (let round = 0; round < 10; round += 1) {
      for (const [n, usage] of usages.entries()) {
        for (let i = 0; i < 50; i += 1) recordMany(usage, 1, { clientId: `c${n === 0 ? i : 49 - i}` })
      }
      await Promise.all(usages.map((usage) => usage.flush()))
    }
    const { versions } = await summarizeUsage(database.db, ofToday())
    expect(versions[0]?.requests).toBe(1_000)
    for (const usage of usages) await usage.close()
    await other.close()
  })

  it('what could not be written is written later', async () => {
    const database = await open()
    const { log, text } = openTestLog()
    const usage = openUsage({ db: database.db, log })
    recordMany(usage, 3, { clientId: 'c' })
    await sql`ALTER TABLE api_usage RENAME TO away`.execute(database.db)
    await usage.flush()
    expect(text()).toContain('could not be written')
    recordMany(usage, 2, { clientId: 'c', status: 404 })
    await sql`ALTER TABLE away RENAME TO api_usage`.execute(database.db)
    await usage.close()
    expect((await summarizeUsage(database.db, ofToday())).versions[0]).toMatchObject({ requests: 5, errors: 2 })
  })
})
