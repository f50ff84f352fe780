/**
 * One person, one application and everything that they can hold, all of it alive: what a trigger is pulled on. Each
 * trigger gets a world of its own, on a provider that all of them share.
 */
import { decodeJwt } from 'jose'
import { sql } from 'kysely'
import { pino } from 'pino'
import { assignRole, createRole } from '../../../src/access/roles.ts'
import { systemActor } from '../../../src/audit/audit.ts'
import { createApiKey } from '../../../src/metering/api-keys.ts'
import { deviceGrant } from '../../../src/oauth/client-rules.ts'
import { addClientSecret } from '../../../src/oauth/clients.ts'
import { managementResourceId } from '../../../src/oauth/own-entries.ts'
import { createResource } from '../../../src/oauth/resources.ts'
import { openPasswords } from '../../../src/users/password.ts'
import { createUser } from '../../../src/users/users.ts'
import { readWorkFactor } from '../../../src/users/work-factor.ts'
import type { TestProvider } from '../../support/provider.ts'
import {
  ask,
  authorize,
  exchange,
  refresh,
  registerClient,
  type Answered,
  type RegisteredClient,
} from '../../support/relying-party.ts'
import { findForms, postForm, UserAgent, type TokenAnswer } from '../../support/user-agent.ts'

/** The role that the role of this name includes. */
export const includedIn = (role: string) => `included-in-${role}`

export interface World {
  readonly person: { readonly id: string; readonly email: string; readonly password: string }
  readonly role: string
  readonly resource: string
  /** a third-party web client, with the younger of its two secrets; it may also see clients at the management API */
  readonly client: RegisteredClient
  readonly olderSecretId: string
  /** signed in */
  readonly agent: UserAgent
  readonly sessionUid: string
  readonly grantId: string
  /** not exchanged */
  readonly code: Answered
  readonly usedCode: Answered
  readonly accessToken: string
  readonly opaqueToken: string
  readonly refreshToken: string
  /** whose answer, with `refreshToken` in it, is still given again */
  readonly spentRefreshToken: string
  /** spent so long ago that using it is reuse */
  readonly oldRefreshToken: string
  readonly requestUri: string
  /** approved by the person, not asked for */
  readonly deviceCode: string
  /** for the management API */
  readonly machineToken: string
  readonly apiKeyId: string
  readonly apiKey: string
}

export const kept = 'things:read'
export const lost = 'things:write'
export const managementPermission = 'clients:read'
export const grantTypes = ['authorization_code', 'refresh_token', 'client_credentials', deviceGrant] as const

/** What the tokens of a world are for, besides the management API. */
export function resourceOf(name: string): string {
  return `https://${name}.example.test`
}

/** Makes worlds in which everything was issued by `provider`. */
export async function openWorlds(provider: TestProvider): Promise<(name: string) => Promise<World>> {
  const { db } = provider.database
  const password = 'seven purple otters'
  const passwords = openPasswords({
    config: provider.config,
    workFactor: await readWorkFactor(db, provider.config),
    log: pino({ level: 'silent' }),
  })
  const passwordHash = await passwords.hash(password)
  const management = managementResourceId(provider.issuer)

  return async (name) => {
    const resource = resourceOf(name)
    const client = await registerClient(provider, {
      first_party: false,
      grant_types: [...grantTypes],
      permissions: [],
    })
    const made = await db.transaction().execute(async (trx) => {
      await createResource(trx, systemActor, {
        id: resource,
        permissions: [kept, lost].map((p) => ({ permission: p })),
      })
      const permissions = [kept, lost].map((permission) => ({ resource, permission }))
      const included = includedIn(name)
      await createRole(trx, systemActor, { name: included, permissions: [{ resource, permission: lost }] })
      await createRole(trx, systemActor, { name, permissions, includes: [included] })
      const { id } = await createUser(trx, systemActor, { email: `${name}@example.test`, passwordHash })
      await assignRole(trx, systemActor, { user_id: id, role: name })
      const asked = [...permissions, { resource: management, permission: managementPermission }]
      await trx
        .insertInto('client_permissions')
        .values(asked.map((one) => ({ client_id: client.client_id, ...one })))
        .execute()
      const { client: registered, secret } = await addClientSecret(trx, systemActor, { id: client.client_id })
      const { api_key, key } = await createApiKey(trx, systemActor, { client_id: client.client_id, name })
      return { id, secret, olderSecretId: registered.secrets[0]?.id ?? '', apiKeyId: api_key.api_key_id, apiKey: key }
    })
    const rp: RegisteredClient = { ...client, client_secret: made.secret }
    const person = { id: made.id, email: `${name}@example.test`, password }
    const agent = new UserAgent()
    const ofResource = { scope: `openid ${kept} ${lost}`, resource }
    const signIn = (parameters: Record<string, string>) => authorize(provider, rp, { agent, person, parameters })

    const usedCode = await signIn(ofResource)
    const first = successOf(await exchange(provider, rp, usedCode))
    const second = successOf(await refresh(provider, rp, first.refresh_token))
    const third = successOf(await refresh(provider, rp, second.refresh_token))
    const opaque = successOf(await exchange(provider, rp, await signIn({ scope: 'openid' })))
    const machine = successOf(
      await postForm(`${provider.issuer}/token`, rp, { grant_type: 'client_credentials', resource: management }),
    )
    const claims = decodeJwt<{ sid?: string; grant_id?: string }>(third.access_token ?? '')
    const world: World = {
      person,
      role: name,
      resource,
      client: rp,
      olderSecretId: made.olderSecretId,
      agent,
      sessionUid: claims.sid ?? '',
      grantId: claims.grant_id ?? '',
      code: await signIn(ofResource),
      usedCode,
      accessToken: third.access_token ?? '',
      opaqueToken: opaque.access_token ?? '',
      refreshToken: third.refresh_token ?? '',
      spentRefreshToken: second.refresh_token ?? '',
      oldRefreshToken: first.refresh_token ?? '',
      requestUri: await pushRequest(provider, rp),
      deviceCode: await approveDevice(provider, rp, agent, ofResource),
      machineToken: machine.access_token ?? '',
      apiKeyId: made.apiKeyId,
      apiKey: made.apiKey,
    }
    await age(provider, world)
    return world
  }
}

async function pushRequest(provider: TestProvider, client: RegisteredClient): Promise<string> {
  const { status, body } = await postForm(`${provider.issuer}/par`, client, ask(provider, client).parameters)
  if (status !== 201) throw new Error(`no request_uri: ${JSON.stringify(body)}`)
  return String(body['request_uri'])
}

async function approveDevice(
  provider: TestProvider,
  client: RegisteredClient,
  agent: UserAgent,
  parameters: Record<string, string>,
): Promise<string> {
  const { body } = await postForm(`${provider.issuer}/device/authorization`, client, parameters)
  const input = await agent.open(`${provider.issuer}/device`)
  const confirm = await agent.submit(input, { user_code: String(body['user_code']) })
  const approved = await agent.submit(confirm, { confirm: 'yes' })
  if (findForms(approved).length > 0) throw new Error(`the device was not approved: ${approved.html.slice(0, 2_000)}`)
  return String(body['device_code'])
}

/** The oldest refresh token was spent long ago; what lives for a minute only has time enough for all faults. */
async function age(provider: TestProvider, { client: { client_id: id }, grantId }: World): Promise<void> {
  const { db } = provider.database
  await sql`
    UPDATE artifacts SET consumed_at = now() - interval '1 hour'
    WHERE kind = 'RefreshToken' AND grant_id = ${grantId} AND consumed_at = (
      SELECT min(consumed_at) FROM artifacts WHERE kind = 'RefreshToken' AND grant_id = ${grantId}
    )`.execute(db)
  await sql`
    UPDATE artifacts SET expires_at = now() + interval '1 hour', payload = jsonb_set(payload, '{exp}', to_jsonb(
      extract(epoch FROM now() + interval '1 hour')::bigint
    ))
    WHERE client_id = ${id} AND kind IN ('AuthorizationCode', 'PushedAuthorizationRequest')`.execute(db)
}

function successOf({ status, body }: TokenAnswer): TokenAnswer['body'] {
  if (status !== 200) throw new Error(`no tokens: ${status} ${JSON.stringify(body)}`)
  return body
}
