/**
 * Several processes on one port (LATCHKEY_WORKERS). The primary starts them and watches: it replaces one that died, kills
 * one that hangs, and stops them all together. It sees no request: the workers accept from the same socket, so that a
 * worker that is gone or stuck takes nothing with it but the connections it had.
 */
import cluster, { type Worker } from 'node:cluster'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Config } from './config.ts'
import type { Logger } from './log.ts'

const aliveEveryMs = 1_000
/** How long a worker may take until it serves; a migration may be what it waits for. */
const startWithinMs = 300_000
const restartAfterMs = { least: 250, most: 30_000 }
/** A worker that served this long and then died was no failed start: the next one is started soon. */
const soundAfterMs = 60_000

export interface SupervisorSettings extends Pick<Config, 'workers' | 'stopTimeoutSeconds' | 'drainSeconds'> {
  readonly log: Logger
  /** An event loop that has been silent for so many seconds is stuck: its process is killed. */
  readonly hungAfterSeconds?: number
}

/** What a worker says to the primary, and the primary to it. */
type Message = 'alive' | 'ready' | 'stop'

/** What the primary asks each worker, and what comes back. */
type Question = { readonly question: string; readonly id: number }
type Answer = { readonly answerTo: number; readonly value: unknown }

// Of the primary, of which there is one in a process.
const ready = new Set<Worker>()
let isStopping = false

/**
 * Runs in the primary: starts `workers` processes of this same program and keeps as many until SIGTERM or SIGINT.
 *
 * @returns the exit code: 0 after a stop, 1 when no worker ever became ready
 */
export async function superviseWorkers(settings: SupervisorSettings): Promise<number> {
  const { log, hungAfterSeconds = 10 } = settings
  // The default has the primary accept and hand over; a connection on its way to a worker that hangs is then lost.
  cluster.schedulingPolicy = cluster.SCHED_NONE

  const heardAt = new Map<Worker, number>()
  let wasEverReady = false
  let failures = 0
  const { promise: stopped, resolve: stop } = Promise.withResolvers<number>()

  function start(): void {
    const worker: Worker = cluster.fork()
    const startedAt = performance.now()
    heardAt.set(worker, startedAt + startWithinMs)
    worker.on('message', (message: unknown) => {
      heardAt.set(worker, performance.now())
      if (message === ('ready' satisfies Message)) {
        wasEverReady = true
        ready.add(worker)
        log.info({ worker_pid: worker.process.pid }, 'a worker is ready')
      }
    })
    worker.on('error', (error) => log.error({ error }, 'a worker cannot be reached'))
    worker.once('exit', (code, signal) => {
      heardAt.delete(worker)
      ready.delete(worker)
      if (isStopping) return
      log.error({ worker_pid: worker.process.pid, exit_code: code, exit_signal: signal }, 'a worker died')
      if (!wasEverReady) {
        log.fatal('no worker could start')
        stop(1)
        return
      }
      failures = performance.now() - startedAt > soundAfterMs ? 0 : failures + 1
      const delayMs = Math.min(restartAfterMs.most, restartAfterMs.least * 2 ** Math.min(20, Math.max(0, failures - 1)))
      setTimeout(() => {
        if (!isStopping) start()
      }, delayMs)
    })
  }

  let watchedAt = performance.now()
  const watch = setInterval(() => {
    const now = performance.now()
    // This process itself did not run for a while (a suspended machine): nobody could be heard.
    const wasAway = now - watchedAt > 3 * aliveEveryMs
    watchedAt = now
    for (const [worker, at] of heardAt) {
      if (wasAway) {
        heardAt.set(worker, Math.max(at, now))
      } else if (now - at > hungAfterSeconds * 1_000) {
        log.error({ worker_pid: worker.process.pid, silent_seconds: Math.round((now - at) / 1_000) }, 'a worker hangs')
        heardAt.delete(worker)
        worker.process.kill('SIGKILL')
      }
    }
  }, aliveEveryMs)

  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.on(signal, () => {
      if (isStopping) {
        killAll()
        process.exit(signal === 'SIGINT' ? 130 : 143)
      }
      isStopping = true
      stop(0)
    })
  }

  for (let i = 0; i < settings.workers; i += 1) start()

  const exitCode = await stopped
  isStopping = true
  clearInterval(watch)
  await stopAll(settings)
  return exitCode
}

async function stopAll({ log, stopTimeoutSeconds }: SupervisorSettings): Promise<void> {
  const workers = Object.values(cluster.workers ?? {})
    .filter((worker) => worker !== undefined)
    .filter((worker) => !worker.isDead())
  const gone = Promise.all(workers.map(async (worker) => once(worker, 'exit')))
  for (const worker of workers) {
    if (ready.has(worker) && worker.isConnected()) worker.send('stop' satisfies Message)
    // It may be starting, and dies of this, or have become ready this moment, and heeds it.
    else worker.process.kill('SIGTERM')
  }
  // Each stops itself in time, unless it hangs.
  const late = sleep((stopTimeoutSeconds + 3) * 1_000, 'late', { ref: false })
  if ((await Promise.race([gone, late])) === 'late') {
    log.error('a worker did not stop in time')
    killAll()
    await gone
  }
}

function killAll(): void {
  for (const worker of Object.values(cluster.workers ?? {})) worker?.process.kill('SIGKILL')
}

/** How far the workers are, together: runs in the primary. */
export function fleetPhase(): 'starting' | 'ready' | 'draining' {
  if (isStopping) return 'draining'
  return ready.size > 0 ? 'ready' : 'starting'
}

let questionsAsked = 0

/**
 * Runs in the primary: asks every worker that serves, and waits for no worker longer than `withinMs`.
 *
 * @param withinMs in milliseconds
 * @returns by the worker's number; undefined for one that did not answer in time, or died meanwhile
 */
export async function askWorkers(question: string, withinMs = 2_000): Promise<ReadonlyMap<number, unknown>> {
  const id = (questionsAsked += 1)
  const asked = [...ready].filter((worker) => worker.isConnected())
  const answers = asked.map((worker) => askWorker(worker, { question, id }, withinMs))
  return new Map(await Promise.all(answers))
}

async function askWorker(worker: Worker, question: Question, withinMs: number): Promise<[number, unknown]> {
  const { promise, resolve } = Promise.withResolvers<unknown>()
  const hear = (message: unknown) => {
    if (isAnswer(message) && message.answerTo === question.id) resolve(message.value)
  }
  const giveUp = () => resolve(undefined)
  const timer = setTimeout(giveUp, withinMs)
  worker.on('message', hear).once('exit', giveUp)
  worker.send(question, (error) => {
    if (error !== null) giveUp()
  })
  try {
    return [worker.id, await promise]
  } finally {
    clearTimeout(timer)
    worker.off('message', hear).off('exit', giveUp)
  }
}

function isAnswer(message: unknown): message is Answer {
  return typeof message === 'object' && message !== null && 'answerTo' in message
}

function isQuestion(message: unknown): message is Question {
  return typeof message === 'object' && message !== null && 'question' in message
}

/** Whether this process is one of several, started by {@link superviseWorkers}. */
export function isWorker(): boolean {
  return cluster.isWorker
}

/** The first to be started: it speaks where one is enough. */
export function isFirstWorker(): boolean {
  return cluster.worker?.id === 1
}

/** A worker that cannot serve lets go of the primary, which alone would keep its process alive. */
export function endWorker(): void {
  if (cluster.isWorker && process.connected) process.disconnect()
}

/**
 * Runs in a worker that serves: tells the primary that it is ready, and every second that it is not stuck.
 *
 * @param stop what stops this process, as {@link stopOnSignals} gives it: the primary decides when
 * @param answers to what {@link askWorkers} asks, by the question; one that fails is no answer
 */
export function reportToPrimary(
  stop: () => void,
  answers: Readonly<Record<string, () => Promise<unknown>>> = {},
): void {
  if (!cluster.isWorker) return
  const tell = (message: Message | Answer) => {
    if (process.connected) process.send?.(message)
  }
  process.on('message', (message) => {
    if (message === ('stop' satisfies Message)) stop()
    if (!isQuestion(message)) return
    const tellValue = (value: unknown) => tell({ answerTo: message.id, value })
    answers[message.question]?.().then(tellValue, () => tellValue(undefined))
  })
  setInterval(() => tell('alive'), aliveEveryMs).unref()
  tell('ready')
}
