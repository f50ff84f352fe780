/** A server that dies after the effect and before its answer, and the client that notices nothing but the time. */
import { createClient } from '@latchkey/client'
import { expect, it, onTestFinished } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import { createClient as registerMachine } from '../../src/oauth/clients.ts'
import { createDatabase, onPostgres, openLocation } from '../support/databases.ts'
import { findFreePort } from '../support/ports.ts'
import { cheapestWorkFactor } from '../support/provider.ts'
import { startServer } from '../support/server-process.ts'
import { openGateway } from './gateway.ts'

onPostgres(() => {
  it('a server killed between effect and answer, and started again: one effect, and its answer', async () => {
    const gateway = await openGateway()
    const port = (gateway.port = await findFreePort())
    const database = await createDatabase('postgres')
    const start = () =>
      startServer({ database, port, environment: { ...cheapestWorkFactor, LATCHKEY_ISSUER: gateway.url } })
    let server = await start()

    const handle = await openLocation(database)
    onTestFinished(() => handle.close())
    const resource = `${gateway.url}/v1`
    const { client: machine, secret = '' } = await handle.db.transaction().execute((trx) =>
      registerMachine(trx, systemActor, {
        type: 'machine',
        name: 'Sync',
        permissions: [{ resource, permission: 'clients:write' }],
        default_resource: resource,
      }),
    )
    const latchkey = createClient({
      baseUrl: gateway.url,
      auth: { clientId: machine.id, clientSecret: secret },
      // The connection breaks once the server is back, however long that takes here.
      readTimeoutMs: 60_000,
      totalTimeoutMs: 60_000,
    })
    onTestFinished(() => latchkey.close())

    gateway.plan({
      loseAnswer: true,
      async before() {
        await server.stop('SIGKILL')
        server = await start()
      },
    })
    // A secret is shown once; the answer that it was in is the one that was lost.
    const body = { type: 'machine', name: 'Made once' } as const
    const { data: made, response } = await latchkey.POST('/v1/clients', { body })
    expect(response.headers.get('idempotency-replayed')).toBe('true')
    expect(made.client_secret).toMatch(/^lk_secret_/)
    const rows = await handle.db.selectFrom('clients').select('id').where('name', '=', 'Made once').execute()
    expect(rows).toEqual([{ id: made.client_id }])
  })
})
