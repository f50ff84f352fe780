/**
 * What browsers are told: who may read answers across origins, what may be kept, what cookies are for.
 */
import { beforeAll, describe, expect, it } from 'vitest'
import { openProvider, type TestProvider } from '../../support/provider.ts'
import {
  ask,
  authorize,
  exchange,
  query,
  registerClient,
  signInAt,
  type RegisteredClient,
} from '../../support/relying-party.ts'
import { authorizationRequest, UserAgent } from '../../support/user-agent.ts'

describe('browsers', () => {
  let provider: TestProvider
  let spa: RegisteredClient
  const origin = 'https://spa.example.test'
  beforeAll(async () => {
    provider = await openProvider('pglite')
    spa = await registerClient(provider, { type: 'spa', redirect_uris: [`${origin}/callback`] })
  })

  describe('across origins', () => {
    it('another origin than the client registered may not read its tokens; nor may `null`', async () => {
      for (const from of [
        'https://evil.example.test',
        'null',
        `${origin}:8443`,
        'http://spa.example.test',
        `${origin}.evil.example.test`,
      ]) {
        const answered = await authorize(provider, spa)
        const answer = await exchange(provider, spa, answered, { headers: { origin: from } })
        expect([from, answer.status, answer.body.access_token]).toEqual([from, 400, undefined])
        expect(answer.headers.get('access-control-allow-origin')).toBeNull()
        // It was not its owner who asked, so it is not used up.
        expect((await exchange(provider, spa, answered)).status).toBe(200)
      }
    })

    it('the registered origin may, and without cookies', async () => {
      const answer = await exchange(provider, spa, await authorize(provider, spa), { headers: { origin } })
      expect(answer.status).toBe(200)
      expect(answer.headers.get('access-control-allow-origin')).toBe(origin)
      expect(answer.headers.get('access-control-allow-credentials')).toBeNull()
      expect(answer.headers.get('vary')).toMatch(/\borigin\b/i)
      const info = await fetch(`${provider.issuer}/userinfo`, {
        headers: { origin, authorization: `Bearer ${answer.body.access_token}` },
      })
      expect([info.status, info.headers.get('access-control-allow-origin')]).toEqual([200, origin])
      const foreign = await fetch(`${provider.issuer}/userinfo`, {
        headers: { origin: 'https://evil.example.test', authorization: `Bearer ${answer.body.access_token}` },
      })
      expect([foreign.status, foreign.headers.get('access-control-allow-origin')]).toEqual([400, null])
    })

    it('a preflight at the token endpoint is answered, without credentials', async () => {
      const response = await fetch(`${provider.issuer}/token`, {
        method: 'OPTIONS',
        headers: { origin, 'access-control-request-method': 'POST', 'access-control-request-headers': 'dpop' },
      })
      expect([response.status, response.headers.get('access-control-allow-methods')]).toEqual([204, 'POST'])
      expect(response.headers.get('access-control-allow-credentials')).toBeNull()
    })

    it('nobody may read /authorize, its pages or the account pages, preflight or not', async () => {
      const asked = ask(provider, spa)
      const page = await new UserAgent().open(asked.url)
      for (const url of [
        asked.url,
        page.url.href,
        `${provider.issuer}/logout`,
        `${provider.issuer}/account/applications`,
      ]) {
        for (const method of ['GET', 'OPTIONS']) {
          const response = await fetch(url, {
            method,
            headers: { origin, 'access-control-request-method': 'GET' },
            redirect: 'manual',
          })
          expect([method, url, response.headers.get('access-control-allow-origin')]).toEqual([method, url, null])
        }
      }
    })

    it('anybody may read the metadata and the keys', async () => {
      for (const path of ['openid-configuration', 'oauth-authorization-server', 'jwks.json']) {
        const response = await fetch(`${provider.issuer}/.well-known/${path}`, {
          headers: { origin: 'https://any.example.test' },
        })
        expect(response.headers.get('access-control-allow-origin'), path).toMatch(/^(\*|https:\/\/any\.example\.test)$/)
        expect(response.headers.get('access-control-allow-credentials')).toBeNull()
      }
    })
  })

  describe('keeping', () => {
    it('metadata and keys for a while that is shorter than a key is published ahead', async () => {
      for (const path of ['openid-configuration', 'oauth-authorization-server', 'jwks.json']) {
        const response = await fetch(`${provider.issuer}/.well-known/${path}`)
        const maxAge = Number(/^public, max-age=(\d+)$/.exec(response.headers.get('cache-control') ?? '')?.[1])
        expect(maxAge, path).toBeGreaterThan(0)
        expect(maxAge, path).toBeLessThan(provider.config.keyPublishAheadSeconds)
      }
    })

    it('nothing else: tokens, errors, pages, redirects', async () => {
      const rp = await registerClient(provider)
      const agent = new UserAgent()
      const tokens = await signInAt(provider, rp, { agent })
      const headers = [
        tokens.headers,
        (await agent.fetch(ask(provider, rp).url)).headers,
        (await agent.open(`${provider.issuer}/account/applications`)).headers,
        (await fetch(`${provider.issuer}/token`, { method: 'POST' })).headers,
        (await fetch(`${provider.issuer}/logout`)).headers,
        (await fetch(`${provider.issuer}/authorize`)).headers,
        (await fetch(`${provider.issuer}/.well-known/jwks.json`, { method: 'DELETE' })).headers,
      ]
      for (const header of headers) expect(header.get('cache-control')).toBe('no-store')
    })
  })

  it('every page forbids framing and scripts, and tells no other site where one came from', async () => {
    const agent = new UserAgent()
    const login = await agent.open(ask(provider, spa).url)
    await signInAt(provider, spa, { agent })
    const pages = [
      login,
      await agent.open(`${provider.issuer}/account/applications`),
      await agent.open(`${provider.issuer}/logout`),
      await agent.open(`${provider.issuer}/authorize`),
      await agent.open(`${provider.issuer}/logout/success`),
    ]
    for (const { headers, url, html } of pages) {
      const policy = headers.get('content-security-policy') ?? ''
      expect(policy, url.pathname).toContain("frame-ancestors 'none'")
      expect(policy, url.pathname).toContain("default-src 'none'")
      expect(policy, url.pathname).not.toContain('unsafe-inline')
      expect(headers.get('x-frame-options')).toBe('DENY')
      expect(headers.get('x-content-type-options')).toBe('nosniff')
      expect(headers.get('referrer-policy')).toMatch(/^(same-origin|no-referrer)$/)
      expect(html).not.toMatch(/<script|\son\w+=|style="/)
      for (const [, source = ''] of html.matchAll(/\s(?:src|href)="(https?:[^"]+)"/g)) {
        expect(source.startsWith(provider.issuer), source).toBe(true)
      }
    }
  })

  it('the redirect after a password is 303, so that the password is not sent on (RFC 9700 §4.12)', async () => {
    const agent = new UserAgent()
    const page = await agent.open(ask(provider, spa).url)
    const [action = ''] = /\/interaction\/[\w-]+\/login/.exec(page.html) ?? []
    const token = /name="csrf_token" value="([^"]+)"/.exec(page.html)?.[1] ?? ''
    const { email, password } = provider.demo.user
    const posted = await agent.fetch(new URL(action, page.url), {
      method: 'POST',
      body: query({ csrf_token: token, login: email, password }),
    })
    expect(posted.status).toBe(303)
    expect((await agent.fetch(new URL(posted.headers.get('location') ?? '', page.url))).status).toBe(303)
  })

  describe('cookies of an https issuer', () => {
    it('are all HttpOnly, Secure, SameSite=Lax; __Host- where they are for all paths, __Secure- where for one', async () => {
      const issuer = 'https://id.example.test'
      const secure = await openProvider('pglite', { environment: { LATCHKEY_ISSUER: issuer } })
      const lines: string[] = []
      const agent = new UserAgent({}, `http://localhost:${secure.config.port}`)
      const { email, password } = secure.demo.user
      const web = authorizationRequest(issuer, secure.demo)
      let page = await agent.fetch(web.url)
      for (let step = 0; step < 8; step += 1) {
        lines.push(...page.headers.getSetCookie())
        const location = page.headers.get('location')
        if (location?.includes('code=') === true) break
        if (location !== null) page = await agent.fetch(new URL(location, page.url))
        else if (page.html.includes('name="password"')) {
          const fields = query({
            csrf_token: /name="csrf_token" value="([^"]+)"/.exec(page.html)?.[1],
            login: email,
            password,
          })
          const [action = ''] = /\/interaction\/[\w-]+\/login/.exec(page.html) ?? []
          page = await agent.fetch(new URL(action, page.url), { method: 'POST', body: fields })
        } else {
          const fields = query({
            csrf_token: /name="csrf_token" value="([^"]+)"/.exec(page.html)?.[1],
            decision: 'allow',
          })
          const [action = ''] = /\/interaction\/[\w-]+\/consent/.exec(page.html) ?? []
          page = await agent.fetch(new URL(action, page.url), { method: 'POST', body: fields })
        }
      }
      expect(page.headers.get('location')).toContain('code=')
      const names = new Set(lines.map((line) => line.split('=')[0]?.replace(/\.sig$/, '')))
      expect(names).toEqual(
        new Set(['__Host-session', '__Host-csrf', '__Host-device', '__Secure-interaction', '__Secure-resume']),
      )
      for (const line of lines) {
        const attributes = line.toLowerCase().split('; ').slice(1)
        expect(attributes, line).toEqual(expect.arrayContaining(['httponly', 'secure', 'samesite=lax']))
        expect(
          attributes.some((attribute) => attribute.startsWith('domain')),
          line,
        ).toBe(false)
        const path = attributes.find((attribute) => attribute.startsWith('path='))
        if (line.startsWith('__Host-')) expect(path, line).toBe('path=/')
        else expect(path, line).toMatch(/^path=\/(interaction|authorize)\/[\w-]+$/i)
      }
    })

    it('over http in development are HttpOnly and SameSite=Lax all the same', async () => {
      const page = await new UserAgent().fetch(ask(provider, spa).url)
      const lines = page.headers.getSetCookie()
      expect(lines.length).toBeGreaterThan(0)
      for (const line of lines) {
        expect(line.toLowerCase()).toContain('; httponly')
        expect(line.toLowerCase()).toContain('; samesite=lax')
      }
    })

    it('a session cookie whose signature was changed is nobody’s', async () => {
      const agent = new UserAgent()
      await signInAt(provider, spa, { agent })
      const session = agent.cookies()['session'] ?? ''
      agent.setCookie(provider.issuer, 'session', `${session.slice(0, -2)}xx`)
      const page = await agent.open(`${provider.issuer}/authorize?${ask(provider, spa, { prompt: 'none' }).parameters}`)
      expect(new URL(page.headers.get('location') ?? 'about:blank').searchParams.get('error')).toBe('login_required')
    })
  })
})
