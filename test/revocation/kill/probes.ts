/**
 * How each artefact is tried: as its holder would use it, at whichever process is asked. Where it can also be asked
 * about, both must say the same.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { GuardError, type Guard } from '@latchkey/guard'
import type { TestProvider } from '../../support/provider.ts'
import {
  ask,
  exchange,
  isActive,
  query,
  refresh,
  userinfo,
  type RegisteredClient,
} from '../../support/relying-party.ts'
import { postForm, UserAgent } from '../../support/user-agent.ts'
import { deviceGrant } from '../../../src/oauth/client-rules.ts'
import type { World } from './world.ts'

export interface Probing {
  /** the process that is asked */
  readonly provider: TestProvider
  /** of the browsers' requests, which all processes share */
  readonly issuer: string
  /** a resource that asks about tokens */
  readonly observer: RegisteredClient
  /** the guard of a resource that asks about none, and hears of revocations */
  readonly guard: Guard
  /** another application that the person may sign in to */
  readonly elsewhere: RegisteredClient
  /** name → value, as a thief has copied them */
  readonly cookies: Readonly<Record<string, string>>
}

type Probe = (world: World, probing: Probing) => Promise<boolean>

/** Name, as docs/revocation.md has it, → whether it works. In an order in which none spoils another. */
export const probes: ReadonlyMap<string, Probe> = new Map<string, Probe>([
  [
    'session',
    async (_world, { provider, issuer, elsewhere, cookies }) => {
      const thief = new UserAgent({}, provider.issuer)
      for (const [name, value] of Object.entries(cookies)) thief.setCookie(issuer, name, value)
      const page = await thief.fetch(ask({ ...provider, issuer }, elsewhere, { prompt: 'none' }).url)
      const answer = new URL(page.headers.get('location') ?? 'about:blank').searchParams
      if (!answer.has('code') && answer.get('error') !== 'login_required')
        throw new Error(`neither signed in nor not: ${page.status} ${page.html}`)
      return answer.has('code')
    },
  ],
  [
    'access token',
    async ({ accessToken }, { provider, observer, guard }) => {
      const isCalledActive = await isActive(provider, observer, accessToken)
      return agreed(await isLetIn(guard, accessToken, isCalledActive), isCalledActive)
    },
  ],
  [
    'machine token',
    async ({ machineToken }, { provider, observer, guard }) => {
      const headers = { authorization: `Bearer ${machineToken}` }
      const { status } = await fetch(`${provider.issuer}/v1/clients`, { headers })
      const isCalledActive = await isActive(provider, observer, machineToken)
      agreed(await isLetIn(guard, machineToken, isCalledActive), isCalledActive)
      return agreed(status === 200, isCalledActive)
    },
  ],
  [
    'opaque token',
    async ({ opaqueToken }, { provider, observer }) => {
      const { status } = await userinfo(provider, opaqueToken)
      return agreed(status === 200, await isActive(provider, observer, opaqueToken))
    },
  ],
  [
    'replayed reply',
    async ({ client, spentRefreshToken, refreshToken }, { provider }) => {
      const { status, body } = await refresh(provider, client, spentRefreshToken)
      if (status === 200 && body.refresh_token !== refreshToken) throw new Error('a second successor')
      return status === 200
    },
  ],
  [
    'refresh token',
    async ({ client, refreshToken }, { provider, observer }) => {
      const isCalledActive = await isActive(provider, observer, refreshToken)
      const { status, body } = await refresh(provider, client, refreshToken)
      // There may be nothing left that it is good for.
      return body.error === 'invalid_target' ? false : agreed(status === 200, isCalledActive)
    },
  ],
  ['code', async ({ client, code }, { provider }) => (await exchange(provider, client, code)).status === 200],
  [
    'pushed request',
    async ({ client: { client_id }, requestUri }, { provider, issuer }) => {
      const browser = new UserAgent({}, provider.issuer)
      const page = await browser.open(`${issuer}/authorize?${query({ client_id, request_uri: requestUri })}`)
      return page.html.includes('name="password"')
    },
  ],
  [
    'device code',
    async ({ client, deviceCode }, { provider }) => {
      const asked = { grant_type: deviceGrant, device_code: deviceCode }
      return (await postForm(`${provider.issuer}/token`, client, asked)).status === 200
    },
  ],
  [
    'API key',
    async ({ apiKey }, { provider }) => {
      const { status } = await fetch(`${provider.issuer}/v1/clients`, { headers: { 'x-api-key': apiKey } })
      if (status !== 200 && status !== 403) throw new Error(`an API key was answered ${status}`)
      return status === 200
    },
  ],
])

/**
 * What a service does with it. The news takes a moment, so a second is given to it.
 * @throws Error when the service cannot say
 */
async function isLetIn(guard: Guard, token: string, expected: boolean): Promise<boolean> {
  const request = new Request('http://localhost/', { headers: { authorization: `Bearer ${token}` } })
  for (const until = performance.now() + 1_000; ; await sleep(5)) {
    const isGood = await guard.authenticate(request).then(
      () => true,
      (error: unknown) => {
        if (error instanceof GuardError && error.status === 401) return false
        throw error
      },
    )
    if (isGood === expected || performance.now() > until) return isGood
  }
}

/** @throws Error when using it and asking about it say different things */
function agreed(isUsable: boolean, isCalledActive: boolean): boolean {
  if (isUsable !== isCalledActive) throw new Error(`usable: ${isUsable}, said to be active: ${isCalledActive}`)
  return isUsable
}
