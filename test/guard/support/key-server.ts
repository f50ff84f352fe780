/** An issuer's discovery document and keys over real HTTP, with every way of failing there is. */
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { Server, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { Jwk } from '@latchkey/guard'

export type Behaviour = 'good' | 'error' | 'hang' | 'huge' | 'redirect' | 'html' | 'empty' | 'foreign' | 'drip'

export class KeyServer {
  issuer = ''
  keys: readonly Jwk[] = []
  behaviour: Behaviour = 'good'
  cacheControl: string | undefined = 'max-age=600'
  /** Every request so far, by path. */
  requests: string[] = []
  readonly #server: Server

  constructor() {
    this.#server = createServer((request, response) => {
      this.requests.push(request.url ?? '')
      this.#answer(request.url ?? '', response)
    })
  }

  get jwksRequests(): number {
    return this.requests.filter((path) => path === '/jwks').length
  }

  async open(path = ''): Promise<this> {
    this.#server.listen(0, '127.0.0.1')
    await once(this.#server, 'listening')
    this.issuer = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}${path}`
    return this
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections()
    this.#server.close()
    await once(this.#server, 'close')
  }

  #answer(path: string, response: ServerResponse): void {
    const { origin, pathname } = new URL(this.issuer)
    const base = pathname === '/' ? '' : pathname
    const isDiscovery = path === `${base}/.well-known/openid-configuration`
    if (!isDiscovery && path !== '/jwks') return void response.writeHead(404).end()
    // A foreign document is otherwise in order: the keys it names are there.
    if (isDiscovery === (this.behaviour === 'foreign')) {
      switch (this.behaviour) {
        case 'error':
          return void response.writeHead(500).end('out of order')
        case 'hang':
          return
        case 'drip':
          response.writeHead(200, { 'content-type': 'application/json' })
          return void response.write('{')
        case 'huge':
          return void response.writeHead(200).end(JSON.stringify({ keys: this.keys, pad: 'x'.repeat(2_000_000) }))
        case 'redirect':
          return void response.writeHead(302, { location: `${origin}/other` }).end()
        case 'html':
          return void response.writeHead(200, { 'content-type': 'text/html' }).end('<h1>Sign in</h1>')
        case 'empty':
          return void response.writeHead(200).end('{"keys":[]}')
        case 'foreign':
          return void response.end(JSON.stringify({ issuer: 'https://evil.example', jwks_uri: `${origin}/jwks` }))
      }
    }
    const headers: Record<string, string> = { 'content-type': 'application/json' }
    if (this.cacheControl !== undefined) headers['cache-control'] = this.cacheControl
    response.writeHead(200, headers)
    response.end(
      JSON.stringify(isDiscovery ? { issuer: this.issuer, jwks_uri: `${origin}/jwks` } : { keys: this.keys }),
    )
  }
}
