/**
 * The peer: oidc-provider as its documentation starts it, with its own memory adapter and one static client, issuing the
 * same kind of token (RS256 at+jwt, one resource). As a program of its own; it says `ready` when it listens.
 */
import { generateKeyPairSync } from 'node:crypto'
import { Provider } from 'oidc-provider'

const port = Number(process.env['PORT'])
const resource = process.env['RESOURCE'] ?? ''
const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2_048 })

const provider = new Provider(`http://localhost:${port}`, {
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256' }] },
  clients: [
    {
      client_id: process.env['CLIENT_ID'] ?? '',
      client_secret: process.env['CLIENT_SECRET'] ?? '',
      grant_types: ['client_credentials'],
      redirect_uris: [],
      response_types: [],
    },
  ],
  cookies: { keys: ['of no importance here'] },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => resource,
      getResourceServerInfo: () => ({
        scope: 'models:read models:write',
        audience: resource,
        accessTokenFormat: 'jwt',
        accessTokenTTL: 900,
        jwt: { sign: { alg: 'RS256' } },
      }),
    },
  },
})

provider.listen(port, '127.0.0.1')
process.on('SIGTERM', () => process.exit(0))
