/**
 * Proof that a form was ours: a random cookie, and in the form its HMAC with what the form is for (double submit,
 * bound to one purpose). Another site can post to us, but can read neither. The browser's own word about where a
 * request comes from is checked as well, where it gives one.
 */
import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import type { Context } from 'koa'
import { Problem } from '../problems.ts'
import type { SecretRing } from '../signing/secret-ring.ts'

export interface Csrf {
  /** The token for a form about to be shown, as its field `csrf_token`; sets the cookie when there is none. */
  tokenFor(ctx: Context, purpose: string): string
  /** @throws Problem FORM_EXPIRED when the form was not ours, or is not of this browser */
  check(ctx: Context, purpose: string, token: string | undefined): void
}

export function openCsrf(secrets: SecretRing, issuer: string): Csrf {
  const isHttps = issuer.startsWith('https:')
  const cookieName = isHttps ? '__Host-csrf' : 'csrf'
  const origin = new URL(issuer).origin

  const readCookie = (ctx: Context) => {
    const value = ctx.cookies.get(cookieName, { signed: false })
    return value !== undefined && /^[\w-]{43}$/.test(value) ? value : undefined
  }
  const sign = (secret: Buffer, cookie: string, purpose: string) =>
    createHmac('sha256', secret)
      .update(JSON.stringify([cookie, purpose]))
      .digest()

  return {
    tokenFor(ctx, purpose) {
      let cookie = readCookie(ctx)
      if (cookie === undefined) {
        cookie = randomBytes(32).toString('base64url')
        ctx.cookies.set(cookieName, cookie, {
          httpOnly: true,
          sameSite: 'lax',
          secure: isHttps,
          signed: false,
          path: '/',
          overwrite: true,
        })
      }
      return sign(secrets.current('csrf'), cookie, purpose).toString('base64url')
    },
    check(ctx, purpose, token) {
      const site = ctx.get('Sec-Fetch-Site')
      const from = ctx.get('Origin')
      const isForeign = (site !== '' && site !== 'same-origin' && site !== 'none') || (from !== '' && from !== origin)
      const cookie = readCookie(ctx)
      const given = Buffer.from(token ?? '', 'base64url')
      const isOurs =
        cookie !== undefined &&
        secrets.all('csrf').some((secret) => {
          const expected = sign(secret, cookie, purpose)
          return given.length === expected.length && timingSafeEqual(given, expected)
        })
      if (isForeign || !isOurs) throw new Problem('FORM_EXPIRED')
    },
  }
}
