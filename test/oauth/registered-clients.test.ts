import { generateKeyPairSync } from 'node:crypto'
import { beforeAll, describe, expect, it } from 'vitest'
import { systemActor } from '../../src/audit/audit.ts'
import { createClient } from '../../src/oauth/clients.ts'
import { deviceGrant } from '../../src/oauth/client-rules.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'

type CreateInput = Parameters<typeof createClient>[2]

/** An address at which nobody listens, since nobody is sent there. */
const redirect_uris = ['https://app.example.com/callback?tenant=1']

const publicKeyOf = (key: ReturnType<typeof generateKeyPairSync>['publicKey']) => ({
  ...key.export({ format: 'jwk' }),
})

describe('every client that the registry takes', () => {
  let provider: TestProvider
  beforeAll(async () => {
    provider = await openProvider('pglite', { environment: { LATCHKEY_DEVICE_FLOW: 'true' } })
  })

  const register = (input: CreateInput) =>
    provider.database.db.transaction().execute((trx) => createClient(trx, systemActor, input))

  const forPeople: [string, CreateInput][] = [
    ['web', { type: 'web', name: 'Web', redirect_uris }],
    [
      'web on this machine',
      { type: 'web', name: 'Web', redirect_uris: ['http://localhost:3000/', 'http://[::1]:3/x'] },
    ],
    [
      'web with everything',
      {
        type: 'web',
        name: 'Web',
        redirect_uris,
        grant_types: ['authorization_code', 'refresh_token', 'client_credentials'],
        post_logout_redirect_uris: ['https://app.example.com/', 'http://127.0.0.1/'],
        backchannel_logout_uri: 'https://app.example.com/backchannel',
        client_uri: 'https://app.example.com',
        logo_uri: 'https://app.example.com/logo.svg',
        policy_uri: 'http://localhost/policy',
        tos_uri: 'https://app.example.com/terms',
        dpop_bound_access_tokens: true,
      },
    ],
    [
      'web with keys',
      {
        type: 'web',
        name: 'Web',
        redirect_uris,
        token_endpoint_auth_method: 'private_key_jwt',
        jwks: {
          keys: [
            publicKeyOf(generateKeyPairSync('rsa', { modulusLength: 2_048 }).publicKey),
            publicKeyOf(generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey),
            publicKeyOf(generateKeyPairSync('ec', { namedCurve: 'P-521' }).publicKey),
            publicKeyOf(generateKeyPairSync('ed25519').publicKey),
          ],
        },
      },
    ],
    ['spa', { type: 'spa', name: 'Browser', redirect_uris, post_logout_redirect_uris: ['https://app.example.com/'] }],
    [
      'native',
      {
        type: 'native',
        name: 'Native',
        redirect_uris: ['com.example.app:/callback', 'http://127.0.0.1/callback', 'https://app.example.com/callback'],
        post_logout_redirect_uris: ['com.example.app:/signed-out'],
      },
    ],
    [
      'web with the device grant',
      {
        type: 'web',
        name: 'Web',
        redirect_uris,
        grant_types: ['authorization_code', 'refresh_token', deviceGrant],
      },
    ],
  ]
  it.each(forPeople)('may send people to sign in: %s', async (_what, input) => {
    const { client } = await register(input)
    for (const redirect_uri of client.redirect_uris) {
      const query = new URLSearchParams({
        client_id: client.id,
        redirect_uri,
        response_type: 'code',
        scope: 'openid',
        state: 'a-state',
        code_challenge: 'E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM',
        code_challenge_method: 'S256',
      })
      const answer = await fetch(`${provider.issuer}/authorize?${query}`, { redirect: 'manual' })
      expect({
        redirect_uri,
        to: answer.headers.get('location'),
        log: provider.log().match(/invalid_client_metadata.*/)?.[0],
      }).toEqual({
        redirect_uri,
        to: expect.stringMatching(/\/interaction\//),
        log: undefined,
      })
    }
  })

  const machines: [string, CreateInput][] = [
    ['machine', { type: 'machine', name: 'Machine' }],
    ['machine bound to its key', { type: 'machine', name: 'Machine', dpop_bound_access_tokens: true }],
    ['machine with an id of its own', { type: 'machine', name: 'Machine', id: 'Nightly.report_2-x' }],
  ]
  it.each(machines)('is known by its secret: %s', async (_what, input) => {
    const { client, secret = '' } = await register(input)
    const ask = async (password: string) => {
      const answer = await fetch(`${provider.issuer}/token`, {
        method: 'POST',
        headers: { Authorization: `Basic ${btoa(`${encodeURIComponent(client.id)}:${password}`)}` },
        body: new URLSearchParams({ grant_type: 'client_credentials' }),
      })
      return (await answer.json()) as { error?: string }
    }
    expect((await ask(`${secret}x`)).error).toBe('invalid_client')
    // Known, and refused only because it has been given nothing to ask for.
    expect((await ask(secret)).error).toBe('invalid_target')
  })
})
