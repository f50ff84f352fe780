/**
 * Roles: what a person may do at each resource, by name. A person's permissions are those of all their roles together,
 * and of the roles that these include (inclusions.ts). Whoever loses a role or a permission gets a new token_version,
 * so that the tokens that still speak of it are dead in every service at once; their sessions live on. Which resources
 * and permissions exist is oauth/resources.ts's to say.
 */
import { sql, type Selectable } from 'kysely'
import { z } from 'zod'
import { writeAudit, type Actor } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
import type { RolesTable } from '../database/tables.ts'
import { requireVersion } from '../http/etag.ts'
import { invalidFields, notFound, parseInput, Problem, type FieldError } from '../problems.ts'
import { revoke, revokeUsers } from '../revocation/revocations.ts'
import {
  changeInclusions,
  findWrongInclusions,
  inclusionSchema,
  inclusionsSchema,
  keepInclusions,
  lockInclusions,
  lockRolesThatReach,
  roleName,
  writeReach,
} from './inclusions.ts'
import {
  administratorRole,
  everyoneRole,
  permissionsOfRoles,
  requireAnotherAdministrator,
  requireOwnRights,
  requireRightsOfRole,
  requireRightsOver,
} from './rights.ts'

/** What may be done (`type:action`, which is also the scope) at which resource. */
export const permissionSchema = z.strictObject({
  resource: z.string().min(1).max(512),
  permission: z
    .string()
    .max(128)
    .regex(/^[a-z][a-z0-9_-]*:[a-z][a-z0-9_-]*$/, 'must be type:action in lower case, such as models:read'),
})
export type Permission = z.infer<typeof permissionSchema>

export type Role = Selectable<RolesTable> & {
  /** its own */
  readonly permissions: readonly Permission[]
  /** the roles that it includes itself, and not those that these include */
  readonly includes: readonly string[]
  /** its own, and those of all that it includes, each once */
  readonly effective_permissions: readonly Permission[]
  /** how many people it is assigned to */
  readonly users: number
}

const userId = z.string().min(1).max(128)

export const createRoleSchema = z.strictObject({
  name: roleName,
  description: z.string().max(500).default(''),
  permissions: z.array(permissionSchema).max(1_000).default([]),
  includes: inclusionsSchema.default([]),
})

/** @throws Problem when the name is taken, or when a permission or an included role does not exist */
export async function createRole(trx: Trx, actor: Actor, input: z.input<typeof createRoleSchema>): Promise<Role> {
  const asked = parseInput(createRoleSchema, input)
  const { name, description, permissions } = asked
  const includes = [...new Set(asked.includes)].sort()
  if (includes.length > 0) await lockInclusions(trx)
  await requireExisting(trx, asked)
  await requireOwnRights(trx, actor, [...permissions, ...(await permissionsOfRoles(trx, includes))])
  const { numInsertedOrUpdatedRows } = await trx
    .insertInto('roles')
    .values({ name, description })
    .onConflict((conflict) => conflict.doNothing())
    .executeTakeFirstOrThrow()
  if (numInsertedOrUpdatedRows === 0n) throw new Problem('CONFLICT', `There is already a role ${name}.`)
  await insertPermissions(trx, name, permissions)
  await writeReach(trx, [name])
  if (includes.length > 0) await changeInclusions(trx, name, { lost: [], gained: includes, reaching: [name] })
  await writeAudit(trx, actor, {
    action: 'role.created',
    target: { type: 'role', id: name },
    details: { after: { description, permissions, includes } },
  })
  return getRole(trx, name)
}

export const putRoleSchema = z.strictObject({
  description: z.string().max(500).default(''),
  permissions: z.array(permissionSchema).max(1_000).default([]),
  includes: inclusionsSchema.default([]),
})

/**
 * Makes the role, or makes it so: what it allowed and allows no more is lost by everyone who has it, or a role that
 * includes it. Who has it does not change. Nothing happens to one that is so already.
 * @throws Problem VALIDATION_ERROR, PRECONDITION_FAILED, AUTHORIZATION_ERROR beyond the actor's own rights, CONFLICT for
 *   what the administrators' role would lose, and for roles that would include each other in a circle
 */
export async function putRole(
  trx: Trx,
  actor: Actor,
  input: z.input<typeof putRoleSchema> & {
    readonly name: string
    readonly expectedVersions?: readonly number[] | undefined
    readonly mustExist?: boolean
    /** `conflict`: for a caller that made no condition of it */
    readonly mustNotExist?: boolean | 'conflict'
  },
): Promise<{ readonly role: Role; readonly isCreated: boolean }> {
  const { name: givenName, expectedVersions, mustExist = false, mustNotExist = false, ...rest } = input
  const name = parseInput(roleName, givenName)
  const asked = parseInput(putRoleSchema, rest)
  const { description, permissions } = asked
  const includes = [...new Set(asked.includes)].sort()
  await lockInclusions(trx)
  const reaching = await lockRolesThatReach(trx, name)
  if (reaching.length === 0) {
    if (mustExist) throw new Problem('PRECONDITION_FAILED', `There is no role ${name} to replace.`)
    return { role: await createRole(trx, actor, { name, ...asked }), isCreated: true }
  }
  if (mustNotExist !== false) {
    throw new Problem(
      mustNotExist === 'conflict' ? 'CONFLICT' : 'PRECONDITION_FAILED',
      `There is already a role ${name}.`,
    )
  }
  const before = await getRole(trx, name)
  const key = ({ resource, permission }: Permission) => `${permission}@${resource}`
  const [had, has] = [new Set(before.permissions.map(key)), new Set(permissions.map(key))]
  const lost = before.permissions.filter((permission) => !has.has(key(permission)))
  const gained = permissions.filter((permission) => !had.has(key(permission)))
  const excluded = before.includes.filter((one) => !includes.includes(one))
  const included = includes.filter((one) => !before.includes.includes(one))
  const isChanged = [lost, gained, excluded, included].some((change) => change.length > 0)
  if (!isChanged && before.description === description) return { role: before, isCreated: false }
  requireVersion(expectedVersions, before.row_version)
  if (name === administratorRole && lost.length > 0) throw builtIn()
  await requireExisting(trx, { name, permissions: gained.length > 0 ? permissions : [], includes: asked.includes })
  await requireRightsOfRole(trx, actor, name)
  await requireOwnRights(trx, actor, [...gained, ...(await permissionsOfRoles(trx, included))])
  for (const { resource, permission } of lost) {
    await trx
      .deleteFrom('role_permissions')
      .where('role', '=', name)
      .where('resource', '=', resource)
      .where('permission', '=', permission)
      .execute()
  }
  await insertPermissions(trx, name, gained)
  const reachesLess = await changeInclusions(trx, name, { lost: excluded, gained: included, reaching })
  await sql`UPDATE roles SET description = ${description} WHERE name = ${name}`.execute(trx)
  await touchRoles(trx, isChanged ? reaching : [name])
  const what = lost.length > 0 ? 'lost permissions' : 'includes less'
  const users = lost.length > 0 || reachesLess ? await endTokensOfHolders(trx, actor, name, `role ${name} ${what}`) : 0
  await writeAudit(trx, actor, {
    action: 'role.updated',
    target: { type: 'role', id: name },
    details: {
      before: { description: before.description, permissions: before.permissions, includes: before.includes },
      after: { description, permissions, includes },
      users,
    },
  })
  return { role: await getRole(trx, name), isCreated: false }
}

/** @throws Problem VALIDATION_ERROR that names all of it that does not exist, and the role itself among what it includes */
async function requireExisting(
  trx: Trx,
  role: { readonly name: string; readonly permissions: readonly Permission[]; readonly includes: readonly string[] },
): Promise<void> {
  const wrong = [
    ...(await findUnknownPermissions(trx, role.permissions)),
    ...(await findWrongInclusions(trx, role.name, role.includes)),
  ]
  if (wrong.length > 0) throw invalidFields(wrong)
}

function builtIn(): Problem {
  return new Problem('CONFLICT', 'Administrators may do everything: this role stays as it is.')
}

async function insertPermissions(trx: Trx, role: string, permissions: readonly Permission[]): Promise<void> {
  if (permissions.length === 0) return
  await trx
    .insertInto('role_permissions')
    .values(permissions.map(({ resource, permission }) => ({ role, resource, permission })))
    .onConflict((conflict) => conflict.doNothing())
    .execute()
}

/**
 * Everyone who had it loses it, and every role that included it.
 * @throws Problem when there is no such role, or for the one of administrators
 */
export async function deleteRole(
  trx: Trx,
  actor: Actor,
  input: { name: string; expectedVersions?: readonly number[] | undefined },
): Promise<void> {
  const name = parseInput(roleName, input.name)
  await lockInclusions(trx)
  const reaching = (await lockRolesThatReach(trx, name)).filter((one) => one !== name)
  const { description, permissions, includes, row_version: version } = await getRole(trx, name)
  requireVersion(input.expectedVersions, version)
  if (name === administratorRole || name === everyoneRole) {
    throw new Problem('CONFLICT', `The role ${name} is built in and stays.`)
  }
  await requireRightsOfRole(trx, actor, name)
  const users = await endTokensOfHolders(trx, actor, name, `role ${name} deleted`, { losesIt: true })
  const included = await findRolesThatInclude(trx, name)
  await trx.deleteFrom('roles').where('name', '=', name).execute()
  await writeReach(trx, reaching)
  await touchRoles(trx, reaching)
  await writeAudit(trx, actor, {
    action: 'role.deleted',
    target: { type: 'role', id: name },
    details: { before: { description, permissions, includes }, users },
  })
  for (const role of included) {
    await writeAudit(trx, actor, {
      action: 'role.updated',
      target: { type: 'role', id: role.name },
      details: {
        reason: `role ${name} deleted`,
        before: { includes: role.includes },
        after: { includes: role.includes.filter((one) => one !== name) },
      },
    })
  }
}

async function findRolesThatInclude(trx: Trx, name: string): Promise<Role[]> {
  return selectRoles(trx)
    .where('roles.name', 'in', (eb) => eb.selectFrom('role_inclusions').select('role').where('included', '=', name))
    .orderBy('roles.name')
    .execute()
}

const rolePermissionSchema = permissionSchema.extend({ role: roleName })

/**
 * @returns false when the role had the permission already
 * @throws Problem when there is no such role or permission
 */
export async function grantPermission(
  trx: Trx,
  actor: Actor,
  input: z.input<typeof rolePermissionSchema>,
): Promise<boolean> {
  const { role, resource, permission } = parseInput(rolePermissionSchema, input)
  await keepInclusions(trx)
  const reaching = await getReaching(trx, role)
  await requirePermissions(trx, [{ resource, permission }], () => 'permission')
  await requireOwnRights(trx, actor, [{ resource, permission }])
  const { numInsertedOrUpdatedRows } = await trx
    .insertInto('role_permissions')
    .values({ role, resource, permission })
    .onConflict((conflict) => conflict.doNothing())
    .executeTakeFirstOrThrow()
  if (numInsertedOrUpdatedRows === 0n) return false
  await touchRoles(trx, reaching)
  const { permissions } = await getRole(trx, role)
  const before = permissions.filter((one) => one.resource !== resource || one.permission !== permission)
  await writeAudit(trx, actor, {
    action: 'role.permission-granted',
    target: { type: 'role', id: role },
    details: { resource, permission, before: { permissions: before }, after: { permissions } },
  })
  return true
}

/**
 * Everyone who has the role, or one that includes it, gets new tokens, also those who keep the permission by another
 * role: who does cannot be said while that other role may be changing too.
 * @returns false when the role did not have the permission
 * @throws Problem when there is no such role
 */
export async function revokePermission(
  trx: Trx,
  actor: Actor,
  input: z.input<typeof rolePermissionSchema>,
): Promise<boolean> {
  const { role, resource, permission } = parseInput(rolePermissionSchema, input)
  await keepInclusions(trx)
  const reaching = await getReaching(trx, role)
  if (role === administratorRole) throw builtIn()
  await requireRightsOfRole(trx, actor, role)
  const { permissions: before } = await getRole(trx, role)
  const { numDeletedRows } = await trx
    .deleteFrom('role_permissions')
    .where('role', '=', role)
    .where('resource', '=', resource)
    .where('permission', '=', permission)
    .executeTakeFirstOrThrow()
  if (numDeletedRows === 0n) return false
  const users = await endTokensOfHolders(trx, actor, role, `role ${role} lost ${permission}`)
  await touchRoles(trx, reaching)
  const after = before.filter((one) => one.resource !== resource || one.permission !== permission)
  await writeAudit(trx, actor, {
    action: 'role.permission-revoked',
    target: { type: 'role', id: role },
    details: { resource, permission, before: { permissions: before }, after: { permissions: after }, users },
  })
  return true
}

/**
 * @returns false when the role included the other one already
 * @throws Problem when there is no such role, or as `putRole`
 */
export async function includeRole(trx: Trx, actor: Actor, input: z.input<typeof inclusionSchema>): Promise<boolean> {
  const { role, included } = parseInput(inclusionSchema, input)
  await lockInclusions(trx)
  const reaching = await getReaching(trx, role)
  const { includes: before } = await getRole(trx, role)
  if (before.includes(included)) return false
  const wrong = await findWrongInclusions(trx, role, [included], () => 'included')
  if (wrong.length > 0) throw invalidFields(wrong)
  await requireRightsOfRole(trx, actor, role)
  await requireRightsOfRole(trx, actor, included)
  await changeInclusions(trx, role, { lost: [], gained: [included], reaching })
  await touchRoles(trx, reaching)
  await writeAudit(trx, actor, {
    action: 'role.role-included',
    target: { type: 'role', id: role },
    details: { included, before: { includes: before }, after: { includes: [...before, included].sort() } },
  })
  return true
}

/**
 * @returns false when the role did not include the other one
 * @throws Problem when there is no such role
 */
export async function excludeRole(trx: Trx, actor: Actor, input: z.input<typeof inclusionSchema>): Promise<boolean> {
  const { role, included } = parseInput(inclusionSchema, input)
  await lockInclusions(trx)
  const reaching = await getReaching(trx, role)
  const { includes: before } = await getRole(trx, role)
  if (!before.includes(included)) return false
  await requireRightsOfRole(trx, actor, role)
  const reachesLess = await changeInclusions(trx, role, { lost: [included], gained: [], reaching })
  await touchRoles(trx, reaching)
  const reason = `role ${role} no longer includes ${included}`
  const users = reachesLess ? await endTokensOfHolders(trx, actor, role, reason) : 0
  await writeAudit(trx, actor, {
    action: 'role.role-excluded',
    target: { type: 'role', id: role },
    details: {
      included,
      before: { includes: before },
      after: { includes: before.filter((one) => one !== included) },
      users,
    },
  })
  return true
}

const assignmentSchema = z.strictObject({ user_id: userId, role: roleName })

/**
 * @returns false when the person had the role already
 * @throws Problem when there is no such role or person
 */
export async function assignRole(trx: Trx, actor: Actor, input: z.input<typeof assignmentSchema>): Promise<boolean> {
  const { user_id, role } = parseInput(assignmentSchema, input)
  await lockRole(trx, role)
  await lockUser(trx, user_id)
  if (role === everyoneRole)
    throw new Problem('CONFLICT', 'Everybody has this role already, without its being assigned.')
  await requireRightsOfRole(trx, actor, role)
  await requireRightsOver(trx, actor, user_id)
  const { numInsertedOrUpdatedRows } = await trx
    .insertInto('user_roles')
    .values({ user_id, role })
    .onConflict((conflict) => conflict.doNothing())
    .executeTakeFirstOrThrow()
  if (numInsertedOrUpdatedRows === 0n) return false
  await touchUser(trx, user_id)
  const roles = await findRolesOf(trx, user_id)
  await writeAudit(trx, actor, {
    action: 'user.role-assigned',
    target: { type: 'user', id: user_id },
    details: { role, before: { roles: roles.filter((name) => name !== role) }, after: { roles } },
  })
  return true
}

/**
 * @returns false when the person did not have the role
 * @throws Problem when there is no such role or person
 */
export async function unassignRole(trx: Trx, actor: Actor, input: z.input<typeof assignmentSchema>): Promise<boolean> {
  const { user_id, role } = parseInput(assignmentSchema, input)
  await lockRole(trx, role)
  if (role === administratorRole) await requireAnotherAdministrator(trx, actor, user_id)
  await lockUser(trx, user_id)
  await requireRightsOver(trx, actor, user_id)
  const { numDeletedRows } = await trx
    .deleteFrom('user_roles')
    .where('user_id', '=', user_id)
    .where('role', '=', role)
    .executeTakeFirstOrThrow()
  if (numDeletedRows === 0n) return false
  await touchUser(trx, user_id)
  await endTokens(trx, actor, user_id, `role ${role} taken away`)
  const roles = await findRolesOf(trx, user_id)
  await writeAudit(trx, actor, {
    action: 'user.role-unassigned',
    target: { type: 'user', id: user_id },
    details: { role, before: { roles: [...roles, role].sort() }, after: { roles } },
  })
  return true
}

/**
 * Gives a person exactly these roles.
 * @param input.check told the version of what the change is based on, once nobody else can change it
 * @throws Problem RESOURCE_NOT_FOUND for the person, VALIDATION_ERROR for roles that there are not, or as assigning and
 *   taking away would
 */
export async function setRolesOf(
  trx: Trx,
  actor: Actor,
  input: { readonly user_id: string; readonly roles: readonly string[]; readonly check: (version: number) => void },
): Promise<void> {
  const before = await findRolesOf(trx, input.user_id)
  // In one order, so that two changes beside each other cannot deadlock; the roles before the person, as everywhere.
  const all = [...new Set([...before, ...input.roles])].sort()
  const known = new Set<string>()
  for (const role of all) if (await isRoleLocked(trx, role)) known.add(role)
  await lockUser(trx, input.user_id)
  const unknown = unknownAmong(input.roles, known)
  if (unknown.length > 0) throw invalidFields(unknown)
  const held = await findRolesOf(trx, input.user_id)
  const wanted = new Set(input.roles)
  const isSame = held.length === wanted.size && held.every((role) => wanted.has(role))
  if (isSame) return
  const { row_version: version } = await trx
    .selectFrom('users')
    .select('row_version')
    .where('id', '=', input.user_id)
    .executeTakeFirstOrThrow()
  input.check(version)
  for (const role of held) if (!wanted.has(role)) await unassignRole(trx, actor, { user_id: input.user_id, role })
  for (const role of wanted) await assignRole(trx, actor, { user_id: input.user_id, role })
}

/** The names of a person's roles: those that are assigned to them, and not what these include. */
export async function findRolesOf(db: Db, userId: string): Promise<string[]> {
  const rows = await db.selectFrom('user_roles').select('role').where('user_id', '=', userId).orderBy('role').execute()
  return rows.map(({ role }) => role)
}

export async function listRoles(db: Db): Promise<Role[]> {
  return selectRoles(db).orderBy('roles.name').execute()
}

export async function findRole(db: Db, name: string): Promise<Role | undefined> {
  return selectRoles(db).where('roles.name', '=', name).executeTakeFirst()
}

/** @throws Problem when there is no such role */
export async function getRole(db: Db, name: string): Promise<Role> {
  return (await findRole(db, name)) ?? unknownRole(name)
}

/**
 * @param fieldOf how the caller knows each of them
 * @throws Problem that names each permission that does not exist
 */
export async function requirePermissions(
  db: Db,
  permissions: readonly Permission[],
  fieldOf?: (place: number) => string,
): Promise<void> {
  const unknown = await findUnknownPermissions(db, permissions, fieldOf)
  if (unknown.length > 0) throw invalidFields(unknown)
}

/** Those permissions of a list as it was sent that can be some, each in its place. */
export function fittingPermissions(sent: unknown): (Permission | undefined)[] {
  return Array.isArray(sent) ? sent.slice(0, 1_000).map((one) => permissionSchema.safeParse(one).data) : []
}

/**
 * What is wrong with each permission that does not exist. In a transaction those that do stay until its end: one that
 * is just being removed is waited for.
 */
export async function findUnknownPermissions(
  db: Db,
  permissions: readonly (Permission | undefined)[],
  fieldOf = (place: number) => `permissions[${place}]`,
): Promise<FieldError[]> {
  const asked = permissions.filter((one) => one !== undefined)
  if (asked.length === 0) return []
  const list = sql`jsonb_to_recordset(${JSON.stringify(asked)}::jsonb) AS asked (resource text, permission text)`
  if (db.isTransaction) {
    await sql`
      SELECT 1 FROM permissions p JOIN ${list} ON p.resource = asked.resource AND p.permission = asked.permission
      ORDER BY p.resource, p.permission FOR KEY SHARE OF p`.execute(db)
  }
  const { rows: missing } = await sql<Permission>`
    SELECT asked.resource, asked.permission FROM ${list}
    WHERE NOT EXISTS (
      SELECT 1 FROM permissions p WHERE p.resource = asked.resource AND p.permission = asked.permission
    )`.execute(db)
  const describe = ({ resource, permission }: Permission) => `There is no permission ${permission} at ${resource}`
  const messages = new Set(missing.map(describe))
  return permissions.flatMap((one, place) =>
    one !== undefined && messages.has(describe(one))
      ? [{ field: fieldOf(place), constraint: 'exists', message: describe(one) }]
      : [],
  )
}

/** What is wrong with each role of a list as it was sent that can be one and does not exist. */
export async function findUnknownRoles(db: Db, sent: unknown): Promise<FieldError[]> {
  const names = Array.isArray(sent) ? sent.slice(0, 100).map((one) => roleName.safeParse(one).data) : []
  const asked = names.filter((name) => name !== undefined)
  if (asked.length === 0) return []
  const rows = await db.selectFrom('roles').select('name').where('name', 'in', asked).execute()
  return unknownAmong(names, new Set(rows.map(({ name }) => name)))
}

function unknownAmong(names: readonly (string | undefined)[], known: ReadonlySet<string>): FieldError[] {
  return names.flatMap((name, place) =>
    name === undefined || known.has(name)
      ? []
      : [{ field: `roles[${place}]`, constraint: 'exists', message: `There is no role ${name}` }],
  )
}

/** Roles with all that is read of them, whichever are wanted. */
export function selectRoles(db: Db) {
  return db
    .selectFrom('roles')
    .selectAll('roles')
    .select([
      sql<number>`(SELECT count(*)::int FROM user_roles u WHERE u.role = roles.name)`.as('users'),
      sql<Role['permissions']>`coalesce((
        SELECT jsonb_agg(jsonb_build_object('resource', p.resource, 'permission', p.permission) ORDER BY p.resource, p.permission)
        FROM role_permissions p WHERE p.role = roles.name), '[]')`.as('permissions'),
      sql<Role['includes']>`coalesce((
        SELECT jsonb_agg(i.included ORDER BY i.included) FROM role_inclusions i WHERE i.role = roles.name), '[]')`.as(
        'includes',
      ),
      sql<Role['effective_permissions']>`coalesce((
        SELECT jsonb_agg(jsonb_build_object('resource', p.resource, 'permission', p.permission) ORDER BY p.resource, p.permission)
        FROM (
          SELECT DISTINCT rp.resource, rp.permission
          FROM role_reach rr JOIN role_permissions rp ON rp.role = rr.reached WHERE rr.role = roles.name
        ) AS p), '[]')`.as('effective_permissions'),
    ])
}

/**
 * The role's row is locked first by whoever gives it to somebody or takes it from them. So it is by every change of
 * what it allows, in whichever role that it reaches (lockRolesThatReach): neither misses what the other does.
 */
async function lockRole(trx: Trx, name: string): Promise<void> {
  if (!(await isRoleLocked(trx, name))) unknownRole(name)
}

/** As `lockRolesThatReach`. @throws Problem when there is no such role */
async function getReaching(trx: Trx, role: string): Promise<readonly string[]> {
  const reaching = await lockRolesThatReach(trx, role)
  return reaching.length > 0 ? reaching : unknownRole(role)
}

/** @returns false when there is no such role */
async function isRoleLocked(trx: Trx, name: string): Promise<boolean> {
  const { rows } = await sql`SELECT 1 FROM roles WHERE name = ${name} FOR NO KEY UPDATE`.execute(trx)
  return rows.length > 0
}

async function lockUser(trx: Trx, id: string): Promise<void> {
  const { rows } = await sql`SELECT 1 FROM users WHERE id = ${id} FOR NO KEY UPDATE`.execute(trx)
  if (rows.length === 0) throw notFound('user', id, '/v1/users')
}

/** The roles are part of what is read of a person. */
async function touchUser(trx: Trx, id: string): Promise<void> {
  await sql`UPDATE users SET row_version = row_version + 1, updated_at = now() WHERE id = ${id}`.execute(trx)
}

/** For what else is read of roles than stands in their rows: what they allow, and include. */
async function touchRoles(trx: Trx, names: readonly string[]): Promise<void> {
  await sql`
    UPDATE roles SET row_version = row_version + 1, updated_at = now()
    WHERE name IN (SELECT jsonb_array_elements_text(${JSON.stringify(names)}::jsonb))`.execute(trx)
}

/** For roles that allow something else from now on, and so those that reach one of them. */
export async function touchRolesThatReach(trx: Trx, names: readonly string[]): Promise<void> {
  const { rows } = await sql<{ role: string }>`
    SELECT DISTINCT role FROM role_reach
    WHERE reached IN (SELECT jsonb_array_elements_text(${JSON.stringify(names)}::jsonb))`.execute(trx)
  await touchRoles(
    trx,
    rows.map(({ role }) => role),
  )
}

/**
 * Locks the roles that allow one of these permissions, and those that reach one: for whoever takes it from all of them,
 * before touching it, as whoever gives it to a role locks that role first.
 */
export async function lockRolesThatAllow(trx: Trx, resource: string, permissions: readonly string[]): Promise<void> {
  await keepInclusions(trx)
  await sql`
    SELECT count(*) FROM (
      SELECT 1 FROM roles WHERE name IN (
        SELECT rr.role FROM role_permissions rp JOIN role_reach rr ON rr.reached = rp.role
        WHERE rp.resource = ${resource} AND jsonb_exists(${JSON.stringify(permissions)}::jsonb, rp.permission)
      )
      ORDER BY name FOR NO KEY UPDATE
    ) AS roles`.execute(trx)
}

/**
 * Of all who have the role, or one that includes it.
 * @param change.losesIt true: the role goes from those to whom it is assigned, of whom it is read
 * @returns how many people that is
 */
async function endTokensOfHolders(
  trx: Trx,
  actor: Actor,
  role: string,
  reason: string,
  { losesIt = false }: { readonly losesIt?: boolean } = {},
): Promise<number> {
  const { rows } = await sql`
    SELECT 1 FROM role_reach WHERE role = ${everyoneRole} AND reached = ${role}`.execute(trx)
  const isHolder =
    rows.length > 0
      ? sql`true`
      : sql`id IN (SELECT ur.user_id FROM user_roles ur JOIN role_reach rr ON rr.role = ur.role WHERE rr.reached = ${role})`
  // Locked in one order, so that two changes beside each other cannot deadlock.
  await sql`
    SELECT count(*) FROM (
      SELECT id FROM users WHERE ${isHolder} ORDER BY id FOR NO KEY UPDATE
    ) AS holders`.execute(trx)
  if (losesIt) {
    await sql`
      UPDATE users SET row_version = row_version + 1, updated_at = now()
      WHERE id IN (SELECT user_id FROM user_roles WHERE role = ${role})`.execute(trx)
  }
  const users = sql<{ id: string; token_version: number }>`
    UPDATE users SET token_version = token_version + 1 WHERE ${isHolder} RETURNING id, token_version`
  return revokeUsers(trx, { users, reason, cause: 'claims-change', by: actor })
}

/** The tokens that this person holds are dead from now on; the sessions are not. */
async function endTokens(trx: Trx, actor: Actor, userId: string, reason: string): Promise<void> {
  const { token_version } = await trx
    .updateTable('users')
    .set((eb) => ({ token_version: eb('token_version', '+', 1) }))
    .where('id', '=', userId)
    .returning('token_version')
    .executeTakeFirstOrThrow()
  await revoke(trx, {
    kind: 'user',
    subject: userId,
    tokenVersion: token_version,
    reason,
    cause: 'claims-change',
    by: actor,
  })
}

function unknownRole(name: string): never {
  throw notFound('role', name, '/v1/roles', 'name')
}
