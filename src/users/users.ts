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
import { isDeepStrictEqual } from 'node:util'
import { sql, type Selectable } from 'kysely'
import { z } from 'zod'
import { requireAnotherAdministrator, requireRightsOver } from '../access/rights.ts'
import { findRolesOf } from '../access/roles.ts'
import { writeAudit, type Actor } from '../audit/audit.ts'
import { compileOnce } from '../database/compile-once.ts'
import { violatedUniqueConstraint, type Db, type Trx } from '../database/database.ts'
import type { UsersTable } from '../database/tables.ts'
import { requireVersion } from '../http/etag.ts'
import { notFound, parseInput, Problem } from '../problems.ts'
import { revoke } from '../revocation/revocations.ts'
import type { UserAttributes } from './attributes.ts'
import { readParameters, type PasswordHash } from './password.ts'
import { storedForm } from './work-factor.ts'

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

const isoDate = z.iso.date()

/** OpenID Connect Core §5.1: the year alone, or 0000 for the year that is kept back; 2000 has every day. */
function isBirthdate(text: string): boolean {
  return text.length === 4 || isoDate.safeParse(text.replace(/^0000/, '2000')).success
}

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
    .regex(/^(\d{4}(-\d\d-\d\d)?)$/, { error: 'must be YYYY-MM-DD or YYYY', abort: true })
    .refine(isBirthdate, 'must be a day that there is')
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

/** All of a person that can be written as a whole: what PUT replaces and PATCH patches. */
export const userDocumentSchema = z.strictObject({
  email,
  email_verified: z.boolean().default(false),
  name: line.nullable().default(null),
  profile: profileSchema.default({}),
  attributes: z.record(z.string().max(64), z.unknown()).default({}),
  /** left out: as it is */
  is_active: z.boolean().optional(),
})
export type UserDocument = z.output<typeof userDocumentSchema>

/** That document as it is now. */
export function userDocument(user: User): UserDocument {
  return {
    email: user.email,
    email_verified: user.email_verified,
    name: user.name,
    profile: profileSchema.parse(user.profile),
    attributes: user.attributes,
    is_active: user.account_status === 'active',
  }
}

const createUserSchema = z.object({
  email,
  emailVerified: z.boolean().default(false),
  name: line.nullable().default(null),
  profile: profileSchema.default({}),
})

/** All but the password's hash. */
export const userColumns = [
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
  if (user === undefined) throw takenEmail()
  await writeAudit(trx, actor, {
    action: 'user.created',
    target: { type: 'user', id },
    details: { after: userDocument(user), has_password: passwordHash !== undefined },
  })
  return user
}

export interface UpdateUser {
  readonly userId: string
  /** those that the caller has seen; undefined: any */
  readonly expectedVersions?: readonly number[] | undefined
  /** the document as it shall be, of what it is: called with the row locked */
  readonly to: (before: UserDocument) => UserDocument
  /**
   * The whole is written, not a part that was computed from what was read: one that is so already is no lost update, so it
   * can be sent again (RFC 9110 §13.1.1).
   */
  readonly isReplacement?: boolean
  readonly parseAttributes: (attributes: unknown) => UserAttributes
}

/**
 * Writes what differs. Attributes travel in tokens, so a change of them ends the tokens that say otherwise.
 *
 * @throws Problem RESOURCE_NOT_FOUND, PRECONDITION_FAILED, VALIDATION_ERROR, CONFLICT when the address is another
 *   person's or the last administrator would be shut out, AUTHORIZATION_ERROR about somebody who may do more
 */
export async function updateUser(trx: Trx, actor: Actor, input: UpdateUser): Promise<User> {
  const { userId } = input
  await lockFamilies(trx, userId)
  // The role's lock comes before a person's, and whether it is needed is not known before the person is read.
  const mayLock = input.to(userDocument(await getUser(trx, userId))).is_active === false
  if (mayLock) await requireAnotherAdministrator(trx, actor, userId)
  const row = await lockUser(trx, userId)
  const before = userDocument(row)
  const after = { ...input.to(before) }
  after.is_active ??= before.is_active
  const changed = (Object.keys(before) as (keyof UserDocument)[]).filter(
    (name) => !isDeepStrictEqual(before[name], after[name]),
  )
  if (changed.length === 0 && input.isReplacement === true) return row
  requireVersion(input.expectedVersions, row.row_version)
  if (changed.length === 0) return row
  if (actor.type !== 'user' || actor.id !== userId || changed.includes('is_active')) {
    await requireRightsOver(trx, actor, userId)
  }
  const attributes = changed.includes('attributes') ? input.parseAttributes(after.attributes) : row.attributes
  const written = await trx
    .updateTable('users')
    .set({
      email: after.email,
      email_normalized: normalizeLogin(after.email),
      email_verified: after.email_verified,
      name: after.name,
      profile: JSON.stringify(after.profile),
      attributes: JSON.stringify(attributes),
      row_version: sql<number>`row_version + 1`,
      updated_at: sql<Date>`now()`,
    })
    .where('id', '=', userId)
    .returning(userColumns)
    .executeTakeFirstOrThrow()
    .catch((error: unknown) => {
      throw violatedUniqueConstraint(error) === undefined ? error : takenEmail()
    })
  if (changed.includes('attributes')) await endTokens(trx, actor, userId, 'attributes changed')
  const fields = changed.filter((name) => name !== 'is_active')
  if (fields.length > 0) {
    const of = (document: UserDocument) => Object.fromEntries(fields.map((name) => [name, document[name] ?? null]))
    await writeAudit(trx, actor, {
      action: 'user.updated',
      target: { type: 'user', id: userId },
      details: { before: of(before), after: of(userDocument(written)) },
    })
  }
  if (!changed.includes('is_active')) return written
  return after.is_active === true ? enableUser(trx, actor, { userId }) : disableUser(trx, actor, { userId })
}

/** The tokens that this person holds are dead from now on; the sessions are not. */
async function endTokens(trx: Trx, actor: Actor, userId: string, reason: string): Promise<void> {
  const { token_version: tokenVersion } = await trx
    .updateTable('users')
    .set({ token_version: sql<number>`token_version + 1` })
    .where('id', '=', userId)
    .returning('token_version')
    .executeTakeFirstOrThrow()
  await revoke(trx, { kind: 'user', subject: userId, tokenVersion, reason, cause: 'claims-change', by: actor })
}

function takenEmail(): Problem {
  return new Problem('CONFLICT', 'There is already a user with this email address.', {
    details: [{ field: 'email', constraint: 'unique', message: 'Belongs to another user' }],
  })
}

/** @throws Problem RESOURCE_NOT_FOUND when there is no such person */
export async function getUser(db: Db, userId: string): Promise<User> {
  return (await findUser(db, userId)) ?? unknownUser(userId)
}

export async function findUser(db: Db, userId: string): Promise<User | undefined> {
  const [user] = await selectUser(db, userId)
  return user
}

const selectUser = compileOnce((db, userId: string) =>
  db.selectFrom('users').select(userColumns).where('id', '=', userId),
)

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
  const before = await lockUser(trx, userId)
  await requireRightsOver(trx, actor, userId)
  const after = await trx
    .updateTable('users')
    .set({ password_hash: passwordHash, password_changed_at: sql<Date>`now()` })
    .where('id', '=', userId)
    .returning('password_changed_at')
    .executeTakeFirstOrThrow()
  const { user } = await endEverything(trx, actor, userId, {
    action: 'user.password-changed',
    reason: 'the password was changed',
    before: { password_changed_at: before.password_changed_at },
    after,
  })
  return user
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
  await writeAudit(trx, actor, {
    action: 'user.password-rehashed',
    target: { type: 'user', id: userId },
    details: { before: workFactorOf(from), after: workFactorOf(to) },
  })
  return true
}

/** Of a hash what is not secret. */
function workFactorOf(hash: string) {
  const parameters = readParameters(hash)
  return parameters === undefined ? {} : storedForm(parameters)
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
  await requireAnotherAdministrator(trx, actor, userId)
  const user = await lockUser(trx, userId)
  if (user.account_status === 'disabled') return user
  await requireRightsOver(trx, actor, userId)
  await trx.updateTable('users').set({ account_status: 'disabled' }).where('id', '=', userId).execute()
  const { user: disabled } = await endEverything(trx, actor, userId, {
    action: 'user.disabled',
    reason,
    before: { is_active: true },
    after: { is_active: false },
  })
  return disabled
}

/**
 * Lets a person in again. What was ended stays so: they sign in anew.
 * @throws Problem RESOURCE_NOT_FOUND when there is no such person
 */
export async function enableUser(trx: Trx, actor: Actor, { userId }: { readonly userId: string }): Promise<User> {
  const user = await lockUser(trx, userId)
  if (user.account_status === 'active') return user
  await requireRightsOver(trx, actor, userId)
  await trx
    .updateTable('users')
    .set({ account_status: 'active', row_version: sql<number>`row_version + 1`, updated_at: sql<Date>`now()` })
    .where('id', '=', userId)
    .execute()
  await writeAudit(trx, actor, {
    action: 'user.enabled',
    target: { type: 'user', id: userId },
    details: { before: { is_active: false }, after: { is_active: true } },
  })
  return getUser(trx, userId)
}

export interface RevokedAccess {
  readonly user: User
  /** how many of each have ended */
  readonly ended: { readonly sessions: number; readonly grants: number; readonly consents: number }
}

/**
 * Signs a person out everywhere, as they may do themselves and as is done for a stolen account: sessions, families,
 * access tokens and codes, of every application and on every device. They may sign in again.
 * @param input.reason for the audit record and the services
 * @param input.consents true: what they agreed to is forgotten too, so that third-party applications ask again
 * @throws Problem RESOURCE_NOT_FOUND when there is no such person
 */
export async function revokeEverythingOfUser(
  trx: Trx,
  actor: Actor,
  {
    userId,
    reason,
    consents = false,
  }: { readonly userId: string; readonly reason: string; readonly consents?: boolean | undefined },
): Promise<RevokedAccess> {
  const forgotten = consents ? await forgetConsents(trx, userId) : []
  await lockFamilies(trx, userId)
  await lockUser(trx, userId)
  const { user, sessions, grants } = await endEverything(trx, actor, userId, {
    action: 'user.access-revoked',
    reason,
    before: consents ? { consents: forgotten } : {},
    after: consents ? { consents: [] } : {},
  })
  return { user, ended: { sessions, grants, consents: forgotten.length } }
}

/** Before the families, here as wherever consent is withdrawn: a family that is just beginning looks the other way round. */
async function forgetConsents(trx: Trx, userId: string) {
  return trx
    .deleteFrom('consents')
    .where('user_id', '=', userId)
    .returning(['client_id', 'resource', 'scope'])
    .execute()
}

/**
 * Removes a person and everything kept about them, except for the audit record. That names them by their id, and does not
 * say once more who that was: the rows of what was made and changed under it do, for as long as those are kept.
 * @throws Problem RESOURCE_NOT_FOUND when there is no such person, PRECONDITION_FAILED
 */
export async function deleteUser(
  trx: Trx,
  actor: Actor,
  { userId, expectedVersions }: Pick<UpdateUser, 'userId' | 'expectedVersions'>,
): Promise<void> {
  const consents = await forgetConsents(trx, userId)
  await lockFamilies(trx, userId)
  await requireAnotherAdministrator(trx, actor, userId)
  const before = await lockUser(trx, userId)
  requireVersion(expectedVersions, before.row_version)
  await requireRightsOver(trx, actor, userId)
  await endEverything(trx, actor, userId, {
    action: 'user.deleted',
    reason: 'the account was deleted',
    before: { is_active: before.account_status === 'active', roles: await findRolesOf(trx, userId), consents },
  })
  await trx.deleteFrom('users').where('id', '=', userId).execute()
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
  return user ?? unknownUser(userId)
}

/**
 * Ends everything that a person, whose families and row the caller has locked, has begun.
 * @param change.before and `after`: what else changes; without the latter there is nothing afterwards
 */
async function endEverything(
  trx: Trx,
  actor: Actor,
  userId: string,
  {
    action,
    reason,
    before,
    after,
  }: {
    readonly action: string
    readonly reason: string
    readonly before: Readonly<Record<string, unknown>>
    readonly after?: Readonly<Record<string, unknown>>
  },
): Promise<{ readonly user: User; readonly sessions: number; readonly grants: number }> {
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
  await revoke(trx, {
    kind: 'user',
    subject: userId,
    tokenVersion: user.token_version,
    reason,
    cause: action === 'user.password-changed' ? 'password-change' : 'other',
    by: actor,
  })
  await sql`
    DELETE FROM refresh_replies WHERE grant_id IN (
      SELECT id FROM artifacts WHERE kind = 'Grant' AND user_id = ${userId}
    )`.execute(trx)
  const { rows } = await sql<{ kind: string; id: string; session_uid: string | null; client_id: string | null }>`
    DELETE FROM artifacts WHERE user_id = ${userId} OR grant_id IN (
      SELECT id FROM artifacts WHERE kind = 'Grant' AND user_id = ${userId}
    )
    RETURNING kind, id, session_uid, client_id`.execute(trx)
  // A session's own row goes by the hash of a cookie; its tokens know it by its `sid`.
  const sessions = [...new Set(rows.flatMap(({ kind, session_uid: id }) => (kind === 'Session' ? [id] : [])))]
  const grants = rows.flatMap(({ kind, id, client_id }) => (kind === 'Grant' ? [{ grant_id: id, client_id }] : []))
  const { token_version: tokenVersion } = user
  await writeAudit(trx, actor, {
    action,
    target: { type: 'user', id: userId },
    details: {
      reason,
      before: { ...before, token_version: tokenVersion - 1, sessions, grants },
      ...(after === undefined ? {} : { after: { ...after, token_version: tokenVersion, sessions: [], grants: [] } }),
    },
  })
  return { user, sessions: sessions.length, grants: grants.length }
}

function unknownUser(userId: string): never {
  throw notFound('user', userId, '/v1/users')
}
