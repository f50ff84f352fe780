/** Ten thousand active revocations for a service that begins, and everything that can fail, failing for a minute. */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { expect, it } from 'vitest'
import { onPostgres } from '../support/databases.ts'
import type { ServerProcess } from '../support/server-process.ts'
import { openFleet, until, type ServiceProcess } from './fleet.ts'

const active = 10_000
const stormSeconds = 60

onPostgres(() => {
  it('ten thousand active revocations reach a service that begins', async () => {
    const fleet = await openFleet()
    const provider = await fleet.startProvider()
    const [token = ''] = await fleet.mint(provider, 1)
    await sql`
      INSERT INTO revocations (kind, subject, reason, revoked_at, expires_at)
      SELECT 'token', 'tok-' || n, 'revoked by its client', clock_timestamp(), clock_timestamp() + interval '1 hour'
      FROM generate_series(1, ${active}::int) AS n`.execute(fleet.db)
    const dead: string[] = []
    for (let n = 1; n <= active; n += active / 20) dead.push(await fleet.sign(token, { jti: `tok-${n}` }))

    const catchUp = async () => {
      const startedAt = performance.now()
      const service = await fleet.startService()
      const seen = new Set(await service.askAll(dead))
      await service.current(120_000)
      const ms = Math.round(performance.now() - startedAt)
      // Not before it had all of them was anybody let in.
      expect(seen).not.toContain(200)
      expect(new Set(await service.askAll(dead))).toEqual(new Set([401]))
      expect(await service.askAll([token])).toEqual([200])
      const { entries, bytes, errors } = await service.feed()
      expect(entries).toBeGreaterThanOrEqual(active)
      expect(errors).toBe(0)
      const { memoryBytes } = await service.health()
      return { ms, entries, bytes, megabytes: Math.round(memoryBytes / 1e6) }
    }
    // The first has each event signed; for the second they are there.
    console.log({ processStartedToCaughtUp: [await catchUp(), await catchUp()] })
  })

  it('providers, database, feed and services fail in turn for a minute: nobody is let in who was refused, nobody valid is refused', async () => {
    const fleet = await openFleet()
    const providers: (ServerProcess | undefined)[] = await Promise.all(
      [0, 1].map((n) => fleet.startProvider(n as 0 | 1)),
    )
    const settings = [
      { onStale: 'deny', maxStaleness: '5s' },
      { onStale: 'introspect', maxStaleness: '5s' },
      { onStale: 'deny' },
    ] as const
    const services: ServiceProcess[] = await Promise.all(settings.map((one) => fleet.startService(one)))
    await Promise.all(services.map((service) => service.current()))
    const living = () => providers.find((provider) => provider !== undefined)
    const first = living()
    if (first === undefined) throw new Error('no provider')
    const [valid = '', ...tokens] = await fleet.mint(first, 301)

    const tally = { faults: 0, revoked: 0, wronglyRefused: 0, letInAgain: [] as string[], slowestMs: 0 }
    const state = { isOver: false }
    const waiting = tokens.values()
    const done: string[] = []

    const revoking = async () => {
      for (const token of waiting) {
        if (state.isOver) return
        // A client that gets no answer tries again.
        await until('it is revoked', async () => {
          const provider = living()
          return provider !== undefined && fleet.revoke(provider, token)
        })
        done.push(token)
        tally.revoked += 1
        await sleep(100 + Math.random() * 200)
      }
    }
    /** Each service, as long as it lives: once it has refused a token it does so for ever. */
    const watching = async (place: number) => {
      const refusedAt = new Map<string, number>()
      for (let turn = 0; !state.isOver; turn += 1) {
        const service = services[place]
        const token = done[turn % Math.max(done.length, 1)]
        if (service === undefined || token === undefined) {
          await sleep(20)
          continue
        }
        const [known, { status }] = [refusedAt.has(token), await service.ask(token)]
        if (status === 401) refusedAt.set(token, performance.now())
        if (status === 200 && known) tally.letInAgain.push(`${place} ${token.slice(-8)}`)
        if ((await service.ask(valid)).status === 401) tally.wronglyRefused += 1
        await sleep(5)
      }
    }
    const breaking = async () => {
      const endsAt = performance.now() + stormSeconds * 1_000
      const faults = [
        async (which: 0 | 1) => {
          await providers[which]?.stop('SIGKILL')
          providers[which] = undefined
          await sleep(500)
          providers[which] = await fleet.startProvider(which)
        },
        async () => {
          await fleet.postgres.halt('QUIT')
          await sleep(Math.random() * 2_000)
          await fleet.postgres.resume()
        },
        async () => {
          fleet.proxy.block((path) => path.startsWith('/ssf/'))
          await sleep(Math.random() * 8_000)
          fleet.proxy.unblock()
        },
        async () => {
          const place = Math.floor(Math.random() * services.length)
          const service = services[place]
          await service?.kill()
          services[place] = await fleet.startService({ ...settings[place], port: service?.port ?? 0 })
        },
      ]
      // Each of them once, on a machine however slow.
      for (; performance.now() < endsAt || tally.faults < faults.length; tally.faults += 1) {
        await faults[tally.faults % faults.length]?.(Math.random() < 0.5 ? 0 : 1)
        await sleep(Math.random() * 1_000)
      }
    }

    const rest = [revoking(), ...settings.map((_, place) => watching(place))]
    try {
      await breaking()
    } finally {
      state.isOver = true
      await Promise.all(rest)
    }
    tally.slowestMs = Math.round(
      await until(
        'every service refuses everything that was revoked',
        async () => {
          const statuses = await Promise.all(services.map((service) => service.askAll(done)))
          return statuses.flat().every((status) => status === 401)
        },
        60_000,
      ),
    )
    console.log(tally)
    expect(tally).toMatchObject({ wronglyRefused: 0, letInAgain: [] })
    expect(tally.revoked).toBeGreaterThan(20)
    await until('all are up to date', async () => {
      const feeds = await Promise.all(services.map((service) => service.feed()))
      return feeds.every(({ status }) => status === 'current')
    })
    for (const service of services) expect(await service.askAll([valid])).toEqual([200])
  })
})
