import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { query, refresh, registerClient, signInAt, userinfo, type RegisteredClient } from '../support/relying-party.ts'
import { postForm, UserAgent } from '../support/user-agent.ts'

describe('userinfo', () => {
  let provider: TestProvider
  let rp: RegisteredClient
  beforeAll(async () => {
    provider = await openProvider('pglite')
    rp = await registerClient(provider)
  })

  it('refuses a token that has expired', async () => {
    const { body } = await signInAt(provider, rp)
    await sql`UPDATE artifacts SET expires_at = now() WHERE kind = 'AccessToken'`.execute(provider.database.db)
    const answer = await userinfo(provider, body.access_token)
    expect([answer.status, answer.body.error]).toEqual([401, 'invalid_token'])
    expect(answer.headers.get('www-authenticate')).toMatch(/^Bearer .*error="invalid_token"/)
  })

  it('refuses a token that its client revoked, while its refresh token lives on', async () => {
    const { body } = await signInAt(provider, rp)
    const token = body.access_token ?? ''
    expect((await postForm(`${provider.issuer}/revoke`, rp, { token })).status).toBe(200)
    expect((await userinfo(provider, token)).status).toBe(401)
    expect((await refresh(provider, rp, body.refresh_token)).status).toBe(200)
  })

  it('refuses a machine’s token', async () => {
    const { body } = await postForm(`${provider.issuer}/token`, provider.demo.clients.service, {
      grant_type: 'client_credentials',
    })
    expect((await userinfo(provider, body.access_token)).status).toBe(401)
  })

  it('refuses a scope that the token does not have', async () => {
    const { body } = await signInAt(provider, rp)
    const answer = await postForm(
      `${provider.issuer}/userinfo`,
      undefined,
      query({ access_token: body.access_token, scope: 'openid email' }),
    )
    expect([answer.status, answer.body.error]).toEqual([403, 'insufficient_scope'])
  })

  it('refuses the token once the person has signed out', async () => {
    const agent = new UserAgent()
    const { body } = await signInAt(provider, rp, { agent })
    await agent.submit(await agent.open(`${provider.issuer}/logout`), { logout: 'yes' })
    expect((await userinfo(provider, body.access_token)).status).toBe(401)
  })

  it('says what the scopes ask, of now: a changed address is the new one', async () => {
    const { body } = await signInAt(provider, rp, { parameters: { scope: 'openid email' } })
    const before = await userinfo(provider, body.access_token)
    expect(before.body).toEqual({
      sub: expect.stringMatching(/^usr_/),
      email: 'alice@example.com',
      email_verified: true,
    })
    await sql`UPDATE users SET email_verified = false WHERE email = 'alice@example.com'`.execute(provider.database.db)
    expect((await userinfo(provider, body.access_token)).body).toMatchObject({ email_verified: false })
    expect(before.headers.get('cache-control')).toBe('no-store')
  })
})
