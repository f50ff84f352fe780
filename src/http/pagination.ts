/**
 * Cuts a list into pages, by `limit` and `offset` for those who need page numbers, by cursor for those who need every
 * item: a cursor stands behind an item wherever that item is, so rows that come and go neither repeat nor hide others,
 * and the thousandth page costs what the first did. What may be asked is list-query.ts; what a cursor is, cursor.ts.
 */
import { sql, type Expression, type Kysely, type SelectQueryBuilder, type SqlBool } from 'kysely'
import { z } from 'zod'
import { readCursor, writeCursor, type CursorContext, type CursorSigner } from './cursor.ts'
import { maxOffset, type List, type ListQuery, type SortColumn } from './list-query.ts'

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
 * const { items, pagination } = await readPage(db, userList, db.selectFrom('users').select(userColumns), query, { signer, path })
 * return { status: 200, body: { users: items.map(describeUser), pagination } }
 */
export async function readPage<DB, TB extends keyof DB, Item>(
  _db: Kysely<DB>,
  _list: List,
  _base: SelectQueryBuilder<DB, TB, Item>,
  _query: ListQuery,
  _settings: PageSettings,
): Promise<Page<Item>> {
  throw new Error('not yet')
}
