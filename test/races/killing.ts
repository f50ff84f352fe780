/**
 * kill -9 in the middle of issuing: one server is killed at random moments while families refresh and codes are
 * exchanged through it; a second one on the same database then tells what became of them.
 */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { DemoData } from '../../src/demo/demo-data.ts'
import { createDatabase, liftPlans } from '../support/databases.ts'
import { cheapestWorkFactor } from '../support/provider.ts'
import { startServer, type ServerProcess } from '../support/server-process.ts'
import { authorizationRequest, completeSignIn, obtainTokens, postForm, UserAgent } from '../support/user-agent.ts'

export interface Tally {
  kills: number
  /** requests whose answer the kill swallowed */
  unknownOutcomes: number
  familiesLost: number
  /** families with more than one living refresh token */
  familiesTorn: number
  codesSpentTwice: number
}

const families = 6
const codes = 4

export async function killWhileIssuing(rounds: number): Promise<Tally> {
  const database = await createDatabase('postgres')
  const environment = { ...cheapestWorkFactor, LOG_LEVEL: 'warn' }
  const stable = await startServer({ database, environment })
  await liftPlans(database)
  const demo = JSON.parse(await readFile(join(database.dataDir, 'demo.json'), 'utf8')) as DemoData
  const tally: Tally = { kills: 0, unknownOutcomes: 0, familiesLost: 0, familiesTorn: 0, codesSpentTwice: 0 }
  const startVictim = () => startServer({ database, environment: { ...environment, LATCHKEY_ISSUER: stable.url } })

  for (let round = 0; round < rounds; round += 1) {
    const victim = await startVictim()
    // One sign-in for each family: each is a session of its own.
    const chains = await Promise.all(
      Array.from({ length: families }, async () => {
        const { body } = await obtainTokens(stable.url, demo)
        return { tokens: [body.refresh_token ?? ''] }
      }),
    )
    const requests = await Promise.all(
      Array.from({ length: codes }, async () => {
        const request = authorizationRequest(stable.url, demo)
        const callback = await completeSignIn(new UserAgent(), request.url, demo.user)
        return { ...request, code: callback.searchParams.get('code') ?? '', successes: 0 }
      }),
    )
    const exchange = async (url: string, request: (typeof requests)[number]) => {
      const answer = await postForm(`${url}/token`, demo.clients.web, {
        grant_type: 'authorization_code',
        code: request.code,
        redirect_uri: demo.clients.web.redirect_uri,
        code_verifier: request.verifier,
      }).catch(() => undefined)
      if (answer === undefined) tally.unknownOutcomes += 1
      else if (answer.status === 200) request.successes += 1
    }
    const refreshUntilKilled = async (chain: { tokens: string[] }) => {
      for (let i = 0; i < 50; i += 1) {
        const answer = await refresh(victim.url, demo, chain.tokens.at(-1) ?? '').catch(() => undefined)
        if (answer === undefined) {
          tally.unknownOutcomes += 1
          return
        }
        if (answer.status === 200) chain.tokens.push(answer.body.refresh_token ?? '')
      }
    }
    const underWay = [...chains.map(refreshUntilKilled), ...requests.map((request) => exchange(victim.url, request))]
    await sleep(20 + Math.random() * 400)
    await kill(victim)
    tally.kills += 1
    await Promise.all(underWay)

    for (const chain of chains) {
      // What an honest client does after a lost answer: ask again with the token that it has.
      const answer = await refresh(stable.url, demo, chain.tokens.at(-1) ?? '')
      const next = answer.status === 200 ? await refresh(stable.url, demo, answer.body.refresh_token ?? '') : answer
      if (next.status !== 200) tally.familiesLost += 1
      else if (next.body.refresh_token === answer.body.refresh_token) tally.familiesTorn += 1
    }
    for (const request of requests) await exchange(stable.url, request)
    tally.codesSpentTwice += requests.filter(({ successes }) => successes > 1).length
  }
  tally.familiesTorn += await countTornFamilies(database.databaseUrl ?? '')
  return tally
}

function refresh(url: string, demo: DemoData, token: string) {
  return postForm(`${url}/token`, demo.clients.web, { grant_type: 'refresh_token', refresh_token: token })
}

async function kill(server: ServerProcess): Promise<void> {
  await server.stop('SIGKILL')
}

async function countTornFamilies(databaseUrl: string): Promise<number> {
  const { Client } = await import('pg')
  const client = new Client({ connectionString: databaseUrl })
  await client.connect()
  try {
    const { rows } = await client.query<{ torn: number }>(
      `SELECT count(*)::int AS torn FROM (
         SELECT grant_id FROM artifacts WHERE kind = 'RefreshToken' AND consumed_at IS NULL
         GROUP BY grant_id HAVING count(*) > 1) AS families`,
    )
    return rows[0]?.torn ?? -1
  } finally {
    await client.end()
  }
}
