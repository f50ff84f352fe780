import { beforeAll, describe, expect, it } from 'vitest'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { isActive, refresh, registerClient, signInAt } from '../support/relying-party.ts'
import { UserAgent, type Page } from '../support/user-agent.ts'

describe('the page of connected applications', () => {
  let provider: TestProvider
  beforeAll(async () => {
    provider = await openProvider('pglite')
  })
  const url = () => `${provider.issuer}/account/applications`

  /** Signs in at the page itself. */
  async function open(agent: UserAgent, person = provider.demo.user): Promise<Page> {
    const page = await agent.open(url())
    return page.html.includes('name="password"')
      ? agent.submit(page, { login: person.email, password: person.password })
      : page
  }

  const withdraw = async (agent: UserAgent, page: Page, clientId: string): Promise<Page> => {
    const index = [...page.html.matchAll(/<form\b[\s\S]*?<\/form>/g)].findIndex(([form]) =>
      form.includes(`value="${clientId}"`),
    )
    expect(index).toBeGreaterThan(0)
    return agent.submit(page, {}, index)
  }

  it('asks who is there first, and then shows the page', async () => {
    const agent = new UserAgent()
    expect((await agent.open(url())).html).toContain('name="password"')
    const page = await open(agent)
    expect([page.status, page.url.pathname]).toEqual([200, '/account/applications'])
    expect(page.html).toContain(provider.demo.user.email)
    expect(page.html).not.toContain('latchkey-account')
  })

  it('shows nobody else’s applications', async () => {
    const rp = await registerClient(provider, { first_party: false, name: 'Seen by Alice alone' })
    await signInAt(provider, rp)
    expect((await open(new UserAgent())).html).toContain('Seen by Alice alone')
    expect((await open(new UserAgent(), provider.demo.admin)).html).not.toContain('Seen by Alice alone')
  })

  it('withdraws on all devices at once, and from that application alone', async () => {
    const rp = await registerClient(provider, { first_party: false, name: 'On two devices' })
    const other = await registerClient(provider, { first_party: false, name: 'Left alone' })
    const parameters = { scope: 'openid models:read', resource: provider.demo.resource }
    const [phone, laptop] = [new UserAgent(), new UserAgent()]
    const onPhone = await signInAt(provider, rp, { agent: phone, parameters })
    const onLaptop = await signInAt(provider, rp, { agent: laptop, parameters })
    const beside = await signInAt(provider, other, { agent: laptop, parameters })
    const page = await withdraw(laptop, await open(laptop), rp.client_id)
    expect(page.html).toContain('Left alone')
    for (const { body } of [onPhone, onLaptop]) {
      expect(await isActive(provider, rp, body.access_token)).toBe(false)
      expect((await refresh(provider, rp, body.refresh_token)).body.error).toBe('invalid_grant')
    }
    expect(await isActive(provider, other, beside.body.access_token)).toBe(true)
  })

  it('says of a first-party application that it is part of the service, and withdraws from it too', async () => {
    const rp = await registerClient(provider, { name: 'Our own' })
    const agent = new UserAgent()
    const { body } = await signInAt(provider, rp, { agent })
    const page = await open(agent)
    expect(page.html).toContain('Our own')
    expect(page.html).toContain('Part of this service')
    await withdraw(agent, page, rp.client_id)
    expect((await refresh(provider, rp, body.refresh_token)).body.error).toBe('invalid_grant')
    expect((await signInAt(provider, rp, { agent })).status).toBe(200)
  })
})
