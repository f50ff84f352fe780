import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import axe, { type AxeResults } from 'axe-core'
import Koa from 'koa'
import type { Browser, Page } from 'playwright-core'
import { describe, expect, it, onTestFinished } from 'vitest'
import { openAssets } from '../../src/http/assets.ts'
import { openViews, type LoginPage, type Views } from '../../src/login/render.ts'
import { hasChromium, openChromium } from '../support/chromium.ts'
import { hostile, samplePages } from './sample-pages.ts'

const issuer = 'http://localhost:3000'
const assets = openAssets({ viewsDir: undefined })
const views = openViews({ viewsDir: undefined, issuer, assetUrl: assets.url })
const signIn: LoginPage = { action: '/interaction/1', csrfToken: 'c', clientName: 'Workbench', login: '' }

/** Views of an operator who has put these files into a folder. */
function openOverridden(files: Readonly<Record<string, string>>): Views {
  const viewsDir = mkdtempSync(join(tmpdir(), 'latchkey-views-'))
  onTestFinished(() => rmSync(viewsDir, { recursive: true }))
  for (const [name, text] of Object.entries(files)) writeFileSync(join(viewsDir, name), text)
  return openViews({ viewsDir, issuer, assetUrl: assets.url })
}

describe('a template', () => {
  it('is refused when it asks for what the page does not have', () => {
    const views = openOverridden({ 'login.eta': 'Hello <%= it.clientNmae %>' })
    expect(() => views.login(signIn)).toThrow(/the page has no 'clientNmae'/)
  })

  it('is refused when only a condition asks for it', () => {
    const views = openOverridden({ 'login.eta': '<% if (it.porblem) { %>x<% } %>' })
    expect(() => views.login(signIn)).toThrow(/the page has no 'porblem'/)
  })

  it('is refused when it asks for it deep inside', () => {
    const views = openOverridden({ 'consent.eta': '<% for (const group of it.granted) { %><%= group.name %><% } %>' })
    const render = samplePages['consent'] ?? (() => '')
    expect(() => render(views)).toThrow(/the page has no 'name'; it has resourceName, scopes/)
  })

  it('is refused when it is the layout or a part of a page that asks', () => {
    expect(() => openOverridden({ 'layout.eta': '<%= it.headline %>' }).login(signIn)).toThrow(/no 'headline'/)
    expect(() => openOverridden({ 'application-name.eta': '<%= it.name %>' }).login(signIn)).toThrow(/no 'name'/)
  })

  it('is refused when it prints what has been left out', () => {
    const views = openOverridden({ 'signed-out.eta': 'Back to <%= it.clientName %>' })
    expect(() => views.signedOut({})).toThrow(/prints undefined/)
    expect(views.signedOut({ clientName: 'Workbench' })).toBe('Back to Workbench')
  })

  it('is refused when it prints an object', () => {
    expect(() =>
      openOverridden({ 'login.eta': '<%= it.problem %>' }).login({ ...signIn, problem: { kind: 'expired' } }),
    ) //
      .toThrow(/prints object/)
  })

  it('stops the start when its syntax is wrong, and is named', () => {
    expect(() => openOverridden({ 'login.eta': '<% if ( { %>' })).toThrow(/login\.eta cannot be used/)
  })

  it('stops the start when no page is called so', () => {
    expect(() => openOverridden({ 'sign-in.eta': 'Hello' })).toThrow(/sign-in\.eta: no page is called so/)
  })

  it('stops the start when its folder is not there', () => {
    expect(() => openViews({ viewsDir: '/nowhere/at/all', issuer, assetUrl: assets.url })).toThrow(/ENOENT/)
  })

  it('replaces ours of the same name, escapes as ours does, and leaves the others as they are', () => {
    const changed = openOverridden({
      'login.eta': '<% layout("layout", { title: "Hello", width: "narrow" }) %><p>Ours: <%= it.clientName %></p>',
    })
    const html = changed.login({ ...signIn, clientName: '<b>Workbench</b>' })
    expect(html).toContain('<p>Ours: &lt;b&gt;Workbench&lt;/b&gt;</p>')
    expect(html).toContain('<title>Hello · Latchkey</title>')
    expect(changed.signedOut({})).toBe(views.signedOut({}))
  })

  it('takes data that is frozen', () => {
    const scopes = Object.freeze([Object.freeze({ scope: 'models:read', description: 'Read your models' })])
    const html = views.applications({
      userEmail: 'ada@example.com',
      csrfToken: 'c',
      signOutAction: '/logout',
      applications: [
        {
          clientId: 'cli_1',
          clientName: 'Tracker',
          firstParty: false,
          grantedAt: new Date('2026-11-23T23:59:00Z'),
          scopes: Object.freeze([Object.freeze({ resourceName: 'Models', scopes })]),
          withdrawAction: '/account/applications/cli_1/withdraw',
        },
      ],
    })
    expect(html).toContain('Read your models')
    expect(html).toContain('<time datetime="2026-11-23T23:59:00.000Z">23 November 2026</time>')
  })
})

describe('an address', () => {
  it.each([
    'javascript:alert(1)',
    ' javascript:alert(1)',
    'JaVaScRiPt:alert(1)',
    'java\nscript:alert(1)',
    'java\tscript:alert(1)',
    '\u0001javascript:alert(1)',
    'data:text/html,x',
    'vbscript:x',
    'blob:https://x.example/1',
    'file:///etc/passwd',
    'http://',
  ])('%j makes no link', (clientUri) => {
    const html = views.signedOut({ clientName: 'Workbench', clientUri })
    expect(html).not.toContain('href="' + clientUri)
    expect(html).not.toMatch(/<a\b/)
  })

  it.each(['https://workbench.example/?a=1&b=2', 'http://localhost:4000', '/relative', 'relative'])(
    '%j makes one',
    (clientUri) => {
      expect(views.signedOut({ clientName: 'Workbench', clientUri })).toContain(
        `href="${clientUri.replaceAll('&', '&amp;')}"`,
      )
    },
  )

  it('of a form that is none is refused', () => {
    expect(() => views.login({ ...signIn, action: 'javascript:alert(1)' })).toThrow(/prints undefined/)
  })
})

describe('every page', () => {
  it.each(Object.entries(samplePages))('%s: has no script, no inline style and no handler', (_, render) => {
    const tags = render(views).match(/<[a-z/!][^>]*>/gi) ?? []
    expect(tags.length).toBeGreaterThan(10)
    for (const tag of tags) {
      expect(tag).not.toMatch(/^<(script|style|iframe|object|embed|base)\b/i)
      // Outside of quoted values, where a hostile name is welcome to say onerror=.
      expect(tag.replaceAll(/"[^"]*"/g, '""')).not.toMatch(/\s(on\w+|style)\s*=/i)
    }
  })

  it.each(Object.entries(samplePages))('%s: is one document in English with one heading', (_, render) => {
    const html = render(views)
    expect(html.startsWith('<!doctype html>\n<html lang="en">')).toBe(true)
    expect(html.match(/<h1\b/g)).toHaveLength(1)
    expect(html.match(/<title>[^<]+<\/title>/g)).toHaveLength(1)
    expect(html).not.toMatch(/undefined|\[object|<%|NaN|Invalid Date/)
    expect(html).toContain(`href="${assets.url('style.css')}"`)
  })

  it.each(Object.entries(samplePages))('%s: has the secret in every form', (_, render) => {
    const forms = render(views).match(/<form\b[\s\S]*?<\/form>/g) ?? []
    for (const form of forms) {
      expect(form).toMatch(
        /^<form method="post" action="[^"]+">\s*<input type="hidden" name="(csrf_token|xsrf)" value="[^"]+">/,
      )
    }
  })

  it.each(Object.entries(samplePages).filter(([name]) => name.endsWith('hostile')))(
    '%s: shows markup as text',
    (_, render) => {
      const html = render(views)
      expect(html).toContain('&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;')
      expect(html).not.toContain('<script')
      expect(html).not.toContain('<img src=x')
    },
  )
})

describe('the sign-in page', () => {
  it('never says which of the two fields was wrong', () => {
    const html = views.login({ ...signIn, login: 'ada@example.com', problem: { kind: 'refused' } })
    expect(html).toContain('That email and password do not match.')
    expect(html.match(/aria-invalid="true"/g)).toHaveLength(2)
  })

  it.each([
    [0, '1 second'],
    [1, '1 second'],
    [1.2, '2 seconds'],
    [90, '90 seconds'],
    [91, '2 minutes'],
    [180, '3 minutes'],
  ])('asks for a wait of %d seconds as %s', (retryAfterSeconds, words) => {
    const html = views.login({ ...signIn, problem: { kind: 'throttled', retryAfterSeconds } })
    expect(html).toContain(`Please wait ${words}, then try again.`)
  })

  it('shows no demo accounts and no way out where there are none', () => {
    const html = views.login(signIn)
    expect(html).not.toContain('Demo accounts')
    expect(html).not.toContain('id="cancel"')
  })
})

const policy =
  "default-src 'none'; style-src 'self'; img-src 'self' data: https:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

/** Serves the sample pages under their names, and tells what was posted. */
async function servePages(): Promise<{ origin: string; posts: { path: string; body: string }[] }> {
  const posts: { path: string; body: string }[] = []
  const app = new Koa()
  app.use(assets.middleware)
  app.use(async (ctx) => {
    ctx.set('Content-Security-Policy', policy)
    ctx.type = 'html'
    if (ctx.method === 'POST') {
      const chunks: Buffer[] = []
      for await (const chunk of ctx.req) chunks.push(chunk as Buffer)
      posts.push({ path: ctx.path, body: Buffer.concat(chunks).toString() })
      ctx.body = '<!doctype html><title>posted</title>'
      return
    }
    const render = samplePages[decodeURIComponent(ctx.path.slice(1))]
    if (render !== undefined) ctx.body = render(views)
  })
  const handle = app.callback()
  const server = createServer((request, response) => void handle(request, response))
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve)
  })
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  return { origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, posts }
}

/** A page that reaches our server and nothing else, and the violations of the policy that its console tells of. */
async function openPage(
  browser: Browser,
  options: NonNullable<Parameters<Browser['newPage']>[0]>,
): Promise<{ page: Page; blocked: string[] }> {
  const page = await browser.newPage(options)
  const blocked: string[] = []
  page.on('console', (message) => {
    if (/Content Security Policy/i.test(message.text())) blocked.push(message.text())
  })
  await page.route(/^(?!http:\/\/127\.0\.0\.1)/, (route) => route.abort())
  return { page, blocked }
}

/** For tests that visit every page, in milliseconds. */
const manyPages = 180_000

describe.runIf(hasChromium())('in a browser', () => {
  // What depends on the colours and the width is looked at in both; the rest is the same markup and is looked at once.
  it.each([
    { colorScheme: 'light', width: 1280, rules: 'undefined' },
    { colorScheme: 'dark', width: 375, rules: "['color-contrast', 'target-size', 'link-in-text-block']" },
  ] as const)(
    'every page passes axe, $colorScheme at $width px, and breaks no policy',
    async ({ colorScheme, width, rules }) => {
      const { origin } = await servePages()
      const { page, blocked } = await openPage(await openChromium(), { colorScheme, viewport: { width, height: 800 } })
      const violations: string[] = []
      for (const name of Object.keys(samplePages)) {
        await page.goto(`${origin}/${encodeURIComponent(name)}`)
        for (const summary of await page.locator('summary').all()) await summary.click()
        await page.evaluate(axe.source)
        // As text, since the browser's globals are not this file's.
        const results: AxeResults = await page.evaluate(`axe.run({ runOnly: ${rules}, resultTypes: ['violations'] })`)
        expect(results.passes.length).toBeGreaterThan(0)
        for (const { id, nodes } of results.violations) {
          violations.push(`${name}: ${id} ${nodes.map(({ html }) => html).join(' ')}`)
        }
      }
      expect(violations).toEqual([])
      expect(blocked).toEqual([])
    },
    manyPages,
  )

  it('axe and the policy would find what is wrong', async () => {
    const { origin } = await servePages()
    const { page, blocked } = await openPage(await openChromium(), {})
    await page.goto(`${origin}/login`)
    await page.evaluate(`document.querySelector('label').remove()
      document.body.insertAdjacentHTML('beforeend', '<p style="color: red">x</p>')`)
    await page.evaluate(axe.source)
    const results: AxeResults = await page.evaluate('axe.run()')
    expect(results.violations.map(({ id }) => id)).toContain('label')
    expect(blocked).toHaveLength(1)
  })

  it(
    'no page is wider than a phone of 320 px, whatever it is told to show',
    async () => {
      const { origin } = await servePages()
      const { page } = await openPage(await openChromium(), { viewport: { width: 320, height: 640 } })
      const tooWide: string[] = []
      for (const name of Object.keys(samplePages)) {
        await page.goto(`${origin}/${encodeURIComponent(name)}`)
        const width = await page.evaluate<number>('document.documentElement.scrollWidth')
        if (width > 320) tooWide.push(`${name}: ${width}`)
      }
      expect(tooWide).toEqual([])
    },
    manyPages,
  )

  it('a hostile name makes no element and no handler', async () => {
    const { origin } = await servePages()
    const { page } = await openPage(await openChromium(), {})
    for (const name of Object.keys(samplePages).filter((name) => name.endsWith('hostile'))) {
      await page.goto(`${origin}/${encodeURIComponent(name)}`)
      const found = await page.evaluate<string[]>(`[...document.querySelectorAll('*')].flatMap((element) => [
        ...(['SCRIPT', 'STYLE', 'IFRAME', 'B'].includes(element.tagName) ? [element.outerHTML] : []),
        ...[...element.attributes].filter(({ name }) => name.startsWith('on') || name === 'style').map(({ name }) => name),
        ...['href', 'src', 'action', 'formAction'].map((name) => element[name]).filter((url) => typeof url === 'string')
          .filter((url) => url !== '' && !/^https?:/.test(url)),
      ])`)
      expect(found).toEqual([])
    }
  })

  it('works without JavaScript: sign in, cancel, allow, deny, sign out, withdraw', async () => {
    const { origin, posts } = await servePages()
    const { page } = await openPage(await openChromium(), { javaScriptEnabled: false })
    const visit = (name: string) => page.goto(`${origin}/${encodeURIComponent(name)}`)

    await visit('login')
    // The browser moves the cursor there by itself, a moment after the page has loaded.
    await page.locator('[name=login]:focus').waitFor()
    await page.keyboard.type('ada@example.com')
    await page.fill('[name=password]', 'correct-horse-4711')
    await page.keyboard.press('Enter')
    await page.waitForURL('**/interaction/*')
    expect(posts.pop()).toEqual({
      path: '/interaction/V1StGXR8_Z5jdHi6B-myT',
      body: 'csrf_token=csrf-8ZzO2kQ&login=ada%40example.com&password=correct-horse-4711',
    })

    // Left empty on purpose: cancelling must not demand a password.
    await visit('login')
    await page.click('#cancel')
    expect(posts.pop()).toMatchObject({ path: '/interaction/V1StGXR8_Z5jdHi6B-myT/abort' })

    const presses: readonly (readonly [string, string, string])[] = [
      ['consent', '#allow', 'csrf_token=csrf-8ZzO2kQ&decision=allow'],
      ['consent', '#deny', 'csrf_token=csrf-8ZzO2kQ&decision=deny'],
      ['logout', '#sign-out', 'xsrf=xsrf-41&logout=yes'],
      ['logout', '#stay', 'xsrf=xsrf-41'],
      ['applications', 'button.danger >> nth=0', 'csrf_token=csrf-8ZzO2kQ&client_id=cli_tracker'],
      ['applications', '#sign-out', 'csrf_token=csrf-8ZzO2kQ'],
      ['device confirm', '#allow', 'xsrf=xsrf-41&user_code=BDWP-HQPK&confirm=yes'],
      ['device confirm', '#deny', 'xsrf=xsrf-41&user_code=BDWP-HQPK&abort=yes'],
    ]
    for (const [name, button, body] of presses) {
      await visit(name)
      await page.click(button)
      expect(posts.pop()?.body).toBe(body)
    }
  })

  it('puts the cursor where one types next, and ties the problem to the fields', async () => {
    const { origin } = await servePages()
    const { page } = await openPage(await openChromium(), {})
    await page.goto(`${origin}/login`)
    await page.locator('[name=login]:focus').waitFor()
    await page.goto(`${origin}/${encodeURIComponent('login, refused')}`)
    await page.locator('[name=password]:focus').waitFor()
    const described = await page.evaluate(
      "document.getElementById(document.activeElement.getAttribute('aria-describedby')).textContent",
    )
    expect(described).toContain('That email and password do not match.')
    expect(await page.inputValue('[name=login]')).toBe('ada@example.com')
    await page.goto(`${origin}/${encodeURIComponent('login, hostile')}`)
    expect(await page.inputValue('[name=login]')).toBe(hostile)
  })
})
