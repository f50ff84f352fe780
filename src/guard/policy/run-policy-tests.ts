/** The `tests:` of a policy file: questions with the answers they must get, for people who do not program. */
import type { PolicySet } from './policy-set.ts'
import type { PolicyTest } from './policy-document.ts'
import type { Decision } from './decision.ts'
import { readQuestion } from './question.ts'

/** One test, run. */
export interface PolicyTestResult {
  readonly name: string
  /** `file:line` of the test. */
  readonly where: string
  readonly passed: boolean
  /** What was expected and what came, in a sentence; empty when it passed. */
  readonly message: string
  readonly decision: Decision
}

/**
 * Runs the tests a policy file carries. Their data is read as {@link readQuestion} says.
 *
 * @example
 * ```ts
 * import { loadPolicies, runPolicyTests } from '@latchkey/guard'
 *
 * for (const { name, passed, message } of runPolicyTests(loadPolicies({ path: './policies.yaml' }))) {
 *   if (!passed) console.error(`${name}: ${message}`)
 * }
 * ```
 */
export function runPolicyTests(policies: PolicySet): PolicyTestResult[] {
  return policies.tests.map((test) => {
    const decision = policies.decide(readQuestion(test))
    const message = complaint(test, decision)
    const where = `${test.position.file}:${test.position.line}`
    return { name: test.name, where, passed: message === '', message, decision }
  })
}

function complaint({ expect, policy }: PolicyTest, decision: Decision): string {
  const answer = decision.allowed ? 'allow' : 'deny'
  const errors = decision.errors.map((fault) => `${fault.policy}: ${fault.message}`).join('; ')
  const because = `${decision.policy ?? 'no policy'}${errors === '' ? '' : `; errors: ${errors}`}`
  if (answer !== expect) return `expected ${expect}, got ${answer} (${because})`
  if (policy !== undefined && policy !== decision.policy) return `expected ${policy} to decide, it was ${because}`
  return ''
}
