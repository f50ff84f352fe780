import { Router } from '@koa/router'
import { setPageHeaders } from '../http/security-headers.ts'
import type { Views } from './render.ts'

/** What production shows at the address itself: that it is a provider, and nothing more. */
export function homeRoute({ issuer, views }: { readonly issuer: string; readonly views: Views }): Router {
  const router = new Router()
  router.get('/', (ctx) => {
    setPageHeaders(ctx)
    ctx.type = 'html'
    ctx.body = views.home({ issuer })
  })
  return router
}
