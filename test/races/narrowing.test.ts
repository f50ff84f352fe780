/** What takes rights away, beside what is just using them. */
import { setTimeout as sleep } from 'node:timers/promises'
import { decodeJwt } from 'jose'
import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import { deviceGrant } from '../../src/oauth/client-rules.ts'
import { disableClient, enableClient, setClientPermissions } from '../../src/oauth/clients.ts'
import { endSession } from '../../src/oauth/sessions.ts'
import { hasPostgres } from '../support/databases.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { ask, authorize, isActive, refresh, registerClient, signInAt } from '../support/relying-party.ts'
import { findForms, postForm, UserAgent } from '../support/user-agent.ts'

describe.runIf(hasPostgres())('on postgres', () => {
  let provider: TestProvider
  beforeAll(async () => {
    provider = await openProvider('postgres', { environment: { LATCHKEY_DEVICE_FLOW: 'true' } })
  })

  it('a token issued while a change of its client was waiting is as dead as those before it', async () => {
    const rp = await registerClient(provider)
    const { resource } = provider.demo
    const parameters = { scope: 'openid models:read models:write', resource }
    const { body } = await signInAt(provider, rp, { parameters })
    const late = await provider.database.db.transaction().execute(async (trx) => {
      await sql`SELECT 1`.execute(trx)
      // The time of issue counts whole seconds.
      await sleep(2_100)
      const answer = await refresh(provider, rp, body.refresh_token)
      const permissions = [{ resource, permission: 'models:read' }]
      await setClientPermissions(trx, systemActor, { id: rp.client_id, permissions })
      return answer
    })
    expect(late.body.scope).toBe('models:read models:write')
    expect(await isActive(provider, rp, late.body.access_token)).toBe(false)
    expect(await isActive(provider, rp, body.access_token)).toBe(false)
  })

  it('a token of its own that a client gets while it loses a permission has the permission, or lives, but not both', async () => {
    const { db } = provider.database
    const { resource } = provider.demo
    const machine = await registerClient(provider, { type: 'machine' })
    const permissions = [{ resource, permission: 'models:read' }]
    const underWay = await db.transaction().execute(async (trx) => {
      // Holds the request where it knows what the client may ask for, and not yet what of the resource.
      await sql`LOCK TABLE resources IN ACCESS EXCLUSIVE MODE`.execute(trx)
      const answered = postForm(`${provider.issuer}/token`, machine, { grant_type: 'client_credentials', resource })
      await untilWaiting(1)
      const narrowed = await db
        .transaction()
        .execute((other) => setClientPermissions(other, systemActor, { id: machine.client_id, permissions }))
      // By then the provider's copy of the client is the new one.
      await sleep(500)
      return { answered, narrowed }
    })
    const { body } = await underWay.answered
    expect(body.scope).toBe('models:read models:write')
    expect(await isActive(provider, machine, body.access_token)).toBe(false)
    // What services go by.
    expect(decodeJwt(body.access_token ?? '')['token_version']).toBeLessThan(underWay.narrowed.token_version)
  })

  it('a refresh that waits while its client loses a permission is asked to come back, spends nothing, and gets less', async () => {
    const rp = await registerClient(provider)
    const { resource } = provider.demo
    const parameters = { scope: 'openid offline_access models:read models:write', resource }
    const { body } = await signInAt(provider, rp, { parameters })
    const waiting = await provider.database.db.transaction().execute(async (trx) => {
      const permissions = [{ resource, permission: 'models:read' }]
      await setClientPermissions(trx, systemActor, { id: rp.client_id, permissions })
      const answer = refresh(provider, rp, body.refresh_token)
      await untilWaiting(1)
      return { answer }
    })
    const held = await waiting.answer
    expect([held.status, held.body.error, held.headers.get('retry-after')]).toEqual([
      503,
      'temporarily_unavailable',
      '1',
    ])
    await expect.poll(async () => (await refresh(provider, rp, body.refresh_token)).body.scope).toMatch(/models:read$/)
  })

  /** Waits until as many statements wait for a lock. */
  async function untilWaiting(count: number): Promise<void> {
    for (let waiting = 0; waiting < count;) {
      const { rows } = await sql`
        SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`.execute(
        provider.database.db,
      )
      waiting = rows.length
    }
  }

  /** A browser that is signed in, and has nothing to do with the client in question. */
  async function signedIn(): Promise<UserAgent> {
    const agent = new UserAgent()
    await signInAt(provider, await registerClient(provider), { agent })
    return agent
  }

  it('a family that begins on a consent which is just being withdrawn comes to nothing', async () => {
    const { db } = provider.database
    const rp = await registerClient(provider, { first_party: false })
    const agent = new UserAgent()
    await signInAt(provider, rp, { agent })
    const otherDevice = await signedIn()
    const page = await agent.open(`${provider.issuer}/account/applications`)
    const index = findForms(page).findIndex(({ fields }) => fields['client_id'] === rp.client_id)
    const underWay = await db.transaction().execute(async (trx) => {
      // Holds the withdrawal where it has forgotten the consent, and not yet ended the families.
      await sql`SELECT 1 FROM artifacts WHERE kind = 'Grant' AND client_id = ${rp.client_id} FOR UPDATE`.execute(trx)
      const withdrawn = agent.submit(page, {}, index)
      await untilWaiting(1)
      const answered = authorize(provider, rp, { agent: otherDevice })
      await untilWaiting(2)
      return { answered, withdrawn }
    })
    expect((await underWay.withdrawn).status).toBe(200)
    expect((await underWay.answered).callback.searchParams.get('error')).toBe('access_denied')
    const left = await sql`SELECT 1 FROM artifacts WHERE client_id = ${rp.client_id}`.execute(db)
    expect(left.rows).toEqual([])
  })

  it('a Grant that a request is just writing does not bring back what its client has just lost', async () => {
    const { db } = provider.database
    const { resource } = provider.demo
    const rp = await registerClient(provider)
    const agent = new UserAgent()
    const parameters = { scope: 'openid models:read models:write', resource }
    await signInAt(provider, rp, { agent, parameters })
    const permit = (names: readonly string[]) =>
      db.transaction().execute((trx) =>
        setClientPermissions(trx, systemActor, {
          id: rp.client_id,
          permissions: names.map((permission) => ({ resource, permission })),
        }),
      )
    const underWay = await db.transaction().execute(async (trx) => {
      // Holds the change where it has taken the permission from the client and the Grant.
      await setClientPermissions(trx, systemActor, {
        id: rp.client_id,
        permissions: [{ resource, permission: 'models:read' }],
      })
      const answered = authorize(provider, rp, {
        agent,
        parameters: { ...parameters, scope: 'openid email models:write' },
      })
      await untilWaiting(1)
      return { answered }
    })
    expect((await underWay.answered).callback.searchParams.get('error')).toBe('access_denied')
    // Were it still in the Grant, it would be there again as soon as the client may ask for it.
    await permit(['models:read', 'models:write'])
    const { rows } = await sql<{ scope: string }>`
      SELECT payload->'resources'->>${resource} AS scope FROM artifacts
      WHERE kind = 'Grant' AND client_id = ${rp.client_id}`.execute(db)
    expect(rows).toEqual([{ scope: 'models:read' }])
  })

  it('a code that a request is just writing for a client which is being disabled is not there when it is enabled again', async () => {
    const { db } = provider.database
    const rp = await registerClient(provider)
    const agent = await signedIn()
    const underWay = await db.transaction().execute(async (trx) => {
      await disableClient(trx, systemActor, { id: rp.client_id })
      const answered = agent.open(ask(provider, rp).url)
      await untilWaiting(1)
      return { answered }
    })
    // Whoever is enabled before the code is written may have one: that is a request to an enabled client.
    const answer = new URL((await underWay.answered).headers.get('location') ?? 'about:blank')
    await db.transaction().execute((trx) => enableClient(trx, systemActor, { id: rp.client_id }))
    expect([answer.searchParams.get('code'), answer.searchParams.get('error')]).toEqual([null, 'access_denied'])
    const left = await sql`SELECT kind FROM artifacts WHERE client_id = ${rp.client_id}`.execute(db)
    expect(left.rows).toEqual([])
  })

  it('a device that somebody approves while signing out gets nothing', async () => {
    const { db } = provider.database
    const television = await registerClient(provider, {
      type: 'native',
      grant_types: [deviceGrant, 'refresh_token'],
      redirect_uris: [],
    })
    const agent = new UserAgent()
    const signedInAt = await signInAt(provider, await registerClient(provider), { agent })
    const { body } = await postForm(`${provider.issuer}/device/authorization`, television, { scope: 'openid' })
    const input = await agent.open(`${provider.issuer}/device`)
    const confirm = await agent.submit(input, { user_code: String(body['user_code']) })
    const consent = await agent.submit(confirm, { confirm: 'yes' })
    expect(consent.html).toContain('id="allow"')
    const { sub, sid = '' } = decodeJwt<{ sid?: string }>(signedInAt.body.id_token ?? '')
    const underWay = await db.transaction().execute(async (trx) => {
      // Holds the approval where it writes the code, with the session read and not yet saved.
      await sql`SELECT 1 FROM artifacts WHERE client_id = ${television.client_id} FOR UPDATE`.execute(trx)
      const approved = agent.submit(consent, { decision: 'allow' })
      await untilWaiting(1)
      const ended = db
        .transaction()
        .execute((other) => endSession(other, systemActor, { sessionUid: sid, reason: 'signed out' }))
      await untilWaiting(2)
      return { approved, ended }
    })
    await underWay.approved
    expect(await underWay.ended).toMatchObject({ userId: sub })
    const poll = await postForm(`${provider.issuer}/token`, television, {
      grant_type: deviceGrant,
      device_code: String(body['device_code']),
    })
    expect([poll.status, poll.body.error]).toEqual([400, 'invalid_grant'])
  })
})
