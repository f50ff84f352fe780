import { describe, expect, it } from 'vitest'
import { ConnectionSlots } from '../../../src/guard/outbound/connection-slots.ts'

describe('ConnectionSlots', () => {
  it('hands two slots that come free in the same moment to two who wait, not both to one', async () => {
    const slots = new ConnectionSlots({ connections: 2, maxWaiting: 2, maxWaitMs: 200 })
    await slots.take('host', 1000, undefined)
    await slots.take('host', 1000, undefined)
    const order: string[] = []
    const first = slots.take('host', 1000, undefined).then(() => order.push('first'))
    const second = slots.take('host', 1000, undefined).then(() => order.push('second'))
    slots.release()
    slots.release()
    await Promise.all([first, second])
    expect(order).toEqual(['first', 'second'])
    expect([slots.taken, slots.waiting]).toEqual([2, 0])
    slots.release()
    slots.release()
    expect(slots.taken).toBe(0)
  })

  it('lets nobody wait past the time the call has left', async () => {
    const slots = new ConnectionSlots({ connections: 1, maxWaiting: 1, maxWaitMs: 60_000 })
    await slots.take('host', 1000, undefined)
    const startedAt = performance.now()
    await expect(slots.take('host', 50, undefined)).rejects.toMatchObject({ reason: 'no_connection_free' })
    expect(performance.now() - startedAt).toBeLessThan(5000)
    expect(slots.waiting).toBe(0)
  })
})
