import { base64url, compactVerify, createLocalJWKSet, calculateJwkThumbprint } from 'jose'
import { describe, expect, it, vi } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import type { Changes } from '../../src/database/changes.ts'
import type { Database } from '../../src/database/database.ts'
import { openKeyRing, type KeyRing } from '../../src/signing/key-ring.ts'
import { revokeKey, rotateKeys } from '../../src/signing/rotation.ts'
import { openSigningKey, prepareSigningKey } from '../../src/signing/signing-key.ts'
import { emptiedEachTime, eachDatabase, onPostgres } from '../support/databases.ts'
import {
  encryptionUnder,
  kidsByState,
  listenTo,
  openOtherHandle,
  openTestKeyRing,
  rotationConfig,
  silent,
  until,
} from './rings.ts'

async function rotateNow({ db }: Pick<Database, 'db'>, encryption = encryptionUnder('1')) {
  const fresh = await prepareSigningKey({ encryption, rsaBits: 2048 })
  return db
    .transaction()
    .execute((trx) => rotateKeys(trx, systemActor, { fresh, publishAheadSeconds: 3_600, now: true }))
}

async function revokeNow({ db }: Pick<Database, 'db'>, kid: string, encryption = encryptionUnder('1')) {
  const fresh = await prepareSigningKey({ encryption, rsaBits: 2048 })
  return db.transaction().execute((trx) => revokeKey(trx, systemActor, { kid, reason: 'leaked', fresh }))
}

const kids = (ring: KeyRing) => ring.publicJwks().keys.map(({ kid }) => kid)
const signingKid = (ring: KeyRing) => ring.signers()[0]?.publicJwk.kid

async function signWith(ring: KeyRing): Promise<string> {
  const [signer] = ring.signers()
  if (signer === undefined) throw new Error('the ring has no key')
  const { alg, kid } = signer.publicJwk
  const input = `${base64url.encode(JSON.stringify({ alg, kid }))}.${base64url.encode('hello')}`
  return `${input}.${base64url.encode(await signer.sign(Buffer.from(input)))}`
}

eachDatabase((openNew) => {
  const open = emptiedEachTime(openNew)
  describe('opening the ring', () => {
    it('refuses a sealed key that was altered', async () => {
      const database = await open()
      await openTestKeyRing(database)
      const [row] = await database.db.selectFrom('signing_keys').select(['kid', 'sealed_private_jwk']).execute()
      const altered = Buffer.from(row?.sealed_private_jwk ?? Buffer.alloc(0))
      altered[altered.length - 1] = (altered.at(-1) ?? 0) ^ 1
      await database.db
        .updateTable('signing_keys')
        .set({ sealed_private_jwk: altered })
        .where('kid', '=', row?.kid ?? '')
        .execute()
      await expect(openTestKeyRing(database)).rejects.toThrow(`The row '${row?.kid}' (signing-key) does not open`)
    })

    it('refuses the sealed key of another row', async () => {
      const database = await open()
      const ring = await openTestKeyRing(database)
      const [current = '', next = ''] = kids(ring)
      await database.db
        .updateTable('signing_keys')
        .set((eb) => ({
          sealed_private_jwk: eb.selectFrom('signing_keys').select('sealed_private_jwk').where('kid', '=', next),
        }))
        .where('kid', '=', current)
        .execute()
      await expect(openTestKeyRing(database)).rejects.toThrow(`The row '${current}' (signing-key) does not open`)
    })

    it('refuses to open without the key-encryption key, and makes no keys instead', async () => {
      const database = await open()
      await openTestKeyRing(database, { encryption: encryptionUnder('old') })
      const before = await kidsByState(database)
      await expect(openTestKeyRing(database, { encryption: encryptionUnder('new') })).rejects.toThrow(
        "the key-encryption key 'old', which is not known here",
      )
      expect(await kidsByState(database)).toEqual(before)
    })

    it('does not publish a public key that somebody wrote into the database', async () => {
      const database = await open()
      const before = (await openTestKeyRing(database)).publicJwks()
      const strange = await prepareSigningKey({ encryption: encryptionUnder('x'), rsaBits: 2048 })
      await database.db
        .updateTable('signing_keys')
        .set({ public_jwk: JSON.stringify(strange.publicJwk) })
        .execute()
      expect((await openTestKeyRing(database)).publicJwks()).toEqual(before)
    })

    it('makes a key that signs and one that waits at the first start, and finds them at the second', async () => {
      const database = await open()
      const ring = await openTestKeyRing(database)
      const { current, next } = await kidsByState(database)
      expect(kids(ring)).toEqual([...current, ...next])
      expect(kids(ring)).toHaveLength(2)
      expect(kids(await openTestKeyRing(database))).toEqual(kids(ring))
      for (const jwk of ring.publicJwks().keys) {
        expect(Object.keys(jwk).sort()).toEqual(['alg', 'e', 'kid', 'kty', 'n', 'use'])
        expect(jwk.kid).toBe(await calculateJwkThumbprint({ ...jwk }))
      }
      const audit = await database.db.selectFrom('audit_events').select('details').orderBy('id').execute()
      expect(audit.map(({ details }) => details)).toMatchObject([
        { after: { state: 'current' } },
        { after: { state: 'next' } },
      ])
    })

    it('signs what the published keys verify, and knows no other kid', async () => {
      const database = await open()
      const ring = await openTestKeyRing(database)
      const token = await signWith(ring)
      const published = createLocalJWKSet({ keys: ring.publicJwks().keys.map((jwk) => ({ ...jwk })) })
      expect(Buffer.from((await compactVerify(token, published)).payload).toString()).toBe('hello')
      const verificationKey = ring.verificationKey(signingKid(ring) ?? '')
      if (verificationKey === undefined) throw new Error('the ring does not know its own key')
      expect(verificationKey.type).toBe('public')
      await expect(compactVerify(token, verificationKey)).resolves.toBeDefined()
      expect(ring.verificationKey('unknown')).toBeUndefined()
    })

    it('leaves no private number readable in the database', async () => {
      const database = await open()
      await openTestKeyRing(database)
      const rows = await database.db.selectFrom('signing_keys').selectAll().execute()
      expect(rows).toHaveLength(2)
      for (const { kid, public_jwk, sealed_private_jwk: sealed } of rows) {
        const { privateKey } = await openSigningKey(encryptionUnder('1'), kid, sealed ?? Buffer.alloc(0))
        const { d, p } = privateKey.export({ format: 'jwk' })
        const text = `${JSON.stringify(public_jwk)}${Buffer.from(sealed ?? []).toString('latin1')}`
        expect(text.length).toBeGreaterThan(1_000)
        expect(text).not.toContain(d)
        expect(text).not.toContain(p)
      }
    })
  })

  describe('an open ring', () => {
    it('takes up a rotation made elsewhere within a second, and keeps the keys that stay', async () => {
      const database = await open()
      const other = await openOtherHandle(database)
      const ring = await openTestKeyRing(database)
      const [wasCurrent = '', wasNext = ''] = kids(ring)
      const wasNextKey = ring.verificationKey(wasNext)
      const heard: (string | undefined)[] = []
      ring.onChange(() => heard.push(signingKid(ring)))

      const rotated = await rotateNow(other)
      expect(await until(() => signingKid(ring) === wasNext)).toBeLessThan(1_000)
      expect(kids(ring)).toEqual([wasNext, rotated.next, wasCurrent])
      expect(ring.verificationKey(wasNext)).toBe(wasNextKey)
      expect(heard).toEqual([wasNext])
    })

    it('publishes a revoked key no more within a second, and signs with the next', async () => {
      const database = await open()
      const other = await openOtherHandle(database)
      const ring = await openTestKeyRing(database)
      const [wasCurrent = '', wasNext = ''] = kids(ring)
      await revokeNow(other, wasCurrent)
      expect(await until(() => !kids(ring).includes(wasCurrent))).toBeLessThan(1_000)
      expect(signingKid(ring)).toBe(wasNext)
      expect(ring.verificationKey(wasCurrent)).toBeUndefined()
    })

    it('goes on with a published key when the new one cannot be opened here, but never with a revoked one', async () => {
      const database = await open()
      const ring = await openTestKeyRing(database)
      const [first = '', second = ''] = kids(ring)
      // Another process seals under a key that this one has not been given: `second` signs, then a strange key.
      await rotateNow(database, encryptionUnder('2'))
      await until(() => signingKid(ring) === second)
      const { current: strange } = await rotateNow(database, encryptionUnder('2'))
      await rotateNow(database, encryptionUnder('2'))
      await revokeNow(database, first, encryptionUnder('2'))
      await until(() => !kids(ring).includes(first))
      expect(kids(ring)).toEqual([second])
      expect(kids(ring)).not.toContain(strange)
      await revokeNow(database, second, encryptionUnder('2'))
      await until(() => kids(ring).length === 0)
      expect(() => ring.signers()).toThrow('No signing key can be opened')
    })

    it('goes on when one of its listeners fails', async () => {
      const database = await open()
      const ring = await openTestKeyRing(database)
      let heard = 0
      ring.onChange(() => {
        throw new Error('a listener with a fault')
      })
      ring.onChange(() => (heard += 1))
      await rotateNow(database)
      await until(() => heard === 1)
      const { current } = await rotateNow(database)
      await until(() => heard === 2)
      expect(signingKid(ring)).toBe(current)
    })

    it('tells nobody who no longer listens, and nobody once it is closed', async () => {
      const database = await open()
      const ring = await openTestKeyRing(database)
      const other = await openTestKeyRing(database)
      const heard: string[] = []
      ring.onChange(() => heard.push('left'))()
      ring.onChange(() => heard.push('closed'))
      await ring.close()
      const before = signingKid(ring)
      await rotateNow(database)
      await until(() => signingKid(other) !== before)
      expect(signingKid(ring)).toBe(before)
      expect(heard).toEqual([])
    })

    it('finds a rotation by itself when no announcement reaches it', async () => {
      const database = await open()
      const deaf: Changes = { on: () => () => undefined, isFresh: () => true, close: async () => undefined }
      vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] })
      try {
        const encryption = encryptionUnder('1')
        const ring = await openKeyRing({ database, changes: deaf, encryption, config: rotationConfig, log: silent })
        const before = signingKid(ring)
        await rotateNow(database)
        expect(signingKid(ring)).toBe(before)
        vi.advanceTimersByTime(30_000)
        await until(() => signingKid(ring) !== before)
        await ring.close()
      } finally {
        vi.useRealTimers()
      }
    })
  })
})

onPostgres((open) => {
  it('makes one set of keys when eight processes start at once', async () => {
    const database = await open()
    const handles = await Promise.all(Array.from({ length: 8 }, () => openOtherHandle(database)))
    const changes = await listenTo(database)
    const rings = await Promise.all(
      handles.map((handle) =>
        openKeyRing({
          database: handle,
          changes,
          encryption: encryptionUnder('1'),
          config: rotationConfig,
          log: silent,
        }),
      ),
    )
    await Promise.all(rings.map((ring) => ring.close()))
    expect(new Set(rings.map((ring) => kids(ring).join(' '))).size).toBe(1)
    const { current, next, ...others } = await kidsByState(database)
    expect([current.length, next.length]).toEqual([1, 1])
    expect(others).toEqual({ retiring: [], retired: [], revoked: [] })
  })
})
