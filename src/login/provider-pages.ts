/**
 * The pages that oidc-provider asks for in the middle of the protocol: its errors, signing out, the device flow. What
 * happened is the provider's word; how it reads is ours.
 */
import type { Context } from 'koa'
import { formActionOf, setPageHeaders } from '../http/security-headers.ts'
import type { ProviderPages } from '../oauth/provider.ts'
import type { DeviceCodePage, Views } from './render.ts'

export function providerPages(views: Views): ProviderPages {
  const show = (ctx: Context, html: string, sources: Parameters<typeof setPageHeaders>[1] = {}) => {
    setPageHeaders(ctx, sources)
    ctx.type = 'html'
    ctx.body = html
  }
  return {
    error(ctx, { code, description, status }) {
      const words = errorWords[code] ?? fallbackWords
      const detail = description === undefined ? words.detail : `${words.detail} (${code}: ${description})`
      const requestId = ctx.state['requestId'] as string
      show(ctx, views.error({ status, title: words.title, detail, requestId, suggestion: words.suggestion }))
    },
    logout(ctx, { action, xsrf, clientName, redirectUri }) {
      show(ctx, views.logout({ action, xsrf, ...(clientName === undefined ? {} : { clientName }) }), {
        formAction: redirectUri === undefined ? [] : [formActionOf(redirectUri)],
      })
    },
    signedOut(ctx, client) {
      show(
        ctx,
        views.signedOut({
          ...(client === undefined ? {} : { clientName: client.name }),
          ...(client?.uri === undefined ? {} : { clientUri: client.uri }),
        }),
      )
    },
    deviceCode(ctx, { action, xsrf, userCode, error }) {
      const problem = error === undefined ? undefined : (codeProblems[error] ?? 'invalid')
      show(
        ctx,
        views.deviceCode({
          action,
          xsrf,
          ...(userCode === undefined ? {} : { userCode }),
          ...(problem === undefined ? {} : { problem }),
        }),
      )
    },
    deviceConfirm(ctx, { action, xsrf, userCode, clientName, clientUri }) {
      show(
        ctx,
        views.deviceConfirm({ action, xsrf, userCode, clientName, ...(clientUri === undefined ? {} : { clientUri }) }),
      )
    },
    deviceDone(ctx, clientName) {
      show(ctx, views.deviceDone(clientName === undefined ? {} : { clientName }))
    },
  }
}

const codeProblems: Readonly<Record<string, NonNullable<DeviceCodePage['problem']>>> = {
  NoCodeError: 'missing',
  NotFoundError: 'unknown',
  ExpiredError: 'expired',
  AlreadyUsedError: 'used',
  AbortedError: 'aborted',
}

const fallbackWords = {
  title: 'This request cannot be completed',
  detail: 'The application sent a request that cannot be answered.',
  suggestion: 'Go back to the application and try again. If it happens again, tell those who run it.',
}

const errorWords: Readonly<Record<string, typeof fallbackWords>> = {
  invalid_client: {
    title: 'This application is not known here',
    detail: 'The application that sent you is not registered, or is no longer allowed.',
    suggestion: 'Tell those who run the application.',
  },
  invalid_redirect_uri: {
    title: 'The application may not receive answers there',
    detail: 'The address that the application asked to return to is not one that it registered.',
    suggestion: 'Tell those who run the application: its redirect_uri must be registered exactly as it is sent.',
  },
  session_not_found: {
    title: 'This sign-in has expired',
    detail: 'It was completed already, took too long, or cookies are not allowed.',
    suggestion: 'Go back to the application and sign in again.',
  },
  access_denied: {
    title: 'Access was not given',
    detail: 'The application was not given what it asked for.',
    suggestion: 'Go back to the application.',
  },
  temporarily_unavailable: {
    title: 'One moment, please',
    detail: 'The service cannot answer at the moment.',
    suggestion: 'Wait a few seconds and reload the page.',
  },
  server_error: {
    title: 'Something went wrong here',
    detail: 'The mistake is ours, and has been recorded.',
    suggestion: 'Try again; if it stays, report the number below.',
  },
}
