/**
 * After everything that people and clients do, nothing that would let anybody in stands in the log or in the database,
 * and no personal data in the log.
 */
import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import { makeDpopKey } from '../../support/dpop.ts'
import { openProvider, type TestProvider } from '../../support/provider.ts'
import {
  ask,
  authorize,
  exchange,
  query,
  refresh,
  registerClient,
  signInAt,
  userinfo,
} from '../../support/relying-party.ts'
import { postForm, UserAgent } from '../../support/user-agent.ts'

describe("secrets after a day's work", () => {
  let provider: TestProvider
  /** what it is → the value that went over the wire */
  const secrets = new Map<string, string>()
  const keep = (name: string, value: string | undefined) => {
    if (value === undefined || value.length < 8) throw new Error(`${name} was not got`)
    secrets.set(`${name} ${secrets.size}`, value)
  }

  beforeAll(async () => {
    provider = await openProvider('pglite', { environment: { LOG_LEVEL: 'trace' } })
    const { demo, issuer } = provider
    const rp = await registerClient(provider, { first_party: false })
    keep('client secret', rp.client_secret)
    keep('password', demo.user.password)
    keep('demo client secret', demo.clients.service.client_secret)

    const agent = new UserAgent()
    const wrong = await agent.submit(await agent.open(ask(provider, rp).url), {
      login: demo.user.email,
      password: 'a wrong password that was typed',
    })
    keep('wrong password', 'a wrong password that was typed')
    const inWrongField = await agent.submit(wrong, {
      login: 'password-in-the-wrong-field',
      password: 'whatever it was',
    })
    if (wrong.status !== 401 || inWrongField.status !== 401) throw new Error('a wrong password was let in')
    keep('typed login', 'password-in-the-wrong-field')

    const parameters = {
      scope: 'openid email offline_access models:read',
      resource: demo.resource,
      prompt: 'consent',
    }
    const answered = await authorize(provider, rp, {
      agent,
      parameters: { ...parameters, nonce: 'nonce-of-the-client' },
    })
    keep('code', answered.code)
    keep('verifier', answered.verifier)
    keep('state', answered.state)
    await exchange(provider, rp, { ...answered, verifier: 'V'.repeat(43) })
    const { body } = await exchange(provider, rp, answered)
    for (const name of ['access_token', 'refresh_token', 'id_token'] as const) keep(name, body[name])
    const next = await refresh(provider, rp, body.refresh_token)
    for (const name of ['access_token', 'refresh_token', 'id_token'] as const) keep(name, next.body[name])
    await refresh(provider, rp, body.refresh_token)
    await refresh(provider, { ...rp, client_secret: 'a-guessed-client-secret' }, next.body.refresh_token)
    keep('guessed secret', 'a-guessed-client-secret')

    const key = await makeDpopKey()
    const dpop = await key.proof('POST', `${issuer}/token`)
    keep('DPoP proof', dpop)
    const bound = await exchange(provider, rp, await authorize(provider, rp, { agent }), { headers: { dpop } })
    keep('bound token', bound.body.access_token)
    const opaque = await signInAt(provider, rp, { agent })
    keep('opaque token', opaque.body.access_token)
    await userinfo(provider, opaque.body.access_token)
    await userinfo(provider, 'a-token-that-was-made-up')
    keep('made-up token', 'a-token-that-was-made-up')
    await fetch(`${issuer}/userinfo?${query({ access_token: opaque.body.access_token })}`)

    const pushed = await postForm(`${issuer}/par`, rp, ask(provider, rp).parameters)
    keep('request_uri', String(pushed.body['request_uri']).split(':').pop())
    await agent.open(
      `${issuer}/authorize?${query({ client_id: rp.client_id, request_uri: String(pushed.body['request_uri']) })}`,
    )
    const machine = await postForm(`${issuer}/token`, demo.clients.service, { grant_type: 'client_credentials' })
    keep('machine token', machine.body.access_token)
    for (const token of [machine.body.access_token, next.body.refresh_token]) {
      await postForm(`${issuer}/introspect`, demo.clients.service, { token: token ?? '' })
      await postForm(`${issuer}/revoke`, rp, { token: token ?? '' })
    }
    // What stands in the session's and the interaction's own cookies is what they are found by.
    for (const [name, value] of Object.entries(agent.cookies())) keep(`cookie ${name}`, value)
    await agent.open(ask(provider, rp, { login_hint: demo.user.email, prompt: 'login' }).url)
    for (const [name, value] of Object.entries(agent.cookies())) keep(`cookie ${name}`, value)
    await agent.open(`${issuer}/logout?${query({ id_token_hint: body.id_token })}`)
    await agent.submit(await agent.open(`${issuer}/logout`), { logout: 'yes' })
  })

  it('none of them, and no address or name of a person, stands in the log, at its most talkative', () => {
    const log = provider.log()
    expect(log.split('\n').length).toBeGreaterThan(30)
    const found = [...secrets].filter(([, value]) => log.includes(value) || log.includes(encodeURIComponent(value)))
    expect(found.map(([name]) => name)).toEqual([])
    for (const personal of [provider.demo.user.email, 'Alice', 'Example Street', '20 7946']) {
      expect(log, personal).not.toContain(personal)
    }
  })

  it('every line of the log is one JSON object with the time, the level and, of a request, its id', () => {
    const lines = provider
      .log()
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>)
    for (const line of lines) expect(line).toMatchObject({ timestamp: expect.any(String), level: expect.any(String) })
    const requests = lines.filter((line) => 'endpoint' in line)
    expect(requests.length).toBeGreaterThan(30)
    for (const line of requests) {
      expect(line).toMatchObject({
        request_id: expect.any(String),
        status_code: expect.any(Number),
        duration_ms: expect.any(Number),
      })
    }
  })

  it('none of them stands in any row of the database, the demo’s own note apart', async () => {
    const { db } = provider.database
    const { rows: tables } = await sql<{ name: string }>`
        SELECT table_name AS name FROM information_schema.tables
        WHERE table_schema = 'public' AND table_type = 'BASE TABLE'`.execute(db)
    expect(tables.length).toBeGreaterThan(15)
    const dumps = new Map<string, string>()
    for (const { name } of tables) {
      const { rows } = await sql<{ text: string }>`SELECT t::text AS text FROM ${sql.table(name)} t`.execute(db)
      const written = rows.map(({ text }) => text).filter((text) => !(name === 'settings' && text.startsWith('(demo,')))
      dumps.set(name, written.join('\n'))
    }
    // A request under way is kept as it was asked; what it holds lets nobody in without the browser's cookie.
    const asked = /^(state|cookie interaction|cookie resume)/
    const found = [...dumps].flatMap(([table, text]) =>
      [...secrets].filter(([, value]) => text.includes(value)).map(([name]) => `${table}: ${name}`),
    )
    expect(found.filter((entry) => !asked.test(entry.split(': ')[1] ?? ''))).toEqual([])
    // The test can fail: what is no secret is found.
    expect(dumps.get('artifacts')).toContain('openid')
  })
})
