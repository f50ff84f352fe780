/** The smallest service on Express: one route, one scope. */
import type { Guard } from '@latchkey/guard'
import { answerRefusals, authenticate, authOf, requireScopes } from '@latchkey/guard/express'
import express from 'express'

export function createService(guard: Guard): express.Express {
  const app = express()
  app.use(authenticate(guard))
  app.get('/hello', requireScopes('models:read'), (req, res) => {
    res.json({ hello: authOf(req).subject.id })
  })
  app.use(answerRefusals)
  return app
}
