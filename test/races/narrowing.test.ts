/** What takes rights away, beside what is just using them. */
import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import { setClientPermissions } from '../../src/oauth/clients.ts'
import { hasPostgres } from '../support/databases.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { authorize, exchange, isActive, refresh, registerClient, signInAt } from '../support/relying-party.ts'
import { findForms, UserAgent } from '../support/user-agent.ts'

describe.runIf(hasPostgres())('on postgres', () => {
  let provider: TestProvider
  beforeAll(async () => {
    provider = await openProvider('postgres')
  })

  it('a token issued while a change of its client was waiting is as dead as those before it', async () => {
    const rp = await registerClient(provider)
    const { resource } = provider.demo
    const parameters = { scope: 'openid models:read models:write', resource }
    const { body } = await signInAt(provider, rp, { parameters })
    const late = await provider.database.db.transaction().execute(async (trx) => {
      await sql`SELECT 1`.execute(trx)
      // The time of issue counts whole seconds.
      await new Promise((resolve) => setTimeout(resolve, 2_100))
      const answer = await refresh(provider, rp, body.refresh_token)
      const permissions = [{ resource, permission: 'models:read' }]
      await setClientPermissions(trx, systemActor, { id: rp.client_id, permissions })
      return answer
    })
    expect(late.body.scope).toBe('models:read models:write')
    expect(await isActive(provider, rp, late.body.access_token)).toBe(false)
    expect(await isActive(provider, rp, body.access_token)).toBe(false)
  })

  it('a family that began on a consent which is just being withdrawn ends with it', async () => {
    const { db } = provider.database
    const rp = await registerClient(provider, { first_party: false })
    const agent = new UserAgent()
    await signInAt(provider, rp, { agent })
    const otherDevice = new UserAgent()
    await signInAt(provider, await registerClient(provider), { agent: otherDevice })
    const page = await agent.open(`${provider.issuer}/account/applications`)
    const index = findForms(page).findIndex(({ fields }) => fields['client_id'] === rp.client_id)
    const { answered, withdrawn } = await db.transaction().execute(async (trx) => {
      // Holds the withdrawal where it has listed the families, and not yet forgotten the consent.
      await sql`SELECT 1 FROM consents WHERE client_id = ${rp.client_id} FOR UPDATE`.execute(trx)
      const withdrawn = agent.submit(page, {}, index)
      for (let waiting = 0; waiting === 0;) {
        const { rows } = await sql`
          SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`.execute(db)
        waiting = rows.length
      }
      return { answered: await authorize(provider, rp, { agent: otherDevice }), withdrawn }
    })
    expect((await withdrawn).status).toBe(200)
    expect(answered.code).not.toBe('')
    expect((await exchange(provider, rp, answered)).body.error).toBe('invalid_grant')
  })
})
