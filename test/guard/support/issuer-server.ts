/** The issuer for tests behind a real port, which can go away and come back. */
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { GuardOptions, RevocationFeedOptions } from '@latchkey/guard'
import { createTestIssuer } from '@latchkey/guard/testing'
import type { TestIssuer } from '@latchkey/guard/testing'

export class IssuerServer {
  readonly idp: TestIssuer
  /** Paths asked for so far. */
  readonly requests: string[] = []
  /** Takes requests and answers none. */
  isMute = false
  /** Sends every request there instead. */
  location: string | undefined
  #server: Server
  readonly #port: number

  private constructor(idp: TestIssuer, server: Server, port: number) {
    this.idp = idp
    this.#server = server
    this.#port = port
    server.on('request', this.#answer)
  }

  static async open(): Promise<IssuerServer> {
    const server = createServer()
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    return new IssuerServer(await createTestIssuer({ issuer: `http://127.0.0.1:${port}` }), server, port)
  }

  /** For `createGuard`: over the network, by the clocks of this machine. */
  options(feed: Partial<RevocationFeedOptions> = {}): GuardOptions {
    const { issuer, audience, algorithms = ['RS256'], revocation } = this.idp.options
    return { ...(issuer !== undefined && { issuer }), audience, algorithms, revocation: { ...revocation, ...feed } }
  }

  /** Cuts every connection and listens no more: a process that was killed. */
  async stop(): Promise<void> {
    if (!this.#server.listening) return
    this.#server.closeAllConnections()
    this.#server.close()
    await once(this.#server, 'close')
  }

  async start(): Promise<void> {
    this.#server = createServer(this.#answer)
    this.#server.listen(this.#port, '127.0.0.1')
    await once(this.#server, 'listening')
  }

  /** Cuts every connection and goes on listening. */
  cut(): void {
    this.#server.closeAllConnections()
  }

  readonly #answer = (request: IncomingMessage, response: ServerResponse): void => {
    void this.#pass(request, response)
  }

  async #pass(request: IncomingMessage, response: ServerResponse): Promise<void> {
    this.requests.push(`${request.method} ${request.url}`)
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk as Buffer)
    if (this.isMute) return
    if (this.location !== undefined) return void response.writeHead(307, { location: this.location }).end()
    const { method = 'GET', url = '/' } = request
    const gone = new AbortController()
    response.on('close', () => gone.abort())
    const headers = new Headers(
      Object.entries(request.headers).filter((pair): pair is [string, string] => typeof pair[1] === 'string'),
    )
    try {
      const body = Buffer.concat(chunks).toString()
      const init = { method, headers, signal: gone.signal, ...(chunks.length > 0 && { body }) }
      const answer = await this.idp.fetch(this.idp.issuer + url, init)
      if (response.destroyed) return
      response.writeHead(answer.status, Object.fromEntries(answer.headers)).end(await answer.text())
    } catch {
      // Out of order, or the asker is gone: no answer either way.
      response.destroy()
    }
  }
}
