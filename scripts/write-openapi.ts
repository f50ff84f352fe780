/**
 * Writes docs/openapi.json as a provider with the default issuer serves it: `npm run openapi`. The provider is one of its
 * own, on an empty database that is thrown away. A test fails when the file says anything else than the source does.
 */
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { pino } from 'pino'
import { readConfig } from '../src/config.ts'
import { openServer } from '../src/server.ts'

const target = fileURLToPath(new URL('../docs/openapi.json', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'latchkey-openapi-'))
try {
  const config = readConfig({
    NODE_ENV: 'development',
    LATCHKEY_DATA_DIR: join(folder, 'data'),
    LATCHKEY_KEYS_DIR: join(folder, 'keys'),
  })
  const server = await openServer({ config, log: pino({ level: 'silent' }), phase: () => 'ready' })
  const http = createServer(server.handle).listen(0, '127.0.0.1')
  await once(http, 'listening')
  const address = http.address()
  if (address === null || typeof address === 'string') throw new Error('a listening TCP server has no port')
  const answer = await fetch(`http://127.0.0.1:${address.port}/openapi.json`, { headers: { connection: 'close' } })
  if (answer.status !== 200) throw new Error(`/openapi.json answered ${answer.status}: ${await answer.text()}`)
  writeFileSync(target, `${JSON.stringify(await answer.json(), null, 2)}\n`)
  http.close()
  await server.close()
} finally {
  rmSync(folder, { recursive: true, force: true })
}
