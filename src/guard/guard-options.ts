/**
 * What a guard can be told, and what it tells: options, audit events, health and counters. The README's tables say the
 * same in short; `guard.ts` is where it happens.
 */
import type { Auth } from './caller.ts'
import type { DpopOptions } from './dpop.ts'
import type { Fetch, IssuerHealth, TrustedIssuer } from './issuer.ts'
import type { Decision, DecisionInput, Plan, PlanInput, Resource } from './policy/decision.ts'
import type { GuardRequest } from './request.ts'
import type { RevocationOption } from './revocation/open-revocation.ts'
import type { ContextOptions } from './rule/context.ts'
import type { Algorithm } from './verification-key.ts'

/** Whatever can decide: a `PolicySet`, or anything else with its two questions. */
export interface Policies {
  decide(input: DecisionInput): Decision
  plan(input: PlanInput): Plan
  readonly version: string
}

/** Everything a guard can be told. Only the issuer and the audience must be. */
export interface GuardOptions {
  /** Whose tokens are accepted: an address, or an address and more (`TrustedIssuer`). */
  readonly issuer?: string | TrustedIssuer
  /** Several of them, in place of `issuer`; each says its own `subjectPrefix`. */
  readonly issuers?: readonly TrustedIssuer[]
  /**
   * This service's own name, as tokens carry it in `aud`: usually its address, the `resource` of RFC 8707. With
   * several, any one is enough, and the first is the one that is published.
   */
  readonly audience: string | readonly string[]

  /** Signature algorithms a token may have. @defaultValue `['RS256']` */
  readonly algorithms?: readonly Algorithm[]
  /** `typ` a token may have. @defaultValue `['at+jwt']` (RFC 9068 §4) */
  readonly tokenTypes?: readonly string[]
  /** Claims a token must have, besides `iss`, `sub`, `aud`, `exp`, `iat`. @defaultValue `['jti', 'client_id']` */
  readonly requiredClaims?: readonly string[]
  /** How far the issuer's clock may differ, in seconds, at most 30. @defaultValue 5 */
  readonly clockToleranceSeconds?: number
  /** Longest time from `iat` to `exp`, in seconds. @defaultValue 86400 */
  readonly maxLifetimeSeconds?: number
  /** Larger tokens are refused unread. @defaultValue 16384 */
  readonly maxTokenBytes?: number
  /** How many verified tokens are remembered; 0 remembers none. @defaultValue 10000 */
  readonly cacheEntries?: number

  /** Proof of possession. @defaultValue `'optional'`, where the service's address is known; else `'off'` */
  readonly dpop?: 'off' | 'optional' | 'required' | DpopOptions
  /**
   * How revoked tokens are known: credentials for the issuer's feed of security events, or a check of your own. Without
   * it a token is good until it expires, and where the issuer publishes such a feed, the process is warned once;
   * `false` says that this is meant.
   */
  readonly revocation?: RevocationOption
  /**
   * What decides `can`, `assert`, `filter` and `authorize`: the path of a policy file, which is followed as it changes
   * (a version that does not load changes nothing), or policies that are loaded already. Without any, all is refused.
   */
  readonly policies?: string | Policies
  /** What policies find under `context`: this moment in a time zone, the caller's network, and what you add. */
  readonly context?: DecisionContext
  /** Calls to other services (`createOutbound`), whose breakers then show in `metrics()`. */
  readonly outbound?: { metrics(): object }

  /** Told of every decision and every refused request. It must not throw; if it does, that is counted and ignored. */
  readonly audit?: (event: AuditEvent) => void
  /** `realm` of the challenges. */
  readonly realm?: string
  /** Address of the metadata document, `false` for none. @defaultValue derived from the audience (RFC 9728 §3.1) */
  readonly resourceMetadata?: string | false
  /** Where your error pages live; refusals link to `<documentation>#<CODE>`. */
  readonly documentation?: string
  /** Name the policy that denied in the 403 itself, not in the audit alone. @defaultValue false */
  readonly exposeReason?: boolean

  /**
   * Milliseconds since 1970. How fresh the news of revocations are is counted on it too; without it, on a clock that
   * nobody can set. @defaultValue `Date.now`
   */
  readonly now?: () => number
  /** Fetches keys. @defaultValue the global `fetch` */
  readonly fetch?: Fetch
}

/** How the context of a decision is made. */
export interface DecisionContext extends Pick<ContextOptions, 'timeZone' | 'networks'> {
  /** Kind of request, as this service calls it: `api`, `batch`, … */
  readonly requestType?: (request: GuardRequest) => string | undefined
  /** Anything else; what a call passes itself wins over this. */
  readonly more?: (request: GuardRequest | undefined) => Readonly<Record<string, unknown>>
}

/** What the audit hook is told. */
export type AuditEvent =
  | {
      readonly kind: 'decision'
      readonly at: Date
      readonly subject: { readonly type: string; readonly id: string; readonly issuer: string | undefined }
      /** Who acts for the subject, if somebody does (RFC 8693 §4.1). */
      readonly act: Auth['subject']['act']
      readonly clientId: string | undefined
      readonly action: string
      readonly resource: { readonly type: string; readonly id: string | undefined }
      readonly decision: Decision
    }
  | {
      readonly kind: 'filter'
      readonly at: Date
      readonly subject: { readonly type: string; readonly id: string; readonly issuer: string | undefined }
      readonly act: Auth['subject']['act']
      readonly clientId: string | undefined
      readonly action: string
      readonly resourceType: string
      /** Whether all of them are shown, none, or those that fit a condition. */
      readonly outcome: Plan['kind']
    }
  | {
      readonly kind: 'refusal'
      readonly at: Date
      readonly requestId: string
      readonly method: string
      readonly ip: string | undefined
      readonly status: number
      readonly code: string
      readonly reason: string
      /** What exactly was wrong; not for the caller. */
      readonly debug: string | undefined
    }

/** Counters since the guard was made. */
export interface GuardMetrics {
  readonly authenticated: number
  /** By `reason`. */
  readonly refused: Readonly<Record<string, number>>
  readonly cacheHits: number
  readonly cacheMisses: number
  readonly keyFetches: number
  readonly decisionsAllowed: number
  readonly decisionsDenied: number
  readonly auditFailures: number
  /** Versions of the policy file that did not load, so that the last good one stayed in use. */
  readonly policyReloadsRefused: number
  /**
   * Of the feed: `polls` answered and `failures`, `events` taken in, `ignored` and `refused`, `introspections` and
   * `introspectionFailures`; or whatever a check of your own counts.
   */
  readonly revocation: Readonly<Record<string, number>> | undefined
  readonly outbound: object | undefined
}

/** How a guard is doing. `unavailable`: it could not let anybody in right now. */
export interface GuardHealth {
  readonly status: 'ok' | 'degraded' | 'unavailable'
  readonly issuers: readonly IssuerHealth[]
  readonly policyVersion: string | undefined
  /** Why the policy file as it is now is not in use. */
  readonly policyError: string | undefined
  /** `RevocationFeedHealth`; `{ feeds }` with several; `{ status: 'off', reason }`; or the word of a check of your own. */
  readonly revocation: Readonly<Record<string, unknown>> | undefined
}

/** What a route asks to be authorized. */
export interface AuthorizeOptions {
  /** Answer 404 in place of 403 when the caller may not even read the resource. @defaultValue false */
  readonly hideExistence?: boolean
  /** For `hideExistence`: the action that decides whether the caller may know. @defaultValue `'read'` */
  readonly readAction?: string
}

/** What looking for a resource came to: nothing found is `undefined` or `null`. */
export type FoundResource = Resource | null | undefined | Promise<Resource | null | undefined>

/** Finds the resource a request is about. */
export type ResourceLoader = () => FoundResource
