/**
 * How a guard learns that a token which is otherwise good has been revoked. The guard only asks; where the answer
 * comes from (a feed of security events, the provider's own table, introspection) is up to what is plugged in here.
 */
import type { AccessTokenClaims } from '../caller.ts'

/** `unknown`: cannot say right now. The request is answered 503 + Retry-After, never let in and never called invalid. */
export type RevocationVerdict = 'active' | 'revoked' | 'unknown'

/** What of a token its claims do not tell. */
export interface CheckedToken {
  /** Of the key that it is signed with; `undefined` when the issuer's key has no name. */
  readonly kid: string | undefined
  /** As it was sent, to be asked about (RFC 7662); never to be logged. */
  readonly token: string
}

/**
 * Asked on every request whose token is otherwise good, also when the token was seen before.
 *
 * @example
 * ```ts
 * import type { RevocationCheck } from '@latchkey/guard'
 *
 * const revokedTokens = new Set<string>()
 * let changes = 0
 *
 * export const revocation: RevocationCheck = {
 *   check: (claims) => (revokedTokens.has(claims.jti ?? '') ? 'revoked' : 'active'),
 *   version: () => changes,
 * }
 *
 * export function revoke(jti: string): void {
 *   revokedTokens.add(jti)
 *   changes += 1
 * }
 * ```
 */
export interface RevocationCheck {
  /**
   * Is this token revoked? Answer synchronously wherever possible: a promise is awaited on every request. An error
   * thrown here counts as `unknown`.
   */
  check(claims: AccessTokenClaims, token: CheckedToken): RevocationVerdict | Promise<RevocationVerdict>

  /**
   * A number that changes whenever an `active` given before might no longer hold: a revocation arrived, or the source
   * went stale. While it stays the same, a token found active is not looked up again. `undefined` means "ask every
   * time". It must move after the new state is visible to `check`, not before.
   */
  version?(): number | undefined

  /** A line for `guard.health()`: the age of the feed, whether it is caught up. */
  health?(): Readonly<Record<string, unknown>>

  /** Counters for `guard.metrics()`. */
  metrics?(): Readonly<Record<string, number>>

  /** Ends connections and timers; called by `guard.close()`. */
  close?(): void | Promise<void>
}
