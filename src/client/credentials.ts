import { clientCredentials } from '@latchkey/guard/outbound'
import type { ClientCredentialsOptions, TokenSource } from '@latchkey/guard/outbound'

/** Who calls. Each may do what its scopes, or those of its client, allow. */
export type ClientAuth =
  | {
      /** A machine client of the provider, which gets access tokens for the API by itself. */
      readonly clientId: string
      readonly clientSecret: string
      /** Scopes, separated by spaces. @defaultValue all that the client may ask for */
      readonly scope?: string
    }
  | {
      /** An access token for the API, or a function that gives one: before each attempt, and again after a 401. */
      readonly token: string | (() => Promise<string>)
    }
  | {
      /** For callers that cannot do OAuth. */
      readonly apiKey: string
    }

/**
 * @param provider.issuer - without a slash at its end
 * @returns where tokens come from; undefined for whoever uses none
 * @throws TypeError when a client secret would go over http to another machine
 */
export function tokenSource(
  auth: ClientAuth,
  provider: { readonly issuer: string } & Pick<ClientCredentialsOptions, 'outbound' | 'allowHttp' | 'now'>,
): TokenSource | undefined {
  const { issuer, ...calls } = provider
  if ('apiKey' in auth) return undefined
  if ('clientId' in auth) {
    return clientCredentials({ ...calls, ...auth, tokenEndpoint: `${issuer}/token`, resource: `${issuer}/v1` })
  }
  const { token } = auth
  // The same text again would be refused again.
  return typeof token === 'string'
    ? { get: async () => token, drop: () => false }
    : { get: () => token(), drop: () => true }
}
