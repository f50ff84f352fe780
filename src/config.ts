/**
 * The only reader of the environment. Everything is parsed once, at start; every bad value is reported together, and a
 * misspelt LATCHKEY_ name is an error that suggests the right one, so that nothing is ever silently ignored.
 */
import { readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { resolve } from 'node:path'
import { BlockList, isIP } from 'node:net'
import { z } from 'zod'

/** One setting: what the documentation's table, `config check` and the parser all read. */
interface Setting<T> {
  readonly name: string
  readonly about: string
  /** as printed in the documentation */
  readonly default: string
  readonly schema: z.ZodType<T, string | undefined>
  readonly secret?: boolean
}

const text = z.string()
const wholeNumber = (least: number, most: number) =>
  z
    .string()
    .regex(/^\d{1,12}$/, `must be a whole number from ${least} to ${most}`)
    .transform(Number)
    .pipe(z.number().min(least, `must be at least ${least}`).max(most, `must be at most ${most}`))
const onOff = z.stringbool({ error: 'must be true or false' })

const setting = <T>(setting: Setting<T>): Setting<T> => setting
const number = (name: string, fallback: number, least: number, most: number, about: string): Setting<number> =>
  setting({
    name,
    about,
    default: String(fallback),
    schema: wholeNumber(least, most)
      .optional()
      .transform((n) => n ?? fallback),
  })

const hour = 3_600
const day = 86_400

/** Every setting, in the order in which it is documented. */
const settings = {
  nodeEnv: setting({
    name: 'NODE_ENV',
    about: '`production` turns off the demo data and demands a database, an issuer and a key-encryption key',
    default: 'development',
    schema: z
      .enum(['development', 'production', 'test'], { error: 'must be development, production or test' })
      .optional()
      .transform((v) => v ?? 'development'),
  }),
  port: number('PORT', 3000, 1, 65_535, 'the port to listen on'),
  host: setting({
    name: 'HOST',
    about: 'the address to listen on',
    default: '127.0.0.1; all addresses in production',
    schema: text.optional(),
  }),
  logLevel: setting({
    name: 'LOG_LEVEL',
    about: 'the least severe level that is logged: `trace debug info warn error fatal silent`',
    default: 'info',
    schema: z
      .enum(['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'], {
        error: 'must be trace, debug, info, warn, error, fatal or silent',
      })
      .optional()
      .transform((v) => v ?? 'info'),
  }),
  logFormat: setting({
    name: 'LATCHKEY_LOG_FORMAT',
    about: 'how log lines are written: `json`, one object a line, or `readable`',
    default: 'readable; json in production',
    schema: z.enum(['json', 'readable'], { error: 'must be json or readable' }).optional(),
  }),
  databaseUrl: setting({
    name: 'DATABASE_URL',
    about: 'a PostgreSQL URL; without it the embedded database in the data folder is used',
    default: 'none; required in production',
    schema: z
      .string()
      .regex(/^postgres(ql)?:\/\//, 'must begin with postgres:// or postgresql://')
      .optional(),
    secret: true,
  }),
  issuer: setting({
    name: 'LATCHKEY_ISSUER',
    about: 'the URL under which clients know this provider, and the `iss` of every token',
    default: 'http://localhost:$PORT; required in production',
    schema: text.optional(),
  }),
  dataDir: setting({
    name: 'LATCHKEY_DATA_DIR',
    about: 'where the embedded database and the demo data live',
    default: './data',
    schema: text.optional().transform((v) => resolve(v ?? 'data')),
  }),
  keysDir: setting({
    name: 'LATCHKEY_KEYS_DIR',
    about: 'where development keeps its key-encryption key',
    default: './keys',
    schema: text.optional().transform((v) => resolve(v ?? 'keys')),
  }),
  viewsDir: setting({
    name: 'LATCHKEY_VIEWS_DIR',
    about: 'a folder whose templates replace those of the same name in views/',
    default: 'none',
    schema: text.optional().transform((v) => (v === undefined ? undefined : resolve(v))),
  }),
  keyEncryptionKey: setting({
    name: 'LATCHKEY_KEY_ENCRYPTION_KEY',
    about:
      'the key under which signing keys and secrets rest: `id:base64` of 32 bytes (a bare base64 has the id 1); several, separated by commas, while one replaces another: the first seals, all open',
    default: 'made in the keys folder; required in production',
    schema: text.optional(),
    secret: true,
  }),
  workers: setting({
    name: 'LATCHKEY_WORKERS',
    about: 'how many processes serve; `auto` is one for each processor; more than 1 needs PostgreSQL',
    default: '1',
    schema: z
      .string()
      .regex(/^(auto|[1-9]\d{0,2})$/, 'must be auto or a number from 1 to 999')
      .optional()
      .transform((v) => (v === undefined ? 1 : v === 'auto' ? availableParallelism() : Number(v))),
  }),
  trustProxy: setting({
    name: 'LATCHKEY_TRUST_PROXY',
    about:
      'addresses or CIDR ranges of proxies whose X-Forwarded-For counts, separated by commas; scheme and host always come from the issuer',
    default: 'none',
    schema: text.optional().transform((v, context) => proxies(v ?? '', context)),
  }),
  databasePoolSize: number('LATCHKEY_DATABASE_POOL_SIZE', 10, 1, 200, 'PostgreSQL connections of each process'),
  databaseConnectTimeoutSeconds: number(
    'LATCHKEY_DATABASE_CONNECT_TIMEOUT_SECONDS',
    3,
    1,
    60,
    'how long a request waits for a database connection',
  ),
  databaseStatementTimeoutSeconds: number(
    'LATCHKEY_DATABASE_STATEMENT_TIMEOUT_SECONDS',
    20,
    1,
    600,
    'the longest that one SQL statement may run (PostgreSQL); less than LATCHKEY_HANDLER_TIMEOUT_SECONDS',
  ),
  databaseLockTimeoutMs: number(
    'LATCHKEY_DATABASE_LOCK_TIMEOUT_MS',
    5_000,
    50,
    60_000,
    'how long a token request waits for another one of the same family, in milliseconds',
  ),
  sweepSeconds: number('LATCHKEY_SWEEP_SECONDS', 300, 1, day, 'how often expired rows are removed'),
  passwordMemoryKib: setting({
    name: 'LATCHKEY_PASSWORD_MEMORY_KIB',
    about: 'Argon2id memory of one hash, in KiB',
    default: 'what `calibrate --store` stored, else 65536',
    schema: wholeNumber(8, 4_194_304).optional(),
  }),
  passwordTimeCost: setting({
    name: 'LATCHKEY_PASSWORD_TIME_COST',
    about: 'Argon2id passes',
    default: 'what `calibrate --store` stored, else 3',
    schema: wholeNumber(1, 1_000).optional(),
  }),
  passwordParallelism: setting({
    name: 'LATCHKEY_PASSWORD_PARALLELISM',
    about: 'Argon2id lanes',
    default: 'what `calibrate --store` stored, else 1',
    schema: wholeNumber(1, 16).optional(),
  }),
  passwordTargetMs: number(
    'LATCHKEY_PASSWORD_TARGET_MS',
    250,
    10,
    5_000,
    'how long a hash should take here, in milliseconds; the server warns when it takes less than half',
  ),
  passwordBlocklistFile: setting({
    name: 'LATCHKEY_PASSWORD_BLOCKLIST_FILE',
    about: 'more passwords to refuse, one a line',
    default: 'none',
    schema: text.optional().transform((v) => (v === undefined ? undefined : resolve(v))),
  }),
  hashingConcurrency: setting({
    name: 'LATCHKEY_HASHING_CONCURRENCY',
    about: 'password hashes at once in each process',
    default: 'the number of processors',
    schema: wholeNumber(1, 64)
      .optional()
      .transform((v) => v ?? availableParallelism()),
  }),
  hashingQueue: number(
    'LATCHKEY_HASHING_QUEUE',
    32,
    0,
    10_000,
    'password hashes that may wait in each process; beyond it the answer is 503',
  ),
  accountFailuresBurst: number(
    'LATCHKEY_ACCOUNT_FAILURES_BURST',
    10,
    1,
    100,
    'failed sign-ins of one account before it must wait',
  ),
  accountFailuresPerHour: number(
    'LATCHKEY_ACCOUNT_FAILURES_PER_HOUR',
    20,
    1,
    1_000,
    'failed sign-ins of one account allowed each hour after that',
  ),
  networkFailuresBurst: number(
    'LATCHKEY_NETWORK_FAILURES_BURST',
    100,
    1,
    100_000,
    'failed sign-ins from one network (IPv4 address, IPv6 /64) before it must wait',
  ),
  networkFailuresPerHour: number(
    'LATCHKEY_NETWORK_FAILURES_PER_HOUR',
    300,
    1,
    1_000_000,
    'failed sign-ins from one network allowed each hour after that',
  ),
  networkRatePerSecond: number(
    'LATCHKEY_NETWORK_RATE_PER_SECOND',
    100,
    0,
    1_000_000,
    "requests from one network to the protocol's endpoints and the API allowed each second; 0 is no limit",
  ),
  networkRateBurst: number('LATCHKEY_NETWORK_RATE_BURST', 1_000, 1, 1_000_000, 'how many of them may come at once'),
  userAttributesFile: setting({
    name: 'LATCHKEY_USER_ATTRIBUTES_FILE',
    about: "a JSON Schema of an object: the attributes that this deployment's users carry",
    default: 'department, seniority and clearance',
    schema: text.optional().transform((v) => (v === undefined ? undefined : resolve(v))),
  }),
  accessTokenMaxBytes: number(
    'LATCHKEY_ACCESS_TOKEN_MAX_BYTES',
    6_144,
    1_024,
    16_384,
    'the largest access token that is issued, in bytes',
  ),
  refreshTokenLifetimeSeconds: number(
    'LATCHKEY_REFRESH_TOKEN_LIFETIME_SECONDS',
    30 * day,
    60,
    365 * day,
    'how long after the sign-in a refresh token family ends',
  ),
  refreshReplayPublicSeconds: number(
    'LATCHKEY_REFRESH_REPLAY_PUBLIC_SECONDS',
    10,
    0,
    300,
    'how long a used refresh token of a public client gets the same reply again',
  ),
  refreshReplayConfidentialSeconds: number(
    'LATCHKEY_REFRESH_REPLAY_CONFIDENTIAL_SECONDS',
    60,
    0,
    300,
    'the same for confidential and sender-constrained clients',
  ),
  sessionAbsoluteSeconds: number(
    'LATCHKEY_SESSION_ABSOLUTE_SECONDS',
    12 * hour,
    60,
    30 * day,
    'how long after signing in a session ends',
  ),
  sessionIdleSeconds: number(
    'LATCHKEY_SESSION_IDLE_SECONDS',
    hour,
    60,
    30 * day,
    'how long after its last use a session ends',
  ),
  keyRotationDays: number('LATCHKEY_KEY_ROTATION_DAYS', 90, 1, 3_650, 'how long a signing key signs'),
  keyPublishAheadSeconds: number(
    'LATCHKEY_KEY_PUBLISH_AHEAD_SECONDS',
    day,
    60,
    30 * day,
    'how long a key is published before it signs',
  ),
  jwksMaxAgeSeconds: number(
    'LATCHKEY_JWKS_MAX_AGE_SECONDS',
    300,
    1,
    7 * day,
    'how long others may keep a copy of the JWKS and of the metadata',
  ),
  rsaBits: setting({
    name: 'LATCHKEY_RSA_BITS',
    about: 'the size of new signing keys: 2048, 3072 or 4096',
    default: '2048',
    schema: z
      .enum(['2048', '3072', '4096'], { error: 'must be 2048, 3072 or 4096' })
      .optional()
      .transform((v) => Number(v ?? '2048')),
  }),
  deviceFlow: setting({
    name: 'LATCHKEY_DEVICE_FLOW',
    about: 'turns on the device authorization grant (RFC 8628)',
    default: 'false',
    schema: onOff.optional().transform((v) => v ?? false),
  }),
  keepAliveTimeoutSeconds: number(
    'LATCHKEY_KEEP_ALIVE_TIMEOUT_SECONDS',
    65,
    1,
    600,
    'how long an idle connection is kept open; longer than the load balancer keeps it',
  ),
  requestTimeoutSeconds: number(
    'LATCHKEY_REQUEST_TIMEOUT_SECONDS',
    30,
    1,
    600,
    'how long a client may take to send a request',
  ),
  edgeTimeoutSeconds: number(
    'LATCHKEY_EDGE_TIMEOUT_SECONDS',
    30,
    3,
    3_600,
    'how long after its arrival a request is answered 504, whatever it still waits for; the longest of the three',
  ),
  handlerTimeoutSeconds: number(
    'LATCHKEY_HANDLER_TIMEOUT_SECONDS',
    25,
    2,
    3_600,
    'the longest that what answers a request may take; less than LATCHKEY_EDGE_TIMEOUT_SECONDS',
  ),
  maxRequestsUnderWay: number(
    'LATCHKEY_MAX_REQUESTS_UNDER_WAY',
    1_000,
    1,
    100_000,
    'requests that each process answers at once; beyond it the answer is 503',
  ),
  managementPort: setting({
    name: 'LATCHKEY_MANAGEMENT_PORT',
    about: 'the port of `/metrics` and `/health` for operators alone, such as 9090; without it there are no metrics',
    default: 'none',
    schema: wholeNumber(1, 65_535).optional(),
  }),
  managementHost: setting({
    name: 'LATCHKEY_MANAGEMENT_HOST',
    about: 'the address that the management port listens on',
    default: '127.0.0.1',
    schema: text.optional().transform((v) => v ?? '127.0.0.1'),
  }),
  signalsPollSeconds: number(
    'LATCHKEY_SIGNALS_POLL_SECONDS',
    20,
    1,
    3_600,
    'how long a service that polls for security events waits for the first; never as long as LATCHKEY_HANDLER_TIMEOUT_SECONDS',
  ),
  drainSeconds: number(
    'LATCHKEY_DRAIN_SECONDS',
    5,
    0,
    120,
    'on SIGTERM: how long the server still answers, saying that it is going, before it closes',
  ),
  stopTimeoutSeconds: number(
    'LATCHKEY_STOP_TIMEOUT_SECONDS',
    25,
    1,
    300,
    'on SIGTERM: when connections that are still open are cut',
  ),
} as const

type Parsed = { readonly [K in keyof typeof settings]: (typeof settings)[K] extends Setting<infer T> ? T : never }

export interface Config extends Omit<Parsed, 'issuer' | 'host' | 'keyEncryptionKey' | 'logFormat'> {
  readonly isProduction: boolean
  readonly logFormat: 'json' | 'readable'
  readonly issuer: string
  readonly host: string
  readonly keyEncryptionKeys: readonly KeyEncryptionKey[] | undefined
}

/** A key-encryption key as configured; the first of several seals. */
export interface KeyEncryptionKey {
  readonly id: string
  /** 32 bytes, AES-256-GCM */
  readonly key: Buffer
}

/** Every bad value of the environment, with what to do about each. */
export class ConfigError extends Error {
  override name = 'ConfigError'
  readonly problems: readonly string[]
  constructor(problems: readonly string[]) {
    super(
      `The configuration has ${problems.length === 1 ? 'a problem' : `${problems.length} problems`}:\n${problems.map((p) => `  - ${p}`).join('\n')}`,
    )
    this.problems = problems
  }
}

/**
 * @param environment usually process.env
 * @throws ConfigError that lists every problem
 */
export function readConfig(environment: Readonly<Record<string, string | undefined>> = process.env): Config {
  const problems: string[] = []
  const values = withFiles(environment, problems)
  problems.push(...unknownNames(environment))

  const parsed: Record<string, unknown> = {}
  for (const [key, { name, schema }] of Object.entries(settings)) {
    // An empty variable is what many platforms set for "none".
    const result = schema.safeParse(values[name] === '' ? undefined : values[name])
    if (result.success) parsed[key] = result.data
    else problems.push(`${name} ${result.error.issues[0]?.message ?? 'is invalid'}${describeValue(key, values[name])}`)
  }
  if (problems.length > 0 && parsed['nodeEnv'] === undefined) throw new ConfigError(problems)
  const config = complete(parsed as unknown as Parsed, environment, problems)
  if (problems.length > 0) throw new ConfigError(problems)
  return Object.freeze(config)
}

function complete(
  parsed: Parsed,
  environment: Readonly<Record<string, string | undefined>>,
  problems: string[],
): Config {
  const isProduction = parsed.nodeEnv === 'production'
  if (isProduction) {
    const missing = (
      [
        [parsed.databaseUrl, 'DATABASE_URL', 'a PostgreSQL URL'],
        [parsed.issuer, 'LATCHKEY_ISSUER', 'the https URL under which clients know this provider'],
        [parsed.keyEncryptionKey, 'LATCHKEY_KEY_ENCRYPTION_KEY (or …_FILE)', 'made with: openssl rand -base64 32'],
      ] as const
    ).filter(([value]) => value === undefined)
    problems.push(...missing.map(([, name, what]) => `${name} is required in production: ${what}`))
  }
  const issuer = parsed.issuer ?? `http://localhost:${parsed.port}`
  // One that was made from a bad PORT is no second mistake.
  const issuerProblem = parsed.issuer === undefined ? undefined : checkIssuer(parsed.issuer, isProduction)
  if (issuerProblem !== undefined) problems.push(`LATCHKEY_ISSUER ${issuerProblem}, not '${issuer}'`)
  if (parsed.workers > 1 && parsed.databaseUrl === undefined) {
    problems.push(
      'LATCHKEY_WORKERS above 1 needs PostgreSQL: set DATABASE_URL, or leave it at 1 for the embedded database',
    )
  }
  if (parsed.sessionIdleSeconds > parsed.sessionAbsoluteSeconds) {
    problems.push('LATCHKEY_SESSION_IDLE_SECONDS must not exceed LATCHKEY_SESSION_ABSOLUTE_SECONDS')
  }
  const {
    edgeTimeoutSeconds: edge,
    handlerTimeoutSeconds: handler,
    databaseStatementTimeoutSeconds: statement,
  } = parsed
  // Whoever waits must wait for longer than what it waits for, or the answer comes from the wrong one.
  if (edge <= handler || handler <= statement) {
    problems.push(
      `LATCHKEY_EDGE_TIMEOUT_SECONDS (${edge}) must be more than LATCHKEY_HANDLER_TIMEOUT_SECONDS (${handler}), and that more than LATCHKEY_DATABASE_STATEMENT_TIMEOUT_SECONDS (${statement}): raise the ones before or lower the ones behind`,
    )
  }
  if (parsed.managementPort !== undefined && parsed.managementPort === parsed.port) {
    problems.push(
      `LATCHKEY_MANAGEMENT_PORT must not be PORT (${parsed.port}): metrics are not for everybody who can reach the provider`,
    )
  }
  const threads = Number(environment['UV_THREADPOOL_SIZE'] ?? Number.POSITIVE_INFINITY)
  if (parsed.hashingConcurrency >= threads) {
    problems.push(
      `LATCHKEY_HASHING_CONCURRENCY must be less than UV_THREADPOOL_SIZE (${threads}), or signing tokens waits for passwords`,
    )
  }
  // A cached JWKS must hold a key before that key signs.
  if (parsed.jwksMaxAgeSeconds >= parsed.keyPublishAheadSeconds) {
    problems.push('LATCHKEY_JWKS_MAX_AGE_SECONDS must be less than LATCHKEY_KEY_PUBLISH_AHEAD_SECONDS')
  }
  const { keyEncryptionKey, ...rest } = parsed
  return {
    ...rest,
    isProduction,
    issuer,
    host: parsed.host ?? (isProduction ? '::' : '127.0.0.1'),
    logFormat: parsed.logFormat ?? (isProduction ? 'json' : 'readable'),
    keyEncryptionKeys: keyEncryptionKey === undefined ? undefined : parseKeyEncryptionKeys(keyEncryptionKey, problems),
  }
}

function checkIssuer(issuer: string, isProduction: boolean): string | undefined {
  const url = URL.parse(issuer)
  if (url === null || !/^https?:$/.test(url.protocol)) return 'must be an http or https URL'
  if (url.search !== '' || url.hash !== '' || issuer.endsWith('?') || issuer.endsWith('#')) {
    return 'must have no query and no fragment (RFC 8414 §2)'
  }
  if (url.username !== '' || url.password !== '') return 'must not hold credentials'
  if (url.pathname !== '/' || issuer.endsWith('/')) return 'must be an origin, without a path or a closing slash'
  const isLoopback = /^(localhost|127(\.\d{1,3}){3}|\[::1\])$/.test(url.hostname)
  if (isProduction && url.protocol !== 'https:' && !isLoopback) return 'must be https in production'
  return undefined
}

function parseKeyEncryptionKeys(value: string, problems: string[]): KeyEncryptionKey[] {
  const keys = value.split(',').map((part) => {
    const [, id = '1', base64 = ''] = /^(?:([\w.-]{1,32}):)?([A-Za-z0-9+/_-]+={0,2})$/.exec(part.trim()) ?? []
    return { id, key: Buffer.from(base64, 'base64') }
  })
  if (keys.some(({ key }) => key.length !== 32)) {
    problems.push('LATCHKEY_KEY_ENCRYPTION_KEY must be base64 of 32 bytes, as `openssl rand -base64 32` makes them')
  } else if (new Set(keys.map(({ id }) => id)).size !== keys.length) {
    problems.push('LATCHKEY_KEY_ENCRYPTION_KEY holds the same id twice: write each key as id:base64')
  }
  return keys
}

function proxies(value: string, context: z.RefinementCtx): BlockList {
  const list = new BlockList()
  for (const entry of value.split(',').map((part) => part.trim())) {
    if (entry === '') continue
    const [address = '', prefix] = entry.split('/')
    const family = isIP(address)
    const bits = prefix === undefined ? (family === 6 ? 128 : 32) : Number(prefix)
    if (family === 0 || !/^\d{1,3}$/.test(prefix ?? '0') || bits > (family === 6 ? 128 : 32)) {
      context.addIssue({ code: 'custom', message: `must list addresses or CIDR ranges: '${entry}' is neither` })
    } else {
      list.addSubnet(address, bits, family === 6 ? 'ipv6' : 'ipv4')
    }
  }
  return list
}

/** NAME_FILE names a file that holds the value, as container platforms hand secrets over. */
function withFiles(
  environment: Readonly<Record<string, string | undefined>>,
  problems: string[],
): Record<string, string | undefined> {
  const values: Record<string, string | undefined> = { ...environment }
  for (const { name, secret } of Object.values(settings) as Setting<unknown>[]) {
    const file = environment[`${name}_FILE`]
    if (secret !== true || file === undefined || file === '') continue
    if ((environment[name] ?? '') !== '') {
      problems.push(`${name} and ${name}_FILE are both set: keep one`)
      continue
    }
    try {
      values[name] = readFileSync(file, 'utf8').trim()
    } catch (error) {
      problems.push(`${name}_FILE cannot be read: ${error instanceof Error ? error.message : String(error)}`)
    }
  }
  return values
}

function describeValue(key: string, value: string | undefined): string {
  const { secret } = settings[key as keyof typeof settings] as Setting<unknown>
  return secret === true || value === undefined ? '' : `, not '${value.slice(0, 60)}'`
}

function knownNames(): string[] {
  return (Object.values(settings) as Setting<unknown>[]).flatMap(({ name, secret }) =>
    secret === true ? [name, `${name}_FILE`] : [name],
  )
}

/** Kubernetes sets these for every Service that is named latchkey. */
const kubernetesName = /^LATCHKEY_(PORT|SERVICE_HOST|SERVICE_PORT)(_|$)/

function unknownNames(environment: Readonly<Record<string, string | undefined>>): string[] {
  const known = knownNames()
  return Object.keys(environment)
    .filter((name) => name.startsWith('LATCHKEY_') && !known.includes(name) && !kubernetesName.test(name))
    .map((name) => {
      const nearest = findNearest(name, known, 5)
      return `${name} is not a setting of Latchkey${nearest === undefined ? '' : `: did you mean ${nearest}?`}`
    })
}

/**
 * The name that was probably meant.
 *
 * @param within how many letters may be wrong; by default a third of them
 */
export function findNearest(name: string, known: readonly string[], within?: number): string | undefined {
  // The distance costs the product of the lengths, and the name may come from anybody.
  const meant = name.slice(0, 64)
  const [nearest] = known
    .map((candidate) => ({ candidate, distance: editDistance(meant, candidate) }))
    .sort((a, b) => a.distance - b.distance)
  if (nearest === undefined) return undefined
  return nearest.distance <= (within ?? Math.ceil(nearest.candidate.length / 3)) ? nearest.candidate : undefined
}

function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i += 1) {
    const row = [i]
    for (let j = 1; j <= b.length; j += 1) {
      row.push(
        Math.min(
          (previous[j] ?? 0) + 1,
          (row[j - 1] ?? 0) + 1,
          (previous[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1),
        ),
      )
    }
    previous = row
  }
  return previous[b.length] ?? 0
}

/** The settings as a person may see them: secrets named, never shown. */
export function describeConfig(
  config: Config,
  environment: Readonly<Record<string, string | undefined>> = process.env,
): { name: string; value: string; source: 'set' | 'default' }[] {
  return (Object.entries(settings) as [keyof Parsed, Setting<unknown>][]).map(([key, { name, secret }]) => {
    const isSet = (environment[name] ?? environment[`${name}_FILE`] ?? '') !== ''
    return {
      name,
      value: secret === true ? (isSet ? '(set, not shown)' : '(none)') : shown(config, key, environment[name]),
      source: isSet ? 'set' : 'default',
    }
  })
}

function shown(config: Config, key: keyof Parsed, raw: string | undefined): string {
  if (key === 'trustProxy') return raw === undefined || raw === '' ? '(none)' : raw
  if (key === 'keyEncryptionKey') return '(none)'
  const value = config[key]
  return value === undefined ? '(none)' : String(value)
}

/** The documentation's table of settings. */
export function settingsReference(): { name: string; about: string; default: string }[] {
  return (Object.values(settings) as Setting<unknown>[]).map(({ name, about, default: fallback, secret }) => ({
    name: secret === true ? `${name}[_FILE]` : name,
    about,
    default: fallback,
  }))
}
