/** What a flood of distinct callers costs a process, as many as an IPv6 /48 has networks and more. */
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { expect, it, onTestFinished } from 'vitest'
import { openRateLimiter } from '../../src/http/rate-limit.ts'
import { onPostgres } from '../support/databases.ts'

onPostgres((open) => {
  it('100,000 networks, each asking once, are held within the memory of 10,000', { timeout: 600_000 }, async () => {
    const { db } = await open()
    const limiter = openRateLimiter({ db })
    onTestFinished(() => limiter.close())
    const rate = { ratePerSecond: 100, burst: 1_000 }
    const flood = async (from: number, to: number) => {
      for (let n = from; n < to; n += 200) {
        const keys = Array.from({ length: 200 }, (_, i) => `network:2001:db8:${(n + i).toString(16)}::/64`)
        await Promise.all(keys.map((key) => limiter.take(key, rate)))
        expect(limiter.size()).toBeLessThanOrEqual(10_000)
      }
    }
    await flood(0, 20_000)
    const before = heapUsed()
    await flood(20_000, 100_000)
    expect(limiter.size()).toBe(10_000)
    // All of them would be four times that.
    expect(heapUsed() - before).toBeLessThan(8 * 1_024 * 1_024)
  })
})

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc') as () => void

function heapUsed(): number {
  collectGarbage()
  return process.memoryUsage().heapUsed
}
