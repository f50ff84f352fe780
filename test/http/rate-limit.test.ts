/** Token buckets and quotas over several processes: what is let through, what a refusal costs, and what answers say. */
import { BlockList } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import type { Db } from '../../src/database/database.ts'
import { sweep } from '../../src/database/sweep.ts'
import { problemResponse } from '../../src/http/problem-response.ts'
import {
  networkLimit,
  openRateLimiter,
  rateLimitExceeded,
  rateLimitHeaders,
  type RateLimiter,
  type RateLimiterSettings,
  type Verdict,
} from '../../src/http/rate-limit.ts'
import { requestContext } from '../../src/http/request-context.ts'
import { toProblemBody } from '../../src/problems.ts'
import { eachDatabase, onPostgres, openLocation, type TestDatabase } from '../support/databases.ts'
import { openProvider } from '../support/provider.ts'
import { openTestLog, serveApp } from '../support/serve-app.ts'

/** So slow that nothing comes back while a test runs. */
const never = 0.001

function openLimiter(db: Db, settings: Partial<RateLimiterSettings> = {}): RateLimiter {
  const limiter = openRateLimiter({ db, ...settings })
  onTestFinished(() => limiter.close())
  return limiter
}

/** A handle on the same database that counts what goes through it. */
function countStatements(db: Db): { readonly db: Db; readonly count: () => number } {
  let statements = 0
  const counting = db.withPlugin({
    transformQuery: ({ node }) => {
      statements += 1
      return node
    },
    transformResult: ({ result }) => Promise.resolve(result),
  })
  return { db: counting, count: () => statements }
}

async function takeAtOnce(n: number, take: () => Promise<Verdict>): Promise<Verdict[]> {
  return Promise.all(Array.from({ length: n }, take))
}

const allowed = (verdicts: readonly Verdict[]) => verdicts.filter((verdict) => verdict.allowed).length

async function tokensOf(db: Db, key: string): Promise<number | undefined> {
  const row = await db.selectFrom('rate_buckets').select('tokens').where('key', '=', key).executeTakeFirst()
  return row?.tokens
}

/** Ages the row of a quota by a day. */
async function makeYesterdays(db: Db, key: string): Promise<void> {
  await sql`
    UPDATE quota_counters SET starts_at = starts_at - interval '1 day', ends_at = ends_at - interval '1 day'
    WHERE key = ${key}`.execute(db)
}

async function usedOf(db: Db, key: string): Promise<number | undefined> {
  const row = await db.selectFrom('quota_counters').select('used').where('key', '=', key).executeTakeFirst()
  return row?.used
}

eachDatabase((open) => {
  let db: Db
  beforeAll(async () => {
    ;({ db } = await open())
  })

  it('a bucket of ten lets ten of fifteen through that come at once, one after the other too', async () => {
    const limiter = openLimiter(db)
    const rate = { ratePerSecond: never, burst: 10 }
    const verdicts = await takeAtOnce(15, () => limiter.take('at-once', rate))
    expect(allowed(verdicts)).toBe(10)
    expect(verdicts.slice(0, 10).map(({ remaining }) => remaining)).toEqual([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    let admitted = 0
    for (let n = 0; n < 15; n += 1) admitted += (await limiter.take('in-turn', rate)).allowed ? 1 : 0
    expect(admitted).toBe(10)
  })

  it('a larger one is leased, and still lets exactly its burst through', async () => {
    const { db: counting, count } = countStatements(db)
    const limiter = openLimiter(counting)
    const rate = { ratePerSecond: never, burst: 1_000 }
    expect(allowed(await takeAtOnce(1_300, () => limiter.take('large', rate)))).toBe(1_000)
    // Fifty at a time; the last ones said that there is nothing left.
    expect(count()).toBe(20)
  })

  it('a refusal says when to come back, and takes nothing', async () => {
    const { db: counting, count } = countStatements(db)
    const limiter = openLimiter(counting)
    const rate = { ratePerSecond: 0.5, burst: 3 }
    await takeAtOnce(3, () => limiter.take('client:a', rate))
    const refusal = await limiter.take('client:a', rate)
    expect(refusal).toMatchObject({ allowed: false, limit: 3, remaining: 0, windowSeconds: 6, retryAfterSeconds: 2 })
    expect(refusal.resetSeconds).toBe(6)
    expect(refusal.resetAt.getTime() - Date.now()).toBeGreaterThan(5_000)
    const before = { statements: count(), tokens: await tokensOf(db, 'client:a') }
    expect(allowed(await takeAtOnce(1_000, () => limiter.take('client:a', rate)))).toBe(0)
    expect({ statements: count(), tokens: await tokensOf(db, 'client:a') }).toEqual(before)
  })

  it('tokens come back with time, at their rate and no more than the burst', async () => {
    let now = 0
    const limiter = openLimiter(db, { now: () => now })
    // So slow that what the test itself takes does not count.
    const rate = { ratePerSecond: 0.02, burst: 10 }
    await takeAtOnce(10, () => limiter.take('refilled', rate))
    const age = (seconds: number) => {
      now += seconds * 1_000
      return sql`UPDATE rate_buckets SET updated_at = updated_at - make_interval(secs => ${seconds}::integer) WHERE key = 'refilled'`.execute(
        db,
      )
    }
    expect((await limiter.take('refilled', rate)).allowed).toBe(false)
    await age(200)
    expect(allowed(await takeAtOnce(10, () => limiter.take('refilled', rate)))).toBe(4)
    await age(100_000)
    expect(allowed(await takeAtOnce(20, () => limiter.take('refilled', rate)))).toBe(10)
  })

  it('what costs more takes more, and what could never be borne is a mistake', async () => {
    const limiter = openLimiter(db)
    const rate = { ratePerSecond: never, burst: 10 }
    expect(await limiter.take('costly', rate, 4)).toMatchObject({ allowed: true, remaining: 6 })
    expect(await limiter.take('costly', rate, 7)).toMatchObject({ allowed: false, remaining: 6 })
    expect(await limiter.take('costly', rate, 6)).toMatchObject({ allowed: true, remaining: 0 })
    await expect(limiter.take('costly', rate, 11)).rejects.toThrow(RangeError)
  })

  it('what is taken for a request that another limit refuses can be given back', async () => {
    const limiter = openLimiter(db)
    const rate = { ratePerSecond: never, burst: 2 }
    for (let n = 0; n < 5; n += 1) {
      expect((await limiter.take('given-back', rate)).allowed).toBe(true)
      limiter.giveBack('given-back')
    }
    expect(allowed(await takeAtOnce(5, () => limiter.take('given-back', rate)))).toBe(2)
  })

  it('what was leased and not used goes back when the process ends', async () => {
    const first = openRateLimiter({ db })
    const [rate, quota] = [{ ratePerSecond: never, burst: 200 }, { limit: 200, period: 'DAY' } as const]
    await takeAtOnce(3, () => first.take('left', rate))
    await takeAtOnce(3, () => first.takeQuota('left', quota))
    expect([await tokensOf(db, 'left'), await usedOf(db, 'left')]).toEqual([190, 10])
    await first.close()
    expect([await tokensOf(db, 'left'), await usedOf(db, 'left')]).toEqual([197, 3])
    const second = openLimiter(db)
    expect(allowed(await takeAtOnce(210, () => second.take('left', rate)))).toBe(197)
    expect(allowed(await takeAtOnce(210, () => second.takeQuota('left', quota)))).toBe(197)
  })

  it('what is left of a lease after a second goes back with the next statement', async () => {
    let now = 0
    const limiter = openLimiter(db, { now: () => now })
    const rate = { ratePerSecond: never, burst: 1_000 }
    await limiter.take('slow', rate)
    expect(await tokensOf(db, 'slow')).toBe(950)
    now += 999
    await limiter.take('slow', rate)
    expect(await tokensOf(db, 'slow')).toBe(950)
    now += 1
    await limiter.take('slow', rate)
    // Two were used before, and fifty are lent again.
    expect(await tokensOf(db, 'slow')).toBeCloseTo(1_000 - 2 - 50, 0)
  })

  it('what a process leaves of a quota is soon there for the others, without anybody asking', async () => {
    const limiter = openLimiter(db)
    await limiter.takeQuota('idle', { limit: 1_000, period: 'DAY' })
    expect(await usedOf(db, 'idle')).toBe(50)
    await expect.poll(() => usedOf(db, 'idle'), { timeout: 5_000, interval: 50 }).toBe(1)
  })

  it('a quota lets so many through in a period, and begins anew at midnight', async () => {
    let now = 0
    const limiter = openLimiter(db, { now: () => now })
    const quota = { limit: 30, period: 'DAY' } as const
    expect(allowed(await takeAtOnce(40, () => limiter.takeQuota('daily', quota)))).toBe(30)
    const refusal = await limiter.takeQuota('daily', quota)
    const midnight = new Date(new Date().setUTCHours(24, 0, 0, 0))
    expect(refusal).toMatchObject({ allowed: false, limit: 30, remaining: 0, windowSeconds: 86_400, resetAt: midnight })
    expect(Math.abs(refusal.retryAfterSeconds - (midnight.getTime() - Date.now()) / 1_000)).toBeLessThan(10)
    expect(await usedOf(db, 'daily')).toBe(30)

    // Yesterday's.
    now += 86_400_000
    await makeYesterdays(db, 'daily')
    expect(await limiter.takeQuota('daily', quota)).toMatchObject({ allowed: true, remaining: 29 })
    expect(allowed(await takeAtOnce(40, () => limiter.takeQuota('daily', quota)))).toBe(29)
  })

  it('what was leased yesterday is nothing today', async () => {
    let now = 0
    const limiter = openLimiter(db, { now: () => now })
    const quota = { limit: 1_000, period: 'DAY' } as const
    await limiter.takeQuota('leased', quota)
    now += 86_400_000
    await makeYesterdays(db, 'leased')
    expect(await limiter.takeQuota('leased', quota)).toMatchObject({ allowed: true, remaining: 999 })
    expect(await usedOf(db, 'leased')).toBe(50)
  })

  it('a week begins on Monday and a month on its first day, in UTC', async () => {
    const limiter = openLimiter(db)
    const week = await limiter.takeQuota('week', { limit: 5, period: 'WEEK' })
    const month = await limiter.takeQuota('month', { limit: 5, period: 'MONTH' })
    expect([week.resetAt.getUTCDay(), week.resetAt.getUTCHours(), week.windowSeconds]).toEqual([1, 0, 7 * 86_400])
    expect([month.resetAt.getUTCDate(), month.resetAt.getUTCHours()]).toEqual([1, 0])
    expect([28, 29, 30, 31].map((days) => days * 86_400)).toContain(month.windowSeconds)
    expect(week.resetAt.getTime()).toBeGreaterThan(Date.now())
    expect(month.resetAt.getTime()).toBeGreaterThan(Date.now())
  })

  it('a plan that is made larger or smaller counts at once, or within a second', async () => {
    let now = 0
    const limiter = openLimiter(db, { now: () => now })
    await takeAtOnce(5, () => limiter.takeQuota('changed', { limit: 5, period: 'DAY' }))
    expect((await limiter.takeQuota('changed', { limit: 5, period: 'DAY' })).allowed).toBe(false)
    now += 1_000
    expect((await limiter.takeQuota('changed', { limit: 7, period: 'DAY' })).allowed).toBe(true)
    expect((await limiter.takeQuota('changed', { limit: 6, period: 'DAY' })).allowed).toBe(false)
  })

  it('full buckets and past quotas are swept, and the others stay', async () => {
    const limiter = openLimiter(db)
    await limiter.take('full-again', { ratePerSecond: 100, burst: 1 })
    await limiter.take('long', { ratePerSecond: never, burst: 1 })
    await limiter.takeQuota('past', { limit: 1, period: 'DAY' })
    await limiter.takeQuota('present', { limit: 1, period: 'DAY' })
    await sql`UPDATE quota_counters SET ends_at = ends_at - interval '1 day' WHERE key = 'past'`.execute(db)
    await sleep(20)
    await sweep(db)
    expect(await tokensOf(db, 'full-again')).toBeUndefined()
    expect(await tokensOf(db, 'long')).toBeCloseTo(0, 0)
    expect([await usedOf(db, 'past'), await usedOf(db, 'present')]).toEqual([undefined, 1])
    expect((await limiter.take('long', { ratePerSecond: never, burst: 1 })).allowed).toBe(false)
  })

  it('a flood of keys is forgotten as it came, and nobody gets more by it', async () => {
    const limiter = openLimiter(db, { maxKeys: 50 })
    const rate = { ratePerSecond: never, burst: 5 }
    await takeAtOnce(3, () => limiter.take('victim', rate))
    await Promise.all(Array.from({ length: 300 }, (_, n) => limiter.take(`flood:${n}`, rate)))
    expect(limiter.size()).toBe(50)
    expect(allowed(await takeAtOnce(10, () => limiter.take('victim', rate)))).toBe(2)
  })

  it('a quota that is forgotten gives back what was leased of it', async () => {
    const limiter = openLimiter(db, { maxKeys: 1 })
    await limiter.takeQuota('forgotten', { limit: 1_000, period: 'DAY' })
    await limiter.takeQuota('another', { limit: 1_000, period: 'DAY' })
    await limiter.close()
    expect([await usedOf(db, 'forgotten'), await usedOf(db, 'another')]).toEqual([1, 1])
  })
})

onPostgres((open) => {
  let database: TestDatabase
  beforeAll(async () => {
    database = await open()
  })

  it('two processes at once let exactly a full bucket through, and exactly a quota', async () => {
    const other = await openLocation(database.location)
    onTestFinished(() => other.close())
    const limiters = [openLimiter(database.db), openLimiter(other.db)]
    const rate = { ratePerSecond: never, burst: 500 }
    const quota = { limit: 500, period: 'MONTH' } as const
    const inTurn = (n: number) => limiters[n % 2] as RateLimiter
    const tokens = await Promise.all(Array.from({ length: 800 }, (_, n) => inTurn(n).take('both', rate)))
    const used = await Promise.all(Array.from({ length: 800 }, (_, n) => inTurn(n).takeQuota('both', quota)))
    expect([allowed(tokens), allowed(used)]).toEqual([500, 500])
  })

  it('under load two processes never let more through than the burst and what came in meanwhile, and hardly less', async () => {
    const other = await openLocation(database.location)
    onTestFinished(() => other.close())
    const limiters = [openLimiter(database.db), openLimiter(other.db)]
    const rate = { ratePerSecond: 100, burst: 200 }
    const lease = 10
    const times: number[] = []
    const startedAt = performance.now()
    const load = async (limiter: RateLimiter) => {
      while (performance.now() - startedAt < 3_000) {
        const { allowed } = await limiter.take('loaded', rate)
        if (allowed) times.push(performance.now())
        await sleep(1)
      }
    }
    await Promise.all(limiters.flatMap((limiter) => Array.from({ length: 20 }, () => load(limiter))))
    const elapsed = (performance.now() - startedAt) / 1_000
    expect(times.length).toBeLessThanOrEqual(200 + 100 * elapsed)
    expect(times.length).toBeGreaterThan(0.9 * (200 + 100 * elapsed))
    // From any moment on: a process is ahead by a lease at most.
    for (let from = 0; from < times.length; from += 7) {
      for (let to = from; to < times.length; to += 7) {
        const seconds = ((times[to] ?? 0) - (times[from] ?? 0)) / 1_000
        expect(to - from + 1).toBeLessThanOrEqual(200 + 100 * seconds + 2 * lease + 1)
      }
    }
  }, 30_000)

  it('a flooder costs a few statements a second, whatever the rate', async () => {
    const { db, count } = countStatements(database.db)
    const limiter = openLimiter(db)
    const rate = { ratePerSecond: 200, burst: 100 }
    const startedAt = performance.now()
    let refused = 0
    while (performance.now() - startedAt < 2_000) {
      const verdicts = await takeAtOnce(200, () => limiter.take('flooder', rate))
      refused += verdicts.length - allowed(verdicts)
      await sleep(1)
    }
    expect(refused).toBeGreaterThan(100)
    // Two hundred a second, five at a time.
    const seconds = (performance.now() - startedAt) / 1_000
    expect(count()).toBeLessThan((seconds * 200) / 5 + 100)
  }, 30_000)

  it('two processes that end at the same time give everything back', async () => {
    const other = await openLocation(database.location)
    onTestFinished(() => other.close())
    const limiters = [openRateLimiter({ db: database.db }), openRateLimiter({ db: other.db })]
    const rate = { ratePerSecond: never, burst: 1_000 }
    const keys = Array.from({ length: 200 }, (_, n) => `key-${(n * 7_919) % 200}`)
    await Promise.all(
      limiters.flatMap((limiter, n) => (n === 0 ? keys : keys.toReversed()).map((key) => limiter.take(key, rate))),
    )
    await Promise.all(limiters.map((limiter) => limiter.close()))
    const { rows } = await sql<{
      tokens: number
    }>`SELECT DISTINCT round(tokens) AS tokens FROM rate_buckets WHERE key LIKE 'key-%'`.execute(database.db)
    expect(rows).toEqual([{ tokens: 998 }])
  })

  it('without the database nobody is let through on trust, but those that hold a lease', async () => {
    const lost = await openLocation(database.location)
    const limiter = openRateLimiter({ db: lost.db })
    await limiter.take('leased', { ratePerSecond: never, burst: 1_000 })
    await lost.close()
    expect((await limiter.take('leased', { ratePerSecond: never, burst: 1_000 })).allowed).toBe(true)
    const waiting = Array.from({ length: 5 }, () => limiter.take('new', { ratePerSecond: 1, burst: 10 }))
    const settled = await Promise.allSettled(waiting)
    expect(settled.map(({ status }) => status)).toEqual(Array.from({ length: 5 }, () => 'rejected'))
    await limiter.close()
  })

  it('buckets are not written to the log, quotas are', async () => {
    const { db } = database
    const { rows } = await sql<{ relname: string; relpersistence: string }>`
      SELECT relname, relpersistence FROM pg_class WHERE relname IN ('rate_buckets', 'quota_counters') ORDER BY relname`.execute(
      db,
    )
    expect(rows).toEqual([
      { relname: 'quota_counters', relpersistence: 'p' },
      { relname: 'rate_buckets', relpersistence: 'u' },
    ])
  })
})

const verdict: Verdict = {
  allowed: true,
  limit: 200,
  remaining: 50,
  resetSeconds: 2,
  retryAfterSeconds: 0,
  windowSeconds: 2,
  resetAt: new Date('2025-01-15T14:00:00.200Z'),
}

describe('what an answer says of its limits', () => {
  it('is nothing where there are none', () => {
    expect(rateLimitHeaders([])).toEqual({})
  })

  it('names each, and the tightest in the older headers', () => {
    const quota = { ...verdict, limit: 10_000, remaining: 7, windowSeconds: 86_400, resetSeconds: 3_600 }
    const headers = rateLimitHeaders([
      { name: 'throttle', verdict },
      { name: 'quota', verdict: { ...quota, resetAt: new Date('2025-01-15T15:00:00Z') } },
    ])
    expect(headers).toEqual({
      RateLimit: '"throttle";r=50;t=2, "quota";r=7;t=3600',
      'RateLimit-Policy': '"throttle";q=200;w=2, "quota";q=10000;w=86400',
      'X-RateLimit-Limit': '10000',
      'X-RateLimit-Remaining': '7',
      'X-RateLimit-Reset': String(Date.UTC(2025, 0, 15, 15) / 1_000),
    })
  })

  it('puts the one that refuses first', () => {
    const refusal = { ...verdict, allowed: false, remaining: 0, limit: 3 }
    const none = { ...verdict, remaining: 0, limit: 9 }
    const headers = rateLimitHeaders([
      { name: 'throttle', verdict: none },
      { name: 'quota', verdict: refusal },
    ])
    expect(headers['X-RateLimit-Limit']).toBe('3')
  })

  it('a refusal has the members of the documented body, to the letter', () => {
    const refusal = {
      ...verdict,
      allowed: false,
      limit: 1_000,
      remaining: 0,
      retryAfterSeconds: 600,
      resetAt: new Date('2025-01-15T14:59:59.600Z'),
    }
    const problem = rateLimitExceeded(refusal)
    const occurrence = { issuer: 'http://localhost:3000', path: '/v1/users', requestId: 'r', at: new Date() }
    expect(problem.status).toBe(429)
    expect(JSON.parse(JSON.stringify(toProblemBody(problem, occurrence).error))).toEqual({
      code: 'RATE_LIMIT_EXCEEDED',
      message: 'API rate limit exceeded',
      limit: 1000,
      remaining: 0,
      reset_at: '2025-01-15T15:00:00Z',
      retry_after: 600,
    })
  })
})

eachDatabase((open, engine) => {
  describe('a network', () => {
    let db: Db
    beforeAll(async () => {
      ;({ db } = await open())
    })
    const trustProxy = new BlockList()
    trustProxy.addAddress('127.0.0.1', 'ipv4')

    async function serve(settings: { rate: number; burst: number }) {
      const { log } = openTestLog()
      const refused: string[] = []
      const limiter = openLimiter(db)
      const url = await serveApp(
        requestContext({ trustProxy, issuer: 'http://localhost:3000' }),
        problemResponse({ issuer: 'http://localhost:3000', log, oauthPaths: ['/token'] }),
        networkLimit(limiter, {
          networkRatePerSecond: settings.rate,
          networkRateBurst: settings.burst,
          appliesTo: (path) => path !== '/health',
          onRefused: (limit) => void refused.push(limit),
        }),
        (ctx) => void (ctx.body = 'ok'),
      )
      const ask = (address: string, path = '/v1/users', method = 'GET') =>
        fetch(url + path, { method, headers: { 'X-Forwarded-For': address } })
      return { ask, refused }
    }

    it('that asks too often is refused in the words of whoever it asked, and its neighbours are not', async () => {
      const { ask, refused } = await serve({ rate: 0.1, burst: 2 })
      expect((await ask('192.0.2.1')).status).toBe(200)
      expect((await ask('192.0.2.1')).status).toBe(200)
      const refusal = await ask('192.0.2.1')
      expect(refusal.status).toBe(429)
      expect(refusal.headers.get('retry-after')).toBe('10')
      expect(refusal.headers.get('ratelimit-policy')).toBe('"network";q=2;w=20')
      expect(refusal.headers.get('ratelimit')).toMatch(/^"network";r=0;t=(19|20)$/)
      expect(refusal.headers.get('x-ratelimit-limit')).toBe('2')
      expect(refusal.headers.get('x-ratelimit-remaining')).toBe('0')
      expect(Math.abs(Number(refusal.headers.get('x-ratelimit-reset')) - Date.now() / 1_000 - 20)).toBeLessThan(3)
      const { error } = (await refusal.json()) as { error: Record<string, unknown> }
      expect(error).toMatchObject({ code: 'RATE_LIMIT_EXCEEDED', limit: 2, remaining: 0, retry_after: 10 })
      expect(error['reset_at']).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/)
      const oauth = await ask('192.0.2.1', '/token', 'POST')
      expect([oauth.status, await oauth.json()]).toEqual([
        429,
        { error: 'temporarily_unavailable', error_description: 'Too many requests' },
      ])
      expect(refused).toEqual(['network', 'network'])
      expect((await ask('192.0.2.2')).status).toBe(200)
      expect((await ask('192.0.2.1', '/health')).status).toBe(200)
    })

    it('is counted for whatever it asks of the API, whether there is such a thing or not', async () => {
      const environment = { LATCHKEY_NETWORK_RATE_PER_SECOND: '1', LATCHKEY_NETWORK_RATE_BURST: '5' }
      const { issuer, metrics } = await openProvider(engine, { environment })
      const ask = (path: string, options: RequestInit = {}) => fetch(issuer + path, options)
      const asked: readonly (readonly [string, RequestInit])[] = [
        ['/v1/nothing', {}],
        ['/v1', {}],
        ['/users/usr_1/nothing', {}],
        ['/v1/usage', { method: 'POST' }],
        ['/v1/users', { headers: { Accept: 'image/png' } }],
        ['/v1/users', { headers: { 'API-Version': '2' } }],
      ]
      let count = 0
      for (const [path, options] of asked) {
        const answers = await Promise.all(Array.from({ length: 30 }, () => ask(path, options)))
        const refused = answers.filter(({ status }) => status === 429)
        count += refused.length
        expect([path, refused.length > 0, refused[0]?.headers.get('api-version')]).toEqual([path, true, '1'])
      }
      const total = async () => /^latchkey_rate_limited_total\{limit="network"\} (\d+)$/m.exec(await metrics())?.[1]
      expect(await total()).toBe(String(count))
      await expect.poll(async () => (await ask('/token', { method: 'POST' })).status, { timeout: 30_000 }).toBe(429)
      expect(await total()).toBe(String(count + 1))
      const headers = { Origin: 'https://app.example', 'Access-Control-Request-Method': 'GET' }
      const preflights = Array.from({ length: 30 }, () => ask('/v1/users', { method: 'OPTIONS', headers }))
      expect(new Set((await Promise.all(preflights)).map(({ status }) => status))).toEqual(new Set([204]))
    })

    it('is a /64 in IPv6: whoever has one address there has them all', async () => {
      const { ask } = await serve({ rate: 0.1, burst: 1 })
      expect((await ask('2001:db8::1')).status).toBe(200)
      expect((await ask('2001:db8::2')).status).toBe(429)
      expect((await ask('2001:db8:0:1::1')).status).toBe(200)
    })

    it('may ask whether it may ask, and with 0 as often as it likes, and nothing is written', async () => {
      const limited = await serve({ rate: 0.1, burst: 1 })
      for (let n = 0; n < 3; n += 1) expect((await limited.ask('192.0.2.9', '/token', 'OPTIONS')).status).toBe(200)
      const unlimited = await serve({ rate: 0, burst: 1 })
      for (let n = 0; n < 3; n += 1) expect((await unlimited.ask('192.0.2.9')).status).toBe(200)
      expect(await tokensOf(db, 'network:192.0.2.9')).toBeUndefined()
    })
  })
})
