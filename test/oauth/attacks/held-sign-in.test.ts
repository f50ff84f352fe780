/**
 * A sign-in that was proved and then held back: whoever has the redirect may follow it an hour later, when the person is
 * not who they were.
 */
import { beforeAll, describe, expect, it } from 'vitest'
import { systemActor } from '../../../src/audit/audit.ts'
import { openPasswords } from '../../../src/users/password.ts'
import { createUser, deleteUser, disableUser, enableUser } from '../../../src/users/users.ts'
import { openLog } from '../../../src/log.ts'
import { openProvider, type TestProvider } from '../../support/provider.ts'
import { ask, registerClient } from '../../support/relying-party.ts'
import { findForms, UserAgent } from '../../support/user-agent.ts'

describe('a sign-in that was held back', () => {
  let provider: TestProvider
  beforeAll(async () => {
    provider = await openProvider('pglite')
  })

  async function heldSignIn(email: string) {
    const { config, database } = provider
    const workFactor = { memoryKib: 19_456, timeCost: 2, parallelism: 1 }
    const passwords = openPasswords({ config, workFactor, log: openLog({ ...config, logLevel: 'silent' }) })
    const password = 'correct horse battery staple'
    const passwordHash = await passwords.hash(password)
    const user = await database.db.transaction().execute((trx) => createUser(trx, systemActor, { email, passwordHash }))
    const rp = await registerClient(provider)
    const agent = new UserAgent()
    const page = await agent.open(ask(provider, rp).url)
    const [form] = findForms(page)
    const answer = await agent.fetch(new URL(form?.action ?? '', page.url), {
      method: 'POST',
      body: new URLSearchParams({ ...form?.fields, login: email, password }),
    })
    return { user, rp, agent, next: new URL(answer.headers.get('location') ?? '', page.url) }
  }

  it('is refused while the person is disabled, and is worth nothing after they are enabled again', async () => {
    const { user, rp, agent, next } = await heldSignIn('bob@example.com')
    const { db } = provider.database
    await db.transaction().execute((trx) => disableUser(trx, systemActor, { userId: user.id }))
    const refused = await agent.fetch(next)
    expect([refused.status, refused.headers.get('location')]).toEqual([
      303,
      expect.stringContaining('error=login_required'),
    ])
    await db.transaction().execute((trx) => enableUser(trx, systemActor, { userId: user.id }))
    expect((await agent.open(ask(provider, rp).url)).html).toContain('name="password"')
  })

  it('is refused after the person was deleted', async () => {
    const { user, rp, agent, next } = await heldSignIn('carol@example.com')
    const { db } = provider.database
    await db.transaction().execute((trx) => deleteUser(trx, systemActor, { userId: user.id }))
    const refused = await agent.fetch(next)
    expect([refused.status, refused.headers.get('location')]).toEqual([
      303,
      expect.stringContaining('error=login_required'),
    ])
    expect((await agent.open(ask(provider, rp).url)).html).toContain('name="password"')
  })
})
