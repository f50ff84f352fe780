import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { promisify } from 'node:util'
import * as fc from 'fast-check'
import { sql } from 'kysely'
import { pino } from 'pino'
import { beforeAll, describe, expect, it } from 'vitest'
import { z } from 'zod'
import type { Db } from '../../src/database/database.ts'
import { sweep } from '../../src/database/sweep.ts'
import {
  fingerprintRequest,
  openIdempotency,
  readIdempotencyKey,
  type AnswerSealer,
  type Claim,
  type StoredAnswer,
} from '../../src/http/idempotency.ts'
import { Problem } from '../../src/problems.ts'
import { sealer } from '../../src/signing/sealing.ts'
import { openOtherHandle } from '../signing/rings.ts'
import { eachDatabase, onPostgres, type TestDatabase } from '../support/databases.ts'
import { answerSealer, ask, request } from './idempotent-process.ts'

const answer: StoredAnswer = {
  status: 201,
  headers: { Location: '/v1/clients/web', ETag: '"1"', 'Content-Type': 'application/json' },
  body: '{"client_secret":"lk_secret_shown_once","name":"Zoë 🔑"}',
}

type Request = typeof request

function open(db: Db, sealer: AnswerSealer = answerSealer) {
  return openIdempotency({ db, sealer, log: pino({ level: 'silent' }) })
}

async function claimOf(db: Db, asked: Request): Promise<Claim> {
  const begun = await open(db).begin(asked)
  if (begun.kind !== 'new') throw new Error('it was answered before')
  return begun.claim
}

async function answerOf(db: Db, asked: Request): Promise<StoredAnswer> {
  const begun = await open(db).begin(asked)
  if (begun.kind !== 'replay') throw new Error('it was not answered before')
  return begun.answer
}

/** The effect, with its answer in the same transaction. */
async function carryOut(db: Db, claim: Claim, effect: string, given = answer): Promise<void> {
  await db.transaction().execute(async (trx) => {
    await trx.insertInto('roles').values({ name: effect }).execute()
    await claim.complete(trx, given)
  })
}

async function effectsOf(db: Db, begin = 'effect'): Promise<string[]> {
  const rows = await db.selectFrom('roles').select('name').where('name', 'like', `${begin}%`).orderBy('name').execute()
  return rows.map(({ name }) => name)
}

async function expireLocks(db: Db, { key }: Request = request): Promise<void> {
  await sql`UPDATE idempotency_keys SET locked_until = clock_timestamp() - interval '1 second' WHERE key = ${key}`.execute(
    db,
  )
}

async function refusalOf(asked: Promise<unknown>): Promise<Problem> {
  const error: unknown = await asked.then(
    () => undefined,
    (error: unknown) => error,
  )
  if (error instanceof Problem) return error
  throw new Error('it was not refused', { cause: error })
}

const otherRequest = fingerprintRequest({ method: 'POST', url: '/v1/roles', contentType: '', body: Buffer.from('{ }') })

describe('the header Idempotency-Key', () => {
  it.each([
    '',
    ' ',
    'two words',
    'a, b',
    '"a", "b"',
    '"a";q=1',
    '"open',
    'x"'.padEnd(256, 'x'),
    `"${'x'.repeat(256)}"`,
    '""',
    '"a\\b"',
    'ключ',
    'a\tb',
    'a\u007fb',
    '"',
  ])('is refused as %j', async (header) => {
    const problem = await refusalOf(Promise.resolve().then(() => readIdempotencyKey(header)))
    expect(problem.code).toBe('VALIDATION_ERROR')
    expect(problem.details).toEqual([
      {
        field: 'Idempotency-Key',
        constraint: 'format',
        message: 'Must be 1 to 255 visible ASCII characters, such as a UUID',
      },
    ])
  })

  it.each([
    ['8e03978e-40d5-43e8-bc93-6894a57f9324', '8e03978e-40d5-43e8-bc93-6894a57f9324'],
    ['"8e03978e-40d5-43e8-bc93-6894a57f9324"', '8e03978e-40d5-43e8-bc93-6894a57f9324'],
    [' a ', 'a'],
    ['x'.repeat(255), 'x'.repeat(255)],
    [`"${'x'.repeat(255)}"`, 'x'.repeat(255)],
    ['"a\\"b\\\\c"', 'a"b\\c'],
    ['a"b\\c', 'a"b\\c'],
  ])('%s is read as the draft and everybody else writes it', (header, key) => {
    expect(readIdempotencyKey(header)).toBe(key)
  })

  it('may be left out', () => {
    expect(readIdempotencyKey(undefined)).toBeUndefined()
  })
})

it('two requests are the same only when method, address, media type and every byte are', () => {
  const part = fc.string({ maxLength: 5 })
  const any = fc.record({ method: part, url: part, contentType: part, body: fc.uint8Array({ maxLength: 5 }) })
  fc.assert(
    fc.property(any, any, (a, b) => {
      const isSame =
        JSON.stringify([a.method, a.url, a.contentType, [...a.body]]) ===
        JSON.stringify([b.method, b.url, b.contentType, [...b.body]])
      expect(fingerprintRequest(a).equals(fingerprintRequest(b))).toBe(isSame)
      expect(fingerprintRequest(a)).toEqual(fingerprintRequest({ ...a }))
    }),
    { numRuns: 2_000 },
  )
})

eachDatabase((openDatabase) => {
  let db: Db
  beforeAll(async () => {
    ;({ db } = await openDatabase())
  })
  /** A request of its own for each test, and what its effects are called. */
  function aRequest(): { asked: Request; effect: string } {
    const key = randomUUID()
    return { asked: { ...request, key }, effect: `effect-${key}` }
  }

  describe('a request is refused', () => {
    it('under the key of another one, whether that is under way, done, or was left by a process that died', async () => {
      const { asked, effect } = aRequest()
      const reused = () => refusalOf(open(db).begin({ ...asked, fingerprint: otherRequest }))
      const claim = await claimOf(db, asked)
      expect(await reused()).toMatchObject({ code: 'IDEMPOTENCY_KEY_REUSED', status: 422 })
      await expireLocks(db, asked)
      expect((await reused()).code).toBe('IDEMPOTENCY_KEY_REUSED')
      await carryOut(db, claim, effect)
      expect((await reused()).code).toBe('IDEMPOTENCY_KEY_REUSED')
      expect(await answerOf(db, asked)).toEqual(answer)
    })

    it('while the same one is under way, and told when to try again', async () => {
      const { asked } = aRequest()
      await claimOf(db, asked)
      const problem = await refusalOf(open(db).begin(asked))
      expect(problem).toMatchObject({ code: 'IDEMPOTENCY_IN_PROGRESS', status: 409, retryAfterSeconds: 1 })
    })

    it('when its answer can be read no more, instead of being carried out again', async () => {
      const { asked, effect } = aRequest()
      await carryOut(db, await claimOf(db, asked), effect)
      const secret = Buffer.alloc(32, 1)
      const others = sealer({ current: () => secret, all: () => [secret] }, 'idempotency')
      const problem = await refusalOf(open(db, others).begin(asked))
      expect(problem).toMatchObject({ code: 'CONFLICT', status: 409 })
      expect(await effectsOf(db, effect)).toEqual([effect])
    })

    it('rather than given an answer that somebody moved to it', async () => {
      const { asked, effect } = aRequest()
      await carryOut(db, await claimOf(db, asked), effect)
      await sql`UPDATE idempotency_keys SET caller_id = 'thief' WHERE key = ${asked.key}`.execute(db)
      expect((await refusalOf(open(db).begin({ ...asked, caller: 'thief' }))).code).toBe('CONFLICT')
    })

    it('when its claim was lost to another: its effect is rolled back', async () => {
      const { asked, effect } = aRequest()
      const slow = await claimOf(db, asked)
      await expireLocks(db, asked)
      const next = await claimOf(db, asked)
      expect((await refusalOf(carryOut(db, slow, `${effect}-slow`))).code).toBe('IDEMPOTENCY_IN_PROGRESS')
      await slow.abandon()
      await carryOut(db, next, `${effect}-next`)
      expect((await refusalOf(carryOut(db, slow, `${effect}-slow`))).code).toBe('IDEMPOTENCY_IN_PROGRESS')
      expect(await effectsOf(db, effect)).toEqual([`${effect}-next`])
      expect(await answerOf(db, asked)).toEqual(answer)
    })

    it('when its claim was given back already', async () => {
      const { asked, effect } = aRequest()
      const claim = await claimOf(db, asked)
      await claim.abandon()
      expect((await refusalOf(carryOut(db, claim, effect))).code).toBe('IDEMPOTENCY_IN_PROGRESS')
      expect(await effectsOf(db, effect)).toEqual([])
    })
  })

  it('the same request is given the same answer, byte for byte, with the headers that belong to it', async () => {
    const { asked, effect } = aRequest()
    const headers = { ...answer.headers, 'Set-Cookie': 'a=b', 'X-Request-Id': 'one', link: '</v1>; rel="up"' }
    await carryOut(db, await claimOf(db, asked), effect, { ...answer, headers })
    const replay = await answerOf(db, asked)
    expect(replay).toEqual({ ...answer, headers: { ...answer.headers, link: '</v1>; rel="up"' } })
    expect(await answerOf(db, asked)).toEqual(replay)
    expect(await effectsOf(db, effect)).toEqual([effect])
  })

  it('an answer without a body is given again', async () => {
    const { asked, effect } = aRequest()
    await carryOut(db, await claimOf(db, asked), effect, { status: 204, headers: {}, body: '' })
    expect(await answerOf(db, asked)).toEqual({ status: 204, headers: {}, body: '' })
  })

  it('the same key of somebody else is another one', async () => {
    const { asked, effect } = aRequest()
    await carryOut(db, await claimOf(db, asked), effect)
    const other = { ...asked, caller: 'client usr_2' }
    await carryOut(db, await claimOf(db, other), `${effect}-other`, { status: 204, headers: {}, body: '' })
    expect(await answerOf(db, asked)).toEqual(answer)
    expect(await answerOf(db, other)).toEqual({ status: 204, headers: {}, body: '' })
    await claimOf(db, { ...other, key: aRequest().asked.key })
  })

  it('after a refusal nothing happened, so the key is free, even for another request', async () => {
    const { asked, effect } = aRequest()
    const claim = await claimOf(db, asked)
    await expect(
      db.transaction().execute(async (trx) => {
        await trx.insertInto('roles').values({ name: effect }).execute()
        await claim.complete(trx, answer)
        throw new Problem('CONFLICT')
      }),
    ).rejects.toThrow(Problem)
    await claim.abandon()
    expect(await effectsOf(db, effect)).toEqual([])
    const another = { ...asked, fingerprint: otherRequest }
    await carryOut(db, await claimOf(db, another), effect)
    expect(await answerOf(db, another)).toEqual(answer)
  })

  it('what was committed cannot be given back any more', async () => {
    const { asked, effect } = aRequest()
    const claim = await claimOf(db, asked)
    await carryOut(db, claim, effect)
    await claim.abandon()
    expect(await answerOf(db, asked)).toEqual(answer)
  })

  it('a claim whose giving back fails is free when its lock has run out', async () => {
    const { asked, effect } = aRequest()
    const claim = await claimOf(db, asked)
    await sql`ALTER TABLE idempotency_keys RENAME TO away`.execute(db)
    await claim.abandon()
    await sql`ALTER TABLE away RENAME TO idempotency_keys`.execute(db)
    expect((await refusalOf(open(db).begin(asked))).code).toBe('IDEMPOTENCY_IN_PROGRESS')
    await expireLocks(db, asked)
    await carryOut(db, await claimOf(db, asked), effect)
  })

  it('answers rest sealed: the table holds nothing that could be read', async () => {
    const { asked, effect } = aRequest()
    await carryOut(db, await claimOf(db, asked), effect)
    const { rows } = await sql<{ text: string; bytes: Uint8Array }>`
      SELECT kept::text AS text, sealed_answer AS bytes FROM idempotency_keys AS kept WHERE key = ${asked.key}`.execute(
      db,
    )
    expect(rows).toHaveLength(1)
    const held = `${rows[0]?.text ?? ''} ${Buffer.from(rows[0]?.bytes ?? []).toString('latin1')}`
    expect(held).toContain(asked.key)
    for (const word of ['lk_secret_shown_once', 'client_secret', 'location', '/v1/clients/web']) {
      expect(held.toLowerCase()).not.toContain(word)
      expect(held).not.toContain(Buffer.from(word).toString('hex'))
    }
  })

  it('a key is kept for a day by the database’s clock, then swept, and means nothing from then on', async () => {
    const { asked, effect } = aRequest()
    await carryOut(db, await claimOf(db, asked), `${effect}-1`)
    const { rows } = await sql<{ hours: number; locked: number }>`
      SELECT extract(epoch FROM expires_at - clock_timestamp())::float8 / 3600 AS hours,
        extract(epoch FROM locked_until - created_at)::float8 AS locked
      FROM idempotency_keys WHERE key = ${asked.key}`.execute(db)
    expect(rows[0]?.hours).toBeCloseTo(24, 1)
    expect(rows[0]?.locked).toBeCloseTo(60, 0)
    const expire = () =>
      sql`UPDATE idempotency_keys SET expires_at = now() - interval '1 second' WHERE key = ${asked.key}`.execute(db)
    await expire()
    // Expired and not swept yet: as good as gone, for another request too.
    const another = { ...asked, fingerprint: otherRequest }
    await carryOut(db, await claimOf(db, another), `${effect}-2`, { ...answer, status: 200 })
    expect((await answerOf(db, another)).status).toBe(200)
    await sweep(db)
    expect((await answerOf(db, another)).status).toBe(200)
    await expire()
    await sweep(db)
    const left = await db.selectFrom('idempotency_keys').select('key').where('key', '=', asked.key).execute()
    expect(left).toEqual([])
    expect(await effectsOf(db, effect)).toEqual([`${effect}-1`, `${effect}-2`])
  })

  it('thirty at once have one effect and one answer', async () => {
    const before = await effectsOf(db)
    const idempotency = open(db)
    const asked = await Promise.all(Array.from({ length: 30 }, () => ask(db, idempotency)))
    expect(asked.filter(({ kind }) => kind === 'new')).toHaveLength(1)
    expect(new Set(asked.map(({ answer }) => JSON.stringify(answer))).size).toBe(1)
    expect(await effectsOf(db)).toHaveLength(before.length + 1)
  })
})

const run = promisify(execFile)
const askedSchema = z.object({
  kind: z.enum(['new', 'replay']),
  answer: z.object({ status: z.number(), headers: z.record(z.string(), z.string()), body: z.string() }),
})

/** Another process that asks on the same database. */
async function runProcess({ location }: TestDatabase, parallel: number, crash = 'no crash') {
  const { stdout } = await run(process.execPath, [
    join(import.meta.dirname, 'idempotent-process.ts'),
    location.databaseUrl ?? '',
    String(parallel),
    crash,
  ])
  return stdout
    .trim()
    .split('\n')
    .map((line) => askedSchema.parse(JSON.parse(line)))
}

async function crashed(asked: Promise<unknown>): Promise<boolean> {
  const error: unknown = await asked.then(
    () => undefined,
    (error: unknown) => error,
  )
  return error instanceof Error && 'signal' in error && error.signal === 'SIGKILL'
}

onPostgres((openDatabase) => {
  it('a hundred at once over two processes have one effect, and all are given the same bytes', async () => {
    const database = await openDatabase()
    const asked = (await Promise.all([runProcess(database, 50), runProcess(database, 50)])).flat()
    expect(asked).toHaveLength(100)
    expect(asked.filter(({ kind }) => kind === 'new')).toHaveLength(1)
    expect(new Set(asked.map(({ answer }) => JSON.stringify(answer))).size).toBe(1)
    const { secret } = z.object({ secret: z.string() }).parse(JSON.parse(asked[0]?.answer.body ?? ''))
    expect(await effectsOf(database.db)).toEqual([`effect-${secret}`])
  })

  it('a process killed between commit and answer: whoever asks again is given the answer', async () => {
    const database = await openDatabase()
    expect(await crashed(runProcess(database, 1, 'after commit'))).toBe(true)
    const [effect] = await effectsOf(database.db)
    const again = await ask(database.db, open(database.db))
    expect(again.kind).toBe('replay')
    expect(`effect-${(JSON.parse(again.answer.body) as { secret: string }).secret}`).toBe(effect)
    expect(await effectsOf(database.db)).toHaveLength(1)
  })

  it('a process killed before the commit: nothing happened, and one of twenty takes over when its lock has run out', async () => {
    const database = await openDatabase()
    const other = await openOtherHandle(database)
    expect(await crashed(runProcess(database, 1, 'before commit'))).toBe(true)
    expect(await effectsOf(database.db)).toEqual([])
    expect((await refusalOf(open(database.db).begin(request))).code).toBe('IDEMPOTENCY_IN_PROGRESS')
    await expireLocks(database.db)
    const handles = [
      { db: database.db, idempotency: open(database.db) },
      { db: other.db, idempotency: open(other.db) },
    ]
    const asked = await Promise.all(
      Array.from({ length: 10 }).flatMap(() => handles.map(({ db, idempotency }) => ask(db, idempotency))),
    )
    expect(asked.filter(({ kind }) => kind === 'new')).toHaveLength(1)
    expect(new Set(asked.map(({ answer }) => answer.body)).size).toBe(1)
    expect(await effectsOf(database.db)).toHaveLength(1)
  })

  it('an effect that is being committed while its lock runs out is not had twice', async () => {
    const database = await openDatabase()
    const other = await openOtherHandle(database)
    const claim = await claimOf(database.db, request)
    let takeOver: Promise<unknown> = Promise.resolve()
    await database.db.transaction().execute(async (trx) => {
      await trx.insertInto('roles').values({ name: 'effect' }).execute()
      await expireLocks(other.db)
      await claim.complete(trx, answer)
      // Waits for the commit, and then finds the answer.
      takeOver = open(other.db).begin(request)
      await new Promise((resolve) => setTimeout(resolve, 200))
    })
    expect(await takeOver).toEqual({ kind: 'replay', answer })
    // Giving up at that moment, as after a lost confirmation of the commit, changes nothing either.
    const second = { ...request, key: 'second' }
    const late = await claimOf(database.db, second)
    let abandoned: Promise<unknown> = Promise.resolve()
    await database.db.transaction().execute(async (trx) => {
      await late.complete(trx, answer)
      abandoned = late.abandon()
      await new Promise((resolve) => setTimeout(resolve, 200))
    })
    await abandoned
    expect(await open(other.db).begin(second)).toEqual({ kind: 'replay', answer })
  })
})
