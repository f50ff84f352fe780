/** The smallest service on Hono: one route, one scope. */
import type { Guard } from '@latchkey/guard'
import { authenticate, authOf, requireScopes } from '@latchkey/guard/hono'
import type { GuardEnv } from '@latchkey/guard/hono'
import { Hono } from 'hono'

export function createService(guard: Guard): Hono<GuardEnv> {
  const app = new Hono<GuardEnv>()
  app.use(authenticate(guard))
  app.get('/hello', requireScopes('models:read'), (c) => c.json({ hello: authOf(c).subject.id }))
  return app
}
