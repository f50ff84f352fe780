import { decodeJwt, decodeProtectedHeader } from 'jose'
import * as client from 'openid-client'
import { beforeAll, describe, expect, it } from 'vitest'
import { hasPostgres, type Engine } from '../support/databases.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { authorizationRequest, completeSignIn, obtainTokens, postForm, UserAgent } from '../support/user-agent.ts'

for (const engine of ['pglite', 'postgres'] satisfies Engine[]) {
  describe.runIf(engine === 'pglite' || hasPostgres())(`a person signs in, on ${engine}`, () => {
    let provider: TestProvider
    beforeAll(async () => {
      provider = await openProvider(engine)
    })

    it('is refused with the wrong password, and told nothing about which part was wrong', async () => {
      const { issuer, demo } = provider
      const agent = new UserAgent()
      const page = await agent.open(authorizationRequest(issuer, demo).url)
      const wrong = await agent.submit(page, { login: demo.user.email, password: 'not the password' })
      const unknown = await agent.submit(wrong, { login: 'nobody@example.com', password: 'not the password' })
      expect([wrong.status, unknown.status]).toEqual([401, 401])
      const text = (html: string) => /role="alert"[^>]*>([\s\S]*?)<\//.exec(html)?.[1]
      expect(text(wrong.html)).toBeDefined()
      expect(text(unknown.html)).toBe(text(wrong.html))
    })

    it('gets an RFC 9068 access token, an ID token and a refresh token through code and PKCE', async () => {
      const { issuer, demo } = provider
      const { status, body } = await obtainTokens(issuer, demo)
      expect(status, JSON.stringify(body)).toBe(200)
      expect(decodeProtectedHeader(body.access_token ?? '')).toMatchObject({ alg: 'RS256', typ: 'at+jwt' })
      const access = decodeJwt(body.access_token ?? '')
      const id = decodeJwt(body.id_token ?? '')
      expect(access).toMatchObject({
        iss: issuer,
        aud: demo.resource,
        client_id: 'demo-web',
        scope: 'models:read',
        roles: ['member'],
        token_version: 1,
        department: 'engineering',
        amr: ['pwd'],
      })
      expect(access.sub).toMatch(/^usr_/)
      expect((access.exp ?? 0) - (access.iat ?? 0)).toBe(900)
      expect(access['sid']).toBe(id['sid'])
      expect(id).toMatchObject({ iss: issuer, aud: 'demo-web', email: 'alice@example.com', email_verified: true })
      expect(body.refresh_token).toMatch(/^[\w-]{43,}$/)
    })

    it('satisfies openid-client as an outside judge: discovery, sign-in, userinfo, refresh, revocation', async () => {
      const { issuer, demo } = provider
      const { web } = demo.clients
      const configuration = await client.discovery(new URL(issuer), web.client_id, web.client_secret, undefined, {
        execute: [client.allowInsecureRequests],
      })
      const verifier = client.randomPKCECodeVerifier()
      const nonce = client.randomNonce()
      const state = client.randomState()
      const url = client.buildAuthorizationUrl(configuration, {
        redirect_uri: web.redirect_uri,
        scope: 'openid profile email',
        code_challenge: await client.calculatePKCECodeChallenge(verifier),
        code_challenge_method: 'S256',
        nonce,
        state,
      })
      const callback = await completeSignIn(new UserAgent(), url.href, demo.user)
      const tokens = await client.authorizationCodeGrant(configuration, callback, {
        pkceCodeVerifier: verifier,
        expectedNonce: nonce,
        expectedState: state,
      })
      const subject = tokens.claims()?.sub ?? ''
      const userinfo = await client.fetchUserInfo(configuration, tokens.access_token, subject)
      expect(userinfo).toMatchObject({ email: 'alice@example.com', given_name: 'Alice', name: 'Alice Example' })
      const refreshed = await client.refreshTokenGrant(configuration, tokens.refresh_token ?? '')
      expect(refreshed.refresh_token).not.toBe(tokens.refresh_token)
      await client.tokenRevocation(configuration, refreshed.refresh_token ?? '')
      await expect(client.refreshTokenGrant(configuration, refreshed.refresh_token ?? '')).rejects.toMatchObject({
        error: 'invalid_grant',
      })
    })

    it('introspects a JWT access token as active until its client revokes it', async () => {
      const { issuer, demo } = provider
      const { web } = demo.clients
      const { body } = await obtainTokens(issuer, demo)
      const token = body.access_token ?? ''
      const before = await postForm(`${issuer}/introspect`, web, { token })
      expect(before.body).toMatchObject({
        active: true,
        client_id: 'demo-web',
        scope: 'models:read',
        token_type: 'Bearer',
      })
      expect((await postForm(`${issuer}/revoke`, web, { token })).status).toBe(200)
      expect((await postForm(`${issuer}/introspect`, web, { token })).body).toEqual({ active: false })
      expect(provider.log()).not.toContain('unsupported_token_type')
    })
  })
}
