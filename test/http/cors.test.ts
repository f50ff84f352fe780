import { BlockList } from 'node:net'
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { openChanges } from '../../src/database/changes.ts'
import { cors } from '../../src/http/cors.ts'
import { problemResponse } from '../../src/http/problem-response.ts'
import { requestContext } from '../../src/http/request-context.ts'
import { securityHeaders } from '../../src/http/security-headers.ts'
import { createClient, disableClient, enableClient, updateClient } from '../../src/oauth/clients.ts'
import { openRegisteredOrigins, type RegisteredOrigins } from '../../src/oauth/registered-origins.ts'
import { Problem, type ProblemCode } from '../../src/problems.ts'
import { eachDatabase, onPostgres, openLocation, type TestDatabase } from '../support/databases.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { openTestLog, serveApp } from '../support/serve-app.ts'

const issuer = 'http://localhost:3000'
const operator = { type: 'operator', id: 'test' } as const

async function serve(origins: RegisteredOrigins): Promise<string> {
  return serveApp(
    requestContext({ trustProxy: new BlockList(), issuer }),
    securityHeaders({ isProduction: false, issuer }),
    problemResponse({ issuer, log: openTestLog().log }),
    cors({ appliesTo: (path) => path.startsWith('/v1'), isRegisteredOrigin: origins.isRegisteredOrigin }),
    (ctx) => {
      const code = ctx.query['fail']
      if (code === 'bug') throw new Error('a bug')
      if (typeof code === 'string') throw new Problem(code as ProblemCode, undefined, { retryAfterSeconds: 1 })
      ctx.set('Vary', 'Accept-Language')
      ctx.body = {}
    },
  )
}

function preflight(url: string, origin: string): Promise<Response> {
  return fetch(url, {
    method: 'OPTIONS',
    headers: {
      Origin: origin,
      'Access-Control-Request-Method': 'PATCH',
      'Access-Control-Request-Headers': 'authorization,content-type',
    },
  })
}

const allowing = ({ headers }: Response) => [...headers.keys()].filter((name) => name.startsWith('access-control-'))

const list = (text: string | null) => (text ?? '').split(',').map((entry) => entry.trim().toLowerCase())

eachDatabase((open) => {
  async function register(database: TestDatabase, redirectUri: string, id = 'app') {
    await database.db
      .transaction()
      .execute((trx) => createClient(trx, operator, { type: 'spa', id, name: 'App', redirect_uris: [redirectUri] }))
  }

  async function openOrigins(database: TestDatabase): Promise<RegisteredOrigins> {
    const { log } = openTestLog()
    const changes = await openChanges(database, database.location.databaseUrl, log)
    const origins = openRegisteredOrigins(database.db, changes, log)
    onTestFinished(async () => {
      origins.close()
      await changes.close()
    })
    return origins
  }

  it('an origin is registered by the redirect URI of an active client, exactly, and for as long as that is so', async () => {
    const database = await open()
    const origins = await openOrigins(database)
    const isRegistered = (origin: string) => origins.isRegisteredOrigin(origin)
    expect(await isRegistered('https://app.example')).toBe(false)

    await register(database, 'https://app.example/callback')
    await expect.poll(() => isRegistered('https://app.example')).toBe(true)
    for (const other of [
      'http://app.example',
      'https://app.example:8443',
      'https://app.example/',
      'https://APP.example',
      'https://evil-app.example',
      'https://app.example.evil.example',
      'null',
      '',
    ]) {
      expect([other, await isRegistered(other)]).toEqual([other, false])
    }

    await database.db.transaction().execute((trx) => disableClient(trx, operator, { id: 'app' }))
    await expect.poll(() => isRegistered('https://app.example')).toBe(false)
    await database.db.transaction().execute((trx) => enableClient(trx, operator, { id: 'app' }))
    await expect.poll(() => isRegistered('https://app.example')).toBe(true)
    await database.db
      .transaction()
      .execute((trx) => updateClient(trx, operator, { id: 'app', redirect_uris: ['https://new.example/callback'] }))
    await expect.poll(() => isRegistered('https://app.example')).toBe(false)
    expect(await isRegistered('https://new.example')).toBe(true)
  })

  it('an app’s own scheme is no origin, and allows `null` nothing', async () => {
    const database = await open()
    await database.db.transaction().execute((trx) =>
      createClient(trx, operator, {
        type: 'native',
        id: 'phone',
        name: 'Phone',
        redirect_uris: ['com.example.phone:/callback'],
      }),
    )
    const url = await serve(await openOrigins(database))
    for (const origin of ['null', 'com.example.phone:', 'com.example.phone://']) {
      expect(allowing(await preflight(`${url}/v1/users`, origin))).toEqual([])
    }
  })
})

onPostgres((open) => {
  it('while the database is away, what was registered last counts', async () => {
    const database = await open()
    const { log } = openTestLog()
    await database.db.transaction().execute((trx) =>
      createClient(trx, operator, {
        type: 'spa',
        id: 'app',
        name: 'App',
        redirect_uris: ['https://app.example/callback'],
      }),
    )
    const own = await openLocation(database.location)
    const changes = await openChanges(own, database.location.databaseUrl, log)
    const origins = openRegisteredOrigins(own.db, { ...changes, isFresh: () => false }, log)
    expect(await origins.isRegisteredOrigin('https://app.example')).toBe(true)
    await changes.close()
    await own.close()
    expect(await origins.isRegisteredOrigin('https://app.example')).toBe(true)
    expect(await origins.isRegisteredOrigin('https://other.example')).toBe(false)
  })
})

describe('a program in a browser', () => {
  const registered: RegisteredOrigins = {
    isRegisteredOrigin: async (origin) => origin === 'https://app.example',
    close: () => undefined,
  }

  it('of a foreign origin, or of none that has a name, gets a preflight without a single allowing header', async () => {
    const url = await serve(registered)
    for (const origin of ['https://evil.example', 'null', 'https://app.example.evil.example', 'x'.repeat(1_000)]) {
      const answer = await preflight(`${url}/v1/users`, origin)
      expect([answer.status, allowing(answer)]).toEqual([204, []])
      expect(list(answer.headers.get('vary'))).toContain('origin')
    }
  })

  it('of a foreign origin may ask, and may not read', async () => {
    const url = await serve(registered)
    const answer = await fetch(`${url}/v1/users`, { headers: { Origin: 'https://evil.example' } })
    expect([answer.status, allowing(answer)]).toEqual([200, []])
    expect(list(answer.headers.get('vary'))).toContain('origin')
    expect(answer.headers.get('cross-origin-resource-policy')).toBe('same-origin')
  })

  it('of a registered origin gets a preflight that names what it may send, for ten minutes, and no credentials', async () => {
    const url = await serve(registered)
    const { status, headers } = await preflight(`${url}/v1/users`, 'https://app.example')
    expect(status).toBe(204)
    expect(headers.get('access-control-allow-origin')).toBe('https://app.example')
    expect(headers.get('access-control-max-age')).toBe('600')
    expect(headers.get('access-control-allow-credentials')).toBeNull()
    expect(list(headers.get('access-control-allow-methods')).sort()).toEqual(
      ['delete', 'get', 'head', 'patch', 'post', 'put'].sort(),
    )
    expect(list(headers.get('access-control-allow-headers'))).toEqual(
      expect.arrayContaining(['authorization', 'content-type', 'if-match', 'idempotency-key', 'x-api-key', 'dpop']),
    )
    expect(list(headers.get('vary'))).toContain('origin')
  })

  it.each(['', '?fail=AUTHENTICATION_ERROR', '?fail=RATE_LIMIT_EXCEEDED', '?fail=GATEWAY_TIMEOUT', '?fail=bug'])(
    'of a registered origin may read the answer to /v1/users%s, and its headers',
    async (query) => {
      const url = await serve(registered)
      const { headers } = await fetch(`${url}/v1/users${query}`, { headers: { Origin: 'https://app.example' } })
      expect(headers.get('access-control-allow-origin')).toBe('https://app.example')
      expect(headers.get('access-control-allow-credentials')).toBeNull()
      expect(list(headers.get('access-control-expose-headers'))).toEqual(
        expect.arrayContaining([
          'etag',
          'location',
          'link',
          'deprecation',
          'sunset',
          'api-version',
          'ratelimit',
          'ratelimit-policy',
          'x-ratelimit-limit',
          'x-ratelimit-remaining',
          'x-ratelimit-reset',
          'retry-after',
          'x-request-id',
          'accept-patch',
          'allow',
          'www-authenticate',
          'idempotency-replayed',
        ]),
      )
      // The handler had set Vary anew.
      expect(list(headers.get('vary'))).toContain('origin')
      expect(headers.get('cross-origin-resource-policy')).toBe('cross-origin')
    },
  )

  it('finds none of this on other paths, and OPTIONS without a preflight goes its way', async () => {
    const url = await serve(registered)
    expect(allowing(await preflight(`${url}/account/applications`, 'https://app.example'))).toEqual([])
    const { headers } = await fetch(`${url}/account/applications`, { headers: { Origin: 'https://app.example' } })
    expect(headers.get('vary')).toBe('Accept-Language')
    expect(headers.get('cross-origin-resource-policy')).toBe('same-origin')
    const plain = await fetch(`${url}/v1/users`, { method: 'OPTIONS', headers: { Origin: 'https://app.example' } })
    expect([plain.status, allowing(plain)]).toEqual([200, []])
  })

  it('makes caches keep answers apart even when it names no origin', async () => {
    const url = await serve(registered)
    expect(list((await fetch(`${url}/v1/users`)).headers.get('vary'))).toContain('origin')
  })
})

describe('the whole server', () => {
  let provider: TestProvider
  beforeAll(async () => {
    provider = await openProvider('pglite')
  })

  it('lets the origins of its clients ask the API, and reads them a refusal', async () => {
    const { origin } = new URL(provider.demo.clients.spa.redirect_uri)
    const allowed = await preflight(`${provider.issuer}/v1/users`, origin)
    expect([allowed.status, allowed.headers.get('access-control-allow-origin')]).toEqual([204, origin])
    const foreign = await preflight(`${provider.issuer}/v1/users`, 'https://evil.example')
    expect([foreign.status, allowing(foreign)]).toEqual([204, []])
    for (const path of ['/v1/users', '/users', '/v1/nothing', '/openapi.json']) {
      const refused = await fetch(provider.issuer + path, { headers: { Origin: origin } })
      const status = path === '/openapi.json' ? 200 : path === '/v1/nothing' ? 404 : 401
      expect([path, refused.status, refused.headers.get('access-control-allow-origin')]).toEqual([path, status, origin])
      expect(list(refused.headers.get('access-control-expose-headers'))).toContain('www-authenticate')
    }
  })

  it('and no longer once their client is disabled', async () => {
    const { db } = provider.database
    const allowed = async () => allowing(await preflight(`${provider.issuer}/v1/users`, 'https://app.example'))
    await db.transaction().execute((trx) =>
      createClient(trx, operator, {
        type: 'spa',
        id: 'app',
        name: 'App',
        redirect_uris: ['https://app.example/callback'],
      }),
    )
    await expect.poll(allowed).not.toEqual([])
    await db.transaction().execute((trx) => disableClient(trx, operator, { id: 'app' }))
    await expect.poll(allowed).toEqual([])
  })

  it('reads them what the protocol’s endpoints refuse a network before they are reached, and no other', async () => {
    const environment = { LATCHKEY_NETWORK_RATE_PER_SECOND: '1', LATCHKEY_NETWORK_RATE_BURST: '1' }
    const limited = await openProvider('pglite', { environment })
    const { origin } = new URL(limited.demo.clients.spa.redirect_uri)
    async function refused(path: string, from: string): Promise<Response> {
      for (;;) {
        const answer = await fetch(limited.issuer + path, { method: 'POST', headers: { Origin: from } })
        if (answer.status === 429) return answer
      }
    }
    for (const path of ['/token', '/userinfo', '/revoke', '/introspect', '/par']) {
      const { headers } = await refused(path, origin)
      expect([path, headers.get('access-control-allow-origin')]).toEqual([path, origin])
      expect(list(headers.get('access-control-expose-headers'))).toContain('retry-after')
      expect(list(headers.get('vary'))).toContain('origin')
      for (const foreign of ['https://evil.example', 'null']) {
        const answer = await refused(path, foreign)
        expect([path, foreign, allowing(answer)]).toEqual([path, foreign, []])
        expect(list(answer.headers.get('vary'))).toContain('origin')
      }
    }
    // What is answered by the provider has its own rule: anybody may read that a client is missing.
    const own = await fetch(`${provider.issuer}/token`, { method: 'POST', headers: { Origin: 'https://evil.example' } })
    expect(own.headers.get('access-control-allow-origin')).toBe('https://evil.example')
  })

  it('and nobody its pages', async () => {
    const { origin } = new URL(provider.demo.clients.spa.redirect_uri)
    expect(allowing(await preflight(`${provider.issuer}/account/applications`, origin))).toEqual([])
    expect(allowing(await preflight(`${provider.issuer}/authorize`, origin))).toEqual([])
  })
})
