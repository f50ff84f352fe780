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
  /** theirs, and all that these include: a service that asks for one need not know which include it */
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
  const { rows } = await sql<{ role: string; resource: string | null; permission: string | null }>`
    WITH held AS (SELECT role FROM user_roles WHERE user_id = ${userId} UNION ALL SELECT ${everyoneRole}::text)
    SELECT rr.reached AS role, rp.resource, rp.permission
    FROM held JOIN role_reach rr ON rr.role = held.role LEFT JOIN role_permissions rp ON rp.role = rr.reached
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
    roles: [...new Set(rows.map(({ role }) => role))].filter((role) => role !== everyoneRole),
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
