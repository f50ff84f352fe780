/** `/v1/plans`, `/v1/api-keys`, the plan of a client, and `/v1/usage`: who still calls what. */
import { sql, type SqlBool } from 'kysely'
import { z } from 'zod'
import type { CursorSigner } from '../http/cursor.ts'
import { endpoint, holdersOf, reply, type Endpoint } from '../http/endpoint.ts'
import { filter, listOf } from '../http/list-query.ts'
import { pageBody } from '../http/page-body.ts'
import { readPage } from '../http/pagination.ts'
import { dateParameter, optional, textParameter } from '../http/query-parameters.ts'
import { fittingMembers, invalidFields, type FieldError } from '../problems.ts'
import {
  createApiKey,
  createApiKeySchema,
  findWrongInNewKey,
  getApiKey,
  revokeApiKey,
  selectApiKeys,
  type ApiKey,
} from './api-keys.ts'
import { deletePlan, getPlan, planName, planOf, planSchema, putPlan, setClientPlan, type Plan } from './plans.ts'
import { summarizeUsage } from './usage.ts'

export interface MeteringRoutesParts {
  readonly cursors: CursorSigner
}

const planExample = {
  name: 'Basic Plan',
  throttle: { rateLimit: 100, burstLimit: 200 },
  quota: { limit: 10_000, period: 'DAY' as const },
}
const times = { created_at: '2026-01-15T10:30:00.000Z', updated_at: '2026-01-20T10:00:00.000Z' }
const planBody = z
  .object({
    name: z.string(),
    throttle: z
      .object({ rateLimit: z.number(), burstLimit: z.int() })
      .nullable()
      .meta({ description: 'Requests a second, and how many may come at once; null: no limit' }),
    quota: z
      .object({ limit: z.int(), period: z.enum(['DAY', 'WEEK', 'MONTH']) })
      .nullable()
      .meta({ description: 'Requests in a period, in UTC; null: no limit' }),
    created_at: z.iso.datetime(),
    updated_at: z.iso.datetime(),
  })
  .meta({ id: 'Plan', example: { ...planExample, ...times } })
const putPlanBody = planSchema.meta({ id: 'PutPlan', example: planExample })

function describePlan({ name, throttle, quota, created_at, updated_at }: Plan): z.input<typeof planBody> {
  return { name, throttle, quota, created_at: created_at.toISOString(), updated_at: updated_at.toISOString() }
}

const planList = listOf({
  name: 'plans',
  sort: { created_at: { column: sql.ref('usage_plans.created_at'), type: 'timestamp' } },
  defaultSort: 'name',
  tieBreak: { name: 'name', column: sql.ref('usage_plans.name'), type: 'text' },
  filters: {},
  fields: ['name', 'throttle', 'quota', 'created_at', 'updated_at'],
})

const keyExample = {
  api_key_id: 'key_8Jd0aPq2LmXz4cYp',
  client_id: 'nightly-report',
  name: 'The old appliance',
  prefix: 'lk_key_8fk3j',
  plan: 'Basic Plan',
  created_at: times.created_at,
  last_used_at: null,
  expires_at: null,
}
const keyBody = z
  .object({
    api_key_id: z.string(),
    client_id: z.string().meta({ description: 'The client whose rights the key has' }),
    name: z.string(),
    prefix: z.string().meta({ description: 'The first characters of its value' }),
    plan: z.string().nullable().meta({ description: 'Its own usage plan; null: it counts as its client does' }),
    created_at: z.iso.datetime(),
    last_used_at: z.iso.datetime().nullable().meta({ description: 'To the minute' }),
    expires_at: z.iso.datetime().nullable(),
  })
  .meta({ id: 'ApiKey', example: keyExample })
const newKeyBody = keyBody
  .extend({ api_key: z.string().meta({ description: 'Shown this once; sent as `x-api-key`' }) })
  .meta({ id: 'NewApiKey', example: { ...keyExample, api_key: 'lk_key_shown-this-once' } })
const createKeyBody = createApiKeySchema.meta({
  id: 'CreateApiKey',
  example: { client_id: 'nightly-report', name: 'The old appliance', plan: 'Basic Plan' },
})

function describeKey(key: ApiKey): z.input<typeof keyBody> {
  return {
    ...key,
    created_at: key.created_at.toISOString(),
    last_used_at: key.last_used_at?.toISOString() ?? null,
    expires_at: key.expires_at?.toISOString() ?? null,
  }
}

const keyList = listOf({
  name: 'api_keys',
  sort: { created_at: { column: sql.ref('api_keys.created_at'), type: 'timestamp' } },
  defaultSort: 'created_at',
  tieBreak: { name: 'api_key_id', column: sql.ref('api_keys.id'), type: 'text' },
  filters: {
    client_id: filter(
      textParameter(128, { description: 'Only keys of this client', example: keyExample.client_id }),
      (id) => sql<SqlBool>`api_keys.client_id = ${id}`,
    ),
  },
  fields: ['api_key_id', 'client_id', 'name', 'prefix', 'plan', 'created_at', 'last_used_at', 'expires_at'],
})

const clientPlanBody = z
  .object({ client_id: z.string(), plan: z.string().nullable() })
  .meta({ id: 'PlanOfClient', example: { client_id: 'nightly-report', plan: 'Basic Plan' } })
const setClientPlanBody = z
  .strictObject({ plan: planName.nullable() })
  .meta({ id: 'SetPlanOfClient', example: { plan: 'Basic Plan' } })

const sums = {
  requests: z.int(),
  errors: z.int(),
  error_percent: z.number(),
  last_seen_at: z.iso.datetime(),
}
const sumsExample = { requests: 8_234, errors: 12, error_percent: 0.1, last_seen_at: times.updated_at }
const usageBody = z
  .object({
    from: z.iso.date(),
    to: z.iso.date(),
    versions: z.array(z.object({ version: z.string(), share_percent: z.number(), ...sums })),
    callers: z.array(
      z.object({
        version: z.string(),
        client_id: z.string().nullable(),
        user_agent: z.string().nullable(),
        share_percent: z.number(),
        endpoints: z.array(z.string()),
        ...sums,
      }),
    ),
  })
  .meta({
    id: 'Usage',
    example: {
      from: '2026-01-13',
      to: '2026-01-20',
      versions: [{ version: '1', share_percent: 100, ...sumsExample }],
      callers: [
        {
          version: '1',
          client_id: 'batch-job-1',
          user_agent: 'batch-processor/1.5',
          share_percent: 66.1,
          endpoints: ['GET /v1/users'],
          ...sumsExample,
        },
      ],
    },
  })

const planParams = z.object({
  name: planName.meta({ description: 'The plan, percent-encoded', example: 'Basic Plan' }),
})
const keyParams = z.object({
  api_key_id: z
    .string()
    .regex(/^[\w-]{1,64}$/)
    .meta({ description: 'The key', example: keyExample.api_key_id }),
})
const clientParams = z.object({
  client_id: z.string().min(1).max(128).meta({ description: 'The client', example: keyExample.client_id }),
})

export function meteringRoutes({ cursors }: MeteringRoutesParts): readonly Endpoint[] {
  return [
    endpoint({
      method: 'GET',
      path: '/v1/plans',
      name: 'listPlans',
      summary: 'Usage plans, in pages',
      tag: 'Plans',
      access: holdersOf('plans:read'),
      query: planList.query,
      responses: { 200: pageBody('plans', planBody, 'name', '/v1/plans') },
      async handle({ db, query, path }) {
        const base = db.selectFrom('usage_plans').selectAll()
        const { items, pagination } = await readPage(db, planList, base, query, { signer: cursors, path })
        const plans = items.map((row) => planList.pickFields(describePlan(planOf(row)), query.fields))
        return reply(200, { plans, pagination })
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/plans/{name}',
      name: 'getPlan',
      summary: 'One usage plan',
      tag: 'Plans',
      access: holdersOf('plans:read'),
      params: planParams,
      responses: { 200: planBody },
      async handle({ db, params }) {
        const plan = await getPlan(db, params.name)
        return reply(200, describePlan(plan), { version: plan.row_version })
      },
    }),
    endpoint({
      method: 'PUT',
      path: '/v1/plans/{name}',
      name: 'putPlan',
      summary: 'Make a usage plan, or make it so',
      description: 'The shape is that of AWS API Gateway. `If-None-Match: *` creates only.',
      tag: 'Plans',
      access: holdersOf('plans:write'),
      params: planParams,
      body: putPlanBody,
      alsoWrong: async ({ body, params }) => findOtherName(fittingMembers(planSchema, body).name, params['name']),
      isVersioned: true,
      responses: { 200: planBody, 201: planBody },
      async handle({ params, body, expectedVersions, mustExist, mustNotExist, write }) {
        const wrong = findOtherName(body.name, params.name)
        if (wrong.length > 0) throw invalidFields(wrong)
        return write(async (trx, actor) => {
          const conditions = {
            expectedVersions: mustExist ? (expectedVersions ?? [await versionOf(trx, params.name)]) : undefined,
            mustNotExist,
          }
          const { plan, created } = await putPlan(trx, actor, body, conditions)
          const version = plan.row_version
          return created
            ? reply(201, describePlan(plan), {
                version,
                headers: { Location: `/v1/plans/${encodeURIComponent(plan.name)}` },
              })
            : reply(200, describePlan(plan), { version })
        })
      },
    }),
    endpoint({
      method: 'DELETE',
      path: '/v1/plans/{name}',
      name: 'deletePlan',
      summary: 'Remove a usage plan that nobody is on',
      tag: 'Plans',
      access: holdersOf('plans:write'),
      params: planParams,
      isVersioned: true,
      responses: { 204: null },
      problems: ['CONFLICT'],
      async handle({ params, expectedVersions, write }) {
        return write(async (trx, actor) => {
          await deletePlan(trx, actor, { name: params.name, expectedVersions })
          return reply(204, undefined)
        })
      },
    }),
    endpoint({
      method: 'PUT',
      path: '/v1/clients/{client_id}/plan',
      name: 'setPlanOfClient',
      summary: 'Put a client on a usage plan, or on none',
      tag: 'Plans',
      access: holdersOf('plans:write'),
      params: clientParams,
      body: setClientPlanBody,
      responses: { 200: clientPlanBody },
      problems: ['CONFLICT'],
      async handle({ params, body, write }) {
        return write(async (trx, actor) => {
          await setClientPlan(trx, actor, { client_id: params.client_id, plan: body.plan })
          return reply(200, { client_id: params.client_id, plan: body.plan })
        })
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/api-keys',
      name: 'listApiKeys',
      summary: 'API keys, in pages',
      tag: 'API keys',
      access: holdersOf('clients:read'),
      query: keyList.query,
      responses: { 200: pageBody('api_keys', keyBody, 'api_key_id', '/v1/api-keys') },
      async handle({ db, query, path }) {
        const { items, pagination } = await readPage(db, keyList, selectApiKeys(db), query, { signer: cursors, path })
        return reply(200, {
          api_keys: items.map((key) => keyList.pickFields(describeKey(key), query.fields)),
          pagination,
        })
      },
    }),
    endpoint({
      method: 'POST',
      path: '/v1/api-keys',
      name: 'createApiKey',
      summary: 'Make an API key for a client that cannot do OAuth',
      description: 'The answer holds the key, which is shown this once.',
      tag: 'API keys',
      access: holdersOf('clients:write'),
      body: createKeyBody,
      alsoWrong: ({ body, db }) => findWrongInNewKey(db, body),
      responses: { 201: newKeyBody },
      problems: ['CONFLICT'],
      async handle({ body, write }) {
        return write(async (trx, actor) => {
          const { api_key: key, key: value } = await createApiKey(trx, actor, body)
          const headers = { Location: `/v1/api-keys/${key.api_key_id}` }
          return reply(201, { ...describeKey(key), api_key: value }, { headers })
        })
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/api-keys/{api_key_id}',
      name: 'getApiKey',
      summary: 'One API key, without its value',
      tag: 'API keys',
      access: holdersOf('clients:read'),
      params: keyParams,
      responses: { 200: keyBody },
      async handle({ db, params }) {
        return reply(200, describeKey(await getApiKey(db, params.api_key_id)))
      },
    }),
    endpoint({
      method: 'DELETE',
      path: '/v1/api-keys/{api_key_id}',
      name: 'revokeApiKey',
      summary: 'End an API key at once',
      tag: 'API keys',
      access: holdersOf('clients:write'),
      params: keyParams,
      responses: { 204: null },
      async handle({ params, write }) {
        return write(async (trx, actor) => {
          await revokeApiKey(trx, actor, { api_key_id: params.api_key_id })
          return reply(204, undefined)
        })
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/usage',
      name: 'getUsage',
      summary: 'Which versions of this API are in use, and by whom',
      description:
        'The seven days that end with `to`, which is today, unless `from` and `to` say otherwise; both days are part of it, in UTC.',
      tag: 'Usage',
      access: holdersOf('usage:read'),
      query: z.strictObject({
        from: optional(dateParameter('The first day')),
        to: optional(dateParameter('The last day')),
        version: optional(textParameter(20, { description: 'Only this version', example: '1' })),
      }),
      responses: { 200: usageBody },
      async handle({ db, query }) {
        const { version } = query
        const { rows } = await sql<{ from: string; to: string }>`
          SELECT coalesce(${query.from ?? null}::date, last - 6)::text AS "from", last::text AS "to"
          FROM (
            SELECT coalesce(${query.to ?? null}::date, (clock_timestamp() AT TIME ZONE 'UTC')::date) AS last
          ) AS period`.execute(db)
        const { from = '', to = '' } = rows[0] ?? {}
        if (from > to) {
          throw invalidFields([
            { field: 'from', value: from, constraint: 'maximum', message: `Must not be later than ${to}` },
          ])
        }
        const { versions, callers } = await summarizeUsage(db, {
          from,
          to,
          ...(version === undefined ? {} : { version }),
        })
        const dated = <T extends { last_seen_at: Date }>(row: T) => ({
          ...row,
          last_seen_at: row.last_seen_at.toISOString(),
        })
        return reply(200, {
          from,
          to,
          versions: versions.map(dated),
          callers: callers.map((row) => ({ ...dated(row), endpoints: [...row.endpoints] })),
        })
      },
    }),
  ]
}

function findOtherName(given: string | undefined, inPath: string | undefined): FieldError[] {
  if (given === undefined || given === inPath) return []
  return [{ field: 'name', value: given, constraint: 'matches', message: 'Must be the name in the path' }]
}

/** `If-Match: *`: whatever there is, but something. */
async function versionOf(trx: Parameters<typeof getPlan>[0], name: string): Promise<number> {
  const row = await trx.selectFrom('usage_plans').select('row_version').where('name', '=', name).executeTakeFirst()
  return row?.row_version ?? 0
}
