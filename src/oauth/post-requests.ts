/**
 * Authorization and logout requests may come by POST (OpenID Connect Core §3.1.2.1, RP-Initiated Logout §2). A form
 * that another site posts arrives without our SameSite=Lax session cookie, so the browser is sent on to the same
 * request by GET, which carries it.
 */
import type { Context, Next } from 'koa'
import { readFormText } from '../http/form-body.ts'
import { Problem } from '../problems.ts'
import { endpoints } from './endpoints.ts'

/** What fits into a request line that every server and browser takes. */
const maxBytes = 8 * 1_024

export function redirectPostToGet(ctx: Context, next: Next): Promise<unknown> {
  const isRequest = ctx.path === endpoints.authorization || ctx.path === endpoints.end_session
  return ctx.method === 'POST' && isRequest ? redirect(ctx) : next()
}

async function redirect(ctx: Context): Promise<void> {
  if (ctx.querystring !== '')
    throw new Problem('MALFORMED_REQUEST', 'Parameters stand in the body or in the URL, not in both.')
  // As it came: what is repeated or malformed is the provider's to refuse.
  const parameters = new URLSearchParams(await readFormText(ctx, maxBytes))
  ctx.redirect(`${ctx.path}?${parameters}`)
  ctx.status = 303
}
