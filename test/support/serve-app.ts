import { once } from 'node:events'
import { createServer } from 'node:http'
import { Writable } from 'node:stream'
import Koa from 'koa'
import { onTestFinished } from 'vitest'
import type { RequestState } from '../../src/http/request-context.ts'
import { openLog, type LogSettings, type Logger } from '../../src/log.ts'

export type TestApp = Koa<RequestState>

/** Serves an application of these middlewares on loopback until the test is over; returns its URL. */
export async function serveApp(...middlewares: Koa.Middleware<RequestState>[]): Promise<string> {
  const app: TestApp = new Koa<RequestState>()
  app.proxy = true
  app.silent = true
  for (const middleware of middlewares) app.use(middleware)
  const handle = app.callback()
  const server = createServer((req, res) => void handle(req, res)).listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(async () => {
    server.closeAllConnections()
    server.close()
    await once(server, 'close')
  })
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('a listening TCP server has no port')
  return `http://127.0.0.1:${address.port}`
}

/** A log that a test can read back: as text, and line by line. */
export function openTestLog(settings: Partial<LogSettings> = {}): {
  readonly log: Logger
  readonly text: () => string
  readonly lines: () => Record<string, unknown>[]
} {
  const written: string[] = []
  const output = new Writable({
    write(chunk: Buffer, _encoding, done) {
      written.push(chunk.toString())
      done()
    },
  })
  const text = () => written.join('')
  return {
    log: openLog({ logLevel: 'trace', logFormat: 'json', ...settings }, output),
    text,
    lines: () =>
      text()
        .split('\n')
        .filter((line) => line !== '')
        .map((line) => JSON.parse(line) as Record<string, unknown>),
  }
}
