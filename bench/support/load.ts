/**
 * The load, as a program of its own: so many requests to one server on the loopback interface, over so many connections
 * that stay open, and how long each took. Bounded in count and in time.
 */
import { Pool } from 'undici'

export interface LoadOrder {
  readonly origin: string
  readonly path: string
  /** asked for in turn, in place of `path` */
  readonly paths?: readonly string[]
  /** `POST` when left out */
  readonly method?: 'GET' | 'POST' | 'PATCH'
  readonly headers: Readonly<Record<string, string>>
  /** sent in turn */
  readonly bodies: readonly string[]
  readonly requests: number
  readonly connections: number
  /** the longest that all of it may take, in seconds */
  readonly timeoutSeconds: number
}

export interface LoadResult {
  readonly seconds: number
  /** of every request, in milliseconds */
  readonly latencies: readonly number[]
  /** the parsed answers, where `keepAnswers` asked for them */
  readonly answers: readonly unknown[]
}

async function send(order: LoadOrder & { readonly keepAnswers?: boolean }): Promise<LoadResult> {
  if (!/^http:\/\/(127\.0\.0\.1|localhost):\d+$/.test(order.origin)) throw new Error('the load stays on this machine')
  const pool = new Pool(order.origin, { connections: order.connections, pipelining: 1 })
  const deadline = performance.now() + order.timeoutSeconds * 1_000
  const latencies: number[] = []
  const answers: unknown[] = []
  let sent = 0
  const startedAt = performance.now()
  await Promise.all(
    Array.from({ length: order.connections }, async () => {
      while (sent < order.requests) {
        const i = sent
        sent += 1
        const begunAt = performance.now()
        if (begunAt > deadline) throw new Error(`the load was not over after ${order.timeoutSeconds} s`)
        const { method = 'POST', bodies } = order
        const { statusCode, body } = await pool.request({
          method,
          path: order.paths?.[i % order.paths.length] ?? order.path,
          headers: order.headers,
          ...(method === 'GET' ? {} : { body: bodies[i % bodies.length] ?? '' }),
        })
        const text = await body.text()
        if (statusCode !== 200)
          throw new Error(`${order.origin}${order.path} answered ${statusCode}: ${text.slice(0, 300)}`)
        latencies.push(performance.now() - begunAt)
        if (order.keepAnswers === true) answers[i] = JSON.parse(text)
      }
    }),
  )
  const seconds = (performance.now() - startedAt) / 1_000
  await pool.close()
  return { seconds, latencies, answers }
}

process.on('message', (order: LoadOrder) => {
  send(order).then(
    (result) => process.send?.(result),
    (error: unknown) => {
      console.error(error)
      process.exit(1)
    },
  )
})
