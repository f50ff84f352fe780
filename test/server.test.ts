import { setTimeout as sleep } from 'node:timers/promises'
import { expect, it } from 'vitest'
import { openProvider, type TestProvider } from './support/provider.ts'

const fast = /takes \d+ ms here, less than half of 5000 ms: run `latchkey calibrate --store`/

/** Waits for the one measurement that is made after the start. */
async function saysThatHashesAreFast(provider: TestProvider): Promise<boolean> {
  const deadline = performance.now() + 10_000
  while (!fast.test(provider.log())) {
    if (performance.now() > deadline) return false
    await sleep(20)
  }
  return true
}

it('warns at the start when a password hash takes less than half of what it should', async () => {
  const provider = await openProvider('pglite', { environment: { LATCHKEY_PASSWORD_TARGET_MS: '5000' } })
  expect(await saysThatHashesAreFast(provider)).toBe(true)
  expect(provider.log()).toContain('"level":"WARN"')
})

it('does not warn when it takes long enough', async () => {
  const provider = await openProvider('pglite', { environment: { LATCHKEY_PASSWORD_TARGET_MS: '10' } })
  await sleep(1_500)
  expect(provider.log()).not.toContain('less than half')
})
