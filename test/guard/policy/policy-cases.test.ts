import { readdirSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { loadPolicies, runPolicyTests } from '../../../src/guard/policy/policies.ts'

const folder = fileURLToPath(new URL('../../policy-cases/', import.meta.url))

for (const file of readdirSync(folder).filter((name) => name.endsWith('.yaml'))) {
  describe(`the cases of ${file}`, () => {
    const policies = loadPolicies({ path: `${folder}${file}` })
    const results = runPolicyTests(policies)

    it.each(results.map((result) => [result.name, result] as const))('%s', (_name, { message }) => {
      expect(message).toBe('')
    })

    it('leaves no policy without a case that it decides', () => {
      const decided = new Set(results.map(({ decision }) => decision.policy))
      const idle = policies.policies.filter(({ id }) => !decided.has(id)).map(({ id }) => id)
      // A table of roles has more cells than need a case each.
      expect(idle.filter((id) => !id.startsWith('role:'))).toEqual([])
    })
  })
}
