/**
 * How commands reach the server that has the embedded database open: a unix socket in the data folder, for its owner
 * alone (0600). The caller sends its arguments, the server carries the very same command out and streams back what it
 * prints. One JSON object a line:
 *
 *     caller   {"version":1,"operator":"alice","argv":["users","list"]}
 *     server   {"out":"…"}  {"err":"…"}  as the command prints
 *     server   {"ask":"stdin"}           when the command wants standard input
 *     caller   {"stdin":"…"}
 *     server   {"exit":0}
 *
 * Whoever may open the socket may as well open the database's files, so the operator's name is taken as it is given.
 */
import { chmodSync, rmSync } from 'node:fs'
import { createConnection, createServer, type Socket } from 'node:net'
import { join, relative } from 'node:path'
import { z } from 'zod'
import { CommandFailed, maxStdinBytes, type CommandIo } from './command.ts'

const version = 1
const maxRequestCharacters = 256 * 1_024
// Text of maxStdinBytes, each character of it escaped as \u0000.
const maxReplyCharacters = 6 * maxStdinBytes + 1_024
const requestTimeoutMs = 10_000

const requestSchema = z.object({
  version: z.literal(version),
  operator: z.string().min(1).max(256),
  argv: z.array(z.string()).max(1_000),
})
const stdinSchema = z.object({ stdin: z.string() })
const messageSchema = z.union([
  z.strictObject({ out: z.string() }),
  z.strictObject({ err: z.string() }),
  z.strictObject({ ask: z.literal('stdin') }),
  z.strictObject({ exit: z.int().min(0).max(255) }),
])
type Message = z.infer<typeof messageSchema>

/** The socket cannot be had in this folder; the message says why. */
export class ControlSocketError extends Error {
  override name = 'ControlSocketError'
}

export interface CommandCall {
  readonly argv: readonly string[]
  /** the name of the account at whose command line it was typed */
  readonly operator: string
  readonly io: CommandIo
}

export interface ControlSocketSettings {
  /** the data folder; the caller holds its lock, so that a socket found there is a dead server's */
  readonly folder: string
  /** Carries a command out. @returns its exit code */
  readonly run: (call: CommandCall) => Promise<number>
}

export interface ControlSocket {
  /** Takes no more commands, and waits for those that are running. */
  close(): Promise<void>
}

/** @throws ControlSocketError when the folder's path is too long for a socket */
export async function openControlSocket({ folder, run }: ControlSocketSettings): Promise<ControlSocket> {
  const path = socketPath(folder)
  rmSync(path, { force: true })
  const open = new Set<Socket>()
  const running = new Set<Promise<void>>()
  const server = createServer((socket) => {
    open.add(socket)
    // A caller that goes away while its command runs: the command ends all the same, and nobody hears of it.
    socket.on('error', () => socket.destroy())
    socket.on('close', () => open.delete(socket))
    serveCaller(socket, run, running)
  })
  const { promise: listening, resolve, reject } = Promise.withResolvers<void>()
  server.on('error', reject)
  // Made for its owner alone from the first moment: the file is bound before `listen` returns.
  const umask = process.umask(0o177)
  try {
    server.listen(path, resolve)
  } finally {
    process.umask(umask)
  }
  await listening
  chmodSync(path, 0o600)
  return {
    async close() {
      const closed = new Promise((resolve) => server.close(resolve))
      await Promise.all(running)
      for (const socket of open) socket.destroy()
      await closed
    },
  }
}

function serveCaller(socket: Socket, run: ControlSocketSettings['run'], running: Set<Promise<void>>): void {
  const send = (message: Message) => {
    if (socket.writable) socket.write(`${JSON.stringify(message)}\n`)
  }
  const lines = readLines(socket, maxReplyCharacters)
  const impatience = setTimeout(() => socket.destroy(), requestTimeoutMs)

  async function serve(): Promise<void> {
    const first = await lines.next()
    clearTimeout(impatience)
    if (first.done === true) return
    const request = requestSchema.safeParse(parseJson(first.value.slice(0, maxRequestCharacters)))
    if (!request.success) {
      send({
        err: 'The running server does not understand this command: it is of another version, or the command is too long.',
      })
      send({ exit: 1 })
      socket.end()
      return
    }
    let stdin: Promise<string> | undefined
    const io: CommandIo = {
      out: (text) => send({ out: text }),
      err: (text) => send({ err: text }),
      stdin: () => (stdin ??= askForStdin()),
    }
    async function askForStdin(): Promise<string> {
      send({ ask: 'stdin' })
      const reply = await lines.next()
      if (reply.done === true) throw new CommandFailed('The caller went away.')
      return stdinSchema.parse(parseJson(reply.value)).stdin
    }
    const { argv, operator } = request.data
    const command = run({ argv, operator, io }).then(
      (exit) => send({ exit }),
      (error: unknown) => {
        send({ err: error instanceof Error ? error.message : String(error) })
        send({ exit: 1 })
      },
    )
    running.add(command)
    await command
    running.delete(command)
    socket.end()
  }

  // A caller that says nothing sensible, or went away: there is nobody to tell.
  serve().catch(() => socket.destroy())
}

/**
 * Has a command carried out by the server that holds the folder.
 * @returns the exit code; undefined when no server listens there
 * @throws CommandFailed when the server goes away before the command has ended
 * @throws ControlSocketError when the folder's path is too long for a socket
 */
export async function callServer(folder: string, { argv, operator, io }: CommandCall): Promise<number | undefined> {
  const socket = await connect(socketPath(folder))
  if (socket === undefined) return undefined
  socket.write(`${JSON.stringify({ version, operator, argv })}\n`)
  try {
    for await (const line of readLines(socket, Infinity)) {
      const message = messageSchema.parse(parseJson(line))
      if ('out' in message) io.out(message.out)
      else if ('err' in message) io.err(message.err)
      else if ('exit' in message) return message.exit
      else socket.write(`${JSON.stringify({ stdin: await io.stdin() })}\n`)
    }
  } finally {
    socket.destroy()
  }
  throw new CommandFailed('The server stopped before the command had ended: look whether it was carried out.')
}

async function connect(path: string): Promise<Socket | undefined> {
  const socket = createConnection(path)
  const { promise: connected, resolve, reject } = Promise.withResolvers<Socket | undefined>()
  socket.once('connect', () => resolve(socket))
  socket.on('error', (error: NodeJS.ErrnoException) => {
    // Never made, or left behind by a server that was killed.
    if (error.code === 'ENOENT' || error.code === 'ECONNREFUSED') resolve(undefined)
    else if (error.code === 'EACCES') reject(new CommandFailed('The running server belongs to another user account.'))
    else reject(error)
  })
  return connected
}

/** The socket's address holds at most 104 bytes on macOS, 108 on Linux, one of them for its end. */
const maxPathBytes = 103

function socketPath(folder: string): string {
  const absolute = join(folder, 'control.sock')
  // A folder below the current one is often near enough where its whole path is too long.
  const path = [absolute, relative(process.cwd(), absolute)].find((path) => Buffer.byteLength(path) <= maxPathBytes)
  if (path !== undefined) return path
  throw new ControlSocketError(
    `The path of the data folder ${folder} is too long for the socket by which commands reach the server: choose a shorter LATCHKEY_DATA_DIR.`,
  )
}

async function* readLines(socket: Socket, maxCharacters: number): AsyncGenerator<string, undefined> {
  socket.setEncoding('utf8')
  let buffered = ''
  for await (const chunk of socket as AsyncIterable<string>) {
    buffered += chunk
    for (let end = buffered.indexOf('\n'); end >= 0; end = buffered.indexOf('\n')) {
      yield buffered.slice(0, end)
      buffered = buffered.slice(end + 1)
    }
    if (buffered.length > maxCharacters) throw new ControlSocketError('A line at the control socket is too long.')
  }
  return undefined
}

function parseJson(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}
