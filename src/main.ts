/**
 * The command line: reads the environment, the terminal and the process for commands/, which touch none of them. A
 * command that needs the embedded database opens it; when a server has it open already, the server carries the command
 * out instead, and this process only prints what it says.
 */
import { userInfo } from 'node:os'
import { createInterface } from 'node:readline/promises'
import { Writable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import {
  CommandEnded,
  CommandFailed,
  maxStdinBytes,
  type AddCommand,
  type CommandContext,
  type CommandIo,
} from './commands/command.ts'
import { callServer } from './commands/control-socket.ts'
import { addPolicy } from './commands/policy.ts'
import { runCommand } from './commands/program.ts'
import { readConfig, type Config } from './config.ts'
import { openDatabase, type Database } from './database/database.ts'
import { DataFolderInUse } from './database/folder-lock.ts'
import { findPendingMigrations, migrate } from './database/migrate.ts'

/**
 * @param argv the command line without `node` and the program's name
 * @returns the exit code
 */
export async function main(argv: readonly string[]): Promise<number> {
  // A reader that has seen enough, such as `head`, closes the pipe: no failure of ours.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error
  })
  const io = terminal()
  const operator = operatorName()
  // Only when asked for: help and usage errors need no environment.
  let config: Config | undefined
  const configOnce = () => (config ??= readConfig())
  const context: CommandContext = {
    get config() {
      return configOnce()
    },
    io,
    actor: { type: 'operator', id: operator },
    now: () => new Date(),
    async withDatabase(fn, schema = 'current') {
      const database = await openOrCall(configOnce(), argv, operator, io)
      try {
        if (schema === 'current') await requireCurrentSchema(database)
        return await fn(database)
      } finally {
        await database.close()
      }
    },
  }
  return runCommand(argv, context, [addServe, addPolicy])
}

/** Loaded when it is asked for, since it brings the whole server: other commands start in half the time without it. */
const addServe: AddCommand = (program, context) => {
  program
    .command('serve')
    .description('start the server')
    .action(async () => {
      const { serve } = await import('./commands/serve.ts')
      await serve(context)
    })
}

/** How long a command waits for another one that has the data folder, which it may just be making; in milliseconds. */
const patienceMs = 30_000
/** When it says what it waits for. */
const quietMs = 2_000

/**
 * Opens the database; or, where a running server has it, lets that server carry the command out.
 * @throws CommandEnded when a running server did
 * @throws DataFolderInUse when another process has the folder and answers no commands
 */
async function openOrCall(config: Config, argv: readonly string[], operator: string, io: CommandIo): Promise<Database> {
  const log = pino({ level: 'warn' }, pino.destination({ fd: 2, sync: true }))
  const startedAt = performance.now()
  let hasSaidSo = false
  for (;;) {
    try {
      return await openDatabase(
        {
          databaseUrl: config.databaseUrl,
          dataDir: config.dataDir,
          poolSize: config.databasePoolSize,
          connectTimeoutSeconds: config.databaseConnectTimeoutSeconds,
          statementTimeoutSeconds: config.databaseStatementTimeoutSeconds,
        },
        log,
      )
    } catch (error) {
      if (!(error instanceof DataFolderInUse)) throw error
      const exitCode = await callServer(config.dataDir, { argv, operator, io })
      if (exitCode !== undefined) throw new CommandEnded(exitCode)
      // Another command has it for a moment, or a server that is just starting.
      const waitedMs = performance.now() - startedAt
      if (waitedMs > patienceMs) throw error
      if (waitedMs > quietMs && !hasSaidSo) {
        io.err(`Waiting for the process that has the data folder ${config.dataDir}.`)
        hasSaidSo = true
      }
      await sleep(200)
    }
  }
}

/** The embedded database is brought up to date by whoever opens it; a PostgreSQL only when its operator says so. */
async function requireCurrentSchema({ engine, db }: Database): Promise<void> {
  if (engine === 'pglite') {
    await migrate(db)
    return
  }
  const pending = await findPendingMigrations(db)
  if (pending.length > 0) {
    throw new CommandFailed(`The database lacks ${pending.join(', ')}: run \`latchkey migrate\` first.`)
  }
}

function terminal(): CommandIo {
  let stdin: Promise<string> | undefined
  return {
    out: (text) => void process.stdout.write(`${text}\n`),
    err: (text) => void process.stderr.write(`${text}\n`),
    stdin: () => (stdin ??= process.stdin.isTTY ? readHiddenLine() : readAll()),
  }
}

async function readAll(): Promise<string> {
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of process.stdin as AsyncIterable<Buffer>) {
    bytes += chunk.length
    if (bytes > maxStdinBytes) throw new CommandFailed(`Standard input is longer than ${maxStdinBytes} bytes.`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString('utf8')
}

/** Reads one line without showing it, since what commands ask for is secret. */
async function readHiddenLine(): Promise<string> {
  const nowhere = new Writable({ write: (_chunk, _encoding, done) => done() })
  const lines = createInterface({ input: process.stdin, output: nowhere, terminal: true })
  lines.on('SIGINT', () => process.exit(130))
  process.stderr.write('Type it and press Enter (it is not shown): ')
  try {
    return await lines.question('')
  } finally {
    lines.close()
    process.stderr.write('\n')
  }
}

function operatorName(): string {
  try {
    return userInfo().username
  } catch (error) {
    // A container may run under a number that has no name.
    if (!(error instanceof Error) || !('code' in error)) throw error
    return `uid-${process.getuid?.() ?? 'unknown'}`
  }
}
