/**
 * Opens and closes the one database: PGlite in the data folder by default, PostgreSQL by DATABASE_URL. Everything else
 * sees a Kysely and does not ask which. Migrations are in migrate.ts, news of other processes' changes in changes.ts,
 * the removal of expired rows in sweep.ts.
 *
 * On PGlite there is one connection: a query on `db` inside an open transaction on `db` waits for ever. Functions that
 * change data therefore take the transaction as their first argument and use nothing else.
 */
import { existsSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { PGlite } from '@electric-sql/pglite'
import { Kysely, PGliteDialect, PostgresDialect, sql, type Transaction } from 'kysely'
import { Pool, Query, types, type PoolClient } from 'pg'
import type { Logger } from 'pino'
import { lockDataFolder } from './folder-lock.ts'
import type { Tables } from './tables.ts'

export type Db = Kysely<Tables>
export type Trx = Transaction<Tables>

export interface DatabaseSettings {
  /** a postgres:// URL; undefined: PGlite in `dataDir` */
  readonly databaseUrl: string | undefined
  readonly dataDir: string
  readonly poolSize: number
  /** How long a request waits for a free connection, in seconds. */
  readonly connectTimeoutSeconds: number
  /** The longest that one statement may run, in seconds (PostgreSQL only; PGlite has no such limit). */
  readonly statementTimeoutSeconds: number
  /** The longest that a statement waits for another transaction's lock, in milliseconds (PostgreSQL only). */
  readonly lockTimeoutMs?: number
}

export interface Database {
  readonly engine: 'pglite' | 'postgres'
  readonly db: Db
  /** true when this start made the embedded database */
  readonly isNew: boolean
  /** For LISTEN on PGlite; undefined on PostgreSQL. */
  readonly pglite: PGlite | undefined
  /** Throws when the database does not answer within `timeoutMs` milliseconds. */
  ping(timeoutMs?: number): Promise<void>
  /** How many connections there are at present; undefined on PGlite, which has one. */
  readonly pool: (() => PoolUse) | undefined
  close(): Promise<void>
}

export interface PoolUse {
  readonly total: number
  readonly idle: number
  /** requests that wait for one */
  readonly waiting: number
}

// int8 comes as text from pg and as a number from PGlite: read it as a number in both, since none of ours pass 2^53.
types.setTypeParser(types.builtins.INT8, Number)

/**
 * @throws DataFolderInUse when another process has the folder's embedded database open
 */
export async function openDatabase(settings: DatabaseSettings, log: Logger): Promise<Database> {
  return settings.databaseUrl === undefined
    ? openPglite(settings.dataDir)
    : openPostgres(settings, settings.databaseUrl, log)
}

async function openPglite(dataDir: string): Promise<Database> {
  mkdirSync(dataDir, { recursive: true, mode: 0o700 })
  const unlock = lockDataFolder(dataDir)
  const folder = join(dataDir, 'pglite')
  const isNew = !existsSync(join(folder, 'PG_VERSION'))
  try {
    const pglite = await PGlite.create(folder)
    const db = new Kysely<Tables>({ dialect: new PGliteDialect({ pglite }) })
    return {
      engine: 'pglite',
      db,
      isNew,
      pglite,
      pool: undefined,
      ping: (timeoutMs = 2_000) => ping(db, timeoutMs),
      async close() {
        await db.destroy()
        if (!pglite.closed) await pglite.close()
        unlock()
      },
    }
  } catch (error) {
    unlock()
    throw error
  }
}

async function openPostgres(settings: DatabaseSettings, databaseUrl: string, log: Logger): Promise<Database> {
  const pool = new Pool({
    connectionString: databaseUrl,
    application_name: 'latchkey',
    max: settings.poolSize,
    connectionTimeoutMillis: settings.connectTimeoutSeconds * 1_000,
    statement_timeout: settings.statementTimeoutSeconds * 1_000,
    lock_timeout: settings.lockTimeoutMs ?? 5_000,
    // A process that hangs inside a transaction must not hold its locks for ever.
    idle_in_transaction_session_timeout: 30_000,
    keepAlive: true,
  })
  // Without these, a backend that is terminated while its client is idle, or between two statements of a transaction,
  // takes the whole process down as an uncaught 'error' event.
  pool.on('error', (error) => log.warn({ error_message: error.message }, 'a database connection was lost'))
  pool.on('connect', (client) => {
    prepareStatements(client)
    client.on('error', (error) => log.warn({ error_message: error.message }, 'a database connection was lost'))
  })
  const db = new Kysely<Tables>({ dialect: new PostgresDialect({ pool }) })
  return {
    engine: 'postgres',
    db,
    isNew: false,
    pglite: undefined,
    pool: () => ({ total: pool.totalCount, idle: pool.idleCount, waiting: pool.waitingCount }),
    ping: (timeoutMs = 2_000) => ping(db, timeoutMs),
    close: () => db.destroy(),
  }
}

/** Statements that a connection keeps ready; each costs PostgreSQL some memory, and lists make texts of every length. */
const mostPrepared = 200
const preparedNames = new Map<string, string>()

/**
 * Has PostgreSQL parse a statement once for each connection instead of every time: nearly half of what a rotation of a
 * refresh token costs. Only statements with values, whose result cannot change with a table (`SELECT *` could).
 */
function prepareStatements(client: PoolClient): void {
  const query = client.query.bind(client) as (...sent: readonly unknown[]) => unknown
  let isPreparing = true
  const prepared = (text: unknown, values: unknown, ...rest: readonly unknown[]): unknown => {
    const hasValues = Array.isArray(values) && values.length > 0
    if (!isPreparing || typeof text !== 'string' || !hasValues || rest.length > 0) return query(text, values, ...rest)
    const name = preparedName(text)
    if (name === undefined) return query(text, values)
    // Given a name beside them, pg would make a slow copy of the three.
    const statement = Object.assign(new Query(text, values as unknown[]), { name })
    const answered = new Promise((resolve, reject) => {
      query(statement, (error: unknown, result: unknown) => (error == null ? resolve(result) : reject(error)))
    })
    return answered.catch((error: unknown) => {
      if (hasLostStatement(error)) isPreparing = false
      // As pg does for those that it promises: where it was asked, not how the answer came in.
      if (error instanceof Error) Error.captureStackTrace(error)
      throw error
    })
  }
  client.query = prepared as typeof client.query
}

function preparedName(text: string): string | undefined {
  const known = preparedNames.get(text)
  if (known !== undefined || preparedNames.size >= mostPrepared || text.includes('*')) return known
  const name = `latchkey_${preparedNames.size}`
  preparedNames.set(text, name)
  return name
}

/** A pooler between us and PostgreSQL forgot the statement, or the type of a column changed under it. */
function hasLostStatement(error: unknown): boolean {
  return (
    error instanceof Error &&
    /^prepared statement .+ (does not exist|already exists)$|^cached plan must not change result type$/.test(
      error.message,
    )
  )
}

async function ping(db: Db, timeoutMs: number): Promise<void> {
  const { promise: late, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(() => reject(new Error(`the database did not answer within ${timeoutMs} ms`)), timeoutMs)
  try {
    await Promise.race([sql`SELECT 1`.execute(db), late])
  } finally {
    clearTimeout(timer)
  }
}

const unavailableCodes = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'ENOTFOUND',
  'EAI_AGAIN',
  'EPIPE',
  'ETIMEDOUT',
  '55P03', // lock_not_available
  '57014', // query_canceled: statement_timeout
  '57P01', // admin_shutdown
  '57P02', // crash_shutdown
  '57P03', // cannot_connect_now
  '57P05', // idle_session_timeout
  '25P03', // idle_in_transaction_session_timeout
  '25006', // read_only_sql_transaction: a standby that has not taken over yet
  '40001', // serialization_failure
  '40P01', // deadlock_detected
])

/**
 * Whether an error says that the database is away, busy or slow for the moment: the caller may try again, so the answer
 * is 503 with Retry-After, not 500.
 */
export function isDatabaseUnavailable(error: unknown): boolean {
  if (!(error instanceof Error)) return false
  const code = 'code' in error && typeof error.code === 'string' ? error.code : ''
  // Class 08: the connection; class 53: disk, memory or connections are used up.
  const isOfClass = /^(08|53)[0-9A-Z]{3}$/.test(code)
  if (isOfClass || unavailableCodes.has(code) || hasLostStatement(error)) return true
  // PostgreSQL's unix socket is not there; any other file is a mistake of ours.
  if (code === 'ENOENT' && 'syscall' in error && error.syscall === 'connect') return true
  if (
    /^Connection terminated|^timeout exceeded when trying to connect|^Client has encountered a connection error/.test(
      error.message,
    )
  ) {
    return true
  }
  return error.cause !== undefined && isDatabaseUnavailable(error.cause)
}

/** Whether PostgreSQL stopped a statement that ran for too long (SQLSTATE 57014): the database is there, and late. */
export function isStatementTimeout(error: unknown): boolean {
  if (!(error instanceof Error)) return false
  return ('code' in error && error.code === '57014') || isStatementTimeout(error.cause)
}

/** Whether PostgreSQL refused a statement because another one of its transaction had failed (SQLSTATE 25P02). */
export function isInFailedTransaction(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === '25P02'
}

/** Whether an error is PostgreSQL's refusal of a duplicate (SQLSTATE 23505), and of which constraint. */
export function violatedUniqueConstraint(error: unknown): string | undefined {
  if (!(error instanceof Error) || !('code' in error) || error.code !== '23505') return undefined
  return 'constraint' in error && typeof error.constraint === 'string' ? error.constraint : 'unknown'
}
