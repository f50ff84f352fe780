/**
 * A valid request for every operation of the management API, each about something fresh; and the refusals that only the
 * operation itself can bring about. An operation that has none fails the contract test.
 */
import { fillPath, type Targets } from '../support/api-targets.ts'
import type { Answer } from '../support/contract.ts'
import type { Management } from '../support/management.ts'
import type { Operation } from '../openapi/document.ts'

export interface Request {
  /** of the path; those that are left out are made */
  readonly parameters?: Readonly<Record<string, string>>
  readonly query?: string
  readonly body?: unknown
  /** as it is */
  readonly rawBody?: string | Uint8Array<ArrayBuffer>
  readonly headers?: Readonly<Record<string, string>>
  /** the administrator's when left out; null: none */
  readonly token?: string | null
}

export interface World {
  readonly api: Management
  readonly targets: Targets
  /** the version of what is there, as If-Match wants it */
  readonly tagOf: (path: string) => Promise<string>
}

export type Make = (world: World) => Request | Promise<Request>

/** Successes, and refusals that only the operation itself can bring about, each under its status. */
export type Scenarios = Readonly<Record<number, Make>>

const none: Make = () => ({})
const reason: Make = () => ({ body: { reason: 'a laptop was stolen' } })
const bodyOf =
  (make: (targets: Targets) => unknown): Make =>
  ({ targets }) => ({ body: make(targets) })
const administrator: (world: World) => { user_id: string } = ({ api }) => ({ user_id: api.administrator.id })
const ownResource: (world: World) => { resource_id: string } = ({ api }) => ({
  resource_id: `${api.provider.issuer}/v1`,
})

const ownClient = { client_id: 'latchkey-account' }

async function emailOf({ api, targets }: World): Promise<string> {
  const { body } = await api.call(`/v1/users/${await targets.user()}`)
  return body['email'] as string
}

export const scenarios: Readonly<Record<string, Scenarios>> = {
  listUsers: { 200: () => ({ query: 'limit=2&sort=-created_at,email&fields=email,is_active&is_active=true' }) },
  createUser: {
    201: bodyOf(({ unique }) => ({
      email: `${unique('new')}@people.example`,
      password: 'a long enough phrase',
      name: 'Carol Chen',
      profile: { given_name: 'Carol', address: { country: 'DE' } },
      attributes: { clearance: 2 },
    })),
    409: async (world) => ({ body: { email: await emailOf(world) } }),
  },
  getUser: { 200: () => ({ query: 'fields=email,name' }) },
  replaceUser: {
    200: bodyOf(({ unique }) => ({ email: `${unique('replaced')}@people.example` })),
    409: async (world) => ({ body: { email: await emailOf(world) } }),
  },
  updateUser: {
    200: bodyOf(({ unique }) => ({ name: unique('name') })),
    409: async (world) => ({ body: { email: await emailOf(world) } }),
  },
  deleteUser: { 204: none, 409: (world) => ({ parameters: administrator(world) }) },
  setPassword: { 204: bodyOf(() => ({ password: 'quite another phrase' })) },
  listRoles: { 200: () => ({ query: 'sort=-name' }) },
  createRole: {
    201: async ({ targets }) => ({
      body: { name: targets.unique('role'), description: 'New', includes: [await targets.role()] },
    }),
    409: bodyOf(() => ({ name: 'administrator' })),
  },
  getRole: { 200: () => ({ parameters: { name: 'administrator' } }) },
  putRole: {
    200: async ({ targets }) => ({
      body: { description: targets.unique('changed'), includes: [await targets.role()] },
    }),
    201: ({ targets }) => ({ parameters: { name: targets.unique('role') }, body: {} }),
    409: () => ({ parameters: { name: 'administrator' }, body: { permissions: [] } }),
  },
  deleteRole: { 204: none, 409: () => ({ parameters: { name: 'administrator' } }) },
  listRolesOfUser: { 200: (world) => ({ parameters: administrator(world) }) },
  setRolesOfUser: {
    200: async ({ targets, tagOf }) => {
      const user_id = await targets.user()
      const roles = [await targets.role()]
      return {
        parameters: { user_id },
        body: { roles },
        headers: { 'if-match': await tagOf(`/v1/users/${user_id}/roles`) },
      }
    },
    409: async (world) => {
      const { user_id } = administrator(world)
      const headers = { 'if-match': await world.tagOf(`/v1/users/${user_id}/roles`) }
      return { parameters: { user_id }, body: { roles: [] }, headers }
    },
  },
  assignRole: {
    204: async ({ targets }) => ({ parameters: { user_id: await targets.user(), name: await targets.role() } }),
    409: async ({ targets }) => ({ parameters: { user_id: await targets.user(), name: 'everyone' } }),
  },
  unassignRole: {
    204: none,
    409: (world) => ({ parameters: { ...administrator(world), name: 'administrator' } }),
  },
  listSessions: { 200: async ({ targets }) => ({ query: `limit=1&user_id=${(await targets.person()).id}` }) },
  listSessionsOfUser: { 200: async ({ targets }) => ({ parameters: { user_id: (await targets.person()).id } }) },
  getSession: { 200: none },
  endSession: { 204: none },
  listGrants: { 200: () => ({ query: 'client_id=console&limit=2' }) },
  listGrantsOfUser: { 200: async ({ targets }) => ({ parameters: { user_id: (await targets.person()).id } }) },
  getGrant: { 200: none },
  revokeGrant: { 204: none },
  revokeUser: {
    201: async ({ targets }) => ({
      parameters: { user_id: (await targets.person()).id },
      body: { reason: 'the account was taken over', consents: true },
    }),
  },
  listClients: { 200: () => ({ query: 'limit=2&sort=-name' }) },
  createClient: {
    201: bodyOf(({ unique }) => ({ client_id: unique('client'), type: 'machine', name: 'Nightly report' })),
    409: bodyOf(() => ({ client_id: 'console', type: 'machine', name: 'Nightly report' })),
  },
  getClient: { 200: none },
  replaceClient: {
    200: bodyOf(({ unique }) => ({ name: unique('client'), grant_types: ['client_credentials'] })),
    409: () => ({ parameters: ownClient, body: { name: 'Mine', grant_types: ['client_credentials'] } }),
  },
  updateClient: {
    200: bodyOf(({ unique }) => ({ name: unique('client') })),
    409: () => ({ parameters: ownClient, body: { is_active: false } }),
  },
  deleteClient: { 204: none, 409: () => ({ parameters: ownClient }) },
  revokeClient: { 201: reason },
  listClientSecrets: { 200: none },
  rotateClientSecret: {
    201: bodyOf(() => ({ overlap_seconds: 60 })),
    409: () => ({ parameters: ownClient, body: {} }),
  },
  revokeClientSecret: { 204: none, 409: () => ({ parameters: { ...ownClient, secret_id: 'sec_none' } }) },
  listResources: { 200: () => ({ query: 'limit=1' }) },
  getResource: { 200: (world) => ({ parameters: ownResource(world) }) },
  putResource: {
    200: bodyOf(({ unique }) => ({ name: unique('resource') })),
    201: ({ targets }) => ({
      parameters: { resource_id: `https://${targets.unique('resource')}.example` },
      body: { name: 'Models', permissions: [{ permission: 'models:read' }] },
    }),
    409: (world) => ({ parameters: ownResource(world), body: {} }),
  },
  deleteResource: { 204: none, 409: (world) => ({ parameters: ownResource(world) }) },
  listKeys: { 200: none },
  rotateKeys: { 201: bodyOf(() => ({ now: true })), 409: bodyOf(() => ({})) },
  getKey: { 200: none },
  revokeKey: { 201: reason },
  listPlans: { 200: () => ({ query: 'limit=1&fields=name,quota' }) },
  getPlan: { 200: () => ({ parameters: { name: 'Basic Plan' } }) },
  putPlan: {
    200: async ({ targets }) => {
      const name = await targets.plan()
      return { parameters: { name }, body: { name, quota: { limit: 10_000, period: 'DAY' } } }
    },
    201: ({ targets }) => {
      const name = targets.unique('plan')
      return { parameters: { name }, body: { name, throttle: { rateLimit: 0.5, burstLimit: 200 } } }
    },
  },
  deletePlan: {
    204: none,
    409: async ({ api, targets }) => {
      const name = await targets.plan()
      const { client_id } = await targets.client()
      await api.call(`/v1/clients/${client_id}/plan`, { method: 'PUT', body: { plan: name } })
      return { parameters: { name } }
    },
  },
  setPlanOfClient: {
    200: async ({ targets }) => ({ body: { plan: await targets.plan() } }),
    409: async ({ targets }) => ({ parameters: ownClient, body: { plan: await targets.plan() } }),
  },
  listApiKeys: { 200: async ({ targets }) => ({ query: `client_id=${(await targets.client()).client_id}` }) },
  createApiKey: {
    201: async ({ targets }) => ({
      body: {
        client_id: (await targets.client()).client_id,
        name: 'The old appliance',
        expires_at: '2099-12-31T00:00:00Z',
      },
    }),
    400: bodyOf(({ unique }) => ({ client_id: unique('nobody'), name: 'The old appliance' })),
    409: bodyOf(() => ({ ...ownClient, name: 'The old appliance' })),
  },
  getApiKey: { 200: none },
  revokeApiKey: { 204: none },
  getUsage: { 200: () => ({ query: 'from=2026-01-01&version=1' }) },
  listAuditEvents: { 200: () => ({ query: 'limit=20&sort=-occurred_at' }) },
  getAuditEvent: { 200: none },
}

/** The status that a success has first, and what brings it about. */
export function successOf(id: string): { readonly status: number; readonly make: Make } {
  const [first] = Object.entries(scenarios[id] ?? {}).filter(([status]) => status.startsWith('2'))
  if (first === undefined) throw new Error(`nothing is known of ${id}`)
  return { status: Number(first[0]), make: first[1] }
}

export async function sendRequest({ api }: World, operation: Operation, request: Request): Promise<Answer> {
  const { parameters = {}, query, headers, token } = request
  const path = fillPath(operation.path, parameters) + (query === undefined ? '' : `?${query}`)
  const isPatch = operation.method === 'PATCH'
  return api.call(path, {
    method: operation.method,
    ...(token === undefined ? {} : { token }),
    ...('rawBody' in request ? { rawBody: request.rawBody ?? '' } : { body: request.body }),
    headers: {
      ...(request.rawBody === undefined ? {} : { 'content-type': 'application/json' }),
      ...(isPatch && request.body !== undefined ? { 'content-type': 'application/merge-patch+json' } : {}),
      ...headers,
    },
  })
}

/** With the parameters that its path needs. */
export async function complete(
  { targets }: World,
  { path }: Operation,
  request: Request,
  headers: Readonly<Record<string, string>> = {},
): Promise<Request> {
  const named = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name ?? '')
  const isWhole = named.every((name) => request.parameters?.[name] !== undefined)
  const parameters = { ...(isWhole ? {} : await targets.parametersOf(path)), ...request.parameters }
  return { ...request, parameters, headers: { ...request.headers, ...headers } }
}
