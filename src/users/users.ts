/**
 * People: who they are, whether they may sign in, and the end of everything they began. Passwords are made and checked in
 * password.ts before any of this is called, since no transaction may wait for a hash; what people may do is decided in
 * access/; signing in is login/sign-in.ts.
 *
 * Whatever ends a person's access does it whole, in one transaction: a higher token_version, which kills their access
 * tokens in every service, a higher sign_in_version, which kills sessions and families that are just being made, the
 * revocation that tells the services, and the end of what the protocol keeps for them.
 */
import { randomBytes } from 'node:crypto'
import { sql, type Selectable } from 'kysely'
import { z } from 'zod'
import { writeAudit, type Actor } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
import type { UsersTable } from '../database/tables.ts'
import { parseInput, Problem } from '../problems.ts'
import { revoke } from '../revocation/revocations.ts'
import type { UserAttributes } from './attributes.ts'
import type { PasswordHash } from './password.ts'

/** A person as everybody but the sign-in sees them: the row without the password's hash. */
export type User = Omit<Selectable<UsersTable>, 'password_hash'>

export interface CreateUser {
  readonly email: string
  readonly emailVerified?: boolean | undefined
  readonly name?: string | null | undefined
  /** standard claims of OpenID Connect Core §5.1 that are not columns: `given_name`, `locale` … */
  readonly profile?: z.input<typeof profileSchema> | undefined
  /** from `AttributeDeclaration.parse` */
  readonly attributes?: UserAttributes | undefined
  /** from `Passwords.hash`, after `Passwords.check`; without it this person cannot sign in by password */
  readonly passwordHash?: PasswordHash | undefined
}

/** RFC 5321 §4.5.3.1.3: a path of 256, two of which are its angle brackets. */
const maxEmailCharacters = 254

const email = z
  .string()
  .transform((text) =>
    text
      .slice(0, maxEmailCharacters * 4)
      .normalize('NFC')
      .trim(),
  )
  .pipe(
    z
      .string()
      .max(maxEmailCharacters)
      .regex(/^[^\s@\p{C}]{1,64}@[^\s@\p{C}]+$/u, 'must be an email address'),
  )

const line = z
  .string()
  .min(1)
  .max(512)
  .regex(/^\P{Cc}*$/u, 'must hold no control characters')
const webAddress = z.url({ protocol: /^https?$/, error: 'must be an http or https URL' }).max(2_048)

const profileSchema = z.strictObject({
  given_name: line.optional(),
  family_name: line.optional(),
  middle_name: line.optional(),
  nickname: line.optional(),
  preferred_username: line.optional(),
  profile: webAddress.optional(),
  picture: webAddress.optional(),
  website: webAddress.optional(),
  gender: line.optional(),
  birthdate: z
    .string()
    .regex(/^(\d{4}(-\d\d-\d\d)?)$/, 'must be YYYY-MM-DD or YYYY')
    .optional(),
  zoneinfo: line.optional(),
  locale: line.optional(),
  phone_number: line.optional(),
  phone_number_verified: z.boolean().optional(),
  address: z
    .strictObject({
      formatted: z.string().max(1_024).optional(),
      street_address: z.string().max(512).optional(),
      locality: line.optional(),
      region: line.optional(),
      postal_code: line.optional(),
      country: line.optional(),
    })
    .optional(),
})

const createUserSchema = z.object({
  email,
  emailVerified: z.boolean().default(false),
  name: line.nullable().default(null),
  profile: profileSchema.default({}),
})

const userColumns = [
  'id',
  'email',
  'email_normalized',
  'email_verified',
  'name',
  'profile',
  'attributes',
  'account_status',
  'password_changed_at',
  'token_version',
  'sign_in_version',
  'row_version',
  'created_at',
  'updated_at',
] as const satisfies readonly (keyof User)[]

/** The one form in which addresses are compared and counted: NFC, trimmed, lower case. */
export function normalizeLogin(login: string): string {
  // Nothing longer is anybody's address; cut, so that normalising stays cheap.
  return login
    .slice(0, maxEmailCharacters * 4)
    .normalize('NFC')
    .trim()
    .toLowerCase()
    .normalize('NFC')
}

/**
 * @throws Problem VALIDATION_ERROR for an unusable field, CONFLICT when the address is another person's
 */
export async function createUser(trx: Trx, actor: Actor, input: CreateUser): Promise<User> {
  const { attributes = {}, passwordHash, ...rest } = input
  const { email, emailVerified, name, profile } = parseInput(createUserSchema, rest)
  const id = `usr_${randomBytes(16).toString('base64url')}`
  const user = await trx
    .insertInto('users')
    .values({
      id,
      email,
      email_normalized: normalizeLogin(email),
      email_verified: emailVerified,
      name,
      profile: JSON.stringify(profile),
      attributes: JSON.stringify(attributes),
      password_hash: passwordHash ?? null,
      password_changed_at: passwordHash === undefined ? null : sql<Date>`now()`,
    })
    .onConflict((conflict) => conflict.column('email_normalized').doNothing())
    .returning(userColumns)
    .executeTakeFirst()
  if (user === undefined) {
    throw new Problem('CONFLICT', 'There is already a user with this email address.', {
      details: [{ field: 'email', constraint: 'unique', message: 'Belongs to another user' }],
    })
  }
  await writeAudit(trx, actor, {
    action: 'user.created',
    target: { type: 'user', id },
    details: { has_password: passwordHash !== undefined, attributes: Object.keys(attributes) },
  })
  return user
}

/** @throws Problem RESOURCE_NOT_FOUND when there is no such person */
export async function getUser(db: Db, userId: string): Promise<User> {
  return (await findUser(db, userId)) ?? unknownUser()
}

export async function findUser(db: Db, userId: string): Promise<User | undefined> {
  return db.selectFrom('users').select(userColumns).where('id', '=', userId).executeTakeFirst()
}

/** The person who signs in under this name, which is their email address in any spelling. */
export async function findUserByLogin(db: Db, login: string): Promise<User | undefined> {
  return db
    .selectFrom('users')
    .select(userColumns)
    .where('email_normalized', '=', normalizeLogin(login))
    .executeTakeFirst()
}

/** For the sign-in alone: the person and what their password is checked against. */
export async function findCredentials(
  db: Db,
  login: string,
): Promise<{ user: User; passwordHash: string | null } | undefined> {
  const row = await db
    .selectFrom('users')
    .select([...userColumns, 'password_hash'])
    .where('email_normalized', '=', normalizeLogin(login))
    .executeTakeFirst()
  if (row === undefined) return undefined
  const { password_hash: passwordHash, ...user } = row
  return { user, passwordHash }
}

export interface UserPage {
  readonly users: User[]
  /** where the next page begins; undefined on the last */
  readonly after: string | undefined
}

/**
 * People in the order in which they were created.
 * @param page.limit how many, from 1 to 200
 * @param page.after the `after` of the page before
 * @throws Problem VALIDATION_ERROR for another limit, or a position that no page gave
 */
export async function listUsers(
  db: Db,
  page: { readonly limit: number; readonly after?: string | undefined },
): Promise<UserPage> {
  const { limit, after } = parseInput(pageSchema, page)
  // In microseconds, as PostgreSQL keeps them: a JavaScript date would round, and repeat or skip people.
  const micros = sql<number>`(extract(epoch FROM created_at) * 1000000)::bigint`
  let query = db.selectFrom('users').select([...userColumns, micros.as('position')])
  if (after !== undefined) {
    query = query.where(
      sql<boolean>`(created_at, id) > (timestamptz 'epoch' + ${after.micros}::bigint * interval '1 microsecond', ${after.id})`,
    )
  }
  const rows = await query
    .orderBy('created_at')
    .orderBy('id')
    .limit(limit + 1)
    .execute()
  const last = rows.length > limit ? rows[limit - 1] : undefined
  return {
    users: rows.slice(0, limit).map(withoutPosition),
    after: last === undefined ? undefined : `${last.position}.${last.id}`,
  }
}

function withoutPosition(row: User & { position: number }): User {
  const { position: _position, ...user } = row
  return user
}

const pageSchema = z.object({
  limit: z.int().min(1).max(200),
  after: z
    .string()
    .regex(/^\d{1,16}\.usr_[\w-]{1,64}$/, 'is not a position in this list')
    .transform((text) => {
      const dot = text.indexOf('.')
      return { micros: text.slice(0, dot), id: text.slice(dot + 1) }
    })
    .optional(),
})

/**
 * Gives a person another password. It ends everything that the old one began.
 * @throws Problem RESOURCE_NOT_FOUND when there is no such person
 */
export async function setPassword(
  trx: Trx,
  actor: Actor,
  { userId, passwordHash }: { readonly userId: string; readonly passwordHash: PasswordHash },
): Promise<User> {
  await lockFamilies(trx, userId)
  await lockUser(trx, userId)
  await trx
    .updateTable('users')
    .set({ password_hash: passwordHash, password_changed_at: sql<Date>`now()` })
    .where('id', '=', userId)
    .execute()
  return endAccess(trx, actor, userId, 'user.password-changed', 'the password was changed')
}

/**
 * Stores today's hash of the password that was just proved. Nothing ends: the password is the same.
 * @returns false when the password has been changed meanwhile; the new one stays
 */
export async function replacePasswordHash(
  trx: Trx,
  actor: Actor,
  { userId, from, to }: { readonly userId: string; readonly from: string; readonly to: PasswordHash },
): Promise<boolean> {
  const { numUpdatedRows } = await trx
    .updateTable('users')
    .set({ password_hash: to })
    .where('id', '=', userId)
    .where('password_hash', '=', from)
    .executeTakeFirstOrThrow()
  if (numUpdatedRows === 0n) return false
  await writeAudit(trx, actor, { action: 'user.password-rehashed', target: { type: 'user', id: userId } })
  return true
}

/**
 * Shuts a person out and ends everything they began. Nothing happens when they are shut out already.
 * @throws Problem RESOURCE_NOT_FOUND when there is no such person
 */
export async function disableUser(
  trx: Trx,
  actor: Actor,
  { userId, reason = 'the account was disabled' }: { readonly userId: string; readonly reason?: string | undefined },
): Promise<User> {
  await lockFamilies(trx, userId)
  const user = await lockUser(trx, userId)
  if (user.account_status === 'disabled') return user
  await trx.updateTable('users').set({ account_status: 'disabled' }).where('id', '=', userId).execute()
  return endAccess(trx, actor, userId, 'user.disabled', reason)
}

/**
 * Lets a person in again. What was ended stays so: they sign in anew.
 * @throws Problem RESOURCE_NOT_FOUND when there is no such person
 */
export async function enableUser(trx: Trx, actor: Actor, { userId }: { readonly userId: string }): Promise<User> {
  const user = await lockUser(trx, userId)
  if (user.account_status === 'active') return user
  await trx
    .updateTable('users')
    .set({ account_status: 'active', row_version: sql<number>`row_version + 1`, updated_at: sql<Date>`now()` })
    .where('id', '=', userId)
    .execute()
  await writeAudit(trx, actor, { action: 'user.enabled', target: { type: 'user', id: userId } })
  return getUser(trx, userId)
}

/**
 * Signs a person out everywhere: sessions, refresh tokens, access tokens.
 * @throws Problem RESOURCE_NOT_FOUND when there is no such person
 */
export async function endAllSessions(
  trx: Trx,
  actor: Actor,
  { userId, reason }: { readonly userId: string; readonly reason: string },
): Promise<User> {
  await lockFamilies(trx, userId)
  await lockUser(trx, userId)
  return endAccess(trx, actor, userId, 'user.sessions-ended', reason)
}

/**
 * Removes a person and everything kept about them; the audit record keeps the id.
 * @throws Problem RESOURCE_NOT_FOUND when there is no such person
 */
export async function deleteUser(trx: Trx, actor: Actor, { userId }: { readonly userId: string }): Promise<void> {
  await lockFamilies(trx, userId)
  await lockUser(trx, userId)
  await endAccess(trx, actor, userId, 'user.deleted', 'the account was deleted')
  await trx.deleteFrom('users').where('id', '=', userId).execute()
}

/** What a person may do. */
export interface EffectivePermission {
  readonly resource: string
  /** `type:action` */
  readonly permission: string
}

/**
 * What a person's roles allow, each permission once, sorted; nothing for somebody unknown or disabled.
 * @param resource only what they allow there
 */
export async function effectivePermissions(db: Db, userId: string, resource?: string): Promise<EffectivePermission[]> {
  let query = db
    .selectFrom('users')
    .innerJoin('user_roles', 'user_roles.user_id', 'users.id')
    .innerJoin('role_permissions', 'role_permissions.role', 'user_roles.role')
    .select(['role_permissions.resource', 'role_permissions.permission'])
    .distinct()
    .where('users.id', '=', userId)
    .where('users.account_status', '=', 'active')
  if (resource !== undefined) query = query.where('role_permissions.resource', '=', resource)
  return query.orderBy('role_permissions.resource').orderBy('role_permissions.permission').execute()
}

/**
 * A family's Grant is locked before anything else of it, here as in the token request: otherwise a successor that is
 * just being written would be missed, or the two would wait for each other.
 */
async function lockFamilies(trx: Trx, userId: string): Promise<void> {
  await sql`
    SELECT id FROM artifacts WHERE kind = 'Grant' AND user_id = ${userId} ORDER BY id COLLATE "C" FOR UPDATE`.execute(
    trx,
  )
}

async function lockUser(trx: Trx, userId: string): Promise<User> {
  const user = await trx
    .selectFrom('users')
    .select(userColumns)
    .where('id', '=', userId)
    .forNoKeyUpdate()
    .executeTakeFirst()
  return user ?? unknownUser()
}

/** Ends everything that a person, whose families and row the caller has locked, has begun. */
async function endAccess(trx: Trx, actor: Actor, userId: string, action: string, reason: string): Promise<User> {
  const user = await trx
    .updateTable('users')
    .set({
      token_version: sql<number>`token_version + 1`,
      sign_in_version: sql<number>`sign_in_version + 1`,
      row_version: sql<number>`row_version + 1`,
      updated_at: sql<Date>`now()`,
    })
    .where('id', '=', userId)
    .returning(userColumns)
    .executeTakeFirstOrThrow()
  await revoke(trx, { kind: 'user', subject: userId, tokenVersion: user.token_version, reason })
  await sql`
    DELETE FROM refresh_replies WHERE grant_id IN (
      SELECT id FROM artifacts WHERE kind = 'Grant' AND user_id = ${userId}
    )`.execute(trx)
  await sql`
    DELETE FROM artifacts WHERE user_id = ${userId} OR grant_id IN (
      SELECT id FROM artifacts WHERE kind = 'Grant' AND user_id = ${userId}
    )`.execute(trx)
  await writeAudit(trx, actor, {
    action,
    target: { type: 'user', id: userId },
    details: { reason, token_version: user.token_version },
  })
  return user
}

function unknownUser(): never {
  throw new Problem('RESOURCE_NOT_FOUND', 'There is no such user.')
}
