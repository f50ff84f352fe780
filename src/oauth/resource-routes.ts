/** `/v1/resources`: the APIs that access tokens are for. Their ids are addresses: percent-encode them in the path. */
import { sql } from 'kysely'
import { z } from 'zod'
import type { CursorSigner } from '../http/cursor.ts'
import { endpoint, holdersOf, reply, type Endpoint } from '../http/endpoint.ts'
import { listOf } from '../http/list-query.ts'
import { pageBody } from '../http/page-body.ts'
import { readPage } from '../http/pagination.ts'
import { Problem } from '../problems.ts'
import { managementResourceId } from './own-entries.ts'
import {
  createResourceSchema,
  deleteResource,
  getResource,
  putResource,
  putResourceSchema,
  type Resource,
} from './resources.ts'

export interface ResourceRoutesParts {
  readonly issuer: string
  readonly cursors: CursorSigner
}

const resourceExample = {
  resource_id: 'https://api.example.com',
  name: 'Models',
  access_token_lifetime_seconds: 900,
  attribute_claims: { department: 'department' },
  permissions: [{ permission: 'models:read', description: 'see models' }],
  created_at: '2026-01-15T10:30:00.000Z',
  updated_at: '2026-01-20T10:00:00.000Z',
}

/** A resource as the API shows one. */
const resourceBody = z
  .object({
    resource_id: z.string().meta({ description: 'The audience of its tokens' }),
    name: z.string(),
    access_token_lifetime_seconds: z.int(),
    attribute_claims: z
      .record(z.string(), z.string())
      .meta({ description: 'Claim in its tokens → the attribute of the person that it holds' }),
    permissions: z.array(z.object({ permission: z.string(), description: z.string() })),
    created_at: z.iso.datetime(),
    updated_at: z.iso.datetime(),
  })
  .meta({ id: 'Resource', example: resourceExample })

function describeResource(resource: Resource): z.input<typeof resourceBody> {
  return {
    resource_id: resource.id,
    name: resource.name,
    access_token_lifetime_seconds: resource.access_token_lifetime_seconds,
    attribute_claims: resource.attribute_claims,
    permissions: [...resource.permissions],
    created_at: resource.created_at.toISOString(),
    updated_at: resource.updated_at.toISOString(),
  }
}

const resourceList = listOf({
  name: 'resources',
  sort: { created_at: { column: sql.ref('resources.created_at'), type: 'timestamp' } },
  defaultSort: 'resource_id',
  tieBreak: { name: 'resource_id', column: sql.ref('resources.id'), type: 'text' },
  filters: {},
  fields: [
    'resource_id',
    'name',
    'access_token_lifetime_seconds',
    'attribute_claims',
    'permissions',
    'created_at',
    'updated_at',
  ],
})

const putBody = putResourceSchema.meta({
  id: 'PutResource',
  description: 'All of it: a permission that is left out is taken from every role and client.',
  example: { name: 'Models', permissions: [{ permission: 'models:read', description: 'see models' }] },
})
const params = z.object({
  resource_id: createResourceSchema.shape.id
    .min(1)
    .meta({ description: 'The resource, percent-encoded', example: 'https://api.example.com' }),
})
const tag = 'Resources'
const read = holdersOf('resources:read')
const write = holdersOf('resources:write')

export function resourceRoutes({ issuer, cursors }: ResourceRoutesParts): readonly Endpoint[] {
  const refuseOwn = (id: string) => {
    if (id !== managementResourceId(issuer) && !id.startsWith(`${issuer}/`)) return
    throw new Problem('CONFLICT', 'Resources of the provider itself stay as they are.')
  }
  return [
    endpoint({
      method: 'GET',
      path: '/v1/resources',
      name: 'listResources',
      summary: 'Resources, in pages',
      tag,
      access: read,
      query: resourceList.query,
      responses: { 200: pageBody('resources', resourceBody, 'resource_id', '/v1/resources') },
      async handle({ db, query, path }) {
        const base = db
          .selectFrom('resources')
          .selectAll()
          .select(
            sql<Resource['permissions']>`coalesce((
              SELECT jsonb_agg(jsonb_build_object('permission', p.permission, 'description', p.description) ORDER BY p.permission)
              FROM permissions p WHERE p.resource = resources.id), '[]')`.as('permissions'),
          )
        const { items, pagination } = await readPage(db, resourceList, base, query, { signer: cursors, path })
        const resources = items.map((item) => resourceList.pickFields(describeResource(item), query.fields))
        return reply(200, { resources, pagination })
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/resources/{resource_id}',
      name: 'getResource',
      summary: 'One resource',
      tag,
      access: read,
      params,
      responses: { 200: resourceBody },
      async handle({ db, params }) {
        const resource = await getResource(db, params.resource_id)
        return reply(200, describeResource(resource), { version: resource.row_version })
      },
    }),
    endpoint({
      method: 'PUT',
      path: '/v1/resources/{resource_id}',
      name: 'putResource',
      summary: 'Register a resource, or make it so',
      description: '`If-None-Match: *` registers only.',
      tag,
      access: write,
      params,
      body: putBody,
      isVersioned: true,
      responses: { 200: resourceBody, 201: resourceBody },
      problems: ['CONFLICT'],
      async handle({ params, body, expectedVersions, mustExist, mustNotExist, write }) {
        refuseOwn(params.resource_id)
        return write(async (trx, actor) => {
          const input = { id: params.resource_id, ...body, expectedVersions, mustExist, mustNotExist }
          const { resource, isCreated } = await putResource(trx, actor, input)
          const version = resource.row_version
          const headers = { Location: `/v1/resources/${encodeURIComponent(resource.id)}` }
          return isCreated
            ? reply(201, describeResource(resource), { version, headers })
            : reply(200, describeResource(resource), { version })
        })
      },
    }),
    endpoint({
      method: 'DELETE',
      path: '/v1/resources/{resource_id}',
      name: 'deleteResource',
      summary: 'Remove a resource; every token for it ends',
      tag,
      access: write,
      params,
      isVersioned: true,
      responses: { 204: null },
      problems: ['CONFLICT'],
      async handle({ params, expectedVersions, write }) {
        refuseOwn(params.resource_id)
        return write(async (trx, actor) => {
          await deleteResource(trx, actor, { id: params.resource_id, expectedVersions })
          return reply(204, undefined)
        })
      },
    }),
  ]
}
