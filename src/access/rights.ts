/**
 * Whose rights reach how far. A person's rights are those of their roles, with all that these include, together with
 * those that everybody has; a client's are what it is registered for. Nobody gives away more than they have, or takes
 * over somebody who has more: but for administrators, and for an operator at the command line, who could as well write
 * the database. And the last administrator stays one.
 */
import { sql } from 'kysely'
import type { Actor } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
import { Problem } from '../problems.ts'

/** May do everything at the management API. */
export const administratorRole = 'administrator'

/** Every person has it, without its being assigned: what it allows, everybody may. */
export const everyoneRole = 'everyone'

/** The client of the account pages: first-party, public, and never given more than `openid`. */
export const accountClientId = 'latchkey-account'

/** The client of the page that documents the API. */
export const docsClientId = 'latchkey-docs'

/** What a person may do. */
export interface EffectivePermission {
  readonly resource: string
  /** `type:action` */
  readonly permission: string
}

/**
 * What a person's roles allow, each permission once, sorted; nothing for somebody unknown or disabled.
 * @param resource only what they allow there
 */
export async function effectivePermissions(db: Db, userId: string, resource?: string): Promise<EffectivePermission[]> {
  const { rows } = await sql<EffectivePermission>`
    WITH held AS (SELECT role FROM user_roles WHERE user_id = ${userId} UNION ALL SELECT ${everyoneRole}::text)
    SELECT DISTINCT rp.resource, rp.permission
    FROM held JOIN role_reach rr ON rr.role = held.role JOIN role_permissions rp ON rp.role = rr.reached
    WHERE EXISTS (SELECT 1 FROM users u WHERE u.id = ${userId} AND u.account_status = 'active')
      ${resource === undefined ? sql`` : sql`AND rp.resource = ${resource}`}
    ORDER BY rp.resource, rp.permission`.execute(db)
  return rows
}

/** What these roles allow together, with all that they include, each permission once. */
export async function permissionsOfRoles(db: Db, roles: readonly string[]): Promise<EffectivePermission[]> {
  const { rows } = await sql<EffectivePermission>`
    SELECT DISTINCT rp.resource, rp.permission FROM role_reach rr JOIN role_permissions rp ON rp.role = rr.reached
    WHERE rr.role IN (SELECT jsonb_array_elements_text(${JSON.stringify(roles)}::jsonb))`.execute(db)
  return rows
}

/** undefined: all there are */
async function rightsOf(trx: Trx, actor: Actor): Promise<ReadonlySet<string> | undefined> {
  if (actor.type === 'user') {
    const { rows } = await sql`
      SELECT 1 FROM user_roles WHERE user_id = ${actor.id} AND role = ${administratorRole}`.execute(trx)
    return rows.length > 0 ? undefined : keysOf(await effectivePermissions(trx, actor.id))
  }
  if (actor.type === 'client') {
    const rows = await trx
      .selectFrom('client_permissions')
      .select(['resource', 'permission'])
      .where('client_id', '=', actor.id)
      .execute()
    return keysOf(rows)
  }
  return actor.type === 'anonymous' ? new Set() : undefined
}

const keyOf = ({ resource, permission }: EffectivePermission) => `${permission}@${resource}`

function keysOf(permissions: readonly EffectivePermission[]): ReadonlySet<string> {
  return new Set(permissions.map(keyOf))
}

/**
 * Refuses to give away what the actor has not.
 * @throws Problem AUTHORIZATION_ERROR that names it
 */
export async function requireOwnRights(
  trx: Trx,
  actor: Actor,
  permissions: readonly EffectivePermission[],
): Promise<void> {
  if (permissions.length === 0) return
  const own = await rightsOf(trx, actor)
  if (own === undefined) return
  const beyond = permissions.map(keyOf).filter((permission) => !own.has(permission))
  if (beyond.length === 0) return
  throw new Problem('AUTHORIZATION_ERROR', `This gives away more than you have: ${beyond.slice(0, 10).join(', ')}.`)
}

/**
 * Refuses to give a role, to include it, or to change what it allows, beyond the actor's own rights.
 * @throws Problem AUTHORIZATION_ERROR
 */
export async function requireRightsOfRole(trx: Trx, actor: Actor, role: string): Promise<void> {
  await requireOwnRights(trx, actor, await permissionsOfRoles(trx, [role]))
}

/**
 * Refuses changes to somebody whose rights are greater: whoever sets an administrator's password is one. What people do
 * to themselves is theirs to do.
 * @param options.at their rights at this resource alone count
 * @throws Problem AUTHORIZATION_ERROR
 */
export async function requireRightsOver(
  trx: Trx,
  actor: Actor,
  userId: string,
  options: { readonly at?: string } = {},
): Promise<void> {
  if (actor.type === 'user' && actor.id === userId) return
  // Of somebody who is disabled the roles count all the same: they come back with the account.
  const { rows } = await sql<EffectivePermission>`
    SELECT DISTINCT rp.resource, rp.permission
    FROM user_roles ur JOIN role_reach rr ON rr.role = ur.role JOIN role_permissions rp ON rp.role = rr.reached
    WHERE ur.user_id = ${userId} ${options.at === undefined ? sql`` : sql`AND rp.resource = ${options.at}`}`.execute(
    trx,
  )
  if (await hasRights(trx, actor, rows)) return
  throw new Problem(
    'AUTHORIZATION_ERROR',
    'This person may do more than you: somebody with their rights has to do that.',
  )
}

/** Whether the actor may do all of this. */
export async function hasRights(trx: Trx, actor: Actor, permissions: readonly EffectivePermission[]): Promise<boolean> {
  const own = await rightsOf(trx, actor)
  return own === undefined || permissions.every((permission) => own.has(keyOf(permission)))
}

/**
 * Refuses changes to an application whose rights are greater: whoever gives it another address or secret acts as it
 * does, and whoever ends what it has shuts it out.
 * @throws Problem AUTHORIZATION_ERROR
 */
export async function requireRightsOverClient(trx: Trx, actor: Actor, clientId: string): Promise<void> {
  const permissions = await trx
    .selectFrom('client_permissions')
    .select(['resource', 'permission'])
    .where('client_id', '=', clientId)
    .execute()
  if (await hasRights(trx, actor, permissions)) return
  throw new Problem('AUTHORIZATION_ERROR', 'This client may do more than you: somebody with its rights has to do that.')
}

/**
 * Refuses to take a permission from roles and applications whose rights are greater: whoever removes one, with its
 * resource or alone, changes all that have it.
 * @param permissions all that they may do
 * @throws Problem AUTHORIZATION_ERROR
 */
export async function requireRightsOverHolders(
  trx: Trx,
  actor: Actor,
  permissions: readonly EffectivePermission[],
): Promise<void> {
  if (await hasRights(trx, actor, permissions)) return
  throw new Problem(
    'AUTHORIZATION_ERROR',
    'This changes roles or clients that may do more than you: somebody with their rights has to do that.',
  )
}

/**
 * The clients of the provider itself are nobody's to change, not even at the command line: people sign in to their own
 * pages here by them.
 * @throws Problem CONFLICT
 */
export function refuseOwnClient(actor: Actor, clientId: string): void {
  if (actor.type === 'system' || (clientId !== accountClientId && clientId !== docsClientId)) return
  throw new Problem('CONFLICT', 'Clients of the provider itself stay as they are.')
}

/**
 * Before a client is changed, or given what acts as it does.
 * @throws Problem AUTHORIZATION_ERROR, CONFLICT for a client of the provider itself
 */
export async function requireMayChangeClient(trx: Trx, actor: Actor, clientId: string): Promise<void> {
  refuseOwnClient(actor, clientId)
  await requireRightsOverClient(trx, actor, clientId)
}

/**
 * A first-party client acts for everybody who signs in, administrators too, without their being asked. Whoever makes
 * one, or says where its codes are sent and how it gets tokens, could so do whatever they may: nobody but who may do
 * that anyway.
 * @throws Problem AUTHORIZATION_ERROR
 */
export async function requireRightsOverEverybody(trx: Trx, actor: Actor): Promise<void> {
  if (await hasRights(trx, actor, await permissionsOfRoles(trx, [administratorRole]))) return
  throw new Problem(
    'AUTHORIZATION_ERROR',
    'A first-party client acts for everybody without their being asked: somebody with the rights of an administrator has to do that.',
  )
}

/**
 * To be called before somebody stops being an administrator, in whatever way. Takes the role's lock, which is taken
 * before a person's everywhere, so that two administrators cannot remove each other at the same moment.
 * @throws Problem CONFLICT when nobody else would be left; AUTHORIZATION_ERROR instead for whoever may not do that anyway
 */
export async function requireAnotherAdministrator(trx: Trx, actor: Actor, userId: string): Promise<void> {
  const { rows: is } = await sql`
    SELECT 1 FROM user_roles WHERE user_id = ${userId} AND role = ${administratorRole}`.execute(trx)
  if (is.length === 0) return
  await sql`SELECT 1 FROM roles WHERE name = ${administratorRole} FOR NO KEY UPDATE`.execute(trx)
  const { rows } = await sql<{ isActive: boolean; others: number }>`
    SELECT
      EXISTS (SELECT 1 FROM users WHERE id = ${userId} AND account_status = 'active') AS "isActive",
      (SELECT count(*)::int FROM user_roles ur JOIN users u ON u.id = ur.user_id
        WHERE ur.role = ${administratorRole} AND ur.user_id <> ${userId} AND u.account_status = 'active') AS others`.execute(
    trx,
  )
  if (rows[0]?.isActive !== true || rows[0].others > 0) return
  // With the role's lock held, nobody is given it or loses it meanwhile.
  await requireRightsOver(trx, actor, userId)
  throw new Problem('CONFLICT', 'This is the last administrator: make another one first.')
}
