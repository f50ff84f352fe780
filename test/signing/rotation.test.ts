import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import { systemActor, type Actor } from '../../src/audit/audit.ts'
import type { Database, Db } from '../../src/database/database.ts'
import {
  makeMissingKeys,
  retireExpiredKeys,
  retiringSeconds,
  revokeKey,
  rotateKeys,
  rotateWhenDue,
  SigningKeyNotReady,
  startRotation,
  UnknownSigningKey,
} from '../../src/signing/rotation.ts'
import { prepareSigningKey, type PreparedKey } from '../../src/signing/signing-key.ts'
import { emptiedEachTime, eachDatabase, onPostgres } from '../support/databases.ts'
import { encryptionUnder, kidsByState, openOtherHandle, rotationConfig, silent, until } from './rings.ts'

type Handle = Pick<Database, 'db'>

const encryption = encryptionUnder('1')
const publishAheadSeconds = rotationConfig.keyPublishAheadSeconds
const operator: Actor = { type: 'operator', id: 'ada' }

// Making a key takes long; these functions only write what was made, so a small key is as good as a large one.
const prepare = () => prepareSigningKey({ encryption, rsaBits: 1024 })
const config = { ...rotationConfig, rsaBits: 1024 }

async function start({ db }: Handle): Promise<{ current: string; next: string }> {
  const fresh = [await prepare(), await prepare()]
  const [current = '', next = ''] = await db
    .transaction()
    .execute((trx) => makeMissingKeys(trx, systemActor, { fresh }))
  return { current, next }
}

async function rotate({ db }: Handle, options: { now?: boolean; fresh?: PreparedKey } = {}) {
  const fresh = options.fresh ?? (await prepare())
  return db
    .transaction()
    .execute((trx) => rotateKeys(trx, operator, { fresh, publishAheadSeconds, now: options.now ?? false }))
}

async function revoke({ db }: Handle, kid: string) {
  const fresh = await prepare()
  return db.transaction().execute((trx) => revokeKey(trx, operator, { kid, reason: 'laptop stolen', fresh }))
}

const retire = ({ db }: Handle) => db.transaction().execute((trx) => retireExpiredKeys(trx, systemActor))

/** Makes every key older, as time would. */
async function age({ db }: Handle, seconds: number): Promise<void> {
  await sql`
    UPDATE signing_keys SET
      created_at = created_at - make_interval(secs => ${seconds}::int),
      current_since = current_since - make_interval(secs => ${seconds}::int),
      published_until = published_until - make_interval(secs => ${seconds}::int)`.execute(db)
}

async function auditOf({ db }: Handle, kid: string): Promise<string[]> {
  const rows = await db
    .selectFrom('audit_events')
    .select(['action', 'actor_id'])
    .where('target_id', '=', kid)
    .orderBy('id')
    .execute()
  return rows.map(({ action, actor_id: actor }) => `${action} by ${actor}`)
}

async function announcements({ db }: Handle): Promise<number> {
  const row = await db
    .selectFrom('change_counters')
    .select('version')
    .where('topic', '=', 'keys')
    .executeTakeFirstOrThrow()
  return row.version
}

const rowOf = (db: Db, kid: string) =>
  db.selectFrom('signing_keys').selectAll().where('kid', '=', kid).executeTakeFirstOrThrow()

eachDatabase((openNew) => {
  const open = emptiedEachTime(openNew)
  describe('rotating the keys', () => {
    it('refuses a next key that has not been published for long enough, says when, and changes nothing', async () => {
      const database = await open()
      await start(database)
      await age(database, publishAheadSeconds - 60)
      const before = await kidsByState(database)
      const refusal = await rotate(database).catch((error: unknown) => error)
      if (!(refusal instanceof SigningKeyNotReady)) throw new Error(`it was not refused: ${String(refusal)}`)
      expect(refusal.waitSeconds).toBeGreaterThan(50)
      expect(refusal.waitSeconds).toBeLessThanOrEqual(60)
      expect(refusal.message).toContain(`try again in ${refusal.waitSeconds} seconds`)
      expect(await kidsByState(database)).toEqual(before)
    })

    it('refuses when there is no next key, even at once', async () => {
      const database = await open()
      const { next } = await start(database)
      await database.db.deleteFrom('signing_keys').where('kid', '=', next).execute()
      await expect(rotate(database, { now: true })).rejects.toThrow('There is no next key')
    })

    it('lets the next key sign once it has been published, and keeps the last one published', async () => {
      const database = await open()
      const { current, next } = await start(database)
      await age(database, publishAheadSeconds)
      const fresh = await prepare()
      const rotated = await rotate(database, { fresh })
      expect(rotated).toEqual({ current: next, next: fresh.kid, retiring: current, isEarly: false })
      const states = await kidsByState(database)
      expect(states).toEqual({ current: [next], next: [fresh.kid], retiring: [current], retired: [], revoked: [] })
      expect((await rowOf(database.db, next)).current_since?.getTime()).toBeGreaterThan(Date.now() - 30_000)
      expect(await auditOf(database, next)).toEqual(['signing-key.created by latchkey', 'signing-key.promoted by ada'])
      expect(await auditOf(database, current)).toEqual([
        'signing-key.created by latchkey',
        'signing-key.retiring by ada',
      ])
      expect(await auditOf(database, fresh.kid)).toEqual(['signing-key.created by ada'])
    })

    it('rotates before its time when told to, and says so', async () => {
      const database = await open()
      const { next } = await start(database)
      expect(await rotate(database, { now: true })).toMatchObject({ current: next, isEarly: true })
      const audit = await database.db
        .selectFrom('audit_events')
        .select('details')
        .where('action', '=', 'signing-key.promoted')
        .executeTakeFirstOrThrow()
      expect(audit.details).toEqual({
        published_seconds: 0,
        early: true,
        before: { state: 'next' },
        after: { state: 'current' },
      })
    })

    it('leaves no trace when the transaction fails afterwards', async () => {
      const database = await open()
      await start(database)
      const before = await kidsByState(database)
      const fresh = await prepare()
      const failed = database.db.transaction().execute(async (trx) => {
        await rotateKeys(trx, operator, { fresh, publishAheadSeconds, now: true })
        throw new Error('later')
      })
      await expect(failed).rejects.toThrow('later')
      expect(await kidsByState(database)).toEqual(before)
      expect(await auditOf(database, fresh.kid)).toEqual([])
    })
  })

  describe('retiring a key', () => {
    it('keeps it published until the longest token that it can have signed is dead, then erases it', async () => {
      const database = await open()
      const { current } = await start(database)
      await rotate(database, { now: true })
      // the longest lifetime that a resource can have
      expect(retiringSeconds).toBeGreaterThan(86_400)
      await age(database, retiringSeconds - 60)
      expect(await retire(database)).toEqual([])
      expect((await rowOf(database.db, current)).sealed_private_jwk).not.toBeNull()
      await age(database, 61)
      expect(await retire(database)).toEqual([current])
      expect(await rowOf(database.db, current)).toMatchObject({ state: 'retired', sealed_private_jwk: null })
      expect(await auditOf(database, current)).toContain('signing-key.retired by latchkey')
      expect(await retire(database)).toEqual([])
    })
  })

  describe('revoking a key', () => {
    it('refuses a kid that is nobody’s', async () => {
      const database = await open()
      await start(database)
      const before = await kidsByState(database)
      await expect(revoke(database, 'x'.repeat(100_000))).rejects.toThrow(UnknownSigningKey)
      await expect(revoke(database, "' OR 1=1 --")).rejects.toThrow(UnknownSigningKey)
      expect(await kidsByState(database)).toEqual(before)
    })

    it('erases the one that signs, revokes its tokens and lets the next one sign, published or not', async () => {
      const database = await open()
      const { current, next } = await start(database)
      const revoked = await revoke(database, current)
      expect(revoked).toEqual({ isChanged: true, promoted: next, created: expect.any(String) })
      expect(await rowOf(database.db, current)).toMatchObject({
        state: 'revoked',
        sealed_private_jwk: null,
        published_until: null,
      })
      expect(await kidsByState(database)).toMatchObject({ current: [next], next: [revoked.created] })
      const rows = await database.db.selectFrom('revocations').select(['kind', 'subject', 'reason']).execute()
      expect(rows).toEqual([{ kind: 'key', subject: current, reason: 'laptop stolen' }])
      expect(await auditOf(database, current)).toContain('signing-key.revoked by ada')

      expect(await revoke(database, current)).toEqual({ isChanged: false, promoted: undefined, created: undefined })
      expect(await database.db.selectFrom('revocations').select('id').execute()).toHaveLength(1)
    })

    it('replaces the one that waits', async () => {
      const database = await open()
      const { current, next } = await start(database)
      const { created = '', promoted } = await revoke(database, next)
      expect(promoted).toBeUndefined()
      expect(await kidsByState(database)).toMatchObject({ current: [current], next: [created], revoked: [next] })
    })

    it('needs no new key for one that signs no more', async () => {
      const database = await open()
      const { current, next } = await start(database)
      const rotated = await rotate(database, { now: true })
      expect(await revoke(database, current)).toEqual({ isChanged: true, promoted: undefined, created: undefined })
      expect(await kidsByState(database)).toMatchObject({ current: [next], next: [rotated.next], retiring: [] })
    })

    it('lets a new key sign when none waits', async () => {
      const database = await open()
      const { current, next } = await start(database)
      await database.db.deleteFrom('signing_keys').where('kid', '=', next).execute()
      const { promoted = '' } = await revoke(database, current)
      expect(await kidsByState(database)).toMatchObject({ current: [promoted], next: [] })
      expect(await rotateWhenDue(database, { encryption, config })).toBe(true)
      expect((await kidsByState(database)).next).toHaveLength(1)
    })
  })

  describe('the schedule', () => {
    it('does nothing before its time, and announces nothing', async () => {
      const database = await open()
      await start(database)
      await age(database, config.keyRotationDays * 86_400 - 60)
      const [before, announced] = [await kidsByState(database), await announcements(database)]
      expect(await rotateWhenDue(database, { encryption, config })).toBe(false)
      expect(await kidsByState(database)).toEqual(before)
      expect(await announcements(database)).toBe(announced)
    })

    it('waits with the rotation until the next key has been published for long enough', async () => {
      const database = await open()
      const { current, next } = await start(database)
      await age(database, config.keyRotationDays * 86_400)
      const { created = '' } = await revoke(database, next)
      expect(await rotateWhenDue(database, { encryption, config })).toBe(false)
      expect((await kidsByState(database)).current).toEqual([current])
      await age(database, publishAheadSeconds)
      expect(await rotateWhenDue(database, { encryption, config })).toBe(true)
      expect((await kidsByState(database)).current).toEqual([created])
    })

    it('rotates when the key is old, retires it when its tokens are dead, and makes a next key that is missing', async () => {
      const database = await open()
      const { current, next } = await start(database)
      await age(database, config.keyRotationDays * 86_400)
      expect(await rotateWhenDue(database, { encryption, config })).toBe(true)
      expect(await kidsByState(database)).toMatchObject({ current: [next], retiring: [current] })
      expect(await rotateWhenDue(database, { encryption, config })).toBe(false)

      await age(database, retiringSeconds)
      expect(await rotateWhenDue(database, { encryption, config })).toBe(true)
      expect(await kidsByState(database)).toMatchObject({ current: [next], retired: [current] })

      await database.db.deleteFrom('signing_keys').where('state', '=', 'next').execute()
      expect(await rotateWhenDue(database, { encryption, config })).toBe(true)
      expect((await kidsByState(database)).next).toHaveLength(1)
    })

    it('mends a database whose keys are all gone, and one where none signs', async () => {
      const database = await open()
      expect(await rotateWhenDue(database, { encryption, config })).toBe(true)
      const { current, next } = await kidsByState(database)
      expect([current.length, next.length]).toEqual([1, 1])
      await database.db.deleteFrom('signing_keys').where('state', '=', 'current').execute()
      expect(await rotateWhenDue(database, { encryption, config })).toBe(true)
      const mended = await kidsByState(database)
      expect(mended.current).toEqual(next)
      expect(mended.next).toHaveLength(1)
    })

    it('looks at once when it is started, then again and again until it is stopped', async () => {
      const database = await open()
      const stop = startRotation({ database, encryption, config, log: silent, everySeconds: 0.05 })
      let kids: string[] = []
      const look = setInterval(() => {
        void kidsByState(database).then(({ next }) => (kids = next))
      }, 20)
      await until(() => kids.length === 1)
      await database.db.deleteFrom('signing_keys').where('state', '=', 'next').execute()
      const gone = kids[0]
      await until(() => kids.length === 1 && kids[0] !== gone)
      clearInterval(look)
      await stop()
      await database.db.deleteFrom('signing_keys').where('state', '=', 'next').execute()
      await new Promise((resolve) => setTimeout(resolve, 300))
      expect((await kidsByState(database)).next).toEqual([])
    })
  })

  describe('whatever happens, in any order', () => {
    let spares: PreparedKey[] = []
    beforeAll(async () => {
      spares = await Promise.all(Array.from({ length: 60 }, prepare))
    })

    it.each([1, 2, 3])(
      'one key signs and one waits, and no key signs before it was published (seed %i)',
      async (seed) => {
        const database = await open()
        const { db } = database
        const { current } = await start(database)
        const published = new Set([current, ...(await kidsByState(database)).next])
        let state = seed * 7_919
        const below = (n: number) => {
          state = (state * 1_103_515_245 + 12_345) % 2_147_483_648
          return Math.floor((state / 2_147_483_648) * n)
        }
        const pool = [...spares]
        let changes = 0
        for (let step = 0; step < 40; step += 1) {
          const states = await kidsByState(database)
          const fresh = pool[0]
          if (fresh === undefined) break
          const before = JSON.stringify(states)
          const everyKid = [...states.current, ...states.next, ...states.retiring, ...states.retired]
          const kid = everyKid[below(everyKid.length)] ?? ''
          const act = [
            () => age(database, [10, publishAheadSeconds, retiringSeconds][below(3)] ?? 0),
            () =>
              db
                .transaction()
                .execute((trx) => rotateKeys(trx, operator, { fresh, publishAheadSeconds }))
                .catch((error: unknown) => {
                  if (!(error instanceof SigningKeyNotReady)) throw error
                }),
            () =>
              db.transaction().execute((trx) => rotateKeys(trx, operator, { fresh, publishAheadSeconds, now: true })),
            () => db.transaction().execute((trx) => revokeKey(trx, operator, { kid, reason: 'drill', fresh })),
            () => retire(database),
          ][below(5)]
          await act?.()
          const after = await kidsByState(database)
          if (JSON.stringify(after) !== before) changes += 1
          if (JSON.stringify(after).includes(fresh.kid)) pool.shift()
          expect([after.current.length, after.next.length]).toEqual([1, 1])
          expect(published).toContain(after.current[0])
          for (const next of after.next) published.add(next)
          // A key that is used no more has nothing left to steal; the others have all they need.
          const rows = await db.selectFrom('signing_keys').select(['state', 'sealed_private_jwk']).execute()
          for (const row of rows) {
            expect(row.sealed_private_jwk === null).toBe(row.state === 'retired' || row.state === 'revoked')
          }
        }
        expect(changes).toBeGreaterThan(10)
      },
    )
  })
})

onPostgres((open) => {
  it('rotates once when eight processes find that it is due', async () => {
    const database = await open()
    const { current, next } = await start(database)
    await age(database, config.keyRotationDays * 86_400)
    const handles = await Promise.all(Array.from({ length: 8 }, () => openOtherHandle(database)))
    const acted = await Promise.all(handles.map((handle) => rotateWhenDue(handle, { encryption, config })))
    expect(acted.filter(Boolean)).toHaveLength(1)
    expect(await kidsByState(database)).toMatchObject({ current: [next], retiring: [current], retired: [] })
  })

  it('lets one of two operators rotate who do so at once, and refuses the other', async () => {
    const database = await open()
    await start(database)
    await age(database, publishAheadSeconds)
    const other = await openOtherHandle(database)
    const results = await Promise.allSettled([rotate(database), rotate(other)])
    expect(results.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected'])
    const refused = results.find((result) => result.status === 'rejected')
    expect(refused?.reason).toBeInstanceOf(SigningKeyNotReady)
  })

  it('shows exactly one key that signs to whoever looks, while processes rotate and revoke at once', async () => {
    const database = await open()
    await start(database)
    const handles = await Promise.all([1, 2, 3].map(() => openOtherHandle(database)))
    const spares = await Promise.all(Array.from({ length: 30 }, prepare))
    const seen: string[] = []
    const over = new AbortController()
    const looking = (async () => {
      while (!over.signal.aborted) {
        const { current, next } = await kidsByState(database)
        seen.push(`${current.length} signs, ${next.length} waits`)
      }
    })()
    await Promise.all(
      handles.map(async (handle, index) => {
        for (const fresh of spares.slice(index * 10, index * 10 + 10)) {
          const { current } = await kidsByState(handle)
          await handle.db
            .transaction()
            .execute((trx) =>
              index === 0
                ? revokeKey(trx, operator, { kid: current[0] ?? '', reason: 'drill', fresh }).then(() => undefined)
                : rotateKeys(trx, operator, { fresh, publishAheadSeconds, now: true }).then(() => undefined),
            )
        }
      }),
    )
    over.abort()
    await looking
    expect(seen.length).toBeGreaterThan(10)
    expect(new Set(seen)).toEqual(new Set(['1 signs, 1 waits']))
  })
})
