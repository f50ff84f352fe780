/**
 * `/docs`: the OpenAPI document as a page, by Swagger UI, served from here under a strict Content-Security-Policy.
 * "Authorize" signs in through our own authorization code flow with PKCE, as the client `latchkey-docs`.
 */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { brotliCompressSync, constants } from 'node:zlib'
import type { Context, Middleware } from 'koa'
import { bodyTag, matchesNone } from '../http/etag.ts'
import type { OpenApiDocument } from '../http/openapi.ts'
import { isRead } from '../http/problem-response.ts'
import { contentSecurityPolicy } from '../http/security-headers.ts'
import { docsClientId } from '../access/rights.ts'
import { docsCallbackPath } from '../oauth/own-entries.ts'
import { Problem } from '../problems.ts'
import { shownDocument } from './shown-document.ts'

const root = join(import.meta.dirname, '..', '..')
/** Beside the views when packed, else among the packages of development: it is no dependency of a running server. */
const folders = [join(root, 'views', 'swagger-ui'), join(root, 'node_modules', 'swagger-ui-dist')]
const script = 'text/javascript; charset=utf-8'
const files: Readonly<Record<string, string>> = {
  'swagger-ui-bundle.js': script,
  'oauth2-redirect.js': script,
  'swagger-ui.css': 'text/css; charset=utf-8',
}

interface Served {
  readonly type: string
  readonly body: Buffer
  readonly tag: string
}

export interface DocsPageParts {
  readonly issuer: string
  /** the API as a resource: what the sign-in asks a token for */
  readonly resource: string
  readonly document: OpenApiDocument
  /** the address of the page's picture */
  readonly logoUrl: string
}

export function docsPage({ issuer, resource, document, logoUrl }: DocsPageParts): Middleware {
  const folder = folders.find((candidate) => existsSync(join(candidate, 'swagger-ui-bundle.js')))
  const served = new Map<string, Served>()
  const serve = (name: string, type: string, body: string | Buffer) => {
    const bytes = Buffer.from(body)
    // Weak, since it is that of the compressed bytes too.
    served.set(`/docs/${name}`, { type, body: bytes, tag: bodyTag(bytes) })
  }
  if (folder !== undefined) {
    for (const [name, type] of Object.entries(files)) serve(name, type, readFileSync(join(folder, name)))
    serve('init.js', script, initScript(issuer, resource))
    serve('shown.json', 'application/json', JSON.stringify(shownDocument(document)))
    serve('page.css', 'text/css; charset=utf-8', pageStyle)
    serve('oauth2-redirect.html', 'text/html; charset=utf-8', redirectPage)
  }
  // Large, and the same for everybody: compressed once, when somebody first asks.
  const compressed = new Map<string, Buffer>()

  return function docsPage(ctx, next) {
    const isPage = ctx.path === '/docs' || ctx.path === '/docs/'
    const file = served.get(ctx.path)
    return isPage || file !== undefined ? show(ctx, isPage, file) : next()
  }

  async function show(ctx: Context, isPage: boolean, file: Served | undefined): Promise<void> {
    ctx.state['endpoint'] = isPage ? '/docs' : '/docs/(file)'
    if (!isRead(ctx)) return
    if (folder === undefined) {
      throw new Problem(
        'RESOURCE_NOT_FOUND',
        'This page is not part of this installation: the document is at /openapi.json.',
      )
    }
    ctx.set(
      'Content-Security-Policy',
      contentSecurityPolicy({
        'script-src': ["'self'"],
        'style-src': ["'self'"],
        'img-src': ["'self'", 'data:'],
        'connect-src': ["'self'"],
      }),
    )
    if (file === undefined) {
      ctx.type = 'text/html; charset=utf-8'
      ctx.body = pageOf(logoUrl)
      return
    }
    ctx.type = file.type
    ctx.set('Cache-Control', 'no-cache')
    ctx.set('ETag', file.tag)
    ctx.vary('Accept-Encoding')
    if (!matchesNone(ctx.get('If-None-Match'), file.tag)) {
      ctx.status = 304
      return
    }
    if (ctx.acceptsEncodings('br', 'identity') === 'br') {
      const body = compressed.get(ctx.path) ?? compress(file.body)
      compressed.set(ctx.path, body)
      ctx.set('Content-Encoding', 'br')
      ctx.body = body
    } else ctx.body = file.body
  }
}

function compress(body: Buffer): Buffer {
  return brotliCompressSync(body, { params: { [constants.BROTLI_PARAM_QUALITY]: 5 } })
}

function pageOf(logoUrl: string): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Latchkey API</title>
<link rel="icon" href="${logoUrl}" type="image/svg+xml">
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="stylesheet" href="/docs/page.css">
</head>
<body>
<header>
<a href="/"><img src="${logoUrl}" alt="" width="28" height="28">Latchkey</a>
<nav><a href="/openapi.json">OpenAPI document</a> <a href="/docs/errors">Error codes</a></nav>
</header>
<div id="api"><p>This page shows the <a href="/openapi.json">OpenAPI document</a>; it needs JavaScript.</p></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/init.js"></script>
</body>
</html>
`
}

/** Around Swagger UI, and where its own colours are too faint to read (WCAG 2.2, 1.4.3). */
const pageStyle = `body { margin: 0; background: #fff; color: #3b4151; font-family: sans-serif }
body > header { display: flex; flex-wrap: wrap; gap: .5rem 2rem; align-items: center; justify-content: space-between;
  max-width: 1420px; margin: 0 auto; padding: 1rem 20px; border-bottom: 1px solid #e2dfd6 }
body > header a { display: inline-flex; gap: .5rem; align-items: center; color: #0b5c56 }
body > header > a { color: inherit; font-weight: 650; text-decoration: none }
body > header nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .875rem }
#api > p { padding: 0 20px }
.swagger-ui .info { margin: 2rem 0 }
.swagger-ui .info hgroup.main > a, .swagger-ui .scheme-container .schemes > .schemes-server-container { display: none }
.swagger-ui .response-col_links, .swagger-ui .info__extdocs { display: none }
.swagger-ui .scheme-container { padding: 1rem 0 }
.swagger-ui .scheme-container .schemes { justify-content: flex-end }
.swagger-ui .info a, .swagger-ui a.nostyle:hover, .swagger-ui .scopes h2 a { color: #0b5c56 }
.swagger-ui .info .title small { background: #5b626e }
.swagger-ui .info .title small.version-stamp { background: #4f6f00 }
.swagger-ui .btn.authorize { border-color: #0b5c56; color: #0b5c56 }
.swagger-ui .btn.authorize.unlocked svg, .swagger-ui .btn.authorize.locked svg { fill: #0b5c56 }
.swagger-ui .btn.cancel { border-color: #a4231c; color: #a4231c }
.swagger-ui .parameter__in, .swagger-ui .parameter__extension { color: #5b626e }
.swagger-ui .download-contents { background: #5b626e }
.swagger-ui .btn.execute { border-color: #1763a8; background-color: #1763a8 }
.swagger-ui .opblock.opblock-get .opblock-summary-method { background: #1763a8 }
.swagger-ui .opblock.opblock-post .opblock-summary-method { background: #1c6b3f }
.swagger-ui .opblock.opblock-put .opblock-summary-method { background: #8a5300 }
.swagger-ui .opblock.opblock-patch .opblock-summary-method { background: #0b6b63 }
.swagger-ui .opblock.opblock-delete .opblock-summary-method { background: #a4231c }
`

/** What a sign-in comes back to: the script hands the code to the page that opened the window. */
const redirectPage = `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Signed in</title></head>
<body><script src="/docs/oauth2-redirect.js"></script></body>
</html>
`

function initScript(issuer: string, resource: string): string {
  return `const ui = SwaggerUIBundle({
  url: '/docs/shown.json',
  dom_id: '#api',
  deepLinking: true,
  displayRequestDuration: true,
  persistAuthorization: false,
  defaultModelsExpandDepth: 0,
  syntaxHighlight: { theme: 'obsidian' },
  validatorUrl: null,
  oauth2RedirectUrl: ${JSON.stringify(issuer + docsCallbackPath)},
})
ui.initOAuth({
  clientId: ${JSON.stringify(docsClientId)},
  usePkceWithAuthorizationCodeGrant: true,
  additionalQueryStringParams: { resource: ${JSON.stringify(resource)} },
})
// What Swagger UI leaves without a name, or out of reach of the keyboard.
new MutationObserver(() => {
  for (const field of document.querySelectorAll('tr[data-param-name] select:not([aria-label])')) {
    field.setAttribute('aria-label', field.closest('tr').dataset.paramName)
  }
  for (const button of document.querySelectorAll('.close-modal:not([aria-label])')) {
    button.setAttribute('aria-label', 'Close')
  }
  for (const block of document.querySelectorAll('pre.microlight:not([tabindex])')) block.tabIndex = 0
}).observe(document.body, { childList: true, subtree: true })
`
}
