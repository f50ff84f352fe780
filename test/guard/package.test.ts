/** What is published works where nothing else of ours is: packed, installed in an empty project, run and type-checked. */
import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'

const run = promisify(execFile)
const npm = (args: string[], cwd: string): Promise<{ stdout: string }> => run('npm', args, { cwd })
let project: string
let files: string[]

beforeAll(async () => {
  await run(process.execPath, ['scripts/build-guard.ts'])
  project = await mkdtemp(join(tmpdir(), 'guard-package-'))
  const { stdout } = await npm(['pack', resolve('dist/guard'), '--json', '--pack-destination', project], project)
  const [packed] = JSON.parse(stdout) as [{ filename: string; files: { path: string }[] }]
  files = packed.files.map((file) => file.path)
  await writeFile(join(project, 'package.json'), JSON.stringify({ name: 'empty', private: true, type: 'module' }))
  await npm(['install', '--no-audit', '--no-fund', '--prefer-offline', `./${packed.filename}`], project)
})

afterAll(() => rm(project, { recursive: true, force: true }))

describe('the published package', () => {
  it('holds its own JavaScript, declarations, README and licence, and nothing else', () => {
    const strange = files.filter((file) => !/(?:\.js|\.d\.ts)$|^(?:README\.md|LICENSE|package\.json)$/.test(file))
    expect(strange).toEqual([])
    expect(files).toContain('index.js')
    expect(files).toContain('README.md')
  })

  it('brings at most three packages with it', async () => {
    const lock = JSON.parse(await readFile(join(project, 'package-lock.json'), 'utf8')) as {
      packages: Record<string, { optional?: boolean; peer?: boolean }>
    }
    const installed = Object.keys(lock.packages).filter((path) => path.startsWith('node_modules/'))
    expect(installed.toSorted()).toEqual([
      'node_modules/@latchkey/guard',
      'node_modules/@marcbachmann/cel-js',
      'node_modules/yaml',
    ])
  })

  it('runs: mints a token, lets it in, refuses a forged one', async () => {
    const program = `
      import { createGuard, loadPolicies } from '@latchkey/guard'
      import { createTestIssuer } from '@latchkey/guard/testing'
      import { protect } from '@latchkey/guard/web'
      for (const adapter of ['koa', 'express', 'fastify', 'hono']) await import('@latchkey/guard/' + adapter)
      const idp = await createTestIssuer()
      const policies = loadPolicies('policies: [{ id: all, effect: allow, subjects: ["*"], actions: [read], resources: ["*"] }]')
      const guard = createGuard({ ...idp.options, policies })
      const handle = protect(guard, async (request, auth) => {
        await guard.assert(auth, 'read', { type: 'model' })
        return Response.json(auth.subject.id)
      })
      const ask = (token) => handle(new Request('https://api.test/', { headers: { authorization: 'Bearer ' + token } }))
      const token = await idp.mint()
      console.log(await (await ask(token)).json(), (await ask(token + 'A')).status)`
    await writeFile(join(project, 'program.mjs'), program)
    const { stdout } = await run(process.execPath, ['program.mjs'], { cwd: project })
    expect(stdout.trim()).toBe('alice 401')
  })

  it('has types that resolve, without the frameworks and without skipping checks', async () => {
    const program = `
      import { createGuard, requireScopes } from '@latchkey/guard'
      import type { Auth, Decision } from '@latchkey/guard'
      import { authenticate } from '@latchkey/guard/koa'
      import { createTestIssuer } from '@latchkey/guard/testing'
      const guard = createGuard({ issuer: 'https://id.example.com', audience: 'https://api.example.com' })
      export const step = authenticate(guard)
      export const decide = (auth: Auth): Promise<Decision> => guard.can(auth, 'read', { type: 'model' })
      export const idp = await createTestIssuer()
      export const check = (auth: Auth): void => requireScopes(auth, 'a')
      // @ts-expect-error a guard needs an audience
      createGuard({ issuer: 'https://id.example.com' })`
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
