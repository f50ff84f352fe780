import { PGlite } from '@electric-sql/pglite'
import { Kysely, PGliteDialect, PostgresDialect, sql } from 'kysely'
import type { Expression, SqlBool } from 'kysely'
import { Pool } from 'pg'
import { createDatabase, hasPostgres } from '../../support/databases.ts'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { toWhere } from '../../../src/guard/kysely.ts'
import type { AttributeMap } from '../../../src/guard/kysely.ts'
import { loadPolicies, PolicyError } from '../../../src/guard/policy/policies.ts'
import type { Plan, PolicySet } from '../../../src/guard/policy/policies.ts'
import { Random, randomContext, randomPolicies, randomRow, randomSubject } from './random-policies.ts'
import type { ModelRow } from './random-policies.ts'

interface Tables {
  models: { id: string }
}

const attributes: AttributeMap = {
  id: { type: 'string', column: 'models.id' },
  owner: { type: 'string', column: 'models.owner_id' },
  department: { type: 'string', column: 'models.department' },
  classification: { type: 'string', column: 'models.classification' },
  level: { type: 'int', column: 'models.level' },
  quota: { type: 'int', column: 'models.quota' },
  score: { type: 'double', column: 'models.score' },
  public: { type: 'bool', column: 'models.is_public' },
  created_at: { type: 'timestamp', column: 'models.created_at' },
  tags: { type: 'list<string>', column: 'models.tags' },
  ranks: { type: 'list<int>', column: 'models.ranks' },
  nowhere: 'absent',
  shares: {
    type: 'rows',
    table: 'model_shares',
    on: { model_id: 'models.id' },
    attributes: {
      user: { type: 'string', column: 'user_id' },
      permission: { type: 'string', column: 'permission' },
      level: { type: 'int', column: 'level' },
    },
  },
}

const ROWS = 40
const SEED = Number(process.env['LIST_FILTER_SEED'] ?? 20_240_115)

async function fill(db: Kysely<Tables>, rows: readonly ModelRow[]): Promise<void> {
  await sql`create table models (
    id text primary key, owner_id text, department text, classification text, level integer, quota bigint,
    score double precision, is_public boolean, created_at timestamptz, tags text[], ranks integer[])`.execute(db)
  await sql`create table model_shares (model_id text not null, user_id text not null, permission text, level integer)`.execute(
    db,
  )
  for (const row of rows) {
    await sql`insert into models values (${row.id}, ${row.owner}, ${row.department}, ${row.classification},
      cast(${row.level} as integer), cast(${row.quota} as bigint), cast(${row.score} as double precision),
      cast(${row.public} as boolean), cast(${row.created_at?.toISOString() ?? null} as timestamptz),
      cast(${row.tags} as text[]), cast(${row.ranks} as integer[]))`.execute(db)
    for (const share of row.shares) {
      await sql`insert into model_shares values (${row.id}, ${share.user}, ${share.permission}, cast(${share.level} as integer))`.execute(
        db,
      )
    }
  }
}

async function listed(db: Kysely<Tables>, where: Expression<SqlBool>): Promise<string[]> {
  const rows = await db.selectFrom('models').select('id').where(where).orderBy('id').execute()
  return rows.map(({ id }) => id)
}

const random = new Random(SEED)
const rows = Array.from({ length: ROWS }, (_, index) =>
  randomRow(random, index % 5 === 0 ? `m/1/${index}` : `m${index}`),
)

/** The same question asked of each row. */
function decided(
  set: PolicySet,
  subject: ReturnType<typeof randomSubject>,
  context: Record<string, unknown>,
): string[] {
  return rows
    .filter(
      (row) =>
        set.decide({
          subject,
          action: 'read',
          resource: { type: 'model', ...row, owner: row.owner as string },
          context,
        }).allowed,
    )
    .map(({ id }) => id)
    .sort()
}

interface Tally {
  compared: number
  shown: number
  refused: number
  differences: string[]
}

/** Rounds of random policies; `where` may be a broken way of making the filter. */
async function compare(
  db: Kysely<Tables>,
  rounds: number,
  seed: number,
  where: (plan: Plan) => Expression<SqlBool>,
): Promise<Tally> {
  const random = new Random(seed)
  const tally: Tally = { compared: 0, shown: 0, refused: 0, differences: [] }
  for (let round = 0; round < rounds; round += 1) {
    const source = randomPolicies(random)
    const subject = randomSubject(random)
    const context = randomContext(random)
    let set: PolicySet
    let filter: Expression<SqlBool>
    try {
      set = loadPolicies(source)
      filter = where(set.plan({ subject, action: 'read', resourceType: 'model', context }))
    } catch (error) {
      if (!(error instanceof PolicyError)) throw error
      tally.refused += 1
      continue
    }
    const fromDecisions = decided(set, subject, context)
    const fromList = (await listed(db, filter)).sort()
    tally.compared += ROWS
    tally.shown += fromDecisions.length
    if (fromList.join() !== fromDecisions.join()) {
      tally.differences.push(JSON.stringify({ source, subject, context, fromDecisions, fromList }))
    }
  }
  return tally
}

/** As if an attribute that is missing made a deny harmless. */
function failingDenyIgnored(plan: Plan): Expression<SqlBool> {
  if (plan.kind !== 'condition' || plan.deny.length === 0) return toWhere(plan, attributes)
  const allow = toWhere({ ...plan, deny: [] }, attributes)
  const deny = toWhere({ ...plan, allow: plan.deny, deny: [] }, attributes)
  return sql<SqlBool>`${allow} and not coalesce(${deny}, false)`
}

/** As if an attribute that is missing were good enough for an allow. */
function failingAllowBelieved(plan: Plan): Expression<SqlBool> {
  if (plan.kind !== 'condition') return toWhere(plan, attributes)
  const allow = toWhere({ ...plan, deny: [] }, attributes)
  const deny = plan.deny.map((one) => sql`not ${toWhere({ ...plan, allow: [one], deny: [] }, attributes)}`)
  return sql<SqlBool>`${sql.join([sql`coalesce(${allow}, true)`, ...deny], sql` and `)}`
}

/** As if two missing attributes were equal. */
function missingEqualsMissing(db: Kysely<Tables>): (plan: Plan) => Expression<SqlBool> {
  return (plan) => {
    const compiled = sql`${toWhere(plan, attributes)}`.compile(db)
    const pieces = compiled.sql.replaceAll(' = ', ' is not distinct from ').split(/\$(\d+)/)
    return sql<SqlBool>`${sql.join(
      pieces.map((piece, index) => (index % 2 === 0 ? sql.raw(piece) : sql`${compiled.parameters[Number(piece) - 1]}`)),
      sql.raw(''),
    )}`
  }
}

function suite(rounds: number, open: () => Promise<Kysely<Tables>>): void {
  let db: Kysely<Tables>

  beforeAll(async () => {
    db = await open()
    await fill(db, rows)
  })

  afterAll(async () => {
    await db.destroy()
  })

  it('lists exactly the rows that a decision on each row allows', { timeout: 600_000 }, async () => {
    const tally = await compare(db, rounds, SEED, (plan) => toWhere(plan, attributes))
    console.log(
      `${tally.compared} row decisions, ${tally.shown} allowed, ${tally.refused} sets refused, ${tally.differences.length} differ`,
    )
    expect(tally.differences.slice(0, 3)).toEqual([])
    expect(tally.shown).toBeGreaterThan(tally.compared / 50)
    expect(tally.refused).toBeLessThan(rounds / 4)
  })

  it('would notice a deny that lets through what it cannot tell', { timeout: 120_000 }, async () => {
    const { differences } = await compare(db, 150, SEED, failingDenyIgnored)
    expect(differences.length).toBeGreaterThan(0)
  })

  it('would notice an allow that believes what it cannot tell', { timeout: 120_000 }, async () => {
    const { differences } = await compare(db, 150, SEED, failingAllowBelieved)
    expect(differences.length).toBeGreaterThan(0)
  })

  it('would notice two missing attributes that count as equal', { timeout: 120_000 }, async () => {
    const { differences } = await compare(db, 300, SEED, missingEqualsMissing(db))
    expect(differences.length).toBeGreaterThan(0)
  })
}

/**
 * Lists and decisions, compared on both engines.
 *
 * @param rounds - each is a policy set and a caller over all rows
 */
export function compareListsWithDecisions(rounds: number): void {
  describe('a list filter on PGlite', () => {
    suite(rounds, () => Promise.resolve(new Kysely<Tables>({ dialect: new PGliteDialect({ pglite: new PGlite() }) })))
  })

  describe.runIf(hasPostgres())('a list filter on PostgreSQL', () => {
    suite(rounds, async () => {
      const { databaseUrl: connectionString } = await createDatabase('postgres')
      return new Kysely<Tables>({ dialect: new PostgresDialect({ pool: new Pool({ connectionString, max: 1 }) }) })
    })
  })
}
