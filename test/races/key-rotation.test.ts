import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { createLocalJWKSet, jwtVerify, type JSONWebKeySet } from 'jose'
import { describe, expect, it } from 'vitest'
import type { DemoData } from '../../src/demo/demo-data.ts'
import { createDatabase, hasPostgres, liftPlans } from '../support/databases.ts'
import { cheapestWorkFactor } from '../support/provider.ts'
import { startServer } from '../support/server-process.ts'
import { obtainTokens, postForm } from '../support/user-agent.ts'

describe.runIf(hasPostgres())('two servers under load', () => {
  it(
    'rotate their keys three times: no failed request, no token that does not verify',
    { timeout: 120_000 },
    async () => {
      const database = await createDatabase('postgres')
      const first = await startServer({ database, environment: cheapestWorkFactor })
      await liftPlans(database)
      const environment = { ...cheapestWorkFactor, LATCHKEY_ISSUER: first.url }
      const second = await startServer({ database, environment })
      const demo = JSON.parse(await readFile(join(database.dataDir, 'demo.json'), 'utf8')) as DemoData
      const { service, web } = demo.clients

      // A verifier as others have it: a copy of the keys, renewed every so often, never asked about an unknown key.
      let keys = await fetchKeys(second.url)
      const renewing = new AbortController()
      const renew = (async () => {
        while (!renewing.signal.aborted) {
          await sleep(500)
          keys = await fetchKeys(second.url)
        }
      })()
      const verify = (token: string) =>
        jwtVerify(token, keys, { issuer: first.url, typ: 'at+jwt', algorithms: ['RS256'] })

      const statuses = new Map<number, number>()
      const kids = new Set<string>()
      const unverified: string[] = []
      let { refresh_token: refreshToken = '' } = (await obtainTokens(first.url, demo)).body
      const load = async (url: string, isOver: () => boolean) => {
        while (!isOver()) {
          const { status, body } = await postForm(`${url}/token`, service, { grant_type: 'client_credentials' })
          statuses.set(status, (statuses.get(status) ?? 0) + 1)
          const verified = await verify(body.access_token ?? '').catch(
            (error: unknown) => void unverified.push(String(error)),
          )
          kids.add(verified?.protectedHeader.kid ?? '')
        }
      }
      let isOver = false
      const loads = [first, second, first, second].map(({ url }) => load(url, () => isOver))
      const held = (await postForm(`${first.url}/token`, service, { grant_type: 'client_credentials' })).body
      for (let rotation = 0; rotation < 3; rotation += 1) {
        // Long enough for every verifier to have renewed its copy, which then holds the next key.
        await sleep(1_500)
        const rotate = await startServer({
          database,
          environment,
          program: ['src/latchkey.mjs', 'keys', 'rotate', '--now'],
          waitUntilReady: false,
        })
        expect((await rotate.ended).code, rotate.stderr()).toBe(0)
        const { status, body } = await postForm(`${second.url}/token`, web, {
          grant_type: 'refresh_token',
          refresh_token: refreshToken,
        })
        statuses.set(status, (statuses.get(status) ?? 0) + 1)
        refreshToken = body.refresh_token ?? ''
      }
      await sleep(1_500)
      isOver = true
      await Promise.all(loads)
      renewing.abort()
      await renew
      expect(unverified).toEqual([])
      expect([...statuses.keys()]).toEqual([200])
      expect(kids.size).toBe(4)
      // A token from before the first rotation is good until it expires.
      await expect(verify(held.access_token ?? '')).resolves.toBeDefined()
    },
  )
})

async function fetchKeys(url: string) {
  const response = await fetch(`${url}/.well-known/jwks.json`)
  return createLocalJWKSet((await response.json()) as JSONWebKeySet)
}
