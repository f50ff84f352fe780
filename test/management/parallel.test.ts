/** What many callers do at once, in two processes on one PostgreSQL: the test's own, and a server as it is started. */
import { sql } from 'kysely'
import { beforeAll, expect, it } from 'vitest'
import { revokePermission } from '../../src/access/roles.ts'
import { systemActor } from '../../src/audit/audit.ts'
import { liftPlans, onPostgres } from '../support/databases.ts'
import { openManagement, type Called, type CallOptions, type Management } from '../support/management.ts'
import { cheapestWorkFactor } from '../support/provider.ts'
import { startServer } from '../support/server-process.ts'

onPostgres(() => {
  let api: Management
  /** the same call at either of two servers */
  let call: (at: number, path: string, options?: CallOptions) => Promise<Called>

  beforeAll(async () => {
    api = await openManagement('postgres')
    const { provider } = api
    const second = await startServer({
      database: provider.location,
      environment: {
        ...cheapestWorkFactor,
        LATCHKEY_ISSUER: provider.issuer,
        LATCHKEY_KEYS_DIR: provider.config.keysDir,
      },
    })
    await liftPlans(provider.location)
    call = async (at, path, options = {}) => {
      if (at % 2 === 0) return api.call(path, options)
      const answer = await fetch(`${second.url}${path}`, {
        method: options.method ?? 'GET',
        headers: {
          authorization: `Bearer ${options.token ?? api.administrator.token}`,
          'content-type': 'application/json',
          ...options.headers,
        },
        ...(options.body === undefined ? {} : { body: JSON.stringify(options.body) }),
      })
      const text = await answer.text()
      return {
        status: answer.status,
        headers: answer.headers,
        text,
        body: (text === '' ? undefined : JSON.parse(text)) as Called['body'],
      }
    }
  })

  const many = <T>(n: number, work: (i: number) => Promise<T>) =>
    Promise.all(Array.from({ length: n }, (_, i) => work(i)))
  const countOf = (values: readonly unknown[]) =>
    Object.fromEntries(
      [...new Set(values)].map((value) => [String(value), values.filter((one) => one === value).length]),
    )

  it('100 with one idempotency key have one effect, and everybody who asks again has its answer', async () => {
    const options = {
      method: 'POST',
      body: { email: 'once@example.org', name: 'Once' },
      headers: { 'idempotency-key': 'create-once-1' },
    }
    const first = await many(100, (i) => call(i, '/v1/users', options))
    // Whoever came while it ran was told to come back.
    expect(first.every(({ status }) => status === 201 || status === 409)).toBe(true)
    for (const answer of first) if (answer.status === 409) expect(answer.headers.get('retry-after')).toBe('1')
    const again = await many(100, (i) => call(i, '/v1/users', options))
    expect(countOf(again.map(({ status }) => status))).toEqual({ 201: 100 })
    const bodies = [...first.filter(({ status }) => status === 201), ...again].map(({ text }) => text)
    expect(new Set(bodies).size).toBe(1)
    expect(again[0]?.headers.get('idempotency-replayed')).toBe('true')
    expect(again[0]?.headers.get('location')).toBe(`/v1/users/${String(again[0]?.body['user_id'])}`)
    const found = await api.call('/v1/users?email=once@example.org')
    expect(found.body.pagination.total).toBe(1)
  })

  it('a key is for one request: another body is 422, another caller has keys of their own', async () => {
    const headers = { 'idempotency-key': 'create-twice-1' }
    const body = { email: 'twice@example.org' }
    expect((await api.call('/v1/users', { method: 'POST', body, headers })).status).toBe(201)
    const other = await api.call('/v1/users', { method: 'POST', body: { email: 'thrice@example.org' }, headers })
    expect([other.status, other.body.error.code]).toEqual([422, 'IDEMPOTENCY_KEY_REUSED'])
    const machine = await api.call('/v1/users', {
      method: 'POST',
      body: { email: 'thrice@example.org' },
      headers,
      token: api.machine.token,
    })
    expect(machine.status).toBe(201)
    // Two people at one application who say the same, each about themselves.
    for (const { id, token } of [api.user, api.otherUser]) {
      const said = { method: 'PATCH', body: { name: 'The same name' }, headers, token }
      expect((await api.call('/v1/users/me', said)).body['user_id']).toBe(id)
    }
  })

  it('a refused request leaves its key free: corrected, it goes through', async () => {
    const headers = { 'idempotency-key': 'create-corrected-1' }
    const taken = await api.call('/v1/users', { method: 'POST', body: { email: 'once@example.org' }, headers })
    expect(taken.status).toBe(409)
    const corrected = await api.call('/v1/users', { method: 'POST', body: { email: 'corrected@example.org' }, headers })
    expect(corrected.status).toBe(201)
  })

  it('answers that hold a secret are the same again, and rest sealed', async () => {
    const options = {
      method: 'POST',
      body: { type: 'machine', name: 'Sealed', client_id: 'sealed-client' },
      headers: { 'idempotency-key': 'create-client-1' },
    }
    const first = await call(0, '/v1/clients', options)
    const second = await call(1, '/v1/clients', options)
    expect(first.body['client_secret']).toMatch(/^lk_secret_/)
    expect(second.text).toBe(first.text)
    const { rows } = await api.provider.database.db.executeQuery<{ row: string }>({
      sql: 'SELECT idempotency_keys::text AS row FROM idempotency_keys',
      parameters: [],
      query: { kind: 'RawNode' } as never,
      queryId: { queryId: 'sealed' },
    })
    expect(rows.length).toBeGreaterThan(0)
    const secret = String(first.body['client_secret'])
    for (const { row } of rows) {
      expect(row).not.toContain(secret)
      expect(row).not.toContain(Buffer.from(secret).toString('hex'))
    }
  })

  it('of 50 changes of one version one goes through: no update is lost', async () => {
    const created = await api.call('/v1/users', { method: 'POST', body: { email: 'lost@example.org', name: '0' } })
    const path = `/v1/users/${String(created.body['user_id'])}`
    const etag = created.headers.get('etag') ?? ''
    const answers = await many(50, (i) =>
      call(i, path, { method: 'PATCH', body: { name: `by ${i}` }, headers: { 'if-match': etag } }),
    )
    expect(countOf(answers.map(({ status }) => status))).toEqual({ 200: 1, 412: 49 })
    const winner = answers.find(({ status }) => status === 200)
    const now = await api.call(path)
    expect(now.body['name']).toBe(winner?.body['name'])
    // A replacement that is so already is no lost update, whatever it is based on; a part that was computed is.
    const { user_id: _id, created_at: _c, updated_at: _u, password_changed_at: _p, ...whole } = now.body
    const headers = { 'if-match': etag }
    expect((await call(1, path, { method: 'PUT', body: whole, headers })).status).toBe(200)
    expect((await call(1, path, { method: 'PATCH', body: { name: whole['name'] }, headers })).status).toBe(412)
  })

  it('counters by compare-and-swap add up', async () => {
    const created = await api.call('/v1/users', { method: 'POST', body: { email: 'counter@example.org', name: '0' } })
    const path = `/v1/users/${String(created.body['user_id'])}`
    const increment = async (i: number): Promise<void> => {
      for (;;) {
        const seen = await call(i, path)
        const answer = await call(i, path, {
          method: 'PATCH',
          body: { name: String(Number(seen.body['name']) + 1) },
          headers: { 'if-match': seen.headers.get('etag') ?? '' },
        })
        if (answer.status === 200) return
        expect(answer.status).toBe(412)
      }
    }
    await many(6, increment)
    expect((await api.call(path)).body['name']).toBe('6')
  })

  it('of two administrators who remove each other at the same moment one stays', async () => {
    for (let round = 0; round < 5; round += 1) {
      const second = await api.newPerson(`second-administrator-${round}`, ['administrator'])
      const token = await api.signIn(second)
      const first = await api.newPerson(`first-administrator-${round}`, ['administrator'])
      const demo = api.administrator.id
      // The demo's own administrator steps back meanwhile, so that these two are alone.
      await api.call(`/v1/users/${demo}/roles/administrator`, { method: 'DELETE', token })
      const remove = (at: number, whom: string, by: string) =>
        call(at, `/v1/users/${whom}/roles/administrator`, { method: 'DELETE', token: by })
      const answers = await Promise.all([remove(0, first.id, token), remove(1, second.id, first.token)])
      const statuses = answers.map(({ status }) => status).sort((a, b) => a - b)
      expect(statuses[0]).toBe(204)
      expect([401, 403, 409]).toContain(statuses[1])
      const left = statuses.indexOf(204)
      expect(left).toBe(0)
      const survivor = answers[0].status === 204 ? token : first.token
      const back = await api.call(`/v1/users/${demo}/roles/administrator`, { method: 'PUT', token: survivor })
      expect(back.status).toBe(204)
      const renewed = await api.signIn(api.administrator)
      Object.assign(api.administrator, { token: renewed })
      for (const { id } of [first, second]) {
        await api.call(`/v1/users/${id}/roles/administrator`, { method: 'DELETE', token: renewed })
      }
    }
  })

  it('a plan is one limit over both: never more than its burst and what came in since', async () => {
    const plan = { name: 'Small', throttle: { rateLimit: 1, burstLimit: 10 }, quota: { limit: 1_000, period: 'DAY' } }
    expect((await api.call('/v1/plans/Small', { method: 'PUT', body: plan })).status).toBe(201)
    const machine = await api.newMachine(['users:read'], 'limited-machine')
    await api.call('/v1/clients/limited-machine/plan', { method: 'PUT', body: { plan: 'Small' } })
    const startedAt = performance.now()
    const answers = await many(60, (i) => call(i, '/v1/users?limit=1', { token: machine.token }))
    const elapsed = (performance.now() - startedAt) / 1_000
    const statuses = countOf(answers.map(({ status }) => status))
    expect(statuses['200']).toBeLessThanOrEqual(10 + Math.ceil(elapsed))
    expect(statuses['200']).toBeGreaterThanOrEqual(5)
    const refused = answers.find(({ status }) => status === 429)
    expect(refused?.body.error).toMatchObject({ code: 'RATE_LIMIT_EXCEEDED', limit: 10, remaining: 0 })
    expect(Number(refused?.headers.get('retry-after'))).toBeGreaterThan(0)
    for (const name of [
      'ratelimit',
      'ratelimit-policy',
      'x-ratelimit-limit',
      'x-ratelimit-remaining',
      'x-ratelimit-reset',
    ]) {
      expect([name, refused?.headers.get(name)]).not.toEqual([name, null])
    }
  })

  it('one role beside its own deletion: whoever loses says so, and nobody keeps what is gone', async () => {
    const body = { permissions: [{ resource: `${api.provider.issuer}/v1`, permission: 'users:read' }] }
    for (let round = 0; round < 5; round += 1) {
      await api.call('/v1/roles/fleeting', { method: 'PUT', body })
      const answers = await Promise.all([
        ...Array.from({ length: 5 }, (_, i) => call(i, `/v1/users/${api.user.id}/roles/fleeting`, { method: 'PUT' })),
        call(1, '/v1/roles/fleeting', { method: 'DELETE' }),
      ])
      for (const { status } of answers) expect([204, 404]).toContain(status)
      expect((await api.call(`/v1/users/${api.user.id}/roles`)).body['roles']).toEqual([])
    }
  })

  it('of two roles that are to include each other at the same moment one does: never a circle', async () => {
    const include = (at: number, name: string, includes: string[]) =>
      call(at, `/v1/roles/${name}`, { method: 'PUT', body: { includes } })
    for (let round = 0; round < 20; round += 1) {
      for (const name of ['left', 'right']) await include(0, name, [])
      const answers = await Promise.all([include(round, 'left', ['right']), include(round + 1, 'right', ['left'])])
      expect(countOf(answers.map(({ status }) => status))).toEqual({ 200: 1, 409: 1 })
      const included = [await api.call('/v1/roles/left'), await api.call('/v1/roles/right')]
      expect(included.flatMap(({ body }) => body['includes'])).toHaveLength(1)
    }
  })

  it('roles that change in every way beside each other neither wait for ever nor close a circle, and nobody keeps what is gone', async () => {
    const names = ['ring-0', 'ring-1', 'ring-2', 'ring-3']
    const permissions = [{ resource: `${api.provider.issuer}/v1`, permission: 'users:read' }]
    const path = `/v1/users/${api.user.id}/roles`
    const put = (at: number, name: string, body: object) => call(at, `/v1/roles/${name}`, { method: 'PUT', body })
    for (let round = 0; round < 6; round += 1) {
      for (const name of names) await put(0, name, {})
      const changes = names.flatMap((name, i) => {
        const next = names[(i + 1) % names.length] ?? ''
        const last = names[(i + 3) % names.length] ?? ''
        return [
          () => put(i, name, { includes: [next] }),
          () => put(i + 1, name, { permissions, includes: [last] }),
          () => call(i, `${path}/${name}`, { method: 'PUT' }),
          () => call(i + 1, `${path}/${name}`, { method: 'DELETE' }),
        ]
      })
      // One that many reach goes meanwhile.
      changes.push(() => call(round, `/v1/roles/${names[round % names.length] ?? ''}`, { method: 'DELETE' }))
      const answers = await Promise.all(changes.map((change) => change()))
      // 400: of what was just deleted, that it is not there.
      for (const { status, text } of answers) {
        expect([text, [200, 201, 204, 400, 404, 409].includes(status)]).toEqual([text, true])
      }
      const { db } = api.provider.database
      const { rows } = await sql`
        SELECT 1 FROM role_reach there JOIN role_reach back ON back.role = there.reached AND back.reached = there.role
        WHERE there.role <> there.reached`.execute(db)
      expect(rows).toEqual([])
      const { rows: differing } = await sql`
        WITH RECURSIVE walked (role, reached) AS (
          SELECT name, name FROM roles
          UNION SELECT walked.role, i.included FROM walked JOIN role_inclusions i ON i.role = walked.reached
        ), kept AS (SELECT role, reached FROM role_reach)
        (TABLE walked EXCEPT TABLE kept) UNION ALL (TABLE kept EXCEPT TABLE walked)`.execute(db)
      expect(differing).toEqual([])
      for (const name of names) await call(0, `${path}/${name}`, { method: 'DELETE' })
    }
  })

  it.each([
    ['is just included in another', 'taken', '/v1/roles/taking', { includes: ['taken'] }],
    ['is reached from one that somebody is just given', 'reached', '/v1/users/{user_id}/roles/taking', undefined],
  ])('a role that loses a permission while it %s: no token speaks of it longer', async (_what, role, place, body) => {
    const permission = { resource: `${api.provider.issuer}/v1`, permission: 'keys:read' }
    const put = (name: string, input: object) => call(0, `/v1/roles/${name}`, { method: 'PUT', body: input })
    await put(role, { permissions: [permission] })
    const isIncluded = body === undefined
    await put('taking', { includes: isIncluded ? [role] : [] })
    const { token: _token, ...person } = await api.newPerson(`holds-${role}`, isIncluded ? [] : ['taking'])
    const path = place.replace('{user_id}', person.id)
    const { db } = api.provider.database
    const { answer, token } = await db.transaction().execute(async (trx) => {
      await revokePermission(trx, systemActor, { role, ...permission })
      let isAnswered = false
      const answer = call(1, path, { method: 'PUT', ...(body === undefined ? {} : { body }) }).finally(() => {
        isAnswered = true
      })
      const isWaiting = async () => {
        const { rows } = await sql`
          SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`.execute(db)
        return rows.length > 0
      }
      await expect.poll(async () => isAnswered || (await isWaiting()), { timeout: 15_000 }).toBe(true)
      return { answer, token: await api.signIn(person) }
    })
    expect((await answer).status).toBeLessThan(300)
    expect([401, 403]).toContain((await api.call('/v1/keys', { token })).status)
  })
})
