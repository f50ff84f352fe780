/** Where in a policy file something was found. Lines and columns count from 1. */
export interface PolicyPosition {
  readonly file: string
  readonly line: number
  readonly column: number
}

/**
 * A policy set that cannot be used, or a list that cannot be planned from it. Thrown while loading, never while
 * deciding: a decision always comes to an answer.
 *
 * @example
 * ```ts
 * import { loadPolicies, PolicyError } from '@latchkey/guard'
 *
 * try {
 *   loadPolicies({ path: './policies.yaml' })
 * } catch (error) {
 *   if (error instanceof PolicyError) console.error(`${error.file}:${error.line}: ${error.message}`)
 *   throw error
 * }
 * ```
 */
export class PolicyError extends Error {
  override readonly name = 'PolicyError'
  readonly file: string | undefined
  readonly line: number | undefined
  readonly column: number | undefined
  /** The policy concerned, where it is one. */
  readonly policy: string | undefined
  /** What is wrong, without the position that `message` begins with. */
  readonly summary: string

  constructor(summary: string, where: { position?: PolicyPosition; policy?: string; cause?: unknown } = {}) {
    const { position, policy, cause } = where
    const place = position === undefined ? '' : `${position.file}:${position.line}:${position.column}: `
    const subject = policy === undefined ? '' : `policy '${policy}': `
    super(`${place}${subject}${summary}`, cause === undefined ? {} : { cause })
    this.file = position?.file
    this.line = position?.line
    this.column = position?.column
    this.policy = policy
    this.summary = summary
  }
}
