/**
 * Starts the models service beside a provider that runs with its demo data: `npm run example`, after `npm start`.
 * What it needs to know of the provider, its address and the name of this service, is in `data/demo.json`.
 */
import { readFileSync } from 'node:fs'
import { createGuard } from '@latchkey/guard'
import { z } from 'zod'
import { createModelsService } from './models-service.ts'
import { openModels } from './models.ts'

const demoUser = z.looseObject({ id: z.string().optional(), sub: z.string().optional() })
const demoFile = z.looseObject({ issuer: z.url(), resource: z.url(), user: demoUser.optional() })

const path = process.env['LATCHKEY_DEMO_FILE'] ?? 'data/demo.json'
let text: string
try {
  text = readFileSync(path, 'utf8')
} catch (error) {
  console.error(`${path} cannot be read. Start the provider first: npm start`, error)
  process.exit(1)
}
const demo = demoFile.parse(JSON.parse(text))

const guard = createGuard({
  issuer: demo.issuer,
  audience: demo.resource,
  policies: new URL('policies.yaml', import.meta.url).pathname,
  audit: (event) => console.log(JSON.stringify(event)),
})

const models = await openModels()
const userId = demo.user?.id ?? demo.user?.sub
await models.create('somebody-else', 'A private model of somebody else', false)
await models.create('somebody-else', 'A public model of somebody else', true)
if (userId !== undefined) {
  const shared = await models.create('somebody-else', 'A model that was shared with you', false)
  await models.share(shared.id, userId, ['read'])
  await models.create(userId, 'A model of your own', false)
}

const port = Number(process.env['PORT'] ?? (new URL(demo.resource).port || 3001))
const server = createModelsService(guard, models).listen(port, '127.0.0.1', () => {
  console.log(`The models service listens at ${demo.resource}, and trusts ${demo.issuer}`)
})

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    server.close(() => void Promise.all([models.close(), guard.close()]))
  })
}
