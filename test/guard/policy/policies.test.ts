import { describe, expect, it } from 'vitest'
import type { Subject } from '../../../src/guard/caller.ts'
import { explainDecision, loadPolicies, PolicyError } from '../../../src/guard/policy/policies.ts'

function user(id: string, more: Partial<Subject> = {}): Subject {
  return { type: 'user', id, roles: [], groups: [], ...more }
}

/** A file of policies, each allowing everybody to read models unless it says otherwise. */
function policies(...list: Record<string, unknown>[]): string {
  const plain = { effect: 'allow', subjects: ['*'], actions: ['read'], resources: ['model'] }
  return JSON.stringify({ policies: list.map((policy, index) => ({ id: `p${index}`, ...plain, ...policy })) })
}

function allows(source: string, subject: Subject, resource: Record<string, unknown> = {}, action = 'read'): boolean {
  return loadPolicies(source).decide({ subject, action, resource: { type: 'model', ...resource } }).allowed
}

describe('a policy file is refused, with file and line,', () => {
  const head =
    'policies:\n  - id: a\n    effect: allow\n    subjects: ["*"]\n    actions: [read]\n    resources: [model]\n'

  it.each([
    ['that is empty', '', 1, 'is empty'],
    ['that is a list', '- a\n', 1, 'mapping'],
    ['without policies', 'tests: []\n', 1, 'policies: or roles:'],
    ['with a field nobody knows', `${head}    conditions: "true"\n`, 7, "no field 'conditions'"],
    ['with a top field nobody knows', `${head}policy: []\n`, 7, "no field 'policy'"],
    ['with an id twice', `${head}${head.slice('policies:\n'.length)}`, 7, 'already taken in line 2'],
    [
      'without an effect',
      'policies:\n  - id: a\n    subjects: ["*"]\n    actions: [read]\n    resources: [model]\n',
      2,
      "needs 'effect'",
    ],
    ['with another effect', head.replace('effect: allow', 'effect: permit'), 3, "not 'permit'"],
    ['with no subjects at all', head.replace('["*"]', '[]'), 4, 'nothing would ever match'],
    ['with subjects that are no list', head.replace('["*"]', '"*"'), 4, 'is a list'],
    ['with a subject of no kind', head.replace('["*"]', '["alice"]'), 4, "subject 'alice'"],
    ['with a star inside a subject', head.replace('["*"]', '["user:al*ce"]'), 4, 'star'],
    ['with every role', head.replace('["*"]', '["role:*"]'), 4, 'name the role'],
    ['with a star inside an action', head.replace('[read]', '["s3:*Object"]'), 5, 'a star may only end'],
    ['with a star inside a resource', head.replace('[model]', '["model:a*b"]'), 6, 'a star may only end'],
    ['with a number for an id', head.replace('id: a', 'id: 7'), 2, 'quote it'],
    ['with an anchor', head.replace('[read]', '&x [read]'), 5, 'anchors are not allowed'],
    ['with an alias', `${head}    condition: *x\n`, 7, 'alias'],
    ['with a tag', `${head}    condition: !!str true\n`, 7, 'tags are not allowed'],
    ['with a tag of its own', `${head}    condition: !js/function "x"\n`, 7, 'tag'],
    ['with a key twice', `${head}    effect: deny\n`, 7, 'unique'],
    ['with a second document', `${head}---\npolicies: []\n`, 7, 'multiple documents'],
    ['with a condition that is no text', `${head}    condition: true\n`, 7, 'quote it'],
    ['with a condition that is no CEL', `${head}    condition: "resource.owner =="\n`, 7, "policy 'a'"],
    ['with a condition that is a number', `${head}    condition: "1 + 1"\n`, 7, 'this one is a int'],
    [
      'with a condition about something unknown',
      `${head}    condition: "user.id == 'x'"\n`,
      7,
      "nothing is called 'user'",
    ],
    ['with a comparison to null', `${head}    condition: "resource.owner == null"\n`, 7, 'has(resource.owner)'],
    ['with a NOT that binds too tightly', `${head}    condition: "NOT resource.a == resource.b"\n`, 7, 'NOT (a == b)'],
    [
      'with a condition that no list can have',
      `${head}    condition: "resource.a.map(x, x) == []"\n`,
      7,
      'filterable: false',
    ],
    [
      'with a test of a policy that is not there',
      `${head}tests:\n  - { name: t, subject: {}, action: a, resource: {}, expect: deny, policy: b }\n`,
      8,
      "no policy 'b'",
    ],
  ])('%s', (_what, source, line, message) => {
    let refusal: unknown
    try {
      loadPolicies(source, { file: 'rights.yaml' })
    } catch (error) {
      refusal = error
    }
    expect(refusal).toBeInstanceOf(PolicyError)
    expect(refusal).toMatchObject({ file: 'rights.yaml', line, message: expect.stringContaining(message) as string })
    expect((refusal as PolicyError).message).toMatch(/^rights\.yaml:\d+:\d+: /)
  })

  it('that cannot be read', () => {
    expect(() => loadPolicies({ path: '/nowhere/policies.yaml' })).toThrow(
      /^\/nowhere\/policies\.yaml:1:1: cannot be read/,
    )
  })
})

describe('a decision', () => {
  it('refuses what no policy allows, and says so', () => {
    const decision = loadPolicies(policies()).decide({
      subject: user('alice'),
      action: 'read',
      resource: { type: 'model' },
    })
    expect(decision).toEqual({ allowed: false, reason: 'no-matching-policy', errors: [] })
  })

  it('lets a deny win over any number of allows, wherever it stands', () => {
    const source = policies({ id: 'a' }, { id: 'no', effect: 'deny' }, { id: 'b' })
    const decision = loadPolicies(source).decide({
      subject: user('alice'),
      action: 'read',
      resource: { type: 'model' },
    })
    expect(decision).toEqual({ allowed: false, policy: 'no', reason: 'denied-by-policy', errors: [] })
  })

  it('does not apply an allow that fails, and names the failure', () => {
    const source = policies({ id: 'a', condition: 'resource.level > 1' })
    const decision = loadPolicies(source).decide({
      subject: user('alice'),
      action: 'read',
      resource: { type: 'model', level: 'high' },
    })
    expect(decision).toMatchObject({ allowed: false, reason: 'no-matching-policy', errors: [{ policy: 'a' }] })
    expect(decision.errors[0]?.message).toContain('compares numbers with numbers')
  })

  it('applies a deny that fails, and names the failure', () => {
    const source = policies({}, { id: 'no', effect: 'deny', condition: 'resource.frozen' })
    const decision = loadPolicies(source).decide({
      subject: user('alice'),
      action: 'read',
      resource: { type: 'model' },
    })
    expect(decision).toMatchObject({
      allowed: false,
      policy: 'no',
      reason: 'denied-by-policy',
      errors: [{ policy: 'no' }],
    })
  })

  it('does not take a condition for true because it is not false', () => {
    for (const value of ['yes', 1, [], {}, new Date()]) {
      expect(allows(policies({ condition: 'resource.flag' }), user('alice'), { flag: value })).toBe(false)
    }
    expect(allows(policies({ condition: 'resource.flag' }), user('alice'), { flag: true })).toBe(true)
  })

  it.each([
    ['user:alice', user('alice'), true],
    ['user:alice', user('bob'), false],
    ['user:alice', user('alice', { type: 'client' }), false],
    ['user:*', user('x', { type: 'client' }), false],
    ['client:*', user('x'), false],
    ['client:batch', user('batch', { type: 'client' }), true],
    ['client:batch', user('batch'), false],
    ['role:admin', user('admin'), false],
    ['role:admin', user('x', { roles: ['viewer', 'admin'] }), true],
    ['role:admin', user('x', { groups: ['admin'] }), false],
    ['group:team:a', user('x', { groups: ['team:a'] }), true],
    ['user:urn:a:b', user('urn:a:b'), true],
    ['*', user('x', { type: 'client' }), true],
  ])('for %s knows who is meant', (pattern, subject, expected) => {
    expect(allows(policies({ subjects: [pattern] }), subject)).toBe(expected)
  })

  it.each([
    ['model:m1', 'm1', true],
    ['model:m1', 'm10', false],
    ['model:m1*', 'm10', true],
    ['model:m1*', 'm', false],
    ['model:*', 'anything', true],
    ['*:m1', 'm1', true],
    ['dataset:m1', 'm1', false],
    ['/plans/**', '/plans', true],
    ['/plans/**', '/plans/2024/a', true],
    ['/plans/**', '/plansecret', false],
    ['model:arn:aws:s3:::b/*', 'arn:aws:s3:::b/key', true],
  ])('for the resource %s knows which are meant (%s)', (pattern, id, expected) => {
    expect(allows(policies({ resources: [pattern] }), user('alice'), { id })).toBe(expected)
  })

  it('does not let a resource without an id pass as one that has the right one', () => {
    expect(allows(policies({ resources: ['model:m1'] }), user('alice'))).toBe(false)
    expect(allows(policies({}, { effect: 'deny', resources: ['model:m1'] }), user('alice'))).toBe(false)
    expect(allows(policies({}, { effect: 'deny', resources: ['model:m1'] }), user('alice'), { id: 'm2' })).toBe(true)
  })

  it.each([
    ['s3:Get*', 's3:GetObject', true],
    ['s3:Get*', 's3:PutObject', false],
    ['s3:*', 's3:PutObject', true],
    ['read', 'readwrite', false],
    ['*', 'anything', true],
  ])('for the action %s knows which are meant (%s)', (pattern, action, expected) => {
    expect(allows(policies({ actions: [pattern] }), user('alice'), {}, action)).toBe(expected)
  })

  it('keeps the answers of names no policy knows apart from those it knows', () => {
    const set = loadPolicies(policies({ actions: ['re*'], resources: ['*'] }, { actions: ['write'] }))
    const ask = (action: string, type: string): boolean =>
      set.decide({ subject: user('alice'), action, resource: { type } }).allowed
    for (let round = 0; round < 3; round += 1) {
      expect([
        ask('invented', 'invented'),
        ask('read', 'invented'),
        ask('write', 'invented'),
        ask('write', 'model'),
      ]).toEqual([false, true, false, true])
    }
  })

  it('never finds what comes with every object of the language', () => {
    for (const name of ['constructor', 'toString', '__proto__', 'hasOwnProperty', 'length']) {
      expect(allows(policies({ condition: `has(resource.${name})` }), user('alice'))).toBe(false)
      expect(allows(policies({ condition: `has(subject.${name})` }), user('alice'))).toBe(false)
      expect(allows(policies({ condition: `"${name}" in resource`, filterable: false }), user('alice'))).toBe(false)
    }
    class Model {
      readonly type = 'model'
      get owner(): string {
        return 'alice'
      }
    }
    const decision = loadPolicies(policies({ condition: 'resource.owner == "alice"' })).decide({
      subject: user('alice'),
      action: 'read',
      resource: new Model() as unknown as { type: string },
    })
    expect(decision.allowed).toBe(false)
  })

  it('computes with whole numbers as integers', () => {
    expect(allows(policies({ condition: 'resource.n + 1 == 3' }), user('alice'), { n: 2 })).toBe(true)
    expect(allows(policies({ condition: 'resource.n / 2 == 1' }), user('alice'), { n: 3 })).toBe(true)
    expect(allows(policies({ condition: 'resource.n > 2' }), user('alice'), { n: 2.5 })).toBe(true)
    expect(allows(policies({ condition: 'resource.n == resource.n' }), user('alice'), { n: Number.NaN })).toBe(false)
  })

  it('takes a day for its first moment in UTC', () => {
    const source = policies({ condition: 'context.time > timestamp("2024-01-01")' })
    const at = (time: string): boolean =>
      loadPolicies(source).decide({
        subject: user('a'),
        action: 'read',
        resource: { type: 'model' },
        context: { time: new Date(time) },
      }).allowed
    expect(at('2024-01-01T00:00:00Z')).toBe(false)
    expect(at('2024-01-01T00:00:00.001Z')).toBe(true)
  })

  it('has a version that changes with the text alone', () => {
    expect(loadPolicies(policies()).version).toBe(loadPolicies(policies(), { file: 'other' }).version)
    expect(loadPolicies(policies()).version).not.toBe(loadPolicies(policies({})).version)
  })
})

describe('an explanation', () => {
  it('tells of each policy that concerns the question what it came to', () => {
    const source = policies(
      { id: 'theirs', subjects: ['user:bob'] },
      { id: 'fails', condition: 'resource.level > 1' },
      { id: 'other', resources: ['model:m2'] },
      { id: 'false', condition: 'subject.id == "bob"' },
      { id: 'true' },
      { id: 'no', effect: 'deny', condition: 'resource.id == "m9"' },
    )
    const { decision, policies: asked } = explainDecision(loadPolicies(source), {
      subject: user('alice'),
      action: 'read',
      resource: { type: 'model', id: 'm1' },
    })
    expect(asked.map(({ policy, outcome }) => [policy, outcome])).toEqual([
      ['no', 'does-not-apply'],
      ['fails', 'error'],
      ['other', 'other-id'],
      ['false', 'does-not-apply'],
      ['true', 'applies'],
    ])
    expect(decision).toMatchObject({ allowed: true, policy: 'true' })
  })
})

describe('a plan', () => {
  const ask = (source: string, subject = user('alice')) =>
    loadPolicies(source).plan({ subject, action: 'read', resourceType: 'model' })

  it('is nothing where nothing allows, or where something denies all', () => {
    expect(ask(policies({ actions: ['write'] }))).toEqual({ kind: 'none' })
    expect(ask(policies({}, { effect: 'deny' }))).toEqual({ kind: 'none' })
    expect(ask(policies({}, { effect: 'deny', condition: 'subject.nowhere == 1' }))).toEqual({ kind: 'none' })
    expect(ask(policies({ condition: 'subject.nowhere == 1' }))).toEqual({ kind: 'none' })
  })

  it('is everything only where nothing is left to ask', () => {
    expect(ask(policies({ condition: 'subject.id == "alice"' }))).toEqual({ kind: 'all' })
    expect(ask(policies({}, { effect: 'deny', condition: 'resource.frozen' })).kind).toBe('condition')
  })

  it('shows nothing by a policy that is not for lists, and hides everything by such a deny', () => {
    const odd = { condition: 'resource.a.map(x, x) == []', filterable: false }
    expect(ask(policies(odd))).toEqual({ kind: 'none' })
    expect(ask(policies({}, { ...odd, effect: 'deny' }))).toEqual({ kind: 'none' })
  })
})
