/** What a route may demand of its caller without asking a policy: scopes and roles. Each check passes or throws. */
import type { Auth } from '../caller.ts'
import { accessDenied, insufficientScope } from '../errors.ts'

/**
 * Demands all of these scopes.
 *
 * @throws GuardError 403 `insufficient_scope`, naming them all (RFC 6750 §3.1)
 */
export function requireScopes(auth: Auth, ...scopes: readonly string[]): void {
  if (!scopes.every((scope) => auth.scopes.has(scope))) throw insufficientScope(scopes)
}

/**
 * Demands one of these scopes.
 *
 * @throws GuardError 403 `insufficient_scope`, naming the first: any one would do, and a client asks for all it is told
 */
export function requireAnyScope(auth: Auth, ...scopes: readonly string[]): void {
  if (!scopes.some((scope) => auth.scopes.has(scope))) throw insufficientScope(scopes.slice(0, 1))
}

/**
 * Demands one of these roles.
 *
 * @throws GuardError 403; no other token of this caller would help, so there is no challenge
 */
export function requireRole(auth: Auth, ...roles: readonly string[]): void {
  if (!roles.some((role) => auth.subject.roles.includes(role))) {
    throw accessDenied('role', `needs one of ${roles.join(', ')}`)
  }
}
