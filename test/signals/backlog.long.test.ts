/** Many revocations, and many that wait for the next. */
import { sql } from 'kysely'
import { expect, it } from 'vitest'
import { revoke } from '../../src/revocation/revocations.ts'
import { eachDatabase, onPostgres } from '../support/databases.ts'
import { openProvider } from '../support/provider.ts'
import { Receiver, registerReceiver, subjectOf } from './receiving.ts'

const active = 10_000
const receivers = 100
const rounds = 20

eachDatabase((_open, engine) => {
  it('ten thousand active revocations reach new streams, and what is revoked meanwhile does not wait for them', async () => {
    const provider = await openProvider(engine)
    const { db } = provider.database
    const receiver = await new Receiver(provider.issuer, await registerReceiver(db, provider.issuer)).signIn()
    const live = await receiver.createStream()
    await receiver.drain(live)
    await sql`
      INSERT INTO revocations (kind, subject, reason, revoked_at, expires_at)
      SELECT 'token', 'tok-' || n, 'revoked by its client', clock_timestamp(), clock_timestamp() + interval '1 hour'
      FROM generate_series(1, ${active}::int) AS n`.execute(db)
    // Everything so far is somebody else's: this stream is caught up.
    await sql`
      UPDATE signal_streams SET (cursor_transaction_id, cursor_id) = (
        SELECT transaction_id, id FROM revocations ORDER BY transaction_id DESC, id DESC LIMIT 1)`.execute(db)

    const drain = async () => {
      const stream = await receiver.createStream()
      const startedAt = performance.now()
      const seen = new Set<string>()
      let ack: string[] = []
      let pages = 0
      for (;;) {
        const { sets } = await receiver.poll(stream, { maxEvents: 500, ack, returnImmediately: true })
        ack = Object.keys(sets)
        if (ack.length === 0) break
        pages += 1
        for (const jti of ack) seen.add(jti)
      }
      return { seen: seen.size, pages, ms: performance.now() - startedAt }
    }
    const progress = { isDraining: true }
    const draining = Promise.all([drain(), drain()]).finally(() => {
      progress.isDraining = false
    })
    const latencies: number[] = []
    let ack: string[] = []
    for (let n = 0; progress.isDraining; n += 1) {
      const waiting = receiver.poll(live, { ack })
      const revokedAt = performance.now()
      await db
        .transaction()
        .execute((trx) => revoke(trx, { kind: 'session', subject: `live-${n}`, reason: 'signed out' }))
      const { sets } = await waiting
      latencies.push(performance.now() - revokedAt)
      ack = Object.keys(sets)
      const events = await Promise.all(Object.entries(sets).map(([jti, set]) => receiver.verify(jti, set)))
      expect(events.map(subjectOf)).toContain(`session live-${n}`)
    }
    const [one, two] = await draining
    const again = await drain()
    console.log(engine, { one, two, again, live: latencies.length, worst: Math.round(Math.max(...latencies)) })
    expect(one.seen).toBeGreaterThanOrEqual(active)
    expect(two.seen).toBeGreaterThanOrEqual(active)
    expect(again.seen).toBeGreaterThanOrEqual(active)
    expect(Math.max(...latencies)).toBeLessThan(2_000)
    const { rows } = await sql<{ count: number }>`SELECT count(*)::int AS count FROM security_events`.execute(db)
    expect(rows[0]?.count).toBe(active + latencies.length)
  })
})

onPostgres(() => {
  it('a hundred streams that wait in one process are all told soon', async () => {
    const provider = await openProvider('postgres')
    const { db } = provider.database
    const receiver = await new Receiver(provider.issuer, await registerReceiver(db, provider.issuer)).signIn()
    const streams = await Promise.all(Array.from({ length: receivers }, () => receiver.createStream()))
    const revokedAt = new Map<string, number>()
    const latencies: number[] = []
    const receiving = streams.map(async (stream) => {
      const seen = new Set<string>()
      let ack: string[] = []
      while (seen.size < rounds) {
        const { status, sets } = await receiver.poll(stream, { ack })
        expect(status).toBe(200)
        const at = performance.now()
        ack = Object.keys(sets)
        for (const set of Object.values(sets)) {
          const { sub_id } = JSON.parse(Buffer.from(set.split('.')[1] ?? '', 'base64url').toString()) as {
            sub_id: { session: { id: string } }
          }
          if (!seen.has(sub_id.session.id)) latencies.push(at - (revokedAt.get(sub_id.session.id) ?? 0))
          seen.add(sub_id.session.id)
        }
      }
    })
    for (let n = 0; n < rounds; n += 1) {
      await new Promise((resolve) => setTimeout(resolve, 250))
      revokedAt.set(`s-${n}`, performance.now())
      await db.transaction().execute((trx) => revoke(trx, { kind: 'session', subject: `s-${n}`, reason: 'signed out' }))
    }
    await Promise.all(receiving)
    latencies.sort((a, b) => a - b)
    const at = (share: number) => Math.round(latencies[Math.floor((latencies.length - 1) * share)] ?? NaN)
    console.log({ p50: at(0.5), p99: at(0.99), max: at(1) })
    expect(latencies).toHaveLength(receivers * rounds)
    // The receivers are in this process too, and the machine may be busy: bench:revocation holds the bar of a second.
    expect(at(0.99)).toBeLessThan(3_000)
  })
})
