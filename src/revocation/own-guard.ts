import { createGuard, type AccessTokenClaims, type Guard } from '@latchkey/guard'
import type { Db } from '../database/database.ts'
import { openRevocationCheck, type RevocableClaims } from './revocations.ts'

export interface OwnGuardParts {
  readonly db: Db
  readonly issuer: string
  /** the resource that its tokens are for */
  readonly audience: string
  /** the JWK set that is published now, of this process's own key ring */
  readonly keys: () => { readonly keys: readonly object[] }
  /** calls back after those keys changed; returns what ends it */
  readonly onKeysChange: (listener: () => void) => () => void
  /** where clients find the metadata of this resource (RFC 9728 §3) */
  readonly resourceMetadata?: string
}

export interface OwnGuard {
  /** The guard of this moment: ask anew for each request. */
  guard(): Guard
  close(): Promise<void>
}

/**
 * The guard before endpoints of the provider's own: like any resource's, but with the keys of this process, and with the
 * revocations table asked for every request, so that what was revoked a moment ago, in whichever process, is dead.
 */
export function openOwnGuard(parts: OwnGuardParts): OwnGuard {
  // A key that is published no more must not count for as long as a guard keeps its copy.
  let current = build(parts)
  const unsubscribe = parts.onKeysChange(() => {
    const old = current
    current = build(parts)
    void old.close()
  })
  return {
    guard: () => current,
    async close() {
      unsubscribe()
      await current.close()
    },
  }
}

function build({ db, issuer, audience, keys, resourceMetadata }: OwnGuardParts): Guard {
  const isRevoked = openRevocationCheck(db)
  return createGuard({
    issuer: { issuer, keys: () => ({ keys: keys().keys.map((key) => ({ ...key })) }), allowHttp: true },
    audience,
    resourceMetadata: resourceMetadata ?? false,
    cacheEntries: 1_000,
    revocation: {
      // With the key's name: this process may hear a moment late that it is published no more.
      check: async (claims, { kid }) => ((await isRevoked(revocable(claims, kid))) ? 'revoked' : 'active'),
    },
  })
}

const known = new WeakMap<AccessTokenClaims, RevocableClaims>()

/** The same object for the same claims, which are frozen. */
function revocable(claims: AccessTokenClaims, kid: string | undefined): RevocableClaims {
  const before = known.get(claims)
  if (before !== undefined) return before
  const found = {
    jti: claims.jti ?? '',
    sub: claims.sub,
    client_id: claims.client_id ?? '',
    iat: claims.iat,
    sid: text(claims['sid']),
    grant_id: text(claims['grant_id']),
    token_version: typeof claims['token_version'] === 'number' ? claims['token_version'] : undefined,
    kid,
  }
  known.set(claims, found)
  return found
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}
