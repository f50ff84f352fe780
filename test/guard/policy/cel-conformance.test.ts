import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { parse } from 'yaml'
import { runConformance } from './cel-conformance.ts'

const exclusions = parse(readFileSync(new URL('cel-exclusions.yaml', import.meta.url), 'utf8')) as Record<
  'fails' | 'outside',
  Record<string, string[]>
>
const results = runConformance()

function listed(kind: 'fails' | 'outside'): string[] {
  return Object.values(exclusions[kind]).flat().sort()
}

function found(verdict: string): string[] {
  return results
    .filter((result) => result.verdict === verdict)
    .map(({ name }) => name)
    .sort()
}

describe('conditions against the conformance tests of google/cel-spec', () => {
  it('fails none of the tests in the profile but those that are listed with a reason', () => {
    expect(found('fails')).toEqual(listed('fails'))
  })

  it('leaves out nothing but what is listed with a reason', () => {
    expect(found('outside')).toEqual(listed('outside'))
  })

  it('passes nine of ten tests in the profile', () => {
    const passed = found('passes').length
    const failed = found('fails').length
    console.log(
      `CEL: ${passed} of ${passed + failed} tests in the profile pass; ${found('outside').length} of ${results.length} are outside`,
    )
    expect(passed / (passed + failed)).toBeGreaterThan(0.9)
    expect(passed).toBeGreaterThanOrEqual(630)
  })

  it('refuses a whole condition rather than a part of it: every failing test is refused, or out of range', () => {
    // What matters for policies: among the tests that fail, none turns a false into a true with values a policy meets.
    const turned = results.filter(
      ({ verdict, reason }) => verdict === 'fails' && reason === 'gives true instead of false',
    )
    expect(turned.every(({ expression }) => expression.includes('9223372036854775807'))).toBe(true)
  })
})
