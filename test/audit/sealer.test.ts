import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { pino } from 'pino'
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { writeAudit } from '../../src/audit/audit.ts'
import { hashRow, selectChainable } from '../../src/audit/chain.ts'
import { verifyAuditChain } from '../../src/audit/verify.ts'
import type { Db } from '../../src/database/database.ts'
import { emptiedEachTime, eachDatabase, onPostgres, openLocation, type TestDatabase } from '../support/databases.ts'
import { ada, chainedNames, eventOf, key, otherKey, sealAll, startTestSealing, untilSealed, write } from './chains.ts'

const keys = [key]

/** More than two pages. */
const many = 250

async function writeMany(db: Db, count: number): Promise<void> {
  await sql`
    INSERT INTO audit_events (action, actor_type, actor_id, target_type, target_id)
    SELECT 'role.created', 'operator', 'ada', 'role', 'r' || n FROM generate_series(1, ${count}) AS n`.execute(db)
}

const actions = async (db: Db) =>
  (await db.selectFrom('audit_events').select('action').orderBy('sequence').execute()).map(({ action }) => action)

eachDatabase((openNew) => {
  const open = emptiedEachTime(openNew)
  describe('the hash of a row', () => {
    let database: TestDatabase
    beforeAll(async () => {
      database = await open()
      await sql`
        INSERT INTO audit_events (id, transaction_id, occurred_at, action, actor_type, actor_id, on_behalf_of,
          request_id, target_type, target_id, details)
        OVERRIDING SYSTEM VALUE VALUES (7, '812', '2026-02-03 05:05:06.000007+01', 'user.updated', 'client', 'web',
          'usr_é', NULL, 'user', 'usr_"1"',
          '{"z": 12345678901234567890.10, "z2": "", "a": {"b": [1e2, "𝄞\\u0001", null], "aa": true}}')`.execute(
        database.db,
      )
    })

    const hashIt = async (db: Db) =>
      hashRow(await selectChainable(db).where('id', '=', 7).executeTakeFirstOrThrow(), {
        sequence: 3,
        previousHash: 'ab'.repeat(32),
      })

    it('is that of one text, on both databases', async () => {
      const details = String.raw`{"a": {"b": [100, "𝄞\u0001", null], "aa": true}, "z": 12345678901234567890.10, "z2": ""}`
      const form = [
        '"latchkey-audit-row/1"',
        '"3"',
        `"${'ab'.repeat(32)}"`,
        '"7"',
        '"812"',
        '"1770091506000007"',
        '"user.updated"',
        '"client"',
        '"web"',
        '"usr_é"',
        'null',
        '"user"',
        String.raw`"usr_\"1\""`,
        JSON.stringify(details),
      ]
      const hash = createHash('sha256')
        .update(`[${form.join(',')}]`)
        .digest('hex')
      expect(await hashIt(database.db)).toBe(hash)
    })

    it('depends neither on the session’s settings nor on a round trip through JSON text', async () => {
      const before = await hashIt(database.db)
      await sql`UPDATE audit_events SET details = details::text::json::jsonb`.execute(database.db)
      await database.db.transaction().execute(async (trx) => {
        await sql`SET LOCAL TIME ZONE 'Asia/Kathmandu'`.execute(trx)
        await sql`SET LOCAL DateStyle = 'German'`.execute(trx)
        await sql`SET LOCAL bytea_output = 'escape'`.execute(trx)
        expect(await hashIt(trx)).toBe(before)
      })
    })
  })

  describe('the sealer', () => {
    it('chains what is committed, in the order of the ids, and what comes later after it', async () => {
      const { db } = await open()
      await write(db, 'a')
      await write(db, 'b')
      await sealAll(db)
      await write(db, 'c')
      await sealAll(db)
      expect(await chainedNames(db)).toEqual(['1 a', '2 b', '3 c'])
      expect(await verifyAuditChain(db, { keys })).toMatchObject({ isSound: true, count: 3, head: { sequence: 3 } })
    })

    it('seals nothing of a transaction that comes to nothing', async () => {
      const { db } = await open()
      await write(db, 'a')
      const failing = db.transaction().execute(async (trx) => {
        await writeAudit(trx, ada, eventOf('never'))
        throw new Error('no')
      })
      await expect(failing).rejects.toThrow('no')
      await write(db, 'b')
      await sealAll(db)
      expect(await chainedNames(db)).toEqual(['1 a', '2 b'])
    })

    it('seals page after page, each row once, also what an older version left behind', async () => {
      const { db } = await open()
      await writeMany(db, many)
      await sealAll(db)
      expect(await chainedNames(db)).toEqual(Array.from({ length: many }, (_, i) => `${i + 1} r${i + 1}`))
      expect(await verifyAuditChain(db, { keys })).toMatchObject({ isSound: true, count: many })
    })

    it('stops between two pages when it is told to, and goes on where it stopped', async () => {
      const { db } = await open()
      await writeMany(db, many)
      await startTestSealing(db)()
      const names = await chainedNames(db)
      expect(names.filter((name) => name.startsWith('?')).length).toBeGreaterThan(0)
      await sealAll(db)
      expect(await verifyAuditChain(db, { keys })).toMatchObject({ isSound: true, count: many })
    })

    it('seals within a second by itself', async () => {
      const { db } = await open()
      startTestSealing(db, { everyMs: 500 })
      await sleep(100)
      await write(db, 'a')
      expect(await untilSealed(db)).toBeLessThan(1_000)
    })

    it('tells the log where the chain ended, and once that it cannot seal', async () => {
      const { db } = await open()
      const lines: string[] = []
      const log = pino({ level: 'info' }, { write: (line: string) => void lines.push(line) })
      await write(db, 'a')
      let known: readonly Uint8Array[] = []
      const stop = startTestSealing(db, { log, keys: () => known })
      await sleep(200)
      expect(lines).toEqual([expect.stringContaining('cannot be sealed')])
      known = keys
      await untilSealed(db)
      await stop()
      const verified = await verifyAuditChain(db, { keys })
      if (!verified.isSound) throw new Error(verified.problem.message)
      expect(lines.slice(1)).toEqual([expect.stringContaining(`"audit_head":"1:${verified.head.hash}"`)])
    })
  })

  describe('a head that is not ours', () => {
    let db: Db
    beforeAll(async () => {
      db = (await open()).db
    })

    const forgeries: [string, () => Promise<unknown>][] = [
      ['another hash', () => sql`UPDATE audit_chain SET hash = sha256('x')`.execute(db)],
      ['another sequence', () => sql`UPDATE audit_chain SET sequence = sequence - 1`.execute(db)],
      ['another seal', () => sql`UPDATE audit_chain SET seal = sha256('x')`.execute(db)],
      ['none at all', () => sql`DELETE FROM audit_chain`.execute(db)],
      [
        'the one of an empty record',
        () => sql`UPDATE audit_chain SET sequence = 0, hash = decode(repeat('00', 32), 'hex'), seal = NULL`.execute(db),
      ],
      [
        'a row beyond it',
        () =>
          sql`
            UPDATE audit_events SET sequence = (SELECT sequence + 1 FROM audit_chain)
            WHERE sequence IS NULL`.execute(db),
      ],
    ]
    it.each(forgeries)('is not taken over, and the chain says so from then on: %s', async (_what, forge) => {
      await write(db, 'a')
      await write(db, 'b')
      await sealAll(db)
      await write(db, 'c')
      await forge()
      await write(db, 'd')

      const stopWaiting = startTestSealing(db)
      await sleep(200)
      await stopWaiting()
      expect((await chainedNames(db)).filter((name) => name === '? d')).toHaveLength(1)

      startTestSealing(db, { patienceMs: 100 })
      await untilSealed(db)
      const at = (await actions(db)).lastIndexOf('audit-chain.broken') + 1
      expect(await verifyAuditChain(db, { keys })).toMatchObject({ isSound: false })
      expect(await verifyAuditChain(db, { keys, from: at })).toMatchObject({
        problem: { kind: 'broken', sequence: at },
      })
      expect(await verifyAuditChain(db, { keys, from: at + 1 })).toMatchObject({ isSound: true })
    })
  })

  describe('the secret of the head', () => {
    it('is what somebody lacks who rewrote the whole record', async () => {
      const { db } = await open()
      await write(db, 'a')
      await write(db, 'b')
      await sealAll(db)
      await sql`UPDATE audit_events SET sequence = NULL, actor_id = 'eve'`.execute(db)
      await sql`UPDATE audit_chain SET sequence = 0, hash = decode(repeat('00', 32), 'hex'), seal = NULL`.execute(db)
      await sealAll(db, [otherKey])
      expect(await verifyAuditChain(db)).toMatchObject({ isSound: true })
      expect(await verifyAuditChain(db, { keys })).toMatchObject({ problem: { kind: 'head' } })
    })

    it('may be replaced by another, which seals from then on', async () => {
      const { db } = await open()
      await write(db, 'a')
      await sealAll(db)
      await write(db, 'b')
      await sealAll(db, [otherKey, key])
      expect(await verifyAuditChain(db, { keys: [otherKey] })).toMatchObject({ isSound: true, count: 2 })
      expect(await verifyAuditChain(db, { keys })).toMatchObject({ problem: { kind: 'head' } })
    })

    it('may be gone at once, where the process still knows the head that it wrote', async () => {
      const { db } = await open()
      let known = keys
      startTestSealing(db, { keys: () => known })
      await write(db, 'a')
      await untilSealed(db)
      known = [otherKey]
      await write(db, 'b')
      await untilSealed(db)
      expect(await verifyAuditChain(db, { keys: [otherKey] })).toMatchObject({ isSound: true, count: 2 })
    })
  })
})

onPostgres((open) => {
  const openSecond = async (database: TestDatabase) => {
    const second = await openLocation(database.location)
    onTestFinished(() => second.close())
    return second
  }

  it('200 writers and two sealers in two processes make one chain without gaps, within a second', async () => {
    const first = await open()
    const second = await openSecond(first)
    startTestSealing(first.db, { everyMs: 500 })
    startTestSealing(second.db, { everyMs: 500 })
    const writers = Array.from({ length: 200 }, (_, i) => async () => {
      await sleep((i * 37) % 700)
      const { db } = i % 2 === 0 ? first : second
      await db.transaction().execute(async (trx) => {
        await writeAudit(trx, ada, eventOf(`${i} begins`))
        // Commits in another order than that of the ids.
        await sleep((i * 13) % 50)
        await writeAudit(trx, ada, eventOf(`${i} ends`))
      })
    })
    await Promise.all(writers.map((writer) => writer()))
    expect(await untilSealed(first.db)).toBeLessThan(1_300)
    const rows = await first.db.selectFrom('audit_events').select(['sequence', 'id']).orderBy('sequence').execute()
    expect(rows.map(({ sequence }) => sequence)).toEqual(Array.from({ length: 400 }, (_, i) => i + 1))
    expect(await verifyAuditChain(second.db, { keys })).toMatchObject({ isSound: true, count: 400 })
  })

  it('a row whose transaction commits after later rows were sealed is sealed after them', async () => {
    const first = await open()
    const second = await openSecond(first)
    startTestSealing(second.db)
    const written = Promise.withResolvers<void>()
    const commit = Promise.withResolvers<void>()
    const late = first.db.transaction().execute(async (trx) => {
      await writeAudit(trx, ada, eventOf('late'))
      written.resolve()
      await commit.promise
    })
    await written.promise
    await write(second.db, 'early')
    await untilSealed(second.db)
    commit.resolve()
    await late
    await untilSealed(second.db)
    const rows = await first.db.selectFrom('audit_events').select('target_id').orderBy('id').execute()
    expect(rows.map(({ target_id: name }) => name)).toEqual(['late', 'early'])
    expect(await chainedNames(first.db)).toEqual(['1 early', '2 late'])
    expect(await verifyAuditChain(first.db, { keys })).toMatchObject({ isSound: true, count: 2 })
  })

  it('a sealer leaves the chain alone while another has it, and takes over when that one is gone', async () => {
    const first = await open()
    const second = await openSecond(first)
    await write(first.db, 'a')
    await first.db.transaction().execute(async (trx) => {
      await sql`SELECT pg_advisory_xact_lock(${0x1a7c_0006})`.execute(trx)
      startTestSealing(second.db)
      await sleep(200)
      expect(await chainedNames(trx)).toEqual(['? a'])
    })
    await untilSealed(second.db)
    expect(await chainedNames(first.db)).toEqual(['1 a'])
  })

  it('a sealer survives the loss of its connections', async () => {
    const first = await open()
    const second = await openSecond(first)
    startTestSealing(second.db)
    await write(first.db, 'a')
    await untilSealed(first.db)
    await sql`
      SELECT pg_terminate_backend(pid) FROM pg_stat_activity
      WHERE datname = current_database() AND pid <> pg_backend_pid()`.execute(first.db)
    await write(first.db, 'b')
    await untilSealed(first.db)
    expect(await verifyAuditChain(first.db, { keys })).toMatchObject({ isSound: true, count: 2 })
  })
})
