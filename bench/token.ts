/**
 * What an access token costs: `client_credentials`, RS256, everything on (request context, access log to a file,
 * security headers, clients in PostgreSQL), beside bare oidc-provider with its memory adapter and one static client,
 * and beside the signature alone. Bars:
 *
 * - processor time for a token ≤ bare oidc-provider's; a gap that the control shows too counts as equal. The control is
 *   the same bare server twice, which should differ by nothing
 * - raw RSA-2048 signature ÷ token ≥ 0.50
 * - with two worker processes, processor time for a token ≤ 1.1 times that of one process
 *
 * Runs `npm run bench:token`, about two minutes, on this machine alone. All servers run all the time and are asked in
 * turn, many short rounds of it, each round in another order; what counts is the processor time of the server's
 * processes (utime + stime), the ratios within a round, and their medians. Compare within one run, never between
 * machines. `--rounds 5` is a quick look; `--plain-rsa` signs without AVX-512 IFMA, as processors do that lack it: two to
 * three times slower; `--profile <folder>` leaves a processor profile of Latchkey there.
 */
import { randomBytes } from 'node:crypto'
import { availableParallelism } from 'node:os'
import { parseArgs } from 'node:util'
import { findFreePort } from '../test/support/ports.ts'
import { resource, startBenchDatabase, startLatchkeyServer, type BenchServer } from './support/latchkey-server.ts'
import type { LoadOrder, LoadResult } from './support/load.ts'
import { startProgram, waitUntilReady } from './support/processes.ts'
import { median, printBars, quantile, ratios, type Bar } from './support/statistics.ts'

const { values: options } = parseArgs({
  options: {
    rounds: { type: 'string', default: '40' },
    'plain-rsa': { type: 'boolean', default: false },
    profile: { type: 'string' },
  },
})
// AVX-512 IFMA is bit 21 of the word behind the colon (OPENSSL_ia32cap(3)).
if (options['plain-rsa']) process.env['OPENSSL_ia32cap'] = ':~0x200000'
const mostRounds = Number(options.rounds)
const requests = 300
const connections = 16
const warmUpRequests = 5_000
/** On a machine that is busy with other things fewer rounds are made, not a longer run. */
const longestSeconds = 150
const signatures = 150

interface Turn {
  readonly cpuMicroseconds: number
  readonly perSecond: number
  readonly p50Ms: number
  readonly p99Ms: number
}

interface Contestant extends BenchServer {
  readonly label: string
  readonly authorization: string
  readonly turns: Turn[]
}

interface Credentials {
  readonly client_id: string
  readonly client_secret: string
}

const basic = ({ client_id, client_secret }: Credentials) =>
  `Basic ${Buffer.from(`${client_id}:${client_secret}`).toString('base64')}`

async function startBare(client: Credentials): Promise<BenchServer> {
  const port = await findFreePort()
  const process = startProgram('bare-provider.ts', {
    environment: {
      NODE_ENV: 'production',
      PORT: String(port),
      RESOURCE: resource,
      CLIENT_ID: client.client_id,
      CLIENT_SECRET: client.client_secret,
    },
  })
  const origin = `http://localhost:${port}`
  await waitUntilReady(`${origin}/.well-known/openid-configuration`, process)
  return { origin, process }
}

const load = startProgram('load.ts')
const rawSign = startProgram('raw-sign.ts')

async function take(contestant: Contestant, count: number): Promise<Turn> {
  const before = contestant.process.cpuMicroseconds()
  const result = (await load.ask({
    origin: contestant.origin,
    path: '/token',
    headers: {
      authorization: contestant.authorization,
      'content-type': 'application/x-www-form-urlencoded',
    },
    bodies: ['grant_type=client_credentials&scope=models%3Aread'],
    requests: count,
    connections,
    timeoutSeconds: 60,
  } satisfies LoadOrder)) as LoadResult
  return {
    cpuMicroseconds: (contestant.process.cpuMicroseconds() - before) / count,
    perSecond: count / result.seconds,
    p50Ms: quantile(result.latencies, 0.5),
    p99Ms: quantile(result.latencies, 0.99),
  }
}

const database = await startBenchDatabase()
const running: BenchServer[] = []
try {
  const machine = await database.createMachine('bench-machine')
  const bareClient = { client_id: 'bench-machine', client_secret: randomBytes(32).toString('base64url') }
  const contestants: Contestant[] = []
  const enter = (label: string, server: BenchServer, client: Credentials): Contestant => {
    running.push(server)
    const contestant = { ...server, label, authorization: basic(client), turns: [] }
    contestants.push(contestant)
    return contestant
  }
  const bare = enter('bare oidc-provider', await startBare(bareClient), bareClient)
  const control = enter('bare oidc-provider again (control)', await startBare(bareClient), bareClient)
  const nodeOptions =
    options.profile === undefined ? [] : ['--cpu-prof', `--cpu-prof-dir=${options.profile}`, '--cpu-prof-interval=200']
  const ours = enter('Latchkey, 1 process', await startLatchkeyServer(database, { nodeOptions }), machine)
  const two = enter(
    'Latchkey, 2 workers',
    await startLatchkeyServer(database, { environment: { LATCHKEY_WORKERS: '2' } }),
    machine,
  )

  // Compiled and cached before anything counts; two processes share the work, so they need twice as much of it.
  await rawSign.ask(signatures)
  for (const contestant of contestants) await take(contestant, contestant === two ? 2 * warmUpRequests : warmUpRequests)

  const signCpu: number[] = []
  let rounds = 0
  for (; rounds < mostRounds && performance.now() < longestSeconds * 1_000; rounds += 1) {
    signCpu.push((await rawSign.ask(signatures)) as number)
    for (let i = 0; i < contestants.length; i += 1) {
      const contestant = contestants[(rounds + i) % contestants.length] ?? ours
      contestant.turns.push(await take(contestant, requests))
    }
  }

  const cpu = ({ turns }: Contestant) => turns.map(({ cpuMicroseconds }) => cpuMicroseconds)
  // Either of the two bare servers is as good a peer: their mean is compared with.
  const peer = cpu(bare).map((value, i) => (value + (cpu(control)[i] ?? NaN)) / 2)
  const controlRatios = ratios(cpu(control), cpu(bare))
  // How far apart the same server twice is, either way, in three rounds of four.
  const gap = quantile(
    controlRatios.map((ratio) => Math.max(ratio, 1 / ratio)),
    0.75,
  )
  const f = (value: number, digits: number, width: number) => value.toFixed(digits).padStart(width)
  console.log(
    `${availableParallelism()} processors, Node ${process.version}; ${rounds} rounds of ${requests} tokens, ${connections} connections; medians, [least–most] over rounds\n`,
  )
  console.log(`${''.padEnd(36)}   CPU µs a token     ÷ bare              sign ÷ it   tokens/s   p50 ms   p99 ms`)
  console.log(
    `${'raw RSA-2048 signature'.padEnd(36)} ${f(median(signCpu), 0, 5)} [${f(Math.min(...signCpu), 0, 0)}–${f(Math.max(...signCpu), 0, 0)}]`,
  )
  for (const contestant of contestants) {
    const own = cpu(contestant)
    const relative = ratios(own, contestant === control || contestant === bare ? cpu(bare) : peer)
    const of = (key: keyof Turn) => median(contestant.turns.map((turn) => turn[key]))
    console.log(
      [
        contestant.label.padEnd(36),
        `${f(median(own), 0, 5)} [${f(Math.min(...own), 0, 0)}–${f(Math.max(...own), 0, 0)}]`.padEnd(18),
        `${f(median(relative), 2, 5)} [${f(quantile(relative, 0.25), 2, 0)}–${f(quantile(relative, 0.75), 2, 0)}]`.padEnd(
          19,
        ),
        f(median(ratios(signCpu, own)), 2, 8),
        f(of('perSecond'), 0, 10),
        f(of('p50Ms'), 1, 8),
        f(of('p99Ms'), 1, 8),
      ].join(' '),
    )
  }

  const toPeer = median(ratios(cpu(ours), peer))
  const signShare = median(ratios(signCpu, cpu(ours)))
  const twoToOne = median(ratios(cpu(two), cpu(ours)))
  const bars: Bar[] = [
    {
      bar: 'CPU a token, Latchkey ÷ bare oidc-provider',
      value: toPeer,
      limit: `≤ 1, or within the control: ${gap.toFixed(2)}`,
      isMet: toPeer <= Math.max(1, gap),
    },
    { bar: 'raw signature ÷ CPU a token', value: signShare, limit: '≥ 0.50', isMet: signShare >= 0.5 },
    { bar: 'CPU a token, 2 workers ÷ 1 process', value: twoToOne, limit: '≤ 1.1', isMet: twoToOne <= 1.1 },
  ]
  console.log('')
  printBars(bars)
  console.log(
    JSON.stringify({
      bench: 'token',
      processors: availableParallelism(),
      node: process.version,
      plainRsa: options['plain-rsa'],
      rounds,
      requests,
      connections,
      signCpu: signCpu.map(Math.round),
      turns: Object.fromEntries(contestants.map(({ label, turns }) => [label, turns])),
      bars,
    }),
  )
} finally {
  for (const server of running) await server.process.stop()
  await Promise.all([load.stop(), rawSign.stop()])
  await database.remove()
}
