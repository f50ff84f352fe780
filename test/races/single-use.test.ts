/**
 * What is spent once, by many at the same time. On PostgreSQL only: PGlite's one connection hides every race.
 */
import { decodeJwt } from 'jose'
import { beforeAll, describe, expect, it } from 'vitest'
import { hasPostgres } from '../support/databases.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import {
  authorizationRequest,
  completeSignIn,
  obtainTokens,
  postForm,
  UserAgent,
  type TokenAnswer,
} from '../support/user-agent.ts'

const parallel = 50
const times = <T>(work: (i: number) => Promise<T>) => Promise.all(Array.from({ length: parallel }, (_, i) => work(i)))

describe.runIf(hasPostgres())('over two processes on one PostgreSQL', () => {
  let first: TestProvider
  let second: TestProvider
  beforeAll(async () => {
    first = await openProvider('postgres')
    // A second server with a pool, a cache and rings of its own; single-use.long.test.ts has them in two processes.
    second = await openProvider('postgres', { besides: first })
  })
  const either = (i: number) => (i % 2 === 0 ? first : second).issuer

  const clients = ['web', 'spa'] as const
  const refresh = (
    issuer: string,
    client: (typeof clients)[number],
    token: string,
    more: Record<string, string> = {},
  ) =>
    postForm(`${issuer}/token`, first.demo.clients[client], {
      grant_type: 'refresh_token',
      refresh_token: token,
      ...more,
    })
  const isActive = async (token: string | undefined) =>
    (await postForm(`${first.issuer}/introspect`, first.demo.clients.web, { token: token ?? '' })).body['active']

  it('50 exchanges of one code: one success, and by the rule of reuse its tokens are dead afterwards', async () => {
    for (let round = 0; round < 3; round += 1) {
      const { issuer, demo } = first
      const request = authorizationRequest(issuer, demo)
      const callback = await completeSignIn(new UserAgent(), request.url, demo.user)
      const answers = await times((i) =>
        postForm(`${either(i)}/token`, demo.clients.web, {
          grant_type: 'authorization_code',
          code: callback.searchParams.get('code') ?? '',
          redirect_uri: demo.clients.web.redirect_uri,
          code_verifier: request.verifier,
        }),
      )
      const winners = answers.filter(({ status }) => status === 200)
      expect(winners).toHaveLength(1)
      expect(new Set(answers.filter(({ status }) => status !== 200).map(({ body }) => body.error))).toEqual(
        new Set(['invalid_grant']),
      )
      const [winner] = winners
      expect(await isActive(winner?.body.access_token)).toBe(false)
      expect((await refresh(issuer, 'web', winner?.body.refresh_token ?? '')).body.error).toBe('invalid_grant')
    }
  })

  for (const client of clients) {
    it(`50 refreshes of one token of the ${client} client: 50 answers and one successor, which works`, async () => {
      const { body } = await obtainTokens(first.issuer, first.demo, { client })
      let token = body.refresh_token ?? ''
      for (let round = 0; round < 3; round += 1) {
        const answers = await times((i) => refresh(either(i), client, token))
        expect(answers.map(({ status }) => status)).toEqual(Array.from({ length: parallel }, () => 200))
        const successors = new Set(answers.map((answer) => answer.body.refresh_token))
        expect(successors.size).toBe(1)
        expect(new Set(answers.map((answer) => answer.body.access_token)).size).toBe(1)
        ;[token = ''] = [...successors].filter((t) => t !== undefined)
      }
      expect((await refresh(first.issuer, client, token)).status).toBe(200)
    })
  }

  it('a refresh token used again after the window ends the family, its access tokens and its successor', async () => {
    const { body } = await obtainTokens(first.issuer, first.demo)
    const successor = await refresh(first.issuer, 'web', body.refresh_token ?? '')
    await age(first, `kind = 'RefreshToken' AND consumed_at IS NOT NULL`)
    const reuse = await refresh(second.issuer, 'web', body.refresh_token ?? '')
    expect([reuse.status, reuse.body.error]).toEqual([400, 'invalid_grant'])
    expect(await isActive(successor.body.access_token)).toBe(false)
    expect((await refresh(first.issuer, 'web', successor.body.refresh_token ?? '')).body.error).toBe('invalid_grant')
    const { grant_id } = decodeJwt(body.access_token ?? '')
    const row = await first.database.db
      .selectFrom('audit_events')
      .select('details')
      .where('action', '=', 'grant.revoked')
      .where('target_id', '=', String(grant_id))
      .executeTakeFirstOrThrow()
    expect(row.details).toMatchObject({ reason: 'RefreshToken used twice' })
  })

  it('a family that is revoked beside 50 refreshes is dead, whoever was first', async () => {
    for (let round = 0; round < 5; round += 1) {
      const { body } = await obtainTokens(first.issuer, first.demo)
      const token = body.refresh_token ?? ''
      const refreshes: Promise<TokenAnswer>[] = []
      for (let i = 0; i < 10; i += 1) refreshes.push(refresh(either(i), 'web', token))
      const revocation = postForm(`${second.issuer}/revoke`, first.demo.clients.web, { token })
      const answers = await Promise.all(refreshes)
      expect((await revocation).status).toBe(200)
      for (const answer of answers.filter(({ status }) => status === 200)) {
        expect((await refresh(first.issuer, 'web', answer.body.refresh_token ?? '')).body.error).toBe('invalid_grant')
        expect(await isActive(answer.body.access_token)).toBe(false)
      }
    }
  })

  it('a retry for another scope inside the window is refused without harm', async () => {
    const { body } = await obtainTokens(first.issuer, first.demo, {
      parameters: { scope: 'openid models:read models:write' },
    })
    const token = body.refresh_token ?? ''
    const successor = await refresh(first.issuer, 'web', token)
    const other = await refresh(second.issuer, 'web', token, { scope: 'models:read' })
    expect([other.status, other.body.error]).toEqual([400, 'invalid_grant'])
    expect((await refresh(first.issuer, 'web', successor.body.refresh_token ?? '')).status).toBe(200)
  })

  it('50 tabs with one token leave the connections of a small pool to others', async () => {
    const small = await openProvider('postgres', {
      besides: first,
      environment: { LATCHKEY_DATABASE_POOL_SIZE: '2', LATCHKEY_DATABASE_CONNECT_TIMEOUT_SECONDS: '1' },
    })
    const held = await obtainTokens(first.issuer, first.demo)
    const other = await obtainTokens(first.issuer, first.demo)
    const { grant_id } = decodeJwt(held.body.access_token ?? '')
    let waiting: Promise<TokenAnswer>[] = []
    await first.database.db.transaction().execute(async (trx) => {
      await trx.selectFrom('artifacts').select('id').where('id', '=', String(grant_id)).forUpdate().execute()
      waiting = Array.from({ length: 50 }, () => refresh(small.issuer, 'web', held.body.refresh_token ?? ''))
      expect((await refresh(small.issuer, 'web', other.body.refresh_token ?? '')).status).toBe(200)
      // Only now does the family that all of them wait for come free.
    })
    expect(new Set((await Promise.all(waiting)).map(({ status }) => status))).toEqual(new Set([200]))
  })

  it('a refusal never spends the refresh token: a bad resource, a scope too many, another client', async () => {
    const { body } = await obtainTokens(first.issuer, first.demo)
    const token = body.refresh_token ?? ''
    const refusals = [
      await refresh(first.issuer, 'web', token, { resource: 'https://elsewhere.example' }),
      await refresh(first.issuer, 'web', token, { resource: 'not a URI' }),
      await refresh(first.issuer, 'web', token, { scope: 'models:read models:delete' }),
      await refresh(first.issuer, 'spa', token),
    ]
    expect(refusals.map(({ status }) => status)).toEqual([400, 400, 400, 400])
    expect((await refresh(second.issuer, 'web', token)).status).toBe(200)
  })

  it('a family that somebody else holds locked answers 503 with Retry-After, and works afterwards', async () => {
    const impatient = await openProvider('postgres', {
      besides: first,
      environment: { LATCHKEY_DATABASE_LOCK_TIMEOUT_MS: '200' },
    })
    const { body } = await obtainTokens(first.issuer, first.demo)
    const { grant_id } = decodeJwt(body.access_token ?? '')
    await first.database.db.transaction().execute(async (trx) => {
      await trx.selectFrom('artifacts').select('id').where('id', '=', String(grant_id)).forUpdate().execute()
      const answer = await refresh(impatient.issuer, 'web', body.refresh_token ?? '')
      expect([answer.status, answer.headers.get('retry-after')]).toEqual([503, '1'])
      expect(answer.body.error).toBe('temporarily_unavailable')
    })
    expect((await refresh(impatient.issuer, 'web', body.refresh_token ?? '')).status).toBe(200)
  })
})

/** Lets a spent token's window pass without waiting for it. */
async function age(provider: TestProvider, where: string): Promise<void> {
  const { sql } = await import('kysely')
  await sql`UPDATE artifacts SET consumed_at = consumed_at - interval '10 minutes' WHERE ${sql.raw(where)}`.execute(
    provider.database.db,
  )
  await sql`UPDATE refresh_replies SET expires_at = expires_at - interval '10 minutes'`.execute(provider.database.db)
}
