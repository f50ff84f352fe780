/**
 * The processes of a measurement: each server, and the load, in one of its own, so that what one of them costs can be
 * told from the rest. They end with the process that started them, however that ends.
 */
import { fork, spawn, type ChildProcess, type StdioOptions } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const root = join(import.meta.dirname, '..', '..')
// Preloaded: when this process is gone, so is its child.
const endWithParent = join(root, 'test', 'support', 'end-with-parent.mjs')

/** What `getconf CLK_TCK` says on every Linux that Node runs on: the unit of utime and stime (proc(5)). */
const ticksPerSecond = 100

export interface BenchProcess {
  readonly pid: number
  /** whether it has ended, which none of them does by itself */
  readonly hasEnded: () => boolean
  /** The processor time of the process and of its children so far, in microseconds (utime + stime of all threads). */
  cpuMicroseconds(): number
  /** Sends a message and waits for its answer; only for programs of bench/support that answer. */
  ask(message: unknown): Promise<unknown>
  stop(): Promise<void>
}

export interface StartSettings {
  readonly environment?: Readonly<Record<string, string>>
  /** options of node itself, such as --cpu-prof */
  readonly nodeOptions?: readonly string[]
  /** where it writes to: a file descriptor, or nowhere */
  readonly output?: number
}

/** Starts a program of bench/support, which answers messages. */
export function startProgram(name: string, settings: StartSettings = {}): BenchProcess {
  const { output = 'ignore', nodeOptions = [], environment = {} } = settings
  const child = fork(join(import.meta.dirname, name), [], {
    execArgv: ['--import', endWithParent, ...nodeOptions],
    stdio: ['pipe', output, 'inherit', 'ipc'],
    env: { ...process.env, ...environment },
  })
  return describe(child)
}

/** Starts `latchkey <command>`, with nothing of this process's environment but the path and OpenSSL's setting. */
export function startLatchkey(command: readonly string[], settings: StartSettings = {}): BenchProcess {
  const { output = 'ignore', nodeOptions = [], environment = {} } = settings
  const stdio: StdioOptions = ['pipe', output, output]
  const program = join(root, 'src', 'latchkey.mjs')
  const child = spawn(process.execPath, ['--import', endWithParent, ...nodeOptions, program, ...command], {
    stdio,
    cwd: root,
    env: { PATH: process.env['PATH'], OPENSSL_ia32cap: process.env['OPENSSL_ia32cap'], ...environment },
  })
  return describe(child)
}

function describe(child: ChildProcess): BenchProcess {
  const { pid } = child
  if (pid === undefined) throw new Error('a process could not be started')
  const gone = once(child, 'exit')
  child.stdin?.on('error', () => child.stdin?.destroy())
  return {
    pid,
    hasEnded: () => child.exitCode !== null || child.signalCode !== null,
    cpuMicroseconds: () => processTree(pid).reduce((sum, member) => sum + readCpuMicroseconds(member), 0),
    async ask(message) {
      child.send(message as object)
      const answer: unknown = await Promise.race([
        once(child, 'message').then(([first]: unknown[]) => first),
        gone.then(([code]: unknown[]) => {
          throw new Error(`a process of the measurement ended with ${String(code)}`)
        }),
      ])
      return answer
    },
    async stop() {
      child.kill('SIGTERM')
      const late = sleep(5_000, 'late' as const, { ref: false })
      if ((await Promise.race([gone, late])) === 'late') child.kill('SIGKILL')
      await gone
    },
  }
}

function processTree(pid: number): number[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number)
  return [pid, ...children.flatMap(processTree)]
}

function readCpuMicroseconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  // The name, in parentheses, may hold spaces: fields are counted behind it. utime is the 14th, stime the 15th.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return ((Number(fields[11]) + Number(fields[12])) * 1_000_000) / ticksPerSecond
}

/** Waits until a server's address answers with 200. */
export async function waitUntilReady(url: string, server: BenchProcess, seconds = 60): Promise<void> {
  const deadline = performance.now() + seconds * 1_000
  for (;;) {
    const answer = await fetch(url, { headers: { Connection: 'close' }, signal: AbortSignal.timeout(2_000) }).catch(
      () => undefined,
    )
    await answer?.arrayBuffer()
    if (answer?.status === 200) return
    if (server.hasEnded()) throw new Error(`the server of ${url} ended before it was ready`)
    if (performance.now() > deadline) throw new Error(`${url} did not answer within ${seconds} s`)
    await sleep(50)
  }
}
