/**
 * The user service: `GET /users/123`, for whoever holds a token with `users:read` for it. It knows nothing of bookings.
 */
import { Router } from '@koa/router'
import type { Guard } from '@latchkey/guard'
import { authenticate, requireScopes } from '@latchkey/guard/koa'
import Koa from 'koa'
import { logRequests } from './request-log.ts'
import type { WriteLog } from './request-log.ts'

/** The contract: others rely on these fields, and ignore those they do not know. */
export interface User {
  user_id: number
  email: string
  is_active: boolean
}

const users = new Map<string, User>([
  ['123', { user_id: 123, email: 'alice@example.com', is_active: true }],
  ['456', { user_id: 456, email: 'bob@example.com', is_active: false }],
])

export function createUserService({ guard, log }: { guard: Guard; log: WriteLog }): Koa {
  const router = new Router()
  router.get('/users/:id', requireScopes('users:read'), (ctx) => {
    const id = ctx.params['id'] ?? ''
    const user = users.get(id)
    if (user === undefined) {
      ctx.status = 404
      ctx.body = { error: 'User not found', user_id: Number(id) }
      return
    }
    ctx.body = user
  })
  const app = new Koa()
  app.use(logRequests('user-service', log))
  app.use(authenticate(guard))
  app.use(router.routes())
  return app
}
