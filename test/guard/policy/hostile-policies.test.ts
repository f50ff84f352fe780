import { describe, expect, it } from 'vitest'
import type { Subject } from '../../../src/guard/caller.ts'
import { loadPolicies, PolicyError } from '../../../src/guard/policy/policies.ts'
import type { Decision } from '../../../src/guard/policy/policies.ts'

const alice: Subject = { type: 'user', id: 'alice', roles: [], groups: [] }

function withCondition(...conditions: string[]): string {
  return JSON.stringify({
    policies: conditions.map((condition, index) => ({
      id: `p${index}`,
      effect: 'allow',
      subjects: ['*'],
      actions: ['*'],
      resources: ['*'],
      condition,
      filterable: false,
    })),
  })
}

/** Milliseconds of CPU. Time on the clock would measure the other tests too. */
function cpu(run: () => void): number {
  const before = process.cpuUsage()
  run()
  const { user, system } = process.cpuUsage(before)
  return (user + system) / 1_000
}

describe('a policy file meant to do harm is refused within seconds:', () => {
  const bomb = `a: &a ["x","x"]\n${'bcdefghij'
    .split('')
    .map((name, index) => `${name}: &${name} [*${'abcdefghi'[index]},*${'abcdefghi'[index]}]`)
    .join('\n')}\npolicies: *j\n`

  it.each([
    ['an alias bomb', bomb],
    ['brackets without end', '['.repeat(100_000)],
    ['mappings without end', '{a: '.repeat(50_000)],
    ['indentation without end', Array.from({ length: 5_000 }, (_, depth) => `${' '.repeat(depth)}a:`).join('\n')],
    ['more than a file may have', `# ${'x'.repeat(5_000_000)}\npolicies: []`],
    ['a merge key', 'policies: []\n<<: { roles: {} }'],
    ['a tag that asks for code', 'policies: !!js/function "() => 1"'],
    ['a directive', '%TAG ! tag:evil,2000:\n---\npolicies: !x []'],
    ['a key that is a mapping', '? { a: b }\n: []'],
    ['a prototype for a field', 'policies: []\n__proto__: { polluted: true }'],
  ])('%s', (_what, source) => {
    let refusal: unknown
    const spent = cpu(() => {
      try {
        loadPolicies(source)
      } catch (error) {
        refusal = error
      }
    })
    expect(refusal).toBeInstanceOf(PolicyError)
    expect(spent).toBeLessThan(5_000)
    expect(({} as Record<string, unknown>)['polluted']).toBeUndefined()
  })
})

describe('a condition meant to do harm is refused while loading:', () => {
  it.each([
    ['a regular expression', 'resource.name.matches("^(a+)+$")', 'matches'],
    ['a product of lists', 'resource.l.all(a, resource.l.all(b, a == b))', 'inside another comprehension'],
    ['a product within a map', 'resource.l.map(a, resource.l.map(b, b))', 'inside another comprehension'],
    ['a name that doubles', 'cel.bind(x, resource.l, x + x)', 'no function bind'],
    ['a text beyond the limit', `resource.a == "${'x'.repeat(5_000)}"`, '4096 characters'],
    ['parentheses without end', `${'('.repeat(2_000)}true${')'.repeat(2_000)}`, 'maxDepth'],
    ['negations without end', `${'!'.repeat(4_000)}true`, ''],
    ['indexes without end', `resource${'[0]'.repeat(1_300)}`, ''],
    ['a list beyond the limit', `resource.a in [${'1,'.repeat(1_500)}1]`, ''],
    ['a function that does not exist', 'eval("1")', 'no function eval'],
    ['a constructor', 'resource.constructor.constructor("return 1")()', ''],
    ['a method of the language', 'resource.a.toString() == ""', 'no function toString'],
    ['a type', 'type(resource) == map', 'no function type'],
    ['bytes', 'bytes(resource.a) == b"x"', 'no function bytes'],
    ['a variable that hides another', 'resource.l.exists(subject, subject.admin)', 'cannot call its variable'],
    ['a macro with another shape', 'resource.l.exists(1, true)', 'iteration variable'],
    ['a key that is a prototype', '{"__proto__": true}[resource.k]', 'plain strings'],
    ['text that is no timestamp', 'context.time > timestamp("Mon Jan 01 2024 00:00:00")', 'no timestamp'],
  ])('%s', (_what, condition, message) => {
    let refusal: unknown
    const spent = cpu(() => {
      try {
        loadPolicies(withCondition(condition))
      } catch (error) {
        refusal = error
      }
    })
    expect(refusal).toBeInstanceOf(PolicyError)
    expect((refusal as PolicyError).message).toContain(message)
    expect(spent).toBeLessThan(1_000)
  })
})

describe('a request meant to do harm is decided, against it, within a tenth of a second:', () => {
  const long = 'a'.repeat(65_000)
  const items = Array.from({ length: 1_000 }, (_, index) => `item-${index}`)
  const deep = Array.from({ length: 50 }).reduce<unknown>((inner) => ({ inner }), 'x')
  const circle: Record<string, unknown> = {}
  circle['self'] = circle

  it.each<[string, string[], Record<string, unknown>]>([
    [
      'a list of a million items',
      ['resource.l.exists(x, x == "no")'],
      { l: Array.from({ length: 1_000_000 }, () => 'x') },
    ],
    ['a list beyond its bound', ['resource.l.exists(x, x == "no")'], { l: [...items, 'one more'] }],
    ['two long lists, multiplied', ['resource.l.all(x, x in resource.m)'], { l: items, m: items }],
    [
      'a text searched for half of itself',
      ['resource.a.contains(resource.b)'],
      { a: long, b: `${'a'.repeat(16_000)}b${'a'.repeat(16_000)}` },
    ],
    ['a text searched in every item', ['resource.l.exists(x, resource.a.contains(x))'], { l: items, a: long }],
    ['a text of ten megabytes', ['resource.a == "x"'], { a: 'x'.repeat(10_000_000) }],
    [
      'a text that grows',
      [
        `size(${Array.from({ length: 60 }, () => 'resource.a').join(' + ')}) == 0 || (${Array.from({ length: 60 }, () => 'resource.a').join(' + ')}).contains(resource.a + "b")`,
      ],
      { a: 'a'.repeat(60_000) },
    ],
    ['attributes nested without end', ['resource.deep.inner.inner == "x"'], { deep }],
    ['attributes that contain themselves', ['resource.circle.self == "x"'], { circle }],
    [
      'an attribute with a million names',
      ['resource.o.x == 1'],
      { o: Object.fromEntries(Array.from({ length: 100_000 }, (_, index) => [`n${index}`, index])) },
    ],
    [
      'a resource with a million names',
      ['"x" in resource'],
      Object.fromEntries(Array.from({ length: 100_000 }, (_, index) => [`n${index}`, index])),
    ],
    [
      'a resource with a hundred thousand names, asked by a thousand policies',
      Array.from({ length: 1_000 }, () => '"x" in resource'),
      Object.fromEntries(Array.from({ length: 100_000 }, (_, index) => [`n${index}`, index])),
    ],
    ['a function for an attribute', ['resource.f == "x"'], { f: () => 'x' }],
    [
      'an attribute that is a proxy for everything',
      ['resource.p.x == 1'],
      { p: new Proxy({}, { ownKeys: () => ['x'], getOwnPropertyDescriptor: () => undefined }) },
    ],
    ['an integer of a thousand digits', ['resource.n > 0'], { n: 10n ** 1_000n }],
    [
      'a thousand policies that each read a long list',
      Array.from({ length: 1_000 }, () => 'resource.l.exists(x, x == "no" || x == "never" || x == "nowhere")'),
      { l: items },
    ],
  ])('%s', (_what, conditions, resource) => {
    const set = loadPolicies(withCondition(...conditions))
    const question = { subject: alice, action: 'read', resource: { type: 'model', ...resource } }
    let decision: Decision | undefined
    const ask = (): void => {
      decision = set.decide(question)
    }
    ask()
    const spent = cpu(ask)
    expect(decision).toMatchObject({ allowed: false })
    expect(decision?.errors.length).toBeGreaterThan(0)
    expect(spent).toBeLessThan(100)
  })

  it('a budget that is used up refuses, even where an allow would have followed', () => {
    const expensive = Array.from({ length: 1_000 }, () => 'resource.l.exists(x, x == "no")')
    const set = loadPolicies(withCondition(...expensive, 'resource.ok'))
    const decision = set.decide({ subject: alice, action: 'read', resource: { type: 'model', ok: true, l: items } })
    expect(decision.allowed).toBe(false)
    expect(decision.errors.at(-1)?.message).toContain('budget')
  })

  it('invented actions and types do not fill the memory', () => {
    const set = loadPolicies(withCondition('resource.ok'))
    const before = process.memoryUsage().heapUsed
    for (let index = 0; index < 50_000; index += 1) {
      set.decide({ subject: alice, action: `action-${index}`, resource: { type: `type-${index}` } })
    }
    expect((process.memoryUsage().heapUsed - before) / 1_048_576).toBeLessThan(64)
  })
})
