/**
 * Makes and checks password hashes: Argon2id in PHC strings, each with its own salt and its own parameters. The only
 * file that imports argon2. Everything runs behind one gate (hashing-gate.ts); how much work a hash is, is decided in
 * work-factor.ts; what makes a bad password, in password-blocklist.ts.
 *
 * A stranger must not learn from the time of an answer whether an account exists (OWASP ASVS 5.0 6.3.8). Where there is
 * no hash to check, or none that may be checked, the password is checked against a decoy of the same cost; a hash with
 * less work in it than today's is topped up to that.
 */
import { randomBytes } from 'node:crypto'
import argon2, { type HashOptions } from 'argon2'
import type { Logger } from 'pino'
import type { Config } from '../config.ts'
import { openHashingGate, type HashingGateStats } from './hashing-gate.ts'
import {
  findPasswordProblems,
  maxPasswordBytes,
  openBlocklist,
  type PasswordContext,
  type PasswordProblem,
} from './password-blocklist.ts'
import { checkWorkFactor, isWithinCeiling, type WorkFactor } from './work-factor.ts'

declare const passwordHash: unique symbol
/** A PHC string that `hash` made, so that nothing else can be stored by mistake. */
export type PasswordHash = string & { readonly [passwordHash]: true }

export interface Verification {
  readonly matches: boolean
  /** true when the password is right and its hash should be made anew, with today's work factor */
  readonly needsRehash: boolean
}

export interface Passwords {
  /**
   * Everything that speaks against a new password, for the person who chose it; empty when it is good.
   * `hash` does not ask this, so that an old password can be hashed anew.
   */
  check(plain: string, context?: PasswordContext): PasswordProblem[]
  /**
   * @throws UnhashablePassword when it is longer than 1,024 bytes or not well-formed Unicode
   * @throws HashingOverloaded when too many others are waiting
   */
  hash(plain: string): Promise<PasswordHash>
  /**
   * Whether a password is the one behind a stored hash. A missing or unsupported hash never matches, and costs as much.
   * @throws HashingOverloaded when too many others are waiting
   */
  verify(phc: string | null | undefined, plain: string): Promise<Verification>
  /**
   * Hashes with another work factor from now on, as after `calibrate --store` in another process.
   * @throws WorkFactorError when it must not be used
   */
  useWorkFactor(workFactor: WorkFactor): void
  readonly workFactor: WorkFactor
  stats(): HashingGateStats
}

export interface PasswordsSettings {
  readonly config: Pick<Config, 'hashingConcurrency' | 'hashingQueue' | 'passwordBlocklistFile' | 'issuer'>
  readonly workFactor: WorkFactor
  readonly log: Logger
}

/** A password that cannot be hashed; `check` says so in words. */
export class UnhashablePassword extends Error {
  override name = 'UnhashablePassword'
}

const saltBytes = 16
const hashBytes = 32
const version = 0x13

/** Argon2id in its one current version, with bounded parameters, salt and hash, and nothing else (no key id, no data). */
const supportedHash =
  /^\$argon2id\$v=19\$((?:[mtp]=[1-9]\d{0,7},?){3})\$([A-Za-z0-9+/]{11,86})\$([A-Za-z0-9+/]{22,86})$/

/**
 * @throws WorkFactorError when the work factor must not be used
 * @throws BlocklistError when the file of more passwords cannot be read
 */
export function openPasswords({ config, workFactor, log }: PasswordsSettings): Passwords {
  const gate = openHashingGate({ concurrency: config.hashingConcurrency, queue: config.hashingQueue })
  const blocklist = openBlocklist(config.passwordBlocklistFile)
  const productWords = ['latchkey', new URL(config.issuer).hostname]
  let current = checkWorkFactor(workFactor)
  let decoy = makeDecoy(current)

  /** What to check a password against, and how much work of today's is then still to be done. */
  function target(phc: string | null | undefined): { phc: string; isDecoy: boolean; parameters: WorkFactor } {
    const parameters = phc === null || phc === undefined ? undefined : readParameters(phc)
    if (typeof phc === 'string' && parameters !== undefined) return { phc, isDecoy: false, parameters }
    if (typeof phc === 'string') {
      log.warn({ scheme: describeScheme(phc) }, 'a stored password hash is of no supported scheme, or out of bounds')
    }
    return { phc: decoy, isDecoy: true, parameters: current }
  }

  return {
    check: (plain, context = {}) =>
      findPasswordProblems(plain, blocklist, {
        ...context,
        words: [...productWords, ...(context.words ?? [])],
      }),

    async hash(plain) {
      const bytes = toBytes(plain)
      if (bytes === undefined) {
        throw new UnhashablePassword(`a password is well-formed Unicode of at most ${maxPasswordBytes} bytes`)
      }
      const today = current
      const options = argonOptions(today)
      const hash = await gate.run(() => argon2.hash(bytes, { ...options, raw: true }))
      return toPhc(today, options.salt, hash) as PasswordHash
    },

    async verify(phc, plain) {
      const bytes = toBytes(plain)
      // Nobody has such a password, whatever the account: there is nothing to hide.
      if (bytes === undefined) return { matches: false, needsRehash: false }
      const { phc: hash, isDecoy, parameters } = target(phc)
      const today = current
      return gate.run(async () => {
        const matches = (await argon2.verify(hash, bytes)) && !isDecoy
        if (matches) return { matches, needsRehash: !isSame(parameters, today) }
        await topUp(parameters, today)
        return { matches, needsRehash: false }
      })
    },

    useWorkFactor(next) {
      current = checkWorkFactor(next)
      decoy = makeDecoy(current)
    },
    get workFactor() {
      return current
    },
    stats: () => gate.stats(),
  }
}

/** How long one hash takes here and now, in milliseconds, outside every gate: for calibration and the check at start. */
export async function measureOnce(workFactor: WorkFactor): Promise<number> {
  const startedAt = performance.now()
  await argon2.hash('correct horse battery staple', argonOptions(workFactor))
  return performance.now() - startedAt
}

/** The same characters, however they were typed (NIST SP 800-63B-4 §3.1.1.2); undefined when there are too many bytes. */
function toBytes(plain: string): Buffer | undefined {
  // A bound on the work of normalising; NFC may shorten what is below it.
  if (plain.length > maxPasswordBytes * 3 || !plain.isWellFormed()) return undefined
  const bytes = Buffer.from(plain.normalize('NFC'), 'utf8')
  return bytes.length > maxPasswordBytes ? undefined : bytes
}

function argonOptions({ memoryKib, timeCost, parallelism }: WorkFactor): HashOptions & { salt: Buffer } {
  return {
    type: argon2.argon2id,
    version,
    memoryCost: memoryKib,
    timeCost,
    parallelism,
    hashLength: hashBytes,
    salt: randomBytes(saltBytes),
  }
}

/** A PHC string that no password matches: its hash is random, so checking it costs all the work and always fails. */
const makeDecoy = (workFactor: WorkFactor): string => toPhc(workFactor, randomBytes(saltBytes), randomBytes(hashBytes))

/** In the order of the reference implementation (m, t, p), which some readers insist on; the library writes another. */
function toPhc({ memoryKib, timeCost, parallelism }: WorkFactor, salt: Buffer, hash: Buffer): string {
  const [saltText, hashText] = [salt, hash].map((bytes) => bytes.toString('base64').replaceAll('=', ''))
  return `$argon2id$v=19$m=${memoryKib},t=${timeCost},p=${parallelism}$${saltText}$${hashText}`
}

/** The parameters inside a stored hash, in any order; undefined when it must not be checked. */
export function readParameters(phc: string): WorkFactor | undefined {
  const [, text] = supportedHash.exec(phc) ?? []
  const values = new Map(text?.split(',').map((part) => [part[0], Number(part.slice(2))]))
  const [memoryKib, timeCost, parallelism] = [values.get('m'), values.get('t'), values.get('p')]
  if (memoryKib === undefined || timeCost === undefined || parallelism === undefined) return undefined
  const parameters = { memoryKib, timeCost, parallelism }
  return isWithinCeiling(parameters) ? parameters : undefined
}

const isSame = (a: WorkFactor, b: WorkFactor): boolean =>
  a.memoryKib === b.memoryKib && a.timeCost === b.timeCost && a.parallelism === b.parallelism

/** Does the passes by which today's hash is dearer than the one that was checked, and throws the result away. */
async function topUp(checked: WorkFactor, today: WorkFactor): Promise<void> {
  const missing = today.memoryKib * today.timeCost - checked.memoryKib * checked.timeCost
  const passes = Math.round(missing / today.memoryKib)
  if (passes >= 1) await argon2.hash('', { ...argonOptions(today), timeCost: passes })
}

/** For the log: the scheme and its parameters, never salt or hash. */
function describeScheme(phc: string): string {
  const [, scheme = '', ...parameters] = phc.slice(0, 80).split('$')
  const known = parameters.slice(0, 2).filter((part) => /^(v|m)=[\w,=]{1,40}$/.test(part))
  return /^[\w-]{1,20}$/.test(scheme) ? [scheme, ...known].join('$') : 'unknown'
}
