/**
 * Starts the models service beside a provider that runs with its demo data: `npm run example`, after `npm start`.
 * What it needs to know of the provider, its address and the name of this service, is in `data/demo.json`.
 */
import { readFileSync } from 'node:fs'
import { createGuard } from '@latchkey/guard'
import { z } from 'zod'
import { createModelsService } from './models-service.ts'
import { openModels } from './models.ts'

const credentials = z.looseObject({ client_id: z.string(), client_secret: z.string() })
const demoFile = z.looseObject({
  issuer: z.url(),
  resource: z.url(),
  user: z.looseObject({ id: z.string() }),
  clients: z.looseObject({ service: credentials, models: credentials }),
})

const path = process.env['LATCHKEY_DEMO_FILE'] ?? 'data/demo.json'
const demo = readDemoFile()

const guard = createGuard({
  issuer: demo.issuer,
  audience: demo.resource,
  policies: new URL('policies.yaml', import.meta.url).pathname,
  // What is revoked is dead here within a second, and no request asks the provider.
  revocation: { clientId: demo.clients.models.client_id, clientSecret: demo.clients.models.client_secret },
  audit: (event) => console.log(JSON.stringify(event)),
})

const models = await openModels()
const { client_id: serviceId, client_secret: serviceSecret } = demo.clients.service
const hidden = await models.create('user:somebody-else', 'A private model of somebody else', false)
await models.create('user:somebody-else', 'A public model of somebody else', true)
const shared = await models.create('user:somebody-else', 'A model that was shared with you', false)
for (const owner of [`user:${demo.user.id}`, `client:${serviceId}`]) {
  await models.share(shared.id, owner, ['read'])
  await models.create(owner, 'A model of your own', false)
}

const port = Number(process.env['PORT'] ?? (new URL(demo.resource).port || 3001))
const address = `http://localhost:${port}`
const server = createModelsService(guard, models).listen(port, '127.0.0.1', () => {
  console.log(`The models service listens at ${address}, and trusts ${demo.issuer}. Try it in another terminal:

  # no token: 401
  curl -i ${address}/models

  # a token for the demo service, for the lines below
  TOKEN=$(curl -s -u ${serviceId}:${serviceSecret} -d grant_type=client_credentials ${demo.issuer}/token | node -p 'JSON.parse(require("fs").readFileSync(0)).access_token')

  # a scope that this token does not have: 403 insufficient_scope
  curl -i -X DELETE -H "Authorization: Bearer $TOKEN" ${address}/models/${hidden.id}

  # somebody else's, and private: 403
  curl -i -H "Authorization: Bearer $TOKEN" ${address}/models/${hidden.id}

  # somebody else's, and shared: 200
  curl -i -H "Authorization: Bearer $TOKEN" ${address}/models/${shared.id}

  # the list: your own, the shared and the public ones, and no other
  curl -s -H "Authorization: Bearer $TOKEN" ${address}/models

  # revoked at the provider, the token is dead here within a second: 401
  curl -s -u ${serviceId}:${serviceSecret} -d token=$TOKEN ${demo.issuer}/revoke; sleep 1
  curl -i -H "Authorization: Bearer $TOKEN" ${address}/models
`)
})

server.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EADDRINUSE') throw error
  stop(`Port ${port} is taken: end what listens there, or choose another one: PORT=3011 npm run example`)
})

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    server.close(() => void Promise.all([models.close(), guard.close()]))
  })
}

function readDemoFile(): z.infer<typeof demoFile> {
  try {
    return demoFile.parse(JSON.parse(readFileSync(path, 'utf8')))
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    return stop(`${path} cannot be read. Start the provider first: npm start (${why})`)
  }
}

function stop(message: string): never {
  console.error(message)
  process.exit(1)
}
