import { describe, expect, it } from 'vitest'
import { hasPostgres } from '../support/databases.ts'
import { killWhileIssuing } from './killing.ts'

describe.runIf(hasPostgres())('kill -9 of one of two servers', () => {
  it('at 3 moments of issuing: no family lost or torn, no code spent twice', { timeout: 120_000 }, async () => {
    const { unknownOutcomes, ...tally } = await killWhileIssuing(3)
    expect(tally).toEqual({ kills: 3, familiesLost: 0, familiesTorn: 0, codesSpentTwice: 0 })
    // Otherwise nothing was under way, and nothing was shown.
    expect(unknownOutcomes).toBeGreaterThan(0)
  })
})
