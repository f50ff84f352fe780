import { describe, expect, it } from 'vitest'
import { HashingOverloaded, openHashingGate } from '../../src/users/hashing-gate.ts'

/** Work that ends when it is told to. */
function pending() {
  const { promise, resolve } = Promise.withResolvers<void>()
  let isRunning = false
  return {
    start: () => {
      isRunning = true
      return promise
    },
    end: resolve,
    isRunning: () => isRunning,
  }
}

const tick = () => new Promise((resolve) => setImmediate(resolve))

describe('the gate in front of hashing', () => {
  it('refuses what does not fit in the queue at once, and never begins it', async () => {
    const gate = openHashingGate({ concurrency: 1, queue: 1 })
    const [first, second, third] = [pending(), pending(), pending()]
    const results = [gate.run(first.start), gate.run(second.start)]
    const startedAt = performance.now()
    await expect(gate.run(third.start)).rejects.toThrow(HashingOverloaded)
    expect(performance.now() - startedAt).toBeLessThan(100)
    expect(third.isRunning()).toBe(false)
    expect(gate.stats()).toMatchObject({ running: 1, waiting: 1, refused: 1 })
    first.end()
    second.end()
    await Promise.all(results)
  })

  it('says when to come back: the longer the queue and the hashes, the later', async () => {
    const gate = openHashingGate({ concurrency: 1, queue: 3 })
    await gate.run(() => new Promise((resolve) => setTimeout(resolve, 600)))
    const works = Array.from({ length: 4 }, pending)
    const results = works.map((work) => gate.run(work.start))
    const refusal = await gate.run(pending().start).catch((error: unknown) => error)
    expect(refusal).toMatchObject({ retryAfterSeconds: 3 })
    for (const work of works) work.end()
    await Promise.all(results)
  })

  it('runs as many as it may, and the others in the order of their arrival', async () => {
    const gate = openHashingGate({ concurrency: 2, queue: 8 })
    const works = Array.from({ length: 5 }, pending)
    const results = works.map((work) => gate.run(work.start))
    await tick()
    expect(works.map((work) => work.isRunning())).toEqual([true, true, false, false, false])
    works[1]?.end()
    await tick()
    expect(works.map((work) => work.isRunning())).toEqual([true, true, true, false, false])
    for (const work of works) work.end()
    await Promise.all(results)
    expect(gate.stats()).toMatchObject({ running: 0, waiting: 0, completed: 5, refused: 0 })
  })

  it('is not used up by work that fails', async () => {
    const gate = openHashingGate({ concurrency: 1, queue: 0 })
    for (let i = 0; i < 3; i += 1) {
      await expect(gate.run(() => Promise.reject(new Error('out of memory')))).rejects.toThrow('out of memory')
    }
    expect(await gate.run(() => Promise.resolve('done'))).toBe('done')
  })

  it('measures how long people wait', async () => {
    const gate = openHashingGate({ concurrency: 1, queue: 1 })
    const work = pending()
    const results = [gate.run(work.start), gate.run(() => Promise.resolve())]
    await new Promise((resolve) => setTimeout(resolve, 50))
    work.end()
    await Promise.all(results)
    const { waitedMs, longestWaitMs, recentHashMs } = gate.stats()
    expect(waitedMs).toBeGreaterThan(40)
    expect(longestWaitMs).toBe(waitedMs)
    expect(recentHashMs).toBeGreaterThan(0)
  })
})
