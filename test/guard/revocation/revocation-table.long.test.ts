/** A million revocations in a guard: what they take, and what a look-up among them costs. Printed, for the README. */
import { randomUUID } from 'node:crypto'
import { createGuard } from '@latchkey/guard'
import { createTestIssuer } from '@latchkey/guard/testing'
import { expect, it, onTestFinished } from 'vitest'
import { RevocationTable } from '../../../src/guard/revocation/revocation-table.ts'
import { feedOf, outcome, until } from '../support/wire.ts'

const NOW = 1_800_000_000
const MILLION = 1_000_000

it('a million entries: memory, look-ups, no false hit', () => {
  const table = new RevocationTable(4 * MILLION)
  const bare = { iss: 'https://id.example.com', aud: 'a', exp: NOW + 900, iat: NOW, client_id: 'web', token_version: 1 }
  const tokenOf = (id: string) => ({ ...bare, sub: `user ${id}`, jti: id, sid: `sid ${id}`, grant_id: `grant ${id}` })
  const dead = Array.from({ length: MILLION }, () => randomUUID())
  let longestMs = 0
  const began = performance.now()
  for (const [at, id] of dead.entries()) {
    // As they come: mostly people and sessions.
    const kind = (['token', 'session', 'grant', 'version'] as const)[at & 3] ?? 'token'
    const { jti, sid, grant_id: grantId, sub } = tokenOf(id)
    const before = performance.now()
    table.add(
      { kind, id: { token: jti, session: sid, grant: grantId, version: sub }[kind], limit: 4e9, expiresAt: NOW + 9e4 },
      NOW,
    )
    longestMs = Math.max(longestMs, performance.now() - before)
  }
  const addedNs = ((performance.now() - began) * 1e6) / MILLION
  expect(table.size).toBe(MILLION)
  const { bytes } = table
  expect(bytes / MILLION).toBeLessThan(43)

  const living = Array.from({ length: 200_000 }, () => tokenOf(randomUUID()))
  const killed = dead.filter((_, at) => at % 5 === 0).map(tokenOf)
  const cost = (tokens: readonly ReturnType<typeof tokenOf>[], expected: boolean): number => {
    let wrong = 0
    const start = process.cpuUsage()
    for (const token of tokens) if (table.isRevoked(token, 'key-1', NOW) !== expected) wrong += 1
    const { user, system } = process.cpuUsage(start)
    expect(wrong).toBe(0)
    return (user + system) / tokens.length
  }
  cost(living.slice(0, 20_000), false)
  const missUs = cost(living, false)
  const hitUs = cost(killed, true)
  expect(missUs).toBeLessThan(20)

  const swept = performance.now()
  let longestSweepMs = 0
  while (table.size > 0) {
    const before = performance.now()
    table.sweep(NOW + 1e5)
    longestSweepMs = Math.max(longestSweepMs, performance.now() - before)
  }
  console.log(
    JSON.stringify({
      entries: MILLION,
      megabytes: Math.round(bytes / 1e5) / 10,
      add_ns: Math.round(addedNs),
      longest_add_ms: Math.round(longestMs),
      token_not_revoked_us: Number(missUs.toFixed(2)),
      token_revoked_us: Number(hitUs.toFixed(2)),
      swept_ms: Math.round(performance.now() - swept),
      longest_sweep_ms: Number(longestSweepMs.toFixed(1)),
    }),
  )
})

it('ten thousand active revocations through the feed of a guard that begins', async () => {
  const idp = await createTestIssuer({ algorithm: 'ES256' })
  const tokens: string[] = []
  for (let at = 0; at < 100; at += 1) tokens.push(await idp.mint({ sub: `user-${at * 100}` }))
  for (let at = 0; at < 10_000; at += 1) await idp.revoke({ sub: `user-${at}` })
  const guard = createGuard({ ...idp.options, revocation: { ...idp.options.revocation, onStale: 'deny' } })
  onTestFinished(() => guard.close())
  await until('caught up', () => feedOf(guard).caughtUp, 120_000)
  expect(feedOf(guard)).toMatchObject({ entries: 10_000, errors: 0 })
  for (const token of tokens) expect(await outcome(guard, token)).toBe('401 revoked')
  expect(await outcome(guard, await idp.mint())).toBe('alice')
})
