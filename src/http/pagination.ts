/**
 * Cuts a list into pages, by `limit` and `offset` for those who need page numbers, by cursor for those who need every
 * item: a cursor stands behind an item wherever that item is, so rows that come and go neither repeat nor hide others,
 * and the thousandth page costs what the first did. What may be asked is list-query.ts; what a cursor is, cursor.ts.
 */
import { sql, type Expression, type Kysely, type SelectQueryBuilder, type SqlBool } from 'kysely'
import { z } from 'zod'
import { readCursor, writeCursor, type CursorSigner, type Position } from './cursor.ts'
import {
  maxOffset,
  type DeclaredList,
  type FilterValue,
  type ListQuery,
  type SortColumn,
  type SortKey,
} from './list-query.ts'

/** Beside the items in every answer of a list. */
export const paginationSchema = z
  .strictObject({
    limit: z.int().meta({ description: 'How many items a page holds', example: 50 }),
    offset: z.int().optional().meta({ description: 'How many items were skipped; not with a cursor', example: 0 }),
    total: z
      .int()
      .optional()
      .meta({ description: 'How many items there are in all; not with a cursor', example: 2500 }),
    has_more: z.boolean().meta({ description: 'Whether a page follows', example: true }),
    next: z.string().nullable().meta({ description: 'The next page', example: '/v1/users?limit=50&offset=50' }),
    previous: z
      .string()
      .nullable()
      .optional()
      .meta({ description: 'The page before; not with a cursor', example: null }),
    next_cursor: z.string().nullable().meta({ description: 'Send it as `cursor` for the items that follow' }),
  })
  .meta({ id: 'Pagination' })

export type Pagination = z.output<typeof paginationSchema>

export interface Page<Item> {
  readonly items: Item[]
  readonly pagination: Pagination
}

export interface PageSettings {
  readonly signer: CursorSigner
  /** of the request, without its query: what links begin with */
  readonly path: string
  /** what else a cursor is bound to, when callers see different rows: whose they are */
  readonly scope?: string
}

/**
 * Reads one page.
 *
 * @param base selects the items; without an order and a limit
 * @param query of `list.query`
 * @throws Problem VALIDATION_ERROR for a cursor that was not given for this list, sort and filters
 * @example
 * const users = db.selectFrom('users').select(userColumns)
 * const { items, pagination } = await readPage(db, userList, users, query, { signer, path })
 * return { status: 200, body: { users: items.map(describeUser), pagination } }
 */
export async function readPage<DB, TB extends keyof DB, Item>(
  db: Kysely<DB>,
  list: DeclaredList,
  base: SelectQueryBuilder<DB, TB, Item>,
  query: ListQuery,
  { signer, path, scope }: PageSettings,
): Promise<Page<Item>> {
  const { limit, offset, cursor } = query
  const given = givenFilters(list, query)
  const order = orderOf(list, query.sort)
  const context = [list.name, path, order.map(({ name, descending }) => [name, descending]), given, scope ?? null]

  const filtered = given.reduce((rows, [name, value]) => {
    const condition = list.declaration.filters[name]?.where(value as never)
    return condition === undefined ? rows : rows.where(condition)
  }, base)
  const position = cursor === undefined ? undefined : readCursor(signer, context, cursor)
  const found: unknown[] = []
  for (const part of partsOf(order, position, offset ?? 0)) {
    const wanted = limit + 1 - found.length
    if (wanted === 0) break
    const sorted = part.order.reduce((rows, { column, descending, nullable }) => {
      if (!descending) return rows.orderBy(column, 'asc')
      // PostgreSQL would put them first here. No index in plain order serves this, so it is not said without need.
      return nullable ? rows.orderBy(column, (item) => item.desc().nullsLast()) : rows.orderBy(column, 'desc')
    }, filtered)
    const rows = await (part.where === undefined ? sorted : sorted.where(part.where))
      .select(order.map((key, i) => asText(key).as(positionColumn(i))))
      .limit(wanted)
      .offset(offset ?? 0)
      .execute()
    found.push(...rows)
  }

  const hasMore = found.length > limit
  const shown = found.slice(0, limit) as Record<string, unknown>[]
  const last = shown.at(-1)
  const nextCursor = hasMore && last !== undefined ? writeCursor(signer, context, positionOf(last, order)) : null
  const items = shown.map((row) => withoutPosition(row) as Item)
  const link = (to: Readonly<Record<string, string | number>>) => linkTo(path, given, query, list, to)

  if (cursor !== undefined) {
    const next = nextCursor === null ? null : link({ cursor: nextCursor })
    return { items, pagination: { limit, has_more: hasMore, next, next_cursor: nextCursor } }
  }
  const skipped = offset ?? 0
  const counted = await sql<{ total: number }>`SELECT count(*) AS total FROM ${filtered} AS counted`.execute(db)
  return {
    items,
    pagination: {
      limit,
      offset: skipped,
      total: counted.rows[0]?.total ?? 0,
      has_more: hasMore,
      next: nextCursor === null ? null : link(nextOf(skipped + limit, nextCursor)),
      previous: skipped === 0 ? null : link({ offset: Math.max(0, skipped - limit) }),
      next_cursor: nextCursor,
    },
  }
}

/** Where offsets end, the cursor goes on. */
function nextOf(offset: number, cursor: string): Readonly<Record<string, string | number>> {
  return offset <= maxOffset ? { offset } : { cursor }
}

// ---- order and position ----

interface OrderKey extends SortKey {
  readonly column: SortColumn['column']
  readonly type: SortColumn['type']
  readonly nullable: boolean
}

/** What was asked for, and the tie-break, in the direction of the last so that an index on both can serve. */
function orderOf({ declaration: { sort, tieBreak } }: DeclaredList, keys: readonly SortKey[]): OrderKey[] {
  const order: OrderKey[] = []
  for (const key of keys) {
    const column = key.name === tieBreak.name ? tieBreak : sort[key.name]
    if (column === undefined) throw new Error(`nothing is sorted by ${key.name}`)
    order.push({ ...key, column: column.column, type: column.type, nullable: column.nullable ?? false })
    // Nothing that follows a unique key decides anything.
    if (key.name === tieBreak.name) return order
  }
  const descending = order.at(-1)?.descending ?? false
  return [...order, { name: tieBreak.name, descending, column: tieBreak.column, type: tieBreak.type, nullable: false }]
}

const positionPrefix = 'page_position_'

function positionColumn(i: number): string {
  return `${positionPrefix}${i}`
}

/** As text that any session reads back exactly: a JavaScript date would drop the microseconds, and skip rows. */
function asText({ column, type }: OrderKey) {
  return type === 'timestamp'
    ? sql<string | null>`to_char(${column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`
    : sql<string | null>`CAST(${column} AS text)`
}

const castTypes = { text: 'text', timestamp: 'timestamptz', integer: 'bigint', boolean: 'boolean' } as const

/** Twice, so that both drivers send text. */
function fromText(text: string, type: OrderKey['type']): Expression<unknown> {
  return sql`CAST(CAST(${text} AS text) AS ${sql.raw(castTypes[type])})`
}

function positionOf(row: Readonly<Record<string, unknown>>, order: readonly OrderKey[]): Position {
  return order.map((_key, i) => {
    const value = row[positionColumn(i)]
    return typeof value === 'string' ? value : null
  })
}

function withoutPosition(row: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const item: Record<string, unknown> = {}
  for (const name in row) if (!name.startsWith(positionPrefix)) item[name] = row[name]
  return item
}

interface Part {
  readonly where: Expression<SqlBool> | undefined
  /** the same as the list's, but for what is never without a value in this part */
  readonly order: readonly OrderKey[]
}

/**
 * What a page is read from, in this order: mostly one statement. Where the first key may be without a value, those that
 * have one and those that have none are read apart: each is then a range of an index, in both directions, and together
 * they are none.
 */
function partsOf(order: readonly OrderKey[], position: Position | undefined, offset: number): readonly Part[] {
  const [first, ...rest] = order
  // Where the second part begins is not known to an offset.
  if (first === undefined || !first.nullable || offset > 0) {
    return [{ where: position === undefined ? undefined : isBehind(order, position), order }]
  }
  const inside = [{ ...first, nullable: false }, ...rest]
  const isMissing = sql<SqlBool>`${first.column} IS NULL`
  const having = position === undefined ? sql<SqlBool>`${first.column} IS NOT NULL` : isBehind(inside, position)
  if (position?.[0] !== null) {
    return [
      { where: having, order: inside },
      { where: isMissing, order: inside },
    ]
  }
  return [{ where: sql<SqlBool>`(${isMissing} AND ${isBehind(rest, position.slice(1))})`, order: inside }]
}

/** The condition for what follows a position. */
function isBehind(order: readonly OrderKey[], position: Position): Expression<SqlBool> {
  const [first] = order
  const agree = order.every((key) => !key.nullable && key.descending === first?.descending)
  if (agree && first !== undefined) {
    const columns = sql.join(order.map(({ column }) => column))
    const values = sql.join(order.map(({ type }, i) => fromText(position[i] ?? '', type)))
    // A row comparison is one range of an index on these columns.
    return sql<SqlBool>`(${columns}) ${sql.raw(first.descending ? '<' : '>')} (${values})`
  }
  return isBehindFrom(order, position, 0)
}

/** a > x OR (a = x AND (b < y OR (b = y AND …))), each in its own direction, with those without a value last. */
function isBehindFrom(order: readonly OrderKey[], position: Position, i: number): Expression<SqlBool> {
  const key = order[i]
  if (key === undefined) return sql<SqlBool>`false`
  const text = position[i] ?? null
  const rest = isBehindFrom(order, position, i + 1)
  // Nothing comes after those without a value but others without one.
  if (text === null) return sql<SqlBool>`(${key.column} IS NULL AND ${rest})`
  const value = fromText(text, key.type)
  const after = sql.raw(key.descending ? '<' : '>')
  const behind = sql<SqlBool>`(${key.column} ${after} ${value} OR (${key.column} = ${value} AND ${rest}))`
  if (key.nullable) return sql<SqlBool>`(${behind} OR ${key.column} IS NULL)`
  // Says nothing new, but it is a range of an index on the first column alone, which the alternatives are not.
  return i === 0 ? sql<SqlBool>`(${key.column} ${after}= ${value} AND ${behind})` : behind
}

// ---- links ----

/** The filters that were asked for, by name, so that one list has one context. */
function givenFilters({ declaration: { filters } }: DeclaredList, query: ListQuery): [string, FilterValue][] {
  const values = new Map(Object.entries(query))
  return Object.keys(filters)
    .sort()
    .flatMap((name) => {
      const value: unknown = values.get(name)
      return isFilterValue(value) ? [[name, value] as [string, FilterValue]] : []
    })
}

function isFilterValue(value: unknown): value is FilterValue {
  return typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean'
}

/** Another page of the same list: everything that was asked, but where it begins. */
function linkTo(
  path: string,
  given: readonly (readonly [string, FilterValue])[],
  { sort, fields, limit }: ListQuery,
  { declaration }: DeclaredList,
  to: Readonly<Record<string, string | number>>,
): string {
  const sortText = sort.map(({ name, descending }) => `${descending ? '-' : ''}${name}`).join(',')
  const parameters = new URLSearchParams(given.map(([name, value]) => [name, String(value)]))
  if (sortText !== declaration.defaultSort) parameters.set('sort', sortText)
  if (fields !== undefined) parameters.set('fields', fields.join(','))
  parameters.set('limit', String(limit))
  for (const [name, value] of Object.entries(to)) parameters.set(name, String(value))
  // A comma needs no escape in a query (RFC 3986 §3.4), and links are read by people too.
  return `${path}?${parameters.toString().replaceAll('%2C', ',')}`
}
