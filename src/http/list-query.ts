/**
 * A list of the API, declared once: what it can be sorted and filtered by, and which members may be chosen. From the
 * declaration come the schema of its query string, which refuses everything else before the database is asked, and what
 * pagination.ts needs to cut the list into pages.
 */
import type { Expression, SqlBool } from 'kysely'
import { z } from 'zod'
import { findNearest } from '../config.ts'
import {
  integerParameter,
  optional,
  parameter,
  withDefault,
  type Parameter,
  type Read,
  type Refusal,
} from './query-parameters.ts'

/** What a list can be sorted by: never a secret, since the callers' cursors hold its values, and of bounded length. */
export interface SortColumn {
  readonly column: Expression<unknown>
  readonly type: 'text' | 'timestamp' | 'integer' | 'boolean'
  /** Rows without a value come last, in both directions. */
  readonly nullable?: boolean
}

/** A filter's value, whose text means the same when it is sent again: links repeat it. */
export type FilterValue = string | number | boolean

export interface Filter<Value extends FilterValue = FilterValue> {
  readonly parameter: Parameter<Value>
  readonly where: (value: Value) => Expression<SqlBool>
}

/** Joins a parameter and its condition, so that the types of the two agree. */
export function filter<Value extends FilterValue>(
  parameter: Parameter<Value>,
  where: (value: Value) => Expression<SqlBool>,
): Filter<Value> {
  return { parameter, where }
}

export interface SortKey {
  readonly name: string
  readonly descending: boolean
}

/** One of any value: what its condition takes is known to {@link filter} alone. */
interface AnyFilter {
  readonly parameter: Parameter<FilterValue>
  readonly where: (value: never) => Expression<SqlBool>
}
type Filters = Readonly<Record<string, AnyFilter>>

export interface ListDeclaration<Name extends string, F extends Filters, Field extends string> {
  /** the member that holds the items in the answer */
  readonly name: Name
  readonly sort: Readonly<Record<string, SortColumn>>
  /** as `sort=` would say it: `-created_at` */
  readonly defaultSort: string
  /** Unique and never null: it decides between rows that are otherwise equal. */
  readonly tieBreak: SortColumn & { readonly name: string; readonly nullable?: false }
  readonly filters: F
  /** those that `fields=` may choose; the first is the identifier, which is always there */
  readonly fields: readonly [Field, ...Field[]]
}

type ListShape<F extends Filters, Field extends string> = {
  limit: z.ZodDefault<Parameter<number>>
  offset: z.ZodOptional<Parameter<number>>
  cursor: z.ZodOptional<Parameter<string>>
  sort: z.ZodDefault<Parameter<readonly SortKey[]>>
  fields: z.ZodOptional<Parameter<readonly Field[]>>
} & { [K in keyof F]: z.ZodOptional<F[K]['parameter']> }

/** What a caller asked of a list. */
export interface ListQuery {
  readonly limit: number
  readonly offset?: number | undefined
  readonly cursor?: string | undefined
  readonly sort: readonly SortKey[]
  readonly fields?: readonly string[] | undefined
}

export interface List<Name extends string = string, F extends Filters = Filters, Field extends string = string> {
  readonly name: Name
  /** of the query string: for {@link checkQuery} and for OpenAPI */
  readonly query: z.ZodObject<ListShape<F, Field>, z.core.$strict>
  readonly declaration: ListDeclaration<Name, F, Field>
  /** The chosen members of an item, and always its identifier; all of them when none were chosen. */
  pickFields<Item extends object>(item: Item, fields: readonly string[] | undefined): Partial<Item>
}

/** A list as pages are cut from it, whatever its types. */
export interface DeclaredList {
  readonly name: string
  readonly declaration: Pick<ListDeclaration<string, Filters, string>, 'sort' | 'defaultSort' | 'tieBreak' | 'filters'>
}

/** The largest offset; beyond it a cursor costs less, for the caller too. */
export const maxOffset = 100_000
export const maxLimit = 100
export const defaultLimit = 50
/** In characters: three long texts in base64, and still within what servers take as a URL. */
export const maxCursorLength = 6_000
const mostSortKeys = 3
const ownParameters = ['limit', 'offset', 'cursor', 'sort', 'fields']

/**
 * @example
 * const userList = listOf({
 *   name: 'users',
 *   sort: { created_at: { column: sql.ref('users.created_at'), type: 'timestamp' } },
 *   defaultSort: 'created_at',
 *   tieBreak: { name: 'user_id', column: sql.ref('users.id'), type: 'text' },
 *   filters: {
 *     is_active: filter(booleanParameter('Only accounts that are active, or only those that are not'), (isActive) =>
 *       sql<SqlBool>`users.account_status = ${isActive ? 'active' : 'disabled'}`,
 *     ),
 *   },
 *   fields: ['user_id', 'email', 'created_at'],
 * })
 */
export function listOf<const Name extends string, F extends Filters, const Field extends string>(
  declaration: ListDeclaration<Name, F, Field>,
): List<Name, F, Field> {
  const { filters, fields, tieBreak } = declaration
  const clash = Object.keys(filters).find((name) => ownParameters.includes(name))
  if (clash !== undefined) throw new Error(`${declaration.name} cannot have a filter ${clash}`)
  const sortable = [...new Set([...Object.keys(declaration.sort), tieBreak.name])]
  const sort = readSort(declaration.defaultSort, sortable)
  if ('refusals' in sort) throw new Error(`${declaration.name} cannot be sorted by ${declaration.defaultSort}`)
  const [idField] = fields

  const shape = {
    limit: withDefault(
      integerParameter(
        { minimum: 1, maximum: maxLimit },
        { description: 'How many items a page holds', example: defaultLimit, default: defaultLimit },
      ),
      defaultLimit,
    ),
    offset: optional(
      integerParameter(
        { minimum: 0, maximum: maxOffset },
        { description: 'How many items to skip; excludes `cursor`', example: 0 },
      ),
    ),
    cursor: optional(
      parameter<string>(
        (text) =>
          /^[\w-]+$/.test(text) && text.length <= maxCursorLength
            ? { value: text }
            : { refusals: [{ message: 'Must be the `next_cursor` of a page, as it was' }] },
        {
          description: '`next_cursor` of the page before, with the same sort and filters; excludes `offset`',
          example: 'AXkJ0mXq6Uq2b0g1c1B3eZNbIjIwMjYtMDEtMzFUMDA6MDA6MDAuMDAwMDAwWiIsInVzcl8xIl0',
          type: 'string',
          pattern: '^[A-Za-z0-9_-]+$',
          maxLength: maxCursorLength,
        },
      ),
    ),
    sort: withDefault(
      parameter((text) => readSort(text, sortable), {
        description: `What to sort by, at most ${mostSortKeys} names separated by commas; a minus sign before a name: descending. Rows without a value come last`,
        example: exampleOfSort(sortable),
        type: 'string',
        pattern: listPattern(`-?(${sortable.join('|')})`, mostSortKeys),
        default: declaration.defaultSort,
      }),
      sort.value,
    ),
    fields: optional(
      parameter((text) => readFields(text, fields), {
        description: `Which members the items shall have, separated by commas; \`${idField}\` is always there`,
        example: fields.slice(0, 2).join(','),
        type: 'string',
        pattern: listPattern(`(${fields.join('|')})`, fields.length),
      }),
    ),
    ...Object.fromEntries(Object.entries(filters).map(([name, { parameter }]) => [name, optional(parameter)])),
  } as unknown as ListShape<F, Field>

  return {
    name: declaration.name,
    declaration,
    query: z
      .strictObject(shape)
      .refine(
        ({ cursor, offset }: { cursor?: unknown; offset?: unknown }) => cursor === undefined || offset === undefined,
        {
          path: ['cursor'],
          message: 'A cursor excludes an offset: send one of them',
          params: { constraint: 'exclusive' },
          // Beside whatever else is wrong.
          when: () => true,
        },
      ),
    pickFields<Item extends object>(item: Item, chosen: readonly string[] | undefined): Partial<Item> {
      if (chosen === undefined) return item
      const kept = new Set<string>([idField, ...chosen])
      return Object.fromEntries(Object.entries(item).filter(([name]) => kept.has(name))) as Partial<Item>
    },
  }
}

function readSort(text: string, sortable: readonly string[]): Read<readonly SortKey[]> {
  const value = text.split(',').map((word) => ({ name: word.replace(/^-/, ''), descending: word.startsWith('-') }))
  return checkWords(value, { most: mostSortKeys, known: sortable, what: 'Cannot be sorted by' })
}

function readFields<Field extends string>(text: string, fields: readonly Field[]): Read<readonly Field[]> {
  const read = checkWords(
    text.split(',').map((name) => ({ name })),
    { most: fields.length, known: fields, what: 'There is no field' },
  )
  return 'refusals' in read ? read : { value: read.value.map(({ name }) => name as Field) }
}

function checkWords<Word extends { readonly name: string }>(
  words: readonly Word[],
  { most, known, what }: { readonly most: number; readonly known: readonly string[]; readonly what: string },
): Read<readonly Word[]> {
  const refusals: Refusal[] = []
  const names = words.map(({ name }) => name)
  if (names.length > most) {
    // Whatever else is wrong with so many is not worth saying.
    return { refusals: [{ constraint: 'maximum', message: `At most ${most} names, separated by commas` }] }
  }
  for (const [i, name] of names.entries()) {
    if (!known.includes(name)) {
      const suggestion = findNearest(name, known)
      refusals.push({
        constraint: 'enum',
        message: `${what} '${name.slice(0, 60)}': known are ${known.join(', ')}`,
        ...(suggestion === undefined ? {} : { suggestion }),
      })
    } else if (names.indexOf(name) !== i) {
      refusals.push({ constraint: 'unique', message: `'${name}' must be named once` })
    }
  }
  return refusals.length === 0 ? { value: words } : { refusals }
}

function listPattern(word: string, most: number): string {
  return most === 1 ? `^${word}$` : `^${word}(,${word}){0,${most - 1}}$`
}

function exampleOfSort(sortable: readonly string[]): string {
  const [first = '', second] = sortable
  return second === undefined ? `-${first}` : `-${first},${second}`
}
