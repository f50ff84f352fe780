/** Events that receivers have pushed to them (RFC 8935). */
import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders, type Server } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { afterEach, beforeAll, describe, expect, it } from 'vitest'
import type { Db } from '../../src/database/database.ts'
import { revoke } from '../../src/revocation/revocations.ts'
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
  answer: (body: string) => number
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
      const status = endpoint.answer(body)
      res.writeHead(status, {
        ...(status === 400 ? { 'content-type': 'application/json' } : {}),
        ...(endpoint.retryAfter === undefined ? {} : { 'retry-after': endpoint.retryAfter }),
      })
      res.end(status === 400 ? '{"err":"invalid_request","description":"no idea"}' : undefined)
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
      const [last] = (await readAll(endpoint.pushed)).slice(-1)
      expect(last).toMatchObject({ type: 'stream-updated', event: { status: 'paused' } })
      endpoint.pushed.length = 0
      await sleep(1_500)
      expect(endpoint.pushed).toEqual([])
      endpoint.answer = () => 202
      await receiver.request('POST', '/ssf/status', { stream_id: stream, status: 'enabled' })
      await until(async () => !(await isBehind(stream)))
      expect(await subjects(endpoint)).toEqual(ended)
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
})

async function until(isDone: () => Promise<boolean>, timeoutMs = 15_000): Promise<void> {
  const deadline = performance.now() + timeoutMs
  while (!(await isDone())) {
    if (performance.now() > deadline) throw new Error('it did not come to pass')
    await sleep(20)
  }
}
