import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createConnection, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it, onTestFinished } from 'vitest'
import type { CommandIo } from '../../src/commands/command.ts'
import {
  callServer,
  ControlSocketError,
  openControlSocket,
  type CommandCall,
} from '../../src/commands/control-socket.ts'

function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'latchkey-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  return folder
}

async function listenIn(folder: string, run: (call: CommandCall) => Promise<number>) {
  const socket = await openControlSocket({ folder, run })
  onTestFinished(() => socket.close())
  return socket
}

function recorded(stdin = '') {
  const printed: string[] = []
  let asked = 0
  const io: CommandIo = {
    out: (text) => void printed.push(`out ${text}`),
    err: (text) => void printed.push(`err ${text}`),
    async stdin() {
      asked += 1
      return stdin
    },
  }
  return { io, printed, asked: () => asked }
}

async function connectTo(folder: string): Promise<Socket> {
  const socket = createConnection(join(folder, 'control.sock'))
  await once(socket, 'connect')
  onTestFinished(() => void socket.destroy())
  return socket.setEncoding('utf8')
}

/** Everything that the server says until it hangs up. */
async function answerTo(folder: string, text: string): Promise<string> {
  const socket = await connectTo(folder)
  let answer = ''
  socket.on('data', (chunk: string) => (answer += chunk))
  // The server may hang up before it has read everything.
  socket.on('error', () => socket.destroy())
  socket.write(text)
  await new Promise((resolve) => socket.once('close', resolve))
  return answer
}

describe('the control socket', () => {
  it('carries out nothing that it does not understand', async () => {
    const folder = temporaryFolder()
    const calls: unknown[] = []
    await listenIn(folder, async (call) => {
      calls.push(call)
      return 0
    })
    const request = { version: 1, operator: 'ada', argv: ['users', 'list'] }
    const malformed = [
      'GET / HTTP/1.1',
      'null',
      '[]',
      JSON.stringify({ ...request, version: 2 }),
      JSON.stringify({ ...request, operator: '' }),
      JSON.stringify({ ...request, operator: undefined }),
      JSON.stringify({ ...request, argv: 'users list' }),
      JSON.stringify({ ...request, argv: [1] }),
      JSON.stringify({ ...request, argv: ['x'.repeat(300_000)] }),
    ]
    for (const line of malformed) {
      expect(await answerTo(folder, `${line}\n`)).toMatch(
        /^\{"err":"The running server does not understand.*\n\{"exit":1\}\n$/,
      )
    }
    expect(calls).toEqual([])
  })

  it('hangs up on a line without an end, before it fills the memory', async () => {
    const folder = temporaryFolder()
    await listenIn(folder, async () => 0)
    expect(await answerTo(folder, 'x'.repeat(8 * 1_048_576))).toBe('')
  })

  it('is its owner’s alone, and gone once it is closed', async () => {
    const folder = temporaryFolder()
    const socket = await openControlSocket({ folder, run: async () => 0 })
    const path = join(folder, 'control.sock')
    expect(statSync(path).mode & 0o777).toBe(0o600)
    await socket.close()
    expect(existsSync(path)).toBe(false)
  })

  it('hands over the arguments and the operator, and streams back what is printed, and the exit code', async () => {
    const folder = temporaryFolder()
    await listenIn(folder, async ({ argv, operator, io }) => {
      io.out(`${operator}: ${argv.join('|')}`)
      io.err('two\nlines, and "quotes" \u2028')
      return 7
    })
    const { io, printed, asked } = recorded()
    expect(await callServer(folder, { argv: ['users', 'create', 'ä b'], operator: 'ada', io })).toBe(7)
    expect(printed).toEqual(['out ada: users|create|ä b', 'err two\nlines, and "quotes" \u2028'])
    expect(asked()).toBe(0)
  })

  it('asks for standard input only when the command wants it, and once', async () => {
    const folder = temporaryFolder()
    await listenIn(folder, async ({ io }) => {
      io.out(`${(await io.stdin()).length} ${(await io.stdin()).length}`)
      return 0
    })
    const { io, printed, asked } = recorded('\u0000'.repeat(1_000_000))
    expect(await callServer(folder, { argv: [], operator: 'ada', io })).toBe(0)
    expect(printed).toEqual(['out 1000000 1000000'])
    expect(asked()).toBe(1)
  })

  it('carries out several at once, each with its own answer', async () => {
    const folder = temporaryFolder()
    await listenIn(folder, async ({ argv, io }) => {
      await sleep(Math.random() * 20)
      io.out(argv[0] ?? '')
      return Number(argv[0])
    })
    const codes = Array.from({ length: 20 }, (_, i) => i)
    const answers = await Promise.all(
      codes.map(async (i) => {
        const { io, printed } = recorded()
        return [await callServer(folder, { argv: [String(i)], operator: 'ada', io }), ...printed]
      }),
    )
    expect(answers).toEqual(codes.map((i) => [i, `out ${i}`]))
  })

  it('says that a command crashed, and goes on', async () => {
    const folder = temporaryFolder()
    await listenIn(folder, async ({ argv }) => {
      if (argv[0] === 'crash') throw new Error('a bug')
      return 0
    })
    const { io, printed } = recorded()
    expect(await callServer(folder, { argv: ['crash'], operator: 'ada', io })).toBe(1)
    expect(printed).toEqual(['err a bug'])
    expect(await callServer(folder, { argv: [], operator: 'ada', io })).toBe(0)
  })

  it('ends what it has begun, although the caller has gone or the server is closing', async () => {
    const folder = temporaryFolder()
    const { promise: begun, resolve: begin } = Promise.withResolvers<void>()
    let hasEnded = false
    const socket = await openControlSocket({
      folder,
      async run({ io }) {
        begin()
        await sleep(100)
        io.out('nobody hears this')
        hasEnded = true
        return 0
      },
    })
    const caller = await connectTo(folder)
    caller.write(`${JSON.stringify({ version: 1, operator: 'ada', argv: [] })}\n`)
    await begun
    caller.destroy()
    await socket.close()
    expect(hasEnded).toBe(true)
  })

  it('tells the caller when the server is gone before the command has ended', async () => {
    const folder = temporaryFolder()
    const silent = createServer((caller) => void caller.once('data', () => caller.destroy()))
    silent.listen(join(folder, 'control.sock'))
    await once(silent, 'listening')
    onTestFinished(() => void silent.close())
    await expect(callServer(folder, { argv: [], operator: 'ada', io: recorded().io })).rejects.toThrow(/stopped before/)
  })

  it('is not there when no server is, and what a killed one left behind counts for nothing', async () => {
    const folder = temporaryFolder()
    const call = () => callServer(folder, { argv: [], operator: 'ada', io: recorded().io })
    expect(await call()).toBeUndefined()
    writeFileSync(join(folder, 'control.sock'), '')
    expect(await call()).toBeUndefined()
    await listenIn(folder, async () => 3)
    expect(await call()).toBe(3)
  })

  it('works in a folder whose path is too long, from one that is near, and else says so', async () => {
    const folder = join(temporaryFolder(), 'x'.repeat(120))
    mkdirSync(folder)
    const open = () => openControlSocket({ folder, run: async () => 4 })
    await expect(open()).rejects.toThrow(ControlSocketError)
    const call = { argv: [], operator: 'ada', io: recorded().io }
    await expect(callServer(folder, call)).rejects.toThrow(/too long.*LATCHKEY_DATA_DIR/)

    const before = process.cwd()
    process.chdir(folder)
    try {
      const socket = await open()
      expect(await callServer(folder, call)).toBe(4)
      await socket.close()
    } finally {
      process.chdir(before)
    }
  })
})
