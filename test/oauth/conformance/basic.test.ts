/**
 * What each module of the OpenID Foundation's plan oidcc-basic checks, under the module's own name.
 */
import { sql } from 'kysely'
import { createRemoteJWKSet, decodeJwt, decodeProtectedHeader, jwtVerify, SignJWT, UnsecuredJWT } from 'jose'
import * as client from 'openid-client'
import { beforeAll, describe, expect, it } from 'vitest'
import { openProvider, type TestProvider } from '../../support/provider.ts'
import {
  ask,
  authorize,
  exchange,
  isActive,
  query,
  refresh,
  registerClient,
  signInAt,
  userinfo,
  withoutPkce,
  type RegisteredClient,
} from '../../support/relying-party.ts'
import { completeSignIn, UserAgent } from '../../support/user-agent.ts'

describe('oidcc-basic', () => {
  let provider: TestProvider
  /** as the suite is: confidential, without PKCE */
  let rp: RegisteredClient
  let other: RegisteredClient
  beforeAll(async () => {
    provider = await openProvider('pglite')
    rp = await registerClient(provider, { require_pkce: false })
    other = await registerClient(provider, { require_pkce: false })
    const everything = {
      given_name: 'Alice',
      family_name: 'Example',
      middle_name: 'M.',
      nickname: 'al',
      preferred_username: 'alice',
      profile: 'https://example.com/alice',
      picture: 'https://example.com/alice.png',
      website: 'https://alice.example.com',
      gender: 'female',
      birthdate: '1980-01-02',
      zoneinfo: 'Europe/London',
      locale: 'en-GB',
      phone_number: '+44 20 7946 0000',
      phone_number_verified: true,
      address: { street_address: '1 Example Street', locality: 'London', country: 'United Kingdom' },
    }
    await provider.database.db
      .updateTable('users')
      .set({ profile: JSON.stringify(everything) as never })
      .where('email', '=', provider.demo.user.email)
      .execute()
  })

  const plain = { ...withoutPkce, scope: 'openid' }

  /** The steps of the suite's own relying party, as openid-client takes them. */
  async function configuration(auth?: client.ClientAuth) {
    return client.discovery(new URL(provider.issuer), rp.client_id, rp.client_secret, auth, {
      execute: [client.allowInsecureRequests],
    })
  }

  async function signIn(parameters: Record<string, string> = {}, auth?: client.ClientAuth) {
    const config = await configuration(auth)
    const nonce = client.randomNonce()
    const state = client.randomState()
    const url = client.buildAuthorizationUrl(config, {
      redirect_uri: rp.redirect_uri,
      scope: 'openid',
      nonce,
      state,
      ...parameters,
    })
    const callback = await completeSignIn(new UserAgent(), url.href, provider.demo.user)
    const tokens = await client.authorizationCodeGrant(config, callback, { expectedNonce: nonce, expectedState: state })
    return { config, tokens, claims: tokens.claims() ?? { sub: '' } }
  }

  /** The past, as the session sees it. */
  async function ageSessions(seconds: number): Promise<void> {
    await sql`UPDATE artifacts
      SET payload = jsonb_set(payload, '{loginTs}', to_jsonb((payload->>'loginTs')::int - ${seconds}::int))
      WHERE kind = 'Session' AND payload ? 'loginTs'`.execute(provider.database.db)
  }

  async function idTokenOf(agent: UserAgent, parameters: Parameters<typeof ask>[2] = {}) {
    const { body } = await signInAt(provider, rp, { agent, parameters: { ...plain, ...parameters } })
    return { body, claims: decodeJwt(body.id_token ?? '') }
  }

  it('oidcc-server: code, ID token and userinfo for a client that proves itself with its secret', async () => {
    const { config, tokens, claims } = await signIn()
    expect(tokens).toMatchObject({ token_type: 'bearer', expires_in: expect.any(Number) })
    const answer = await client.fetchUserInfo(config, tokens.access_token, claims.sub)
    expect(answer).toEqual({ sub: claims.sub })
  })

  it('oidcc-response-type-missing: refuses a request without response_type', async () => {
    const asked = ask(provider, rp, { ...plain, response_type: undefined })
    const page = await new UserAgent().open(asked.url)
    const error = new URL(page.headers.get('location') ?? 'about:blank').searchParams
    expect(Object.fromEntries(error)).toMatchObject({
      error: 'invalid_request',
      state: asked.state,
      iss: provider.issuer,
    })
  })

  it('oidcc-idtoken-signature: signs with a published key, which the header names', async () => {
    const { claims, body } = await idTokenOf(new UserAgent(), { nonce: 'n-1' })
    const keys = createRemoteJWKSet(new URL(`${provider.issuer}/.well-known/jwks.json`))
    const { payload, protectedHeader } = await jwtVerify(body.id_token ?? '', keys, {
      issuer: provider.issuer,
      audience: rp.client_id,
      algorithms: ['RS256'],
    })
    expect(protectedHeader.kid).toEqual(expect.any(String))
    expect(payload).toMatchObject({ nonce: 'n-1', sub: claims.sub, iat: expect.any(Number), exp: expect.any(Number) })
  })

  it('oidcc-idtoken-unsigned: an unsigned ID token cannot even be registered for', async () => {
    const response = await fetch(`${provider.issuer}/.well-known/openid-configuration`)
    const metadata = (await response.json()) as Record<string, string[]>
    expect(metadata['id_token_signing_alg_values_supported']).not.toContain('none')
    const { body } = await idTokenOf(new UserAgent())
    expect(decodeProtectedHeader(body.id_token ?? '').alg).toBe('RS256')
  })

  it('oidcc-userinfo-get, -post-header, -post-body: the access token in the header or in the form, by GET or POST', async () => {
    const { body, claims } = await idTokenOf(new UserAgent())
    const authorization = `Bearer ${body.access_token ?? ''}`
    const url = `${provider.issuer}/userinfo`
    const answers = await Promise.all([
      fetch(url, { headers: { authorization } }),
      fetch(url, { method: 'POST', headers: { authorization } }),
      fetch(url, { method: 'POST', body: query({ access_token: body.access_token }) }),
    ])
    for (const answer of answers) {
      expect(answer.status).toBe(200)
      expect(await answer.json()).toEqual({ sub: claims.sub })
    }
  })

  it('oidcc-ensure-request-without-nonce-succeeds-for-code-flow: and no nonce appears in the ID token', async () => {
    const { claims } = await idTokenOf(new UserAgent(), { nonce: undefined })
    expect(claims).not.toHaveProperty('nonce')
  })

  const profile = [
    'name',
    'given_name',
    'family_name',
    'middle_name',
    'nickname',
    'preferred_username',
    'profile',
    'picture',
    'website',
    'gender',
    'birthdate',
    'zoneinfo',
    'locale',
    'updated_at',
  ]
  const claimsOfScopes = {
    profile,
    email: ['email', 'email_verified'],
    address: ['address'],
    phone: ['phone_number', 'phone_number_verified'],
  }
  for (const [scope, names] of [
    ...Object.entries(claimsOfScopes),
    ['all', Object.values(claimsOfScopes).flat()] as const,
  ]) {
    it(`oidcc-scope-${scope}: userinfo gives exactly those claims`, async () => {
      const asked = scope === 'all' ? 'openid profile email address phone' : `openid ${scope}`
      const { config, tokens, claims } = await signIn({ scope: asked })
      const answer = await client.fetchUserInfo(config, tokens.access_token, claims.sub)
      expect(Object.keys(answer).sort()).toEqual(['sub', ...names].sort())
      if (scope === 'profile' || scope === 'all') expect(answer.updated_at).toEqual(expect.any(Number))
      if (scope === 'address') expect(answer.address).toMatchObject({ country: 'United Kingdom' })
    })
  }

  it('oidcc-alternate-happy-flow: parameters in another order, scopes in another order, a long state', async () => {
    const state = 'x'.repeat(1_000)
    const asked = new URLSearchParams([
      ['scope', 'email profile openid'],
      ['state', state],
      ['response_type', 'code'],
      ['redirect_uri', rp.redirect_uri],
      ['client_id', rp.client_id],
    ])
    const callback = await completeSignIn(new UserAgent(), `${provider.issuer}/authorize?${asked}`, provider.demo.user)
    expect(callback.searchParams.get('state')).toBe(state)
    const code = callback.searchParams.get('code') ?? ''
    const { status } = await exchange(provider, rp, { code, verifier: '' })
    expect(status).toBe(200)
  })

  for (const display of ['page', 'popup']) {
    it(`oidcc-display-${display}: is answered as any other request`, async () => {
      expect((await idTokenOf(new UserAgent(), { display })).claims.sub).toMatch(/^usr_/)
    })
  }

  it('oidcc-prompt-login: the person signs in again, and auth_time says when', async () => {
    const agent = new UserAgent()
    const first = await idTokenOf(agent, { max_age: '10000' })
    await ageSessions(5)
    const page = await agent.open(ask(provider, rp, { ...plain, prompt: 'login' }).url)
    expect(page.html).toContain('name="password"')
    const second = await idTokenOf(agent, { prompt: 'login', max_age: '10000' })
    expect(Number(second.claims['auth_time'])).toBeGreaterThan(Number(first.claims['auth_time']) - 5)
    expect(second.claims.sub).toBe(first.claims.sub)
  })

  it('oidcc-prompt-none-not-logged-in: login_required, and no page', async () => {
    const asked = ask(provider, rp, { ...plain, prompt: 'none' })
    const page = await new UserAgent().open(asked.url)
    const error = new URL(page.headers.get('location') ?? 'about:blank').searchParams
    expect(Object.fromEntries(error)).toMatchObject({
      error: 'login_required',
      state: asked.state,
      iss: provider.issuer,
    })
  })

  it('oidcc-prompt-none-logged-in: the same person and auth_time, and no page', async () => {
    const agent = new UserAgent()
    const first = await idTokenOf(agent, { max_age: '10000' })
    const asked = ask(provider, rp, { ...plain, prompt: 'none', max_age: '10000' })
    const page = await agent.open(asked.url)
    const code = new URL(page.headers.get('location') ?? 'about:blank').searchParams.get('code') ?? ''
    const { body } = await exchange(provider, rp, { code, verifier: '' })
    const second = decodeJwt(body.id_token ?? '')
    expect([second.sub, second['auth_time']]).toEqual([first.claims.sub, first.claims['auth_time']])
  })

  it('oidcc-max-age-1: a sign-in older than that is asked for again, and auth_time is given', async () => {
    const agent = new UserAgent()
    await idTokenOf(agent)
    await ageSessions(2)
    const page = await agent.open(ask(provider, rp, { ...plain, max_age: '1' }).url)
    expect(page.html).toContain('name="password"')
    const { claims } = await idTokenOf(agent, { max_age: '1' })
    expect(Date.now() / 1_000 - Number(claims['auth_time'])).toBeLessThan(30)
  })

  it('oidcc-max-age-10000: a younger one is not, and auth_time is given unchanged', async () => {
    const agent = new UserAgent()
    const first = await idTokenOf(agent, { max_age: '10000' })
    const page = await agent.open(ask(provider, rp, { ...plain, max_age: '10000' }).url)
    expect(new URL(page.headers.get('location') ?? 'about:blank').searchParams.get('code')).not.toBeNull()
    const second = await idTokenOf(agent, { max_age: '10000' })
    expect(second.claims['auth_time']).toBe(first.claims['auth_time'])
  })

  it('oidcc-ensure-request-with-unknown-parameter-succeeds', async () => {
    expect((await idTokenOf(new UserAgent(), { extra: 'foobar' })).claims.sub).toMatch(/^usr_/)
  })

  it('oidcc-id-token-hint: prompt=none with the hint of the person signed in succeeds, with another is refused', async () => {
    const agent = new UserAgent()
    const { body, claims } = await idTokenOf(agent)
    const page = await agent.open(ask(provider, rp, { ...plain, prompt: 'none', id_token_hint: body.id_token }).url)
    const code = new URL(page.headers.get('location') ?? 'about:blank').searchParams.get('code') ?? ''
    const again = await exchange(provider, rp, { code, verifier: '' })
    expect(decodeJwt(again.body.id_token ?? '').sub).toBe(claims.sub)

    const stranger = await authorize(provider, rp, { person: provider.demo.admin, parameters: plain })
    const theirs = await exchange(provider, rp, stranger)
    const refused = await agent.open(
      ask(provider, rp, { ...plain, prompt: 'none', id_token_hint: theirs.body.id_token }).url,
    )
    expect(new URL(refused.headers.get('location') ?? 'about:blank').searchParams.get('error')).toBe('login_required')
  })

  it('oidcc-login-hint: stands in the form', async () => {
    const page = await new UserAgent().open(ask(provider, rp, { ...plain, login_hint: 'alice@example.com' }).url)
    expect(page.html).toMatch(/<input[^>]*name="login"[^>]*value="alice@example\.com"/)
  })

  for (const [module, parameters] of Object.entries({
    'ui-locales': { ui_locales: 'se' },
    'claims-locales': { claims_locales: 'se', scope: 'openid profile' },
    'ensure-request-with-acr-values-succeeds': { acr_values: '1 2' },
  })) {
    it(`oidcc-${module}: what cannot be had is no error`, async () => {
      expect((await idTokenOf(new UserAgent(), parameters)).claims.sub).toMatch(/^usr_/)
    })
  }

  it('oidcc-codereuse: a code works once', async () => {
    const answered = await authorize(provider, rp, { parameters: plain })
    expect((await exchange(provider, rp, answered)).status).toBe(200)
    const again = await exchange(provider, rp, answered)
    expect([again.status, again.body.error]).toEqual([400, 'invalid_grant'])
  })

  it('oidcc-codereuse-30seconds: the second use also ends the access token of the first', async () => {
    const answered = await authorize(provider, rp, { parameters: plain })
    const { body } = await exchange(provider, rp, answered)
    expect((await userinfo(provider, body.access_token)).status).toBe(200)
    await sql`UPDATE artifacts SET consumed_at = consumed_at - interval '30 seconds'
      WHERE kind = 'AuthorizationCode' AND consumed_at IS NOT NULL`.execute(provider.database.db)
    expect((await exchange(provider, rp, answered)).body.error).toBe('invalid_grant')
    expect((await userinfo(provider, body.access_token)).status).toBe(401)
    expect((await refresh(provider, rp, body.refresh_token)).body.error).toBe('invalid_grant')
  })

  it('oidcc-ensure-registered-redirect-uri: an unregistered one gets a page and no redirect', async () => {
    const page = await new UserAgent().open(ask(provider, rp, { ...plain, redirect_uri: `${rp.redirect_uri}/foo` }).url)
    expect([page.status, page.headers.get('location')]).toEqual([400, null])
    expect(page.html).toContain('The application may not receive answers there')
  })

  it('oidcc-ensure-post-request-succeeds: the authorization request may be posted', async () => {
    const asked = ask(provider, rp, plain)
    const agent = new UserAgent()
    const posted = await agent.fetch(`${provider.issuer}/authorize`, { method: 'POST', body: asked.parameters })
    expect(posted.status).toBe(303)
    const callback = await completeSignIn(
      agent,
      new URL(posted.headers.get('location') ?? '', posted.url).href,
      provider.demo.user,
    )
    expect(callback.searchParams.get('state')).toBe(asked.state)
    expect(callback.searchParams.get('code')).not.toBeNull()
  })

  it('oidcc-server-client-secret-post: the secret may stand in the form', async () => {
    const { claims } = await signIn({}, client.ClientSecretPost(rp.client_secret))
    expect(claims.sub).toMatch(/^usr_/)
  })

  const unsigned = (claims: Record<string, string> = {}) =>
    new UnsecuredJWT({ client_id: rp.client_id, ...claims })
      .setIssuer(rp.client_id)
      .setAudience(provider.issuer)
      .encode()

  for (const [module, parameters, error] of [
    [
      'request-uri-unsigned-supported-correctly-or-rejected-as-unsupported',
      () => ({ request_uri: 'https://rp.example.test/request.jwt' }),
      'request_uri_not_supported',
    ],
    [
      'unsigned-request-object-supported-correctly-or-rejected-as-unsupported',
      () => ({ request: unsigned() }),
      'request_not_supported',
    ],
    [
      'ensure-request-object-with-redirect-uri',
      () => ({ request: unsigned({ redirect_uri: 'https://evil.example.test/' }) }),
      'request_not_supported',
    ],
  ] as const) {
    it(`oidcc-${module}: rejected as unsupported, and nothing is fetched`, async () => {
      const asked = ask(provider, rp, { ...plain, ...parameters() })
      const page = await new UserAgent().open(asked.url)
      const location = new URL(page.headers.get('location') ?? 'about:blank')
      expect(location.origin + location.pathname).toBe(rp.redirect_uri)
      expect(Object.fromEntries(location.searchParams)).toMatchObject({ error, state: asked.state })
    })
  }

  it('oidcc-claims-essential: the claims parameter, which is not supported, is passed over and gives nothing', async () => {
    const { config, tokens, claims } = await signIn({
      claims: JSON.stringify({ userinfo: { name: { essential: true } }, id_token: { email: null } }),
    })
    expect(config.serverMetadata().claims_parameter_supported).not.toBe(true)
    const answer = await client.fetchUserInfo(config, tokens.access_token, claims.sub)
    expect(answer).toEqual({ sub: claims.sub })
    expect(claims).not.toHaveProperty('email')
  })

  it('oidcc-refresh-token: refreshes for its own client, and is refused to another', async () => {
    const { config, tokens, claims } = await signIn({ scope: 'openid offline_access', prompt: 'consent' })
    const stolen = await refresh(provider, other, tokens.refresh_token)
    expect([stolen.status, stolen.body.error]).toEqual([400, 'invalid_grant'])
    const refreshed = await client.refreshTokenGrant(config, tokens.refresh_token ?? '')
    expect(refreshed.claims()).toMatchObject({ sub: claims.sub, iss: provider.issuer, aud: rp.client_id })
    expect(refreshed.access_token).not.toBe(tokens.access_token)
    expect(await isActive(provider, rp, refreshed.access_token)).toBe(true)
  })

  it('oidcc-ensure-request-with-valid-pkce-succeeds', async () => {
    const answered = await authorize(provider, rp)
    expect((await exchange(provider, rp, answered)).status).toBe(200)
  })

  it('a code that came with a challenge is refused without the verifier, PKCE required or not', async () => {
    const answered = await authorize(provider, rp)
    const refused = await exchange(provider, rp, answered, { parameters: { code_verifier: undefined } })
    expect([refused.status, refused.body.error]).toEqual([400, 'invalid_grant'])
  })

  it('a code that came without a challenge is refused with a verifier (RFC 9700 §2.1.1: no downgrade)', async () => {
    const answered = await authorize(provider, rp, { parameters: plain })
    const refused = await exchange(provider, rp, { ...answered, verifier: 'A'.repeat(43) })
    expect([refused.status, refused.body.error]).toEqual([400, 'invalid_grant'])
    expect((await exchange(provider, rp, answered)).status).toBe(200)
  })

  it('an ID token hint that is not ours is refused', async () => {
    const forged = await new SignJWT({ sub: 'usr_x' })
      .setProtectedHeader({ alg: 'HS256' })
      .setIssuer(provider.issuer)
      .setAudience(rp.client_id)
      .sign(Buffer.alloc(32))
    const page = await new UserAgent().open(ask(provider, rp, { ...plain, id_token_hint: forged }).url)
    const { searchParams } = new URL(page.headers.get('location') ?? 'about:blank')
    expect(searchParams.get('error')).toBe('invalid_request')
  })
})
