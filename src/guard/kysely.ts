/**
 * Lists by policy: a plan made from policies (`policy/policies.ts`) becomes a `where` for Kysely on PostgreSQL or
 * PGlite, so that a list shows exactly the rows a decision on each row would allow. The service says once how its
 * attributes lie in tables; an attribute a policy needs and the map does not know is an error that names the policy,
 * never a shorter or a longer list.
 *
 * The one idea behind it: where a condition fails for want of an attribute, SQL says NULL. A row is shown when an allow
 * comes out true and every deny comes out false, so a NULL on either side leaves the row out, as a failing condition
 * does.
 */
import { sql } from 'kysely'
import type { Expression, RawBuilder, SqlBool } from 'kysely'
import type { Plan } from './policy/decision.ts'
import { PolicyError } from './policy/policy-error.ts'
import type { Arithmetic, AttributeResidual, Comparison, Residual, TextTest } from './policy/residual.ts'

/**
 * Kinds of single values. `int` is any whole-number column, `double` any floating one, `string` text, varchar or uuid
 * cast to text.
 */
export type ScalarKind = 'string' | 'int' | 'double' | 'bool' | 'timestamp'
/** PostgreSQL arrays. */
export type ListKind = 'list<string>' | 'list<int>'

/** An attribute that is a column, or any expression over the row. */
export interface ColumnAttribute {
  readonly type: ScalarKind | ListKind
  /** `table.column`, or an expression. */
  readonly column: string | Expression<unknown>
}

/** An attribute that is a list of rows elsewhere, such as the shares of a model: `resource.shares.exists(s, …)`. */
export interface RowsAttribute {
  readonly type: 'rows'
  readonly table: string
  /** Column of that table to column of the listed one: `{ model_id: 'models.id' }`. */
  readonly on: Readonly<Record<string, string>>
  /** Column names are those of that table, without its name. */
  readonly attributes: Readonly<Record<string, ColumnAttribute>>
}

/**
 * How a resource's attributes lie in the database: the attribute as policies write it (`owner`, `location.city`) to a
 * column, to rows of another table, or to `'absent'` where resources of this type never have it.
 */
export type AttributeMap = Readonly<Record<string, ColumnAttribute | RowsAttribute | 'absent'>>

/**
 * Turns a plan into a `where` expression.
 *
 * As a whole `where`, or joined to others with `and`, it is exact. Uncertain rows come out as NULL, which is left out
 * there; negating it does not list what may not be seen.
 *
 * @param plan - from `PolicySet.plan`
 * @param attributes - how the resource type lies in the database
 * @throws PolicyError naming the policy that needs an attribute the map lacks, or a comparison the database cannot make
 * the same way
 *
 * @example
 * ```ts
 * import type { Kysely } from 'kysely'
 * import type { PolicySet, Subject } from '@latchkey/guard'
 * import { toWhere } from '@latchkey/guard/kysely'
 *
 * interface Tables { models: { id: string; owner_id: string; is_public: boolean } }
 * const attributes = {
 *   id: { type: 'string', column: 'models.id' },
 *   owner: { type: 'string', column: 'models.owner_id' },
 *   public: { type: 'bool', column: 'models.is_public' },
 * } as const
 *
 * export function readableModels(db: Kysely<Tables>, policies: PolicySet, subject: Subject) {
 *   const plan = policies.plan({ subject, action: 'read', resourceType: 'model' })
 *   return db.selectFrom('models').selectAll().where(toWhere(plan, attributes)).execute()
 * }
 * ```
 */
export function toWhere(plan: Plan, attributes: AttributeMap): Expression<SqlBool> {
  if (plan.kind === 'all') return sql<SqlBool>`true`
  if (plan.kind === 'none') return sql<SqlBool>`false`
  const allow = plan.allow.map(({ policy, condition }) => new Compiler(policy, attributes).condition(condition, true))
  const deny = plan.deny.map(({ policy, condition }) => new Compiler(policy, attributes).condition(condition, false))
  const allowed = sql`(${sql.join(allow, sql` or `)})`
  return sql<SqlBool>`(${sql.join([allowed, ...deny.map((condition) => sql`not ${condition}`)], sql` and `)})`
}

/** What a part of a condition compiles to. `failed` is an error, which is NULL. */
type Term =
  | { readonly kind: 'failed' }
  | { readonly kind: 'known'; readonly value: unknown }
  | { readonly kind: 'sql'; readonly type: ScalarKind | ListKind; readonly sql: RawBuilder<unknown> }

const FAILED: Term = { kind: 'failed' }

/** Rows that a comprehension is about. */
interface Rows {
  readonly alias: string
  /** Absent where the items are plain values, in a column `item`. */
  readonly attributes?: Readonly<Record<string, ColumnAttribute>>
  readonly item?: ScalarKind
}

class Compiler {
  readonly #policy: string
  readonly #attributes: AttributeMap
  readonly #scopes = new Map<string, Rows>()
  #aliases = 0

  constructor(policy: string, attributes: AttributeMap) {
    this.#policy = policy
    this.#attributes = attributes
  }

  /**
   * A condition as a boolean expression.
   *
   * @param truthOnly - false and NULL may be confused, because only true rows count: allows a plain EXISTS
   */
  condition(residual: Residual, truthOnly: boolean): RawBuilder<unknown> {
    return asBool(this.#term(residual, truthOnly))
  }

  #refuse(why: string): never {
    throw new PolicyError(`cannot become a list filter: ${why}`, { policy: this.#policy })
  }

  #term(residual: Residual, truthOnly = false): Term {
    switch (residual.kind) {
      case 'error':
        return FAILED
      case 'value':
        return { kind: 'known', value: residual.value }
      case 'attribute':
        return this.#attribute(residual)
      case 'and':
      case 'or': {
        const operands = residual.operands.map((operand) => this.condition(operand, truthOnly))
        return bool(sql`(${sql.join(operands, residual.kind === 'and' ? sql` and ` : sql` or `)})`)
      }
      case 'not':
        return bool(sql`(not ${this.condition(residual.operand, false)})`)
      case 'negate':
        return this.#negate(this.#term(residual.operand))
      case 'size':
        return this.#size(residual.operand)
      case 'compare':
        return this.#compare(residual.operator, this.#term(residual.left), this.#term(residual.right))
      case 'arithmetic':
        return this.#arithmetic(residual.operator, this.#term(residual.left), this.#term(residual.right))
      case 'in':
        return this.#in(this.#term(residual.item), this.#term(residual.list))
      case 'present':
        return this.#present(residual.attribute)
      case 'choose': {
        const condition = this.condition(residual.condition, false)
        return this.#choose(condition, this.#term(residual.yes), this.#term(residual.no))
      }
      case 'text':
        return this.#text(residual.test, this.#term(residual.text), this.#term(residual.argument))
      case 'lookup':
        return this.#lookup(residual.entries, this.#term(residual.key))
      default:
        return this.#some(residual.list, residual.variable, residual.condition, truthOnly)
    }
  }

  #find({ path, of }: AttributeResidual): ColumnAttribute | RowsAttribute | 'absent' {
    if (of === undefined) {
      if (!Object.hasOwn(this.#attributes, path)) {
        this.#refuse(`the attribute map has no '${path}'; name its column, or say 'absent'`)
      }
      return this.#attributes[path] ?? 'absent'
    }
    const rows = this.#scopes.get(of)
    if (rows === undefined) return this.#refuse(`nothing is called '${of}'`)
    if (rows.item !== undefined) {
      if (path !== '') return 'absent'
      return { type: rows.item, column: sql`${sql.ref(`${rows.alias}.item`)}` }
    }
    if (path === '') return this.#refuse(`a whole row of a list ('${of}'); name one of its attributes`)
    const attribute = rows.attributes
    if (attribute === undefined || !Object.hasOwn(attribute, path)) {
      return this.#refuse(`the attribute map has no '${path}' in the rows called '${of}'`)
    }
    const found = attribute[path]
    if (found === undefined) return 'absent'
    if (typeof found.column !== 'string') return found
    return { type: found.type, column: `${rows.alias}.${found.column}` }
  }

  #attribute(residual: AttributeResidual): Term {
    const found = this.#find(residual)
    if (found === 'absent') return FAILED
    if (found.type === 'rows') return this.#refuse(`'${residual.path}' is a list of rows; use exists() or all() on it`)
    return { kind: 'sql', type: found.type, sql: readable(found) }
  }

  #present(residual: AttributeResidual): Term {
    const found = this.#find(residual)
    if (found === 'absent') return { kind: 'known', value: false }
    if (found.type === 'rows') return { kind: 'known', value: true }
    return bool(sql`(${readable(found)} is not null)`)
  }

  #negate(term: Term): Term {
    if (term.kind === 'sql' && term.type === 'int') return this.#arithmetic('-', { kind: 'known', value: 0n }, term)
    if (term.kind === 'sql' && term.type === 'double') return { kind: 'sql', type: 'double', sql: sql`(- ${term.sql})` }
    return FAILED
  }

  #size(operand: Residual): Term {
    if (operand.kind === 'attribute') {
      const found = this.#find(operand)
      if (found !== 'absent' && found.type === 'rows') {
        const alias = this.#alias()
        const rows = sql`select count(*) from ${sql.table(found.table)} as ${sql.id(alias)} where ${joined(found, alias)}`
        return { kind: 'sql', type: 'int', sql: sql`(${rows})` }
      }
    }
    const term = this.#term(operand)
    if (term.kind !== 'sql') return FAILED
    if (term.type === 'string') return { kind: 'sql', type: 'int', sql: sql`char_length(${term.sql})` }
    if (term.type === 'list<string>' || term.type === 'list<int>') {
      // A null item counts as missing, as everywhere.
      return { kind: 'sql', type: 'int', sql: sql`cardinality(array_remove(${term.sql}, null))` }
    }
    return FAILED
  }

  #compare(operator: Comparison, left: Term, right: Term): Term {
    if (left.kind === 'failed' || right.kind === 'failed') return FAILED
    if (left.kind === 'sql' && right.kind === 'sql') return this.#compareColumns(operator, left, right)
    if (left.kind === 'sql') return this.#compareKnown(operator, left, right.kind === 'known' ? right.value : undefined)
    if (right.kind === 'sql') return this.#compareKnown(MIRRORED[operator], right, left.value)
    return this.#refuse('two known values are compared')
  }

  #compareColumns(operator: Comparison, left: SqlTerm, right: SqlTerm): Term {
    if (isList(left.type) || isList(right.type)) this.#refuse('lists are compared')
    if (left.type === right.type) {
      if (left.type === 'string') this.#requireEquality(operator)
      return bool(sql`(${left.sql} ${SQL_COMPARISON[operator]} ${right.sql})`)
    }
    if (isNumber(left.type) && isNumber(right.type)) {
      this.#refuse('an int attribute is compared with a double one, which is not exact beyond 2^53')
    }
    return unequalKinds(operator, left.sql, right.sql)
  }

  #compareKnown(operator: Comparison, term: SqlTerm, value: unknown): Term {
    const compared = (known: RawBuilder<unknown>): Term => bool(sql`(${term.sql} ${SQL_COMPARISON[operator]} ${known})`)
    switch (term.type) {
      case 'string':
        if (typeof value !== 'string') break
        this.#requireEquality(operator)
        if (!isStorable(value)) break
        return compared(literal(value))
      case 'bool':
        if (typeof value !== 'boolean') break
        return compared(literal(value))
      case 'timestamp':
        if (!(value instanceof Date)) break
        return compared(literal(value))
      case 'int':
        if (typeof value === 'bigint') return compared(literal(value))
        if (typeof value === 'number') return compareIntWithDouble(operator, term.sql, value)
        break
      case 'double':
        if (typeof value === 'number') return compared(literal(value))
        if (typeof value !== 'bigint') break
        if (!Number.isSafeInteger(Number(value))) this.#refuse(`${value} is not exact as a double`)
        return compared(literal(Number(value)))
      case 'list<string>':
      case 'list<int>':
        if (Array.isArray(value)) this.#refuse('lists are compared')
    }
    return unequalKinds(operator, term.sql)
  }

  /** Decisions order texts by UTF-16 units, a database by its collation: no list could be trusted to agree. */
  #requireEquality(operator: Comparison): void {
    if (operator !== '==' && operator !== '!=')
      this.#refuse(`texts are ordered (${operator}); use timestamps or numbers`)
  }

  #arithmetic(operator: Arithmetic, left: Term, right: Term): Term {
    for (const term of [left, right]) {
      if (term.kind !== 'sql') continue
      if (isList(term.type)) this.#refuse('arithmetic with a list')
      if (term.type === 'timestamp') {
        this.#refuse('arithmetic with a timestamp attribute; move it to the side without the resource')
      }
    }
    const a = this.#operand(left)
    const b = this.#operand(right)
    if (a === undefined || b === undefined) return FAILED
    // JSON does not tell 2.0 from 2, so a decision adds some rows as integers and others as doubles.
    if (a.type === 'double' || b.type === 'double') this.#refuse('arithmetic with a double attribute or number')
    if (a.type === 'string' && b.type === 'string') {
      return operator === '+' ? { kind: 'sql', type: 'string', sql: sql`(${a.sql} || ${b.sql})` } : FAILED
    }
    if (a.type !== 'int' || b.type !== 'int') return FAILED
    // Through numeric, so that what overflows 64 bits is an error of the row and not of the whole statement.
    const x = sql`cast(${a.sql} as numeric)`
    const y = sql`cast(${b.sql} as numeric)`
    const result = {
      '+': sql`${x} + ${y}`,
      '-': sql`${x} - ${y}`,
      '*': sql`${x} * ${y}`,
      '/': sql`div(${x}, nullif(${y}, 0))`,
      '%': sql`mod(${x}, nullif(${y}, 0))`,
    }[operator]
    const alias = sql.id(this.#alias())
    const bounded = sql`select case when v between -9223372036854775808 and 9223372036854775807 then v end from (select ${result} as v) as ${alias}`
    return { kind: 'sql', type: 'int', sql: sql`cast((${bounded}) as bigint)` }
  }

  /** A term as SQL; undefined for an error. */
  #operand(term: Term): SqlTerm | undefined {
    if (term.kind === 'failed') return undefined
    if (term.kind === 'sql') return term
    return (
      sqlValue(term.value) ??
      this.#refuse('a value that no column can hold (a list, a map, a duration, odd characters)')
    )
  }

  #in(item: Term, list: Term): Term {
    if (item.kind === 'failed' || list.kind === 'failed') return FAILED
    if (list.kind === 'sql') return this.#inColumn(item, list)
    const values = list.value instanceof Map ? [...list.value.keys()] : list.value
    if (!Array.isArray(values)) return FAILED
    if (item.kind !== 'sql') return this.#refuse('two known values are compared')
    if (isList(item.type)) this.#refuse('a list is looked for in a list')
    const comparable = values.flatMap((value: unknown) => comparableValue(item.type, value))
    if (comparable.length === 0) return unequalKinds('==', item.sql)
    return bool(sql`(${item.sql} in (${sql.join(comparable)}))`)
  }

  #inColumn(item: Term, list: SqlTerm): Term {
    if (!isList(list.type)) return FAILED
    const [kind, array] = list.type === 'list<int>' ? (['int', 'bigint[]'] as const) : (['string', 'text[]'] as const)
    const cast = sql`cast(${list.sql} as ${sql.raw(array)})`
    if (item.kind === 'known') {
      const [value] = comparableValue(kind, item.value)
      return value === undefined ? unequalKinds('==', list.sql) : bool(sql`(${cast} @> array[${value}])`)
    }
    if (item.kind !== 'sql' || item.type !== kind) {
      if (item.kind === 'sql' && isNumber(item.type) && kind === 'int')
        this.#refuse('a double is looked for in a list of ints')
      return item.kind === 'sql' ? unequalKinds('==', list.sql, item.sql) : FAILED
    }
    const inside = sql`${cast} @> array[cast(${item.sql} as ${sql.raw(array.slice(0, -2))})]`
    return bool(sql`(case when ${item.sql} is null or ${list.sql} is null then null else ${inside} end)`)
  }

  #choose(condition: RawBuilder<unknown>, yes: Term, no: Term): Term {
    const branches = [yes, no].map((term) => this.#operand(term))
    const type = branches.find((branch) => branch !== undefined)?.type
    if (type === undefined) return FAILED
    if (branches.some((branch) => branch !== undefined && branch.type !== type)) {
      this.#refuse('the two sides of ? : are of different kinds')
    }
    const [a, b] = branches.map((branch) => branch?.sql ?? sql`null`)
    return { kind: 'sql', type, sql: sql`(case when ${condition} then ${a} when not ${condition} then ${b} end)` }
  }

  #text(test: TextTest, text: Term, argument: Term): Term {
    if (text.kind === 'failed' || argument.kind === 'failed') return FAILED
    for (const term of [text, argument]) {
      if (term.kind === 'known' && typeof term.value === 'string' && !isStorable(term.value)) {
        // No column holds such a text, so none begins with it; but a known one may well begin with a column's.
        if (term === text) return this.#refuse('a text that PostgreSQL cannot hold is searched')
        return text.kind === 'sql' && text.type === 'string' ? unequalKinds('==', text.sql) : FAILED
      }
    }
    const a = this.#operand(text)
    const b = this.#operand(argument)
    if (a?.type !== 'string' || b?.type !== 'string') return FAILED
    if (test === 'startsWith') return bool(sql`starts_with(${a.sql}, ${b.sql})`)
    if (test === 'endsWith') return bool(sql`(right(${a.sql}, char_length(${b.sql})) = ${b.sql})`)
    return bool(sql`(strpos(${a.sql}, ${b.sql}) > 0)`)
  }

  #lookup(entries: ReadonlyMap<string, unknown>, key: Term): Term {
    if (key.kind !== 'sql') return FAILED
    if (key.type !== 'string') return this.#refuse('a map is asked for something that is no text')
    const cases: RawBuilder<unknown>[] = []
    let type: ScalarKind | ListKind | undefined
    for (const [name, value] of entries) {
      const term = sqlValue(value)
      if (term === undefined) this.#refuse('a map whose values are not single values')
      if (type !== undefined && term.type !== type) this.#refuse('a map whose values are of different kinds')
      type = term.type
      if (isStorable(name)) cases.push(sql`when ${literal(name)} then ${term.sql}`)
    }
    if (type === undefined || cases.length === 0) return FAILED
    return { kind: 'sql', type, sql: sql`(case ${key.sql} ${sql.join(cases, sql` `)} end)` }
  }

  #some(list: AttributeResidual, variable: string, condition: Residual, truthOnly: boolean): Term {
    const found = this.#find(list)
    if (found === 'absent') return FAILED
    const alias = this.#alias()
    let from: RawBuilder<unknown>
    let guard: RawBuilder<unknown> | undefined
    if (found.type === 'rows') {
      this.#scopes.set(variable, { alias, attributes: found.attributes })
      from = sql`select 1 from ${sql.table(found.table)} as ${sql.id(alias)} where ${joined(found, alias)}`
    } else {
      if (!isList(found.type)) return this.#refuse(`exists() or all() over '${list.path}', which is no list`)
      const column = columnOf(found)
      this.#scopes.set(variable, { alias, item: found.type === 'list<int>' ? 'int' : 'string' })
      from = sql`select 1 from unnest(${column}) as ${sql.id(alias)}(item) where ${sql.ref(`${alias}.item`)} is not null`
      guard = sql`${column} is null`
    }
    const holds = sql`exists (${from} and ${this.condition(condition, true)})`
    if (truthOnly) {
      this.#scopes.delete(variable)
      return bool(holds)
    }
    // One that holds is enough. If none does, one that fails makes the whole fail: only true absorbs an error here.
    const fails = sql`exists (${from} and (${this.condition(condition, false)}) is null)`
    this.#scopes.delete(variable)
    const missing = guard === undefined ? sql`` : sql`when ${guard} then null `
    return bool(sql`(case ${missing}when ${holds} then true when ${fails} then null else false end)`)
  }

  #alias(): string {
    this.#aliases += 1
    // Long enough not to meet a table of the service.
    return `guard_rows_${this.#aliases}`
  }
}

type SqlTerm = Extract<Term, { kind: 'sql' }>

const MIRRORED = { '==': '==', '!=': '!=', '<': '>', '<=': '>=', '>': '<', '>=': '<=' } as const
const SQL_COMPARISON = {
  '==': sql`=`,
  '!=': sql`<>`,
  '<': sql`<`,
  '<=': sql`<=`,
  '>': sql`>`,
  '>=': sql`>=`,
} as const

function bool(expression: RawBuilder<unknown>): SqlTerm {
  return { kind: 'sql', type: 'bool', sql: expression }
}

function asBool(term: Term): RawBuilder<unknown> {
  if (term.kind === 'known' && typeof term.value === 'boolean') return term.value ? sql`true` : sql`false`
  if (term.kind === 'sql' && term.type === 'bool') return term.sql
  // What is neither true nor false is an error.
  return sql`cast(null as boolean)`
}

function columnOf({ column }: ColumnAttribute): RawBuilder<unknown> {
  return typeof column === 'string' ? sql`${sql.ref(column)}` : sql`${column}`
}

/** A column as a decision would see it: what has no counterpart there is missing, which is NULL. */
function readable(attribute: ColumnAttribute): RawBuilder<unknown> {
  const column = columnOf(attribute)
  if (attribute.type === 'double') {
    // JSON has neither NaN nor infinity.
    return sql`nullif(nullif(nullif(cast(${column} as double precision), 'NaN'), 'Infinity'), '-Infinity')`
  }
  // Drivers give a timestamp as a Date, which ends at milliseconds and knows no infinity.
  if (attribute.type === 'timestamp') {
    return sql`case when isfinite(${column}) then date_trunc('milliseconds', ${column}) end`
  }
  return column
}

function joined({ on }: RowsAttribute, alias: string): RawBuilder<unknown> {
  const pairs = Object.entries(on).map(([theirs, ours]) => sql`${sql.ref(`${alias}.${theirs}`)} = ${sql.ref(ours)}`)
  return pairs.length === 0 ? sql`true` : sql.join(pairs, sql` and `)
}

function isList(type: ScalarKind | ListKind): type is ListKind {
  return type === 'list<string>' || type === 'list<int>'
}

function isNumber(type: ScalarKind | ListKind): boolean {
  return type === 'int' || type === 'double'
}

/** Values of different kinds are never equal, and cannot be ordered; a missing one makes either an error. */
function unequalKinds(operator: Comparison, ...columns: readonly RawBuilder<unknown>[]): Term {
  if (operator !== '==' && operator !== '!=') return FAILED
  const missing = sql.join(
    columns.map((column) => sql`${column} is null`),
    sql` or `,
  )
  return bool(sql`(case when ${missing} then null else ${operator === '==' ? sql`false` : sql`true`} end)`)
}

/** Exact at any size: the double is rounded to the integer next to it on the side that keeps the answer. */
function compareIntWithDouble(operator: Comparison, column: RawBuilder<unknown>, value: number): Term {
  if (operator === '==' || operator === '!=') {
    if (!Number.isInteger(value)) return unequalKinds(operator, column)
    return bool(sql`(${column} ${SQL_COMPARISON[operator]} ${numeric(value)})`)
  }
  const bound = operator === '<' || operator === '>=' ? Math.ceil(value) : Math.floor(value)
  return bool(sql`(${column} ${SQL_COMPARISON[operator]} ${numeric(bound)})`)
}

function numeric(whole: number): RawBuilder<unknown> {
  return sql`cast(${BigInt(whole).toString()} as numeric)`
}

/** PostgreSQL texts hold no NUL, and no half of a surrogate pair: no column is ever equal to one with either. */
function isStorable(text: string): boolean {
  return !text.includes('\0') && text.isWellFormed()
}

function isInt64(value: bigint): boolean {
  return BigInt.asIntN(64, value) === value
}

function literal(value: string | boolean | bigint | number | Date): RawBuilder<unknown> {
  if (typeof value === 'boolean') return value ? sql`true` : sql`false`
  if (typeof value === 'string') return sql`cast(${value} as text)`
  // `int(1e30)` is more than 64 bits: larger than every column, and no reason for the statement to fail.
  if (typeof value === 'bigint') return sql`cast(${value.toString()} as ${isInt64(value) ? sql`bigint` : sql`numeric`})`
  if (typeof value === 'number') return sql`cast(${String(value)} as double precision)`
  const year = value.getUTCFullYear()
  return sql`cast(${year > 9_999 ? 'infinity' : year < 1 ? '-infinity' : value.toISOString()} as timestamptz)`
}

/** A known value where a column could stand; undefined for what no column holds. */
function sqlValue(value: unknown): SqlTerm | undefined {
  if (typeof value === 'boolean') return { kind: 'sql', type: 'bool', sql: literal(value) }
  if (typeof value === 'string') {
    return isStorable(value) ? { kind: 'sql', type: 'string', sql: literal(value) } : undefined
  }
  if (typeof value === 'bigint') return { kind: 'sql', type: 'int', sql: literal(value) }
  if (typeof value === 'number') return { kind: 'sql', type: 'double', sql: literal(value) }
  if (value instanceof Date) return { kind: 'sql', type: 'timestamp', sql: literal(value) }
  return undefined
}

/** The value as an item of a list of that kind, or nothing where it can never be equal to one. */
function comparableValue(kind: ScalarKind | ListKind, value: unknown): RawBuilder<unknown>[] {
  if (kind === 'string') return typeof value === 'string' && isStorable(value) ? [literal(value)] : []
  if (kind === 'bool') return typeof value === 'boolean' ? [literal(value)] : []
  if (kind === 'timestamp') return value instanceof Date ? [literal(value)] : []
  if (kind === 'int') {
    if (typeof value === 'number') return Number.isSafeInteger(value) ? [literal(BigInt(value))] : []
    return typeof value === 'bigint' && isInt64(value) ? [literal(value)] : []
  }
  if (typeof value === 'number') return [literal(value)]
  return typeof value === 'bigint' && Number.isSafeInteger(Number(value)) ? [literal(Number(value))] : []
}
