/**
 * What a refresh costs in the database: the token is found and its family locked, it is spent, its successor, the sealed
 * reply and the audit row are written, all in one transaction on a PostgreSQL that survives a power loss. Bar:
 *
 * - rotations through our store ≥ 0.9 times the very same statements sent by pg alone
 *
 * Runs `npm run bench:refresh`, about a minute, on this machine alone. The statements are not copied here: they are those
 * that one rotation through the store was seen to send, with other ids in them. Both sides take turns, many short rounds
 * of it; compare medians within one run, never between machines. Beside it, for information: whole refreshes over HTTP,
 * with everything that the protocol adds (the person and her roles are read anew, two tokens are signed).
 */
import { createHash, randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { Client, Pool } from 'pg'
import { pino } from 'pino'
import { systemActor, writeAudit } from '../src/audit/audit.ts'
import { openChanges } from '../src/database/changes.ts'
import { openDatabase } from '../src/database/database.ts'
import type { DemoData } from '../src/demo/demo-data.ts'
import { openClientDirectory } from '../src/oauth/client-directory.ts'
import { createClient } from '../src/oauth/clients.ts'
import { hashRefreshRequest, storeReply } from '../src/oauth/refresh-replies.ts'
import { openStore } from '../src/oauth/store.ts'
import { runInTokenTransaction, TokenTransaction } from '../src/oauth/token-transaction.ts'
import { openKeyEncryption } from '../src/signing/key-encryption.ts'
import { openSecretRing } from '../src/signing/secret-ring.ts'
import { createUser } from '../src/users/users.ts'
import { runStatement, withDatabase } from '../test/support/postgres.ts'
import { obtainTokens, postForm } from '../test/support/user-agent.ts'
import { resource, startBenchDatabase, startLatchkeyServer, type BenchDatabase } from './support/latchkey-server.ts'
import { median, printBars, quantile, ratios } from './support/statistics.ts'

const rounds = 20
const rotations = 160
const warmUps = 8
const families = 8
const endToEndRefreshes = 400

interface Turn {
  readonly perSecond: number
  readonly cpuMicroseconds: number
}

const silent = pino({ level: 'silent' })

/** One rotation after the other in each family, all families at once. */
async function measure(rotate: (family: number) => Promise<void>): Promise<Turn> {
  const cpuBefore = process.cpuUsage()
  const startedAt = performance.now()
  let left = rotations
  await Promise.all(
    Array.from({ length: families }, async (_, family) => {
      while (left > 0) {
        left -= 1
        await rotate(family)
      }
    }),
  )
  const seconds = (performance.now() - startedAt) / 1_000
  const { user, system } = process.cpuUsage(cpuBefore)
  return { perSecond: rotations / seconds, cpuMicroseconds: (user + system) / rotations }
}

interface Family {
  readonly grantId: string
  token: string
}

interface Statement {
  readonly text: string
  readonly values: readonly unknown[]
}

const freshValue = () => randomBytes(32).toString('base64url')
const idAtRest = (value: string) => createHash('sha256').update(value).digest('base64url')

async function compareRotations(database: BenchDatabase) {
  // Before any connection is made: each keeps the way to send that it was made with.
  const recordStatements = openRecorder()
  const opened = await openDatabase(
    {
      databaseUrl: database.url,
      dataDir: database.folder,
      poolSize: families + 1,
      connectTimeoutSeconds: 10,
      statementTimeoutSeconds: 30,
    },
    silent,
  )
  const { db } = opened
  const key = { id: 'bench', key: randomBytes(32) }
  const encryption = openKeyEncryption({
    config: { isProduction: true, keyEncryptionKeys: [key], keysDir: database.folder },
    log: silent,
  })
  const changes = await openChanges(opened, database.url, silent)
  const secretRing = await openSecretRing({ database: opened, changes, encryption, log: silent })
  const directory = openClientDirectory(() => db, changes)
  const store = openStore({
    db,
    directory,
    secretRing,
    settings: { refreshReplayPublicSeconds: 10, refreshReplayConfidentialSeconds: 60, deviceFlow: false },
  })
  const pool = new Pool({ connectionString: database.url, max: families })
  try {
    const { userId, clientId } = await db.transaction().execute(async (trx) => {
      const { client } = await createClient(trx, systemActor, {
        type: 'web',
        name: 'Bench',
        redirect_uris: ['https://app.example.com/callback'],
        permissions: [{ resource, permission: 'models:read' }],
      })
      const user = await createUser(trx, systemActor, { email: 'bench@example.com', emailVerified: true })
      return { userId: user.id, clientId: client.id }
    })

    const refreshTokens = new store.adapter('RefreshToken')
    const grants = new store.adapter('Grant')
    const seconds = 3_600
    const now = Math.floor(Date.now() / 1_000)
    const grantPayload = { accountId: userId, clientId, iat: now, exp: now + seconds, kind: 'Grant' }
    const tokenPayload = (family: Family) => ({
      ...grantPayload,
      kind: 'RefreshToken',
      grantId: family.grantId,
      sessionUid: 'bench-session',
      scope: 'openid email models:read',
      resource,
      authTime: now,
      acr: 'urn:latchkey:acr:password',
      amr: ['pwd'],
      rotations: 1,
    })
    const start = async (): Promise<Family> => {
      const family = { grantId: freshValue(), token: freshValue() }
      await grants.upsert(family.grantId, grantPayload, seconds)
      await refreshTokens.upsert(family.token, tokenPayload(family), seconds)
      return family
    }

    // As long as those of a real answer: an access token, an ID token, the successor.
    const reply = { access_token: 'x'.repeat(900), id_token: 'x'.repeat(800), expires_in: 900, token_type: 'Bearer' }
    const rotate = async (family: Family, next = freshValue()): Promise<void> => {
      const transaction = new TokenTransaction(db, {
        beginsOnFinding: true,
        revocationReason: 'revoked',
        requestId: undefined,
      })
      await runInTokenTransaction(transaction, async () => {
        const found = await refreshTokens.find(family.token)
        if (found === undefined || (await grants.find(family.grantId)) === undefined)
          throw new Error('a family is gone')
        await refreshTokens.consume(family.token)
        await refreshTokens.upsert(next, tokenPayload(family), seconds)
        const trx = await transaction.begin()
        if (transaction.spent === undefined) throw new Error('nothing was spent')
        await storeReply(trx, {
          ...transaction.spent,
          refreshToken: family.token,
          requestHash: hashRefreshRequest({}),
          reply: { ...reply, refresh_token: next },
        })
        await writeAudit(
          trx,
          { type: 'client', id: clientId, onBehalfOf: userId, requestId: 'bench' },
          {
            action: 'grant.token-refreshed',
            target: { type: 'grant', id: family.grantId },
            details: { scope: 'models:read' },
          },
        )
        await transaction.commit()
      })
      family.token = next
    }

    const ours: Family[] = []
    const raw: Family[] = []
    for (let i = 0; i < families; i += 1) {
      ours.push(await start())
      raw.push(await start())
    }

    const seen = await start()
    const before = { ...seen }
    const statements = await recordStatements(() => rotate(seen))
    const rotateRaw = async (family: Family, isPrepared: boolean): Promise<void> => {
      const next = freshValue()
      const replaced = new Map([
        [idAtRest(before.token), idAtRest(family.token)],
        [idAtRest(seen.token), idAtRest(next)],
        [before.grantId, family.grantId],
      ])
      const connection = await pool.connect()
      try {
        for (const [i, { text, values }] of statements.entries()) {
          const own = values.map((value) => (typeof value === 'string' ? (replaced.get(value) ?? value) : value))
          const { command, rowCount } = await connection.query({
            text,
            values: own,
            ...(isPrepared && own.length > 0 ? { name: `bench_${i}` } : {}),
          })
          // Both sides must have done the work: one row each, but for BEGIN, SAVEPOINT, COMMIT and the like.
          if (['SELECT', 'INSERT', 'UPDATE'].includes(command) && rowCount !== 1) throw new Error(`no row: ${text}`)
        }
      } finally {
        connection.release()
      }
      family.token = next
    }

    const sides = {
      ours: { rotate: (family: number) => rotate(ours[family] ?? seen), turns: [] as Turn[] },
      raw: { rotate: (family: number) => rotateRaw(raw[family] ?? seen, false), turns: [] as Turn[] },
      // The control: the same once more, which should differ by nothing.
      rawAgain: { rotate: (family: number) => rotateRaw(raw[family] ?? seen, false), turns: [] as Turn[] },
      // What is left to win: pg at its best, with nothing around it.
      prepared: { rotate: (family: number) => rotateRaw(raw[family] ?? seen, true), turns: [] as Turn[] },
    }
    const order = [sides.ours, sides.raw, sides.rawAgain, sides.prepared]
    // Compiled and cached before anything counts.
    for (let i = 0; i < warmUps; i += 1) for (const side of order) await measure(side.rotate)
    for (let round = 0; round < rounds; round += 1) {
      for (let i = 0; i < order.length; i += 1) {
        const side = order[(round + i) % order.length] ?? sides.ours
        side.turns.push(await measure(side.rotate))
      }
    }
    return {
      statements: statements.length,
      ours: sides.ours.turns,
      raw: sides.raw.turns,
      rawAgain: sides.rawAgain.turns,
      prepared: sides.prepared.turns,
    }
  } finally {
    await pool.end()
    directory.close()
    await secretRing.close()
    await changes.close()
    await opened.close()
  }
}

/** Sees what pg is asked to send, while `work` runs, on the one connection that does it. */
function openRecorder(): (work: () => Promise<void>) => Promise<Statement[]> {
  let recorded: { readonly connection: unknown; readonly statement: Statement }[] | undefined
  const query = Reflect.get(Client.prototype, 'query') as (...sent: unknown[]) => unknown
  const record = function record(this: unknown, ...sent: unknown[]): unknown {
    const [first, second] = sent
    // Prepared statements come as an object.
    const { text, values } = (typeof first === 'string' ? { text: first, values: second } : first) as Partial<Statement>
    if (text !== undefined) recorded?.push({ connection: this, statement: { text, values: [...(values ?? [])] } })
    return Reflect.apply(query, this, sent)
  }
  Reflect.set(Client.prototype, 'query', record)
  return async (work) => {
    const seen: NonNullable<typeof recorded> = []
    recorded = seen
    await work()
    recorded = undefined
    // The poll for changes has a connection of its own.
    const worker = seen.find(({ statement }) => /^(begin|start)/i.test(statement.text))?.connection
    const statements = seen.filter(({ connection }) => connection === worker).map(({ statement }) => statement)
    if (worker === undefined || statements.length < 5) throw new Error('the rotation was not seen')
    return statements
  }
}

/** Whole refreshes of the demo's web client: sixteen people's families at once, each token used once. */
async function measureEndToEnd(database: BenchDatabase) {
  await runStatement(database.url, 'CREATE DATABASE demo')
  const server = await startLatchkeyServer(database, {
    environment: {
      NODE_ENV: 'development',
      DATABASE_URL: withDatabase(database.url, 'demo'),
      LATCHKEY_LOG_FORMAT: 'json',
      LATCHKEY_PASSWORD_MEMORY_KIB: '19456',
      LATCHKEY_PASSWORD_TIME_COST: '2',
    },
  })
  try {
    const demo = JSON.parse(readFileSync(join(database.folder, 'demo.json'), 'utf8')) as DemoData
    // The demo's plan is for people who try it.
    await runStatement(withDatabase(database.url, 'demo'), 'UPDATE clients SET plan = NULL')
    const tokens: string[] = []
    for (let i = 0; i < 16; i += 1) {
      const { body } = await obtainTokens(server.origin, demo)
      tokens.push(body.refresh_token ?? '')
    }
    const latencies: number[] = []
    const run = async (count: number): Promise<Turn> => {
      let left = count
      const cpuBefore = server.process.cpuMicroseconds()
      const startedAt = performance.now()
      await Promise.all(
        tokens.map(async (_, family) => {
          while (left > 0) {
            left -= 1
            const begunAt = performance.now()
            const { status, body } = await postForm(`${server.origin}/token`, demo.clients.web, {
              grant_type: 'refresh_token',
              refresh_token: tokens[family] ?? '',
            })
            if (status !== 200) throw new Error(`a refresh was answered with ${status}: ${JSON.stringify(body)}`)
            latencies.push(performance.now() - begunAt)
            tokens[family] = body.refresh_token ?? ''
          }
        }),
      )
      const seconds = (performance.now() - startedAt) / 1_000
      return { perSecond: count / seconds, cpuMicroseconds: (server.process.cpuMicroseconds() - cpuBefore) / count }
    }
    await run(endToEndRefreshes)
    latencies.length = 0
    const turns: Turn[] = []
    for (let round = 0; round < 5; round += 1) turns.push(await run(endToEndRefreshes))
    return { turns, p50Ms: quantile(latencies, 0.5), p99Ms: quantile(latencies, 0.99) }
  } finally {
    await server.process.stop()
  }
}

const database = await startBenchDatabase()
try {
  const { statements, ours, raw, rawAgain, prepared } = await compareRotations(database)
  const endToEnd = await measureEndToEnd(database)

  const of = (turns: readonly Turn[], key: keyof Turn) => turns.map((turn) => turn[key])
  const row = (label: string, turns: readonly Turn[]) =>
    console.log(
      `${label.padEnd(34)} ${median(of(turns, 'perSecond')).toFixed(0).padStart(8)} ${median(of(turns, 'cpuMicroseconds')).toFixed(0).padStart(12)}`,
    )
  console.log(
    `${availableParallelism()} processors, Node ${process.version}; ${rounds} rounds of ${rotations} rotations of ${statements} statements, ${families} at once; medians\n`,
  )
  console.log(`${''.padEnd(34)}    per s   CPU µs each`)
  row('rotation through the store', ours)
  row('the same statements by pg alone', raw)
  row('pg alone once more (control)', rawAgain)
  row('the same, prepared, by pg alone', prepared)
  row('whole refresh over HTTP (server)', endToEnd.turns)
  console.log(`whole refresh, 16 at once: p50 ${endToEnd.p50Ms.toFixed(1)} ms, p99 ${endToEnd.p99Ms.toFixed(1)} ms\n`)

  const peer = (key: keyof Turn) => of(raw, key).map((value, i) => (value + (of(rawAgain, key)[i] ?? NaN)) / 2)
  const rate = median(ratios(of(ours, 'perSecond'), peer('perSecond')))
  const control = median(ratios(of(rawAgain, 'perSecond'), of(raw, 'perSecond')))
  const cpu = median(ratios(of(ours, 'cpuMicroseconds'), peer('cpuMicroseconds')))
  const toPrepared = median(ratios(of(ours, 'perSecond'), of(prepared, 'perSecond')))
  const bars = [{ bar: 'rotations/s, store ÷ pg alone', value: rate, limit: '≥ 0.9', isMet: rate >= 0.9 }]
  printBars(bars)
  console.log(
    `for information: the control ${control.toFixed(2)}; store ÷ pg alone, prepared: ${toPrepared.toFixed(2)}; CPU of a rotation in this process, store ÷ pg alone: ${cpu.toFixed(2)}`,
  )
  console.log(
    JSON.stringify({
      bench: 'refresh',
      processors: availableParallelism(),
      node: process.version,
      rounds,
      rotations,
      statements,
      ours,
      raw,
      rawAgain,
      prepared,
      endToEnd,
      cpu,
      bars,
    }),
  )
} finally {
  await database.remove()
}
