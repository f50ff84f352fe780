/**
 * The forms of a person's own: each refuses what it did not show to this very browser, and loses nothing by it.
 */
import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import { openProvider, type TestProvider } from '../../support/provider.ts'
import { ask, query, registerClient, signInAt, type RegisteredClient } from '../../support/relying-party.ts'
import { findForms, UserAgent, type Page } from '../../support/user-agent.ts'

describe('a form that is refused', () => {
  let provider: TestProvider
  let third: RegisteredClient
  beforeAll(async () => {
    provider = await openProvider('pglite')
    third = await registerClient(provider, { first_party: false })
  })

  interface Shown {
    readonly agent: UserAgent
    readonly page: Page
    readonly values: Readonly<Record<string, string>>
    /** whether the form did what it is for */
    readonly done: (after: Page) => boolean
  }

  async function shownLogin(agent = new UserAgent()): Promise<Shown> {
    const client = await registerClient(provider)
    const { email, password } = provider.demo.user
    const page = await agent.open(ask(provider, client).url)
    const done = (after: Page) => (after.headers.get('location') ?? '').includes('code=')
    return { agent, page, values: { login: email, password }, done }
  }

  async function shownConsent(): Promise<Shown> {
    const agent = new UserAgent()
    const { email, password } = provider.demo.user
    const start = await agent.open(ask(provider, third, { prompt: 'consent' }).url)
    const page = await agent.submit(start, { login: email, password })
    expect(page.html).toContain('id="allow"')
    const done = (after: Page) => (after.headers.get('location') ?? '').includes('code=')
    return { agent, page, values: { decision: 'allow' }, done }
  }

  async function shownApplications(): Promise<Shown> {
    const agent = new UserAgent()
    await signInAt(provider, third, { agent })
    const page = await agent.open(`${provider.issuer}/account/applications`)
    return { agent, page, values: {}, done: (after) => after.url.pathname === '/logout/success' }
  }

  const forms: readonly [string, () => Promise<Shown>][] = [
    ['sign-in', () => shownLogin()],
    ['consent', shownConsent],
    ['sign-out on the account page', shownApplications],
  ]

  for (const [name, show] of forms) {
    it(`${name}: without its token, with another’s, another form’s or a stale one: 403, and the form shown still works`, async () => {
      const { agent, page, values, done } = await show()
      const [form] = findForms(page)
      const action = new URL(form?.action ?? '', page.url)
      const send = (fields: Record<string, string>, headers: Record<string, string> = {}) =>
        agent.open(action, { method: 'POST', body: query(fields), headers })
      const own = { ...form?.fields, ...values }
      const foreign = await shownLogin()
      const { csrf_token: _own, ...withoutToken } = own
      const attempts = {
        'no token': await send(withoutToken),
        'an empty token': await send({ ...own, csrf_token: '' }),
        'a token of another browser': await send({
          ...own,
          csrf_token: findForms(foreign.page)[0]?.fields['csrf_token'] ?? '',
        }),
        'a token of another form': await send({
          ...own,
          csrf_token: findForms((await shownLogin(agent)).page)[0]?.fields['csrf_token'] ?? '',
        }),
        'a changed token': await send({ ...own, csrf_token: `${own['csrf_token']?.slice(0, -2)}xx` }),
        'another origin': await send(own, { origin: 'https://evil.example.test' }),
        'no origin': await send(own, { origin: 'null' }),
        'another site': await send(own, { 'sec-fetch-site': 'cross-site' }),
        'another host of the site': await send(own, { 'sec-fetch-site': 'same-site' }),
      }
      for (const [what, after] of Object.entries(attempts)) {
        expect([what, after.status, done(after)]).toEqual([what, 403, false])
        expect(after.html).toContain('This form is no longer valid')
      }
      const after = await send(own, { origin: provider.issuer, 'sec-fetch-site': 'same-origin' })
      expect(done(after), `${after.status} ${after.headers.get('location')}`).toBe(true)
    })

    it(`${name}: not a form, a field twice, a null byte, too large, another method: a 4xx page`, async () => {
      const { page, agent } = await show()
      const [form] = findForms(page)
      const action = new URL(form?.action ?? '', page.url)
      const own = { ...form?.fields }
      const attempts: readonly [string, number, RequestInit][] = [
        ['JSON', 415, { method: 'POST', body: JSON.stringify(own), headers: { 'content-type': 'application/json' } }],
        ['no type', 415, { method: 'POST', body: new Uint8Array([1]) }],
        ['twice', 400, { method: 'POST', body: query({ ...own, csrf_token: [own['csrf_token'] ?? '', 'x'] }) }],
        ['a null byte', 400, { method: 'POST', body: query({ ...own, login: 'a\0b' }) }],
        ['100 KB', 413, { method: 'POST', body: query({ ...own, login: 'x'.repeat(100_000) }) }],
        ['PUT', 405, { method: 'PUT', body: query(own) }],
      ]
      for (const [what, status, init] of attempts) {
        const after = await agent.open(action, init)
        expect([what, after.status]).toEqual([what, status])
        expect(after.html, what).toContain('id="error-title"')
      }
    })
  }

  it('a sign-in that was completed cannot be posted again: it expired, and nobody is signed in by it', async () => {
    const { agent, page, values, done } = await shownLogin()
    expect(done(await agent.submit(page, values))).toBe(true)
    const again = await agent.submit(page, values)
    expect([again.status, again.headers.get('location')]).toEqual([403, null])
    expect((await agent.open(page.url)).status).toBe(403)
  })

  it('a consent that was given cannot be posted again', async () => {
    const { agent, page, values } = await shownConsent()
    await agent.submit(page, values)
    expect((await agent.submit(page, values)).status).toBe(403)
  })

  it('a sign-in of another browser cannot be completed here, though its address is known', async () => {
    const { page, values } = await shownLogin()
    const thief = new UserAgent()
    await shownLogin(thief)
    expect((await thief.open(page.url)).status).toBe(403)
    const after = await thief.submit(page, values)
    expect([after.status, after.headers.get('location')]).toEqual([403, null])
  })

  it('the way back from a sign-in is this browser’s alone, and only once', async () => {
    const { agent, page, values } = await shownLogin()
    const [form] = findForms(page)
    const posted = await agent.fetch(new URL(form?.action ?? '', page.url), {
      method: 'POST',
      body: query({ ...form?.fields, ...values }),
    })
    expect(posted.status).toBe(303)
    const back = new URL(posted.headers.get('location') ?? '', page.url)
    const stolen = await new UserAgent().open(back)
    expect([stolen.status, stolen.headers.get('location')]).toEqual([400, null])
    expect((await agent.fetch(back)).headers.get('location')).toContain('code=')
    const again = await agent.fetch(back)
    expect([again.status, again.headers.get('location')]).toEqual([400, null])
  })

  it('a sign-in that took longer than an hour: it expired', async () => {
    const { agent, page, values } = await shownLogin()
    await sql`UPDATE artifacts SET expires_at = now() WHERE kind = 'Interaction'`.execute(provider.database.db)
    expect((await agent.submit(page, values)).status).toBe(403)
  })

  it('consent posted to where a sign-in is due: 403, and nobody is let in', async () => {
    const { agent, page } = await shownLogin()
    const [form] = findForms(page)
    const after = await agent.open(new URL((form?.action ?? '').replace('/login', '/consent'), page.url), {
      method: 'POST',
      body: query({ ...form?.fields, decision: 'allow' }),
    })
    expect([after.status, after.headers.get('location')]).toEqual([403, null])
  })

  it('cancelled: access_denied at the client', async () => {
    const { agent, page } = await shownLogin()
    const [form] = findForms(page)
    const after = await agent.open(new URL((form?.action ?? '').replace('/login', '/cancel'), page.url), {
      method: 'POST',
      body: query({ ...form?.fields }),
    })
    expect(new URL(after.headers.get('location') ?? 'about:blank').searchParams.get('error')).toBe('access_denied')
  })

  it('withdrawing from an application that does not exist: 404; from one without consent: nothing', async () => {
    const { agent, page } = await shownApplications()
    const { csrf_token = '' } = findForms(page)[0]?.fields ?? {}
    const withdraw = (client_id: string) =>
      agent.open(`${provider.issuer}/account/applications`, { method: 'POST', body: query({ csrf_token, client_id }) })
    expect((await withdraw('nobody')).status).toBe(404)
    expect((await withdraw('')).status).toBe(404)
    expect((await withdraw('demo-web')).status).toBe(200)
  })
})
