/** `/docs` in a real browser: somebody signs in from the page that documents the API, and calls the API from it. */
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import axe, { type AxeResults } from 'axe-core'
import type { BrowserContext, Page } from 'playwright-core'
import { beforeAll, describe, expect, it } from 'vitest'
import { hasChromium, openChromium } from '../support/chromium.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'

/** Set to a folder to look at what the browser showed. */
const screenshots = process.env['SCREENSHOTS']

async function look(page: Page, name: string): Promise<void> {
  if (screenshots === undefined) return
  mkdirSync(screenshots, { recursive: true })
  await page.screenshot({ path: join(screenshots, `docs-${name}.png`), fullPage: true })
}

/** What goes wrong in any of its windows: errors, what the policy stopped, and requests that leave the provider. */
function watch(context: BrowserContext, issuer: string): string[] {
  const wrong: string[] = []
  context.on('console', (message) => {
    const text = message.text()
    if (message.type() === 'error' || text.includes('Content Security Policy')) wrong.push(text)
  })
  context.on('weberror', (error) => wrong.push(error.error().message))
  context.on('request', (request) => {
    if (!request.url().startsWith(`${issuer}/`) && !request.url().startsWith('data:')) wrong.push(request.url())
  })
  context.on('requestfailed', (request) => wrong.push(`${request.url()} ${request.failure()?.errorText ?? ''}`))
  return wrong
}

/** How Swagger UI is built, and nothing that can be mended from outside of it. */
const ofSwaggerUi = ['nested-interactive', 'label-content-name-mismatch']

async function findFaults(page: Page): Promise<string[]> {
  await page.evaluate(axe.source)
  const { violations }: AxeResults = await page.evaluate(`axe.run({ resultTypes: ['violations'] })`)
  return violations
    .filter(({ impact, id }) => (impact === 'critical' || impact === 'serious') && !ofSwaggerUi.includes(id))
    .map(({ id, nodes }) => `${id}: ${nodes.map(({ target }) => target.join(' ')).join(', ')}`)
}

describe.runIf(hasChromium())('the documentation of the API', () => {
  let provider: TestProvider
  beforeAll(async () => {
    provider = await openProvider('pglite')
  })

  it('lets an administrator sign in, agree, and list people, within its policy', async () => {
    const { issuer, demo } = provider
    const browser = await openChromium()
    const context = await browser.newContext({ viewport: { width: 1280, height: 900 } })
    const wrong = watch(context, issuer)
    const page = await context.newPage()
    await page.goto(`${issuer}/`)
    await page.getByRole('link', { name: 'Management API' }).click()
    const operation = page.locator('#operations-Users-listUsers')
    await operation.waitFor()
    expect(await findFaults(page)).toEqual([])
    await look(page, '1-page')

    await page.getByRole('button', { name: 'Authorize' }).click()
    const form = page.locator('.auth-container', { hasText: 'authorizationCode' })
    expect(await form.getByLabel('client_id').inputValue()).toBe('latchkey-docs')
    await form.getByText('select all', { exact: true }).click()
    expect(await findFaults(page)).toEqual([])
    await look(page, '2-authorize')
    const opening = page.waitForEvent('popup')
    await form.locator('.authorize').click()
    const popup = await opening
    await popup.getByLabel(/email/i).fill(demo.admin.email)
    await popup.getByLabel(/password/i).fill(demo.admin.password)
    await popup.locator('#sign-in').click()
    await popup.locator('#allow').waitFor()
    const consent = (await popup.locator('main').textContent()) ?? ''
    expect(consent).toContain('API documentation')
    expect(consent).toContain('rotate and revoke signing keys')
    const closing = popup.waitForEvent('close')
    await popup.locator('#allow').click()
    await closing
    await form.getByRole('button', { name: 'Remove authorization' }).waitFor()
    await form.getByRole('button', { name: 'Close' }).click()

    await operation.locator('.opblock-summary-control').click()
    await operation.getByRole('button', { name: 'Try it out' }).click()
    await operation.getByRole('button', { name: 'Execute' }).click()
    const answer = operation.locator('.live-responses-table .response')
    await answer.waitFor()
    expect(await answer.locator('.response-col_status').textContent()).toContain('200')
    const body = (await answer.locator('.response-col_description').textContent()) ?? ''
    expect(body).toContain(demo.user.email)
    expect(body).toContain(demo.admin.id)
    expect(body.toLowerCase()).toContain('api-version: 1')
    expect(await findFaults(page)).toEqual([])
    await look(page, '3-answer')
    expect(wrong).toEqual([])
    await context.close()
  })

  it('fits a telephone', async () => {
    const browser = await openChromium()
    const context = await browser.newContext({ viewport: { width: 390, height: 844 } })
    const wrong = watch(context, provider.issuer)
    const page = await context.newPage()
    await page.goto(`${provider.issuer}/docs`)
    await page.locator('#operations-Users-listUsers .opblock-summary-control').click()
    await page.getByRole('button', { name: 'Try it out' }).waitFor()
    await look(page, '4-narrow')
    expect(await page.evaluate('document.documentElement.scrollWidth')).toBeLessThanOrEqual(390)
    expect(wrong).toEqual([])
    await context.close()
  })
})
