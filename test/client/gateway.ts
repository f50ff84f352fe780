/**
 * What stands between a client and a provider, and does to requests what networks and proxies do: it answers in the
 * provider's place, loses an answer after its effect, or adds a header. The provider's issuer is the gateway's address.
 */
import { once } from 'node:events'
import { createServer, request as startRequest } from 'node:http'
import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http'
import { afterAll, onTestFinished, TestRunner } from 'vitest'

export interface Seen {
  /** such as `POST /v1/users` */
  readonly operation: string
  readonly headers: IncomingHttpHeaders
}

/** What happens to one request; the next one, unless something else is planned for it, passes. */
export type Fault =
  | { readonly answer: number; readonly headers?: Record<string, string>; readonly body?: string }
  /** it never arrives */
  | 'lose the request'
  /** it arrives, and is carried out; `before` says what else happens then */
  | { readonly loseAnswer: true; readonly before?: () => Promise<void> }
  | { readonly addHeaders: Record<string, string> }

export interface Gateway {
  readonly url: string
  /** The provider, once it listens. */
  port: number
  /** Requests since the last {@link plan}, but for those of other paths than the API's and the token endpoint. */
  readonly seen: Seen[]
  /** Faults of the next requests to the API, one after the other. */
  plan(...faults: Fault[]): void
}

/** It closes with the test, or, opened in a `beforeAll`, with the last one. */
export async function openGateway(): Promise<Gateway> {
  let faults: Fault[] = []
  const server = createServer((request, response) => {
    carry(request, response).catch(() => response.destroy())
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('a listening TCP server has no port')
  const close = async () => {
    server.closeAllConnections()
    server.close()
    await once(server, 'close')
  }
  if (TestRunner.getCurrentTest() === undefined) afterAll(close)
  else onTestFinished(close)

  async function carry(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = (request.url ?? '').split('?')[0] ?? ''
    const isApi = path.startsWith('/v1/')
    if (isApi || path === '/token') {
      gateway.seen.push({ operation: `${request.method} ${path}`, headers: request.headers })
    }
    const fault = isApi ? faults.shift() : undefined
    const body = await readAll(request)
    if (fault === 'lose the request') {
      response.destroy()
      return
    }
    if (typeof fault === 'object' && 'answer' in fault) {
      response.writeHead(fault.answer, fault.headers).end(fault.body)
      return
    }
    const { method, url: target, headers } = request
    const forwarded = startRequest({ host: '127.0.0.1', port: gateway.port, method, path: target, headers })
    const [answer] = (await once(forwarded.end(body), 'response')) as [IncomingMessage]
    const answered = await readAll(answer)
    if (typeof fault === 'object' && 'loseAnswer' in fault) {
      await fault.before?.()
      response.destroy()
      return
    }
    const added = typeof fault === 'object' ? fault.addHeaders : {}
    response.writeHead(answer.statusCode ?? 502, { ...answer.headers, ...added }).end(answered)
  }

  const gateway: Gateway = {
    url: `http://localhost:${address.port}`,
    port: 0,
    seen: [],
    plan(...next) {
      faults = next
      gateway.seen.length = 0
    },
  }
  return gateway
}

async function readAll(message: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of message) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks)
}
