/**
 * A person's browser without the browser: cookies by path, redirects followed by hand, forms found in the page and
 * posted with every hidden field, as a browser without JavaScript does.
 */
import { createHash, randomBytes } from 'node:crypto'
import type { DemoData } from '../../src/demo/demo-data.ts'

export interface Page {
  readonly status: number
  readonly url: URL
  readonly headers: Headers
  readonly html: string
}

export interface Form {
  readonly action: string
  readonly fields: Readonly<Record<string, string>>
}

export class UserAgent {
  readonly #cookies = new Map<string, { value: string; path: string; host: string }>()
  readonly #headers: Readonly<Record<string, string>>
  readonly #listensAt: string | undefined

  /** @param listensAt where to send requests instead of the host that they name, as a proxy in front of it would */
  constructor(headers: Readonly<Record<string, string>> = {}, listensAt?: string) {
    this.#headers = headers
    this.#listensAt = listensAt
  }

  /** name → value of every cookie, whatever its path */
  cookies(): Record<string, string> {
    return Object.fromEntries([...this.#cookies].map(([key, { value }]) => [key.split('|')[0] ?? '', value]))
  }

  setCookie(url: string, name: string, value: string, path = '/'): void {
    this.#cookies.set(`${name}|${path}`, { value, path, host: new URL(url).host })
  }

  /** One request, nothing followed. */
  async fetch(url: string | URL, init: RequestInit = {}): Promise<Page> {
    const target = new URL(url)
    const headers = new Headers({ accept: 'text/html', ...this.#headers })
    new Headers(init.headers).forEach((value, name) => headers.set(name, value))
    const cookie = [...this.#cookies.entries()]
      .filter(([, { path, host }]) => host === target.host && target.pathname.startsWith(path))
      .map(([key, { value }]) => `${key.split('|')[0]}=${value}`)
      .join('; ')
    if (cookie !== '') headers.set('cookie', cookie)
    const address = this.#listensAt === undefined ? target : new URL(target.pathname + target.search, this.#listensAt)
    const response = await fetch(address, { ...init, headers, redirect: 'manual' })
    for (const line of response.headers.getSetCookie()) this.#remember(target, line)
    return { status: response.status, url: target, headers: response.headers, html: await response.text() }
  }

  /** Follows redirects as long as they stay here; a redirect elsewhere is returned as it is. */
  async open(url: string | URL, init: RequestInit = {}): Promise<Page> {
    let page = await this.fetch(url, init)
    for (let hops = 0; hops < 10; hops += 1) {
      const location = page.headers.get('location')
      if (location === null) return page
      const next = new URL(location, page.url)
      if (next.host !== page.url.host || next.pathname.startsWith('/demo/')) return page
      page = await this.fetch(next)
    }
    throw new Error(`too many redirects at ${page.url.href}`)
  }

  /** Posts a form of the page with these values in it. */
  async submit(page: Page, values: Readonly<Record<string, string>> = {}, index = 0): Promise<Page> {
    const form = findForms(page)[index]
    if (form === undefined) throw new Error(`no form on ${page.url.href}: ${page.status} ${page.html.slice(0, 2_000)}`)
    return this.open(new URL(form.action, page.url), {
      method: 'POST',
      body: new URLSearchParams({ ...form.fields, ...values }),
    })
  }

  #remember(url: URL, line: string): void {
    const [pair = '', ...attributes] = line.split(';').map((part) => part.trim())
    const equals = pair.indexOf('=')
    const path = attributes.find((a) => a.toLowerCase().startsWith('path='))?.slice(5) ?? '/'
    const name = pair.slice(0, equals)
    const isGone = attributes.some((a) => a.toLowerCase() === 'expires=thu, 01 jan 1970 00:00:00 gmt')
    if (isGone) this.#cookies.delete(`${name}|${path}`)
    else this.#cookies.set(`${name}|${path}`, { value: pair.slice(equals + 1), path, host: url.host })
  }
}

export function findForms({ html }: Page): Form[] {
  return [...html.matchAll(/<form\b[^>]*>[\s\S]*?<\/form>/g)].map(([form]) => ({
    action: attribute(form, 'action') ?? '',
    fields: Object.fromEntries(
      [...form.matchAll(/<input\b[^>]*>/g)].flatMap(([input]) => {
        const name = attribute(input, 'name')
        return name === undefined || attribute(input, 'type') === 'submit'
          ? []
          : [[name, attribute(input, 'value') ?? '']]
      }),
    ),
  }))
}

function attribute(tag: string, name: string): string | undefined {
  const value = new RegExp(`\\s${name}="([^"]*)"`).exec(tag)?.[1]
  return value?.replaceAll('&quot;', '"').replaceAll('&#39;', "'").replaceAll('&lt;', '<').replaceAll('&amp;', '&')
}

export interface AuthorizationRequest {
  readonly url: string
  readonly verifier: string
  readonly state: string
}

/** An authorization request of the demo web client, or of whichever the parameters say. */
export function authorizationRequest(
  issuer: string,
  demo: DemoData,
  parameters: Readonly<Record<string, string | undefined>> = {},
): AuthorizationRequest {
  const verifier = randomBytes(32).toString('base64url')
  const state = randomBytes(8).toString('hex')
  const all: Record<string, string | undefined> = {
    client_id: demo.clients.web.client_id,
    redirect_uri: demo.clients.web.redirect_uri,
    response_type: 'code',
    scope: 'openid email models:read',
    resource: demo.resource,
    state,
    code_challenge: createHash('sha256').update(verifier).digest('base64url'),
    code_challenge_method: 'S256',
    ...parameters,
  }
  const query = new URLSearchParams(
    Object.entries(all).filter((entry): entry is [string, string] => entry[1] !== undefined),
  )
  return { url: `${issuer}/authorize?${query}`, verifier, state }
}

/** Goes through sign-in and consent, whichever is shown, and returns where the client is told the answer. */
export async function completeSignIn(
  agent: UserAgent,
  url: string,
  person: { readonly email: string; readonly password: string },
): Promise<URL> {
  let page = await agent.open(url)
  for (let steps = 0; steps < 4; steps += 1) {
    const location = page.headers.get('location')
    if (location !== null) return new URL(location, page.url)
    if (page.html.includes('name="password"')) {
      page = await agent.submit(page, { login: person.email, password: person.password })
    } else if (page.html.includes('id="allow"')) {
      page = await agent.submit(page, { decision: 'allow' })
    } else {
      throw new Error(`neither sign-in nor consent: ${page.status} ${page.url.href} ${page.html.slice(0, 3_000)}`)
    }
  }
  throw new Error('the sign-in did not come to an end')
}

export interface TokenAnswer {
  readonly status: number
  readonly headers: Headers
  readonly body: Readonly<Record<string, unknown>> & {
    readonly access_token?: string
    readonly refresh_token?: string
    readonly id_token?: string
    readonly scope?: string
    readonly error?: string
    readonly error_description?: string
    readonly expires_in?: number
  }
}

/** Posts to an endpoint of the protocol, as a client: with its secret when it has one. */
export async function postForm(
  url: string,
  client: { readonly client_id: string; readonly client_secret?: string } | undefined,
  parameters: Readonly<Record<string, string>> | URLSearchParams,
  headers: Readonly<Record<string, string>> = {},
): Promise<TokenAnswer> {
  const body = new URLSearchParams(parameters)
  const all: Record<string, string> = { ...headers }
  if (client?.client_secret !== undefined) {
    all['authorization'] = `Basic ${Buffer.from(`${client.client_id}:${client.client_secret}`).toString('base64')}`
  } else if (client !== undefined) {
    body.set('client_id', client.client_id)
  }
  const response = await fetch(url, { method: 'POST', headers: all, body })
  const text = await response.text()
  return {
    status: response.status,
    headers: response.headers,
    body: text === '' ? {} : (JSON.parse(text) as TokenAnswer['body']),
  }
}

/** Signs a person in at a demo client and exchanges the code. */
export async function obtainTokens(
  issuer: string,
  demo: DemoData,
  options: {
    readonly agent?: UserAgent
    readonly person?: { readonly email: string; readonly password: string }
    readonly client?: 'web' | 'spa'
    readonly parameters?: Readonly<Record<string, string | undefined>>
  } = {},
): Promise<TokenAnswer> {
  const client = demo.clients[options.client ?? 'web']
  const request = authorizationRequest(issuer, demo, {
    client_id: client.client_id,
    redirect_uri: client.redirect_uri,
    ...options.parameters,
  })
  const callback = await completeSignIn(options.agent ?? new UserAgent(), request.url, options.person ?? demo.user)
  const code = callback.searchParams.get('code')
  if (code === null) throw new Error(`no code: ${callback.href}`)
  return postForm(`${issuer}/token`, client, {
    grant_type: 'authorization_code',
    code,
    redirect_uri: client.redirect_uri,
    code_verifier: request.verifier,
  })
}
