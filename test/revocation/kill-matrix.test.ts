/**
 * The kill matrix: everything that ends something, on everything that somebody can hold, as docs/revocation.md says; on
 * PostgreSQL the change is made in one process and the other is asked at once. Each statement of each change fails once
 * on the way: then nothing of the change has happened.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import { createGuard, type Guard } from '@latchkey/guard'
import type { Db } from '../../src/database/database.ts'
import { managementResourceId } from '../../src/oauth/own-entries.ts'
import { registerReceiver } from '../signals/receiving.ts'
import { hasPostgres, type Engine } from '../support/databases.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { registerClient, type RegisteredClient } from '../support/relying-party.ts'
import { readKillMatrix } from './kill/documented-matrix.ts'
import { findChanged, installFaults, readState, type Faults, type State } from './kill/faults.ts'
import { probes, type Probing } from './kill/probes.ts'
import { sequels, triggers } from './kill/triggers.ts'
import { openWorlds, resourceOf, type World } from './kill/world.ts'

const documented = readKillMatrix()

it('the documentation names every trigger and every artefact that is tried here, and no other', () => {
  expect([...documented.keys()].sort()).toEqual([...triggers.keys()].sort())
  for (const fates of documented.values()) expect(Object.keys(fates).sort()).toEqual([...probes.keys()].sort())
})

for (const engine of ['pglite', 'postgres'] satisfies Engine[]) {
  describe.runIf(engine === 'pglite' || hasPostgres())(`on ${engine}`, () => {
    let provider: TestProvider
    let asked: TestProvider
    let observer: RegisteredClient
    let elsewhere: RegisteredClient
    let guard: Guard
    let faults: Faults
    let makeWorld: (name: string) => Promise<World>
    let count = 0
    beforeAll(async () => {
      const environment = {
        LATCHKEY_DEVICE_FLOW: 'true',
        LATCHKEY_REFRESH_REPLAY_CONFIDENTIAL_SECONDS: '300',
      }
      provider = await openProvider(engine, { environment })
      asked = engine === 'pglite' ? provider : await openProvider(engine, { environment, besides: provider })
      observer = await registerClient(provider, { type: 'machine', permissions: [] })
      elsewhere = await registerClient(provider)
      const { client_id: clientId, client_secret: clientSecret } = await registerReceiver(
        provider.database.db,
        provider.issuer,
      )
      guard = createGuard({
        issuer: provider.issuer,
        audience: [
          managementResourceId(provider.issuer),
          ...Array.from({ length: 100 }, (_, i) => resourceOf(`world-${i}`)),
        ],
        revocation: { clientId, clientSecret, onStale: 'deny' },
      })
      makeWorld = await openWorlds(provider)
      faults = await installFaults(provider.database.db)
      return () => guard.close()
    })

    /** A signed-in browser's cookies, or those that it had. */
    const cookiesOf = ({ agent }: World, before: Probing['cookies']): Probing['cookies'] =>
      'session' in agent.cookies() ? agent.cookies() : before

    async function findFates(name: string, world: World, cookies: Probing['cookies']): Promise<Record<string, string>> {
      const after = (await sequels.get(name)?.(provider, world)) ?? world
      const { issuer } = provider
      const probing = { provider: asked, issuer, observer, elsewhere, guard, cookies: cookiesOf(world, cookies) }
      const fates: Record<string, string> = {}
      for (const [artefact, probe] of probes) fates[artefact] = (await probe(after, probing)) ? 'lives' : 'dead'
      return fates
    }

    it.each([...triggers])('%s', { timeout: 120_000 }, async (name, trigger) => {
      const { db } = provider.database
      const world = await makeWorld(`world-${(count += 1)}`)
      let cookies: Probing['cookies'] = {}
      let before: State | undefined
      for (let statement = 1; ; statement += 1) {
        const act = await trigger(provider, world)
        cookies = cookiesOf(world, cookies)
        before ??= await readState(db)
        await faults.arm(statement)
        const isDone = await act()
        if (!(await faults.disarm())) {
          expect({ statement, isDone }).toEqual({ statement, isDone: true })
          break
        }
        const changed = findChanged(before, await readState(db))
        expect({ statement, isDone, changed }).toEqual({ statement, isDone: false, changed: [] })
      }
      expect(await findFates(name, world, cookies)).toEqual(documented.get(name))
    })

    it
      .runIf(engine === 'postgres')
      .each([
        'signed out at `/logout`',
        'refresh token used again, later than a reply is replayed',
        'signed out everywhere, consents forgotten',
        'permission taken from the role',
        'client deleted',
        'signing key revoked',
      ])('%s, its connection killed in the middle: nothing has happened, and it can be done again', async (name) => {
      const { db } = provider.database
      const trigger = triggers.get(name)
      if (trigger === undefined) throw new Error(`there is no trigger ${name}`)
      const world = await makeWorld(`world-${(count += 1)}`)
      const act = await trigger(provider, world)
      const before = await readState(db)
      const isDone = await db.transaction().execute(async (trx) => {
        await sql`LOCK TABLE audit_events IN SHARE ROW EXCLUSIVE MODE`.execute(trx)
        const outcome = act()
        await killWhoeverWritesTheAuditRecord(db)
        return { outcome }
      })
      expect(await isDone.outcome).toBe(false)
      expect(findChanged(before, await readState(db))).toEqual([])
      const again = await trigger(provider, world)
      const cookies = cookiesOf(world, {})
      expect(await again()).toBe(true)
      expect(await findFates(name, world, cookies)).toEqual(documented.get(name))
    })
  })
}

async function killWhoeverWritesTheAuditRecord(db: Db): Promise<void> {
  for (let attempts = 0; attempts < 500; attempts += 1) {
    const { rows } = await sql`
      SELECT pg_terminate_backend(pid) FROM pg_stat_activity
      WHERE datname = current_database() AND wait_event_type = 'Lock' AND query ILIKE 'insert into "audit_events"%'`.execute(
      db,
    )
    if (rows.length > 0) return
    await sleep(10)
  }
  throw new Error('nobody came to write it')
}
