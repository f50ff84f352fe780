import { randomBytes } from 'node:crypto'
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import { readCursor, writeCursor } from '../../src/http/cursor.ts'
import { Problem } from '../../src/problems.ts'
import { signer } from '../../src/signing/sealing.ts'
import { rotateSecret } from '../../src/signing/secret-ring.ts'
import { encryptionUnder, openTestSecretRing, until } from '../signing/rings.ts'
import { eachDatabase } from '../support/databases.ts'

function ringOf(...secrets: Buffer[]) {
  return { current: () => secrets[0] ?? Buffer.alloc(0), all: () => secrets }
}

const secret = randomBytes(32)
const ours = signer(ringOf(secret), 'cursors')
const context = ['users', '/v1/users', [['created_at', true]], [['is_active', true]], null]
const position = ['2026-01-31T00:00:00.000001Z', null, 'usr_1']

function isRefused(run: () => unknown): boolean {
  try {
    run()
    return false
  } catch (error) {
    if (!(error instanceof Problem)) throw error
    expect(error.code).toBe('VALIDATION_ERROR')
    expect(error.details).toEqual([
      {
        field: 'cursor',
        constraint: 'unknown',
        message: 'Not a cursor of this list with this sort and these filters: start again without it',
      },
    ])
    return true
  }
}

describe('a cursor is refused', () => {
  it('when any of its characters was changed, left out or added', () => {
    const cursor = writeCursor(ours, context, position)
    const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'.split('')
    fc.assert(
      fc.property(fc.nat(cursor.length - 1), fc.constantFrom(...alphabet), (at, letter) => {
        fc.pre(cursor[at] !== letter)
        expect(isRefused(() => readCursor(ours, context, cursor.slice(0, at) + letter + cursor.slice(at + 1)))).toBe(
          true,
        )
        expect(isRefused(() => readCursor(ours, context, cursor.slice(0, at)))).toBe(true)
        expect(isRefused(() => readCursor(ours, context, cursor.slice(0, at) + letter + cursor.slice(at)))).toBe(true)
      }),
      { numRuns: 300 },
    )
  })

  it.each([
    ['another list', ['clients', ...context.slice(1)]],
    ['another address', ['users', '/v1/roles/x/users', ...context.slice(2)]],
    ['another sort', ['users', '/v1/users', [['created_at', false]], ...context.slice(3)]],
    ['other filters', [...context.slice(0, 3), [['is_active', false]], null]],
    ['fewer filters', [...context.slice(0, 3), [], null]],
    ['another caller', [...context.slice(0, 4), 'usr_1']],
  ])('for %s', (_what, other) => {
    const cursor = writeCursor(ours, context, position)
    expect(isRefused(() => readCursor(ours, other, cursor))).toBe(true)
  })

  it('when another secret signed it, whatever it is made of', () => {
    const theirs = signer(ringOf(randomBytes(32)), 'cursors')
    expect(isRefused(() => readCursor(ours, context, writeCursor(theirs, context, position)))).toBe(true)
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 100 }), (bytes) => {
        expect(isRefused(() => readCursor(ours, context, Buffer.from(bytes).toString('base64url')))).toBe(true)
      }),
    )
    expect(isRefused(() => readCursor(ours, context, 'eyJ1c2VyX2lkIjo1MH0='))).toBe(true)
  })

  it('of a version that is not known', () => {
    const bytes = Buffer.from(writeCursor(ours, context, position), 'base64url')
    bytes[0] = 2
    expect(isRefused(() => readCursor(ours, context, bytes.toString('base64url')))).toBe(true)
  })
})

describe('a cursor', () => {
  it('gives back whatever text it was made of', () => {
    const text = fc.option(fc.string({ unit: 'binary', maxLength: 200 }))
    fc.assert(
      fc.property(fc.array(text, { minLength: 1, maxLength: 4 }), (position) => {
        const cursor = writeCursor(ours, context, position)
        expect(cursor).toMatch(/^[\w-]+$/)
        expect(readCursor(ours, context, cursor)).toEqual(position)
      }),
    )
  })

  it('that would be too long is a mistake of ours, not of the caller', () => {
    expect(() => writeCursor(ours, context, ['x'.repeat(5_000)])).toThrow('too long for a cursor')
  })
})

eachDatabase((open) => {
  it('a cursor lives through a new secret for as long as the old one is accepted, in every process', async () => {
    const database = await open()
    const [ring, other] = [await openTestSecretRing(database), await openTestSecretRing(database)]
    const [here, there] = [signer(ring, 'cursors'), signer(other, 'cursors')]
    const cursor = writeCursor(here, context, position)
    expect(readCursor(there, context, cursor)).toEqual(position)

    const rotate = (acceptOldForSeconds: number) =>
      database.db
        .transaction()
        .execute((trx) =>
          rotateSecret(trx, systemActor, { purpose: 'cursors', acceptOldForSeconds, encryption: encryptionUnder('1') }),
        )
    await rotate(3_600)
    await until(() => ring.all('cursors').length === 2 && other.all('cursors').length === 2)
    expect(readCursor(there, context, cursor)).toEqual(position)
    expect(writeCursor(here, context, position)).not.toBe(cursor)
    await rotate(0)
    await until(() => ring.all('cursors').length === 1)
    expect(isRefused(() => readCursor(here, context, cursor))).toBe(true)
  })
})
