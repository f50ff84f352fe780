import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import { findApiKeyByValue, type ApiKey } from '../../src/metering/api-keys.ts'
import { findPlan, type Plan } from '../../src/metering/plans.ts'
import { createClient, getClient } from '../../src/oauth/clients.ts'
import { json, latchkey } from '../commands/running.ts'
import { eachDatabase, type TestDatabase } from '../support/databases.ts'

const basicPlan = readFileSync(join(import.meta.dirname, 'basic-plan.json'), 'utf8')

eachDatabase((open) => {
  let database: TestDatabase
  beforeAll(async () => {
    database = await open()
    await database.db
      .transaction()
      .execute((trx) => createClient(trx, systemActor, { type: 'machine', id: 'job', name: 'Job' }))
  })
  const run = (...args: string[]) => latchkey(database, args)

  describe('latchkey plans', () => {
    it('a wrong command line makes nothing', async () => {
      const wrong: [string[], RegExp, string?][] = [
        [['set'], /name the plan/],
        [['set', 'x', '--rate', '1'], /--rate and --burst go together/],
        [['set', 'x', '--rate', 'fast', '--burst', '1'], /--rate must be a number/],
        [['set', 'x', '--quota', '1'], /--quota and --period go together/],
        [['set', 'x', '--stdin'], /everything stands in the plan itself/, basicPlan],
        [['set', '--stdin'], /not JSON/, '{'],
        [['delete', 'x'], /--yes/],
        [['assign', 'job'], /name a plan, or say --none/],
        [['assign', 'job', 'x', '--none'], /name a plan, or say --none/],
      ]
      for (const [args, message, stdin] of wrong) {
        const ran = await latchkey(database, ['plans', ...args], stdin)
        expect({ args, ...ran }).toEqual({ args, exitCode: 2, out: '', err: expect.stringMatching(message) })
      }
      expect(await run('plans', 'set', 'x', '--quota', '1', '--period', 'YEAR')).toMatchObject({
        exitCode: 1,
        err: expect.stringContaining('quota.period') as string,
      })
      expect(await run('plans', 'list')).toEqual({ exitCode: 0, out: '', err: '' })
    })

    it('takes a plan as AWS API Gateway writes it, and one of options; assigns, and deletes what nobody is on', async () => {
      const made = await json<Plan>(database, ['plans', 'set', '--stdin'], basicPlan)
      expect(made).toMatchObject(JSON.parse(basicPlan) as object)
      const set = await run(
        'plans',
        'set',
        'Small',
        '--rate',
        '0.5',
        '--burst',
        '2',
        '--quota',
        '30',
        '--period',
        'MONTH',
      )
      expect(set).toEqual({ exitCode: 0, out: 'The plan Small is made: 0.5/s, 2 at once, 30 a MONTH.', err: '' })
      expect((await run('plans', 'set', 'Small')).out).toBe('The plan Small is set: no throttle, no quota.')
      expect((await run('plans', 'list')).out).toBe(
        [
          'PLAN        THROTTLE            QUOTA',
          'Basic Plan  100/s, 200 at once  10000 a DAY',
          'Small       no throttle         no quota',
        ].join('\n'),
      )

      expect((await run('plans', 'assign', 'job', 'Small')).err).toBe('job is now on the plan Small.')
      expect((await run('plans', 'assign', 'job', 'Small')).err).toBe('job is already on the plan Small.')
      expect(await run('plans', 'delete', 'Small', '--yes')).toMatchObject({
        exitCode: 1,
        err: expect.stringContaining('in use by 1 client') as string,
      })
      expect((await run('plans', 'assign', 'job', '--none')).err).toBe('job is now on no plan.')
      expect((await getClient(database.db, 'job')).plan).toBeNull()
      expect((await run('plans', 'delete', 'Small', '--yes')).exitCode).toBe(0)
      expect(await findPlan(database.db, 'Small')).toBeUndefined()
    })
  })

  describe('latchkey api-keys', () => {
    it('a wrong command line makes nothing', async () => {
      for (const [args, exitCode, message] of [
        [['create', 'job'], 2, /missing required argument/],
        [['create', 'nobody', 'x'], 1, /nobody/],
        [['create', 'job', 'x', '--plan', 'tin'], 1, /There is no plan tin/],
        [['create', 'job', 'x', '--days', '0'], 1, /expires_at/],
        [['create', 'job', 'x', '--days', '999999999'], 2, /at most 36500/],
        [['revoke', 'key_x'], 2, /--yes/],
        [['revoke', 'key_x', '--yes'], 1, /key_x/],
      ] as const) {
        const ran = await run('api-keys', ...args)
        expect({ args, ...ran }).toEqual({ args, exitCode, out: '', err: expect.stringMatching(message) })
      }
      expect(await run('api-keys', 'list')).toEqual({ exitCode: 0, out: '', err: '' })
    })

    it('shows a key once, lists it without its value, and ends it', async () => {
      const { api_key, key } = await json<{ api_key: ApiKey; key: string }>(database, [
        'api-keys',
        'create',
        'job',
        'Nightly export',
        '--days',
        '30',
      ])
      expect(await findApiKeyByValue(database.db, key)).toMatchObject({ client_id: 'job', name: 'Nightly export' })
      const shown = await run('api-keys', 'create', 'job', 'Another')
      expect(shown.out).toMatch(/^api_key_id {2}key_[\w-]{16}\napi_key {5}lk_key_[\w-]{43}$/)
      const { out } = await run('api-keys', 'list', '--client', 'job')
      expect(out).toContain(`${key.slice(0, 12)}…`)
      expect(out).not.toContain(key.slice(12))
      expect(await json<ApiKey[]>(database, ['api-keys', 'list', '--client', 'nobody'])).toEqual([])
      expect((await run('api-keys', 'revoke', api_key.api_key_id, '--yes')).exitCode).toBe(0)
      expect(await findApiKeyByValue(database.db, key)).toBeUndefined()
    })
  })
})
