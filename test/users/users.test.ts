import { pino } from 'pino'
import { beforeAll, describe, expect, it } from 'vitest'
import { effectivePermissions } from '../../src/access/rights.ts'
import type { Actor } from '../../src/audit/audit.ts'
import { readConfig } from '../../src/config.ts'
import type { Db, Trx } from '../../src/database/database.ts'
import { Problem } from '../../src/problems.ts'
import { openAttributes } from '../../src/users/attributes.ts'
import { openPasswords, type PasswordHash } from '../../src/users/password.ts'
import {
  createUser,
  deleteUser,
  disableUser,
  enableUser,
  revokeEverythingOfUser,
  findCredentials,
  findUser,
  findUserByLogin,
  getUser,
  listUsers,
  replacePasswordHash,
  setPassword,
  type CreateUser,
  type User,
} from '../../src/users/users.ts'
import { eachDatabase, onPostgres } from '../support/databases.ts'

const actor: Actor = { type: 'operator', id: 'olga', requestId: 'request-1' }
const passwords = openPasswords({
  config: readConfig({ NODE_ENV: 'test' }),
  workFactor: { memoryKib: 19_456, timeCost: 2, parallelism: 1 },
  log: pino({ level: 'silent' }),
})

let count = 0
const write = <T>(db: Db, work: (trx: Trx) => Promise<T>): Promise<T> => db.transaction().execute(work)
const create = (db: Db, input: Partial<CreateUser> = {}): Promise<User> =>
  write(db, (trx) => createUser(trx, actor, { email: `person${(count += 1)}@example.com`, ...input }))
const audited = (db: Db, userId: string) =>
  db.selectFrom('audit_events').selectAll().where('target_id', '=', userId).orderBy('id').execute()

async function problemOf(work: Promise<unknown>): Promise<Problem> {
  const error = await work.then(
    () => new Error('nothing was refused'),
    (error: unknown) => error,
  )
  if (error instanceof Problem) return error
  throw error
}

/** A session, a family with a refresh token and its stored reply. */
async function beginFamily(db: Db, userId: string, id: string): Promise<void> {
  const expires_at = new Date(Date.now() + 60_000)
  const artifact = { user_id: userId, payload: '{}', expires_at }
  await db
    .insertInto('artifacts')
    .values([
      { ...artifact, kind: 'Session', id: `session-${id}` },
      { ...artifact, kind: 'Grant', id: `grant-${id}` },
      { ...artifact, kind: 'RefreshToken', id: `token-${id}`, grant_id: `grant-${id}` },
    ])
    .execute()
  await db
    .insertInto('refresh_replies')
    .values({
      token_id: `token-${id}`,
      grant_id: `grant-${id}`,
      request_hash: Buffer.from('x'),
      sealed_reply: Buffer.from('x'),
      expires_at,
    })
    .execute()
}

async function remains(db: Db, userId: string, id: string) {
  const artifacts = await db.selectFrom('artifacts').select('id').where('user_id', '=', userId).execute()
  const replies = await db
    .selectFrom('refresh_replies')
    .select('token_id')
    .where('grant_id', '=', `grant-${id}`)
    .execute()
  return artifacts.length + replies.length
}

const endings: [string, string, (trx: Trx, userId: string, passwordHash: PasswordHash) => Promise<unknown>][] = [
  [
    'a new password',
    'user.password-changed',
    (trx, userId, passwordHash) => setPassword(trx, actor, { userId, passwordHash }),
  ],
  ['disabling', 'user.disabled', (trx, userId) => disableUser(trx, actor, { userId })],
  [
    'signing out everywhere',
    'user.access-revoked',
    (trx, userId) => revokeEverythingOfUser(trx, actor, { userId, reason: 'asked' }),
  ],
  ['deleting', 'user.deleted', (trx, userId) => deleteUser(trx, actor, { userId })],
]

eachDatabase((open) => {
  let db: Db
  let hash: PasswordHash
  beforeAll(async () => {
    db = (await open()).db
    hash = await passwords.hash('seven purple otters')
  })

  describe('creating a person', () => {
    it('refuses an address that is taken, in whatever spelling', async () => {
      await create(db, { email: 'Zoë@example.com' })
      for (const email of ['zoë@example.com', ' ZOË@EXAMPLE.COM ', 'zoë@example.com'.normalize('NFD')]) {
        expect(await problemOf(create(db, { email }))).toMatchObject({
          code: 'CONFLICT',
          details: [{ field: 'email' }],
        })
      }
    })

    it.each([
      '',
      'alice',
      '@example.com',
      'alice@',
      'a b@example.com',
      'a@b@c',
      'a\u0000@example.com',
      `${'x'.repeat(60)}@${'x'.repeat(200)}.com`,
    ])('refuses %j as an address', async (email) => {
      expect(await problemOf(create(db, { email }))).toMatchObject({
        code: 'VALIDATION_ERROR',
        details: [{ field: 'email' }],
      })
    })

    it('refuses claims that the standard does not know, and addresses that run a script', async () => {
      const profile = { is_admin: true, website: 'javascript:alert(1)', locale: 7 } as object as CreateUser['profile']
      const { details } = await problemOf(create(db, { profile }))
      expect(details.map(({ field }) => field).sort()).toEqual([
        'profile.is_admin',
        'profile.locale',
        'profile.website',
      ])
    })

    it.each(['2025-02-30', '9999-99-99', '2025-13-01', '0000-02-30', '0000-00-00'])(
      'refuses %s as a birthdate: there is no such day',
      async (birthdate) => {
        expect(await problemOf(create(db, { profile: { birthdate } }))).toMatchObject({
          code: 'VALIDATION_ERROR',
          details: [{ field: 'profile.birthdate', constraint: 'format' }],
        })
      },
    )

    it('takes a birthdate whose year or day is kept back (OpenID Connect Core §5.1)', async () => {
      for (const birthdate of ['0000-02-29', '1980', '1980-02-29']) {
        const { profile } = await create(db, { email: `born-${birthdate}@example.com`, profile: { birthdate } })
        expect(profile).toEqual({ birthdate })
      }
    })

    it('leaves nothing behind when the transaction fails', async () => {
      const email = 'rolled-back@example.com'
      const failed = write(db, async (trx) => {
        await createUser(trx, actor, { email })
        throw new Error('later')
      })
      await expect(failed).rejects.toThrow('later')
      expect(await findUserByLogin(db, email)).toBeUndefined()
    })

    it('keeps everything given, under an unguessable id, and records who did it and what, but no hash', async () => {
      const attributes = openAttributes().parse({ department: 'physics', clearance: 3 })
      const profile = { given_name: 'Alice', website: 'https://alice.example/', address: { country: 'UK' } }
      const email = 'Alice.Liddell@Example.com'
      const user = await create(db, {
        email,
        name: 'Alice Liddell',
        profile,
        attributes,
        passwordHash: hash,
        emailVerified: true,
      })
      expect(user).toMatchObject({
        email,
        email_normalized: 'alice.liddell@example.com',
        email_verified: true,
        name: 'Alice Liddell',
        profile,
        attributes,
        account_status: 'active',
        token_version: 1,
        sign_in_version: 1,
      })
      expect(user.id).toMatch(/^usr_[\w-]{22}$/)
      expect(user).not.toHaveProperty('password_hash')
      expect(await getUser(db, user.id)).toEqual(user)
      const rows = await audited(db, user.id)
      const after = { email, email_verified: true, name: 'Alice Liddell', profile, attributes, is_active: true }
      const details = { after, has_password: true }
      expect(rows).toMatchObject([{ action: 'user.created', actor_id: 'olga', request_id: 'request-1', details }])
      expect(JSON.stringify(rows)).not.toMatch(/argon2/i)
    })
  })

  describe('finding people', () => {
    it('says clearly that there is nobody', async () => {
      expect(await findUser(db, 'usr_nobody')).toBeUndefined()
      expect(await findUserByLogin(db, 'nobody@example.com')).toBeUndefined()
      expect(await findCredentials(db, 'nobody@example.com')).toBeUndefined()
      expect(await problemOf(getUser(db, 'usr_nobody'))).toMatchObject({ code: 'RESOURCE_NOT_FOUND' })
    })

    it('finds them by their address in any spelling, with the hash only for the sign-in', async () => {
      const user = await create(db, { email: 'Björn@example.com', passwordHash: hash })
      for (const login of ['björn@example.com', ' BJÖRN@example.com\t', 'björn@EXAMPLE.com'.normalize('NFD')]) {
        expect(await findUserByLogin(db, login)).toEqual(user)
        expect(await findCredentials(db, login)).toEqual({ user, passwordHash: hash })
      }
      expect(await findUserByLogin(db, `björn@example.com${' '.repeat(5_000_000)}x`)).toEqual(user)
    })

    it('lists everybody once, however many share one moment', async () => {
      const { rows } = await write(db, async (trx) => {
        const rows: User[] = []
        for (let i = 0; i < 7; i += 1) rows.push(await createUser(trx, actor, { email: `page${i}@example.com` }))
        return { rows }
      })
      const seen: string[] = []
      let after: string | undefined
      do {
        const page = await listUsers(db, { limit: 3, after })
        expect(page.users.length).toBeLessThanOrEqual(3)
        seen.push(...page.users.map(({ id }) => id))
        after = page.after
      } while (after !== undefined)
      const all = await db.selectFrom('users').select('id').orderBy('created_at').orderBy('id').execute()
      expect(seen).toEqual(all.map(({ id }) => id))
      expect(seen).toEqual(expect.arrayContaining(rows.map(({ id }) => id)))
    })

    it('goes on with the list when the person at its edge is gone', async () => {
      const { users, after } = await listUsers(db, { limit: 1 })
      const rest = await listUsers(db, { limit: 200, after })
      await write(db, (trx) => deleteUser(trx, actor, { userId: users[0]?.id ?? '' }))
      expect(await listUsers(db, { limit: 200, after })).toEqual(rest)
    })

    it.each([
      { limit: 0 },
      { limit: 201 },
      { limit: 1.5 },
      { limit: 5, after: 'x' },
      { limit: 5, after: "1.usr_a'; --" },
    ])('refuses the page %j', async (page) => {
      expect(await problemOf(listUsers(db, page))).toMatchObject({ code: 'VALIDATION_ERROR' })
    })
  })

  describe.each(endings)('%s', (_name, action, end) => {
    it('is refused for nobody', async () => {
      const work = write(db, (trx) => end(trx, 'usr_nobody', hash))
      expect(await problemOf(work)).toMatchObject({ code: 'RESOURCE_NOT_FOUND' })
    })

    it("ends everything that person began, nobody else's, and tells the services", async () => {
      const [mine, other] = [await create(db), await create(db)]
      await beginFamily(db, mine.id, `${action}-mine`)
      await beginFamily(db, other.id, `${action}-other`)
      await write(db, (trx) => end(trx, mine.id, hash))
      expect(await remains(db, mine.id, `${action}-mine`)).toBe(0)
      expect(await remains(db, other.id, `${action}-other`)).toBe(4)
      const revocations = await db.selectFrom('revocations').selectAll().where('subject', '=', mine.id).execute()
      expect(revocations).toMatchObject([{ kind: 'user', token_version: 2 }])
      expect((await audited(db, mine.id)).map((row) => row.action)).toEqual(['user.created', action])
      const after = await findUser(db, mine.id)
      const versions = [after?.token_version, after?.sign_in_version, after?.row_version]
      expect(versions).toEqual(action === 'user.deleted' ? [undefined, undefined, undefined] : [2, 2, 2])
      expect(await findUser(db, other.id)).toEqual(other)
    })
  })

  describe('an account', () => {
    it('that is disabled twice is revoked once', async () => {
      const { id: userId } = await create(db)
      await write(db, (trx) => disableUser(trx, actor, { userId }))
      const again = await write(db, (trx) => disableUser(trx, actor, { userId }))
      expect(again).toMatchObject({ account_status: 'disabled', token_version: 2 })
      expect(await audited(db, userId)).toHaveLength(2)
    })

    it('that is enabled again gets nothing back of what was ended', async () => {
      const { id: userId } = await create(db)
      expect(await problemOf(write(db, (trx) => enableUser(trx, actor, { userId: 'usr_nobody' })))).toMatchObject({
        code: 'RESOURCE_NOT_FOUND',
      })
      await write(db, (trx) => disableUser(trx, actor, { userId }))
      const user = await write(db, (trx) => enableUser(trx, actor, { userId }))
      expect(user).toMatchObject({ account_status: 'active', token_version: 2, sign_in_version: 2 })
      await write(db, (trx) => enableUser(trx, actor, { userId }))
      expect((await audited(db, userId)).map(({ action }) => action)).toEqual([
        'user.created',
        'user.disabled',
        'user.enabled',
      ])
    })

    it('that is deleted leaves its place to another person, with another id', async () => {
      const user = await create(db, { email: 'once@example.com' })
      await write(db, (trx) => deleteUser(trx, actor, { userId: user.id }))
      expect(await findUser(db, user.id)).toBeUndefined()
      expect((await create(db, { email: 'once@example.com' })).id).not.toBe(user.id)
    })
  })

  it('of whoever is deleted the record keeps the id, and says nothing anew of who that was', async () => {
    const personal = {
      email: 'forgotten@example.com',
      name: 'Somebody Forgotten',
      profile: { given_name: 'Somebody' },
      attributes: openAttributes().parse({ department: 'forgetting' }),
    }
    const user = await create(db, personal)
    await write(db, (trx) => deleteUser(trx, actor, { userId: user.id }))
    const rows = await audited(db, user.id)
    const { details, target_id } = rows.at(-1) ?? {}
    expect([rows.at(-1)?.action, target_id]).toEqual(['user.deleted', user.id])
    expect(details).toMatchObject({ before: { is_active: true, roles: [], consents: [], sessions: [], grants: [] } })
    expect(JSON.stringify(details)).not.toMatch(/forg[eo]t|Somebody/i)
  })

  describe('a hash made anew', () => {
    it('does not bring an old password back when the person chose another meanwhile', async () => {
      const [newer, rehashed] = [await passwords.hash('nine yellow geese'), await passwords.hash('seven purple otters')]
      const user = await create(db, { passwordHash: hash })
      await write(db, (trx) => setPassword(trx, actor, { userId: user.id, passwordHash: newer }))
      expect(
        await write(db, (trx) => replacePasswordHash(trx, actor, { userId: user.id, from: hash, to: rehashed })),
      ).toBe(false)
      expect(await findCredentials(db, user.email)).toMatchObject({ passwordHash: newer })
    })

    it('ends nothing', async () => {
      const rehashed = await passwords.hash('seven purple otters')
      const user = await create(db, { passwordHash: hash })
      await beginFamily(db, user.id, 'rehash')
      expect(
        await write(db, (trx) => replacePasswordHash(trx, actor, { userId: user.id, from: hash, to: rehashed })),
      ).toBe(true)
      expect(await findCredentials(db, user.email)).toMatchObject({
        passwordHash: rehashed,
        user: { token_version: 1 },
      })
      expect(await remains(db, user.id, 'rehash')).toBe(4)
    })
  })

  it('gives a person what their roles allow, each once, and a disabled one nothing', async () => {
    const user = await create(db)
    const readA = { resource: 'https://a.example', permission: 'models:read' }
    const writeA = { resource: 'https://a.example', permission: 'models:write' }
    const readB = { resource: 'https://b.example', permission: 'models:read' }
    const permissions = [readA, writeA, readB]
    await db
      .insertInto('resources')
      .values([
        { id: 'https://a.example', name: 'A' },
        { id: 'https://b.example', name: 'B' },
      ])
      .execute()
    await db.insertInto('permissions').values(permissions).execute()
    await db
      .insertInto('roles')
      .values([{ name: 'reader' }, { name: 'writer' }, { name: 'stranger' }])
      .execute()
    await db
      .insertInto('role_reach')
      .values(['reader', 'writer', 'stranger'].map((role) => ({ role, reached: role })))
      .execute()
    await db
      .insertInto('role_permissions')
      .values([
        { role: 'reader', ...readA },
        { role: 'writer', ...readA },
        { role: 'writer', ...writeA },
        { role: 'stranger', ...readB },
      ])
      .execute()
    expect(await effectivePermissions(db, user.id)).toEqual([])
    await db
      .insertInto('user_roles')
      .values(['reader', 'writer'].map((role) => ({ user_id: user.id, role })))
      .execute()
    expect(await effectivePermissions(db, user.id)).toEqual([readA, writeA])
    expect(await effectivePermissions(db, user.id, 'https://b.example')).toEqual([])
    await db.insertInto('user_roles').values({ user_id: user.id, role: 'stranger' }).execute()
    expect(await effectivePermissions(db, user.id)).toEqual(permissions)
    expect(await effectivePermissions(db, user.id, 'https://b.example')).toEqual([readB])
    await write(db, (trx) => disableUser(trx, actor, { userId: user.id }))
    expect(await effectivePermissions(db, user.id)).toEqual([])
  })
})

onPostgres((open) => {
  describe.each(endings)('%s beside a refresh', (_name, action, end) => {
    it('waits for the successor that is being written, and ends it too', async () => {
      const { db } = await open()
      const hash = await passwords.hash('seven purple otters')
      const user = await create(db)
      await beginFamily(db, user.id, action)
      const refresh = await db.startTransaction().execute()
      await refresh.selectFrom('artifacts').select('id').where('id', '=', `grant-${action}`).forUpdate().execute()
      let hasEnded = false
      const ending = write(db, (trx) => end(trx, user.id, hash)).then(() => (hasEnded = true))
      await new Promise((resolve) => setTimeout(resolve, 200))
      expect(hasEnded).toBe(false)
      await refresh
        .insertInto('artifacts')
        .values({
          kind: 'RefreshToken',
          id: 'successor',
          grant_id: `grant-${action}`,
          user_id: user.id,
          payload: '{}',
          expires_at: new Date(Date.now() + 60_000),
        })
        .execute()
      await refresh.commit().execute()
      await ending
      expect(await remains(db, user.id, action)).toBe(0)
    })
  })

  it('gives an address to one of twenty who ask for it at once', async () => {
    const { db } = await open()
    const asked = Array.from({ length: 20 }, () => create(db, { email: 'wanted@example.com' }))
    const results = await Promise.allSettled(asked)
    expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
    const refusals = results.filter((result) => result.status === 'rejected')
    expect(refusals.map(({ reason }) => (reason as Problem).code)).toEqual(Array.from({ length: 19 }, () => 'CONFLICT'))
  })
})
