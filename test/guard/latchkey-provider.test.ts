/** The guard in front of an API whose tokens come from our own provider, over HTTP, on both databases. */
import { setTimeout as sleep } from 'node:timers/promises'
import { createGuard, loadPolicies } from '@latchkey/guard'
import type { AuditEvent, Guard, GuardOptions } from '@latchkey/guard'
import { authenticate, authOf, authorize, requireScopes } from '@latchkey/guard/koa'
import { decodeProtectedHeader } from 'jose'
import Koa from 'koa'
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { runCommand } from '../../src/commands/program.ts'
import { openLogoutReceiver } from '../oauth/conformance/logout-receiver.ts'
import { eachDatabase } from '../support/databases.ts'
import { makeDpopKey } from '../support/dpop.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { authorize as signIn, exchange, query, registerClient, signInAt } from '../support/relying-party.ts'
import { obtainTokens, postForm, UserAgent } from '../support/user-agent.ts'
import { serving } from './support/plain-provider.ts'

const policies = loadPolicies(`policies:
  - id: engineers-read-up-to-their-clearance
    effect: allow
    subjects: ["user:*"]
    actions: [read]
    resources: [model]
    condition: subject.department == "engineering" && subject.clearance >= resource.level
  - id: administrators-delete
    effect: allow
    subjects: ["role:models-admin"]
    actions: [delete]
    resources: [model]
  - id: services-list
    effect: allow
    subjects: ["client:demo-service"]
    actions: [list]
    resources: [model]
`)

interface Answer {
  readonly status: number
  readonly challenge: string
  readonly body: Readonly<Record<string, unknown>>
}

interface GuardedApi {
  readonly guard: Guard
  readonly refusals: (string | undefined)[]
  call(path: string, headers?: Record<string, string>): Promise<Answer>
  bearer(token: string | undefined, path?: string): Promise<Answer>
}

/** An API of four routes: who calls, one that wants a scope, and two that ask the policies. */
async function guardedApi(provider: TestProvider, options: Partial<GuardOptions> = {}): Promise<GuardedApi> {
  const refusals: (string | undefined)[] = []
  const guard = createGuard({
    issuer: provider.issuer,
    audience: provider.demo.resource,
    policies,
    audit: (event: AuditEvent) => void (event.kind === 'refusal' && refusals.push(event.reason)),
    ...options,
  })
  const app = new Koa()
  app.use(authenticate(guard))
  const steps: Record<string, Koa.Middleware> = {
    '/delete-scope': requireScopes('models:delete'),
    '/read': authorize('read', (ctx: Koa.Context) => ({ type: 'model', level: Number(ctx.query['level']) })),
    '/delete': authorize('delete', () => ({ type: 'model' })),
    '/list': authorize('list', () => ({ type: 'model' })),
  }
  app.use(async (ctx, next) => steps[ctx.path]?.(ctx, next) ?? next())
  app.use((ctx) => {
    const { subject, scopes } = authOf(ctx)
    ctx.body = { ...subject, scopes: [...scopes].toSorted() }
  })
  const service = await serving(app.callback())
  onTestFinished(async () => {
    service.close()
    await guard.close()
  })
  const call = async (path: string, headers: Record<string, string> = {}): Promise<Answer> => {
    const response = await fetch(service.origin + path, { headers })
    return {
      status: response.status,
      challenge: response.headers.get('www-authenticate') ?? '',
      body: (await response.json()) as Answer['body'],
    }
  }
  return { guard, refusals, call, bearer: (token, path = '/') => call(path, { authorization: `Bearer ${token}` }) }
}

async function machineToken(provider: TestProvider, parameters: Record<string, string> = {}): Promise<string> {
  const { body } = await postForm(`${provider.issuer}/token`, provider.demo.clients.service, {
    grant_type: 'client_credentials',
    ...parameters,
  })
  return body.access_token ?? ''
}

/** Carries out `latchkey keys …` on the provider's database, as the operator of a running server does. */
async function keys(provider: TestProvider, ...args: string[]): Promise<void> {
  const err: string[] = []
  const exitCode = await runCommand(['keys', ...args], {
    config: provider.config,
    io: { out: () => undefined, err: (text) => void err.push(text), stdin: async () => '' },
    withDatabase: (fn) => fn(provider.database),
    actor: { type: 'operator', id: 'ada' },
    now: () => new Date(),
  })
  expect(exitCode, err.join('\n')).toBe(0)
}

const kidOf = (token: string): string | undefined => decodeProtectedHeader(token).kid

/** A token by another key than this one: the provider hears of a rotation within moments. */
async function tokenByAnotherKey(provider: TestProvider, kid: string | undefined): Promise<string> {
  const until = performance.now() + 10_000
  for (;;) {
    const token = await machineToken(provider)
    if (kidOf(token) !== kid) return token
    if (performance.now() > until) throw new Error(`still signed by ${kid}`)
    await sleep(50)
  }
}

eachDatabase((_open, engine) => {
  describe(`the guard before an API of our provider, on ${engine}`, () => {
    let provider: TestProvider
    beforeAll(async () => {
      provider = await openProvider(engine)
    })

    it('refuses nobody’s request, and says where tokens come from', async () => {
      const api = await guardedApi(provider)
      const { status, challenge } = await api.call('/')
      expect(status).toBe(401)
      expect(challenge).toContain('Bearer')
      expect(challenge).not.toContain('error=')
      expect(challenge).toContain('resource_metadata=')
    })

    it('refuses what the provider signs or hands out for other purposes', async () => {
      const receiver = await openLogoutReceiver()
      const client = await registerClient(provider, { backchannel_logout_uri: receiver.uri })
      const agent = new UserAgent()
      const models = { scope: 'openid models:read', resource: provider.demo.resource }
      const { body } = await signInAt(provider, client, { agent, parameters: models })
      const opaque = (await signInAt(provider, client, { agent })).body
      const elsewhere = await obtainTokens(provider.issuer, provider.demo, {
        parameters: { scope: 'openid users:read', resource: `${provider.issuer}/v1` },
        person: provider.demo.admin,
      })
      const page = await agent.open(`${provider.issuer}/logout?${query({ id_token_hint: body.id_token })}`)
      await agent.submit(page, { logout: 'yes' })
      const [logout] = receiver.tokens

      const wrong: [string, string | undefined, string][] = [
        ['an ID token', body.id_token, 'typ'],
        ['a logout token', logout, 'typ'],
        ['an opaque access token', opaque.access_token, 'malformed'],
        ['a refresh token', body.refresh_token, 'malformed'],
        ['an access token for another API', elsewhere.body.access_token, 'audience'],
        ['a token whose signature is of another', `${body.access_token?.slice(0, -8)}AAAAAAAA`, 'signature'],
      ]
      const api = await guardedApi(provider)
      for (const [what, token] of wrong) {
        expect(token, what).toMatch(/./)
        const { status, challenge } = await api.bearer(token)
        expect([status, challenge], what).toEqual([401, expect.stringContaining('error="invalid_token"')])
      }
      expect(wrong.map(([what], index) => [what, api.refusals[index]])).toEqual(
        wrong.map(([what, , reason]) => [what, expect.stringContaining(reason)]),
      )
    })

    it('refuses a token that is over, by its own clock', async () => {
      const token = await machineToken(provider)
      let now = Date.now()
      const api = await guardedApi(provider, { now: () => now })
      expect((await api.bearer(token)).status).toBe(200)
      now += 16 * 60_000
      const { status, challenge } = await api.bearer(token)
      expect([status, challenge]).toEqual([401, expect.stringContaining('expired')])
    })

    it('refuses a DPoP-bound token without its key, and lets it in with it', async () => {
      const [key, other] = [await makeDpopKey(), await makeDpopKey()]
      const spa = await registerClient(provider, { type: 'spa' })
      const parameters = { scope: 'openid models:read', resource: provider.demo.resource }
      const answered = await signIn(provider, spa, { parameters })
      const proof = await key.proof('POST', `${provider.issuer}/token`)
      const { body } = await exchange(provider, spa, answered, { headers: { dpop: proof } })
      expect(body['token_type']).toBe('DPoP')
      const token = body.access_token ?? ''

      const api = await guardedApi(provider)
      expect((await api.bearer(token)).status).toBe(401)
      // The API is known by its address in the world, wherever this process listens.
      const here = `${provider.demo.resource}/`
      const send = (dpop: string) => api.call('/', { authorization: `DPoP ${token}`, dpop })
      const wrong = [
        await other.proof('GET', here, { accessToken: token }),
        await key.proof('POST', here, { accessToken: token }),
        await key.proof('GET', 'https://elsewhere.example.com/', { accessToken: token }),
        await key.proof('GET', here, { accessToken: `${token}x` }),
      ]
      for (const dpop of wrong) {
        const { status, challenge } = await send(dpop)
        expect([status, challenge]).toEqual([401, expect.stringMatching(/error="invalid_(token|dpop_proof)"/)])
      }
      const good = await key.proof('GET', here, { accessToken: token })
      expect((await send(good)).body).toMatchObject({ type: 'user', id: provider.demo.user.id })
      expect((await send(good)).status).toBe(401)
    })

    it('knows a person with roles, attributes and scopes, and the policies see them', async () => {
      const api = await guardedApi(provider)
      const { body: alice } = await obtainTokens(provider.issuer, provider.demo)
      const { body: admin } = await obtainTokens(provider.issuer, provider.demo, {
        person: provider.demo.admin,
        parameters: { scope: 'openid models:read models:delete' },
      })
      expect((await api.bearer(alice.access_token)).body).toMatchObject({
        type: 'user',
        id: provider.demo.user.id,
        issuer: provider.issuer,
        roles: ['member'],
        department: 'engineering',
        seniority: 5,
        clearance: 2,
        client_id: 'demo-web',
        scopes: expect.arrayContaining(['models:read']),
      })

      const refused = await api.bearer(alice.access_token, '/delete-scope')
      expect([refused.status, refused.challenge]).toEqual([
        403,
        expect.stringMatching(/error="insufficient_scope".*scope="models:delete"/),
      ])
      expect((await api.bearer(admin.access_token, '/delete-scope')).status).toBe(200)

      const statuses = async (token: string | undefined, ...paths: string[]) =>
        Promise.all(paths.map(async (path) => (await api.bearer(token, path)).status))
      const paths = ['/read?level=2', '/read?level=3', '/delete', '/list']
      expect(await statuses(alice.access_token, ...paths)).toEqual([200, 403, 403, 403])
      // An administrator of another department may delete, and yet not read.
      expect(await statuses(admin.access_token, ...paths)).toEqual([403, 403, 200, 403])
    })

    it('knows a service as a client, which is no user of that name', async () => {
      const api = await guardedApi(provider)
      const token = await machineToken(provider, { scope: 'models:read' })
      const { body } = await api.bearer(token)
      expect(body).toMatchObject({ type: 'client', id: 'demo-service', roles: [], scopes: ['models:read'] })
      expect((await api.bearer(token, '/list')).status).toBe(200)
      expect((await api.bearer(token, '/read?level=1')).status).toBe(403)
    })

    it('asks for the keys once, however many requests come at once', async () => {
      const api = await guardedApi(provider)
      const token = await machineToken(provider)
      const answers = await Promise.all(Array.from({ length: 20 }, () => api.bearer(token)))
      expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200]))
      expect(api.guard.metrics().keyFetches).toBe(1)
    })

    it('does not notice a rotation: the next key is known before it signs', async () => {
      const api = await guardedApi(provider)
      const before = await machineToken(provider)
      expect((await api.bearer(before)).status).toBe(200)
      await keys(provider, 'rotate', '--now')
      const after = await tokenByAnotherKey(provider, kidOf(before))
      expect((await api.bearer(after)).status).toBe(200)
      expect((await api.bearer(before)).status).toBe(200)
      expect(api.guard.metrics().keyFetches).toBe(1)
    })

    it('asks once for a key that it never heard of, and refuses one that was revoked once it has looked again', async () => {
      let now = Date.now()
      const api = await guardedApi(provider, { now: () => now })
      const first = await machineToken(provider)
      expect((await api.bearer(first)).status).toBe(200)
      await keys(provider, 'rotate', '--now')
      const second = await tokenByAnotherKey(provider, kidOf(first))
      await keys(provider, 'rotate', '--now')
      const third = await tokenByAnotherKey(provider, kidOf(second))
      expect((await api.bearer(second)).status).toBe(200)
      expect(api.guard.metrics().keyFetches).toBe(1)
      expect((await api.bearer(third)).status).toBe(200)
      expect(api.guard.metrics().keyFetches).toBe(2)

      await keys(provider, 'revoke', kidOf(first) ?? '', '--reason', 'it was seen in a log')
      // The keys are fresh for as long as the provider says, five minutes.
      now += 301_000
      await expect
        .poll(async () => (await fetch(`${provider.issuer}/.well-known/jwks.json`)).text())
        .not.toContain(kidOf(first))
      expect((await api.bearer(first)).status).toBe(401)
      expect((await api.bearer(third)).status).toBe(200)
    })
  })
})
