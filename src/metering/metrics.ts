/**
 * What operators see of a running process, as Prometheus reads it. Who counts is handed a function of `Metrics`; what can
 * be asked at any time (queues, pools) is asked when somebody reads. Labels are patterns and names from our own source:
 * never a path, an id or anything else that came in a request, so that there are only as many series as routes.
 *
 * With several workers each counts for itself, and the primary sums (`openFleetMetrics`), but for what all of them read
 * from the one database.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Middleware } from 'koa'
import { AggregatorRegistry, collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client'
import type { PoolUse } from '../database/database.ts'
import { describeRoute, onceOver, type RequestState } from '../http/request-context.ts'

export interface MetricsParts {
  readonly hashing: () => { readonly running: number; readonly waiting: number }
  /** undefined: there is no pool */
  readonly pool: (() => PoolUse) | undefined
  /** how the feed of revocations stands, over all processes; one that fails, or takes long, is left out */
  readonly feed: () => Promise<FeedFigures>
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
  readonly countRevoked: (kind: string, count: number) => void
  readonly countDelivered: (way: 'poll' | 'push', count: number) => void
  readonly countPushFailed: (reason: string) => void
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

/** How the feed of revocations stands: what signals/ reads. */
export interface FeedFigures {
  readonly streams: readonly { readonly status: string; readonly delivery: string; readonly count: number }[]
  /** in seconds; 0: nothing waits */
  readonly oldestPendingSeconds: number
}

/** In milliseconds: whoever reads metrics when the database is in trouble must not wait for it. */
const feedWithinMs = 1_000

const durationBuckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 30]
const knownMethods = new Set(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'])

export function openMetrics({ hashing, pool, feed, withProcess }: MetricsParts): Metrics {
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
  const revocations = new Counter({
    name: 'latchkey_revocations_total',
    help: 'Revocations that were written, by what they end',
    labelNames: ['kind'],
    registers,
  })
  const delivered = new Counter({
    name: 'latchkey_signal_events_delivered_total',
    help: 'Security events that were sent: in answers to polls, repetitions too, or by pushes that were accepted',
    labelNames: ['way'],
    registers,
  })
  const pushFailures = new Counter({
    name: 'latchkey_signal_push_failures_total',
    help: 'Pushes of security events that were not accepted, by why',
    labelNames: ['reason'],
    registers,
  })
  // Every process reads the same of these from the database: a sum over workers would be a multiple.
  const streams = new Gauge({
    name: 'latchkey_signal_streams',
    help: 'Streams of security events, by their status and delivery',
    labelNames: ['status', 'delivery'],
    registers,
    aggregator: 'max',
    collect: collectFeed,
  })
  const pendingSeconds = new Gauge({
    name: 'latchkey_signal_oldest_pending_seconds',
    help: 'For how long the oldest revocation waits that an enabled stream has not acknowledged',
    registers,
    aggregator: 'max',
    collect: collectFeed,
  })
  let collecting: Promise<void> | undefined

  /** Once for both. What cannot be known is not shown: an old figure would pass for a good one. */
  function collectFeed(): Promise<void> {
    return (collecting ??= readFeed().finally(() => {
      collecting = undefined
    }))
  }

  async function readFeed(): Promise<void> {
    const late = sleep(feedWithinMs, undefined, { ref: false })
    const figures = await Promise.race([feed().catch(() => undefined), late])
    streams.reset()
    pendingSeconds.remove()
    if (figures === undefined) return
    for (const status of ['enabled', 'paused', 'disabled']) {
      for (const delivery of ['poll', 'push']) streams.set({ status, delivery }, 0)
    }
    for (const { status, delivery, count } of figures.streams) streams.set({ status, delivery }, count)
    pendingSeconds.set(figures.oldestPendingSeconds)
  }

  let underWay = 0
  addGauge('latchkey_http_requests_under_way', 'Requests that are being answered', () => underWay)
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
      underWay += 1
      onceOver(ctx, () => {
        underWay -= 1
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
    countRevoked: (kind, count) => revocations.inc({ kind }, count),
    countDelivered: (way, count) => delivered.inc({ way }, count),
    countPushFailed: (reason) => pushFailures.inc({ reason }),
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
