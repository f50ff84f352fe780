import type { Reporter, SerializedError, TestCase, TestModule, Vitest } from 'vitest/node'

/** Ends a run with what could not be tested, and with one line that a script can read: `12 passed, 0 failed`. */
export default class LastLineReporter implements Reporter {
  #vitest: Vitest | undefined

  onInit(vitest: Vitest): void {
    this.#vitest = vitest
  }

  onTestRunEnd(modules: readonly TestModule[], unhandledErrors: readonly SerializedError[]): void {
    const tests = modules.flatMap((module) => [...module.children.allTests()])
    const passed = tests.filter((test: TestCase) => test.result().state === 'passed').length
    const failed = tests.filter((test: TestCase) => test.result().state === 'failed').length
    const skipped = tests.length - passed - failed
    // A file that could not be loaded, and an error outside of any test, fail the run too.
    const broken = modules.filter((module) => module.errors().length > 0).length + unhandledErrors.length
    const notTested = this.#vitest?.getRootProject().getProvidedContext().notTested ?? []
    if (notTested.length > 0) {
      console.log(`\n${'!'.repeat(78)}\nNOT TESTED in this run:\n${notTested.map((line) => `  - ${line}`).join('\n')}`)
      console.log('!'.repeat(78))
    }
    console.log(`\n${passed} passed, ${failed + broken} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)
  }
}
