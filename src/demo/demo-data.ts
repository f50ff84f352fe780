/**
 * Something to try at once, in development only: two people, a resource, and a client of each sort. Everything secret is
 * random for each install and stands in demo.json in the data folder, readable by its owner alone. The database keeps
 * the same values, so that processes that share it hand out the same ones.
 */
import { randomBytes } from 'node:crypto'
import { mkdirSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { sql } from 'kysely'
import { z } from 'zod'
import { administratorRole } from '../access/rights.ts'
import { assignRole, createRole } from '../access/roles.ts'
import { systemActor } from '../audit/audit.ts'
import type { Config } from '../config.ts'
import type { Db, Trx } from '../database/database.ts'
import { putPlan, setClientPlan } from '../metering/plans.ts'
import { createClient, setClientPermissions, updateClient } from '../oauth/clients.ts'
import {
  managementPermissions,
  managementResourceId,
  signalsPermission,
  signalsResourceId,
} from '../oauth/own-entries.ts'
import { createResource } from '../oauth/resources.ts'
import { openAttributes } from '../users/attributes.ts'
import type { PasswordHash, Passwords } from '../users/password.ts'
import { createUser } from '../users/users.ts'

/** The API of the example service, which `npm run example` starts. */
export const demoResource = 'http://localhost:3001'

const storedSchema = z.object({
  user: z.object({ id: z.string(), email: z.string(), password: z.string() }),
  admin: z.object({ id: z.string(), email: z.string(), password: z.string() }),
  webSecret: z.string(),
  serviceSecret: z.string(),
  /** demo data of before the feed has none */
  modelsSecret: z.string().optional(),
  issuer: z.string(),
})
type Stored = z.infer<typeof storedSchema>

interface DemoPerson {
  /** the `sub` of this person's tokens */
  readonly id: string
  readonly email: string
  readonly password: string
}

/** demo.json */
export interface DemoData {
  readonly issuer: string
  readonly resource: string
  readonly user: DemoPerson
  readonly admin: DemoPerson
  readonly clients: {
    readonly web: { readonly client_id: string; readonly client_secret: string; readonly redirect_uri: string }
    readonly spa: { readonly client_id: string; readonly redirect_uri: string }
    readonly service: { readonly client_id: string; readonly client_secret: string; readonly scope: string }
    /** the example service itself, which is told what has been revoked */
    readonly models: { readonly client_id: string; readonly client_secret: string }
  }
}

const modelPermissions = [
  { permission: 'models:read', description: 'see models' },
  { permission: 'models:write', description: 'create and change models' },
  { permission: 'models:delete', description: 'delete models' },
  { permission: 'models:share', description: 'share models with others' },
]
const serviceScopes = ['models:read', 'models:write']
/** As AWS API Gateway writes one. */
const basicPlan = {
  name: 'Basic Plan',
  throttle: { rateLimit: 100, burstLimit: 200 },
  quota: { limit: 10_000, period: 'DAY' },
} as const
const webId = 'demo-web'
const spaId = 'demo-spa'
const serviceId = 'demo-service'
const modelsId = 'demo-models'
const settingName = 'demo'
const demoLock = 0x1a7c_0013

/** Makes the demo data if it is not there yet, and writes demo.json. */
export async function ensureDemoData(
  db: Db,
  config: Pick<Config, 'issuer' | 'dataDir' | 'userAttributesFile'>,
  passwords: Passwords,
): Promise<DemoData> {
  const found = (await findStored(db)) ?? (await create(db, config, passwords))
  const stored = found.modelsSecret === undefined ? await addModels(db, found) : found
  if (stored.issuer !== config.issuer) await moveTo(db, stored, config.issuer)
  const data = describe(stored, config.issuer)
  writeDemoFile(config.dataDir, data)
  return data
}

/** Whether this database was ever used for a demo: its passwords stand in some demo.json. */
export async function hasDemoData(db: Db): Promise<boolean> {
  return (await findStored(db)) !== undefined
}

async function findStored(db: Db): Promise<Stored | undefined> {
  const row = await db.selectFrom('settings').select('value').where('name', '=', settingName).executeTakeFirst()
  return row === undefined ? undefined : storedSchema.parse(row.value)
}

async function create(
  db: Db,
  config: Pick<Config, 'issuer' | 'userAttributesFile'>,
  passwords: Passwords,
): Promise<Stored> {
  const user = { email: 'alice@example.com', password: randomPassword() }
  const admin = { email: 'admin@example.com', password: randomPassword() }
  const [userHash, adminHash] = await Promise.all([passwords.hash(user.password), passwords.hash(admin.password)])
  return db.transaction().execute(async (trx) => {
    // Another process may have been first.
    await sql`SELECT pg_advisory_xact_lock(${demoLock})`.execute(trx)
    const existing = await findStored(trx)
    if (existing !== undefined) return existing
    await createResource(trx, systemActor, {
      id: demoResource,
      name: 'Models (demo)',
      attribute_claims: { department: 'department', seniority: 'seniority', clearance: 'clearance' },
      permissions: modelPermissions,
    })
    await createRole(trx, systemActor, {
      name: 'member',
      description: 'May work with models',
      permissions: ['models:read', 'models:write', 'models:share'].map(atDemo),
    })
    await createRole(trx, systemActor, {
      name: 'models-admin',
      description: 'May do everything with models',
      permissions: [atDemo('models:delete')],
      includes: ['member'],
    })
    const ids = await createPeople(trx, config, { user, admin, userHash, adminHash })
    const secrets = await createClients(trx, config.issuer)
    const stored: Stored = {
      user: { id: ids.user, ...user },
      admin: { id: ids.admin, ...admin },
      ...secrets,
      issuer: config.issuer,
    }
    await trx
      .insertInto('settings')
      .values({ name: settingName, value: JSON.stringify(stored) })
      .execute()
    return stored
  })
}

async function createPeople(
  trx: Trx,
  config: Pick<Config, 'userAttributesFile'>,
  people: {
    readonly user: Omit<DemoPerson, 'id'>
    readonly admin: Omit<DemoPerson, 'id'>
    readonly userHash: PasswordHash
    readonly adminHash: PasswordHash
  },
): Promise<{ readonly user: string; readonly admin: string }> {
  // A deployment that declares attributes of its own gets demo people without any.
  const attributes = (values: Record<string, unknown>) =>
    config.userAttributesFile === undefined ? openAttributes().parse(values) : undefined
  const alice = await createUser(trx, systemActor, {
    email: people.user.email,
    emailVerified: true,
    name: 'Alice Example',
    profile: {
      given_name: 'Alice',
      family_name: 'Example',
      locale: 'en-GB',
      zoneinfo: 'Europe/London',
      phone_number: '+44 20 7946 0000',
      phone_number_verified: true,
      address: { street_address: '1 Example Street', locality: 'London', country: 'United Kingdom' },
    },
    attributes: attributes({ department: 'engineering', seniority: 5, clearance: 2 }),
    passwordHash: people.userHash,
  })
  await assignRole(trx, systemActor, { user_id: alice.id, role: 'member' })
  const admin = await createUser(trx, systemActor, {
    email: people.admin.email,
    emailVerified: true,
    name: 'Ada Administrator',
    attributes: attributes({ department: 'operations', seniority: 10, clearance: 5 }),
    passwordHash: people.adminHash,
  })
  for (const role of [administratorRole, 'models-admin']) {
    await assignRole(trx, systemActor, { user_id: admin.id, role })
  }
  return { user: alice.id, admin: admin.id }
}

/** For demo data of before the feed. */
async function addModels(db: Db, stored: Stored): Promise<Stored> {
  return db.transaction().execute(async (trx) => {
    await sql`SELECT pg_advisory_xact_lock(${demoLock})`.execute(trx)
    const now = (await findStored(trx)) ?? stored
    if (now.modelsSecret !== undefined) return now
    const added = { ...now, modelsSecret: await createModels(trx, now.issuer) }
    await trx
      .updateTable('settings')
      .set({ value: JSON.stringify(added) })
      .where('name', '=', settingName)
      .execute()
    return added
  })
}

/** @returns its secret */
async function createModels(trx: Trx, issuer: string): Promise<string> {
  const { secret = '' } = await createClient(trx, systemActor, {
    id: modelsId,
    type: 'machine',
    name: 'Demo models service',
    permissions: [receiveSignals(issuer)],
  })
  await putPlan(trx, systemActor, basicPlan)
  await setClientPlan(trx, systemActor, { client_id: modelsId, plan: basicPlan.name })
  return secret
}

function receiveSignals(issuer: string) {
  return { resource: signalsResourceId(issuer), permission: signalsPermission }
}

async function createClients(
  trx: Trx,
  issuer: string,
): Promise<{ webSecret: string; serviceSecret: string; modelsSecret: string }> {
  const web = await createClient(trx, systemActor, {
    id: webId,
    type: 'web',
    name: 'Demo web application',
    ...redirects(issuer).web,
    permissions: webPermissions(issuer),
  })
  await createClient(trx, systemActor, {
    id: spaId,
    type: 'spa',
    name: 'Demo single-page application',
    ...redirects(issuer).spa,
    permissions: modelPermissions.map(({ permission }) => atDemo(permission)),
  })
  const service = await createClient(trx, systemActor, {
    id: serviceId,
    type: 'machine',
    name: 'Demo service',
    default_resource: demoResource,
    permissions: serviceScopes.map(atDemo),
  })
  await putPlan(trx, systemActor, basicPlan)
  for (const client_id of [webId, spaId, serviceId]) {
    await setClientPlan(trx, systemActor, { client_id, plan: basicPlan.name })
  }
  const modelsSecret = await createModels(trx, issuer)
  return { webSecret: web.secret ?? '', serviceSecret: service.secret ?? '', modelsSecret }
}

/** The issuer changed, usually its port: the demo clients move with it. */
async function moveTo(db: Db, stored: Stored, issuer: string): Promise<void> {
  await db.transaction().execute(async (trx) => {
    await sql`SELECT pg_advisory_xact_lock(${demoLock})`.execute(trx)
    await updateClient(trx, systemActor, { id: webId, ...redirects(issuer).web })
    await updateClient(trx, systemActor, { id: spaId, ...redirects(issuer).spa })
    await setClientPermissions(trx, systemActor, { id: webId, permissions: webPermissions(issuer) })
    await setClientPermissions(trx, systemActor, { id: modelsId, permissions: [receiveSignals(issuer)] })
    await trx
      .updateTable('settings')
      .set({ value: JSON.stringify({ ...stored, issuer }) })
      .where('name', '=', settingName)
      .execute()
  })
}

function redirects(issuer: string) {
  const signedOut = [`${issuer}/`]
  return {
    web: { redirect_uris: [`${issuer}/demo/callback`], post_logout_redirect_uris: signedOut },
    spa: { redirect_uris: [`${issuer}/demo/spa/callback`], post_logout_redirect_uris: signedOut },
  }
}

function webPermissions(issuer: string) {
  const management = managementPermissions.map(([permission]) => ({
    resource: managementResourceId(issuer),
    permission,
  }))
  return [...modelPermissions.map(({ permission }) => atDemo(permission)), ...management]
}

function atDemo(permission: string) {
  return { resource: demoResource, permission }
}

function randomPassword(): string {
  return randomBytes(12).toString('base64url')
}

function describe({ user, admin, webSecret, serviceSecret, modelsSecret = '' }: Stored, issuer: string): DemoData {
  return {
    issuer,
    resource: demoResource,
    user,
    admin,
    clients: {
      web: { client_id: webId, client_secret: webSecret, redirect_uri: `${issuer}/demo/callback` },
      spa: { client_id: spaId, redirect_uri: `${issuer}/demo/spa/callback` },
      service: { client_id: serviceId, client_secret: serviceSecret, scope: serviceScopes.join(' ') },
      models: { client_id: modelsId, client_secret: modelsSecret },
    },
  }
}

/** Whole or not at all: a reader never sees half a file. */
function writeDemoFile(dataDir: string, data: DemoData): void {
  mkdirSync(dataDir, { recursive: true, mode: 0o700 })
  const file = join(dataDir, 'demo.json')
  const draft = `${file}.${process.pid}`
  writeFileSync(draft, `${JSON.stringify(data, undefined, 2)}\n`, { mode: 0o600 })
  renameSync(draft, file)
}
