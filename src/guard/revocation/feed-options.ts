/** What a feed of revocations (`feed.ts`) can be told, and what it tells of itself. */

/**
 * How a guard learns of revocations from the issuer: `GuardOptions.revocation`.
 *
 * @example
 * ```ts
 * import { createGuard } from '@latchkey/guard'
 *
 * export const guard = createGuard({
 *   issuer: 'https://id.example.com',
 *   audience: 'https://api.example.com/models',
 *   revocation: { clientId: 'models-api', clientSecret: process.env['FEED_SECRET'] ?? '', maxStaleness: '90s' },
 * })
 * ```
 */
export interface RevocationFeedOptions {
  /** A client of the issuer's that may receive its security events, by client credentials. */
  readonly clientId: string
  readonly clientSecret: string
  /**
   * How old the news may be: seconds, or `'60s'`, `'5m'`. Counted from the last answer that left nothing behind, of a
   * stream that proves every half of this time, but not more often than every 30 seconds, that it is not just silent.
   * From 1 second to a day. @defaultValue `'60s'`
   */
  readonly maxStaleness?: number | string
  /**
   * When the news are older than that, or there never were any. `introspect`: ask the issuer about each token (RFC
   * 7662), with the same credentials, at most once in five seconds for each; where that fails, `deny`. `deny`: 503 with
   * `Retry-After`. `allow`: let tokens in that are not known to be revoked. @defaultValue `'introspect'`
   */
  readonly onStale?: 'introspect' | 'deny' | 'allow'
  /** Scope to ask the issuer for. @defaultValue `'signals:receive'` */
  readonly scope?: string
  /** How many revocations are kept, at 21 to 43 bytes each; beyond that the feed goes stale. @defaultValue 4000000 */
  readonly maxEntries?: number
}

/** What `guard.health().revocation` tells of a feed. */
export type RevocationFeedHealth = {
  readonly issuer: string
  /** `starting`: nothing has come yet, and nothing went wrong. `stale`: `onStale` decides. */
  readonly status: 'starting' | 'current' | 'stale'
  readonly onStale: 'introspect' | 'deny' | 'allow'
  /** Whether this stream has brought all that was revoked before it was opened. */
  readonly caughtUp: boolean
  /** Since the last answer that left nothing behind. */
  readonly ageSeconds: number | undefined
  readonly maxStalenessSeconds: number
  readonly streamId: string | undefined
  /** `jti` of the last event, and when it happened by the issuer's clock: how far the feed has come. */
  readonly lastEvent: { readonly jti: string; readonly at: Date } | undefined
  readonly entries: number
  readonly bytes: number
  /** Exchanges that failed, and events that were refused, since the guard was made. */
  readonly errors: number
  /** What is in the way right now; never `undefined` while the feed is stale. */
  readonly lastError: string | undefined
  /** Why the last event that was not taken in was refused. */
  readonly lastRefusal: string | undefined
}

const UNITS: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600 }

/**
 * @param given - seconds, or `'60s'`, `'5m'`, `'1h'`
 * @throws TypeError when it is no time from a second to a day
 */
export function durationSeconds(given: number | string, name: string): number {
  const [, amount, unit = 's'] = /^(\d{1,6})([smh])$/.exec(String(given)) ?? []
  const seconds = typeof given === 'number' ? given : Number(amount) * (UNITS[unit] ?? Number.NaN)
  if (!(seconds >= 1 && seconds <= 86_400)) throw new TypeError(`${name} is from '1s' to '24h', not ${given}`)
  return seconds
}
