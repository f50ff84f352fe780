/** Transactions that are open, and news that are late: what is committed arrives, whatever stands before it. */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import type { Database, Db, Trx } from '../../src/database/database.ts'
import { revoke } from '../../src/revocation/revocations.ts'
import { beginAnew } from '../../src/signals/deliveries.ts'
import { updateStream } from '../../src/signals/streams.ts'
import { onPostgres, openLocation } from '../support/databases.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { caep, Receiver, registerReceiver, subjectOf } from './receiving.ts'

onPostgres(() => {
  let provider: TestProvider
  let second: TestProvider
  let elsewhere: Database
  let db: Db
  let receiver: Receiver

  /** A revocation in a transaction of its own, which is committed when it is told to. */
  const begin = async (subject: string) => {
    const { promise: mayEnd, resolve: commit } = Promise.withResolvers<void>()
    const { promise: isWritten, resolve: written } = Promise.withResolvers<void>()
    const ended = elsewhere.db.transaction().execute(async (trx) => {
      await revoke(trx, { kind: 'session', subject, reason: 'signed out' })
      written()
      await mayEnd
    })
    await isWritten
    return {
      commit: async () => {
        commit()
        await ended
      },
    }
  }
  const end = (subject: string) =>
    elsewhere.db.transaction().execute((trx) => revoke(trx, { kind: 'session', subject, reason: 'signed out' }))
  const subjects = async (sets: Readonly<Record<string, string>>) =>
    (await Promise.all(Object.entries(sets).map(([jti, set]) => receiver.verify(jti, set)))).map(subjectOf)
  const caughtUp = async () => {
    const stream = await receiver.createStream()
    await receiver.drain(stream, 500)
    return stream
  }
  const countReceipts = async (stream: string) => {
    const rows = await db.selectFrom('signal_receipts').selectAll().where('stream_id', '=', stream).execute()
    return rows.length
  }

  beforeAll(async () => {
    provider = await openProvider('postgres')
    second = await openProvider('postgres', { besides: provider })
    db = provider.database.db
    elsewhere = await openLocation(provider.location)
    receiver = await new Receiver(provider.issuer, await registerReceiver(db, provider.issuer)).signIn()
    return () => elsewhere.close()
  })

  describe('a transaction that is open for ten seconds', () => {
    it('delays nobody but itself, is not passed over, and leaves nothing behind', async () => {
      const stream = await caughtUp()
      const slow = await begin('slow')
      const openedAt = performance.now()
      const received: string[] = []
      let ack: string[] = []
      for (let n = 0; performance.now() - openedAt < 10_000; n += 1) {
        const waiting = receiver.poll(stream, { ack })
        await sleep(400)
        const revokedAt = performance.now()
        await end(`quick-${n}`)
        const { sets } = await waiting
        expect(performance.now() - revokedAt).toBeLessThan(1_000)
        ack = Object.keys(sets)
        received.push(...(await subjects(sets)))
      }
      // Each once, though the cursor could not follow.
      expect(received.length).toBeGreaterThan(5)
      expect(received).toEqual(received.map((_, n) => `session quick-${n}`))
      const waiting = receiver.poll(stream, { ack })
      await sleep(200)
      expect(await countReceipts(stream)).toBe(received.length)
      const committedAt = performance.now()
      await slow.commit()
      const last = await waiting
      expect(performance.now() - committedAt).toBeLessThan(1_000)
      expect(await subjects(last.sets)).toEqual(['session slow'])
      expect((await receiver.poll(stream, { ack: Object.keys(last.sets), returnImmediately: true })).sets).toEqual({})
      expect(await countReceipts(stream)).toBe(0)
    }, 60_000)

    it('is received by a stream that was made, and caught up, while it was open', async () => {
      const slow = await begin('slow again')
      await end('quick before the stream')
      const stream = await receiver.createStream()
      expect((await receiver.drain(stream, 500)).map(subjectOf)).toContain('session quick before the stream')
      await slow.commit()
      expect((await receiver.drain(stream)).map(subjectOf)).toEqual(['session slow again'])
    })

    it('whose number is older than that of a transaction that began before it', async () => {
      const stream = await caughtUp()
      const { promise: mayRevoke, resolve: goOn } = Promise.withResolvers<void>()
      const { promise: hasBegun, resolve: begun } = Promise.withResolvers<void>()
      const older = elsewhere.db.transaction().execute(async (trx) => {
        await sql`SELECT pg_current_xact_id()`.execute(trx)
        begun()
        await mayRevoke
        await revoke(trx, { kind: 'session', subject: 'older, and numbered later', reason: 'signed out' })
      })
      await hasBegun
      const younger = await begin('younger, and numbered earlier')
      goOn()
      await older
      expect((await receiver.drain(stream)).map(subjectOf)).toEqual(['session older, and numbered later'])
      expect(await countReceipts(stream)).toBe(0)
      await younger.commit()
      expect((await receiver.drain(stream)).map(subjectOf)).toEqual(['session younger, and numbered earlier'])
      expect((await receiver.drain(stream)).map(subjectOf)).toEqual([])
    })

    it('that is given up leaves no gap', async () => {
      const stream = await caughtUp()
      const failed = elsewhere.db
        .transaction()
        .execute(async (trx) => {
          await revoke(trx, { kind: 'session', subject: 'never', reason: 'signed out' })
          await end('beside it')
          throw new Error('given up')
        })
        .catch((error: unknown) => String(error))
      expect(await failed).toBe('Error: given up')
      expect((await receiver.drain(stream)).map(subjectOf)).toEqual(['session beside it'])
      expect(await countReceipts(stream)).toBe(0)
    })
  })

  describe('an acknowledgement that is under way', () => {
    const password = `${caep}credential-change`
    /** Both ways in which one is taken down: what was sent last and nothing else, and whatever else there is. */
    const ways: [string, (jtis: string[]) => string[]][] = [
      ['as it usually is', (jtis) => jtis],
      ['of something else too', (jtis) => [...jtis, 'no such event']],
    ]

    /** Acknowledges it, and does something else between its reading how far the stream is and its writing that down. */
    const acknowledgeAround = async (stream: string, ack: string[], change: (trx: Trx) => Promise<unknown>) => {
      const { polled } = await elsewhere.db.transaction().execute(async (trx) => {
        await sql`SELECT FROM signal_streams WHERE stream_id = ${stream} FOR UPDATE`.execute(trx)
        const polled = receiver.poll(stream, { ack, maxEvents: 0 })
        await expect
          .poll(async () => {
            const { rows } = await sql`
              SELECT FROM pg_stat_activity
              WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%UPDATE signal_streams%'
              `.execute(db)
            return rows.length
          })
          .toBe(1)
        await change(trx)
        // Not awaited: it waits for this to be committed.
        return { polled }
      })
      expect((await polled).status).toBe(200)
    }

    it.each(ways)('%s, does not pass over what a stream has just asked for', async (way, ackOf) => {
      const stream = await caughtUp()
      await receiver.request('PATCH', '/ssf/streams', { stream_id: stream, events_requested: [password] })
      // It is told that it was narrowed.
      expect((await receiver.drain(stream)).map(({ type }) => type)).toEqual(['stream-updated'])
      await end(`left out ${way}`)
      await elsewhere.db.transaction().execute((trx) =>
        revoke(trx, {
          kind: 'user',
          subject: `usr_${way}`,
          tokenVersion: 2,
          reason: 'the password was changed',
          cause: 'password-change',
        }),
      )
      const { sets } = await receiver.poll(stream, { returnImmediately: true })
      expect(await subjects(sets)).toEqual([`user usr_${way}`])
      await acknowledgeAround(stream, ackOf(Object.keys(sets)), (trx) =>
        updateStream(trx, systemActor, {
          clientId: receiver.client.client_id,
          tokenVersion: 1,
          streamId: stream,
          settings: { events_requested: null },
          parts: { encryption: { seal: () => Buffer.alloc(0) }, allowLoopback: false },
        }),
      )
      const learned = (await receiver.drain(stream, 500)).map(subjectOf)
      expect(learned).toContain(`session left out ${way}`)
      // It was acknowledged, and that counts.
      expect(learned).not.toContain(`user usr_${way}`)
    })

    it.each(ways)('%s, does not pass over what is sent anew since the order began anew', async (way, ackOf) => {
      const stream = await caughtUp()
      await end(`acknowledged ${way}`)
      const { sets } = await receiver.poll(stream, { returnImmediately: true })
      await acknowledgeAround(stream, ackOf(Object.keys(sets)), beginAnew)
      const { cursor_id: cursorId } = await db
        .selectFrom('signal_streams')
        .select('cursor_id')
        .where('stream_id', '=', stream)
        .executeTakeFirstOrThrow()
      expect(cursorId).toBe(0)
      const learned = (await receiver.drain(stream, 500)).map(subjectOf)
      expect(learned).toContain(`session left out ${way}`)
      expect(learned).not.toContain(`session acknowledged ${way}`)
    })
  })

  describe('two processes', () => {
    it('a stream may be polled at either, and each knows what the other was told', async () => {
      const stream = await caughtUp()
      const other = receiver.elsewhere(second.issuer)
      await end('first')
      await end('second')
      const { sets } = await receiver.poll(stream, { returnImmediately: true })
      const [jti = ''] = Object.keys(sets)
      const there = await other.poll(stream, { ack: [jti], returnImmediately: true })
      expect(there.sets).toEqual(Object.fromEntries(Object.entries(sets).slice(1)))
      expect((await receiver.poll(stream, { ack: Object.keys(there.sets), returnImmediately: true })).sets).toEqual({})
      const waiting = other.poll(stream)
      await sleep(100)
      const revokedAt = performance.now()
      await end('third')
      expect(await subjects((await waiting).sets)).toEqual(['session third'])
      expect(performance.now() - revokedAt).toBeLessThan(1_000)
    })

    it('a stream that waits at one is verified and stopped at the other', async () => {
      const stream = await caughtUp()
      const other = receiver.elsewhere(second.issuer)
      const waiting = other.poll(stream)
      await sleep(100)
      const askedAt = performance.now()
      await receiver.request('POST', '/ssf/verification', { stream_id: stream, state: 'across' })
      const { sets } = await waiting
      expect(performance.now() - askedAt).toBeLessThan(1_000)
      expect(await subjects(sets)).toEqual([`stream ${stream}`])
      const next = other.poll(stream, { ack: Object.keys(sets) })
      await sleep(100)
      await receiver.request('DELETE', `/ssf/streams?stream_id=${stream}`)
      expect((await next).status).toBe(404)
    })
  })

  describe('news that nobody brings', () => {
    it('are found within a second all the same: also of a transaction that was overtaken by a later one', async () => {
      const stream = await caughtUp()
      await sql`ALTER TABLE revocations DISABLE TRIGGER revocations_changed`.execute(db)
      try {
        const overtaken = await begin('overtaken')
        let ack: string[] = []
        for (const subject of ['silent', 'silent too']) {
          const waiting = receiver.poll(stream, { ack })
          await sleep(700)
          const revokedAt = performance.now()
          await end(subject)
          const { sets } = await waiting
          expect(performance.now() - revokedAt).toBeLessThan(1_000)
          expect(await subjects(sets)).toEqual([`session ${subject}`])
          ack = Object.keys(sets)
        }
        const waiting = receiver.poll(stream, { ack })
        await sleep(700)
        const committedAt = performance.now()
        await overtaken.commit()
        expect(await subjects((await waiting).sets)).toEqual(['session overtaken'])
        expect(performance.now() - committedAt).toBeLessThan(1_000)
      } finally {
        await sql`ALTER TABLE revocations ENABLE TRIGGER revocations_changed`.execute(db)
      }
    })
  })
})
