/**
 * Sessions, and what their end takes with it.
 */
import { sql } from 'kysely'
import { decodeJwt } from 'jose'
import { beforeAll, describe, expect, it } from 'vitest'
import { hasPostgres, type Engine } from '../support/databases.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import {
  ask,
  exchange,
  isActive,
  refresh,
  registerClient,
  signInAt,
  userinfo,
  type RegisteredClient,
} from '../support/relying-party.ts'
import { UserAgent, type Page } from '../support/user-agent.ts'

for (const engine of ['pglite', 'postgres'] satisfies Engine[]) {
  describe.runIf(engine === 'pglite' || hasPostgres())(`a session and its end, on ${engine}`, () => {
    let provider: TestProvider
    let rp: RegisteredClient
    let other: RegisteredClient
    beforeAll(async () => {
      provider = await openProvider(engine)
      rp = await registerClient(provider)
      other = await registerClient(provider)
    })

    const models = () => ({ scope: 'openid models:read', resource: provider.demo.resource })
    const offline = () => ({ ...models(), scope: 'openid offline_access models:read', prompt: 'consent' })

    async function isSignedIn(agent: UserAgent): Promise<boolean> {
      const page = await agent.open(ask(provider, rp, { prompt: 'none' }).url)
      return new URL(page.headers.get('location') ?? 'about:blank').searchParams.has('code')
    }

    async function signOut(agent: UserAgent, values: Record<string, string> = { logout: 'yes' }): Promise<Page> {
      return agent.submit(await agent.open(`${provider.issuer}/logout?client_id=${rp.client_id}`), values)
    }

    async function works(client: RegisteredClient, body: Awaited<ReturnType<typeof signInAt>>['body']) {
      const access = await isActive(provider, client, body.access_token)
      const { status } = await refresh(provider, client, body.refresh_token)
      return { access, refresh: status === 200 }
    }

    it('sign-out ends every family of the session but those with offline access, at all clients', async () => {
      const agent = new UserAgent()
      const here = await signInAt(provider, rp, { agent, parameters: models() })
      const lasting = await signInAt(provider, other, { agent, parameters: offline() })
      const elsewhere = await signInAt(provider, rp, { parameters: models() })
      await signOut(agent)
      expect(await works(rp, here.body)).toEqual({ access: false, refresh: false })
      expect(await works(other, lasting.body)).toEqual({ access: true, refresh: true })
      const later = await refresh(provider, other, lasting.body.refresh_token)
      expect(await isActive(provider, other, later.body.access_token)).toBe(true)
      expect(await works(rp, elsewhere.body)).toEqual({ access: true, refresh: true })
      expect(await isSignedIn(agent)).toBe(false)
    })

    it('sign-out on the account page does the same', async () => {
      const agent = new UserAgent()
      const here = await signInAt(provider, rp, { agent, parameters: models() })
      const lasting = await signInAt(provider, other, { agent, parameters: offline() })
      await agent.submit(await agent.open(`${provider.issuer}/account/applications`), {}, 0)
      expect(await works(rp, here.body)).toEqual({ access: false, refresh: false })
      expect(await works(other, lasting.body)).toEqual({ access: true, refresh: true })
      expect(await isSignedIn(agent)).toBe(false)
    })

    it('"stay signed in here" ends the family of the client that asked, and no other', async () => {
      const agent = new UserAgent()
      const here = await signInAt(provider, rp, { agent, parameters: models() })
      const beside = await signInAt(provider, other, { agent, parameters: models() })
      const page = await signOut(agent, {})
      expect(page.html).toContain('You are signed out')
      expect(await works(rp, here.body)).toEqual({ access: false, refresh: false })
      expect(await works(other, beside.body)).toEqual({ access: true, refresh: true })
      expect(await isSignedIn(agent)).toBe(true)
    })

    it('every sign-in makes a new session, and the cookie of the one before is nobody’s', async () => {
      const agent = new UserAgent()
      await agent.open(ask(provider, rp).url)
      const before = agent.cookies()['session']
      await signInAt(provider, rp, { agent })
      const first = agent.cookies()
      expect(first['session']).not.toBe(before)
      const again = await signInAt(provider, rp, { agent, parameters: { prompt: 'login' } })
      expect(again.status).toBe(200)
      expect(agent.cookies()['session']).not.toBe(first['session'])
      const thief = new UserAgent()
      for (const name of ['session', 'session.sig']) thief.setCookie(provider.issuer, name, first[name] ?? '')
      expect(await isSignedIn(thief)).toBe(false)
      expect(await isSignedIn(agent)).toBe(true)
    })

    it('the session cookie of somebody who signed out is nobody’s', async () => {
      const agent = new UserAgent()
      await signInAt(provider, rp, { agent })
      const kept = agent.cookies()
      await signOut(agent)
      const thief = new UserAgent()
      for (const name of ['session', 'session.sig']) thief.setCookie(provider.issuer, name, kept[name] ?? '')
      expect(await isSignedIn(thief)).toBe(false)
      expect((await thief.open(`${provider.issuer}/account/applications`)).html).toContain('name="password"')
    })

    it('another person who signs in on the same browser ends the first one’s session', async () => {
      const agent = new UserAgent()
      const first = await signInAt(provider, rp, { agent, parameters: models() })
      const second = await signInAt(provider, rp, {
        agent,
        person: provider.demo.admin,
        parameters: { ...models(), prompt: 'login' },
      })
      expect(decodeJwt(second.body.id_token ?? '').sub).not.toBe(decodeJwt(first.body.id_token ?? '').sub)
      expect(decodeJwt(second.body.id_token ?? '')['sid']).not.toBe(decodeJwt(first.body.id_token ?? '')['sid'])
      expect(await works(rp, first.body)).toEqual({ access: false, refresh: false })
      expect(await works(rp, second.body)).toEqual({ access: true, refresh: true })
    })

    it('after an hour without use, the person signs in again; the client’s refresh token lives on', async () => {
      const agent = new UserAgent()
      const { body } = await signInAt(provider, rp, { agent, parameters: models() })
      const { rows } = await sql<{ seconds: number }>`
        SELECT extract(epoch FROM expires_at - now())::float8 AS seconds FROM artifacts
        WHERE kind = 'Session' AND session_uid = ${String(decodeJwt(body.id_token ?? '')['sid'])}`.execute(
        provider.database.db,
      )
      expect(rows[0]?.seconds).toBeGreaterThan(3_500)
      expect(rows[0]?.seconds).toBeLessThanOrEqual(3_600)
      await sql`UPDATE artifacts SET expires_at = expires_at - interval '1 hour' WHERE kind = 'Session'`.execute(
        provider.database.db,
      )
      expect(await isSignedIn(agent)).toBe(false)
      expect(await works(rp, body)).toEqual({ access: true, refresh: true })
    })

    it('twelve hours after signing in the session ends, however much it is used', async () => {
      const agent = new UserAgent()
      const { body } = await signInAt(provider, rp, { agent })
      const sid = String(decodeJwt(body.id_token ?? '')['sid'])
      const age = (seconds: number) =>
        sql`UPDATE artifacts SET payload = jsonb_set(payload, '{loginTs}', to_jsonb((payload->>'loginTs')::int - ${seconds}::int))
          WHERE kind = 'Session' AND session_uid = ${sid}`.execute(provider.database.db)
      await age(43_200 - 120)
      expect(await isSignedIn(agent)).toBe(true)
      const { rows } = await sql<{ seconds: number }>`
        SELECT extract(epoch FROM expires_at - now())::float8 AS seconds FROM artifacts
        WHERE kind = 'Session' AND session_uid = ${sid}`.execute(provider.database.db)
      // Using it does not put its end off: two minutes are left.
      expect(rows[0]?.seconds).toBeLessThanOrEqual(121)
      await sql`UPDATE artifacts SET expires_at = expires_at - interval '121 seconds' WHERE kind = 'Session' AND session_uid = ${sid}`.execute(
        provider.database.db,
      )
      expect(await isSignedIn(agent)).toBe(false)
    })

    it('a code that was on its way when the person signed out gives nothing', async () => {
      const agent = new UserAgent()
      const { body } = await signInAt(provider, rp, { agent })
      const asked = ask(provider, rp)
      const page = await agent.open(asked.url)
      const code = new URL(page.headers.get('location') ?? 'about:blank').searchParams.get('code') ?? ''
      await signOut(agent)
      expect((await exchange(provider, rp, { ...asked, code })).body.error).toBe('invalid_grant')
      expect((await userinfo(provider, body.access_token)).status).toBe(401)
    })

    it('an ID token and an access token of one session carry the same sid, at every client', async () => {
      const agent = new UserAgent()
      const tokens = [
        await signInAt(provider, rp, { agent, parameters: models() }),
        await signInAt(provider, other, { agent, parameters: models() }),
      ]
      const sids = tokens.flatMap(({ body }) =>
        [body.id_token, body.access_token].map((t) => decodeJwt(t ?? '')['sid']),
      )
      expect(new Set(sids).size).toBe(1)
      expect(sids[0]).toEqual(expect.any(String))
    })
  })
}
