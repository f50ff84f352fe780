import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { applyJsonPatch, applyPatch, mergePatch, type JsonObject, type JsonValue } from '../../src/http/patch.ts'
import { Problem, type FieldError, type ProblemCode } from '../../src/problems.ts'

const jsonPatch = 'application/json-patch+json'
const merge = 'application/merge-patch+json'

function refusalOf(run: () => unknown): { code: ProblemCode; details: readonly FieldError[] } {
  try {
    run()
  } catch (error) {
    if (error instanceof Problem) return { code: error.code, details: error.details }
    throw error
  }
  throw new Error('it was not refused')
}

/** Arrays inside arrays, `n` levels deep. */
function nested(n: number): JsonValue {
  return Array.from({ length: n }).reduce<JsonValue>((inside) => [inside], 1)
}

const user: JsonObject = { name: 'Alice', email: 'alice@example.com', tags: ['a', 'b'], profile: { city: 'Paris' } }

describe('a JSON Patch is refused', () => {
  const malformed: [string, unknown, Partial<FieldError>[]][] = [
    ['when it is no array', { op: 'remove', path: '/name' }, [{ field: '', constraint: 'type' }]],
    ['when an operation is no object', ['remove'], [{ field: '[0]', constraint: 'type' }]],
    [
      'for an operation that nobody knows',
      [{ op: 'spam', path: '/name' }, { path: '/name' }],
      [
        {
          field: '[0].op',
          value: 'spam',
          constraint: 'enum',
          message: 'Value must be one of: add, remove, replace, move, copy, test',
        },
        { field: '[1].op', constraint: 'required', message: 'Required property missing' },
      ],
    ],
    ['for an operation without a path', [{ op: 'remove' }], [{ field: '[0].path', constraint: 'required' }]],
    [
      'for every operation without its value',
      [
        { op: 'add', path: '/a' },
        { op: 'test', path: '/b' },
      ],
      [
        { field: '[0].value', constraint: 'required' },
        { field: '[1].value', constraint: 'required' },
      ],
    ],
    ['for a move without from', [{ op: 'move', path: '/name' }], [{ field: '[0].from', constraint: 'required' }]],
    ['for a path without its slash', [{ op: 'remove', path: 'name' }], [{ field: '[0].path', constraint: 'format' }]],
    ['for an escape that is none', [{ op: 'remove', path: '/a~2b' }], [{ field: '[0].path', constraint: 'format' }]],
    [
      'for a pointer that is too long',
      [{ op: 'remove', path: `/${'a'.repeat(1_000)}` }],
      [{ field: '[0].path', constraint: 'maximum' }],
    ],
    [
      'for a hundred and one operations',
      Array.from({ length: 101 }, () => ({ op: 'test', path: '/name', value: 'Alice' })),
      [{ field: '', constraint: 'maximum' }],
    ],
    [
      'for a value that is nested too deeply',
      [{ op: 'add', path: '/deep', value: nested(70) }],
      [{ constraint: 'maximum' }],
    ],
    ['for removing all of it', [{ op: 'remove', path: '' }], [{ field: '[0].path', constraint: 'format' }]],
    [
      'for moving something into itself',
      [{ op: 'move', from: '/profile', path: '/profile/city' }],
      [{ field: '[0].path', constraint: 'format' }],
    ],
    ['when its result is no object', [{ op: 'replace', path: '', value: [] }], [{ field: '', constraint: 'type' }]],
  ]
  it.each(malformed)('%s: 400', (_why, patch, details) => {
    const refusal = refusalOf(() => applyPatch(user, jsonPatch, patch))
    expect(refusal.code).toBe('VALIDATION_ERROR')
    expect(refusal.details).toHaveLength(details.length)
    expect(refusal.details).toMatchObject(details)
  })

  const conflicting: [string, unknown[], Partial<FieldError>][] = [
    [
      'when a test fails',
      [{ op: 'test', path: '/name', value: 'Bob' }],
      { field: '[0]', constraint: 'test', message: 'The value at /name is another' },
    ],
    ['when what is tested is not there', [{ op: 'test', path: '/nick', value: null }], { field: '[0].path' }],
    [
      'when what is removed is not there',
      [
        { op: 'remove', path: '/name' },
        { op: 'remove', path: '/name' },
      ],
      { field: '[1].path', constraint: 'exists', message: 'There is no place /name' },
    ],
    ['when what is replaced is not there', [{ op: 'replace', path: '/nick', value: 'Al' }], { field: '[0].path' }],
    [
      'when the place to add to is not there',
      [{ op: 'add', path: '/address/city', value: 'x' }],
      { field: '[0].path' },
    ],
    ['when the place to add to is a text', [{ op: 'add', path: '/name/first', value: 'x' }], { field: '[0].path' }],
    ['beyond the end of an array', [{ op: 'add', path: '/tags/3', value: 'x' }], { field: '[0].path' }],
    ['for the item after the last, but to add it', [{ op: 'remove', path: '/tags/-' }], { field: '[0].path' }],
    [
      'for an index that is not written as one',
      [{ op: 'replace', path: '/tags/00', value: 'x' }],
      { field: '[0].path' },
    ],
    ['for a member of an array that is no item', [{ op: 'remove', path: '/tags/length' }], { field: '[0].path' }],
    ['when what is copied is not there', [{ op: 'copy', from: '/nick', path: '/name' }], { field: '[0].from' }],
    ['for what every object inherits', [{ op: 'copy', from: '/toString', path: '/name' }], { field: '[0].from' }],
    ['for a constructor that is none of its own', [{ op: 'test', path: '/constructor/name', value: 'Object' }], {}],
  ]
  it.each(conflicting)('%s: 409', (_why, patch, detail) => {
    const before = structuredClone(user)
    const refusal = refusalOf(() => applyPatch(user, jsonPatch, patch))
    expect(refusal.code).toBe('CONFLICT')
    expect(refusal.details).toMatchObject([detail])
    expect(user).toEqual(before)
  })

  it('when a few copies would make it huge: 413', () => {
    const doubling = Array.from({ length: 40 }, () => ({ op: 'copy', from: '/list', path: '/list/-' }))
    const run = () => applyPatch({ list: ['x'.repeat(10)] }, jsonPatch, doubling)
    expect(refusalOf(run).code).toBe('PAYLOAD_TOO_LARGE')
  })

  it.each([
    ['/__proto__', { polluted: true }],
    ['/__proto__/polluted', true],
    ['/profile/__proto__', { polluted: true }],
    ['/constructor/prototype/polluted', true],
    ['/profile/constructor/prototype/polluted', true],
  ])('at %s, and no prototype is changed', (path, value) => {
    expect(refusalOf(() => applyPatch(user, jsonPatch, [{ op: 'add', path, value }])).code).toMatch(
      /VALIDATION|CONFLICT/,
    )
    const copied = [{ op: 'copy', from: path, path: '/name' }]
    expect(refusalOf(() => applyPatch(user, jsonPatch, copied)).code).toMatch(/VALIDATION|CONFLICT/)
    expect(({} as Record<string, unknown>)['polluted']).toBeUndefined()
  })

  it('when a value holds a member __proto__, however deep', () => {
    const value: unknown = JSON.parse('{"a": [{"__proto__": {"polluted": true}}]}')
    const refusal = refusalOf(() => applyPatch(user, jsonPatch, [{ op: 'add', path: '/profile', value }]))
    expect(refusal).toEqual({
      code: 'VALIDATION_ERROR',
      details: [{ field: '[0].value.a[0].__proto__', constraint: 'unknown', message: 'There is no such field' }],
    })
  })
})

describe('a JSON Patch', () => {
  it('changes what the seed’s example says', () => {
    const patch = [
      { op: 'replace', path: '/name', value: 'New Name' },
      { op: 'add', path: '/tags/0', value: 'premium' },
      { op: 'remove', path: '/temp_field' },
    ]
    const before = { name: 'Alice', tags: ['a'], temp_field: 1 }
    expect(applyPatch(before, jsonPatch, patch)).toEqual({ name: 'New Name', tags: ['premium', 'a'] })
    expect(before).toEqual({ name: 'Alice', tags: ['a'], temp_field: 1 })
  })

  it('takes a member called constructor for what it is: a member', () => {
    const patch = [
      { op: 'add', path: '/constructor', value: { prototype: 1 } },
      { op: 'test', path: '/constructor/prototype', value: 1 },
    ]
    expect(JSON.stringify(applyPatch({}, jsonPatch, patch))).toBe('{"constructor":{"prototype":1}}')
  })

  it('may copy and move a large document around without being too large', () => {
    const large = { a: 'x'.repeat(100_000), list: [] }
    const moves = Array.from({ length: 50 }, (_, i) => [
      { op: 'move', from: i === 0 ? '/a' : '/list/0', path: '/list/-' },
    ]).flat()
    expect(applyPatch(large, jsonPatch, moves)).toEqual({ list: ['x'.repeat(100_000)] })
  })

  const cases = z
    .array(
      z.looseObject({
        comment: z.string().optional(),
        doc: z.json().optional(),
        patch: z.array(z.json()).optional(),
        expected: z.json().optional(),
        error: z.string().optional(),
        disabled: z.boolean().optional(),
      }),
    )
    .parse(['cases', 'appendix-a'].flatMap((name) => JSON.parse(readCases(name)) as unknown[]))
    .filter(({ disabled, patch }) => disabled !== true && patch !== undefined)
    .map((one, i) => ({ ...one, title: `${i} ${one.comment ?? one.error ?? JSON.stringify(one.patch)}` }))

  it.each(cases)('does what the common cases say: $title', ({ doc = null, patch, expected, error }) => {
    const before = structuredClone(doc)
    if (error !== undefined) expect(refusalOf(() => applyJsonPatch(doc, patch)).code).toMatch(/VALIDATION|CONFLICT/)
    else if (expected !== undefined) expect(applyJsonPatch(doc, patch)).toEqual(expected)
    // A case without an expected result is only to be accepted.
    else applyJsonPatch(doc, patch)
    expect(doc).toEqual(before)
  })

  it('has enough of them', () => {
    expect(cases.length).toBeGreaterThan(100)
  })
})

function readCases(name: string): string {
  return readFileSync(join(import.meta.dirname, 'rfc6902', `${name}.json`), 'utf8')
}

describe('a merge patch', () => {
  it.each([[[]], ['text'], [null], [7]])('%j is refused for a resource', (patch) => {
    expect(refusalOf(() => applyPatch(user, merge, patch))).toMatchObject({
      code: 'VALIDATION_ERROR',
      details: [{ field: '', constraint: 'type' }],
    })
  })

  it('with __proto__ is refused, and no prototype is changed', () => {
    const patch: unknown = JSON.parse('{"profile": {"__proto__": {"polluted": true}}}')
    expect(refusalOf(() => applyPatch(user, 'application/json', patch)).details).toMatchObject([
      { field: 'profile.__proto__', constraint: 'unknown' },
    ])
    expect(({} as Record<string, unknown>)['polluted']).toBeUndefined()
  })

  it('that is nested too deeply, or makes too much, is refused', () => {
    expect(refusalOf(() => applyPatch(user, merge, { a: nested(70) })).code).toBe('VALIDATION_ERROR')
    const large = { a: 'x'.repeat(200_000) }
    expect(refusalOf(() => applyPatch(large, merge, { b: large })).code).toBe('PAYLOAD_TOO_LARGE')
  })

  // RFC 7396, Appendix A
  const appendix: [JsonValue, JsonValue, JsonValue][] = [
    [{ a: 'b' }, { a: 'c' }, { a: 'c' }],
    [{ a: 'b' }, { b: 'c' }, { a: 'b', b: 'c' }],
    [{ a: 'b' }, { a: null }, {}],
    [{ a: 'b', b: 'c' }, { a: null }, { b: 'c' }],
    [{ a: ['b'] }, { a: 'c' }, { a: 'c' }],
    [{ a: 'c' }, { a: ['b'] }, { a: ['b'] }],
    [{ a: { b: 'c' } }, { a: { b: 'd', c: null } }, { a: { b: 'd' } }],
    [{ a: [{ b: 'c' }] }, { a: [1] }, { a: [1] }],
    [
      ['a', 'b'],
      ['c', 'd'],
      ['c', 'd'],
    ],
    [{ a: 'b' }, ['c'], ['c']],
    [{ a: 'foo' }, null, null],
    [{ a: 'foo' }, 'bar', 'bar'],
    [{ e: null }, { a: 1 }, { e: null, a: 1 }],
    [[1, 2], { a: 'b', c: null }, { a: 'b' }],
    [{}, { a: { bb: { ccc: null } } }, { a: { bb: {} } }],
  ]
  it.each(appendix)('makes of %j with %j: %j', (target, patch, result) => {
    const before = structuredClone(target)
    expect(mergePatch(target, patch)).toEqual(result)
    expect(target).toEqual(before)
  })

  it('is what application/json means', () => {
    expect(applyPatch(user, 'application/json', { name: 'New Name', profile: { city: null } })).toEqual({
      ...user,
      name: 'New Name',
      profile: {},
    })
  })
})
