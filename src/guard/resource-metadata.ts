/**
 * What a client can learn about this service before it has a token (RFC 9728): who issues tokens for it, and how they
 * must be sent. Every challenge of the guard names the address of this document; the adapters serve it.
 */
import type { Guard } from './guard.ts'

/** Members of the document that the guard cannot know by itself (RFC 9728 §2). */
export interface ResourceMetadataOptions {
  readonly scopesSupported?: readonly string[]
  readonly resourceName?: string
  readonly resourceDocumentation?: string
  readonly resourcePolicyUri?: string
  readonly resourceTosUri?: string
}

/** The document itself (RFC 9728 §2). */
export interface ProtectedResourceMetadata {
  readonly resource: string
  readonly authorization_servers: readonly string[]
  readonly bearer_methods_supported: readonly ['header']
  readonly [member: string]: unknown
}

/**
 * Where the document of a resource lives: the well-known name goes between host and path (RFC 9728 §3.1).
 *
 * @returns `undefined` when the resource is not an http(s) address
 */
export function metadataAddress(resource: string): string | undefined {
  if (!/^https?:\/\//.test(resource) || !URL.canParse(resource)) return undefined
  const { origin, pathname, search } = new URL(resource)
  return `${origin}/.well-known/oauth-protected-resource${pathname === '/' ? '' : pathname}${search}`
}

/**
 * The document of the service a guard protects.
 *
 * @example
 * ```ts
 * import { createGuard, resourceMetadata } from '@latchkey/guard'
 *
 * const guard = createGuard({ issuer: 'https://id.example.com', audience: 'https://api.example.com/models' })
 * const document = resourceMetadata(guard, { scopesSupported: ['models:read', 'models:write'] })
 * ```
 */
export function resourceMetadata(guard: Guard, options: ResourceMetadataOptions = {}): ProtectedResourceMetadata {
  const members = {
    scopes_supported: options.scopesSupported,
    resource_name: options.resourceName,
    resource_documentation: options.resourceDocumentation,
    resource_policy_uri: options.resourcePolicyUri,
    resource_tos_uri: options.resourceTosUri,
    ...(guard.dpopAlgorithms.length === 0
      ? {}
      : {
          dpop_signing_alg_values_supported: guard.dpopAlgorithms,
          dpop_bound_access_tokens_required: guard.dpopMode === 'required',
        }),
  }
  return {
    resource: guard.audience,
    authorization_servers: guard.issuers,
    bearer_methods_supported: ['header'],
    // RFC 9728 §2: a member without a value is left out.
    ...Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined)),
  }
}
