/** A list of people as the tests of pages use it: every type that can be sorted by, one of them with gaps. */
import { sql, type SqlBool } from 'kysely'
import type { Db } from '../../src/database/database.ts'
import { filter, listOf } from '../../src/http/list-query.ts'
import { readPage, type Page } from '../../src/http/pagination.ts'
import { booleanParameter, checkQuery, textParameter, timestampParameter } from '../../src/http/query-parameters.ts'
import { Problem } from '../../src/problems.ts'
import { signer } from '../../src/signing/sealing.ts'

export const userList = listOf({
  name: 'users',
  sort: {
    created_at: { column: sql.ref('users.created_at'), type: 'timestamp' },
    updated_at: { column: sql.ref('users.updated_at'), type: 'timestamp' },
    email: { column: sql.ref('users.email_normalized'), type: 'text' },
    name: { column: sql.ref('users.name'), type: 'text', nullable: true },
    token_version: { column: sql.ref('users.token_version'), type: 'integer' },
    is_active: { column: sql`(users.account_status = 'active')`, type: 'boolean' },
    password_changed_at: { column: sql.ref('users.password_changed_at'), type: 'timestamp', nullable: true },
  },
  defaultSort: 'created_at',
  tieBreak: { name: 'user_id', column: sql.ref('users.id'), type: 'text' },
  filters: {
    is_active: filter(booleanParameter('Only accounts that are active, or only those that are not'), (isActive) => {
      return sql<SqlBool>`(users.account_status = 'active') = ${isActive}`
    }),
    created_after: filter(timestampParameter('Only accounts made after this'), (at) => {
      return sql<SqlBool>`users.created_at > ${at}::timestamptz`
    }),
    q: filter(textParameter(100, { description: 'Part of a name', example: 'ali' }), (text) => {
      return sql<SqlBool>`strpos(users.name, ${text}) > 0`
    }),
  },
  fields: ['user_id', 'email', 'name', 'created_at'],
})

const secret = Buffer.alloc(32, 7)
export const cursorSigner = signer({ current: () => secret, all: () => [secret] }, 'cursors')

export interface Listed {
  readonly id: string
  readonly email: string
}

/** Asks as a caller would. @throws Problem VALIDATION_ERROR */
export async function askForUsers(
  db: Db,
  querystring: string,
  settings: { readonly path?: string; readonly scope?: string } = {},
): Promise<Page<Listed>> {
  const query = checkQuery(userList.query, querystring)
  if (!query.success) throw new Problem('VALIDATION_ERROR', 'Request validation failed', { details: query.details })
  const base = db.selectFrom('users').select(['id', 'email'])
  return readPage(db, userList, base, query.data, { signer: cursorSigner, path: '/v1/users', ...settings })
}

/** The query string of a link. */
export function queryOf(link: string | null): string {
  if (link === null) throw new Error('there is no such link')
  return new URL(link, 'http://localhost').search.slice(1)
}

/** Everything from the first page on, by cursor. */
export async function walk(
  db: Db,
  querystring: string,
  eachPage?: (ids: string[]) => Promise<void>,
): Promise<string[]> {
  const ids: string[] = []
  let query = querystring
  for (;;) {
    const { items, pagination } = await askForUsers(db, query)
    const found = items.map(({ id }) => id)
    ids.push(...found)
    await eachPage?.(found)
    if (pagination.next_cursor === null) return ids
    const parameters = new URLSearchParams(querystring)
    parameters.set('cursor', pagination.next_cursor)
    query = parameters.toString()
  }
}

/**
 * People whose ids sort otherwise than their age: in pairs made in the same microsecond, three in one millisecond, every
 * fifth without a name, names that repeat, every third disabled; stored in no order, as after years.
 */
export async function insertUsers(db: Db, count: number, prefix = 'a'): Promise<void> {
  await sql`
    INSERT INTO users (id, email, email_normalized, name, account_status, token_version, password_changed_at, created_at, updated_at)
    SELECT 'usr_' || ${prefix}::text || md5(n::text), e, e,
      CASE WHEN n % 5 = 0 THEN NULL ELSE 'Name ' || (n % 37) END,
      CASE WHEN n % 3 = 0 THEN 'disabled' ELSE 'active' END,
      1 + n % 4,
      CASE WHEN n % 7 < 3 THEN NULL ELSE timestamptz '2025-01-01 00:00:00Z' + (n % 11) * interval '1 microsecond' END,
      timestamptz '2026-01-01 00:00:00Z' + (n / 2) * interval '300 microseconds',
      timestamptz '2026-02-01 00:00:00Z' + (n * 7919 % 100003) * interval '1 second'
    FROM (SELECT n, ${prefix}::text || n || '@example.com' AS e FROM generate_series(1, ${count}::int) AS n) AS made
    ORDER BY md5(n::text)`.execute(db)
}
