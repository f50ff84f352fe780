/** Events that receivers have pushed to them (RFC 8935). */
import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders, type Server } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { afterEach, beforeAll, describe, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import type { Db, Trx } from '../../src/database/database.ts'
import {
  addClientSecret,
  disableClient,
  enableClient,
  getClient,
  revokeClientSecret,
  revokeEverythingOfClient,
  rotateClientSecret,
  setClientPermissions,
} from '../../src/oauth/clients.ts'
import { signalsPermission, signalsResourceId } from '../../src/oauth/own-entries.ts'
import { revoke } from '../../src/revocation/revocations.ts'
import { listStreamLags } from '../../src/signals/deliveries.ts'
import { eachDatabase } from '../support/databases.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { pushMethod, Receiver, registerReceiver, subjectOf, type ReceivedEvent } from './receiving.ts'

interface Pushed {
  readonly headers: IncomingHttpHeaders
  readonly body: string
  readonly at: number
}

/** A receiver's own endpoint, which answers as it is told to. */
interface Endpoint {
  readonly url: string
  readonly pushed: Pushed[]
  answer: (body: string) => number | Promise<number>
  /** the body of a 400 */
  error: string
  retryAfter: string | undefined
}

const open: Server[] = []

async function startEndpoint(): Promise<Endpoint> {
  const pushed: Pushed[] = []
  const server = createServer((req, res) => {
    const chunks: Buffer[] = []
    req.on('data', (chunk: Buffer) => chunks.push(chunk))
    req.on('end', () => {
      const body = Buffer.concat(chunks).toString()
      pushed.push({ headers: req.headers, body, at: performance.now() })
      void Promise.resolve(endpoint.answer(body)).then((status) => {
        res.writeHead(status, {
          ...(status === 400 ? { 'content-type': 'application/json' } : {}),
          ...(endpoint.retryAfter === undefined ? {} : { 'retry-after': endpoint.retryAfter }),
        })
        res.end(status === 400 ? endpoint.error : undefined)
      })
    })
  }).listen(0, '127.0.0.1')
  open.push(server)
  await once(server, 'listening')
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('a listening server has no port')
  const endpoint: Endpoint = {
    url: `http://127.0.0.1:${address.port}/events`,
    pushed,
    answer: () => 202,
    error: '{"err":"invalid_request","description":"no idea"}',
    retryAfter: undefined,
  }
  return endpoint
}

eachDatabase((_open, engine) => {
  let provider: TestProvider
  let db: Db
  let receiver: Receiver
  let sessions = 0

  const endSessions = async (count: number): Promise<string[]> => {
    const ended = Array.from({ length: count }, () => `pushed-${(sessions += 1)}`)
    for (const subject of ended) {
      await db.transaction().execute((trx) => revoke(trx, { kind: 'session', subject, reason: 'signed out' }))
    }
    return ended.map((subject) => `session ${subject}`)
  }
  const makeStream = (endpoint: Endpoint, more: object = {}) =>
    receiver.createStream({ delivery: { method: pushMethod, endpoint_url: endpoint.url, ...more } })
  const readAll = (pushed: readonly Pushed[]): Promise<ReceivedEvent[]> =>
    Promise.all(
      pushed.map(({ body }) => {
        const { jti } = JSON.parse(Buffer.from(body.split('.')[1] ?? '', 'base64url').toString()) as { jti: string }
        return receiver.verify(jti, body)
      }),
    )
  const subjects = async ({ pushed }: Endpoint) => (await readAll(pushed)).map(subjectOf)
  const rowOf = (stream: string) =>
    db.selectFrom('signal_streams').selectAll().where('stream_id', '=', stream).executeTakeFirstOrThrow()
  const isBehind = async (stream: string) => {
    const { rows } = await sql<{ behind: boolean }>`
      SELECT EXISTS (
        SELECT 1 FROM signal_streams s JOIN revocations r ON (r.transaction_id, r.id) > (s.cursor_transaction_id, s.cursor_id)
        WHERE s.stream_id = ${stream} AND NOT EXISTS (
          SELECT 1 FROM signal_receipts a
          WHERE a.stream_id = s.stream_id AND a.revocation_id = r.id AND a.retry_at IS NULL
        )) AS behind`.execute(db)
    return rows[0]?.behind !== false
  }

  /** Nothing that waits looks whether it is time to try again what was refused, until something wakes it. */
  const wake = () => sql`UPDATE signal_streams SET status = status`.execute(db)

  beforeAll(async () => {
    provider = await openProvider(engine)
    db = provider.database.db
    receiver = await new Receiver(provider.issuer, await registerReceiver(db, provider.issuer)).signIn()
  })
  afterEach(async () => {
    await sql`DELETE FROM signal_streams`.execute(db)
    for (const server of open.splice(0)) {
      server.closeAllConnections()
      server.close()
    }
  })

  describe('a receiver that is pushed to', () => {
    it('gets everything that is revoked, then each within a second, as a token in a request of its own', async () => {
      const before = await endSessions(3)
      const endpoint = await startEndpoint()
      const stream = await makeStream(endpoint, { authorization_header: 'Bearer what-it-wants-to-see' })
      await until(async () => (await subjects(endpoint)).filter((one) => before.includes(one)).length === 3)
      await until(async () => !(await isBehind(stream)))
      endpoint.pushed.length = 0
      const revokedAt = performance.now()
      const [ended] = await endSessions(1)
      await until(() => Promise.resolve(endpoint.pushed.length > 0))
      expect((endpoint.pushed[0]?.at ?? Infinity) - revokedAt).toBeLessThan(1_000)
      expect(await subjects(endpoint)).toEqual([ended])
      expect(endpoint.pushed[0]?.headers).toMatchObject({
        'content-type': 'application/secevent+jwt',
        accept: 'application/json',
        authorization: 'Bearer what-it-wants-to-see',
      })
      await until(async () => !(await isBehind(stream)))
      await sleep(300)
      expect(endpoint.pushed).toHaveLength(1)
    })

    it('is verified when it asks', async () => {
      const endpoint = await startEndpoint()
      const stream = await makeStream(endpoint)
      await until(async () => !(await isBehind(stream)))
      endpoint.pushed.length = 0
      await receiver.request('POST', '/ssf/verification', { stream_id: stream, state: 'are you there' })
      await until(() => Promise.resolve(endpoint.pushed.length > 0))
      const [event] = await readAll(endpoint.pushed)
      expect(event).toMatchObject({ type: 'verification', event: { state: 'are you there' } })
      await until(async () => (await rowOf(stream)).verification_jti === null)
    })

    it('that fails is tried again until it answers, and misses nothing', async () => {
      const endpoint = await startEndpoint()
      const stream = await makeStream(endpoint)
      await until(async () => !(await isBehind(stream)))
      endpoint.pushed.length = 0
      endpoint.answer = () => 503
      const ended = await endSessions(3)
      await until(async () => (await rowOf(stream)).failing_since !== null)
      expect((await rowOf(stream)).last_error).toBe('the receiver answered 503')
      await until(() => Promise.resolve(endpoint.pushed.length >= 2), 20_000)
      // Between two attempts lies a pause.
      const [first, second] = endpoint.pushed.slice(-2)
      expect(endpoint.pushed.length).toBeLessThan(40)
      expect(second?.at ?? 0).toBeGreaterThanOrEqual(first?.at ?? 0)
      endpoint.pushed.length = 0
      endpoint.answer = () => 202
      await until(async () => !(await isBehind(stream)), 30_000)
      expect(new Set(await subjects(endpoint))).toEqual(new Set(ended))
      expect(await rowOf(stream)).toMatchObject({ failing_since: null, last_error: null, status: 'enabled' })
    })

    it('that says when to come back is left alone until then', async () => {
      const endpoint = await startEndpoint()
      const stream = await makeStream(endpoint)
      await until(async () => !(await isBehind(stream)))
      endpoint.pushed.length = 0
      endpoint.answer = () => 429
      endpoint.retryAfter = '3'
      await endSessions(1)
      await until(() => Promise.resolve(endpoint.pushed.length === 1))
      await sleep(2_000)
      expect(endpoint.pushed).toHaveLength(1)
      endpoint.answer = () => 202
      await until(async () => !(await isBehind(stream)), 20_000)
    })

    it('that refuses one token gets the others, and that one again later', async () => {
      const endpoint = await startEndpoint()
      const stream = await makeStream(endpoint)
      await until(async () => !(await isBehind(stream)))
      endpoint.pushed.length = 0
      const refused = Buffer.from('refused').toString('hex')
      endpoint.answer = (body) => {
        const payload = Buffer.from(body.split('.')[1] ?? '', 'base64url').toString()
        return payload.includes(refused) ? 400 : 202
      }
      await db.transaction().execute((trx) => revoke(trx, { kind: 'session', subject: refused, reason: 'signed out' }))
      const [ended] = await endSessions(1)
      await until(async () => (await subjects(endpoint)).includes(ended ?? ''))
      await until(async () => {
        const receipts = await db.selectFrom('signal_receipts').selectAll().where('stream_id', '=', stream).execute()
        return receipts.some(({ refusals, retry_at }) => refusals === 1 && retry_at !== null)
      })
      expect(await rowOf(stream)).toMatchObject({ status: 'enabled', failing_since: null })
      endpoint.pushed.length = 0
      endpoint.answer = () => 202
      await sql`UPDATE signal_receipts SET retry_at = now() - interval '1 second' WHERE retry_at IS NOT NULL`.execute(
        db,
      )
      const [next] = await endSessions(1)
      await until(async () => !(await isBehind(stream)))
      expect(new Set(await subjects(endpoint))).toEqual(new Set([`session ${refused}`, next]))
    })

    it('that has failed for too long is paused, told so, and goes on when it says so', async () => {
      const endpoint = await startEndpoint()
      const stream = await makeStream(endpoint)
      await until(async () => !(await isBehind(stream)))
      endpoint.answer = () => 500
      const ended = await endSessions(1)
      await until(async () => (await rowOf(stream)).failing_since !== null)
      await sql`UPDATE signal_streams SET failing_since = now() - interval '61 minutes'`.execute(db)
      await until(async () => (await rowOf(stream)).status === 'paused', 30_000)
      expect((await rowOf(stream)).expires_at).not.toBeNull()
      const status = await receiver.request('GET', `/ssf/status?stream_id=${stream}`)
      expect(status.body['reason']).toContain('the receiver answered 500')
      const last = async () => (await readAll(endpoint.pushed)).at(-1)
      await until(async () => (await last())?.type === 'stream-updated')
      expect(await last()).toMatchObject({ event: { status: 'paused' } })
      // It was told once: of one that does not answer it is not known for longer than this that it hears.
      await until(async () => (await rowOf(stream)).status_jti === null)
      endpoint.pushed.length = 0
      await sleep(1_500)
      expect(endpoint.pushed).toEqual([])
      endpoint.answer = () => 202
      await receiver.request('POST', '/ssf/status', { stream_id: stream, status: 'enabled' })
      await until(async () => !(await isBehind(stream)))
      expect(await subjects(endpoint)).toEqual([`stream ${stream}`, ...ended])
    })

    it('that takes some and fails with others is not given up', async () => {
      const endpoint = await startEndpoint()
      const stream = await makeStream(endpoint)
      await until(async () => !(await isBehind(stream)))
      await sql`UPDATE signal_streams SET failing_since = now() - interval '61 minutes'`.execute(db)
      let failures = 1
      endpoint.answer = () => ((failures -= 1) >= 0 ? 500 : 202)
      await db.transaction().execute(async (trx) => {
        for (let n = 0; n < 5; n += 1) {
          await revoke(trx, { kind: 'session', subject: `pushed-${(sessions += 1)}`, reason: 'signed out' })
        }
      })
      await until(() => Promise.resolve(failures < 0))
      await until(async () => !(await isBehind(stream)))
      await expect.poll(() => rowOf(stream)).toMatchObject({ status: 'enabled', failing_since: null })
    })

    it('is told when its stream is stopped, and when it goes on', async () => {
      const endpoint = await startEndpoint()
      const stream = await makeStream(endpoint)
      await until(async () => !(await isBehind(stream)))
      endpoint.pushed.length = 0
      await receiver.request('POST', '/ssf/status', { stream_id: stream, status: 'disabled', reason: 'maintenance' })
      await until(() => Promise.resolve(endpoint.pushed.length > 0))
      const [ended] = await endSessions(1)
      await sleep(1_500)
      expect(await readAll(endpoint.pushed)).toMatchObject([
        { type: 'stream-updated', event: { status: 'disabled', reason: 'maintenance' } },
      ])
      endpoint.pushed.length = 0
      await receiver.request('POST', '/ssf/status', { stream_id: stream, status: 'enabled' })
      await until(async () => !(await isBehind(stream)))
      expect(await subjects(endpoint)).toEqual([`stream ${stream}`, ended])
    })

    it('has everything before a verification when that arrives, however many are sent at once', async () => {
      const endpoint = await startEndpoint()
      const stream = await makeStream(endpoint)
      await until(async () => !(await isBehind(stream)))
      await receiver.request('POST', '/ssf/status', { stream_id: stream, status: 'paused' })
      await until(async () => (await rowOf(stream)).status_jti === null)
      const ended = await endSessions(12)
      await receiver.request('POST', '/ssf/verification', { stream_id: stream, state: 'all of it' })
      endpoint.pushed.length = 0
      const arrived = new Set<string>()
      let arrivedBefore: number | undefined
      let failures = 3
      endpoint.answer = async (body) => {
        const payload = Buffer.from(body.split('.')[1] ?? '', 'base64url').toString()
        if (payload.includes('"state"')) arrivedBefore ??= arrived.size
        const [session] = /pushed-\d+/.exec(payload) ?? []
        if (session === undefined) return 202
        await sleep(50 + Math.random() * 100)
        if (Math.random() < 0.3 && (failures -= 1) >= 0) return 503
        arrived.add(session)
        return 202
      }
      await receiver.request('POST', '/ssf/status', { stream_id: stream, status: 'enabled' })
      await until(() => Promise.resolve(arrivedBefore !== undefined), 20_000)
      expect(arrivedBefore).toBe(ended.length)
    })

    it.each([200, 201, 202, 204, 206, 299])('that answers %s has it', async (status) => {
      const endpoint = await startEndpoint()
      endpoint.answer = () => status
      const stream = await makeStream(endpoint)
      await endSessions(1)
      await until(async () => !(await isBehind(stream)))
      expect(await rowOf(stream)).toMatchObject({ failing_since: null, refusals: 0 })
    })

    it.each([
      ['invalid_key', '{"err":"invalid_key"}', 'invalid_key'],
      ['authentication_failed', '{"err":"authentication_failed"}', 'authentication_failed'],
      ['invalid_audience', '{"err":"invalid_audience","description":"who is that"}', 'invalid_audience'],
      ['what only it understands', '{"err":"kaputt\\nERROR"}', 'unknown'],
      ['nothing that could be read', '<html>Bad Request</html>', 'unknown'],
    ])('that refuses everything with %s is seen to, and sent it again for as long as it matters', async (...row) => {
      const [, error, shown] = row
      const endpoint = await startEndpoint()
      const stream = await makeStream(endpoint)
      await until(async () => !(await isBehind(stream)))
      endpoint.answer = () => 400
      endpoint.error = error
      const [ended] = await endSessions(1)
      for (let refusals = 1; refusals <= 7; refusals += 1) {
        await until(async () => (await rowOf(stream)).refusals === refusals)
        expect(await rowOf(stream)).toMatchObject({ status: 'enabled', last_refusal: shown })
        await sql`UPDATE signal_receipts SET retry_at = now() - interval '1 second' WHERE retry_at IS NOT NULL`.execute(
          db,
        )
        await wake()
      }
      const lag = (await listStreamLags(db)).find(({ stream_id }) => stream_id === stream)
      expect(lag).toMatchObject({ pending: 1, last_refusal: shown })
      endpoint.pushed.length = 0
      endpoint.answer = () => 202
      await sql`UPDATE signal_receipts SET retry_at = now() - interval '1 second' WHERE retry_at IS NOT NULL`.execute(
        db,
      )
      await wake()
      await until(async () => !(await isBehind(stream)), 30_000)
      expect(await subjects(endpoint)).toContain(ended)
    })

    it('is not followed to where it redirects', async () => {
      const elsewhere = await startEndpoint()
      const redirecting = createServer((_req, res) => {
        res.writeHead(307, { location: elsewhere.url })
        res.end()
      }).listen(0, '127.0.0.1')
      open.push(redirecting)
      await once(redirecting, 'listening')
      const address = redirecting.address()
      if (address === null || typeof address === 'string') throw new Error('a listening server has no port')
      const stream = await receiver.createStream({
        delivery: { method: pushMethod, endpoint_url: `http://127.0.0.1:${address.port}/` },
      })
      await endSessions(1)
      await until(async () => (await rowOf(stream)).last_error === 'the receiver answered 307')
      expect(elsewhere.pushed).toEqual([])
    })
  })

  describe('a client that may not receive any more', () => {
    const signals = () => ({ resource: signalsResourceId(provider.issuer), permission: signalsPermission })
    type Change = (trx: Trx, id: string) => Promise<unknown>
    const revoked = 'the tokens of the client were revoked since it was asked for'
    const endings: [string, string, Change, Change | undefined][] = [
      [
        'since it lost the permission',
        revoked,
        (trx, id) => setClientPermissions(trx, systemActor, { id, permissions: [] }),
        (trx, id) => setClientPermissions(trx, systemActor, { id, permissions: [signals()] }),
      ],
      [
        'since the permission was taken without more ado',
        'the client has no permission signals:receive',
        (trx, id) => trx.deleteFrom('client_permissions').where('client_id', '=', id).execute(),
        (trx, id) =>
          trx
            .insertInto('client_permissions')
            .values({ client_id: id, ...signals() })
            .execute(),
      ],
      [
        'since it is disabled',
        'the client is disabled',
        (trx, id) => disableClient(trx, systemActor, { id }),
        (trx, id) => enableClient(trx, systemActor, { id }),
      ],
      [
        'with what it had',
        revoked,
        (trx, id) => revokeEverythingOfClient(trx, systemActor, { id, reason: 'stolen' }),
        undefined,
      ],
      [
        'with the secret that it had',
        revoked,
        async (trx, id) => {
          const [secret] = (await getClient(trx, id)).secrets
          const { secret: fresh } = await addClientSecret(trx, systemActor, { id })
          await revokeClientSecret(trx, systemActor, { id, secret_id: secret?.id ?? '' })
          return fresh
        },
        undefined,
      ],
    ]

    it.each(endings)('%s, is pushed nothing more, and told why', async (_how, reason, end, mend) => {
      const client = await registerReceiver(db, provider.issuer)
      const owner = await new Receiver(provider.issuer, client).signIn()
      const endpoint = await startEndpoint()
      const stream = await owner.createStream({ delivery: { method: pushMethod, endpoint_url: endpoint.url } })
      await until(async () => !(await isBehind(stream)))
      endpoint.pushed.length = 0
      const fresh = await db.transaction().execute((trx) => end(trx, client.client_id))
      const [ended] = await endSessions(1)
      await until(async () => (await rowOf(stream)).status === 'paused')
      await until(() => Promise.resolve(endpoint.pushed.length > 0))
      await sleep(1_200)
      expect(await readAll(endpoint.pushed)).toMatchObject([
        { type: 'stream-updated', event: { status: 'paused', reason } },
      ])
      expect(await rowOf(stream)).toMatchObject({ status: 'paused', status_reason: reason, status_jti: null })
      expect((await rowOf(stream)).expires_at).not.toBeNull()

      // With a token that is good again, whoever owns it lets it go on; what is in a thief's hands does not.
      endpoint.pushed.length = 0
      const go = { stream_id: stream, status: 'enabled' }
      if (reason === revoked || mend === undefined) {
        expect((await owner.request('POST', '/ssf/status', go)).status).toBe(401)
      }
      if (mend !== undefined) await db.transaction().execute((trx) => mend(trx, client.client_id))
      const again = new Receiver(provider.issuer, {
        ...client,
        ...(typeof fresh === 'string' ? { client_secret: fresh } : {}),
      })
      // The provider's own copy of the client is some milliseconds behind.
      await until(async () => {
        await again.signIn().catch(() => undefined)
        return (await again.request('POST', '/ssf/status', go)).status === 200
      })
      await until(async () => !(await isBehind(stream)))
      expect(await subjects(endpoint)).toEqual(expect.arrayContaining([`stream ${stream}`, ended]))
      expect((await rowOf(stream)).status).toBe('enabled')
    })

    it('is pushed to as before when it only gets another secret', async () => {
      const client = await registerReceiver(db, provider.issuer)
      const owner = await new Receiver(provider.issuer, client).signIn()
      const endpoint = await startEndpoint()
      const stream = await owner.createStream({ delivery: { method: pushMethod, endpoint_url: endpoint.url } })
      await db
        .transaction()
        .execute((trx) => rotateClientSecret(trx, systemActor, { id: client.client_id, overlap_seconds: 60 }))
      await until(async () => !(await isBehind(stream)))
      const [ended] = await endSessions(1)
      await until(async () => (await subjects(endpoint)).includes(ended ?? ''))
    })
  })
})

async function until(isDone: () => Promise<boolean>, timeoutMs = 15_000): Promise<void> {
  const deadline = performance.now() + timeoutMs
  while (!(await isDone())) {
    if (performance.now() > deadline) throw new Error('it did not come to pass')
    await sleep(20)
  }
}
