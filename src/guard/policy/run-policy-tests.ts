/** The `tests:` of a policy file: questions with the answers they must get, for people who do not program. */
import type { Subject } from '../caller.ts'
import type { PolicySet } from './policy-set.ts'
import type { PolicyTest } from './policy-document.ts'
import type { Decision, Resource } from './decision.ts'

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
 * Runs the tests a policy file carries.
 *
 * An RFC 3339 timestamp called `time`, or with a name that ends in `_at`, is a timestamp and not a text, as the guard
 * and a database hand them in. A subject without `type` is a user; roles and groups may be left out.
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
    const decision = policies.decide({
      subject: subjectOf(test),
      action: test.action,
      resource: { ...withTimestamps(test.resource), type: textOr(test.resource['type'], '') } satisfies Resource,
      context: withTimestamps(test.context),
    })
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

function subjectOf({ subject }: PolicyTest): Subject {
  return {
    ...withTimestamps(subject),
    type: subject['type'] === 'client' ? 'client' : 'user',
    id: textOr(subject['id'], ''),
    roles: textsOf(subject['roles']),
    groups: textsOf(subject['groups']),
  }
}

const RFC3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)$/

/** YAML has no timestamps; by their names, these are some. */
function withTimestamps(data: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(data).map(([name, value]) => {
      if (typeof value === 'string' && RFC3339.test(value) && /^time$|_at$/.test(name)) return [name, new Date(value)]
      return [name, Array.isArray(value) ? value.map(inner) : inner(value)]
    }),
  )
}

function inner(value: unknown): unknown {
  const isMapping = typeof value === 'object' && value !== null && !Array.isArray(value)
  return isMapping ? withTimestamps(value as Record<string, unknown>) : value
}

/** YAML reads `id: 123` as a number; identities are texts. */
function textOr(value: unknown, otherwise: string): string {
  if (typeof value === 'number') return String(value)
  return typeof value === 'string' ? value : otherwise
}

function textsOf(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((item) => typeof item === 'string') : []
}
