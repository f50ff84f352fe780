import { beforeAll, describe, expect, it } from 'vitest'
import { openProvider, type TestProvider } from '../../support/provider.ts'
import { authorize, registerClient, query, type RegisteredClient } from '../../support/relying-party.ts'
import { postForm } from '../../support/user-agent.ts'

/** Whatever guards an endpoint is found by its path, so no other spelling of the path may lead to the endpoint. */
describe('an endpoint under another spelling of its path', () => {
  let provider: TestProvider
  let rp: RegisteredClient
  beforeAll(async () => {
    provider = await openProvider('pglite')
    rp = await registerClient(provider)
  })

  it('is not there: /TOKEN, where a code would be spent outside of the transaction', async () => {
    const { code, verifier } = await authorize(provider, rp)
    const parameters = query({
      grant_type: 'authorization_code',
      code,
      redirect_uri: rp.redirect_uri,
      code_verifier: verifier,
    })
    for (const path of ['/TOKEN', '/Token', '/token/', '//token', '/%74oken']) {
      const { status, body } = await postForm(`${provider.issuer}${path}`, rp, parameters)
      expect([path, status, body.access_token]).toEqual([path, 404, undefined])
    }
    expect((await postForm(`${provider.issuer}/token`, rp, parameters)).status).toBe(200)
  })

  it('is not there: revocation, sign-out and the authorization request', async () => {
    for (const path of ['/REVOKE', '/Introspect', '/Logout/Confirm', '/logout/CONFIRM', '/AUTHORIZE', '/Par']) {
      const response = await fetch(`${provider.issuer}${path}`, { method: 'POST', body: new URLSearchParams() })
      expect([path, response.status]).toEqual([path, 404])
    }
    for (const path of ['/Authorize', '/LOGOUT', '/Authorize/abc', '/.well-known/JWKS.json', '/UserInfo']) {
      const response = await fetch(`${provider.issuer}${path}`, { redirect: 'manual' })
      expect([path, response.status]).toEqual([path, 404])
    }
  })
})
