/** What the tests of roles begin with: an API with two permissions, two people, and who changes it all. */
import type { Actor } from '../../src/audit/audit.ts'
import type { Database, Trx } from '../../src/database/database.ts'
import { createResource } from '../../src/oauth/resources.ts'

export const operator: Actor = { type: 'operator', id: 'test' }
export const api = 'https://api.example.com'
export const read = { resource: api, permission: 'models:read' }
export const write = { resource: api, permission: 'models:write' }

export const inTransaction = <T>({ db }: Database, work: (trx: Trx) => Promise<T>) => db.transaction().execute(work)

/** Makes the API, and `usr_1` and `usr_2`, who have no role. */
export async function makeApiAndPeople(trx: Trx): Promise<void> {
  await createResource(trx, operator, {
    id: api,
    permissions: [read, write].map(({ permission }) => ({ permission })),
  })
  for (const id of ['usr_1', 'usr_2']) {
    await trx.insertInto('users').values({ id, email: id, email_normalized: id }).execute()
  }
}
