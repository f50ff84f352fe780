/**
 * Authorization requests that are refused: where it is safe, by an error at the client; where it is not, by a page.
 */
import { beforeAll, describe, expect, it } from 'vitest'
import { openProvider, type TestProvider } from '../../support/provider.ts'
import {
  ask,
  query,
  registerClient,
  signInAt,
  withoutPkce,
  type RegisteredClient,
  type RequestParameters,
} from '../../support/relying-party.ts'
import { postForm, UserAgent } from '../../support/user-agent.ts'

describe('an authorization request that is refused', () => {
  let provider: TestProvider
  let rp: RegisteredClient
  beforeAll(async () => {
    provider = await openProvider('pglite')
    rp = await registerClient(provider, { redirect_uris: ['https://rp.example.test/callback?tenant=1'] })
  })

  const redirectUris: readonly string[] = [
    'https://rp.example.test/callback',
    'https://rp.example.test/callback?tenant=2',
    'https://rp.example.test/callback?tenant=1&x=y',
    'https://rp.example.test/callback?tenant=1#fragment',
    'https://rp.example.test/callback/?tenant=1',
    'https://rp.example.test/callback/..?tenant=1',
    'https://rp.example.test/callback/../callback?tenant=1',
    'https://rp.example.test/%63allback?tenant=1',
    'https://rp.example.test/Callback?tenant=1',
    'https://rp.example.test//callback?tenant=1',
    'https://RP.example.test/callback?tenant=1',
    'HTTPS://rp.example.test/callback?tenant=1',
    'https://rp.example.test:443/callback?tenant=1',
    'https://rp.example.test:8443/callback?tenant=1',
    'http://rp.example.test/callback?tenant=1',
    'https://rp.example.test@evil.example.test/callback?tenant=1',
    'https://rp.example.test.evil.example.test/callback?tenant=1',
    'https://evil.example.test/callback?tenant=1',
    '//evil.example.test/callback?tenant=1',
    '/callback?tenant=1',
    'https:rp.example.test/callback?tenant=1',
    'https:\\\\rp.example.test/callback?tenant=1',
    ' https://rp.example.test/callback?tenant=1',
    'https://rp.example.test/callback?tenant=1\n',
    'javascript:alert(1)',
    'JavaScript:alert(1)//https://rp.example.test/callback?tenant=1',
    'data:text/html,<script>alert(1)</script>',
    'urn:ietf:wg:oauth:2.0:oob',
    'about:blank',
    'x',
  ]
  it(`${redirectUris.length} addresses that are nearly the registered one: each a page, no redirect, at /par as well`, async () => {
    for (const redirect_uri of redirectUris) {
      const asked = ask(provider, rp, { redirect_uri })
      const page = await new UserAgent().open(asked.url)
      expect([page.status, page.headers.get('location')], redirect_uri).toEqual([400, null])
      expect(page.html).toContain('The application may not receive answers there')
      expect(page.html).not.toContain('evil.example.test')
      const pushed = await postForm(`${provider.issuer}/par`, rp, asked.parameters)
      expect([pushed.status, pushed.body.error], redirect_uri).toEqual([400, 'invalid_request'])
    }
  })

  it('a redirect_uri that is left out, even where there is only one: a page', async () => {
    const page = await new UserAgent().open(ask(provider, rp, { redirect_uri: undefined }).url)
    expect([page.status, page.headers.get('location')]).toEqual([400, null])
  })

  it('a loopback address takes any port for a native client, and for nobody else (RFC 8252 §7.3)', async () => {
    const native = await registerClient(provider, { type: 'native', redirect_uris: ['http://127.0.0.1/callback'] })
    const web = await registerClient(provider, { redirect_uris: ['http://127.0.0.1:5000/callback'] })
    const opens = async (client: RegisteredClient, redirect_uri: string) =>
      (await new UserAgent().open(ask(provider, client, { redirect_uri }).url)).html.includes('name="password"')
    expect(await opens(native, 'http://127.0.0.1:51004/callback')).toBe(true)
    expect(await opens(native, 'http://127.0.0.1:51004/other')).toBe(false)
    expect(await opens(native, 'http://localhost:51004/callback')).toBe(false)
    expect(await opens(web, 'http://127.0.0.1:5000/callback')).toBe(true)
    expect(await opens(web, 'http://127.0.0.1:5001/callback')).toBe(false)
  })

  it('an unknown client, or none: a page', async () => {
    for (const client_id of ['nobody', undefined, rp.client_id.toUpperCase()]) {
      const page = await new UserAgent().open(ask(provider, rp, { client_id }).url)
      expect([page.status, page.headers.get('location')]).toEqual([400, null])
    }
  })

  const refusals: readonly [string, RequestParameters, string][] = [
    ['no PKCE', withoutPkce, 'invalid_request'],
    ['plain PKCE', { code_challenge_method: 'plain' }, 'invalid_request'],
    ['PKCE without its method, which means plain', { code_challenge_method: undefined }, 'invalid_request'],
    ['a method without a challenge', { code_challenge: undefined }, 'invalid_request'],
    ['a challenge that is too short', { code_challenge: 'short' }, 'invalid_request'],
    ['a challenge of other characters', { code_challenge: '!'.repeat(43) }, 'invalid_request'],
    ['no answer at all', { response_type: 'none' }, 'unsupported_response_type'],
    ['an unknown response_mode', { response_mode: 'web_message' }, 'unsupported_response_mode'],
    ['a signed response_mode', { response_mode: 'form_post.jwt' }, 'unsupported_response_mode'],
    ['a request object', { request: 'a.b.c' }, 'request_not_supported'],
    ['a request_uri', { request_uri: 'https://rp.example.test/request' }, 'request_uri_not_supported'],
    ['registration', { registration: '{}' }, 'registration_not_supported'],
    ['prompt=none with another prompt', { prompt: 'none login' }, 'invalid_request'],
    ['an unknown prompt', { prompt: 'nonsense' }, 'invalid_request'],
    ['prompt=none without a session', { prompt: 'none' }, 'login_required'],
    ['prompt=create', { prompt: 'create' }, 'invalid_request'],
    ['a max_age that is no number', { max_age: 'x' }, 'invalid_request'],
    ['a negative max_age', { max_age: '-1' }, 'invalid_request'],
    ['an unknown resource', { resource: 'https://api.example.test' }, 'invalid_target'],
    ['a resource with a fragment', { resource: 'https://api.example.test/#x' }, 'invalid_target'],
    ['a resource that is no URI', { resource: 'nonsense' }, 'invalid_target'],
    ['a scope without its resource', { scope: 'openid models:read' }, 'invalid_target'],
  ]
  for (const [what, parameters, error] of refusals) {
    it(`${what}: ${error}, with state and iss, and no form was shown`, async () => {
      const asked = ask(provider, rp, parameters)
      const page = await new UserAgent().open(asked.url)
      const location = new URL(page.headers.get('location') ?? 'about:blank')
      expect(location.href.startsWith(rp.redirect_uri), `${page.status} ${location.href}`).toBe(true)
      expect(Object.fromEntries(location.searchParams)).toMatchObject({
        error,
        state: asked.state,
        iss: provider.issuer,
      })
      expect(location.hash).toBe('')
      expect(location.searchParams.get('tenant')).toBe('1')
    })
  }

  it('the implicit grant and the hybrid flow: unsupported_response_type, in the fragment as they would be answered', async () => {
    for (const response_type of ['token', 'id_token', 'id_token token', 'code id_token', 'code token']) {
      const asked = ask(provider, rp, { response_type, nonce: 'n' })
      const page = await new UserAgent().open(asked.url)
      const { hash } = new URL(page.headers.get('location') ?? 'about:blank')
      expect(Object.fromEntries(new URLSearchParams(hash.slice(1))), response_type).toMatchObject({
        error: 'unsupported_response_type',
        state: asked.state,
      })
    }
  })

  it('a scope beyond the client: invalid_scope', async () => {
    for (const scope of ['openid models:delete', 'openid users:write', 'openid nonsense']) {
      const page = await new UserAgent().open(ask(provider, rp, { scope, resource: provider.demo.resource }).url)
      const { searchParams } = new URL(page.headers.get('location') ?? 'about:blank')
      expect(searchParams.get('error'), scope).toBe('invalid_scope')
    }
  })

  it('a resource that exists but is not this client’s: invalid_target', async () => {
    const page = await new UserAgent().open(
      ask(provider, rp, { scope: 'openid users:read', resource: `${provider.issuer}/v1` }).url,
    )
    expect(new URL(page.headers.get('location') ?? 'about:blank').searchParams.get('error')).toBe('invalid_target')
  })

  it('prompt=none where consent is missing: consent_required', async () => {
    const agent = new UserAgent()
    await signInAt(provider, rp, { agent })
    const third = await registerClient(provider, { first_party: false })
    const page = await agent.open(ask(provider, third, { prompt: 'none' }).url)
    expect(new URL(page.headers.get('location') ?? 'about:blank').searchParams.get('error')).toBe('consent_required')
  })

  it('parameters in the URL and in the body: refused', async () => {
    const asked = ask(provider, rp)
    const response = await fetch(asked.url, {
      method: 'POST',
      body: query({ redirect_uri: 'https://evil.example.test/' }),
      redirect: 'manual',
    })
    expect([response.status, response.headers.get('location')]).toEqual([400, null])
  })

  it('a posted request of another type: 415', async () => {
    const response = await fetch(`${provider.issuer}/authorize`, {
      method: 'POST',
      body: JSON.stringify(Object.fromEntries(ask(provider, rp).parameters)),
      headers: { 'content-type': 'application/json' },
    })
    expect(response.status).toBe(415)
  })

  it('another method than GET and POST: 405', async () => {
    const response = await fetch(ask(provider, rp).url, { method: 'PUT' })
    expect([response.status, response.headers.get('allow')]).toEqual([405, 'GET, POST'])
  })
})
