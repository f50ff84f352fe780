/**
 * The pages between an authorization request and its answer: sign in, consent, cancel; and the signed-in person's own
 * page of connected applications. oidc-provider says which step is due (its interaction), a form here completes it, and
 * the browser goes back to the provider, which decides what is next: no page routes to another.
 *
 * Every form carries a CSRF token and answers 303, so that reloading repeats nothing. Everything of one interaction lies
 * under /interaction/:uid, the path of the cookie that holds it.
 */
import { Router } from '@koa/router'
import type { Context } from 'koa'
import { errors, type Client, type Provider, type Session } from 'oidc-provider'
import type { Logger } from 'pino'
import { accountClientId } from '../access/rights.ts'
import type { Actor } from '../audit/audit.ts'
import type { Config } from '../config.ts'
import type { Database } from '../database/database.ts'
import { readForm } from '../http/form-body.ts'
import type { RequestState } from '../http/request-context.ts'
import { formActionOf, setPageHeaders } from '../http/security-headers.ts'
import { findUserAccount, type UserAccount } from '../oauth/account.ts'
import { giveConsent, listAuthorizedClients, withdrawConsent } from '../oauth/consents.ts'
import { sortAskedScopes, type AskedScopes } from '../oauth/grants.ts'
import { passwordAcr, type OAuth } from '../oauth/provider.ts'
import { openidScopes } from '../oauth/scopes.ts'
import { signOut } from '../oauth/sessions.ts'
import { describeScopes } from '../oauth/shown-scopes.ts'
import { Problem } from '../problems.ts'
import { HashingOverloaded } from '../users/hashing-gate.ts'
import type { Csrf } from './csrf.ts'
import type { ConsentPage, DemoUser, LoginProblem, Views } from './render.ts'
import { knownDeviceLifetimeSeconds } from './known-devices.ts'
import { signIn, type SignInContext, type SignInResult } from './sign-in.ts'

export interface LoginParts {
  readonly config: Config
  readonly database: Database
  readonly oauth: OAuth
  readonly views: Views
  readonly csrf: Csrf
  readonly signIn: SignInContext
  /** shown on the sign-in page, in development only */
  readonly demoUsers: readonly DemoUser[]
  readonly log: Logger
}

type Interaction = Awaited<ReturnType<Provider['interactionDetails']>>

export function loginRoutes(parts: LoginParts): Router {
  const { config, database, oauth, views, csrf, log } = parts
  const isHttps = config.issuer.startsWith('https:')
  const deviceCookie = isHttps ? '__Host-device' : 'device'
  const router = new Router()

  router.get('/interaction/:uid', async (ctx) => {
    const interaction = await findInteraction(ctx)
    if (interaction.prompt.name === 'login') return showLogin(ctx, interaction)
    if (interaction.prompt.name === 'consent') return showConsent(ctx, interaction)
    throw new Problem('SERVER_ERROR', `There is no page for the step ${interaction.prompt.name}.`)
  })

  router.post('/interaction/:uid/login', async (ctx) => {
    const interaction = await findInteraction(ctx)
    const { login = '', password = '', csrf_token } = await readForm(ctx)
    csrf.check(ctx, interaction.uid, csrf_token)
    let outcome: SignInResult
    try {
      outcome = await signIn(parts.signIn, {
        login,
        password,
        network: (ctx.state as RequestState).request.clientAddress,
        deviceToken: ctx.cookies.get(deviceCookie, { signed: false }),
        requestId: ctx.state['requestId'] as string,
      })
    } catch (error) {
      if (!(error instanceof HashingOverloaded)) throw error
      ctx.set('Retry-After', String(error.retryAfterSeconds))
      return showLogin(ctx, interaction, {
        status: 503,
        login,
        problem: { kind: 'busy', retryAfterSeconds: error.retryAfterSeconds },
      })
    }
    if (outcome.status === 'refused') {
      return showLogin(ctx, interaction, { status: 401, login, problem: { kind: 'refused' } })
    }
    if (outcome.status === 'throttled') {
      const { retryAfterSeconds } = outcome
      ctx.set('Retry-After', String(retryAfterSeconds))
      return showLogin(ctx, interaction, { status: 429, login, problem: { kind: 'throttled', retryAfterSeconds } })
    }
    if (outcome.deviceToken !== undefined) rememberDevice(ctx, outcome.deviceToken)
    ctx.state['userId'] = outcome.user.id
    await leaveOtherAccount(ctx, interaction, outcome.user.id)
    const { id: accountId, sign_in_version: signInVersion } = outcome.user
    // The version at the moment of the check: a password changed since then ends this sign-in too.
    await answer(ctx, { login: { accountId, acr: passwordAcr, amr: ['pwd'], remember: true, signInVersion } })
  })

  router.post('/interaction/:uid/consent', async (ctx) => {
    const interaction = await findInteraction(ctx)
    const { decision, csrf_token } = await readForm(ctx)
    if (interaction.prompt.name !== 'consent') throw new Problem('FORM_EXPIRED')
    const { client, account, asked } = await describeRequest(interaction)
    csrf.check(ctx, consentPurpose(interaction, asked), csrf_token)
    if (decision !== 'allow') return refuse(ctx, 'the person did not agree')
    ctx.state['userId'] = account.accountId
    await database.db.transaction().execute((trx) =>
      giveConsent(trx, userActor(ctx, account.accountId), {
        userId: account.accountId,
        clientId: client.clientId,
        scopes: new Map([['', asked.openid], ...asked.permitted].map(([r, scopes]) => [r as string, new Set(scopes)])),
      }),
    )
    await answer(ctx, { consent: {} })
  })

  router.post('/interaction/:uid/cancel', async (ctx) => {
    const interaction = await findInteraction(ctx)
    const { csrf_token } = await readForm(ctx)
    csrf.check(ctx, interaction.uid, csrf_token)
    await refuse(ctx, 'the person cancelled')
  })

  router.get('/account/applications', async (ctx) => {
    const session = await findSession(ctx)
    if (session === undefined) return startAccountSignIn(ctx)
    await showApplications(ctx, session.userId, ctx.query['withdrawn'] === '1' ? 'Access was withdrawn.' : undefined)
  })

  router.post('/account/applications', async (ctx) => {
    const form = await readForm(ctx)
    csrf.check(ctx, 'account', form['csrf_token'])
    const session = await findSession(ctx)
    if (session === undefined) return startAccountSignIn(ctx)
    const clientId = form['client_id'] ?? ''
    if ((await oauth.directory.findClient(clientId)) === undefined) {
      throw new Problem('RESOURCE_NOT_FOUND', 'There is no such application.')
    }
    const { userId } = session
    await database.db.transaction().execute((trx) => withdrawConsent(trx, userActor(ctx, userId), { userId, clientId }))
    redirect(ctx, '/account/applications?withdrawn=1')
  })

  router.post('/account/sign-out', async (ctx) => {
    const form = await readForm(ctx)
    csrf.check(ctx, 'account', form['csrf_token'])
    const session = await findSession(ctx)
    if (session !== undefined) await endOf(ctx, session.uid, session.userId)
    redirect(ctx, '/logout/success')
  })

  // Signing in to our own pages is an authorization request like any other; only its session is of interest.
  router.get('/account/callback', async (ctx) => {
    if ((await findSession(ctx)) === undefined) throw new Problem('AUTHENTICATION_ERROR', 'You did not sign in.')
    redirect(ctx, '/account/applications')
  })

  router.get('/.well-known/change-password', (ctx) => redirect(ctx, '/account/applications'))

  async function findInteraction(ctx: Context): Promise<Interaction> {
    try {
      const interaction = await oauth.provider().interactionDetails(ctx.req, ctx.res)
      if (interaction.uid !== (ctx as unknown as { params: { uid: string } }).params.uid)
        throw new errors.SessionNotFound('')
      ctx.state['clientId'] = interaction.params['client_id']
      return interaction
    } catch (error) {
      if (!(error instanceof errors.SessionNotFound)) throw error
      throw new Problem('FORM_EXPIRED', 'This sign-in has expired or was completed already.', { cause: error })
    }
  }

  async function clientOf(interaction: Interaction): Promise<Client> {
    const client = await oauth.provider().Client.find(String(interaction.params['client_id']))
    if (client === undefined) throw new Problem('RESOURCE_NOT_FOUND', 'The application that asked is no longer known.')
    return client
  }

  async function showLogin(
    ctx: Context,
    interaction: Interaction,
    again?: { readonly status: number; readonly login: string; readonly problem: LoginProblem },
  ): Promise<void> {
    const client = await clientOf(interaction)
    const hint = interaction.params['login_hint']
    ctx.status = again?.status ?? 200
    page(
      ctx,
      interaction,
      views.login({
        action: `/interaction/${interaction.uid}/login`,
        cancelAction: `/interaction/${interaction.uid}/cancel`,
        csrfToken: csrf.tokenFor(ctx, interaction.uid),
        clientName: client.clientName ?? client.clientId,
        ...(client.clientUri === undefined ? {} : { clientUri: client.clientUri }),
        login: again?.login ?? (typeof hint === 'string' ? hint.slice(0, 320) : ''),
        ...(again === undefined ? {} : { problem: again.problem }),
        ...(parts.demoUsers.length === 0 ? {} : { demo: parts.demoUsers }),
      }),
    )
  }

  async function describeRequest(interaction: Interaction) {
    const client = await clientOf(interaction)
    const account = await findUserAccount(database.db, interaction.session?.accountId ?? '')
    const entry = await oauth.directory.findClient(client.clientId)
    if (account === undefined || entry === undefined) throw new Problem('FORM_EXPIRED')
    const { scope } = interaction.params
    const scopes = typeof scope === 'string' ? scope.split(' ').filter((name) => name !== '') : []
    const named = interaction.params['resource'] ?? entry.row.default_resource ?? []
    const resources = (Array.isArray(named) ? named : [named]).map(String)
    const openid = openidScopes.filter((scope) => scopes.includes(scope))
    return {
      client,
      entry,
      account,
      asked: sortAskedScopes({ openid, all: scopes, resources }, account, entry.permissions),
    }
  }

  async function showConsent(ctx: Context, interaction: Interaction): Promise<void> {
    const { client, account, asked } = await describeRequest(interaction)
    ctx.state['userId'] = account.accountId
    const granted = await describeScopes(oauth.directory, new Map([['', asked.openid], ...asked.permitted]))
    const { clientUri, logoUri, policyUri, tosUri } = client
    page(
      ctx,
      interaction,
      views.consent({
        action: `/interaction/${interaction.uid}/consent`,
        csrfToken: csrf.tokenFor(ctx, consentPurpose(interaction, asked)),
        clientName: client.clientName ?? client.clientId,
        ...(clientUri === undefined ? {} : { clientUri }),
        ...(logoUri === undefined ? {} : { logoUri }),
        ...(policyUri === undefined ? {} : { policyUri }),
        ...(tosUri === undefined ? {} : { tosUri }),
        userEmail: account.user.email,
        granted,
        notGranted: await whatItCannotDo(asked),
        lasting: client.grantTypeAllowed('refresh_token'),
        lastingDays: Math.floor(config.refreshTokenLifetimeSeconds / 86_400),
        // A device has no address to go back to: this person stays here.
        redirectHost: new URL(redirectUriOf(interaction) ?? config.issuer).host,
      } satisfies ConsentPage),
      logoUri,
    )
  }

  /** What stays closed: of the resources in question, what was not asked for or is beyond the person's own rights. */
  async function whatItCannotDo(asked: ReturnType<typeof sortAskedScopes>): Promise<ConsentPage['notGranted']> {
    const others = await Promise.all(
      [...asked.permitted].map(async ([resource, permitted]) => {
        const entry = await oauth.directory.findResource(resource)
        return [...(entry?.permissions ?? [])].filter(([scope]) => !permitted.includes(scope))
      }),
    )
    return [
      ...others
        .flat()
        .slice(0, 12)
        .map(([scope, description]) => ({ scope, description: description || scope })),
      { description: 'see or change your password' },
      { description: 'sign in as you anywhere else' },
    ]
  }

  async function showApplications(ctx: Context, userId: string, notice: string | undefined): Promise<void> {
    const account: UserAccount | undefined = await findUserAccount(database.db, userId)
    if (account === undefined) return startAccountSignIn(ctx)
    ctx.state['userId'] = userId
    const clients = (await listAuthorizedClients(database.db, userId)).filter(
      ({ clientId }) => clientId !== accountClientId,
    )
    const applications = await Promise.all(
      clients.map(async ({ clientUri, scopes, ...client }) => {
        const byResource = new Map<string, string[]>()
        for (const { resource, scope } of scopes) byResource.set(resource, [...(byResource.get(resource) ?? []), scope])
        return {
          ...client,
          ...(clientUri === null ? {} : { clientUri }),
          scopes: await describeScopes(oauth.directory, byResource),
          withdrawAction: '/account/applications',
        }
      }),
    )
    setPageHeaders(ctx)
    ctx.type = 'html'
    ctx.body = views.applications({
      userEmail: account.user.email,
      csrfToken: csrf.tokenFor(ctx, 'account'),
      applications,
      ...(notice === undefined ? {} : { notice }),
      signOutAction: '/account/sign-out',
    })
  }

  function startAccountSignIn(ctx: Context): void {
    const query = new URLSearchParams({
      client_id: accountClientId,
      response_type: 'code',
      redirect_uri: `${config.issuer}/account/callback`,
      scope: 'openid',
      // The code is never exchanged: a challenge that nobody holds the verifier of.
      code_challenge: 'A'.repeat(43),
      code_challenge_method: 'S256',
    })
    redirect(ctx, `/authorize?${query}`)
  }

  async function findSession(ctx: Context): Promise<{ uid: string; userId: string } | undefined> {
    const session: Session = await oauth.provider().Session.get(ctx)
    return session.accountId === undefined ? undefined : { uid: session.uid, userId: session.accountId }
  }

  /** Somebody else signs in on this browser: the session before is over, and the interaction no longer bound to it. */
  async function leaveOtherAccount(ctx: Context, interaction: Interaction, userId: string): Promise<void> {
    const session = await findSession(ctx)
    if (session === undefined || session.userId === userId) return
    await endOf(ctx, session.uid, session.userId)
    Object.assign(interaction, { session: undefined, grantId: undefined })
    await interaction.persist()
  }

  async function endOf(ctx: Context, sessionUid: string, userId: string): Promise<void> {
    await signOut(database.db, oauth.provider(), userActor(ctx, userId), sessionUid, (clientId, error) => {
      log.warn({ client_id: clientId, error_message: String(error) }, 'a client did not take its back-channel logout')
    })
  }

  async function answer(ctx: Context, result: Parameters<Provider['interactionResult']>[2]): Promise<void> {
    redirect(ctx, await oauth.provider().interactionResult(ctx.req, ctx.res, result))
  }

  function refuse(ctx: Context, description: string): Promise<void> {
    return answer(ctx, { error: 'access_denied', error_description: description })
  }

  /** The way from a form leads, by redirects, to the client: the browser must be allowed to go there. */
  function page(ctx: Context, interaction: Interaction, html: string, logoUri?: string): void {
    const target = redirectUriOf(interaction)
    const logo = URL.parse(logoUri ?? '')
    setPageHeaders(ctx, {
      formAction: target === undefined ? [] : [formActionOf(target)],
      images: logo === null || logo.origin === 'null' ? [] : [logo.origin],
    })
    ctx.type = 'html'
    ctx.body = html
  }

  function rememberDevice(ctx: Context, token: string): void {
    ctx.cookies.set(deviceCookie, token, {
      httpOnly: true,
      sameSite: 'lax',
      secure: isHttps,
      signed: false,
      path: '/',
      overwrite: true,
      maxAge: knownDeviceLifetimeSeconds * 1_000,
    })
  }

  return router
}

/** Agreement is to what the page showed: were it more by now, the form no longer counts. */
function consentPurpose({ uid }: Interaction, { openid, permitted }: AskedScopes): string {
  return JSON.stringify([uid, openid, [...permitted]])
}

function redirectUriOf(interaction: Interaction): string | undefined {
  const uri = interaction.params['redirect_uri']
  return typeof uri === 'string' ? uri : undefined
}

function userActor(ctx: Context, userId: string): Actor {
  return { type: 'user', id: userId, requestId: ctx.state['requestId'] as string }
}

/** 303: whatever the method was, the browser goes on with GET (RFC 9700 §4.12). */
function redirect(ctx: Context, location: string): void {
  ctx.redirect(location)
  ctx.status = 303
}
