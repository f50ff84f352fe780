/**
 * The models service. Each route says which scope the token must carry and which action the policies must allow; the
 * list asks the policies for a filter, so that it shows exactly what reading one by one would.
 */
import { bodyParser } from '@koa/bodyparser'
import { Router } from '@koa/router'
import type { Auth, Guard, Resource } from '@latchkey/guard'
import {
  authenticate,
  authOf,
  authorize,
  protectedResourceMetadata,
  requireScopes,
  resourceOf,
} from '@latchkey/guard/koa'
import type { KoaContext } from '@latchkey/guard/koa'
import { toWhere } from '@latchkey/guard/kysely'
import Koa from 'koa'
import { z } from 'zod'
import { modelAttributes } from './models.ts'
import type { Models } from './models.ts'

const newModel = z.strictObject({ name: z.string().min(1).max(255), is_public: z.boolean().default(false) })
const changedModel = z.strictObject({ name: z.string().min(1).max(255).optional(), is_public: z.boolean().optional() })
const party = z.string().regex(/^(user|client):.{1,255}$/)
const share = z.strictObject({ permissions: z.array(z.enum(['read', 'write'])).max(2) })
const transfer = z.strictObject({ to: party })

/** `user:alice`, `client:batch`: as the policies name who owns a model. */
const nameOf = ({ subject }: Auth): string => `${subject.type}:${subject.id}`

export function createModelsService(guard: Guard, models: Models): Koa {
  const load = (ctx: KoaContext & { params: Record<string, string> }): Promise<Resource | undefined> =>
    models.findResource(ctx.params['id'] ?? '')
  const idOf = (ctx: KoaContext): string => resourceOf(ctx).id ?? ''
  const router = new Router()

  router.get('/models', requireScopes('models:read'), async (ctx) => {
    const visible = guard.filter(authOf(ctx), 'read', 'model', (plan) => toWhere(plan, modelAttributes))
    ctx.body = { models: await models.list(visible) }
  })

  router.post('/models', requireScopes('models:write'), async (ctx) => {
    const { name, is_public: isPublic } = newModel.parse(ctx.request.body)
    const model = await models.create(nameOf(authOf(ctx)), name, isPublic)
    ctx.status = 201
    ctx.set('Location', `/models/${model.id}`)
    ctx.body = model
  })

  router.get('/models/:id', requireScopes('models:read'), authorize('read', load), async (ctx) => {
    ctx.body = await models.find(idOf(ctx))
  })

  router.patch('/models/:id', requireScopes('models:write'), authorize('write', load), async (ctx) => {
    const { name, is_public: isPublic } = changedModel.parse(ctx.request.body)
    // Whom it is visible to is the owner's business, not that of everybody who may write.
    if (isPublic !== undefined) await guard.assert(authOf(ctx), 'share', resourceOf(ctx))
    const changes = { ...(name !== undefined && { name }), ...(isPublic !== undefined && { is_public: isPublic }) }
    ctx.body =
      Object.keys(changes).length === 0 ? await models.find(idOf(ctx)) : await models.update(idOf(ctx), changes)
  })

  router.delete('/models/:id', requireScopes('models:delete'), authorize('delete', load), async (ctx) => {
    await models.delete(idOf(ctx))
    ctx.status = 204
  })

  router.put('/models/:id/shares/:user', requireScopes('models:share'), authorize('share', load), async (ctx) => {
    const { permissions } = share.parse(ctx.request.body)
    await models.share(idOf(ctx), party.parse(ctx.params['user']), permissions)
    ctx.status = 204
  })

  router.post('/models/:id/transfer', requireScopes('models:share'), authorize('transfer', load), async (ctx) => {
    const { to } = transfer.parse(ctx.request.body)
    ctx.body = await models.update(idOf(ctx), { owner_id: to })
  })

  const app = new Koa()
  app.use(async (ctx, next) => {
    try {
      await next()
    } catch (error) {
      if (!(error instanceof z.ZodError)) throw error
      ctx.status = 400
      ctx.body = { error: { code: 'VALIDATION_ERROR', message: 'The request is not valid.', details: error.issues } }
    }
  })
  app.use(
    protectedResourceMetadata(guard, {
      scopesSupported: ['models:read', 'models:write', 'models:delete', 'models:share'],
    }),
  )
  app.use(authenticate(guard))
  app.use(bodyParser({ enableTypes: ['json'], jsonLimit: '64kb' }))
  app.use(router.routes())
  app.use(router.allowedMethods())
  return app
}
