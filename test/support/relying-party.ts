/**
 * Clients of every sort, registered by the functions that the command line uses, and the steps that each of them takes
 * at the provider over HTTP: ask, be answered, exchange, refresh.
 */
import { createHash, randomBytes } from 'node:crypto'
import { systemActor } from '../../src/audit/audit.ts'
import { createClient } from '../../src/oauth/clients.ts'
import type { TestProvider } from './provider.ts'
import { completeSignIn, postForm, UserAgent, type TokenAnswer } from './user-agent.ts'

export interface RegisteredClient {
  readonly client_id: string
  readonly client_secret?: string
  /** '' for a client that nobody signs in to */
  readonly redirect_uri: string
}

export const callbackUri = 'https://rp.example.test/callback'

/** A first-party web client that may read and write the demo's models, unless the metadata says otherwise. */
export async function registerClient(
  provider: TestProvider,
  metadata: Partial<Parameters<typeof createClient>[2]> = {},
): Promise<RegisteredClient> {
  const usesCodes = metadata.type !== 'machine'
  const { client, secret } = await provider.database.db.transaction().execute((trx) =>
    createClient(trx, systemActor, {
      type: 'web',
      name: 'Relying party',
      first_party: true,
      ...(usesCodes ? { redirect_uris: [callbackUri] } : {}),
      permissions: ['models:read', 'models:write'].map((permission) => ({
        resource: provider.demo.resource,
        permission,
      })),
      ...metadata,
    }),
  )
  return {
    client_id: client.id,
    ...(secret === undefined ? {} : { client_secret: secret }),
    redirect_uri: client.redirect_uris[0] ?? '',
  }
}

/** A parameter that is undefined is left out; one that is a list is repeated. */
export type RequestParameters = Readonly<Record<string, string | readonly string[] | undefined>>

export function query(parameters: RequestParameters): URLSearchParams {
  return new URLSearchParams(
    Object.entries(parameters).flatMap(([name, value]) =>
      (typeof value === 'string' ? [value] : (value ?? [])).map((one): [string, string] => [name, one]),
    ),
  )
}

export interface Asked {
  readonly url: string
  readonly parameters: URLSearchParams
  /** '' where no challenge was sent */
  readonly verifier: string
  readonly state: string
}

/** A plain sign-in of this client: `openid`, no resource, PKCE. */
export function ask(provider: TestProvider, client: RegisteredClient, parameters: RequestParameters = {}): Asked {
  const verifier = randomBytes(32).toString('base64url')
  const state = randomBytes(8).toString('hex')
  const all = query({
    client_id: client.client_id,
    redirect_uri: client.redirect_uri,
    response_type: 'code',
    scope: 'openid',
    state,
    code_challenge: challengeOf(verifier),
    code_challenge_method: 'S256',
    ...parameters,
  })
  return {
    url: `${provider.issuer}/authorize?${all}`,
    parameters: all,
    verifier: all.has('code_challenge') ? verifier : '',
    state,
  }
}

/** For clients that need no PKCE. */
export const withoutPkce = { code_challenge: undefined, code_challenge_method: undefined }

export function challengeOf(verifier: string): string {
  return createHash('sha256').update(verifier).digest('base64url')
}

export interface Answered extends Asked {
  readonly callback: URL
  /** '' when the answer is an error */
  readonly code: string
}

/** Asks, signs in and consents where that is asked for, and reads what the client is told. */
export async function authorize(
  provider: TestProvider,
  client: RegisteredClient,
  options: {
    readonly parameters?: RequestParameters
    readonly agent?: UserAgent
    readonly person?: { readonly email: string; readonly password: string }
  } = {},
): Promise<Answered> {
  const asked = ask(provider, client, options.parameters)
  const callback = await completeSignIn(
    options.agent ?? new UserAgent(),
    asked.url,
    options.person ?? provider.demo.user,
  )
  return { ...asked, callback, code: callback.searchParams.get('code') ?? '' }
}

export function exchange(
  provider: TestProvider,
  client: RegisteredClient,
  answered: Pick<Answered, 'code' | 'verifier'>,
  options: { readonly parameters?: RequestParameters; readonly headers?: Readonly<Record<string, string>> } = {},
): Promise<TokenAnswer> {
  return postForm(
    `${provider.issuer}/token`,
    client,
    query({
      grant_type: 'authorization_code',
      code: answered.code,
      redirect_uri: client.redirect_uri,
      code_verifier: answered.verifier === '' ? undefined : answered.verifier,
      ...options.parameters,
    }),
    options.headers,
  )
}

/** Signs in and exchanges. */
export async function signInAt(
  provider: TestProvider,
  client: RegisteredClient,
  options: Parameters<typeof authorize>[2] = {},
): Promise<TokenAnswer> {
  const answer = await exchange(provider, client, await authorize(provider, client, options))
  if (answer.status !== 200) throw new Error(`no tokens: ${JSON.stringify(answer.body)}`)
  return answer
}

export function refresh(
  provider: TestProvider,
  client: RegisteredClient,
  refreshToken: string | undefined,
  options: { readonly parameters?: RequestParameters; readonly headers?: Readonly<Record<string, string>> } = {},
): Promise<TokenAnswer> {
  return postForm(
    `${provider.issuer}/token`,
    client,
    query({ grant_type: 'refresh_token', refresh_token: refreshToken ?? '', ...options.parameters }),
    options.headers,
  )
}

export async function userinfo(
  provider: TestProvider,
  accessToken: string | undefined,
  scheme: 'Bearer' | 'DPoP' = 'Bearer',
  headers: Readonly<Record<string, string>> = {},
): Promise<TokenAnswer> {
  const response = await fetch(`${provider.issuer}/userinfo`, {
    headers: { authorization: `${scheme} ${accessToken ?? ''}`, ...headers },
  })
  return { status: response.status, headers: response.headers, body: (await response.json()) as TokenAnswer['body'] }
}

/** Whether its client can still use it: `active` at introspection. */
export async function isActive(
  provider: TestProvider,
  client: RegisteredClient,
  token: string | undefined,
): Promise<boolean> {
  const { body } = await postForm(`${provider.issuer}/introspect`, client, { token: token ?? '' })
  return body['active'] === true
}
