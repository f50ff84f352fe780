import type { Context, Middleware, ParameterizedContext } from 'koa'

/**
 * What every answer tells a browser, unless its own handler says otherwise: load nothing, frame nothing, keep nothing,
 * tell nobody where you came from. A handler that answers with a page calls {@link setPageHeaders}.
 *
 * @param settings.isProduction with an https issuer: browsers are told never to come over http (RFC 6797)
 */
export function securityHeaders(settings: { readonly isProduction: boolean; readonly issuer: string }): Middleware {
  const isHttpsOnly = settings.isProduction && settings.issuer.startsWith('https:')
  const headers = Object.entries({
    'Content-Security-Policy': contentSecurityPolicy({}),
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
    // No address of ours holds a secret for long, but some hold one for a while.
    'Referrer-Policy': 'no-referrer',
    // No Cross-Origin-Opener-Policy: an application may open the sign-in as a window of its own and wait for its answer.
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Permissions-Policy': 'camera=(), geolocation=(), microphone=(), payment=(), usb=()',
    'Cache-Control': 'no-store',
    ...(isHttpsOnly ? { 'Strict-Transport-Security': 'max-age=31536000' } : {}),
  })
  return function securityHeaders({ res }, next) {
    for (const [name, value] of headers) res.setHeader(name, value)
    return next()
  }
}

export interface PageSources {
  /**
   * Where the page's forms may lead besides here, redirects included: Chromium stops a 303 after a POST unless its
   * origin is named. Origins (`https://app.example`) or, for native applications, schemes (`com.example.app:`).
   */
  readonly formAction?: readonly string[]
  /** origins of images besides ours, such as a client's logo */
  readonly images?: readonly string[]
}

/** Lets the answer be a page: with our stylesheet, our images and our forms, and still without any script. */
export function setPageHeaders(ctx: Context | ParameterizedContext, sources: PageSources = {}): void {
  // With no-referrer a browser posts our own forms with `Origin: null`, and a form of ours could not be told from others.
  ctx.set('Referrer-Policy', 'same-origin')
  ctx.set(
    'Content-Security-Policy',
    contentSecurityPolicy({
      'style-src': ["'self'"],
      'img-src': ["'self'", ...(sources.images ?? [])],
      'form-action': ["'self'", ...(sources.formAction ?? [])],
    }),
  )
}

const strictest: Readonly<Record<string, readonly string[]>> = {
  'default-src': ["'none'"],
  // Empty means none. oidc-provider adds the hash of its own script to it where it has one (form_post).
  'script-src': [],
  'base-uri': ["'none'"],
  'form-action': ["'none'"],
  'frame-ancestors': ["'none'"],
}

/**
 * A Content-Security-Policy: the strictest there is, with the given directives in place of its own.
 *
 * @throws Error when a source could end its directive
 */
export function contentSecurityPolicy(directives: Readonly<Record<string, readonly string[]>>): string {
  return Object.entries({ ...strictest, ...directives })
    .map(([name, sources]) => {
      const unsafe = sources.find((source) => !/^[^\s;,]+$/.test(source))
      if (unsafe !== undefined) throw new Error(`not a Content-Security-Policy source: ${unsafe}`)
      return [name, ...sources].join(' ')
    })
    .join('; ')
}

/**
 * What `form-action` must name for a redirect URI: its origin, or its scheme where it has no origin (RFC 8252 §7.1).
 *
 * @param redirectUri a registered and validated redirect URI
 */
export function formActionOf(redirectUri: string): string {
  const { protocol, origin } = new URL(redirectUri)
  return origin === 'null' ? protocol : origin
}
