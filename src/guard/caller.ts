/**
 * Who is calling. A verified token's claims become an `Auth`: the caller as policies see it (`Subject`), the scopes,
 * and the claims themselves. Nothing here checks a token: that is done before, in `access-token.ts`, and what arrives
 * here is signed by a configured issuer. Claims of the wrong shape are refused all the same, because a role that
 * cannot be read would silently switch off every policy that denies that role.
 */
import { invalidToken } from './errors.ts'

/** On whose behalf a token was exchanged (RFC 8693 §4.1): the acting party, and who acted before it. */
export interface Actor {
  readonly sub: string
  readonly act?: Actor
  readonly [claim: string]: unknown
}

/**
 * The caller as rules and policies see it.
 *
 * `type` is `client` when a service calls for itself (RFC 9068 §5: `sub` equals `client_id`), else `user`. Every claim
 * that is not part of the protocol (`department`, `clearance`, `acr`, `client_id`, …) is an attribute of the same name.
 */
export interface Subject {
  readonly type: 'user' | 'client'
  /** `sub`, after the issuer's `subjectPrefix` where several issuers are trusted. */
  readonly id: string
  /** `iss`: who vouches for this caller. */
  readonly issuer?: string
  readonly roles: readonly string[]
  readonly groups: readonly string[]
  readonly act?: Actor
  readonly [attribute: string]: unknown
}

/** Claims of a verified access token (RFC 9068 §2.2). Frozen, all the way down: they are shared between requests. */
export interface AccessTokenClaims {
  readonly iss: string
  readonly sub: string
  readonly aud: string | readonly string[]
  /** Seconds since 1970. */
  readonly exp: number
  /** Seconds since 1970. */
  readonly iat: number
  readonly nbf?: number
  readonly jti?: string
  readonly client_id?: string
  readonly scope?: string
  /** Seconds since 1970: when the user last proved who they are. */
  readonly auth_time?: number
  readonly acr?: string
  readonly amr?: readonly string[]
  readonly act?: Actor
  /** The key a token is bound to (RFC 7800); such a token is worth nothing without proof of that key. */
  readonly cnf?: { readonly jkt?: string; readonly [method: string]: unknown }
  readonly [claim: string]: unknown
}

/** What a request is known by, once its token has been verified. */
export interface Auth {
  readonly subject: Subject
  readonly scopes: ReadonlySet<string>
  readonly claims: AccessTokenClaims
  /** The token as it was sent, to be passed on or exchanged; never to be logged. */
  readonly token: string
  readonly expiresAt: Date
}

/** Where an issuer keeps what RFC 9068 leaves open: a claim's name, or the path to a nested one. */
export interface ClaimNames {
  /** @defaultValue `'roles'` (RFC 9068 §2.2.3.1). Keycloak: `['realm_access', 'roles']`. */
  readonly roles?: string | readonly string[]
  /** @defaultValue `'groups'` */
  readonly groups?: string | readonly string[]
  /** A string of words or an array of strings. @defaultValue `'scope'`. Okta: `'scp'`. */
  readonly scope?: string | readonly string[]
}

/** What of a caller is the same for every request with the same token. */
export interface Caller {
  readonly subject: Subject
  readonly scopes: ReadonlySet<string>
}

/**
 * Claims that are the protocol's own business, or that `Subject` names itself. A claim called `type` or `id` must not
 * be able to turn a client into a user.
 */
const NOT_ATTRIBUTES = new Set([
  'iss',
  'sub',
  'aud',
  'exp',
  'nbf',
  'iat',
  'jti',
  'scope',
  'scp',
  'cnf',
  'type',
  'id',
  'issuer',
  'roles',
  'groups',
])

/**
 * Reads the caller out of verified claims.
 *
 * @param claims - already verified and frozen
 * @param names - where this issuer keeps roles, groups and scopes
 * @param subjectPrefix - put before `sub`, so that two issuers' users cannot be taken for each other
 * @throws GuardError 401 `invalid_token` when roles, groups, scope or `act` have no shape that can be understood
 */
export function callerOf(claims: AccessTokenClaims, names: ClaimNames = {}, subjectPrefix = ''): Caller {
  const act = claims['act']
  if (act !== undefined && !isActor(act)) throw invalidToken('claim_shape', `act: ${describe(act)}`)
  const subject: Subject & Record<string, unknown> = {
    type: claims.sub === claims.client_id ? 'client' : 'user',
    id: subjectPrefix + claims.sub,
    issuer: claims.iss,
    roles: Object.freeze(wordList(claims, names.roles ?? 'roles')),
    groups: Object.freeze(wordList(claims, names.groups ?? 'groups')),
  }
  for (const name in claims) {
    if (!NOT_ATTRIBUTES.has(name)) subject[name] = claims[name]
  }
  return { subject: Object.freeze(subject), scopes: new ScopeSet(scopeWords(claims, names.scope ?? 'scope')) }
}

const SEALED = 'The scopes of a token are what its issuer signed; they cannot be changed'

/** A set that stays as it was made: one set serves every request that carries the same token. */
class ScopeSet extends Set<string> {
  constructor(words: Iterable<string>) {
    super()
    for (const word of words) super.add(word)
  }

  override add(): this {
    throw new TypeError(SEALED)
  }

  override delete(): boolean {
    throw new TypeError(SEALED)
  }

  override clear(): void {
    throw new TypeError(SEALED)
  }
}

function claimAt(claims: AccessTokenClaims, path: string | readonly string[]): unknown {
  let value: unknown = claims
  for (const name of typeof path === 'string' ? [path] : path) {
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, name)) return undefined
    value = (value as Record<string, unknown>)[name]
  }
  return value
}

function scopeWords(claims: AccessTokenClaims, path: string | readonly string[]): string[] {
  const value = claimAt(claims, path)
  if (value === undefined) return []
  if (typeof value === 'string') return value.split(' ').filter((word) => word !== '')
  if (Array.isArray(value) && value.every((word) => typeof word === 'string')) return value
  throw invalidToken('claim_shape', `scope: ${describe(value)}`)
}

/** RFC 9068 §2.2.3.1 borrows SCIM's forms (RFC 7643 §2.4): a plain string, or an object that has it as `value`. */
function wordList(claims: AccessTokenClaims, path: string | readonly string[]): string[] {
  const value = claimAt(claims, path)
  if (value === undefined) return []
  if (typeof value === 'string') return [value]
  if (!Array.isArray(value)) throw invalidToken('claim_shape', `${String(path)}: ${describe(value)}`)
  return value.map((entry: unknown) => {
    if (typeof entry === 'string') return entry
    const inner = typeof entry === 'object' && entry !== null ? (entry as Record<string, unknown>)['value'] : undefined
    if (typeof inner === 'string') return inner
    throw invalidToken('claim_shape', `${String(path)}: ${describe(entry)}`)
  })
}

function isActor(value: unknown): value is Actor {
  let actor: unknown = value
  while (actor !== undefined) {
    if (typeof actor !== 'object' || actor === null || Array.isArray(actor)) return false
    const { sub, act } = actor as Record<string, unknown>
    if (typeof sub !== 'string' || sub === '') return false
    actor = act
  }
  return true
}

function describe(value: unknown): string {
  return `not understood (${Array.isArray(value) ? 'array' : value === null ? 'null' : typeof value})`
}
