/**
 * What is revoked stays revoked, and what is valid stays valid, whatever stops, dies or is cut off in between. Servers,
 * database and services are processes of their own.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { decodeJwt } from 'jose'
import { beforeAll, beforeEach, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import { revokeEverythingOfClient } from '../../src/oauth/clients.ts'
import { revoke } from '../../src/revocation/revocations.ts'
import { onPostgres } from '../support/databases.ts'
import type { ServerProcess } from '../support/server-process.ts'
import { openFleet, until, watching, type Fleet, type Seen, type ServiceProcess } from './fleet.ts'

onPostgres(() => {
  let fleet: Fleet
  let provider: ServerProcess

  beforeAll(async () => {
    fleet = await openFleet()
    provider = await fleet.startProvider()
  })

  beforeEach(() => fleet.proxy.unblock())

  /** As the command line does, which needs no server. */
  const revokeInDatabase = (token: string) =>
    fleet.db
      .transaction()
      .execute((trx) =>
        revoke(trx, { kind: 'token', subject: decodeJwt(token).jti ?? '', reason: 'by the command line' }),
      )
  const refused = async (services: readonly ServiceProcess[], tokens: readonly string[]) =>
    (await Promise.all(services.map((service) => service.askAll(tokens)))).flat().every((status) => status === 401)
  const statusesOf = (seen: readonly Seen[]) => [...new Set(seen.map(({ status }) => status))].toSorted((a, b) => a - b)

  it('one of two providers is killed in the middle: every revocation is known everywhere within seconds', async () => {
    const second = await fleet.startProvider(1)
    const services = await Promise.all([1, 2, 3].map(() => fleet.startService()))
    await Promise.all(services.map((service) => service.current()))
    const [valid = '', ...tokens] = await fleet.mint(provider, 31)
    for (const service of services) expect(new Set(await service.askAll([valid, ...tokens]))).toEqual(new Set([200]))
    const slowestMs: number[] = []
    const seen = await watching(services, [valid], async () => {
      const known: Promise<void>[] = []
      for (const [turn, token] of tokens.entries()) {
        // Half of them at the one that dies, as long as it lives.
        const at = turn % 2 === 0 && turn < 15 ? second : provider
        expect(await fleet.revoke(at, token)).toBe(true)
        known.push(
          until('it is refused', () => refused(services, [token]), 15_000).then((ms) => void slowestMs.push(ms)),
        )
        if (turn === 15) second.signal('SIGKILL')
        await sleep(20)
      }
      await Promise.all(known)
    })
    expect(statusesOf(seen)).toEqual([200])
    expect(await refused(services, tokens)).toBe(true)
    expect(Math.max(...slowestMs)).toBeLessThan(10_000)
  }, 120_000)

  it('the database crashes and comes back: services go on, and what is revoked before and after is refused', async () => {
    const services = await Promise.all([fleet.startService(), fleet.startService({ onStale: 'introspect' })])
    await Promise.all(services.map((service) => service.current()))
    const [valid = '', before = '', during = '', after = '', unseen = ''] = await fleet.mint(provider, 5)
    for (const service of services) {
      expect(await service.askAll([valid, before, during, after])).toEqual([200, 200, 200, 200])
    }
    const seen = await watching(services, [valid], async () => {
      expect(await fleet.revoke(provider, before)).toBe(true)
      await fleet.postgres.halt('QUIT')
      // Nobody is told that it is done.
      expect(await fleet.revoke(provider, during)).toBe(false)
      await sleep(1_000)
      for (const service of services) expect(await service.askAll([valid, unseen])).toEqual([200, 200])
      await fleet.postgres.resume()
      await until('the provider can revoke again', () => fleet.revoke(provider, after))
      await until('both are refused', () => refused(services, [before, after]))
    })
    expect(statusesOf(seen)).toEqual([200])
    for (const service of services) expect(await service.askAll([during, unseen])).toEqual([200, 200])
  }, 120_000)

  it('a service that is restarted lets nobody in who was revoked, neither before nor after it has caught up', async () => {
    const services = await Promise.all([fleet.startService(), fleet.startService({ onStale: 'introspect' })])
    const [denying, asking] = services
    await Promise.all(services.map((service) => service.current()))
    const [valid = '', before = '', meanwhile = ''] = await fleet.mint(provider, 3)
    await fleet.revoke(provider, before)
    await until('it is refused', () => refused(services, [before]))
    for (const service of services) await service.kill()
    await fleet.revoke(provider, meanwhile)

    // One of them comes back while the feed is not to be had: it cannot know, so it says so and lets nobody in.
    fleet.proxy.block((path) => path.startsWith('/ssf/'))
    const again = await fleet.startService({ port: denying.port })
    const blind = [await again.ask(before), await again.ask(meanwhile), await again.ask(valid)]
    expect(blind.map(({ status, retryAfter }) => [status, retryAfter])).toEqual([
      [503, '1'],
      [503, '1'],
      [503, '1'],
    ])
    expect(await again.feed()).toMatchObject({ status: 'stale', caughtUp: false, entries: 0 })
    const seen = await watching([again], [before, meanwhile], async () => {
      fleet.proxy.unblock()
      await again.current()
      // The other has the feed from its beginning, and is asked from its beginning.
      const other = await fleet.startService({ port: asking.port, onStale: 'introspect' })
      expect(await other.askAll([before, meanwhile])).not.toContain(200)
      await other.current()
      expect(await other.askAll([before, meanwhile, valid])).toEqual([401, 401, 200])
    })
    expect(statusesOf(seen)).not.toContain(200)
    expect(await again.askAll([before, meanwhile, valid])).toEqual([401, 401, 200])
  }, 120_000)

  it('a feed that is cut off is trusted for as long as its budget, and no longer', async () => {
    const budgetMs = 4_000
    const choices = ['deny', 'allow', 'introspect'] as const
    const services = await Promise.all(
      choices.map((onStale) => fleet.startService({ onStale, maxStaleness: `${budgetMs / 1_000}s` })),
    )
    const [denying, allowing, asking] = services as [ServiceProcess, ServiceProcess, ServiceProcess]
    await Promise.all(services.map((service) => service.current()))
    const [valid = '', dead = '', meanwhile = '', later = ''] = await fleet.mint(provider, 4)
    expect(await fleet.revoke(provider, dead)).toBe(true)
    await until('it is refused', () => refused(services, [dead]))
    for (const service of services) expect(await service.askAll([valid, meanwhile])).toEqual([200, 200])
    const streams = await Promise.all(services.map(async (service) => (await service.feed()).streamId ?? ''))

    fleet.proxy.block((path) => path.startsWith('/ssf/'))
    expect(await fleet.revoke(provider, meanwhile)).toBe(true)
    // What the last answer said was true then.
    const freshAt = streams.map((stream) =>
      Math.max(
        ...fleet.proxy.requests.filter(({ path }) => path.includes(stream)).map(({ answeredAt }) => answeredAt ?? 0),
      ),
    )
    const [denied, allowed, asked] = await Promise.all(
      services.map((service) => watching([service], [valid], () => sleep(budgetMs + 2_500), 10)),
    )
    const within = (seen: readonly Seen[] = [], from = 0) => seen.filter((one) => one.answeredAt < from + budgetMs)
    // The service may have read the answer a little later than it came through here.
    const beyond = (seen: readonly Seen[] = [], from = 0) => seen.filter((one) => one.sentAt > from + budgetMs + 1_500)
    expect(within(denied, freshAt[0]).length).toBeGreaterThan(10)
    expect(statusesOf(within(denied, freshAt[0]))).toEqual([200])
    expect(beyond(denied, freshAt[0]).length).toBeGreaterThan(10)
    expect(statusesOf(beyond(denied, freshAt[0]))).toEqual([503])
    expect(new Set(beyond(denied, freshAt[0]).map(({ retryAfter }) => retryAfter))).toEqual(new Set(['1']))
    expect(statusesOf(denied ?? [])).toEqual([200, 503])
    expect(statusesOf([...(allowed ?? []), ...(asked ?? [])])).toEqual([200])

    // What is known to be dead is refused by all. What is not known: nobody is let in, everybody is, or the provider is asked.
    expect(await denying.askAll([dead, meanwhile])).toEqual([401, 503])
    expect(await allowing.askAll([dead, meanwhile])).toEqual([401, 200])
    const questions = () => fleet.proxy.requests.filter(({ path }) => path === '/introspect').length
    const before = questions()
    expect(before).toBeGreaterThan(0)
    expect(await asking.askAll([dead, meanwhile, meanwhile])).toEqual([401, 401, 401])
    expect(questions()).toBe(before + 1)
    fleet.proxy.block(() => true)
    expect(await asking.askAll([dead, later])).toEqual([401, 503])

    fleet.proxy.unblock()
    await until('it is refused by all', () => refused(services, [meanwhile]))
    await Promise.all(services.map((service) => service.current()))
    for (const service of services) expect(await service.askAll([valid, dead, later])).toEqual([200, 401, 200])
  }, 120_000)

  it('services whose clocks are two minutes fast or slow refuse what is revoked, and nothing else', async () => {
    const services = await Promise.all(
      [-120, 0, 120].map((clockOffsetSeconds) => fleet.startService({ clockOffsetSeconds })),
    )
    await Promise.all(services.map((service) => service.current()))
    const minted = await fleet.mint(provider, 4)
    // Old enough for the clock that is slow to have come there.
    const iat = Math.floor(Date.now() / 1_000) - 300
    const session = 'a session of a test'
    const tokens = await Promise.all(
      minted.map((token, turn) => fleet.sign(token, { iat, ...(turn === 1 ? { sid: session } : {}) })),
    )
    const [valid = '', ofSession = '', single = '', nearlyOver = ''] = tokens
    for (const service of services) expect(await service.askAll(tokens)).toEqual([200, 200, 200, 200])

    expect(await fleet.revoke(provider, minted[2] ?? '')).toBe(true)
    await fleet.db.transaction().execute(async (trx) => {
      await revoke(trx, { kind: 'session', subject: session, reason: 'signed out' })
      // By the fast clock this is over before it comes.
      const subject = decodeJwt(nearlyOver).jti ?? ''
      await revoke(trx, { kind: 'token', subject, reason: 'revoked', expiresAt: new Date(Date.now() + 60_000) })
    })
    await until('all three are refused', () => refused(services, [ofSession, single, nearlyOver]))
    for (const service of services) {
      expect(await service.ask(valid)).toMatchObject({ status: 200 })
      expect(await service.feed()).toMatchObject({ status: 'current', caughtUp: true, errors: 0 })
    }
    // A client's own tokens, by their version: the next ones are good where the clock is not slow.
    const { client_id: client = '' } = decodeJwt<{ client_id?: string }>(valid)
    await fleet.db
      .transaction()
      .execute((trx) => revokeEverythingOfClient(trx, systemActor, { id: client, reason: 'revoked' }))
    await until('it is refused', () => refused(services, [valid]))
    const [next = ''] = await fleet.mint(provider, 1)
    expect(await Promise.all(services.slice(1).map(async (service) => (await service.ask(next)).status))).toEqual([
      200, 200,
    ])
  }, 120_000)

  // The last, since what it starts again ends with it.
  it('a provider that is killed, or stopped, and comes back: services go on, and miss nothing of before and meanwhile', async () => {
    const services = await Promise.all([fleet.startService(), fleet.startService({ onStale: 'introspect' })])
    await Promise.all(services.map((service) => service.current()))
    for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
      const [valid = '', before = '', meanwhile = '', unseen = ''] = await fleet.mint(provider, 4)
      for (const service of services) expect(await service.askAll([valid, before, meanwhile])).toEqual([200, 200, 200])
      const seen = await watching(services, [valid], async () => {
        expect(await fleet.revoke(provider, before)).toBe(true)
        await provider.stop(signal)
        await revokeInDatabase(meanwhile)
        await sleep(1_000)
        // Of whom they have heard, and of whom they have not.
        for (const service of services) expect(await service.askAll([valid, unseen])).toEqual([200, 200])
        provider = await fleet.startProvider()
        await until('both are refused', () => refused(services, [before, meanwhile]), 20_000)
      })
      expect(statusesOf(seen)).toEqual([200])
    }
  }, 120_000)
})
