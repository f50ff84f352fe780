/** Both ends of the wire: what the provider sends, the guard understands. */
import { setTimeout as sleep } from 'node:timers/promises'
import { createGuard, GuardError, type Guard } from '@latchkey/guard'
import { decodeJwt, decodeProtectedHeader } from 'jose'
import { beforeAll, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import type { Db } from '../../src/database/database.ts'
import { revokeEverythingOfClient } from '../../src/oauth/clients.ts'
import { revoke, type Revocation } from '../../src/revocation/revocations.ts'
import { eachDatabase } from '../support/databases.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { isActive, registerClient } from '../support/relying-party.ts'
import { obtainTokens, postForm } from '../support/user-agent.ts'
import { caep, Receiver, registerReceiver, type ReceiverClient } from './receiving.ts'

eachDatabase((_open, engine) => {
  let provider: TestProvider
  let db: Db
  let guard: Guard
  let client: ReceiverClient

  const outcome = async (token: string): Promise<string> => {
    const request = new Request('http://localhost/', { headers: { authorization: `Bearer ${token}` } })
    return guard.authenticate(request).then(
      () => 'let in',
      (error: unknown) => (error instanceof GuardError ? error.reason : String(error)),
    )
  }
  const ofPerson = async () => {
    const { body } = await obtainTokens(provider.issuer, provider.demo)
    return body.access_token ?? ''
  }
  const ofMachine = async () => {
    const { body } = await postForm(`${provider.issuer}/token`, provider.demo.clients.service, {
      grant_type: 'client_credentials',
      resource: provider.demo.resource,
    })
    return body.access_token ?? ''
  }

  beforeAll(async () => {
    provider = await openProvider(engine)
    db = provider.database.db
    // Before the guard is there.
    await db.transaction().execute((trx) => revoke(trx, { kind: 'session', subject: 'earlier', reason: 'signed out' }))
    client = await registerReceiver(db, provider.issuer)
    const { client_id: clientId, client_secret: clientSecret } = client
    guard = createGuard({
      issuer: provider.issuer,
      audience: provider.demo.resource,
      revocation: { clientId, clientSecret, onStale: 'deny' },
    })
    return () => guard.close()
  })

  it('a guard catches up when it starts', async () => {
    expect(await outcome(await ofMachine())).toBe('let in')
    expect(guard.health()).toMatchObject({
      status: 'ok',
      revocation: { status: 'current', caughtUp: true, entries: 1 },
    })
  })

  it('what a client gets for itself right after its revocation is good, and what it had is not', async () => {
    const client = await registerClient(provider, { type: 'machine' })
    const { client_id: id } = client
    const get = async () => {
      const { body } = await postForm(`${provider.issuer}/token`, client, {
        grant_type: 'client_credentials',
        resource: provider.demo.resource,
      })
      return body.access_token ?? ''
    }
    const versionOf = (token: string) => decodeJwt(token)['token_version'] as number
    for (let n = 0; n < 3; n += 1) {
      const had = await get()
      expect(await outcome(had)).toBe('let in')
      await db.transaction().execute((trx) => revokeEverythingOfClient(trx, systemActor, { id, reason: 'a test' }))
      // The provider's own copy of the client is some milliseconds behind.
      let has = await get()
      while (versionOf(has) === versionOf(had)) has = await get()
      await expect.poll(() => outcome(had)).toBe('revoked')
      expect(await outcome(has)).toBe('let in')
      expect([await isActive(provider, client, had), await isActive(provider, client, has)]).toEqual([false, true])
    }
  })

  // PGlite has one connection: nothing is issued beside a transaction there.
  it.runIf(engine === 'postgres')(
    'what a client gets for itself while it is being revoked is dead once it is, however long that takes',
    async () => {
      const client = await registerClient(provider, { type: 'machine' })
      const late = await db.transaction().execute(async (trx) => {
        await revokeEverythingOfClient(trx, systemActor, { id: client.client_id, reason: 'a test' })
        // The time of issue counts whole seconds.
        await sleep(2_100)
        const { body } = await postForm(`${provider.issuer}/token`, client, {
          grant_type: 'client_credentials',
          resource: provider.demo.resource,
        })
        return body.access_token ?? ''
      })
      await expect.poll(() => outcome(late)).toBe('revoked')
      expect(await isActive(provider, client, late)).toBe(false)
    },
  )

  it.each(['paused', 'disabled'])(
    'a guard whose stream is %s opens another, and misses nothing of what is revoked meanwhile',
    async (status) => {
      expect(await outcome(await ofMachine())).toBe('let in')
      const { streamId } = guard.health().revocation ?? {}
      expect(streamId).toMatch(/./)
      const colleague = await new Receiver(provider.issuer, client).signIn()
      const token = await ofMachine()
      const { status: answered } = await colleague.request('POST', '/ssf/status', { stream_id: streamId, status })
      expect(answered).toBe(200)
      const { jti = '' } = decodeJwt(token)
      await db.transaction().execute((trx) => revoke(trx, { kind: 'token', subject: jti, reason: 'a test' }))
      await expect.poll(() => outcome(token), { timeout: 10_000 }).toBe('revoked')
      expect(guard.health()).toMatchObject({ status: 'ok', revocation: { status: 'current' } })
      expect(guard.health()).not.toMatchObject({ revocation: { streamId } })
    },
  )

  it.each([
    ['of nothing', 'token', []],
    ['of sessions alone', 'user', [`${caep}session-revoked`]],
  ] as const)(
    'a guard whose stream tells %s from now on opens another before it takes silence for good news',
    async (_what, kind, events) => {
      const token = await ofPerson()
      expect(await outcome(token)).toBe('let in')
      const { streamId } = guard.health().revocation ?? {}
      const colleague = await new Receiver(provider.issuer, client).signIn()
      const narrowed = await colleague.request('PATCH', '/ssf/streams', {
        stream_id: streamId,
        events_requested: events,
      })
      expect(narrowed.status).toBe(200)
      const { jti = '', sub = '', token_version: version } = decodeJwt<{ token_version: number }>(token)
      const cause = 'password-change'
      const revocation: Revocation =
        kind === 'token'
          ? { kind, subject: jti, reason: 'a test' }
          : { kind, subject: sub, tokenVersion: version + 1, cause, reason: 'a test' }
      await db.transaction().execute((trx) => revoke(trx, revocation))
      await expect.poll(() => outcome(token), { timeout: 10_000 }).toBe('revoked')
      expect(guard.health()).toMatchObject({ status: 'ok', revocation: { status: 'current' } })
      expect(guard.health()).not.toMatchObject({ revocation: { streamId } })
    },
  )

  type Claims = Record<'jti' | 'sub' | 'client_id' | 'sid' | 'grant_id', string> & { token_version: number }
  const forms: [string, () => Promise<string>, (claims: Claims, kid: string) => Omit<Revocation, 'reason'>][] = [
    ['itself', ofPerson, ({ jti }) => ({ kind: 'token', subject: jti })],
    ['its session', ofPerson, ({ sid }) => ({ kind: 'session', subject: sid })],
    ['its family', ofPerson, ({ grant_id }) => ({ kind: 'grant', subject: grant_id })],
    [
      'its person',
      ofPerson,
      ({ sub, token_version }) => ({ kind: 'user', subject: sub, tokenVersion: token_version + 1 }),
    ],
    [
      'a role of its person',
      ofPerson,
      ({ sub, token_version }) => ({
        kind: 'user',
        subject: sub,
        tokenVersion: token_version + 1,
        cause: 'claims-change',
      }),
    ],
    [
      'its client',
      ofMachine,
      ({ client_id, token_version }) => ({ kind: 'client', subject: client_id, tokenVersion: token_version + 1 }),
    ],
    // The last, as everything is signed with it.
    ['its key', ofPerson, (_claims, kid) => ({ kind: 'key', subject: kid })],
  ]

  it.each(forms)(
    'a token is refused within a second when %s is revoked, and was let in before',
    async (_what, get, of) => {
      // What was revoked for the test before was another version.
      await db
        .updateTable('users')
        .set({ token_version: 10 + (versions += 1) * 10 })
        .execute()
      const token = await get()
      expect(await outcome(token)).toBe('let in')
      const revocation = of(decodeJwt(token) as unknown as Claims, decodeProtectedHeader(token).kid ?? '')
      const revokedAt = performance.now()
      await db.transaction().execute((trx) => revoke(trx, { reason: 'a test', ...revocation } as Revocation))
      while ((await outcome(token)) === 'let in' && performance.now() - revokedAt < 5_000) await sleep(5)
      expect(performance.now() - revokedAt).toBeLessThan(1_000)
      expect(await outcome(token)).toBe('revoked')
    },
  )
})

let versions = 0
