import { randomBytes } from 'node:crypto'
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import { sealer, signer } from '../../src/signing/sealing.ts'
import { rotateSecret, type SecretRing } from '../../src/signing/secret-ring.ts'
import { eachDatabase } from '../support/databases.ts'
import { encryptionUnder, openTestSecretRing, until } from './rings.ts'

/** Accepts these, the first of them to seal with. */
function ringOf(...secrets: Buffer[]): Pick<SecretRing, 'current' | 'all'> {
  return { current: () => secrets[0] ?? Buffer.alloc(0), all: () => secrets }
}

const [old, present] = [randomBytes(32), randomBytes(32)]
const bytes = fc.uint8Array({ maxLength: 300 })

describe('a sealed value', () => {
  const here = sealer(ringOf(present), 'idempotency')

  it('does not open when a byte of it was changed, nor cut short', () => {
    fc.assert(
      fc.property(bytes, fc.nat(), fc.integer({ min: 1, max: 255 }), (plain, place, change) => {
        const sealed = here.seal(['caller', 'key'], plain)
        const at = place % sealed.length
        const changed = Buffer.from(sealed)
        changed[at] = (changed[at] ?? 0) ^ change
        expect(here.open(['caller', 'key'], changed)).toBeUndefined()
        expect(here.open(['caller', 'key'], sealed.subarray(0, at))).toBeUndefined()
      }),
    )
  })

  it('does not open for anything but what it was sealed for', () => {
    const sealed = here.seal(['caller', 'key'], Buffer.from('secret'))
    for (const other of [
      ['caller', 'other'],
      ['other', 'key'],
      ['callerkey'],
      ['caller', 'key', ''],
      [],
      ['key', 'caller'],
    ]) {
      expect(here.open(other, sealed)).toBeUndefined()
    }
  })

  it('does not open under another secret, nor for another purpose of the same one', () => {
    const sealed = here.seal(['row'], Buffer.from('secret'))
    expect(sealer(ringOf(old), 'idempotency').open(['row'], sealed)).toBeUndefined()
    expect(sealer(ringOf(present), 'cursors').open(['row'], sealed)).toBeUndefined()
  })

  it('opens to what it was, and is never the same twice', () => {
    fc.assert(
      fc.property(bytes, fc.array(fc.string()), (plain, boundTo) => {
        const sealed = here.seal(boundTo, plain)
        expect(here.open(boundTo, sealed)).toEqual(Buffer.from(plain))
        expect(here.open(boundTo, new Uint8Array(sealed))).toEqual(Buffer.from(plain))
        expect(here.seal(boundTo, plain).equals(sealed)).toBe(false)
      }),
    )
  })

  it('hides what it holds', () => {
    expect(here.seal(['row'], Buffer.from('client-secret')).includes('client-secret')).toBe(false)
  })
})

describe('a signature', () => {
  it('is of one text under one secret, for one purpose’s ring', () => {
    const ours = signer(ringOf(present), 'cursors')
    const signature = ours.sign('text')
    expect(signature).toHaveLength(16)
    expect(ours.verify('text', signature)).toBe(true)
    expect(ours.verify('texT', signature)).toBe(false)
    expect(ours.verify('text', signature.subarray(0, 15))).toBe(false)
    expect(ours.verify('text', Buffer.concat([signature, Buffer.of(0)]))).toBe(false)
    expect(ours.verify('text', Buffer.alloc(0))).toBe(false)
    expect(signer(ringOf(old), 'cursors').verify('text', signature)).toBe(false)
  })

  it('counts for as long as its secret is accepted', () => {
    const signature = signer(ringOf(old), 'cursors').sign('text')
    const both = signer(ringOf(present, old), 'cursors')
    expect(both.verify('text', signature)).toBe(true)
    expect(both.sign('text')).not.toEqual(signature)
  })
})

eachDatabase((open) => {
  it('what was sealed opens after a rotation for as long as the old secret is accepted, and no longer', async () => {
    const database = await open()
    const ring = await openTestSecretRing(database)
    const here = sealer(ring, 'idempotency')
    const sealed = here.seal(['row'], Buffer.from('secret'))
    const rotate = (acceptOldForSeconds: number) =>
      database.db.transaction().execute((trx) =>
        rotateSecret(trx, systemActor, {
          purpose: 'idempotency',
          acceptOldForSeconds,
          encryption: encryptionUnder('1'),
        }),
      )
    await rotate(3_600)
    await until(() => ring.all('idempotency').length === 2)
    expect(here.open(['row'], sealed)?.toString()).toBe('secret')
    await rotate(0)
    await until(() => ring.all('idempotency').length === 1)
    expect(here.open(['row'], sealed)).toBeUndefined()
  })
})
