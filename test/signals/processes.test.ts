/** Servers that stop and servers that are killed, seen by those that they feed. */
import { once } from 'node:events'
import { createServer } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, it, onTestFinished } from 'vitest'
import { revoke } from '../../src/revocation/revocations.ts'
import { createDatabase, onPostgres, openLocation } from '../support/databases.ts'
import { cheapestWorkFactor } from '../support/provider.ts'
import { startServer } from '../support/server-process.ts'
import { pushMethod, Receiver, registerReceiver, subjectOf } from './receiving.ts'

onPostgres(() => {
  it('a server that is killed or stopped takes nothing with it: not what was acknowledged, nor what was not, nor pushing', async () => {
    const database = await createDatabase('postgres')
    const environment = { ...cheapestWorkFactor, LOG_LEVEL: 'warn', LATCHKEY_DRAIN_SECONDS: '1' }
    const first = await startServer({ database, environment })
    const local = await openLocation(database)
    const { db } = local
    onTestFinished(() => local.close())
    const end = (subject: string) =>
      db.transaction().execute((trx) => revoke(trx, { kind: 'session', subject, reason: 'signed out' }))
    const receiver = await new Receiver(first.url, await registerReceiver(db, first.url)).signIn()
    const pushed: string[] = []
    const endpoint = createServer((req, res) => {
      const chunks: Buffer[] = []
      req.on('data', (chunk: Buffer) => chunks.push(chunk))
      req.on('end', () => {
        const payload = Buffer.concat(chunks).toString().split('.')[1] ?? ''
        const { sub_id } = JSON.parse(Buffer.from(payload, 'base64url').toString()) as {
          sub_id: { session?: { id: string } }
        }
        pushed.push(sub_id.session?.id ?? '')
        res.writeHead(202).end()
      })
    }).listen(0, '127.0.0.1')
    onTestFinished(() => {
      endpoint.closeAllConnections()
      endpoint.close()
    })
    await once(endpoint, 'listening')
    const address = endpoint.address()
    if (address === null || typeof address === 'string') throw new Error('a listening server has no port')

    // The first process is alone, so it is the one that pushes; the others must not push beside it.
    await receiver.createStream({
      delivery: { method: pushMethod, endpoint_url: `http://127.0.0.1:${address.port}/` },
    })
    await end('pushed by the first')
    await until(() => pushed.includes('pushed by the first'))
    const [second, third] = await Promise.all(
      [1, 2].map(() => startServer({ database, environment: { ...environment, LATCHKEY_ISSUER: first.url } })),
    )
    if (second === undefined || third === undefined) throw new Error('no servers')
    await sleep(1_500)
    await end('once')
    await until(() => pushed.includes('once'))
    await sleep(500)
    expect(pushed).toEqual(['pushed by the first', 'once'])

    // Acknowledged by a process that is killed right afterwards; and sent by it, and not acknowledged.
    const stream = await receiver.createStream()
    const [before] = Object.entries((await receiver.poll(stream, { maxEvents: 1 })).sets)
    const acknowledged = await receiver.poll(stream, { ack: [before?.[0] ?? ''], returnImmediately: true })
    const waiting = receiver.poll(stream, { ack: Object.keys(acknowledged.sets) }).catch(() => undefined)
    await sleep(300)
    await end('while it dies')
    await first.stop('SIGKILL')
    await waiting
    const elsewhere = receiver.elsewhere(second.url)
    const left = await elsewhere.poll(stream, { returnImmediately: true })
    expect(await subjects(elsewhere, left.sets)).toEqual(['session while it dies'])
    await until(() => pushed.includes('while it dies'), 15_000)

    // A stop says so at once to those that wait, and turns away those that come.
    const polling = elsewhere.poll(stream, { ack: Object.keys(left.sets) })
    await sleep(300)
    const stoppedAt = performance.now()
    second.signal('SIGTERM')
    expect(await polling).toMatchObject({ status: 200, sets: {} })
    expect(performance.now() - stoppedAt).toBeLessThan(1_000)
    const late = await elsewhere.poll(stream)
    expect(late.status).toBe(503)
    expect(late.headers.get('retry-after')).toBe('1')
    expect(await second.ended).toEqual({ code: 0, signal: null })

    const last = receiver.elsewhere(third.url)
    await end('after all that')
    expect(await subjects(last, (await last.poll(stream)).sets)).toEqual(['session after all that'])
    await until(() => pushed.includes('after all that'), 15_000)
  }, 180_000)
})

async function subjects(receiver: Receiver, sets: Readonly<Record<string, string>>): Promise<string[]> {
  return (await Promise.all(Object.entries(sets).map(([jti, set]) => receiver.verify(jti, set)))).map(subjectOf)
}

async function until(isDone: () => boolean, timeoutMs = 10_000): Promise<void> {
  const deadline = performance.now() + timeoutMs
  while (!isDone()) {
    if (performance.now() > deadline) throw new Error('it did not come to pass')
    await sleep(20)
  }
}
