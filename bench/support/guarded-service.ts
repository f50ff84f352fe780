/**
 * A service as a customer writes one: Koa, and the guard with its feed of revocations. `/0` is for whoever has a good
 * token, `/health` tells how the guard is. With `GUARDS` it is as many services in one process, at `/0`, `/1` and so on,
 * each with a guard of its own: a hundred receivers are no hundred processes. `CLOCK_OFFSET_SECONDS` sets its clock wrong.
 *
 * As a program of its own, which answers two messages besides: `{ admits: token }` with how many of its guards let the
 * token in, and `{ awaits: token, seconds }` with the moment at which each began to refuse it as revoked
 * (monotonic-clock.ts), null where that did not come to pass.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { createGuard, GuardError, type Guard } from '@latchkey/guard'
import { authenticate, authOf } from '@latchkey/guard/koa'
import Koa, { type Middleware } from 'koa'
import { monotonicMs } from './monotonic-clock.ts'

export interface GuardedServiceHealth {
  readonly guards: readonly ReturnType<Guard['health']>[]
  readonly metrics: readonly ReturnType<Guard['metrics']>[]
  readonly memoryBytes: number
}

export type GuardedServiceMessage = { readonly admits: string } | { readonly awaits: string; readonly seconds: number }

/** Looking is work too, which must not keep a hundred guards from their feeds. */
const lookEveryMs = 10

const {
  PORT = '',
  GUARDS = '1',
  ISSUER = '',
  AUDIENCE = '',
  CLIENT_ID = '',
  CLIENT_SECRET = '',
  MAX_STALENESS = '60s',
  ON_STALE = 'introspect',
  CLOCK_OFFSET_SECONDS,
} = process.env

const guards = Array.from({ length: Number(GUARDS) }, () =>
  createGuard({
    issuer: ISSUER,
    audience: AUDIENCE,
    revocation: {
      clientId: CLIENT_ID,
      clientSecret: CLIENT_SECRET,
      maxStaleness: MAX_STALENESS,
      onStale: ON_STALE as 'introspect' | 'deny' | 'allow',
    },
    ...(CLOCK_OFFSET_SECONDS === undefined ? {} : { now: () => Date.now() + Number(CLOCK_OFFSET_SECONDS) * 1_000 }),
  }),
)

const admissions = guards.map((guard) => authenticate(guard) as Middleware)
const app = new Koa()
app.use(async (ctx, next) => {
  if (ctx.path === '/health') {
    ctx.body = {
      guards: guards.map((guard) => guard.health()),
      metrics: guards.map((guard) => guard.metrics()),
      memoryBytes: process.memoryUsage.rss(),
    } satisfies GuardedServiceHealth
    return
  }
  const admission = admissions[Number(ctx.path.slice(1))]
  if (admission !== undefined) await admission(ctx, next)
})
app.use((ctx) => {
  ctx.body = { subject: authOf(ctx).subject.id }
})
const server = app.listen(Number(PORT), '127.0.0.1')

process.on('message', (message: GuardedServiceMessage) => {
  const answer =
    'admits' in message ? countAdmissions(message.admits) : awaitRefusals(message.awaits, message.seconds * 1_000)
  void answer.then((value) => process.send?.(value))
})
process.on('SIGTERM', () => {
  server.closeAllConnections()
  server.close()
  void Promise.all(guards.map((guard) => guard.close())).then(() => process.exit(0))
})

async function countAdmissions(token: string): Promise<number> {
  const request = requestWith(token)
  const verdicts = await Promise.all(guards.map((guard) => verdictOf(guard, request)))
  return verdicts.filter((verdict) => verdict === 'admitted').length
}

async function awaitRefusals(token: string, withinMs: number): Promise<(number | null)[]> {
  const request = requestWith(token)
  const refusedAt: (number | null)[] = guards.map(() => null)
  const waiting = new Set(guards.keys())
  const deadline = monotonicMs() + withinMs
  while (waiting.size > 0 && monotonicMs() < deadline) {
    for (const place of waiting) {
      const guard = guards[place]
      if (guard === undefined || (await verdictOf(guard, request)) !== 'revoked') continue
      refusedAt[place] = monotonicMs()
      waiting.delete(place)
    }
    await sleep(lookEveryMs)
  }
  return refusedAt
}

function requestWith(token: string): Request {
  return new Request('http://localhost/', { headers: { authorization: `Bearer ${token}` } })
}

async function verdictOf(guard: Guard, request: Request): Promise<string> {
  return guard.authenticate(request).then(
    () => 'admitted',
    (error: unknown) => {
      if (!(error instanceof GuardError)) throw error
      return error.status === 401 ? error.reason : `${error.status} ${error.reason}`
    },
  )
}
