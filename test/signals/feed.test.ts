/** What is sent, and when: revocations as signed events, polled (RFC 8936). */
import { setTimeout as sleep } from 'node:timers/promises'
import { decodeProtectedHeader } from 'jose'
import { sql } from 'kysely'
import { pino } from 'pino'
import { beforeAll, describe, expect, it } from 'vitest'
import { createRole, assignRole, unassignRole } from '../../src/access/roles.ts'
import { systemActor, type Actor } from '../../src/audit/audit.ts'
import { runCommand } from '../../src/commands/program.ts'
import type { Db } from '../../src/database/database.ts'
import { sweep } from '../../src/database/sweep.ts'
import { disableClient } from '../../src/oauth/clients.ts'
import { revoke, type Revocation } from '../../src/revocation/revocations.ts'
import { openKeyEncryption } from '../../src/signing/key-encryption.ts'
import { revokeKey } from '../../src/signing/rotation.ts'
import { prepareSigningKey } from '../../src/signing/signing-key.ts'
import { createUser, setPassword } from '../../src/users/users.ts'
import { eachDatabase } from '../support/databases.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { postForm } from '../support/user-agent.ts'
import { Receiver, registerReceiver, subjectOf, verificationEvent, type ReceivedEvent } from './receiving.ts'

const operator: Actor = { type: 'operator', id: 'test', requestId: 'a-request' }

eachDatabase((_open, engine) => {
  let provider: TestProvider
  let db: Db
  let receiver: Receiver
  let sessions = 0

  const revokeAll = (...revocations: Revocation[]) =>
    db.transaction().execute(async (trx) => {
      for (const revocation of revocations) await revoke(trx, revocation)
    })
  /** Sessions of their own, named in the order in which they ended. */
  const endSessions = async (count: number): Promise<string[]> => {
    const ended = Array.from({ length: count }, () => `session-${(sessions += 1)}`)
    for (const subject of ended) await revokeAll({ kind: 'session', subject, reason: 'signed out' })
    return ended.map((subject) => `session ${subject}`)
  }
  /** A stream that has received everything so far. */
  const caughtUp = async (settings: object = {}): Promise<string> => {
    const stream = await receiver.createStream(settings)
    await receiver.drain(stream, 500)
    return stream
  }
  const readAll = (sets: Readonly<Record<string, string>>): Promise<ReceivedEvent[]> =>
    Promise.all(Object.entries(sets).map(([jti, set]) => receiver.verify(jti, set)))
  const subjects = async (sets: Readonly<Record<string, string>>) => (await readAll(sets)).map(subjectOf)
  const now = (stream: string, request: object = {}) => receiver.poll(stream, { returnImmediately: true, ...request })

  beforeAll(async () => {
    provider = await openProvider(engine, { environment: { LATCHKEY_SIGNALS_POLL_SECONDS: '3' } })
    db = provider.database.db
    receiver = await new Receiver(provider.issuer, await registerReceiver(db, provider.issuer)).signIn()
  })

  describe('an event', () => {
    const expiresAt = new Date('2099-01-01T00:00:00.250Z')
    const forms: [string, Revocation, type: string, subject: object, more: object][] = [
      [
        'of a token',
        { kind: 'token', subject: 'tok_1', reason: 'revoked by its client', expiresAt },
        'session-revoked',
        { format: 'jwt_id', iss: 'ISSUER', jti: 'tok_1' },
        { initiating_entity: 'system' },
      ],
      [
        'of a session, ended by its person',
        { kind: 'session', subject: 'ses_1', reason: 'signed out', expiresAt, by: { type: 'user', id: 'usr_1' } },
        'session-revoked',
        { format: 'complex', session: { format: 'opaque', id: 'ses_1' } },
        { initiating_entity: 'user' },
      ],
      [
        'of a family',
        { kind: 'grant', subject: 'gra_1', reason: 'a refresh token was used twice', expiresAt },
        'session-revoked',
        { format: 'complex', grant: { format: 'opaque', id: 'gra_1' } },
        {},
      ],
      [
        'of a person, by an operator',
        { kind: 'user', subject: 'usr_1', tokenVersion: 7, reason: 'left', expiresAt, by: operator },
        'session-revoked',
        { format: 'iss_sub', iss: 'ISSUER', sub: 'usr_1' },
        { initiating_entity: 'admin', token_version: 7 },
      ],
      [
        'of a person whose password was changed',
        {
          kind: 'user',
          subject: 'usr_1',
          tokenVersion: 8,
          reason: 'the password was changed',
          expiresAt,
          cause: 'password-change',
          by: { type: 'user', id: 'usr_1' },
        },
        'credential-change',
        { format: 'iss_sub', iss: 'ISSUER', sub: 'usr_1' },
        { initiating_entity: 'user', token_version: 8, credential_type: 'password', change_type: 'update' },
      ],
      [
        'of a person who lost a role, by an administrator',
        {
          kind: 'user',
          subject: 'usr_1',
          tokenVersion: 9,
          reason: 'role editor taken away',
          expiresAt,
          cause: 'claims-change',
          by: { type: 'user', id: 'usr_2' },
        },
        'token-claims-change',
        { format: 'iss_sub', iss: 'ISSUER', sub: 'usr_1' },
        { initiating_entity: 'admin', token_version: 9, claims: { token_version: 9 } },
      ],
      [
        'of a client',
        { kind: 'client', subject: 'cli_1', tokenVersion: 2, reason: 'client disabled', expiresAt },
        'session-revoked',
        { format: 'complex', application: { format: 'opaque', id: 'cli_1' } },
        { token_version: 2 },
      ],
      [
        'of a key',
        { kind: 'key', subject: 'kid_1', reason: 'stolen', expiresAt, by: operator },
        'session-revoked',
        { format: 'complex', key: { format: 'opaque', id: 'kid_1' } },
        { initiating_entity: 'admin' },
      ],
    ]

    it.each(forms)('%s', async (_what, revocation, type, subject, more) => {
      const stream = await caughtUp()
      await revokeAll(revocation)
      const { revoked_at } = await db
        .selectFrom('revocations')
        .select('revoked_at')
        .orderBy('id', 'desc')
        .limit(1)
        .executeTakeFirstOrThrow()
      const { sets } = await now(stream)
      const [event, ...others] = await readAll(sets)
      expect(others).toEqual([])
      expect(event?.type).toBe(type)
      const seconds = revoked_at.getTime() / 1_000
      expect(event?.event).toEqual({
        // Whatever a client was issued before the change has an `iat` that is not later.
        event_timestamp: revocation.kind === 'client' ? Math.ceil(seconds) : Math.floor(seconds),
        reason_admin: { en: revocation.reason },
        initiating_entity: 'system',
        expires_at: 4_070_908_801,
        ...more,
      })
      const { issuer } = provider
      expect(event?.claims).toEqual({
        iss: issuer,
        jti: event?.jti,
        iat: expect.any(Number) as number,
        aud: `${issuer}/ssf`,
        sub_id: JSON.parse(JSON.stringify(subject).replace('ISSUER', issuer)) as object,
        ...(revocation.by === operator ? { txn: 'a-request' } : {}),
        events: expect.any(Object) as object,
      })
      const header = decodeProtectedHeader(sets[event?.jti ?? ''] ?? '')
      expect(header).toMatchObject({ alg: 'RS256', typ: 'secevent+jwt', kid: expect.any(String) as string })
    })

    it('comes of what people and clients do: a token is revoked, a password changed, a role lost, a client disabled', async () => {
      const stream = await caughtUp()
      const { service } = provider.demo.clients
      const { body } = await postForm(`${provider.issuer}/token`, service, { grant_type: 'client_credentials' })
      const token = body.access_token ?? ''
      const [, payload = ''] = token.split('.')
      const { jti } = JSON.parse(Buffer.from(payload, 'base64url').toString()) as { jti: string }
      await postForm(`${provider.issuer}/revoke`, service, { token }, { 'x-request-id': 'the-end-of-a-token' })
      const other = await registerReceiver(db, provider.issuer)
      const userId = await db.transaction().execute(async (trx) => {
        const { id } = await createUser(trx, systemActor, { email: 'events@example.test', attributes: {} as never })
        await createRole(trx, systemActor, { name: 'events' })
        await assignRole(trx, systemActor, { user_id: id, role: 'events' })
        return id
      })
      await db.transaction().execute((trx) => unassignRole(trx, operator, { user_id: userId, role: 'events' }))
      await db
        .transaction()
        .execute((trx) => setPassword(trx, { type: 'user', id: userId }, { userId, passwordHash: anyHash }))
      await db.transaction().execute((trx) => disableClient(trx, operator, { id: other.client_id }))
      const events = await readAll((await now(stream)).sets)
      expect(events.map((event) => [subjectOf(event), event.type, event.event['initiating_entity']])).toEqual([
        [`token ${jti}`, 'session-revoked', 'system'],
        [`user ${userId}`, 'token-claims-change', 'admin'],
        [`user ${userId}`, 'credential-change', 'user'],
        [`application ${other.client_id}`, 'session-revoked', expect.any(String)],
      ])
      expect(events[0]?.claims.txn).toBe('the-end-of-a-token')
    })

    it('is signed once, and the same to every stream', async () => {
      const [one, two] = [await caughtUp(), await caughtUp()]
      await endSessions(3)
      const [first, second] = await Promise.all([now(one), now(two)])
      expect(Object.keys(first.sets)).toHaveLength(3)
      expect(second.sets).toEqual(first.sets)
      const stored = await db
        .selectFrom('security_events')
        .select(['jti', 'signed_set'])
        .where('jti', 'in', Object.keys(first.sets))
        .execute()
      expect(Object.fromEntries(stored.map(({ jti, signed_set }) => [jti, signed_set]))).toEqual(first.sets)
    })

    it('is signed anew when its key was revoked, and keeps its jti', async () => {
      const stream = await caughtUp()
      const [ended] = await endSessions(1)
      const before = await now(stream)
      const [[jti, set] = ['', '']] = Object.entries(before.sets)
      const { kid = '' } = decodeProtectedHeader(set)
      const encryption = openKeyEncryption({ config: provider.config, log: pino({ level: 'silent' }) })
      const fresh = await prepareSigningKey({ encryption, rsaBits: 2_048 })
      await db.transaction().execute((trx) => revokeKey(trx, operator, { kid, reason: 'stolen', fresh }))
      await until(async () => {
        const { keys } = (await (await fetch(`${provider.issuer}/.well-known/jwks.json`)).json()) as {
          keys: { kid: string }[]
        }
        return keys.every((key) => key.kid !== kid)
      })
      const after = await (
        await new Receiver(provider.issuer, receiver.client).signIn()
      ).poll(stream, {
        returnImmediately: true,
      })
      expect(Object.keys(after.sets)).toContain(jti)
      expect(decodeProtectedHeader(after.sets[jti] ?? '').kid).not.toBe(kid)
      expect((await readAll(after.sets)).map(subjectOf)).toEqual([ended, `key ${kid}`])
      const stored = await db.selectFrom('security_events').select('kid').where('jti', '=', jti).executeTakeFirst()
      expect(stored?.kid).toBe(decodeProtectedHeader(after.sets[jti] ?? '').kid)
      await receiver.signIn()
    })

    it('is never taken for that of another revocation which had its number, before a restore', async () => {
      const stream = await caughtUp()
      const rowOf = (subject: string) =>
        db
          .selectFrom('revocations')
          .select('id')
          .where('subject', '=', subject.replace(/^session /, ''))
          .executeTakeFirstOrThrow()
      const [lost = ''] = await endSessions(1)
      const before = await now(stream)
      expect(await subjects(before.sets)).toEqual([lost])
      const { id } = await rowOf(lost)
      // What the newest of a backup does not have, and the numbers of it too.
      await sql`DELETE FROM revocations WHERE id >= ${id}`.execute(db)
      await sql`SELECT setval(pg_get_serial_sequence('revocations', 'id'), ${id - 1})`.execute(db)
      const [ended = ''] = await endSessions(1)
      expect((await rowOf(ended)).id).toBe(id)
      const after = await receiver.poll(stream, { ack: Object.keys(before.sets) })
      expect(await subjects(after.sets)).toEqual([ended])
      expect((await now(stream, { ack: Object.keys(after.sets) })).sets).toEqual({})
    })

    it('is another when a restore has lost it and kept its revocation, and can be acknowledged', async () => {
      const [stream, other] = [await caughtUp(), await caughtUp()]
      const [ended] = await endSessions(1)
      const before = await now(stream)
      await db.deleteFrom('security_events').where('jti', 'in', Object.keys(before.sets)).execute()
      const after = await receiver.poll(stream, { ack: Object.keys(before.sets) })
      expect(await subjects(after.sets)).toEqual([ended])
      expect(Object.keys(after.sets)).not.toEqual(Object.keys(before.sets))
      expect((await now(stream, { ack: Object.keys(after.sets) })).sets).toEqual({})
      expect((await now(other)).sets).toEqual(after.sets)
    })

    it('is gone with its revocation', async () => {
      const stream = await caughtUp()
      await endSessions(2)
      const { sets } = await now(stream)
      const [gone = '', left = ''] = Object.keys(sets)
      await sql`
        UPDATE revocations SET expires_at = now() - interval '1 second'
        WHERE id = (SELECT revocation_id FROM security_events WHERE jti = ${gone})`.execute(db)
      expect(Object.keys((await now(stream)).sets)).toEqual([left])
      await sweep(db)
      const stored = await db.selectFrom('security_events').select('jti').where('jti', 'in', [gone, left]).execute()
      expect(stored).toEqual([{ jti: left }])
    })
  })

  describe('a stream', () => {
    it('begins with everything that is still revoked, in order and in pages, and a verification at the end of it', async () => {
      await endSessions(5)
      const { rows } = await sql<{ count: number }>`
        SELECT count(*)::int AS count FROM revocations WHERE expires_at > now()`.execute(db)
      const active = rows[0]?.count ?? 0
      const stream = await receiver.createStream()
      await receiver.request('POST', '/ssf/verification', { stream_id: stream, state: 'so far' })
      const received: ReceivedEvent[] = []
      let ack: string[] = []
      for (let pages = 0; ; pages += 1) {
        const page = await now(stream, { maxEvents: 4, ack })
        const events = await readAll(page.sets)
        ack = events.map(({ jti }) => jti)
        received.push(...events)
        expect(events.length).toBeLessThanOrEqual(4)
        if (!page.moreAvailable) {
          expect(pages).toBeGreaterThanOrEqual(Math.floor(active / 4))
          break
        }
      }
      const verification = received.pop()
      expect(verification?.claims['events']).toEqual({ [verificationEvent]: { state: 'so far' } })
      expect(verification?.claims.sub_id).toEqual({ format: 'opaque', id: stream })
      expect(received).toHaveLength(active)
      const { rows: inOrder } = await sql<{ jti: string }>`
        SELECT e.jti FROM revocations r JOIN security_events e ON e.revocation_id = r.id
        WHERE r.expires_at > now() ORDER BY r.transaction_id, r.id`.execute(db)
      expect(received.map(({ jti }) => jti)).toEqual(inOrder.map(({ jti }) => jti))
      expect((await now(stream, { ack })).sets).toEqual({})
    })

    it('sends again what was not acknowledged, and only that', async () => {
      const stream = await caughtUp()
      const [a, b, c] = await endSessions(3)
      const first = await now(stream)
      expect(await subjects(first.sets)).toEqual([a, b, c])
      expect((await now(stream)).sets).toEqual(first.sets)
      const [jtiA, jtiB = '', jtiC] = Object.keys(first.sets)
      // The second alone: the cursor cannot move, and yet it is not sent again.
      expect(await subjects((await now(stream, { ack: [jtiB] })).sets)).toEqual([a, c])
      expect(await subjects((await now(stream, { ack: [jtiB, 'no such event', nobodys] })).sets)).toEqual([a, c])
      const [d] = await endSessions(1)
      expect(await subjects((await now(stream, { ack: [jtiA] })).sets)).toEqual([c, d])
      const last = await now(stream, { ack: [jtiC], maxEvents: 0 })
      expect(last).toMatchObject({ sets: {}, moreAvailable: true })
      expect(await subjects((await now(stream)).sets)).toEqual([d])
      await receiver.drain(stream)
      const receipts = await db.selectFrom('signal_receipts').selectAll().where('stream_id', '=', stream).execute()
      expect(receipts).toEqual([])
    })

    it('whose receiver acknowledges what it was never sent makes it wait, and goes on when it does what it should', async () => {
      const stream = await caughtUp()
      const [a, b] = await endSessions(2)
      const ask = (ack: string[]) => receiver.poll(stream, { ack, maxEvents: 1 })
      const startedAt = performance.now()
      const answers = []
      for (let n = 0; n < 5; n += 1) answers.push(await ask([`${nobodys.slice(1)}${n}`]))
      expect(performance.now() - startedAt).toBeGreaterThan(1_900)
      for (const { sets } of answers) expect(await subjects(sets)).toEqual([a])
      const mendedAt = performance.now()
      expect(await subjects((await ask(Object.keys(answers[0]?.sets ?? {}))).sets)).toEqual([b])
      expect(performance.now() - mendedAt).toBeLessThan(900)
    })

    it('is not moved by what another stream acknowledges', async () => {
      const [one, two] = [await caughtUp(), await caughtUp()]
      await endSessions(2)
      const { sets } = await now(one)
      await now(two, { ack: Object.keys(sets) })
      expect((await now(one)).sets).toEqual(sets)
      expect((await now(two)).sets).toEqual({})
    })

    it('that waits is told within a second, and so are all others; one that finds nothing is told so in time', async () => {
      const streams = [await caughtUp(), await caughtUp(), await caughtUp()]
      const idle = await caughtUp({ events_requested: ['urn:none'] })
      const startedAt = performance.now()
      const empty = receiver.poll(idle)
      const waiting = streams.map((stream) => receiver.poll(stream))
      await sleep(200)
      const revokedAt = performance.now()
      const [ended] = await endSessions(1)
      const answers = await Promise.all(waiting)
      expect(performance.now() - revokedAt).toBeLessThan(1_000)
      for (const { sets } of answers) expect(await subjects(sets)).toEqual([ended])
      expect(await empty).toMatchObject({ status: 200, body: { sets: {}, moreAvailable: false } })
      expect(performance.now() - startedAt).toBeGreaterThan(2_900)
      expect(performance.now() - startedAt).toBeLessThan(8_000)
    })

    it('is verified while it waits', async () => {
      const stream = await caughtUp()
      const waiting = receiver.poll(stream)
      await sleep(100)
      const askedAt = performance.now()
      await receiver.request('POST', '/ssf/verification', { stream_id: stream })
      const { sets } = await waiting
      expect(performance.now() - askedAt).toBeLessThan(1_000)
      const [event] = await readAll(sets)
      expect(event).toMatchObject({ type: 'verification', event: {} })
      // Until it is acknowledged, it is sent again.
      expect(Object.keys((await now(stream)).sets)).toEqual([event?.jti])
      expect((await now(stream, { ack: [event?.jti] })).sets).toEqual({})
    })

    it('is polled once at a time: a second poll ends the first', async () => {
      const stream = await caughtUp()
      const first = receiver.poll(stream)
      await sleep(100)
      const second = receiver.poll(stream)
      expect((await first).status).toBe(409)
      const [ended] = await endSessions(1)
      expect(await subjects((await second).sets)).toEqual([ended])
    })

    it('is left by a receiver that goes away, and waits for it', async () => {
      const stream = await caughtUp()
      const leaving = new AbortController()
      const left = receiver.poll(stream, {}, { signal: leaving.signal })
      await sleep(100)
      leaving.abort()
      await expect(left).rejects.toThrow(/abort/)
      await until(() =>
        Promise.resolve(/"endpoint":"POST \/ssf\/streams\/:stream_id\/events"[^\n]*499/.test(provider.log())),
      )
      const [ended] = await endSessions(1)
      expect(await subjects((await receiver.poll(stream)).sets)).toEqual([ended])
    })

    it('that is deleted while it is waited for says so at once', async () => {
      const stream = await caughtUp()
      const waiting = receiver.poll(stream)
      await sleep(100)
      const deletedAt = performance.now()
      await receiver.request('DELETE', `/ssf/streams?stream_id=${stream}`)
      expect((await waiting).status).toBe(404)
      expect(performance.now() - deletedAt).toBeLessThan(1_000)
    })

    describe.each(['paused', 'disabled'])('that is %s', (status) => {
      const stop = (stream: string) =>
        receiver.request('POST', '/ssf/status', { stream_id: stream, status, reason: 'maintenance' })

      it('tells whoever waits for it, until that is acknowledged', async () => {
        const stream = await caughtUp()
        const waiting = receiver.poll(stream)
        await sleep(100)
        const stoppedAt = performance.now()
        await stop(stream)
        const told = await waiting
        expect(performance.now() - stoppedAt).toBeLessThan(1_000)
        const [event, ...others] = await readAll(told.sets)
        expect(others).toEqual([])
        expect(event).toMatchObject({ type: 'stream-updated', event: { status, reason: 'maintenance' } })
        expect(event?.claims.sub_id).toEqual({ format: 'opaque', id: stream })
        expect(Object.keys((await now(stream)).sets)).toEqual([event?.jti])
        expect((await now(stream, { ack: [event?.jti] })).sets).toEqual({})
      })

      it('never looks as if there were nothing to tell, and does not let its receiver ask without end', async () => {
        const stream = await caughtUp()
        await stop(stream)
        const ack = Object.keys((await now(stream)).sets)
        expect(await now(stream, { ack })).toMatchObject({ sets: {}, moreAvailable: false })
        const startedAt = performance.now()
        const waiting = receiver.poll(stream)
        await sleep(100)
        await endSessions(1)
        expect(await now(stream, { maxEvents: 0 })).toMatchObject({ sets: {}, moreAvailable: true })
        expect((await waiting).status).toBe(409)
        expect(await receiver.poll(stream)).toMatchObject({ sets: {}, moreAvailable: true })
        expect(performance.now() - startedAt).toBeGreaterThan(2_900)
      })

      it('owes a verification too', async () => {
        const stream = await caughtUp()
        await stop(stream)
        const ack = Object.keys((await now(stream)).sets)
        await receiver.request('POST', '/ssf/verification', { stream_id: stream })
        expect(await now(stream, { ack })).toMatchObject({ sets: {}, moreAvailable: true })
      })

      it('sends what is still revoked when it goes on, after saying that it does', async () => {
        const stream = await caughtUp()
        await stop(stream)
        const [ended] = await endSessions(1)
        const waiting = receiver.poll(stream, { ack: Object.keys((await now(stream)).sets) })
        await sleep(100)
        await receiver.request('POST', '/ssf/status', { stream_id: stream, status: 'enabled' })
        const { sets } = await waiting
        expect(await subjects(sets)).toEqual([`stream ${stream}`, ended])
        expect((await readAll(sets))[0]?.event).toEqual({ status: 'enabled' })
        // What says so counts among what an answer may hold.
        const first = await now(stream, { maxEvents: 1 })
        expect(await subjects(first.sets)).toEqual([`stream ${stream}`])
        expect(first.moreAvailable).toBe(true)
        expect((await now(stream, { ack: Object.keys(sets) })).sets).toEqual({})
      })
    })

    it('of some events leaves out the others, and learns of them when it asks for more', async () => {
      const stream = await receiver.createStream({
        events_requested: ['https://schemas.openid.net/secevent/caep/event-type/credential-change'],
      })
      await receiver.drain(stream, 500)
      const [ended] = await endSessions(1)
      await revokeAll({
        kind: 'user',
        subject: 'usr_events',
        tokenVersion: 2,
        reason: 'the password was changed',
        cause: 'password-change',
      })
      expect((await receiver.drain(stream)).map(subjectOf)).toEqual(['user usr_events'])
      await receiver.request('PUT', '/ssf/streams', { stream_id: stream })
      expect((await receiver.drain(stream, 500)).map(subjectOf)).toContain(ended)
    })

    it('does not repeat at once what its receiver refuses, does later, and not for ever', async () => {
      const stream = await caughtUp()
      const [a, b] = await endSessions(2)
      const { sets } = await now(stream)
      const [jtiA = '', jtiB = ''] = Object.keys(sets)
      const refuse = { setErrs: { [jtiA]: { err: 'invalid_request', description: 'no idea' } } }
      expect(await subjects((await now(stream, refuse)).sets)).toEqual([b])
      expect(provider.log()).toContain('a receiver refused events')
      const later = () =>
        sql`UPDATE signal_receipts SET retry_at = now() - interval '1 second'
        WHERE stream_id = ${stream} AND retry_at IS NOT NULL`.execute(db)
      for (let refusals = 2; refusals <= 5; refusals += 1) {
        await later()
        expect(await subjects((await now(stream)).sets)).toEqual([a, b])
        expect(await subjects((await now(stream, refuse)).sets)).toEqual([b])
      }
      await later()
      expect(await subjects((await now(stream)).sets)).toEqual([b])
      expect((await now(stream, { ack: [jtiB] })).sets).toEqual({})
    })

    it('begins anew in a database whose transactions do', async () => {
      const stream = await caughtUp()
      await endSessions(1)
      await sql`
        UPDATE revocations SET transaction_id = '4000000000000' WHERE id = (SELECT max(id) FROM revocations)`.execute(
        db,
      )
      await sql`
        UPDATE signal_streams SET cursor_transaction_id = '4000000000001' WHERE stream_id = ${stream}`.execute(db)
      await sleep(1_100)
      const [ended] = await endSessions(1)
      expect((await receiver.drain(stream, 500)).map(subjectOf)).toContain(ended)
      expect(provider.log()).toContain('began anew')
    })

    it('repeats until it expires what could not be verified, less and less often', async () => {
      const stream = await caughtUp()
      await endSessions(1)
      const { sets } = await now(stream)
      const [jti = ''] = Object.keys(sets)
      const pauses: number[] = []
      for (let refusals = 1; refusals <= 8; refusals += 1) {
        const err = refusals % 2 === 0 ? 'invalid_key' : 'authentication_failed'
        expect((await now(stream, { setErrs: { [jti]: { err, description: 'whatever it says' } } })).sets).toEqual({})
        const { rows } = await sql<{ refusals: number; seconds: number }>`
          SELECT refusals, extract(epoch FROM retry_at - clock_timestamp())::float8 AS seconds
          FROM signal_receipts WHERE stream_id = ${stream}`.execute(db)
        expect(rows[0]?.refusals).toBe(refusals)
        pauses.push(Math.ceil((rows[0]?.seconds ?? 0) / 30) * 30)
        await sql`UPDATE signal_receipts SET retry_at = now() - interval '1 second' WHERE stream_id = ${stream}`.execute(
          db,
        )
        expect((await now(stream)).sets).toEqual(sets)
      }
      expect(pauses).toEqual([30, 60, 120, 240, 480, 600, 600, 600])
      const row = await db
        .selectFrom('signal_streams')
        .select(['refusals', 'last_refusal'])
        .where('stream_id', '=', stream)
        .executeTakeFirst()
      expect(row).toEqual({ refusals: 8, last_refusal: 'invalid_key' })
      expect((await now(stream, { ack: [jti] })).sets).toEqual({})
    })

    it('is listed for operators, with how far it is behind', async () => {
      const stream = await caughtUp()
      await endSessions(2)
      const printed: string[] = []
      const list = (...options: string[]) =>
        runCommand(['signals', 'streams', ...options], {
          config: provider.config,
          io: {
            out: (text) => printed.push(text),
            err: (text) => printed.push(text),
            stdin: () => Promise.resolve(''),
          },
          actor: operator,
          now: () => new Date(),
          withDatabase: (fn) => fn(provider.database),
        })
      expect(await list()).toBe(0)
      expect(printed.join('\n')).toMatch(
        new RegExp(`^${stream} +${receiver.client.client_id} +poll +enabled .* 2 events`, 'm'),
      )
      printed.length = 0
      expect(await list('--json')).toBe(0)
      const lags = JSON.parse(printed.join('\n')) as { stream_id: string; pending: number }[]
      expect(lags.find(({ stream_id }) => stream_id === stream)).toMatchObject({ pending: 2, pending_seconds: 0 })

      // What its receiver refuses has not arrived, though it is not sent again at once.
      const [jti = ''] = Object.keys((await now(stream)).sets)
      await now(stream, { setErrs: { [jti]: { err: 'made up\nby a receiver' } } })
      await receiver.request('POST', '/ssf/status', { stream_id: stream, status: 'paused', reason: 'maintenance' })
      printed.length = 0
      expect(await list()).toBe(0)
      expect(printed.join('\n')).toMatch(
        new RegExp(`^${stream} .* paused: maintenance .* 2 events, .* 1, last [\\dTZ:.-]+ unknown`, 'm'),
      )
    })
  })
})

const nobodys = '6fdb4a7e-0000-4000-8000-000000000000'
const anyHash = '$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' as never

async function until(isDone: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 10_000
  while (!(await isDone())) {
    if (performance.now() > deadline) throw new Error('it did not come to pass')
    await sleep(20)
  }
}
