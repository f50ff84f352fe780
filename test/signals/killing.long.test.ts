import { expect, it } from 'vitest'
import { onPostgres } from '../support/databases.ts'
import { killWhileRevoking } from './writers.ts'

onPostgres(() => {
  it.each([1, 2, 3])('nothing is lost, invented or out of order while servers are killed, run %i', async () => {
    const tally = await killWhileRevoking(4)
    expect(tally.committed).toBeGreaterThan(100)
    expect(tally).toMatchObject({ missing: [], invented: [], outOfOrder: [], renamed: [] })
  })
})
