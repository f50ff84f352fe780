import * as fc from 'fast-check'
import { beforeAll, describe, expect, it } from 'vitest'
import { openTargets } from '../support/api-targets.ts'
import { openContract, type Contract } from '../support/contract.ts'
import { eachDatabase } from '../support/databases.ts'
import { openManagement, type Management } from '../support/management.ts'
import { operationsOf, readCommittedDocument } from '../openapi/document.ts'
import { hostileRequests, sendRaw } from './hostile-requests.ts'
import { complete, successOf, type World } from './scenarios.ts'

/**
 * Sends each operation so many requests that nobody would think of, and holds each answer to the document: none is a
 * mistake of ours, none is undocumented, and none is kept waiting for.
 */
export function describeHostileWalk({ runs, seed }: { readonly runs: number; readonly seed: number }): void {
  const document = readCommittedDocument()
  const operations = operationsOf(document)
  // The machine may do everything; the others have something that is their own.
  const callers = fc.constantFrom('machine', 'machine', 'machine', 'user', 'support')

  eachDatabase((_open, engine) => {
    let api: Management
    let contract: Contract
    let world: World
    beforeAll(async () => {
      api = await openManagement(engine)
      const tagOf = async (path: string) => (await api.call(path)).headers.get('etag') ?? ''
      world = { api, targets: openTargets(api), tagOf }
      contract = openContract(document)
    })

    describe.each(operations.map(({ id }, place) => ({ id, place })))('$id', ({ id, place }) => {
      it('answers whatever comes as it is documented', async () => {
        const operation = contract.operation(id)
        const valid = await complete(world, operation, await successOf(id).make(world))
        await fc.assert(
          fc.asyncProperty(hostileRequests(document, operation, valid), callers, async (request, caller) => {
            const answer = await sendRaw(api.provider.issuer, request, `Bearer ${api[caller].token}`)
            expect(answer.status).toBeLessThan(500)
            // A strange segment may lead to another route, or to none.
            const isElsewhere = answer.status === 404 || answer.status === 405
            const faults = isElsewhere ? contract.faultsOfRefusal(answer) : contract.faultsOf(operation, answer)
            expect(faults).toEqual([])
          }),
          { numRuns: runs, seed: seed + place, endOnFailure: true },
        )
      })
    })

    it('and the server is as well as before, with nothing in its log that nobody expected', async () => {
      expect((await api.call('/v1/users/me')).status).toBe(200)
      const errors = api.provider
        .log()
        .split('\n')
        .filter((line) => line.includes('"level":"ERROR"'))
      expect(errors).toEqual([])
    })
  })
}
