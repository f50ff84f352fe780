/**
 * Resources: what access tokens are for. Each is an API with its audience, its permissions (each of them a scope), the
 * lifetime of its tokens, and the attributes of people that its tokens carry. Who may use the permissions is said by
 * clients.ts for applications and by access/roles.ts for people.
 */
import { isDeepStrictEqual } from 'node:util'
import { sql, type Selectable } from 'kysely'
import { z } from 'zod'
import { permissionsOfRoles, requireRightsOverClient, requireRightsOverHolders } from '../access/rights.ts'
import { lockRolesThatAllow, permissionSchema, touchRolesThatReach, type Permission } from '../access/roles.ts'
import { writeAudit, type Actor } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
import type { ResourcesTable } from '../database/tables.ts'
import { requireVersion } from '../http/etag.ts'
import { notFound, parseInput, Problem } from '../problems.ts'
import { maxAccessTokenLifetimeSeconds } from '../revocation/revocations.ts'
import { endClientTokens, touchClients } from './clients.ts'
import { forgetConsents } from './consents.ts'
import { forgetScopes, lockFamiliesOfClients } from './families.ts'

export interface ResourcePermission {
  /** `type:action`, also the scope */
  readonly permission: string
  /** what it allows, in words that the consent page shows */
  readonly description: string
}

export type Resource = Selectable<ResourcesTable> & { readonly permissions: readonly ResourcePermission[] }

/** Claims that an access token has for reasons of its own (RFC 9068 §2.2, RFC 7800, RFC 8693): no attribute may pose as one. */
const ownClaims = new Set(
  (
    'iss sub aud exp nbf iat jti client_id scope auth_time acr amr azp sid nonce typ cnf act may_act roles groups ' +
    'entitlements permissions token_version grant_id authorization_details events'
  ).split(' '),
)

const id = z
  .string()
  .max(512)
  .refine(isResourceIndicator, {
    error: 'must be an absolute URI without a fragment, such as https://api.example.com (RFC 8707 §2)',
    params: { constraint: 'format' },
  })
const name = z.string().trim().min(1).max(200)
const lifetime = z.int().min(10).max(maxAccessTokenLifetimeSeconds)
const attributeClaims = z.record(
  z
    .string()
    .regex(
      /^[A-Za-z][A-Za-z0-9_:/.-]{0,63}$/,
      'must begin with a letter and have at most 64 letters, digits, _ : / . or -',
    )
    .refine((claim) => !ownClaims.has(claim), {
      error: 'is a claim that the token has for another reason',
      params: { constraint: 'reserved' },
    }),
  z.string().regex(/^[A-Za-z][A-Za-z0-9_-]{0,63}$/, 'must be the name of an attribute'),
)
const permissions = z
  .array(
    z.strictObject({
      permission: permissionSchema.shape.permission,
      description: z.string().max(500).default(''),
    }),
  )
  .max(500)
  .refine((list) => new Set(list.map(({ permission }) => permission)).size === list.length, {
    error: 'must not name a permission twice',
    params: { constraint: 'unique' },
  })

export const createResourceSchema = z.strictObject({
  id,
  name: name.optional(),
  access_token_lifetime_seconds: lifetime.default(900),
  attribute_claims: attributeClaims.default({}),
  permissions: permissions.default([]),
})

export const updateResourceSchema = z.strictObject({
  id,
  name: name.optional(),
  access_token_lifetime_seconds: lifetime.optional(),
  attribute_claims: attributeClaims.optional(),
  permissions: permissions.optional(),
})

/** @throws Problem when the id is taken */
export async function createResource(
  trx: Trx,
  actor: Actor,
  input: z.input<typeof createResourceSchema>,
): Promise<Resource> {
  const resource = parseInput(createResourceSchema, input)
  const { numInsertedOrUpdatedRows } = await trx
    .insertInto('resources')
    .values({
      id: resource.id,
      name: resource.name ?? resource.id,
      access_token_lifetime_seconds: resource.access_token_lifetime_seconds,
      attribute_claims: JSON.stringify(resource.attribute_claims),
    })
    .onConflict((conflict) => conflict.doNothing())
    .executeTakeFirstOrThrow()
  if (numInsertedOrUpdatedRows === 0n) {
    throw new Problem('CONFLICT', `There is already a resource ${resource.id}.`)
  }
  await writePermissions(trx, resource.id, resource.permissions)
  const created = await getResource(trx, resource.id)
  await writeAudit(trx, actor, {
    action: 'resource.created',
    target: { type: 'resource', id: resource.id },
    details: { after: described(created) },
  })
  return created
}

/**
 * Changes what is given and leaves the rest. A list of permissions replaces the whole list: those that are missing from
 * it are taken from every role and client, and the tokens of those clients end. Nothing happens to one that is so already.
 * @throws Problem when there is no such resource; AUTHORIZATION_ERROR when one of those may do more than the actor
 */
export async function updateResource(
  trx: Trx,
  actor: Actor,
  input: z.input<typeof updateResourceSchema>,
): Promise<Resource> {
  const changes = parseInput(updateResourceSchema, input)
  const before = await lockResource(trx, changes.id)
  if (isSo(before, changes)) return before
  if (changes.permissions !== undefined) {
    const kept = new Set(changes.permissions.map(({ permission }) => permission))
    const removed = before.permissions.map(({ permission }) => permission).filter((permission) => !kept.has(permission))
    await removePermissions(trx, actor, changes.id, removed)
    await writePermissions(trx, changes.id, changes.permissions)
  }
  await trx
    .updateTable('resources')
    .set((eb) => ({
      ...(changes.name === undefined ? {} : { name: changes.name }),
      ...(changes.access_token_lifetime_seconds === undefined
        ? {}
        : { access_token_lifetime_seconds: changes.access_token_lifetime_seconds }),
      ...(changes.attribute_claims === undefined ? {} : { attribute_claims: JSON.stringify(changes.attribute_claims) }),
      row_version: eb('row_version', '+', 1),
      updated_at: sql<Date>`now()`,
    }))
    .where('id', '=', changes.id)
    .execute()
  const after = await getResource(trx, changes.id)
  await writeAudit(trx, actor, {
    action: 'resource.updated',
    target: { type: 'resource', id: changes.id },
    details: { before: described(before), after: described(after) },
  })
  return after
}

/**
 * Tokens for it end with it, since all tokens end of the clients that could ask for one.
 * @throws Problem when there is no such resource; AUTHORIZATION_ERROR when a role or client that has to do with it may do
 *   more than the actor
 */
export async function deleteResource(
  trx: Trx,
  actor: Actor,
  input: { id: string; expectedVersions?: readonly number[] | undefined },
): Promise<void> {
  const { id: resourceId } = parseInput(z.object({ id }), input)
  const before = await lockResource(trx, resourceId)
  requireVersion(input.expectedVersions, before.row_version)
  // Waits for whoever is just making it their default, and lets nobody begin to; the clients' locks stand before it.
  await sql`SELECT 1 FROM resources WHERE id = ${resourceId} FOR UPDATE`.execute(trx)
  await removePermissions(
    trx,
    actor,
    resourceId,
    before.permissions.map(({ permission }) => permission),
  )
  await forgetConsents(trx, actor, { resource: resourceId, reason: `${resourceId} deleted` })
  const named = await trx.selectFrom('clients').select('id').where('default_resource', '=', resourceId).execute()
  for (const { id } of named) await requireRightsOverClient(trx, actor, id)
  // The foreign key would do it, and leave them in their version.
  await trx
    .updateTable('clients')
    .set((eb) => ({
      default_resource: null,
      row_version: eb('row_version', '+', 1),
      updated_at: sql<Date>`now()`,
    }))
    .where('default_resource', '=', resourceId)
    .execute()
  await trx.deleteFrom('resources').where('id', '=', resourceId).execute()
  await writeAudit(trx, actor, {
    action: 'resource.deleted',
    target: { type: 'resource', id: resourceId },
    details: { before: described(before) },
  })
}

/** All of a resource that PUT replaces: `name` is the id when left out. */
export const putResourceSchema = createResourceSchema.omit({ id: true })

/**
 * Makes the resource, or makes it so. Nothing happens to one that is so already.
 * @throws Problem PRECONDITION_FAILED, VALIDATION_ERROR for an id that is no resource indicator, or as the functions above
 */
export async function putResource(
  trx: Trx,
  actor: Actor,
  input: z.input<typeof putResourceSchema> & {
    readonly id: string
    readonly expectedVersions?: readonly number[] | undefined
    readonly mustExist?: boolean
    readonly mustNotExist?: boolean
  },
): Promise<{ readonly resource: Resource; readonly isCreated: boolean }> {
  const { expectedVersions, mustExist = false, mustNotExist = false, ...rest } = input
  const asked = parseInput(createResourceSchema, rest)
  const { rows } = await sql`SELECT 1 FROM resources WHERE id = ${asked.id} FOR NO KEY UPDATE`.execute(trx)
  if (rows.length === 0) {
    if (mustExist) throw new Problem('PRECONDITION_FAILED', `There is no resource ${asked.id} to replace.`)
    return { resource: await createResource(trx, actor, asked), isCreated: true }
  }
  if (mustNotExist) throw new Problem('PRECONDITION_FAILED', `There is already a resource ${asked.id}.`)
  const before = await getResource(trx, asked.id)
  const after = { ...asked, name: asked.name ?? asked.id }
  if (isSo(before, after)) return { resource: before, isCreated: false }
  requireVersion(expectedVersions, before.row_version)
  return { resource: await updateResource(trx, actor, after), isCreated: false }
}

/** Whether this is what it is already, as far as it is given; permissions in whatever order. */
function isSo(resource: Resource, given: Omit<z.output<typeof updateResourceSchema>, 'id'>): boolean {
  const { permissions } = given
  const sorted = permissions?.toSorted((a, b) => (a.permission < b.permission ? -1 : 1))
  const asked = { ...given, permissions: sorted }
  return (Object.keys(asked) as (keyof typeof asked)[]).every(
    (name) => asked[name] === undefined || isDeepStrictEqual(resource[name], asked[name]),
  )
}

export async function listResources(db: Db): Promise<Resource[]> {
  return readResources(db, sql`true`)
}

export async function findResource(db: Db, id: string): Promise<Resource | undefined> {
  const [resource] = await readResources(db, sql`r.id = ${id}`)
  return resource
}

/** @throws Problem when there is no such resource */
export async function getResource(db: Db, id: string): Promise<Resource> {
  return (await findResource(db, id)) ?? unknownResource(id)
}

async function readResources(db: Db, condition: ReturnType<typeof sql>): Promise<Resource[]> {
  const { rows } = await sql<Resource>`
    SELECT r.*, coalesce((
      SELECT jsonb_agg(jsonb_build_object('permission', p.permission, 'description', p.description) ORDER BY p.permission)
      FROM permissions p WHERE p.resource = r.id
    ), '[]') AS permissions
    FROM resources r WHERE ${condition} ORDER BY r.id`.execute(db)
  return rows
}

/**
 * Locks the resource and every client that has to do with it, before anything is written: the first write also locks the
 * one counter of changes, and whoever changes a client comes to that counter with the client's row in hand.
 */
async function lockResource(trx: Trx, id: string): Promise<Resource> {
  const { rows } = await sql`SELECT 1 FROM resources WHERE id = ${id} FOR NO KEY UPDATE`.execute(trx)
  if (rows.length === 0) return unknownResource(id)
  await sql`
    SELECT 1 FROM clients
    WHERE default_resource = ${id} OR id IN (SELECT client_id FROM client_permissions WHERE resource = ${id})
    ORDER BY id FOR NO KEY UPDATE`.execute(trx)
  return getResource(trx, id)
}

async function writePermissions(trx: Trx, resource: string, list: readonly ResourcePermission[]): Promise<void> {
  if (list.length === 0) return
  await trx
    .insertInto('permissions')
    .values(list.map(({ permission, description }) => ({ resource, permission, description })))
    .onConflict((conflict) =>
      conflict
        .columns(['resource', 'permission'])
        .doUpdateSet((eb) => ({ description: eb.ref('excluded.description') })),
    )
    .execute()
}

/**
 * A token that carries one of them was issued to a client that may ask for it, so ending those clients' tokens ends them
 * all. Consent goes too: a permission that comes back under the same name is asked for again.
 */
async function removePermissions(trx: Trx, actor: Actor, resource: string, removed: readonly string[]): Promise<void> {
  if (removed.length === 0) return
  const reason = `${removed.join(' ')} removed`
  await lockRolesThatAllow(trx, resource, removed)
  // Waits for whoever is just giving one to another role or client, so that all who lose it are known.
  await sql`
    SELECT 1 FROM permissions WHERE resource = ${resource} AND jsonb_exists(${JSON.stringify(removed)}::jsonb, permission)
    ORDER BY permission FOR UPDATE`.execute(trx)
  const roles = await findHolders(trx, 'role', resource, removed)
  const clients = await findHolders(trx, 'client', resource, removed)
  const ofRoles = await permissionsOfRoles(
    trx,
    roles.map(({ id }) => id),
  )
  await requireRightsOverHolders(trx, actor, [...ofRoles, ...clients.flatMap(({ permissions }) => permissions)])
  await forgetConsents(trx, actor, { resource, scopes: removed, reason })
  // Takes them from roles and clients, by their foreign keys; only then from the families (grants.ts says why).
  await trx.deleteFrom('permissions').where('resource', '=', resource).where('permission', 'in', removed).execute()
  const clientIds = clients.map(({ id }) => id)
  await touchRolesThatReach(
    trx,
    roles.map(({ id }) => id),
  )
  await touchClients(trx, clientIds)
  await lockFamiliesOfClients(trx, clientIds)
  for (const { id } of clients) {
    await endClientTokens(trx, actor, { id, reason })
    await forgetScopes(trx, { clientId: id, resource, scopes: [...removed] })
  }
  for (const { type, id, permissions } of [...roles, ...clients]) {
    const kept = permissions.filter((one) => one.resource !== resource || !removed.includes(one.permission))
    await writeAudit(trx, actor, {
      action: type === 'role' ? 'role.updated' : 'client.permissions-set',
      target: { type, id },
      details: { reason, before: { permissions }, after: { permissions: kept } },
    })
  }
}

interface Holder {
  readonly type: 'role' | 'client'
  readonly id: string
  /** all of its permissions, at every resource */
  readonly permissions: readonly Permission[]
}

/** The roles, or the clients, that have one of these permissions. */
async function findHolders(
  trx: Trx,
  type: Holder['type'],
  resource: string,
  permissions: readonly string[],
): Promise<readonly Holder[]> {
  const table = type === 'role' ? sql.table('role_permissions') : sql.table('client_permissions')
  const holder = type === 'role' ? sql.ref('role') : sql.ref('client_id')
  const { rows } = await sql<Holder>`
    SELECT ${type}::text AS type, ${holder} AS id,
      jsonb_agg(jsonb_build_object('resource', resource, 'permission', permission) ORDER BY resource, permission) AS permissions
    FROM ${table}
    WHERE ${holder} IN (
      SELECT ${holder} FROM ${table}
      WHERE resource = ${resource} AND jsonb_exists(${JSON.stringify(permissions)}::jsonb, permission)
    )
    GROUP BY ${holder} ORDER BY ${holder}`.execute(trx)
  return rows
}

function described({ name, access_token_lifetime_seconds, attribute_claims, permissions }: Resource) {
  return {
    name,
    access_token_lifetime_seconds,
    attribute_claims,
    permissions,
  }
}

function isResourceIndicator(text: string): boolean {
  return /^[a-z][a-z0-9+.-]*:[\x21-\x7e]+$/.test(text) && !text.includes('#') && URL.canParse(text)
}

function unknownResource(id: string): never {
  throw notFound('resource', id, '/v1/resources')
}
