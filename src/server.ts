/**
 * The map. `openServer` opens what the server needs, in order, and lists every middleware and route in the order in
 * which a request meets them. How the process listens and stops is lifecycle.ts; how several processes serve is
 * workers.ts.
 */
import type { RequestListener } from 'node:http'
import Koa, { type Middleware } from 'koa'
import type { Logger } from 'pino'
import type { Config } from './config.ts'
import { openChanges } from './database/changes.ts'
import { openDatabase, type Database } from './database/database.ts'
import { findPendingMigrations, migrate } from './database/migrate.ts'
import { startSweeping } from './database/sweep.ts'
import { ensureDemoData, hasDemoData, type DemoData } from './demo/demo-data.ts'
import { demoRoutes } from './demo/routes.ts'
import { accessLog } from './http/access-log.ts'
import { openAssets } from './http/assets.ts'
import { errorReference } from './http/error-reference.ts'
import { health, type Phase } from './http/health.ts'
import { problemResponse } from './http/problem-response.ts'
import { requestContext } from './http/request-context.ts'
import { securityHeaders } from './http/security-headers.ts'
import { openCsrf } from './login/csrf.ts'
import { homeRoute } from './login/home.ts'
import { providerPages } from './login/provider-pages.ts'
import { openViews } from './login/render.ts'
import { loginRoutes } from './login/routes.ts'
import { openThrottle } from './login/throttle.ts'
import { endpoints } from './oauth/endpoints.ts'
import { ensureOwnEntries } from './oauth/own-entries.ts'
import { redirectPostToGet } from './oauth/post-requests.ts'
import { openOAuth } from './oauth/provider.ts'
import { openKeyEncryption } from './signing/key-encryption.ts'
import { openKeyRing } from './signing/key-ring.ts'
import { startRotation } from './signing/rotation.ts'
import { openSecretRing } from './signing/secret-ring.ts'
import { measureOnce, openPasswords, type Passwords } from './users/password.ts'
import { describeWorkFactor, readWorkFactor, type WorkFactor } from './users/work-factor.ts'

export interface OpenServer {
  readonly handle: RequestListener
  readonly database: Database
  /** undefined in production */
  readonly demo: DemoData | undefined
  close(): Promise<void>
}

export interface ServerParts {
  readonly config: Config
  readonly log: Logger
  readonly phase: () => Phase
}

/** The database cannot be served from as it is; the message says what to do. */
export class NotServable extends Error {
  override name = 'NotServable'
}

/**
 * @throws DataFolderInUse, NotServable, KeyEncryptionError, WorkFactorError and the database's own errors
 */
export async function openServer({ config, log, phase }: ServerParts): Promise<OpenServer> {
  const closers: (() => Promise<unknown> | void)[] = []
  const opened = <T extends { close(): Promise<unknown> | void }>(part: T): T => {
    closers.unshift(() => part.close())
    return part
  }
  const close = async () => {
    for (const closer of closers.splice(0)) await closer()
  }
  try {
    const database = opened(await openDatabase(databaseSettings(config), log))
    await prepareSchema(database, config)
    const changes = opened(await openChanges(database, config.databaseUrl, log))
    const encryption = openKeyEncryption({ config, log })
    const keyRing = opened(await openKeyRing({ database, changes, encryption, config, log }))
    const secretRing = opened(await openSecretRing({ database, changes, encryption, log }))
    const workFactor = await readWorkFactor(database.db, config)
    const passwords = openPasswords({ config, workFactor, log })
    // `calibrate --store` reaches the running servers.
    changes.on('settings', () => void followWorkFactor(database, config, passwords, log))
    const throttle = openThrottle({ db: database.db, key: () => secretRing.current('throttle'), config })
    await ensureOwnEntries(database.db, config.issuer)
    const demo = config.isProduction ? undefined : await ensureDemoData(database.db, config, passwords)

    const assets = openAssets({ viewsDir: config.viewsDir })
    const views = openViews({ viewsDir: config.viewsDir, issuer: config.issuer, assetUrl: assets.url })
    const csrf = openCsrf(secretRing, config.issuer)
    const oauth = opened(
      openOAuth({ config, database, changes, keyRing, secretRing, pages: providerPages(views), log }),
    )

    closers.unshift(startSweeping(database.db, config.sweepSeconds, (error) => log.warn({ error }, 'a sweep failed')))
    closers.unshift(startRotation({ database, encryption, config, log }))
    void warnWhenFast(workFactor, config.passwordTargetMs, log)

    const app = new Koa()
    app.proxy = true // requestContext has replaced the forwarding headers by what the issuer and trusted proxies say
    app.keys = secretRing.all('cookies').map((secret) => secret.toString('base64url'))
    secretRing.onChange(() => {
      app.keys = secretRing.all('cookies').map((secret) => secret.toString('base64url'))
    })

    const login = loginRoutes({
      config,
      database,
      oauth,
      views,
      csrf,
      signIn: { db: database.db, passwords, throttle, log },
      demoUsers: demo === undefined ? [] : [demo.user, demo.admin],
      log,
    })
    const start = demo === undefined ? homeRoute({ issuer: config.issuer, views }) : demoRoutes({ demo, views })
    const middlewares = [
      requestContext(config),
      accessLog(log),
      securityHeaders(config),
      problemResponse({ issuer: config.issuer, log, renderError: (shown) => views.error(shown), methods }),
      health({ phase, ping: (timeoutMs) => database.ping(timeoutMs) }), //  /health…  /version
      errorReference((errors) => views.errors({ errors })), //  /docs/errors
      assets.middleware,
      start.routes(), //  /  /demo  /demo/callback
      start.allowedMethods(),
      login.routes(), //  /interaction/:uid…  /account/…
      login.allowedMethods(),
      redirectPostToGet, //  POST /authorize  POST /logout
      oauth.middleware, //  /authorize  /token  /userinfo  /introspect  /revoke  /logout  /par  /.well-known/…
    ]
    for (const middleware of middlewares) app.use(middleware as Middleware)
    app.on('error', (error: unknown) => log.error({ error }, 'a request failed'))

    const answer = app.callback()
    return { handle: (req, res) => void answer(req, res), database, demo, close }
  } catch (error) {
    await close().catch((closing: unknown) => log.warn({ error: closing }, 'closing failed'))
    throw error
  }
}

export function databaseSettings(config: Config) {
  return {
    databaseUrl: config.databaseUrl,
    dataDir: config.dataDir,
    poolSize: config.databasePoolSize,
    connectTimeoutSeconds: config.databaseConnectTimeoutSeconds,
    statementTimeoutSeconds: config.databaseStatementTimeoutSeconds,
    lockTimeoutMs: config.databaseLockTimeoutMs,
  }
}

/** In development the schema follows the program; in production an operator decides when (`latchkey migrate`). */
async function prepareSchema({ db }: Database, config: Config): Promise<void> {
  if (!config.isProduction) {
    await migrate(db)
    return
  }
  const pending = await findPendingMigrations(db)
  if (pending.length > 0) {
    throw new NotServable(
      `The database is ${pending.length === 1 ? 'a migration' : `${pending.length} migrations`} behind (${pending.join(', ')}): run \`latchkey migrate\` first.`,
    )
  }
  if (await hasDemoData(db)) {
    throw new NotServable(
      'This database holds demo accounts, whose passwords were printed: production needs a database of its own.',
    )
  }
}

async function followWorkFactor({ db }: Database, config: Config, passwords: Passwords, log: Logger): Promise<void> {
  try {
    passwords.useWorkFactor(await readWorkFactor(db, config))
  } catch (error) {
    log.warn({ error }, 'the password work factor could not be read anew')
  }
}

/** Hardware gets faster; a hash that takes too little time no longer protects what it should. */
async function warnWhenFast(workFactor: WorkFactor, targetMs: number, log: Logger): Promise<void> {
  const took = Math.round(await measureOnce(workFactor))
  if (took >= targetMs / 2) return
  log.warn(
    { took_ms: took, target_ms: targetMs },
    `a password hash (${describeWorkFactor(workFactor)}) takes ${took} ms here, less than half of ${targetMs} ms: run \`latchkey calibrate --store\``,
  )
}

/** For 405 and Allow: what the provider's endpoints take. */
const methods: Readonly<Record<string, string>> = {
  [endpoints.authorization]: 'GET, POST',
  [endpoints.token]: 'POST',
  [endpoints.userinfo]: 'GET, POST',
  [endpoints.introspection]: 'POST',
  [endpoints.revocation]: 'POST',
  [endpoints.end_session]: 'GET, POST',
  [endpoints.pushed_authorization_request]: 'POST',
  [endpoints.jwks]: 'GET',
  '/.well-known/openid-configuration': 'GET',
  '/.well-known/oauth-authorization-server': 'GET',
}
