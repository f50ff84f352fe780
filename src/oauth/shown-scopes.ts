/**
 * Scopes in words, for the consent page and the list of connected applications.
 */
import type { ClientDirectory } from './client-directory.ts'

export interface ScopeInWords {
  readonly scope: string
  readonly description: string
}

export interface ScopesInWords {
  readonly resourceName: string
  readonly scopes: readonly ScopeInWords[]
}

const openidWords: Readonly<Record<string, string>> = {
  openid: 'know that it is you who signed in',
  profile: 'see your name and the rest of your public profile',
  email: 'see your email address, and whether it is verified',
  address: 'see your postal address',
  phone: 'see your phone number, and whether it is verified',
  offline_access: 'keep its access while you are away, until you withdraw it',
}

/** @param scopes resource → scopes; resource '' holds OpenID Connect's own */
export async function describeScopes(
  directory: ClientDirectory,
  scopes: ReadonlyMap<string, Iterable<string>>,
): Promise<ScopesInWords[]> {
  const groups = await Promise.all(
    [...scopes].map(async ([resource, names]) => {
      const entry = resource === '' ? undefined : await directory.findResource(resource)
      return {
        resourceName: resource === '' ? 'Your account' : (entry?.row.name ?? resource),
        scopes: [...names].map((scope) => ({
          scope,
          description: openidWords[scope] ?? (entry?.permissions.get(scope) || scope),
        })),
      }
    }),
  )
  return groups.filter(({ scopes }) => scopes.length > 0)
}
