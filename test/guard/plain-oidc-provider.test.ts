/** Tokens of an issuer that is not ours: oidc-provider as it comes, over HTTP, with the guard in front of a Koa service. */
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { generateKeyPairSync } from 'node:crypto'
import { createGuard } from '@latchkey/guard'
import type { Guard } from '@latchkey/guard'
import { authenticate, authOf, requireScopes } from '@latchkey/guard/koa'
import Koa from 'koa'
import { Provider } from 'oidc-provider'
import type { JWK } from 'oidc-provider'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'

const RESOURCE = 'https://api.example.com/models'
const servers: Server[] = []
let issuer: string
let api: string
let guard: Guard

async function listen(server: Server): Promise<string> {
  servers.push(server)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

async function tokenFor(parameters: Record<string, string>): Promise<string> {
  const response = await fetch(`${issuer}/token`, {
    method: 'POST',
    body: new URLSearchParams({
      grant_type: 'client_credentials',
      client_id: 'worker',
      client_secret: 'a-secret-of-the-worker',
      ...parameters,
    }),
  })
  const { access_token: token } = (await response.json()) as { access_token?: string }
  if (token === undefined) throw new Error(`no token: ${response.status}`)
  return token
}

beforeAll(async () => {
  const server = createServer()
  issuer = await listen(server)
  const signing = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({ format: 'jwk' })
  const provider = new Provider(issuer, {
    jwks: { keys: [{ ...signing, kid: 'first', use: 'sig', alg: 'RS256' } as unknown as JWK] },
    cookies: { keys: ['only for tests'] },
    clients: [
      {
        client_id: 'worker',
        client_secret: 'a-secret-of-the-worker',
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
        token_endpoint_auth_method: 'client_secret_post',
      },
    ],
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_ctx, resource) => ({
          scope: 'models:read models:write',
          audience: resource,
          accessTokenFormat: 'jwt',
          accessTokenTTL: 300,
          jwt: { sign: { alg: 'RS256' } },
        }),
      },
    },
  })
  const handle = provider.callback()
  server.on('request', (request, response) => void handle(request, response))

  guard = createGuard({ issuer, audience: RESOURCE })
  const app = new Koa()
  app.use(authenticate(guard))
  app.use(requireScopes('models:read'))
  app.use((ctx) => {
    const { subject, scopes } = authOf(ctx)
    ctx.body = { id: subject.id, type: subject.type, scopes: [...scopes] }
  })
  const callback = app.callback()
  api = await listen(createServer((request, response) => void callback(request, response)))
})

afterAll(() => {
  for (const server of servers) {
    server.closeAllConnections()
    server.close()
  }
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
