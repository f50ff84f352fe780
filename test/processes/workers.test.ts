import { setTimeout as sleep } from 'node:timers/promises'
import { expect, it } from 'vitest'
import { startServer, type ServerProcess } from '../support/server-process.ts'

const program = ['test/processes/serving-process.ts']
const environment = { WORKERS: '2', HUNG_AFTER: '2' }

/** The processes that answer, each asked on a connection of its own. */
async function findWorkers(server: ServerProcess, asked = 40): Promise<Set<number>> {
  const pids = await Promise.all(Array.from({ length: asked }, () => ask(server, '/pid')))
  return new Set(pids.map(Number))
}

async function ask(server: ServerProcess, path: string): Promise<string> {
  const answer = await fetch(server.url + path, {
    headers: { Connection: 'close' },
    signal: AbortSignal.timeout(20_000),
  })
  return answer.text()
}

/** Waits until two processes answer, and says which. */
async function bothServe(server: ServerProcess): Promise<Set<number>> {
  const deadline = performance.now() + 20_000
  const seen = new Set<number>()
  while (performance.now() < deadline) {
    for (const pid of await findWorkers(server)) seen.add(pid)
    if (seen.size === 2) return seen
    await sleep(50)
  }
  throw new Error('waited in vain')
}

it('gives up when no worker can start', async () => {
  const first = await startServer({ program })
  const second = await startServer({ program, environment, port: first.port, waitUntilReady: false })
  expect(await second.ended).toEqual({ code: 1, signal: null })
  expect(second.stderr()).toContain('Another program is listening')
})

it('replaces a worker that died, which takes only its own requests with it', async () => {
  const server = await startServer({ program, environment })
  const [victim = 0, survivor = 0] = await bothServe(server)
  const slow = Array.from({ length: 40 }, () => ask(server, '/slow?ms=1000').catch(() => 'lost'))
  await sleep(300)
  process.kill(victim, 'SIGKILL')
  const meanwhile = await Promise.all(Array.from({ length: 20 }, () => ask(server, '/pid')))
  expect(meanwhile).not.toContain(String(victim))
  const answers = new Set(await Promise.all(slow))
  expect([...answers].sort()).toEqual([String(survivor), 'lost'].sort())
  expect([...(await bothServe(server))]).toContain(survivor)
  expect(server.stdout()).toContain('a worker died')
})

it('kills and replaces a worker whose event loop hangs', async () => {
  const server = await startServer({ program, environment })
  const before = await bothServe(server)
  const hung = ask(server, '/hang').catch(() => 'lost')
  await sleep(300)
  // The other one answers while it hangs.
  const answered = await Promise.all(Array.from({ length: 20 }, () => ask(server, '/pid')))
  expect(new Set(answered).size).toBe(1)
  expect(await hung).toBe('lost')
  const after = await bothServe(server)
  expect([...after].filter((pid) => before.has(pid))).toEqual([...new Set(answered)].map(Number))
  expect(server.stdout()).toContain('a worker hangs')
})

it('stops all workers on SIGTERM, after they have answered what is under way', async () => {
  const server = await startServer({ program, environment: { ...environment, DRAIN: '1' } })
  const workers = await bothServe(server)
  const slow = Array.from({ length: 20 }, () => ask(server, '/slow?ms=1500'))
  await sleep(500)
  const ending = server.stop('SIGTERM')
  for (const pid of await Promise.all(slow)) expect(workers).toContain(Number(pid))
  expect(await ending).toEqual({ code: 0, signal: null })
  for (const pid of workers) expect(() => process.kill(pid, 0)).toThrow('ESRCH')
})

it('stops once when every process of the group is signalled, as Ctrl-C and systemd do', async () => {
  const server = await startServer({ program, environment: { ...environment, DRAIN: '3' } })
  const workers = await bothServe(server)
  const slow = Array.from({ length: 10 }, () => ask(server, '/slow?ms=3000'))
  await sleep(1_500)
  for (const pid of [...workers, server.pid]) process.kill(pid, 'SIGTERM')
  for (const pid of await Promise.all(slow)) expect(workers).toContain(Number(pid))
  expect(await server.ended).toEqual({ code: 0, signal: null })
})

it('stops while its workers are still starting', async () => {
  const server = await startServer({
    program,
    environment: { ...environment, START_MS: '60000' },
    waitUntilReady: false,
  })
  await sleep(3_000)
  const stoppedAt = performance.now()
  expect(await server.stop('SIGTERM')).toEqual({ code: 0, signal: null })
  expect(performance.now() - stoppedAt).toBeLessThan(8_000)
})
