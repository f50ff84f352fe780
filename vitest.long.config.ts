import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    name: 'long',
    include: ['test/**/*.long.test.ts'],
    passWithNoTests: true,
    globalSetup: ['test/support/global-setup.ts'],
    reporters: ['default', './test/support/reporter.ts'],
    testTimeout: 600_000,
    hookTimeout: 120_000,
    expect: { poll: { timeout: 15_000 } },
    // These wait more than they compute, and what they hold to holds on a busy machine.
    maxWorkers: 2,
    execArgv: ['--liftoff-only'],
  },
})
