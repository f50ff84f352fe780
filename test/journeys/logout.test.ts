import * as client from 'openid-client'
import { expect, it } from 'vitest'
import { openProvider } from '../support/provider.ts'
import { registerClient } from '../support/relying-party.ts'
import { completeSignIn, UserAgent } from '../support/user-agent.ts'

it('somebody signs in once for two applications, signs out at one, and is signed out of both', async () => {
  const provider = await openProvider('pglite')
  const afterwards = 'https://rp.example.test/bye'
  const browser = new UserAgent()
  const signedIn = []
  for (const name of ['One', 'Two']) {
    const rp = await registerClient(provider, { name, post_logout_redirect_uris: [afterwards] })
    const config = await client.discovery(new URL(provider.issuer), rp.client_id, rp.client_secret, undefined, {
      execute: [client.allowInsecureRequests],
    })
    const verifier = client.randomPKCECodeVerifier()
    const url = client.buildAuthorizationUrl(config, {
      redirect_uri: rp.redirect_uri,
      scope: 'openid',
      code_challenge: await client.calculatePKCECodeChallenge(verifier),
      code_challenge_method: 'S256',
    })
    // The second application needs no password: nothing to fill in is shown.
    const callback =
      name === 'One'
        ? await completeSignIn(browser, url.href, provider.demo.user)
        : new URL((await browser.open(url)).headers.get('location') ?? 'about:blank')
    signedIn.push({
      config,
      url,
      tokens: await client.authorizationCodeGrant(config, callback, { pkceCodeVerifier: verifier }),
    })
  }

  const [one, two] = signedIn
  if (one === undefined || two === undefined) throw new Error('two applications were signed in to')
  expect(two.tokens.claims()?.sub).toBe(one.tokens.claims()?.sub)
  const logout = client.buildEndSessionUrl(one.config, {
    id_token_hint: one.tokens.id_token ?? '',
    post_logout_redirect_uri: afterwards,
    state: 'bye',
  })
  const question = await browser.open(logout)
  const done = await browser.submit(question, { logout: 'yes' })
  expect(done.headers.get('location')).toBe(`${afterwards}?state=bye`)

  for (const { config, tokens, url } of [one, two]) {
    await expect(client.refreshTokenGrant(config, tokens.refresh_token ?? '')).rejects.toMatchObject({
      error: 'invalid_grant',
    })
    expect((await browser.open(url)).html).toContain('name="password"')
  }
})
