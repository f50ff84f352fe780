import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import type { Actor } from '../../src/audit/audit.ts'
import { openChanges } from '../../src/database/changes.ts'
import type { Trx } from '../../src/database/database.ts'
import { openRateLimiter } from '../../src/http/rate-limit.ts'
import { createApiKey } from '../../src/metering/api-keys.ts'
import { openMeter, type MeteredCaller } from '../../src/metering/meter.ts'
import {
  deletePlan,
  findPlan,
  getPlan,
  listPlans,
  openPlanDirectory,
  putPlan,
  setClientPlan,
  type PlanInput,
} from '../../src/metering/plans.ts'
import { createClient, getClient, updateClient } from '../../src/oauth/clients.ts'
import { Problem } from '../../src/problems.ts'
import { eachDatabase, onPostgres, openLocation, type TestDatabase } from '../support/databases.ts'

const actor: Actor = { type: 'operator', id: 'ada' }
const basicPlan = JSON.parse(readFileSync(join(import.meta.dirname, 'basic-plan.json'), 'utf8')) as PlanInput

async function makeClient(database: TestDatabase, id: string): Promise<void> {
  await write(database, (trx) => createClient(trx, actor, { type: 'machine', id, name: id }))
}

function write<T>({ db }: TestDatabase, change: (trx: Trx) => Promise<T>): Promise<T> {
  return db.transaction().execute(change)
}

async function refusalOf(promise: Promise<unknown>): Promise<Problem> {
  const error = await promise.then(
    () => undefined,
    (error: unknown) => error,
  )
  if (!(error instanceof Problem)) throw new Error(`no refusal but ${String(error)}`)
  return error
}

eachDatabase((open) => {
  let database: TestDatabase
  beforeAll(async () => {
    database = await open()
  })
  const put = (input: PlanInput, conditions?: Parameters<typeof putPlan>[3]) =>
    write(database, (trx) => putPlan(trx, actor, input, conditions))

  describe('a plan', () => {
    it('is refused when it is none, with every field that is wrong', async () => {
      const refusal = await refusalOf(
        put({ name: '/', throttle: { rateLimit: 0, burstLimit: 1.5 }, quota: { limit: 0, period: 'YEAR' as 'DAY' } }),
      )
      expect(refusal.code).toBe('VALIDATION_ERROR')
      expect(refusal.details.map(({ field }) => field)).toEqual([
        'name',
        'throttle.rateLimit',
        'throttle.burstLimit',
        'quota.limit',
        'quota.period',
      ])
      const unknown = { name: 'X', throttle: { rateLimit: 1, burstLimit: 1, offset: 3 } } as PlanInput
      expect((await refusalOf(put(unknown))).details[0]?.field).toBe('throttle.offset')
    })

    it('is taken as AWS API Gateway writes it, and given back so', async () => {
      const { plan, created } = await put(basicPlan)
      expect(created).toBe(true)
      expect(plan).toEqual({
        ...basicPlan,
        row_version: expect.any(Number) as number,
        created_at: expect.any(Date) as Date,
        updated_at: expect.any(Date) as Date,
      })
      expect(await findPlan(database.db, 'Basic Plan')).toEqual(plan)
      expect((await listPlans(database.db)).map(({ name }) => name)).toContain('Basic Plan')
    })

    it('may limit the rate alone, the quota alone, or nothing', async () => {
      await put({ name: 'rate', throttle: { rateLimit: 0.5, burstLimit: 1 } })
      await put({ name: 'quota', quota: { limit: 1_000_000_000_000, period: 'MONTH' }, throttle: null })
      await put({ name: 'none' })
      expect(await getPlan(database.db, 'rate')).toMatchObject({
        throttle: { rateLimit: 0.5, burstLimit: 1 },
        quota: null,
      })
      expect(await getPlan(database.db, 'quota')).toMatchObject({ throttle: null, quota: { limit: 1_000_000_000_000 } })
      expect(await getPlan(database.db, 'none')).toMatchObject({ throttle: null, quota: null })
    })

    it('is replaced as a whole, and left alone where it is the same already', async () => {
      const before = (await put({ ...basicPlan, name: 'replaced' })).plan.row_version
      const { plan, created } = await put({ name: 'replaced', quota: { limit: 5, period: 'WEEK' } })
      expect(created).toBe(false)
      expect(plan).toMatchObject({ throttle: null, quota: { limit: 5, period: 'WEEK' }, row_version: before + 1 })
      expect((await put({ quota: { period: 'WEEK', limit: 5 }, throttle: null, name: 'replaced' })).plan).toEqual(plan)
      const { rows: audit } = await auditOf('replaced')
      expect(audit).toEqual(['plan.created', 'plan.updated'])
    })

    it('that has changed since it was read is not replaced, unless it is the same already', async () => {
      const first = (await put({ name: 'guarded' })).plan.row_version
      await put({ name: 'guarded', quota: { limit: 1, period: 'DAY' } })
      const wanted: PlanInput = { name: 'guarded', quota: { limit: 2, period: 'DAY' } }
      const refusal = await refusalOf(put(wanted, { expectedVersions: [first] }))
      expect([refusal.code, refusal.status]).toEqual(['PRECONDITION_FAILED', 412])
      expect((await put(wanted, { expectedVersions: [first, first + 1] })).plan.row_version).toBe(first + 2)
      // The answer was lost, and the request sent again.
      expect((await put(wanted, { expectedVersions: [first + 1] })).plan.row_version).toBe(first + 2)
      expect((await refusalOf(put({ name: 'nowhere' }, { expectedVersions: [1] }))).code).toBe('PRECONDITION_FAILED')
      expect(await findPlan(database.db, 'nowhere')).toBeUndefined()
      expect((await refusalOf(put({ name: 'guarded' }, { mustNotExist: true }))).code).toBe('PRECONDITION_FAILED')
      expect((await put({ name: 'created-only' }, { mustNotExist: true })).created).toBe(true)
    })

    it('is not deleted while a client or a key is on it', async () => {
      const remove = (name: string, expectedVersions?: readonly number[]) =>
        write(database, (trx) => deletePlan(trx, actor, { name, expectedVersions }))
      const missing = await refusalOf(remove('missing'))
      expect(missing).toMatchObject({ code: 'RESOURCE_NOT_FOUND' })
      expect(missing.members).toMatchObject({ resource_type: 'plan', resource_id: 'missing' })
      const version = (await put({ name: 'in use' })).plan.row_version
      await makeClient(database, 'user-of-plan')
      await write(database, (trx) => setClientPlan(trx, actor, { client_id: 'user-of-plan', plan: 'in use' }))
      expect(await refusalOf(remove('in use'))).toMatchObject({
        code: 'CONFLICT',
        message: 'The plan in use is in use by 1 client and 0 API keys: give them another first.',
      })
      await write(database, (trx) => setClientPlan(trx, actor, { client_id: 'user-of-plan', plan: null }))
      await write(database, (trx) => createApiKey(trx, actor, { client_id: 'user-of-plan', name: 'k', plan: 'in use' }))
      expect((await refusalOf(remove('in use'))).code).toBe('CONFLICT')
      await database.db.deleteFrom('api_keys').execute()
      expect((await refusalOf(remove('in use', [7]))).code).toBe('PRECONDITION_FAILED')
      await remove('in use', [version])
      expect(await findPlan(database.db, 'in use')).toBeUndefined()
      expect((await auditOf('in use')).rows).toEqual(['plan.created', 'plan.deleted'])
    })
  })

  describe('a client', () => {
    it('is put on a plan that exists, and the change is on record', async () => {
      await makeClient(database, 'assigned')
      await put({ name: 'gold' })
      const assign = (client_id: string, plan: string | null) =>
        write(database, (trx) => setClientPlan(trx, actor, { client_id, plan }))
      expect((await refusalOf(assign('nobody', 'gold'))).members).toMatchObject({
        resource_type: 'client',
        resource_id: 'nobody',
      })
      expect((await refusalOf(assign('assigned', 'tin'))).details).toEqual([
        { field: 'plan', constraint: 'exists', message: 'There is no plan tin' },
      ])
      const { row_version: before } = await getClient(database.db, 'assigned')
      expect(await assign('assigned', 'gold')).toBe(true)
      expect(await assign('assigned', 'gold')).toBe(false)
      expect(await getClient(database.db, 'assigned')).toMatchObject({ plan: 'gold', row_version: before + 1 })
      expect((await auditOf('assigned')).rows).toEqual(['client.created', 'client.plan-set'])
    })

    it('keeps its plan when its metadata change', async () => {
      await makeClient(database, 'renamed')
      await put({ name: 'kept' })
      await write(database, (trx) => setClientPlan(trx, actor, { client_id: 'renamed', plan: 'kept' }))
      await write(database, (trx) => updateClient(trx, actor, { id: 'renamed', name: 'Another name' }))
      expect(await getClient(database.db, 'renamed')).toMatchObject({ name: 'Another name', plan: 'kept' })
    })
  })

  async function auditOf(id: string) {
    const rows = await database.db
      .selectFrom('audit_events')
      .select('action')
      .where('target_id', '=', id)
      .orderBy('id')
      .execute()
    return { rows: rows.map(({ action }) => action) }
  }

  describe('who is counted', () => {
    async function openCounting() {
      const log = pino({ level: 'silent' })
      const changes = await openChanges(database, database.location.databaseUrl, log)
      const limiter = openRateLimiter({ db: database.db })
      const plans = openPlanDirectory(database.db, changes)
      onTestFinished(async () => {
        plans.close()
        await limiter.close()
        await changes.close()
      })
      return { meter: openMeter({ limiter, plans }), plans }
    }

    it('is nobody without a plan', async () => {
      await makeClient(database, 'free')
      const { meter } = await openCounting()
      for (const clientId of ['free', 'nobody', '\0']) {
        expect(await meter.take({ clientId })).toEqual({ verdicts: [], refusal: undefined })
      }
    })

    it('is refused by the first limit that is used up, and a refusal counts nowhere', async () => {
      await makeClient(database, 'counted')
      await put({ name: 'three', throttle: { rateLimit: 0.001, burstLimit: 5 }, quota: { limit: 3, period: 'DAY' } })
      await write(database, (trx) => setClientPlan(trx, actor, { client_id: 'counted', plan: 'three' }))
      const { meter, plans } = await openCounting()
      const take = () => meter.take({ clientId: 'counted' })
      const first = await take()
      expect(first.refusal).toBeUndefined()
      expect(first.verdicts.map(({ name, verdict }) => [name, verdict.limit, verdict.remaining])).toEqual([
        ['throttle', 5, 4],
        ['quota', 3, 2],
      ])
      await take()
      await take()
      for (let n = 0; n < 5; n += 1) {
        const { verdicts, refusal } = await take()
        expect(refusal).toBe(verdicts[1]?.verdict)
        expect(refusal).toMatchObject({ allowed: false, limit: 3, remaining: 0 })
      }
      // Three were let through, so the throttle has two left.
      await put({ name: 'three', throttle: { rateLimit: 0.001, burstLimit: 5 } })
      await expect.poll(() => plans.planOfClient('counted')).toMatchObject({ quota: null })
      expect([await take(), await take(), await take()].map(({ refusal }) => refusal === undefined)).toEqual([
        true,
        true,
        false,
      ])
    })

    it('by a key with a plan of its own counts there, by another key as its client does', async () => {
      await makeClient(database, 'keyed')
      await put({ name: 'one', quota: { limit: 1, period: 'DAY' } })
      await put({ name: 'two', quota: { limit: 2, period: 'DAY' } })
      await write(database, (trx) => setClientPlan(trx, actor, { client_id: 'keyed', plan: 'one' }))
      const { meter } = await openCounting()
      const own = { clientId: 'keyed', apiKey: { api_key_id: 'key_own', plan: 'two' } }
      const shared = { clientId: 'keyed', apiKey: { api_key_id: 'key_shared', plan: null } }
      const isRefused = async (caller: MeteredCaller) => (await meter.take(caller)).refusal !== undefined
      expect([await isRefused(own), await isRefused(own), await isRefused(own)]).toEqual([false, false, true])
      expect([await isRefused(shared), await isRefused(shared), await isRefused({ clientId: 'keyed' })]).toEqual([
        false,
        true,
        true,
      ])
    })

    it('follows a change of the plan, and of who is on it, without a restart', async () => {
      await makeClient(database, 'followed')
      await put({ name: 'small', quota: { limit: 1, period: 'DAY' } })
      const { plans } = await openCounting()
      expect(await plans.planOfClient('followed')).toBeUndefined()
      await write(database, (trx) => setClientPlan(trx, actor, { client_id: 'followed', plan: 'small' }))
      await expect.poll(() => plans.planOfClient('followed')).toMatchObject({ quota: { limit: 1 } })
      await put({ name: 'small', quota: { limit: 9, period: 'DAY' } })
      await expect.poll(() => plans.planOfClient('followed')).toMatchObject({ quota: { limit: 9 } })
    })
  })
})

onPostgres((open) => {
  it('a plan that is being deleted cannot be put on a client beside that', async () => {
    const database = await open()
    const other = await openLocation(database.location)
    onTestFinished(() => other.close())
    await makeClient(database, 'c')
    await write(database, (trx) => putPlan(trx, actor, { name: 'p' }))
    for (let round = 0; round < 10; round += 1) {
      const outcomes = await Promise.allSettled([
        write(database, async (trx) => {
          await setClientPlan(trx, actor, { client_id: 'c', plan: 'p' })
          await sleep(round)
        }),
        other.db.transaction().execute((trx) => deletePlan(trx, actor, { name: 'p' })),
      ])
      const failures = outcomes.flatMap((outcome) => (outcome.status === 'rejected' ? [outcome.reason as Error] : []))
      expect(failures.map(({ name }) => name)).toEqual(['Problem'])
      await write(database, (trx) => setClientPlan(trx, actor, { client_id: 'c', plan: null }))
      await write(database, (trx) => putPlan(trx, actor, { name: 'p' }))
    }
  })

  it('of many that make one plan at the same time, one makes it', async () => {
    const database = await open()
    const made = await Promise.all(
      Array.from({ length: 8 }, (_, n) =>
        write(database, (trx) => putPlan(trx, actor, { name: 'p', quota: { limit: n + 1, period: 'DAY' } })),
      ),
    )
    expect(made.filter(({ created }) => created)).toHaveLength(1)
  })
})
