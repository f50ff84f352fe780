/** The rounds of single-use.test.ts, over two servers that are processes of their own, and many more of them. */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import type { DemoData } from '../../src/demo/demo-data.ts'
import { createDatabase, hasPostgres, liftPlans } from '../support/databases.ts'
import { cheapestWorkFactor } from '../support/provider.ts'
import { startServer, type ServerProcess } from '../support/server-process.ts'
import { authorizationRequest, completeSignIn, obtainTokens, postForm, UserAgent } from '../support/user-agent.ts'

const rounds = 20
const parallel = 50

describe.runIf(hasPostgres())('over two processes on one PostgreSQL', () => {
  let servers: ServerProcess[]
  let issuer: string
  let demo: DemoData
  beforeAll(async () => {
    const database = await createDatabase('postgres')
    const first = await startServer({ database, environment: cheapestWorkFactor })
    await liftPlans(database)
    issuer = first.url
    servers = [first, await startServer({ database, environment: { ...cheapestWorkFactor, LATCHKEY_ISSUER: issuer } })]
    demo = JSON.parse(await readFile(join(database.dataDir, 'demo.json'), 'utf8')) as DemoData
  })

  const atOnce = (client: 'web' | 'spa', parameters: Record<string, string>) =>
    Promise.all(
      Array.from({ length: parallel }, (_, i) =>
        postForm(`${servers[i % 2]?.url}/token`, demo.clients[client], parameters),
      ),
    )

  it('one of 50 exchanges of a code succeeds, and its tokens are dead afterwards', async () => {
    const agent = new UserAgent()
    for (let round = 0; round < rounds; round += 1) {
      const request = authorizationRequest(issuer, demo)
      const callback = await completeSignIn(agent, request.url, demo.user)
      const answers = await atOnce('web', {
        grant_type: 'authorization_code',
        code: callback.searchParams.get('code') ?? '',
        redirect_uri: demo.clients.web.redirect_uri,
        code_verifier: request.verifier,
      })
      expect(answers.map(({ status }) => status).toSorted((a, b) => a - b)).toEqual([
        200,
        ...Array<number>(parallel - 1).fill(400),
      ])
      const winner = answers.find(({ status }) => status === 200)?.body
      const { body } = await postForm(`${issuer}/introspect`, demo.clients.web, { token: winner?.access_token ?? '' })
      expect(body).toEqual({ active: false })
    }
  })

  for (const client of ['web', 'spa'] as const) {
    it(`50 refreshes of a token of the ${client} client are answered with one successor`, async () => {
      let { refresh_token: token = '' } = (await obtainTokens(issuer, demo, { client })).body
      for (let round = 0; round < rounds; round += 1) {
        const answers = await atOnce(client, { grant_type: 'refresh_token', refresh_token: token })
        expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200]))
        const successors = new Set(answers.map(({ body }) => body.refresh_token))
        expect(successors.size).toBe(1)
        token = [...successors][0] ?? ''
      }
    })
  }
})
