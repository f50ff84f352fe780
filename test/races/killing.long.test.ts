import { describe, expect, it } from 'vitest'
import { hasPostgres } from '../support/databases.ts'
import { killWhileIssuing } from './killing.ts'

describe.runIf(hasPostgres())('kill -9 of one of two servers', () => {
  it('at 20 moments of issuing: no family lost or torn, no code spent twice', async () => {
    const { unknownOutcomes, ...tally } = await killWhileIssuing(20)
    expect(tally).toEqual({ kills: 20, familiesLost: 0, familiesTorn: 0, codesSpentTwice: 0 })
    expect(unknownOutcomes).toBeGreaterThan(0)
  })
})
