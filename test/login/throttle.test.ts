import { randomBytes } from 'node:crypto'
import { beforeAll, describe, expect, it } from 'vitest'
import { sql } from 'kysely'
import type { Db } from '../../src/database/database.ts'
import { networkOf, normalizeAddress } from '../../src/http/request-context.ts'
import { openThrottle, type Attempt, type Throttle } from '../../src/login/throttle.ts'
import { eachDatabase, onPostgres, openLocation } from '../support/databases.ts'

const limits = {
  accountFailuresBurst: 3,
  accountFailuresPerHour: 60,
  networkFailuresBurst: 5,
  networkFailuresPerHour: 60,
}
const device = { id: 'device-of-alice', userId: 'usr_alice' }
const aKey = randomBytes(32)
const open = (db: Db, key = randomBytes(32)): Throttle => openThrottle({ db, key: () => key, config: limits })

/** How many of these attempts are let through. */
async function allowed(throttle: Throttle, attempts: readonly Attempt[]): Promise<number> {
  let count = 0
  for (const attempt of attempts) if ((await throttle.reserve(attempt)).isAllowed) count += 1
  return count
}
const times = <T>(n: number, make: (i: number) => T): T[] => Array.from({ length: n }, (_, i) => make(i))
const fromAnywhere = (login: string) => (i: number) => ({ login, network: `10.0.${i >> 8}.${i & 255}` })

/** As if so much time had passed, for every bucket. */
const age = (db: Db, seconds: number) =>
  sql`UPDATE sign_in_throttle SET updated_at = updated_at - ${seconds} * interval '1 second'`.execute(db)

eachDatabase((openDatabase) => {
  let db: Db
  beforeAll(async () => {
    db = (await openDatabase()).db
  })

  describe('the throttle', () => {
    it('holds off an account that fails from everywhere, whether or not it exists', async () => {
      expect(await allowed(open(db), times(10, fromAnywhere('nobody@example.com')))).toBe(3)
    })

    it('holds off a network that tries everybody', async () => {
      const attempts = times(10, (i) => ({ login: `person${i}@example.com`, network: '192.0.2.7' }))
      expect(await allowed(open(db), attempts)).toBe(5)
    })

    it('counts an account once, however its name is written', async () => {
      const spellings = ['Zoë@example.com', ' zoë@example.com', 'ZOË@EXAMPLE.COM', 'zoë@example.com'.normalize('NFD')]
      expect(
        await allowed(
          open(db),
          spellings.map((login, i) => fromAnywhere(login)(i)),
        ),
      ).toBe(3)
    })

    it('counts a whole IPv6 customer as one network, however the address is written', async () => {
      const attempts = times(10, (i) => ({ login: `six${i}@example.com`, network: `2001:db8:0:7:${i}::${i}` }))
      expect(await allowed(open(db), attempts)).toBe(5)
    })

    it('does not let a network that must wait use up the attempts of an account', async () => {
      const throttle = open(db)
      await allowed(
        throttle,
        times(5, (i) => ({ login: `other${i}@example.com`, network: '192.0.2.8' })),
      )
      expect(
        await allowed(
          throttle,
          times(5, () => ({ login: 'victim@example.com', network: '192.0.2.8' })),
        ),
      ).toBe(0)
      expect(await allowed(throttle, times(5, fromAnywhere('victim@example.com')))).toBe(3)
    })

    it('lets a known device in while strangers hold its account and its network', async () => {
      const throttle = open(db)
      const [login, network] = ['alice@example.com', '192.0.2.9']
      await allowed(throttle, times(20, fromAnywhere(login)))
      await allowed(
        throttle,
        times(20, (i) => ({ login: `x${i}@example.com`, network })),
      )
      expect(await throttle.reserve({ login, network })).toMatchObject({ isAllowed: false })
      expect(await throttle.reserve({ login, network, device })).toMatchObject({ isAllowed: true })
    })

    it('holds off a known device that fails, and nobody else with it', async () => {
      const throttle = open(db)
      const [login, network] = ['alice@example.com', '192.0.2.10']
      expect(
        await allowed(
          throttle,
          times(10, () => ({ login, network, device })),
        ),
      ).toBe(3)
      expect(await throttle.reserve({ login, network, device })).toMatchObject({ isAllowed: false, bucket: 'device' })
      expect(
        await allowed(
          throttle,
          times(3, () => ({ login, network })),
        ),
      ).toBe(3)
    })

    it('says when the next attempt is, and keeps to it', async () => {
      const throttle = open(db)
      const attempt = { login: 'patient@example.com', network: '192.0.2.11' }
      await allowed(
        throttle,
        times(3, () => attempt),
      )
      const refusal = await throttle.reserve(attempt)
      // Sixty an hour: one a minute.
      expect(refusal).toMatchObject({ isAllowed: false, bucket: 'account' })
      const wait = refusal.isAllowed ? 0 : refusal.retryAfterSeconds
      expect(wait).toBeGreaterThan(50)
      expect(wait).toBeLessThanOrEqual(60)
      await age(db, wait - 20)
      expect(await throttle.reserve(attempt)).toMatchObject({ isAllowed: false })
      await age(db, 20)
      expect(await throttle.reserve(attempt)).toMatchObject({ isAllowed: true })
      expect(await throttle.reserve(attempt)).toMatchObject({ isAllowed: false })
    })

    it('never fills beyond the burst, however long nobody tried', async () => {
      const throttle = open(db)
      await allowed(throttle, times(3, fromAnywhere('rare@example.com')))
      await age(db, 30 * 86_400)
      expect(await allowed(throttle, times(10, fromAnywhere('rare@example.com')))).toBe(3)
    })

    it('gives back what was reserved for the right person, and not more', async () => {
      const throttle = open(db)
      for (const attempt of times(20, () => ({ login: 'busy@example.com', network: '192.0.2.12' }))) {
        const reservation = await throttle.reserve(attempt)
        expect(reservation.isAllowed).toBe(true)
        if (reservation.isAllowed) await reservation.refund()
      }
      const first = await throttle.reserve(fromAnywhere('busy@example.com')(1))
      expect(await allowed(throttle, times(10, fromAnywhere('busy@example.com')))).toBe(2)
      if (first.isAllowed) await first.refund()
      expect(await allowed(throttle, times(10, fromAnywhere('busy@example.com')))).toBe(1)
    })

    it('neither gives nor takes attempts when the clock goes back', async () => {
      const throttle = open(db)
      await allowed(throttle, times(1, fromAnywhere('clock@example.com')))
      await age(db, -3_600)
      expect(await allowed(throttle, times(10, fromAnywhere('clock@example.com')))).toBe(2)
    })

    it('keeps neither names nor addresses, and hashes them under its key', async () => {
      await db.deleteFrom('sign_in_throttle').execute()
      const attempt = { login: 'alice@example.com', network: '192.0.2.14' }
      const key = randomBytes(32)
      await allowed(open(db, key), [attempt])
      await allowed(open(db, key), [attempt])
      const rows = await db.selectFrom('sign_in_throttle').select('key').execute()
      expect(rows).toHaveLength(2)
      expect(JSON.stringify(rows)).not.toMatch(/alice|192\.0|example/)
      await allowed(open(db), [attempt])
      expect(await db.selectFrom('sign_in_throttle').select('key').execute()).toHaveLength(4)
    })

    it('takes whatever a stranger sends as name and address', async () => {
      const throttle = open(db)
      for (const login of ['', '\0', '\ud83d', "'; DROP TABLE users; --", 'x'.repeat(5_000_000)]) {
        for (const network of ['', '::', 'not an address', '999.1.1.1', '%', '[::1]']) {
          expect(await throttle.reserve({ login, network })).toHaveProperty('isAllowed')
        }
      }
    })
  })
})

onPostgres((openDatabase) => {
  it('lets exactly the burst through of 50 attempts at once, over two pools of connections as two processes have', async () => {
    const database = await openDatabase()
    const other = await openLocation(database.location)
    try {
      const key = randomBytes(32)
      const throttles = [open(database.db, key), open(other.db, key)] as const
      const attempts = times(50, fromAnywhere('alice@example.com'))
      const results = await Promise.all(attempts.map((attempt, i) => throttles[i % 2 === 0 ? 0 : 1].reserve(attempt)))
      expect(results.filter((result) => result.isAllowed)).toHaveLength(3)
    } finally {
      await other.close()
    }
  })

  it('counts refunds beside attempts without losing one', async () => {
    const { db } = await openDatabase()
    const throttle = openThrottle({
      db,
      key: () => aKey,
      config: { ...limits, accountFailuresBurst: 100, accountFailuresPerHour: 1, networkFailuresBurst: 1_000 },
    })
    const attempts = times(60, fromAnywhere('alice@example.com'))
    await Promise.all(
      attempts.map(async (attempt, i) => {
        const reservation = await throttle.reserve(attempt)
        if (i % 2 === 0 && reservation.isAllowed) await reservation.refund()
      }),
    )
    expect(await allowed(throttle, times(80, fromAnywhere('alice@example.com')))).toBe(70)
  })
})

describe('a network', () => {
  it.each([
    ['192.0.2.1', '192.0.2.1'],
    ['::ffff:192.0.2.1', '192.0.2.1'],
    ['::FFFF:c000:0201', '192.0.2.1'],
    ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2::/64'],
    ['2001:0DB8:0001:0002::', '2001:db8:1:2::/64'],
    ['2001:db8::1', '2001:db8:0:0::/64'],
    ['::1', '0:0:0:0::/64'],
    ['fe80::1%eth0', 'fe80:0:0:0::/64'],
    ['::ffff:0:192.0.2.1', '0:0:0:0::/64'],
    // The connection is gone already: all of those are one.
    ['', ''],
  ])('of %s is %s', (address, network) => {
    expect(networkOf(normalizeAddress(address))).toBe(network)
  })
})
