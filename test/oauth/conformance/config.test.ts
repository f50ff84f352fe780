import { beforeAll, describe, expect, it } from 'vitest'
import { openProvider, type TestProvider } from '../../support/provider.ts'

describe('oidcc-config', () => {
  const issuer = 'https://id.example.test'
  let provider: TestProvider
  let at: string
  beforeAll(async () => {
    provider = await openProvider('pglite', { environment: { LATCHKEY_ISSUER: issuer } })
    at = `http://localhost:${provider.config.port}`
  })

  const read = async (path: string) => {
    const response = await fetch(`${at}${path}`)
    return { response, body: (await response.json()) as Record<string, unknown> }
  }

  it('oidcc-discovery-endpoint-verification: names the exact issuer and https endpoints, and nothing it does not do', async () => {
    const { response, body } = await read('/.well-known/openid-configuration')
    expect(response.status).toBe(200)
    expect(response.headers.get('content-type')).toMatch(/^application\/json/)
    expect(body).toMatchObject({
      issuer,
      authorization_endpoint: `${issuer}/authorize`,
      token_endpoint: `${issuer}/token`,
      userinfo_endpoint: `${issuer}/userinfo`,
      introspection_endpoint: `${issuer}/introspect`,
      revocation_endpoint: `${issuer}/revoke`,
      end_session_endpoint: `${issuer}/logout`,
      pushed_authorization_request_endpoint: `${issuer}/par`,
      jwks_uri: `${issuer}/.well-known/jwks.json`,
      response_types_supported: ['code'],
      subject_types_supported: ['public'],
      id_token_signing_alg_values_supported: ['RS256'],
      code_challenge_methods_supported: ['S256'],
      authorization_response_iss_parameter_supported: true,
      claims_parameter_supported: false,
      request_uri_parameter_supported: false,
      backchannel_logout_supported: true,
      backchannel_logout_session_supported: true,
    })
    expect([...(body['grant_types_supported'] as string[])].sort()).toEqual([
      'authorization_code',
      'client_credentials',
      'refresh_token',
    ])
    expect([...(body['token_endpoint_auth_methods_supported'] as string[])].sort()).toEqual([
      'client_secret_basic',
      'client_secret_post',
      'none',
      'private_key_jwt',
    ])
    expect(body['scopes_supported']).toEqual(
      expect.arrayContaining(['openid', 'profile', 'email', 'address', 'phone', 'offline_access']),
    )
    expect(body['claims_supported']).toEqual(
      expect.arrayContaining(['sub', 'iss', 'auth_time', 'acr', 'name', 'email', 'email_verified', 'updated_at']),
    )
    const insecure = Object.entries(body).filter(([, value]) => typeof value === 'string' && value.startsWith('http:'))
    expect(insecure).toEqual([])
  })

  it('says the same in the metadata of OAuth (RFC 8414)', async () => {
    const [openid, oauth] = await Promise.all([
      read('/.well-known/openid-configuration'),
      read('/.well-known/oauth-authorization-server'),
    ])
    expect(oauth.body).toEqual(openid.body)
  })

  it('publishes public signing keys alone, with ids that differ', async () => {
    const { response, body } = await read('/.well-known/jwks.json')
    expect(response.headers.get('content-type')).toMatch(/^application\/(jwk-set\+)?json/)
    const keys = body['keys'] as Record<string, unknown>[]
    expect(keys.length).toBeGreaterThan(0)
    expect(new Set(keys.map(({ kid }) => kid)).size).toBe(keys.length)
    for (const key of keys) {
      expect(key).toMatchObject({ kty: 'RSA', use: 'sig', alg: 'RS256', kid: expect.any(String) })
      expect(Object.keys(key).filter((name) => ['d', 'p', 'q', 'dp', 'dq', 'qi', 'k', 'oth'].includes(name))).toEqual(
        [],
      )
    }
  })
})
