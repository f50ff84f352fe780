import { existsSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { chromium, type Browser } from 'playwright-core'
import { inject, onTestFinished } from 'vitest'

/** The path of a Chromium, or undefined where there is none; the variable CHROMIUM names another. */
export function findChromium(): string | undefined {
  const named = process.env['CHROMIUM']
  if (named !== undefined && named !== '') return named
  const names = ['chromium', 'chromium-browser', 'google-chrome-stable', 'google-chrome']
  const onPath = (process.env['PATH'] ?? '')
    .split(delimiter)
    .flatMap((folder) => names.map((name) => join(folder, name)))
  return [
    ...names.map((name) => join('/usr/bin', name)),
    ...onPath,
    '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome',
    '/Applications/Chromium.app/Contents/MacOS/Chromium',
  ].find((path) => existsSync(path))
}

/** Whether this run has a browser: `describe.runIf(hasChromium())`. The run's end says so when it has none. */
export function hasChromium(): boolean {
  return inject('chromium') !== ''
}

/** Opens a browser that is closed after the test. */
export async function openChromium(): Promise<Browser> {
  const browser = await chromium.launch({
    executablePath: inject('chromium'),
    // Chromium has no sandbox for root, and containers give it little shared memory.
    args: [...(process.getuid?.() === 0 ? ['--no-sandbox'] : []), '--disable-dev-shm-usage'],
  })
  onTestFinished(() => browser.close())
  return browser
}
