import { once } from 'node:events'
import { connect } from 'node:net'
import { createGuard } from '@latchkey/guard'
import type { AuditEvent } from '@latchkey/guard'
import { createTestIssuer } from '@latchkey/guard/testing'
import type { TestIssuer } from '@latchkey/guard/testing'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { policies, services } from './support/services.ts'
import type { RunningService } from './support/services.ts'

const METADATA = 'https://api.test/.well-known/oauth-protected-resource'

describe.each(services)('a service guarded by the adapter for %s', (name, start) => {
  let idp: TestIssuer
  let service: RunningService
  let events: AuditEvent[]
  let unexpected: unknown[]

  beforeEach(async () => {
    idp = await createTestIssuer({ algorithm: 'ES256' })
    events = []
    unexpected = []
    const guard = createGuard({ ...idp.options, policies, realm: 'models', audit: (event) => events.push(event) })
    service = await start(guard, unexpected)
  })

  afterEach(() => service.close())

  function get(path: string, token?: string, headers: Record<string, string> = {}): Promise<Response> {
    const authorization = token === undefined ? {} : { authorization: `Bearer ${token}` }
    return fetch(service.origin + path, { headers: { ...authorization, ...headers } })
  }

  it('asks whoever sends no token for one, and finds no fault (RFC 6750 §3.1)', async () => {
    const response = await get('/whoami')
    expect(response.status).toBe(401)
    expect(response.headers.get('www-authenticate')).toBe(
      `Bearer realm="models", resource_metadata="${METADATA}", ` +
        `DPoP realm="models", algs="ES256 EdDSA Ed25519 PS256 RS256", resource_metadata="${METADATA}"`,
    )
  })

  it('answers with one body for two readers, and one request id for body, header and log', async () => {
    const response = await get('/whoami', undefined, { 'x-request-id': 'req-7' })
    const body: unknown = await response.json()
    expect(body).toEqual({
      type: 'about:blank',
      title: 'Authentication required',
      status: 401,
      detail: 'This needs an access token in the Authorization header.',
      error: {
        code: 'AUTHENTICATION_ERROR',
        message: 'This needs an access token in the Authorization header.',
        details: [],
      },
      request_id: 'req-7',
      timestamp: expect.stringMatching(/^\d{4}-\d\d-\d\dT[\d:.]+Z$/),
      documentation: 'https://www.rfc-editor.org/rfc/rfc6750#section-2.1',
    })
    expect(response.headers.get('x-request-id')).toBe('req-7')
    expect(response.headers.get('content-type')).toMatch(/^application\/json/)
    expect(response.headers.get('cache-control')).toBe('no-store')
    expect(events).toMatchObject([{ kind: 'refusal', requestId: 'req-7', status: 401, reason: 'missing_credentials' }])
  })

  it('speaks application/problem+json to whoever asks for it (RFC 9457)', async () => {
    const response = await get('/whoami', undefined, { accept: 'application/problem+json' })
    expect(response.headers.get('content-type')).toMatch(/^application\/problem\+json/)
  })

  it('does not repeat a request id that was made to be dangerous', async () => {
    const response = await get('/whoami', undefined, { 'x-request-id': 'a b<script>' })
    expect(response.headers.get('x-request-id')).toMatch(/^[0-9a-f-]{36}$/)
  })

  it('refuses a token that is forged, expired, for somebody else or revoked', async () => {
    const token = await idp.mint()
    const revoked = await idp.mint({ sub: 'mallory' })
    await idp.revoke({ sub: 'mallory' })
    const cases = [
      [`${token.slice(0, -6)}AAAAAA`, 'The access token is not valid here.'],
      [await idp.mint({ audience: 'https://other.test' }), 'The access token is not valid here.'],
      [await idp.mint({ header: { typ: 'JWT' } }), 'The access token is not valid here.'],
      ['junk', 'The access token is not valid here.'],
      [await idp.mint({ expiresIn: '-10s' }), 'The access token expired.'],
      [revoked, 'The access token was revoked.'],
    ] as const
    for (const [credential, description] of cases) {
      const response = await get('/whoami', credential)
      expect(response.status).toBe(401)
      expect(response.headers.get('www-authenticate')).toContain(
        `Bearer realm="models", error="invalid_token", error_description="${description}"`,
      )
    }
  })

  it('refuses a token outside the header, or in two places', async () => {
    const token = await idp.mint()
    expect((await get(`/whoami?access_token=${token}`)).status).toBe(401)
    const twice = await get(`/whoami?access_token=${token}`, token)
    expect(twice.status).toBe(400)
    expect(twice.headers.get('www-authenticate')).toContain('error="invalid_request"')
    expect(await twice.json()).toMatchObject({ status: 400, error: { code: 'VALIDATION_ERROR' } })
  })

  it('refuses two Authorization headers, whatever the first one says', async () => {
    const [good, other] = [await idp.mint(), await idp.mint({ sub: 'bob' })]
    const { hostname, port } = new URL(service.origin)
    const socket = connect(Number(port), hostname)
    await once(socket, 'connect')
    socket.write(
      `GET /whoami HTTP/1.1\r\nHost: ${hostname}\r\nAuthorization: Bearer ${good}\r\nauthorization: Bearer ${other}\r\n` +
        'Connection: close\r\n\r\n',
    )
    let answer = ''
    for await (const chunk of socket) answer += String(chunk)
    expect(answer).toMatch(/^HTTP\/1.1 400 /)
  })

  it('knows who sends a good token', async () => {
    const response = await get('/whoami', await idp.mint({ sub: 'alice' }))
    expect([response.status, await response.json()]).toEqual([200, { id: 'alice', type: 'user' }])
    const machine = await get('/whoami', await idp.mint({ sub: 'worker', clientId: 'worker' }))
    expect(await machine.json()).toEqual({ id: 'worker', type: 'client' })
  })

  it('lets nobody in with a bad token where a token is optional', async () => {
    expect((await get('/optional', 'junk')).status).toBe(401)
    expect((await get('/optional', await idp.mint({ expiresIn: '-10s' }))).status).toBe(401)
    expect((await get('/optional', undefined, { authorization: 'Basic YTpi' })).status).toBe(401)
    expect((await get('/optional', undefined, { authorization: 'Bearer' })).status).toBe(400)
    const nobody = await get('/optional')
    expect([nobody.status, await nobody.json()]).toEqual([200, { id: null, type: null }])
    expect(await (await get('/optional', await idp.mint())).json()).toEqual({ id: 'alice', type: 'user' })
  })

  it('names the scopes that are missing (RFC 6750 §3.1)', async () => {
    const response = await get('/scope', await idp.mint({ scope: 'models:read' }))
    expect(response.status).toBe(403)
    expect(response.headers.get('www-authenticate')).toContain(
      'Bearer realm="models", error="insufficient_scope", error_description="The access token lacks a scope that this needs.", ' +
        'scope="models:read models:write"',
    )
    expect(await response.json()).toMatchObject({ status: 403, error: { code: 'AUTHORIZATION_ERROR' } })
    expect((await get('/scope', await idp.mint({ scope: 'models:write models:read' }))).status).toBe(200)
    expect((await get('/any-scope', await idp.mint({ scope: 'models:read' }))).status).toBe(403)
    expect((await get('/any-scope', await idp.mint({ scope: 'models:admin' }))).status).toBe(200)
  })

  it('refuses a caller without the role, and asks for no other token', async () => {
    const response = await get('/role', await idp.mint({ roles: ['viewer'] }))
    expect(response.status).toBe(403)
    expect(response.headers.get('www-authenticate')).toBeNull()
    expect((await get('/role', await idp.mint({ roles: ['viewer', 'admin'] }))).status).toBe(200)
  })

  it('asks for a stronger or a more recent sign-in (RFC 9470)', async () => {
    const now = Math.floor(idp.now() / 1000)
    const response = await get('/recent', await idp.mint({ claims: { acr: 'pwd', auth_time: now } }))
    expect(response.status).toBe(401)
    expect(response.headers.get('www-authenticate')).toContain('error="insufficient_user_authentication"')
    expect(response.headers.get('www-authenticate')).toContain('acr_values="mfa", max_age="300"')
    expect((await get('/recent', await idp.mint({ claims: { acr: 'mfa' } }))).status).toBe(401)
    expect((await get('/recent', await idp.mint({ claims: { acr: 'mfa', auth_time: now - 400 } }))).status).toBe(401)
    expect((await get('/recent', await idp.mint({ claims: { acr: 'mfa', auth_time: now - 100 } }))).status).toBe(200)
  })

  it('decides about the resource a request is about', async () => {
    const alice = await idp.mint({ sub: 'alice' })
    expect((await get('/read?id=2', alice)).status).toBe(403)
    expect((await get('/delete?id=3', alice)).status).toBe(403)
    expect((await get('/read?id=4', alice)).status).toBe(404)
    expect((await get('/read', alice)).status).toBe(404)
    expect(await (await get('/read?id=1', alice)).json()).toEqual({ found: '1' })
    expect(await (await get('/delete?id=1', alice)).json()).toEqual({ found: '1' })
    expect(await (await get('/read?id=3', alice)).json()).toEqual({ found: '3' })
    // A client calling for itself is not a user, whatever it is called.
    expect((await get('/read?id=1', await idp.mint({ sub: 'alice', clientId: 'alice' }))).status).toBe(403)
    expect(events.filter((event) => event.kind === 'decision')).toContainEqual(
      expect.objectContaining({
        subject: { type: 'user', id: 'alice', issuer: idp.issuer },
        clientId: 'test-client',
        action: 'delete',
        resource: { type: 'model', id: '1' },
        decision: { allowed: true, policy: 'owner-full-access', reason: 'allowed', errors: [] },
      }),
    )
  })

  it('hides that a resource exists from whoever may not even read it', async () => {
    const alice = await idp.mint({ sub: 'alice' })
    const [secret, absent] = [await get('/hidden?id=2', alice), await get('/hidden?id=4', alice)]
    expect([secret.status, absent.status]).toEqual([404, 404])
    const bodies = [await secret.json(), await absent.json()] as Record<string, unknown>[]
    for (const body of bodies) {
      delete body['timestamp']
      delete body['request_id']
    }
    expect(bodies[0]).toEqual(bodies[1])
    expect((await get('/hidden?id=3', alice)).status).toBe(403)
  })

  it('says 503 with Retry-After, never 401, when it cannot know', async () => {
    const alice = await idp.mint({ sub: 'alice' })
    const loader = await get('/read?id=broken', alice)
    expect([loader.status, loader.headers.get('retry-after')]).toEqual([503, '1'])
    const mend = idp.outage('events')
    // It goes on with what it knows until that is too old.
    expect((await get('/whoami', alice)).status).toBe(200)
    idp.advance('61s')
    const revocation = await get('/whoami', alice)
    expect([revocation.status, revocation.headers.get('retry-after')]).toEqual([503, '1'])
    expect(await revocation.json()).toMatchObject({ status: 503, error: { code: 'SERVICE_UNAVAILABLE' } })
    mend()
    expect((await get('/whoami', alice)).status).toBe(200)
  })

  it('answers a refusal that a handler throws, and leaves other errors alone', async () => {
    const response = await get('/throws', await idp.mint())
    expect(response.status).toBe(401)
    expect(response.headers.get('www-authenticate')).toContain(
      `Bearer realm="models", error="insufficient_user_authentication"`,
    )
    expect(response.headers.get('content-type')).toMatch(/^application\/json/)
    expect((await get('/breaks', await idp.mint())).status).toBe(500)
    expect(unexpected.at(-1)).toMatchObject({ message: 'a bug' })
  })

  it('takes a bound token only with a fresh proof of its key (RFC 9449)', async () => {
    const token = await idp.mint({ bound: true })
    const url = 'https://api.test/whoami'
    const proof = await idp.dpop(token, 'GET', url)
    expect((await get('/whoami', token)).status).toBe(401)
    const send = (dpop: string): Promise<Response> =>
      get('/whoami', undefined, { authorization: `DPoP ${token}`, dpop })
    expect((await send(proof)).status).toBe(200)
    const replayed = await send(proof)
    expect(replayed.status).toBe(401)
    expect(replayed.headers.get('www-authenticate')).toContain('DPoP realm="models", error="invalid_dpop_proof"')
    expect((await send(await idp.dpop(token, 'POST', url))).status).toBe(401)
    expect((await send(await idp.dpop(token, 'GET', 'https://api.test/other'))).status).toBe(401)
  })

  it('publishes how it is protected (RFC 9728)', async () => {
    const response = await get('/.well-known/oauth-protected-resource')
    expect(response.status).toBe(200)
    expect(response.headers.get('content-type')).toMatch(/^application\/json/)
    expect(response.headers.get('access-control-allow-origin')).toBe('*')
    expect(await response.json()).toEqual({
      resource: idp.audience,
      authorization_servers: [idp.issuer],
      bearer_methods_supported: ['header'],
      scopes_supported: ['models:read'],
      dpop_signing_alg_values_supported: ['ES256', 'EdDSA', 'Ed25519', 'PS256', 'RS256'],
      dpop_bound_access_tokens_required: false,
    })
    expect((await get('/nothing-here')).status).toBe(404)
  })

  it.skipIf(name === 'web')('refuses nobody where a rule follows an optional token', async () => {
    expect((await get('/optional-scope')).status).toBe(401)
    expect((await get('/optional-scope', await idp.mint({ scope: 'models:read' }))).status).toBe(200)
  })

  it.skipIf(name === 'web')('fails, and lets nobody in, where authenticate was forgotten', async () => {
    expect((await get('/forgotten', await idp.mint({ scope: 'models:read' }))).status).toBe(500)
    expect(unexpected.at(-1)).toMatchObject({ message: 'authenticate(guard) has to run before this' })
  })

  it('answers junk with 400 or 401, never with a 5xx', async () => {
    const junk = ['a', '..', 'a.b.c', '{}', 'null', 'eyJhbGciOiJub25lIn0.e30.', '%00', "' OR 1=1", 'x'.repeat(12_000)]
    for (const credential of junk) expect([400, 401]).toContain((await get('/whoami', credential)).status)
    for (const authorization of ['', ' ', 'Bearer', 'DPoP', 'DPoP a', 'Digest x', 'bearer\tx', '\u00ff']) {
      expect([400, 401]).toContain((await get('/whoami', undefined, { authorization })).status)
    }
    expect(unexpected).toEqual([])
  })
})
