/**
 * The management API: people, clients, resources, roles, sessions, grants, keys, plans and the audit record, over HTTP.
 * It is a resource like any other (`{issuer}/v1`), behind the guard that every resource uses. This room puts it together:
 * which endpoints there are (each subject declares its own), which versions, who calls, and the document of it all.
 */
import type { Middleware } from 'koa'
import type { Logger } from 'pino'
import { roleRoutes } from '../access/routes.ts'
import type { Config } from '../config.ts'
import type { Database } from '../database/database.ts'
import { apiMiddlewares } from '../http/api.ts'
import type { ApiVersion } from '../http/api-version.ts'
import { type CursorSigner } from '../http/cursor.ts'
import type { Endpoint } from '../http/endpoint.ts'
import { bodyTag, matchesNone } from '../http/etag.ts'
import type { Idempotency } from '../http/idempotency.ts'
import { describeApi, type OpenApiDocument } from '../http/openapi.ts'
import { isRead } from '../http/problem-response.ts'
import { limitNetwork, rateLimitExceeded, rateLimitHeaders, type RateLimiter } from '../http/rate-limit.ts'
import type { Meter } from '../metering/meter.ts'
import { meteringRoutes } from '../metering/routes.ts'
import type { Usage } from '../metering/usage.ts'
import { clientRoutes } from '../oauth/client-routes.ts'
import { managementPermissions, managementResourceId } from '../oauth/own-entries.ts'
import type { OAuth } from '../oauth/provider.ts'
import { resourceRoutes } from '../oauth/resource-routes.ts'
import { sessionRoutes } from '../oauth/session-routes.ts'
import { openOwnGuard } from '../revocation/own-guard.ts'
import type { KeyEncryption } from '../signing/key-encryption.ts'
import type { KeyRing } from '../signing/key-ring.ts'
import { userRoutes, type UserRoutesParts } from '../users/routes.ts'
import { auditRoutes } from './audit-routes.ts'
import { openCallers, type ManagementCaller } from './caller.ts'
import { docsPage } from './docs-page.ts'
import { keyRoutes } from './key-routes.ts'

/** Of the document, by semantic versioning: raised with every change of it. */
export const documentVersion = '1.0.0'

const apiVersion: ApiVersion = { version: '1', since: '1.0.0' }

export interface ManagementApiParts extends Pick<UserRoutesParts, 'passwords' | 'attributes' | 'provePassword'> {
  readonly config: Config
  readonly database: Database
  readonly keyRing: KeyRing
  readonly encryption: KeyEncryption
  readonly cursors: CursorSigner
  readonly oauth: OAuth
  readonly limiter: RateLimiter
  readonly meter: Meter
  readonly usage: Usage
  readonly idempotency: Idempotency
  /** of a picture or stylesheet of the pages */
  readonly assetUrl: (name: string) => string
  /** told of every refusal by a limit, for the metrics */
  readonly onRefused: (limit: string) => void
  readonly log: Logger
}

export interface ManagementApi {
  readonly middlewares: readonly Middleware[]
  readonly document: OpenApiDocument
  close(): Promise<void>
}

export function openManagementApi(parts: ManagementApiParts): ManagementApi {
  const { config, database, keyRing, oauth } = parts
  const { issuer } = config
  const resource = managementResourceId(issuer)
  const endpoints = listEndpoints(parts)
  const document = describeManagementApi(issuer, endpoints)
  const guard = openOwnGuard({
    db: database.db,
    issuer,
    audience: resource,
    keys: () => keyRing.publicJwks(),
    onKeysChange: (listener) => keyRing.onChange(listener),
    resourceMetadata: `${issuer}${metadataPath}`,
  })
  const authenticate = openCallers({ db: database.db, guard, directory: oauth.directory, resource })
  return {
    document,
    middlewares: [
      describing(issuer, document),
      docsPage({ issuer, resource, document, logoUrl: parts.assetUrl('logo.svg') }), //  /docs…
      ...apiMiddlewares({
        db: database.db,
        endpoints,
        versions: [apiVersion],
        authenticate,
        limitNetwork: limitNetwork(parts.limiter, { ...config, onRefused: parts.onRefused }),
        async limitCaller(caller, ctx) {
          const { apiKey } = caller as ManagementCaller
          const { verdicts, refusal } = await parts.meter.take({ clientId: caller.clientId, apiKey })
          const headers = rateLimitHeaders(verdicts)
          if (refusal === undefined) return headers
          // As the token endpoint counts and logs it.
          const limit = verdicts.find(({ verdict }) => verdict === refusal)?.name ?? 'plan'
          ctx.state.rateLimited = limit
          parts.onRefused(limit)
          throw rateLimitExceeded(refusal, headers)
        },
        idempotency: parts.idempotency,
        onAnswer: (answer) => parts.usage.record(answer),
      }),
    ],
    close: () => guard.close(),
  }
}

/** Every operation, in the order of the document. */
export function listEndpoints(parts: ManagementApiParts): readonly Endpoint[] {
  const { config, cursors, keyRing, encryption, oauth, log } = parts
  const { rsaBits, keyPublishAheadSeconds: publishAheadSeconds } = config
  const onUnreachable = (clientId: string, error: unknown) =>
    log.warn({ client_id: clientId, error_message: String(error) }, 'a client was not told of a sign-out')
  return [
    ...userRoutes(parts),
    ...roleRoutes({ cursors }),
    ...sessionRoutes({ issuer: config.issuer, cursors, provider: () => oauth.provider(), onUnreachable }),
    ...clientRoutes({ cursors }),
    ...resourceRoutes({ issuer: config.issuer, cursors }),
    ...keyRoutes({ keyRing, encryption, rsaBits, publishAheadSeconds }),
    ...meteringRoutes({ cursors }),
    ...auditRoutes({ cursors }),
  ]
}

function describeManagementApi(issuer: string, endpoints: readonly Endpoint[]): OpenApiDocument {
  return describeApi({
    issuer,
    version: documentVersion,
    apiVersion,
    title: 'Latchkey management API',
    description,
    endpoints,
    scopes: Object.fromEntries(managementPermissions),
    tags: {
      Users: 'People: who they are, and whether they may sign in',
      Roles: 'What people may do, by name, and who has which',
      Sessions: 'Who is signed in, and the end of it',
      Grants: 'What applications may do for people',
      Clients: 'Registered applications and their secrets',
      Resources: 'The APIs that access tokens are for',
      Keys: 'What tokens are signed with',
      Plans: 'How often clients may call',
      'API keys': 'For callers that cannot do OAuth',
      Usage: 'Who calls which version of this API',
      Audit: 'Who did what, as whom',
    },
  })
}

const description = `People, applications, the APIs they use, and who may do what.

Send an access token for the resource \`{issuer}/v1\` as \`Authorization: Bearer …\`; its scopes are named at each operation.
Lists come in pages, by \`limit\` and \`offset\` or by \`cursor\`. Changes honour \`If-Match\`; POST and PATCH honour
\`Idempotency-Key\`. Refusals have one body, whose codes are listed at \`/docs/errors\`; a page for whoever
prefers \`text/html\`, such as a browser. It is also that of 404 where there is no such path, and of 405, with \`Allow\`, where
a path has no such method.`

/** RFC 9728 §3.1: before the path of the resource. */
const metadataPath = '/.well-known/oauth-protected-resource/v1'

/** The documents about the API, which everybody may read. */
function describing(issuer: string, document: OpenApiDocument): Middleware {
  const text = JSON.stringify(document)
  const metadata = JSON.stringify({
    resource: managementResourceId(issuer),
    authorization_servers: [issuer],
    scopes_supported: managementPermissions.map(([permission]) => permission),
    bearer_methods_supported: ['header'],
    dpop_signing_alg_values_supported: ['RS256', 'PS256', 'ES256', 'EdDSA'],
    resource_documentation: `${issuer}/docs`,
  })
  return function describing(ctx, next) {
    const isDocument = ctx.path === '/openapi.json'
    if (!isDocument && ctx.path !== metadataPath) return next()
    ctx.state['endpoint'] = ctx.path
    if (!isRead(ctx)) return undefined
    const body = isDocument ? text : metadata
    const tag = bodyTag(body)
    ctx.set({ ETag: tag, 'Cache-Control': 'public, no-cache' })
    if (matchesNone(ctx.get('If-None-Match'), tag)) {
      ctx.body = body
      ctx.type = 'application/json'
    } else ctx.status = 304
    return undefined
  }
}
