import { setTimeout as sleep } from 'node:timers/promises'
import type { JWTPayload } from 'jose'
import { sql } from 'kysely'
import { expect, it, onTestFinished } from 'vitest'
import { receive } from '../../examples/signals-receiver/receiver.ts'
import { revoke } from '../../src/revocation/revocations.ts'
import { registerReceiver } from '../signals/receiving.ts'
import { openProvider } from '../support/provider.ts'

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

async function until(isDone: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 15_000
  while (!(await isDone())) {
    if (performance.now() > deadline) throw new Error('it did not come to pass')
    await sleep(20)
  }
}
