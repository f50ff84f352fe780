/**
 * Hierarchies: what is granted on an organisation or a project holds for all below it, unless it is denied. A deny wins
 * wherever it stands, on the thing itself or on anything above it; `deny:*` denies everything.
 */
import type { Subject } from '../caller.ts'

/** Levels from a thing up to its root. More is a mistake, or somebody who wants the service to walk. */
export const MAX_LEVELS = 64

/** How a hierarchy is read. Both may ask a database. */
export interface HierarchySource {
  /** The thing above; undefined at the root. */
  parentOf(id: string): string | undefined | Promise<string | undefined>
  /** What is granted on this thing itself to this user: an action, `*`, `deny:<action>` or `deny:*`. */
  permissionsAt(id: string, user: string): readonly string[] | Promise<readonly string[]>
}

/** A hierarchy that is no tree, or deeper than {@link MAX_LEVELS}. Refuse the request: nothing can be told from it. */
export class HierarchyError extends Error {
  override readonly name = 'HierarchyError'
  readonly code: 'cycle' | 'too-deep'

  constructor(code: HierarchyError['code'], message: string) {
    super(message)
    this.code = code
  }
}

/**
 * A thing and all above it, from itself to the root.
 *
 * @throws HierarchyError when something is above itself, or the way up is longer than {@link MAX_LEVELS}
 */
export async function lineageOf(id: string, parentOf: HierarchySource['parentOf']): Promise<string[]> {
  const lineage = [id]
  const seen = new Set(lineage)
  for (let parent = await parentOf(id); parent !== undefined; parent = await parentOf(parent)) {
    if (seen.has(parent)) throw new HierarchyError('cycle', `'${parent}' is above itself`)
    if (lineage.length === MAX_LEVELS)
      throw new HierarchyError('too-deep', `'${id}' lies more than ${MAX_LEVELS} levels deep`)
    lineage.push(parent)
    seen.add(parent)
  }
  return lineage
}

/** What permissions gathered along a lineage come to. */
export function allowedBy(permissions: Iterable<string>, action: string): boolean {
  const all = new Set(permissions)
  // An action called `deny:x` or `*` is none: those are words of this language.
  if (action === '*' || action.startsWith('deny:')) return false
  if (all.has(`deny:${action}`) || all.has('deny:*')) return false
  return all.has(action) || all.has('*')
}

/**
 * Whether a user may do something to a thing, by what is granted on it and on everything above it.
 *
 * @throws HierarchyError when the hierarchy is no tree
 *
 * @example
 * ```ts
 * import { hierarchyAllows } from '@latchkey/guard'
 *
 * const grants: Record<string, Record<string, string[]>> = {
 *   'project-1': { alice: ['read', 'write'] },
 *   'model-1': { alice: ['deny:write'] },
 * }
 * const source = {
 *   parentOf: (id: string) => (id === 'model-1' ? 'project-1' : undefined),
 *   permissionsAt: (id: string, user: string) => grants[id]?.[user] ?? [],
 * }
 * const alice = { type: 'user', id: 'alice', roles: [], groups: [] } as const
 * await hierarchyAllows(source, alice, 'model-1', 'read') // true
 * await hierarchyAllows(source, alice, 'model-1', 'write') // false
 * ```
 */
export async function hierarchyAllows(
  source: HierarchySource,
  subject: Subject,
  id: string,
  action: string,
): Promise<boolean> {
  if (subject.type !== 'user') return false
  const permissions: string[] = []
  for (const level of await lineageOf(id, (child) => source.parentOf(child))) {
    permissions.push(...(await source.permissionsAt(level, subject.id)))
  }
  return allowedBy(permissions, action)
}
