/** Limits at the protocol's endpoints, over HTTP: by plan once it is known who asks, by network before. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import type { DemoData } from '../../src/demo/demo-data.ts'
import { getPlan, putPlan, setClientPlan, type PlanInput } from '../../src/metering/plans.ts'
import { getClient } from '../../src/oauth/clients.ts'
import { createDatabase, eachDatabase, hasPostgres, openLocation } from '../support/databases.ts'
import { cheapestWorkFactor, openProvider, type TestProvider } from '../support/provider.ts'
import { authorize, exchange, registerClient, type RegisteredClient } from '../support/relying-party.ts'
import { startServer } from '../support/server-process.ts'
import { postForm, type TokenAnswer } from '../support/user-agent.ts'

/** So slow that nothing comes back while a test runs. */
const never = 0.001

async function putOn(provider: TestProvider, client: RegisteredClient, plan: PlanInput | null): Promise<void> {
  await provider.database.db.transaction().execute(async (trx) => {
    if (plan !== null) await putPlan(trx, systemActor, plan)
    await setClientPlan(trx, systemActor, { client_id: client.client_id, plan: plan?.name ?? null })
  })
  // The news is there within milliseconds.
  await sleep(700)
}

eachDatabase((_open, engine) => {
  let provider: TestProvider
  beforeAll(async () => {
    provider = await openProvider(engine, { keepsPlans: true })
  })
  const ask = (client: RegisteredClient, parameters: Readonly<Record<string, string>> = {}): Promise<TokenAnswer> =>
    postForm(`${provider.issuer}/token`, client, {
      grant_type: 'client_credentials',
      resource: provider.demo.resource,
      ...parameters,
    })

  describe('the plan of a client', () => {
    it('of the demo is the Basic Plan, as it is written', async () => {
      const text = await readFile(join(import.meta.dirname, 'basic-plan.json'), 'utf8')
      expect(await getPlan(provider.database.db, 'Basic Plan')).toMatchObject(JSON.parse(text) as object)
      for (const { client_id } of Object.values(provider.demo.clients)) {
        expect((await getClient(provider.database.db, client_id)).plan).toBe('Basic Plan')
      }
    })

    it('refuses what is beyond it, and says so in headers and in the words of RFC 6749', async () => {
      const machine = await registerClient(provider, { type: 'machine' })
      await putOn(provider, machine, { name: 'three', throttle: { rateLimit: 0.01, burstLimit: 3 } })
      for (let n = 0; n < 3; n += 1) expect((await ask(machine)).status).toBe(200)
      const { status, headers, body } = await ask(machine)
      expect(status).toBe(429)
      expect(body).toEqual({
        error: 'temporarily_unavailable',
        error_description: 'this client has used up what its plan allows: wait for as long as Retry-After says',
      })
      expect(Number(headers.get('retry-after'))).toBeGreaterThan(80)
      expect(await provider.metrics()).toMatch(/^latchkey_rate_limited_total\{limit="throttle"\} [1-9]/m)
      expect(headers.get('ratelimit')).toMatch(/^"throttle";r=0;t=\d+$/)
      expect(headers.get('ratelimit-policy')).toBe('"throttle";q=3;w=300')
      expect(headers.get('x-ratelimit-limit')).toBe('3')
      expect(headers.get('cache-control')).toBe('no-store')
      expect(provider.log()).toContain('temporarily_unavailable')
      // Of another client this says nothing.
      expect((await ask(await registerClient(provider, { type: 'machine' }))).status).toBe(200)
    })

    it('has a quota too', async () => {
      const machine = await registerClient(provider, { type: 'machine' })
      await putOn(provider, machine, { name: 'two a day', quota: { limit: 2, period: 'DAY' } })
      const answers = [await ask(machine), await ask(machine), await ask(machine)]
      expect(answers.map(({ status }) => status)).toEqual([200, 200, 429])
      expect(answers[2]?.headers.get('ratelimit-policy')).toBe('"quota";q=2;w=86400')
    })

    it('is not used up by somebody who only knows the name of a client', async () => {
      const machine = await registerClient(provider, { type: 'machine' })
      const spa = await registerClient(provider, { type: 'spa' })
      await putOn(provider, machine, { name: 'one', throttle: { rateLimit: never, burstLimit: 1 } })
      await putOn(provider, spa, { name: 'one', throttle: { rateLimit: never, burstLimit: 1 } })
      for (let n = 0; n < 3; n += 1) {
        expect((await ask({ ...machine, client_secret: 'lk_secret_wrong' })).status).toBe(401)
        const made = { grant_type: 'authorization_code', code: 'made-up', code_verifier: 'x'.repeat(43) }
        expect((await ask(spa, { ...made, redirect_uri: spa.redirect_uri })).body.error).toBe('invalid_grant')
      }
      expect((await ask(machine)).status).toBe(200)
      expect((await ask(machine)).status).toBe(429)
    })

    it('spends neither a code nor a refresh token by a refusal', async () => {
      const web = await registerClient(provider)
      const answered = await authorize(provider, web)
      await putOn(provider, web, { name: 'web', quota: { limit: 1, period: 'DAY' } })
      expect((await ask(web, { grant_type: 'refresh_token', refresh_token: 'made-up' })).body.error).toBe(
        'invalid_grant',
      )
      expect((await exchange(provider, web, answered)).status).toBe(429)
      await putOn(provider, web, null)
      const tokens = await exchange(provider, web, answered)
      expect(tokens.status).toBe(200)

      await putOn(provider, web, { name: 'web', quota: { limit: 1, period: 'DAY' } })
      const refresh = () =>
        ask(web, { grant_type: 'refresh_token', refresh_token: tokens.body.refresh_token ?? '', resource: '' })
      for (let n = 0; n < 3; n += 1) {
        const { status, body } = await refresh()
        expect({ status, error: body.error }).toEqual({ status: 429, error: 'temporarily_unavailable' })
      }
      await putOn(provider, web, null)
      const refreshed = await postForm(`${provider.issuer}/token`, web, {
        grant_type: 'refresh_token',
        refresh_token: tokens.body.refresh_token ?? '',
      })
      expect(refreshed.status).toBe(200)
      expect(refreshed.body.refresh_token).not.toBe(tokens.body.refresh_token)
    })
  })

  describe('a network', () => {
    it('that asks too often is refused before anybody is known, at every endpoint but the public documents', async () => {
      const strict = await openProvider(engine, {
        environment: {
          LATCHKEY_NETWORK_RATE_PER_SECOND: '1',
          LATCHKEY_NETWORK_RATE_BURST: '5',
          LATCHKEY_DEVICE_FLOW: 'true',
        },
      })
      const post = (path: string) =>
        fetch(strict.issuer + path, { method: 'POST', body: new URLSearchParams({ token: 'x' }), redirect: 'manual' })
      const burst = await Promise.all(Array.from({ length: 30 }, () => post('/token')))
      expect(new Set(burst.map(({ status }) => status))).toEqual(new Set([400, 429]))
      // Something comes back each second, and is used up again.
      const refused = async (ask: () => Promise<Response>) => {
        for (let n = 0; n < 30; n += 1) {
          const answer = await ask()
          if (answer.status === 429) return answer
        }
        throw new Error('there is no limit')
      }
      for (const path of ['/token', '/introspect', '/revoke', '/par', '/userinfo', '/device/authorization']) {
        const refusal = await refused(() => post(path))
        expect(await refusal.json()).toEqual({
          error: 'temporarily_unavailable',
          error_description: expect.any(String) as string,
        })
        expect(Number(refusal.headers.get('retry-after'))).toBeGreaterThanOrEqual(1)
        expect(refusal.headers.get('ratelimit-policy')).toBe('"network";q=5;w=5')
      }
      for (const path of ['/authorize?client_id=x', '/device']) {
        const page = await refused(() => fetch(strict.issuer + path, { headers: { accept: 'text/html' } }))
        expect([path, page.headers.get('content-type')]).toEqual([path, 'text/html; charset=utf-8'])
      }
      for (const path of ['/.well-known/openid-configuration', '/.well-known/jwks.json', '/health/live']) {
        expect((await fetch(strict.issuer + path)).status).toBe(200)
      }
    }, 60_000)
  })

  it.runIf(engine === 'postgres')('a token of a machine on a plan costs no statement of its own', async () => {
    const machine = await registerClient(provider, { type: 'machine' })
    await putOn(provider, machine, {
      name: 'large',
      throttle: { rateLimit: 1_000, burstLimit: 100_000 },
      quota: { limit: 1_000_000, period: 'DAY' },
    })
    await ask(machine)
    const { db } = provider.database
    // PostgreSQL's own statistics come seconds late.
    await sql`CREATE SEQUENCE changes`.execute(db)
    await sql`
      CREATE FUNCTION count_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM nextval('changes'); RETURN NULL; END
      $$`.execute(db)
    await sql`
      DO $$ DECLARE name text; BEGIN
        FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = current_schema() LOOP
          EXECUTE format('CREATE TRIGGER count_changes AFTER INSERT OR UPDATE OR DELETE ON %I
            FOR EACH STATEMENT EXECUTE FUNCTION count_change()', name);
        END LOOP;
      END $$`.execute(db)
    const countChanges = async () => {
      const { rows } = await sql<{ n: number }>`
        SELECT CASE WHEN is_called THEN last_value ELSE 0 END::integer AS n FROM changes`.execute(db)
      return rows[0]?.n ?? 0
    }
    const before = await countChanges()
    for (let n = 0; n < 20; n += 1) {
      const answers = await Promise.all(Array.from({ length: 10 }, () => ask(machine)))
      expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200]))
    }
    // Fifty at a time, of the bucket and of the quota each, and what is left of a second goes back.
    const made = (await countChanges()) - before
    expect(made).toBeGreaterThan(0)
    expect(made).toBeLessThan(50)
  })
})

describe.runIf(hasPostgres())('two servers', () => {
  it('let exactly what the plan allows through between them', { timeout: 120_000 }, async () => {
    const location = await createDatabase('postgres')
    const first = await startServer({ database: location, environment: cheapestWorkFactor })
    const second = await startServer({
      database: location,
      environment: { ...cheapestWorkFactor, LATCHKEY_ISSUER: first.url },
    })
    const demo = JSON.parse(await readFile(join(location.dataDir, 'demo.json'), 'utf8')) as DemoData
    const database = await openLocation(location)
    await database.db.transaction().execute(async (trx) => {
      await putPlan(trx, systemActor, {
        name: 'shared',
        throttle: { rateLimit: 1_000, burstLimit: 100_000 },
        quota: { limit: 100, period: 'MONTH' },
      })
      await setClientPlan(trx, systemActor, { client_id: demo.clients.service.client_id, plan: 'shared' })
    })
    await database.close()
    await sleep(1_000)
    const askBoth = (n: number) =>
      Promise.all(
        Array.from({ length: n }, (_, i) =>
          postForm(`${(i % 2 === 0 ? first : second).url}/token`, demo.clients.service, {
            grant_type: 'client_credentials',
          }),
        ),
      )
    const answers = await askBoth(160)
    // By then each has what the other may have left.
    await sleep(2_000)
    answers.push(...(await askBoth(20)))
    const count = (status: number) => answers.filter((answer) => answer.status === status).length
    expect([count(200), count(429)]).toEqual([100, 80])
  })
})
