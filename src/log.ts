/**
 * The log: one JSON object a line in production, readable lines in development. Every line has `timestamp`, `level` and
 * `message`, and within a request its `request_id`; the one line of each finished request is http/access-log.ts's.
 *
 * Nothing that anybody could sign in with, and nobody's personal data, belongs in it. Callers log fields that they have
 * chosen, never requests, rows or bodies; what is blanked out here is the second line of defence.
 */
import type { Writable } from 'node:stream'
import { pino, type Logger } from 'pino'
import { prettyFactory } from 'pino-pretty'
import type { Config } from './config.ts'

export type { Logger }

export interface LogSettings extends Pick<Config, 'logLevel' | 'logFormat'> {
  /** what every line says of the request at hand */
  readonly fields?: () => Readonly<Record<string, unknown>>
}

/** @param output process.stdout, or in tests something that can be read back */
export function openLog(
  { logLevel, logFormat, fields }: LogSettings,
  output: Writable & { isTTY?: boolean } = process.stdout,
): Logger {
  const format = logFormat === 'json' ? undefined : readableFormat(output)
  const write = boundedWriter(output, format === undefined && output === process.stdout)
  return pino(
    {
      level: logLevel,
      messageKey: 'message',
      timestamp: timestamps(),
      base: { pid: process.pid },
      // Errors go through withoutSecrets alone; neither pino's own serializer nor a line that repeats the raw message.
      errorKey: 'error',
      serializers: { err: (error: unknown) => error },
      hooks: {
        logMethod([first, message = '(no message)', ...rest], method) {
          const subject: unknown = first
          if (subject instanceof Error) method.apply(this, [{ error: subject }, message, ...rest])
          else if (typeof subject === 'string') method.apply(this, [subject])
          else method.apply(this, [subject, message, ...rest])
        },
      },
      formatters: {
        level: (label) => ({ level: label.toUpperCase() }),
        log: withoutSecrets,
      },
      ...(fields === undefined ? {} : { mixin: () => ({ ...fields() }) }),
    },
    { write: format === undefined ? write : (line) => write(format(line)) },
  )
}

/** Under load several lines are of one millisecond. */
function timestamps(): () => string {
  let last = 0
  let text = ''
  return () => {
    const now = Date.now()
    if (now !== last) text = `,"timestamp":"${new Date(now).toISOString()}"`
    last = now
    return text
  }
}

function readableFormat(output: Writable & { isTTY?: boolean }): (line: string) => string {
  return prettyFactory({
    colorize: output.isTTY === true && process.stdout.hasColors(),
    messageKey: 'message',
    timestampKey: 'timestamp',
    translateTime: 'SYS:HH:MM:ss',
    ignore: 'pid,trace_id',
    singleLine: true,
  })
}

/** Bytes that may wait for a reader who has stopped reading. */
const mostWaitingBytes = 4 * 1024 * 1024

/**
 * A pipe that nobody empties must neither stop the server nor fill its memory: beyond the bound lines are dropped, and
 * once there is room again the log says how many.
 *
 * @param isOurs nobody else writes there: the lines of one turn of the event loop are written at its end, together, since
 *   each writing is a system call that everybody waits for; and what is left when the process exits
 */
function boundedWriter(output: Writable, isOurs: boolean): (line: string) => void {
  let dropped = 0
  let gathered = ''
  const flush = () => {
    if (gathered !== '') output.write(gathered)
    gathered = ''
  }
  if (isOurs) process.on('exit', flush)
  // The reader has gone (EPIPE): there is nobody left to tell.
  output.on('error', () => undefined)
  return (line) => {
    if (output.writableLength + gathered.length > mostWaitingBytes) {
      dropped += 1
      return
    }
    if (isOurs && gathered === '') setImmediate(flush)
    if (dropped > 0) {
      const timestamp = new Date().toISOString()
      const lost = { level: 'WARN', timestamp, message: 'log lines were dropped: nobody read them', dropped }
      gathered += `${JSON.stringify(lost)}\n`
      dropped = 0
    }
    gathered += line
    if (!isOurs) flush()
  }
}

/** Names under which a secret may come by mistake. */
const secretNames =
  /^(authorization|cookie|set-cookie|.*(password|secret|passphrase|private_?key)|((access|refresh|id|csrf)_)?token|code(_verifier)?|client_assertion|assertion|dpop|login|email)$/i

const knownNames = new Map<string, boolean>()
const mostKnownNames = 1_000

/** Names are few, and each line has a dozen of them. */
function isSecretName(name: string): boolean {
  const known = knownNames.get(name)
  if (known !== undefined) return known
  const isSecret = secretNames.test(name)
  if (knownNames.size < mostKnownNames) knownNames.set(name, isSecret)
  return isSecret
}

function withoutSecrets(fields: Record<string, unknown>): Record<string, unknown> {
  const safe: Record<string, unknown> = {}
  for (const [name, value] of Object.entries(fields)) {
    if (isSecretName(name)) safe[name] = '[not logged]'
    else if (value instanceof Error) safe[name] = describeError(value)
    else if (name === 'error_message' && typeof value === 'string') safe[name] = scrub(value)
    else safe[name] = value
  }
  return safe
}

/** What may be logged of an error: never its own fields, among which a driver puts the row that it refused. */
export function describeError(error: Error, depth = 0): Record<string, unknown> {
  return {
    type: error.name,
    message: scrub(error.message),
    ...('code' in error && typeof error.code === 'string' ? { code: error.code } : {}),
    stack: scrub(error.stack ?? ''),
    ...(error.cause instanceof Error && depth < 3 ? { cause: describeError(error.cause, depth + 1) } : {}),
  }
}

/** Blanks out what looks like an address, a token or a query string: messages of others repeat what they were given. */
function scrub(text: string): string {
  return text
    .slice(0, 8_000)
    .replaceAll(/[\w.+-]+@[\w-]+(\.[\w-]+)+/g, '[address]')
    .replaceAll(/\?[^\s"')]{3,}/g, '?[query]')
    .replaceAll(/\b[\w-]{20,}\.[\w-]{20,}\.[\w-]{20,}\b/g, '[token]')
    .replaceAll(/\b(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{32,}\b/g, '[token]')
}
