/**
 * The demo web client, in development only: an ordinary client of this provider, which happens to run beside it. It
 * sends the browser to sign in, exchanges the code at the token endpoint over HTTP, and shows the tokens decoded.
 */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'
import { Router } from '@koa/router'
import { decodeJwt, decodeProtectedHeader } from 'jose'
import type { Context } from 'koa'
import { z } from 'zod'
import { setPageHeaders } from '../http/security-headers.ts'
import type { ShownToken, Views } from '../login/render.ts'
import { Problem } from '../problems.ts'
import type { DemoData } from './demo-data.ts'

const startPath = '/demo'

export interface DemoParts {
  readonly demo: DemoData
  readonly views: Views
}

export function demoRoutes({ demo, views }: DemoParts): Router {
  const router = new Router()
  const { web, spa } = demo.clients

  router.get('/', (ctx) => {
    show(
      ctx,
      views.home({
        issuer: demo.issuer,
        development: {
          startUrl: startPath,
          users: [
            { ...demo.user, label: 'A person' },
            { ...demo.admin, label: 'An administrator' },
          ],
          commands: [{ title: 'A token for a service', command: serviceTokenCommand(demo) }],
          links: [
            {
              title: 'Provider metadata',
              href: '/.well-known/openid-configuration',
              about: 'every endpoint and what it supports',
            },
            { title: 'Signing keys', href: '/.well-known/jwks.json', about: 'what services verify tokens with' },
            {
              title: 'Your applications',
              href: '/account/applications',
              about: 'what each may do, and how to withdraw it',
            },
            {
              title: 'Management API',
              href: '/docs',
              about: 'people, roles, clients and the rest over HTTP: to read, and to try',
            },
            { title: 'Health', href: '/health', about: 'whether the server is well' },
          ],
        },
      }),
    )
  })

  router.get(startPath, (ctx) => {
    const state = randomBytes(32).toString('base64url')
    const verifier = randomBytes(32).toString('base64url')
    remember(ctx, `${state}.${verifier}`)
    const query = new URLSearchParams({
      client_id: web.client_id,
      response_type: 'code',
      redirect_uri: web.redirect_uri,
      scope: 'openid profile email models:read models:write models:delete',
      resource: demo.resource,
      state,
      code_challenge: createHash('sha256').update(verifier).digest('base64url'),
      code_challenge_method: 'S256',
    })
    ctx.redirect(`/authorize?${query}`)
    ctx.status = 303
  })

  router.get(new URL(web.redirect_uri).pathname, async (ctx) => {
    const [state = '', verifier = ''] = (ctx.cookies.get('demo', { signed: false }) ?? '').split('.')
    const { code, error, error_description } = ctx.query
    if (!isSame(state, ctx.query['state'])) return waiting(ctx)
    remember(ctx, null)
    if (typeof code !== 'string') {
      throw new Problem(
        'AUTHORIZATION_ERROR',
        String(error_description ?? error ?? 'The sign-in was not completed.').slice(0, 200),
      )
    }
    const answer = await exchange(code, verifier)
    show(
      ctx,
      views.demoTokens({
        idToken: shown(answer.id_token),
        accessToken: shown(answer.access_token),
        ...(answer.refresh_token === undefined ? {} : { refreshToken: { shortened: shorten(answer.refresh_token) } }),
        scope: answer.scope ?? '',
        expiresIn: answer.expires_in,
        startUrl: startPath,
      }),
    )
  })

  // The single-page demo client has no page: whoever uses it brings one, and reads the answer off this address.
  router.get(new URL(spa.redirect_uri).pathname, waiting)

  function waiting(ctx: Context): void {
    show(
      ctx,
      views.error({
        status: 200,
        title: 'This is where the demo client receives its answers',
        detail: 'An answer arrived that was not asked for from this browser, so nothing was done with it.',
        requestId: ctx.state['requestId'] as string,
        suggestion: `Start at ${demo.issuer}${startPath}.`,
      }),
    )
  }

  async function exchange(code: string, verifier: string): Promise<z.infer<typeof tokenAnswer>> {
    const response = await fetch(`${demo.issuer}/token`, {
      method: 'POST',
      headers: { authorization: `Basic ${Buffer.from(`${web.client_id}:${web.client_secret}`).toString('base64')}` },
      body: new URLSearchParams({
        grant_type: 'authorization_code',
        code,
        redirect_uri: web.redirect_uri,
        code_verifier: verifier,
      }),
      signal: AbortSignal.timeout(10_000),
    })
    const parsed = tokenAnswer.safeParse(await response.json())
    if (!response.ok || !parsed.success) {
      throw new Problem('CONFLICT', 'This code was used already, or has expired.', {})
    }
    return parsed.data
  }

  return router
}

/** A line to paste into a terminal. */
export function serviceTokenCommand({ issuer, clients: { service } }: DemoData): string {
  return `curl -u ${service.client_id}:${service.client_secret} -d grant_type=client_credentials -d 'scope=${service.scope}' ${issuer}/token`
}

export function demoStartUrl({ issuer }: DemoData): string {
  return `${issuer}${startPath}`
}

const tokenAnswer = z.object({
  access_token: z.string(),
  id_token: z.string(),
  refresh_token: z.string().optional(),
  scope: z.string().optional(),
  expires_in: z.number(),
})

function show(ctx: Context, html: string): void {
  setPageHeaders(ctx)
  ctx.set('Cache-Control', 'no-store')
  ctx.type = 'html'
  ctx.body = html
}

function remember(ctx: Context, value: string | null): void {
  ctx.cookies.set('demo', value, { httpOnly: true, sameSite: 'lax', signed: false, path: startPath, overwrite: true })
}

function isSame(expected: string, given: unknown): boolean {
  const [a, b] = [Buffer.from(expected), Buffer.from(String(given))]
  return expected !== '' && a.length === b.length && timingSafeEqual(a, b)
}

function shown(token: string): ShownToken {
  return { shortened: shorten(token), header: { ...decodeProtectedHeader(token) }, payload: { ...decodeJwt(token) } }
}

function shorten(token: string): string {
  return `${token.slice(0, 12)}…${token.slice(-6)}`
}
