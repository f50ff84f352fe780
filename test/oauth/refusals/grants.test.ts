/**
 * Codes and refresh tokens that are refused, and what the refusal costs: nothing, unless the token was used twice.
 */
import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import { systemActor } from '../../../src/audit/audit.ts'
import { disableClient } from '../../../src/oauth/clients.ts'
import { createUser, disableUser } from '../../../src/users/users.ts'
import { hasPostgres, type Engine } from '../../support/databases.ts'
import { openProvider, type TestProvider } from '../../support/provider.ts'
import {
  ask,
  authorize,
  exchange,
  isActive,
  query,
  refresh,
  registerClient,
  signInAt,
  userinfo,
  type Answered,
  type RegisteredClient,
  type RequestParameters,
} from '../../support/relying-party.ts'
import { postForm, UserAgent, type TokenAnswer } from '../../support/user-agent.ts'

for (const engine of ['pglite', 'postgres'] satisfies Engine[]) {
  describe.runIf(engine === 'pglite' || hasPostgres())(`a grant that is refused, on ${engine}`, () => {
    let provider: TestProvider
    let rp: RegisteredClient
    let other: RegisteredClient
    /** signed in from the first code on */
    const signedIn = new UserAgent()
    beforeAll(async () => {
      provider = await openProvider(engine)
      rp = await registerClient(provider)
      other = await registerClient(provider)
    })

    const models = () => ({ scope: 'openid models:read models:write', resource: provider.demo.resource })

    const expectRefused = (answer: TokenAnswer, error: string, status = 400) => {
      expect([answer.status, answer.body.error], JSON.stringify(answer.body)).toEqual([status, error])
      expect(answer.headers.get('cache-control')).toBe('no-store')
    }

    describe('a code', () => {
      const attempts: readonly [string, string, (answered: Answered) => Promise<TokenAnswer>][] = [
        [
          'with the wrong verifier',
          'invalid_grant',
          (answered) => exchange(provider, rp, { ...answered, verifier: 'A'.repeat(43) }),
        ],
        ['without a verifier', 'invalid_grant', (answered) => exchange(provider, rp, { ...answered, verifier: '' })],
        [
          'with the challenge for a verifier',
          'invalid_grant',
          (answered) =>
            exchange(provider, rp, { ...answered, verifier: answered.parameters.get('code_challenge') ?? '' }),
        ],
        [
          'with a verifier that is too short',
          'invalid_request',
          (answered) => exchange(provider, rp, { ...answered, verifier: 'short' }),
        ],
        [
          'with another redirect_uri',
          'invalid_grant',
          (answered) =>
            exchange(provider, rp, answered, { parameters: { redirect_uri: 'https://rp.example.test/other' } }),
        ],
        [
          'without a redirect_uri',
          'invalid_request',
          (answered) => exchange(provider, rp, answered, { parameters: { redirect_uri: undefined } }),
        ],
        ['by another client', 'invalid_grant', (answered) => exchange(provider, other, answered)],
        [
          'with the wrong secret',
          'invalid_client',
          (answered) => exchange(provider, { ...rp, client_secret: `${rp.client_secret}x` }, answered),
        ],
        ['as a refresh token', 'invalid_grant', (answered) => refresh(provider, rp, answered.code)],
        [
          'for a resource that it is not for',
          'invalid_target',
          (answered) => exchange(provider, rp, answered, { parameters: { resource: 'https://api.example.test' } }),
        ],
        [
          'for a resource that is no URI',
          'invalid_target',
          (answered) => exchange(provider, rp, answered, { parameters: { resource: 'nonsense' } }),
        ],
        [
          'with a DPoP proof that is none',
          'invalid_dpop_proof',
          (answered) => exchange(provider, rp, answered, { headers: { dpop: 'x.y.z' } }),
        ],
      ]
      for (const [how, error, attempt] of attempts) {
        it(`${how}: ${error}, and it is still good for its owner`, async () => {
          const answered = await authorize(provider, rp, { agent: signedIn, parameters: models() })
          expectRefused(await attempt(answered), error, error === 'invalid_client' ? 401 : 400)
          const { status, body } = await exchange(provider, rp, answered)
          expect(status, JSON.stringify(body)).toBe(200)
        })
      }

      it('whose last character was changed: invalid_grant', async () => {
        const answered = await authorize(provider, rp)
        const code = `${answered.code.slice(0, -1)}${answered.code.endsWith('A') ? 'B' : 'A'}`
        expectRefused(await exchange(provider, rp, { ...answered, code }), 'invalid_grant')
      })

      it('after a minute: invalid_grant', async () => {
        const answered = await authorize(provider, rp)
        await sql`UPDATE artifacts SET expires_at = expires_at - interval '60 seconds' WHERE kind = 'AuthorizationCode'`.execute(
          provider.database.db,
        )
        expectRefused(await exchange(provider, rp, answered), 'invalid_grant')
      })

      it('used twice: invalid_grant, and all that came of it is dead', async () => {
        const answered = await authorize(provider, rp, { parameters: models() })
        const { body } = await exchange(provider, rp, answered)
        expect(await isActive(provider, rp, body.access_token)).toBe(true)
        expectRefused(await exchange(provider, rp, answered), 'invalid_grant')
        expect(await isActive(provider, rp, body.access_token)).toBe(false)
        expectRefused(await refresh(provider, rp, body.refresh_token), 'invalid_grant')
      })

      it('used again by another client: refused, and its owner loses nothing', async () => {
        const answered = await authorize(provider, rp, { parameters: models() })
        const { body } = await exchange(provider, rp, answered)
        expectRefused(await exchange(provider, other, answered), 'invalid_grant')
        expect(await isActive(provider, rp, body.access_token)).toBe(true)
      })
    })

    describe('a refresh token', () => {
      const attempts: readonly [string, string, RequestParameters][] = [
        ['for a scope beyond it', 'invalid_scope', { scope: 'openid email' }],
        ['for a scope that does not exist', 'invalid_scope', { scope: 'nonsense' }],
        ['for a resource that does not exist', 'invalid_target', { resource: 'https://api.example.test' }],
        ['for a resource that is no URI', 'invalid_target', { resource: 'nonsense' }],
        ['with a scope that is not one', 'invalid_scope', { scope: '"' }],
      ]
      for (const [how, error, parameters] of attempts) {
        it(`${how}: ${error}, and it still works afterwards`, async () => {
          const { body } = await signInAt(provider, rp, { parameters: models() })
          expectRefused(await refresh(provider, rp, body.refresh_token, { parameters }), error)
          const again = await refresh(provider, rp, body.refresh_token)
          expect(again.status, JSON.stringify(again.body)).toBe(200)
          expect(await isActive(provider, rp, again.body.access_token)).toBe(true)
        })
      }

      it('of another client: invalid_grant, whoever that is, and it still works afterwards', async () => {
        const { body } = await signInAt(provider, rp, { parameters: models() })
        const spa = { ...provider.demo.clients.spa }
        expectRefused(await refresh(provider, other, body.refresh_token), 'invalid_grant')
        expectRefused(await refresh(provider, spa, body.refresh_token), 'invalid_grant')
        expect((await refresh(provider, rp, body.refresh_token)).status).toBe(200)
      })

      it('spent, by another client: refused, and the family lives on', async () => {
        const { body } = await signInAt(provider, rp, { parameters: models() })
        const next = await refresh(provider, rp, body.refresh_token)
        expectRefused(await refresh(provider, other, body.refresh_token), 'invalid_grant')
        expect((await refresh(provider, rp, next.body.refresh_token)).status).toBe(200)
      })

      it('whose family has reached its end: invalid_grant, however often it was refreshed', async () => {
        const { body } = await signInAt(provider, rp, { parameters: models() })
        const next = await refresh(provider, rp, body.refresh_token)
        const { rows } = await sql<{ left: number }>`
          SELECT extract(epoch FROM max(expires_at) - min(expires_at))::float8 AS left FROM artifacts
          WHERE kind = 'RefreshToken' AND grant_id IN (
            SELECT grant_id FROM artifacts WHERE kind = 'RefreshToken' ORDER BY created_at DESC LIMIT 1
          )`.execute(provider.database.db)
        // Absolute: the successor ends when its predecessor would have.
        expect(rows[0]?.left ?? 99).toBeLessThan(3)
        await sql`UPDATE artifacts SET expires_at = now() WHERE kind = 'RefreshToken'`.execute(provider.database.db)
        expectRefused(await refresh(provider, rp, next.body.refresh_token), 'invalid_grant')
      })

      it('used again after the window: invalid_grant, and the family is dead', async () => {
        const { body } = await signInAt(provider, rp, { parameters: models() })
        const next = await refresh(provider, rp, body.refresh_token)
        await sql`UPDATE artifacts SET consumed_at = consumed_at - interval '61 seconds' WHERE kind = 'RefreshToken'`.execute(
          provider.database.db,
        )
        expectRefused(await refresh(provider, rp, body.refresh_token), 'invalid_grant')
        expectRefused(await refresh(provider, rp, next.body.refresh_token), 'invalid_grant')
        expect(await isActive(provider, rp, next.body.access_token)).toBe(false)
      })

      it('that its client revoked: invalid_grant, and its access token is dead', async () => {
        const { body } = await signInAt(provider, rp, { parameters: models() })
        const stranger = await postForm(`${provider.issuer}/revoke`, other, { token: body.refresh_token ?? '' })
        expect(stranger.status).toBeLessThan(500)
        expect(await isActive(provider, rp, body.refresh_token)).toBe(true)
        expect((await postForm(`${provider.issuer}/revoke`, rp, { token: body.refresh_token ?? '' })).status).toBe(200)
        expectRefused(await refresh(provider, rp, body.refresh_token), 'invalid_grant')
        expect(await isActive(provider, rp, body.access_token)).toBe(false)
      })
    })

    it('a client that was disabled gets nothing any more, and what it had is dead', async () => {
      const gone = await registerClient(provider)
      const agent = new UserAgent()
      const { body } = await signInAt(provider, gone, { agent, parameters: models() })
      const opaque = await signInAt(provider, gone, { agent })
      const pending = await authorize(provider, gone, { agent })
      await provider.database.db.transaction().execute((trx) => disableClient(trx, systemActor, { id: gone.client_id }))
      // The provider's own copy of the client is some milliseconds behind.
      await expect
        .poll(async () => {
          const page = await agent.open(ask(provider, gone).url)
          return [page.status, page.headers.get('location')]
        })
        .toEqual([400, null])
      expectRefused(await exchange(provider, gone, pending), 'invalid_client', 401)
      expectRefused(await refresh(provider, gone, body.refresh_token), 'invalid_client', 401)
      expect((await userinfo(provider, opaque.body.access_token)).status).toBe(401)
      expect(await isActive(provider, rp, body.access_token)).toBe(false)
    })

    it('a person who was disabled is signed out everywhere, and cannot come back', async () => {
      const { db } = provider.database
      const hash = (
        await db
          .selectFrom('users')
          .select('password_hash')
          .where('email', '=', provider.demo.user.email)
          .executeTakeFirstOrThrow()
      ).password_hash
      const person = { email: `leaving-${engine}@example.com`, password: provider.demo.user.password }
      const user = await db
        .transaction()
        .execute((trx) => createUser(trx, systemActor, { email: person.email, passwordHash: hash as never }))
      const agent = new UserAgent()
      const { body } = await signInAt(provider, rp, { agent, person })
      const pending = await authorize(provider, rp, { agent, person })
      await db.transaction().execute((trx) => disableUser(trx, systemActor, { userId: user.id }))
      expectRefused(await refresh(provider, rp, body.refresh_token), 'invalid_grant')
      expectRefused(await exchange(provider, rp, pending), 'invalid_grant')
      expect((await userinfo(provider, body.access_token)).status).toBe(401)
      const page = await agent.open(ask(provider, rp).url)
      expect(page.html).toContain('name="password"')
      expect((await agent.submit(page, { login: person.email, password: person.password })).status).toBe(401)
    })

    it('a grant that is not offered, or not this client’s: unsupported_grant_type or invalid_request', async () => {
      const url = `${provider.issuer}/token`
      const { service, spa } = provider.demo.clients
      for (const grant_type of [
        'password',
        'implicit',
        'urn:ietf:params:oauth:grant-type:device_code',
        'urn:ietf:params:oauth:grant-type:jwt-bearer',
        'nonsense',
      ]) {
        const answer = await postForm(url, rp, { grant_type, username: 'x', password: 'x' })
        expectRefused(answer, 'unsupported_grant_type')
      }
      expectRefused(await postForm(url, rp, {}), 'invalid_request')
      expectRefused(await postForm(url, rp, { grant_type: 'client_credentials' }), 'invalid_request')
      expectRefused(await postForm(url, spa, { grant_type: 'client_credentials' }), 'invalid_request')
      expectRefused(
        await postForm(url, service, { grant_type: 'refresh_token', refresh_token: 'x' }),
        'invalid_request',
      )
      expectRefused(
        await postForm(url, service, query({ grant_type: 'authorization_code', code: 'x', redirect_uri: 'x' })),
        'invalid_request',
      )
    })
  })
}
