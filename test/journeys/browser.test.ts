import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import { describe, expect, it } from 'vitest'
import { hasChromium, openChromium } from '../support/chromium.ts'
import { hasPostgres, type Engine } from '../support/databases.ts'
import { openProvider } from '../support/provider.ts'

/** Set to a folder to look at what the browser showed. */
const screenshots = process.env['SCREENSHOTS']

async function look(page: Page, name: string): Promise<void> {
  if (screenshots === undefined) return
  mkdirSync(screenshots, { recursive: true })
  await page.screenshot({ path: join(screenshots, `${name}.png`), fullPage: true })
}

for (const engine of ['pglite', 'postgres'] satisfies Engine[]) {
  describe.runIf(hasChromium() && (engine === 'pglite' || hasPostgres()))(`in a real browser, on ${engine}`, () => {
    for (const javaScriptEnabled of [true, false]) {
      const how = javaScriptEnabled ? 'with' : 'without'
      it(`a person signs in, agrees, sees the tokens, reviews the application and signs out, ${how} JavaScript`, async () => {
        const { issuer, demo } = await openProvider(engine)
        const browser = await openChromium()
        const context = await browser.newContext({ javaScriptEnabled, viewport: { width: 1280, height: 800 } })
        const page = await context.newPage()
        const refused: string[] = []
        page.on('console', (message) => {
          if (message.type() === 'error' && message.text().includes('Content Security Policy'))
            refused.push(message.text())
        })
        const shot = (name: string) => look(page, `${engine}-${how}-${name}`)

        await page.goto(`${issuer}/`)
        await shot('0-home')
        await page.goto(`${issuer}/demo`)
        await shot('1-login')
        await page.getByLabel(/email/i).fill(demo.user.email)
        await page.getByLabel(/password/i).fill('wrong password')
        await page.locator('#sign-in').click()
        await page.getByRole('alert').waitFor()
        await shot('2-refused')
        await page.getByLabel(/password/i).fill(demo.user.password)
        await page.locator('#sign-in').click()

        await page.locator('#allow').waitFor()
        const consent = (await page.locator('main').textContent()) ?? ''
        expect(consent).toContain('Demo web application')
        expect(consent).toContain('see models')
        expect(consent).toMatch(/not be able to[\s\S]*delete models/i)
        await shot('3-consent')
        await page.locator('#allow').click()

        await page.waitForURL(/\/demo\/callback/)
        const tokens = (await page.locator('main').textContent()) ?? ''
        expect(tokens).toContain('"typ": "at+jwt"')
        expect(tokens).toContain('models:write')
        // Asked for, and beyond what this person's roles allow.
        expect(tokens).not.toContain('models:delete')
        await shot('4-tokens')

        await page.goto(`${issuer}/account/applications`)
        expect(await page.locator('main').textContent()).toContain('Demo web application')
        await shot('5-applications')
        await page
          .getByRole('button', { name: /withdraw/i })
          .first()
          .click()
        await page.locator('#notice').waitFor()
        expect(await page.locator('main').textContent()).not.toContain('Demo web application')
        await shot('6-withdrawn')

        await page.goto(`${issuer}/logout`)
        await shot('7-logout')
        await page.locator('#sign-out').click()
        await page.waitForURL(/\/logout\/success/)
        await shot('8-signed-out')
        await page.goto(`${issuer}/demo`)
        await page.locator('#sign-in').waitFor()

        await page.goto(`${issuer}/authorize?client_id=nobody`)
        await page.locator('#error-title').waitFor()
        await shot('9-error')
        expect(refused).toEqual([])
        await context.close()
      })
    }
  })
}
