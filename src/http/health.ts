import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Middleware, ParameterizedContext } from 'koa'
import type { RequestState } from './request-context.ts'

/** How far a process is: it answers requests while ready, and still while draining, but asks for no more. */
export type Phase = 'starting' | 'ready' | 'draining'

export interface HealthSettings {
  readonly phase: () => Phase
  /** throws when the database does not answer within so many milliseconds */
  readonly ping: (timeoutMs: number) => Promise<void>
}

const pingTimeoutMs = 1_000
const pingAgainAfterMs = 250

/**
 * `/health` and `/health/ready`: 200 while requests can be served, 503 while starting, draining or without a database.
 * `/health/live`: 200 as long as the process answers at all, so that an outage of the database restarts nobody.
 * `/version`: which Latchkey this is.
 */
export function health({ phase, ping }: HealthSettings): Middleware<RequestState> {
  const version = readVersion()
  const databaseAnswers = sharedPing(ping)

  const answers: Readonly<Record<string, (ctx: ParameterizedContext<RequestState>) => Promise<void> | void>> = {
    async '/health'(ctx) {
      const isHealthy = phase() === 'ready' && (await databaseAnswers())
      answer(ctx, isHealthy ? 200 : 503, { status: isHealthy ? 'healthy' : 'unhealthy' })
    },
    '/health/live'(ctx) {
      answer(ctx, 200, { status: 'live' })
    },
    async '/health/ready'(ctx) {
      const now = phase()
      const hasDatabase = now === 'ready' && (await databaseAnswers())
      if (hasDatabase) answer(ctx, 200, { status: 'ready' })
      else answer(ctx, 503, { status: now === 'ready' ? 'no database' : now })
    },
    '/version'(ctx) {
      answer(ctx, 200, { name: 'latchkey', version })
    },
  }

  return function health(ctx, next) {
    const handle = Object.hasOwn(answers, ctx.path) ? answers[ctx.path] : undefined
    if (handle === undefined) return next()
    ctx.state.endpoint = ctx.path
    if (ctx.method === 'GET' || ctx.method === 'HEAD') return handle(ctx)
    ctx.set('Allow', 'GET, HEAD')
    ctx.status = 405
    return undefined
  }
}

function answer(ctx: ParameterizedContext<RequestState>, status: number, body: Record<string, string>): void {
  ctx.status = status
  if (status === 503) ctx.set('Retry-After', '1')
  ctx.body = body
}

/** However many ask, the database is asked once at a time and a few times a second: probes must not be a load. */
function sharedPing(ping: HealthSettings['ping']): () => Promise<boolean> {
  let last: Promise<boolean> | undefined
  let answeredAt = -Infinity
  return () => {
    if (performance.now() - answeredAt > pingAgainAfterMs) {
      answeredAt = Infinity
      last = ping(pingTimeoutMs)
        .then(
          () => true,
          () => false,
        )
        .finally(() => {
          answeredAt = performance.now()
        })
    }
    return last ?? Promise.resolve(false)
  }
}

function readVersion(): string {
  const manifest: unknown = JSON.parse(readFileSync(join(import.meta.dirname, '..', '..', 'package.json'), 'utf8'))
  if (typeof manifest === 'object' && manifest !== null && 'version' in manifest) return String(manifest.version)
  throw new Error('package.json has no version')
}
