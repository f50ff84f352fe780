/**
 * Every endpoint of the protocol against input that nobody sends by mistake: the answer is a clear refusal, never a 5xx,
 * and the server is as well afterwards as before.
 */
import { SignJWT, UnsecuredJWT } from 'jose'
import { request as httpRequest } from 'node:http'
import { beforeAll, describe, expect, it } from 'vitest'
import { openProvider, type TestProvider } from '../../support/provider.ts'
import {
  ask,
  authorize,
  query,
  registerClient,
  signInAt,
  type RegisteredClient,
  type RequestParameters,
} from '../../support/relying-party.ts'
import { UserAgent } from '../../support/user-agent.ts'

describe('hostile input', () => {
  let provider: TestProvider
  let rp: RegisteredClient
  let service: RegisteredClient
  beforeAll(async () => {
    provider = await openProvider('pglite')
    rp = await registerClient(provider)
    service = { ...provider.demo.clients.service, redirect_uri: '' }
  })

  const hostile: Readonly<Record<string, string>> = {
    'a null byte': 'a\0b',
    'control characters': 'a\x01\x02\x1b[31m\r\nSet-Cookie: x=1',
    'half of a surrogate pair': '\ud800',
    'a right-to-left override': '\u202egnp.exe',
    markup: '"><script>alert(1)</script>',
    SQL: `'; DROP TABLE users; --`,
    'a template': '<%= process.env %>${7*7}{{7*7}}',
    'a prototype': '__proto__',
    'a property of every object': 'constructor',
    'a path': '../../../../etc/passwd',
    'ten thousand characters': 'x'.repeat(10_000),
    nothing: '',
    'a space': ' ',
    JSON: '{"a":[1]}',
    'a number out of reach': '1e999',
  }

  async function post(path: string, body: BodyInit, headers: Record<string, string> = {}) {
    const response = await fetch(`${provider.issuer}${path}`, { method: 'POST', body, headers, redirect: 'manual' })
    return { status: response.status, headers: response.headers, text: await response.text() }
  }

  const basic = (id: string, secret: string) => ({
    authorization: `Basic ${Buffer.from(`${id}:${secret}`).toString('base64')}`,
  })
  const asRp = () => basic(rp.client_id, rp.client_secret ?? '')

  /** An error of RFC 6749 §5.2, in JSON, kept by nobody; `answers` names what else is right. */
  function expectOAuthError(answer: { status: number; headers: Headers; text: string }, what: string): void {
    expect([400, 401, 413, 415], `${what}: ${answer.text.slice(0, 300)}`).toContain(answer.status)
    expect(answer.headers.get('content-type'), what).toMatch(/^application\/json/)
    expect(answer.headers.get('cache-control'), what).toContain('no-store')
    expect(answer.headers.get('set-cookie'), what).toBeNull()
    const body = JSON.parse(answer.text) as Record<string, unknown>
    expect(body['error'], what).toMatch(/^[a-z_]+$/)
    expect(answer.text, what).not.toMatch(/\bat \/|node_modules|SELECT |INSERT /)
  }

  async function expectWell(): Promise<void> {
    const token = await post(
      '/token',
      query({ grant_type: 'client_credentials' }),
      basic(service.client_id, service.client_secret ?? ''),
    )
    expect(token.status).toBe(200)
  }

  const authorizationParameters = [
    'client_id',
    'redirect_uri',
    'response_type',
    'scope',
    'state',
    'nonce',
    'resource',
    'code_challenge',
    'code_challenge_method',
    'prompt',
    'max_age',
    'id_token_hint',
    'login_hint',
    'acr_values',
    'ui_locales',
    'claims',
    'response_mode',
    'display',
    'dpop_jkt',
    'request',
    'request_uri',
    'registration',
  ]

  for (const [name, value] of Object.entries(hostile)) {
    it(`/authorize gets ${name} in each parameter: a page or an error for the client, never a redirect elsewhere`, async () => {
      for (const parameter of authorizationParameters) {
        const what = `${parameter}: ${name}`
        const page = await new UserAgent().open(ask(provider, rp, { [parameter]: value }).url)
        expect(page.status, `${what} ${page.html.slice(0, 400)}`).toBeLessThan(500)
        expect(page.html, what).not.toContain('<script>alert(1)')
        expect(page.headers.get('set-cookie') ?? '', what).not.toContain('x=1')
        const location = page.headers.get('location')
        if (location !== null) {
          expect(location.startsWith(rp.redirect_uri), `${what} ${location}`).toBe(true)
          expect(new URL(location).searchParams.get('error'), what).toMatch(/^[a-z_]+$/)
        }
      }
    })
  }

  it('/authorize gets each parameter twice: refused, except for resource, which may be', async () => {
    for (const parameter of authorizationParameters) {
      // What is not supported is passed over, however often it comes (RFC 6749 §3.1).
      if (parameter === 'resource' || parameter === 'claims') continue
      const asked = ask(provider, rp)
      const first = asked.parameters.get(parameter) ?? 'x'
      const page = await new UserAgent().open(`${asked.url}&${query({ [parameter]: [first, 'y'] })}`)
      const { searchParams } = new URL(page.headers.get('location') ?? 'about:blank')
      const refused = page.status === 400 || searchParams.has('error')
      expect(refused, `${parameter}: ${page.status} ${page.headers.get('location')}`).toBe(true)
    }
  })

  it('/authorize is too long for a request line, or for a form', async () => {
    const url = ask(provider, rp, { state: 'x'.repeat(100_000) })
    expect((await fetch(url.url)).status).toBe(431)
    const posted = await post('/authorize', url.parameters, { accept: 'text/html' })
    expect(posted.status).toBe(413)
  })

  it('signs in with what a person or client may really write: signs, languages, markup', async () => {
    for (const state of ['"><script>alert(1)</script>', 'žluťoučký 🐴', '100%', 'a+b c&d=e', '\\u0000', '\\\\ud800']) {
      const { callback } = await authorize(provider, rp, { parameters: { state, nonce: state } })
      expect(callback.searchParams.get('state')).toBe(state)
      expect(callback.searchParams.get('code')).not.toBeNull()
    }
  })

  const spending: readonly [string, RequestParameters, readonly string[]][] = [
    [
      '/token',
      {
        grant_type: 'authorization_code',
        code: 'x',
        redirect_uri: 'https://rp.example.test/callback',
        code_verifier: 'A'.repeat(43),
      },
      ['grant_type', 'code', 'redirect_uri', 'code_verifier', 'client_id'],
    ],
    ['/token', { grant_type: 'refresh_token', refresh_token: 'x' }, ['refresh_token', 'scope', 'resource']],
    ['/introspect', { token: 'x' }, ['token_type_hint', 'client_id']],
    ['/revoke', { token: 'x' }, ['token_type_hint', 'client_id']],
  ]
  for (const [path, parameters, names] of spending) {
    it(`${path} gets hostile values in ${names.join(', ')}: an OAuth error`, async () => {
      for (const name of names) {
        for (const [description, value] of Object.entries(hostile)) {
          const answer = await post(path, query({ ...parameters, [name]: value }), asRp())
          const what = `${path} ${name}: ${description}`
          // An unknown token is no error where one asks about it or revokes it (RFC 7662 §2.2, RFC 7009 §2.2).
          if (answer.status === 200) expect(['/introspect', '/revoke'], what).toContain(path)
          else expectOAuthError(answer, what)
        }
      }
      await expectWell()
    })
  }

  it('/token gets hostile values in scope, resource and client_id of a machine: an OAuth error, or what is allowed', async () => {
    for (const name of ['scope', 'resource', 'client_id']) {
      for (const [description, value] of Object.entries(hostile)) {
        const answer = await post(
          '/token',
          query({ grant_type: 'client_credentials', [name]: value }),
          basic(service.client_id, service.client_secret ?? ''),
        )
        if (value.trim() === '' && answer.status === 200) continue
        expectOAuthError(answer, `${name}: ${description}`)
      }
    }
  })

  it('/token, /introspect, /revoke, /par get each parameter twice: refused', async () => {
    const cases: readonly [string, RequestParameters][] = [
      ['/token', { grant_type: ['authorization_code', 'refresh_token'], code: 'x' }],
      [
        '/token',
        { grant_type: 'authorization_code', code: ['x', 'y'], redirect_uri: 'https://rp.example.test/callback' },
      ],
      ['/token', { grant_type: 'refresh_token', refresh_token: ['x', 'y'] }],
      ['/token', { grant_type: 'refresh_token', refresh_token: 'x', scope: ['openid', 'email'] }],
      ['/token', { grant_type: 'client_credentials', client_id: [rp.client_id, 'other'] }],
      ['/introspect', { token: ['x', 'y'] }],
      ['/revoke', { token: ['x', 'y'] }],
      ['/par', { scope: ['openid', 'email'], response_type: 'code', redirect_uri: rp.redirect_uri }],
    ]
    for (const [path, parameters] of cases) {
      const answer = await post(path, query(parameters), asRp())
      expectOAuthError(answer, `${path} ${JSON.stringify(parameters)}`)
      expect(JSON.parse(answer.text)).toMatchObject({ error: 'invalid_request' })
    }
  })

  const formEndpoints = ['/token', '/introspect', '/revoke', '/par']
  for (const path of formEndpoints) {
    it(`${path} gets a body that is no form, too large, or cut off: an OAuth error`, async () => {
      const cases: readonly [string, BodyInit, Record<string, string>][] = [
        ['JSON', '{"grant_type":"client_credentials"}', { 'content-type': 'application/json' }],
        ['multipart', new FormData(), {}],
        ['text', 'grant_type=client_credentials', { 'content-type': 'text/plain' }],
        ['no type', new Uint8Array([1, 2, 3]), {}],
        ['bytes', new Uint8Array([0xff, 0xfe, 0x00, 0x80]), { 'content-type': 'application/x-www-form-urlencoded' }],
        ['an unknown charset', 'a=b', { 'content-type': 'application/x-www-form-urlencoded; charset=nonsense' }],
        ['bad escapes', 'grant_type=%zz&%=%', { 'content-type': 'application/x-www-form-urlencoded' }],
        ['100 KB', query({ token: 'x'.repeat(100_000) }), {}],
        ['ten thousand parameters', 'a=b&'.repeat(10_000), { 'content-type': 'application/x-www-form-urlencoded' }],
        ['a prototype', '__proto__[a]=b&constructor=c', { 'content-type': 'application/x-www-form-urlencoded' }],
        ['nothing', '', { 'content-type': 'application/x-www-form-urlencoded' }],
      ]
      for (const [name, body, headers] of cases) {
        expectOAuthError(await post(path, body, { ...asRp(), ...headers }), `${path}: ${name}`)
      }
    })

    it(`${path} gets another method: 405 and what is allowed, or 404`, async () => {
      for (const method of ['GET', 'PUT', 'DELETE', 'PATCH']) {
        const response = await fetch(`${provider.issuer}${path}`, { method, headers: asRp() })
        expect(response.status, `${method} ${path}`).toBe(405)
        expect(response.headers.get('allow')).toBe('POST')
      }
    })
  }

  it('a body shorter than it promised ends the request, not the server', async () => {
    const { promise, resolve } = Promise.withResolvers<void>()
    const request = httpRequest(`${provider.issuer}/token`, {
      method: 'POST',
      headers: { ...asRp(), 'content-type': 'application/x-www-form-urlencoded', 'content-length': '1000' },
    })
    request.on('error', () => resolve())
    request.write('grant_type=')
    setTimeout(() => request.destroy(), 50)
    await promise
    await expectWell()
  })

  it('an Authorization header that is no Basic: an OAuth error with a challenge where it is 401', async () => {
    const headers: Record<string, string> = {
      empty: '',
      'no credentials': 'Basic',
      'not base64': 'Basic %%%%',
      'no colon': `Basic ${Buffer.from('x').toString('base64')}`,
      'bad escapes': `Basic ${Buffer.from('%zz:%zz').toString('base64')}`,
      'a null byte': `Basic ${Buffer.from('a\0b:c').toString('base64')}`,
      'an escaped null byte': `Basic ${Buffer.from('a%00b:c').toString('base64')}`,
      'no name': `Basic ${Buffer.from(':secret').toString('base64')}`,
      'no secret': `Basic ${Buffer.from(`${rp.client_id}:`).toString('base64')}`,
      'another scheme': 'Bearer abc',
      Negotiate: 'Negotiate abc',
      'a name of 10 KB': `Basic ${Buffer.from(`${'x'.repeat(7_000)}:y`).toString('base64')}`,
      'the name of a property': `Basic ${Buffer.from('__proto__:y').toString('base64')}`,
    }
    for (const path of formEndpoints) {
      for (const [name, authorization] of Object.entries(headers)) {
        const answer = await post(path, query({ grant_type: 'client_credentials', token: 'x' }), { authorization })
        expectOAuthError(answer, `${path}: ${name}`)
        if (answer.status === 401) expect(answer.headers.get('www-authenticate'), name).toMatch(/^Basic /)
      }
    }
  })

  it('an unknown client, a wrong secret and another client’s secret get the same answer', async () => {
    const other = await registerClient(provider)
    const answers = await Promise.all(
      [
        basic('nobody', 'x'),
        basic(rp.client_id, 'x'),
        basic(rp.client_id, other.client_secret ?? ''),
        basic(rp.client_id, `${rp.client_secret}x`),
        basic(rp.client_id.toUpperCase(), rp.client_secret ?? ''),
      ].map((headers) => post('/token', query({ grant_type: 'client_credentials' }), headers)),
    )
    for (const answer of answers) {
      expect([answer.status, JSON.parse(answer.text)]).toEqual([401, JSON.parse(answers[0]?.text ?? '')])
      expect(JSON.parse(answer.text)).toMatchObject({ error: 'invalid_client' })
    }
  })

  it('a client assertion of any shape: an OAuth error', async () => {
    const key = Buffer.alloc(32)
    const sign = (claims: Record<string, unknown>) => new SignJWT(claims).setProtectedHeader({ alg: 'HS256' }).sign(key)
    const assertions = [
      'x',
      'a.b.c',
      '..',
      'e30.e30.',
      'x'.repeat(20_000),
      new UnsecuredJWT({ sub: rp.client_id, iss: rp.client_id }).encode(),
      await sign({ sub: rp.client_id, iss: rp.client_id, aud: provider.issuer, exp: 9_999_999_999, jti: 'j' }),
      await sign({ sub: 'a\0b' }),
      await sign({ sub: 5 }),
      await sign({ sub: { a: 1 } }),
      await sign({ sub: [rp.client_id] }),
      await sign({ sub: 'nobody' }),
    ]
    for (const client_assertion of assertions) {
      for (const path of formEndpoints) {
        const answer = await post(
          path,
          query({
            grant_type: 'client_credentials',
            token: 'x',
            client_assertion,
            client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
          }),
        )
        expectOAuthError(answer, `${path}: ${client_assertion.slice(0, 80)}`)
      }
    }
  })

  it('/userinfo gets tokens that are none: 401 with a challenge, or 400', async () => {
    const { body } = await signInAt(provider, rp)
    const tokens = [
      'x',
      'x'.repeat(10_000),
      'a.b.c',
      `${body.access_token ?? ''}x`,
      body.refresh_token ?? '',
      body.id_token ?? '',
      new UnsecuredJWT({ sub: 'usr_x', scope: 'openid' }).encode(),
      '__proto__',
      '=',
      'a b',
    ]
    for (const token of tokens) {
      const response = await fetch(`${provider.issuer}/userinfo`, { headers: { authorization: `Bearer ${token}` } })
      expect([400, 401], token.slice(0, 40)).toContain(response.status)
      expect(((await response.json()) as { error: string }).error).toMatch(/^(invalid_token|invalid_request)$/)
      if (response.status === 401) expect(response.headers.get('www-authenticate')).toMatch(/^Bearer /)
    }
    const twice = await post('/userinfo', query({ access_token: 'x' }), { authorization: 'Bearer x' })
    expect(twice.status).toBe(400)
    const repeated = await post('/userinfo', query({ access_token: ['x', 'y'] }))
    expect(repeated.status).toBe(400)
    const inQuery = await fetch(`${provider.issuer}/userinfo?${query({ access_token: body.access_token })}`)
    expect(inQuery.status).toBe(400)
    const none = await fetch(`${provider.issuer}/userinfo`)
    expect([none.status, none.headers.get('www-authenticate')]).toEqual([401, expect.stringMatching(/^Bearer .*DPoP /)])
  })

  for (const [name, value] of Object.entries(hostile)) {
    it(`/logout gets ${name} in each parameter: a page, never a redirect`, async () => {
      for (const parameter of [
        'id_token_hint',
        'post_logout_redirect_uri',
        'state',
        'client_id',
        'ui_locales',
        'logout_hint',
      ]) {
        const page = await new UserAgent().open(
          `${provider.issuer}/logout?${query({ client_id: rp.client_id, [parameter]: value })}`,
        )
        expect(page.status, `${parameter} ${page.html.slice(0, 300)}`).toBeLessThan(500)
        expect(page.headers.get('location')).toBeNull()
        expect(page.html).not.toContain('<script>alert(1)')
        const success = await new UserAgent().open(`${provider.issuer}/logout/success?${query({ client_id: value })}`)
        expect(success.status, `success ${success.html.slice(0, 300)}`).toBeLessThan(500)
      }
    })
  }

  it('paths beside the endpoints, and cookies that are none of ours: a page', async () => {
    for (const path of [
      '/authorize/x',
      '/authorize/%00',
      '/authorize/..%2f..%2fetc',
      '/interaction/x',
      '/interaction/%00',
      '/interaction/__proto__',
      '/token/',
      '/.well-known/openid-configuration/x',
      '/device',
      '/reg',
      '/%E0%A4%A',
      '/authorize;a=b',
    ]) {
      const response = await fetch(`${provider.issuer}${path}`, {
        headers: {
          accept: 'text/html',
          cookie: 'session=a; session.sig=b; interaction=c; interaction.sig=d; resume=%00; csrf=%7f; device=x',
        },
        redirect: 'manual',
      })
      expect(response.status, path).toBeGreaterThanOrEqual(400)
      expect(response.status, path).toBeLessThan(500)
    }
  })
})
