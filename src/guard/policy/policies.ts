/**
 * Policies: who may do what to which resource, written down in YAML and decided here. A file is read once, strictly
 * (`policy-document.ts`), and becomes a `PolicySet` that answers two kinds of question. `decide` is about one resource:
 * the policies that concern it are found (`policy-index.ts`), the denies asked before the allows, each condition
 * (`condition.ts`) read directly where it is simple (`direct.ts`), and evaluated on a copy of the facts where it is not
 * (`expression.ts`, `facts.ts`). `plan` is about all resources of a type: the same conditions, as far as they can be
 * computed without the resource (`residual.ts`), for a database to finish (`../kysely.ts`).
 *
 * A deny wins over every allow; what no policy allows is refused; a condition that fails counts as its effect's safe
 * side: an allow does not apply, a deny does. Where the facts come from is left to others: the caller in
 * `../caller.ts`, time and network in `../rule/context.ts`, the resource in the service.
 */
import { policySet, readPolicyFile } from './policy-set.ts'
import type { PolicySet } from './policy-set.ts'

export type { Decision, DecisionInput, Plan, PlanInput, PlannedCondition, PolicyFault, Resource } from './decision.ts'
export { explainDecision } from './explain-decision.ts'
export type { ExplainedPolicy, Explanation } from './explain-decision.ts'
export { importPolicies } from './import-policies.ts'
export type { ImportedPolicies, ImportOptions, ImportSource, PolicySource } from './import-policies.ts'
export { runPolicyTests } from './run-policy-tests.ts'
export type { PolicyTestResult } from './run-policy-tests.ts'
export { PolicyError } from './policy-error.ts'
export type { PolicyPosition } from './policy-error.ts'
export { readQuestion } from './question.ts'
export type { PlainQuestion } from './question.ts'
export { PolicySet } from './policy-set.ts'
export { watchPolicies } from './watch-policies.ts'
export type { PolicyWatch, WatchOptions } from './watch-policies.ts'

/** Options of {@link loadPolicies}. */
export interface LoadOptions {
  /** What error messages call the source when it is given as text. @defaultValue `'policies'` */
  readonly file?: string
}

/**
 * Reads policies from text or from a file.
 *
 * @param source - YAML text, or the path of a file
 * @throws PolicyError with file and line when anything in it is not understood; nothing is skipped
 *
 * @example
 * ```ts
 * import { loadPolicies } from '@latchkey/guard'
 *
 * const policies = loadPolicies(`
 * policies:
 *   - id: owner-full-access
 *     effect: allow
 *     subjects: ["user:*"]
 *     actions: ["*"]
 *     resources: ["*"]
 *     condition: "resource.owner == subject.id"
 * `)
 * const subject = { type: 'user', id: 'alice', roles: [], groups: [] } as const
 * const { allowed } = policies.decide({ subject, action: 'read', resource: { type: 'model', owner: 'alice' } })
 * ```
 */
export function loadPolicies(source: string | { readonly path: string }, options: LoadOptions = {}): PolicySet {
  if (typeof source === 'string') return policySet(source, options.file ?? 'policies')
  return policySet(readPolicyFile(source.path), source.path)
}
