/**
 * OAuth 2.0 and OpenID Connect, by oidc-provider: this file is the one place that configures it. A request to one of
 * its endpoints goes through `middleware`: a transaction is held ready for those that spend or revoke (token-endpoint.ts),
 * the provider does the protocol, its Adapter is ours (store.ts), and what it declines about our JWT access tokens is
 * answered by jwt-access-tokens.ts.
 *
 * The provider's keys cannot be changed, so a new one is built and swapped in when they do: requests under way finish
 * on the old one, and everything it needs to know is in the database.
 */
import compose from 'koa-compose'
import type { Context, Middleware, Next } from 'koa'
import {
  ExternalSigningKey,
  Provider,
  errors,
  type Configuration,
  type KoaContextWithOIDC,
  type Session,
} from 'oidc-provider'
import type { Logger } from 'pino'
import type { Config } from '../config.ts'
import type { Changes } from '../database/changes.ts'
import { isDatabaseUnavailable, isInFailedTransaction, type Database } from '../database/database.ts'
import { formActionOf } from '../http/security-headers.ts'
import type { KeyRing } from '../signing/key-ring.ts'
import type { SecretRing } from '../signing/secret-ring.ts'
import type { Signer } from '../signing/signing-key.ts'
import { findUserAccount } from './account.ts'
import { accessTokenClaims, checkTokenSize } from './claims.ts'
import { openClientDirectory, type ClientDirectory, type ClientEntry } from './client-directory.ts'
import { clientSecretMatches } from './clients.ts'
import { endpoints } from './endpoints.ts'
import { loadGrant } from './grants.ts'
import { openJwtAccessTokens } from './jwt-access-tokens.ts'
import { meteredProvider, type TakeFromPlan } from './limits.ts'
import { openOutgoing, type OutgoingFetch } from '../http/outgoing.ts'
import { claimsOfScopes, describeResource, findDefaultResource, openidScopes } from './scopes.ts'
import { openStore, type Store } from './store.ts'
import { answerInTransaction, findIssued, type TokenKind } from './token-endpoint.ts'
import { requestDb } from './token-transaction.ts'

/** The pages that the provider itself must show. */
export interface ProviderPages {
  error(
    ctx: Context,
    error: { readonly code: string; readonly description: string | undefined; readonly status: number },
  ): void
  logout(
    ctx: Context,
    form: {
      readonly action: string
      readonly xsrf: string
      readonly clientName: string | undefined
      /** where the browser goes afterwards: registered by the client, and checked */
      readonly redirectUri: string | undefined
    },
  ): void
  signedOut(ctx: Context, client: { readonly name: string; readonly uri: string | undefined } | undefined): void
  deviceCode(
    ctx: Context,
    form: {
      readonly action: string
      readonly xsrf: string
      readonly userCode: string | undefined
      readonly error: string | undefined
    },
  ): void
  deviceConfirm(
    ctx: Context,
    form: {
      readonly action: string
      readonly xsrf: string
      readonly userCode: string
      readonly clientName: string
      readonly clientUri: string | undefined
    },
  ): void
  deviceDone(ctx: Context, clientName: string | undefined): void
}

export interface OAuth {
  /** Answers the protocol's own endpoints; everything else goes on to `next`. */
  readonly middleware: Middleware
  readonly directory: ClientDirectory
  /** The provider of this moment: ask anew for each request. */
  provider(): Provider
  close(): Promise<void>
}

export interface OAuthParts {
  readonly config: Config
  readonly database: Database
  readonly changes: Changes
  readonly keyRing: KeyRing
  readonly secretRing: SecretRing
  readonly pages: ProviderPages
  readonly log: Logger
  readonly takeFromPlan: TakeFromPlan
  /** told of each request that a plan turned away, for the metrics */
  readonly onRefused?: (limit: string) => void
  /** told of each token that was issued, for the metrics */
  readonly onTokenIssued?: (grantType: string, kind: TokenKind) => void
}

const idTokenSeconds = 3_600
const interactionSeconds = 3_600

export function openOAuth(parts: OAuthParts): OAuth {
  const { config, database, changes, keyRing, secretRing, log } = parts
  const directory = openClientDirectory(() => requestDb(database.db), changes)
  const store = openStore({ db: database.db, directory, secretRing, settings: config })
  const outgoing = openOutgoing({ allowLoopback: !config.isProduction })
  const jwtAccessTokens = openJwtAccessTokens({ db: database.db, directory, keyRing, issuer: config.issuer })

  const build = () => {
    const provider = createProvider(parts, directory, store, outgoing.fetch)
    return { provider, answer: compose(provider.middleware) as unknown as Middleware }
  }
  let current = build()
  const rebuild = () => {
    current = build()
    log.debug('the signing keys or secrets changed: the provider was built anew')
  }
  const unsubscribe = [keyRing.onChange(rebuild), secretRing.onChange(rebuild)]

  async function middleware(ctx: Context, next: Next): Promise<void> {
    // The provider's router takes an endpoint in any case, and with a slash behind it; whatever stands around it knows
    // one spelling only.
    if (!isSpeltAsRouted(ctx.path)) return void (await next())
    // One provider answers the whole request, even when the keys change meanwhile.
    const { answer } = current
    await answerInTransaction(database.db, ctx, () => answer(ctx, next))
    await jwtAccessTokens.answerDeclined(ctx as unknown as KoaContextWithOIDC)
    setCaching(ctx, config.jwksMaxAgeSeconds)
    allowFormPost(ctx as unknown as KoaContextWithOIDC)
    answerUnavailable(ctx)
    if (parts.onTokenIssued !== undefined) {
      const { grantType, kinds } = findIssued(ctx as unknown as KoaContextWithOIDC)
      for (const kind of kinds) parts.onTokenIssued(grantType, kind)
    }
  }

  return {
    middleware: middleware as Middleware,
    directory,
    provider: () => current.provider,
    async close() {
      for (const end of unsubscribe) end()
      await jwtAccessTokens.close()
      directory.close()
      await outgoing.close()
    },
  }
}

/** In lower case, but for the id of an interaction (`/authorize/:uid`), and without a slash at its end. */
function isSpeltAsRouted(path: string): boolean {
  const fixed = path.replace(/^(\/(?:authorize|device)\/)[\w-]{21,}$/, '$1')
  return fixed === fixed.toLowerCase() && (fixed !== path || !path.endsWith('/'))
}

/** Public documents may be kept, but for less time than a new key is published ahead of its use. */
function setCaching(ctx: Context, maxAgeSeconds: number): void {
  if (ctx.status === 200 && ctx.path.startsWith('/.well-known/')) {
    ctx.set('Cache-Control', `public, max-age=${maxAgeSeconds}`)
  }
}

/**
 * The provider's own page that posts itself (response_mode=form_post, a sign-out without a session), told by the script
 * whose hash it has added: its form may go where it leads, and to where that redirects.
 */
function allowFormPost(ctx: KoaContextWithOIDC): void {
  if (typeof ctx.body !== 'string') return
  const policy = ctx.response.get('Content-Security-Policy')
  const action = /<form method="post" action="([^"]+)">/.exec(ctx.body)?.[1]
  if (!policy.includes("script-src 'sha256-") || action === undefined) return
  const next = ctx.oidc.params?.['post_logout_redirect_uri']
  const targets = [action, ...(typeof next === 'string' ? [next] : [])].map(formActionOf)
  ctx.set('Content-Security-Policy', policy.replace("form-action 'none'", `form-action ${targets.join(' ')}`))
}

/** A database that is away or busy is nobody's mistake: 503, and when to come back. */
function answerUnavailable(ctx: Context): void {
  const cause = ctx.state['serverError'] as unknown
  if (ctx.status !== 500 || !isDatabaseUnavailable(cause)) return
  const { body } = ctx
  ctx.status = 503
  ctx.set('Retry-After', '1')
  ctx.body =
    typeof body === 'object' && body !== null && 'error' in body
      ? { error: 'temporarily_unavailable', error_description: 'the database did not answer in time: try again' }
      : body
}

function createProvider(
  { config, database, keyRing, secretRing, pages, takeFromPlan, onRefused }: OAuthParts,
  directory: ClientDirectory,
  store: Store,
  fetch: OutgoingFetch,
): Provider {
  const { db } = database
  const isHttps = config.issuer.startsWith('https:')
  const cookie = { httpOnly: true, sameSite: 'lax', secure: isHttps, signed: true, overwrite: true } as const

  const configuration: Configuration = {
    adapter: store.adapter,
    jwks: { keys: keyRing.signers().map((signer) => new RingKey(signer)) },
    routes: endpoints,
    cookies: {
      keys: secretRing.all('cookies').map((secret) => secret.toString('base64url')),
      // __Host- binds a cookie to this host and path /; those of one interaction have its path (RFC 6265bis §4.1.3).
      names: isHttps
        ? { session: '__Host-session', interaction: '__Secure-interaction', resume: '__Secure-resume' }
        : { session: 'session', interaction: 'interaction', resume: 'resume' },
      long: cookie,
      short: cookie,
    },
    features: {
      // Experimental, so the provider does not start with another version of it than this one.
      externalSigningSupport: { enabled: true, ack: 'experimental-01' },
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      introspection: {
        enabled: true,
        // A public client proves nothing about itself, so it learns about its own tokens only.
        allowedPolicy: (_ctx, client, token) =>
          client.clientAuthMethod !== 'none' || token.clientId === client.clientId,
      },
      revocation: { enabled: true, allowedPolicy: (_ctx, client, token) => token.clientId === client.clientId },
      userinfo: { enabled: true },
      dPoP: { enabled: true },
      pushedAuthorizationRequests: { enabled: true },
      backchannelLogout: { enabled: true },
      deviceFlow: {
        enabled: config.deviceFlow,
        userCodeInputSource: (ctx, _form, out, error) => {
          const { xsrf, action } = formOf(ctx, _form)
          const code = error === undefined ? undefined : (out?.error ?? error.name)
          pages.deviceCode(ctx, {
            action,
            xsrf,
            userCode: ctx.oidc.params?.['user_code'] as string | undefined,
            error: code,
          })
        },
        userCodeConfirmSource: (ctx, _form, client, _device, userCode) => {
          const { xsrf, action } = formOf(ctx, _form)
          const { clientName = client.clientId, clientUri } = client
          pages.deviceConfirm(ctx, { action, xsrf, userCode, clientName, clientUri })
        },
        successSource: (ctx) => pages.deviceDone(ctx, ctx.oidc.client?.clientName),
      },
      resourceIndicators: {
        enabled: true,
        defaultResource: ((
          ctx: KoaContextWithOIDC,
          client: Parameters<typeof findDefaultResource>[2],
          oneOf?: string[],
        ) => findDefaultResource(directory, ctx, client, oneOf)) as never,
        getResourceServerInfo: (ctx, resource, client) => describeResource(directory, ctx, resource, client),
        useGrantedResource: () => true,
      },
      rpInitiatedLogout: {
        enabled: true,
        logoutSource: (ctx, form) => {
          const redirectUri = ctx.oidc.params?.['post_logout_redirect_uri']
          pages.logout(ctx, {
            ...formOf(ctx, form),
            clientName: ctx.oidc.client?.clientName,
            redirectUri: typeof redirectUri === 'string' ? redirectUri : undefined,
          })
        },
        postLogoutSuccessSource: (ctx) => {
          const { client } = ctx.oidc
          pages.signedOut(
            ctx,
            client === undefined ? undefined : { name: client.clientName ?? client.clientId, uri: client.clientUri },
          )
        },
      },
    },
    responseTypes: ['code'],
    // No implicit, no hybrid, no password grant (RFC 9700 §2.1.2, §2.4).
    scopes: [...openidScopes],
    claims: {
      acr: null,
      auth_time: null,
      iss: null,
      sid: null,
      openid: ['sub'],
      ...claimsOfScopes,
    },
    acrValues: [passwordAcr],
    clientAuthMethods: ['client_secret_basic', 'client_secret_post', 'private_key_jwt', 'none'],
    // Only S256 exists in the provider; `plain` is refused.
    pkce: { required: (_ctx, client) => client['require_pkce'] !== false },
    extraClientMetadata: { properties: ['require_pkce', 'token_version'], validator: () => undefined },
    allowOmittingSingleRegisteredRedirectUri: false,
    clockTolerance: 15,
    clientBasedCORS: (_ctx, origin, client) =>
      // An app's own scheme has the origin `null`, and so has every page in a sandbox: that one is nobody's.
      origin !== 'null' && (client.redirectUris ?? []).some((uri) => URL.parse(uri)?.origin === origin),
    enabledJWA: {
      idTokenSigningAlgValues: ['RS256'],
      clientAuthSigningAlgValues: ['RS256', 'PS256', 'ES256', 'EdDSA', 'Ed25519'],
      dPoPSigningAlgValues: ['RS256', 'PS256', 'ES256', 'EdDSA', 'Ed25519'],
    },
    findAccount: async (_ctx, id, token) => {
      const account = await findUserAccount(requestDb(db), id)
      // With a token the provider says what is wrong with it; a session whose person is gone has no answer of its own.
      if (account === undefined && token === undefined) throw new errors.LoginRequired('this person is signed out')
      return account
    },
    loadExistingGrant: (ctx) => loadGrant(db, directory, ctx),
    extraTokenClaims: (ctx, token) => accessTokenClaims(directory, ctx, token),
    formats: {
      bitsOfOpaqueRandomness: 256,
      customizers: { jwt: (_ctx, _token, jwt) => checkTokenSize(jwt.payload, config.accessTokenMaxBytes) },
    },
    // A client that may refresh gets a refresh token; offline_access decides whether it survives sign-out.
    issueRefreshToken: (_ctx, client) => client.grantTypeAllowed('refresh_token'),
    rotateRefreshToken: true,
    expiresWithSession: (_ctx, token) => !(token.scope ?? '').split(' ').includes('offline_access'),
    interactions: { url: (_ctx, interaction) => `/interaction/${interaction.uid}` },
    renderError: (ctx, out, error) => {
      const isAway = isDatabaseUnavailable(error)
      if (isAway) ctx.set('Retry-After', '1')
      ctx.status = isAway ? 503 : ctx.status
      pages.error(ctx, {
        code: isAway ? 'temporarily_unavailable' : out.error,
        description: out.error_description,
        status: ctx.status,
      })
    },
    assertJwtClientAuthClaimsAndHeader: (ctx, claims) => {
      // An assertion is for one request (RFC 7523 §3): one that lives long is a password in a URL.
      if (typeof claims['exp'] !== 'number' || claims['exp'] > Date.now() / 1_000 + maxAssertionSeconds) {
        ctx.throw(401, 'invalid_client', { error_description: 'the client assertion lives too long' })
      }
    },
    fetch: fetch as unknown as NonNullable<Configuration['fetch']>,
    ttl: {
      AccessToken: (_ctx, token) => token.resourceServer?.accessTokenTTL ?? 900,
      ClientCredentials: (_ctx, token) => token.resourceServer?.accessTokenTTL ?? 900,
      AuthorizationCode: 60,
      IdToken: idTokenSeconds,
      Interaction: interactionSeconds,
      DeviceCode: 600,
      PushedAuthorizationRequest: 60,
      // Absolute: a successor ends when its predecessor would have.
      RefreshToken: (ctx) =>
        Math.max(1, ctx?.oidc?.entities.RotatedRefreshToken?.remainingTTL ?? config.refreshTokenLifetimeSeconds),
      Grant: config.refreshTokenLifetimeSeconds + config.sessionAbsoluteSeconds,
      Session: (_ctx, session) => sessionSeconds(session, config),
    },
  }

  const MeteredProvider = meteredProvider(takeFromPlan, onRefused)
  const provider = new MeteredProvider(config.issuer, configuration)
  adjust(provider, directory, store)
  return provider
}

/**
 * A key of the ring as the provider takes one whose private half is elsewhere. Handed private JWKs, it would sign through
 * WebCrypto, which costs the main thread a good 40 µs more for each token.
 */
class RingKey extends ExternalSigningKey {
  readonly #signer: Signer

  constructor(signer: Signer) {
    super()
    this.#signer = signer
  }

  override get kid() {
    return this.#signer.publicJwk.kid
  }

  override get alg() {
    return this.#signer.publicJwk.alg
  }

  override keyObject() {
    return this.#signer.publicKey
  }

  override sign(bytes: Uint8Array) {
    return this.#signer.sign(bytes)
  }
}

/** How the person signed in, for `acr` (RFC 9068 §2.2.1). */
export const passwordAcr = 'urn:latchkey:acr:password'

const maxAssertionSeconds = 90

/** Idle time starts anew with every use; the absolute end does not move. */
function sessionSeconds(session: Session, config: Config): number {
  const now = Math.floor(Date.now() / 1_000)
  const absolute = (session.loginTs ?? now) + config.sessionAbsoluteSeconds - now
  return Math.max(1, Math.min(config.sessionIdleSeconds, absolute))
}

/** What the configuration has no word for. */
function adjust(provider: Provider, directory: ClientDirectory, store: Store): void {
  // Secrets are hashed, so the comparison is ours; the default would compare with what is stored.
  provider.Client.prototype.compareClientSecret = async function compareClientSecret(candidate) {
    const client = await directory.findClient(this.clientId)
    return client !== undefined && clientSecretMatches(client.secrets, candidate, new Date())
  }
  keepClients(provider, store)
  // Every session has one `sid`, the same in ID, access and logout tokens of all clients.
  provider.Client.prototype.includeSid = () => true
  provider.Session.prototype.ensureClientContainer = function ensureClientContainer(clientId: string) {
    if (this.sidFor(clientId) === undefined) this.sidFor(clientId, this.uid)
  }
  // A session that ended while a request was under way is not saved: not by that request's own error handling either.
  const save = Reflect.get(provider.Session.prototype, 'save')
  provider.Session.prototype.save = async function saveUnlessEnded(ttl) {
    try {
      return await save.call(this, ttl)
    } catch (error) {
      if (error instanceof errors.LoginRequired) Object.assign(this, { destroyed: true })
      // The request has failed already, and what failed first is what it is answered with.
      if (isInFailedTransaction(error)) return ''
      throw error
    }
  }
  // Somebody's session ends in token-endpoint.ts: with its families and the revocation, or not at all.
  const destroy = Reflect.get(provider.Session.prototype, 'destroy')
  provider.Session.prototype.destroy = async function destroyIfNobodys() {
    if (this.accountId === undefined) return destroy.call(this)
    Object.assign(this, { destroyed: true })
  }
  // One INSERT decides; the default looks first and writes later, so that parallel replays pass.
  Object.defineProperty(provider.ReplayDetection, 'unique', {
    value: (issuer: string, jti: string, exp: number) => store.isFirstUse(issuer, jti, exp),
  })
  // The counter by which "sign out everywhere" kills sessions and families travels with them.
  for (const model of [provider.Session, provider.Grant] as unknown as { IN_PAYLOAD: string[] }[]) {
    const members = [...model.IN_PAYLOAD, 'signInVersion']
    Object.defineProperty(model, 'IN_PAYLOAD', { get: () => members })
  }
  // A client assertion is for the issuer and nothing else (draft-ietf-oauth-rfc7523bis; CVE-2025-27370).
  provider.OIDCContext.prototype.clientJwtAuthExpectedAudience = function clientJwtAuthExpectedAudience() {
    return new Set([this.issuer])
  }

  provider.on('server_error', (ctx, error) => {
    ctx.state['serverError'] = error
  })
  // What the client is told is general; the log says which check it was.
  const remember = (ctx: KoaContextWithOIDC, error: errors.OIDCProviderError) => {
    ctx.state['errorMessage'] = `${error.error}: ${error.error_detail ?? error.error_description ?? ''}`
  }
  provider.on('authorization.error', remember)
  provider.on('grant.error', remember)
  provider.on('userinfo.error', remember)
  provider.on('introspection.error', remember)
  provider.on('revocation.error', remember)
  provider.on('pushed_authorization_request.error', remember)
  provider.on('end_session.error', remember)
}

/**
 * The provider would hash a client's metadata for every request, and validate it anew where more than a hundred clients
 * take turns. An entry of the directory is another one as soon as its row changes, so what was made of it is kept.
 */
function keepClients({ Client }: Provider, store: Store): void {
  const make = Client.find.bind(Client)
  const made = new WeakMap<ClientEntry, Promise<Awaited<ReturnType<typeof make>>>>()
  Client.find = async function find(id: string) {
    const entry = typeof id === 'string' ? await store.findActiveClient(id) : undefined
    if (entry === undefined) return undefined
    const known = made.get(entry)
    if (known !== undefined) return known
    const client = make(id)
    made.set(entry, client)
    // A failure says something about this moment, not about the client.
    client.catch(() => made.delete(entry))
    return client
  }
}

/** The provider hands over a form; our page makes its own from the two things in it. */
function formOf(ctx: KoaContextWithOIDC, form: string): { action: string; xsrf: string } {
  const action = /action="([^"]+)"/.exec(form)?.[1] ?? ctx.oidc.urlFor('end_session_confirm')
  const secret = (ctx.oidc.session?.state as { secret?: string } | undefined)?.secret
  return { action, xsrf: secret ?? '' }
}
