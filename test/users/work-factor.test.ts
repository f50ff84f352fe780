import { beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import { readConfig } from '../../src/config.ts'
import type { Db } from '../../src/database/database.ts'
import { calibrate } from '../../src/users/calibration.ts'
import { measureOnce } from '../../src/users/password.ts'
import {
  checkWorkFactor,
  defaultWorkFactor,
  readWorkFactor,
  storeWorkFactor,
  WorkFactorError,
  type WorkFactor,
} from '../../src/users/work-factor.ts'
import { eachDatabase } from '../support/databases.ts'

const stored = { memoryKib: 47_104, timeCost: 5, parallelism: 2 }
const config = (environment: Record<string, string> = {}) => readConfig({ NODE_ENV: 'test', ...environment })

eachDatabase((open) => {
  let db: Db
  beforeAll(async () => {
    db = (await open()).db
  })
  beforeEach(async () => {
    await db.deleteFrom('settings').execute()
  })

  it('refuses a stored work factor that nobody can read, instead of falling back to the default', async () => {
    for (const value of [
      { memory_kib: 'much', time_cost: 3, parallelism: 1 },
      { memory_kib: 65_536, time_cost: 3 },
      [],
      null,
      { memory_kib: 65_536, time_cost: 3, parallelism: 1, more: 1 },
    ]) {
      await db
        .insertInto('settings')
        .values({ name: 'password-work-factor', value: JSON.stringify(value) })
        .onConflict((conflict) => conflict.column('name').doUpdateSet({ value: JSON.stringify(value) }))
        .execute()
      await expect(readWorkFactor(db, config())).rejects.toThrow(WorkFactorError)
    }
  })

  it('refuses one below the floor, from the environment and for storing', async () => {
    await expect(readWorkFactor(db, config({ LATCHKEY_PASSWORD_MEMORY_KIB: '1024' }))).rejects.toThrow(/too low/)
    const weak = { memoryKib: 7_168, timeCost: 4, parallelism: 1 }
    await expect(db.transaction().execute((trx) => storeWorkFactor(trx, systemActor, weak))).rejects.toThrow(/too low/)
    expect(await db.selectFrom('settings').selectAll().execute()).toEqual([])
  })

  it('takes the environment before what was stored, and that before the default', async () => {
    expect(await readWorkFactor(db, config())).toEqual(defaultWorkFactor)
    await db.transaction().execute((trx) => storeWorkFactor(trx, systemActor, stored))
    expect(await readWorkFactor(db, config())).toEqual(stored)
    expect(await readWorkFactor(db, config({ LATCHKEY_PASSWORD_TIME_COST: '7' }))).toEqual({ ...stored, timeCost: 7 })
  })

  it('records who stored which, and what it was before', async () => {
    const actor = { type: 'operator', id: 'olga' } as const
    for (const timeCost of [5, 6]) {
      await db.transaction().execute((trx) => storeWorkFactor(trx, actor, { ...stored, timeCost }))
    }
    const rows = await db.selectFrom('audit_events').selectAll().where('actor_id', '=', 'olga').orderBy('id').execute()
    expect(rows).toMatchObject([
      { action: 'setting.changed', actor_id: 'olga', target_id: 'password-work-factor', details: { before: null } },
      { details: { before: { time_cost: 5 }, after: { memory_kib: 47_104, time_cost: 6, parallelism: 2 } } },
    ])
  })
})

describe('the floor', () => {
  it.each([
    [47_104, 1],
    [19_456, 2],
    [12_288, 3],
    [9_216, 4],
    [7_168, 5],
    [65_536, 1],
    [19_456, 9],
  ])('allows %i KiB × %i', (memoryKib, timeCost) => {
    expect(checkWorkFactor({ memoryKib, timeCost, parallelism: 1 })).toMatchObject({ memoryKib, timeCost })
  })

  it.each([
    [47_103, 1],
    [19_455, 2],
    [12_287, 3],
    [9_215, 4],
    [7_167, 50],
  ])('forbids %i KiB × %i', (memoryKib, timeCost) => {
    expect(() => checkWorkFactor({ memoryKib, timeCost, parallelism: 1 })).toThrow(WorkFactorError)
  })
})

describe('calibration', () => {
  /** A host on which one pass over 64 MiB takes so many milliseconds, and every third hash is disturbed. */
  function host(msPerPass: number) {
    let hashes = 0
    return ({ memoryKib, timeCost }: WorkFactor) => {
      hashes += 1
      const quiet = (memoryKib / 65_536) * timeCost * msPerPass
      return Promise.resolve(hashes % 3 === 0 ? quiet * 10 : quiet)
    }
  }

  it.each([
    [10, 19_456, 2, false],
    [60, 19_456, 2, true],
    // Between the floor and one pass over the default memory there is room for more passes over less.
    [90, 19_456, 3, true],
    [100, 65_536, 1, true],
    [199, 65_536, 1, true],
    [250, 65_536, 2, true],
    [399, 65_536, 3, true],
    [400, 65_536, 4, true],
    [5_000, 65_536, 50, true],
    // No dearer one is allowed, however fast the host.
    [1_000_000, 65_536, 128, true],
  ])('for %i ms on a host of 100 ms a pass is %i KiB × %i', async (targetMs, memoryKib, timeCost, isWithinTarget) => {
    const calibration = await calibrate({ targetMs }, host(100))
    expect(calibration).toMatchObject({ chosen: { workFactor: { memoryKib, timeCost } }, isWithinTarget })
    expect(calibration.endedEarly).toBe(false)
    expect(checkWorkFactor(calibration.chosen.workFactor)).toMatchObject({ parallelism: 1 })
  })

  it('shows every measurement, the cheapest first, with the guesses that it leaves an attacker', async () => {
    const { rows } = await calibrate({ targetMs: 250 }, host(100))
    expect(
      rows.map(({ workFactor, msPerHash }) => [workFactor.memoryKib, workFactor.timeCost, Math.round(msPerHash)]),
    ).toEqual([
      [19_456, 2, 59],
      [65_536, 1, 100],
      [65_536, 2, 200],
      [65_536, 3, 300],
      [65_536, 4, 400],
    ])
    for (const { msPerHash, guessesPerDay } of rows) expect(guessesPerDay).toBe(Math.floor(86_400_000 / msPerHash))
  })

  it('stops when its time is over, with something that may be used', async () => {
    const startedAt = performance.now()
    const { chosen, endedEarly } = await calibrate({ targetMs: 1_000_000, maxSeconds: 1 })
    // The hash that is running at the deadline still ends.
    expect(performance.now() - startedAt).toBeLessThan(15_000)
    expect(endedEarly).toBe(true)
    expect(checkWorkFactor(chosen.workFactor)).toEqual(chosen.workFactor)
  })

  it('measures real hashes, of which a dearer one takes longer', async () => {
    const { rows } = await calibrate({ targetMs: 2 * (await measureOnce(defaultWorkFactor)) })
    expect(rows.length).toBeGreaterThan(1)
    expect(rows.at(-1)?.msPerHash).toBeGreaterThan(rows[0]?.msPerHash ?? Infinity)
  })
})
