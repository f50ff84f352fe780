/**
 * Everything that ends something, pulled as it is in life: over HTTP where people and clients do it, else by the function
 * that the management API and the command line call. Their names are those of docs/revocation.md.
 */
import { decodeProtectedHeader } from 'jose'
import { pino } from 'pino'
import { deleteRole, excludeRole, revokePermission, unassignRole } from '../../../src/access/roles.ts'
import type { Actor } from '../../../src/audit/audit.ts'
import { isDatabaseUnavailable, type Trx } from '../../../src/database/database.ts'
import { revokeApiKey } from '../../../src/metering/api-keys.ts'
import {
  addClientSecret,
  deleteClient,
  disableClient,
  enableClient,
  revokeClientSecret,
  revokeEverythingOfClient,
  rotateClientSecret,
  setClientPermissions,
  updateClient,
} from '../../../src/oauth/clients.ts'
import { revokeFamily } from '../../../src/oauth/families.ts'
import { managementResourceId } from '../../../src/oauth/own-entries.ts'
import { deleteResource, updateResource } from '../../../src/oauth/resources.ts'
import { endSession } from '../../../src/oauth/sessions.ts'
import { openKeyEncryption } from '../../../src/signing/key-encryption.ts'
import { revokeKey, rotateKeys } from '../../../src/signing/rotation.ts'
import { prepareSigningKey, type PreparedKey } from '../../../src/signing/signing-key.ts'
import { openAttributes } from '../../../src/users/attributes.ts'
import {
  deleteUser,
  disableUser,
  enableUser,
  revokeEverythingOfUser,
  setPassword,
  updateUser,
} from '../../../src/users/users.ts'
import type { PasswordHash } from '../../../src/users/password.ts'
import type { TestProvider } from '../../support/provider.ts'
import { exchange, refresh, registerClient } from '../../support/relying-party.ts'
import { findForms, postForm, type Page, type TokenAnswer, type UserAgent } from '../../support/user-agent.ts'
import { grantTypes, includedIn, kept, lost, managementPermission, type World } from './world.ts'

/** Makes ready, and returns what does it: true when it was done, false when the database was not able to. */
export type Trigger = (provider: TestProvider, world: World) => Promise<() => Promise<boolean>>

const actor: Actor = { type: 'operator', id: 'olga' }
const reason = 'as a test'
const anyHash =
  '$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' as PasswordHash

export const triggers: ReadonlyMap<string, Trigger> = new Map<string, Trigger>([
  [
    'signed out at `/logout`',
    async ({ issuer }, { agent }) => byForm(agent, await agent.open(`${issuer}/logout`), '/logout', { logout: 'yes' }),
  ],
  [
    'signed out on the account page',
    async ({ issuer }, { agent }) =>
      byForm(agent, await agent.open(`${issuer}/account/applications`), '/account/sign-out', {}),
  ],
  [
    'session ended by an administrator',
    change((trx, { sessionUid }) => endSession(trx, actor, { sessionUid, reason })),
  ],
  [
    'signed out of the application alone, at `/logout`',
    async ({ issuer }, { agent, client }) =>
      byForm(agent, await agent.open(`${issuer}/logout?client_id=${client.client_id}`), '/logout', {}),
  ],
  ['access token revoked by its client', revokeToken(({ accessToken }) => accessToken)],
  ['opaque token revoked by its client', revokeToken(({ opaqueToken }) => opaqueToken)],
  ['refresh token revoked by its client', revokeToken(({ refreshToken }) => refreshToken)],
  [
    'refresh token used again, later than a reply is replayed',
    async (provider, { client, oldRefreshToken }) =>
      () =>
        isRefused(refresh(provider, client, oldRefreshToken)),
  ],
  [
    'code used twice',
    async (provider, { client, usedCode }) =>
      () =>
        isRefused(exchange(provider, client, usedCode)),
  ],
  ['grant revoked by an administrator', change((trx, { grantId }) => revokeFamily(trx, actor, { grantId, reason }))],
  [
    'consent withdrawn',
    async ({ issuer }, { agent, client }) => {
      const page = await agent.open(`${issuer}/account/applications`)
      return byForm(agent, page, '/account/applications', { client_id: client.client_id })
    },
  ],
  [
    'password changed',
    change((trx, { person }) => setPassword(trx, actor, { userId: person.id, passwordHash: anyHash })),
  ],
  [
    'signed out everywhere',
    change((trx, { person }) => revokeEverythingOfUser(trx, actor, { userId: person.id, reason })),
  ],
  [
    'signed out everywhere, consents forgotten',
    change((trx, { person }) => revokeEverythingOfUser(trx, actor, { userId: person.id, reason, consents: true })),
  ],
  ['person disabled', change((trx, { person }) => disableUser(trx, actor, { userId: person.id }))],
  ['person disabled, then enabled', change((trx, { person }) => disableUser(trx, actor, { userId: person.id }))],
  ['person deleted', change((trx, { person }) => deleteUser(trx, actor, { userId: person.id }))],
  [
    'attributes changed',
    change((trx, { person }) =>
      updateUser(trx, actor, {
        userId: person.id,
        to: (before) => ({ ...before, attributes: { department: 'physics' } }),
        parseAttributes: (attributes) => openAttributes().parse(attributes),
      }),
    ),
  ],
  [
    'role taken from the person',
    change((trx, { person, role }) => unassignRole(trx, actor, { user_id: person.id, role })),
  ],
  ['role deleted', change((trx, { role }) => deleteRole(trx, actor, { name: role }))],
  [
    'permission taken from the role',
    change((trx, { role, resource }) => revokePermission(trx, actor, { role, resource, permission: lost })),
  ],
  [
    'permission taken from a role that the role includes',
    change((trx, { role, resource }) =>
      revokePermission(trx, actor, { role: includedIn(role), resource, permission: lost }),
    ),
  ],
  [
    'included role taken out of the role',
    change((trx, { role }) => excludeRole(trx, actor, { role, included: includedIn(role) })),
  ],
  ['included role deleted', change((trx, { role }) => deleteRole(trx, actor, { name: includedIn(role) }))],
  [
    'permission taken from the client',
    change((trx, { client, resource }, { issuer }) =>
      setClientPermissions(trx, actor, {
        id: client.client_id,
        permissions: [
          { resource, permission: kept },
          { resource: managementResourceId(issuer), permission: managementPermission },
        ],
      }),
    ),
  ],
  [
    'permission removed from the API',
    change((trx, { resource }) => updateResource(trx, actor, { id: resource, permissions: [{ permission: kept }] })),
  ],
  ['API deleted', change((trx, { resource }) => deleteResource(trx, actor, { id: resource }))],
  [
    'grant type taken from the client',
    change((trx, { client }) =>
      updateClient(trx, actor, {
        id: client.client_id,
        grant_types: grantTypes.filter((name) => name !== 'client_credentials'),
      }),
    ),
  ],
  [
    'client secret revoked',
    change((trx, { client, olderSecretId }) =>
      revokeClientSecret(trx, actor, { id: client.client_id, secret_id: olderSecretId }),
    ),
  ],
  [
    'client secret replaced, without an overlap',
    change((trx, { client }) => rotateClientSecret(trx, actor, { id: client.client_id, overlap_seconds: 0 })),
  ],
  [
    'client secret replaced, with an overlap',
    change((trx, { client }) => rotateClientSecret(trx, actor, { id: client.client_id, overlap_seconds: 600 })),
  ],
  ['API key revoked', change((trx, { apiKeyId }) => revokeApiKey(trx, actor, { api_key_id: apiKeyId }))],
  [
    'client’s access revoked',
    change((trx, { client }) => revokeEverythingOfClient(trx, actor, { id: client.client_id, reason })),
  ],
  ['client disabled', change((trx, { client }) => disableClient(trx, actor, { id: client.client_id }))],
  ['client disabled, then enabled', change((trx, { client }) => disableClient(trx, actor, { id: client.client_id }))],
  ['client deleted', change((trx, { client }) => deleteClient(trx, actor, { id: client.client_id }))],
  [
    'client deleted, and another registered under its id',
    change((trx, { client }) => deleteClient(trx, actor, { id: client.client_id })),
  ],
  [
    'signing key revoked',
    async (provider, world) => {
      const { kid = '' } = decodeProtectedHeader(world.accessToken)
      const fresh = await freshKey(provider)
      return change((trx) => revokeKey(trx, actor, { kid, reason, fresh }))(provider, world)
    },
  ],
  [
    'signing keys rotated',
    async (provider, world) => {
      const fresh = await freshKey(provider)
      return change((trx) => rotateKeys(trx, actor, { fresh, publishAheadSeconds: 0, now: true }))(provider, world)
    },
  ],
])

/**
 * What follows before the artefacts are tried: a change is undone, and nothing comes back by it; or a secret takes the
 * place of one that ended. Returns the world as it is then.
 */
export const sequels: ReadonlyMap<string, (provider: TestProvider, world: World) => Promise<World>> = new Map([
  [
    'person disabled, then enabled',
    async ({ database }, world) => {
      await database.db.transaction().execute((trx) => enableUser(trx, actor, { userId: world.person.id }))
      return world
    },
  ],
  [
    'client disabled, then enabled',
    async ({ database }, world) => {
      await database.db.transaction().execute((trx) => enableClient(trx, actor, { id: world.client.client_id }))
      return world
    },
  ],
  [
    'client deleted, and another registered under its id',
    async (provider, world) => {
      const { client_id: id } = world.client
      const client = await registerClient(provider, { id, first_party: false, grant_types: [...grantTypes] })
      return { ...world, client }
    },
  ],
  [
    'client secret replaced, without an overlap',
    async ({ database }, world) => {
      const { client_id: id } = world.client
      const { secret } = await database.db.transaction().execute((trx) => addClientSecret(trx, actor, { id }))
      return { ...world, client: { ...world.client, client_secret: secret } }
    },
  ],
])

/** By the function that the management API and the command line call. */
function change(work: (trx: Trx, world: World, provider: TestProvider) => Promise<unknown>): Trigger {
  return async (provider, world) => async () => {
    try {
      await provider.database.db.transaction().execute((trx) => work(trx, world, provider))
      return true
    } catch (error) {
      if (!isDatabaseUnavailable(error)) throw error
      return false
    }
  }
}

/** Posts the page's form for this address, and follows nothing. */
function byForm(
  agent: UserAgent,
  page: Page,
  address: string,
  values: Readonly<Record<string, string>>,
): () => Promise<boolean> {
  const form = findForms(page).find(({ action }) => new URL(action, page.url).pathname.startsWith(address))
  if (form === undefined) throw new Error(`no form for ${address}: ${page.status} ${page.html.slice(0, 2_000)}`)
  const body = new URLSearchParams({ ...form.fields, ...values })
  return async () => {
    const { status } = await agent.fetch(new URL(form.action, page.url), { method: 'POST', body })
    return isDone(status, 303)
  }
}

function revokeToken(find: (world: World) => string): Trigger {
  return async ({ issuer }, world) =>
    async () => {
      const { status } = await postForm(`${issuer}/revoke`, world.client, { token: find(world) })
      return isDone(status, 200)
    }
}

async function isRefused(answer: Promise<TokenAnswer>): Promise<boolean> {
  const { status } = await answer
  return isDone(status, 400)
}

function isDone(status: number, expected: number): boolean {
  if (status !== expected && status !== 503) throw new Error(`answered ${status}`)
  return status === expected
}

async function freshKey({ config }: TestProvider): Promise<PreparedKey> {
  const encryption = openKeyEncryption({ config, log: pino({ level: 'silent' }) })
  return prepareSigningKey({ encryption, rsaBits: config.rsaBits })
}
