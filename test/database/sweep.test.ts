import { sql } from 'kysely'
import { expect, it } from 'vitest'
import type { Db } from '../../src/database/database.ts'
import { sweep } from '../../src/database/sweep.ts'
import { eachDatabase, onPostgres, openLocation } from '../support/databases.ts'

/** More than two pages. */
const expired = 1_200

async function fill(db: Db): Promise<void> {
  await sql`
    INSERT INTO artifacts (kind, id, payload, expires_at)
    SELECT 'AccessToken', 'expired-' || n, '{}', now() - interval '1 second' FROM generate_series(1, ${expired}) AS n
  `.execute(db)
  await sql`
    INSERT INTO artifacts (kind, id, payload, expires_at) VALUES ('AccessToken', 'alive', '{}', now() + interval '1 hour')
  `.execute(db)
  await sql`
    INSERT INTO sign_in_throttle (key, tokens, updated_at)
    VALUES ('full', 1, now() - interval '25 hours'), ('in use', 1, now() - interval '23 hours')
  `.execute(db)
}

async function idsLeft(db: Db): Promise<string[]> {
  const artifacts = await db.selectFrom('artifacts').select('id').execute()
  const buckets = await db.selectFrom('sign_in_throttle').select('key').execute()
  return [...artifacts.map(({ id }) => id), ...buckets.map(({ key }) => key)]
}

eachDatabase((open) => {
  it('a sweep keeps what has not expired, and removes all that has, page after page', async () => {
    const { db } = await open()
    await fill(db)
    expect(await sweep(db)).toBe(expired + 1)
    expect(await idsLeft(db)).toEqual(['alive', 'in use'])
    expect(await sweep(db)).toBe(0)
  })

  it('a sweep that is told to stop deletes nothing more', async () => {
    const { db } = await open()
    await fill(db)
    expect(await sweep(db, AbortSignal.abort())).toBe(0)
    expect(await idsLeft(db)).toHaveLength(expired + 3)
  })
})

onPostgres((open) => {
  it('leaves alone what another process is sweeping', async () => {
    const first = await open()
    await fill(first.db)
    const second = await openLocation(first.location)
    try {
      await first.db.transaction().execute(async (trx) => {
        await sql`SELECT pg_advisory_xact_lock(${0x1a7c_0001})`.execute(trx)
        expect(await sweep(second.db)).toBe(0)
      })
      expect(await sweep(second.db)).toBe(expired + 1)
    } finally {
      await second.close()
    }
  })
})
