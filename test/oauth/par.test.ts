import { sql } from 'kysely'
import * as client from 'openid-client'
import { beforeAll, describe, expect, it } from 'vitest'
import { openProvider, type TestProvider } from '../support/provider.ts'
import {
  ask,
  exchange,
  query,
  registerClient,
  type RegisteredClient,
  type RequestParameters,
} from '../support/relying-party.ts'
import { completeSignIn, postForm, UserAgent } from '../support/user-agent.ts'

describe('pushed authorization requests (RFC 9126)', () => {
  let provider: TestProvider
  let rp: RegisteredClient
  let other: RegisteredClient
  beforeAll(async () => {
    provider = await openProvider('pglite')
    rp = await registerClient(provider)
    other = await registerClient(provider)
  })

  async function push(by: RegisteredClient, parameters: RequestParameters = {}) {
    const asked = ask(provider, by, parameters)
    const answer = await postForm(`${provider.issuer}/par`, by, asked.parameters)
    return { asked, answer, requestUri: String(answer.body['request_uri']) }
  }

  const open = (agent: UserAgent, by: RegisteredClient, requestUri: string, more: RequestParameters = {}) =>
    agent.open(`${provider.issuer}/authorize?${query({ client_id: by.client_id, request_uri: requestUri, ...more })}`)

  it('refuses what /authorize would refuse, before anybody is asked to sign in', async () => {
    for (const [parameters, error] of [
      [{ response_type: undefined }, 'invalid_request'],
      [{ response_type: 'token' }, 'unsupported_response_type'],
      [{ code_challenge: undefined, code_challenge_method: undefined }, 'invalid_request'],
      [{ code_challenge_method: 'plain' }, 'invalid_request'],
      [{ redirect_uri: 'https://evil.example.test/' }, 'invalid_request'],
      [{ resource: 'https://api.example.test' }, 'invalid_target'],
      [{ request_uri: 'urn:ietf:params:oauth:request_uri:x' }, 'request_uri_not_supported'],
      [{ client_id: other.client_id }, 'invalid_request'],
    ] satisfies [RequestParameters, string][]) {
      const { answer } = await push(rp, parameters)
      expect([answer.status, answer.body.error], JSON.stringify(parameters)).toEqual([400, error])
    }
  })

  it('refuses a client without its secret', async () => {
    const asked = ask(provider, rp)
    const answers = [
      await postForm(`${provider.issuer}/par`, undefined, asked.parameters),
      await postForm(`${provider.issuer}/par`, { ...rp, client_secret: 'x' }, asked.parameters),
    ]
    for (const { status, body } of answers) expect([status, body.error]).toEqual([401, 'invalid_client'])
  })

  it('refuses another client’s request_uri, one that was never given, and one that has expired: a page', async () => {
    const { requestUri, answer } = await push(rp)
    expect(answer.body.expires_in).toBeLessThanOrEqual(60)
    const foreign = await open(new UserAgent(), other, requestUri)
    expect([foreign.status, foreign.headers.get('location')]).toEqual([400, null])
    const unknown = await open(new UserAgent(), rp, 'urn:ietf:params:oauth:request_uri:unknown')
    expect([unknown.status, unknown.headers.get('location')]).toEqual([400, null])
    // Another client's attempt did not use it up.
    expect((await open(new UserAgent(), rp, requestUri)).html).toContain('name="password"')
    await sql`UPDATE artifacts SET expires_at = now() WHERE kind = 'PushedAuthorizationRequest'`.execute(
      provider.database.db,
    )
    const expired = await open(new UserAgent(), rp, requestUri)
    expect([expired.status, expired.headers.get('location')]).toEqual([400, null])
  })

  it('takes a request_uri once: what led to a code leads to no second one', async () => {
    const { asked, requestUri } = await push(rp)
    const agent = new UserAgent()
    const url = `${provider.issuer}/authorize?${query({ client_id: rp.client_id, request_uri: requestUri })}`
    const callback = await completeSignIn(agent, url, provider.demo.user)
    expect(callback.searchParams.get('state')).toBe(asked.state)
    const again = await agent.open(url)
    expect([again.status, again.headers.get('location')]).toEqual([400, null])
    const code = callback.searchParams.get('code') ?? ''
    expect((await exchange(provider, rp, { code, verifier: asked.verifier })).status).toBe(200)
  })

  it('takes nothing from the URL that was not pushed', async () => {
    const { requestUri } = await push(rp, { scope: 'openid' })
    const agent = new UserAgent()
    const page = await open(agent, rp, requestUri, {
      scope: 'openid email',
      redirect_uri: 'https://evil.example.test/',
    })
    expect(page.headers.get('location') ?? '').not.toContain('evil.example.test')
    const { email, password } = provider.demo.user
    const answered = page.html.includes('name="password"') ? await agent.submit(page, { login: email, password }) : page
    expect(answered.headers.get('location') ?? '').not.toContain('evil.example.test')
  })

  it('gives a client that must push nothing without it', async () => {
    const strict = await registerClient(provider, { require_pushed_authorization_requests: true })
    const page = await new UserAgent().open(ask(provider, strict).url)
    expect(new URL(page.headers.get('location') ?? 'about:blank').searchParams.get('error')).toBe('invalid_request')
    const { requestUri, answer } = await push(strict)
    expect([answer.status, answer.headers.get('cache-control')]).toEqual([201, 'no-store'])
    expect((await open(new UserAgent(), strict, requestUri)).html).toContain('name="password"')
  })

  it('takes a public client’s request as well', async () => {
    const spa = await registerClient(provider, { type: 'spa' })
    expect((await push(spa)).answer.status).toBe(201)
  })

  it('satisfies openid-client', async () => {
    const config = await client.discovery(new URL(provider.issuer), rp.client_id, rp.client_secret, undefined, {
      execute: [client.allowInsecureRequests],
    })
    const verifier = client.randomPKCECodeVerifier()
    const url = await client.buildAuthorizationUrlWithPAR(config, {
      redirect_uri: rp.redirect_uri,
      scope: 'openid',
      code_challenge: await client.calculatePKCECodeChallenge(verifier),
      code_challenge_method: 'S256',
    })
    expect([...url.searchParams.keys()].sort()).toEqual(['client_id', 'request_uri'])
    const callback = await completeSignIn(new UserAgent(), url.href, provider.demo.user)
    const tokens = await client.authorizationCodeGrant(config, callback, { pkceCodeVerifier: verifier })
    expect(tokens.claims()?.sub).toMatch(/^usr_/)
  })
})
