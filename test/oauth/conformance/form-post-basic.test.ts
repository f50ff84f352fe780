/**
 * The plan oidcc-formpost-basic is oidcc-basic with response_mode=form_post: here, what that mode itself changes.
 */
import { beforeAll, describe, expect, it } from 'vitest'
import { openProvider, type TestProvider } from '../../support/provider.ts'
import { ask, exchange, registerClient, withoutPkce, type RegisteredClient } from '../../support/relying-party.ts'
import { findForms, UserAgent, type Page } from '../../support/user-agent.ts'

describe('oidcc-formpost-basic', () => {
  let provider: TestProvider
  let rp: RegisteredClient
  beforeAll(async () => {
    provider = await openProvider('pglite')
    rp = await registerClient(provider, { require_pkce: false })
  })

  const formPost = { ...withoutPkce, response_mode: 'form_post' }

  async function signIn(agent: UserAgent, url: string): Promise<Page> {
    const { email, password } = provider.demo.user
    return agent.submit(await agent.open(url), { login: email, password })
  }

  it('oidcc-response-type-missing: the error is posted too', async () => {
    const asked = ask(provider, rp, { ...formPost, response_type: undefined })
    const [form] = findForms(await new UserAgent().open(asked.url))
    expect(form?.action).toBe(rp.redirect_uri)
    expect(form?.fields).toMatchObject({ error: 'invalid_request', state: asked.state, iss: provider.issuer })
  })

  it('oidcc-prompt-none-not-logged-in: login_required is posted', async () => {
    const [form] = findForms(await new UserAgent().open(ask(provider, rp, { ...formPost, prompt: 'none' }).url))
    expect(form?.fields).toMatchObject({ error: 'login_required' })
  })

  it('oidcc-ensure-registered-redirect-uri: nothing is posted to an unregistered one', async () => {
    const page = await new UserAgent().open(
      ask(provider, rp, { ...formPost, redirect_uri: 'https://evil.example.test/' }).url,
    )
    expect(page.status).toBe(400)
    expect(page.html).not.toContain('evil.example.test')
    expect(findForms(page)).toEqual([])
  })

  it('oidcc-server: code, state and iss are posted, and the code is good', async () => {
    const asked = ask(provider, rp, formPost)
    const page = await signIn(new UserAgent(), asked.url)
    const [form] = findForms(page)
    expect(page.status).toBe(200)
    expect(form?.action).toBe(rp.redirect_uri)
    expect(form?.fields).toEqual({ code: expect.any(String), state: asked.state, iss: provider.issuer })
    expect((await exchange(provider, rp, { code: form?.fields['code'] ?? '', verifier: '' })).status).toBe(200)
  })

  it('lets a browser send that form: its script and its target are allowed, and nothing else', async () => {
    const page = await signIn(new UserAgent(), ask(provider, rp, formPost).url)
    const policy = page.headers.get('content-security-policy') ?? ''
    expect(policy).toMatch(/script-src 'sha256-[\w+/]+='/)
    expect(policy).toContain(`form-action ${new URL(rp.redirect_uri).origin};`)
    expect(policy).toContain("default-src 'none'")
    expect(page.headers.get('cache-control')).toBe('no-store')
  })

  it('writes a state of markup as text', async () => {
    const state = '"><script>alert(1)</script>'
    const page = await new UserAgent().open(ask(provider, rp, { ...formPost, prompt: 'none', state }).url)
    expect(page.html).not.toContain('<script>alert')
  })
})
