/**
 * The registry of clients: applications that ask for tokens, how they prove who they are, where people are sent back
 * to, and what each may ask of each resource. The input is client metadata by its own names (RFC 7591 §2); it is judged
 * as a whole, at registration and again at every change. What the token endpoint reads of it is client-directory.ts's.
 *
 * A secret is shown once, when it is made, and rests as a SHA-256; two may live at once, so that a client can change
 * over without an outage. Whatever narrows what a client may do ends the access tokens that it has.
 */
import { hash, randomBytes, timingSafeEqual } from 'node:crypto'
import { isDeepStrictEqual } from 'node:util'
import { sql, type Selectable } from 'kysely'
import { z } from 'zod'
import {
  refuseOwnClient,
  requireMayChangeClient,
  requireOwnRights,
  requireRightsOverClient,
  requireRightsOverEverybody,
} from '../access/rights.ts'
import {
  findUnknownPermissions,
  fittingPermissions,
  permissionSchema,
  requirePermissions,
  type Permission,
} from '../access/roles.ts'
import { writeAudit, type Actor } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
import type { ClientsTable } from '../database/tables.ts'
import { requireVersion } from '../http/etag.ts'
import { fittingMembers, notFound, parseInput, Problem, type FieldError } from '../problems.ts'
import { revoke } from '../revocation/revocations.ts'
import { forgetConsents } from './consents.ts'
import { forgetScopes, lockFamiliesOfClients } from './families.ts'
import { deviceGrant, findInconsistencies, refuseInconsistent, wrong, type ClientMetadata } from './client-rules.ts'

/**
 * `web` has a server that keeps a secret; `spa` runs in the browser and `native` on somebody's device, so both are
 * public; `machine` acts for itself.
 */
export const clientTypes = ['web', 'spa', 'native', 'machine'] as const
export type ClientType = (typeof clientTypes)[number]

/** A client as everyone may see it: its secrets by name, never their hashes. */
export type Client = Selectable<ClientsTable> & {
  readonly permissions: readonly Permission[]
  /** those that live, the oldest first */
  readonly secrets: readonly { readonly id: string; readonly created_at: Date; readonly expires_at: Date | null }[]
}

export interface ClientWithSecret {
  readonly client: Client
  /** shown this once, since only its hash is kept */
  readonly secret: string
}

const grantType = z.enum(['authorization_code', 'refresh_token', 'client_credentials', deviceGrant])

const clientId = z
  .string()
  .max(128)
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]*$/, 'must be letters, digits, `.`, `_` and `-`, beginning with a letter or digit')
  // The `sub` of a machine's token is its client_id: it must never read as a person's (RFC 9700 §4.15).
  .refine((id) => !/^usr_/i.test(id), {
    error: 'must not begin with usr_, as the ids of people do',
    params: { constraint: 'format' },
  })
const uri = z.string().min(1).max(2_000)
const uris = z.array(uri).max(50)
const permissions = z.array(permissionSchema).max(1_000)

const metadata = {
  name: z.string().trim().min(1).max(200),
  grant_types: z.array(grantType).min(1).max(4),
  redirect_uris: uris,
  post_logout_redirect_uris: uris,
  backchannel_logout_uri: uri.nullable(),
  jwks: z.object({ keys: z.array(z.record(z.string(), z.unknown())).min(1).max(20) }).nullable(),
  jwks_uri: uri.nullable(),
  client_uri: uri.nullable(),
  logo_uri: uri.nullable(),
  policy_uri: uri.nullable(),
  tos_uri: uri.nullable(),
  first_party: z.boolean(),
  require_pkce: z.boolean(),
  require_pushed_authorization_requests: z.boolean(),
  dpop_bound_access_tokens: z.boolean(),
  default_resource: z.string().max(512).nullable(),
}

export const createClientSchema = z.strictObject({
  ...z.strictObject(metadata).partial().shape,
  type: z.enum(clientTypes),
  /** `cli_` and 128 random bits when left out */
  id: clientId.optional(),
  name: metadata.name,
  token_endpoint_auth_method: z.enum(['client_secret_basic', 'private_key_jwt', 'none']).optional(),
  permissions: permissions.default([]),
})

export const updateClientSchema = z.strictObject({ ...z.strictObject(metadata).partial().shape, id: clientId })

/**
 * How people's codes and tokens come to a client, and how it proves who it is. Of one that people are not asked about,
 * whoever changes these says who acts for everybody.
 */
const credentialFields = [
  'redirect_uris',
  'grant_types',
  'jwks',
  'jwks_uri',
  'require_pkce',
  'require_pushed_authorization_requests',
  'dpop_bound_access_tokens',
] as const satisfies readonly (keyof ClientMetadata)[]

/**
 * @returns with the secret, for a client that has one
 * @throws Problem when the metadata is not consistent, a permission or resource does not exist, or the id is taken; when
 *   it is first-party, or may do something, beyond the actor's own rights
 * @example
 * const { client, secret } = await createClient(trx, actor, {
 *   type: 'machine',
 *   name: 'Nightly report',
 *   permissions: [{ resource: 'https://api.example.com', permission: 'models:read' }],
 * })
 */
export async function createClient(
  trx: Trx,
  actor: Actor,
  input: z.input<typeof createClientSchema>,
): Promise<{ readonly client: Client; readonly secret?: string }> {
  const parsed = parseInput(createClientSchema, input)
  const { type, permissions: asked } = parsed
  const id = parsed.id ?? `cli_${randomBytes(16).toString('base64url')}`
  refuseOwnClient(actor, id)
  const client = newMetadata(parsed)
  refuseInconsistent([
    ...findMisfits(type, client),
    ...findInconsistencies(client),
    ...(await findUnknownResource(trx, client.default_resource)),
    ...(await findUnknownPermissions(trx, asked)),
  ])
  await requireOwnRights(trx, actor, asked)
  if (client.first_party) await requireRightsOverEverybody(trx, actor)
  const { numInsertedOrUpdatedRows } = await trx
    .insertInto('clients')
    .values({ id, ...columns(client) })
    .onConflict((conflict) => conflict.doNothing())
    .executeTakeFirstOrThrow()
  if (numInsertedOrUpdatedRows === 0n) throw new Problem('CONFLICT', `There is already a client ${id}.`)
  // Tokens of another that had this id before are dead by their version, and those of this one must not be.
  await sql`
    UPDATE clients SET token_version = greatest(token_version, (
      SELECT max(token_version) FROM revocations WHERE kind = 'client' AND subject = ${id}
    )) WHERE id = ${id}`.execute(trx)
  await insertPermissions(trx, id, asked)
  const secret = client.token_endpoint_auth_method === 'client_secret_basic' ? await insertSecret(trx, id) : undefined
  const created = await getClient(trx, id)
  await writeAudit(trx, actor, {
    action: 'client.created',
    target: { type: 'client', id },
    details: { after: described(created) },
  })
  return secret === undefined ? { client: created } : { client: created, secret }
}

function isPublicType(type: ClientType): boolean {
  return type === 'spa' || type === 'native'
}

/** With the default of everything that was left out. */
function newMetadata({
  type,
  ...given
}: Partial<z.output<typeof createClientSchema>> & {
  readonly type: ClientType
  readonly name: string
}): ClientMetadata {
  return {
    name: given.name,
    application_type: type === 'native' ? 'native' : 'web',
    token_endpoint_auth_method:
      given.token_endpoint_auth_method ?? (isPublicType(type) ? 'none' : 'client_secret_basic'),
    grant_types:
      given.grant_types ?? (type === 'machine' ? ['client_credentials'] : ['authorization_code', 'refresh_token']),
    redirect_uris: given.redirect_uris ?? [],
    post_logout_redirect_uris: given.post_logout_redirect_uris ?? [],
    backchannel_logout_uri: given.backchannel_logout_uri ?? null,
    jwks: given.jwks ?? null,
    jwks_uri: given.jwks_uri ?? null,
    client_uri: given.client_uri ?? null,
    logo_uri: given.logo_uri ?? null,
    policy_uri: given.policy_uri ?? null,
    tos_uri: given.tos_uri ?? null,
    first_party: given.first_party ?? false,
    require_pkce: given.require_pkce ?? true,
    require_pushed_authorization_requests: given.require_pushed_authorization_requests ?? false,
    dpop_bound_access_tokens: given.dpop_bound_access_tokens ?? false,
    default_resource: given.default_resource ?? null,
  }
}

/** Whether a client is exactly what `createClient` would make of this: nothing was changed, added or taken away. */
export function isAsCreated(client: Client, input: z.input<typeof createClientSchema>): boolean {
  const parsed = parseInput(createClientSchema, input)
  const asked = new Set(parsed.permissions.map(keyOf))
  return (
    client.status === 'active' &&
    client.plan === null &&
    isDeepStrictEqual(metadataOf(client), newMetadata(parsed)) &&
    client.permissions.length === asked.size &&
    client.permissions.every((permission) => asked.has(keyOf(permission)))
  )
}

const keyOf = ({ resource, permission }: Permission) => JSON.stringify([resource, permission])

/** What of the metadata a client of this type cannot have. */
function findMisfits(type: ClientType, client: Partial<ClientMetadata>): FieldError[] {
  const { token_endpoint_auth_method: method, grant_types: grants } = client
  const isPublic = isPublicType(type)
  const found: FieldError[] = []
  if (method !== undefined && (method === 'none') !== isPublic) {
    const message = isPublic
      ? `must be none: a ${type} client cannot keep a secret`
      : `must not be none for a ${type} client`
    found.push(wrong('token_endpoint_auth_method', 'conflict', message))
  }
  if (type === 'machine' && grants?.includes('authorization_code') === true) {
    const message = 'must not include authorization_code: nobody signs in to a machine client'
    found.push(wrong('grant_types', 'conflict', message))
  }
  return found
}

/** What `createClient` would say of a body that its schema refuses, in the members that this lets pass. */
export async function findWrongInNew(db: Db, body: Readonly<Record<string, unknown>>): Promise<FieldError[]> {
  const given = fittingMembers(createClientSchema, body)
  const elsewhere = await findUnknownIn(db, given.default_resource, body)
  if (given.type === undefined) return elsewhere
  const client: Partial<ClientMetadata> = newMetadata({ ...given, type: given.type, name: given.name ?? '' })
  // No default stands for what was refused.
  for (const name of Object.keys(metadata)) if (!(name in given)) delete client[name as keyof typeof metadata]
  if (!('token_endpoint_auth_method' in given)) delete client.token_endpoint_auth_method
  return [...findMisfits(given.type, client), ...findInconsistencies(client), ...elsewhere]
}

/** The same of what `changeClient` would say; nothing of a client that there is not. */
export async function findWrongInChange(
  db: Db,
  id: string,
  body: Readonly<Record<string, unknown>>,
): Promise<FieldError[]> {
  const client = await findClient(db, id)
  if (client === undefined) return []
  const { permissions: _permissions, is_active: _isActive, ...given } = fittingMembers(clientDocumentSchema, body)
  const { application_type, token_endpoint_auth_method } = client
  const metadata = { application_type, token_endpoint_auth_method, ...given }
  return [...findInconsistencies(metadata), ...(await findUnknownIn(db, given.default_resource, body))]
}

async function findUnknownIn(
  db: Db,
  defaultResource: string | null | undefined,
  body: Readonly<Record<string, unknown>>,
): Promise<FieldError[]> {
  return [
    ...(await findUnknownResource(db, defaultResource ?? null)),
    ...(await findUnknownPermissions(db, fittingPermissions(body['permissions']))),
  ]
}

/**
 * Changes what is given and leaves the rest; the whole is judged anew. Nothing happens to one that is so already.
 * @throws Problem when there is no such client, when the metadata would not be consistent, and AUTHORIZATION_ERROR beyond
 *   the actor's own rights
 */
export async function updateClient(trx: Trx, actor: Actor, input: z.input<typeof updateClientSchema>): Promise<Client> {
  const { id, ...given } = parseInput(updateClientSchema, input)
  const before = await lockClient(trx, id)
  const changes = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined))
  const after: ClientMetadata = { ...metadataOf(before), ...changes }
  const changed = (Object.keys(changes) as (keyof ClientMetadata)[]).filter(
    (name) => !isDeepStrictEqual(before[name], after[name]),
  )
  if (changed.length === 0) return before
  await requireMayChangeClient(trx, actor, id)
  refuseInconsistent([...findInconsistencies(after), ...(await findUnknownResource(trx, after.default_resource))])
  const isOpenedAnew =
    !before.first_party || credentialFields.some((name) => !isDeepStrictEqual(before[name], after[name]))
  if (after.first_party && isOpenedAnew) await requireRightsOverEverybody(trx, actor)
  await trx
    .updateTable('clients')
    .set((eb) => ({ ...columns(after), row_version: eb('row_version', '+', 1), updated_at: sql<Date>`now()` }))
    .where('id', '=', id)
    .execute()
  const narrowed = before.grant_types.some((grant) => !after.grant_types.includes(grant))
  const bound = after.dpop_bound_access_tokens && !before.dpop_bound_access_tokens
  if (narrowed || bound) await endClientTokens(trx, actor, { id, reason: 'client narrowed' })
  else if (losesKey(before, after)) await endClientTokens(trx, actor, { id, reason: 'client key replaced' })
  await writeAudit(trx, actor, {
    action: 'client.updated',
    target: { type: 'client', id },
    details: {
      before: Object.fromEntries(changed.map((name) => [name, before[name]])),
      after: Object.fromEntries(changed.map((name) => [name, after[name]])),
    },
  })
  return getClient(trx, id)
}

/**
 * Replaces all that the client may ask for. Losing something ends its access tokens, and people are asked again should
 * it come back. Nothing happens when it is all that it may ask for already.
 * @throws Problem when there is no such client or permission, and AUTHORIZATION_ERROR beyond the actor's own rights
 */
export async function setClientPermissions(
  trx: Trx,
  actor: Actor,
  input: { id: string; permissions: Permission[] },
): Promise<Client> {
  const { id, permissions: asked } = parseInput(z.strictObject({ id: clientId, permissions }), input)
  const before = await lockClient(trx, id)
  const [had, kept] = [new Set(before.permissions.map(keyOf)), new Set(asked.map(keyOf))]
  const gained = asked.filter((permission) => !had.has(keyOf(permission)))
  const removed = before.permissions.filter((permission) => !kept.has(keyOf(permission)))
  if (gained.length === 0 && removed.length === 0) return before
  await requireMayChangeClient(trx, actor, id)
  await requirePermissions(trx, asked)
  await requireOwnRights(trx, actor, gained)
  if (before.first_party && gained.length > 0) await requireRightsOverEverybody(trx, actor)
  for (const { resource, permission } of removed) {
    await trx
      .deleteFrom('client_permissions')
      .where('client_id', '=', id)
      .where('resource', '=', resource)
      .where('permission', '=', permission)
      .execute()
  }
  const reason = 'client permissions removed'
  const removedOf = Map.groupBy(removed, ({ resource }) => resource)
  for (const [resource, list] of removedOf) {
    const scopes = list.map(({ permission }) => permission)
    await forgetConsents(trx, actor, { clientId: id, resource, scopes, reason })
  }
  await insertPermissions(trx, id, asked)
  if (removed.length > 0) await endClientTokens(trx, actor, { id, reason })
  for (const [resource, list] of removedOf) {
    await forgetScopes(trx, { clientId: id, resource, scopes: list.map(({ permission }) => permission) })
  }
  await touchClient(trx, id)
  const after = await getClient(trx, id)
  await writeAudit(trx, actor, {
    action: 'client.permissions-set',
    target: { type: 'client', id },
    details: { before: { permissions: before.permissions }, after: { permissions: after.permissions } },
  })
  return after
}

/** All of a client that can be written as a whole: what PUT replaces and PATCH patches. */
export const clientDocumentSchema = z.strictObject({
  name: metadata.name,
  grant_types: metadata.grant_types,
  redirect_uris: uris.default([]),
  post_logout_redirect_uris: uris.default([]),
  backchannel_logout_uri: metadata.backchannel_logout_uri.default(null),
  jwks: metadata.jwks.default(null),
  jwks_uri: metadata.jwks_uri.default(null),
  client_uri: metadata.client_uri.default(null),
  logo_uri: metadata.logo_uri.default(null),
  policy_uri: metadata.policy_uri.default(null),
  tos_uri: metadata.tos_uri.default(null),
  first_party: metadata.first_party.default(false),
  require_pkce: metadata.require_pkce.default(true),
  require_pushed_authorization_requests: metadata.require_pushed_authorization_requests.default(false),
  dpop_bound_access_tokens: metadata.dpop_bound_access_tokens.default(false),
  default_resource: metadata.default_resource.default(null),
  /** left out: as they are */
  permissions: permissions.optional(),
  /** left out: as it is */
  is_active: z.boolean().optional(),
})
export type ClientDocument = z.output<typeof clientDocumentSchema>

/** That document as it is now. */
export function clientDocument(client: Client): ClientDocument {
  const document = {
    ...metadataOf(client),
    permissions: [...client.permissions],
    is_active: client.status === 'active',
  }
  return clientDocumentSchema.parse(
    Object.fromEntries(
      Object.keys(clientDocumentSchema.shape).map((name) => [name, document[name as keyof typeof document]]),
    ),
  )
}

/**
 * Writes what differs, each as the functions above and below do it.
 *
 * @param input.expectedVersions those that the caller has seen; undefined: any
 * @param input.to the document as it shall be, of what it is: called with the row locked
 * @param input.isReplacement the whole is written: one that is so already is no lost update (RFC 9110 §13.1.1)
 * @throws Problem as those do, PRECONDITION_FAILED, and AUTHORIZATION_ERROR beyond the actor's own rights
 */
export async function changeClient(
  trx: Trx,
  actor: Actor,
  input: {
    readonly id: string
    readonly expectedVersions?: readonly number[] | undefined
    readonly to: (before: ClientDocument) => ClientDocument
    readonly isReplacement?: boolean
  },
): Promise<Client> {
  const { id } = input
  const row = await lockClient(trx, id)
  const before = clientDocument(row)
  const {
    permissions: asked = before.permissions ?? [],
    is_active: isActive = before.is_active,
    ...rest
  } = input.to(before)
  const changed = (Object.keys(rest) as (keyof typeof rest)[]).filter(
    (name) => !isDeepStrictEqual(before[name], rest[name]),
  )
  const [had, has] = [new Set(before.permissions?.map(keyOf)), new Set(asked.map(keyOf))]
  const hasOthers = had.size !== has.size || [...has].some((permission) => !had.has(permission))
  const isSame = changed.length === 0 && !hasOthers && isActive === before.is_active
  if (isSame && input.isReplacement === true) return row
  requireVersion(input.expectedVersions, row.row_version)
  if (isSame) return row
  if (changed.length > 0 && hasOthers) {
    // Each of the two judges its own part, below; what is wrong with both is said at once.
    await requireMayChangeClient(trx, actor, id)
    const after = { ...metadataOf(row), ...rest }
    refuseInconsistent([
      ...findInconsistencies(after),
      ...(await findUnknownResource(trx, after.default_resource)),
      ...(await findUnknownPermissions(trx, asked)),
    ])
  }
  if (changed.length > 0) {
    await updateClient(trx, actor, { id, ...Object.fromEntries(changed.map((name) => [name, rest[name]])) })
  }
  if (hasOthers) await setClientPermissions(trx, actor, { id, permissions: asked })
  if (isActive !== before.is_active)
    await (isActive ? enableClient(trx, actor, { id }) : disableClient(trx, actor, { id }))
  return getClient(trx, id)
}

/**
 * The client is refused everywhere from now on: its families and codes are gone, its access tokens dead. Nothing of
 * that comes back when it is enabled again. Does nothing for one that is disabled already.
 * @throws Problem when there is no such client
 */
export async function disableClient(trx: Trx, actor: Actor, input: { id: string }): Promise<Client> {
  const { id } = parseInput(z.strictObject({ id: clientId }), input)
  const before = await lockClient(trx, id)
  if (before.status === 'disabled') return before
  await requireMayChangeClient(trx, actor, id)
  await trx.updateTable('clients').set({ status: 'disabled' }).where('id', '=', id).execute()
  await touchClient(trx, id)
  const { families } = await endEverything(trx, actor, { id, reason: 'client disabled' })
  await writeAudit(trx, actor, {
    action: 'client.disabled',
    target: { type: 'client', id },
    details: { before: { is_active: true }, after: { is_active: false }, families_ended: families },
  })
  return getClient(trx, id)
}

/** @throws Problem when there is no such client */
export async function enableClient(trx: Trx, actor: Actor, input: { id: string }): Promise<Client> {
  const { id } = parseInput(z.strictObject({ id: clientId }), input)
  const before = await lockClient(trx, id)
  if (before.status === 'active') return before
  await requireMayChangeClient(trx, actor, id)
  await trx.updateTable('clients').set({ status: 'active' }).where('id', '=', id).execute()
  await touchClient(trx, id)
  await writeAudit(trx, actor, {
    action: 'client.enabled',
    target: { type: 'client', id },
    details: { before: { is_active: false }, after: { is_active: true } },
  })
  return getClient(trx, id)
}

const revokeSchema = z.strictObject({ id: clientId, reason: z.string().min(1).max(200) })

/**
 * Ends everything that the client has been given, its own tokens and those that it holds for people, and everything it
 * has begun, without refusing it: it may ask again, and people sign in to it anew. Its secrets, its API keys and what
 * people agreed to stay.
 * @param input.reason for the audit record and the services, at most 200 characters
 * @returns how many families have ended
 * @throws Problem when there is no such client
 */
export async function revokeEverythingOfClient(
  trx: Trx,
  actor: Actor,
  input: z.input<typeof revokeSchema>,
): Promise<{ readonly client: Client; readonly families: number }> {
  const { id, reason } = parseInput(revokeSchema, input)
  await lockClient(trx, id)
  // Of the provider's own clients too: they stay as they are, and what was got by them may have been stolen.
  await requireRightsOverClient(trx, actor, id)
  const { families, tokenVersion } = await endEverything(trx, actor, { id, reason })
  await touchClient(trx, id)
  await writeAudit(trx, actor, {
    action: 'client.access-revoked',
    target: { type: 'client', id },
    details: {
      reason,
      before: { token_version: tokenVersion - 1 },
      after: { token_version: tokenVersion },
      families_ended: families,
    },
  })
  return { client: await getClient(trx, id), families }
}

/**
 * Removes a client with its secrets, its API keys and what people agreed to; everything it has been given ends. The
 * revocation outlives it, so that its tokens stay dead even if another is registered under its id.
 * @throws Problem when there is no such client
 */
export async function deleteClient(
  trx: Trx,
  actor: Actor,
  input: { id: string; expectedVersions?: readonly number[] | undefined },
): Promise<void> {
  const { id } = parseInput(z.object({ id: clientId }), input)
  const before = await lockClient(trx, id)
  await requireMayChangeClient(trx, actor, id)
  requireVersion(input.expectedVersions, before.row_version)
  const beneath = await findBeneath(trx, id)
  const { families } = await endEverything(trx, actor, { id, reason: 'client deleted' })
  await trx.deleteFrom('clients').where('id', '=', id).execute()
  await writeAudit(trx, actor, {
    action: 'client.deleted',
    target: { type: 'client', id },
    details: { before: { ...described(before), ...beneath }, families_ended: families },
  })
}

/**
 * Makes a second secret beside the first, for as long as the operator likes.
 * @throws Problem when two live already, or when the client does not use secrets
 */
export async function addClientSecret(trx: Trx, actor: Actor, input: { id: string }): Promise<ClientWithSecret> {
  const { id } = parseInput(z.strictObject({ id: clientId }), input)
  const before = await lockSecrets(trx, actor, id)
  if (before.secrets.length >= 2) {
    throw new Problem('CONFLICT', `Client ${id} has two secrets already: revoke one of them first, or rotate.`)
  }
  return finishSecretChange(trx, actor, before, 'client.secret-added')
}

/** How long a replaced secret is accepted unless said otherwise, in seconds. */
export const defaultSecretOverlapSeconds = 86_400

const rotateSchema = z.strictObject({
  id: clientId,
  overlap_seconds: z
    .int()
    .min(0)
    .max(30 * 86_400)
    .default(defaultSecretOverlapSeconds),
})

/**
 * Makes a new secret; the present one is accepted for `overlap_seconds` more (0 to 30 days; a day when left out), and
 * an older one than that ends at once. Access tokens live on, except that without an overlap the present one is revoked
 * as by `revokeClientSecret`.
 * @throws Problem when there is no such client, or when it does not use secrets
 */
export async function rotateClientSecret(
  trx: Trx,
  actor: Actor,
  input: z.input<typeof rotateSchema>,
): Promise<ClientWithSecret> {
  const { id, overlap_seconds } = parseInput(rotateSchema, input)
  const before = await lockSecrets(trx, actor, id)
  if (overlap_seconds === 0) await endClientTokens(trx, actor, { id, reason: 'client secret revoked' })
  const ended = overlap_seconds === 0 ? before.secrets : before.secrets.slice(0, -1)
  for (const secret of ended) await trx.deleteFrom('client_secrets').where('id', '=', secret.id).execute()
  await trx
    .updateTable('client_secrets')
    // `least` passes over nulls: a secret that had no end gets one.
    .set({ expires_at: sql<Date>`least(expires_at, now() + make_interval(secs => ${overlap_seconds}))` })
    .where('client_id', '=', id)
    .execute()
  return finishSecretChange(trx, actor, before, 'client.secret-rotated', { overlap_seconds })
}

/**
 * Ends one secret at once, since somebody else may have it, and with it the client's access tokens: which of them were
 * got with which secret is not known. Refresh tokens live on: whoever has another secret and these gets new ones.
 * @throws Problem when there is no such client or secret
 */
export async function revokeClientSecret(
  trx: Trx,
  actor: Actor,
  input: { id: string; secret_id: string },
): Promise<Client> {
  const schema = z.strictObject({ id: clientId, secret_id: z.string().min(1).max(128) })
  const { id, secret_id } = parseInput(schema, input)
  const before = await lockClient(trx, id)
  await requireMayChangeClient(trx, actor, id)
  const { numDeletedRows } = await trx
    .deleteFrom('client_secrets')
    .where('client_id', '=', id)
    .where('id', '=', secret_id)
    .executeTakeFirstOrThrow()
  if (numDeletedRows === 0n) throw notFound('secret', secret_id, `/v1/clients/${id}/secrets`)
  await endClientTokens(trx, actor, { id, reason: 'client secret revoked' })
  await touchClient(trx, id)
  const after = await getClient(trx, id)
  await writeAudit(trx, actor, {
    action: 'client.secret-revoked',
    target: { type: 'client', id },
    details: { secret_id, before: { secrets: secretsOf(before) }, after: { secrets: secretsOf(after) } },
  })
  return after
}

/**
 * Whether `candidate` is one of the secrets that live at `now`. Compares with all of them in constant time, so that the
 * time tells nothing about which, or how nearly.
 */
export function clientSecretMatches(
  secrets: readonly { readonly hash: Uint8Array; readonly expiresAt: Date | null }[],
  candidate: string,
  now: Date,
): boolean {
  const candidateHash = secretHash(candidate)
  let matches = false
  for (const secret of secrets) {
    const isLive = secret.expiresAt === null || secret.expiresAt > now
    if (secret.hash.length === candidateHash.length && timingSafeEqual(candidateHash, secret.hash) && isLive)
      matches = true
  }
  return matches
}

/**
 * Ends every access token that the client has, its own and those that it holds for people; refresh tokens live on.
 * For whatever narrows what the client may do.
 * @returns its token_version from now on
 */
export async function endClientTokens(
  trx: Trx,
  actor: Actor,
  { id, reason }: { readonly id: string; readonly reason: string },
): Promise<number> {
  await lockFamiliesOfClients(trx, [id])
  const { token_version: tokenVersion } = await trx
    .updateTable('clients')
    .set((eb) => ({ token_version: eb('token_version', '+', 1) }))
    .where('id', '=', id)
    .returning('token_version')
    .executeTakeFirstOrThrow()
  await revoke(trx, { kind: 'client', subject: id, tokenVersion, reason, by: actor })
  // Those of no resource are opaque: there is a row of each.
  await trx.deleteFrom('artifacts').where('kind', '=', 'AccessToken').where('client_id', '=', id).execute()
  return tokenVersion
}

/** Whether a key by which the client could authenticate is accepted no more, as far as can be known from here. */
function losesKey(before: ClientMetadata, after: ClientMetadata): boolean {
  if (before.token_endpoint_auth_method !== 'private_key_jwt') return false
  const kept = keysOf(after)
  return (
    before.jwks_uri !== after.jwks_uri || keysOf(before).some((key) => !kept.some((k) => isDeepStrictEqual(k, key)))
  )
}

function keysOf({ jwks }: ClientMetadata): readonly unknown[] {
  return jwks === null ? [] : jwks.keys
}

/** @returns how many families there were, and the token_version from now on */
async function endEverything(
  trx: Trx,
  actor: Actor,
  { id, reason }: { readonly id: string; readonly reason: string },
): Promise<{ readonly families: number; readonly tokenVersion: number }> {
  const tokenVersion = await endClientTokens(trx, actor, { id, reason })
  const { rows } = await sql<{ families: number }>`
    WITH ended AS (
      DELETE FROM artifacts WHERE client_id = ${id} RETURNING kind, id
    ), forgotten AS (
      DELETE FROM refresh_replies WHERE grant_id IN (SELECT id FROM ended WHERE kind = 'Grant')
    )
    SELECT count(*)::int AS families FROM ended WHERE kind = 'Grant'`.execute(trx)
  return { families: rows[0]?.families ?? 0, tokenVersion }
}

/** What goes with a client, by id: only an account of it is kept. */
async function findBeneath(trx: Trx, id: string) {
  const keys = await trx.selectFrom('api_keys').select('id').where('client_id', '=', id).orderBy('id').execute()
  const streams = await trx
    .selectFrom('signal_streams')
    .select('stream_id')
    .where('client_id', '=', id)
    .orderBy('stream_id')
    .execute()
  const { people } = await trx
    .selectFrom('consents')
    .select(({ fn }) => fn.count<number>('user_id').distinct().as('people'))
    .where('client_id', '=', id)
    .executeTakeFirstOrThrow()
  return {
    api_keys: keys.map((key) => key.id),
    signal_streams: streams.map((stream) => stream.stream_id),
    consenting_people: people,
  }
}

export async function listClients(db: Db): Promise<Client[]> {
  const rows = await db.selectFrom('clients').selectAll().orderBy('created_at').orderBy('id').execute()
  return withSecretsAndPermissions(db, rows)
}

export async function findClient(db: Db, id: string): Promise<Client | undefined> {
  const rows = await db.selectFrom('clients').selectAll().where('id', '=', id).execute()
  const [client] = await withSecretsAndPermissions(db, rows)
  return client
}

/** @throws Problem when there is no such client */
export async function getClient(db: Db, id: string): Promise<Client> {
  const client = await findClient(db, id)
  if (client === undefined) throw notFound('client', id, '/v1/clients')
  return client
}

/** The type that a client was registered as. */
export function clientTypeOf(
  client: Pick<Client, 'application_type' | 'token_endpoint_auth_method' | 'grant_types'>,
): ClientType {
  if (client.application_type === 'native') return 'native'
  if (client.token_endpoint_auth_method === 'none') return 'spa'
  return client.grant_types.includes('authorization_code') ? 'web' : 'machine'
}

/** Adds to rows of clients what stands in other tables. */
export async function withSecretsAndPermissions(db: Db, rows: readonly Selectable<ClientsTable>[]): Promise<Client[]> {
  if (rows.length === 0) return []
  const ids = rows.map(({ id }) => id)
  const secrets = await db
    .selectFrom('client_secrets')
    .select(['id', 'client_id', 'created_at', 'expires_at'])
    .where('client_id', 'in', ids)
    .where(sql<boolean>`(expires_at IS NULL OR expires_at > now())`)
    .orderBy('created_at')
    .orderBy('id')
    .execute()
  const granted = await db
    .selectFrom('client_permissions')
    .selectAll()
    .where('client_id', 'in', ids)
    .orderBy('resource')
    .orderBy('permission')
    .execute()
  return rows.map((row) => ({
    ...row,
    secrets: secrets
      .filter(({ client_id }) => client_id === row.id)
      .map(({ id, created_at, expires_at }) => ({ id, created_at, expires_at })),
    permissions: granted
      .filter(({ client_id }) => client_id === row.id)
      .map(({ resource, permission }) => ({ resource, permission })),
  }))
}

async function lockClient(trx: Trx, id: string): Promise<Client> {
  // Not FOR UPDATE: a token request that holds a family's lock must still be able to refer to the client's row.
  await trx.selectFrom('clients').select('id').where('id', '=', id).forNoKeyUpdate().execute()
  return getClient(trx, id)
}

/** For whoever makes a new one, and with it is the client. */
async function lockSecrets(trx: Trx, actor: Actor, id: string): Promise<Client> {
  const client = await lockClient(trx, id)
  await requireMayChangeClient(trx, actor, id)
  if (client.first_party) await requireRightsOverEverybody(trx, actor)
  if (client.token_endpoint_auth_method !== 'client_secret_basic') {
    throw new Problem(
      'CONFLICT',
      `Client ${id} has no secrets: its token_endpoint_auth_method is ${client.token_endpoint_auth_method}.`,
    )
  }
  return client
}

async function touchClient(trx: Trx, id: string): Promise<void> {
  await touchClients(trx, [id])
}

/** For what else is read of clients than stands in their rows: what they may ask for, and their secrets. */
export async function touchClients(trx: Trx, ids: readonly string[]): Promise<void> {
  await sql`
    UPDATE clients SET row_version = row_version + 1, updated_at = now()
    WHERE id IN (SELECT jsonb_array_elements_text(${JSON.stringify(ids)}::jsonb))`.execute(trx)
}

async function insertPermissions(trx: Trx, id: string, granted: readonly Permission[]): Promise<void> {
  if (granted.length === 0) return
  await trx
    .insertInto('client_permissions')
    .values(granted.map(({ resource, permission }) => ({ client_id: id, resource, permission })))
    .onConflict((conflict) => conflict.doNothing())
    .execute()
}

async function finishSecretChange(
  trx: Trx,
  actor: Actor,
  before: Client,
  action: string,
  details: Record<string, unknown> = {},
): Promise<ClientWithSecret> {
  const { id } = before
  const secret = await insertSecret(trx, id)
  await touchClient(trx, id)
  const client = await getClient(trx, id)
  await writeAudit(trx, actor, {
    action,
    target: { type: 'client', id },
    details: { ...details, before: { secrets: secretsOf(before) }, after: { secrets: secretsOf(client) } },
  })
  return { client, secret }
}

/** Those that live and until when, for the audit record: never their values. */
function secretsOf({ secrets }: Client) {
  return secrets.map(({ id, expires_at }) => ({ secret_id: id, expires_at }))
}

/** All of a client, for the audit record. */
function described(client: Client) {
  return {
    ...metadataOf(client),
    permissions: client.permissions,
    plan: client.plan,
    is_active: client.status === 'active',
    secrets: secretsOf(client),
  }
}

/** @returns the secret itself, which is in nobody's hands afterwards but the caller's */
async function insertSecret(trx: Trx, clientId: string): Promise<string> {
  // The prefix lets scanners find secrets that were committed by mistake.
  const secret = `lk_secret_${randomBytes(32).toString('base64url')}`
  await trx
    .insertInto('client_secrets')
    .values({
      id: `sec_${randomBytes(9).toString('base64url')}`,
      client_id: clientId,
      secret_hash: secretHash(secret),
      // Not the transaction's own time: of two made in one transaction the second is the younger.
      created_at: sql<Date>`clock_timestamp()`,
    })
    .execute()
  return secret
}

/** 256 random bits cannot be guessed, so that a slow hash would only slow down the token endpoint. */
function secretHash(secret: string): Buffer {
  return hash('sha256', secret, 'buffer')
}

/** What is wrong with a default resource that there is not; one that there is, a transaction holds from now on. */
async function findUnknownResource(db: Db, id: string | null): Promise<FieldError[]> {
  if (id === null) return []
  const found = await db.selectFrom('resources').select('id').where('id', '=', id).forKeyShare().executeTakeFirst()
  return found === undefined ? [wrong('default_resource', 'exists', `must exist: there is no resource ${id}`)] : []
}

function metadataOf(client: Client): ClientMetadata {
  const { id: _, status: _s, token_version: _t, row_version: _r, created_at: _c, updated_at: _u, ...rest } = client
  const { permissions: _p, secrets: _secrets, plan: _plan, ...row } = rest
  return row
}

/** Lists go to jsonb columns as text. */
function columns(client: ClientMetadata) {
  return {
    ...client,
    grant_types: JSON.stringify(client.grant_types),
    redirect_uris: JSON.stringify(client.redirect_uris),
    post_logout_redirect_uris: JSON.stringify(client.post_logout_redirect_uris),
    jwks: client.jwks === null ? null : JSON.stringify(client.jwks),
  }
}
