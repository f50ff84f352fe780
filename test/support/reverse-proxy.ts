/**
 * What stands in front of a provider in production: passes every request on as it is, to one server after the other, and
 * can be told to let some of them through no longer. So a feed is cut without stopping the provider, and who asked for
 * what, and when it was answered, is seen from outside.
 */
import { once } from 'node:events'
import {
  createServer,
  request,
  type IncomingHttpHeaders,
  type IncomingMessage,
  type OutgoingHttpHeaders,
  type ServerResponse,
} from 'node:http'

/** A request that was passed on. Times are of `performance.now()`. */
export interface PassedRequest {
  readonly method: string
  readonly path: string
  readonly at: number
  /** when the answer began to be passed back; undefined as long as there is none */
  answeredAt: number | undefined
  status: number | undefined
}

export interface ReverseProxy {
  readonly url: string
  readonly requests: readonly PassedRequest[]
  /** From now on these get no answer: what comes is hung up on, and what is under way is cut. */
  block(isBlocked: (path: string) => boolean): void
  unblock(): void
  close(): Promise<void>
}

/** @param targets ports of this machine, taken in turn; one that refuses connections is passed over */
export async function openReverseProxy(port: number, targets: readonly number[]): Promise<ReverseProxy> {
  const requests: PassedRequest[] = []
  const underWay = new Map<PassedRequest, ServerResponse>()
  let isBlocked: (path: string) => boolean = () => false
  let turn = 0

  async function pass(req: IncomingMessage, res: ServerResponse): Promise<void> {
    const path = (req.url ?? '').split('?')[0] ?? ''
    if (isBlocked(path)) {
      res.destroy()
      return
    }
    const passed: PassedRequest = {
      method: req.method ?? '',
      path,
      at: performance.now(),
      answeredAt: undefined,
      status: undefined,
    }
    requests.push(passed)
    underWay.set(passed, res)
    res.once('close', () => underWay.delete(passed))
    const chunks: Buffer[] = []
    for await (const chunk of req) chunks.push(chunk as Buffer)
    const first = (turn += 1)
    for (let attempt = 0; attempt < targets.length; attempt += 1) {
      const target = targets[(first + attempt) % targets.length] ?? 0
      const answer = await send(req, Buffer.concat(chunks), target, res)
      if (answer === 'refused') continue
      if (answer === undefined || res.destroyed) break
      passed.answeredAt = performance.now()
      passed.status = answer.statusCode
      res.writeHead(answer.statusCode ?? 502, endToEnd(answer.headers))
      answer.once('error', () => res.destroy())
      answer.pipe(res)
      return
    }
    res.destroy()
  }

  const server = createServer((req, res) => void pass(req, res).catch(() => res.destroy())).listen(port, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://localhost:${port}`,
    requests,
    block(predicate) {
      isBlocked = predicate
      for (const [{ path }, res] of underWay) if (predicate(path)) res.destroy()
    },
    unblock() {
      isBlocked = () => false
    },
    async close() {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}

/** @returns 'refused' when nobody listens there, undefined when the connection was lost before there was an answer */
function send(
  req: IncomingMessage,
  body: Buffer,
  port: number,
  res: ServerResponse,
): Promise<IncomingMessage | 'refused' | undefined> {
  return new Promise((resolve) => {
    const { method, url: path } = req
    const headers = endToEnd(req.headers)
    // A connection each: none is kept that a server which is gone has left behind.
    const upstream = request({ host: '127.0.0.1', port, method, path, headers, agent: false }, resolve)
    upstream.on('error', (error: NodeJS.ErrnoException) =>
      resolve(error.code === 'ECONNREFUSED' ? 'refused' : undefined),
    )
    res.once('close', () => upstream.destroy())
    upstream.end(body)
  })
}

const ofConnection = ['connection', 'keep-alive', 'transfer-encoding']

/** Each side's connection is its own affair, how long it is kept above all (RFC 9110 §7.6.1). */
function endToEnd(headers: IncomingHttpHeaders): OutgoingHttpHeaders {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => !ofConnection.includes(name)))
}
