/** Pages of a hundred thousand people: nobody missing and nobody twice, and what a page costs deep inside. */
import { Kysely, PostgresDialect, type CompiledQuery } from 'kysely'
import { Client, Pool } from 'pg'
import { expect, it } from 'vitest'
import { z } from 'zod'
import type { Tables } from '../../src/database/tables.ts'
import { onPostgres } from '../support/databases.ts'
import { askForUsers, insertUsers, queryOf, walk } from './user-list.ts'

const count = 100_100
const minutes = 60_000

const planSchema = z
  .array(
    z.object({
      'Execution Time': z.number(),
      Plan: z.object({ 'Shared Hit Blocks': z.number(), 'Shared Read Blocks': z.number() }),
    }),
  )
  .length(1)

/** What a statement costs: blocks that it touches, which no neighbour on the machine changes; and its median time. */
async function costOf(client: Client, { sql, parameters }: CompiledQuery) {
  const times: number[] = []
  let blocks = 0
  for (let i = 0; i < 15; i += 1) {
    const { rows } = await client.query<{ 'QUERY PLAN': unknown }>(`EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ${sql}`, [
      ...parameters,
    ])
    const [explained] = planSchema.parse(rows[0]?.['QUERY PLAN'])
    if (explained === undefined) throw new Error('no plan')
    blocks = explained.Plan['Shared Hit Blocks'] + explained.Plan['Shared Read Blocks']
    times.push(explained['Execution Time'])
  }
  return { blocks, ms: times.sort((a, b) => a - b)[7] ?? 0 }
}

onPostgres((open) => {
  it(
    'a walk over a hundred thousand people sees each once while rows come and go',
    { timeout: 10 * minutes },
    async () => {
      const { db } = await open()
      await insertUsers(db, count)
      const before = (await db.selectFrom('users').select('id').execute()).map(({ id }) => id)
      for (const sort of ['created_at', '-created_at']) {
        const gone = new Set<string>()
        let page = 0
        const seen = await walk(db, `limit=100&sort=${sort}`, async (ids) => {
          page += 1
          if (page % 10 !== 0) return
          const leaving = [...ids.slice(0, 20), ...before.slice(page * 80, page * 80 + 40)]
          await db.deleteFrom('users').where('id', 'in', leaving).execute()
          for (const id of leaving) gone.add(id)
          await insertUsers(db, 50, `${sort.startsWith('-') ? 'down' : 'up'}${page}-`)
        })
        const once = new Set(seen)
        expect(once.size).toBe(seen.length)
        expect(before.filter((id) => !once.has(id) && !gone.has(id))).toEqual([])
        for (const id of gone) before.splice(before.indexOf(id), 1)
        console.log(`sort=${sort}: ${page} pages, ${seen.length} people, ${gone.size} of them left meanwhile`)
      }
    },
  )

  // By name the last of these pages are of people without one, who come last in both directions.
  it('the thousandth page by cursor costs what the first does', { timeout: 10 * minutes }, async () => {
    const { db, location } = await open()
    await insertUsers(db, count)
    const client = new Client({ connectionString: location.databaseUrl })
    await client.connect()
    const statements: CompiledQuery[] = []
    const watched = new Kysely<Tables>({
      dialect: new PostgresDialect({ pool: new Pool({ connectionString: location.databaseUrl, max: 1 }) }),
      log: ({ query }) => void statements.push(query),
    })
    try {
      await client.query('VACUUM ANALYZE users')
      /** What the page's own statement costs; the count of a first page is another. */
      const costOfPage = async (query: string) => {
        statements.length = 0
        const { pagination } = await askForUsers(watched, query)
        const pages = statements.filter(({ sql }) => !sql.startsWith('SELECT count(*)'))
        if (pages.length === 0) throw new Error('nothing was asked of the database')
        let [blocks, ms] = [0, 0]
        for (const page of pages) {
          const cost = await costOf(client, page)
          blocks += cost.blocks
          ms += cost.ms
        }
        return { blocks, ms, pagination }
      }
      for (const sort of ['created_at', '-created_at', '-email', 'updated_at', '-updated_at', 'name', '-name']) {
        const asked = `limit=50&sort=${sort}`
        const first = await costOfPage(asked)
        let cursor = first.pagination.next_cursor ?? ''
        const second = await costOfPage(`${asked}&cursor=${cursor}`)
        const turn = async (from: number, to: number) => {
          for (let page = from; page < to; page += 1) {
            cursor = (await askForUsers(db, `${asked}&cursor=${cursor}`)).pagination.next_cursor ?? ''
          }
        }
        await turn(2, 1_000)
        const thousandth = await costOfPage(`${asked}&cursor=${cursor}`)
        const byOffset = await costOfPage(`${asked}&offset=${999 * 50}`)
        console.log(
          [
            `sort=${sort}, limit 50 of ${count}:`,
            ...Object.entries({ first, second, thousandth, 'thousandth by offset': byOffset }).map(
              ([name, { blocks, ms }]) =>
                `  ${name.padEnd(20)} ${String(blocks).padStart(7)} blocks ${ms.toFixed(2).padStart(8)} ms`,
            ),
          ].join('\n'),
        )
        expect(thousandth.blocks).toBeLessThanOrEqual(1.5 * first.blocks)
        expect(thousandth.blocks).toBeLessThanOrEqual(1.5 * second.blocks)
        expect(byOffset.blocks).toBeGreaterThan(10 * thousandth.blocks)
        if (!sort.endsWith('name')) continue
        await turn(1_000, 1_800)
        const nameless = await costOfPage(`${asked}&cursor=${cursor}`)
        expect(nameless.blocks).toBeLessThanOrEqual(1.5 * first.blocks)
      }
    } finally {
      await watched.destroy()
      await client.end()
    }
  })

  it('where offsets end, the next page is by cursor, and nobody is missed', { timeout: 5 * minutes }, async () => {
    const { db } = await open()
    await insertUsers(db, count)
    const last = await askForUsers(db, 'limit=40&offset=99980')
    expect(last.pagination).toMatchObject({
      total: count,
      has_more: true,
      next: expect.stringContaining('cursor=') as string,
    })
    const { items, pagination } = await askForUsers(db, queryOf(last.pagination.next))
    expect(pagination).not.toHaveProperty('offset')
    const all = await db.selectFrom('users').select('id').orderBy('created_at').orderBy('id').offset(100_020).execute()
    expect(items.map(({ id }) => id)).toEqual(all.slice(0, 40).map(({ id }) => id))
  })
})
