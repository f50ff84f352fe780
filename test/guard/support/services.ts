/**
 * The same small service, once with each adapter, on a real port: what one contract is run against. Alice's and Bob's
 * models, decided by the same policies; a handler that refuses by itself, and one that breaks.
 */
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { getRequestListener } from '@hono/node-server'
import * as guardExpress from '@latchkey/guard/express'
import * as guardFastify from '@latchkey/guard/fastify'
import * as guardHono from '@latchkey/guard/hono'
import * as guardKoa from '@latchkey/guard/koa'
import { protect, protectedResourceMetadata } from '@latchkey/guard/web'
import { loadPolicies, requireAnyScope, requireRole, requireScopes } from '@latchkey/guard'
import type { Auth, Guard, Resource } from '@latchkey/guard'
import express from 'express'
import { fastify } from 'fastify'
import type { FastifyReply } from 'fastify'
import { Hono } from 'hono'
import Koa from 'koa'

export const policies = loadPolicies(`
policies:
  - id: owner-full-access
    effect: allow
    subjects: ["user:*"]
    actions: ["*"]
    resources: ["model"]
    condition: "resource.owner == subject.id"
  - id: public-models-can-be-read
    effect: allow
    subjects: ["user:*"]
    actions: ["read"]
    resources: ["model"]
    condition: "resource.public == true"
`)

const models = new Map<string, Resource>([
  ['1', { type: 'model', id: '1', owner: 'alice', public: false }],
  ['2', { type: 'model', id: '2', owner: 'bob', public: false }],
  ['3', { type: 'model', id: '3', owner: 'bob', public: true }],
])

/** `broken` is a store that is out of order; everything unknown is not there. */
function findModel(id: string | undefined): Resource | undefined {
  if (id === 'broken') throw new Error('the store is out of order')
  return models.get(id ?? '')
}

const aboutCaller = (auth: Auth | undefined): object => ({
  id: auth?.subject.id ?? null,
  type: auth?.subject.type ?? null,
})

export interface RunningService {
  readonly origin: string
  close(): Promise<void>
}

/** Starts a service on a free port. `unexpected` collects errors that are nobody's refusals. */
export type StartService = (guard: Guard, unexpected: unknown[]) => Promise<RunningService>

async function listen(
  listener: (request: IncomingMessage, response: ServerResponse) => unknown,
): Promise<RunningService> {
  const server = createServer((request, response) => void listener(request, response))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    close: async () => {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}

const koa: StartService = (guard, unexpected) => {
  const app = new Koa()
  app.silent = true
  app.on('error', (error: unknown) => unexpected.push(error))
  const { authenticate, authOf, authorize, resourceOf } = guardKoa
  const steps: Record<string, Koa.Middleware[]> = {
    '/whoami': [authenticate(guard)],
    '/optional': [authenticate(guard, { optional: true })],
    '/scope': [authenticate(guard), guardKoa.requireScopes('models:read', 'models:write')],
    '/any-scope': [authenticate(guard), guardKoa.requireAnyScope('models:write', 'models:admin')],
    '/role': [authenticate(guard), guardKoa.requireRole('admin')],
    '/recent': [authenticate(guard), guardKoa.requireAuthentication({ acrValues: ['mfa'], maxAgeSeconds: 300 })],
    '/optional-scope': [authenticate(guard, { optional: true }), guardKoa.requireScopes('models:read')],
    '/read': [authenticate(guard), authorize('read', (ctx: Koa.Context) => findModel(String(ctx.query['id'])))],
    '/delete': [authenticate(guard), authorize('delete', (ctx: Koa.Context) => findModel(String(ctx.query['id'])))],
    '/hidden': [
      authenticate(guard),
      authorize('delete', (ctx: Koa.Context) => findModel(String(ctx.query['id'])), { hideExistence: true }),
    ],
    '/throws': [authenticate(guard)],
    '/breaks': [authenticate(guard)],
    '/forgotten': [guardKoa.requireScopes('models:read')],
  }
  app.use(guardKoa.protectedResourceMetadata(guard, { scopesSupported: ['models:read'] }))
  app.use(async (ctx, next) => {
    const [first, second] = steps[ctx.path] ?? []
    const handler = async (): Promise<void> => {
      if (ctx.path === '/throws') guard.requireAuthentication(authOf(ctx), { acrValues: ['mfa'] })
      if (ctx.path === '/breaks') throw new Error('a bug')
      const isAbout = ['/read', '/delete', '/hidden'].includes(ctx.path)
      const { auth } = ctx.state as { auth: Auth | undefined }
      ctx.body = isAbout ? { found: resourceOf(ctx).id } : aboutCaller(auth)
    }
    if (first === undefined) return next()
    return first(ctx, async () => (second === undefined ? handler() : second(ctx, handler)))
  })
  const handle = app.callback()
  return listen((request, response) => void handle(request, response))
}

const expressService: StartService = (guard, unexpected) => {
  const app = express()
  const { answerRefusals, authenticate, authOf, authorize, resourceOf } = guardExpress
  const whoami: express.Handler = (req, res) => void res.json(aboutCaller(authOf(req)))
  const maybe: express.Handler = (req, res) => void res.json(aboutCaller((req as unknown as { auth?: Auth }).auth))
  const found: express.Handler = (req, res) => void res.json({ found: resourceOf(req).id })
  const load = (req: express.Request): Resource | undefined =>
    findModel(new URL(req.originalUrl, 'http://x').searchParams.get('id') ?? undefined)
  app.use(guardExpress.protectedResourceMetadata(guard, { scopesSupported: ['models:read'] }))
  app.get('/whoami', authenticate(guard), whoami)
  app.get('/optional', authenticate(guard, { optional: true }), maybe)
  app.get('/scope', authenticate(guard), guardExpress.requireScopes('models:read', 'models:write'), whoami)
  app.get('/any-scope', authenticate(guard), guardExpress.requireAnyScope('models:write', 'models:admin'), whoami)
  app.get('/role', authenticate(guard), guardExpress.requireRole('admin'), whoami)
  const recent = guardExpress.requireAuthentication({ acrValues: ['mfa'], maxAgeSeconds: 300 })
  app.get('/recent', authenticate(guard), recent, whoami)
  app.get('/optional-scope', authenticate(guard, { optional: true }), guardExpress.requireScopes('models:read'), whoami)
  app.get('/read', authenticate(guard), authorize('read', load), found)
  app.get('/delete', authenticate(guard), authorize('delete', load), found)
  app.get('/hidden', authenticate(guard), authorize('delete', load, { hideExistence: true }), found)
  app.get('/throws', authenticate(guard), (req) => guard.requireAuthentication(authOf(req), { acrValues: ['mfa'] }))
  app.get('/breaks', authenticate(guard), () => {
    throw new Error('a bug')
  })
  app.get('/forgotten', guardExpress.requireScopes('models:read'), whoami)
  app.use(answerRefusals)
  const last: express.ErrorRequestHandler = (error, _req, res, _next) => {
    unexpected.push(error)
    res.status(500).end()
  }
  app.use(last)
  return listen(app)
}

const fastifyService: StartService = async (guard, unexpected) => {
  const app = fastify()
  type Request = guardFastify.FastifyRequest
  const { answerRefusals, authenticate, authOf, authorize, resourceOf } = guardFastify
  app.setErrorHandler((error, request, reply) => {
    try {
      return answerRefusals(error, request, reply)
    } catch (other) {
      unexpected.push(other)
      return reply.code(500).send('')
    }
  })
  app.addHook('onRequest', guardFastify.protectedResourceMetadata(guard, { scopesSupported: ['models:read'] }))
  const whoami = (request: Request, reply: FastifyReply): unknown => reply.send(aboutCaller(authOf(request)))
  const found = (request: Request, reply: FastifyReply): unknown => reply.send({ found: resourceOf(request).id })
  const load = (request: Request): Resource | undefined =>
    findModel(new URL(request.originalUrl, 'http://x').searchParams.get('id') ?? undefined)
  const onRequest = authenticate(guard)
  app.get('/whoami', { onRequest }, whoami)
  app.get('/optional', { onRequest: authenticate(guard, { optional: true }) }, (request, reply) =>
    reply.send(aboutCaller((request as { auth?: Auth }).auth)),
  )
  app.get('/scope', { onRequest, preHandler: guardFastify.requireScopes('models:read', 'models:write') }, whoami)
  app.get('/any-scope', { onRequest, preHandler: guardFastify.requireAnyScope('models:write', 'models:admin') }, whoami)
  app.get('/role', { onRequest, preHandler: guardFastify.requireRole('admin') }, whoami)
  const recent = guardFastify.requireAuthentication({ acrValues: ['mfa'], maxAgeSeconds: 300 })
  app.get('/recent', { onRequest, preHandler: recent }, whoami)
  app.get(
    '/optional-scope',
    { onRequest: authenticate(guard, { optional: true }), preHandler: guardFastify.requireScopes('models:read') },
    whoami,
  )
  app.get('/read', { onRequest, preHandler: authorize('read', load) }, found)
  app.get('/delete', { onRequest, preHandler: authorize('delete', load) }, found)
  app.get('/hidden', { onRequest, preHandler: authorize('delete', load, { hideExistence: true }) }, found)
  app.get('/throws', { onRequest }, (request) => guard.requireAuthentication(authOf(request), { acrValues: ['mfa'] }))
  app.get('/breaks', { onRequest }, () => {
    throw new Error('a bug')
  })
  app.get('/forgotten', { preHandler: guardFastify.requireScopes('models:read') }, whoami)
  const origin = await app.listen({ port: 0, host: '127.0.0.1' })
  return { origin, close: () => app.close() }
}

const hono: StartService = (guard, unexpected) => {
  const app = new Hono<guardHono.GuardEnv>()
  const { authenticate, authOf, authorize, resourceOf } = guardHono
  app.onError((error, c) => {
    unexpected.push(error)
    return c.text('', 500)
  })
  app.use(guardHono.protectedResourceMetadata(guard, { scopesSupported: ['models:read'] }))
  app.get('/whoami', authenticate(guard), (c) => c.json(aboutCaller(c.get('auth'))))
  app.get('/optional', authenticate(guard, { optional: true }), (c) => c.json(aboutCaller(c.get('auth'))))
  app.get('/scope', authenticate(guard), guardHono.requireScopes('models:read', 'models:write'), (c) =>
    c.json(aboutCaller(authOf(c))),
  )
  app.get('/any-scope', authenticate(guard), guardHono.requireAnyScope('models:write', 'models:admin'), (c) =>
    c.json(aboutCaller(authOf(c))),
  )
  app.get('/role', authenticate(guard), guardHono.requireRole('admin'), (c) => c.json(aboutCaller(authOf(c))))
  const recent = guardHono.requireAuthentication({ acrValues: ['mfa'], maxAgeSeconds: 300 })
  app.get('/recent', authenticate(guard), recent, (c) => c.json(aboutCaller(authOf(c))))
  app.get('/optional-scope', authenticate(guard, { optional: true }), guardHono.requireScopes('models:read'), (c) =>
    c.json(aboutCaller(authOf(c))),
  )
  const load = (c: { req: { raw: Request } }): Resource | undefined =>
    findModel(new URL(c.req.raw.url).searchParams.get('id') ?? undefined)
  app.get('/read', authenticate(guard), authorize('read', load), (c) => c.json({ found: resourceOf(c).id }))
  app.get('/delete', authenticate(guard), authorize('delete', load), (c) => c.json({ found: resourceOf(c).id }))
  app.get('/hidden', authenticate(guard), authorize('delete', load, { hideExistence: true }), (c) =>
    c.json({ found: resourceOf(c).id }),
  )
  app.get('/throws', authenticate(guard), (c) => {
    guard.requireAuthentication(authOf(c), { acrValues: ['mfa'] })
    return c.text('')
  })
  app.get('/breaks', authenticate(guard), () => {
    throw new Error('a bug')
  })
  app.get('/forgotten', guardHono.requireScopes('models:read'), (c) => c.text(''))
  return listen(getRequestListener(app.fetch))
}

const web: StartService = (guard, unexpected) => {
  const about = (check: (auth: Auth) => void) =>
    protect(guard, (_request, auth) => {
      check(auth)
      return Response.json(aboutCaller(auth))
    })
  const model = (action: string, hideExistence = false) =>
    protect(guard, async (request, auth) => {
      const id = new URL(request.url).searchParams.get('id') ?? undefined
      const resource = await guard.authorize(auth, action, () => findModel(id), { hideExistence })
      return Response.json({ found: resource.id })
    })
  const routes: Record<string, (request: Request) => Promise<Response>> = {
    '/whoami': about(() => undefined),
    '/optional': protect(guard, (_request, auth) => Response.json(aboutCaller(auth)), { optional: true }),
    '/scope': about((auth) => requireScopes(auth, 'models:read', 'models:write')),
    '/any-scope': about((auth) => requireAnyScope(auth, 'models:write', 'models:admin')),
    '/role': about((auth) => requireRole(auth, 'admin')),
    '/recent': about((auth) => guard.requireAuthentication(auth, { acrValues: ['mfa'], maxAgeSeconds: 300 })),
    '/read': model('read'),
    '/delete': model('delete'),
    '/hidden': model('delete', true),
    '/throws': about((auth) => guard.requireAuthentication(auth, { acrValues: ['mfa'] })),
    '/breaks': about(() => {
      throw new Error('a bug')
    }),
  }
  const metadata = protectedResourceMetadata(guard, { scopesSupported: ['models:read'] })
  const handle = async (request: Request): Promise<Response> => {
    const document = metadata(request)
    if (document !== undefined) return document
    try {
      return (await routes[new URL(request.url).pathname]?.(request)) ?? new Response('', { status: 404 })
    } catch (error) {
      unexpected.push(error)
      return new Response('', { status: 500 })
    }
  }
  return listen(getRequestListener(handle))
}

export const services: readonly (readonly [string, StartService])[] = [
  ['koa', koa],
  ['express', expressService],
  ['fastify', fastifyService],
  ['hono', hono],
  ['web', web],
]
