import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { Problem } from '../../src/problems.ts'
import { AttributeDeclarationError, openAttributes } from '../../src/users/attributes.ts'

function declare(schema: unknown): ReturnType<typeof openAttributes> {
  const folder = mkdtempSync(join(tmpdir(), 'latchkey-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  const file = join(folder, 'attributes.json')
  writeFileSync(file, typeof schema === 'string' ? schema : JSON.stringify(schema))
  return openAttributes(file)
}

function problemOf(work: () => unknown): Problem {
  try {
    work()
  } catch (error) {
    if (error instanceof Problem) return error
    throw error
  }
  throw new Error('nothing was refused')
}

describe('attributes are refused', () => {
  it.each([
    ['an unknown name', { departmnet: 'physics' }, 'attributes.departmnet'],
    ['another type', { clearance: '3' }, 'attributes.clearance'],
    ['a fraction', { seniority: 2.5 }, 'attributes.seniority'],
    ['a negative number', { clearance: -1 }, 'attributes.clearance'],
    ['an empty text', { department: '' }, 'attributes.department'],
    ['a long text', { department: 'x'.repeat(65) }, 'attributes.department'],
    ['null', null, 'attributes'],
    ['a list', [], 'attributes'],
    ['a text', 'department', 'attributes'],
  ])('for %s', (_name, attributes, field) => {
    const problem = problemOf(() => openAttributes().parse(attributes))
    expect(problem.code).toBe('VALIDATION_ERROR')
    expect(problem.details.map((detail) => detail.field)).toEqual([field])
  })

  it('all wrong ones together', () => {
    const problem = problemOf(() => openAttributes().parse({ department: 7, clearance: 'high', team: 'x' }))
    expect(problem.details.map(({ field }) => field).sort()).toEqual([
      'attributes.clearance',
      'attributes.department',
      'attributes.team',
    ])
  })

  it('when they are more than a token could carry', () => {
    const wide = declare({ type: 'object', properties: { note: { type: 'string' } } })
    expect(problemOf(() => wide.parse({ note: 'x'.repeat(9_000) })).details[0]).toMatchObject({
      field: 'attributes',
      constraint: 'maximum',
    })
  })
})

describe('attributes are taken', () => {
  it('as the default declares them', () => {
    const declaration = openAttributes()
    expect(declaration.names).toEqual(['department', 'seniority', 'clearance'])
    const attributes = { department: 'physics', seniority: 4, clearance: 2 }
    expect(declaration.parse(attributes)).toEqual(attributes)
    expect(declaration.parse({})).toEqual({})
  })

  it('as the deployment declares them', () => {
    const declaration = declare({
      type: 'object',
      properties: { regions: { type: 'array', items: { enum: ['eu', 'us'] }, uniqueItems: true, maxItems: 2 } },
      required: ['regions'],
    })
    expect(declaration.parse({ regions: ['eu'] })).toEqual({ regions: ['eu'] })
    expect(() => declaration.parse({})).toThrow(Problem)
    expect(() => declaration.parse({ regions: ['eu', 'eu'] })).toThrow(Problem)
    expect(() => declaration.parse({ regions: ['eu'], department: 'x' })).toThrow(Problem)
  })
})

describe('a declaration is refused', () => {
  it.each([
    ['no JSON', '{'],
    ['no object', { type: 'string' }],
    ['no properties', { type: 'object' }],
    ['one that lets everything in', { type: 'object', properties: {}, additionalProperties: true }],
    ['a name that no claim can have', { type: 'object', properties: { 'a b': { type: 'string' } } }],
    ['a rule that would not be held', { type: 'object', properties: { a: { dependentRequired: { b: ['c'] } } } }],
    ['a type that there is not', { type: 'object', properties: { a: { type: 'text' } } }],
  ])('with %s', (_name, schema) => {
    expect(() => declare(schema)).toThrow(AttributeDeclarationError)
  })

  it('when its file is not there, with its name', () => {
    expect(() => openAttributes('/nowhere/attributes.json')).toThrow('/nowhere/attributes.json')
  })
})
