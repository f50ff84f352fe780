import { decodeJwt } from 'jose'
import { beforeAll, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import { createResource } from '../../src/oauth/resources.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { registerClient, type RegisteredClient } from '../support/relying-party.ts'
import { postForm } from '../support/user-agent.ts'

const resource = 'https://many.example.com'
const permissions = Array.from({ length: 40 }, (_, i) => `documents:permission-number-${i}`)

let provider: TestProvider
let client: RegisteredClient
beforeAll(async () => {
  provider = await openProvider('pglite', { environment: { LATCHKEY_ACCESS_TOKEN_MAX_BYTES: '1024' } })
  await provider.database.db.transaction().execute((trx) =>
    createResource(trx, systemActor, {
      id: resource,
      name: 'Documents',
      permissions: permissions.map((permission) => ({ permission, description: '' })),
    }),
  )
  client = await registerClient(provider, {
    type: 'machine',
    permissions: permissions.map((permission) => ({ resource, permission })),
  })
})

const ask = (scope: string) =>
  postForm(`${provider.issuer}/token`, client, { grant_type: 'client_credentials', resource, scope })

it('refuses a token above the size that is set, and says how large it would be', async () => {
  const { status, body } = await ask(permissions.join(' '))
  expect([status, body.error]).toEqual([400, 'invalid_request'])
  expect(body.error_description).toMatch(/would be \d{4} bytes, more than the 1024 that are issued/)
  expect(body.access_token).toBeUndefined()
})

it('issues one below it, which is no larger than was reckoned', async () => {
  const { status, body } = await ask(permissions[0] ?? '')
  expect(status).toBe(200)
  expect(decodeJwt(body.access_token ?? '')).toMatchObject({ scope: permissions[0] })
  expect(Buffer.byteLength(body.access_token ?? '')).toBeLessThanOrEqual(1_024)
})
