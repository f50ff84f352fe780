import { UnsecuredJWT } from 'jose'
import { beforeAll, describe, expect, it } from 'vitest'
import { openProvider, type TestProvider } from '../../support/provider.ts'
import { registerClient, signInAt } from '../../support/relying-party.ts'
import { postForm } from '../../support/user-agent.ts'

describe('the protocol endpoints', () => {
  let provider: TestProvider
  beforeAll(async () => {
    provider = await openProvider('pglite')
  })

  it('take a token for an audience that no database could hold for one that is not ours', async () => {
    const rp = await registerClient(provider)
    const unsigned = new UnsecuredJWT({ aud: 'a\0b' }).encode()
    for (const token of [unsigned, `${unsigned}c2ln`]) {
      const introspected = await postForm(`${provider.issuer}/introspect`, rp, { token })
      expect([introspected.status, introspected.body]).toEqual([200, { active: false }])
      expect((await postForm(`${provider.issuer}/revoke`, rp, { token })).status).toBe(200)
    }
  })

  it('know no resource that no database could hold', async () => {
    const { status, body } = await postForm(`${provider.issuer}/token`, provider.demo.clients.service, {
      grant_type: 'client_credentials',
      resource: 'https://a.example/\0',
    })
    expect([status, body.error]).toEqual([400, 'invalid_target'])
  })

  it('write a revocation once, however often a client repeats itself', async () => {
    const rp = await registerClient(provider)
    const parameters = { scope: 'openid models:read', resource: provider.demo.resource }
    const { body } = await signInAt(provider, rp, { parameters })
    for (let i = 0; i < 3; i += 1) {
      const { status } = await postForm(`${provider.issuer}/revoke`, rp, { token: body.access_token ?? '' })
      expect(status).toBe(200)
    }
    const { db } = provider.database
    expect(await db.selectFrom('revocations').select('id').where('kind', '=', 'token').execute()).toHaveLength(1)
  })

  it('let no sandboxed page read an answer, though an app with a scheme of its own has the same opaque origin', async () => {
    const app = await registerClient(provider, { type: 'native', redirect_uris: ['com.example.app:/callback'] })
    const response = await fetch(`${provider.issuer}/token`, {
      method: 'POST',
      headers: { origin: 'null' },
      body: new URLSearchParams({ client_id: app.client_id, grant_type: 'refresh_token', refresh_token: 'x' }),
    })
    expect(response.status).toBe(400)
    expect(response.headers.get('access-control-allow-origin')).toBe(null)
  })
})
