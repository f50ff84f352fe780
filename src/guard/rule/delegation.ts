/**
 * Delegation: a user lets another do some of what they may do themselves, to one thing, for a time. Checked twice: when
 * it is made, and again at every use, because a delegator who has lost a right has nothing to lend any more.
 */
import type { Subject } from '../caller.ts'

/** A delegation as it is kept. */
export interface Delegation {
  readonly id: string
  readonly from: string
  readonly to: string
  readonly resource: string
  readonly permissions: readonly string[]
  readonly createdAt: Date
  readonly expiresAt: Date
  readonly revokedAt?: Date | null | undefined
}

/** What somebody wants to delegate. */
export interface DelegationRequest {
  readonly id: string
  readonly to: string
  readonly resource: string
  readonly permissions: readonly string[]
  readonly expiresAt: Date
}

/** Why a delegation is not made. */
export class DelegationError extends Error {
  override readonly name = 'DelegationError'
  readonly code: 'not-yours' | 'no-permissions' | 'no-time' | 'too-long' | 'to-yourself' | 'not-a-user' | 'acting'

  constructor(code: DelegationError['code'], message: string) {
    super(message)
    this.code = code
  }
}

/** The longest a delegation lasts, in days. */
export const MAX_DELEGATION_DAYS = 90

/** What the user may do to the resource by themselves, delegations not counted. */
export type OwnRights = (user: string, resource: string, action: string) => boolean | Promise<boolean>

/**
 * Makes a delegation, if the delegator has every permission in it.
 *
 * Rights that were themselves delegated cannot be passed on: `mayDirectly` must not count delegations. Who acts for
 * somebody else (`act`) cannot delegate: that would outlive the token they act with.
 *
 * @param mayDirectly - what a user may do by themselves
 * @returns the delegation to be stored and audited
 * @throws DelegationError
 *
 * @example
 * ```ts
 * import { createDelegation } from '@latchkey/guard'
 *
 * const alice = { type: 'user', id: 'alice', roles: [], groups: [] } as const
 * const now = new Date()
 * const expiresAt = new Date(now.getTime() + 3_600_000)
 * const request = { id: 'd1', to: 'bob', resource: 'model-1', permissions: ['read'], expiresAt }
 * const delegation = await createDelegation(alice, request, (user, resource, action) => user === 'alice', now)
 * ```
 */
export async function createDelegation(
  delegator: Subject,
  request: DelegationRequest,
  mayDirectly: OwnRights,
  now: Date,
): Promise<Delegation> {
  if (delegator.type !== 'user') throw new DelegationError('not-a-user', 'Only a user delegates')
  if (delegator.act !== undefined) throw new DelegationError('acting', 'Who acts for somebody else cannot delegate')
  if (request.to === '' || request.to === delegator.id)
    throw new DelegationError('to-yourself', 'Delegate to somebody else')
  if (request.permissions.length === 0) throw new DelegationError('no-permissions', 'Nothing would be delegated')
  const duration = request.expiresAt.getTime() - now.getTime()
  // A date that is none fails the first comparison too.
  if (!(duration > 0)) throw new DelegationError('no-time', 'It would have expired already')
  if (duration > MAX_DELEGATION_DAYS * 86_400_000) {
    throw new DelegationError('too-long', `A delegation lasts at most ${MAX_DELEGATION_DAYS} days`)
  }
  for (const permission of request.permissions) {
    if (permission === '*' || !(await mayDirectly(delegator.id, request.resource, permission))) {
      throw new DelegationError('not-yours', `You cannot delegate '${permission}': you do not have it yourself`)
    }
  }
  return { ...request, permissions: [...request.permissions], from: delegator.id, createdAt: now }
}

/**
 * The delegation that lets a user do something now, if there is one: addressed to them, about this resource and action,
 * not revoked, not expired, and with a delegator who may still do it themselves.
 *
 * @param delegations - those addressed to the user, or any; what does not fit is passed over
 * @returns the delegation to name in the audit record, as on whose behalf it was done
 */
export async function usableDelegation(
  delegations: Iterable<Delegation>,
  subject: Subject,
  resource: string,
  action: string,
  mayDirectly: OwnRights,
  now: Date,
): Promise<Delegation | undefined> {
  if (subject.type !== 'user') return undefined
  for (const delegation of delegations) {
    const { from, to, permissions, createdAt, expiresAt, revokedAt } = delegation
    if (to !== subject.id || from === to || delegation.resource !== resource) continue
    if (!permissions.includes(action)) continue
    if (revokedAt !== undefined && revokedAt !== null) continue
    if (!(createdAt <= now && now < expiresAt)) continue
    if (await mayDirectly(from, resource, action)) return delegation
  }
  return undefined
}
