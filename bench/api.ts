/**
 * What a request at the management API costs (one person, a page of 50, a change of a name), everything on: the guard and
 * the revocations table, limits by plan and network, checks of request and answer, the log, audit and usage. Beside a bare
 * Koa + Kysely handler that runs the same statements for the request's own sake and nothing else. Bar: requests for each
 * second of processor time, bare ÷ ours ≤ 2.
 *
 * Runs `npm run bench:api`, about a minute, on this machine alone, both servers at the same PostgreSQL, asked in turn. What
 * counts is the processor time of the server's process (utime + stime, which Linux counts in hundredths of a second);
 * compare within one run. `--rounds 5` is a quick
 * look; `--only get` measures one of them; `--profile <folder>` leaves a processor profile of Latchkey there.
 */
import { availableParallelism } from 'node:os'
import { parseArgs } from 'node:util'
import { findFreePort } from '../test/support/ports.ts'
import { startBenchDatabase, startLatchkeyServer, type BenchServer } from './support/latchkey-server.ts'
import type { LoadOrder, LoadResult } from './support/load.ts'
import { startProgram, waitUntilReady } from './support/processes.ts'
import { median, printBars, quantile, ratios, type Bar } from './support/statistics.ts'

const { values: options } = parseArgs({
  options: {
    rounds: { type: 'string', default: '25' },
    profile: { type: 'string' },
    only: { type: 'string' },
  },
})
const mostRounds = Number(options.rounds)
const longestSeconds = 150
const people = 10_000
const connections = 8

const load = startProgram('load.ts')
const database = await startBenchDatabase()
const running: BenchServer[] = []

interface Operation {
  readonly label: string
  readonly requests: number
  readonly order: Pick<LoadOrder, 'method' | 'path' | 'paths' | 'bodies'>
}

try {
  const nodeOptions =
    options.profile === undefined ? [] : ['--cpu-prof', `--cpu-prof-dir=${options.profile}`, '--cpu-prof-interval=200']
  const ours = await startLatchkeyServer(database, { nodeOptions })
  running.push(ours)
  const port = await findFreePort()
  const bareProcess = startProgram('bare-api.ts', {
    environment: { NODE_ENV: 'production', PORT: String(port), DATABASE_URL: database.url },
  })
  const bare = { origin: `http://localhost:${port}`, process: bareProcess }
  running.push(bare)
  const ids = await database.createPeople(people)
  await waitUntilReady(`${bare.origin}/v1/users/${ids[0] ?? ''}`, bareProcess)

  const manager = await database.createManager(ours.origin)
  const answer = await fetch(`${ours.origin}/token`, {
    method: 'POST',
    headers: {
      authorization: `Basic ${Buffer.from(`${manager.client_id}:${manager.client_secret}`).toString('base64')}`,
    },
    body: new URLSearchParams({ grant_type: 'client_credentials' }),
  })
  const { access_token: token } = (await answer.json()) as { access_token: string }
  const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json', accept: 'application/json' }

  const some = ids.slice(0, 500).map((id) => `/v1/users/${id}`)
  const names = Array.from({ length: 997 }, (_, i) => JSON.stringify({ name: `Person ${i} of the measurement` }))
  const all: Operation[] = [
    { label: 'get', requests: 1_000, order: { method: 'GET', path: '', paths: some, bodies: [] } },
    { label: 'list', requests: 200, order: { method: 'GET', path: '/v1/users?limit=50', bodies: [] } },
    { label: 'patch', requests: 400, order: { method: 'PATCH', path: '', paths: some, bodies: names } },
  ]

  const operations = all.filter(({ label }) => options.only === undefined || label === options.only)

  async function take(server: BenchServer, { order, requests }: Operation, count = requests): Promise<number> {
    const before = server.process.cpuMicroseconds()
    const sent = { ...order, origin: server.origin, headers, requests: count, connections, timeoutSeconds: 60 }
    const result = (await load.ask(sent satisfies LoadOrder)) as LoadResult
    if (result.latencies.length !== count) throw new Error('not everything was answered')
    return (server.process.cpuMicroseconds() - before) / count
  }

  for (const operation of operations) {
    for (const server of [bare, ours]) await take(server, operation, operation.requests * 5)
  }
  const spent = new Map(operations.map(({ label }) => [label, { ours: [] as number[], bare: [] as number[] }]))
  let rounds = 0
  for (; rounds < mostRounds && performance.now() < longestSeconds * 1_000; rounds += 1) {
    for (const operation of operations) {
      const costs = spent.get(operation.label)
      const order = rounds % 2 === 0 ? (['ours', 'bare'] as const) : (['bare', 'ours'] as const)
      for (const which of order) costs?.[which].push(await take(which === 'ours' ? ours : bare, operation))
    }
  }

  console.log(
    `${availableParallelism()} processors, Node ${process.version}; ${rounds} rounds, ${connections} connections, ${people} people; medians\n`,
  )
  console.log(`${''.padEnd(8)} ours, CPU µs   a CPU second   bare, CPU µs   a CPU second   ours ÷ bare`)
  const bars: Bar[] = operations.map(({ label }) => {
    const costs = spent.get(label) ?? { ours: [], bare: [] }
    const relative = ratios(costs.ours, costs.bare)
    const value = median(relative)
    const f = (n: number) => n.toFixed(0).padStart(12)
    const spread = `[${quantile(relative, 0.25).toFixed(2)}–${quantile(relative, 0.75).toFixed(2)}]`
    console.log(
      `${label.padEnd(8)} ${f(median(costs.ours))}   ${f(1e6 / median(costs.ours))}   ${f(median(costs.bare))}   ${f(1e6 / median(costs.bare))}   ${value.toFixed(2)} ${spread}`,
    )
    return { bar: `CPU of ${label}, Latchkey ÷ bare Koa + Kysely`, value, limit: '≤ 2', isMet: value <= 2 }
  })
  console.log('')
  printBars(bars)
  console.log(
    JSON.stringify({
      bench: 'api',
      processors: availableParallelism(),
      node: process.version,
      rounds,
      connections,
      people,
      cpuMicroseconds: Object.fromEntries(spent),
      bars,
    }),
  )
} finally {
  for (const server of running) await server.process.stop()
  await load.stop()
  await database.remove()
}
