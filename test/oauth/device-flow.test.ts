import { beforeAll, describe, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import { createClient } from '../../src/oauth/clients.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { authorizationRequest, completeSignIn, postForm, UserAgent } from '../support/user-agent.ts'

const deviceGrant = 'urn:ietf:params:oauth:grant-type:device_code'

describe('the device authorization grant (RFC 8628)', () => {
  let provider: TestProvider
  const client = { client_id: 'television' }
  beforeAll(async () => {
    provider = await openProvider('pglite', { environment: { LATCHKEY_DEVICE_FLOW: 'true' } })
    await provider.database.db.transaction().execute((trx) =>
      createClient(trx, systemActor, {
        id: client.client_id,
        type: 'native',
        name: 'Television',
        grant_types: [deviceGrant, 'refresh_token'],
        permissions: [{ resource: provider.demo.resource, permission: 'models:read' }],
      }),
    )
  })
  const start = () =>
    postForm(`${provider.issuer}/device/authorization`, client, {
      scope: 'openid models:read',
      resource: provider.demo.resource,
    })
  const poll = (deviceCode: unknown) =>
    postForm(`${provider.issuer}/token`, client, { grant_type: deviceGrant, device_code: String(deviceCode) })

  it('is off unless it is switched on', async () => {
    const off = await openProvider('pglite')
    expect((await fetch(`${off.issuer}/device`)).status).toBe(404)
    expect((await postForm(`${off.issuer}/device/authorization`, off.demo.clients.spa, {})).status).toBe(404)
    const metadata = (await (await fetch(`${off.issuer}/.well-known/openid-configuration`)).json()) as object
    expect(metadata).not.toHaveProperty('device_authorization_endpoint')
  })

  it('answers pending, then denied when the person says no', async () => {
    const { body } = await start()
    expect((await poll(body['device_code'])).body.error).toBe('authorization_pending')
    const agent = new UserAgent()
    await completeSignIn(agent, authorizationRequest(provider.issuer, provider.demo).url, provider.demo.user)
    const confirm = await agent.open(String(body['verification_uri_complete']))
    const asked =
      confirm.html.includes('user_code') && !confirm.html.includes('Television') ? await agent.submit(confirm) : confirm
    const aborted = await agent.submit(asked, { abort: 'yes' })
    expect(aborted.html).toContain('role="alert"')
    expect((await poll(body['device_code'])).body.error).toBe('access_denied')
  })

  it('gives tokens once the person has signed in and agreed, and only once', async () => {
    const { status, body } = await start()
    expect(status, JSON.stringify(body)).toBe(200)
    expect(body).toMatchObject({ user_code: expect.any(String), verification_uri: `${provider.issuer}/device` })
    const agent = new UserAgent()
    let page = await agent.open(String(body['verification_uri']))
    const wrong = await agent.submit(page, { user_code: 'BBBB-BBBB' })
    expect(wrong.html).toMatch(/role="alert"/)
    page = await agent.submit(wrong, { user_code: String(body['user_code']) })
    expect(page.html).toContain('Television')
    page = await agent.submit(page, { confirm: 'yes' })
    page = await agent.submit(page, { login: provider.demo.user.email, password: provider.demo.user.password })
    expect(page.html).toContain('see models')
    page = await agent.submit(page, { decision: 'allow' })
    expect(page.status, page.html).toBe(200)
    const answers = [await poll(body['device_code']), await poll(body['device_code'])]
    expect(
      answers.map((answer) => answer.status),
      JSON.stringify(answers),
    ).toEqual([200, 400])
    expect(answers[0]?.body).toMatchObject({ token_type: 'Bearer', scope: 'models:read' })
    expect(answers[1]?.body.error).toBe('invalid_grant')
  })
})
