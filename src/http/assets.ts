/**
 * The stylesheet and the pictures of the pages, read into memory when the server starts. Each has a hash of its content
 * in its address, so browsers may keep it for ever and see a new one at once. A file of the same name under `assets/` in
 * LATCHKEY_VIEWS_DIR replaces ours, and others beside it are served too: an operator's own logo, for instance.
 */
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { extname, join } from 'node:path'
import { brotliCompressSync, gzipSync } from 'node:zlib'
import type { Middleware } from 'koa'

// No scripts: the pages have none, and their Content-Security-Policy allows none.
const types: Readonly<Record<string, string>> = {
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml; charset=utf-8',
  '.png': 'image/png',
  '.jpg': 'image/jpeg',
  '.webp': 'image/webp',
  '.ico': 'image/x-icon',
}

export interface Assets {
  /**
   * The address of a file: `style.css` → `/assets/style.<hash>.css`.
   *
   * @throws when there is no such file
   */
  readonly url: (name: string) => string
  /** Answers GET and HEAD of those addresses; anything else goes on to the next middleware. */
  readonly middleware: Middleware
}

interface Asset {
  readonly type: string
  readonly body: Buffer
  /** only where smaller than the body */
  readonly encoded: { readonly br?: Buffer; readonly gzip?: Buffer }
}

const ourAssets = join(import.meta.dirname, '..', '..', 'views', 'assets')

/**
 * @throws when a file is of a type that is not served
 * @example
 * const assets = openAssets({ viewsDir: config.viewsDir })
 * app.use(assets.middleware)
 * assets.url('style.css') // '/assets/style.1f0c6a91d2b34e57.css'
 */
export function openAssets({ viewsDir }: { readonly viewsDir: string | undefined }): Assets {
  const addresses = new Map<string, string>()
  const byAddress = new Map<string, Asset>()
  for (const [name, path] of findFiles(viewsDir)) {
    const extension = extname(name)
    const type = types[extension]
    if (type === undefined) {
      throw new Error(`${path} cannot be served: assets end in ${Object.keys(types).join(', ')}`)
    }
    const body = readFileSync(path)
    const hash = createHash('sha256').update(body).digest('hex').slice(0, 16)
    const address = `/assets/${encodeURIComponent(name.slice(0, -extension.length))}.${hash}${extension}`
    addresses.set(name, address)
    byAddress.set(address, { type, body, encoded: type.includes('charset') ? compress(body) : {} })
  }

  return {
    url(name) {
      const address = addresses.get(name)
      if (address === undefined)
        throw new Error(`there is no asset '${name}'; there are ${[...addresses.keys()].join(', ')}`)
      return address
    },
    middleware(ctx, next) {
      const asset = ctx.method === 'GET' || ctx.method === 'HEAD' ? byAddress.get(ctx.path) : undefined
      if (asset === undefined) return next()
      ctx.type = asset.type
      ctx.set('Cache-Control', 'public, max-age=31536000, immutable')
      ctx.set('X-Content-Type-Options', 'nosniff')
      // Nothing here is secret, so compressing it gives nothing away (BREACH); pages with a CSRF token never are.
      const encoding = (['br', 'gzip'] as const).find(
        (name) => asset.encoded[name] !== undefined && ctx.acceptsEncodings(name, 'identity') === name,
      )
      if (asset.encoded.br !== undefined || asset.encoded.gzip !== undefined) ctx.vary('Accept-Encoding')
      if (encoding !== undefined) ctx.set('Content-Encoding', encoding)
      ctx.body = (encoding === undefined ? undefined : asset.encoded[encoding]) ?? asset.body
      return undefined
    },
  }
}

/** File name → path; theirs after ours, so that theirs stays. */
function findFiles(viewsDir: string | undefined): Map<string, string> {
  const folders = viewsDir === undefined ? [ourAssets] : [ourAssets, join(viewsDir, 'assets')]
  return new Map(
    folders
      .filter((folder) => existsSync(folder))
      .flatMap((folder) =>
        readdirSync(folder)
          .filter((name) => !name.startsWith('.'))
          .map((name) => [name, join(folder, name)] as const),
      ),
  )
}

function compress(body: Buffer): Asset['encoded'] {
  const br = brotliCompressSync(body)
  const gzip = gzipSync(body)
  return { ...(br.length < body.length && { br }), ...(gzip.length < body.length && { gzip }) }
}
