/**
 * Requests at a steady rate to services on the loopback interface, with many tokens in turn: what services live in while
 * something is revoked. As a program of its own: a {@link SteadyLoadOrder} begins it and is answered at once, `'stop'`
 * ends it and is answered with a {@link SteadyLoadResult}. Bounded in time, and in requests under way.
 */
import { Pool } from 'undici'

export interface SteadyLoadOrder {
  /** asked in turn */
  readonly urls: readonly string[]
  /** sent in turn */
  readonly tokens: readonly string[]
  /** requests a second, all together */
  readonly perSecond: number
  /** the longest that it may go on, in seconds */
  readonly seconds: number
}

export interface SteadyLoadResult {
  readonly requests: number
  /** status → how often; `0` where there was no answer */
  readonly statuses: Readonly<Record<string, number>>
  /** of every request, in milliseconds */
  readonly latencies: readonly number[]
}

const tickMs = 10
const mostUnderWay = 64

let running: { readonly stop: () => Promise<SteadyLoadResult> } | undefined

function start({ urls, tokens, perSecond, seconds }: SteadyLoadOrder): typeof running {
  const targets = urls.map((url) => new URL(url))
  for (const { hostname } of targets) if (hostname !== '127.0.0.1') throw new Error('the load stays on this machine')
  const pools = new Map(targets.map(({ origin }) => [origin, new Pool(origin, { connections: 4, pipelining: 1 })]))
  const statuses: Record<string, number> = {}
  const latencies: number[] = []
  const underWay = new Set<Promise<void>>()
  let sent = 0
  const startedAt = performance.now()

  async function send(turn: number): Promise<void> {
    const { origin, pathname: path } = targets[turn % targets.length] ?? new URL('http://127.0.0.1')
    const token = tokens[Math.floor(turn / targets.length) % tokens.length] ?? ''
    const begunAt = performance.now()
    let status = 0
    try {
      const answer = await pools
        .get(origin)
        ?.request({ method: 'GET', path, headers: { authorization: `Bearer ${token}` } })
      await answer?.body.dump()
      status = answer?.statusCode ?? 0
      latencies.push(performance.now() - begunAt)
    } catch (error) {
      // The first says what is wrong; all of them are counted.
      if (statuses[0] === undefined) console.error(error)
    }
    statuses[status] = (statuses[status] ?? 0) + 1
  }

  const timer = setInterval(() => {
    const elapsed = (performance.now() - startedAt) / 1_000
    if (elapsed > seconds) process.exit(1)
    while (sent < elapsed * perSecond && underWay.size < mostUnderWay) {
      const sending = send(sent).finally(() => underWay.delete(sending))
      underWay.add(sending)
      sent += 1
    }
  }, tickMs)

  return {
    async stop() {
      clearInterval(timer)
      await Promise.all(underWay)
      await Promise.all([...pools.values()].map((pool) => pool.close()))
      return { requests: sent, statuses, latencies }
    },
  }
}

process.on('message', (message: SteadyLoadOrder | 'stop') => {
  if (message !== 'stop') {
    running = start(message)
    process.send?.('started')
    return
  }
  running?.stop().then(
    (result) => process.send?.(result),
    (error: unknown) => {
      console.error(error)
      process.exit(1)
    },
  )
})
