/**
 * The guard itself: one object a service makes at start-up and asks on every request. It owns the configuration, and
 * puts the parts together: the request's credentials (`request.ts`), the token (`access-token.ts` with `issuer.ts`),
 * what was revoked (`revocation/`), its holder (`dpop.ts`), the decision (`policy/`), and tells the audit hook and the
 * counters what came of it. How a framework's request and answer look is left to the adapters (`koa.ts`, `express.ts`,
 * …, through `visit.ts`).
 */
import { AccessTokenVerifier } from './access-token.ts'
import type { Auth } from './caller.ts'
import { DpopVerifier } from './dpop.ts'
import {
  accessDenied,
  GuardError,
  insufficientAuthentication,
  invalidToken,
  missingCredentials,
  notFound,
  unavailable,
} from './errors.ts'
import type { AuthenticationRequirement, ErrorPresentation, GuardReply } from './errors.ts'
import type {
  AuditEvent,
  AuthorizeOptions,
  GuardHealth,
  GuardMetrics,
  GuardOptions,
  Policies,
  ResourceLoader,
} from './guard-options.ts'
import { Issuer } from './issuer.ts'
import type { Fetch, TrustedIssuer } from './issuer.ts'
import type { Decision, Plan, Resource } from './policy/decision.ts'
import { watchPolicies } from './policy/watch-policies.ts'
import type { PolicyWatch } from './policy/watch-policies.ts'
import { fromWebRequest, readCredentials, requestIdOf } from './request.ts'
import type { GuardRequest } from './request.ts'
import { metadataAddress } from './resource-metadata.ts'
import { openRevocation } from './revocation/open-revocation.ts'
import type { OpenRevocation } from './revocation/open-revocation.ts'
import { contextBuilder } from './rule/context.ts'
import type { RequestContext, RequestFacts } from './rule/context.ts'
import { isAlgorithm } from './verification-key.ts'
import type { Algorithm } from './verification-key.ts'

/**
 * Makes a guard. It begins to load keys at once and waits for nothing: the first request that needs a key waits for
 * it. One guard serves the whole process.
 *
 * @throws TypeError when an option cannot be meant: an unsafe address, no audience, an unknown algorithm
 * @throws PolicyError when the policy file does not load: a service must not start without its policies
 * @example
 * ```ts
 * import { createGuard } from '@latchkey/guard'
 *
 * export const guard = createGuard({
 *   issuer: 'https://id.example.com',
 *   audience: 'https://api.example.com/models',
 * })
 * ```
 */
export function createGuard(options: GuardOptions): Guard {
  return new Guard(options)
}

/** Made by `createGuard`. */
export class Guard {
  /** This service's published name. */
  readonly audience: string
  /** The issuers it trusts. */
  readonly issuers: readonly string[]
  readonly dpopMode: 'off' | 'optional' | 'required'
  /** For DPoP proofs; empty when DPoP is off. */
  readonly dpopAlgorithms: readonly Algorithm[]
  /** Where clients find the metadata of this service (RFC 9728), if anywhere. */
  readonly metadataAddress: string | undefined

  readonly #options: GuardOptions
  readonly #now: () => number
  readonly #issuers: readonly Issuer[]
  readonly #verifier: AccessTokenVerifier
  readonly #dpop: DpopVerifier | undefined
  readonly #presentation: ErrorPresentation
  readonly #requestContext: (request: RequestFacts) => RequestContext
  readonly #refused: Record<string, number> = {}
  readonly #watch: PolicyWatch | undefined
  readonly #revocation: OpenRevocation
  #authenticated = 0
  #decisionsAllowed = 0
  #decisionsDenied = 0
  #auditFailures = 0
  #policyReloadsRefused = 0

  constructor(options: GuardOptions) {
    this.#options = options
    this.#now = options.now ?? Date.now
    const audiences = [options.audience].flat()
    const [audience] = audiences
    if (audience === undefined || audiences.includes('')) throw new TypeError('A guard needs an audience: its own name')
    this.audience = audience

    const request: Fetch = options.fetch ?? ((address, init) => fetch(address, init))
    const trusted = trustedIssuers(options).map((settings) => ({
      settings,
      issuer: new Issuer(settings, request, this.#now),
    }))
    this.#issuers = trusted.map(({ issuer }) => issuer)
    this.issuers = this.#issuers.map((issuer) => issuer.name)
    const tolerance = within(options.clockToleranceSeconds ?? 5, 0, 30, 'clockToleranceSeconds')
    const algorithms = new Set(knownAlgorithms(options.algorithms ?? ['RS256']))
    const maxLifetimeSeconds = within(options.maxLifetimeSeconds ?? 86_400, 1, Infinity, 'maxLifetimeSeconds')
    this.#revocation = openRevocation(options.revocation, trusted, {
      fetch: request,
      now: this.#now,
      clock: options.now ?? (() => performance.now()),
      algorithms,
      maxLifetimeSeconds,
    })
    this.#verifier = new AccessTokenVerifier(
      {
        audiences: new Set(audiences),
        algorithms,
        types: new Set((options.tokenTypes ?? ['at+jwt']).map((type) => type.toLowerCase())),
        requiredClaims: options.requiredClaims ?? ['jti', 'client_id'],
        clockToleranceSeconds: tolerance,
        maxLifetimeSeconds,
        maxTokenBytes: within(options.maxTokenBytes ?? 16_384, 1, 1_048_576, 'maxTokenBytes'),
        cacheEntries: within(options.cacheEntries ?? 10_000, 0, 10_000_000, 'cacheEntries'),
      },
      new Map(this.#issuers.map((issuer) => [issuer.name, issuer])),
      this.#revocation.check,
      this.#now,
    )

    const dpop = typeof options.dpop === 'string' ? { mode: options.dpop } : (options.dpop ?? {})
    const publicUrl = dpop.publicUrl ?? originOf(audience)
    if (publicUrl === undefined && options.dpop !== undefined && dpop.mode !== 'off') {
      throw new TypeError('dpop needs publicUrl: how clients reach this service, as the audience is not its address')
    }
    this.dpopMode = publicUrl === undefined ? 'off' : (dpop.mode ?? 'optional')
    this.#dpop =
      this.dpopMode === 'off' || publicUrl === undefined
        ? undefined
        : new DpopVerifier(
            { ...dpop, ...(dpop.algorithms && { algorithms: knownAlgorithms(dpop.algorithms) }) },
            publicUrl,
            tolerance,
            this.#now,
          )
    this.dpopAlgorithms = this.#dpop?.algorithms ?? []
    this.metadataAddress =
      options.resourceMetadata === false ? undefined : (options.resourceMetadata ?? metadataAddress(audience))
    this.#presentation = {
      schemes: this.dpopMode === 'off' ? ['Bearer'] : this.dpopMode === 'required' ? ['DPoP'] : ['Bearer', 'DPoP'],
      dpopAlgorithms: this.dpopAlgorithms,
      ...(options.realm === undefined ? {} : { realm: options.realm }),
      ...(this.metadataAddress === undefined ? {} : { resourceMetadata: this.metadataAddress }),
      ...(options.documentation === undefined ? {} : { documentation: options.documentation }),
    }
    if (typeof options.policies === 'string') {
      const path = options.policies
      const onRefused = (): void => {
        this.#policyReloadsRefused += 1
      }
      this.#watch = watchPolicies({ path }, { onRefused })
    }
    this.#requestContext = contextBuilder({ ...options.context, now: () => new Date(this.#now()) })
    for (const issuer of this.#issuers) issuer.start()
    this.#revocation.start()
  }

  /**
   * Who sent this request?
   *
   * @param request - a Web `Request`, or any other by way of `GuardRequest`
   * @param options - `optional`: a request without any credentials is nobody's (`undefined`); a bad token is still refused
   * @throws GuardError 400, 401, or 503 when it cannot be known
   * @example
   * ```ts
   * import type { Guard } from '@latchkey/guard'
   *
   * export async function whoami(guard: Guard, request: Request): Promise<Response> {
   *   const auth = await guard.authenticate(request)
   *   return Response.json({ id: auth.subject.id })
   * }
   * ```
   */
  authenticate(request: Request | GuardRequest, options?: { readonly optional?: false }): Promise<Auth>
  authenticate(request: Request | GuardRequest, options: { readonly optional?: boolean }): Promise<Auth | undefined>
  async authenticate(
    request: Request | GuardRequest,
    options: { readonly optional?: boolean } = {},
  ): Promise<Auth | undefined> {
    const facts = request instanceof Request ? fromWebRequest(request) : request
    let scheme: 'Bearer' | 'DPoP' | undefined
    try {
      const credentials = readCredentials(facts)
      if (credentials === undefined) {
        if (options.optional === true) return undefined
        throw missingCredentials()
      }
      const { token } = credentials
      scheme = credentials.scheme
      const verified = this.#verifier.verify(token)
      const { claims, subject, scopes, boundTo } = verified instanceof Promise ? await verified : verified
      if (boundTo !== undefined || scheme === 'DPoP' || this.dpopMode === 'required') {
        await this.#assertHolder(facts, token, scheme, boundTo)
      }
      this.#authenticated += 1
      return { subject, scopes, claims, token, expiresAt: new Date(claims.exp * 1000) }
    } catch (error) {
      throw this.#presented(error, scheme)
    }
  }

  /**
   * Is this token good here? For looking at a token, as an introspection endpoint does, not for letting anybody in:
   * whether whoever sent it holds the key it is bound to is not asked.
   *
   * @throws GuardError 400 or 401, or 503 when it cannot be known
   */
  async inspect(token: string): Promise<Auth> {
    try {
      const { claims, subject, scopes } = await this.#verifier.verify(token)
      return { subject, scopes, claims, token, expiresAt: new Date(claims.exp * 1000) }
    } catch (error) {
      throw this.#presented(error, undefined)
    }
  }

  /**
   * May this caller do that to this resource?
   *
   * @param context - what policies may ask besides: added to the guard's own context. An `ip` is looked up in `networks`.
   * @returns the decision, with the policy that took it
   */
  async can(
    auth: Auth,
    action: string,
    resource: Resource,
    context?: Readonly<Record<string, unknown>>,
  ): Promise<Decision> {
    return this.#decide(auth, action, resource, this.#contextOf(undefined, context))
  }

  /**
   * The same question, answered by going on or not.
   *
   * @throws GuardError 403 when the decision is no
   */
  async assert(
    auth: Auth,
    action: string,
    resource: Resource,
    context?: Readonly<Record<string, unknown>>,
  ): Promise<void> {
    const decision = this.#decide(auth, action, resource, this.#contextOf(undefined, context))
    if (!decision.allowed) throw this.#denied(decision)
  }

  /**
   * Which resources of a type may this caller act on? The answer is a plan (`all`, `none`, or a condition), handed to
   * `compile`, which makes of it whatever your store understands.
   *
   * @param compile - by default the plan itself is returned
   * @example
   * ```ts
   * import type { Auth, Guard } from '@latchkey/guard'
   * import { toWhere } from '@latchkey/guard/kysely'
   * import type { AttributeMap } from '@latchkey/guard/kysely'
   *
   * export const visibleModels = (guard: Guard, auth: Auth, columns: AttributeMap) =>
   *   guard.filter(auth, 'read', 'model', (plan) => toWhere(plan, columns))
   * ```
   */
  filter(auth: Auth, action: string, resourceType: string): Plan
  filter<T>(
    auth: Auth,
    action: string,
    resourceType: string,
    compile: (plan: Plan) => T,
    context?: Readonly<Record<string, unknown>>,
  ): T
  filter(
    auth: Auth,
    action: string,
    resourceType: string,
    compile: (plan: Plan) => unknown = (plan) => plan,
    context?: Readonly<Record<string, unknown>>,
  ): unknown {
    const input = { subject: auth.subject, action, resourceType, context: this.#contextOf(undefined, context) }
    const plan: Plan = this.#policies()?.plan(input) ?? { kind: 'none' }
    this.#audit({ kind: 'filter', ...this.#caller(auth), action, resourceType, outcome: plan.kind })
    return compile(plan)
  }

  /**
   * Loads the resource a request is about and decides about it: what the adapters' `authorize` does.
   *
   * @returns the resource, so that the handler need not load it again
   * @throws GuardError 404 when there is none, 403 when the decision is no, 503 when loading failed. An error of the
   * loader that has a `status` of its own below 500 is passed on as it is.
   */
  async authorize(
    auth: Auth,
    action: string,
    load: ResourceLoader,
    options: AuthorizeOptions & { readonly request?: GuardRequest } = {},
  ): Promise<Resource> {
    const resource = await loaded(load)
    if (resource === undefined) throw notFound()
    const context = this.#contextOf(options.request, undefined)
    const decision = this.#decide(auth, action, resource, context)
    if (decision.allowed) return resource
    if (options.hideExistence === true) {
      const readAction = options.readAction ?? 'read'
      const known = readAction !== action && this.#decide(auth, readAction, resource, context).allowed
      if (!known) throw notFound(describeDenial(decision))
    }
    throw this.#denied(decision)
  }

  /**
   * Was the sign-in behind this token strong and recent enough (RFC 9470)?
   *
   * @throws GuardError 401 `insufficient_user_authentication`, telling the client what to ask of the user
   */
  requireAuthentication(auth: Auth, requirement: AuthenticationRequirement): void {
    const { acr, auth_time: signedInAt } = auth.claims
    const { acrValues, maxAgeSeconds } = requirement
    if (acrValues !== undefined && (typeof acr !== 'string' || !acrValues.includes(acr))) {
      throw insufficientAuthentication(requirement)
    }
    // A token that does not say when the user signed in says nothing about how recent it was.
    if (maxAgeSeconds !== undefined && (signedInAt ?? 0) + maxAgeSeconds < this.#now() / 1000) {
      throw insufficientAuthentication(requirement)
    }
  }

  /**
   * How a refusal is to be answered, and tells the audit hook of it: what the adapters send.
   *
   * @throws the error itself, when it is no `GuardError`
   */
  refuse(error: unknown, request: GuardRequest): GuardReply {
    if (!(error instanceof GuardError)) throw error
    if (error.presentation.schemes === undefined) {
      // A rule or a handler made it, which cannot know how this guard presents itself.
      const usesDpop = /^dpop /i.test(request.header('authorization')[0] ?? '')
      this.#presented(error, usesDpop ? 'DPoP' : 'Bearer')
    }
    const requestId = requestIdOf(request)
    const { status, code, reason, debug } = error
    const at = new Date(this.#now())
    const { method, ip } = request
    this.#audit({ kind: 'refusal', at, requestId, method, ip, status, code, reason, debug })
    const reply = error.reply({ requestId, accept: request.header('accept')[0], now: at.getTime() })
    return { ...reply, headers: { ...reply.headers, 'X-Request-Id': requestId } }
  }

  /** How the guard is doing, for a health page or an alarm. */
  health(): GuardHealth {
    const now = this.#now()
    const issuers = this.#issuers.map((issuer) => issuer.health())
    const usable = this.#issuers.filter((issuer) => issuer.isUsable(now)).length
    const refused = this.#watch?.refused
    const { standing } = this.#revocation
    const isDegraded =
      usable < issuers.length ||
      issuers.some((issuer) => issuer.lastError !== undefined) ||
      standing !== 'ok' ||
      refused !== undefined
    return {
      status: usable === 0 || standing === 'unavailable' ? 'unavailable' : isDegraded ? 'degraded' : 'ok',
      issuers,
      policyVersion: this.#policies()?.version,
      policyError: refused?.message,
      revocation: this.#revocation.health(),
    }
  }

  /** What was counted so far. */
  metrics(): GuardMetrics {
    return {
      authenticated: this.#authenticated,
      refused: { ...this.#refused },
      cacheHits: this.#verifier.cacheHits,
      cacheMisses: this.#verifier.cacheMisses,
      keyFetches: this.#issuers.reduce((sum, issuer) => sum + issuer.fetches, 0),
      decisionsAllowed: this.#decisionsAllowed,
      decisionsDenied: this.#decisionsDenied,
      auditFailures: this.#auditFailures,
      policyReloadsRefused: this.#policyReloadsRefused,
      revocation: this.#revocation.check?.metrics?.(),
      outbound: this.#options.outbound?.metrics(),
    }
  }

  /**
   * Ends what was plugged in and stops following the policy file and the feed of revocations. A service that has a feed
   * ends with this: a poll that waits for news keeps the process alive.
   */
  async close(): Promise<void> {
    this.#watch?.close()
    await this.#revocation.close()
  }

  /** A refusal, counted, and presented as this guard presents its refusals. */
  #presented(error: unknown, used: 'Bearer' | 'DPoP' | undefined): unknown {
    if (error instanceof GuardError) {
      this.#refused[error.reason] = (this.#refused[error.reason] ?? 0) + 1
      error.presentation = used === undefined ? this.#presentation : { ...this.#presentation, used }
    }
    return error
  }

  /** RFC 9449 §7: a bound token only with its proof and only as DPoP; an unbound one only as Bearer. */
  async #assertHolder(
    request: GuardRequest,
    token: string,
    scheme: 'Bearer' | 'DPoP',
    boundTo: string | undefined,
  ): Promise<void> {
    if (boundTo === undefined) throw invalidToken('not_bound', 'the token is not bound to a key')
    if (this.#dpop === undefined) throw invalidToken('binding', 'the token is bound to a key, and DPoP is off')
    if (scheme !== 'DPoP') throw invalidToken('binding', 'a bound token sent as a plain bearer token')
    await this.#dpop.verify(request, token, boundTo)
  }

  #decide(auth: Auth, action: string, resource: Resource, context: Readonly<Record<string, unknown>>): Decision {
    const { subject } = auth
    const decision: Decision = this.#policies()?.decide({ subject, action, resource, context }) ?? {
      allowed: false,
      reason: 'no-matching-policy',
      errors: [],
    }
    if (decision.allowed) this.#decisionsAllowed += 1
    else this.#decisionsDenied += 1
    const { type, id } = resource
    this.#audit({ kind: 'decision', ...this.#caller(auth), action, resource: { type, id }, decision })
    return decision
  }

  #policies(): Policies | undefined {
    const { policies } = this.#options
    return typeof policies === 'string' ? this.#watch?.current : policies
  }

  /** Who asked, as the audit tells it. */
  #caller({ subject, claims }: Auth): Pick<AuditEvent & { kind: 'filter' }, 'at' | 'subject' | 'act' | 'clientId'> {
    const { type, id, issuer, act } = subject
    return { at: new Date(this.#now()), subject: { type, id, issuer }, act, clientId: claims.client_id }
  }

  #denied(decision: Decision): GuardError {
    return accessDenied('policy', describeDenial(decision), this.#options.exposeReason === true ? decision : undefined)
  }

  #contextOf(
    request: GuardRequest | undefined,
    more: Readonly<Record<string, unknown>> | undefined,
  ): Readonly<Record<string, unknown>> {
    const { context } = this.#options
    const ip = request?.ip ?? more?.['ip']
    const requestType = request && context?.requestType?.(request)
    return {
      ...this.#requestContext({ ip: typeof ip === 'string' ? ip : undefined, requestType }),
      ...context?.more?.(request),
      ...more,
    }
  }

  #audit(event: AuditEvent): void {
    const { audit } = this.#options
    if (audit === undefined) return
    try {
      const outcome: unknown = audit(event)
      if (outcome instanceof Promise) {
        outcome.catch(() => {
          this.#auditFailures += 1
        })
      }
    } catch {
      // A full log disk must not decide who gets in; the counter tells whoever watches.
      this.#auditFailures += 1
    }
  }
}

function describeDenial({ reason, policy, errors }: Decision): string {
  const faults = errors.map((fault) => `${fault.policy}: ${fault.message}`)
  return [policy === undefined ? reason : `${reason} ${policy}`, ...faults].join('; ')
}

async function loaded(load: ResourceLoader): Promise<Resource | undefined> {
  try {
    return (await load()) ?? undefined
  } catch (error) {
    if (error instanceof GuardError) throw error
    const { status, statusCode } = Object(error) as { status?: unknown; statusCode?: unknown }
    const own = status ?? statusCode
    if (typeof own === 'number' && own >= 400 && own < 500) throw error
    throw unavailable('resource', 1, 'the resource could not be loaded', error)
  }
}

function trustedIssuers({ issuer, issuers }: GuardOptions): readonly TrustedIssuer[] {
  if ((issuer === undefined) === (issuers === undefined)) throw new TypeError('A guard needs issuer, or issuers')
  const list = issuers ?? (typeof issuer === 'string' ? [{ issuer }] : issuer === undefined ? [] : [issuer])
  if (list.length === 0) throw new TypeError('A guard needs an issuer whose tokens it accepts')
  if (new Set(list.map((one) => one.issuer)).size < list.length) throw new TypeError('An issuer is named twice')
  if (list.length > 1) {
    // Two issuers' alice are two people; which is which must be said, not guessed.
    const prefixes = list.map((one) => one.subjectPrefix)
    if (prefixes.includes(undefined) || new Set(prefixes).size < list.length) {
      throw new TypeError("With several issuers each needs a subjectPrefix of its own (one may be '')")
    }
  }
  return list
}

function knownAlgorithms(algorithms: readonly Algorithm[]): readonly Algorithm[] {
  const strange = algorithms.find((algorithm) => !isAlgorithm(algorithm))
  if (strange !== undefined || algorithms.length === 0) throw new TypeError(`${strange} is no algorithm to accept`)
  return algorithms
}

function within(value: number, least: number, most: number, name: string): number {
  if (!(value >= least && value <= most)) throw new TypeError(`${name} must be from ${least} to ${most}, not ${value}`)
  return value
}

function originOf(audience: string): string | undefined {
  return /^https?:\/\//.test(audience) && URL.canParse(audience) ? new URL(audience).origin : undefined
}
