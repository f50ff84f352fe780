/** What is published works where nothing else of ours is but the guard: packed, installed, run and type-checked. */
import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { buildClient } from '../../scripts/build-client.ts'
import { buildGuard } from '../../scripts/build-guard.ts'

const run = promisify(execFile)
let folder: string
let project: string
let files: string[]

async function pack(built: string): Promise<{ filename: string; files: { path: string }[] }> {
  const { stdout } = await run('npm', ['pack', built, '--json', '--pack-destination', project], { cwd: project })
  const [packed] = JSON.parse(stdout) as [{ filename: string; files: { path: string }[] }]
  return packed
}

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'client-package-'))
  project = join(folder, 'project')
  await mkdir(project)
  buildGuard(join(folder, 'guard'))
  buildClient(join(folder, 'client'))
  const guard = await pack(join(folder, 'guard'))
  const client = await pack(join(folder, 'client'))
  files = client.files.map((file) => file.path)
  await writeFile(join(project, 'package.json'), JSON.stringify({ name: 'empty', private: true, type: 'module' }))
  const tarballs = [guard, client].map(({ filename }) => `./${filename}`)
  await run('npm', ['install', '--no-audit', '--no-fund', '--prefer-offline', ...tarballs], { cwd: project })
})

afterAll(() => rm(folder, { recursive: true, force: true }))

describe('the published client', () => {
  it('holds its own JavaScript, declarations, README and licence, and nothing else', () => {
    const strange = files.filter((file) => !/(?:\.js|\.d\.ts)$|^(?:README\.md|LICENSE|package\.json)$/.test(file))
    expect(strange).toEqual([])
    expect(files).toContain('index.js')
    expect(files.some((file) => file.includes('/'))).toBe(false)
  })

  it('brings the guard, what its calls need, and openapi-fetch', async () => {
    const lock = JSON.parse(await readFile(join(project, 'package-lock.json'), 'utf8')) as {
      packages: Record<string, unknown>
    }
    const installed = Object.keys(lock.packages).flatMap((path) => path.split('node_modules/').slice(1))
    expect(installed.toSorted()).toEqual([
      '@latchkey/client',
      '@latchkey/guard',
      '@marcbachmann/cel-js',
      'cockatiel',
      'openapi-fetch',
      'openapi-typescript-helpers',
      'undici',
      'yaml',
    ])
  })

  it('runs: gets a token, tries again under the same key, walks a list', async () => {
    const program = `
      import { once } from 'node:events'
      import { createServer } from 'node:http'
      import { createClient, paginate } from '@latchkey/client'
      const seen = []
      const json = (response, status, body) =>
        response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
      const server = createServer((request, response) => {
        const { method, url, headers } = request
        if (url === '/token') return json(response, 200, { access_token: 't', token_type: 'Bearer', expires_in: 900 })
        seen.push([method, headers['idempotency-key'], headers.authorization])
        if (seen.length === 1) return json(response, 503, {})
        if (method === 'POST') return json(response, 201, { user_id: 'usr_1' })
        const last = url.includes('cursor=')
        json(response, 200, { users: [{ user_id: last ? 'usr_2' : 'usr_1' }], pagination: { next_cursor: last ? null : 'c' } })
      }).listen(0, '127.0.0.1')
      await once(server, 'listening')
      const baseUrl = 'http://localhost:' + server.address().port
      const latchkey = createClient({ baseUrl, auth: { clientId: 'a', clientSecret: 'b' }, backoffMs: 10 })
      const { data } = await latchkey.POST('/v1/users', { body: { email: 'carol@example.com' } })
      const ids = []
      for await (const user of paginate(latchkey, '/v1/users')) ids.push(user.user_id)
      const [[, first, token], [, second]] = seen
      console.log(data.user_id, first === second && first.length === 36, token, ids.join())
      await latchkey.close()
      server.close()`
    await writeFile(join(project, 'program.mjs'), program)
    const { stdout, stderr } = await run(process.execPath, ['program.mjs'], { cwd: project })
    expect([stdout.trim(), stderr]).toEqual(['usr_1 true Bearer t usr_1,usr_2', ''])
  })

  it('has types that refuse what the API would refuse, without skipping checks', async () => {
    const program = `
      import { createClient, ifMatch, LatchkeyApiError, paginate } from '@latchkey/client'
      import type { components, LatchkeyClient } from '@latchkey/client'
      const latchkey: LatchkeyClient = createClient({ baseUrl: 'https://id.example.com', auth: { apiKey: 'k' } })
      const params = { path: { user_id: 'usr_1' } }
      const { data, response } = await latchkey.GET('/v1/users/{user_id}', { params })
      export const email: string | undefined = data.email
      export const user: components['schemas']['User'] = (await latchkey.POST('/v1/users', { body: { email: 'x' } })).data
      await latchkey.PATCH('/v1/users/{user_id}', { params: { ...params, header: ifMatch(response) }, body: { name: null } })
      for await (const { session_id } of paginate(latchkey, '/v1/users/{user_id}/sessions', { params })) {
        export_(session_id)
      }
      function export_(id: string): void { throw new LatchkeyApiError(new Request(id), new Response(), '') }

      // @ts-expect-error there is no such path
      await latchkey.GET('/v1/user')
      // @ts-expect-error there is no such method there
      await latchkey.PUT('/v1/users')
      // @ts-expect-error the path needs an identifier
      await latchkey.GET('/v1/users/{user_id}')
      // @ts-expect-error a person has an address
      await latchkey.POST('/v1/users', { body: {} })
      // @ts-expect-error nobody may set this
      await latchkey.POST('/v1/users', { body: { email: 'a@example.com', user_id: 'usr_1' } })
      // @ts-expect-error there is no such filter
      await latchkey.GET('/v1/users', { params: { query: { is_activ: true } } })
      // @ts-expect-error there is no such member
      console.log(data.shoe_size)
      // @ts-expect-error nothing is answered
      console.log((await latchkey.DELETE('/v1/users/{user_id}', { params })).data.email)
      // @ts-expect-error that is no list in pages
      paginate(latchkey, '/v1/usage')
      // @ts-expect-error somebody calls
      createClient({ baseUrl: 'https://id.example.com' })
      // @ts-expect-error a secret belongs to a client
      createClient({ baseUrl: 'https://id.example.com', auth: { clientSecret: 's' } })`
    await writeFile(join(project, 'program.ts'), program)
    const options = [
      '--noEmit',
      '--strict',
      '--module',
      'nodenext',
      '--target',
      'es2024',
      '--lib',
      'es2024,dom,dom.iterable',
    ]
    const types = ['--types', 'node', '--typeRoots', resolve('node_modules/@types')]
    const checked = run(resolve('node_modules/.bin/tsc'), [...options, ...types, 'program.ts'], { cwd: project })
    await expect(checked).resolves.toMatchObject({ stdout: '' })
  })
})
