/**
 * Latchkey as it runs in production: `latchkey serve` on a PostgreSQL of the measurement's own, clients and resources in
 * its tables, the access log written to a file.
 */
import { randomBytes } from 'node:crypto'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sql } from 'kysely'
import { pino } from 'pino'
import { systemActor } from '../../src/audit/audit.ts'
import { openDatabase, type Db } from '../../src/database/database.ts'
import { migrate } from '../../src/database/migrate.ts'
import { putPlan, setClientPlan } from '../../src/metering/plans.ts'
import { createClient } from '../../src/oauth/clients.ts'
import { managementPermissions, managementResourceId } from '../../src/oauth/own-entries.ts'
import { createResource } from '../../src/oauth/resources.ts'
import { startPostgres } from '../../test/support/postgres.ts'
import { findFreePort } from '../../test/support/ports.ts'
import { startLatchkey, waitUntilReady, type BenchProcess } from './processes.ts'

export const resource = 'https://models.example.com'
const permissions = ['models:read', 'models:write']
/** Counted, and never used up. */
const plan = {
  name: 'Measurement',
  throttle: { rateLimit: 1_000_000, burstLimit: 1_000_000 },
  quota: { limit: 1_000_000_000, period: 'DAY' },
} as const

export interface BenchDatabase {
  readonly url: string
  readonly folder: string
  /** for what a measurement registers besides */
  readonly db: Db
  /** the same for all servers on this database */
  readonly environment: Readonly<Record<string, string>>
  /** Registers a client that gets tokens for itself. */
  createMachine(id: string): Promise<{ readonly client_id: string; readonly client_secret: string }>
  /** Registers a client that may do everything at the management API of this issuer, whose server has been started. */
  createManager(issuer: string): Promise<{ readonly client_id: string; readonly client_secret: string }>
  /** Makes so many people. @returns their ids */
  createPeople(count: number): Promise<string[]>
  remove(): Promise<void>
}

/** A PostgreSQL that survives a power loss, as in production, migrated, with one resource. */
export async function startBenchDatabase(): Promise<BenchDatabase> {
  const folder = mkdtempSync(join(tmpdir(), 'latchkey-bench-'))
  const postgres = await startPostgres({ durable: true })
  const settings = { databaseUrl: postgres.url, dataDir: folder, poolSize: 2 }
  const database = await openDatabase(
    { ...settings, connectTimeoutSeconds: 10, statementTimeoutSeconds: 30 },
    pino({ level: 'silent' }),
  )
  await migrate(database.db)
  await database.db.transaction().execute((trx) =>
    createResource(trx, systemActor, {
      id: resource,
      permissions: permissions.map((permission) => ({ permission, description: '' })),
    }),
  )
  return {
    url: postgres.url,
    folder,
    db: database.db,
    environment: {
      DATABASE_URL: postgres.url,
      LATCHKEY_KEY_ENCRYPTION_KEY: randomBytes(32).toString('base64'),
      LATCHKEY_DATA_DIR: folder,
      LATCHKEY_KEYS_DIR: folder,
      LATCHKEY_DRAIN_SECONDS: '0',
      // Counted as in production, and never refused: all load comes from one network.
      LATCHKEY_NETWORK_RATE_PER_SECOND: '1000000',
      LATCHKEY_NETWORK_RATE_BURST: '1000000',
      HOST: '127.0.0.1',
    },
    createMachine: (id) =>
      database.db.transaction().execute(async (trx) => {
        const { secret = '' } = await createClient(trx, systemActor, {
          type: 'machine',
          id,
          name: id,
          default_resource: resource,
          permissions: permissions.map((permission) => ({ resource, permission })),
        })
        await putPlan(trx, systemActor, plan)
        await setClientPlan(trx, systemActor, { client_id: id, plan: plan.name })
        return { client_id: id, client_secret: secret }
      }),
    createManager: (issuer) =>
      database.db.transaction().execute(async (trx) => {
        const management = managementResourceId(issuer)
        const { client, secret = '' } = await createClient(trx, systemActor, {
          type: 'machine',
          name: 'manager',
          default_resource: management,
          permissions: managementPermissions.map(([permission]) => ({ resource: management, permission })),
        })
        await putPlan(trx, systemActor, plan)
        await setClientPlan(trx, systemActor, { client_id: client.id, plan: plan.name })
        return { client_id: client.id, client_secret: secret }
      }),
    async createPeople(count) {
      const { rows } = await sql<{ id: string }>`
        INSERT INTO users (id, email, email_normalized, name, created_at)
        SELECT 'usr_' || md5(n::text), 'person-' || n || '@example.com', 'person-' || n || '@example.com', 'Person ' || n,
          now() - make_interval(secs => n)
        FROM generate_series(1, ${count}::int) AS n RETURNING id`.execute(database.db)
      await sql`ANALYZE users`.execute(database.db)
      return rows.map(({ id }) => id)
    },
    async remove() {
      // What ends the database is not waited for by Node itself, so that a crash leaves nothing behind.
      const stay = setInterval(() => undefined, 1_000)
      await database.close()
      await postgres.remove()
      rmSync(folder, { recursive: true, force: true })
      clearInterval(stay)
    },
  }
}

export interface BenchServer {
  readonly origin: string
  readonly process: BenchProcess
}

export interface BenchLatchkey extends BenchServer {
  /** where it writes its log: JSON, a line for each request */
  readonly logFile: string
}

/** Starts `latchkey serve`, in production unless the environment says otherwise, and waits until it is ready. */
export async function startLatchkeyServer(
  database: BenchDatabase,
  options: { readonly environment?: Readonly<Record<string, string>>; readonly nodeOptions?: readonly string[] } = {},
): Promise<BenchLatchkey> {
  const port = await findFreePort()
  const logFile = join(database.folder, `${port}.log`)
  const log = openSync(logFile, 'w', 0o600)
  const server = startLatchkey(['serve'], {
    output: log,
    nodeOptions: options.nodeOptions ?? [],
    environment: {
      NODE_ENV: 'production',
      PORT: String(port),
      LATCHKEY_ISSUER: `http://localhost:${port}`,
      ...database.environment,
      ...options.environment,
    },
  })
  closeSync(log)
  const origin = `http://localhost:${port}`
  await waitUntilReady(`${origin}/health/ready`, server).catch((error: unknown) => {
    throw new Error(`Latchkey did not start; its log ends:\n${readFileSync(logFile, 'utf8').slice(-2_000)}`, {
      cause: error,
    })
  })
  return { origin, process: server, logFile }
}
