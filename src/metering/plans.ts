/**
 * Usage plans: how often the clients that are on one may call. The shape is AWS API Gateway's: `throttle` is a token
 * bucket, `quota` so many in a day, week or month; either may be left out, and a client without a plan has no limit but
 * that of its network. Who takes from a plan is meter.ts, keys for callers without OAuth are api-keys.ts, and who called
 * what is usage.ts; the counting itself is http/rate-limit.ts.
 */
import { sql, type Selectable } from 'kysely'
import { z } from 'zod'
import { hasRights, requireMayChangeClient, type EffectivePermission } from '../access/rights.ts'
import { writeAudit, type Actor } from '../audit/audit.ts'
import type { Changes } from '../database/changes.ts'
import { openCopy } from '../database/copy.ts'
import type { Db, Trx } from '../database/database.ts'
import type { UsagePlansTable } from '../database/tables.ts'
import { requireVersion } from '../http/etag.ts'
import { quotaPeriods } from '../http/rate-limit.ts'
import { invalidFields, notFound, parseInput, Problem, type FieldError } from '../problems.ts'

/** A plan's name stands in addresses: `/v1/plans/Basic%20Plan`. */
export const planName = z
  .string()
  .max(100)
  .regex(
    /^[A-Za-z0-9](?:[A-Za-z0-9 ._-]*[A-Za-z0-9_-])?$/,
    'must be letters, digits, spaces, `.`, `_` and `-`, beginning with a letter or digit',
  )

/** @example planSchema.parse({ name: 'Basic Plan', throttle: { rateLimit: 100, burstLimit: 200 }, quota: { limit: 10000, period: 'DAY' } }) */
export const planSchema = z.strictObject({
  name: planName,
  throttle: z
    .strictObject({
      /** requests a second */
      rateLimit: z.number().min(0.001).max(1_000_000),
      /** how many may come at once */
      burstLimit: z.int().min(1).max(1_000_000),
    })
    .nullable()
    .default(null),
  quota: z
    .strictObject({ limit: z.int().min(1).max(1_000_000_000_000), period: z.enum(quotaPeriods) })
    .nullable()
    .default(null),
})
export type PlanInput = z.input<typeof planSchema>

export type Plan = z.output<typeof planSchema> & {
  readonly row_version: number
  readonly created_at: Date
  readonly updated_at: Date
}

export interface PutPlanConditions {
  /** the versions that the caller has seen; undefined: any */
  readonly expectedVersions?: readonly number[] | undefined
  /** make it, never replace it */
  readonly mustNotExist?: boolean
}

/**
 * Makes the plan, or replaces the one of that name as a whole. One that is the same already is left alone, whatever
 * version it is expected in: the change may have been made, and its answer lost.
 *
 * @throws Problem VALIDATION_ERROR; PRECONDITION_FAILED when it is not as `conditions` want it; AUTHORIZATION_ERROR when a
 *   client is on it that may do more
 */
export async function putPlan(
  trx: Trx,
  actor: Actor,
  input: PlanInput,
  { expectedVersions, mustNotExist = false }: PutPlanConditions = {},
): Promise<{ readonly plan: Plan; readonly created: boolean }> {
  const wanted = parseInput(planSchema, input)
  if (expectedVersions === undefined) {
    const { numInsertedOrUpdatedRows } = await trx
      .insertInto('usage_plans')
      .values(columnsOf(wanted))
      .onConflict((conflict) => conflict.doNothing())
      .executeTakeFirstOrThrow()
    if (numInsertedOrUpdatedRows === 1n) {
      await writeAudit(trx, actor, {
        action: 'plan.created',
        target: targetOf(wanted.name),
        details: { after: limitsOf(wanted) },
      })
      return { plan: await getPlan(trx, wanted.name), created: true }
    }
  }
  const before = await lockPlan(trx, wanted.name)
  // If-Match for something that is not there fits nothing (RFC 9110 §13.1.1).
  if (before === undefined || mustNotExist) throw new Problem('PRECONDITION_FAILED')
  if (JSON.stringify(limitsOf(before)) === JSON.stringify(limitsOf(wanted))) return { plan: before, created: false }
  requireVersion(expectedVersions, before.row_version)
  await requireRightsOverPlan(trx, actor, wanted.name)
  await trx
    .updateTable('usage_plans')
    .set((eb) => ({ ...columnsOf(wanted), row_version: eb('row_version', '+', 1), updated_at: sql<Date>`now()` }))
    .where('name', '=', wanted.name)
    .execute()
  await writeAudit(trx, actor, {
    action: 'plan.updated',
    target: targetOf(wanted.name),
    details: { before: limitsOf(before), after: limitsOf(wanted) },
  })
  return { plan: await getPlan(trx, wanted.name), created: false }
}

/** A limit that lets nobody through shuts out everybody who is on it. */
async function requireRightsOverPlan(trx: Trx, actor: Actor, name: string): Promise<void> {
  const { rows } = await sql<EffectivePermission>`
    SELECT DISTINCT resource, permission FROM client_permissions
    WHERE client_id IN (
      SELECT id FROM clients WHERE plan = ${name} UNION SELECT client_id FROM api_keys WHERE plan = ${name}
    )`.execute(trx)
  if (await hasRights(trx, actor, rows)) return
  throw new Problem(
    'AUTHORIZATION_ERROR',
    'A client on this plan may do more than you: somebody with its rights has to do that.',
  )
}

/** @throws Problem RESOURCE_NOT_FOUND; CONFLICT while a client or an API key is on it */
export async function deletePlan(
  trx: Trx,
  actor: Actor,
  input: { name: string; expectedVersions?: readonly number[] | undefined },
): Promise<void> {
  const { name } = parseInput(z.object({ name: planName }), input)
  const before = await lockPlan(trx, name)
  if (before === undefined) throw planNotFound(name)
  requireVersion(input.expectedVersions, before.row_version)
  const { rows } = await sql<{ clients: number; keys: number }>`
    SELECT (SELECT count(*)::integer FROM clients WHERE plan = ${name}) AS clients,
      (SELECT count(*)::integer FROM api_keys WHERE plan = ${name}) AS keys`.execute(trx)
  const { clients, keys } = rows[0] ?? { clients: 0, keys: 0 }
  if (clients + keys > 0) {
    throw new Problem(
      'CONFLICT',
      `The plan ${name} is in use by ${counted(clients, 'client')} and ${counted(keys, 'API key')}: give them another first.`,
    )
  }
  await trx.deleteFrom('usage_plans').where('name', '=', name).execute()
  await writeAudit(trx, actor, {
    action: 'plan.deleted',
    target: targetOf(name),
    details: { before: limitsOf(before) },
  })
}

const setClientPlanSchema = z.strictObject({ client_id: z.string().min(1).max(128), plan: planName.nullable() })

/**
 * Puts a client on a plan, or on none.
 *
 * @returns false when it was on that one already
 * @throws Problem RESOURCE_NOT_FOUND for the client, AUTHORIZATION_ERROR for one that may do more, CONFLICT for one of the
 *   provider itself; VALIDATION_ERROR for the plan
 */
export async function setClientPlan(
  trx: Trx,
  actor: Actor,
  input: { client_id: string; plan: string | null },
): Promise<boolean> {
  const { client_id, plan } = parseInput(setClientPlanSchema, input)
  // Not FOR UPDATE: a token request must still be able to refer to the client's row.
  const before = await trx
    .selectFrom('clients')
    .select('plan')
    .where('id', '=', client_id)
    .forNoKeyUpdate()
    .executeTakeFirst()
  if (before === undefined) throw notFound('client', client_id, '/v1/clients')
  if (before.plan === plan) return false
  await requireMayChangeClient(trx, actor, client_id)
  await requirePlan(trx, plan)
  await trx
    .updateTable('clients')
    .set((eb) => ({ plan, row_version: eb('row_version', '+', 1), updated_at: sql<Date>`now()` }))
    .where('id', '=', client_id)
    .execute()
  await writeAudit(trx, actor, {
    action: 'client.plan-set',
    target: { type: 'client', id: client_id },
    details: { before: { plan: before.plan }, after: { plan } },
  })
  return true
}

/**
 * Holds a plan that something is about to be put on, so that it is not deleted meanwhile.
 *
 * @throws Problem VALIDATION_ERROR when there is none of that name
 */
export async function requirePlan(trx: Trx, name: string | null): Promise<void> {
  const unknown = await findUnknownPlan(trx, name)
  if (unknown.length > 0) throw invalidFields(unknown)
}

/** What is wrong with the name of a plan that there is not; one that there is, a transaction holds from now on. */
export async function findUnknownPlan(db: Db, name: string | null): Promise<FieldError[]> {
  if (name === null) return []
  const found = await db
    .selectFrom('usage_plans')
    .select('name')
    .where('name', '=', name)
    .forKeyShare()
    .executeTakeFirst()
  return found === undefined ? [{ field: 'plan', constraint: 'exists', message: `There is no plan ${name}` }] : []
}

export async function findPlan(db: Db, name: string): Promise<Plan | undefined> {
  const row = await db.selectFrom('usage_plans').selectAll().where('name', '=', name).executeTakeFirst()
  return row === undefined ? undefined : planOf(row)
}

/** @throws Problem RESOURCE_NOT_FOUND */
export async function getPlan(db: Db, name: string): Promise<Plan> {
  const plan = await findPlan(db, name)
  if (plan === undefined) throw planNotFound(name)
  return plan
}

export async function listPlans(db: Db): Promise<Plan[]> {
  const rows = await db.selectFrom('usage_plans').selectAll().orderBy('name').execute()
  return rows.map(planOf)
}

/** A plan as its row has it. */
export function planOf(row: Selectable<UsagePlansTable>): Plan {
  const { name, rate_limit, burst_limit, quota_limit, quota_period, row_version, created_at, updated_at } = row
  return {
    name,
    throttle: rate_limit === null || burst_limit === null ? null : { rateLimit: rate_limit, burstLimit: burst_limit },
    quota: quota_limit === null || quota_period === null ? null : { limit: quota_limit, period: quota_period },
    row_version,
    created_at,
    updated_at,
  }
}

/** Plans as every request needs them, in memory. */
export interface PlanDirectory {
  /** @returns undefined for a client that is on none */
  planOfClient(clientId: string): Promise<Plan | undefined>
  findPlan(name: string): Promise<Plan | undefined>
  close(): void
}

/** A change in any process empties the copy within milliseconds. */
export function openPlanDirectory(db: Db, changes: Changes): PlanDirectory {
  const plans = openCopy(changes, (name) => findPlan(db, name))
  // That a client has no plan is worth remembering too.
  const clients = openCopy(changes, async (id) => {
    const row = await db.selectFrom('clients').select('plan').where('id', '=', id).executeTakeFirst()
    if (row === undefined) return undefined
    return { plan: row.plan === null ? undefined : await findPlan(db, row.plan) }
  })
  const unsubscribe = changes.on('clients', () => {
    plans.forget()
    clients.forget()
  })
  return {
    planOfClient: async (clientId) => (await clients.find(clientId))?.plan,
    findPlan: (name) => plans.find(name),
    close: unsubscribe,
  }
}

/** The plan's row first, by everyone who changes it or who is about to be put on it. */
async function lockPlan(trx: Trx, name: string): Promise<Plan | undefined> {
  const row = await trx.selectFrom('usage_plans').selectAll().where('name', '=', name).forUpdate().executeTakeFirst()
  return row === undefined ? undefined : planOf(row)
}

function columnsOf({ name, throttle, quota }: z.output<typeof planSchema>) {
  return {
    name,
    rate_limit: throttle?.rateLimit ?? null,
    burst_limit: throttle?.burstLimit ?? null,
    quota_limit: quota?.limit ?? null,
    quota_period: quota?.period ?? null,
  }
}

/** In one order of members, however it was written. */
function limitsOf({ throttle, quota }: z.output<typeof planSchema>) {
  return {
    throttle: throttle === null ? null : { rateLimit: throttle.rateLimit, burstLimit: throttle.burstLimit },
    quota: quota === null ? null : { limit: quota.limit, period: quota.period },
  }
}

function targetOf(name: string) {
  return { type: 'plan', id: name }
}

function planNotFound(name: string): Problem {
  return notFound('plan', name, '/v1/plans', 'name')
}

function counted(n: number, noun: string): string {
  return `${n} ${noun}${n === 1 ? '' : 's'}`
}
