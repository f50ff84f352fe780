/**
 * The wire between a guard and the issuer for tests, to be listened to, tampered with and cut. What is put in here goes
 * through the guard's own feed; the issuer signs whatever it is asked to, as `mint` does.
 */
import { randomUUID } from 'node:crypto'
import { createGuard, GuardError } from '@latchkey/guard'
import type { Fetch, Guard, GuardOptions, RevocationFeedHealth } from '@latchkey/guard'
import type { TestIssuer } from '@latchkey/guard/testing'
import { onTestFinished } from 'vitest'

export const SESSION_REVOKED = 'https://schemas.openid.net/secevent/caep/event-type/session-revoked'
export const CLAIMS_CHANGED = 'https://schemas.openid.net/secevent/caep/event-type/token-claims-change'
export const CREDENTIAL_CHANGED = 'https://schemas.openid.net/secevent/caep/event-type/credential-change'

export interface PollBody {
  readonly maxEvents: number
  readonly returnImmediately: boolean
  readonly ack: readonly string[]
  readonly setErrs?: Readonly<Record<string, { readonly err: string; readonly description: string }>>
}

/** Answers a request in the issuer's place; `undefined` lets it pass. */
export type Interceptor = (address: string, init: RequestInit) => Promise<Response> | Response | undefined

export class Wire {
  /** Method and path of every request so far. */
  readonly requests: string[] = []
  readonly polls: PollBody[] = []
  intercept: Interceptor = () => undefined
  readonly #idp: TestIssuer
  readonly #injected = new Map<string, string>()
  #wake: () => void = () => undefined

  constructor(idp: TestIssuer) {
    this.#idp = idp
  }

  readonly fetch: Fetch = async (address, init) => {
    const { pathname } = new URL(address)
    this.requests.push(`${init.method ?? 'GET'} ${pathname}`)
    const isPoll = pathname.endsWith('/poll')
    if (isPoll) this.polls.push(JSON.parse(bodyOf(init)) as PollBody)
    const instead = this.intercept(address, init)
    if (instead !== undefined) return instead
    return isPoll ? this.#poll(address, init) : this.#idp.fetch(address, init)
  }

  count(request: string): number {
    return this.requests.filter((one) => one === request).length
  }

  /** Puts tokens into the next answer to a poll, at once if one waits. */
  inject(sets: Readonly<Record<string, string>>): void {
    for (const [jti, token] of Object.entries(sets)) this.#injected.set(jti, token)
    this.#wake()
  }

  /** What the guard said to a token: `ack`, the error, or nothing yet. */
  verdictOn(jti: string): string | undefined {
    for (const poll of this.polls) {
      if (poll.ack.includes(jti)) return 'ack'
      const errors = new Map(Object.entries(poll.setErrs ?? {}))
      const error = errors.get(jti)
      if (error !== undefined) return error.err
    }
    return undefined
  }

  async #poll(address: string, init: RequestInit): Promise<Response> {
    const take = (): Response => {
      const sets = Object.fromEntries(this.#injected)
      this.#injected.clear()
      return Response.json({ sets })
    }
    if (this.#injected.size > 0) return take()
    const woken = new Promise<'woken'>((resolve) => {
      this.#wake = () => resolve('woken')
    })
    const own = new AbortController()
    const signal = AbortSignal.any([own.signal, ...(init.signal ? [init.signal] : [])])
    const answer = this.#idp.fetch(address, { ...init, signal })
    const first = await Promise.race([woken, answer])
    if (first !== 'woken') return first
    own.abort()
    await answer
    return take()
  }
}

export function bodyOf({ body }: RequestInit): string {
  return typeof body === 'string' ? body : ''
}

/** A security event token of this issuer's, good but for what is changed. */
export async function setOf(
  idp: TestIssuer,
  subject: object | undefined,
  events: object,
  changed: { readonly claims?: object; readonly header?: object } = {},
): Promise<{ readonly jti: string; readonly token: string }> {
  const jti = randomUUID()
  const bare = { sub: undefined, exp: undefined, client_id: undefined, scope: undefined, token_version: undefined }
  const token = await idp.mint({
    header: { typ: 'secevent+jwt', ...changed.header },
    claims: { ...bare, jti, aud: `${idp.issuer}/ssf`, sub_id: subject, events, ...changed.claims },
  })
  return { jti, token }
}

/** A guard on this wire, closed after the test. */
export function guardOn(idp: TestIssuer, wire: Wire, options: Partial<GuardOptions> = {}): Guard {
  const guard = createGuard({ ...idp.options, fetch: wire.fetch, ...options })
  onTestFinished(() => guard.close())
  return guard
}

export function feedOf(guard: Guard): RevocationFeedHealth {
  return guard.health().revocation as RevocationFeedHealth
}

/** The subject, or the status and reason of the refusal. */
export async function outcome(guard: Guard, token: string): Promise<string> {
  try {
    const request = new Request('https://service.test/', { headers: { authorization: `Bearer ${token}` } })
    return (await guard.authenticate(request)).subject.id
  } catch (error) {
    if (error instanceof GuardError) return `${error.status} ${error.reason}`
    throw error
  }
}

/** Waits until it is so; a test that waits in vain says what it waited for. */
export async function until(what: string, isSo: () => boolean, milliseconds = 10_000): Promise<void> {
  const end = performance.now() + milliseconds
  while (!isSo()) {
    if (performance.now() > end) throw new Error(`still not so: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 2))
  }
}

export async function caughtUp(guard: Guard): Promise<void> {
  await until('caught up', () => feedOf(guard).status === 'current')
}
