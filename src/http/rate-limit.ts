/**
 * How often somebody may call: token buckets (so many at once, so many a second) and quotas (so many a day, week or
 * month in UTC), each correct over all processes, and what answers say of them. Whose they are, and how large, is others'
 * to say: a network's here, a client's by its plan in metering/.
 *
 * What is left is one row for each key, changed by one statement at the database's own clock. A process takes a few ahead
 * of use, a lease, and counts those down in memory, so that a busy key costs a statement only every so many requests.
 * They are debited before they are used: over all processes together, never more is let through than the row allows. What
 * is left of a lease after a second goes back with the next statement, so that over any stretch of time a process is
 * ahead by one lease at most. A key that was found empty is not asked about again before it can have something.
 *
 * On PGlite a statement waits for the transaction that has the one connection: never take inside of one.
 */
import { sql } from 'kysely'
import type { Middleware, ParameterizedContext } from 'koa'
import type { Logger } from 'pino'
import type { Db } from '../database/database.ts'
import { Problem } from '../problems.ts'
import { openLeases, type LeaseHolder } from './leases.ts'
import type { RequestState } from './request-context.ts'

/** A token bucket. */
export interface Rate {
  /** what comes in each second */
  readonly ratePerSecond: number
  /** what is in a full one: so many may come at once; a whole number */
  readonly burst: number
}

export const quotaPeriods = ['DAY', 'WEEK', 'MONTH'] as const
export type QuotaPeriod = (typeof quotaPeriods)[number]

export interface Quota {
  /** in each period; a whole number */
  readonly limit: number
  /** begins at midnight UTC: each day, on Mondays, on the first of the month */
  readonly period: QuotaPeriod
}

/** What became of a request, and what is left. Seconds are whole, rounded up. */
export interface Verdict {
  readonly allowed: boolean
  /** the most that may come at once, or in the period */
  readonly limit: number
  readonly remaining: number
  /** until there is all of it again: the bucket full, or the next period */
  readonly resetSeconds: number
  /** when to try again, at least 1; 0 for what is allowed */
  readonly retryAfterSeconds: number
  /** in which `limit` comes anew */
  readonly windowSeconds: number
  readonly resetAt: Date
}

export interface RateLimiter {
  /**
   * Takes `cost` out of a bucket. A refusal takes nothing.
   *
   * @param key whose it is: `network:192.0.2.1`
   * @throws the database's own errors: without it nobody is let through on trust
   * @throws RangeError for a cost that no full bucket could bear
   */
  take(key: string, rate: Rate, cost?: number): Promise<Verdict>
  /** Takes one out of a quota. A refusal takes nothing. @throws the database's own errors */
  takeQuota(key: string, quota: Quota): Promise<Verdict>
  /** Gives back what `take` took, for a request that was refused for another reason. */
  giveBack(key: string, cost?: number): void
  /** How many keys are held in memory, for those who watch. */
  size(): number
  /** Hands back what this process has taken and not used. */
  close(): Promise<void>
}

export interface RateLimiterSettings {
  readonly db: Db
  /** milliseconds that only ever grow, like performance.now(): for how long leases count */
  readonly now?: () => number
  /**
   * How many keys are held in memory, of buckets and of quotas each; 10,000 when left out. What is forgotten beyond it was
   * debited before: nobody gets more by it.
   */
  readonly maxKeys?: number
  readonly log?: Logger
}

/** The longest that a lease counts, and that a key is taken to be empty without asking again, in milliseconds. */
const leaseMs = 1_000
/** Under overload a few tokens are let come together: a statement for each would be what a flooder wants. */
const gatherMs = 100

/** What is taken ahead: a twentieth of the whole, so that a process is never far ahead; 1 for small ones. */
function leaseSize(whole: number): number {
  return Math.min(50, Math.max(1, Math.floor(whole / 20)))
}

/** @example const limiter = openRateLimiter({ db }); const verdict = await limiter.take('network:192.0.2.1', { ratePerSecond: 100, burst: 200 }) */
export function openRateLimiter(settings: RateLimiterSettings): RateLimiter {
  const { db, now = () => performance.now(), maxKeys = 10_000, log } = settings
  const buckets = openLeases<Rate, Bucket>({
    now,
    maxKeys,
    lend: (holder, cost) => takeFromBucket(db, holder, cost, now),
  })
  const forgotten: LeaseHolder<Quota, Period>[] = []
  const quotas = openLeases<Quota, Period>({
    now,
    maxKeys,
    lend: (holder, cost) => takeFromQuota(db, holder, cost, now),
    onForget: (holder) => void (forgotten.length < maxKeys && forgotten.push(holder)),
  })

  // A day's quota does not come back within seconds, as tokens do: what one process does not use is for the others.
  const timer = setInterval(() => void handBackQuotas([...forgotten.splice(0), ...quotas.collectExpired()]), leaseMs)
  timer.unref()
  let handingBack: Promise<unknown> = Promise.resolve()

  function handBackQuotas(unused: readonly LeaseHolder<Quota, Period>[]): Promise<unknown> {
    if (unused.length === 0) return handingBack
    handingBack = handingBack
      .then(() => giveBackToQuotas(db, unused))
      // It counts as used then, as after a crash.
      .catch((error: unknown) => log?.debug({ error_message: String(error) }, 'quotas were not handed back'))
    return handingBack
  }

  return {
    async take(key, rate, cost = 1) {
      if (!(cost >= 1 && cost <= rate.burst)) throw new RangeError(`a cost of ${cost} in a bucket of ${rate.burst}`)
      const { allowed, holder } = await buckets.take(key, rate, cost)
      return describeBucket(holder, rate, { allowed, cost, now: now() })
    },
    async takeQuota(key, quota) {
      const { allowed, holder } = await quotas.take(key, quota, 1)
      return describeQuota(holder, quota, { allowed, now: now() })
    },
    giveBack: (key, cost = 1) => buckets.giveBack(key, cost),
    size: () => buckets.size() + quotas.size(),
    async close() {
      clearInterval(timer)
      const [unusedTokens, unusedQuotas] = [await buckets.collectAll(), await quotas.collectAll()]
      await handBackQuotas([...forgotten.splice(0), ...unusedQuotas])
      await giveBackToBuckets(db, unusedTokens).catch((error: unknown) =>
        log?.debug({ error_message: String(error) }, 'tokens were not handed back'),
      )
    },
  }
}

/** A bucket as the last statement left it. */
interface Bucket {
  readonly tokens: number
  /** of `now` */
  readonly at: number
}

/**
 * One statement hands back what is left of the last lease, and takes the next if the bucket bears it. The clock is read
 * once for each, into the row that is proposed: a statement that waited for another's then counts no time twice.
 * Divided by seconds for each token instead of multiplied by a rate: a statement with an asterisk is not prepared.
 */
async function takeFromBucket(
  db: Db,
  { key, limits, left }: LeaseHolder<Rate, Bucket>,
  cost: number,
  now: () => number,
) {
  const { burst, ratePerSecond } = limits
  const wanted = Math.max(cost, leaseSize(burst))
  const filled = sql`least(
    ${burst}::double precision,
    b.tokens + ${left}::double precision
      + greatest(0, extract(epoch FROM excluded.updated_at - b.updated_at)::double precision)
        / ${1 / ratePerSecond}::double precision
  )`
  const granted = sql`(CASE WHEN ${filled} >= ${cost}::integer
    THEN least(${wanted}::integer, floor(${filled})::integer) ELSE 0 END)`
  const regained = (tokens: ReturnType<typeof sql>) =>
    sql`make_interval(secs => (${tokens}) / ${ratePerSecond}::double precision)`
  const { rows } = await sql<{ granted: number; tokens: number }>`
    INSERT INTO rate_buckets AS b (key, tokens, granted, updated_at, full_at)
    VALUES (
      ${key}::text, ${burst - wanted}::double precision, ${wanted}::integer,
      clock_timestamp(), clock_timestamp() + ${regained(sql`${wanted}::double precision`)}
    )
    ON CONFLICT (key) DO UPDATE SET
      tokens = ${filled} - ${granted},
      granted = ${granted},
      updated_at = greatest(b.updated_at, excluded.updated_at),
      full_at = greatest(b.updated_at, excluded.updated_at)
        + ${regained(sql`${burst}::double precision - ${filled} + ${granted}`)}
    RETURNING granted, tokens`.execute(db)
  const { granted: lent, tokens } = readRow(rows)
  // A part of what was wanted says that it is empty, as nothing at all does.
  const emptyFor = lent === 0 ? cost : 1
  const untilEnoughMs = ((emptyFor - tokens) / ratePerSecond) * 1_000
  const gatheredMs = Math.min(gatherMs, (wanted / ratePerSecond) * 1_000)
  return {
    lent,
    // Longer ones too are asked about again: another process may hand something back, or the plan may change.
    emptyForMs: untilEnoughMs <= 0 ? 0 : Math.min(leaseMs, Math.max(untilEnoughMs, gatheredMs)),
    emptyFor,
    endsInMs: leaseMs,
    seen: { tokens, at: now() },
  }
}

function describeBucket(
  { left, seen }: LeaseHolder<Rate, Bucket>,
  { burst, ratePerSecond }: Rate,
  { allowed, cost, now }: { readonly allowed: boolean; readonly cost: number; readonly now: number },
): Verdict {
  const { tokens, at } = seen ?? { tokens: burst, at: now }
  const inside = Math.min(burst, tokens + left + ((now - at) / 1_000) * ratePerSecond)
  const resetSeconds = Math.ceil((burst - inside) / ratePerSecond)
  return {
    allowed,
    limit: burst,
    remaining: Math.max(0, Math.min(Math.floor(inside), allowed ? burst : cost - 1)),
    resetSeconds,
    retryAfterSeconds: allowed ? 0 : Math.max(1, Math.ceil((cost - inside) / ratePerSecond)),
    windowSeconds: Math.max(1, Math.ceil(burst / ratePerSecond)),
    resetAt: new Date(Date.now() + resetSeconds * 1_000),
  }
}

/** A quota as the last statement left it. */
interface Period {
  readonly used: number
  readonly startsAt: Date
  readonly endsAt: Date
  /** of `now` */
  readonly ends: number
}

const quotaUnits = { DAY: 'day', WEEK: 'week', MONTH: 'month' } as const

async function takeFromQuota(
  db: Db,
  { key, limits, left, seen }: LeaseHolder<Quota, Period>,
  cost: number,
  now: () => number,
) {
  const { limit, period } = limits
  const unit = quotaUnits[period]
  const wanted = Math.max(cost, leaseSize(limit))
  // A statement that waited over midnight may be the older one: it counts in the period that the row is in.
  const isSame = sql`(q.period = excluded.period AND q.starts_at >= excluded.starts_at)`
  // What was taken in one period is nothing in the next.
  const used = sql`(CASE WHEN ${isSame} THEN
    greatest(0, q.used - CASE WHEN q.starts_at = ${seen?.startsAt ?? null}::timestamptz THEN ${left}::integer ELSE 0 END)
    ELSE 0 END)`
  const granted = sql`(CASE WHEN ${limit}::bigint - ${used} >= ${cost}::integer
    THEN least(${wanted}::integer, ${limit}::bigint - ${used}) ELSE 0 END)::integer`
  const { rows } = await sql<{ granted: number; used: number; starts_at: Date; ends_at: Date; seconds: number }>`
    INSERT INTO quota_counters AS q (key, period, starts_at, ends_at, used, granted)
    SELECT ${key}::text, ${period}::text,
      t.start AT TIME ZONE 'UTC', (t.start + ${`1 ${unit}`}::interval) AT TIME ZONE 'UTC',
      ${wanted}::integer, ${wanted}::integer
    FROM (SELECT date_trunc(${unit}::text, clock_timestamp() AT TIME ZONE 'UTC') AS start) AS t
    ON CONFLICT (key) DO UPDATE SET
      used = ${used} + ${granted},
      granted = ${granted},
      period = excluded.period,
      starts_at = CASE WHEN ${isSame} THEN q.starts_at ELSE excluded.starts_at END,
      ends_at = CASE WHEN ${isSame} THEN q.ends_at ELSE excluded.ends_at END
    RETURNING granted, used, starts_at, ends_at,
      extract(epoch FROM ends_at - clock_timestamp())::double precision AS seconds`.execute(db)
  const row = readRow(rows)
  const endsInMs = Math.max(0, row.seconds * 1_000)
  return {
    lent: row.granted,
    emptyForMs: row.used >= limit ? Math.min(leaseMs, endsInMs) : 0,
    emptyFor: 1,
    endsInMs: Math.min(leaseMs, endsInMs),
    seen: { used: row.used, startsAt: row.starts_at, endsAt: row.ends_at, ends: now() + endsInMs },
  }
}

function describeQuota(
  { left, seen }: LeaseHolder<Quota, Period>,
  { limit }: Quota,
  { allowed, now }: { readonly allowed: boolean; readonly now: number },
): Verdict {
  if (seen === undefined) throw new Error('a quota that was never asked about')
  const resetSeconds = Math.max(1, Math.ceil((seen.ends - now) / 1_000))
  return {
    allowed,
    limit,
    remaining: allowed ? Math.max(0, limit - seen.used) + left : 0,
    resetSeconds,
    retryAfterSeconds: allowed ? 0 : resetSeconds,
    windowSeconds: Math.round((seen.endsAt.getTime() - seen.startsAt.getTime()) / 1_000),
    resetAt: seen.endsAt,
  }
}

async function giveBackToBuckets(db: Db, unused: readonly LeaseHolder<Rate, Bucket>[]): Promise<void> {
  for (const page of pagesOf(unused.map(({ key, left, limits }) => ({ key, left, burst: limits.burst })))) {
    await sql`
      WITH r AS (
        SELECT * FROM jsonb_to_recordset(${page}::jsonb) AS r (key text, "left" double precision, burst double precision)
      ), locked AS (
        -- In one order, so that two processes that end together cannot deadlock.
        SELECT key FROM rate_buckets WHERE key IN (SELECT key FROM r) ORDER BY key FOR UPDATE
      )
      UPDATE rate_buckets b SET tokens = least(r.burst, b.tokens + r."left")
      FROM r JOIN locked ON locked.key = r.key WHERE b.key = r.key`.execute(db)
  }
}

async function giveBackToQuotas(db: Db, unused: readonly LeaseHolder<Quota, Period>[]): Promise<void> {
  for (const page of pagesOf(unused.map(({ key, left, seen }) => ({ key, left, starts_at: seen?.startsAt })))) {
    await sql`
      WITH r AS (
        SELECT * FROM jsonb_to_recordset(${page}::jsonb) AS r (key text, "left" bigint, starts_at timestamptz)
      ), locked AS (
        SELECT key FROM quota_counters WHERE key IN (SELECT key FROM r) ORDER BY key FOR UPDATE
      )
      UPDATE quota_counters q SET used = greatest(0, q.used - r."left")
      FROM r JOIN locked ON locked.key = r.key WHERE q.key = r.key AND q.starts_at = r.starts_at`.execute(db)
  }
}

function pagesOf(rows: readonly unknown[]): string[] {
  const size = 1_000
  return Array.from({ length: Math.ceil(rows.length / size) }, (_, page) =>
    JSON.stringify(rows.slice(page * size, (page + 1) * size)),
  )
}

function readRow<T>(rows: readonly T[]): T {
  const [row] = rows
  if (row === undefined) throw new Error('a bucket without a row')
  return row
}

/** A verdict, with the name under which answers speak of its limit. */
export interface NamedVerdict {
  readonly name: string
  readonly verdict: Verdict
}

/**
 * What an answer says of its limits: `RateLimit` and `RateLimit-Policy` for each of them
 * (draft-ietf-httpapi-ratelimit-headers), and the older `X-RateLimit-*` for the one of which least is left.
 *
 * @example
 * rateLimitHeaders([{ name: 'throttle', verdict }])
 * // { RateLimit: '"throttle";r=50;t=2', 'RateLimit-Policy': '"throttle";q=200;w=2', 'X-RateLimit-Limit': '200', … }
 */
export function rateLimitHeaders(verdicts: readonly NamedVerdict[]): Record<string, string> {
  const [tightest] = verdicts.map(({ verdict }) => verdict).toSorted(byTightness)
  if (tightest === undefined) return {}
  return {
    RateLimit: verdicts
      .map(({ name, verdict }) => `"${name}";r=${verdict.remaining};t=${verdict.resetSeconds}`)
      .join(', '),
    'RateLimit-Policy': verdicts
      .map(({ name, verdict }) => `"${name}";q=${verdict.limit};w=${verdict.windowSeconds}`)
      .join(', '),
    'X-RateLimit-Limit': String(tightest.limit),
    'X-RateLimit-Remaining': String(tightest.remaining),
    'X-RateLimit-Reset': String(Math.ceil(tightest.resetAt.getTime() / 1_000)),
  }
}

/** What refuses comes first, then the least that is left, then the longest wait. */
function byTightness(a: Verdict, b: Verdict): number {
  return Number(a.allowed) - Number(b.allowed) || a.remaining - b.remaining || b.resetSeconds - a.resetSeconds
}

/**
 * The refusal of a request that a limit did not let through. The headers of {@link rateLimitHeaders} go beside it.
 *
 * @param message what there was too much of, where that is not requests
 */
export function rateLimitExceeded(
  {
    limit,
    remaining,
    resetAt,
    retryAfterSeconds,
  }: Pick<Verdict, 'limit' | 'remaining' | 'resetAt' | 'retryAfterSeconds'>,
  headers: Readonly<Record<string, string>> = {},
  message = 'API rate limit exceeded',
): Problem {
  const resetSecond = new Date(Math.ceil(resetAt.getTime() / 1_000) * 1_000)
  return new Problem('RATE_LIMIT_EXCEEDED', message, {
    members: { limit, remaining, reset_at: resetSecond.toISOString().replace('.000Z', 'Z') },
    retryAfterSeconds,
    headers,
  })
}

export interface NetworkLimitSettings {
  /** 0: no limit */
  readonly networkRatePerSecond: number
  readonly networkRateBurst: number
  /** told of every refusal, for the metrics */
  readonly onRefused?: (limit: string) => void
}

/**
 * Holds off a network (an IPv4 address, an IPv6 /64) that sends more than anybody should, before anything is known of
 * who it is. A browser's question whether it may ask (CORS preflight) does not count. Needs requestContext before it.
 *
 * @returns what throws Problem RATE_LIMIT_EXCEEDED, or the database's own errors
 */
export function limitNetwork(
  limiter: RateLimiter,
  { networkRatePerSecond, networkRateBurst, onRefused }: NetworkLimitSettings,
): (ctx: ParameterizedContext<RequestState>) => Promise<void> {
  const rate = { ratePerSecond: networkRatePerSecond, burst: networkRateBurst }
  return async (ctx) => {
    if (networkRatePerSecond === 0 || ctx.method === 'OPTIONS') return
    const verdict = await limiter.take(`network:${ctx.state.network}`, rate)
    if (verdict.allowed) return
    ctx.state.rateLimited = 'network'
    onRefused?.('network')
    throw rateLimitExceeded(verdict, rateLimitHeaders([{ name: 'network', verdict }]))
  }
}

/** The same, in front of everything at certain paths. */
export function networkLimit(
  limiter: RateLimiter,
  settings: NetworkLimitSettings & { readonly appliesTo: (path: string) => boolean },
): Middleware<RequestState> {
  const limit = limitNetwork(limiter, settings)
  return async function networkLimit(ctx, next) {
    if (settings.appliesTo(ctx.path)) await limit(ctx)
    await next()
  }
}
