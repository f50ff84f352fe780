/**
 * Rules: checks one can name, for services whose rights need no policy file. Scopes and roles of the token
 * (`requirements.ts`), a table of roles (`role-table.ts`), ownership with shares (`ownership.ts`), grants that are
 * inherited (`hierarchy.ts`), rights lent for a time (`delegation.ts`), and the facts of a request that policies ask
 * for (`context.ts`). They are functions of what they are given: where shares, grants and delegations are kept is the
 * service's own business. Conditions over attributes are left to `../policy/`, which can say all of this too.
 */
export { contextBuilder } from './context.ts'
export type { ContextOptions, RequestContext, RequestFacts } from './context.ts'
export { createDelegation, DelegationError, MAX_DELEGATION_DAYS, usableDelegation } from './delegation.ts'
export type { Delegation, DelegationRequest, OwnRights } from './delegation.ts'
export { allowedBy, hierarchyAllows, HierarchyError, lineageOf, MAX_LEVELS } from './hierarchy.ts'
export type { HierarchySource } from './hierarchy.ts'
export {
  OWNER_PERMISSIONS,
  OwnershipError,
  permissionsOn,
  SHAREABLE_PERMISSIONS,
  shareWith,
  transferOwnership,
} from './ownership.ts'
export type { Owned, OwnershipChange, Share } from './ownership.ts'
export { requireAnyScope, requireRole, requireScopes } from './requirements.ts'
export { roleAllows } from './role-table.ts'
export type { RoleTable } from './role-table.ts'
