import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import { assignRole, unassignRole } from '../../src/access/roles.ts'
import { systemActor } from '../../src/audit/audit.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import {
  ask,
  authorize,
  exchange,
  isActive,
  refresh,
  registerClient,
  signInAt,
  type RegisteredClient,
} from '../support/relying-party.ts'
import { UserAgent, type Page } from '../support/user-agent.ts'

describe('consent to what a client may do', () => {
  let provider: TestProvider
  let third: RegisteredClient
  beforeAll(async () => {
    provider = await openProvider('pglite')
  })

  const fresh = async () => {
    third = await registerClient(provider, {
      first_party: false,
      name: 'Third <b>party</b>',
      logo_uri: 'https://cdn.example.test/logo.png',
      policy_uri: 'https://rp.example.test/privacy',
    })
    return third
  }
  const models = () => ({ scope: 'openid email models:read', resource: provider.demo.resource })

  async function atConsent(client: RegisteredClient, parameters = {}, agent = new UserAgent()) {
    const asked = ask(provider, client, { ...models(), ...parameters })
    const { email, password } = provider.demo.user
    let page: Page = await agent.open(asked.url)
    if (page.html.includes('name="password"')) page = await agent.submit(page, { login: email, password })
    return { agent, asked, page }
  }
  const isConsent = (page: Page) => page.html.includes('id="allow"')
  const answerOf = (page: Page) =>
    Object.fromEntries(new URL(page.headers.get('location') ?? 'about:blank').searchParams)

  it('denied: access_denied at the client, with state and iss, and nothing is remembered', async () => {
    const client = await fresh()
    const { agent, asked, page } = await atConsent(client)
    const denied = await agent.submit(page, { decision: 'deny' })
    expect(answerOf(denied)).toMatchObject({ error: 'access_denied', state: asked.state, iss: provider.issuer })
    expect(isConsent((await atConsent(client, {}, agent)).page)).toBe(true)
  })

  it('a decision that is none counts as denied', async () => {
    const { agent, page } = await atConsent(await fresh())
    expect(answerOf(await agent.submit(page, { decision: 'ALLOW' }))).toMatchObject({ error: 'access_denied' })
    const other = await atConsent(await fresh())
    expect(answerOf(await other.agent.submit(other.page))).toMatchObject({ error: 'access_denied' })
  })

  it('counts for what the page showed: more rights since then, and the form has expired', async () => {
    const { resource } = provider.demo
    const permissions = ['models:read', 'models:delete'].map((permission) => ({ resource, permission }))
    const client = await registerClient(provider, { first_party: false, permissions })
    const { agent, page } = await atConsent(client, { scope: 'openid models:read models:delete' })
    const role = { user_id: provider.demo.user.id, role: 'models-admin' }
    await provider.database.db.transaction().execute((trx) => assignRole(trx, systemActor, role))
    const answer = await agent.submit(page, { decision: 'allow' })
    await provider.database.db.transaction().execute((trx) => unassignRole(trx, systemActor, role))
    expect(answer.status).toBe(403)
    expect(answer.html).toContain('no longer valid')
  })

  it('shows who asks, what for and for how long, what stays closed, and where it leads', async () => {
    const { page } = await atConsent(await fresh())
    const [granted = '', notGranted = ''] = page.html.split('class="not-granted"')
    expect(granted).toContain('Third &lt;b&gt;party&lt;/b&gt;')
    expect(granted).toContain('see your email address')
    expect(granted).toContain('models:read')
    expect(granted).not.toContain('models:write')
    expect(notGranted).toContain('models:write')
    expect(notGranted).toContain('see or change your password')
    expect(page.html).toContain('30 days')
    expect(page.html).toContain('rp.example.test')
    expect(page.html).toContain('https://rp.example.test/privacy')
  })

  it('lets a browser load the logo that it shows, and send the form to where it leads', async () => {
    const { page } = await atConsent(await fresh())
    const policy = page.headers.get('content-security-policy') ?? ''
    expect(page.html).toContain('src="https://cdn.example.test/logo.png"')
    expect(policy).toContain("img-src 'self' https://cdn.example.test")
    expect(policy).toContain("form-action 'self' https://rp.example.test;")
    expect(policy).toContain("frame-ancestors 'none'")
  })

  it('is asked once, over all browsers, and again for more', async () => {
    const client = await fresh()
    const { agent, page } = await atConsent(client)
    expect(answerOf(await agent.submit(page, { decision: 'allow' }))).toHaveProperty('code')
    expect(answerOf((await atConsent(client)).page)).toHaveProperty('code')
    const more = await atConsent(client, { scope: 'openid email models:read models:write' })
    expect(isConsent(more.page)).toBe(true)
    expect(answerOf((await atConsent(client, { scope: 'openid' })).page)).toHaveProperty('code')
  })

  it('is each person’s own', async () => {
    const client = await fresh()
    await signInAt(provider, client, { parameters: models() })
    const agent = new UserAgent()
    const { email, password } = provider.demo.admin
    const page = await agent.submit(await agent.open(ask(provider, client, models()).url), { login: email, password })
    expect(isConsent(page)).toBe(true)
  })

  it('is asked again where the client says so, and never of a first-party client otherwise', async () => {
    const first = await registerClient(provider)
    const agent = new UserAgent()
    await signInAt(provider, first, { agent, parameters: models() })
    expect(isConsent((await atConsent(first, {}, agent)).page)).toBe(false)
    expect(isConsent((await atConsent(first, { prompt: 'consent' }, agent)).page)).toBe(true)
  })

  it('is always asked for a native client, which anybody’s application could pose as (RFC 8252 §8.6)', async () => {
    const native = await registerClient(provider, { type: 'native', redirect_uris: ['com.example.app:/callback'] })
    const agent = new UserAgent()
    await signInAt(provider, native, { agent })
    const { page } = await atConsent(native, { scope: 'openid', resource: undefined }, agent)
    expect(isConsent(page)).toBe(true)
    expect(page.headers.get('content-security-policy')).toContain("form-action 'self' com.example.app:;")
  })

  it('offline_access is asked for in words, and only where a refresh token may be given', async () => {
    const client = await fresh()
    const { page } = await atConsent(client, { scope: 'openid offline_access', prompt: 'consent', resource: undefined })
    expect(page.html).toContain('while you are away')
  })

  it('goes on after the client was disabled meanwhile: nothing', async () => {
    const client = await fresh()
    const { agent, page } = await atConsent(client)
    await sql`UPDATE clients SET status = 'disabled' WHERE id = ${client.client_id}`.execute(provider.database.db)
    const after = await agent.submit(page, { decision: 'allow' })
    expect(after.status).toBeGreaterThanOrEqual(400)
    expect(after.status).toBeLessThan(500)
    expect(after.headers.get('location')).toBeNull()
  })

  it('withdrawn on the account page: tokens are dead at once, and it is asked again', async () => {
    const client = await fresh()
    const agent = new UserAgent()
    const { body } = await signInAt(provider, client, { agent, parameters: models() })
    const pending = await authorize(provider, client, { agent, parameters: models() })
    const page = await agent.open(`${provider.issuer}/account/applications`)
    const index = [...page.html.matchAll(/<form\b[\s\S]*?<\/form>/g)].findIndex(([form]) =>
      form.includes(`value="${client.client_id}"`),
    )
    const after = await agent.submit(page, {}, index)
    expect(after.html).toContain('Access was withdrawn')
    expect(await isActive(provider, client, body.access_token)).toBe(false)
    expect((await refresh(provider, client, body.refresh_token)).body.error).toBe('invalid_grant')
    expect((await exchange(provider, client, pending)).body.error).toBe('invalid_grant')
    expect(isConsent((await atConsent(client, {}, agent)).page)).toBe(true)
  })
})
