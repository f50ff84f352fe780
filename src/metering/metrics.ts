/**
 * What operators see of a running process, as Prometheus reads it. Who counts is handed a function of `Metrics`; what can
 * be asked at any time (queues, pools) is asked when somebody reads. Labels are patterns and names from our own source:
 * never a path, an id or anything else that came in a request, so that there are only as many series as routes.
 *
 * With several workers each counts for itself, and the primary sums (`openFleetMetrics`).
 */
import type { Middleware } from 'koa'
import { AggregatorRegistry, collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client'
import type { PoolUse } from '../database/database.ts'
import { describeRoute, onceOver, type RequestState } from '../http/request-context.ts'

export interface MetricsParts {
  readonly hashing: () => { readonly running: number; readonly waiting: number }
  /** undefined: there is no pool */
  readonly pool: (() => PoolUse) | undefined
  /** also of the process itself: processor time, memory, lag of the event loop; they are measured all the time */
  readonly withProcess: boolean
}

export interface Metrics {
  /** Counts and times every request; stands where the access log does. */
  readonly middleware: Middleware<RequestState>
  /** @param limit the name of the limit that turned a request away */
  readonly countRateLimited: (limit: string) => void
  readonly countTokenIssued: (grantType: string, kind: TokenKind) => void
  readonly countSignIn: (outcome: string) => void
  /** what `openFleetMetrics` sums */
  readonly snapshot: () => Promise<MetricsSnapshot>
  readonly text: MetricsText
}

export type TokenKind = 'access_token' | 'refresh_token' | 'id_token'

/** All metrics, in Prometheus' text format. */
export type MetricsText = () => Promise<string>

export type MetricsSnapshot = Awaited<ReturnType<Registry['getMetricsAsJSON']>>

/** of a `MetricsText` */
export const metricsContentType = Registry.PROMETHEUS_CONTENT_TYPE

const durationBuckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 30]
const knownMethods = new Set(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'])

export function openMetrics({ hashing, pool, withProcess }: MetricsParts): Metrics {
  const registry = new Registry()
  const registers = [registry]
  if (withProcess) collectDefaultMetrics({ register: registry })

  const requests = new Counter({
    name: 'latchkey_http_requests_total',
    help: 'Requests that were answered, or whose caller left (499), by the pattern of their route',
    labelNames: ['method', 'route', 'status'],
    registers,
  })
  const durations = new Histogram({
    name: 'latchkey_http_request_duration_seconds',
    help: 'From the arrival of a request to the end of its answer',
    labelNames: ['method', 'route', 'status_class'],
    buckets: durationBuckets,
    registers,
  })
  const underWay = new Gauge({
    name: 'latchkey_http_requests_under_way',
    help: 'Requests that are being answered',
    registers,
  })
  const rateLimited = new Counter({
    name: 'latchkey_rate_limited_total',
    help: 'Requests that a limit turned away, by the name of the limit',
    labelNames: ['limit'],
    registers,
  })
  const tokens = new Counter({
    name: 'latchkey_tokens_issued_total',
    help: 'Tokens issued at the token endpoint; a lost answer that is given again is none',
    labelNames: ['grant_type', 'kind'],
    registers,
  })
  const signIns = new Counter({
    name: 'latchkey_sign_ins_total',
    help: 'Sign-ins by password, by how they ended',
    labelNames: ['outcome'],
    registers,
  })
  addGauge('latchkey_hashing_under_way', 'Password hashes that are being computed', () => hashing().running)
  addGauge('latchkey_hashing_queue_length', 'Password hashes that wait for their turn', () => hashing().waiting)
  if (pool !== undefined) {
    addGauge('latchkey_database_pool_total', 'Database connections that are open', () => pool().total)
    addGauge('latchkey_database_pool_idle', 'Database connections that nobody uses', () => pool().idle)
    addGauge('latchkey_database_pool_waiting', 'Queries that wait for a connection', () => pool().waiting)
  }

  function addGauge(name: string, help: string, read: () => number): void {
    const gauge: Gauge = new Gauge({ name, help, registers, collect: () => gauge.set(read()) })
  }

  return {
    middleware: function metrics(ctx, next) {
      underWay.inc()
      onceOver(ctx, () => {
        underWay.dec()
        // As the access log has it.
        const status = ctx.res.writableFinished ? ctx.res.statusCode : 499
        const method = knownMethods.has(ctx.method) ? ctx.method : 'other'
        const route = describeRoute(ctx)
        const seconds = (performance.now() - ctx.state.request.startedAt) / 1_000
        requests.inc({ method, route, status })
        durations.observe({ method, route, status_class: `${Math.floor(status / 100)}xx` }, seconds)
      })
      return next()
    },
    countRateLimited: (limit) => rateLimited.inc({ limit }),
    countTokenIssued: (grantType, kind) => tokens.inc({ grant_type: grantType, kind }),
    countSignIn: (outcome) => signIns.inc({ outcome }),
    snapshot: () => registry.getMetricsAsJSON(),
    text: () => registry.metrics(),
  }
}

/**
 * The sum over workers. A counter never goes down: what a worker that is gone had counted when it was last asked stays in
 * the sum, and one that does not answer in time counts as when it last did.
 *
 * @param ask gives for each worker that lives its snapshot, or undefined when it did not answer
 */
export function openFleetMetrics(ask: () => Promise<ReadonlyMap<number, unknown>>): MetricsText {
  const latest = new Map<number, MetricsSnapshot>()
  let departed: MetricsSnapshot = []
  let collecting: Promise<string> | undefined

  async function collect(): Promise<string> {
    const answers = await ask()
    for (const [worker, snapshot] of latest) {
      if (answers.has(worker)) continue
      latest.delete(worker)
      departed = sum([departed, snapshot.filter(isCumulative)]).getMetricsAsArray() as MetricsSnapshot
    }
    for (const [worker, snapshot] of answers) if (isSnapshot(snapshot)) latest.set(worker, snapshot)
    return sum([...latest.values(), departed]).metrics()
  }

  return () =>
    (collecting ??= collect().finally(() => {
      collecting = undefined
    }))
}

function sum(snapshots: MetricsSnapshot[]) {
  return AggregatorRegistry.aggregate(snapshots)
}

function isCumulative({ type }: { readonly type: unknown }): boolean {
  // A word in a snapshot, whatever prom-client's own types say.
  return type === 'counter' || type === 'histogram'
}

function isSnapshot(answer: unknown): answer is MetricsSnapshot {
  return Array.isArray(answer)
}
