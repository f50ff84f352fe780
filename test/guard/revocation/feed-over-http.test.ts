/** The feed over real connections: they are cut, the issuer is killed and comes back, or takes requests and says nothing. */
import { createGuard } from '@latchkey/guard'
import type { Fetch, Guard, RevocationFeedOptions } from '@latchkey/guard'
import { afterEach, beforeEach, expect, it, onTestFinished } from 'vitest'
import { IssuerServer } from '../support/issuer-server.ts'
import { caughtUp, feedOf, outcome, until } from '../support/wire.ts'

let server: IssuerServer

beforeEach(async () => {
  server = await IssuerServer.open()
})

afterEach(() => server.stop())

async function listening(feed: Partial<RevocationFeedOptions> = {}): Promise<Guard> {
  const guard = createGuard(server.options(feed))
  onTestFinished(() => guard.close())
  await caughtUp(guard)
  return guard
}

const isPolling = (path: string): boolean => path.endsWith('/poll')

it('a revocation is known within a second, without a request to the issuer', async () => {
  const guard = await listening()
  const token = await server.idp.mint()
  expect(await outcome(guard, token)).toBe('alice')
  await until('a poll waits', () => server.requests.some(isPolling))
  const before = server.requests.filter((path) => !isPolling(path)).length
  const began = performance.now()
  void server.idp.revoke({ sub: 'alice' })
  while ((await outcome(guard, token)) === 'alice') await new Promise((resolve) => setTimeout(resolve, 1))
  expect(performance.now() - began).toBeLessThan(1000)
  expect(await outcome(guard, token)).toBe('401 revoked')
  expect(server.requests.filter((path) => !isPolling(path)).length).toBe(before)
})

it('fifty revocations while connections are cut again and again: none is missed', async () => {
  const guard = await listening({ onStale: 'deny' })
  const subjects = Array.from({ length: 50 }, (_, at) => `user-${at}`)
  const tokens = await Promise.all(subjects.map((sub) => server.idp.mint({ sub })))
  expect(await Promise.all(tokens.map((token) => outcome(guard, token)))).toEqual(subjects)
  for (const [at, sub] of subjects.entries()) {
    void server.idp.revoke({ sub })
    if (at % 5 === 0) server.cut()
    await new Promise((resolve) => setTimeout(resolve, 3))
  }
  await until('all of them', () => feedOf(guard).entries === 50)
  expect(new Set(await Promise.all(tokens.map((token) => outcome(guard, token))))).toEqual(new Set(['401 revoked']))
})

it('an issuer that was killed and comes back finds its guard again, which has missed nothing', async () => {
  const guard = await listening({ onStale: 'deny' })
  const token = await server.idp.mint()
  expect(await outcome(guard, token)).toBe('alice')
  await server.stop()
  await until('noticed', () => feedOf(guard).lastError !== undefined)
  await Promise.race([server.idp.revoke({ sub: 'alice' }), new Promise((resolve) => setTimeout(resolve, 20))])
  // Within the budget it lets in whom it knows.
  expect(await outcome(guard, token)).toBe('alice')
  await new Promise((resolve) => setTimeout(resolve, 300))
  await server.start()
  const began = performance.now()
  await until('known', () => feedOf(guard).entries === 1)
  expect(performance.now() - began).toBeLessThan(3000)
  expect(await outcome(guard, token)).toBe('401 revoked')
})

it('an issuer that comes back without its streams finds new ones opened, which begin with everything', async () => {
  const guard = await listening({ onStale: 'deny' })
  const { streamId } = feedOf(guard)
  const token = await server.idp.mint()
  await server.stop()
  // Another process under the same address, which knows the same revocations and no streams.
  await Promise.race([server.idp.revoke({ sub: 'alice' }), new Promise((resolve) => setTimeout(resolve, 20))])
  const { fetch } = server.idp
  const isOld = (address: string): boolean => address.includes(streamId ?? '')
  const withoutStreams: Fetch = async (address, init) =>
    isOld(address) ? new Response(null, { status: 404 }) : fetch(address, init)
  Object.assign(server.idp, { fetch: withoutStreams })
  await server.start()
  await until('another stream', () => ![streamId, undefined].includes(feedOf(guard).streamId) && feedOf(guard).caughtUp)
  expect(await outcome(guard, token)).toBe('401 revoked')
})

it('an issuer that takes requests and says nothing makes the feed stale in time, and does not hold requests up', async () => {
  const guard = await listening({ maxStaleness: '2s', onStale: 'deny' })
  const token = await server.idp.mint()
  expect(await outcome(guard, token)).toBe('alice')
  // A budget shorter than the issuer holds a poll: the guard asks in between, and stays current.
  await new Promise((resolve) => setTimeout(resolve, 2500))
  expect(feedOf(guard)).toMatchObject({ status: 'current', errors: 0 })
  server.isMute = true
  await until('stale', () => feedOf(guard).status === 'stale', 4000)
  const began = performance.now()
  expect(await outcome(guard, token)).toBe('503 revocation')
  expect(performance.now() - began).toBeLessThan(500)
  server.isMute = false
  server.cut()
  await until('current', () => feedOf(guard).status === 'current')
  expect(await outcome(guard, token)).toBe('alice')
})

it('a redirect leads nowhere: neither the token nor the secret goes to whom it names', async () => {
  const thief = await IssuerServer.open()
  onTestFinished(() => thief.stop())
  const guard = await listening()
  server.location = `${thief.idp.issuer}/elsewhere`
  server.cut()
  await until('three refusals', () => feedOf(guard).errors > 2)
  expect(await outcome(guard, await server.idp.mint())).toBe('alice')
  expect(thief.requests).toEqual([])
})

it('twenty guards in one process have twenty streams, and all of them hear', async () => {
  const guards = await Promise.all(Array.from({ length: 20 }, () => listening()))
  expect(new Set(guards.map((guard) => feedOf(guard).streamId)).size).toBe(20)
  const token = await server.idp.mint()
  for (const guard of guards) expect(await outcome(guard, token)).toBe('alice')
  await server.idp.revoke({ sub: 'alice' })
  for (const guard of guards) expect(await outcome(guard, token)).toBe('401 revoked')
})
