/**
 * What the management port answers, to operators alone: `/metrics`, and the same `/health…` and `/version` as the public
 * port. With several workers the primary has it, which serves nothing else.
 */
import type { RequestListener } from 'node:http'
import Koa, { type Middleware } from 'koa'
import { health, type HealthSettings } from './health.ts'
import { problemResponse, type ProblemResponseSettings } from './problem-response.ts'
import { requestContext, type RequestContextSettings, type RequestState } from './request-context.ts'
import { securityHeaders } from './security-headers.ts'

export interface ManagementSettings extends HealthSettings, RequestContextSettings {
  readonly isProduction: boolean
  readonly log: ProblemResponseSettings['log']
  readonly metrics: () => Promise<string>
  /** of what `metrics` gives */
  readonly metricsContentType: string
}

export function managementListener(settings: ManagementSettings): RequestListener {
  const app = new Koa<RequestState>()
  app.proxy = true // as in server.ts
  const middlewares: Middleware<RequestState>[] = [
    requestContext(settings),
    securityHeaders(settings),
    problemResponse({ issuer: settings.issuer, log: settings.log, methods: { '/metrics': 'GET, HEAD' } }),
    health(settings),
    async function metrics(ctx, next) {
      if (ctx.path !== '/metrics' || (ctx.method !== 'GET' && ctx.method !== 'HEAD')) {
        await next()
        return
      }
      ctx.type = settings.metricsContentType
      ctx.body = await settings.metrics()
    },
  ]
  for (const middleware of middlewares) app.use(middleware)
  app.on('error', (error: unknown) => settings.log.error({ error }, 'a request to the management port failed'))
  const answer = app.callback()
  return (req, res) => void answer(req, res)
}
