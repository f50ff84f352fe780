/** oidc-provider as it comes, over HTTP, with one client that may call for itself. */
import { generateKeyPairSync } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Provider } from 'oidc-provider'

export const WORKER = { client_id: 'worker', client_secret: 'a-secret-of-the-worker' }

/** Listens on a free port of this machine. */
export async function listening(server: Server): Promise<{ readonly origin: string; readonly close: () => void }> {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    close: () => {
      server.closeAllConnections()
      server.close()
    },
  }
}

/** The same, for a framework's handler. */
export function serving(
  handle: (request: IncomingMessage, response: ServerResponse) => unknown,
): ReturnType<typeof listening> {
  return listening(createServer((request, response) => void handle(request, response)))
}

/** Starts the provider. `origin` is its issuer. */
export async function startPlainProvider(): ReturnType<typeof listening> {
  const server = createServer()
  const running = await listening(server)
  const signing = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({ format: 'jwk' })
  const provider = new Provider(running.origin, {
    jwks: { keys: [{ ...signing, kid: 'first', use: 'sig', alg: 'RS256' }] },
    cookies: { keys: ['only for tests'] },
    clients: [
      {
        ...WORKER,
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
      },
    ],
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_ctx, resource) => ({
          scope: 'models:read models:write',
          audience: resource,
          accessTokenFormat: 'jwt',
          accessTokenTTL: 300,
          jwt: { sign: { alg: 'RS256' } },
        }),
      },
    },
  })
  const handle = provider.callback()
  server.on('request', (request, response) => void handle(request, response))
  return running
}
