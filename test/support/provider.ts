/**
 * A whole provider inside the test's own process, on a fresh database and a port of its own: everything is real but the
 * process boundary. The demo data of development is what tests sign in with.
 */
import { once } from 'node:events'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Writable } from 'node:stream'
import { afterAll, onTestFinished, TestRunner } from 'vitest'
import { readConfig, type Config } from '../../src/config.ts'
import type { DemoData } from '../../src/demo/demo-data.ts'
import { openLog } from '../../src/log.ts'
import { openServer } from '../../src/server.ts'
import type { Database } from '../../src/database/database.ts'
import { createDatabase, type DatabaseLocation, type Engine } from './databases.ts'
import { findFreePort } from './ports.ts'

export interface TestProvider {
  readonly issuer: string
  readonly config: Config
  readonly demo: DemoData
  readonly database: Database
  readonly location: DatabaseLocation
  /** every log line so far, as text */
  readonly log: () => string
  /** as Prometheus reads them */
  readonly metrics: () => Promise<string>
  close(): Promise<void>
}

/** Argon2id at OWASP's floor: what tests hash with. */
export const cheapestWorkFactor = {
  LATCHKEY_PASSWORD_MEMORY_KIB: '19456',
  LATCHKEY_PASSWORD_TIME_COST: '2',
  LATCHKEY_PASSWORD_TARGET_MS: '10',
} as const

export interface ProviderOptions {
  readonly environment?: Readonly<Record<string, string>>
  /** another provider's database, to be its second process */
  readonly besides?: TestProvider
  /** the demo clients stay on their plan; otherwise they are taken off it, since tests ask fast */
  readonly keepsPlans?: true
}

/** The provider ends with the test, or, opened in a `beforeAll`, with the last one. */
export async function openProvider(engine: Engine, options: ProviderOptions = {}): Promise<TestProvider> {
  const port = Number(options.environment?.['PORT'] ?? (await findFreePort()))
  const location = options.besides?.location ?? (await createDatabase(engine))
  const keysDir = options.besides?.config.keysDir ?? (await mkdtemp(join(tmpdir(), 'latchkey-keys-')))
  const dataDir = engine === 'pglite' ? location.dataDir : await mkdtemp(join(tmpdir(), 'latchkey-data-'))
  const config = readConfig({
    NODE_ENV: 'test',
    LOG_LEVEL: 'info',
    PORT: String(port),
    LATCHKEY_DATA_DIR: dataDir,
    LATCHKEY_KEYS_DIR: keysDir,
    ...(location.databaseUrl === undefined ? {} : { DATABASE_URL: location.databaseUrl }),
    ...(options.besides === undefined ? {} : { LATCHKEY_ISSUER: options.besides.issuer }),
    // All tests come from one network, and fast.
    LATCHKEY_NETWORK_RATE_PER_SECOND: '0',
    ...cheapestWorkFactor,
    ...options.environment,
  })
  const lines: string[] = []
  const output = new Writable({
    write(chunk: Buffer, _encoding, done) {
      lines.push(chunk.toString())
      done()
    },
  })
  const log = openLog({ ...config, logFormat: 'json' }, output)
  const server = await openServer({ config, log, phase: () => 'ready' })
  if (options.keepsPlans !== true) await server.database.db.updateTable('clients').set({ plan: null }).execute()
  // Longer than any test pauses between two requests: a client must not find its connection just closing.
  const http = createServer({ keepAliveTimeout: 65_000 }, server.handle).listen(port, '127.0.0.1')
  await once(http, 'listening')
  let closing: Promise<void> | undefined
  const close = () =>
    (closing ??= (async () => {
      http.closeAllConnections()
      http.close()
      await once(http, 'close')
      await server.close()
      if (options.besides === undefined) await rm(keysDir, { recursive: true, force: true })
    })())
  if (TestRunner.getCurrentTest() === undefined) afterAll(close)
  else onTestFinished(close)
  const demo = JSON.parse(await readFile(join(dataDir, 'demo.json'), 'utf8')) as DemoData
  return {
    issuer: options.besides === undefined ? config.issuer : `http://localhost:${port}`,
    config,
    demo,
    database: server.database,
    location,
    log: () => lines.join(''),
    metrics: () => server.metrics.text(),
    close,
  }
}
