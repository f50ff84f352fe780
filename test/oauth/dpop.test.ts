import { sql } from 'kysely'
import { decodeJwt } from 'jose'
import * as client from 'openid-client'
import { beforeAll, describe, expect, it } from 'vitest'
import { makeDpopKey, type DpopKey } from '../support/dpop.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import {
  authorize,
  exchange,
  isActive,
  refresh,
  registerClient,
  userinfo,
  type RegisteredClient,
} from '../support/relying-party.ts'
import { completeSignIn, postForm, UserAgent } from '../support/user-agent.ts'

describe('DPoP (RFC 9449)', () => {
  let provider: TestProvider
  let rp: RegisteredClient
  let spa: RegisteredClient
  let key: DpopKey
  let otherKey: DpopKey
  let tokenUrl: string
  beforeAll(async () => {
    provider = await openProvider('pglite')
    rp = await registerClient(provider)
    spa = await registerClient(provider, { type: 'spa' })
    key = await makeDpopKey()
    otherKey = await makeDpopKey()
    tokenUrl = `${provider.issuer}/token`
  })

  const models = () => ({ scope: 'openid models:read', resource: provider.demo.resource })
  const proven = async (by = key) => ({ headers: { dpop: await by.proof('POST', tokenUrl) } })

  async function boundTokens(of: RegisteredClient, parameters: Parameters<typeof authorize>[2] = {}) {
    const { status, body } = await exchange(provider, of, await authorize(provider, of, parameters), await proven())
    expect(status, JSON.stringify(body)).toBe(200)
    return body
  }

  const wrongProofs: readonly [string, () => Promise<string>][] = [
    ['of another method', () => key.proof('GET', tokenUrl)],
    ['of another endpoint', () => key.proof('POST', `${provider.issuer}/userinfo`)],
    ['of another host', () => key.proof('POST', 'https://evil.example.test/token')],
    [
      'of ten minutes ago',
      () => key.proof('POST', tokenUrl, { claims: { iat: Math.floor(Date.now() / 1_000) - 600 } }),
    ],
    [
      'of ten minutes ahead',
      () => key.proof('POST', tokenUrl, { claims: { iat: Math.floor(Date.now() / 1_000) + 600 } }),
    ],
    ['without a time', () => key.proof('POST', tokenUrl, { claims: { iat: undefined } })],
    ['without an id', () => key.proof('POST', tokenUrl, { claims: { jti: undefined } })],
    ['with an id that is no string', () => key.proof('POST', tokenUrl, { claims: { jti: 5 } })],
    ['of another type', () => key.proof('POST', tokenUrl, { header: { typ: 'JWT' } })],
    ['with a nonce that nobody gave', () => key.proof('POST', tokenUrl, { claims: { nonce: 'x' } })],
    [
      'signed by another key than it shows',
      async () => {
        const [header] = (await key.proof('POST', tokenUrl)).split('.')
        const [, payload, signature] = (await otherKey.proof('POST', tokenUrl)).split('.')
        return `${header}.${payload}.${signature}`
      },
    ],
    ['that is none', async () => 'x'],
    [
      'sent twice in one header',
      async () => `${await key.proof('POST', tokenUrl)}, ${await key.proof('POST', tokenUrl)}`,
    ],
  ]
  it(`refuses a proof ${wrongProofs.map(([what]) => what).join(', ')}; the code is still good`, async () => {
    const answered = await authorize(provider, rp)
    for (const [what, proof] of wrongProofs) {
      const { status, body } = await exchange(provider, rp, answered, { headers: { dpop: await proof() } })
      expect([status, body.error], what).toEqual([400, 'invalid_dpop_proof'])
    }
    expect((await exchange(provider, rp, answered, await proven())).status).toBe(200)
  })

  it('refuses the same proof a second time', async () => {
    const [first, second] = [await authorize(provider, rp), await authorize(provider, rp)]
    const proof = await proven()
    expect((await exchange(provider, rp, first, proof)).status).toBe(200)
    const replayed = await exchange(provider, rp, second, proof)
    expect([replayed.status, replayed.body.error]).toEqual([400, 'invalid_grant'])
    expect((await exchange(provider, rp, second, await proven())).status).toBe(200)
  })

  it('binds the access token to the key, through code and refresh', async () => {
    const body = await boundTokens(rp, { parameters: models() })
    expect(body['token_type']).toBe('DPoP')
    expect(decodeJwt(body.access_token ?? '')['cnf']).toEqual({ jkt: key.thumbprint })
    const introspected = await postForm(`${provider.issuer}/introspect`, rp, { token: body.access_token ?? '' })
    expect(introspected.body).toMatchObject({ active: true, token_type: 'DPoP', cnf: { jkt: key.thumbprint } })
    const next = await refresh(provider, rp, body.refresh_token, await proven())
    expect(next.body['token_type']).toBe('DPoP')
    expect(decodeJwt(next.body.access_token ?? '')['cnf']).toEqual({ jkt: key.thumbprint })
  })

  it('refuses a public client’s refresh without the proof, or by another key, and the token still works', async () => {
    const body = await boundTokens(spa)
    const bare = await refresh(provider, spa, body.refresh_token)
    const foreign = await refresh(provider, spa, body.refresh_token, await proven(otherKey))
    expect([bare.body.error, foreign.body.error]).toEqual(['invalid_grant', 'invalid_grant'])
    expect((await refresh(provider, spa, body.refresh_token, await proven())).status).toBe(200)
  })

  it('gives a public client’s bound refresh token the longer window, by its key alone', async () => {
    const body = await boundTokens(spa, { parameters: models() })
    const first = await refresh(provider, spa, body.refresh_token, await proven())
    await sql`UPDATE artifacts SET consumed_at = consumed_at - interval '30 seconds' WHERE kind = 'RefreshToken'`.execute(
      provider.database.db,
    )
    const stolen = await refresh(provider, spa, body.refresh_token, await proven(otherKey))
    expect(stolen.body.error).toBe('invalid_grant')
    const again = await refresh(provider, spa, body.refresh_token, await proven())
    expect(again.body.refresh_token).toBe(first.body.refresh_token)
    expect(await isActive(provider, rp, first.body.access_token)).toBe(true)
  })

  it('ends the family of an unbound public client after its shorter window', async () => {
    const { body } = await exchange(provider, spa, await authorize(provider, spa))
    const first = await refresh(provider, spa, body.refresh_token)
    await sql`UPDATE artifacts SET consumed_at = consumed_at - interval '11 seconds' WHERE kind = 'RefreshToken'`.execute(
      provider.database.db,
    )
    expect((await refresh(provider, spa, body.refresh_token)).body.error).toBe('invalid_grant')
    expect((await refresh(provider, spa, first.body.refresh_token)).body.error).toBe('invalid_grant')
  })

  it('refuses a bound token at userinfo as Bearer, with a wrong proof, and a proof sent twice', async () => {
    const { access_token: token } = await boundTokens(rp)
    const url = `${provider.issuer}/userinfo`
    expect((await userinfo(provider, token, 'Bearer')).status).toBe(401)
    // RFC 9449 §7.1: without a proof the DPoP scheme is a malformed request.
    expect([400, 401]).toContain((await userinfo(provider, token, 'DPoP')).status)
    const bearer = await userinfo(provider, token, 'Bearer', {
      dpop: await key.proof('GET', url, { accessToken: token }),
    })
    expect([400, 401]).toContain(bearer.status)
    const proofs = [
      await key.proof('GET', url),
      await key.proof('GET', url, { accessToken: 'another' }),
      await otherKey.proof('GET', url, { accessToken: token }),
      await key.proof('POST', url, { accessToken: token }),
    ]
    for (const dpop of proofs) {
      const answer = await userinfo(provider, token, 'DPoP', { dpop })
      expect([400, 401]).toContain(answer.status)
      expect(answer.body.error).toMatch(/^(invalid_token|invalid_dpop_proof)$/)
    }
    const dpop = await key.proof('GET', url, { accessToken: token })
    expect((await userinfo(provider, token, 'DPoP', { dpop })).status).toBe(200)
    expect((await userinfo(provider, token, 'DPoP', { dpop })).status).toBe(401)
  })

  it('refuses a code that was asked for with another key’s thumbprint, and it is still good for the right one', async () => {
    const answered = await authorize(provider, rp, { parameters: { dpop_jkt: key.thumbprint } })
    const foreign = await exchange(provider, rp, answered, await proven(otherKey))
    const bare = await exchange(provider, rp, answered)
    expect([foreign.body.error, bare.body.error]).toEqual(['invalid_grant', 'invalid_grant'])
    expect((await exchange(provider, rp, answered, await proven())).status).toBe(200)
  })

  it('gives a client that must use DPoP nothing without it', async () => {
    const strict = await registerClient(provider, { dpop_bound_access_tokens: true })
    const answered = await authorize(provider, strict)
    const bare = await exchange(provider, strict, answered)
    expect(bare.status).toBe(400)
    expect((await exchange(provider, strict, answered, await proven())).body['token_type']).toBe('DPoP')
  })

  it('satisfies openid-client: code, userinfo, refresh', async () => {
    const config = await client.discovery(new URL(provider.issuer), rp.client_id, rp.client_secret, undefined, {
      execute: [client.allowInsecureRequests],
    })
    const DPoP = client.getDPoPHandle(config, await client.randomDPoPKeyPair())
    const verifier = client.randomPKCECodeVerifier()
    const url = client.buildAuthorizationUrl(config, {
      redirect_uri: rp.redirect_uri,
      scope: 'openid email',
      code_challenge: await client.calculatePKCECodeChallenge(verifier),
      code_challenge_method: 'S256',
    })
    const callback = await completeSignIn(new UserAgent(), url.href, provider.demo.user)
    const tokens = await client.authorizationCodeGrant(config, callback, { pkceCodeVerifier: verifier }, undefined, {
      DPoP,
    })
    expect(tokens.token_type).toBe('dpop')
    const info = await client.fetchUserInfo(config, tokens.access_token, tokens.claims()?.sub ?? '', { DPoP })
    expect(info.email).toBe(provider.demo.user.email)
    const next = await client.refreshTokenGrant(config, tokens.refresh_token ?? '', undefined, { DPoP })
    expect(next.token_type).toBe('dpop')
  })
})
