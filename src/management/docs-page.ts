/**
 * `/docs`: the OpenAPI document as a page, by Swagger UI, served from here under a strict Content-Security-Policy.
 * "Authorize" signs in through our own authorization code flow with PKCE, as the client `latchkey-docs`.
 */
import { createHash } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { brotliCompressSync, constants } from 'node:zlib'
import type { Middleware } from 'koa'
import { contentSecurityPolicy } from '../http/security-headers.ts'
import { docsCallbackPath, docsClientId } from '../oauth/own-entries.ts'
import { Problem } from '../problems.ts'

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

export function docsPage({ issuer, resource }: { readonly issuer: string; readonly resource: string }): Middleware {
  const folder = folders.find((candidate) => existsSync(join(candidate, 'swagger-ui-bundle.js')))
  const served = new Map<string, Served>()
  const serve = (name: string, type: string, body: string | Buffer) => {
    const bytes = Buffer.from(body)
    served.set(`/docs/${name}`, { type, body: bytes, tag: tagOf(bytes) })
  }
  if (folder !== undefined) {
    for (const [name, type] of Object.entries(files)) serve(name, type, readFileSync(join(folder, name)))
    serve('init.js', script, initScript(issuer, resource))
    serve('page.css', 'text/css; charset=utf-8', pageStyle)
    serve('oauth2-redirect.html', 'text/html; charset=utf-8', redirectPage)
  }
  // Large, and the same for everybody: compressed once, when somebody first asks.
  const compressed = new Map<string, Buffer>()

  return async function docsPage(ctx, next) {
    const isPage = ctx.path === '/docs' || ctx.path === '/docs/'
    const file = served.get(ctx.path)
    if ((!isPage && file === undefined) || (ctx.method !== 'GET' && ctx.method !== 'HEAD')) {
      await next()
      return
    }
    ctx.state['endpoint'] = isPage ? '/docs' : '/docs/(file)'
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
      ctx.body = page
      return
    }
    ctx.type = file.type
    ctx.set('Cache-Control', 'no-cache')
    ctx.set('ETag', file.tag)
    ctx.vary('Accept-Encoding')
    if (ctx.get('If-None-Match') === file.tag) {
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

function tagOf(bytes: Buffer): string {
  return `"${createHash('sha256').update(bytes).digest('base64url').slice(0, 22)}"`
}

function compress(body: Buffer): Buffer {
  return brotliCompressSync(body, { params: { [constants.BROTLI_PARAM_QUALITY]: 5 } })
}

const page = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Latchkey API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="stylesheet" href="/docs/page.css">
</head>
<body>
<main id="api"><p>The page that shows the <a href="/openapi.json">OpenAPI document</a> needs JavaScript.</p></main>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/init.js"></script>
</body>
</html>
`

const pageStyle = 'body { margin: 0; background: #fff; color: #3b4151; font-family: sans-serif }\n'

/** What a sign-in comes back to: the script hands the code to the page that opened the window. */
const redirectPage = `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Signed in</title></head>
<body><script src="/docs/oauth2-redirect.js"></script></body>
</html>
`

function initScript(issuer: string, resource: string): string {
  return `const ui = SwaggerUIBundle({
  url: '/openapi.json',
  dom_id: '#api',
  deepLinking: true,
  displayRequestDuration: true,
  persistAuthorization: false,
  validatorUrl: null,
  oauth2RedirectUrl: ${JSON.stringify(issuer + docsCallbackPath)},
})
ui.initOAuth({
  clientId: ${JSON.stringify(docsClientId)},
  usePkceWithAuthorizationCodeGrant: true,
  additionalQueryStringParams: { resource: ${JSON.stringify(resource)} },
})
`
}
