/**
 * What client metadata must hold together: which grants go with which proof of identity, where people may be sent, which
 * keys may be registered. Judged for the whole client at once, so that no change can get around what registration asks.
 */
import { createPublicKey } from 'node:crypto'
import type { Selectable } from 'kysely'
import type { ClientsTable } from '../database/tables.ts'
import { invalidFields, type FieldError } from '../problems.ts'

/** The device authorization grant's name (RFC 8628 §3.4). */
export const deviceGrant = 'urn:ietf:params:oauth:grant-type:device_code'

/** What a client is registered with (RFC 7591 §2), apart from its secrets, its permissions and its usage plan. */
export type ClientMetadata = Omit<
  Selectable<ClientsTable>,
  'id' | 'status' | 'plan' | 'token_version' | 'row_version' | 'created_at' | 'updated_at'
>

/** @param constraint the rule that it breaks: `format`, `conflict` with another field, `exists` */
export function wrong(field: string, constraint: string, message: string): FieldError {
  return { field, constraint, message }
}

/** @throws Problem unless there is nothing wrong */
export function refuseInconsistent(details: readonly FieldError[]): void {
  if (details.length > 0) throw invalidFields(details)
}

/** What is wrong with the metadata as a whole, whoever asks; of a part of it, what can be said without the rest. */
export function findInconsistencies(client: Partial<ClientMetadata>): FieldError[] {
  const found: FieldError[] = []
  const check = (isRight: boolean, field: string, constraint: string, message: string) => {
    if (!isRight) found.push(wrong(field, constraint, message))
  }
  const { application_type: type, token_endpoint_auth_method: method, redirect_uris: uris, require_pkce } = client
  const grants = client.grant_types === undefined ? undefined : new Set(client.grant_types)
  const usesCodes = grants?.has('authorization_code')

  check(
    method !== 'none' || grants?.has('client_credentials') !== true,
    'grant_types',
    'conflict',
    'must not include client_credentials for a client that cannot prove who it is (RFC 6749 §4.4)',
  )
  check(
    grants === undefined || !grants.has('refresh_token') || usesCodes === true || grants.has(deviceGrant),
    'grant_types',
    'conflict',
    'must include authorization_code where it includes refresh_token',
  )
  check(
    usesCodes !== true || uris === undefined || uris.length > 0,
    'redirect_uris',
    'required',
    'must have a member for authorization_code',
  )
  check(
    usesCodes !== false || uris === undefined || uris.length === 0,
    'redirect_uris',
    'conflict',
    'must be empty without the grant type authorization_code',
  )
  check(
    require_pkce !== false || method !== 'none',
    'require_pkce',
    'conflict',
    'must be true for a public client: nothing else protects its codes (RFC 9700 §2.1.1)',
  )

  for (const field of ['redirect_uris', 'post_logout_redirect_uris'] as const) {
    client[field]?.forEach((value, i) => {
      const problem = type === undefined ? undefined : redirectUriProblem(value, type)
      if (problem !== undefined) found.push(wrong(`${field}[${i}]`, 'format', problem))
    })
  }
  for (const field of [
    'backchannel_logout_uri',
    'jwks_uri',
    'client_uri',
    'logo_uri',
    'policy_uri',
    'tos_uri',
  ] as const) {
    const value = client[field]
    const problem = value === null || value === undefined ? undefined : redirectUriProblem(value, 'web')
    if (problem !== undefined) found.push(wrong(field, 'format', problem))
  }

  if (method !== undefined && client.jwks !== undefined && client.jwks_uri !== undefined) {
    const usesKeys = method === 'private_key_jwt'
    const keySources = [client.jwks, client.jwks_uri].filter((source) => source !== null).length
    check(
      !usesKeys || keySources === 1,
      'jwks',
      keySources === 0 ? 'required' : 'conflict',
      'or jwks_uri must be given for private_key_jwt, and not both',
    )
    check(usesKeys || keySources === 0, 'jwks', 'conflict', 'and jwks_uri are for private_key_jwt alone')
  }
  client.jwks?.keys.forEach((key, i) => {
    const problem = publicKeyProblem(key)
    if (problem !== undefined) found.push(wrong(`jwks.keys[${i}]`, 'format', problem))
  })
  return found
}

const loopbackHosts = ['localhost', '127.0.0.1', '[::1]']

/**
 * What is wrong with an address that people or messages will be sent to: absolute, exact, without a fragment
 * (RFC 6749 §3.1.2, RFC 9700 §2.1), on https, or on http on this very machine (RFC 8252 §7.3). A native client may also
 * use a scheme of its own, which must be a reversed domain name (RFC 8252 §7.1): with that dot, `javascript:`, `data:`
 * and the like are out in any spelling, without a list of them.
 */
function redirectUriProblem(value: string, applicationType: 'web' | 'native'): string | undefined {
  if (!/^[\x21-\x7e]+$/.test(value) || /["\\<>^`{|}]/.test(value)) {
    return 'must be an absolute URI, its special characters percent-encoded'
  }
  if (value.includes('#')) return 'must have no fragment'
  const url = URL.parse(value)
  if (url === null) return 'must be an absolute URI'
  if (url.username !== '' || url.password !== '') return 'must not hold credentials'
  if (url.protocol === 'https:' || url.protocol === 'http:') {
    // A browser would read https:example.com as https://example.com: what is compared must be what is meant.
    if (!/^https?:\/\/[^/]/i.test(value)) return 'must have // and a host after its scheme'
    if (url.hostname.includes('*')) return 'must be exact: a wildcard matches nothing'
    const isLoopback = loopbackHosts.includes(url.hostname)
    if (url.protocol === 'http:' && !isLoopback) return 'must be https, or http on localhost, 127.0.0.1 or [::1]'
    if (url.protocol === 'https:' && isLoopback && applicationType === 'native') {
      return 'must be http on a loopback address for a native client (RFC 8252 §8.3)'
    }
    return undefined
  }
  if (applicationType === 'native' && /^[a-z][a-z0-9-]*(\.[a-z0-9-]+)+:$/.test(url.protocol)) return undefined
  return applicationType === 'native'
    ? 'must be https, http on a loopback address, or a scheme that is a reversed domain name, such as com.example.app:/callback'
    : 'must be https, or http on localhost, 127.0.0.1 or [::1]'
}

const privateMembers = ['d', 'p', 'q', 'dp', 'dq', 'qi', 'oth', 'k']

function publicKeyProblem(jwk: Record<string, unknown>): string | undefined {
  if (privateMembers.some((member) => member in jwk)) {
    return 'is a private or symmetric key: register the public one, and treat this one as leaked'
  }
  if (JSON.stringify(jwk).length > 20_000) return 'is too large'
  try {
    const key = createPublicKey({ key: jwk, format: 'jwk' })
    const bits = key.asymmetricKeyDetails?.modulusLength
    if (bits !== undefined && (bits < 2_048 || bits > 8_192)) return 'must have from 2048 to 8192 bits (RFC 7518 §3.3)'
    return undefined
  } catch (error) {
    if (!(error instanceof Error)) throw error
    return `is not a public key in JWK form (${error.message})`
  }
}
