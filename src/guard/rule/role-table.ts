/**
 * Roles as a table: role → resource type → actions. For services whose rights fit a table and need no policy file; the
 * same table may stand under `roles:` in one.
 */

/** Role → resource type → actions. `*` stands for any type or any action. */
export type RoleTable = Readonly<Record<string, Readonly<Record<string, readonly string[]>>>>

/**
 * Whether any of the roles allows the action on a type of resource.
 *
 * @param roles - the caller's; one that is not in the table allows nothing
 *
 * @example
 * ```ts
 * import { roleAllows } from '@latchkey/guard'
 *
 * const table = { viewer: { models: ['read'] }, developer: { models: ['read', 'write'] } }
 * roleAllows(table, ['viewer'], 'models', 'write') // false
 * ```
 */
export function roleAllows(table: RoleTable, roles: readonly string[], resourceType: string, action: string): boolean {
  return roles.some((role) => {
    // Own properties only: a role called `constructor` is a role nobody defined.
    const types = Object.hasOwn(table, role) ? table[role] : undefined
    if (types === undefined) return false
    return [resourceType, '*'].some((type) => {
      const actions = Object.hasOwn(types, type) ? types[type] : undefined
      return actions !== undefined && (actions.includes(action) || actions.includes('*'))
    })
  })
}
