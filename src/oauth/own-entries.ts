/**
 * What Latchkey registers for itself at every start: its management API as a resource like any other, the roles that
 * go with it, and the clients by which people sign in to their own pages here and to the page that documents the API.
 */
import { sql } from 'kysely'
import { accountClientId, administratorRole, docsClientId, everyoneRole } from '../access/rights.ts'
import { createRole, findRole, grantPermission } from '../access/roles.ts'
import { systemActor } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
import { createClient, deleteClient, findClient, isAsCreated } from './clients.ts'
import { createResource, findResource, updateResource } from './resources.ts'

/** Where the page that documents the API is sent back to. */
export const docsCallbackPath = '/docs/oauth2-redirect.html'

/** The management API's audience: a resource of the issuer's own. */
export function managementResourceId(issuer: string): string {
  return `${issuer}/v1`
}

export const managementPermissions = [
  ['users:read', 'see people and their roles'],
  ['users:write', 'create, change and delete people'],
  ['clients:read', 'see registered applications'],
  ['clients:write', 'register, change and delete applications'],
  ['resources:read', 'see resources and their permissions'],
  ['resources:write', 'create, change and delete resources'],
  ['roles:read', 'see roles'],
  ['roles:write', 'change roles and who has them'],
  ['sessions:read', 'see who is signed in'],
  ['sessions:write', 'end sessions'],
  ['grants:read', 'see what applications may do for people'],
  ['grants:write', 'withdraw what applications may do for people'],
  ['keys:read', 'see signing keys'],
  ['keys:write', 'rotate and revoke signing keys'],
  ['audit:read', 'read the audit record'],
  ['plans:read', 'see usage plans'],
  ['plans:write', 'change usage plans'],
  ['usage:read', 'see who calls which version of the management API'],
  ['self:read', 'see your own account, sessions and applications'],
  ['self:write', 'change your own account, end your sessions, withdraw what applications may do'],
] as const

/** What everybody may do about what is their own. */
const everyonesPermissions = ['self:read', 'self:write'] as const

/** May help people, and no more: see who they are, what they are signed in to, and end that. */
export const supportRole = 'support'
const supportPermissions = [
  'users:read',
  'roles:read',
  'clients:read',
  'sessions:read',
  'sessions:write',
  'grants:read',
  'grants:write',
] as const

/** The feed of security events, as the resource that machine clients ask for a token to. */
export function signalsResourceId(issuer: string): string {
  return `${issuer}/ssf`
}

/** What a client needs to receive it. */
export const signalsPermission = 'signals:receive'

const ownEntriesLock = 0x1a7c_0012

/** Registers what is missing and mends our clients; any number of processes may do so at once. */
export async function ensureOwnEntries(db: Db, issuer: string): Promise<void> {
  await db.transaction().execute(async (trx) => {
    await sql`SELECT pg_advisory_xact_lock(${ownEntriesLock})`.execute(trx)
    await ensureManagementResource(trx, managementResourceId(issuer))
    await ensureSignalsResource(trx, signalsResourceId(issuer))
    await ensureAccountClient(trx, `${issuer}/account/callback`)
    await ensureDocsClient(trx, issuer)
  })
}

async function ensureSignalsResource(trx: Trx, id: string): Promise<void> {
  const permissions = [{ permission: signalsPermission, description: 'be told what has been revoked' }]
  const resource = await findResource(trx, id)
  if (resource === undefined) {
    await createResource(trx, systemActor, { id, name: 'Latchkey security events', permissions })
  } else if (!resource.permissions.some(({ permission }) => permission === signalsPermission)) {
    await updateResource(trx, systemActor, { id, permissions: [...resource.permissions, ...permissions] })
  }
}

async function ensureManagementResource(trx: Trx, id: string): Promise<void> {
  const permissions = managementPermissions.map(([permission, description]) => ({ permission, description }))
  const resource = await findResource(trx, id)
  if (resource === undefined) {
    await createResource(trx, systemActor, { id, name: 'Latchkey management', permissions })
  } else if (permissions.some(({ permission }) => !resource.permissions.some((p) => p.permission === permission))) {
    await updateResource(trx, systemActor, { id, permissions })
  }
  if ((await findRole(trx, administratorRole)) === undefined) {
    await createRole(trx, systemActor, {
      name: administratorRole,
      description: 'May do everything at the management API',
    })
  }
  for (const { permission } of permissions) {
    await grantPermission(trx, systemActor, { role: administratorRole, resource: id, permission })
  }
  // These two are the operator's to change, so they are made once and then left alone.
  for (const [name, description, allowed] of [
    [everyoneRole, 'Everybody has it, without its being assigned', everyonesPermissions],
    [supportRole, 'May help people at the management API', supportPermissions],
  ] as const) {
    const wasMade = resource?.permissions.some(({ permission }) => permission === 'self:read') === true
    if (wasMade || (await findRole(trx, name)) !== undefined) continue
    const granted = allowed.map((permission) => ({ resource: id, permission }))
    await createRole(trx, systemActor, { name, description, permissions: granted })
  }
}

async function ensureAccountClient(trx: Trx, redirectUri: string): Promise<void> {
  await ensureOwnClient(trx, {
    id: accountClientId,
    type: 'spa',
    name: 'Your account',
    first_party: true,
    grant_types: ['authorization_code'],
    redirect_uris: [redirectUri],
  })
}

/**
 * The page that documents the API signs people in to try it. Not first-party: people are asked, and see what the page may
 * do for them; their roles bound it.
 */
async function ensureDocsClient(trx: Trx, issuer: string): Promise<void> {
  await ensureOwnClient(trx, {
    id: docsClientId,
    type: 'spa',
    name: 'API documentation',
    grant_types: ['authorization_code'],
    redirect_uris: [`${issuer}${docsCallbackPath}`],
    permissions: managementPermissions.map(([permission]) => ({ resource: managementResourceId(issuer), permission })),
  })
}

/**
 * One that differs in anything is made anew. No function of ours changes it, so it was an older version, or somebody at the
 * database; whatever came of that goes with it: tokens, what people agreed to, API keys.
 */
async function ensureOwnClient(
  trx: Trx,
  client: Parameters<typeof createClient>[2] & { readonly id: string },
): Promise<void> {
  const found = await findClient(trx, client.id)
  if (found !== undefined && isAsCreated(found, client)) return
  if (found !== undefined) await deleteClient(trx, systemActor, { id: client.id })
  await createClient(trx, systemActor, client)
}
