import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    name: 'short',
    include: ['test/**/*.test.ts'],
    exclude: ['test/**/*.long.test.ts', '**/node_modules/**'],
    globalSetup: ['test/support/global-setup.ts'],
    reporters: ['default', './test/support/reporter.ts'],
    testTimeout: 60_000,
    hookTimeout: 120_000,
    // What comes a moment later comes later on a busy machine.
    expect: { poll: { timeout: 15_000 } },
    maxWorkers: 2,
    // Each file compiles the embedded database anew: to compile it well takes longer than most files run.
    execArgv: ['--liftoff-only'],
  },
})
