/**
 * Writers that commit out of order, servers that are killed, and receivers that go on: what arrives in the end is what was
 * committed, and nothing else.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Db } from '../../src/database/database.ts'
import { revoke } from '../../src/revocation/revocations.ts'
import { createDatabase, openLocation } from '../support/databases.ts'
import { cheapestWorkFactor } from '../support/provider.ts'
import { startServer } from '../support/server-process.ts'
import { Receiver, registerReceiver, subjectOf } from './receiving.ts'

export interface Tally {
  committed: number
  /** committed, and not received by somebody */
  missing: string[]
  /** received, and never committed */
  invented: string[]
  /** received before something that the same writer had committed earlier */
  outOfOrder: string[]
  /** received more than once under the same jti: allowed, and counted */
  repeated: number
  /** received under two jtis */
  renamed: string[]
}

const writers = 8
const pollSeconds = '2'

/** @param victims how many servers are killed, besides the one that stays */
export async function killWhileRevoking(victims: number): Promise<Tally> {
  const database = await createDatabase('postgres')
  const environment = { ...cheapestWorkFactor, LOG_LEVEL: 'warn', LATCHKEY_SIGNALS_POLL_SECONDS: pollSeconds }
  const stable = await startServer({ database, environment })
  const alive = await Promise.all(
    Array.from({ length: victims }, () =>
      startServer({ database, environment: { ...environment, LATCHKEY_ISSUER: stable.url } }),
    ),
  )
  const local = await openLocation(database, { poolSize: writers + 2 })
  const { db } = local
  try {
    const receiver = await new Receiver(stable.url, await registerReceiver(db, stable.url)).signIn()
    // One that stays, and two that are thrown from one server to the next.
    const everywhere = () => [...alive, stable].map(({ url }) => url)
    const receptions = [() => [stable.url], everywhere, everywhere].map((urls) => new Reception(receiver, urls))
    const writing = new AbortController()
    const written = Array.from({ length: writers }, (_, writer) => write(db, writer, writing.signal))
    const receiving = receptions.map((reception) => reception.run())
    for (let kills = 0; kills < victims; kills += 1) {
      await sleep(500 + Math.random() * 1_000)
      await alive.shift()?.stop('SIGKILL')
    }
    await sleep(500)
    writing.abort()
    const committed = (await Promise.all(written)).flat()
    const deadline = performance.now() + 20_000
    const isComplete = () => receptions.every(({ first }) => committed.every((subject) => first.has(subject)))
    while (!isComplete() && performance.now() < deadline) await sleep(50)
    for (const reception of receptions) reception.stop()
    await Promise.all(receiving)

    const all = new Set(committed)
    return {
      committed: committed.length,
      missing: receptions.flatMap(({ first }) => committed.filter((subject) => !first.has(subject))),
      invented: receptions.flatMap(({ first }) => [...first.keys()].filter((subject) => !all.has(subject))),
      outOfOrder: receptions.flatMap(({ first }) => findOutOfOrder([...first.keys()])),
      repeated: receptions.reduce((sum, { repeated }) => sum + repeated, 0),
      renamed: receptions.flatMap(({ renamed }) => renamed),
    }
  } finally {
    await local.close()
  }
}

/** Revokes in transactions that are open for a while, some of which are given up. @returns what was committed, in order */
async function write(db: Db, writer: number, signal: AbortSignal): Promise<string[]> {
  const committed: string[] = []
  for (let turn = 0; !signal.aborted; turn += 1) {
    const subject = `writer-${writer}-${String(turn).padStart(5, '0')}`
    const isGivenUp = Math.random() < 0.15
    try {
      await db.transaction().execute(async (trx) => {
        await sleep(Math.random() * 20)
        await revoke(trx, { kind: 'session', subject, reason: 'signed out' })
        await sleep(Math.random() < 0.05 ? 700 : Math.random() * 150)
        if (isGivenUp) throw new Error('given up')
      })
      committed.push(`session ${subject}`)
    } catch (error) {
      if (!isGivenUp) throw error
    }
  }
  return committed
}

class Reception {
  /** subject → jti, in the order in which they came first */
  readonly first = new Map<string, string>()
  repeated = 0
  readonly renamed: string[] = []
  readonly #receiver: Receiver
  readonly #urls: () => readonly string[]
  readonly #stopped = new AbortController()

  constructor(receiver: Receiver, urls: () => readonly string[]) {
    this.#receiver = receiver
    this.#urls = urls
  }

  stop(): void {
    this.#stopped.abort()
  }

  async run(): Promise<void> {
    const stream = await this.#receiver.createStream()
    let ack: string[] = []
    for (let turn = 0; !this.#stopped.signal.aborted; turn += 1) {
      const urls = this.#urls()
      const at = this.#receiver.elsewhere(urls[turn % urls.length] ?? '')
      const answer = await at
        .poll(stream, { ack, maxEvents: 20 }, { signal: this.#stopped.signal })
        .catch(() => undefined)
      // The server was killed: nobody knows what it has taken down, so nothing is taken for granted.
      if (answer?.status !== 200) {
        ack = []
        await sleep(20)
        continue
      }
      ack = Object.keys(answer.sets)
      for (const [jti, set] of Object.entries(answer.sets))
        this.#take(subjectOf(await this.#receiver.verify(jti, set)), jti)
    }
  }

  #take(subject: string, jti: string): void {
    const before = this.first.get(subject)
    if (before === undefined) this.first.set(subject, jti)
    else if (before === jti) this.repeated += 1
    else this.renamed.push(subject)
  }
}

/** Each writer commits one after the other, so that is how its revocations have to come. */
function findOutOfOrder(subjects: readonly string[]): string[] {
  const last = new Map<string, string>()
  return subjects.filter((subject) => {
    const writer = subject.slice(0, subject.lastIndexOf('-'))
    const isLate = subject < (last.get(writer) ?? '')
    if (!isLate) last.set(writer, subject)
    return isLate
  })
}
