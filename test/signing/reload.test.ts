import { setTimeout as sleep } from 'node:timers/promises'
import { expect, it } from 'vitest'
import type { Changes } from '../../src/database/changes.ts'
import { openReloading } from '../../src/signing/reload.ts'
import { silent } from './rings.ts'

/** Changes that the test itself announces, at the worst of moments. */
function announcer() {
  const listeners = new Set<() => void>()
  const changes: Changes = {
    on(_topic, listener) {
      listeners.add(listener)
      return () => void listeners.delete(listener)
    },
    isFresh: () => true,
    close: async () => undefined,
  }
  return { changes, listeners, announce: () => [...listeners].forEach((listener) => listener()) }
}

/** Reads that take until `finish` is called. */
function slowReads() {
  const waiting: ((error?: Error) => void)[] = []
  let begun = 0
  return {
    count: () => begun,
    load: () =>
      new Promise<void>((resolve, reject) => {
        begun += 1
        waiting.push((error) => (error === undefined ? resolve() : reject(error)))
      }),
    async finish(error?: Error) {
      waiting.shift()?.(error)
      await sleep(5)
    },
  }
}

it('fails when the first read fails, and listens no more', async () => {
  const { changes, listeners } = announcer()
  const reads = slowReads()
  const opening = openReloading({ changes, topic: 'keys', everySeconds: 60, log: silent }, reads.load)
  void reads.finish(new Error('no database'))
  await expect(opening).rejects.toThrow('no database')
  expect(listeners.size).toBe(0)
})

it('reads once more when something changed during a read, the first one too, however often it did', async () => {
  const { changes, announce } = announcer()
  const reads = slowReads()
  const opening = openReloading({ changes, topic: 'keys', everySeconds: 60, log: silent }, reads.load)
  announce()
  announce()
  await reads.finish()
  const { close } = await opening
  expect(reads.count()).toBe(2)
  announce()
  announce()
  await reads.finish()
  expect(reads.count()).toBe(3)
  await reads.finish()
  expect(reads.count()).toBe(3)
  await close()
})

it('that is asked for is over with a read that began after it, and not with the one before', async () => {
  const { changes, announce } = announcer()
  const reads = slowReads()
  const opening = openReloading({ changes, topic: 'keys', everySeconds: 60, log: silent }, reads.load)
  await reads.finish()
  const { reload, close } = await opening
  announce()
  let isOver = false
  const reloading = reload().then(() => (isOver = true))
  await reads.finish()
  expect([reads.count(), isOver]).toEqual([3, false])
  await reads.finish()
  await reloading
  await close()
})

it('reads again after a read that failed', async () => {
  const { changes, announce } = announcer()
  const reads = slowReads()
  const opening = openReloading({ changes, topic: 'keys', everySeconds: 60, log: silent }, reads.load)
  await reads.finish()
  const { close } = await opening
  announce()
  await reads.finish(new Error('the database went away'))
  announce()
  expect(reads.count()).toBe(3)
  await reads.finish()
  await close()
})

it('ends when the read under way is over, and begins no other', async () => {
  const { changes, announce } = announcer()
  const reads = slowReads()
  const opening = openReloading({ changes, topic: 'keys', everySeconds: 60, log: silent }, reads.load)
  await reads.finish()
  const { close } = await opening
  announce()
  announce()
  let isClosed = false
  const closing = close().then(() => (isClosed = true))
  await sleep(5)
  expect(isClosed).toBe(false)
  await reads.finish()
  await closing
  announce()
  expect(reads.count()).toBe(2)
})
