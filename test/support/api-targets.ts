/**
 * Fresh things for requests to be about, made by the functions that the API uses itself: a person, a role, a client with
 * a secret, a session with its grant … one of its own for every request that changes something.
 */
import { randomBytes } from 'node:crypto'
import { createRole, assignRole } from '../../src/access/roles.ts'
import { systemActor } from '../../src/audit/audit.ts'
import { createApiKey } from '../../src/metering/api-keys.ts'
import { putPlan } from '../../src/metering/plans.ts'
import type { Trx } from '../../src/database/database.ts'
import { createClient } from '../../src/oauth/clients.ts'
import { createResource } from '../../src/oauth/resources.ts'
import { findSigningKeys } from '../../src/signing/rotation.ts'
import { createUser } from '../../src/users/users.ts'
import type { Management, Person } from './management.ts'

export interface SignedIn {
  readonly session_id: string
  readonly grant_id: string
  readonly token: string
}

export interface Targets {
  /** somebody who cannot sign in; with a role, when one is named */
  user(role?: string): Promise<string>
  /** somebody who can, and has a token */
  person(): Promise<Person>
  signIn(person: Pick<Person, 'email' | 'password'>): Promise<SignedIn>
  role(): Promise<string>
  /** a machine client with one secret and no rights */
  client(): Promise<{ readonly client_id: string; readonly secret_id: string }>
  resource(): Promise<string>
  plan(): Promise<string>
  /** of a client without rights, or of the one that is named */
  apiKey(clientId?: string): Promise<{ readonly api_key_id: string; readonly key: string }>
  /** the signing key that waits: nothing is signed with it yet */
  waitingKey(): Promise<string>
  auditEvent(): Promise<string>
  /** A name that nothing has. */
  readonly unique: (prefix: string) => string
  /** Parameters for a path's template, each of something fresh that is there. */
  parametersOf(path: string): Promise<Record<string, string>>
}

export function openTargets(api: Management): Targets {
  const { db } = api.provider.database
  const unique = (prefix: string) => `${prefix}-${randomBytes(6).toString('hex')}`
  const write = <T>(change: (trx: Trx) => Promise<T>) => db.transaction().execute(change)

  const targets: Targets = {
    unique,
    async user(role) {
      const { id } = await write(async (trx) => {
        const user = await createUser(trx, systemActor, { email: `${unique('target')}@people.example`, name: 'Target' })
        if (role !== undefined) await assignRole(trx, systemActor, { user_id: user.id, role })
        return user
      })
      return id
    },
    person: () => api.newPerson(unique('person')),
    signIn: async (person) => readSignIn(await api.signIn(person)),
    async role() {
      return (await write((trx) => createRole(trx, systemActor, { name: unique('role') }))).name
    },
    async client() {
      const { client } = await write((trx) =>
        createClient(trx, systemActor, { id: unique('client'), type: 'machine', name: 'Target' }),
      )
      return { client_id: client.id, secret_id: client.secrets[0]?.id ?? '' }
    },
    async resource() {
      const id = `https://${unique('resource')}.example`
      return (await write((trx) => createResource(trx, systemActor, { id }))).id
    },
    async plan() {
      const name = unique('plan')
      await write((trx) => putPlan(trx, systemActor, { name }))
      return name
    },
    async apiKey(clientId) {
      const client_id = clientId ?? (await targets.client()).client_id
      const { api_key, key } = await write((trx) => createApiKey(trx, systemActor, { client_id, name: 'Target' }))
      return { api_key_id: api_key.api_key_id, key }
    },
    async waitingKey() {
      const waiting = (await findSigningKeys(db)).find(({ state }) => state === 'next')
      if (waiting === undefined) throw new Error('no signing key waits')
      return waiting.kid
    },
    async auditEvent() {
      const { id } = await db.selectFrom('audit_events').select('id').orderBy('id').limit(1).executeTakeFirstOrThrow()
      return `aud_${id}`
    },
    async parametersOf(path) {
      const names = new Set([...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name ?? ''))
      const isOfRole = /\/roles\/\{name\}/.test(path)
      const client = names.has('client_id') ? await targets.client() : undefined
      const role = isOfRole ? await targets.role() : undefined
      const signedIn =
        names.has('session_id') || names.has('grant_id') ? readSignIn((await targets.person()).token) : undefined
      const values: Record<string, string | undefined> = {
        user_id: names.has('user_id') ? await targets.user(role) : undefined,
        name: names.has('name') ? (role ?? (await targets.plan())) : undefined,
        client_id: client?.client_id,
        secret_id: client?.secret_id,
        session_id: signedIn?.session_id,
        grant_id: signedIn?.grant_id,
        resource_id: names.has('resource_id') ? await targets.resource() : undefined,
        api_key_id: names.has('api_key_id') ? (await targets.apiKey()).api_key_id : undefined,
        kid: names.has('kid') ? await targets.waitingKey() : undefined,
        audit_event_id: names.has('audit_event_id') ? await targets.auditEvent() : undefined,
      }
      return Object.fromEntries(
        [...names].map((name) => {
          const value = values[name]
          if (value === undefined) throw new Error(`nothing is made for {${name}} of ${path}`)
          return [name, value]
        }),
      )
    },
  }
  return targets
}

function readSignIn(token: string): SignedIn {
  const claims = JSON.parse(Buffer.from(token.split('.')[1] ?? '', 'base64url').toString('utf8')) as {
    readonly sid: string
    readonly grant_id: string
  }
  return { session_id: claims.sid, grant_id: claims.grant_id, token }
}

/** A path's template with its parameters in place, percent-encoded. */
export function fillPath(template: string, parameters: Readonly<Record<string, string>>): string {
  return template.replaceAll(/\{(\w+)\}/g, (_whole, name: string) => encodeURIComponent(parameters[name] ?? ''))
}
