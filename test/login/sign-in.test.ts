import { randomBytes } from 'node:crypto'
import { pino } from 'pino'
import { beforeAll, describe, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import { readConfig, type Config } from '../../src/config.ts'
import type { Db, Trx } from '../../src/database/database.ts'
import { signIn, type SignInContext, type SignInInput, type SignInResult } from '../../src/login/sign-in.ts'
import { openThrottle } from '../../src/login/throttle.ts'
import { HashingOverloaded } from '../../src/users/hashing-gate.ts'
import { openPasswords, type PasswordHash } from '../../src/users/password.ts'
import {
  createUser,
  disableUser,
  revokeEverythingOfUser,
  findCredentials,
  setPassword,
  type User,
} from '../../src/users/users.ts'
import { eachDatabase, onPostgres, openLocation } from '../support/databases.ts'

const floor = { memoryKib: 19_456, timeCost: 2, parallelism: 1 }
const password = 'seven purple otters'
const throttleKey = randomBytes(32)

/** A hash that nobody's password is behind, and that takes long to find that out. */
const slowHash = `$argon2id$v=19$m=65536,t=20,p=1$${'A'.repeat(22)}$${'A'.repeat(43)}`

interface Parts extends SignInContext {
  readonly lines: string[]
}

function partsOf(db: Db, environment: Record<string, string> = {}): Parts {
  const lines: string[] = []
  const config: Config = readConfig({ NODE_ENV: 'test', LATCHKEY_ACCOUNT_FAILURES_BURST: '3', ...environment })
  const log = pino({ level: 'trace' }, { write: (line: string) => void lines.push(line) })
  return {
    db,
    log,
    lines,
    passwords: openPasswords({ config, workFactor: floor, log }),
    throttle: openThrottle({ db, key: () => throttleKey, config }),
  }
}

let count = 0
/** Each from a network of its own, so that only the accounts count. */
const attempt = (login: string, more: Partial<SignInInput> = {}): SignInInput => ({
  login,
  password,
  network: `10.1.${(count += 1) >> 8}.${count & 255}`,
  requestId: `request-${count}`,
  ...more,
})

async function create(db: Db, passwordHash?: PasswordHash): Promise<User> {
  const email = `person${(count += 1)}@example.com`
  return db.transaction().execute((trx) => createUser(trx, systemActor, { email, passwordHash }))
}

async function statuses(results: readonly Promise<SignInResult>[]): Promise<Record<string, number>> {
  const seen: Record<string, number> = {}
  for (const { status } of await Promise.all(results)) seen[status] = (seen[status] ?? 0) + 1
  return seen
}

const audited = (db: Db, userId: string) =>
  db
    .selectFrom('audit_events')
    .selectAll()
    .where('target_id', '=', userId)
    .where('action', 'like', 'sign-in.%')
    .orderBy('id')
    .execute()

eachDatabase((open) => {
  let db: Db
  let hash: PasswordHash
  let parts: Parts
  beforeAll(async () => {
    db = (await open()).db
    parts = partsOf(db)
    hash = await parts.passwords.hash(password)
  })

  describe('a sign-in is refused', () => {
    it('in the same way, at the same cost, for whatever reason, which only the audit record says', async () => {
      const [known, disabled, passwordless, imported] = [
        await create(db, hash),
        await create(db, hash),
        await create(db),
        await create(db, '$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW' as PasswordHash),
      ]
      await db.transaction().execute((trx) => disableUser(trx, systemActor, { userId: disabled.id }))
      const cases: [SignInInput, string, string][] = [
        [attempt('nobody@example.com'), 'unknown', 'unknown-login'],
        [attempt(''), 'unknown', 'unknown-login'],
        [attempt(known.email, { password: 'another password' }), known.id, 'wrong-password'],
        [attempt(known.email, { password: '' }), known.id, 'wrong-password'],
        [attempt(disabled.email), disabled.id, 'disabled'],
        [attempt(disabled.email, { password: 'another password' }), disabled.id, 'disabled'],
        [attempt(passwordless.email), passwordless.id, 'no-password'],
        [attempt(imported.email), imported.id, 'wrong-password'],
      ]
      for (const [input, target_id, reason] of cases) {
        const before = parts.passwords.stats().completed
        expect(await signIn(parts, input)).toEqual({ status: 'refused' })
        expect(parts.passwords.stats().completed).toBe(before + 1)
        const row = await db.selectFrom('audit_events').selectAll().orderBy('id', 'desc').executeTakeFirstOrThrow()
        expect(row).toMatchObject({
          action: 'sign-in.refused',
          actor_type: 'anonymous',
          target_id,
          request_id: input.requestId,
          details: { method: 'password', reason },
        })
      }
    })

    it('when the account was disabled, or its password changed, while the hash was being made', async () => {
      const changes: ((trx: Trx, userId: string) => Promise<unknown>)[] = [
        (trx, userId) => disableUser(trx, systemActor, { userId }),
        (trx, userId) => setPassword(trx, systemActor, { userId, passwordHash: hash }),
        (trx, userId) => revokeEverythingOfUser(trx, systemActor, { userId, reason: 'asked' }),
      ]
      const users = [await create(db, hash), await create(db, hash), await create(db, hash)]
      const slow = partsOf(db, { LATCHKEY_HASHING_CONCURRENCY: '1' })
      const other = slow.passwords.verify(slowHash, 'keeps the others waiting')
      const results = users.map((user) => signIn(slow, attempt(user.email)))
      while (slow.passwords.stats().waiting < 3) await new Promise((resolve) => setTimeout(resolve, 1))
      for (const [i, change] of changes.entries()) {
        await db.transaction().execute((trx) => change(trx, users[i]?.id ?? ''))
      }
      expect(slow.passwords.stats().waiting).toBe(3)
      await other
      expect(await Promise.all(results)).toEqual(changes.map(() => ({ status: 'refused' })))
      for (const { id } of users) {
        expect((await audited(db, id)).map(({ details }) => details)).toEqual([
          { method: 'password', reason: 'changed-meanwhile' },
        ])
      }
    })

    it('before any hash once the account has failed too often, with the right password too', async () => {
      const user = await create(db, hash)
      for (let i = 0; i < 3; i += 1) await signIn(parts, attempt(user.email, { password: 'another password' }))
      const before = parts.passwords.stats().completed
      const result = await signIn(parts, attempt(user.email))
      expect(result).toMatchObject({ status: 'throttled' })
      expect(result.status === 'throttled' && result.retryAfterSeconds).toBeGreaterThan(0)
      expect(parts.passwords.stats().completed).toBe(before)
    })

    it('after the same number of attempts where there is no such account', async () => {
      const seen: string[] = []
      for (let i = 0; i < 5; i += 1) seen.push((await signIn(parts, attempt('ghost@example.com'))).status)
      expect(seen).toEqual(['refused', 'refused', 'refused', 'throttled', 'throttled'])
    })
  })

  describe('too many sign-ins at once', () => {
    it('are turned away without counting against the account', async () => {
      const user = await create(db, hash)
      const busy = partsOf(db, { LATCHKEY_HASHING_CONCURRENCY: '1', LATCHKEY_HASHING_QUEUE: '0' })
      const other = busy.passwords.verify(slowHash, 'keeps the gate busy')
      // Twice as many as the account may fail.
      for (let round = 0; round < 2; round += 1) {
        const results = await Promise.allSettled([1, 2, 3].map(() => signIn(busy, attempt(user.email))))
        const reasons = results.map((result) => (result.status === 'rejected' ? result.reason : result.value))
        expect(reasons.every((reason) => reason instanceof HashingOverloaded)).toBe(true)
      }
      await other
      expect(await audited(db, user.id)).toEqual([])
      expect(await signIn(parts, attempt(user.email))).toMatchObject({ status: 'signed-in' })
    })
  })

  describe('a sign-in succeeds', () => {
    it('with the right password, the address written in any way', async () => {
      const user = await create(db, hash)
      const result = await signIn(parts, attempt(` ${user.email.toUpperCase()} `))
      expect(result).toMatchObject({ status: 'signed-in', user: { id: user.id, sign_in_version: 1 } })
      expect(result).not.toHaveProperty('user.password_hash')
      expect(await audited(db, user.id)).toMatchObject([
        {
          action: 'sign-in.succeeded',
          actor_type: 'user',
          actor_id: user.id,
          details: { method: 'password', known_device: false },
        },
      ])
    })

    it('as often as one likes: it does not count as a failure', async () => {
      const user = await create(db, hash)
      for (let i = 0; i < 6; i += 1) {
        expect(await signIn(parts, attempt(user.email, { network: '192.0.2.77' }))).toMatchObject({
          status: 'signed-in',
        })
      }
    })

    it('from a known device while strangers hold the account', async () => {
      const user = await create(db, hash)
      const first = await signIn(parts, attempt(user.email))
      const deviceToken = first.status === 'signed-in' ? first.deviceToken : undefined
      expect(deviceToken).toMatch(/^[\w-]{43}$/)
      for (let i = 0; i < 5; i += 1) await signIn(parts, attempt(user.email, { password: 'another password' }))
      expect(await signIn(parts, attempt(user.email))).toMatchObject({ status: 'throttled' })
      expect(await signIn(parts, attempt(user.email, { deviceToken }))).toMatchObject({
        status: 'signed-in',
        deviceToken: undefined,
      })
      const other = await create(db, hash)
      for (let i = 0; i < 5; i += 1) await signIn(parts, attempt(other.email, { password: 'another password' }))
      expect(await signIn(parts, attempt(other.email, { deviceToken }))).toMatchObject({ status: 'throttled' })
    })

    it('and makes the hash anew when the work factor has changed, ending nothing', async () => {
      const user = await create(db, hash)
      const dearer = partsOf(db)
      dearer.passwords.useWorkFactor({ memoryKib: 19_456, timeCost: 3, parallelism: 1 })
      expect(await signIn(dearer, attempt(user.email, { password: 'another password' }))).toEqual({ status: 'refused' })
      expect(await findCredentials(db, user.email)).toMatchObject({ passwordHash: hash })
      expect(await signIn(dearer, attempt(user.email))).toMatchObject({
        status: 'signed-in',
        user: { token_version: 1 },
      })
      const { passwordHash } = (await findCredentials(db, user.email)) ?? {}
      expect(passwordHash).toContain('m=19456,t=3,p=1')
      const before = dearer.passwords.stats().completed
      expect(await signIn(dearer, attempt(user.email))).toMatchObject({ status: 'signed-in' })
      expect(dearer.passwords.stats().completed).toBe(before + 1)
      expect((await findCredentials(db, user.email))?.passwordHash).toBe(passwordHash)
    })
  })

  it('writes nothing of what was typed to the log or the audit record', async () => {
    const user = await create(db, hash)
    const quiet = partsOf(db)
    const typed = { password: 'my-secret-password', network: '203.0.113.99', deviceToken: 'made-up-token' }
    for (let i = 0; i < 5; i += 1) await signIn(quiet, { login: 'typed-into-login@example.com', ...typed })
    for (let i = 0; i < 5; i += 1) await signIn(quiet, { login: user.email, ...typed })
    expect(quiet.lines.length).toBeGreaterThan(0)
    // What an administrator wrote about the person stands there on purpose.
    const rows = await db.selectFrom('audit_events').selectAll().where('action', '<>', 'user.created').execute()
    expect(rows.length).toBeGreaterThan(5)
    const record = JSON.stringify(rows) + quiet.lines.join('')
    expect(record).not.toMatch(/typed-into-login|my-secret-password|203\.0\.113|made-up-token|example\.com|argon2/)
  })
})

onPostgres((open) => {
  it('checks no more than the bucket of 50 wrong passwords at once, over two pools of connections as two processes have', async () => {
    const database = await open()
    const other = await openLocation(database.location)
    try {
      const processes = [partsOf(database.db), partsOf(other.db)] as const
      const user = await create(database.db, await processes[0].passwords.hash(password))
      const wrong = Array.from({ length: 50 }, (_, i) =>
        signIn(processes[i % 2 === 0 ? 0 : 1], attempt(user.email, { password: 'another password' })),
      )
      expect(await statuses(wrong)).toEqual({ refused: 3, throttled: 47 })
      const checked = processes.map(({ passwords }) => passwords.stats().completed)
      // One of them made the hash for the account.
      expect(checked.reduce((sum, n) => sum + n, -1)).toBe(3)
      expect(await audited(database.db, user.id)).toHaveLength(3)
    } finally {
      await other.close()
    }
  })

  it('lets everybody in who knows the password, also while all their hashes are being made anew', async () => {
    const { db } = await open()
    const parts = partsOf(db, { LATCHKEY_ACCOUNT_FAILURES_BURST: '20' })
    const user = await create(db, await parts.passwords.hash(password))
    parts.passwords.useWorkFactor({ memoryKib: 19_456, timeCost: 3, parallelism: 1 })
    const right = Array.from({ length: 12 }, () => signIn(parts, attempt(user.email)))
    expect(await statuses(right)).toEqual({ 'signed-in': 12 })
    expect((await findCredentials(db, user.email))?.passwordHash).toContain('t=3')
    const rehashed = await db
      .selectFrom('audit_events')
      .select('id')
      .where('action', '=', 'user.password-rehashed')
      .execute()
    expect(rehashed).toHaveLength(1)
  })
})
