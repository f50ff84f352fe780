/**
 * The list of commands, and the one place where a command's end becomes an exit code: 0 done, 1 failed, 2 the command
 * line was wrong. An expected failure is one message and no stack trace.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Command, CommanderError } from 'commander'
import { ConfigError } from '../config.ts'
import { isDatabaseUnavailable } from '../database/database.ts'
import { DataFolderInUse } from '../database/folder-lock.ts'
import { CannotListen } from '../lifecycle.ts'
import { Problem } from '../problems.ts'
import { KeyEncryptionError } from '../signing/key-encryption.ts'
import { AttributeDeclarationError } from '../users/attributes.ts'
import { HashingOverloaded } from '../users/hashing-gate.ts'
import { BlocklistError } from '../users/password-blocklist.ts'
import { WorkFactorError } from '../users/work-factor.ts'
import { addApiKeys } from './api-keys.ts'
import { addAudit } from './audit.ts'
import { addCalibrate } from './calibrate.ts'
import { addClients } from './clients.ts'
import {
  CommandEnded,
  CommandFailed,
  UsageError,
  type AddCommand,
  type CommandContext,
  type CommandIo,
} from './command.ts'
import { addConfig } from './config.ts'
import { ControlSocketError } from './control-socket.ts'
import { addKeys } from './keys.ts'
import { addMigrate } from './migrate.ts'
import { addPlans } from './plans.ts'
import { addResources } from './resources.ts'
import { addRoles } from './roles.ts'
import { addSignals } from './signals.ts'
import { addUsers } from './users.ts'

/** What can be asked of a running server as well as done alone. */
const everywhere: readonly AddCommand[] = [
  addMigrate,
  addCalibrate,
  addConfig,
  addUsers,
  addClients,
  addResources,
  addRoles,
  addPlans,
  addApiKeys,
  addKeys,
  addAudit,
  addSignals,
]

/**
 * Carries one command line out.
 * @param argv without the program's own name
 * @param alone what a running server does not do for others
 * @returns the exit code; never throws
 */
export async function runCommand(
  argv: readonly string[],
  context: CommandContext,
  alone: readonly AddCommand[] = [],
): Promise<number> {
  const { io } = context
  const program = new Command('latchkey')
    .description('An OAuth 2.0 / OpenID Connect identity provider.')
    .version(packageVersion(), '--version', 'print the version')
    .helpOption('-h, --help', 'print this help')
    .showHelpAfterError('(add --help for more)')
    .configureOutput({
      writeOut: (text) => io.out(withoutLastNewline(text)),
      writeErr: (text) => io.err(withoutLastNewline(text)),
    })
    .exitOverride()
  for (const add of [...alone, ...everywhere]) add(program, context)
  try {
    await program.parseAsync([...argv], { from: 'user' })
    return 0
  } catch (error) {
    return exitCodeOf(error, io)
  }
}

const expected = [
  CommandFailed,
  CannotListen,
  ConfigError,
  DataFolderInUse,
  ControlSocketError,
  WorkFactorError,
  BlocklistError,
  AttributeDeclarationError,
  KeyEncryptionError,
  HashingOverloaded,
] as const

function exitCodeOf(error: unknown, io: CommandIo): number {
  if (error instanceof CommandEnded) return error.exitCode
  // The parser has printed its message, or the help that was asked for.
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2
  if (error instanceof UsageError) {
    io.err(`error: ${error.message}`)
    return 2
  }
  if (error instanceof Problem) {
    io.err(`error: ${error.message}`)
    if (error.details.length > 1) {
      io.err(error.details.map(({ field, message }) => `  ${field}: ${message}`).join('\n'))
    }
    return 1
  }
  if (expected.some((known) => error instanceof known)) {
    io.err(`error: ${error instanceof Error ? error.message : String(error)}`)
    return 1
  }
  if (isDatabaseUnavailable(error)) {
    io.err(`error: The database cannot be reached or is busy: ${messageOf(error)}`)
    return 1
  }
  io.err(`error: This should not happen. ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`)
  return 1
}

/** A refused connection to several addresses at once is an AggregateError without a message of its own. */
function messageOf(error: unknown): string {
  if (error instanceof AggregateError) return error.errors.map(messageOf).join(', ')
  return error instanceof Error ? error.message : String(error)
}

function withoutLastNewline(text: string): string {
  return text.replace(/\n$/, '')
}

function packageVersion(): string {
  const file = join(import.meta.dirname, '..', '..', 'package.json')
  const { version } = JSON.parse(readFileSync(file, 'utf8')) as { version: string }
  return version
}
