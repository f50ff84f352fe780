import { beforeAll, describe, expect, it } from 'vitest'
import { grantPermission } from '../../../src/access/roles.ts'
import { systemActor } from '../../../src/audit/audit.ts'
import { setClientPermissions } from '../../../src/oauth/clients.ts'
import { getResource, updateResource } from '../../../src/oauth/resources.ts'
import { openProvider, type TestProvider } from '../../support/provider.ts'
import { ask, isActive, refresh, registerClient, signInAt } from '../../support/relying-party.ts'
import { UserAgent } from '../../support/user-agent.ts'

describe('a permission that a client lost and was given again', () => {
  let provider: TestProvider
  beforeAll(async () => {
    provider = await openProvider('pglite')
  })

  const permit = (id: string, names: readonly string[]) =>
    provider.database.db.transaction().execute((trx) =>
      setClientPermissions(trx, systemActor, {
        id,
        permissions: names.map((permission) => ({ resource: provider.demo.resource, permission })),
      }),
    )

  /** The client loses it, whether by itself or because the resource no longer has it. */
  const losses: Readonly<Record<string, (clientId: string) => Promise<unknown>>> = {
    'by the client': (clientId) => permit(clientId, ['models:read']),
    'with the resource': async () => {
      const { db } = provider.database
      const { id, permissions } = await getResource(db, provider.demo.resource)
      const update = (list: typeof permissions) =>
        db
          .transaction()
          .execute((trx) => updateResource(trx, systemActor, { id, permissions: list.map((one) => ({ ...one })) }))
      await update(permissions.filter(({ permission }) => permission !== 'models:share'))
      await update(permissions)
      // The role lost it too, so that it was not the person's to give either.
      const permission = { role: 'member', resource: id, permission: 'models:share' }
      await db.transaction().execute((trx) => grantPermission(trx, systemActor, permission))
    },
  }

  for (const [how, lose] of Object.entries(losses)) {
    it(`is in no family from before, and people are asked again: lost ${how}`, async () => {
      const rp = await registerClient(provider, { first_party: false })
      await permit(rp.client_id, ['models:read', 'models:share'])
      const agent = new UserAgent()
      const parameters = { scope: 'openid models:read models:share', resource: provider.demo.resource }
      const { body } = await signInAt(provider, rp, { agent, parameters })
      expect(body.scope).toBe('models:read models:share')
      await lose(rp.client_id)
      await permit(rp.client_id, ['models:read', 'models:share'])
      expect(await isActive(provider, rp, body.access_token)).toBe(false)
      expect((await refresh(provider, rp, body.refresh_token)).body.scope).toBe('models:read')
      expect((await agent.open(ask(provider, rp, parameters).url)).html).toContain('id="allow"')
    })
  }
})
