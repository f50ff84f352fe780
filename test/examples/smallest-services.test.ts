import { createGuard } from '@latchkey/guard'
import type { Guard } from '@latchkey/guard'
import { createTestIssuer } from '@latchkey/guard/testing'
import { getRequestListener } from '@hono/node-server'
import { describe, expect, it } from 'vitest'
import { createService as createExpressService } from '../../examples/express/service.ts'
import { createService as createFastifyService } from '../../examples/fastify/service.ts'
import { createService as createHonoService } from '../../examples/hono/service.ts'
import { createService as createWebService } from '../../examples/web/service.ts'
import { fetchHello } from '../../examples/machine-client/fetch-hello.ts'
import { serving, startPlainProvider, WORKER } from '../guard/support/plain-provider.ts'

type Running = Awaited<ReturnType<typeof serving>>

const services: readonly (readonly [string, (guard: Guard) => Promise<Running>])[] = [
  ['express', (guard) => serving(createExpressService(guard))],
  [
    'fastify',
    async (guard) => {
      const app = createFastifyService(guard)
      return { origin: await app.listen({ port: 0, host: '127.0.0.1' }), close: () => void app.close() }
    },
  ],
  ['hono', (guard) => serving(getRequestListener(createHonoService(guard).fetch))],
  ['web', (guard) => serving(getRequestListener(createWebService(guard)))],
]

describe.each(services)('the example for %s', (_name, start) => {
  it('refuses strangers and tokens without the scope, and greets everybody else', async () => {
    const idp = await createTestIssuer()
    const service = await start(createGuard({ ...idp.options }))
    const hello = async (token?: string): Promise<[number, unknown]> => {
      const headers: Record<string, string> = token === undefined ? {} : { authorization: `Bearer ${token}` }
      const response = await fetch(`${service.origin}/hello`, { headers })
      return [response.status, await response.json()]
    }
    expect(await hello()).toMatchObject([401, { error: { code: 'AUTHENTICATION_ERROR' } }])
    expect(await hello('junk')).toMatchObject([401, {}])
    expect(await hello(await idp.mint())).toMatchObject([403, { error: { code: 'AUTHORIZATION_ERROR' } }])
    expect(await hello(await idp.mint({ scope: 'models:read' }))).toEqual([200, { hello: 'alice' }])
    service.close()
  })
})

describe('the machine client', () => {
  it('gets a token of a real provider and is let in as itself', async () => {
    const provider = await startPlainProvider()
    let listener: (...args: Parameters<Parameters<typeof serving>[0]>) => unknown = () => undefined
    const api = await serving((request, response) => listener(request, response))
    const guard = createGuard({ issuer: provider.origin, audience: api.origin })
    listener = createExpressService(guard)
    const machine = {
      issuer: provider.origin,
      api: api.origin,
      clientId: WORKER.client_id,
      clientSecret: WORKER.client_secret,
    }
    await expect(fetchHello({ ...machine, clientSecret: 'wrong' })).rejects.toThrow(/./)
    expect(await fetchHello(machine)).toEqual({ hello: 'worker' })
    provider.close()
    api.close()
  })
})
