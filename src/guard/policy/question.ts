/**
 * Questions that come as plain data, out of YAML or JSON: the `tests:` of a policy file, the command line, a request.
 * Neither format has timestamps, and both allow what a token would not carry, so this is where they become what the
 * guard itself asks.
 */
import type { Subject } from '../caller.ts'
import type { DecisionInput } from './decision.ts'

type Data = Readonly<Record<string, unknown>>

/** A question as YAML or JSON holds it. */
export interface PlainQuestion {
  readonly subject: Data
  readonly action: string
  readonly resource: Data
  readonly context?: Data
}

/**
 * Makes a question of plain data.
 *
 * An RFC 3339 timestamp called `time`, or with a name that ends in `_at`, is a timestamp and not a text, as the guard
 * and a database hand them in. A subject without `type` is a user; roles and groups may be left out; a number as `id`
 * is a text, as identities are.
 *
 * @example
 * ```ts
 * import { loadPolicies, readQuestion } from '@latchkey/guard'
 *
 * const asked = { subject: { id: 'alice' }, action: 'read', resource: { type: 'model', owner: 'alice' } }
 * const { allowed } = loadPolicies({ path: './policies.yaml' }).decide(readQuestion(asked))
 * ```
 */
export function readQuestion({ subject, action, resource, context = {} }: PlainQuestion): DecisionInput {
  return {
    subject: subjectOf(subject),
    action,
    resource: {
      ...withTimestamps(resource),
      type: textOr(resource['type'], ''),
      ...(typeof resource['id'] === 'number' ? { id: String(resource['id']) } : {}),
    },
    context: withTimestamps(context),
  }
}

function subjectOf(subject: Data): Subject {
  return {
    ...withTimestamps(subject),
    type: subject['type'] === 'client' ? 'client' : 'user',
    id: textOr(subject['id'], ''),
    roles: textsOf(subject['roles']),
    groups: textsOf(subject['groups']),
  }
}

const RFC3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)$/

function withTimestamps(data: Data): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(data).map(([name, value]) => {
      if (typeof value === 'string' && RFC3339.test(value) && /^time$|_at$/.test(name)) return [name, new Date(value)]
      return [name, Array.isArray(value) ? value.map(inner) : inner(value)]
    }),
  )
}

function inner(value: unknown): unknown {
  const isMapping = typeof value === 'object' && value !== null && !Array.isArray(value)
  return isMapping ? withTimestamps(value as Data) : value
}

function textOr(value: unknown, otherwise: string): string {
  if (typeof value === 'number') return String(value)
  return typeof value === 'string' ? value : otherwise
}

function textsOf(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((item) => typeof item === 'string') : []
}
