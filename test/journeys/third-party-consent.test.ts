import * as client from 'openid-client'
import { expect, it } from 'vitest'
import { openProvider } from '../support/provider.ts'
import { registerClient } from '../support/relying-party.ts'
import { UserAgent } from '../support/user-agent.ts'

it('somebody lets a third party see their models, sees what it may do, and takes it back', async () => {
  const provider = await openProvider('pglite')
  const { user, resource } = provider.demo
  const rp = await registerClient(provider, { first_party: false, name: 'Chart maker' })
  const config = await client.discovery(new URL(provider.issuer), rp.client_id, rp.client_secret, undefined, {
    execute: [client.allowInsecureRequests],
  })
  const verifier = client.randomPKCECodeVerifier()
  const state = client.randomState()
  const url = client.buildAuthorizationUrl(config, {
    redirect_uri: rp.redirect_uri,
    scope: 'openid email models:read',
    resource,
    state,
    code_challenge: await client.calculatePKCECodeChallenge(verifier),
    code_challenge_method: 'S256',
  })

  const browser = new UserAgent()
  const signIn = await browser.open(url)
  expect(signIn.html).toContain('Chart maker')
  const question = await browser.submit(signIn, { login: user.email, password: user.password })
  expect(question.html).toContain('asks for access')
  expect(question.html).toContain('see models')
  const allowed = await browser.submit(question, { decision: 'allow' })
  const callback = new URL(allowed.headers.get('location') ?? '')
  const tokens = await client.authorizationCodeGrant(config, callback, {
    pkceCodeVerifier: verifier,
    expectedState: state,
  })
  expect(tokens.claims()).toMatchObject({ email: user.email })
  expect(tokens.scope?.split(' ')).toContain('models:read')
  expect((await client.tokenIntrospection(config, tokens.access_token)).active).toBe(true)

  const applications = await browser.open(`${provider.issuer}/account/applications`)
  expect(applications.html).toContain('Chart maker')
  expect(applications.html).toContain('see models')
  const withdrawn = await browser.submit(applications, {}, 1)
  expect(withdrawn.html).toContain('Access was withdrawn')
  expect(withdrawn.html).not.toContain('Chart maker')

  expect((await client.tokenIntrospection(config, tokens.access_token)).active).toBe(false)
  await expect(client.refreshTokenGrant(config, tokens.refresh_token ?? '')).rejects.toMatchObject({
    error: 'invalid_grant',
  })
  expect((await browser.open(url)).html).toContain('asks for access')
})
