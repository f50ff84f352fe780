/** Commands as an operator runs them: on an open database within this process, or as processes of their own. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import type { CommandContext } from '../../src/commands/command.ts'
import { runCommand } from '../../src/commands/program.ts'
import { readConfig } from '../../src/config.ts'
import type { Database } from '../../src/database/database.ts'
import { programEnvironment } from '../support/program-environment.ts'

export interface Ran {
  readonly exitCode: number | null
  readonly out: string
  readonly err: string
}

/** Carries a command out on a database. @param stdin undefined: the command must not ask for it */
export async function latchkey(database: Database, args: readonly string[], stdin?: string): Promise<Ran> {
  const out: string[] = []
  const err: string[] = []
  const context: CommandContext = {
    config: readConfig({}),
    io: {
      out: (text) => void out.push(text),
      err: (text) => void err.push(text),
      async stdin() {
        if (stdin === undefined) throw new Error('the command asks for standard input')
        return stdin
      },
    },
    withDatabase: (fn) => fn(database),
    actor: { type: 'operator', id: 'ada' },
    now: () => new Date(),
  }
  const exitCode = await runCommand(args, context)
  return { exitCode, out: out.join('\n'), err: err.join('\n') }
}

/** What a command printed with --json. */
export async function json<T>(database: Database, args: readonly string[], stdin?: string): Promise<T> {
  const { exitCode, out, err } = await latchkey(database, [...args, '--json'], stdin)
  if (exitCode !== 0) throw new Error(`latchkey ${args.join(' ')} failed: ${err}`)
  return JSON.parse(out) as T
}

/** Runs `latchkey …` as a process, with nothing in its environment but what is given. */
export async function latchkeyProcess(
  args: readonly string[],
  settings: { readonly environment?: Record<string, string>; readonly stdin?: string; readonly node?: string[] } = {},
): Promise<Ran> {
  const root = join(import.meta.dirname, '..', '..')
  const child = spawn(process.execPath, [...(settings.node ?? []), join(root, 'src', 'latchkey.mjs'), ...args], {
    cwd: root,
    env: { ...programEnvironment, ...settings.environment },
  })
  onTestFinished(() => void child.kill('SIGKILL'))
  let out = ''
  let err = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (out += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (err += text))
  child.stdin.end(settings.stdin ?? '')
  const [exitCode] = (await once(child, 'close')) as [number | null]
  return { exitCode, out, err }
}
