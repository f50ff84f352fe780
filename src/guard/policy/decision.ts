/**
 * What is asked and what is answered: subject, action, resource, context; allowed or not, by which policy, with which
 * errors. The same information model as the AuthZEN Authorization API 1.0, so that a decision can be taken here or
 * asked of a server.
 */
import type { Subject } from '../caller.ts'
import type { Residual } from './residual.ts'

/** What a decision is about. `owner` and every other attribute are the service's own; `null` counts as missing. */
export interface Resource {
  readonly type: string
  readonly id?: string
  readonly owner?: string
  readonly [attribute: string]: unknown
}

/** A condition that could not be evaluated: a missing attribute, a wrong type, a bound that was reached. */
export interface PolicyFault {
  readonly policy: string
  readonly message: string
}

/** One answer. Nothing that was not allowed by a policy is allowed, and a deny wins over every allow. */
export interface Decision {
  readonly allowed: boolean
  /** The policy that decided; absent when none matched. */
  readonly policy?: string
  readonly reason: 'allowed' | 'denied-by-policy' | 'no-matching-policy'
  /** A failing allow does not apply and a failing deny does: either way the failure is told here. */
  readonly errors: readonly PolicyFault[]
}

/** A question about one resource. */
export interface DecisionInput {
  readonly subject: Subject
  readonly action: string
  readonly resource: Resource
  readonly context?: Readonly<Record<string, unknown>>
}

/** A question about all resources of one type. */
export interface PlanInput {
  readonly subject: Subject
  readonly action: string
  readonly resourceType: string
  readonly context?: Readonly<Record<string, unknown>>
}

/** What is left of one policy's condition once subject, action and context are known. */
export interface PlannedCondition {
  readonly policy: string
  readonly condition: Residual
}

/**
 * Which resources of a type a subject may act on: all, none, or those for which one of `allow` is true and every one of
 * `deny` is false. A condition that comes out as neither (an attribute is missing) neither allows nor lets through.
 */
export type Plan =
  | { readonly kind: 'all' }
  | { readonly kind: 'none' }
  | {
      readonly kind: 'condition'
      readonly resourceType: string
      readonly allow: readonly PlannedCondition[]
      readonly deny: readonly PlannedCondition[]
    }
