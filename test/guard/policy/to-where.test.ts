import { DummyDriver, Kysely, PostgresAdapter, PostgresIntrospector, PostgresQueryCompiler, sql } from 'kysely'
import { describe, expect, it } from 'vitest'
import type { Subject } from '../../../src/guard/caller.ts'
import { toWhere } from '../../../src/guard/kysely.ts'
import type { AttributeMap } from '../../../src/guard/kysely.ts'
import { loadPolicies, PolicyError } from '../../../src/guard/policy/policies.ts'

const db = new Kysely<{ models: { id: string } }>({
  dialect: {
    createAdapter: () => new PostgresAdapter(),
    createDriver: () => new DummyDriver(),
    createIntrospector: (inner) => new PostgresIntrospector(inner),
    createQueryCompiler: () => new PostgresQueryCompiler(),
  },
})

const attributes: AttributeMap = {
  id: { type: 'string', column: 'models.id' },
  owner: { type: 'string', column: 'models.owner_id' },
  name: { type: 'string', column: sql`lower(${sql.ref('models.name')})` },
  level: { type: 'int', column: 'models.level' },
  score: { type: 'double', column: 'models.score' },
  created_at: { type: 'timestamp', column: 'models.created_at' },
  tags: { type: 'list<string>', column: 'models.tags' },
  shares: {
    type: 'rows',
    table: 'model_shares',
    on: { model_id: 'models.id' },
    attributes: { user: { type: 'string', column: 'user_id' } },
  },
}
const alice: Subject = { type: 'user', id: 'alice', roles: [], groups: [], level: 3 }

function compiled(condition: string, subject = alice): { sql: string; parameters: readonly unknown[] } {
  const policy = { id: 'the-policy', effect: 'allow', subjects: ['*'], actions: ['*'], resources: ['*'], condition }
  const plan = loadPolicies(JSON.stringify({ policies: [policy] })).plan({
    subject,
    action: 'read',
    resourceType: 'model',
  })
  return db.selectFrom('models').select('id').where(toWhere(plan, attributes)).compile()
}

describe('a list filter is refused, with the name of the policy, when', () => {
  it.each([
    ['an attribute is not mapped', 'resource.department == "ml"', "no 'department'"],
    ['an attribute of rows is not mapped', 'resource.shares.exists(s, s.role == "x")', "no 'role'"],
    ['rows are not asked about but compared', 'resource.shares == []', 'list of rows'],
    ['a whole row is compared', 'resource.shares.exists(s, s == "x")', 'whole row'],
    ['texts are ordered', 'resource.owner < "m"', 'texts are ordered'],
    ['lists are compared', 'resource.tags == ["a"]', 'lists are compared'],
    ['a double is computed with', 'resource.score + 1.5 > 2.0', 'arithmetic with a double'],
    [
      'a timestamp is computed with',
      'resource.created_at + duration("1h") > timestamp("2024-01-01")',
      'timestamp attribute',
    ],
    ['a list is added to one', '"x" in (resource.tags + ["y"])', 'arithmetic with a list'],
    ['a choice is one of lists', '"x" in (resource.level > 1 ? ["y"] : [])', 'no column can hold'],
    ['what is no list is gone through', 'resource.owner.exists(x, x == "a")', 'no list'],
    ['an int is compared with a double attribute', 'resource.level < resource.score', 'not exact'],
    [
      'the sides of a choice differ in kind',
      '(resource.level > 1 ? resource.owner : resource.level) == "a"',
      'different kinds',
    ],
    ['a map has values of several kinds', '{"a": 1, "b": "x"}[resource.owner] == 1', 'different kinds'],
  ])('%s', (_what, condition, message) => {
    let refusal: unknown
    try {
      compiled(condition)
    } catch (error) {
      refusal = error
    }
    expect(refusal).toBeInstanceOf(PolicyError)
    expect(refusal).toMatchObject({ policy: 'the-policy', message: expect.stringContaining(message) as string })
  })
})

describe('a list filter', () => {
  it('hands every value over as a parameter, never as SQL', () => {
    const evil = `x'; drop table models; --`
    const query = compiled('resource.owner == subject.id || resource.name.contains(subject.id)', { ...alice, id: evil })
    expect(query.sql).not.toContain('drop table')
    expect(query.parameters).toEqual([evil, evil])
  })

  it('quotes the names it is given', () => {
    const plan = loadPolicies(
      JSON.stringify({
        policies: [
          {
            id: 'p',
            effect: 'allow',
            subjects: ['*'],
            actions: ['*'],
            resources: ['*'],
            condition: 'resource.odd == 1',
          },
        ],
      }),
    ).plan({ subject: alice, action: 'read', resourceType: 'model' })
    const where = toWhere(plan, { odd: { type: 'int', column: 'models.a" or true or "b' } })
    expect(db.selectFrom('models').select('id').where(where).compile().sql).toContain('"a"" or true or ""b"')
  })

  it('compares a column with a parameter, so that an index can serve', () => {
    expect(compiled('resource.owner == subject.id').sql).toBe(
      `select "id" from "models" where ((("models"."owner_id" = cast($1 as text))))`,
    )
  })

  it('asks for shares by a plain EXISTS', () => {
    expect(compiled('resource.shares.exists(s, s.user == subject.id)').sql).toBe(
      `select "id" from "models" where ((exists (select 1 from "model_shares" as "guard_rows_1" where "guard_rows_1"."model_id" = "models"."id" and ("guard_rows_1"."user_id" = cast($1 as text)))))`,
    )
  })

  it('is a constant where nothing is left to ask', () => {
    expect(compiled('subject.level == 3').sql).toContain('where true')
    expect(compiled('subject.level == 4').sql).toContain('where false')
    expect(compiled('subject.nowhere == 4').sql).toContain('where false')
  })
})
