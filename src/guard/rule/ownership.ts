/**
 * Ownership: who made a thing may do everything to it, others what the owner shares, and everybody may read what is
 * public. Private by default: what nothing grants is refused.
 */
import type { Subject } from '../caller.ts'

/** What an owner may do. */
export const OWNER_PERMISSIONS: readonly string[] = Object.freeze(['read', 'write', 'delete', 'share', 'transfer'])

/** What an owner may hand on by sharing. Deleting, sharing on and giving away stay the owner's. */
export const SHAREABLE_PERMISSIONS: readonly string[] = Object.freeze(['read', 'write'])

/** A thing somebody owns. */
export interface Owned {
  readonly owner?: string | null | undefined
  readonly public?: boolean | null | undefined
  /** Who else may what. */
  readonly shares?: readonly Share[] | null | undefined
}

export interface Share {
  readonly user: string
  readonly permissions: readonly string[]
}

/**
 * What a subject may do to an owned thing: everything for the owner; else what is shared with them, together with
 * `read` if the thing is public.
 *
 * Only a user owns. A service that calls for itself has no share in anything, whatever its id.
 *
 * @example
 * ```ts
 * import { permissionsOn } from '@latchkey/guard'
 *
 * const alice = { type: 'user', id: 'alice', roles: [], groups: [] } as const
 * permissionsOn(alice, { owner: 'bob', public: true, shares: [{ user: 'alice', permissions: ['write'] }] })
 * // Set { 'read', 'write' }
 * ```
 */
export function permissionsOn(subject: Subject, thing: Owned): ReadonlySet<string> {
  const user = subject.type === 'user' && subject.id !== '' ? subject.id : undefined
  if (user !== undefined && thing.owner === user) return new Set(OWNER_PERMISSIONS)
  const permissions = new Set<string>()
  for (const share of thing.shares ?? []) {
    if (user === undefined || share.user !== user) continue
    for (const permission of share.permissions)
      if (SHAREABLE_PERMISSIONS.includes(permission)) permissions.add(permission)
  }
  if (thing.public === true) permissions.add('read')
  return permissions
}

/** Why a thing does not change hands or is not shared. */
export class OwnershipError extends Error {
  override readonly name = 'OwnershipError'
  readonly code: 'not-owner' | 'same-owner' | 'no-recipient' | 'not-shareable'

  constructor(code: OwnershipError['code'], message: string) {
    super(message)
    this.code = code
  }
}

/** A change to be written: the thing's new state, and the event that says who did it. */
export interface OwnershipChange<T> {
  readonly thing: T
  readonly event: {
    readonly type: 'ownership.transferred' | 'ownership.shared'
    readonly by: string
    /** Who acts for the owner, if somebody does (RFC 8693 §4.1). */
    readonly actor: string | undefined
    readonly from: string
    readonly to: string
    readonly permissions?: readonly string[]
    readonly at: Date
  }
}

/**
 * Gives a thing to somebody else. Returns what has to be written, thing and audit event, in one transaction; the former
 * owner keeps nothing, and a share the new owner had is dropped as pointless.
 *
 * @throws OwnershipError when the subject is not the owner, or the recipient is nobody or the same
 */
export function transferOwnership<T extends Owned>(
  subject: Subject,
  thing: T,
  to: string,
  at: Date,
): OwnershipChange<T> {
  const from = requireOwner(subject, thing, 'transfer')
  if (to === '') throw new OwnershipError('no-recipient', 'A thing needs an owner')
  if (to === from) throw new OwnershipError('same-owner', 'This is already theirs')
  const shares = (thing.shares ?? []).filter(({ user }) => user !== to)
  return {
    thing: { ...thing, owner: to, shares },
    event: { type: 'ownership.transferred', by: subject.id, actor: subject.act?.sub, from, to, at },
  }
}

/**
 * Shares a thing: sets what a user may do, nothing if `permissions` is empty.
 *
 * @throws OwnershipError when the subject is not the owner, or a permission is not to be shared
 */
export function shareWith<T extends Owned>(
  subject: Subject,
  thing: T,
  to: string,
  permissions: readonly string[],
  at: Date,
): OwnershipChange<T> {
  const from = requireOwner(subject, thing, 'share')
  if (to === '') throw new OwnershipError('no-recipient', 'Share it with somebody')
  if (to === from) throw new OwnershipError('same-owner', 'The owner has every permission already')
  const odd = permissions.find((permission) => !SHAREABLE_PERMISSIONS.includes(permission))
  if (odd !== undefined) throw new OwnershipError('not-shareable', `'${odd}' stays with the owner`)
  const others = (thing.shares ?? []).filter(({ user }) => user !== to)
  const shares = permissions.length === 0 ? others : [...others, { user: to, permissions: [...permissions] }]
  return {
    thing: { ...thing, shares },
    event: { type: 'ownership.shared', by: subject.id, actor: subject.act?.sub, from, to, permissions, at },
  }
}

function requireOwner(subject: Subject, thing: Owned, what: string): string {
  if (!permissionsOn(subject, thing).has(what)) throw new OwnershipError('not-owner', `Only the owner may ${what} this`)
  return subject.id
}
