/** Why a question is answered as it is: every policy that concerns it, and what its condition came to. */
import { evaluateCondition } from './condition.ts'
import type { Decision, DecisionInput } from './decision.ts'
import { Facts } from './facts.ts'
import { matchesName } from './patterns.ts'
import type { PolicySet } from './policy-set.ts'

/** One policy that is for this subject, action and type. */
export interface ExplainedPolicy {
  readonly policy: string
  readonly description: string | undefined
  readonly effect: 'allow' | 'deny'
  /** `file:line` of the policy. */
  readonly where: string
  readonly condition: string | undefined
  /** `other-id`: it is about other resources of the type. `error`: see `message`. */
  readonly outcome: 'applies' | 'does-not-apply' | 'other-id' | 'error'
  readonly message?: string
}

export interface Explanation {
  readonly decision: Decision
  readonly version: string
  /** In the order they are asked; the first that applies decides, so later ones may not have been asked at all. */
  readonly policies: readonly ExplainedPolicy[]
}

/**
 * Explains a decision. Meant for people: `latchkey policy explain` prints it.
 *
 * @example
 * ```ts
 * import { explainDecision, loadPolicies } from '@latchkey/guard'
 *
 * const policies = loadPolicies({ path: './policies.yaml' })
 * const subject = { type: 'user', id: 'alice', roles: [], groups: [] } as const
 * const question = { subject, action: 'read', resource: { type: 'model' } }
 * const { decision, policies: asked } = explainDecision(policies, question)
 * for (const { policy, outcome } of asked) console.log(policy, outcome, decision.allowed)
 * ```
 */
export function explainDecision(policies: PolicySet, input: DecisionInput): Explanation {
  const { subject, action, resource } = input
  const explained = policies.candidates(subject, action, resource.type).map(({ policy, ids }): ExplainedPolicy => {
    const about = {
      policy: policy.id,
      description: policy.description,
      effect: policy.effect,
      where: `${policy.position.file}:${policy.position.line}`,
      condition: policy.condition?.expression.source,
    }
    const id = resource.id
    if (ids !== undefined && typeof id === 'string' && !ids.some((pattern) => matchesName(pattern, id))) {
      return { ...about, outcome: 'other-id' }
    }
    if (ids !== undefined && typeof id !== 'string') {
      return { ...about, outcome: 'error', message: 'the resource has no id' }
    }
    if (policy.condition === undefined) return { ...about, outcome: 'applies' }
    // A budget of its own for each, so that what is explained does not depend on what was explained before.
    const outcome = evaluateCondition(policy.condition, new Facts(subject, action, resource, input.context))
    if (typeof outcome === 'boolean') return { ...about, outcome: outcome ? 'applies' : 'does-not-apply' }
    return { ...about, outcome: 'error', message: outcome.error }
  })
  return { decision: policies.decide(input), version: policies.version, policies: explained }
}
