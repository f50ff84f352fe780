import { describe, expect, it } from 'vitest'
import { evaluateByLibrary, evaluateCondition, parseCondition } from '../../../src/guard/policy/condition.ts'
import type { Outcome } from '../../../src/guard/policy/condition.ts'
import { BEYOND } from '../../../src/guard/policy/direct.ts'
import { Facts } from '../../../src/guard/policy/facts.ts'
import { ExpressionError } from '../../../src/guard/policy/expression.ts'
import { Random, randomCondition, randomContext, randomRow, randomSubject } from './random-policies.ts'

const kind = (outcome: Outcome): string => (typeof outcome === 'boolean' ? String(outcome) : 'error')

/** Values of every kind a request can bring, for the attributes of `randomRow`. */
const ODDITIES: readonly unknown[] = [
  null,
  undefined,
  '',
  'alice',
  0,
  -0,
  2,
  2.5,
  1e300,
  2 ** 53,
  Number.NaN,
  3n,
  true,
  [],
  ['alice', 2, null],
  { a: 1 },
  new Date(0),
  new Set(['alice']),
]
const ATTRIBUTES = ['owner', 'department', 'level', 'quota', 'score', 'public', 'created_at', 'tags'] as const

describe('the short cut for simple conditions', () => {
  it('answers as the evaluator does, or leaves it to it', () => {
    const random = new Random(7)
    const tally = { direct: 0, beyond: 0, true: 0, false: 0, error: 0 }
    const differences: string[] = []
    for (let round = 0; round < 20_000; round += 1) {
      const source = randomCondition(random, random.below(3))
      let condition
      try {
        condition = parseCondition(source)
      } catch (error) {
        if (!(error instanceof ExpressionError)) throw error
        continue
      }
      if (condition.direct === undefined) continue
      const odd = Object.fromEntries(random.some(ATTRIBUTES, 3).map((name) => [name, random.pick(ODDITIES)]))
      const resource = { ...randomRow(random, 'm1'), ...odd, type: 'model' }
      const subject = { ...randomSubject(random), ...(random.chance(0.2) ? { department: random.pick(ODDITIES) } : {}) }
      const facts = (): Facts => new Facts(subject, 'read', resource as never, randomContext(new Random(round)))
      const outcome = kind(evaluateCondition(condition, facts()))
      const judged = kind(evaluateByLibrary(condition, facts()))
      tally.direct += 1
      if (condition.direct(facts()) === BEYOND) tally.beyond += 1
      tally[judged as 'true' | 'false' | 'error'] += 1
      if (outcome !== judged)
        differences.push(
          JSON.stringify({ source, subject, resource, outcome, judged }, (_key, value: unknown) =>
            typeof value === 'bigint' ? `${value}n` : value,
          ),
        )
    }
    console.log(tally)
    expect(differences.slice(0, 3)).toEqual([])
    expect(tally.direct).toBeGreaterThan(5_000)
    expect(Math.min(tally.true, tally.false, tally.error)).toBeGreaterThan(500)
    expect(tally.beyond).toBeGreaterThan(100)
    expect(tally.beyond).toBeLessThan(tally.direct / 2)
  })

  it('takes the conditions of the seed', () => {
    for (const source of [
      'resource.owner == subject.id',
      'resource.department == subject.department AND subject.seniority > 2',
      'resource.project in subject.projects',
      '!(context.day == "weekday" && context.hour >= 9 && context.hour < 18)',
      'has(subject.act) || action == "read"',
    ]) {
      expect(parseCondition(source).direct).toBeDefined()
    }
  })

  it('spends the budget of the decision as well', () => {
    const condition = parseCondition('resource.x in subject.list')
    const subject = {
      type: 'user',
      id: 'a',
      roles: [],
      groups: [],
      list: Array.from({ length: 1_000 }, (_, index) => index),
    } as const
    const facts = new Facts(subject, 'read', { type: 'model', x: -1 }, undefined)
    const outcomes = Array.from({ length: 150 }, () => kind(evaluateCondition(condition, facts)))
    expect(outcomes[0]).toBe('false')
    expect(outcomes.at(-1)).toBe('error')
  })
})
