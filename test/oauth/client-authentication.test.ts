import { randomUUID } from 'node:crypto'
import { sql } from 'kysely'
import { decodeJwt, exportJWK, generateKeyPair, SignJWT, type CryptoKey, type JWK } from 'jose'
import * as client from 'openid-client'
import { beforeAll, describe, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import { addClientSecret, revokeClientSecret, rotateClientSecret, updateClient } from '../../src/oauth/clients.ts'
import { isRevoked, type RevocableClaims } from '../../src/revocation/revocations.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { query, registerClient, type RegisteredClient } from '../support/relying-party.ts'
import { postForm } from '../support/user-agent.ts'

describe('how clients prove who they are', () => {
  let provider: TestProvider
  let tokenUrl: string
  beforeAll(async () => {
    provider = await openProvider('pglite')
    tokenUrl = `${provider.issuer}/token`
  })

  const grant = () => ({ grant_type: 'client_credentials', resource: provider.demo.resource })

  describe('by a secret', () => {
    let service: RegisteredClient
    beforeAll(async () => {
      service = await registerClient(provider, { type: 'machine' })
    })
    const ask = (secret: string | undefined) =>
      postForm(tokenUrl, { client_id: service.client_id, client_secret: secret ?? '' }, grant())

    it('refuses two mechanisms at once, in any mixture', async () => {
      const secret = service.client_secret ?? ''
      for (const more of [
        { client_secret: secret },
        { client_assertion: 'a.b.c', client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer' },
      ]) {
        const { status, body } = await postForm(tokenUrl, service, query({ ...grant(), ...more }))
        expect([status, body.error]).toEqual([400, 'invalid_request'])
      }
      const inForm = await postForm(tokenUrl, undefined, {
        ...grant(),
        client_id: service.client_id,
        client_secret: secret,
        client_assertion: 'a.b.c',
      })
      expect([inForm.status, inForm.body.error]).toEqual([400, 'invalid_request'])
    })

    it('refuses a client_id in the form that is not the one in the header', async () => {
      const { status, body } = await postForm(tokenUrl, service, { ...grant(), client_id: 'demo-service' })
      expect([status, body.error]).toEqual([400, 'invalid_request'])
    })

    it('refuses a confidential client that sends no secret, and one that poses as a person', async () => {
      for (const client_id of [service.client_id, 'usr_0123456789', 'latchkey-account']) {
        const { status, body } = await postForm(tokenUrl, undefined, { ...grant(), client_id })
        expect([400, 401]).toContain(status)
        expect(body.access_token).toBeUndefined()
      }
    })

    it('refuses what the database holds of a secret', async () => {
      const { rows } = await sql<{ hash: string }>`
        SELECT encode(secret_hash, 'hex') AS hash FROM client_secrets WHERE client_id = ${service.client_id}`.execute(
        provider.database.db,
      )
      const hex = rows[0]?.hash ?? ''
      expect(hex).toHaveLength(64)
      for (const stolen of [
        hex,
        Buffer.from(hex, 'hex').toString('base64'),
        Buffer.from(hex, 'hex').toString('base64url'),
      ]) {
        expect((await ask(stolen)).body.error).toBe('invalid_client')
      }
    })

    it('takes the secret in the header, percent-encoded as RFC 6749 §2.3.1 says, or in the form', async () => {
      expect((await ask(service.client_secret)).status).toBe(200)
      const encoded = (service.client_secret ?? '').replace(/^./, (c) => `%${c.charCodeAt(0).toString(16)}`)
      expect((await ask(encoded)).status).toBe(200)
      const inForm = await postForm(tokenUrl, undefined, {
        ...grant(),
        client_id: service.client_id,
        client_secret: service.client_secret ?? '',
      })
      expect(inForm.status).toBe(200)
    })

    it('takes two secrets while one replaces the other, and the old one no longer than that', async () => {
      const { db } = provider.database
      const { client_id: id } = service
      const added = await db.transaction().execute((trx) => addClientSecret(trx, systemActor, { id }))
      expect([(await ask(service.client_secret)).status, (await ask(added.secret)).status]).toEqual([200, 200])
      const oldest = added.client.secrets[0]?.id ?? ''
      await db.transaction().execute((trx) => revokeClientSecret(trx, systemActor, { id, secret_id: oldest }))
      expect([(await ask(service.client_secret)).status, (await ask(added.secret)).status]).toEqual([401, 200])
      const rotated = await db
        .transaction()
        .execute((trx) => rotateClientSecret(trx, systemActor, { id, overlap_seconds: 60 }))
      expect([(await ask(added.secret)).status, (await ask(rotated.secret)).status]).toEqual([200, 200])
      await sql`UPDATE client_secrets SET expires_at = expires_at - interval '61 seconds'
        WHERE client_id = ${id} AND expires_at IS NOT NULL`.execute(db)
      expect([(await ask(added.secret)).status, (await ask(rotated.secret)).status]).toEqual([401, 200])
    })
  })

  describe('by a signed assertion (RFC 7523)', () => {
    let service: RegisteredClient
    let twin: RegisteredClient
    let key: CryptoKey
    beforeAll(async () => {
      const pair = await generateKeyPair('ES256')
      key = pair.privateKey
      const jwks = { keys: [{ ...(await exportJWK(pair.publicKey)), kid: 'k1' }] }
      const metadata = { type: 'machine', token_endpoint_auth_method: 'private_key_jwt', jwks } as const
      service = await registerClient(provider, metadata)
      // The same key, so that nothing but the name tells them apart.
      twin = await registerClient(provider, metadata)
    })

    const now = () => Math.floor(Date.now() / 1_000)
    function assertion(claims: Readonly<Record<string, unknown>> = {}, signedBy: CryptoKey = key): Promise<string> {
      return new SignJWT({
        iss: service.client_id,
        sub: service.client_id,
        aud: provider.issuer,
        jti: randomUUID(),
        iat: now(),
        exp: now() + 60,
        ...claims,
      })
        .setProtectedHeader({ alg: 'ES256', kid: 'k1' })
        .sign(signedBy)
    }
    const send = (client_assertion: string, more: Record<string, string> = {}) =>
      postForm(tokenUrl, undefined, {
        ...grant(),
        client_assertion,
        client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
        ...more,
      })

    const wrong: readonly [string, () => Record<string, unknown>][] = [
      ['for the token endpoint', () => ({ aud: tokenUrl })],
      ['for another provider', () => ({ aud: 'https://other.example.test' })],
      ['for nobody', () => ({ aud: undefined })],
      ['that lives for two minutes', () => ({ exp: now() + 120 })],
      ['that lives for ever', () => ({ exp: 9_999_999_999 })],
      ['without an end', () => ({ exp: undefined })],
      ['whose end is no number', () => ({ exp: '9999999999' })],
      ['that is over', () => ({ exp: now() - 60 })],
      ['that is not yet good', () => ({ nbf: now() + 300 })],
      ['without an id', () => ({ jti: undefined })],
      ['of another issuer', () => ({ iss: twin.client_id })],
      ['of no issuer', () => ({ iss: undefined })],
      ['about somebody else', () => ({ sub: 'nobody' })],
    ]
    for (const [what, claims] of wrong) {
      it(`refuses one ${what}`, async () => {
        const { status, body } = await send(await assertion(claims()))
        expect([status, body.error], JSON.stringify(body)).toEqual([401, 'invalid_client'])
      })
    }

    it('refuses one signed by another key', async () => {
      const { privateKey } = await generateKeyPair('ES256')
      expect((await send(await assertion({}, privateKey))).body.error).toBe('invalid_client')
    })

    it('refuses one without its type, with another type, and beside another client_id', async () => {
      const answers = [
        await postForm(tokenUrl, undefined, { ...grant(), client_assertion: await assertion() }),
        await send(await assertion(), {
          client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:saml2-bearer',
        }),
        await send(await assertion(), { client_id: twin.client_id }),
      ]
      for (const { status, body } of answers) expect([status, body.error]).toEqual([400, 'invalid_request'])
    })

    it('refuses the secret that such a client does not have', async () => {
      const { status, body } = await postForm(tokenUrl, { ...service, client_secret: 'x' }, grant())
      expect([status, body.error]).toEqual([401, 'invalid_client'])
    })

    it('what was got with a key that is taken away is dead, and what is got with the others goes on', async () => {
      const { db } = provider.database
      const [first, second] = [await generateKeyPair('ES256'), await generateKeyPair('ES256')]
      const jwkOf = async ({ publicKey }: typeof first, kid: string) => ({ ...(await exportJWK(publicKey)), kid })
      const [old, young] = [await jwkOf(first, 'k1'), await jwkOf(second, 'k1')]
      const own = await registerClient(provider, {
        type: 'machine',
        token_endpoint_auth_method: 'private_key_jwt',
        jwks: { keys: [old] },
      })
      const get = async (signedBy: CryptoKey) => {
        const claims = { iss: own.client_id, sub: own.client_id }
        return (await send(await assertion(claims, signedBy))).body.access_token ?? ''
      }
      const keep = (keys: JWK[]) =>
        db.transaction().execute((trx) => updateClient(trx, systemActor, { id: own.client_id, jwks: { keys } }))
      const token = await get(first.privateKey)
      const isDead = (presented: string) => isRevoked(db, decodeJwt(presented) as unknown as RevocableClaims)
      await keep([young, old])
      expect(await isDead(token)).toBe(false)
      await keep([young])
      expect(await isDead(token)).toBe(true)
      await expect.poll(() => get(first.privateKey)).toBe('')
      expect(await isDead(await get(second.privateKey))).toBe(false)
    })

    it('takes one once, at whichever endpoint', async () => {
      const once = await assertion()
      expect((await send(once)).status).toBe(200)
      expect((await send(once)).body.error).toBe('invalid_client')
      const elsewhere = await postForm(`${provider.issuer}/introspect`, undefined, {
        token: 'x',
        client_assertion: once,
        client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
      })
      expect(elsewhere.body.error).toBe('invalid_client')
    })

    it('takes the same id from two clients: an id is unique to its issuer', async () => {
      const jti = randomUUID()
      const theirs = { iss: twin.client_id, sub: twin.client_id, jti }
      expect([(await send(await assertion({ jti }))).status, (await send(await assertion(theirs))).status]).toEqual([
        200, 200,
      ])
    })

    it('of ten at once with the same id, takes one', async () => {
      const once = await assertion()
      const answers = await Promise.all(Array.from({ length: 10 }, () => send(once)))
      expect(answers.filter(({ status }) => status === 200)).toHaveLength(1)
    })

    it('satisfies openid-client', async () => {
      const config = await client.discovery(
        new URL(provider.issuer),
        service.client_id,
        undefined,
        client.PrivateKeyJwt({ key, kid: 'k1' }),
        { execute: [client.allowInsecureRequests] },
      )
      const tokens = await client.clientCredentialsGrant(config, { resource: provider.demo.resource })
      expect(tokens.expires_in).toBe(900)
    })
  })
})
