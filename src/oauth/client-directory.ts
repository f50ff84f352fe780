/**
 * Clients and resources as the protocol reads them, kept in memory: every token request needs one, and they change
 * rarely. A change in any process empties the copy within milliseconds; while news may be late, nothing is served from
 * it.
 */
import type { Selectable } from 'kysely'
import type { Changes } from '../database/changes.ts'
import { openCopy } from '../database/copy.ts'
import type { Db } from '../database/database.ts'
import type { ClientsTable, ResourcesTable } from '../database/tables.ts'

export interface ClientEntry {
  readonly row: Selectable<ClientsTable>
  /** SHA-256 of each secret, with the moment at which it ends */
  readonly secrets: readonly { readonly hash: Uint8Array; readonly expiresAt: Date | null }[]
  /** resource → what this client may ask of it */
  readonly permissions: ReadonlyMap<string, ReadonlySet<string>>
}

export interface ResourceEntry {
  readonly row: Selectable<ResourcesTable>
  /** permission → what it allows, in words */
  readonly permissions: ReadonlyMap<string, string>
}

export interface ClientDirectory {
  /** @returns undefined when there is no such client; a disabled one is returned */
  readonly findClient: (id: string) => Promise<ClientEntry | undefined>
  readonly findResource: (id: string) => Promise<ResourceEntry | undefined>
  close(): void
}

/**
 * @param db where to read: a function, since a token request must stay inside its own transaction
 */
export function openClientDirectory(db: () => Db, changes: Changes): ClientDirectory {
  const clients = openCopy(changes, (id: string) => readClient(db(), id))
  const resources = openCopy(changes, (id: string) => readResource(db(), id))
  const unsubscribe = changes.on('clients', () => {
    clients.forget()
    resources.forget()
  })
  return { findClient: (id) => clients.find(id), findResource: (id) => resources.find(id), close: unsubscribe }
}

async function readClient(db: Db, id: string): Promise<ClientEntry | undefined> {
  const row = await db.selectFrom('clients').selectAll().where('id', '=', id).executeTakeFirst()
  if (row === undefined) return undefined
  const secrets = await db
    .selectFrom('client_secrets')
    .select(['secret_hash as hash', 'expires_at as expiresAt'])
    .where('client_id', '=', id)
    .execute()
  const rows = await db
    .selectFrom('client_permissions')
    .select(['resource', 'permission'])
    .where('client_id', '=', id)
    .orderBy('permission')
    .execute()
  const permissions = new Map<string, Set<string>>()
  for (const { resource, permission } of rows) {
    permissions.set(resource, (permissions.get(resource) ?? new Set()).add(permission))
  }
  return { row, secrets, permissions }
}

async function readResource(db: Db, id: string): Promise<ResourceEntry | undefined> {
  const row = await db.selectFrom('resources').selectAll().where('id', '=', id).executeTakeFirst()
  if (row === undefined) return undefined
  const permissions = await db
    .selectFrom('permissions')
    .select(['permission', 'description'])
    .where('resource', '=', id)
    .orderBy('permission')
    .execute()
  return { row, permissions: new Map(permissions.map(({ permission, description }) => [permission, description])) }
}
