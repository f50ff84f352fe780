/**
 * The management API's peer: Koa, its router and Kysely, which run the statements that the same request runs in Latchkey
 * for its own sake, and nothing else: nobody is asked who they are, nothing is checked, limited, logged or documented.
 */
import { Router } from '@koa/router'
import Koa from 'koa'
import { Kysely, PostgresDialect, sql } from 'kysely'
import { Pool } from 'pg'
import type { Tables } from '../../src/database/tables.ts'
import { userColumns } from '../../src/users/users.ts'

const db = new Kysely<Tables>({
  dialect: new PostgresDialect({ pool: new Pool({ connectionString: process.env['DATABASE_URL'], max: 10 }) }),
})
const router = new Router()

router.get('/v1/users/:id', async (ctx) => {
  ctx.body = await db
    .selectFrom('users')
    .select(userColumns)
    .where('id', '=', ctx.params['id'] ?? '')
    .executeTakeFirst()
})

router.get('/v1/users', async (ctx) => {
  const limit = Number(ctx.query['limit'])
  const { total } = await db
    .selectFrom('users')
    .select((eb) => eb.fn.countAll<number>().as('total'))
    .executeTakeFirstOrThrow()
  const users = await db
    .selectFrom('users')
    .select(userColumns)
    .orderBy('created_at')
    .orderBy('id')
    .limit(limit + 1)
    .execute()
  ctx.body = {
    users: users.slice(0, limit),
    pagination: { limit, total, has_more: users.length > limit },
  }
})

router.patch('/v1/users/:id', async (ctx) => {
  const chunks: Buffer[] = []
  for await (const chunk of ctx.req) chunks.push(chunk as Buffer)
  const { name } = JSON.parse(Buffer.concat(chunks).toString()) as { name: string }
  const id = ctx.params['id'] ?? ''
  ctx.body = await db.transaction().execute(async (trx) => {
    const before = await trx
      .selectFrom('users')
      .select(userColumns)
      .where('id', '=', id)
      .forUpdate()
      .executeTakeFirstOrThrow()
    const after = await trx
      .updateTable('users')
      .set({ name, row_version: sql<number>`row_version + 1`, updated_at: sql<Date>`now()` })
      .where('id', '=', id)
      .returning(userColumns)
      .executeTakeFirstOrThrow()
    await trx
      .insertInto('audit_events')
      .values({
        action: 'user.updated',
        actor_type: 'client',
        actor_id: 'bare',
        target_type: 'user',
        target_id: id,
        details: JSON.stringify({ before: { name: before.name }, after: { name } }),
      })
      .execute()
    return after
  })
})

const app = new Koa()
app.use(router.routes())
app.listen(Number(process.env['PORT']), '127.0.0.1')
