/** What is documented of a merge patch is what applying it and checking the whole lets pass. */
import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { mergePatchOf } from '../../src/http/merge-patch-schema.ts'
import { applyPatch, type JsonObject } from '../../src/http/patch.ts'
import { openJudge, readCommittedDocument, type Schema } from '../openapi/document.ts'

const whole = z.strictObject({
  needed: z.string(),
  needed_or_null: z.string().min(1).nullable(),
  needed_choice: z.union([z.string(), z.int(), z.null()]),
  optional: z.string().optional(),
  with_default: z.int().default(7),
  nullable: z.string().min(1).nullable().default(null),
  word: z.enum(['a', 'b']).default('a'),
  constant: z.literal('x').optional(),
  either: z.union([z.string(), z.int()]).optional(),
  list: z.array(z.strictObject({ name: z.string().nullable(), more: z.int().default(1) })).default([]),
  inner: z
    .strictObject({
      needed: z.string().default('n'),
      optional: z.boolean().optional(),
      deep: z.strictObject({ a: z.int() }),
    })
    .default({ needed: 'n', deep: { a: 1 } }),
  numbers: z.record(z.string(), z.int()).default({}),
  anything: z.record(z.string(), z.unknown()).default({}),
})
const present: JsonObject = {
  needed: 'n',
  needed_or_null: null,
  needed_choice: null,
  inner: { needed: 'n', deep: { a: 1 } },
  numbers: { one: 1 },
}
const { $schema: _, ...schema } = z.toJSONSchema(whole, { io: 'input' })
const patch = mergePatchOf(schema) as Schema
const judge = openJudge(readCommittedDocument())

const isTaken = (value: unknown) => whole.safeParse(applyPatch(present, 'application/merge-patch+json', value)).success

describe('the schema of a merge patch', () => {
  it.each<object>([
    {},
    ...Object.keys(whole.shape).map((name) => ({ [name]: null })),
    ...Object.keys(whole.shape).map((name) => ({ [name]: { surprise: 1 } })),
    { needed: 'other', needed_or_null: 'x', needed_choice: 3 },
    { needed_or_null: '' },
    { nullable: '' },
    { inner: { needed: null } },
    { inner: { optional: null } },
    { inner: { deep: null } },
    { inner: { deep: {} } },
    { inner: { deep: { a: null } } },
    { inner: { deep: { a: 2 } } },
    { numbers: { one: null } },
    { numbers: { one: 'two' } },
    { anything: { one: null, two: 'two', three: { four: null } } },
    { list: [{ name: null }] },
    { list: [{ name: 'x', more: null }] },
    { list: [{}] },
    { list: [null] },
    { surprise: null, surprises: 1 },
  ])('lets pass what is taken, and nothing else: %j', (value) => {
    expect([judge.check(patch, value), judge.check(patch, value) === '']).toEqual([expect.any(String), isTaken(value)])
  })

  it('has no default but those of items, which are made anew', () => {
    const { items, ...list } = patch.properties?.['list'] ?? {}
    expect(items?.properties?.['more']?.default).toBe(1)
    const rest = { ...patch, properties: { ...patch.properties, list } }
    expect(JSON.stringify(rest)).not.toContain('"default"')
    expect(JSON.stringify(schema)).toContain('"default"')
  })
})
