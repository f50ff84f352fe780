/**
 * What each module of the plan oidcc-backchannel-rp-initiated-logout checks, with a real endpoint that judges the token.
 */
import { createRemoteJWKSet, decodeJwt, jwtVerify } from 'jose'
import { beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { openProvider, type TestProvider } from '../../support/provider.ts'
import {
  isActive,
  query,
  refresh,
  registerClient,
  signInAt,
  withoutPkce,
  type RegisteredClient,
} from '../../support/relying-party.ts'
import { UserAgent } from '../../support/user-agent.ts'
import { openLogoutReceiver, type LogoutReceiver } from './logout-receiver.ts'

describe('oidcc-backchannel-rp-initiated-logout', () => {
  const afterwards = 'https://rp.example.test/signed-out'
  let provider: TestProvider
  let receiver: LogoutReceiver
  let rp: RegisteredClient
  let deaf: RegisteredClient
  beforeAll(async () => {
    provider = await openProvider('pglite')
    receiver = await openLogoutReceiver()
    const metadata = { require_pkce: false, post_logout_redirect_uris: [afterwards] }
    rp = await registerClient(provider, { ...metadata, backchannel_logout_uri: receiver.uri })
    // Nothing listens on the discard port.
    deaf = await registerClient(provider, { ...metadata, backchannel_logout_uri: 'http://127.0.0.1:9/logout' })
  })
  beforeEach(() => {
    receiver.tokens.length = 0
    receiver.headers.length = 0
    receiver.answerWith = 200
  })

  async function signOut(agent: UserAgent, parameters: Parameters<typeof query>[0]) {
    const page = await agent.open(`${provider.issuer}/logout?${query(parameters)}`)
    return agent.submit(page, { logout: 'yes' })
  }

  it('oidcc-backchannel-logout-discovery: the metadata say so', async () => {
    const response = await fetch(`${provider.issuer}/.well-known/openid-configuration`)
    expect(await response.json()).toMatchObject({
      backchannel_logout_supported: true,
      backchannel_logout_session_supported: true,
    })
  })

  it('tells the client under which request and trace it happened', async () => {
    const traceId = '0af7651916cd43dd8448eb211c80319c'
    const agent = new UserAgent({
      'x-request-id': 'sign-out.1',
      traceparent: `00-${traceId}-b7ad6b7169203331-01`,
      tracestate: 'vendor=1',
    })
    const { body } = await signInAt(provider, rp, { agent, parameters: withoutPkce })
    await signOut(agent, { id_token_hint: body.id_token })
    expect(receiver.headers).toEqual([
      expect.objectContaining({
        'x-request-id': 'sign-out.1',
        traceparent: expect.stringMatching(`^00-${traceId}-(?!b7ad6b7169203331)[0-9a-f]{16}-01$`),
        tracestate: 'vendor=1',
      }),
    ])
  })

  it('oidcc-backchannel-rp-initiated-logout: one signed logout token, about this person and session', async () => {
    const agent = new UserAgent()
    const { body } = await signInAt(provider, rp, { agent, parameters: { ...withoutPkce, nonce: 'n' } })
    const id = decodeJwt(body.id_token ?? '')
    const after = await signOut(agent, { id_token_hint: body.id_token, post_logout_redirect_uri: afterwards })
    expect(after.headers.get('location')).toBe(afterwards)

    expect(receiver.tokens).toHaveLength(1)
    const keys = createRemoteJWKSet(new URL(`${provider.issuer}/.well-known/jwks.json`))
    const { payload } = await jwtVerify(receiver.tokens[0] ?? '', keys, {
      issuer: provider.issuer,
      audience: rp.client_id,
      algorithms: ['RS256'],
      typ: 'logout+jwt',
      requiredClaims: ['iat', 'exp', 'jti'],
    })
    expect(payload).toMatchObject({
      sub: id.sub,
      sid: id['sid'],
      events: { 'http://schemas.openid.net/event/backchannel-logout': {} },
    })
    // Back-Channel Logout §2.4: so that it cannot be taken for an ID token.
    expect(payload).not.toHaveProperty('nonce')
    expect(Number(payload.exp) - Number(payload.iat)).toBeLessThanOrEqual(120)
  })

  it('tells every client of the session, and ends their tokens, when one of them asks', async () => {
    const agent = new UserAgent()
    const first = await signInAt(provider, rp, { agent, parameters: withoutPkce })
    const other = await registerClient(provider, { backchannel_logout_uri: receiver.uri })
    const second = await signInAt(provider, other, { agent })
    await signOut(agent, { id_token_hint: first.body.id_token })
    const audiences = receiver.tokens.map((token) => decodeJwt(token).aud)
    expect(new Set(audiences)).toEqual(new Set([rp.client_id, other.client_id]))
    expect(audiences).toHaveLength(2)
    expect(await isActive(provider, other, second.body.access_token)).toBe(false)
    expect((await refresh(provider, other, second.body.refresh_token)).body.error).toBe('invalid_grant')
  })

  it('signs out all the same when a client is away or refuses', async () => {
    receiver.answerWith = 500
    const agent = new UserAgent()
    const { body } = await signInAt(provider, deaf, { agent, parameters: withoutPkce })
    await signInAt(provider, rp, { agent, parameters: withoutPkce })
    const after = await signOut(agent, { id_token_hint: body.id_token, post_logout_redirect_uri: afterwards })
    expect(after.headers.get('location')).toBe(afterwards)
    expect(receiver.tokens).toHaveLength(1)
    expect((await refresh(provider, deaf, body.refresh_token)).body.error).toBe('invalid_grant')
  })

  it('tells them as well when the person signs out on the account page', async () => {
    const agent = new UserAgent()
    await signInAt(provider, rp, { agent, parameters: withoutPkce })
    const page = await agent.open(`${provider.issuer}/account/applications`)
    await agent.submit(page, {}, 0)
    expect(receiver.tokens.map((token) => decodeJwt(token).aud)).toEqual([rp.client_id])
  })

  it('tells them when another person signs in on the same browser', async () => {
    const agent = new UserAgent()
    const { body } = await signInAt(provider, rp, { agent, parameters: withoutPkce })
    await signInAt(provider, rp, {
      agent,
      person: provider.demo.admin,
      parameters: { ...withoutPkce, prompt: 'login' },
    })
    expect(receiver.tokens.map((token) => decodeJwt(token).sub)).toEqual([decodeJwt(body.id_token ?? '').sub])
    expect((await refresh(provider, rp, body.refresh_token)).body.error).toBe('invalid_grant')
  })
})
