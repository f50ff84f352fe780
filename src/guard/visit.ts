/**
 * One request on its way through a framework: which guard let it in, who sent it. Every adapter keeps a visit for each
 * request, so that a check further down the route needs no arguments but its own. The adapters translate; what happens
 * is decided here and in `guard.ts`, once for all of them.
 */
import type { Auth } from './caller.ts'
import { missingCredentials } from './errors.ts'
import type { AuthenticationRequirement, GuardReply } from './errors.ts'
import type { Guard } from './guard.ts'
import type { AuthorizeOptions, ResourceLoader } from './guard-options.ts'
import type { Resource } from './policy/decision.ts'
import type { GuardRequest } from './request.ts'
import { resourceMetadata } from './resource-metadata.ts'
import type { ResourceMetadataOptions } from './resource-metadata.ts'
import { requireAnyScope, requireRole, requireScopes } from './rule/requirements.ts'

/** How an adapter's `authenticate` treats requests without credentials. */
export interface AuthenticateOptions {
  /** Let requests without any credentials pass, as nobody. A bad token is refused all the same. @defaultValue false */
  readonly optional?: boolean
}

interface Visit {
  readonly guard: Guard
  readonly request: GuardRequest
  auth: Auth | undefined
  resource: Resource | undefined
}

/** By the framework's own object for the request, which lives as long as the request does. */
const visits = new WeakMap<object, Visit>()

/** Authenticates a request and remembers who sent it. */
export async function admit(
  guard: Guard,
  key: object,
  request: GuardRequest,
  options: AuthenticateOptions = {},
): Promise<Auth | undefined> {
  const visit: Visit = { guard, request, auth: undefined, resource: undefined }
  visits.set(key, visit)
  visit.auth = await guard.authenticate(request, options)
  return visit.auth
}

/** A check on the caller alone: passes or throws. */
export type Rule = (auth: Auth, guard: Guard) => void

/** Runs one rule on the caller. @throws GuardError 401 for nobody, or whatever the rule throws */
export function check(key: object, rule: Rule): void {
  rule(callerOf(key), visitOf(key).guard)
}

/** The rules a route can name, as steps of some framework. */
export interface RuleSteps<Step> {
  /** Lets pass whoever has all of these scopes. */
  readonly requireScopes: (...scopes: string[]) => Step
  /** Lets pass whoever has one of these scopes. */
  readonly requireAnyScope: (...scopes: string[]) => Step
  /** Lets pass whoever has one of these roles. */
  readonly requireRole: (...roles: string[]) => Step
  /** Lets pass whoever signed in strongly and recently enough (RFC 9470). */
  readonly requireAuthentication: (requirement: AuthenticationRequirement) => Step
}

/** @param stepOf - makes a step of a rule */
export function ruleSteps<Step>(stepOf: (rule: Rule) => Step): RuleSteps<Step> {
  return {
    requireScopes: (...scopes) => stepOf((auth) => requireScopes(auth, ...scopes)),
    requireAnyScope: (...scopes) => stepOf((auth) => requireAnyScope(auth, ...scopes)),
    requireRole: (...roles) => stepOf((auth) => requireRole(auth, ...roles)),
    requireAuthentication: (requirement) => stepOf((auth, guard) => guard.requireAuthentication(auth, requirement)),
  }
}

/** Loads the resource a request is about and decides about it. */
export async function authorize(
  key: object,
  action: string,
  load: ResourceLoader,
  options: AuthorizeOptions = {},
): Promise<void> {
  const visit = visitOf(key)
  const { guard, request } = visit
  visit.resource = await guard.authorize(callerOf(key), action, load, { ...options, request })
}

/** @throws GuardError 401 when nobody is known, Error when `authenticate` has not run */
export function callerOf(key: object): Auth {
  const { auth } = visitOf(key)
  if (auth === undefined) throw missingCredentials()
  return auth
}

/** The resource that `authorize` loaded. @throws Error when it has not run */
export function resourceOf(key: object): Resource {
  const { resource } = visitOf(key)
  if (resource === undefined) throw new Error('There is no resource: authorize(…) has to run before the handler')
  return resource
}

/** The answer to a refusal. @throws the error itself, when it is none of the guard's */
export function refusal(key: object, error: unknown): GuardReply {
  const visit = visits.get(key)
  if (visit === undefined) throw error
  return visit.guard.refuse(error, visit.request)
}

/** The metadata document as an answer, when the request is for it (RFC 9728 §3). */
export function metadataReply(
  guard: Guard,
  options: ResourceMetadataOptions = {},
): (method: string, path: string) => { readonly headers: Record<string, string>; readonly body: string } | undefined {
  if (guard.metadataAddress === undefined) throw new TypeError('The audience is no address: it can have no metadata')
  const { pathname } = new URL(guard.metadataAddress)
  const body = JSON.stringify(resourceMetadata(guard, options))
  const headers = {
    'Content-Type': 'application/json',
    'Cache-Control': 'public, max-age=3600',
    // Clients in browsers read it before they have any relation with this service.
    'Access-Control-Allow-Origin': '*',
  }
  return (method, path) => {
    const asked = (method === 'GET' || method === 'HEAD') && path.replace(/\?.*$/, '') === pathname
    return asked ? { headers, body } : undefined
  }
}

function visitOf(key: object): Visit {
  const visit = visits.get(key)
  if (visit === undefined) throw new Error('authenticate(guard) has to run before this')
  return visit
}
