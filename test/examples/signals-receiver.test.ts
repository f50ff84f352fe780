import { setTimeout as sleep } from 'node:timers/promises'
import type { JWTPayload } from 'jose'
import { sql } from 'kysely'
import { expect, it, onTestFinished } from 'vitest'
import { receive } from '../../examples/signals-receiver/receiver.ts'
import { revoke } from '../../src/revocation/revocations.ts'
import { Receiver, registerReceiver } from '../signals/receiving.ts'
import { findFreePort } from '../support/ports.ts'
import { openProvider } from '../support/provider.ts'
import { openReverseProxy } from '../support/reverse-proxy.ts'

it('a receiver that knows the standards alone learns what was revoked, and goes on when its stream and token are gone', async () => {
  const provider = await openProvider('pglite')
  const { db } = provider.database
  const end = (subject: string) =>
    db.transaction().execute((trx) => revoke(trx, { kind: 'session', subject, reason: 'signed out' }))
  const received: JWTPayload[] = []
  const learned = () => received.map(({ sub_id }) => (sub_id as { session: { id: string } }).session.id)
  const stop = new AbortController()
  const client = await registerReceiver(db, provider.issuer)
  await end('before')
  const ended = receive({
    issuer: provider.issuer,
    clientId: client.client_id,
    clientSecret: client.client_secret,
    onEvent: (claims) => void received.push(claims),
    signal: stop.signal,
  })
  onTestFinished(() => stop.abort())

  await until(() => learned().length === 1)
  await end('while it waits')
  await until(() => learned().length === 2)
  expect(learned()).toEqual(['before', 'while it waits'])
  // Acknowledged with the next poll, so that they are not sent again.
  await until(async () => {
    const streams = await db.selectFrom('signal_streams').select('cursor_id').execute()
    return streams[0]?.cursor_id === 2
  })

  await sql`DELETE FROM signal_streams`.execute(db)
  await db.updateTable('clients').set({ token_version: 2 }).where('id', '=', client.client_id).execute()
  await end('and after')
  await until(() => learned().includes('and after'))
  stop.abort()
  await ended
})

it('a receiver that is there before its provider, and is sent a token that is no good, learns all the others', async () => {
  const port = await findFreePort()
  const proxy = await openReverseProxy(await findFreePort(), [port])
  onTestFinished(() => proxy.close())
  proxy.block(() => true)
  const provider = await openProvider('pglite', { environment: { PORT: String(port), LATCHKEY_ISSUER: proxy.url } })
  const { db } = provider.database
  const { keys } = (await (await fetch(`http://127.0.0.1:${port}/.well-known/jwks.json`)).json()) as {
    keys: { kid: string }[]
  }
  await db.transaction().execute(async (trx) => {
    await revoke(trx, { kind: 'session', subject: 'forged', reason: 'signed out' })
    const { id } = await trx.selectFrom('revocations').select('id').executeTakeFirstOrThrow()
    const forged = [{ alg: 'RS256', typ: 'secevent+jwt', kid: keys[0]?.kid }, { jti: 'forged' }, 'no signature']
      .map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'))
      .join('.')
    await trx
      .insertInto('security_events')
      .values({ revocation_id: id, jti: 'forged', kid: keys[0]?.kid ?? '', signed_set: forged })
      .execute()
    await revoke(trx, { kind: 'session', subject: 'behind it', reason: 'signed out' })
    await revoke(trx, { kind: 'session', subject: 'not dealt with at first', reason: 'signed out' })
    await revoke(trx, { kind: 'session', subject: 'the last', reason: 'signed out' })
  })
  const learned: string[] = []
  let hasFailed = false
  const stop = new AbortController()
  const client = await registerReceiver(db, provider.issuer)
  const ended = receive({
    issuer: provider.issuer,
    clientId: client.client_id,
    clientSecret: client.client_secret,
    onEvent: ({ sub_id, events }) => {
      if (Object.keys(events as object)[0]?.endsWith('/stream-updated')) return
      const { id } = (sub_id as { session: { id: string } }).session
      if (id === 'not dealt with at first' && !hasFailed) {
        hasFailed = true
        throw new Error('the table is full')
      }
      learned.push(id)
    },
    signal: stop.signal,
  })
  onTestFinished(() => stop.abort())
  await Promise.race([ended, sleep(1_500)])
  expect(learned).toEqual([])
  proxy.unblock()
  await until(() => learned.length >= 3)
  expect(learned).toEqual(['behind it', 'the last', 'not dealt with at first'])
  const streams = () => db.selectFrom('signal_streams').select(['stream_id', 'refusals', 'last_refusal']).execute()
  await until(async () => (await streams())[0]?.refusals === 1)
  expect(await streams()).toMatchObject([{ last_refusal: 'authentication_failed' }])

  // Somebody stops its stream: it hears of it, and makes another.
  const colleague = await new Receiver(provider.issuer, client).signIn()
  const [{ stream_id: stopped } = { stream_id: '' }] = await streams()
  await colleague.request('POST', '/ssf/status', { stream_id: stopped, status: 'disabled' })
  await db.transaction().execute((trx) => revoke(trx, { kind: 'session', subject: 'meanwhile', reason: 'signed out' }))
  await until(() => learned.includes('meanwhile'))
  expect((await streams()).length).toBe(2)
  stop.abort()
  await ended
})

async function until(isDone: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 15_000
  while (!(await isDone())) {
    if (performance.now() > deadline) throw new Error('it did not come to pass')
    await sleep(20)
  }
}
