import { sql } from 'kysely'
import { decodeJwt } from 'jose'
import { expect, it } from 'vitest'
import { openProvider } from '../support/provider.ts'
import { isActive, refresh, registerClient, signInAt } from '../support/relying-party.ts'
import { UserAgent } from '../support/user-agent.ts'

it('an application keeps working while its owner is away: after sign-out and for a month, until it is withdrawn', async () => {
  const provider = await openProvider('pglite')
  const { db } = provider.database
  const backup = await registerClient(provider, { first_party: false, name: 'Nightly backup' })
  const agent = new UserAgent()
  const parameters = {
    scope: 'openid offline_access models:read',
    resource: provider.demo.resource,
    prompt: 'consent',
  }
  const first = await signInAt(provider, backup, { agent, parameters })
  await agent.submit(await agent.open(`${provider.issuer}/logout`), { logout: 'yes' })

  const second = await refresh(provider, backup, first.body.refresh_token)
  expect(second.status, JSON.stringify(second.body)).toBe(200)
  expect(await isActive(provider, backup, second.body.access_token)).toBe(true)
  expect(decodeJwt(second.body.access_token ?? '')).toMatchObject({ scope: 'models:read', aud: provider.demo.resource })

  // Twenty-nine days later: sessions, codes and replies are long gone and swept.
  await sql`UPDATE artifacts SET expires_at = expires_at - interval '29 days', consumed_at = consumed_at - interval '29 days'`.execute(
    db,
  )
  await sql`DELETE FROM artifacts WHERE expires_at < now()`.execute(db)
  const third = await refresh(provider, backup, second.body.refresh_token)
  expect(third.status, JSON.stringify(third.body)).toBe(200)

  const page = await agent.open(`${provider.issuer}/account/applications`)
  const { email, password } = provider.demo.user
  const applications = await agent.submit(page, { login: email, password })
  expect(applications.html).toContain('keep its access while you are away')
  await agent.submit(applications, {}, 1)
  expect((await refresh(provider, backup, third.body.refresh_token)).body.error).toBe('invalid_grant')
  expect(await isActive(provider, backup, third.body.access_token)).toBe(false)
})
