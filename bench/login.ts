/**
 * What logins cost, and what they cost everybody else. Bars:
 *
 * - while 16 logins hash, signing a token has a p99 of at most 15 ms, and there are at least 0.8 times as many logins a
 *   second as without the gate
 * - 50 logins at once at 64 MiB grow the memory by at most (processors × 64 MiB + 100 MB), and those that do not fit are
 *   refused within 100 ms
 *
 * Runs `node bench/login.ts`, about half a minute, on this machine alone. Each measurement has a process of its own,
 * since memory and threads that were used once stay. The gated and the ungated runs alternate, and medians are shown:
 * compare them within one run, never between machines.
 */
import { fork } from 'node:child_process'
import { generateKeyPairSync, randomBytes, sign as signOnce } from 'node:crypto'
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { pino } from 'pino'
import { HashingOverloaded } from '../src/users/hashing-gate.ts'
import { openPasswords } from '../src/users/password.ts'

const processors = availableParallelism()
const megabyte = 1_000_000
const rounds = 3
const signSeconds = 3
const logins = 16

interface SignRun {
  readonly p50Ms: number
  readonly p99Ms: number
  readonly loginsPerSecond: number
  readonly cpuMsPerLogin: number
}

interface MemoryRun {
  readonly grownBytes: number
  readonly checked: number
  readonly refused: number
  readonly slowestRefusalMs: number
  readonly retryAfterSeconds: number
}

function open(concurrency: number, queue: number, memoryKib: number, timeCost: number) {
  return openPasswords({
    config: {
      hashingConcurrency: concurrency,
      hashingQueue: queue,
      passwordBlocklistFile: undefined,
      issuer: 'http://localhost:3000',
    },
    workFactor: { memoryKib, timeCost, parallelism: 1 },
    log: pino({ level: 'silent' }),
  })
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms))
const quantile = (values: readonly number[], q: number): number =>
  [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * q))] ?? NaN

/** Signs what is as long as a token every few milliseconds, as /token does, while so many logins hash one after the other. */
async function measureSigning(concurrency: number, loginsAtOnce: number): Promise<SignRun> {
  const passwords = open(concurrency, logins, 19_456, 2)
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2_048 })
  const input = Buffer.from(randomBytes(320).toString('base64url'))
  const sign = () => promisify(signOnce)('sha256', input, privateKey)
  await Promise.all([sign(), passwords.verify(undefined, 'seven purple otters')])

  const over = new AbortController()
  const cpuBefore = process.cpuUsage()
  const before = passwords.stats().completed
  const startedAt = performance.now()
  const hashing = Array.from({ length: loginsAtOnce }, async () => {
    while (!over.signal.aborted) await passwords.verify(undefined, 'seven purple otters')
  })
  const times: number[] = []
  while (performance.now() - startedAt < signSeconds * 1_000) {
    const begunAt = performance.now()
    await sign()
    times.push(performance.now() - begunAt)
    await sleep(4)
  }
  const seconds = (performance.now() - startedAt) / 1_000
  const done = passwords.stats().completed - before
  const { user, system } = process.cpuUsage(cpuBefore)
  over.abort()
  await Promise.all(hashing)
  return {
    p50Ms: quantile(times, 0.5),
    p99Ms: quantile(times, 0.99),
    loginsPerSecond: done / seconds,
    cpuMsPerLogin: done === 0 ? 0 : (user + system) / 1_000 / done,
  }
}

/** Fifty people sign in at the same moment. */
async function measureMemory(concurrency: number, queue: number): Promise<MemoryRun> {
  const passwords = open(concurrency, queue, 65_536, 3)
  const before = process.memoryUsage.rss()
  let peak = before
  const timer = setInterval(() => {
    peak = Math.max(peak, process.memoryUsage.rss())
  }, 2)
  const refusals: { readonly took: number; readonly retryAfterSeconds: number }[] = []
  const attempts = Array.from({ length: 50 }, async () => {
    const begunAt = performance.now()
    try {
      await passwords.verify(undefined, 'seven purple otters')
    } catch (error) {
      if (!(error instanceof HashingOverloaded)) throw error
      refusals.push({ took: performance.now() - begunAt, retryAfterSeconds: error.retryAfterSeconds })
    }
  })
  await Promise.all(attempts)
  clearInterval(timer)
  return {
    grownBytes: peak - before,
    checked: 50 - refusals.length,
    refused: refusals.length,
    slowestRefusalMs: Math.max(0, ...refusals.map(({ took }) => took)),
    retryAfterSeconds: Math.max(0, ...refusals.map(({ retryAfterSeconds }) => retryAfterSeconds)),
  }
}

const measurements = {
  idle: () => measureSigning(processors, 0),
  gated: () => measureSigning(processors, logins),
  ungated: () => measureSigning(logins, logins),
  memoryGated: () => measureMemory(processors, 32),
  memoryUngated: () => measureMemory(50, 0),
} as const
type Measurement = keyof typeof measurements

/** In a process of its own; `threads` is libuv's pool, 4 where nobody says otherwise. */
function run<M extends Measurement>(name: M, threads = 4): Promise<Awaited<ReturnType<(typeof measurements)[M]>>> {
  return new Promise((resolve, reject) => {
    const child = fork(fileURLToPath(import.meta.url), [name], {
      env: { ...process.env, UV_THREADPOOL_SIZE: String(threads) },
    })
    let result: unknown
    child.on('message', (message) => {
      result = message
    })
    child.on('error', reject)
    child.on('exit', (code) => {
      if (code === 0 && result !== undefined) resolve(result as Awaited<ReturnType<(typeof measurements)[M]>>)
      else reject(new Error(`${name} ended with ${code}`))
    })
  })
}

async function main(): Promise<void> {
  // One thread more than hashes at once, so that a signature finds one free.
  const threads = Math.max(4, processors + 2)
  const runs = { idle: [] as SignRun[], gated: [] as SignRun[], ungated: [] as SignRun[] }
  for (let round = 0; round < rounds; round += 1) {
    for (const name of ['idle', 'gated', 'ungated'] as const) runs[name].push(await run(name, threads))
  }
  const median = (name: keyof typeof runs, of: keyof SignRun) =>
    quantile(
      runs[name].map((run) => run[of]),
      0.5,
    )
  const memory = await run('memoryGated', threads)
  // What the gate saves: a pool as large as the crowd, as an operator might set it for something else.
  const memoryUngated = await run('memoryUngated', 50)

  const f = (value: number) => value.toFixed(1).padStart(9)
  console.log(
    `${processors} processors, ${threads} threads in the pool, Node ${process.version}; median of ${rounds} rounds of ${signSeconds} s\n`,
  )
  console.log(`${''.padEnd(26)}  sign p50   sign p99   logins/s   CPU ms/login`)
  for (const [name, label] of [
    ['idle', 'no logins'],
    ['gated', `${logins} logins, gate of ${processors}`],
    ['ungated', `${logins} logins, no gate`],
  ] as const) {
    const cells = (['p50Ms', 'p99Ms', 'loginsPerSecond', 'cpuMsPerLogin'] as const).map((of) => f(median(name, of)))
    console.log(`${label.padEnd(26)} ${cells.join('  ')}`)
  }
  console.log(`\n50 logins at once, 64 MiB × 3   memory grew   checked   refused   slowest refusal`)
  for (const [label, row] of [
    [`gate of ${processors}, queue of 32`, memory],
    ['no gate, 50 threads', memoryUngated],
  ] as const) {
    console.log(
      `${label.padEnd(30)} ${(row.grownBytes / megabyte).toFixed(0).padStart(9)} MB ${String(row.checked).padStart(9)} ${String(row.refused).padStart(9)} ${row.slowestRefusalMs.toFixed(1).padStart(14)} ms`,
    )
  }

  const p99 = median('gated', 'p99Ms')
  const ratio = median('gated', 'loginsPerSecond') / median('ungated', 'loginsPerSecond')
  const allowedMb = (processors * 65_536 * 1_024) / megabyte + 100
  const bars = [
    { bar: 'sign p99 beside 16 logins', value: p99, limit: '≤ 15 ms', isMet: p99 <= 15 },
    { bar: 'logins/s, gated ÷ ungated', value: ratio, limit: '≥ 0.8', isMet: ratio >= 0.8 },
    {
      bar: 'memory of 50 logins, MB',
      value: memory.grownBytes / megabyte,
      limit: `≤ ${allowedMb.toFixed(0)}`,
      isMet: memory.grownBytes / megabyte <= allowedMb,
    },
    {
      bar: 'slowest refusal, ms',
      value: memory.slowestRefusalMs,
      limit: '< 100, some refused',
      isMet: memory.refused > 0 && memory.retryAfterSeconds >= 1 && memory.slowestRefusalMs < 100,
    },
  ]
  console.log('')
  for (const { bar, value, limit, isMet } of bars) {
    console.log(`${bar.padEnd(28)} ${value.toFixed(2).padStart(9)}   ${limit.padEnd(20)} ${isMet ? 'met' : 'NOT MET'}`)
  }
  console.log(JSON.stringify({ bench: 'login', processors, threads, runs, memory, memoryUngated, bars }))
}

const [name] = process.argv.slice(2)
if (name === undefined) {
  await main()
} else {
  const result = await measurements[name as Measurement]()
  process.send?.(result)
  process.disconnect()
}
