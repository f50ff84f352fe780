/**
 * Who calls what: requests and errors for each day, version, client and program, so that whoever ends a version knows
 * whom to tell. Counted in memory and added to the table every two seconds; a crash loses what came since. Kept for 400
 * days, a year and its like.
 *
 * What a caller calls itself is its own invention: of one client only so many programs are told apart in a day, and of
 * nobody only so many too, so that nobody fills the table or hides somebody else. The rest count as `other`.
 */
import { sql } from 'kysely'
import type { Logger } from 'pino'
import { z } from 'zod'
import type { Db } from '../database/database.ts'
import { parseInput } from '../problems.ts'

export interface UsedEndpoint {
  /** of the API: `v1` */
  readonly version: string
  /** undefined: nobody that is known */
  readonly clientId?: string | undefined
  /** the User-Agent header, as it came */
  readonly userAgent?: string | undefined
  /** the pattern, never the path: `GET /v1/users/{user_id}` */
  readonly endpoint: string
  /** of the answer; from 400 on it is an error */
  readonly status: number
}

export interface Usage {
  record(used: UsedEndpoint): void
  /** Writes what was counted; does so by itself every two seconds. */
  flush(): Promise<void>
  close(): Promise<void>
}

const flushMs = 2_000
const dayMs = 86_400_000
/** Programs of one client, and of nobody, that are told apart in a day. */
const maxPrograms = 100
/** Rows that one process tells apart in a day. */
const maxRows = 10_000
const rest = 'other'

interface Count {
  readonly version: string
  readonly client_id: string
  readonly user_agent: string
  readonly endpoint: string
  requests: number
  errors: number
}

/** @example usage.record({ version: 'v1', clientId: 'demo-service', userAgent: ctx.get('User-Agent'), endpoint: 'GET /v1/users', status: 200 }) */
export function openUsage({ db, log, now = Date.now }: { db: Db; log: Logger; now?: () => number }): Usage {
  let counts = new Map<string, Count>()
  let today = 0
  /** of today: client → programs; and every row */
  let programs = new Map<string, Set<string>>()
  let rows = new Set<string>()
  let flushing: Promise<void> = Promise.resolve()

  function startDay(): void {
    const day = Math.floor(now() / dayMs)
    if (day === today) return
    today = day
    programs = new Map()
    rows = new Set()
  }

  function programOf(clientId: string, userAgent: string | undefined): string {
    const program = productOf(userAgent)
    const known = programs.get(clientId) ?? new Set()
    if (known.has(program)) return program
    if (known.size >= maxPrograms) return rest
    programs.set(clientId, known.add(program))
    return program
  }

  function countOf({ version, clientId = '', userAgent, endpoint }: UsedEndpoint): Count {
    const exact = { version, client_id: clientId, user_agent: programOf(clientId, userAgent), endpoint }
    const key = keyOf(exact)
    const isTold = rows.has(key) || rows.size < maxRows
    if (isTold) rows.add(key)
    const told = isTold ? exact : { version, client_id: rest, user_agent: rest, endpoint: rest }
    const toldKey = isTold ? key : keyOf(told)
    const count = counts.get(toldKey) ?? { ...told, requests: 0, errors: 0 }
    counts.set(toldKey, count)
    return count
  }

  async function write(): Promise<void> {
    if (counts.size === 0) return
    const written = counts
    counts = new Map()
    try {
      await add(db, [...written.values()])
    } catch (error) {
      log.warn({ error_message: String(error) }, 'who called what could not be written: it is tried again')
      for (const [key, count] of written) {
        const since = counts.get(key)
        const requests = count.requests + (since?.requests ?? 0)
        counts.set(key, { ...count, requests, errors: count.errors + (since?.errors ?? 0) })
      }
    }
  }

  const flush = () => (flushing = flushing.then(write))
  const timer = setInterval(() => void flush(), flushMs)
  timer.unref()

  return {
    record(used) {
      startDay()
      const count = countOf(used)
      count.requests += 1
      if (used.status >= 400) count.errors += 1
    },
    flush,
    async close() {
      clearInterval(timer)
      await flush()
    },
  }
}

/** No part of it holds a line break: they are ours, or come from a header or an identifier. */
function keyOf(count: Omit<Count, 'requests' | 'errors'>): string {
  return `${count.version}\n${count.client_id}\n${count.user_agent}\n${count.endpoint}`
}

/** `booking-service/2.1.0 (Python/3.11; Linux)` → `booking-service/2.1.0` (RFC 9110 §10.1.5); '' for none. */
function productOf(userAgent = ''): string {
  return /^[\x21-\x7e]{1,64}/.exec(userAgent.trim())?.[0] ?? ''
}

async function add(db: Db, counts: readonly Count[]): Promise<void> {
  await sql`
    INSERT INTO api_usage AS u (day, version, client_id, user_agent, endpoint, requests, errors, last_seen_at)
    SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date, version, client_id, user_agent, endpoint, requests, errors, now()
    FROM jsonb_to_recordset(${JSON.stringify(counts)}::jsonb) AS c (
      version text, client_id text, user_agent text, endpoint text, requests bigint, errors bigint
    )
    -- In one order, so that two processes that write at once cannot deadlock.
    ORDER BY version, client_id, user_agent, endpoint
    ON CONFLICT (day, version, client_id, user_agent, endpoint) DO UPDATE SET
      requests = u.requests + excluded.requests,
      errors = u.errors + excluded.errors,
      last_seen_at = greatest(u.last_seen_at, excluded.last_seen_at)`.execute(db)
}

const day = z.iso.date({ error: 'must be a day, such as 2030-01-31' })
const periodSchema = z.strictObject({
  /** both days are part of it, in UTC */
  from: day,
  to: day,
  version: z.string().min(1).max(20).optional(),
})

export interface UsageSums {
  readonly requests: number
  /** answers from 400 on */
  readonly errors: number
  /** errors among the requests, in percent */
  readonly error_percent: number
  readonly last_seen_at: Date
}

export interface UsageOfVersion extends UsageSums {
  readonly version: string
  /** of all requests, in percent */
  readonly share_percent: number
}

export interface UsageOfCaller extends UsageSums {
  readonly version: string
  /** null: nobody that is known */
  readonly client_id: string | null
  /** `booking-service/2.1.0`; null: it did not say */
  readonly user_agent: string | null
  /** of the version's requests, in percent */
  readonly share_percent: number
  /** what it calls, the most called first */
  readonly endpoints: readonly string[]
}

export interface UsageSummary {
  readonly versions: readonly UsageOfVersion[]
  /** who makes most requests first; at most 1,000 */
  readonly callers: readonly UsageOfCaller[]
}

/**
 * Which versions are in use, and by whom.
 *
 * @throws Problem VALIDATION_ERROR
 * @example await summarizeUsage(db, { from: '2030-01-24', to: '2030-01-31', version: 'v1' })
 */
export async function summarizeUsage(db: Db, input: z.input<typeof periodSchema>): Promise<UsageSummary> {
  const { from, to, version } = parseInput(periodSchema, input)
  const isAsked = sql`day BETWEEN ${from}::date AND ${to}::date`
  const isOfVersion = version === undefined ? sql`true` : sql`version = ${version}`
  const sums = sql`
    sum(requests)::bigint AS requests, sum(errors)::bigint AS errors,
    round(100 * sum(errors) / sum(requests), 1)::double precision AS error_percent,
    max(last_seen_at) AS last_seen_at`
  const versions = await sql<UsageOfVersion>`
    SELECT * FROM (
      SELECT version, ${sums},
        round(100 * sum(requests) / sum(sum(requests)) OVER (), 1)::double precision AS share_percent
      FROM api_usage WHERE ${isAsked} GROUP BY version
    ) AS v WHERE ${isOfVersion} ORDER BY version`.execute(db)
  const callers = await sql<UsageOfCaller>`
    SELECT version, nullif(client_id, '') AS client_id, nullif(user_agent, '') AS user_agent, ${sums},
      round(100 * sum(requests) / sum(sum(requests)) OVER (PARTITION BY version), 1)::double precision AS share_percent,
      array_agg(endpoint ORDER BY requests DESC, endpoint) AS endpoints
    FROM (
      SELECT version, client_id, user_agent, endpoint,
        sum(requests) AS requests, sum(errors) AS errors, max(last_seen_at) AS last_seen_at
      FROM api_usage WHERE ${isAsked} AND ${isOfVersion}
      GROUP BY version, client_id, user_agent, endpoint
    ) AS e
    GROUP BY version, client_id, user_agent
    ORDER BY requests DESC, version, client_id, user_agent LIMIT 1000`.execute(db)
  return { versions: versions.rows, callers: callers.rows }
}
