/**
 * The little languages of `subjects`, `actions` and `resources`: names, and a star where it says "any". A star stands
 * alone or at the end, never in between, so that matching is a comparison and never a search.
 */

/** Who a policy is for. */
export type SubjectPattern =
  | { readonly kind: 'any' }
  | { readonly kind: 'user' | 'client'; /** Absent: every one of the kind. */ readonly id?: string }
  | { readonly kind: 'role' | 'group'; readonly id: string }

/** A whole name, or the beginning of one. */
export type NamePattern = { readonly exactly: string } | { readonly startsWith: string }

/** Which resources a policy is about. */
export interface ResourcePattern {
  /** Absent: of any type. */
  readonly type?: string
  /** Absent: every one of the type. `below`: that path itself and whatever lies under it. */
  readonly id?: NamePattern | { readonly below: string }
}

/** Something that is not a pattern. The loader adds file and line. */
export class PatternError extends Error {
  override readonly name = 'PatternError'
}

const SUBJECT_KINDS = ['user', 'client', 'role', 'group'] as const

/** Reads `*`, `user:*`, `user:<id>`, `client:*`, `client:<id>`, `role:<name>` or `group:<name>`. */
export function subjectPattern(text: string): SubjectPattern {
  if (text === '*') return { kind: 'any' }
  const colon = text.indexOf(':')
  const kind = SUBJECT_KINDS.find((known) => known === text.slice(0, colon))
  const id = text.slice(colon + 1)
  if (colon === -1 || kind === undefined || id === '') {
    throw new PatternError(
      `subject '${text}' is not one of *, user:*, user:<id>, client:*, client:<id>, role:<name>, group:<name>`,
    )
  }
  if (id === '*') {
    if (kind === 'user' || kind === 'client') return { kind }
    throw new PatternError(`subject '${text}': name the ${kind}`)
  }
  if (id.includes('*')) throw new PatternError(`subject '${text}': a star inside a name is not a pattern`)
  return { kind, id }
}

/** Reads `read`, `s3:Get*` or `*`. */
export function actionPattern(text: string): NamePattern {
  if (text === '') throw new PatternError('an action cannot be empty')
  return namePattern(text, `action '${text}'`)
}

/**
 * Reads `*`, `model`, `model:*`, `model:42`, `model:draft-*`, `folder:/plans/**` (the path and all below it), with `*`
 * for the type where any will do. A pattern that begins with `/` is about any type: `/plans/**` is `*:/plans/**`.
 */
export function resourcePattern(text: string): ResourcePattern {
  if (text === '*') return {}
  if (text.startsWith('/')) return resourcePattern(`*:${text}`)
  const colon = text.indexOf(':')
  const type = colon === -1 ? text : text.slice(0, colon)
  if (type === '' || (type !== '*' && type.includes('*'))) {
    throw new PatternError(`resource '${text}': the type is a name or *`)
  }
  const ofType = type === '*' ? {} : { type }
  if (colon === -1) return ofType
  const id = text.slice(colon + 1)
  if (id === '') throw new PatternError(`resource '${text}': nothing after the colon`)
  if (id === '*') return ofType
  if (id.endsWith('/**')) {
    const path = id.slice(0, -3)
    if (path.includes('*')) throw new PatternError(`resource '${text}': a star may only end a pattern`)
    return { ...ofType, id: { below: path } }
  }
  return { ...ofType, id: namePattern(id, `resource '${text}'`) }
}

function namePattern(text: string, what: string): NamePattern {
  const star = text.indexOf('*')
  if (star === -1) return { exactly: text }
  if (star !== text.length - 1) throw new PatternError(`${what}: a star may only end a pattern`)
  return { startsWith: text.slice(0, -1) }
}

/** Whether a name is the pattern, or begins or lies below as it says. */
export function matchesName(pattern: NamePattern | { readonly below: string }, name: string): boolean {
  if ('exactly' in pattern) return name === pattern.exactly
  if ('startsWith' in pattern) return name.startsWith(pattern.startsWith)
  return name === pattern.below || name.startsWith(`${pattern.below}/`)
}
