/** `/v1/roles`, and who has them: `/v1/users/{user_id}/roles`. */
import { sql, type SqlBool } from 'kysely'
import { z } from 'zod'
import type { CursorSigner } from '../http/cursor.ts'
import { endpoint, holdersOf, holdersOrSelf, reply, type Endpoint, type RefusedBody } from '../http/endpoint.ts'
import { requireVersion } from '../http/etag.ts'
import { filter, listOf } from '../http/list-query.ts'
import { pageBody } from '../http/page-body.ts'
import { readPage } from '../http/pagination.ts'
import { textParameter } from '../http/query-parameters.ts'
import { notFound } from '../problems.ts'
import { findWrongInclusions, fittingInclusions } from './inclusions.ts'
import {
  assignRole,
  createRoleSchema,
  deleteRole,
  findRolesOf,
  findUnknownPermissions,
  findUnknownRoles,
  fittingPermissions,
  getRole,
  putRole,
  putRoleSchema,
  selectRoles,
  setRolesOf,
  unassignRole,
  type Role,
} from './roles.ts'

export interface RoleRoutesParts {
  readonly cursors: CursorSigner
}

const permissionExample = { resource: 'https://api.example.com', permission: 'models:read' }
const roleExample = {
  name: 'member',
  description: 'May work with models',
  permissions: [permissionExample],
  includes: ['visitor'],
  effective_permissions: [{ ...permissionExample, permission: 'catalogue:read' }, permissionExample],
  user_count: 12,
  created_at: '2026-01-15T10:30:00.000Z',
  updated_at: '2026-01-20T10:00:00.000Z',
}

const permission = z.object({ resource: z.string(), permission: z.string() }).meta({
  description: 'What may be done (`type:action`, also the scope) at which resource',
  example: permissionExample,
})

/** A role as the API shows one. */
const roleBody = z
  .object({
    name: z.string(),
    description: z.string(),
    permissions: z.array(permission).meta({ description: 'Its own' }),
    includes: z.array(z.string()).meta({
      description: 'The roles that it includes itself, sorted; not those that these include',
    }),
    effective_permissions: z.array(permission).meta({
      description: 'Its own, and those of all the roles that it reaches by what it includes: each once, sorted',
    }),
    user_count: z.int().meta({ description: 'How many people it is assigned to' }),
    created_at: z.iso.datetime(),
    updated_at: z.iso.datetime(),
  })
  .meta({ id: 'Role', example: roleExample })

function describeRole(role: Role): z.input<typeof roleBody> {
  return {
    name: role.name,
    description: role.description,
    permissions: [...role.permissions],
    includes: [...role.includes],
    effective_permissions: [...role.effective_permissions],
    user_count: role.users,
    created_at: role.created_at.toISOString(),
    updated_at: role.updated_at.toISOString(),
  }
}

const roleList = listOf({
  name: 'roles',
  sort: { created_at: { column: sql.ref('roles.created_at'), type: 'timestamp' } },
  defaultSort: 'name',
  tieBreak: { name: 'name', column: sql.ref('roles.name'), type: 'text' },
  filters: {
    resource: filter(
      textParameter(512, {
        description: 'Only roles that allow something there, by themselves or by what they include',
        example: permissionExample.resource,
      }),
      (resource) => sql<SqlBool>`EXISTS (
        SELECT 1 FROM role_reach r JOIN role_permissions p ON p.role = r.reached
        WHERE r.role = roles.name AND p.resource = ${resource})`,
    ),
  },
  fields: [
    'name',
    'description',
    'permissions',
    'includes',
    'effective_permissions',
    'user_count',
    'created_at',
    'updated_at',
  ],
})

const roleName = createRoleSchema.shape.name.meta({ description: 'The role', example: 'member' })
const putBody = putRoleSchema.meta({
  id: 'PutRole',
  description:
    'All that the role allows and includes: what is left out is lost by everyone who has it, or one that includes it.',
  example: { description: 'May work with models', permissions: [permissionExample], includes: ['visitor'] },
})
const createBody = createRoleSchema.meta({
  id: 'CreateRole',
  example: {
    name: 'member',
    description: 'May work with models',
    permissions: [permissionExample],
    includes: ['visitor'],
  },
})
/** What there is to find wrong with the body of a role only by looking at what there is. */
async function alsoWrong({ body, db }: RefusedBody, name: unknown) {
  return [
    ...(await findUnknownPermissions(db, fittingPermissions(body['permissions']))),
    ...(await findWrongInclusions(db, name, fittingInclusions(body['includes']))),
  ]
}
const rolesOfUserBody = z
  .object({ user_id: z.string(), roles: z.array(z.string()) })
  .meta({ id: 'RolesOfUser', example: { user_id: 'usr_2Kx8mQ4vTz9LrN1cYp7WfA', roles: ['member'] } })
const setRolesBody = z
  .strictObject({ roles: z.array(createRoleSchema.shape.name).max(100) })
  .meta({ id: 'SetRolesOfUser', example: { roles: ['member'] } })

const params = z.object({ name: roleName })
/** Of every path beneath a person. */
export const userParams = z.object({
  user_id: z
    .string()
    .regex(/^(me|usr_[\w-]{1,64})$/)
    .meta({ description: 'The person; `me` for whoever the token speaks of', example: 'usr_2Kx8mQ4vTz9LrN1cYp7WfA' }),
})
const tag = 'Roles'
const read = holdersOf('roles:read')
const write = holdersOf('roles:write')

export function roleRoutes({ cursors }: RoleRoutesParts): readonly Endpoint[] {
  return [
    endpoint({
      method: 'GET',
      path: '/v1/roles',
      name: 'listRoles',
      summary: 'Roles, in pages',
      tag,
      access: read,
      query: roleList.query,
      responses: { 200: pageBody('roles', roleBody, 'name', '/v1/roles') },
      async handle({ db, query, path }) {
        const { items, pagination } = await readPage(db, roleList, selectRoles(db), query, { signer: cursors, path })
        return reply(200, {
          roles: items.map((role) => roleList.pickFields(describeRole(role), query.fields)),
          pagination,
        })
      },
    }),
    endpoint({
      method: 'POST',
      path: '/v1/roles',
      name: 'createRole',
      summary: 'Create a role',
      description: 'Nobody gives away more than they have, also by including a role.',
      tag,
      access: write,
      body: createBody,
      alsoWrong: (refused) => alsoWrong(refused, refused.body['name']),
      responses: { 201: roleBody },
      problems: ['CONFLICT'],
      async handle({ body, write }) {
        return write(async (trx, actor) => {
          const { name, ...rest } = body
          const { role } = await putRole(trx, actor, { name, ...rest, mustNotExist: 'conflict' })
          return reply(201, describeRole(role), {
            version: role.row_version,
            headers: { Location: `/v1/roles/${role.name}` },
          })
        })
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/roles/{name}',
      name: 'getRole',
      summary: 'One role',
      tag,
      access: read,
      params,
      responses: { 200: roleBody },
      async handle({ db, params }) {
        const role = await getRole(db, params.name)
        return reply(200, describeRole(role), { version: role.row_version })
      },
    }),
    endpoint({
      method: 'PUT',
      path: '/v1/roles/{name}',
      name: 'putRole',
      summary: 'Make a role, or make it so',
      description:
        '`If-None-Match: *` creates only. Nobody gives away more than they have, also by including a role. Roles that would include each other in a circle are refused (409).',
      tag,
      access: write,
      params,
      body: putBody,
      alsoWrong: (refused) => alsoWrong(refused, refused.params['name']),
      isVersioned: true,
      responses: { 200: roleBody, 201: roleBody },
      problems: ['CONFLICT'],
      async handle({ params, body, expectedVersions, mustExist, mustNotExist, write }) {
        return write(async (trx, actor) => {
          const input = { name: params.name, ...body, expectedVersions, mustExist, mustNotExist }
          const { role, isCreated } = await putRole(trx, actor, input)
          const version = role.row_version
          return isCreated
            ? reply(201, describeRole(role), { version, headers: { Location: `/v1/roles/${role.name}` } })
            : reply(200, describeRole(role), { version })
        })
      },
    }),
    endpoint({
      method: 'DELETE',
      path: '/v1/roles/{name}',
      name: 'deleteRole',
      summary: 'Remove a role from everyone who has it, and from the roles that include it',
      tag,
      access: write,
      params,
      isVersioned: true,
      responses: { 204: null },
      problems: ['CONFLICT'],
      async handle({ params, expectedVersions, write }) {
        return write(async (trx, actor) => {
          await deleteRole(trx, actor, { name: params.name, expectedVersions })
          return reply(204, undefined)
        })
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/users/{user_id}/roles',
      name: 'listRolesOfUser',
      summary: 'The roles of a person',
      description: 'Those that are assigned to them. Access tokens speak also of the roles that these include.',
      tag,
      access: holdersOrSelf('roles:read', 'self:read', 'user_id'),
      params: userParams,
      responses: { 200: rolesOfUserBody },
      async handle({ db, params }) {
        const version = await versionOfUser(db, params.user_id)
        return reply(200, { user_id: params.user_id, roles: await findRolesOf(db, params.user_id) }, { version })
      },
    }),
    endpoint({
      method: 'PUT',
      path: '/v1/users/{user_id}/roles',
      name: 'setRolesOfUser',
      summary: 'Give a person exactly these roles',
      description:
        'Needs `If-Match` with the `ETag` of the list that this is based on: a role that somebody else has just given must not be lost unseen.',
      tag,
      access: write,
      params: userParams,
      body: setRolesBody,
      alsoWrong: ({ body, db }) => findUnknownRoles(db, body['roles']),
      isVersioned: true,
      requiresMatch: true,
      responses: { 200: rolesOfUserBody },
      problems: ['CONFLICT'],
      async handle({ params, body, expectedVersions, write }) {
        return write(async (trx, actor) => {
          await setRolesOf(trx, actor, {
            user_id: params.user_id,
            roles: body.roles,
            check: (version) => requireVersion(expectedVersions, version),
          })
          const roles = await findRolesOf(trx, params.user_id)
          return reply(200, { user_id: params.user_id, roles }, { version: await versionOfUser(trx, params.user_id) })
        })
      },
    }),
    endpoint({
      method: 'PUT',
      path: '/v1/users/{user_id}/roles/{name}',
      name: 'assignRole',
      summary: 'Give a person a role',
      tag,
      access: write,
      params: userParams.extend({ name: roleName }),
      responses: { 204: null },
      problems: ['CONFLICT'],
      async handle({ params, write }) {
        return write(async (trx, actor) => {
          await assignRole(trx, actor, { user_id: params.user_id, role: params.name })
          return reply(204, undefined)
        })
      },
    }),
    endpoint({
      method: 'DELETE',
      path: '/v1/users/{user_id}/roles/{name}',
      name: 'unassignRole',
      summary: 'Take a role from a person',
      description: 'Access tokens that still speak of it are dead at once; sessions live on.',
      tag,
      access: write,
      params: userParams.extend({ name: roleName }),
      responses: { 204: null },
      problems: ['CONFLICT'],
      async handle({ params, write }) {
        return write(async (trx, actor) => {
          const { user_id, name } = params
          if (!(await unassignRole(trx, actor, { user_id, role: name }))) {
            throw notFound('role', name, `/v1/users/${user_id}/roles`, 'name')
          }
          return reply(204, undefined)
        })
      },
    }),
  ]
}

async function versionOfUser(db: Parameters<typeof findRolesOf>[0], id: string): Promise<number> {
  const row = await db.selectFrom('users').select('row_version').where('id', '=', id).executeTakeFirst()
  if (row === undefined) throw notFound('user', id, '/v1/users')
  return row.row_version
}
