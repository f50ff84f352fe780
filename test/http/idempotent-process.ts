/**
 * A process of its own that carries requests out under one key, as a server would: what the tests of races and crashes
 * start. Each request makes a role and answers with a secret that it has just made. It prints one line of JSON for each
 * answer, and may crash right before or right after the commit.
 *
 *   node idempotent-process.ts <database URL> <how many at once> <'no crash' | 'before commit' | 'after commit'>
 */
import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import { openDatabase, type Db } from '../../src/database/database.ts'
import { fingerprintRequest, openIdempotency, type Idempotency, type StoredAnswer } from '../../src/http/idempotency.ts'
import { Problem } from '../../src/problems.ts'
import { sealer } from '../../src/signing/sealing.ts'

export const ringSecret = Buffer.alloc(32, 9)
export const answerSealer = sealer({ current: () => ringSecret, all: () => [ringSecret] }, 'idempotency')

export const request = {
  caller: 'client usr_1',
  key: 'one-key',
  fingerprint: fingerprintRequest({
    method: 'POST',
    url: '/v1/roles',
    contentType: 'application/json',
    body: Buffer.from('{}'),
  }),
}

/** Has one effect, or is answered by the one that had; waits for whoever is at it. */
export async function ask(
  db: Db,
  idempotency: Idempotency,
  crash: (when: 'before commit' | 'after commit') => void = () => undefined,
): Promise<{ kind: 'new' | 'replay'; answer: StoredAnswer; waits: number }> {
  for (let waits = 0; ; waits += 1) {
    try {
      const begun = await idempotency.begin(request)
      if (begun.kind === 'replay') return { kind: 'replay', answer: begun.answer, waits }
      const secret = randomBytes(12).toString('hex')
      const answer = { status: 201, headers: { Location: `/v1/roles/${secret}` }, body: JSON.stringify({ secret }) }
      await db.transaction().execute(async (trx) => {
        await trx
          .insertInto('roles')
          .values({ name: `effect-${secret}` })
          .execute()
        await begun.claim.complete(trx, answer)
        crash('before commit')
      })
      crash('after commit')
      return { kind: 'new', answer, waits }
    } catch (error) {
      if (!(error instanceof Problem) || error.code !== 'IDEMPOTENCY_IN_PROGRESS' || waits === 500) throw error
      await sleep(10)
    }
  }
}

if (import.meta.main) {
  const [, , databaseUrl, parallel = '1', crashes = ''] = process.argv
  const log = pino({ level: 'silent' })
  const database = await openDatabase(
    {
      databaseUrl,
      dataDir: '/nowhere',
      poolSize: 10,
      connectTimeoutSeconds: 30,
      statementTimeoutSeconds: 30,
      lockTimeoutMs: 20_000,
    },
    log,
  )
  const idempotency = openIdempotency({ db: database.db, sealer: answerSealer, log })
  const crash = (when: string) => {
    if (when === crashes) process.kill(process.pid, 'SIGKILL')
  }
  const answers = await Promise.all(
    Array.from({ length: Number(parallel) }, () => ask(database.db, idempotency, crash)),
  )
  for (const answer of answers) process.stdout.write(`${JSON.stringify(answer)}\n`)
  await database.close()
}
