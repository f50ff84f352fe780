/**
 * Holds off whoever guesses passwords, in the database, so for all processes and for every way in: each must reserve
 * before it checks anything, and give back when the person proved to be the right one. What is not given back is a
 * failure, also when the process died in between.
 *
 * A bucket holds so many attempts and fills again with time; nothing is ever locked for good. A stranger's attempt is
 * taken from two: that of the account, whether or not it exists, and that of the network. A known device's is taken
 * from its own instead, so that no stranger can lock an account's owner out by failing, whether in the account's name
 * or from the same network. The database keeps keyed hashes, not names and addresses.
 */
import { createHmac } from 'node:crypto'
import { sql } from 'kysely'
import type { Config } from '../config.ts'
import type { Db } from '../database/database.ts'
import { networkOf, normalizeAddress } from '../http/request-context.ts'
import { normalizeLogin } from '../users/users.ts'
import type { KnownDevice } from './known-devices.ts'

/** One attempt to prove who one is, by whatever means. */
export interface Attempt {
  /** the name under which somebody signs in, as typed */
  readonly login: string
  /** the address that the request came from */
  readonly network: string
  /** from `findKnownDevice`: the browser, when this person has used it before */
  readonly device?: KnownDevice | undefined
}

/** What became of it: go on, or wait. */
export type Reservation =
  | {
      readonly isAllowed: true
      /** Gives the attempt back; call it when the person is the right one, or when nothing was checked. */
      refund(): Promise<void>
    }
  | {
      readonly isAllowed: false
      /** when there will be an attempt again, in whole seconds, at least 1 */
      readonly retryAfterSeconds: number
      /** attempts in the full bucket */
      readonly limit: number
      /** when it is full again */
      readonly resetAt: Date
      readonly bucket: 'account' | 'network' | 'device'
    }

export interface Throttle {
  /** Takes one attempt from every bucket concerned before anything is checked. */
  reserve(attempt: Attempt): Promise<Reservation>
}

export interface ThrottleSettings {
  readonly db: Db
  /** under which names and addresses are hashed: 32 bytes of the secret for `throttle`; with a new one all buckets are full */
  readonly key: () => Uint8Array
  readonly config: Pick<
    Config,
    'accountFailuresBurst' | 'accountFailuresPerHour' | 'networkFailuresBurst' | 'networkFailuresPerHour'
  >
}

interface Bucket {
  readonly kind: 'account' | 'network' | 'device'
  readonly key: string
  /** attempts in a full one */
  readonly burst: number
  /** attempts that it regains */
  readonly perHour: number
}

export function openThrottle({ db, key, config }: ThrottleSettings): Throttle {
  const account = { burst: config.accountFailuresBurst, perHour: config.accountFailuresPerHour }
  const network = { burst: config.networkFailuresBurst, perHour: config.networkFailuresPerHour }

  function bucket(kind: Bucket['kind'], subject: string, limits: Pick<Bucket, 'burst' | 'perHour'>): Bucket {
    const hash = createHmac('sha256', key()).update(`${kind}:${subject}`).digest('base64url')
    return { kind, key: `${kind}:${hash}`, ...limits }
  }

  function bucketsOf({ login, network: address, device }: Attempt): Bucket[] {
    if (device !== undefined) return [bucket('device', device.id, account)]
    // The network first: one that has to wait must not use up the account's attempts as well.
    return [
      bucket('network', networkOf(normalizeAddress(address)), network),
      bucket('account', normalizeLogin(login), account),
    ]
  }

  return {
    async reserve(attempt) {
      const buckets = bucketsOf(attempt)
      for (const bucket of buckets) {
        if (await take(db, bucket)) continue
        return { isAllowed: false, ...(await findWait(db, bucket)), limit: bucket.burst, bucket: bucket.kind }
      }
      return {
        isAllowed: true,
        async refund() {
          for (const bucket of buckets) await giveBack(db, bucket)
        },
      }
    },
  }
}

/** What is in a bucket by now; the database's clock counts, since every process has another. */
const filled = ({ burst, perHour }: Bucket) => sql<number>`least(
  ${burst}::double precision,
  t.tokens + greatest(0, extract(epoch FROM clock_timestamp() - t.updated_at)) * ${perHour / 3_600}::double precision
)`

/** Takes one attempt if there is one. One statement, so that of parallel attempts each finds what the last one left. */
async function take(db: Db, bucket: Bucket): Promise<boolean> {
  const { rows } = await sql`
    INSERT INTO sign_in_throttle AS t (key, tokens, updated_at)
    VALUES (${bucket.key}, ${bucket.burst - 1}, clock_timestamp())
    ON CONFLICT (key) DO UPDATE SET
      tokens = ${filled(bucket)} - 1,
      updated_at = greatest(t.updated_at, clock_timestamp())
    WHERE ${filled(bucket)} >= 1
    RETURNING 1`.execute(db)
  return rows.length > 0
}

async function giveBack(db: Db, bucket: Bucket): Promise<void> {
  await sql`
    UPDATE sign_in_throttle AS t SET
      tokens = least(${bucket.burst}::double precision, ${filled(bucket)} + 1),
      updated_at = greatest(t.updated_at, clock_timestamp())
    WHERE key = ${bucket.key}`.execute(db)
}

async function findWait(
  db: Db,
  bucket: Bucket,
): Promise<{ readonly retryAfterSeconds: number; readonly resetAt: Date }> {
  const { rows } = await sql<{ tokens: number }>`
    SELECT ${filled(bucket)} AS tokens FROM sign_in_throttle AS t WHERE key = ${bucket.key}`.execute(db)
  const tokens = rows[0]?.tokens ?? 1
  const secondsUntil = (wanted: number) => ((wanted - tokens) * 3_600) / bucket.perHour
  return {
    retryAfterSeconds: Math.max(1, Math.ceil(secondsUntil(1))),
    resetAt: new Date(Date.now() + 1_000 * secondsUntil(bucket.burst)),
  }
}
