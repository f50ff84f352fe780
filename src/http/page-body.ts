import { z } from 'zod'
import { paginationSchema, type Pagination } from './pagination.ts'

/** The body of a list: its items under their own name, and where the next ones are. */
export type PageBody<Name extends string> = { readonly [K in Name]: readonly object[] } & {
  readonly pagination: Pagination
}

/**
 * The schema of a list's body. An item may lack members, since `fields=` chooses them; never its identifier.
 *
 * @param item the schema of a whole item, with its `id` and `example` in its meta
 * @param path where the list is: for the example
 * @example
 * pageBody('users', userBody, 'user_id', '/v1/users')
 */
export function pageBody<const Name extends string>(
  name: Name,
  item: z.ZodObject,
  identifier: string,
  path: string,
): z.ZodType<PageBody<Name>, PageBody<Name>> {
  const { id, example } = (item.meta() ?? {}) as { id?: string; example?: Record<string, unknown> }
  if (id === undefined || example === undefined) throw new Error(`the items of ${path} need an id and an example`)
  return z.object({ [name]: z.array(someOf(item, identifier)), pagination: paginationSchema }).meta({
    id: `${id}Page`,
    example: { [name]: [example], pagination: examplePagination(path) },
  }) as unknown as z.ZodType<PageBody<Name>, PageBody<Name>>
}

const known = new WeakMap<z.ZodObject, z.ZodObject>()

/** An item of which only some members were chosen. */
export function someOf(item: z.ZodObject, identifier: string): z.ZodObject {
  const { id, example } = (item.meta() ?? {}) as { id?: string; example?: unknown }
  const some =
    known.get(item) ??
    item
      .partial()
      .required({ [identifier]: true } as Record<string, true> & Record<number, never>)
      .meta({ id: `Some${id ?? ''}`, description: 'With `fields`, those members alone', example })
  known.set(item, some)
  return some
}

function examplePagination(path: string): Pagination {
  return {
    limit: 50,
    offset: 0,
    total: 2_500,
    has_more: true,
    next: `${path}?limit=50&offset=50`,
    previous: null,
    next_cursor: 'AXkJ0mXq6Uq2b0g1c1B3eZNbIjIwMjYtMDEtMzFUMDA6MDA6MDAuMDAwMDAwWiIsInVzcl8xIl0',
  }
}
