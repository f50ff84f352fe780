/**
 * Signs a person in by password: the one function behind every form that asks for one. It reserves an attempt, checks
 * the password, and gives the attempt back when it was right.
 *
 * Whoever is unknown, disabled or without a password is refused in the same words, after the same statements and the
 * same hash, so that nobody learns who has an account (OWASP ASVS 5.0 6.3.8). What the answer looks like, and the
 * session, are login/routes.ts's.
 */
import type { Logger } from 'pino'
import { writeAudit } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
import { rateLimitExceeded } from '../http/rate-limit.ts'
import { HashingOverloaded } from '../users/hashing-gate.ts'
import type { PasswordHash, Passwords } from '../users/password.ts'
import { findCredentials, findUser, replacePasswordHash, type User } from '../users/users.ts'
import { findKnownDevice, rememberDevice, type KnownDevice } from './known-devices.ts'
import type { Throttle } from './throttle.ts'

export interface SignInContext {
  readonly db: Db
  readonly passwords: Passwords
  readonly throttle: Throttle
  readonly log: Logger
  /** told how each attempt ended, for the metrics */
  readonly onOutcome?: (outcome: SignInResult['status'] | 'overloaded' | 'failed') => void
}

export interface SignInInput {
  /** as typed */
  readonly login: string
  /** as typed */
  readonly password: string
  /** the address that the request came from */
  readonly network: string
  /** the value of the known-device cookie, whatever was sent */
  readonly deviceToken?: string | undefined
  readonly requestId?: string | undefined
}

export type SignInResult =
  | {
      readonly status: 'signed-in'
      /** as of after the check: its sign_in_version is the one to keep with the session */
      readonly user: User
      /** for the known-device cookie, to be kept `knownDeviceLifetimeSeconds`; undefined: leave the cookie as it is */
      readonly deviceToken: string | undefined
    }
  | { readonly status: 'refused' }
  | { readonly status: 'throttled'; readonly retryAfterSeconds: number }

/** `signIn` for those who are not to see what it stands on. */
export type SignIn = (input: SignInInput) => Promise<SignInResult>

/** Why somebody was refused: for the audit record alone. */
type Refusal = 'unknown-login' | 'disabled' | 'no-password' | 'wrong-password' | 'changed-meanwhile'

/**
 * @throws HashingOverloaded when too many passwords are being checked; the attempt does not count
 */
export async function signIn(context: SignInContext, input: SignInInput): Promise<SignInResult> {
  try {
    const result = await tryToSignIn(context, input)
    context.onOutcome?.(result.status)
    return result
  } catch (error) {
    context.onOutcome?.(error instanceof HashingOverloaded ? 'overloaded' : 'failed')
    throw error
  }
}

async function tryToSignIn(context: SignInContext, input: SignInInput): Promise<SignInResult> {
  const { db, throttle, log } = context
  const device = await findKnownDevice(db, input.deviceToken, input.login)
  const reservation = await throttle.reserve({ login: input.login, network: input.network, device })
  if (!reservation.isAllowed) {
    const { retryAfterSeconds, bucket } = reservation
    log.info({ bucket, retry_after: retryAfterSeconds }, 'a sign-in was held off')
    return { status: 'throttled', retryAfterSeconds }
  }

  const { found, matches, needsRehash } = await check(context, input).catch(async (error: unknown) => {
    // Nothing was checked, so nothing was guessed.
    await reservation.refund()
    throw error
  })
  const refusal = refusalOf(found, matches)
  if (found === undefined || refusal !== undefined) {
    await db.transaction().execute((trx) => writeRefusal(trx, input, found?.user.id, refusal ?? 'unknown-login'))
    return { status: 'refused' }
  }
  const newHash = needsRehash ? await rehash(context, input.password) : undefined
  const result = await db.transaction().execute((trx) => finish(trx, input, { ...found, newHash, device }))
  if (result.status === 'signed-in') await reservation.refund()
  return result
}

/**
 * Whether somebody who is signed in already knows their password: asked before they change it. Counts like a sign-in.
 * @throws HashingOverloaded, and Problem RATE_LIMIT_EXCEEDED after too many wrong ones
 */
export async function provePassword(
  context: SignInContext,
  input: Pick<SignInInput, 'login' | 'password' | 'network' | 'requestId'>,
): Promise<boolean> {
  const reservation = await context.throttle.reserve({ login: input.login, network: input.network })
  if (!reservation.isAllowed) throw rateLimitExceeded({ ...reservation, remaining: 0 }, {}, 'Too many wrong passwords')
  const { found, matches } = await check(context, input).catch(async (error: unknown) => {
    await reservation.refund()
    throw error
  })
  const refusal = refusalOf(found, matches)
  if (refusal === undefined) {
    await reservation.refund()
    return true
  }
  await context.db.transaction().execute((trx) => writeRefusal(trx, input, found?.user.id, refusal))
  return false
}

type Found = NonNullable<Awaited<ReturnType<typeof findCredentials>>>

async function check({ db, passwords }: SignInContext, { login, password }: SignInInput) {
  const found = await findCredentials(db, login)
  return { found, ...(await passwords.verify(found?.passwordHash, password)) }
}

function refusalOf(found: Found | undefined, matches: boolean): Refusal | undefined {
  if (found === undefined) return 'unknown-login'
  if (found.user.account_status !== 'active') return 'disabled'
  if (found.passwordHash === null) return 'no-password'
  return matches ? undefined : 'wrong-password'
}

/** A hash of today's work factor; undefined when there is no room for it now: the next sign-in will make it. */
async function rehash({ passwords, log }: SignInContext, password: string): Promise<PasswordHash | undefined> {
  try {
    return await passwords.hash(password)
  } catch (error) {
    if (!(error instanceof HashingOverloaded)) throw error
    log.info('a password hash stays as it is until the next sign-in')
    return undefined
  }
}

interface Proved extends Found {
  readonly newHash: PasswordHash | undefined
  readonly device: KnownDevice | undefined
}

/** The hash took its time: whether this person may still come in, by this password, is asked once more. */
async function finish(trx: Trx, input: SignInInput, proved: Proved): Promise<SignInResult> {
  const userId = proved.user.id
  const actor = { type: 'user', id: userId, requestId: input.requestId } as const
  const user = await findUser(trx, userId)
  // Another password, a disabled account and "sign out everywhere" all raise the version; another hash does not.
  if (user?.account_status !== 'active' || user.sign_in_version !== proved.user.sign_in_version) {
    await writeRefusal(trx, input, userId, 'changed-meanwhile')
    return { status: 'refused' }
  }
  if (proved.newHash !== undefined && proved.passwordHash !== null) {
    await replacePasswordHash(trx, actor, { userId, from: proved.passwordHash, to: proved.newHash })
  }
  const deviceToken = await rememberDevice(trx, { userId, known: proved.device })
  await writeAudit(trx, actor, {
    action: 'sign-in.succeeded',
    target: { type: 'user', id: userId },
    details: { method: 'password', known_device: proved.device !== undefined },
  })
  return { status: 'signed-in', user, deviceToken }
}

async function writeRefusal(
  trx: Trx,
  input: Pick<SignInInput, 'requestId'>,
  userId: string | undefined,
  reason: Refusal,
): Promise<void> {
  await writeAudit(
    trx,
    { type: 'anonymous', id: 'anonymous', requestId: input.requestId },
    {
      action: 'sign-in.refused',
      // What was typed may be anything, a password in the wrong field included: it is kept nowhere.
      target: { type: 'user', id: userId ?? 'unknown' },
      details: { method: 'password', reason },
    },
  )
}
