/**
 * The map. `openServer` opens what the server needs, in order, and lists every middleware and route in the order in
 * which a request meets them. How the process listens and stops is lifecycle.ts; how several processes serve is
 * workers.ts.
 */
import type { RequestListener } from 'node:http'
import Koa, { type Middleware } from 'koa'
import compose from 'koa-compose'
import type { Logger } from 'pino'
import { startSealing } from './audit/sealer.ts'
import type { Config } from './config.ts'
import { openChanges } from './database/changes.ts'
import { openDatabase, type Database } from './database/database.ts'
import { findPendingMigrations, migrate } from './database/migrate.ts'
import { startSweeping } from './database/sweep.ts'
import { ensureDemoData, hasDemoData, type DemoData } from './demo/demo-data.ts'
import { demoRoutes } from './demo/routes.ts'
import { accessLog } from './http/access-log.ts'
import { openAssets } from './http/assets.ts'
import { cors, corsOfRefusals } from './http/cors.ts'
import { deadline, handlerDeadline } from './http/deadline.ts'
import { errorReference } from './http/error-reference.ts'
import { health, type Phase } from './http/health.ts'
import { overload } from './http/overload.ts'
import { problemResponse } from './http/problem-response.ts'
import { networkLimit, openRateLimiter } from './http/rate-limit.ts'
import { requestContext } from './http/request-context.ts'
import { securityHeaders } from './http/security-headers.ts'
import { openIdempotency } from './http/idempotency.ts'
import { openCsrf } from './login/csrf.ts'
import { homeRoute } from './login/home.ts'
import { providerPages } from './login/provider-pages.ts'
import { openViews } from './login/render.ts'
import { loginRoutes } from './login/routes.ts'
import { provePassword } from './login/sign-in.ts'
import { openThrottle } from './login/throttle.ts'
import { openManagementApi, type ManagementApi } from './management/management-api.ts'
import { openMeter } from './metering/meter.ts'
import { openMetrics, type Metrics } from './metering/metrics.ts'
import { openPlanDirectory } from './metering/plans.ts'
import { openUsage } from './metering/usage.ts'
import { endpoints } from './oauth/endpoints.ts'
import { isLimitedPath } from './oauth/limits.ts'
import { ensureOwnEntries, signalsResourceId } from './oauth/own-entries.ts'
import { redirectPostToGet } from './oauth/post-requests.ts'
import { openOAuth } from './oauth/provider.ts'
import { openRegisteredOrigins } from './oauth/registered-origins.ts'
import { onRevoked } from './revocation/revocations.ts'
import { readFeedFigures } from './signals/deliveries.ts'
import { openSignals } from './signals/signals.ts'
import { endExpiredStreams } from './signals/streams.ts'
import { openKeyEncryption } from './signing/key-encryption.ts'
import { openKeyRing } from './signing/key-ring.ts'
import { startRotation } from './signing/rotation.ts'
import { sealer, signer } from './signing/sealing.ts'
import { openSecretRing } from './signing/secret-ring.ts'

import { openAttributes } from './users/attributes.ts'
import { measureOnce, openPasswords, type Passwords } from './users/password.ts'
import { describeWorkFactor, readWorkFactor, type WorkFactor } from './users/work-factor.ts'

export interface OpenServer {
  readonly handle: RequestListener
  readonly database: Database
  /** undefined in production */
  readonly demo: DemoData | undefined
  readonly metrics: Metrics
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
    const metrics = openMetrics({
      hashing: () => passwords.stats(),
      pool: database.pool,
      feed: () => readFeedFigures(database.db),
      withProcess: config.managementPort !== undefined,
    })
    closers.unshift(onRevoked(metrics.countRevoked))
    const limiter = opened(openRateLimiter({ db: database.db, log }))
    const plans = opened(openPlanDirectory(database.db, changes))
    const meter = openMeter({ limiter, plans })
    const oauth = opened(
      openOAuth({
        config,
        database,
        changes,
        keyRing,
        secretRing,
        pages: providerPages(views),
        log,
        takeFromPlan: (clientId) => meter.take({ clientId }),
        onRefused: metrics.countRateLimited,
        onTokenIssued: metrics.countTokenIssued,
      }),
    )
    const usage = opened(openUsage({ db: database.db, log }))
    const signInContext = { db: database.db, passwords, throttle, log, onOutcome: metrics.countSignIn }
    const management = opened(
      openManagementApi({
        config,
        database,
        keyRing,
        encryption,
        cursors: signer(secretRing, 'cursors'),
        oauth,
        limiter,
        meter,
        usage,
        idempotency: openIdempotency({ db: database.db, sealer: sealer(secretRing, 'idempotency'), log }),
        passwords,
        attributes: openAttributes(config.userAttributesFile),
        provePassword: (attempt) => provePassword(signInContext, attempt),
        assetUrl: assets.url,
        onRefused: metrics.countRateLimited,
        log,
      }),
    )
    const origins = opened(openRegisteredOrigins(database.db, changes, log))
    const signals = opened(
      await openSignals({
        config,
        database,
        changes,
        keyRing,
        encryption,
        audience: signalsResourceId(config.issuer),
        jwksUri: `${config.issuer}${endpoints.jwks}`,
        phase,
        log,
        onDelivered: metrics.countDelivered,
        onPushFailed: metrics.countPushFailed,
      }),
    )

    const sweepFailed = (error: unknown) => log.warn({ error }, 'a sweep failed')
    closers.unshift(startSweeping(database.db, config.sweepSeconds, sweepFailed, [endExpiredStreams]))
    closers.unshift(startRotation({ database, encryption, config, log }))
    closers.unshift(startSealing({ db: database.db, keys: () => secretRing.all('audit'), log }))
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
      signIn: signInContext,
      demoUsers: demo === undefined ? [] : [demo.user, demo.admin],
      log,
    })
    const start = demo === undefined ? homeRoute({ issuer: config.issuer, views }) : demoRoutes({ demo, views })
    const middlewares = [
      requestContext(config),
      accessLog(log),
      metrics.middleware,
      securityHeaders(config),
      problemResponse({ issuer: config.issuer, log, renderError: (shown) => views.error(shown), methods, oauthPaths }),
      health({ phase, ping: (timeoutMs) => database.ping(timeoutMs) }), //  /health…  /version
      deadline({ edgeSeconds: config.edgeTimeoutSeconds, log }),
      cors({ appliesTo: apiPaths(management.document), isRegisteredOrigin: origins.isRegisteredOrigin }),
      corsOfRefusals({ appliesTo: isOAuthPath, isRegisteredOrigin: origins.isRegisteredOrigin }),
      signals.routes, //  /.well-known/ssf-configuration  /ssf/…  (in front of overload: its polls wait for long)
      overload(config.maxRequestsUnderWay),
      handlerDeadline({ handlerSeconds: config.handlerTimeoutSeconds, log }),
      errorReference((errors) => views.errors({ errors })), //  /docs/errors
      ...management.middlewares, //  /openapi.json  /docs…  /v1/…  /users… and the other nouns, by version header
      pages([
        assets.middleware,
        start.routes(), //  /  /demo  /demo/callback
        start.allowedMethods(),
        login.routes(), //  /interaction/:uid…  /account/…
        login.allowedMethods(),
      ]),
      networkLimit(limiter, { ...config, appliesTo: isLimitedPath, onRefused: metrics.countRateLimited }),
      redirectPostToGet, //  POST /authorize  POST /logout
      oauth.middleware, //  /authorize  /token  /userinfo  /introspect  /revoke  /logout  /par  /.well-known/…
    ]
    for (const middleware of middlewares) app.use(middleware as Middleware)
    app.on('error', (error: unknown) => log.error({ error }, 'a request failed'))

    const answer = app.callback()
    return { handle: (req, res) => void answer(req, res), database, demo, metrics, close }
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

/**
 * What programs in browsers may call: the API, its paths without a version, and its description. The protocol's
 * endpoints have the rule of their own client.
 */
function apiPaths({ paths }: ManagementApi['document']): (path: string) => boolean {
  const nouns = new Set(Object.keys(paths ?? {}).map((path) => path.split('/')[2]))
  return (path) => /^\/v\d+(\/|$)/.test(path) || path === '/openapi.json' || nouns.has(path.split('/')[1])
}

/** Where programs ask, and read errors as RFC 6749 writes them. */
const oauthPaths: readonly string[] = [
  endpoints.token,
  endpoints.userinfo,
  endpoints.introspection,
  endpoints.revocation,
  endpoints.pushed_authorization_request,
  endpoints.device_authorization,
]
const isOAuthPath = (path: string) => oauthPaths.includes(path)

/** What people look at, which is not looked for among the endpoints that programs ask. */
function pages(middlewares: readonly unknown[]): Middleware {
  const pagesOnly = compose(middlewares as Middleware[])
  return (ctx, next) => (isOAuthPath(ctx.path) ? next() : pagesOnly(ctx, next))
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
