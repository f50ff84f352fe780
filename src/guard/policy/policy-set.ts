/** A policy set in use: see `policies.ts` for how it comes about and what it means. */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import type { Subject } from '../caller.ts'
import { evaluateCondition } from './condition.ts'
import type { Decision, DecisionInput, Plan, PlanInput, PlannedCondition, PolicyFault } from './decision.ts'
import { Facts, FactsError } from './facts.ts'
import type { Activation } from './facts.ts'
import { matchesName } from './patterns.ts'
import { readPolicyDocument } from './policy-document.ts'
import type { Policy, PolicyDocument, PolicyTest } from './policy-document.ts'
import { PolicyError } from './policy-error.ts'
import { PolicyIndex } from './policy-index.ts'
import type { Candidate } from './policy-index.ts'
import { conjunction, disjunction, FALSE, idResidual, residualOf, TRUE } from './residual.ts'
import type { Residual } from './residual.ts'

/** A file's text. */
export function readPolicyFile(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    throw new PolicyError(`cannot be read: ${error instanceof Error ? error.message : String(error)}`, {
      position: { file: path, line: 1, column: 1 },
      cause: error,
    })
  }
}

/** The set a text describes; the same text always has the same version. */
export function policySet(text: string, file: string): PolicySet {
  const version = createHash('sha256').update(text).digest('hex').slice(0, 16)
  return new PolicySet(readPolicyDocument(text, file), version)
}

const NO_FAULTS: readonly PolicyFault[] = Object.freeze([])
const NOTHING_MATCHES: Decision = Object.freeze({ allowed: false, reason: 'no-matching-policy', errors: NO_FAULTS })

/** Policies that are ready to decide. Immutable: a changed file makes a new set. */
export class PolicySet {
  /** Changes with every change of the source: the beginning of its SHA-256. */
  readonly version: string
  readonly policies: readonly Policy[]
  /** The questions in `tests:`, for {@link runPolicyTests}. */
  readonly tests: readonly PolicyTest[]
  readonly #index: PolicyIndex

  constructor(document: PolicyDocument, version: string) {
    this.version = version
    this.policies = document.policies
    this.tests = document.tests
    this.#index = new PolicyIndex(document.policies)
  }

  /**
   * Decides about one resource. Never throws for anything in the input: what cannot be evaluated is told in `errors`.
   *
   * @param input - `context` is what the guard knows of the request; without it, policies that ask for it fail safe
   */
  decide(input: DecisionInput): Decision {
    const { subject, action, resource } = input
    const found = this.#index.find(action, resource.type, subject)
    const facts = new Facts(subject, action, resource, input.context)
    const faults: PolicyFault[] = []
    for (const { deny } of found) {
      for (const candidate of deny) {
        if (applies(candidate, facts, faults, true)) {
          return { allowed: false, policy: candidate.policy.id, reason: 'denied-by-policy', errors: faults }
        }
      }
    }
    for (const { allow } of found) {
      for (const candidate of allow) {
        if (applies(candidate, facts, faults, false)) {
          return { allowed: true, policy: candidate.policy.id, reason: 'allowed', errors: faults }
        }
      }
    }
    return faults.length === 0 ? NOTHING_MATCHES : { ...NOTHING_MATCHES, errors: faults }
  }

  /**
   * Plans the list of all resources of a type that the subject may act on: what `decide` would say of each of them.
   *
   * A policy with `filterable: false` has no part in lists: as an allow it shows nothing, as a deny it hides
   * everything.
   */
  plan(input: PlanInput): Plan {
    const { subject, action, resourceType } = input
    const found = this.#index.find(action, resourceType, subject)
    const facts = new Facts(subject, action, { type: resourceType }, input.context)
    const activation = facts.prepare(TYPE_OF_RESOURCE, NO_COST)

    const deny: PlannedCondition[] = []
    for (const candidate of found.flatMap(({ deny }) => deny)) {
      const condition = planned(candidate, facts, activation)
      // An erroring deny denies.
      if (condition.kind === 'error' || (condition.kind === 'value' && condition.value === true))
        return { kind: 'none' }
      if (condition.kind !== 'value') deny.push({ policy: candidate.policy.id, condition })
    }
    const allow: PlannedCondition[] = []
    let all = false
    for (const candidate of found.flatMap(({ allow }) => allow)) {
      const condition = planned(candidate, facts, activation)
      if (condition.kind === 'error' || (condition.kind === 'value' && condition.value !== true)) continue
      if (condition.kind === 'value') {
        all = true
        allow.splice(0, allow.length, { policy: candidate.policy.id, condition })
        break
      }
      allow.push({ policy: candidate.policy.id, condition })
    }
    if (allow.length === 0) return { kind: 'none' }
    if (all && deny.length === 0) return { kind: 'all' }
    return { kind: 'condition', resourceType, allow, deny }
  }

  /** The policies that concern an action on a type for this subject, denies first, in the order they are asked. */
  candidates(subject: Subject, action: string, resourceType: string): readonly Candidate[] {
    const found = this.#index.find(action, resourceType, subject)
    // A policy for two roles of the same caller is found twice.
    return [...new Set([...found.flatMap(({ deny }) => deny), ...found.flatMap(({ allow }) => allow)])]
  }
}

const TYPE_OF_RESOURCE = [{ root: 'resource', attribute: 'type' }] as const
const NO_COST = {
  fixed: 0,
  perItem: 0,
  perPair: 0,
  searches: 0,
  searchesPerItem: 0,
  growth: 1,
  longestList: 0,
  longestText: 0,
}

/** Whether a policy applies; one that fails applies if it is a deny. */
function applies({ policy, ids }: Candidate, facts: Facts, faults: PolicyFault[], whenFailing: boolean): boolean {
  if (ids === undefined && policy.condition === undefined) return true
  const { id } = facts.resource
  const known = typeof id === 'string'
  if (ids !== undefined && known && !ids.some((pattern) => matchesName(pattern, id))) return false
  const outcome = policy.condition === undefined ? true : evaluateCondition(policy.condition, facts)
  if (outcome === false) return false
  if (outcome === true && (ids === undefined || known)) return true
  faults.push({ policy: policy.id, message: outcome === true ? 'the resource has no id' : outcome.error })
  return whenFailing
}

function planned({ policy, ids }: Candidate, facts: Facts, activation: Activation): Residual {
  const parts: Residual[] = []
  if (ids !== undefined) parts.push(disjunction(ids.map(idResidual)))
  if (policy.condition !== undefined) {
    // An allow that cannot be part of a list shows nothing; a deny that cannot hides what it might concern.
    if (policy.template === undefined) parts.push(policy.effect === 'deny' ? TRUE : FALSE)
    else {
      try {
        facts.prepare(policy.condition.reads, policy.condition.expression.cost)
        parts.push(residualOf(policy.template, activation))
      } catch (error) {
        if (!(error instanceof FactsError)) throw error
        parts.push({ kind: 'error' })
      }
    }
  }
  return conjunction(parts)
}
