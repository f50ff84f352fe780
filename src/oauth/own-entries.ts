/**
 * What Latchkey registers for itself at every start: its management API as a resource like any other, the role that may
 * do everything there, and the client by which people sign in to their own pages here.
 */
import { sql } from 'kysely'
import { createRole, findRole, grantPermission } from '../access/roles.ts'
import { systemActor } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
import { createClient, findClient, updateClient } from './clients.ts'
import { createResource, findResource, updateResource } from './resources.ts'

/** The client of the account pages: first-party, public, and never given more than `openid`. */
export const accountClientId = 'latchkey-account'

/** May do everything at the management API. */
export const administratorRole = 'administrator'

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
] as const

const ownEntriesLock = 0x1a7c_0012

/** Registers what is missing and leaves the rest alone; any number of processes may do so at once. */
export async function ensureOwnEntries(db: Db, issuer: string): Promise<void> {
  await db.transaction().execute(async (trx) => {
    await sql`SELECT pg_advisory_xact_lock(${ownEntriesLock})`.execute(trx)
    await ensureManagementResource(trx, managementResourceId(issuer))
    await ensureAccountClient(trx, `${issuer}/account/callback`)
  })
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
}

async function ensureAccountClient(trx: Trx, redirectUri: string): Promise<void> {
  const client = await findClient(trx, accountClientId)
  if (client === undefined) {
    await createClient(trx, systemActor, {
      id: accountClientId,
      type: 'spa',
      name: 'Your account',
      first_party: true,
      grant_types: ['authorization_code'],
      redirect_uris: [redirectUri],
    })
  } else if (!client.redirect_uris.includes(redirectUri)) {
    await updateClient(trx, systemActor, { id: accountClientId, redirect_uris: [redirectUri] })
  }
}
