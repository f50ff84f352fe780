import { sql } from 'kysely'
import { beforeAll, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import type { Db } from '../../src/database/database.ts'
import { findKnownDevice, rememberDevice, type KnownDevice } from '../../src/login/known-devices.ts'
import { createUser, type User } from '../../src/users/users.ts'
import { eachDatabase } from '../support/databases.ts'

eachDatabase((open) => {
  let db: Db
  let alice: User
  let bob: User
  beforeAll(async () => {
    db = (await open()).db
    ;[alice, bob] = await db
      .transaction()
      .execute(async (trx) => [
        await createUser(trx, systemActor, { email: 'alice@example.com' }),
        await createUser(trx, systemActor, { email: 'bob@example.com' }),
      ])
  })
  const remember = (user: User, known?: KnownDevice) =>
    db.transaction().execute((trx) => rememberDevice(trx, { userId: user.id, known }))

  it('does not know a device by a made-up, missing or malformed token', async () => {
    const token = (await remember(alice)) ?? ''
    for (const forged of [undefined, '', 'x', 'A'.repeat(43), `${token} `, token.toLowerCase(), `${token}${token}`]) {
      expect(await findKnownDevice(db, forged, alice.email)).toBeUndefined()
    }
    expect(await findKnownDevice(db, token, alice.email)).toMatchObject({ userId: alice.id })
  })

  it("does not take one person's device for another's", async () => {
    const token = await remember(alice)
    expect(await findKnownDevice(db, token, bob.email)).toBeUndefined()
    expect(await findKnownDevice(db, token, 'nobody@example.com')).toBeUndefined()
    const known = await findKnownDevice(db, token, ' ALICE@example.com')
    expect(known).toMatchObject({ userId: alice.id })
    // Bob signs in on it: he gets a token of his own.
    expect(await remember(bob, known)).toMatch(/^[\w-]{43}$/)
  })

  it('forgets a device that has been away too long', async () => {
    const token = await remember(alice)
    await sql`UPDATE known_devices SET expires_at = now() - interval '1 second' WHERE user_id = ${alice.id}`.execute(db)
    expect(await findKnownDevice(db, token, alice.email)).toBeUndefined()
  })

  it('keeps a device known from its last sign-in on, under the token it has', async () => {
    const token = await remember(alice)
    await sql`UPDATE known_devices SET expires_at = now() + interval '1 minute' WHERE user_id = ${alice.id}`.execute(db)
    const known = await findKnownDevice(db, token, alice.email)
    expect(await remember(alice, known)).toBeUndefined()
    const { expires_at } = await db
      .selectFrom('known_devices')
      .select('expires_at')
      .where('id', '=', known?.id ?? '')
      .executeTakeFirstOrThrow()
    expect(expires_at.getTime()).toBeGreaterThan(Date.now() + 179 * 86_400_000)
  })

  it('remembers the twenty of one person that came last', async () => {
    const tokens: (string | undefined)[] = []
    for (let i = 0; i < 22; i += 1) tokens.push(await remember(bob))
    const known = await Promise.all(tokens.map((token) => findKnownDevice(db, token, bob.email)))
    expect(known.map((device) => device !== undefined)).toEqual([
      false,
      false,
      ...Array.from({ length: 20 }, () => true),
    ])
  })

  it('keeps no token that opens anything', async () => {
    const token = (await remember(alice)) ?? ''
    const rows = await db.selectFrom('known_devices').selectAll().execute()
    expect(JSON.stringify(rows)).not.toContain(token)
  })
})
