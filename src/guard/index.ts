/**
 * `@latchkey/guard`: the guard that resource services import. It verifies access tokens of any issuer that follows
 * RFC 9068, knows the caller, and decides, in the process and without a call per request. Start at `guard.ts`; the
 * frameworks' adapters (`/koa`, `/express`, `/fastify`, `/hono`, `/web`), the issuer for tests (`/testing`), list
 * filters (`/kysely`) and calls to other services (`/outbound`) are imports of their own.
 */
export { createGuard, Guard } from './guard.ts'
export type {
  AuditEvent,
  AuthorizeOptions,
  DecisionContext,
  FoundResource,
  GuardHealth,
  GuardMetrics,
  GuardOptions,
  Policies,
  ResourceLoader,
} from './guard-options.ts'
export type { AccessTokenClaims, Actor, Auth, ClaimNames, Subject } from './caller.ts'
export { GuardError } from './errors.ts'
export type {
  AuthenticationRequirement,
  Challenge,
  ErrorPresentation,
  GuardErrorCode,
  GuardErrorFields,
  GuardReply,
  ProblemDetails,
  ReplyOptions,
} from './errors.ts'
export type { Fetch, IssuerHealth, Jwks, KeyCaching, TrustedIssuer } from './issuer.ts'
export type { Algorithm, Jwk } from './verification-key.ts'
export { MemoryReplayStore } from './dpop.ts'
export type { DpopOptions, ReplayStore } from './dpop.ts'
export { fromNodeRequest, fromWebRequest } from './request.ts'
export type { GuardRequest, NodeRequest } from './request.ts'
export type { CheckedToken, RevocationCheck, RevocationVerdict } from './revocation/revocation-check.ts'
export type { RevocationFeedHealth, RevocationFeedOptions } from './revocation/feed-options.ts'
export type { RevocationOption } from './revocation/open-revocation.ts'
export { resourceMetadata } from './resource-metadata.ts'
export type { ProtectedResourceMetadata, ResourceMetadataOptions } from './resource-metadata.ts'
export * from './policy/policies.ts'
export * from './rule/rules.ts'
