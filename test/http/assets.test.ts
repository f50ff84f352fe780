import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, request } from 'node:http'
import type { IncomingHttpHeaders } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { brotliDecompressSync, gunzipSync } from 'node:zlib'
import Koa from 'koa'
import { describe, expect, it, onTestFinished } from 'vitest'
import { openAssets, type Assets } from '../../src/http/assets.ts'

/** The folder of an operator who has put these files into assets/. */
function makeViewsDir(files: Readonly<Record<string, string>>): string {
  const viewsDir = mkdtempSync(join(tmpdir(), 'latchkey-assets-'))
  onTestFinished(() => rmSync(viewsDir, { recursive: true }))
  mkdirSync(join(viewsDir, 'assets'))
  for (const [name, text] of Object.entries(files)) writeFileSync(join(viewsDir, 'assets', name), text)
  return viewsDir
}

type Ask = (
  path: string,
  options?: { method?: string; encoding?: string },
) => Promise<{ status: number; headers: IncomingHttpHeaders; body: Buffer }>

/** Serves them in front of a middleware that answers 418. Asked by node:http, which decodes nothing by itself. */
async function serve(assets: Assets): Promise<Ask> {
  const app = new Koa()
  app.use(assets.middleware)
  app.use((ctx) => {
    ctx.status = 418
  })
  const handle = app.callback()
  const server = createServer((request, response) => void handle(request, response))
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve)
  })
  onTestFinished(() => {
    server.close()
  })
  const { port } = server.address() as AddressInfo
  return (path, { method = 'GET', encoding } = {}) =>
    new Promise((resolve, reject) => {
      const headers = encoding === undefined ? {} : { 'accept-encoding': encoding }
      request({ port, host: '127.0.0.1', path, method, headers, agent: false }, (response) => {
        const chunks: Buffer[] = []
        response.on('data', (chunk: Buffer) => chunks.push(chunk))
        response.on('end', () =>
          resolve({ status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(chunks) }),
        )
      })
        .on('error', reject)
        .end()
    })
}

describe('assets', () => {
  it('leaves what it does not know, and every other method, to the next middleware', async () => {
    const assets = openAssets({ viewsDir: undefined })
    const ask = await serve(assets)
    const style = assets.url('style.css')
    for (const path of [
      '/',
      '/assets/',
      '/assets/style.css',
      '/assets/style.0000000000000000.css',
      `${style}/`,
      '/assets/../package.json',
      '/assets/%2e%2e/layout.eta',
      '/assets/constructor',
      '/assets/%',
    ]) {
      expect({ path, status: (await ask(path)).status }).toEqual({ path, status: 418 })
    }
    expect((await ask(style, { method: 'POST' })).status).toBe(418)
    expect((await ask(style, { method: 'DELETE' })).status).toBe(418)
  })

  it('throws for a name that is not there, since a page would ask for nothing', () => {
    const assets = openAssets({ viewsDir: undefined })
    expect(() => assets.url('stlye.css')).toThrow(/no asset 'stlye.css'; there are .*style\.css/)
  })

  it('refuses a file of a type that it does not serve, when it starts', () => {
    expect(() => openAssets({ viewsDir: makeViewsDir({ 'app.js': 'alert(1)' }) })).toThrow(/app\.js cannot be served/)
    expect(() => openAssets({ viewsDir: makeViewsDir({ page: 'x' }) })).toThrow(/page cannot be served/)
  })

  it('serves the stylesheet and the logo for ever, as what they are', async () => {
    const assets = openAssets({ viewsDir: undefined })
    const ask = await serve(assets)
    for (const [name, type] of [
      ['style.css', 'text/css; charset=utf-8'],
      ['logo.svg', 'image/svg+xml; charset=utf-8'],
    ] as const) {
      const address = assets.url(name)
      expect(address).toMatch(/^\/assets\/(style|logo)\.[0-9a-f]{16}\.(css|svg)$/)
      const { status, headers } = await ask(address)
      expect(status).toBe(200)
      expect(headers).toMatchObject({
        'content-type': type,
        'cache-control': 'public, max-age=31536000, immutable',
        'x-content-type-options': 'nosniff',
      })
    }
  })

  it('sends the same bytes plain, with gzip and with Brotli, and says that they differ', async () => {
    const assets = openAssets({ viewsDir: undefined })
    const ask = await serve(assets)
    const style = assets.url('style.css')
    const plain = await ask(style)
    expect(plain.headers['content-encoding']).toBeUndefined()
    expect(plain.body.toString()).toContain('color-scheme: light dark')
    const gzip = await ask(style, { encoding: 'gzip, deflate' })
    expect(gzip.headers['content-encoding']).toBe('gzip')
    expect(gunzipSync(gzip.body)).toEqual(plain.body)
    const br = await ask(style, { encoding: 'gzip, deflate, br, zstd' })
    expect(br.headers['content-encoding']).toBe('br')
    expect(brotliDecompressSync(br.body)).toEqual(plain.body)
    expect((await ask(style, { encoding: 'br;q=0, gzip;q=0' })).headers['content-encoding']).toBeUndefined()
    for (const { headers } of [plain, gzip, br]) expect(headers['vary']).toBe('Accept-Encoding')
  })

  it('answers HEAD with the same headers and no body', async () => {
    const assets = openAssets({ viewsDir: undefined })
    const ask = await serve(assets)
    const get = await ask(assets.url('logo.svg'))
    const head = await ask(assets.url('logo.svg'), { method: 'HEAD' })
    expect(head.status).toBe(200)
    expect(head.body).toHaveLength(0)
    expect(head.headers['content-length']).toBe(String(get.body.length))
  })

  it("serves an operator's file in place of ours, under another address, and their own beside it", async () => {
    const ours = openAssets({ viewsDir: undefined })
    const theirs = openAssets({
      viewsDir: makeViewsDir({ 'style.css': 'body { color: red }', 'my logo.svg': '<svg/>' }),
    })
    const ask = await serve(theirs)
    expect(theirs.url('style.css')).not.toBe(ours.url('style.css'))
    expect((await ask(theirs.url('style.css'))).body.toString()).toBe('body { color: red }')
    expect((await ask(ours.url('style.css'))).status).toBe(418)
    expect(theirs.url('logo.svg')).toBe(ours.url('logo.svg'))
    expect((await ask(theirs.url('my logo.svg'))).body.toString()).toBe('<svg/>')
  })

  it('passes over hidden files, and over a folder that has no assets', () => {
    expect(() => openAssets({ viewsDir: makeViewsDir({ '.DS_Store': 'x' }) })).not.toThrow()
    const empty = mkdtempSync(join(tmpdir(), 'latchkey-assets-'))
    onTestFinished(() => rmSync(empty, { recursive: true }))
    expect(openAssets({ viewsDir: empty }).url('style.css')).toBe(openAssets({ viewsDir: undefined }).url('style.css'))
  })
})
