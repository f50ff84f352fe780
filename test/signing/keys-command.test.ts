import { describe, expect, it } from 'vitest'
import type { CommandContext } from '../../src/commands/command.ts'
import { runCommand } from '../../src/commands/program.ts'
import { readConfig } from '../../src/config.ts'
import { secretPurposes } from '../../src/signing/secret-ring.ts'
import { emptiedEachTime, eachDatabase, type TestDatabase } from '../support/databases.ts'
import { encryptionUnder, kidsByState, openTestKeyRing, openTestSecretRing } from './rings.ts'

const [first, second] = ['1', '2'].map((name) => Buffer.alloc(32, Number(name)).toString('base64'))

/** Carries out `latchkey keys …`, with the key-encryption keys that the environment would hold. */
async function keys(database: TestDatabase, args: string[], keyEncryptionKeys = `one:${first}`) {
  const out: string[] = []
  const err: string[] = []
  const context: CommandContext = {
    config: readConfig({ LATCHKEY_KEY_ENCRYPTION_KEY: keyEncryptionKeys }),
    io: {
      out: (text) => void out.push(text),
      err: (text) => void err.push(text),
      stdin: async () => '',
    },
    withDatabase: (fn) => fn(database),
    actor: { type: 'operator', id: 'ada' },
    now: () => new Date(),
  }
  const exitCode = await runCommand(['keys', ...args], context)
  return { exitCode, out: out.join('\n'), err: err.join('\n') }
}

const json = ({ out }: { out: string }) => JSON.parse(out) as unknown

eachDatabase((openNew) => {
  const open = emptiedEachTime(openNew)
  describe('latchkey keys', () => {
    it('refuses a rotation before its time, and says how to do it all the same', async () => {
      const database = await open()
      const refused = await keys(database, ['rotate'])
      expect(refused).toMatchObject({ exitCode: 1, out: '' })
      expect(refused.err).toMatch(/has been published for \d+ of 86400 seconds: try again in 8\d{4} seconds.*--now/)
    })

    it('refuses a kid, a purpose, a duration or a reason that cannot be', async () => {
      const database = await open()
      expect(await keys(database, ['revoke', 'nobody'])).toMatchObject({ exitCode: 1 })
      expect(await keys(database, ['revoke', 'x', '--reason', 'x'.repeat(201)])).toMatchObject({ exitCode: 2 })
      expect(await keys(database, ['rotate-secret', 'coookies'])).toMatchObject({ exitCode: 2 })
      expect(await keys(database, ['rotate-secret', 'csrf', '--accept-old-for', '-1'])).toMatchObject({ exitCode: 2 })
      expect(await keys(database, ['rotate-secret', 'csrf', '--accept-old-for', '1h'])).toMatchObject({ exitCode: 2 })
      expect(await database.db.selectFrom('secrets').select('id').execute()).toEqual([])
    })

    it('refuses to reseal what it cannot open, and names the key that is missing', async () => {
      const database = await open()
      await openTestKeyRing(database, { encryption: encryptionUnder('gone') })
      const refused = await keys(database, ['reseal'])
      expect(refused).toMatchObject({ exitCode: 1, out: '' })
      expect(refused.err).toContain("the key-encryption key 'gone'")
    })

    it('rotates, lists and revokes', async () => {
      const database = await open()
      expect(await keys(database, ['list'])).toEqual({ exitCode: 0, out: '', err: '' })
      const rotated = await keys(database, ['rotate', '--now', '--json'])
      expect(rotated.exitCode).toBe(0)
      expect(rotated.err).toContain('must fetch it anew')
      const { current, next, retiring } = await kidsByState(database)
      expect(json(rotated)).toEqual({ current: current[0], next: next[0], retiring: retiring[0], early: true })

      const listed = json(await keys(database, ['list', '--json'])) as Record<string, unknown>[]
      expect(listed.map(({ kid, state, sealed_under }) => ({ kid, state, sealed_under }))).toEqual([
        { kid: next[0], state: 'next', sealed_under: 'one' },
        { kid: current[0], state: 'current', sealed_under: 'one' },
        { kid: retiring[0], state: 'retiring', sealed_under: 'one' },
      ])
      expect((await keys(database, ['list'])).out.split('\n')).toHaveLength(4)

      const revoked = await keys(database, ['revoke', current[0] ?? '', '--reason', 'lost', '--json'])
      expect(json(revoked)).toEqual({ kid: current[0], changed: true, promoted: next[0] })
      expect((await keys(database, ['revoke', current[0] ?? ''])).out).toBe(`${current[0]} was revoked before`)
      expect(await kidsByState(database)).toMatchObject({ current: next, revoked: current })
    })

    it('replaces the key-encryption key', async () => {
      const database = await open()
      await keys(database, ['rotate', '--now'])
      await keys(database, ['rotate-secret', 'csrf'])
      const resealed = await keys(database, ['reseal', '--json'], `two:${second},one:${first}`)
      expect(json(resealed)).toEqual({ key_id: 'two', resealed: 4, unchanged: 0 })
      expect((await keys(database, ['reseal'], `two:${second}`)).out).toBe(
        "0 rows sealed anew under 'two'; 4 were already",
      )
    })

    it('mends a database whose key-encryption key was lost, as the README of the keys folder says', async () => {
      const database = await open()
      await openTestKeyRing(database, { encryption: encryptionUnder('lost') })
      await openTestSecretRing(database, { encryption: encryptionUnder('lost') })
      const before = await kidsByState(database)
      for (const kid of [...before.next, ...before.current]) await keys(database, ['revoke', kid])
      for (const purpose of secretPurposes) {
        await keys(database, ['rotate-secret', purpose, '--accept-old-for', '0'])
      }
      expect(await keys(database, ['reseal', '--json'])).toMatchObject({ exitCode: 0 })
      const after = await kidsByState(database)
      expect([after.current.length, after.next.length, after.revoked.length]).toEqual([1, 1, 2])
    })
  })
})
