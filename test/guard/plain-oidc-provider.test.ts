/** Tokens of an issuer that is not ours, over HTTP, with the guard in front of a Koa service. */
import { createGuard } from '@latchkey/guard'
import type { Guard } from '@latchkey/guard'
import { authenticate, authOf, requireScopes } from '@latchkey/guard/koa'
import Koa from 'koa'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { serving, startPlainProvider, WORKER } from './support/plain-provider.ts'

const RESOURCE = 'https://api.example.com/models'
const running: { close(): void }[] = []
let issuer: string
let api: string
let guard: Guard

async function tokenFor(parameters: Record<string, string>): Promise<string> {
  const { client_id: id, client_secret: secret } = WORKER
  const response = await fetch(`${issuer}/token`, {
    method: 'POST',
    headers: { authorization: `Basic ${Buffer.from(`${id}:${secret}`).toString('base64')}` },
    body: new URLSearchParams({ grant_type: 'client_credentials', ...parameters }),
  })
  const { access_token: token } = (await response.json()) as { access_token?: string }
  if (token === undefined) throw new Error(`no token: ${response.status}`)
  return token
}

beforeAll(async () => {
  const provider = await startPlainProvider()
  issuer = provider.origin
  guard = createGuard({ issuer, audience: RESOURCE })
  const app = new Koa()
  app.use(authenticate(guard))
  app.use(requireScopes('models:read'))
  app.use((ctx) => {
    const { subject, scopes } = authOf(ctx)
    ctx.body = { id: subject.id, type: subject.type, scopes: [...scopes] }
  })
  const service = await serving(app.callback())
  api = service.origin
  running.push(provider, service)
})

afterAll(() => {
  for (const each of running) each.close()
})

const call = (token: string): Promise<Response> => fetch(api, { headers: { authorization: `Bearer ${token}` } })

describe('a service behind plain oidc-provider', () => {
  it('refuses a token for another service', async () => {
    const response = await call(await tokenFor({ resource: 'https://api.example.com/other', scope: 'models:read' }))
    expect(response.status).toBe(401)
  })

  it('refuses an opaque token', async () => {
    expect((await call(await tokenFor({}))).status).toBe(401)
  })

  it('refuses a token without the scope', async () => {
    const response = await call(await tokenFor({ resource: RESOURCE, scope: 'models:write' }))
    expect(response.status).toBe(403)
    expect(response.headers.get('www-authenticate')).toContain('scope="models:read"')
  })

  it('knows the client that calls, with keys it found by itself, once', async () => {
    const token = await tokenFor({ resource: RESOURCE, scope: 'models:read models:write' })
    for (let round = 0; round < 3; round += 1) {
      const response = await call(token)
      expect(response.status).toBe(200)
      expect(await response.json()).toEqual({ id: 'worker', type: 'client', scopes: ['models:read', 'models:write'] })
    }
    expect(guard.metrics().keyFetches).toBe(1)
    expect(guard.health()).toMatchObject({ status: 'ok', issuers: [{ issuer, keys: 1 }] })
  })
})
