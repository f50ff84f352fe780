/** `/v1/clients`: registered applications, and their secrets, which are shown once. */
import { sql, type SqlBool } from 'kysely'
import { z } from 'zod'
import type { CursorSigner } from '../http/cursor.ts'
import { endpoint, holdersOf, reply, type Endpoint } from '../http/endpoint.ts'
import { filter, listOf } from '../http/list-query.ts'
import { pageBody } from '../http/page-body.ts'
import { readPage } from '../http/pagination.ts'
import { booleanParameter, textParameter } from '../http/query-parameters.ts'
import {
  changeClient,
  clientDocumentSchema,
  clientTypeOf,
  clientTypes,
  createClient,
  createClientSchema,
  deleteClient,
  findWrongInChange,
  findWrongInNew,
  getClient,
  revokeClientSecret,
  revokeEverythingOfClient,
  rotateClientSecret,
  withSecretsAndPermissions,
  type Client,
} from './clients.ts'

export interface ClientRoutesParts {
  readonly cursors: CursorSigner
}

const secretExample = { secret_id: 'sec_8Jd0aPq2LmXz', created_at: '2026-01-15T10:30:00.000Z', expires_at: null }
const permissionExample = { resource: 'https://api.example.com', permission: 'models:read' }
const clientExample = {
  client_id: 'nightly-report',
  name: 'Nightly report',
  type: 'machine',
  token_endpoint_auth_method: 'client_secret_basic',
  grant_types: ['client_credentials'],
  redirect_uris: [],
  post_logout_redirect_uris: [],
  backchannel_logout_uri: null,
  jwks: null,
  jwks_uri: null,
  client_uri: null,
  logo_uri: null,
  policy_uri: null,
  tos_uri: null,
  first_party: false,
  require_pkce: true,
  require_pushed_authorization_requests: false,
  dpop_bound_access_tokens: false,
  default_resource: 'https://api.example.com',
  permissions: [permissionExample],
  plan: 'Basic Plan',
  is_active: true,
  secrets: [secretExample],
  created_at: '2026-01-15T10:30:00.000Z',
  updated_at: '2026-01-20T10:00:00.000Z',
} as const

const secretBody = z
  .object({ secret_id: z.string(), created_at: z.iso.datetime(), expires_at: z.iso.datetime().nullable() })
  .meta({
    id: 'ClientSecret',
    description: 'A secret by its name; the secret itself is shown when it is made',
    example: secretExample,
  })

const text = z.string().nullable()

/** A client as the API shows one. */
const clientBody = z
  .object({
    client_id: z.string(),
    name: z.string(),
    type: z.enum(clientTypes),
    token_endpoint_auth_method: z.enum(['none', 'client_secret_basic', 'private_key_jwt']),
    grant_types: z.array(z.string()),
    redirect_uris: z.array(z.string()),
    post_logout_redirect_uris: z.array(z.string()),
    backchannel_logout_uri: text,
    jwks: z.record(z.string(), z.unknown()).nullable(),
    jwks_uri: text,
    client_uri: text,
    logo_uri: text,
    policy_uri: text,
    tos_uri: text,
    first_party: z.boolean(),
    require_pkce: z.boolean(),
    require_pushed_authorization_requests: z.boolean(),
    dpop_bound_access_tokens: z.boolean(),
    default_resource: text,
    permissions: z.array(z.object({ resource: z.string(), permission: z.string() })),
    plan: text.meta({ description: 'Its usage plan; null: none' }),
    is_active: z.boolean().meta({ description: 'Whether it gets and may use tokens' }),
    secrets: z.array(secretBody),
    created_at: z.iso.datetime(),
    updated_at: z.iso.datetime(),
  })
  .meta({ id: 'Client', example: clientExample })

const withSecretBody = clientBody
  .extend({ client_secret: z.string().optional().meta({ description: 'Shown this once' }) })
  .meta({ id: 'NewClient', example: { ...clientExample, client_secret: 'lk_secret_shown-this-once' } })

function describeClient(client: Client): z.input<typeof clientBody> {
  const { id, status, token_version: _t, row_version: _r, application_type: _a, secrets, permissions, ...rest } = client
  return {
    ...rest,
    client_id: id,
    type: clientTypeOf(client),
    permissions: [...permissions],
    is_active: status === 'active',
    secrets: secrets.map(describeSecret),
    created_at: client.created_at.toISOString(),
    updated_at: client.updated_at.toISOString(),
  }
}

function describeSecret(secret: Client['secrets'][number]): z.input<typeof secretBody> {
  return {
    secret_id: secret.id,
    created_at: secret.created_at.toISOString(),
    expires_at: secret.expires_at?.toISOString() ?? null,
  }
}

const fields = Object.keys(clientBody.shape) as [keyof typeof clientBody.shape, ...(keyof typeof clientBody.shape)[]]

const clientList = listOf({
  name: 'clients',
  sort: {
    created_at: { column: sql.ref('clients.created_at'), type: 'timestamp' },
    updated_at: { column: sql.ref('clients.updated_at'), type: 'timestamp' },
    name: { column: sql.ref('clients.name'), type: 'text' },
  },
  defaultSort: 'created_at',
  tieBreak: { name: 'client_id', column: sql.ref('clients.id'), type: 'text' },
  filters: {
    is_active: filter(
      booleanParameter('Only clients that are active, or only those that are not'),
      (isActive) => sql<SqlBool>`clients.status = ${isActive ? 'active' : 'disabled'}`,
    ),
    first_party: filter(
      booleanParameter('Only first-party clients, or only others'),
      (isFirstParty) => sql<SqlBool>`clients.first_party = ${isFirstParty}`,
    ),
    plan: filter(
      textParameter(64, { description: 'Only clients with this usage plan', example: 'Basic Plan' }),
      (plan) => sql<SqlBool>`clients.plan = ${plan}`,
    ),
  },
  fields,
})

const { id: _id, ...createShape } = createClientSchema.shape
const createBody = z.strictObject({ client_id: createClientSchema.shape.id, ...createShape }).meta({
  id: 'CreateClient',
  example: {
    client_id: 'nightly-report',
    type: 'machine',
    name: 'Nightly report',
    default_resource: 'https://api.example.com',
    permissions: [permissionExample],
  },
})
const replaceBody = clientDocumentSchema.meta({
  id: 'ReplaceClient',
  description: 'Members that are left out get their defaults, but for `permissions` and `is_active`, which then stay.',
  example: { name: 'Nightly report', grant_types: ['client_credentials'], default_resource: 'https://api.example.com' },
})
const mergePatch = { id: 'PatchClient', example: { name: 'Weekly report', client_uri: null, is_active: false } }
const rotateBody = z
  .strictObject({
    overlap_seconds: z
      .int()
      .min(0)
      .max(30 * 86_400)
      .default(86_400)
      .meta({ description: 'How long the present secret is still accepted' }),
  })
  .meta({ id: 'RotateSecret', example: { overlap_seconds: 86_400 } })
const newSecretBody = z
  .object({ ...secretBody.shape, client_secret: z.string().meta({ description: 'Shown this once' }) })
  .meta({ id: 'NewClientSecret', example: { ...secretExample, client_secret: 'lk_secret_shown-this-once' } })
const revokeBody = z
  .strictObject({ reason: z.string().min(1).max(200).default('revoked at the management API') })
  .meta({ id: 'RevokeClient', example: { reason: 'a laptop was stolen' } })
const revokedBody = z
  .object({ client_id: z.string(), grants_ended: z.int() })
  .meta({ id: 'RevokedClient', example: { client_id: 'nightly-report', grants_ended: 3 } })
const secretsBody = z
  .object({ secrets: z.array(secretBody) })
  .meta({ id: 'ClientSecrets', example: { secrets: [secretExample] } })

const params = z.object({
  client_id: createClientSchema.shape.id.unwrap().meta({ description: 'The client', example: 'nightly-report' }),
})
const tag = 'Clients'
const read = holdersOf('clients:read')
const write = holdersOf('clients:write')

export function clientRoutes({ cursors }: ClientRoutesParts): readonly Endpoint[] {
  return [
    endpoint({
      method: 'GET',
      path: '/v1/clients',
      name: 'listClients',
      summary: 'Clients, in pages',
      tag,
      access: read,
      query: clientList.query,
      responses: { 200: pageBody('clients', clientBody, 'client_id', '/v1/clients') },
      async handle({ db, query, path }) {
        const base = db.selectFrom('clients').selectAll()
        const { items, pagination } = await readPage(db, clientList, base, query, { signer: cursors, path })
        const clients = await withSecretsAndPermissions(db, items)
        return reply(200, {
          clients: clients.map((client) => clientList.pickFields(describeClient(client), query.fields)),
          pagination,
        })
      },
    }),
    endpoint({
      method: 'POST',
      path: '/v1/clients',
      name: 'createClient',
      summary: 'Register a client',
      description: 'The answer holds its secret, which is shown this once.',
      tag,
      access: write,
      body: createBody,
      alsoWrong: ({ body, db }) => findWrongInNew(db, body),
      responses: { 201: withSecretBody },
      problems: ['CONFLICT'],
      async handle({ body, write }) {
        const { client_id: id, ...rest } = body
        return write(async (trx, actor) => {
          const { client, secret } = await createClient(trx, actor, { ...rest, id })
          const headers = { Location: `/v1/clients/${client.id}` }
          return reply(
            201,
            { ...describeClient(client), client_secret: secret },
            { version: client.row_version, headers },
          )
        })
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/clients/{client_id}',
      name: 'getClient',
      summary: 'One client',
      tag,
      access: read,
      params,
      responses: { 200: clientBody },
      async handle({ db, params }) {
        const client = await getClient(db, params.client_id)
        return reply(200, describeClient(client), { version: client.row_version })
      },
    }),
    endpoint({
      method: 'PUT',
      path: '/v1/clients/{client_id}',
      name: 'replaceClient',
      summary: 'Replace what a client is registered with',
      tag,
      access: write,
      params,
      body: replaceBody,
      alsoWrong: ({ body, params, db }) => findWrongInChange(db, params['client_id'] ?? '', body),
      isVersioned: true,
      responses: { 200: clientBody },
      problems: ['CONFLICT'],
      async handle({ params, body, expectedVersions, write }) {
        return write(async (trx, actor) => {
          const client = await changeClient(trx, actor, {
            id: params.client_id,
            expectedVersions,
            to: () => body,
            isReplacement: true,
          })
          return reply(200, describeClient(client), { version: client.row_version })
        })
      },
    }),
    endpoint({
      method: 'PATCH',
      path: '/v1/clients/{client_id}',
      name: 'updateClient',
      summary: 'Change a client, or whether it is active',
      description: 'Losing something ends the access tokens that it has; `is_active: false` ends everything.',
      tag,
      access: write,
      params,
      body: clientDocumentSchema,
      alsoWrong: ({ body, params, db }) => findWrongInChange(db, params['client_id'] ?? '', body),
      mergePatch,
      isVersioned: true,
      responses: { 200: clientBody },
      problems: ['CONFLICT'],
      async handle({ params, patched, expectedVersions, write }) {
        return write(async (trx, actor) => {
          const client = await changeClient(trx, actor, { id: params.client_id, expectedVersions, to: patched })
          return reply(200, describeClient(client), { version: client.row_version })
        })
      },
    }),
    endpoint({
      method: 'DELETE',
      path: '/v1/clients/{client_id}',
      name: 'deleteClient',
      summary: 'Remove a client and end everything that it has',
      tag,
      access: write,
      params,
      isVersioned: true,
      responses: { 204: null },
      problems: ['CONFLICT'],
      async handle({ params, expectedVersions, write }) {
        return write(async (trx, actor) => {
          await deleteClient(trx, actor, { id: params.client_id, expectedVersions })
          return reply(204, undefined)
        })
      },
    }),
    endpoint({
      method: 'POST',
      path: '/v1/clients/{client_id}/revocations',
      name: 'revokeClient',
      summary: 'End everything that a client has, at once',
      description:
        'Refresh tokens, codes, access tokens, in every service within a second. It stays registered, and may begin anew.',
      tag,
      access: write,
      params,
      body: revokeBody,
      responses: { 201: revokedBody },
      async handle({ params, body, write }) {
        return write(async (trx, actor) => {
          const { client, families } = await revokeEverythingOfClient(trx, actor, {
            id: params.client_id,
            reason: body.reason,
          })
          const headers = { Location: `/v1/clients/${client.id}` }
          return reply(201, { client_id: client.id, grants_ended: families }, { headers })
        })
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/clients/{client_id}/secrets',
      name: 'listClientSecrets',
      summary: 'The secrets of a client, by name',
      tag,
      access: read,
      params,
      responses: { 200: secretsBody },
      async handle({ db, params }) {
        const client = await getClient(db, params.client_id)
        return reply(200, { secrets: client.secrets.map(describeSecret) })
      },
    }),
    endpoint({
      method: 'POST',
      path: '/v1/clients/{client_id}/secrets',
      name: 'rotateClientSecret',
      summary: 'Make a new secret; the present one is accepted for a while',
      tag,
      access: write,
      params,
      body: rotateBody,
      responses: { 201: newSecretBody },
      problems: ['CONFLICT'],
      async handle({ params, body, write }) {
        return write(async (trx, actor) => {
          const { client, secret } = await rotateClientSecret(trx, actor, { id: params.client_id, ...body })
          const made = client.secrets.at(-1)
          if (made === undefined) throw new Error('a secret was made and is not there')
          return reply(
            201,
            { ...describeSecret(made), client_secret: secret },
            { headers: { Location: `/v1/clients/${client.id}/secrets` } },
          )
        })
      },
    }),
    endpoint({
      method: 'DELETE',
      path: '/v1/clients/{client_id}/secrets/{secret_id}',
      name: 'revokeClientSecret',
      summary: 'End a secret at once, and the access tokens of its client',
      tag,
      access: write,
      params: params.extend({
        secret_id: z.string().min(1).max(128).meta({ description: 'The secret', example: 'sec_8Jd0aPq2LmXz' }),
      }),
      responses: { 204: null },
      problems: ['CONFLICT'],
      async handle({ params, write }) {
        return write(async (trx, actor) => {
          await revokeClientSecret(trx, actor, { id: params.client_id, secret_id: params.secret_id })
          return reply(204, undefined)
        })
      },
    }),
  ]
}
