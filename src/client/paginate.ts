import type { paths } from './api.ts'
import type { Answer, CallInit, DataOf, LatchkeyClient } from './client.ts'

interface Page {
  readonly pagination: { readonly next_cursor: string | null }
}

type BodyOf<Path extends keyof paths> = DataOf<paths[Path]['get']>

/** The paths of lists that come in pages. */
export type ListPath = { [Path in keyof paths]: BodyOf<Path> extends Page ? Path : never }[keyof paths]

/** What such a list holds. */
export type ItemOf<Path extends ListPath> = Extract<BodyOf<Path>[keyof BodyOf<Path>], readonly unknown[]>[number]

/**
 * Every item of a list, page after page. By cursor: what is added or removed meanwhile neither hides nor repeats another
 * item, and the last page costs what the first did.
 *
 * @param client - of `createClient`
 * @param path - of the list
 * @param init - filters, `sort`, `fields`; `limit` is the size of a page, 100 unless told
 * @throws LatchkeyApiError, OutboundError
 * @example
 * ```ts
 * import { createClient, paginate } from '@latchkey/client'
 *
 * const latchkey = createClient({ baseUrl: 'https://id.example.com', auth: { apiKey: process.env['API_KEY'] ?? '' } })
 * for await (const user of paginate(latchkey, '/v1/users', { params: { query: { is_active: false } } })) {
 *   console.log(user.user_id, user.email)
 * }
 * ```
 */
export async function* paginate<Path extends ListPath>(
  client: Pick<LatchkeyClient, 'GET'>,
  path: Path,
  ...[init]: CallInit<paths[Path]['get']>
): AsyncGenerator<ItemOf<Path>, void, undefined> {
  // Of any list alike: what ties the items' type to the path is above.
  const get = client.GET as unknown as (path: string, init: object) => Promise<Answer<Page & Record<string, unknown>>>
  let query: Record<string, unknown> = { limit: 100, ...init?.params?.query }
  for (;;) {
    const { data } = await get(path, { ...init, params: { ...init?.params, query } })
    const items = Object.values(data).find((member) => Array.isArray(member))
    yield* items as ItemOf<Path>[]
    if (data.pagination.next_cursor === null) return
    const { offset: _offset, ...rest } = query
    query = { ...rest, cursor: data.pagination.next_cursor }
  }
}
