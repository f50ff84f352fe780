/**
 * What it costs to find out who is calling: one RS256 access token, not seen before and seen before, with the feed of
 * revocations on, beside the verifiers people use today and beside the bare signature check. Everything runs in this one process, in turns, so
 * that a busy machine slows all of them alike. What counts is the ratio of CPU times within a round; shown are medians.
 *
 *   node bench/guard.ts [rounds]
 */
import { generateKeyPairSync, randomUUID, sign, verify } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { createGuard } from '@latchkey/guard'
import type { Guard, GuardRequest, RevocationFeedOptions } from '@latchkey/guard'
import { createTestIssuer } from '@latchkey/guard/testing'
import { auth as expressOauth2JwtBearer } from 'express-oauth2-jwt-bearer'
import { createVerifier } from 'fast-jwt'
import { createLocalJWKSet, jwtVerify } from 'jose'
import jsonwebtoken from 'jsonwebtoken'

// Many short rounds rather than few long ones: whatever disturbs one of them is not in the median.
const ROUNDS = Number(process.argv[2] ?? 40)
const TOKENS = 1000
const AUDIENCE = 'https://api.example.com/models'

const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
const jwk = { ...publicKey.export({ format: 'jwk' }), kid: 'key-1', alg: 'RS256', use: 'sig' }
const pem = publicKey.export({ type: 'spki', format: 'pem' }).toString()

const server = createServer((request, response) => {
  response.setHeader('content-type', 'application/json')
  const { port } = server.address() as AddressInfo
  const issuer = `http://127.0.0.1:${port}`
  response.end(JSON.stringify(request.url === '/jwks' ? { keys: [jwk] } : { issuer, jwks_uri: `${issuer}/jwks` }))
})
server.listen(0, '127.0.0.1')
await once(server, 'listening')
const ISSUER = `http://127.0.0.1:${(server.address() as AddressInfo).port}`

function mint(sub: string): string {
  const now = Math.floor(Date.now() / 1000)
  const claims = {
    iss: ISSUER,
    sub,
    aud: AUDIENCE,
    client_id: 'web',
    iat: now,
    exp: now + 900,
    jti: randomUUID(),
    scope: 'models:read models:write',
    auth_time: now,
    acr: 'urn:latchkey:password',
    amr: ['pwd'],
    sid: randomUUID(),
    roles: ['developer', 'reviewer'],
    token_version: 3,
    grant_id: randomUUID(),
  }
  const signed = [{ alg: 'RS256', typ: 'at+jwt', kid: 'key-1' }, claims]
    .map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'))
    .join('.')
  return `${signed}.${sign('sha256', Buffer.from(signed), privateKey).toString('base64url')}`
}

const tokens = Array.from({ length: TOKENS }, (_, at) => mint(`user-${at}`))

/** As a request brings it: a header nobody has looked at yet. Reusing one string object flatters every cache. */
function fresh(token: string): string {
  return Buffer.from(`Bearer ${token}`, 'latin1').toString('latin1')
}

/** From the header, because that is where everybody has to begin. */
type Check = (header: string) => unknown

/** What a service does that has a verifier and no middleware. */
const tokenOf = (header: string): string => header.slice('Bearer '.length)

// What is measured of the guard is the whole of it: header, token, revocation, caller. Its feed of revocations is the
// one that runs in production, with a thousand entries of every kind; only the wire to the issuer is in memory.
const idp = await createTestIssuer({ issuer: ISSUER })
const feedKeys = (await (await idp.fetch(`${ISSUER}/jwks`, {})).json()) as { keys: Record<string, unknown>[] }
for (let at = 0; at < 200; at += 1) {
  const name = randomUUID()
  for (const what of [{ jti: name }, { sid: name }, { grantId: name }, { sub: name }, { clientId: name }]) {
    await idp.revoke(what)
  }
}
await idp.revoke({ kid: 'key-0' })

async function guardWith(cacheEntries: number, feed: Partial<RevocationFeedOptions> = {}): Promise<Guard> {
  const guard = createGuard({
    issuer: { issuer: ISSUER, keys: { keys: [jwk, ...feedKeys.keys] } },
    audience: AUDIENCE,
    fetch: idp.fetch,
    cacheEntries,
    revocation: { ...idp.options.revocation, ...feed },
  })
  while (guard.health().revocation?.['status'] !== 'current') await sleep(5)
  return guard
}
const uncachedGuard = await guardWith(0)
const cachedGuard = await guardWith(10_000)
// Closed, it hears nothing more, and its table is asked about every token every time: as after each event.
const behindGuard = await guardWith(10_000, { maxStaleness: '1s', onStale: 'allow' })
await behindGuard.close()
await sleep(1100)

function requestWith(header: string): GuardRequest {
  const authorization = [header]
  return { method: 'GET', url: '/models', header: (name) => (name === 'authorization' ? authorization : []) }
}

const raw = tokens.map((token) => {
  const dot = token.lastIndexOf('.')
  return [Buffer.from(token.slice(0, dot)), Buffer.from(token.slice(dot + 1), 'base64url')] as const
})
let turn = 0
const joseKeys = createLocalJWKSet({ keys: [jwk] })
const joseOptions = { issuer: ISSUER, audience: AUDIENCE, algorithms: ['RS256'], typ: 'at+jwt' }
const fastJwtOptions = { key: pem, algorithms: ['RS256' as const], allowedIss: ISSUER, allowedAud: AUDIENCE }
const fastJwt = createVerifier(fastJwtOptions)
const fastJwtCached = createVerifier({ ...fastJwtOptions, cache: 10_000 })
const bearer = expressOauth2JwtBearer({ issuer: ISSUER, jwksUri: `${ISSUER}/jwks`, audience: AUDIENCE, strict: true })

function bearerCheck(authorization: string): Promise<void> {
  const headers: Record<string, string> = { host: 'api.example.com', authorization }
  const request = {
    headers,
    query: {},
    body: {},
    method: 'GET',
    protocol: 'https',
    originalUrl: '/models',
    is: () => false,
    get: (name: string) => headers[name.toLowerCase()],
    app: { get: () => () => false },
  }
  return new Promise((resolve, reject) => {
    // Of Express's request and response it uses what is given here.
    bearer(request as never, {} as never, (error?: unknown) =>
      error === undefined ? resolve() : reject(error instanceof Error ? error : new Error('refused')),
    )
  })
}

const unseen: Record<string, Check> = {
  'crypto.verify, signature only': () => {
    const [data, signature] = raw[turn++ % TOKENS] ?? []
    if (data === undefined || signature === undefined || !verify('sha256', data, publicKey, signature))
      throw new Error()
  },
  guard: (header) => uncachedGuard.authenticate(requestWith(header)),
  'jose jwtVerify': (header) => jwtVerify(tokenOf(header), joseKeys, joseOptions),
  'fast-jwt': (header) => fastJwt(tokenOf(header)),
  'jsonwebtoken, KeyObject': (header) =>
    jsonwebtoken.verify(tokenOf(header), publicKey, { issuer: ISSUER, audience: AUDIENCE, algorithms: ['RS256'] }),
  'express-oauth2-jwt-bearer': bearerCheck,
}
const seen: Record<string, Check> = {
  guard: (header) => cachedGuard.authenticate(requestWith(header)),
  'guard, looked up again': (header) => behindGuard.authenticate(requestWith(header)),
  'fast-jwt, cache': (header) => fastJwtCached(tokenOf(header)),
}

/** CPU microseconds for one operation. */
async function cost(check: Check, operations: number): Promise<number> {
  const presented = Array.from({ length: operations }, (_, at) => fresh(tokens[at % TOKENS] ?? ''))
  const before = process.cpuUsage()
  for (const header of presented) await check(header)
  const { user, system } = process.cpuUsage(before)
  return (user + system) / operations
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN
}

type Costs = Record<string, number[]>

/** CPU microseconds of each check in each round. */
async function measure(checks: Record<string, Check>, operations: number): Promise<Costs> {
  const costs: Costs = {}
  for (const check of Object.values(checks)) await cost(check, 2 * TOKENS)
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const [name, check] of Object.entries(checks)) (costs[name] ??= []).push(await cost(check, operations))
  }
  return costs
}

const first = await measure(unseen, TOKENS / 4)
const again = await measure(seen, 5 * TOKENS)
if (![uncachedGuard, cachedGuard].every((guard) => guard.health().status === 'ok')) throw new Error('the feed was lost')
if (behindGuard.health().revocation?.['status'] !== 'stale') throw new Error('the feed was not behind')
await Promise.all([uncachedGuard.close(), cachedGuard.close()])
server.close()

function ratio(costs: Costs, of: string, to: string): number {
  return median((costs[of] ?? []).map((value, round) => value / (costs[to]?.[round] ?? Number.NaN)))
}

const bars = [
  ['not seen before: share of raw crypto.verify', ratio(first, 'crypto.verify, signature only', 'guard'), 0.55],
  ['not seen before: times jose', ratio(first, 'jose jwtVerify', 'guard'), 2],
  ['seen before: times fast-jwt with its cache', ratio(again, 'fast-jwt, cache', 'guard'), 1.5],
] as const

console.log(
  `RS256, ${tokens[0]?.length} characters, ${TOKENS} tokens, ${ROUNDS} rounds in turns, Node ${process.version}\n`,
)
for (const [title, costs] of [
  ['not seen before', first],
  ['seen before', again],
] as const) {
  console.log(`${title.padEnd(34)}CPU µs`)
  for (const [name, values] of Object.entries(costs)) {
    console.log(`  ${name.padEnd(32)}${median(values).toFixed(2).padStart(6)}`)
  }
}
console.log()
for (const [name, value, bar] of bars) {
  console.log(`${name.padEnd(48)}${value.toFixed(2).padStart(6)}   bar ${bar}   ${value >= bar ? 'met' : 'MISSED'}`)
}
const medians = (costs: Costs): object =>
  Object.fromEntries(Object.entries(costs).map(([name, values]) => [name, median(values)]))
const reached = Object.fromEntries(bars.map(([name, value]) => [name, value]))
console.log(JSON.stringify({ bench: 'guard', unseen: medians(first), seen: medians(again), bars: reached }))
process.exitCode = bars.every(([, value, bar]) => value >= bar) ? 0 : 1
