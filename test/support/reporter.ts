import type { Reporter, SerializedError, TestCase, TestModule, Vitest } from 'vitest/node'

/**
 * Ends a run with what could not be tested, with a line for each failure (`failed: …`), and with one line that a script
 * can read: `12 passed, 0 failed`.
 */
export default class LastLineReporter implements Reporter {
  #vitest: Vitest | undefined

  onInit(vitest: Vitest): void {
    this.#vitest = vitest
  }

  onTestRunEnd(modules: readonly TestModule[], unhandledErrors: readonly SerializedError[]): void {
    const tests = modules.flatMap((module) => [...module.children.allTests()])
    const passed = tests.filter((test: TestCase) => test.result().state === 'passed').length
    const failures = tests.filter((test: TestCase) => test.result().state === 'failed')
    const skipped = tests.length - passed - failures.length
    // A file that could not be loaded, and an error outside of any test, fail the run too.
    const broken = modules.filter((module) => module.errors().length > 0)
    const notTested = this.#vitest?.getRootProject().getProvidedContext().notTested ?? []
    if (notTested.length > 0) {
      console.log(`\n${'!'.repeat(78)}\nNOT TESTED in this run:\n${notTested.map((line) => `  - ${line}`).join('\n')}`)
      console.log('!'.repeat(78))
    }
    const named = [
      ...failures.map((test) => `${test.module.relativeModuleId} > ${test.fullName}`),
      ...broken.map((module) => module.relativeModuleId),
      ...unhandledErrors.map(({ message }) => `outside of any test: ${message}`),
    ]
    console.log(['', ...named.map((name) => `failed: ${name.replaceAll(/\s+/g, ' ')}`)].join('\n'))
    console.log(`${passed} passed, ${named.length} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)
  }
}
