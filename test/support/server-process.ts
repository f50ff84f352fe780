/**
 * Servers as processes of their own, started as an operator starts them, for tests of races, crashes and stops. They end
 * with the test, and with the tests' own process however that ends.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, inject, onTestFinished, TestRunner } from 'vitest'
import type { DatabaseLocation } from './databases.ts'
import { findFreePort } from './ports.ts'
import { programEnvironment } from './program-environment.ts'

const root = join(import.meta.dirname, '..', '..')

export interface Ending {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

export interface ServerProcess {
  /** such as http://localhost:41234, which is also the issuer unless the environment says otherwise */
  readonly url: string
  readonly port: number
  readonly pid: number
  /** everything that it has written so far */
  readonly stdout: () => string
  readonly stderr: () => string
  /** Stops reading what it writes, as a stalled log collector does; and reads on. */
  pauseOutput(): void
  resumeOutput(): void
  /** when it has ended, for whatever reason */
  readonly ended: Promise<Ending>
  /** Resolves once `/health/ready` answers 200. */
  ready(timeoutMs?: number): Promise<void>
  /** Sends a signal; SIGKILL is a crash. Where there are workers, the primary alone gets it. */
  signal(signal: NodeJS.Signals): void
  /** Signals, and waits for the end. */
  stop(signal?: NodeJS.Signals): Promise<Ending>
}

export interface ServerSettings {
  /** which database; without one, the embedded database in `LATCHKEY_DATA_DIR` of `environment` */
  readonly database?: DatabaseLocation
  readonly environment?: Readonly<Record<string, string>>
  /** other than `src/latchkey.mjs serve` */
  readonly program?: readonly string[]
  readonly port?: number
  /** false: the caller waits for {@link ServerProcess.ready}, or for its end */
  readonly waitUntilReady?: boolean
}

/**
 * Starts a server and waits until it is ready. Several on one `database` make a cluster without a primary.
 *
 * @throws Error with the server's output when it ends before it is ready
 * @example
 * const server = await startServer({ database: await createDatabase('postgres') })
 * await server.stop('SIGKILL')
 */
export async function startServer(settings: ServerSettings = {}): Promise<ServerProcess> {
  const port = settings.port ?? (await findFreePort())
  const { database } = settings
  const home = join(inject('temporaryFolder'), `server-${port}`)
  mkdirSync(home, { recursive: true })
  const child = spawn(
    process.execPath,
    [
      '--import',
      join(import.meta.dirname, 'end-with-parent.mjs'),
      ...(settings.program ?? ['src/latchkey.mjs', 'serve']),
    ],
    {
      cwd: root,
      stdio: ['pipe', 'pipe', 'pipe'],
      env: {
        ...programEnvironment,
        HOME: home,
        NODE_ENV: 'development',
        PORT: String(port),
        LATCHKEY_LOG_FORMAT: 'json',
        LATCHKEY_DRAIN_SECONDS: '0',
        LATCHKEY_KEYS_DIR: database === undefined ? home : join(inject('temporaryFolder'), `keys-${nameOf(database)}`),
        LATCHKEY_DATA_DIR: database?.dataDir ?? home,
        ...(database?.databaseUrl === undefined ? {} : { DATABASE_URL: database.databaseUrl }),
        // All tests come from one network, and fast.
        LATCHKEY_NETWORK_RATE_PER_SECOND: '0',
        ...settings.environment,
      },
    },
  )
  const stdout: string[] = []
  const stderr: string[] = []
  child.stdout.setEncoding('utf8').on('data', (text: string) => stdout.push(text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => stderr.push(text))
  child.stdin.on('error', () => child.stdin.destroy())
  let ending: Ending | undefined
  const ended = once(child, 'exit').then(([code, signal]) => {
    ending = { code: code as number | null, signal: signal as NodeJS.Signals | null }
    return ending
  })
  const { pid } = child
  if (pid === undefined) throw new Error('the server process could not be started')

  const url = `http://localhost:${port}`
  const server: ServerProcess = {
    url,
    port,
    pid,
    stdout: () => stdout.join(''),
    stderr: () => stderr.join(''),
    pauseOutput: () => void child.stdout.pause(),
    resumeOutput: () => void child.stdout.resume(),
    ended,
    async ready(timeoutMs = 60_000) {
      const deadline = performance.now() + timeoutMs
      for (;;) {
        if (ending !== undefined || performance.now() > deadline) {
          const how = ending === undefined ? `was not ready after ${timeoutMs} ms` : `ended: ${JSON.stringify(ending)}`
          throw new Error(`The server ${how}.\n${server.stdout().slice(-4_000)}\n${server.stderr().slice(-4_000)}`)
        }
        const answer = await fetch(`${url}/health/ready`, {
          // No connection stays behind that a later request could find dead.
          headers: { Connection: 'close' },
          signal: AbortSignal.timeout(2_000),
        }).catch(() => undefined)
        await answer?.arrayBuffer()
        if (answer?.status === 200) return
        await sleep(50)
      }
    },
    signal: (signal) => void (ending === undefined && child.kill(signal)),
    stop(signal = 'SIGTERM') {
      server.signal(signal)
      return ended
    },
  }
  const end = async () => {
    // The end of its input kills it and its workers; the signal, in case it was not even started.
    child.stdin.end()
    server.signal('SIGKILL')
    await ended
  }
  if (TestRunner.getCurrentTest() === undefined) afterAll(end)
  else onTestFinished(end)
  if (settings.waitUntilReady !== false) await server.ready()
  return server
}

function nameOf(database: DatabaseLocation): string {
  return database.dataDir.split('/').at(-1) ?? ''
}
