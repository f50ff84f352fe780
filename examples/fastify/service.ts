/** The smallest service on Fastify: one route, one scope. */
import type { Guard } from '@latchkey/guard'
import { answerRefusals, authenticate, authOf, requireScopes } from '@latchkey/guard/fastify'
import { fastify } from 'fastify'
import type { FastifyInstance } from 'fastify'

export function createService(guard: Guard): FastifyInstance {
  const app = fastify()
  app.addHook('onRequest', authenticate(guard))
  app.setErrorHandler(answerRefusals)
  app.get('/hello', { preHandler: requireScopes('models:read') }, (request, reply) =>
    reply.send({ hello: authOf(request).subject.id }),
  )
  return app
}
