/**
 * Signing out beside whatever else the browser is doing. A session is written as a whole at the end of every request
 * that carries it, so what it says of its clients may be lost, and what has ended may be written once more.
 */
import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import { hasPostgres } from '../support/databases.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { ask, authorize, exchange, refresh, registerClient, signInAt } from '../support/relying-party.ts'
import { UserAgent } from '../support/user-agent.ts'

const rounds = 5

describe.runIf(hasPostgres())('on postgres', () => {
  let provider: TestProvider
  beforeAll(async () => {
    provider = await openProvider('postgres')
  })

  /** Signs out by the provider's own page, or by ours. */
  const ways: Readonly<Record<string, (browser: UserAgent) => Promise<unknown>>> = {
    'at /logout': async (browser) => browser.submit(await browser.open(`${provider.issuer}/logout`), { logout: 'yes' }),
    'at /account': async (browser) => {
      const page = await browser.open(`${provider.issuer}/account/applications`)
      const index = page.html.match(/<form\b[^>]*>/g)?.findIndex((form) => form.includes('/account/sign-out')) ?? 0
      return browser.submit(page, {}, index)
    },
  }

  for (const [where, signOut] of Object.entries(ways)) {
    it(`${where} ends the families of tabs that were opened at the same time`, async () => {
      const clients = [await registerClient(provider), await registerClient(provider), await registerClient(provider)]
      for (let round = 0; round < rounds; round += 1) {
        const agent = new UserAgent()
        await signInAt(provider, await registerClient(provider), { agent })
        // Two tabs of each, as when a browser restores its windows.
        const answers = await Promise.all(
          [...clients, ...clients].map(async (client) => ({
            client,
            answer: await exchange(provider, client, await authorize(provider, client, { agent })),
          })),
        )
        expect(answers.map(({ answer }) => answer.status)).toEqual(answers.map(() => 200))
        await signOut(agent)
        for (const { client, answer } of answers) {
          expect((await refresh(provider, client, answer.body.refresh_token)).body.error).toBe('invalid_grant')
        }
      }
    })
  }

  it('is not undone by a request that had begun before it', async () => {
    const rp = await registerClient(provider)
    const agent = new UserAgent()
    await signInAt(provider, rp, { agent })
    const { db } = provider.database
    const session = await db
      .selectFrom('artifacts')
      .selectAll()
      .where('kind', '=', 'Session')
      .orderBy('created_at', 'desc')
      .limit(1)
      .executeTakeFirstOrThrow()
    // The other tab's request is held between reading the session and writing it, while the person signs out.
    const { answer } = await db.transaction().execute(async (trx) => {
      await sql`SELECT 1 FROM artifacts WHERE kind = 'Session' AND id = ${session.id} FOR UPDATE`.execute(trx)
      const answer = agent.fetch(ask(provider, rp).url)
      await waitUntilBlocked(provider)
      await trx.deleteFrom('artifacts').where('kind', '=', 'Session').where('id', '=', session.id).execute()
      await trx
        .insertInto('revocations')
        .values({
          kind: 'session',
          subject: session.session_uid ?? '',
          reason: 'signed out',
          expires_at: new Date(Date.now() + 3_600_000),
        })
        .execute()
      return { answer }
    })
    const { headers } = await answer
    expect(headers.get('location')).toContain('error=login_required')
    const again = await agent.open(ask(provider, rp).url)
    expect(again.html).toContain('name="password"')
  })
})

async function waitUntilBlocked(provider: TestProvider): Promise<void> {
  for (let attempts = 0; attempts < 200; attempts += 1) {
    const { rows } = await sql`
      SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`.execute(
      provider.database.db,
    )
    if (rows.length > 0) return
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
  throw new Error('nobody came to wait for the lock')
}
