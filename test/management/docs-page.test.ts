/** `/docs` without a browser: what is served, how, and what of the document is shown. The rest is journeys/api-docs. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import type { OpenApiDocument } from '../../src/http/openapi.ts'
import { docsPage } from '../../src/management/docs-page.ts'
import { shownDocument } from '../../src/management/shown-document.ts'
import { operationsOf, readCommittedDocument, type Document } from '../openapi/document.ts'
import { serveApp } from '../support/serve-app.ts'

const issuer = 'http://localhost:3000'
const document = readCommittedDocument()
const page = docsPage({
  issuer,
  resource: `${issuer}/v1`,
  document: document as unknown as OpenApiDocument,
  logoUrl: '/assets/logo.svg',
})

describe('the page', () => {
  it('is served with a policy that allows nothing from elsewhere, and nothing inline', async () => {
    const url = await serveApp(page)
    for (const path of ['/docs', '/docs/', '/docs/oauth2-redirect.html']) {
      const answer = await fetch(`${url}${path}`)
      expect([path, answer.status, answer.headers.get('content-type')]).toEqual([path, 200, 'text/html; charset=utf-8'])
      const policy = answer.headers.get('content-security-policy') ?? ''
      expect(policy).toMatch(/default-src 'none';.*script-src 'self';/)
      expect(policy).not.toMatch(/unsafe|https?:|\*/)
      const html = await answer.text()
      expect(html).not.toMatch(/<script>|<style|style="| on\w+="|https?:\/\//)
    }
  })

  it('is made of files that are revalidated, and compressed for who can read that', async () => {
    const url = await serveApp(page)
    for (const name of [
      'swagger-ui-bundle.js',
      'swagger-ui.css',
      'page.css',
      'init.js',
      'oauth2-redirect.js',
      'shown.json',
    ]) {
      const whole = await fetch(`${url}/docs/${name}`, { headers: { 'accept-encoding': 'identity' } })
      const { headers } = await fetch(`${url}/docs/${name}`, { headers: { 'accept-encoding': 'br' } })
      expect([name, whole.status, whole.headers.get('cache-control')]).toEqual([name, 200, 'no-cache'])
      const refused = await fetch(`${url}/docs/${name}`, { headers: { 'accept-encoding': 'br;q=0, identity' } })
      for (const { headers } of [whole, refused]) {
        expect([name, headers.get('content-encoding'), headers.get('vary')]).toEqual([name, null, 'Accept-Encoding'])
      }
      expect([name, headers.get('content-encoding'), headers.get('etag')]).toEqual([
        name,
        'br',
        whole.headers.get('etag'),
      ])
      // The bytes of the two differ, so a tag of both is a weak one (RFC 9110 §8.8.3.3).
      const tag = headers.get('etag') ?? ''
      expect([name, tag.slice(0, 3)]).toEqual([name, 'W/"'])
      for (const known of [tag, tag.slice(2), `"other", ${tag}`, '*']) {
        const again = await fetch(`${url}/docs/${name}`, { headers: { 'if-none-match': known } })
        expect([name, known, again.status]).toEqual([name, known, 304])
      }
      const other = await fetch(`${url}/docs/${name}`, { headers: { 'if-none-match': '"other"' } })
      expect([name, other.status]).toEqual([name, 200])
    }
  })

  it('holds no other file, and takes no other method', async () => {
    const url = await serveApp(page)
    for (const path of ['/docs/index.html', '/docs/package.json', '/docs/..%2fpackage.json', '/docs/swagger-ui.css/']) {
      expect([path, (await fetch(`${url}${path}`)).status]).toEqual([path, 404])
    }
    expect((await fetch(`${url}/docs`, { method: 'POST' })).status).toBe(405)
  })

  it('signs in as the client that is registered for it, for the API, with PKCE', async () => {
    const script = await (await fetch(`${await serveApp(page)}/docs/init.js`)).text()
    expect(script).toContain('clientId: "latchkey-docs"')
    expect(script).toContain(`additionalQueryStringParams: { resource: "${issuer}/v1" }`)
    expect(script).toContain('usePkceWithAuthorizationCodeGrant: true')
    expect(script).toContain(`oauth2RedirectUrl: "${issuer}/docs/oauth2-redirect.html"`)
  })
})

describe('what it shows of the document', () => {
  let shown: Document
  beforeAll(() => {
    shown = shownDocument(document as unknown as OpenApiDocument) as Document
  })

  it('is every operation, with its bodies and schemas', () => {
    expect(operationsOf(shown).map(({ id }) => id)).toEqual(operationsOf(document).map(({ id }) => id))
    expect(shown.components?.schemas).toEqual(document.components?.schemas)
    expect(operationsOf(shown).map(({ requestBody }) => requestBody)).toEqual(
      operationsOf(document).map(({ requestBody }) => requestBody),
    )
  })

  it('is no example that would be filled in where nothing need be', () => {
    const parameters = operationsOf(shown).flatMap(({ parameters = [] }) => parameters)
    const optional = parameters.filter(({ required }) => required !== true)
    expect(optional.length).toBeGreaterThan(50)
    expect(optional.filter(({ example, schema }) => example !== undefined || schema?.example !== undefined)).toEqual([])
    const sort = optional.find(({ name }) => name === 'fields')
    expect(sort?.description).toMatch(/Such as `[\w,]+`$/)
    const required = parameters.filter(({ required, in: place }) => required === true && place === 'path')
    expect(required.filter(({ schema }) => schema?.example === undefined)).toEqual([])
  })

  it('is one way for a person to get a token, and the key of a caller that cannot', () => {
    const schemes = shown.components?.securitySchemes ?? {}
    expect(Object.keys(schemes)).toEqual(['api_key', 'oauth2'])
    expect(Object.keys(schemes['oauth2']?.flows ?? {})).toEqual(['authorizationCode'])
  })

  it('leaves the document itself as it is', () => {
    const committed = readFileSync(join(import.meta.dirname, '..', '..', 'docs', 'openapi.json'), 'utf8')
    expect(document).toEqual(JSON.parse(committed))
  })
})
