/**
 * A provider and everybody who may call its management API: an administrator, support, two ordinary people, and machine
 * clients with and without a scope; each with a token, got as anybody gets one.
 */
import { systemActor } from '../../src/audit/audit.ts'
import { assignRole } from '../../src/access/roles.ts'
import { createUser } from '../../src/users/users.ts'
import { openPasswords } from '../../src/users/password.ts'
import { readWorkFactor } from '../../src/users/work-factor.ts'
import { managementPermissions, managementResourceId } from '../../src/oauth/own-entries.ts'
import { pino } from 'pino'
import type { Engine } from './databases.ts'
import { openProvider, type ProviderOptions, type TestProvider } from './provider.ts'
import { registerClient, signInAt, type RegisteredClient } from './relying-party.ts'
import { postForm } from './user-agent.ts'

export interface Person {
  readonly id: string
  readonly email: string
  readonly password: string
  readonly token: string
}

export interface Management {
  readonly provider: TestProvider
  /** first-party, and may ask for every permission of the API */
  readonly console: RegisteredClient
  readonly administrator: Person
  readonly support: Person
  readonly user: Person
  readonly otherUser: Person
  /** a machine that may do everything there */
  readonly machine: RegisteredClient & { readonly token: string }
  call(path: string, options?: CallOptions): Promise<Called>
  /** makes a person, gives them roles and signs them in */
  newPerson(name: string, roles?: readonly string[]): Promise<Person>
  /** a machine client with these scopes alone, and its token */
  newMachine(scopes: readonly string[], id?: string): Promise<RegisteredClient & { readonly token: string }>
  signIn(person: Pick<Person, 'email' | 'password'>, scopes?: readonly string[]): Promise<string>
}

export interface CallOptions {
  readonly method?: string
  /** undefined: the administrator's; null: none */
  readonly token?: string | null
  readonly body?: unknown
  /** as it is */
  readonly rawBody?: string | Uint8Array<ArrayBuffer>
  readonly headers?: Readonly<Record<string, string>>
}

export interface Called {
  readonly status: number
  readonly headers: Headers
  readonly text: string
  /** undefined for an empty answer */
  readonly body: Json
}

/** An answer, of which a test looks at single members. */
export interface Json {
  readonly [member: string]: unknown
  /** of refusals */
  readonly error: {
    readonly code: string
    readonly message: string
    readonly details: readonly { readonly field: string; readonly constraint: string; readonly value?: unknown }[]
    readonly [member: string]: unknown
  }
  /** of lists */
  readonly pagination: {
    readonly total: number
    readonly has_more: boolean
    readonly next: string | null
    readonly previous: string | null
    readonly next_cursor: string | null
  }
}

export const allScopes: readonly string[] = managementPermissions.map(([permission]) => permission)

export async function openManagement(engine: Engine, options: ProviderOptions = {}): Promise<Management> {
  const provider = await openProvider(engine, options)
  const { db } = provider.database
  const resource = managementResourceId(provider.config.issuer)
  const permissions = allScopes.map((permission) => ({ resource, permission }))
  const console = await registerClient(provider, { id: 'console', permissions, default_resource: resource })
  const passwords = openPasswords({
    config: provider.config,
    workFactor: await readWorkFactor(db, provider.config),
    log: pino({ level: 'silent' }),
  })

  async function signIn(person: Pick<Person, 'email' | 'password'>, scopes = allScopes): Promise<string> {
    const answer = await signInAt(provider, console, { person, parameters: { scope: scopes.join(' '), resource } })
    if (answer.body.access_token === undefined) throw new Error('no access token')
    return answer.body.access_token
  }

  async function newPerson(name: string, roles: readonly string[] = []): Promise<Person> {
    const person = { email: `${name}@people.example`, password: `the password of ${name} 17` }
    const passwordHash = await passwords.hash(person.password)
    const { id } = await db.transaction().execute(async (trx) => {
      const user = await createUser(trx, systemActor, { email: person.email, emailVerified: true, name, passwordHash })
      for (const role of roles) await assignRole(trx, systemActor, { user_id: user.id, role })
      return user
    })
    return { id, ...person, token: await signIn(person) }
  }

  async function newMachine(scopes: readonly string[], id?: string) {
    const client = await registerClient(provider, {
      type: 'machine',
      first_party: false,
      ...(id === undefined ? {} : { id }),
      permissions: scopes.map((permission) => ({ resource, permission })),
      default_resource: resource,
    })
    const answer = await postForm(`${provider.issuer}/token`, client, { grant_type: 'client_credentials', resource })
    if (answer.body.access_token === undefined) throw new Error(`no token: ${JSON.stringify(answer.body)}`)
    return { ...client, token: answer.body.access_token }
  }

  const administrator = { ...provider.demo.admin, token: await signIn(provider.demo.admin) }
  const call = async (path: string, options: CallOptions = {}): Promise<Called> => {
    const { method = 'GET', token = administrator.token, body, rawBody } = options
    const response = await fetch(`${provider.issuer}${path}`, {
      method,
      headers: {
        ...(token === null ? {} : { authorization: `Bearer ${token}` }),
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...options.headers,
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...(rawBody === undefined ? {} : { body: rawBody }),
    })
    const text = await response.text()
    const isJson = /json/.test(response.headers.get('content-type') ?? '')
    return {
      status: response.status,
      headers: response.headers,
      text,
      body: (isJson && text !== '' ? JSON.parse(text) : undefined) as Json,
    }
  }
  return {
    provider,
    console,
    administrator,
    support: await newPerson('support', ['support']),
    user: await newPerson('user'),
    otherUser: await newPerson('other-user'),
    machine: await newMachine(allScopes),
    call,
    newPerson,
    newMachine,
    signIn,
  }
}
