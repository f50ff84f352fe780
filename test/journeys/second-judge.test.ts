/**
 * oauth4webapi checks every answer by the letter of its RFC, and knows nothing of this provider: a judge beside
 * openid-client that shares no code with the server.
 */
import { beforeAll, describe, expect, it } from 'vitest'
import * as oauth from 'oauth4webapi'
import { hasPostgres, type Engine } from '../support/databases.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { completeSignIn, UserAgent } from '../support/user-agent.ts'

const http = { [oauth.allowInsecureRequests]: true } as const

for (const engine of ['pglite', 'postgres'] satisfies Engine[]) {
  describe.runIf(engine === 'pglite' || hasPostgres())(`oauth4webapi as an outside judge, on ${engine}`, () => {
    let provider: TestProvider
    let as: oauth.AuthorizationServer
    let client: oauth.Client
    let authentication: oauth.ClientAuth
    beforeAll(async () => {
      provider = await openProvider(engine)
      const { client_id, client_secret } = provider.demo.clients.web
      client = { client_id }
      authentication = oauth.ClientSecretBasic(client_secret)
      const issuer = new URL(provider.issuer)
      as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, http))
    })

    /** Signs the demo person in, with an authorization request that was pushed. */
    async function signIn(scope: string, more: Record<string, string> = {}) {
      const { redirect_uri } = provider.demo.clients.web
      const verifier = oauth.generateRandomCodeVerifier()
      const nonce = oauth.generateRandomNonce()
      const state = oauth.generateRandomState()
      const pushed = await oauth.pushedAuthorizationRequest(
        as,
        client,
        authentication,
        {
          redirect_uri,
          response_type: 'code',
          scope,
          nonce,
          state,
          code_challenge: await oauth.calculatePKCECodeChallenge(verifier),
          code_challenge_method: 'S256',
          ...more,
        },
        http,
      )
      const { request_uri } = await oauth.processPushedAuthorizationResponse(as, client, pushed)
      const query = new URLSearchParams({ client_id: client.client_id, request_uri })
      const callback = await completeSignIn(
        new UserAgent(),
        `${as.authorization_endpoint}?${query}`,
        provider.demo.user,
      )
      const answer = oauth.validateAuthResponse(as, client, callback, state)
      const response = await oauth.authorizationCodeGrantRequest(
        as,
        client,
        authentication,
        answer,
        redirect_uri,
        verifier,
        http,
      )
      return oauth.processAuthorizationCodeResponse(as, client, response, {
        expectedNonce: nonce,
        requireIdToken: true,
      })
    }

    it('accepts an RFC 9068 access token, its refresh, its introspection and its revocation', async () => {
      const { resource } = provider.demo
      const tokens = await signIn('openid models:read', { resource })
      const request = new Request(resource, { headers: { authorization: `Bearer ${tokens.access_token}` } })
      const claims = await oauth.validateJwtAccessToken(as, request, resource, http)
      expect(claims).toMatchObject({ scope: 'models:read', client_id: client.client_id })

      const refreshed = await oauth.processRefreshTokenResponse(
        as,
        client,
        await oauth.refreshTokenGrantRequest(as, client, authentication, tokens.refresh_token ?? '', http),
      )
      expect(refreshed.refresh_token).not.toBe(tokens.refresh_token)

      const introspect = async () =>
        oauth.processIntrospectionResponse(
          as,
          client,
          await oauth.introspectionRequest(as, client, authentication, refreshed.access_token, http),
        )
      expect((await introspect()).active).toBe(true)
      const revoked = await oauth.revocationRequest(as, client, authentication, refreshed.access_token, http)
      await oauth.processRevocationResponse(revoked)
      expect((await introspect()).active).toBe(false)
    })

    it('accepts userinfo for a plain sign-in, and that it is about the person of the ID token', async () => {
      const tokens = await signIn('openid email')
      const { sub = '' } = oauth.getValidatedIdTokenClaims(tokens) ?? {}
      const response = await oauth.userInfoRequest(as, client, tokens.access_token, http)
      expect(await oauth.processUserInfoResponse(as, client, sub, response)).toMatchObject({
        email: provider.demo.user.email,
      })
    })
  })
}
