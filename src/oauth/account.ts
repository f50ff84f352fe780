/**
 * The person behind a token, as oidc-provider asks for one, read anew for every request: somebody disabled a moment ago
 * gets no token, and roles are those of now.
 */
import { sql, type Selectable } from 'kysely'
import type { Account, AccountClaims } from 'oidc-provider'
import { everyoneRole } from '../access/rights.ts'
import type { Db } from '../database/database.ts'
import type { UsersTable } from '../database/tables.ts'

export interface UserAccount extends Account {
  readonly user: Selectable<UsersTable>
  readonly roles: readonly string[]
  /** resource → what this person's roles allow there */
  readonly permissions: ReadonlyMap<string, ReadonlySet<string>>
}

/** @returns undefined for a person who is unknown or disabled */
export async function findUserAccount(db: Db, userId: string): Promise<UserAccount | undefined> {
  const user = await db
    .selectFrom('users')
    .selectAll()
    .where('id', '=', userId)
    .where('account_status', '=', 'active')
    .executeTakeFirst()
  if (user === undefined) return undefined
  const { rows } = await sql<{ role: string | null; resource: string | null; permission: string | null }>`
    SELECT ur.role, rp.resource, rp.permission
    FROM user_roles ur LEFT JOIN role_permissions rp ON rp.role = ur.role
    WHERE ur.user_id = ${userId}
    UNION ALL SELECT NULL, resource, permission FROM role_permissions WHERE role = ${everyoneRole}
    ORDER BY 1`.execute(db)
  const permissions = new Map<string, Set<string>>()
  for (const { resource, permission } of rows) {
    if (resource === null || permission === null) continue
    permissions.set(resource, (permissions.get(resource) ?? new Set()).add(permission))
  }
  return {
    accountId: user.id,
    user,
    // Of the role that everybody has, nobody need be told.
    roles: [...new Set(rows.flatMap(({ role }) => (role === null ? [] : [role])))],
    permissions,
    claims: () => standardClaims(user),
  }
}

/** OpenID Connect Core §5.1; the provider keeps those that the granted scopes name. */
function standardClaims(user: Selectable<UsersTable>): AccountClaims {
  return {
    ...user.profile,
    sub: user.id,
    ...(user.name === null ? {} : { name: user.name }),
    email: user.email,
    email_verified: user.email_verified,
    updated_at: Math.floor(user.updated_at.getTime() / 1_000),
  }
}
