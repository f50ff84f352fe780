import { expect, it } from 'vitest'
import { onPostgres } from '../support/databases.ts'
import { killWhileRevoking } from './writers.ts'

onPostgres(() => {
  it('nothing is lost, invented or out of order while eight commit beside each other and servers are killed', async () => {
    const tally = await killWhileRevoking(2)
    expect(tally.committed).toBeGreaterThan(50)
    expect(tally).toMatchObject({ missing: [], invented: [], outOfOrder: [], renamed: [] })
  }, 180_000)
})
