/**
 * Everything that a revocation passes through, each part in a process of its own, so that each can be stopped, killed and
 * cut off: a PostgreSQL, servers of Latchkey on it, one address in front of them, and services with guards.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { decodeJwt, type JWTPayload } from 'jose'
import { afterAll, inject, onTestFinished, TestRunner } from 'vitest'
import type { RevocationFeedHealth } from '@latchkey/guard'
import type { GuardedServiceHealth } from '../../bench/support/guarded-service.ts'
import { systemActor } from '../../src/audit/audit.ts'
import { openChanges } from '../../src/database/changes.ts'
import type { Database, Db } from '../../src/database/database.ts'
import { migrate } from '../../src/database/migrate.ts'
import { createClient } from '../../src/oauth/clients.ts'
import { ensureOwnEntries } from '../../src/oauth/own-entries.ts'
import { createResource } from '../../src/oauth/resources.ts'
import { openKeyEncryption } from '../../src/signing/key-encryption.ts'
import { openKeyRing } from '../../src/signing/key-ring.ts'
import { registerReceiver, type ReceiverClient } from '../signals/receiving.ts'
import { silent } from '../signing/rings.ts'
import { openLocation, type DatabaseLocation } from '../support/databases.ts'
import { findFreePort } from '../support/ports.ts'
import { startPostgres, type TestPostgres } from '../support/postgres.ts'
import { programEnvironment } from '../support/program-environment.ts'
import { cheapestWorkFactor } from '../support/provider.ts'
import { openReverseProxy, type ReverseProxy } from '../support/reverse-proxy.ts'
import { startServer, type ServerProcess } from '../support/server-process.ts'
import { postForm } from '../support/user-agent.ts'

const root = join(import.meta.dirname, '..', '..')
const audience = 'https://models.example.com'

export interface Fleet {
  readonly issuer: string
  readonly postgres: TestPostgres
  readonly db: Db
  readonly proxy: ReverseProxy
  /** Starts one of the two servers that the address leads to, or starts it again. */
  startProvider(which?: 0 | 1): Promise<ServerProcess>
  /** Starts a service: it listens, and need not be up to date. Like a server it ends with the test that starts it. */
  startService(settings?: ServiceSettings): Promise<ServiceProcess>
  /** Access tokens of a machine, got at this server. */
  mint(provider: ServerProcess, count: number): Promise<string[]>
  /** Revokes one at this server, as its client. @returns whether the server said that it is done */
  revoke(provider: ServerProcess, token: string): Promise<boolean>
  /** A token as the provider would have issued it at another time: its own keys sign what has been changed. */
  sign(token: string, changed: JWTPayload): Promise<string>
}

export interface ServiceSettings {
  /** `deny` when left out, so that nobody is asked who could help out */
  readonly onStale?: 'introspect' | 'deny' | 'allow'
  readonly maxStaleness?: string
  readonly clockOffsetSeconds?: number
  /** of one that was there before */
  readonly port?: number
}

export interface Seen {
  /** 0 when there was no answer */
  readonly status: number
  readonly retryAfter: string | null
  /** of `performance.now()` */
  readonly sentAt: number
  readonly answeredAt: number
}

export interface ServiceProcess {
  readonly port: number
  ask(token: string): Promise<Seen>
  /** the status of each */
  askAll(tokens: readonly string[]): Promise<number[]>
  health(): Promise<GuardedServiceHealth>
  feed(): Promise<RevocationFeedHealth>
  /** Waits until its news are fresh. */
  current(timeoutMs?: number): Promise<this>
  kill(): Promise<void>
}

/** Opened in a `beforeAll` it is for all tests of a file. */
export async function openFleet(): Promise<Fleet> {
  const postgres = await startPostgres({ durable: true })
  const name = `fleet-${new URL(postgres.url).port}`
  const location: DatabaseLocation = {
    engine: 'postgres',
    databaseUrl: postgres.url,
    dataDir: join(inject('temporaryFolder'), name),
    remove: () => Promise.resolve(),
  }
  const database = await openLocation(location)
  const { db } = database
  const [proxyPort, ...ports] = [await findFreePort(), await findFreePort(), await findFreePort()]
  const proxy = await openReverseProxy(proxyPort ?? 0, ports)
  const issuer = proxy.url
  atEnd(async () => {
    await proxy.close()
    await database.close()
    await postgres.remove()
  })
  await migrate(db)
  await ensureOwnEntries(db, issuer)
  const feed = await registerReceiver(db, issuer)
  const machine = await db.transaction().execute(async (trx) => {
    await createResource(trx, systemActor, { id: audience, permissions: [{ permission: 'models:read' }] })
    const { client, secret = '' } = await createClient(trx, systemActor, {
      type: 'machine',
      name: 'Machine',
      default_resource: audience,
      permissions: [{ resource: audience, permission: 'models:read' }],
    })
    return { client_id: client.id, client_secret: secret }
  })
  return {
    issuer,
    postgres,
    db,
    proxy,
    startProvider: (which = 0) =>
      startServer({
        database: location,
        port: ports[which] ?? 0,
        environment: { ...cheapestWorkFactor, LOG_LEVEL: 'warn', LATCHKEY_ISSUER: issuer },
      }),
    startService: (settings = {}) => startService(issuer, feed, settings),
    mint: (provider, count) =>
      Promise.all(
        Array.from({ length: count }, async () => {
          const { status, body } = await postForm(`${provider.url}/token`, machine, {
            grant_type: 'client_credentials',
          })
          if (status !== 200) throw new Error(`no token: ${JSON.stringify(body)}`)
          return body.access_token ?? ''
        }),
      ),
    revoke: (provider, token) =>
      postForm(`${provider.url}/revoke`, machine, { token }).then(
        ({ status }) => status === 200,
        () => false,
      ),
    sign: (token, changed) => signLike(database, location, token, changed),
  }
}

async function signLike(
  database: Database,
  { databaseUrl, dataDir }: DatabaseLocation,
  token: string,
  changed: JWTPayload,
): Promise<string> {
  const changes = await openChanges(database, databaseUrl, silent)
  // Where startServer has the keys of its servers.
  const keysDir = join(inject('temporaryFolder'), `keys-${dataDir.split('/').at(-1)}`)
  const encryption = openKeyEncryption({
    config: { isProduction: false, keyEncryptionKeys: undefined, keysDir },
    log: silent,
  })
  const ring = await openKeyRing({ database, changes, encryption, config: { rsaBits: 2048 }, log: silent })
  const { jwt } = await ring.sign('at+jwt', { ...decodeJwt(token), ...changed })
  await ring.close()
  await changes.close()
  return jwt
}

async function startService(issuer: string, feed: ReceiverClient, settings: ServiceSettings): Promise<ServiceProcess> {
  const port = settings.port ?? (await findFreePort())
  const child = spawn(
    process.execPath,
    ['--import', join(root, 'test', 'support', 'end-with-parent.mjs'), join('bench', 'support', 'guarded-service.ts')],
    {
      cwd: root,
      stdio: ['pipe', 'ignore', 'pipe'],
      env: {
        ...programEnvironment,
        NODE_ENV: 'production',
        PORT: String(port),
        ISSUER: issuer,
        AUDIENCE: audience,
        CLIENT_ID: feed.client_id,
        CLIENT_SECRET: feed.client_secret,
        ON_STALE: settings.onStale ?? 'deny',
        ...(settings.maxStaleness === undefined ? {} : { MAX_STALENESS: settings.maxStaleness }),
        ...(settings.clockOffsetSeconds === undefined
          ? {}
          : { CLOCK_OFFSET_SECONDS: String(settings.clockOffsetSeconds) }),
      },
    },
  )
  const written: string[] = []
  child.stderr.setEncoding('utf8').on('data', (text: string) => written.push(text))
  child.stdin.on('error', () => child.stdin.destroy())
  const ended = once(child, 'exit')
  const kill = async () => {
    child.kill('SIGKILL')
    await ended
  }
  atEnd(kill)

  const url = `http://127.0.0.1:${port}`
  const service: ServiceProcess = {
    port,
    kill,
    async ask(token) {
      const sentAt = performance.now()
      const answer = await fetch(`${url}/0`, { headers: { authorization: `Bearer ${token}` } }).catch(() => undefined)
      await answer?.arrayBuffer().catch(() => undefined)
      return {
        status: answer?.status ?? 0,
        retryAfter: answer?.headers.get('retry-after') ?? null,
        sentAt,
        answeredAt: performance.now(),
      }
    },
    askAll: async (tokens) =>
      (await Promise.all(tokens.map((token) => service.ask(token)))).map(({ status }) => status),
    health: async () => (await (await fetch(`${url}/health`)).json()) as GuardedServiceHealth,
    async feed() {
      const { guards } = await service.health()
      return guards[0]?.revocation as unknown as RevocationFeedHealth
    },
    async current(timeoutMs) {
      await until('the news are fresh', async () => (await service.feed()).status === 'current', timeoutMs)
      return service
    },
  }
  await until('the service listens', async () => {
    if (child.exitCode !== null) throw new Error(`the service ended: ${written.join('')}`)
    return service.health().then(
      () => true,
      () => false,
    )
  })
  return service
}

/** Of the test at hand, or of all where none runs yet. */
function atEnd(end: () => Promise<void>): void {
  if (TestRunner.getCurrentTest() === undefined) afterAll(end)
  else onTestFinished(end)
}

/** Waits until it is so. @returns after how many milliseconds it was */
export async function until(what: string, isSo: () => boolean | Promise<boolean>, timeoutMs = 30_000): Promise<number> {
  const startedAt = performance.now()
  while (!(await isSo())) {
    if (performance.now() - startedAt > timeoutMs) throw new Error(`still not so after ${timeoutMs} ms: ${what}`)
    await sleep(50)
  }
  return performance.now() - startedAt
}

/** Asks services about a token all the time, for as long as something goes on; returns what they answered. */
export async function watching(
  services: readonly ServiceProcess[],
  tokens: readonly string[],
  work: () => Promise<void>,
  everyMs = 25,
): Promise<Seen[]> {
  const seen: Seen[] = []
  const state = { isOver: false }
  const watchers = services.flatMap((service) =>
    tokens.map(async (token) => {
      while (!state.isOver) {
        seen.push(await service.ask(token))
        await sleep(everyMs)
      }
    }),
  )
  try {
    await work()
  } finally {
    state.isOver = true
    await Promise.all(watchers)
  }
  return seen
}
