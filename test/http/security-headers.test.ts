import { describe, expect, it } from 'vitest'
import {
  contentSecurityPolicy,
  formActionOf,
  securityHeaders,
  setPageHeaders,
} from '../../src/http/security-headers.ts'
import { serveApp } from '../support/serve-app.ts'

async function headersOf(isProduction: boolean, issuer: string): Promise<Headers> {
  return (await fetch(await serveApp(securityHeaders({ isProduction, issuer }), (ctx) => void (ctx.body = '')))).headers
}

describe('every answer', () => {
  it('forbids a browser to load, frame, sniff, keep or tell anything', async () => {
    expect(Object.fromEntries(await headersOf(false, 'http://localhost:3000'))).toMatchObject({
      'content-security-policy':
        "default-src 'none'; script-src; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
      'x-content-type-options': 'nosniff',
      'x-frame-options': 'DENY',
      'referrer-policy': 'no-referrer',
      'cross-origin-resource-policy': 'same-origin',
      'permissions-policy': expect.stringContaining('camera=()') as string,
      'cache-control': 'no-store',
    })
  })

  it('demands https in production alone, and only where the issuer has it', async () => {
    expect((await headersOf(true, 'https://id.example.com')).get('strict-transport-security')).toBe('max-age=31536000')
    expect((await headersOf(true, 'http://localhost:3000')).get('strict-transport-security')).toBeNull()
    expect((await headersOf(false, 'https://id.example.com')).get('strict-transport-security')).toBeNull()
  })
})

describe('a page', () => {
  it('may use our stylesheet and images, and post to us and where its redirect leads', async () => {
    const url = await serveApp(securityHeaders({ isProduction: false, issuer: 'http://localhost:3000' }), (ctx) => {
      setPageHeaders(ctx, { formAction: ['https://app.example'], images: ['https://logo.example'] })
      ctx.body = ''
    })
    const policy = (await fetch(url)).headers.get('content-security-policy') ?? ''
    expect(policy.split('; ').sort()).toEqual([
      "base-uri 'none'",
      "default-src 'none'",
      "form-action 'self' https://app.example",
      "frame-ancestors 'none'",
      "img-src 'self' https://logo.example",
      'script-src',
      "style-src 'self'",
    ])
  })

  it('cannot be given a source that ends its directive', () => {
    for (const source of ['https://a.example; script-src *', 'https://a.example https://b.example', 'a,b', '']) {
      expect(() => contentSecurityPolicy({ 'form-action': [source] })).toThrow('not a Content-Security-Policy source')
    }
  })

  it('names a redirect by its origin, and a native application’s by its scheme', () => {
    expect(formActionOf('https://app.example:8443/callback?x=1')).toBe('https://app.example:8443')
    expect(formActionOf('com.example.app:/callback')).toBe('com.example.app:')
  })
})
