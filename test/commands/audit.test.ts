import { createHash } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import type { AuditEventDescription } from '../../src/audit/audit-log.ts'
import { sealAll } from '../audit/chains.ts'
import { createDatabase, eachDatabase, openLocation, type TestDatabase } from '../support/databases.ts'
import { startServer } from '../support/server-process.ts'
import { json, latchkey, latchkeyProcess } from './running.ts'

const someHash = createHash('sha256').update('x').digest('hex')

/** On a machine that may be busy. */
const processes = { timeout: 120_000 }

eachDatabase((open) => {
  describe('latchkey audit', () => {
    let database: TestDatabase
    beforeAll(async () => {
      database = await open()
      await latchkey(database, ['roles', 'create', 'editor'])
      await latchkey(database, ['roles', 'create', 'reader'])
      await sealAll(database.db)
    })
    const audit = (...args: string[]) => latchkey(database, ['audit', ...args])

    it('refuses a command line that it does not understand', async () => {
      const wrong: [string[], RegExp][] = [
        [['verify', '--from', '0'], /--from must be 1 or more/],
        [['verify', '--from', 'x'], /--from must be a whole number/],
        [['verify', '--expect-head', '1'], /--expect-head must be what/],
        [['verify', '--expect-head', `1:${someHash.toUpperCase()}`], /--expect-head must be what/],
        [['verify', '--from', '2', '--expect-head', `1:${someHash}`], /--expect-head is before --from/],
        [['list', '--since', 'yesterday'], /--since must be a time/],
        [['list', '--since', '2026-02-30T99:00:00Z'], /--since must be a time/],
        [['list', '--limit', 'all'], /--limit must be a whole number/],
      ]
      for (const [args, message] of wrong) {
        expect({ args, ...(await audit(...args)) }).toEqual({
          args,
          exitCode: 2,
          out: '',
          err: expect.stringMatching(message),
        })
      }
    })

    it('verify ends with 1 and names the row that was changed', async () => {
      await sql`UPDATE audit_events SET actor_id = 'eve' WHERE sequence = 2`.execute(database.db)
      const ran = await audit('verify', '--no-seal')
      expect(ran).toEqual({
        exitCode: 1,
        out: '',
        err: expect.stringMatching(/not sound\. changed: sequence 2, id \d+/),
      })
      const asJson = await audit('verify', '--no-seal', '--json')
      expect(asJson).toMatchObject({ exitCode: 1, err: '' })
      expect(JSON.parse(asJson.out)).toMatchObject({ sound: false, problem: { kind: 'changed', sequence: 2 } })
      await sql`UPDATE audit_events SET actor_id = 'ada' WHERE sequence = 2`.execute(database.db)
    })

    it('verify ends with 1 when the head is not one that the provider sealed', async () => {
      // No server has made its secrets here: whoever sealed this, it was none.
      const ran = await audit('verify')
      expect(ran).toMatchObject({ exitCode: 1, err: expect.stringMatching(/head: sequence 2: .*not sealed by/) })
    })

    it('verify says how many rows are sound and where the record ends, as head does', async () => {
      const { out: head } = await audit('head')
      expect(head).toMatch(/^2:[0-9a-f]{64}$/)
      const found = await json<{ sequence: number; hash: string; sealed_at: string }>(database, ['audit', 'head'])
      expect(`${found.sequence}:${found.hash}`).toBe(head)
      expect(await audit('verify', '--no-seal', '--expect-head', head)).toEqual({
        exitCode: 0,
        out: `2 rows are as sealed. The head is ${head}`,
        err: '',
      })
      expect(await json(database, ['audit', 'verify', '--no-seal', '--from', '2'])).toEqual({
        sound: true,
        count: 1,
        head,
        seal_checked: false,
      })
    })

    it('verify ends with 1 when a head that was noted is not there', async () => {
      for (const head of [`2:${someHash}`, `3:${someHash}`]) {
        expect(await audit('verify', '--no-seal', '--expect-head', head)).toMatchObject({ exitCode: 1, out: '' })
      }
    })

    it('list prints what was done, the newest first', async () => {
      const { exitCode, out } = await audit('list')
      const lines = out.split('\n')
      expect({ exitCode, lines: lines.length }).toEqual({ exitCode: 0, lines: 3 })
      expect(lines[0]).toMatch(/^SEQUENCE +TIME +ACTOR +ACTION +TARGET +DETAILS$/)
      expect(lines[1]).toMatch(/^2 +\S+Z +operator ada +role\.created +role reader +\{/)
      const events = await json<AuditEventDescription[]>(database, ['audit', 'list', '--limit', '1'])
      expect(events).toMatchObject([{ action: 'role.created', target: { type: 'role', id: 'reader' }, sequence: 2 }])
    })

    it('list filters', async () => {
      const targets = async (...args: string[]) =>
        (await json<AuditEventDescription[]>(database, ['audit', 'list', ...args])).map(({ target }) => target.id)
      expect(await targets('--actor', 'ada', '--action', 'role.created', '--since', '1h')).toEqual(['reader', 'editor'])
      expect(await targets('--target', 'editor')).toEqual(['editor'])
      expect(await targets('--actor', 'eve')).toEqual([])
      expect(await targets('--action', 'role.deleted')).toEqual([])
      expect(await targets('--since', '2999-01-01')).toEqual([])
      expect((await audit('list', '--actor', 'eve')).out).toBe('')
    })
  })
})

it('a running server seals what is done, and verify finds what is done behind its back', processes, async () => {
  const location = await createDatabase('pglite')
  const environment = {
    LATCHKEY_DATA_DIR: location.dataDir,
    LATCHKEY_KEYS_DIR: `${location.dataDir}-keys`,
  }
  onTestFinished(() => rm(environment.LATCHKEY_KEYS_DIR, { recursive: true }))
  const server = await startServer({ database: location, environment })
  const run = (...args: string[]) => latchkeyProcess(args, { environment })
  expect(await run('roles', 'create', 'editor')).toMatchObject({ exitCode: 0 })
  await sleep(1_000)
  expect(await run('audit', 'verify')).toMatchObject({ exitCode: 0, err: '' })
  await server.stop()
  expect(server.stdout()).toContain('"audit_head":"')

  const opened = await openLocation(location)
  const { sequence } = await opened.db
    .deleteFrom('audit_events')
    .where('target_id', '=', 'editor')
    .returning('sequence')
    .executeTakeFirstOrThrow()
  await opened.close()
  const found = await run('audit', 'verify')
  expect(found).toMatchObject({ exitCode: 1, out: '' })
  expect(found.err).toContain(`missing: sequence ${sequence}: it is missing.`)
})
