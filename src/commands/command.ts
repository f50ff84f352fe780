/**
 * What every command is given, and the little that commands share in what they print. A command is one function in a
 * file of its own that adds itself to the program (program.ts lists them); it never touches the environment, the
 * process or the terminal, so that a running server can carry it out for a caller at the control socket in just the
 * same way. Data goes to `out`, everything meant for a person to `err`.
 *
 * A command does nothing that can be seen, and asks for no standard input, before it calls `withDatabase`: there the
 * command may turn out to be another process's to carry out.
 */
import type { Command } from 'commander'
import type { Actor } from '../audit/audit.ts'
import type { Config } from '../config.ts'
import type { Database } from '../database/database.ts'

export interface CommandIo {
  /** Prints data, one line or several; the last newline is added. */
  out(text: string): void
  /** Prints a message for a person, one line or several; the last newline is added. */
  err(text: string): void
  /**
   * All of standard input, at most {@link maxStdinBytes} of UTF-8; the same text however often it is asked for. On a
   * terminal one line, not shown while it is typed.
   */
  stdin(): Promise<string>
}

/** How much standard input a command takes. */
export const maxStdinBytes = 1_048_576

export interface CommandContext {
  /** @throws ConfigError at the first use, when the environment is wrong */
  readonly config: Config
  readonly io: CommandIo
  /**
   * Hands the open database to `fn` and closes it afterwards. The schema is up to date, except for `migrate` itself,
   * which asks for the database as it is.
   * @throws CommandFailed when the schema of a PostgreSQL database is not up to date
   */
  readonly withDatabase: <T>(fn: (database: Database) => Promise<T>, schema?: 'current' | 'as it is') => Promise<T>
  readonly actor: Actor
  now(): Date
}

/** Adds one noun with its verbs, or one verb, to the program. */
export type AddCommand = (program: Command, context: CommandContext) => void

/** An expected failure: its message is all that a person needs, and the exit code is 1. */
export class CommandFailed extends Error {
  override name = 'CommandFailed'
}

/** The command line was wrong in a way that the parser cannot know: exit code 2. */
export class UsageError extends Error {
  override name = 'UsageError'
}

/** The command is over and has said everything: there is only its exit code left to pass on. */
export class CommandEnded extends Error {
  override name = 'CommandEnded'
  readonly exitCode: number
  constructor(exitCode: number) {
    super(`the command ended with exit code ${exitCode}`)
    this.exitCode = exitCode
  }
}

export function printJson(io: CommandIo, value: unknown): void {
  io.out(JSON.stringify(value, undefined, 2))
}

/**
 * Prints rows in columns with a heading; nothing for no rows, so that `wc -l` tells the truth.
 * @example printTable(io, ['kid', 'state'], keys.map(({ kid, state }) => [kid, state]))
 */
export function printTable(io: CommandIo, heading: readonly string[], rows: readonly (readonly string[])[]): void {
  if (rows.length === 0) return
  const lines = [heading.map((title) => title.toUpperCase()), ...rows]
  const widths = heading.map((_, column) => Math.max(...lines.map((line) => printable(line[column]).length)))
  io.out(
    lines
      .map((line) =>
        line
          .map((cell, column) => printable(cell).padEnd(widths[column] ?? 0))
          .join('  ')
          .trimEnd(),
      )
      .join('\n'),
  )
}

/** Names come from outside: none may move the cursor or colour the terminal. */
export function printable(cell: string | undefined): string {
  return (cell ?? '').replaceAll(/\p{C}/gu, '�')
}

/** For options that may be repeated. @example .option('--role <role>', 'may be repeated', repeated, []) */
export function repeated(value: string, previous: readonly string[]): string[] {
  return [...previous, value]
}

/**
 * A permission as it is written on the command line: `models:read@https://api.example.com`.
 * @throws UsageError when it has no @
 */
export function parsePermission(text: string): { permission: string; resource: string } {
  const at = text.indexOf('@')
  if (at < 1) throw new UsageError(`'${text}' is not a permission: write type:action@resource`)
  return { permission: text.slice(0, at), resource: text.slice(at + 1) }
}

/** As {@link parsePermission} reads it. */
export function writePermission({ permission, resource }: { permission: string; resource: string }): string {
  return `${permission}@${resource}`
}

/**
 * A name and a value as they are written on the command line: `department=legal`.
 * @throws UsageError when there is no =
 */
export function parsePair(text: string): [name: string, value: string] {
  const equals = text.indexOf('=')
  if (equals < 1) throw new UsageError(`'${text}' has no value: write name=value`)
  return [text.slice(0, equals), text.slice(equals + 1)]
}

/** @throws UsageError when it is no whole number; what it may be is for others to say */
export function parseWholeNumber(option: string, text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new UsageError(`${option} must be a whole number, not '${text}'`)
  return Number(text)
}
