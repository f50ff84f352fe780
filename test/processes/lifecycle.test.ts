import { once } from 'node:events'
import { Agent, request, type IncomingMessage } from 'node:http'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it, onTestFinished } from 'vitest'
import { findFreePort } from '../support/ports.ts'
import { startServer, type ServerProcess } from '../support/server-process.ts'

const program = ['test/processes/serving-process.ts']

function start(environment: Record<string, string> = {}, waitUntilReady = true): Promise<ServerProcess> {
  return startServer({ program, environment, waitUntilReady })
}

/** One request, on a connection of its own unless an agent keeps it. */
async function get(
  url: string,
  agent?: Agent,
): Promise<{ status: number; headers: IncomingMessage['headers']; body: string }> {
  const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>()
  request(url.replace('localhost', '127.0.0.1'), { agent: agent ?? false }, resolve)
    .on('error', reject)
    .end()
  const answer = await promise
  let body = ''
  for await (const chunk of answer.setEncoding('utf8')) body += String(chunk)
  return { status: answer.statusCode ?? 0, headers: answer.headers, body }
}

function keepAliveAgent(): Agent {
  const agent = new Agent({ keepAlive: true })
  onTestFinished(() => agent.destroy())
  return agent
}

describe('a process that starts', () => {
  it('says what to do when another program has its port', async () => {
    const first = await start()
    const second = await startServer({ program, port: first.port, waitUntilReady: false })
    expect(await second.ended).toEqual({ code: 1, signal: null })
    expect(second.stderr()).toContain(`Another program is listening on port ${first.port}`)
    expect(second.stderr()).toContain(`PORT=${first.port + 1}`)
  })

  it('says what to do when HOST is not an address of this machine', async () => {
    const server = await start({ HOST: '203.0.113.1' }, false)
    expect(await server.ended).toEqual({ code: 1, signal: null })
    expect(server.stderr()).toContain('203.0.113.1 is not an address of this machine')
  })

  it('answers at once that it is alive and not ready, and serves later', async () => {
    const server = await start({ START_MS: '1500' }, false)
    const deadline = performance.now() + 10_000
    const listening = async () => (await get(`${server.url}/health/live`).catch(() => undefined)) !== undefined
    while (!(await listening()) && performance.now() < deadline) await sleep(20)

    expect((await get(`${server.url}/health/live`)).status).toBe(200)
    for (const path of ['/health/ready', '/pid']) {
      expect(await get(server.url + path)).toMatchObject({ status: 503, headers: { 'retry-after': '1' } })
    }
    await server.ready()
    expect((await get(`${server.url}/pid`)).body).toBe(String(server.pid))
  })
})

describe('a process that is told to stop', () => {
  it('answers all 100 requests that are under way, and exits with 0', async () => {
    const server = await start({ DRAIN: '1' })
    const agent = keepAliveAgent()
    const slow = Array.from({ length: 100 }, () => get(`${server.url}/slow?ms=1500`, agent))
    await sleep(700)
    const stoppedAt = performance.now()
    const ending = server.stop('SIGTERM')
    const answers = await Promise.all(slow)
    expect(answers.filter(({ body }) => body === String(server.pid))).toHaveLength(100)
    expect(new Set(answers.map(({ headers }) => headers.connection))).toEqual(new Set(['close']))
    expect(await ending).toEqual({ code: 0, signal: null })
    expect(performance.now() - stoppedAt).toBeLessThan(10_000)
    expect(server.stdout()).toContain('"message":"stopped"')
  })

  it('is not ready at once, still answers while it drains, and closes each connection', async () => {
    const server = await start({ DRAIN: '2' })
    const agent = keepAliveAgent()
    expect((await get(`${server.url}/pid`, agent)).headers.connection).toBe('keep-alive')
    server.signal('SIGTERM')
    await sleep(200)
    expect(await get(`${server.url}/health/ready`)).toMatchObject({ status: 503, body: 'draining' })
    expect(await get(`${server.url}/pid`, agent)).toMatchObject({ status: 200, headers: { connection: 'close' } })
    expect(await server.ended).toEqual({ code: 0, signal: null })
  })

  it('loses no request of a client that keeps asking while it goes and another comes', async () => {
    const [first, second] = [await start({ DRAIN: '1' }), await start()]
    const agent = keepAliveAgent()
    let url = first.url
    let asked = 0
    const failed: unknown[] = []
    const until = performance.now() + 2_500
    const ask = async () => {
      while (performance.now() < until) {
        asked += 1
        // What a balancer does: it leaves once it sees that the first is not ready.
        await get(`${url}/pid`, agent).catch((error: unknown) => failed.push(error))
      }
    }
    const asking = Promise.all([ask(), ask(), ask(), ask()])
    await sleep(500)
    first.signal('SIGTERM')
    await sleep(300)
    url = second.url
    await asking
    expect(failed).toEqual([])
    expect(asked).toBeGreaterThan(100)
    expect(await first.ended).toEqual({ code: 0, signal: null })
  })

  it('cuts what is still open when its time is over', async () => {
    const server = await start({ STOP_TIMEOUT: '1' })
    const outcome = get(`${server.url}/never`).then(
      () => 'answered',
      () => 'cut',
    )
    await sleep(200)
    const stoppedAt = performance.now()
    expect(await server.stop('SIGTERM')).toEqual({ code: 0, signal: null })
    expect(performance.now() - stoppedAt).toBeGreaterThan(900)
    expect(await outcome).toBe('cut')
  })

  it('does not drain after Ctrl-C', async () => {
    const server = await start({ DRAIN: '5' })
    const stoppedAt = performance.now()
    expect(await server.stop('SIGINT')).toEqual({ code: 0, signal: null })
    expect(performance.now() - stoppedAt).toBeLessThan(3_000)
  })

  it('quits at once at the second signal', async () => {
    const server = await start({ DRAIN: '20', STOP_TIMEOUT: '20' })
    server.signal('SIGTERM')
    await sleep(200)
    expect(await server.stop('SIGTERM')).toEqual({ code: 143, signal: null })
  })
})

describe('a process that serves', () => {
  it('logs an error that nobody caught, and ends', async () => {
    const server = await start()
    await get(`${server.url}/crash`).catch(() => undefined)
    expect(await server.ended).toEqual({ code: 1, signal: null })
    expect(server.stdout()).toMatch(/"level":"FATAL".*the fault of this handler/)
  })

  it('ends a connection that sends its request too slowly', async () => {
    const server = await start({ REQUEST_TIMEOUT: '1' })
    const socket = connect(server.port, '127.0.0.1')
    onTestFinished(() => void socket.destroy())
    socket.write('POST /pid HTTP/1.1\r\nHost: localhost\r\n')
    let received = ''
    socket.setEncoding('utf8').on('data', (text: string) => (received += text))
    await once(socket, 'close')
    expect(received).toContain('408 Request Timeout')
  })

  it('refuses headers of more than 16 KiB', async () => {
    const server = await start()
    const answer = await fetch(`${server.url.replace('localhost', '127.0.0.1')}/pid`, {
      headers: { 'X-Filler': 'x'.repeat(17_000) },
    })
    expect(answer.status).toBe(431)
  })

  it('keeps serving, in bounded memory, when nobody reads its log', async () => {
    const port = await findFreePort()
    const server = await startServer({ program, port })
    // The pipe stays full from here on.
    server.pauseOutput()
    const sizes: number[] = []
    for (let i = 0; i < 12; i += 1) sizes.push(Number((await get(`${server.url}/log`)).body))
    const [first = 0] = sizes
    // 120 MB were logged; 4 MiB may wait.
    expect(sizes.at(-1)).toBeLessThan(first + 60 * 1024 * 1024)
    expect((await get(`${server.url}/pid`)).status).toBe(200)
    server.resumeOutput()
    await sleep(500)
    await get(`${server.url}/log`)
    await sleep(500)
    expect(server.stdout()).toContain('log lines were dropped')
  })
})
