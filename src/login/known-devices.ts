/**
 * Browsers that a person has signed in from before. Such a browser holds a cookie with a random token; the database holds
 * its hash, bound to that one person. It proves nothing but this: whoever holds it may try the password even while
 * strangers are being held off (OWASP ASVS 5.0 6.3.1: no lock-out by an attacker).
 */
import { createHash, randomBytes } from 'node:crypto'
import { sql } from 'kysely'
import type { Db, Trx } from '../database/database.ts'
import { normalizeLogin } from '../users/users.ts'

/** How long a browser stays known after its last sign-in, in seconds: 180 days. The cookie lives as long. */
export const knownDeviceLifetimeSeconds = 180 * 86_400

/** How many browsers of one person are remembered; the one that has been away the longest is forgotten first. */
const mostDevices = 20

/** What the cookie must look like: 256 random bits in base64url. */
const tokenShape = /^[A-Za-z0-9_-]{43}$/

/** A browser that the person who signs in has used before. */
export interface KnownDevice {
  readonly id: string
  readonly userId: string
}

/**
 * The device behind a cookie's value, when it is one of the person who signs in as `login`.
 * @param deviceToken the cookie's value, whatever was sent
 */
export async function findKnownDevice(
  db: Db,
  deviceToken: string | undefined,
  login: string,
): Promise<KnownDevice | undefined> {
  if (deviceToken === undefined || !tokenShape.test(deviceToken)) return undefined
  const row = await db
    .selectFrom('known_devices')
    .innerJoin('users', 'users.id', 'known_devices.user_id')
    .select(['known_devices.id', 'known_devices.user_id'])
    .where('known_devices.id', '=', hashToken(deviceToken))
    .where('users.email_normalized', '=', normalizeLogin(login))
    .where('known_devices.expires_at', '>', sql<Date>`now()`)
    .executeTakeFirst()
  return row === undefined ? undefined : { id: row.id, userId: row.user_id }
}

/**
 * Remembers the browser of a sign-in that has just succeeded.
 * @returns the token for its cookie; undefined when it was known already and keeps the one it has
 */
export async function rememberDevice(
  trx: Trx,
  { userId, known }: { readonly userId: string; readonly known: KnownDevice | undefined },
): Promise<string | undefined> {
  const expiresAt = sql<Date>`now() + ${knownDeviceLifetimeSeconds} * interval '1 second'`
  if (known !== undefined && known.userId === userId) {
    const { numUpdatedRows } = await trx
      .updateTable('known_devices')
      .set({ last_seen_at: sql<Date>`now()`, expires_at: expiresAt })
      .where('id', '=', known.id)
      .executeTakeFirstOrThrow()
    if (numUpdatedRows > 0n) return undefined
  }
  const deviceToken = randomBytes(32).toString('base64url')
  await trx
    .insertInto('known_devices')
    .values({ id: hashToken(deviceToken), user_id: userId, expires_at: expiresAt })
    .execute()
  await sql`
    DELETE FROM known_devices WHERE id IN (
      SELECT id FROM known_devices WHERE user_id = ${userId} ORDER BY last_seen_at DESC, id OFFSET ${mostDevices}
    )`.execute(trx)
  return deviceToken
}

/** The token is 256 random bits, so a plain hash is enough. */
const hashToken = (token: string): string => createHash('sha256').update(token).digest('base64url')
