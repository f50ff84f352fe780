import * as fc from 'fast-check'
import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import type { Db } from '../../src/database/database.ts'
import { paginationSchema } from '../../src/http/pagination.ts'
import { Problem } from '../../src/problems.ts'
import { eachDatabase, type TestDatabase } from '../support/databases.ts'
import { askForUsers, insertUsers, queryOf, walk } from './user-list.ts'

const count = 1_203

async function refusalOf(asked: Promise<unknown>) {
  const error: unknown = await asked.then(
    () => undefined,
    (error: unknown) => error,
  )
  if (!(error instanceof Problem)) throw new Error('it was not refused', { cause: error })
  return { code: error.code, details: error.details }
}

/** All ids in an order that the database makes without our help. */
async function idsBy(db: Db, order: string, where = 'true'): Promise<string[]> {
  const { rows } = await sql<{ id: string }>`
    SELECT id FROM users WHERE ${sql.raw(where)} ORDER BY ${sql.raw(order)}`.execute(db)
  return rows.map(({ id }) => id)
}

eachDatabase((open, engine) => {
  describe('a list of people that nobody changes', () => {
    let database: TestDatabase
    beforeAll(async () => {
      database = await open()
      await insertUsers(database.db, count)
    })

    it('refuses a cursor of another sort, other filters, another address or another caller', async () => {
      const { db } = database
      const cursorOf = async (query: string, settings?: object) =>
        (await askForUsers(db, query, settings)).pagination.next_cursor ?? ''
      const cursor = await cursorOf('limit=10&is_active=true')
      const refusal = {
        code: 'VALIDATION_ERROR',
        details: [
          {
            field: 'cursor',
            constraint: 'unknown',
            message: 'Not a cursor of this list with this sort and these filters: start again without it',
          },
        ],
      }
      const others = [
        ['limit=10', {}],
        ['limit=10&is_active=false', {}],
        ['limit=10&is_active=true&q=x', {}],
        ['limit=10&is_active=true&sort=-created_at', {}],
        ['limit=10&is_active=true&sort=created_at,email', {}],
        ['limit=10&is_active=true', { path: '/v1/clients' }],
        ['limit=10&is_active=true', { scope: 'usr_1' }],
      ] as const
      for (const [query, settings] of others) {
        expect(await refusalOf(askForUsers(db, `${query}&cursor=${cursor}`, settings))).toEqual(refusal)
      }
      expect(await refusalOf(askForUsers(db, 'cursor=eyJ1c2VyX2lkIjo1MH0'))).toEqual(refusal)
      expect(
        await refusalOf(askForUsers(db, `limit=10&cursor=${await cursorOf('limit=10', { scope: 'usr_1' })}`)),
      ).toEqual(refusal)
      // Of one list, whatever the size of its pages, the chosen fields, and the order of its parameters.
      const same = await askForUsers(db, `cursor=${cursor}&fields=email&is_active=true&limit=3&sort=created_at`)
      expect(same.items).toHaveLength(3)
    })

    it('answers the first page with everything that the next can be asked by', async () => {
      const { items, pagination } = await askForUsers(database.db, 'limit=50')
      expect(items).toHaveLength(50)
      expect(Object.keys(items[0] ?? {})).toEqual(['id', 'email'])
      expect(pagination).toEqual({
        limit: 50,
        offset: 0,
        total: count,
        has_more: true,
        next: '/v1/users?limit=50&offset=50',
        previous: null,
        next_cursor: expect.stringMatching(/^[\w-]+$/) as string,
      })
      expect(paginationSchema.parse(pagination)).toEqual(pagination)
      expect((await askForUsers(database.db, '')).pagination).toEqual(pagination)
    })

    it('goes through its pages by offset, there and back, with filters, sort and fields kept', async () => {
      const { db } = database
      const expected = await idsBy(db, 'email_normalized DESC, id DESC', "account_status = 'active'")
      const asked = 'is_active=true&created_after=2025-12-31T23:00:00Z&sort=-email&fields=email,name&limit=100'
      const seen: string[] = []
      let query = asked
      let previous: string | null | undefined
      for (let i = 0; ; i += 1) {
        const { items, pagination } = await askForUsers(db, query)
        seen.push(...items.map(({ id }) => id))
        expect(pagination).toMatchObject({ limit: 100, offset: i * 100, total: expected.length })
        expect(pagination.has_more).toBe(pagination.next !== null)
        previous = pagination.previous
        if (pagination.next === null) break
        expect(pagination.next).toBe(
          `/v1/users?created_after=2025-12-31T23%3A00%3A00.000000Z&is_active=true&sort=-email&fields=email,name&limit=100&offset=${(i + 1) * 100}`,
        )
        query = queryOf(pagination.next)
      }
      expect(seen).toEqual(expected)
      const back = await askForUsers(db, queryOf(previous ?? null))
      const at = (Math.ceil(expected.length / 100) - 2) * 100
      expect(back.items.map(({ id }) => id)).toEqual(expected.slice(at, at + 100))
    })

    it('leads back to the beginning from an offset that is smaller than a page', async () => {
      const { pagination } = await askForUsers(database.db, 'limit=50&offset=20')
      expect(pagination).toMatchObject({
        previous: '/v1/users?limit=50&offset=0',
        next: '/v1/users?limit=50&offset=70',
      })
    })

    it('answers beyond its end with nothing, and its size', async () => {
      const beyond = await askForUsers(database.db, 'limit=50&offset=100000')
      expect(beyond).toEqual({
        items: [],
        pagination: {
          limit: 50,
          offset: 100_000,
          total: count,
          has_more: false,
          next: null,
          previous: '/v1/users?limit=50&offset=99950',
          next_cursor: null,
        },
      })
      const nobody = await askForUsers(database.db, 'q=nobody')
      expect(nobody).toMatchObject({ items: [], pagination: { total: 0, has_more: false, next: null, previous: null } })
    })

    it('answers by cursor without its size, until there is no more', async () => {
      const { db } = database
      const first = await askForUsers(db, 'limit=100&q=Name 1&sort=-name')
      const cursor = first.pagination.next_cursor ?? ''
      const second = await askForUsers(db, `limit=100&q=Name 1&sort=-name&cursor=${cursor}`)
      const next = second.pagination.next_cursor ?? ''
      expect(second.pagination).toEqual({
        limit: 100,
        has_more: true,
        next: `/v1/users?q=Name+1&sort=-name&limit=100&cursor=${next}`,
        next_cursor: next,
      })
      expect(paginationSchema.parse(second.pagination)).toEqual(second.pagination)
      const third = await askForUsers(db, queryOf(second.pagination.next))
      expect(third.items.map(({ id }) => id)).toEqual(
        (await idsBy(db, 'name DESC, id DESC', "strpos(name, 'Name 1') > 0")).slice(200, 300),
      )
      let last = third
      while (last.pagination.next !== null) last = await askForUsers(db, queryOf(last.pagination.next))
      expect(last.pagination).toEqual({ limit: 100, has_more: false, next: null, next_cursor: null })
    })

    it('does not end a page early when it ends exactly there', async () => {
      const { db } = database
      await db.updateTable('users').set({ name: 'Exactly ten' }).where('email_normalized', 'in', tenEmails).execute()
      const whole = await askForUsers(db, 'limit=10&q=Exactly ten')
      expect(whole.pagination).toMatchObject({ total: 10, has_more: false, next: null, next_cursor: null })
      const parts = await walk(db, 'limit=5&q=Exactly ten')
      expect(parts).toEqual(whole.items.map(({ id }) => id))
    })

    it.each([
      ['created_at', 'created_at, id'],
      ['-created_at', 'created_at DESC, id DESC'],
      ['user_id', 'id'],
      ['-user_id,email', 'id DESC'],
      ['name', 'name ASC NULLS LAST, id'],
      ['-name', 'name DESC NULLS LAST, id DESC'],
      ['-name,created_at', 'name DESC NULLS LAST, created_at, id'],
      ['is_active,-token_version', "(account_status = 'active'), token_version DESC, id DESC"],
      [
        '-is_active,name,-password_changed_at',
        "(account_status = 'active') DESC, name NULLS LAST, password_changed_at DESC NULLS LAST, id DESC",
      ],
      ['password_changed_at,name,-user_id', 'password_changed_at NULLS LAST, name NULLS LAST, id DESC'],
      ['token_version,-created_at', 'token_version, created_at DESC, id DESC'],
      ['-token_version,-created_at,user_id', 'token_version DESC, created_at DESC, id'],
    ])('holds each person once by cursor, sorted by %s', async (sort, order) => {
      const { db } = database
      // A size that ends pages inside of groups that are equal.
      expect(await walk(db, `limit=97&sort=${sort}`)).toEqual(await idsBy(db, order))
    })

    it('holds each person once by cursor, one at a time, where many were made in one millisecond', async () => {
      const { db } = database
      const expected = await idsBy(
        db,
        'created_at DESC, id DESC',
        "created_at > timestamptz '2026-01-01 00:00:00.1701Z'",
      )
      expect(expected.length).toBeGreaterThan(60)
      const seen = await walk(db, 'limit=1&sort=-created_at&created_after=2026-01-01T00:00:00.1701Z')
      expect(seen).toEqual(expected)
    })

    it('is sorted and cut in any way that can be asked for', async () => {
      const { db } = database
      const orders: Record<string, string> = {
        created_at: 'created_at',
        email: 'email_normalized',
        name: 'name',
        token_version: 'token_version',
        is_active: "(account_status = 'active')",
        password_changed_at: 'password_changed_at',
      }
      const keys = fc
        .uniqueArray(fc.record({ name: fc.constantFrom(...Object.keys(orders)), descending: fc.boolean() }), {
          minLength: 1,
          maxLength: 3,
          selector: ({ name }) => name,
        })
        .map((keys) => {
          const words = keys.map(
            ({ name, descending }) => `${orders[name] ?? ''} ${descending ? 'DESC' : 'ASC'} NULLS LAST`,
          )
          return {
            sort: keys.map(({ name, descending }) => (descending ? `-${name}` : name)).join(','),
            order: [...words, `id ${keys.at(-1)?.descending === true ? 'DESC' : 'ASC'}`].join(', '),
          }
        })
      await fc.assert(
        fc.asyncProperty(
          keys,
          fc.integer({ min: 40, max: 100 }),
          fc.boolean(),
          async ({ sort, order }, limit, isActive) => {
            const where = `account_status = '${isActive ? 'active' : 'disabled'}'`
            expect(await walk(db, `limit=${limit}&is_active=${isActive}&sort=${sort}`)).toEqual(
              await idsBy(db, order, where),
            )
          },
        ),
        { numRuns: engine === 'pglite' ? 8 : 25, seed: 20_261 },
      )
    }, 120_000)
  })

  it('a walk by cursor sees everybody who was there all the time once, whoever comes and goes meanwhile', async () => {
    const { db } = await open()
    await insertUsers(db, 420)
    for (const [i, sort] of ['created_at', '-created_at', '-name,created_at'].entries()) {
      const before = await idsBy(db, 'id')
      const gone = new Set<string>()
      let page = 0
      const seen = await walk(db, `limit=30&sort=${sort}`, async (ids) => {
        page += 1
        // One that was just seen, and one that may or may not have been.
        const leaving = [ids[3] ?? '', before[page * 19] ?? '']
        await db.deleteFrom('users').where('id', 'in', leaving).execute()
        for (const id of leaving) gone.add(id)
        await insertUsers(db, 5, `${i}-${page}-`)
      })
      expect(new Set(seen).size).toBe(seen.length)
      expect(page).toBeGreaterThan(10)
      const stayed = before.filter((id) => !gone.has(id))
      expect(stayed.filter((id) => !seen.includes(id))).toEqual([])
    }
  }, 120_000)
})

const tenEmails = Array.from({ length: 10 }, (_, i) => `a${i * 60 + 1}@example.com`)
