import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import type { Writable } from 'node:stream'

/** A shell script that outlives a crash of the tests for as long as it needs to clean up. */
export interface Keeper {
  /** Sends a line to the script's standard input. */
  say(line: string): void
  /** Ends the script's standard input, which every keeper takes as "clean up now", and waits until it has. */
  end(): Promise<void>
}

/**
 * Starts `script` in a process group of its own. It reads its standard input, which ends when this process does,
 * however it does: after Ctrl-C and after kill -9 alike, nothing is left behind.
 */
export function startKeeper(
  script: string,
  parameters: readonly string[],
  user: { uid?: number; gid?: number } = {},
): Keeper {
  const child: ChildProcess & { stdin: Writable } = spawn('sh', ['-c', script, 'keeper', ...parameters], {
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
    cwd: '/',
    ...user,
  })
  const exited = once(child, 'exit')
  child.stdin.on('error', () => child.stdin.destroy())
  child.unref()
  return {
    say: (line) => void child.stdin.write(`${line}\n`),
    async end() {
      // Else a run with nothing left to do but this would end here, silently and with exit code 0.
      child.ref()
      child.stdin.end()
      await exited
    },
  }
}
