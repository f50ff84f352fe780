/**
 * Revoked means dead in every service: how long it takes from a revocation to the first 401 of each of several services
 * under load, which ask nobody about the tokens that they are shown. Bars:
 *
 * - p99 ≤ 1,000 ms
 * - calls to the provider for a request at a service: 0
 * - missed 0: each service refused each revoked token within five seconds, and still does at the end
 *
 * A bar that is missed, a valid token that is refused, or fewer than `--n` revocations in the time there is: the exit code
 * is 1.
 *
 * Runs `npm run bench:revocation -- --services 3 --n 200`, less than two minutes, on this machine alone: a PostgreSQL, a
 * Latchkey as in production, each service in a process of its own with the guard and its feed, and requests with valid
 * tokens at all of them all the time. `--providers 2` has two servers behind one address, and each revocation is sent to
 * the other one in turn. Services are asked over HTTP, one request after the other, until they refuse. `--receivers 100`
 * is that many guards in one process instead, which look for themselves every ten milliseconds. `--rate` is the load:
 * requests a second at all services together.
 *
 * What is revoked: single tokens, families by their refresh token, sessions, all that a person has, people who are
 * disabled, all that a client has. The time counts from the moment at which the revocation is sent, so it holds the
 * provider's own work and its commit; beside it, from the moment at which the answer arrived.
 */
import { createHash, randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { decodeJwt } from 'jose'
import { Pool } from 'undici'
import { assignRole, createRole, type Permission } from '../src/access/roles.ts'
import { systemActor } from '../src/audit/audit.ts'
import { createClient } from '../src/oauth/clients.ts'
import {
  managementPermissions,
  managementResourceId,
  signalsPermission,
  signalsResourceId,
} from '../src/oauth/own-entries.ts'
import { findFreePort } from '../test/support/ports.ts'
import { openReverseProxy, type ReverseProxy } from '../test/support/reverse-proxy.ts'
import { completeSignIn, postForm, UserAgent, type TokenAnswer } from '../test/support/user-agent.ts'
import type { GuardedServiceHealth, GuardedServiceMessage } from './support/guarded-service.ts'
import { resource, startBenchDatabase, startLatchkeyServer, type BenchLatchkey } from './support/latchkey-server.ts'
import { monotonicMs } from './support/monotonic-clock.ts'
import { startProgram, waitUntilReady, type BenchProcess } from './support/processes.ts'
import { printBars, quantile, type Bar } from './support/statistics.ts'
import type { SteadyLoadOrder, SteadyLoadResult } from './support/steady-load.ts'

const { values: options } = parseArgs({
  options: {
    services: { type: 'string', default: '3' },
    n: { type: 'string', default: '200' },
    providers: { type: 'string', default: '1' },
    receivers: { type: 'string', default: '0' },
    rate: { type: 'string', default: '300' },
  },
})
const numberOf = (name: keyof typeof options, least: number, most: number): number => {
  const value = Number(options[name])
  if (!Number.isInteger(value) || value < least || value > most)
    throw new Error(`--${name} is from ${least} to ${most}`)
  return value
}
const count = numberOf('n', 1, 2_000)
const receivers = numberOf('receivers', 0, 500)
const serviceCount = receivers > 0 ? 1 : numberOf('services', 1, 20)
const providerCount = numberOf('providers', 1, 2)
const requestsPerSecond = numberOf('rate', 1, 5_000)

const missedAfterSeconds = 5
/** On a machine that is busy with other things fewer are revoked, not for longer. */
const longestSeconds = 200
const probeEveryMs = 3
const callback = 'https://app.example.com/callback'
const password = 'seven purple otters'
const bystanders = 30
const pollEndpoint = 'POST /ssf/streams/:stream_id/events'

interface Client {
  readonly client_id: string
  readonly client_secret: string
}

/** A token that is going to be revoked. */
interface Victim {
  readonly kind: string
  readonly token: string
  /** at this server */
  revoke(origin: string): Promise<void>
}

/** One guard of one service. */
interface Target {
  readonly service: Service
  readonly path: string
}

interface Service {
  readonly origin: string
  readonly process: BenchProcess
  readonly pool: Pool
  readonly guards: number
}

interface Measured {
  readonly kind: string
  readonly fromSendingMs: number
  readonly fromAnswerMs: number
}

const database = await startBenchDatabase()
const processes: BenchProcess[] = []
let proxy: ReverseProxy | undefined
try {
  const { issuer, providers } = await startProviders()
  const people = await register(issuer)
  const victims = await prepare(issuer, people)
  const standing = await prepareBystanders(issuer, people)
  const feed = await createMachine('Services', [{ resource: signalsResourceId(issuer), permission: signalsPermission }])
  const services = await startServices(issuer, feed)
  const targets = services.flatMap((service): Target[] =>
    Array.from({ length: service.guards }, (_, place) => ({ service, path: `/${place}` })),
  )

  const load = startProgram('steady-load.ts')
  processes.push(load)
  const order: SteadyLoadOrder = {
    urls: targets.map(({ service, path }) => `${service.origin}${path}`),
    tokens: standing,
    perSecond: requestsPerSecond,
    seconds: 2 * longestSeconds,
  }
  const cpuBefore = { providers: cpuOf(providers), services: cpuOf(services) }
  const beganAt = new Date().toISOString()
  const begunAt = performance.now()
  await load.ask(order)
  await sleep(500)

  const measured: Measured[] = []
  let missed = 0
  let probes = 0
  let revoked = 0
  for (const [turn, victim] of victims.entries()) {
    if (performance.now() - begunAt > longestSeconds * 1_000) break
    const { origin } = providers[turn % providers.length] ?? { origin: issuer }
    const outcome = receivers > 0 ? await watch(services, victim, origin) : await probe(targets, victim, origin)
    revoked += 1
    probes += outcome.requests
    for (const refusedAt of outcome.refusedAt) {
      if (refusedAt === undefined) missed += 1
      else {
        measured.push({
          kind: victim.kind,
          fromSendingMs: refusedAt - outcome.sentAt,
          fromAnswerMs: refusedAt - outcome.answeredAt,
        })
      }
    }
    // Not in step with anything else.
    await sleep(20 + Math.random() * 60)
  }
  const seconds = (performance.now() - begunAt) / 1_000
  const underLoad = (await load.ask('stop')) as SteadyLoadResult
  const cpuMs = {
    providers: (cpuOf(providers) - cpuBefore.providers) / 1_000,
    services: (cpuOf(services) - cpuBefore.services) / 1_000,
  }
  // Nothing comes back to life.
  let alive = 0
  for (const { token } of victims.slice(0, revoked)) {
    const statuses = await Promise.all(targets.map((target) => ask(target, token)))
    alive += statuses.filter((status) => status !== 401).length
    probes += statuses.length
  }
  missed += alive
  const endedAt = new Date().toISOString()
  const health = await Promise.all(services.map((service) => healthOf(service)))
  // What they wrote is complete when they are gone; and the services first, which would otherwise miss them.
  for (const { process, pool } of services) {
    await pool.close()
    await process.stop()
  }
  for (const { process } of providers) await process.stop()
  const calls = providers.flatMap(({ logFile }) => readCalls(logFile, beganAt, endedAt))

  const apiRequests = underLoad.requests + probes
  const polls = calls.filter((endpoint) => endpoint === pollEndpoint).length
  const others = calls.length - polls - revoked
  const wronglyRefused = underLoad.requests - (underLoad.statuses['200'] ?? 0)
  const callsPerRequest = others / apiRequests
  const fromSending = measured.map(({ fromSendingMs }) => fromSendingMs)

  console.log(
    `${availableParallelism()} processors, Node ${process.version}; ${providers.length} provider${providers.length > 1 ? 's' : ''}, ${describeServices()}, ${revoked} revocations in ${seconds.toFixed(0)} s, ${(underLoad.requests / seconds).toFixed(0)} requests/s beside them\n`,
  )
  const f = (value: number, width: number) => value.toFixed(0).padStart(width)
  const row = (label: string, some: readonly Measured[]) => {
    const sending = some.map(({ fromSendingMs }) => fromSendingMs)
    const answer = some.map(({ fromAnswerMs }) => fromAnswerMs)
    const columns = [sending, answer].map(
      (ms) => `${f(quantile(ms, 0.5), 7)} ${f(quantile(ms, 0.99), 6)} ${f(Math.max(...ms), 6)}`,
    )
    console.log(`${label.padEnd(36)} ${String(some.length).padStart(6)} ${columns.join('   ')}`)
  }
  console.log(`${'revocation → 401, ms'.padEnd(36)}           from sending it       from its answer`)
  console.log(`${''.padEnd(36)} ${'number'.padStart(6)} ${'    p50    p99    max   '.repeat(2)}`)
  for (const kind of new Set(measured.map((one) => one.kind)))
    row(
      kind,
      measured.filter((one) => one.kind === kind),
    )
  row('all', measured)
  console.log(`
requests at the services             ${apiRequests}: ${underLoad.requests} with valid tokens, ${probes} with those that are revoked
  p50, p99 of the valid ones, ms     ${quantile(underLoad.latencies, 0.5).toFixed(1)}, ${quantile(underLoad.latencies, 0.99).toFixed(1)}
requests at the provider             ${calls.length}: ${revoked} revocations, ${polls} polls of ${targets.length} streams, ${others} others
processor time a revocation, ms      provider ${(cpuMs.providers / revoked).toFixed(1)}, services ${(cpuMs.services / revoked).toFixed(1)} with their requests
entries in a guard                   ${Math.max(...health.flatMap(({ guards }) => guards.map(({ revocation }) => Number(revocation?.['entries']))))}
memory of the services, MB           ${health.map(({ memoryBytes }) => (memoryBytes / 1e6).toFixed(0)).join(', ')}
`)
  const p99 = quantile(fromSending, 0.99)
  const bars: Bar[] = [
    { bar: 'revocation → first 401, p99, ms', value: p99, limit: '≤ 1000', isMet: p99 <= 1_000 },
    { bar: 'calls to the provider for a request', value: callsPerRequest, limit: '0', isMet: others === 0 },
    { bar: 'missed', value: missed, limit: '0', isMet: missed === 0 },
    { bar: 'valid tokens refused', value: wronglyRefused, limit: '0', isMet: wronglyRefused === 0 },
    { bar: 'revocations', value: revoked, limit: `${count}`, isMet: revoked === count },
  ]
  printBars(bars)
  if (others > 0) console.log(`others: ${JSON.stringify(tally(calls.filter((endpoint) => endpoint !== pollEndpoint)))}`)
  if (wronglyRefused > 0) console.log(`answers: ${JSON.stringify(underLoad.statuses)}`)
  console.log(
    JSON.stringify({
      p50_ms: Math.round(quantile(fromSending, 0.5)),
      p99_ms: Math.round(p99),
      max_ms: Math.round(Math.max(...fromSending)),
      provider_calls_per_request: callsPerRequest,
      missed,
      revocations: revoked,
    }),
  )
  process.exitCode = bars.every(({ isMet }) => isMet) ? 0 : 1
} finally {
  for (const process of processes) await process.stop()
  await proxy?.close()
  await database.remove()
}

async function startProviders(): Promise<{ readonly issuer: string; readonly providers: readonly BenchLatchkey[] }> {
  const environment = { LATCHKEY_PASSWORD_MEMORY_KIB: '19456', LATCHKEY_PASSWORD_TIME_COST: '2' }
  const start = async (own: Readonly<Record<string, string>>) => {
    const provider = await startLatchkeyServer(database, { environment: { ...environment, ...own } })
    processes.push(provider.process)
    return provider
  }
  if (providerCount === 1) {
    const provider = await start({})
    return { issuer: provider.origin, providers: [provider] }
  }
  const port = await findFreePort()
  const issuer = `http://localhost:${port}`
  const providers: BenchLatchkey[] = []
  for (let i = 0; i < providerCount; i += 1) providers.push(await start({ LATCHKEY_ISSUER: issuer }))
  proxy = await openReverseProxy(
    port,
    providers.map(({ origin }) => Number(new URL(origin).port)),
  )
  return { issuer, providers }
}

async function startServices(issuer: string, feed: Client): Promise<Service[]> {
  const services = await Promise.all(
    Array.from({ length: serviceCount }, async (): Promise<Service> => {
      const port = await findFreePort()
      const guards = receivers > 0 ? receivers : 1
      const program = startProgram('guarded-service.ts', {
        environment: {
          NODE_ENV: 'production',
          PORT: String(port),
          GUARDS: String(guards),
          ISSUER: issuer,
          AUDIENCE: resource,
          CLIENT_ID: feed.client_id,
          CLIENT_SECRET: feed.client_secret,
        },
      })
      processes.push(program)
      const origin = `http://127.0.0.1:${port}`
      await waitUntilReady(`${origin}/health`, program)
      return { origin, process: program, pool: new Pool(origin, { connections: 8, pipelining: 1 }), guards }
    }),
  )
  const deadline = performance.now() + 60_000
  for (const service of services) {
    for (;;) {
      const { guards } = await healthOf(service)
      if (guards.every(({ status }) => status === 'ok')) break
      if (performance.now() > deadline) throw new Error(`the services did not catch up: ${JSON.stringify(guards[0])}`)
      await sleep(100)
    }
  }
  return services
}

async function healthOf({ origin }: Service): Promise<GuardedServiceHealth> {
  return (await (await fetch(`${origin}/health`)).json()) as GuardedServiceHealth
}

/** Registers who signs in, and at what. */
async function register(issuer: string) {
  const web = await database.db.transaction().execute(async (trx) => {
    const permissions = [{ resource, permission: 'models:read' }]
    await createRole(trx, systemActor, { name: 'reader', permissions })
    const { client, secret = '' } = await createClient(trx, systemActor, {
      type: 'web',
      name: 'Web',
      first_party: true,
      redirect_uris: [callback],
      permissions,
    })
    return { client_id: client.id, client_secret: secret }
  })
  const machine = await createMachine('Measured', [{ resource, permission: 'models:read' }])
  // Who may shut somebody out must be allowed what they are.
  const management = managementResourceId(issuer)
  const manager = await createMachine('Manager', [
    ...managementPermissions.map(([permission]) => ({ resource: management, permission })),
    { resource, permission: 'models:read' },
  ])
  const { body } = successOf(
    await postForm(`${issuer}/token`, manager, {
      grant_type: 'client_credentials',
      resource: management,
    }),
  )
  const managerToken = body.access_token ?? ''

  async function manage(origin: string, method: string, path: string, document?: object): Promise<unknown> {
    const answer = await fetch(`${origin}${path}`, {
      method,
      headers: {
        authorization: `Bearer ${managerToken}`,
        ...(document === undefined ? {} : { 'content-type': 'application/json' }),
      },
      ...(document === undefined ? {} : { body: JSON.stringify(document) }),
    })
    const text = await answer.text()
    if (!answer.ok) throw new Error(`${method} ${path} was answered ${answer.status}: ${text}`)
    return text === '' ? undefined : JSON.parse(text)
  }

  let made = 0
  return {
    web,
    machine,
    manage,
    newPerson: async (): Promise<Person> => {
      made += 1
      const email = `measured-${made}@example.com`
      const { user_id: id } = (await manage(issuer, 'POST', '/v1/users', { email, password })) as { user_id: string }
      await database.db.transaction().execute((trx) => assignRole(trx, systemActor, { user_id: id, role: 'reader' }))
      return { id, email, password }
    },
  }
}

type Registered = Awaited<ReturnType<typeof register>>

interface Person {
  readonly id: string
  readonly email: string
  readonly password: string
}

function createMachine(name: string, permissions: Permission[]): Promise<Client> {
  return database.db.transaction().execute(async (trx) => {
    const { client, secret = '' } = await createClient(trx, systemActor, { type: 'machine', name, permissions })
    return { client_id: client.id, client_secret: secret }
  })
}

/** Everything that is going to be revoked, alive. */
async function prepare(issuer: string, registered: Registered): Promise<Victim[]> {
  const { web, machine, manage, newPerson } = registered
  const someone = await newPerson()
  const ofPerson = async (
    kind: string,
    person: Person,
    revoke: (origin: string, tokens: TokenAnswer['body']) => Promise<unknown>,
  ): Promise<Victim> => {
    const { body } = await signIn(issuer, web, person)
    return {
      kind,
      token: body.access_token ?? '',
      async revoke(origin) {
        await revoke(origin, body)
      },
    }
  }
  const kinds: (() => Promise<Victim>)[] = [
    async () => {
      const token = await machineToken(issuer, machine)
      return {
        kind: 'a token, by its client',
        token,
        async revoke(origin) {
          successOf(await postForm(`${origin}/revoke`, machine, { token }))
        },
      }
    },
    () =>
      ofPerson('a family, by its refresh token', someone, async (origin, { refresh_token: token = '' }) =>
        successOf(await postForm(`${origin}/revoke`, web, { token })),
      ),
    () =>
      ofPerson('a session, by an administrator', someone, (origin, { access_token = '' }) =>
        manage(origin, 'DELETE', `/v1/sessions/${String(decodeJwt(access_token)['sid'])}`),
      ),
    async () => {
      const person = await newPerson()
      return ofPerson('all that a person has', person, (origin) =>
        manage(origin, 'POST', `/v1/users/${person.id}/revocations`, { reason: 'measured' }),
      )
    },
    async () => {
      const person = await newPerson()
      return ofPerson('a person, disabled', person, (origin) =>
        manage(origin, 'PATCH', `/v1/users/${person.id}`, { is_active: false }),
      )
    },
    async () => {
      const client = await createMachine('Measured', [{ resource, permission: 'models:read' }])
      const token = await machineToken(issuer, client)
      return {
        kind: 'all that a client has',
        token,
        async revoke(origin) {
          await manage(origin, 'POST', `/v1/clients/${client.client_id}/revocations`, { reason: 'measured' })
        },
      }
    },
  ]
  const victims: Victim[] = []
  const waiting = Array.from({ length: count }, (_, turn) => turn).values()
  const makers = Array.from({ length: 4 }, async () => {
    for (const turn of waiting) {
      const make = kinds[turn % kinds.length]
      if (make !== undefined) victims[turn] = await make()
    }
  })
  await Promise.all(makers)
  return victims
}

/** What stays valid: of the same client, and of the person whose other sessions and families end. */
async function prepareBystanders(issuer: string, { web, machine, newPerson }: Registered): Promise<string[]> {
  const tokens: string[] = []
  const person = await newPerson()
  for (let i = 0; i < bystanders; i += 1) {
    tokens.push(
      i % 3 === 0 ? ((await signIn(issuer, web, person)).body.access_token ?? '') : await machineToken(issuer, machine),
    )
  }
  return tokens
}

async function machineToken(issuer: string, client: Client): Promise<string> {
  const parameters = { grant_type: 'client_credentials', resource }
  return successOf(await postForm(`${issuer}/token`, client, parameters)).body.access_token ?? ''
}

async function signIn(issuer: string, { client_id, client_secret }: Client, person: Person): Promise<TokenAnswer> {
  const verifier = randomBytes(32).toString('base64url')
  const query = new URLSearchParams({
    client_id,
    redirect_uri: callback,
    response_type: 'code',
    scope: 'openid models:read',
    resource,
    code_challenge: createHash('sha256').update(verifier).digest('base64url'),
    code_challenge_method: 'S256',
  })
  const answer = await completeSignIn(new UserAgent(), `${issuer}/authorize?${query}`, person)
  const parameters = {
    grant_type: 'authorization_code',
    code: answer.searchParams.get('code') ?? '',
    redirect_uri: callback,
    code_verifier: verifier,
  }
  return successOf(await postForm(`${issuer}/token`, { client_id, client_secret }, parameters))
}

function successOf(answer: TokenAnswer): TokenAnswer {
  if (answer.status !== 200) throw new Error(`refused with ${answer.status}: ${JSON.stringify(answer.body)}`)
  return answer
}

interface Outcome {
  readonly sentAt: number
  readonly answeredAt: number
  /** of each guard; undefined where it went on letting the token in */
  readonly refusedAt: readonly (number | undefined)[]
  /** how many were made to find that out */
  readonly requests: number
}

/** Each service is asked over HTTP, one request after the other, until it refuses. */
async function probe(asked: readonly Target[], victim: Victim, origin: string): Promise<Outcome> {
  const admitted = await Promise.all(asked.map((target) => ask(target, victim.token)))
  if (admitted.some((status) => status !== 200)) throw new Error(`not let in before: ${admitted.join(' ')}`)
  let requests = admitted.length
  const over = new AbortController()
  const probing = asked.map(async (target) => {
    for (;;) {
      const status = await ask(target, victim.token)
      requests += 1
      if (status === 401) return monotonicMs()
      if (over.signal.aborted) return undefined
      await sleep(probeEveryMs)
    }
  })
  await sleep(10 + Math.random() * 30)
  const sentAt = monotonicMs()
  let answeredAt
  try {
    await victim.revoke(origin)
    answeredAt = monotonicMs()
  } catch (error) {
    over.abort()
    await Promise.all(probing)
    throw error
  }
  const timer = setTimeout(() => over.abort(), missedAfterSeconds * 1_000)
  const refusedAt = await Promise.all(probing)
  clearTimeout(timer)
  return { sentAt, answeredAt, refusedAt, requests }
}

/** Each guard is asked in its own process. */
async function watch(watched: readonly Service[], victim: Victim, origin: string): Promise<Outcome> {
  const tell = (service: Service, message: GuardedServiceMessage) => service.process.ask(message)
  const admitted = await Promise.all(watched.map((service) => tell(service, { admits: victim.token })))
  if (admitted.some((number, i) => number !== watched[i]?.guards))
    throw new Error(`let in before: ${admitted.join(' ')}`)
  const watching = watched.map((service) => tell(service, { awaits: victim.token, seconds: missedAfterSeconds }))
  await sleep(10 + Math.random() * 30)
  const sentAt = monotonicMs()
  await victim.revoke(origin)
  const answeredAt = monotonicMs()
  const refusedAt = ((await Promise.all(watching)) as (number | null)[][]).flat().map((at) => at ?? undefined)
  return { sentAt, answeredAt, refusedAt, requests: refusedAt.length }
}

async function ask({ service, path }: Target, token: string): Promise<number> {
  const headers = { authorization: `Bearer ${token}` }
  const { statusCode, body } = await service.pool.request({ method: 'GET', path, headers })
  await body.dump()
  return statusCode
}

/** The endpoints of all requests that a server's log has between two moments. */
function readCalls(logFile: string, from: string, to: string): string[] {
  return readFileSync(logFile, 'utf8')
    .split('\n')
    .filter((line) => line.includes('"message":"request"'))
    .map((line) => JSON.parse(line) as { readonly timestamp: string; readonly endpoint: string })
    .filter(({ timestamp }) => timestamp >= from && timestamp <= to)
    .map(({ endpoint }) => endpoint)
}

function tally(values: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const value of values) counts[value] = (counts[value] ?? 0) + 1
  return counts
}

function cpuOf(servers: readonly { readonly process: BenchProcess }[]): number {
  return servers.reduce((sum, { process }) => sum + process.cpuMicroseconds(), 0)
}

function describeServices(): string {
  if (receivers > 0) return `${receivers} guards in one process`
  return `${serviceCount} service${serviceCount > 1 ? 's' : ''}`
}
