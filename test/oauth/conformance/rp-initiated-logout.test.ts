/**
 * What each module of the plan oidcc-rp-initiated-logout checks, under the module's own name.
 */
import { SignJWT, generateKeyPair } from 'jose'
import { beforeAll, describe, expect, it } from 'vitest'
import { openProvider, type TestProvider } from '../../support/provider.ts'
import {
  ask,
  query,
  registerClient,
  signInAt,
  withoutPkce,
  type RegisteredClient,
} from '../../support/relying-party.ts'
import { findForms, UserAgent, type Page } from '../../support/user-agent.ts'

describe('oidcc-rp-initiated-logout', () => {
  const afterwards = 'https://rp.example.test/signed-out'
  let provider: TestProvider
  let rp: RegisteredClient
  beforeAll(async () => {
    provider = await openProvider('pglite')
    rp = await registerClient(provider, { require_pkce: false, post_logout_redirect_uris: [afterwards] })
  })

  /** A browser in which somebody has signed in, and the ID token that the client got. */
  async function signedIn() {
    const agent = new UserAgent()
    const { body } = await signInAt(provider, rp, { agent, parameters: withoutPkce })
    return { agent, hint: body.id_token ?? '' }
  }

  const logout = (parameters: Parameters<typeof query>[0]) => `${provider.issuer}/logout?${query(parameters)}`

  /** Presses "Sign out" on the page. */
  async function confirm(agent: UserAgent, page: Page): Promise<Page> {
    expect(page.status, page.html).toBe(200)
    expect(page.html).toContain('id="sign-out"')
    return agent.submit(page, { logout: 'yes' })
  }

  async function isSignedIn(agent: UserAgent): Promise<boolean> {
    const page = await agent.open(ask(provider, rp, { ...withoutPkce, prompt: 'none' }).url)
    return new URL(page.headers.get('location') ?? 'about:blank').searchParams.has('code')
  }

  async function expectRefusal(agent: UserAgent, parameters: Parameters<typeof query>[0]): Promise<void> {
    const page = await agent.open(logout(parameters))
    expect([page.status, page.headers.get('location')]).toEqual([400, null])
    expect(page.html).toContain('id="error-title"')
    expect(findForms(page)).toEqual([])
    expect(await isSignedIn(agent)).toBe(true)
  }

  it('oidcc-rp-initiated-logout-discovery: the metadata name the endpoint', async () => {
    const response = await fetch(`${provider.issuer}/.well-known/openid-configuration`)
    expect(await response.json()).toMatchObject({ end_session_endpoint: `${provider.issuer}/logout` })
  })

  it('oidcc-rp-initiated-logout-bad-post-logout-redirect-uri: a page, and the session goes on', async () => {
    const { agent, hint } = await signedIn()
    await expectRefusal(agent, { id_token_hint: hint, post_logout_redirect_uri: `${afterwards}/other`, state: 's' })
  })

  it('oidcc-rp-initiated-logout-query-added-to-post-logout-redirect-uri: a page, and the session goes on', async () => {
    const { agent, hint } = await signedIn()
    await expectRefusal(agent, { id_token_hint: hint, post_logout_redirect_uri: `${afterwards}?foo=bar`, state: 's' })
  })

  it('oidcc-rp-initiated-logout-modified-id-token-hint: a page, and the session goes on', async () => {
    const { agent, hint } = await signedIn()
    const [header, payload, signature = ''] = hint.split('.')
    const flipped = signature.startsWith('A') ? `B${signature.slice(1)}` : `A${signature.slice(1)}`
    await expectRefusal(agent, {
      id_token_hint: `${header}.${payload}.${flipped}`,
      post_logout_redirect_uri: afterwards,
      state: 's',
    })
  })

  it('oidcc-rp-initiated-logout-bad-id-token-hint: a page, and the session goes on', async () => {
    const { agent } = await signedIn()
    const { privateKey } = await generateKeyPair('RS256')
    const foreign = (audience: unknown) =>
      new SignJWT({ sub: 'usr_x', aud: audience as string })
        .setProtectedHeader({ alg: 'RS256' })
        .setIssuer(provider.issuer)
        .setIssuedAt()
        .setExpirationTime('5 min')
        .sign(privateKey)
    for (const hint of ['garbage', 'a.b.c', await foreign(rp.client_id), await foreign('nobody')]) {
      await expectRefusal(agent, { id_token_hint: hint, post_logout_redirect_uri: afterwards, state: 's' })
    }
    for (const audience of [['nobody'], { a: 1 }, 5, '\0', null]) {
      await expectRefusal(agent, { id_token_hint: await foreign(audience), state: 's' })
    }
  })

  it('oidcc-rp-initiated-logout: hint, address and state: back at the client with the state, signed out', async () => {
    const { agent, hint } = await signedIn()
    const state = 'the-state'
    const page = await agent.open(logout({ id_token_hint: hint, post_logout_redirect_uri: afterwards, state }))
    const { status, headers } = await confirm(agent, page)
    expect([status, headers.get('location')]).toEqual([303, `${afterwards}?state=${state}`])
    expect(await isSignedIn(agent)).toBe(false)
  })

  it('oidcc-rp-initiated-logout-no-id-token-hint: the client may name itself instead', async () => {
    const { agent } = await signedIn()
    const page = await agent.open(
      logout({ client_id: rp.client_id, post_logout_redirect_uri: afterwards, state: 'the-state' }),
    )
    const { headers } = await confirm(agent, page)
    expect(headers.get('location')).toBe(`${afterwards}?state=the-state`)
    expect(await isSignedIn(agent)).toBe(false)
  })

  it('oidcc-rp-initiated-logout-no-id-token-hint: an address without a client is asked about and not followed', async () => {
    const { agent } = await signedIn()
    const page = await agent.open(logout({ post_logout_redirect_uri: afterwards, state: 'the-state' }))
    const after = await confirm(agent, page)
    expect([after.status, after.url.pathname, after.headers.get('location')]).toEqual([200, '/logout/success', null])
    expect(await isSignedIn(agent)).toBe(false)
  })

  it('oidcc-rp-initiated-logout-no-params: a page that says so', async () => {
    const { agent } = await signedIn()
    const after = await confirm(agent, await agent.open(logout({})))
    expect([after.status, after.url.pathname]).toEqual([200, '/logout/success'])
    expect(after.html).toContain('You are signed out')
    expect(await isSignedIn(agent)).toBe(false)
  })

  it('oidcc-rp-initiated-logout-no-post-logout-redirect-uri: a page that says so', async () => {
    const { agent, hint } = await signedIn()
    const after = await confirm(agent, await agent.open(logout({ id_token_hint: hint, state: 'the-state' })))
    expect([after.status, after.url.pathname]).toEqual([200, '/logout/success'])
    expect(await isSignedIn(agent)).toBe(false)
  })

  it('oidcc-rp-initiated-logout-no-state: back at the client, without a state', async () => {
    const { agent, hint } = await signedIn()
    const page = await agent.open(logout({ id_token_hint: hint, post_logout_redirect_uri: afterwards }))
    expect((await confirm(agent, page)).headers.get('location')).toBe(afterwards)
    expect(await isSignedIn(agent)).toBe(false)
  })

  it('oidcc-rp-initiated-logout-only-state: a page that says so', async () => {
    const { agent } = await signedIn()
    const after = await confirm(agent, await agent.open(logout({ state: 'the-state' })))
    expect([after.status, after.url.pathname]).toEqual([200, '/logout/success'])
    expect(await isSignedIn(agent)).toBe(false)
  })

  it('signs out by a posted request too', async () => {
    const { agent, hint } = await signedIn()
    const page = await agent.open(`${provider.issuer}/logout`, {
      method: 'POST',
      body: query({ id_token_hint: hint, post_logout_redirect_uri: afterwards }),
    })
    expect((await confirm(agent, page)).headers.get('location')).toBe(afterwards)
  })

  it('leads on without a question where nobody is signed in, by a form that the browser may send', async () => {
    const agent = new UserAgent()
    const page = await agent.open(
      logout({ client_id: rp.client_id, post_logout_redirect_uri: afterwards, state: 'the-state' }),
    )
    const policy = page.headers.get('content-security-policy') ?? ''
    expect(policy).toContain(`form-action ${provider.issuer} https://rp.example.test;`)
    expect((await agent.submit(page)).headers.get('location')).toBe(`${afterwards}?state=the-state`)
  })

  it('refuses a confirmation that no page of ours asked for, and keeps the session', async () => {
    const { agent, hint } = await signedIn()
    const forged = [query({ logout: 'yes' }), query({ logout: 'yes', xsrf: 'A'.repeat(40) })]
    await agent.open(logout({ id_token_hint: hint, post_logout_redirect_uri: afterwards }))
    for (const body of forged) {
      const page = await agent.open(`${provider.issuer}/logout/confirm`, { method: 'POST', body })
      expect(page.status).toBe(400)
    }
    expect(await isSignedIn(agent)).toBe(true)
  })
})
