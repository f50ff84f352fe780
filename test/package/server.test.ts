/** The package `latchkey` as it is published: what is in it, and that it runs. Installing it is the long tests'. */
import { execFile } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import type { DemoData } from '../../src/demo/demo-data.ts'
import { beforeAll, describe, expect, it } from 'vitest'
import { startServer } from '../support/server-process.ts'
import { makeTemporaryFolder } from '../support/temporary-folder.ts'
import { postForm } from '../support/user-agent.ts'

const run = promisify(execFile)
const folder = 'dist/server'
let files: string[]

beforeAll(async () => {
  await run(process.execPath, ['scripts/build-server.ts'])
  const { stdout } = await run('npm', ['pack', resolve(folder), '--dry-run', '--json'])
  const [packed] = JSON.parse(stdout) as [{ files: { path: string }[] }]
  files = packed.files.map(({ path }) => path)
})

const filesOf = (parent: string): string[] =>
  readdirSync(parent, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))

describe('the published server', () => {
  it('holds JavaScript, views, migrations and what is to be read, and nothing else', () => {
    const known = [
      /^src\/(?!guard\/|client\/)[a-z0-9/-]+\.js$/,
      /^src\/latchkey\.mjs$/,
      /^views\//,
      /^migrations\/\d{4}-[a-z0-9-]+\.sql$/,
      /^(keys\/)?README\.md$/,
      /^(CHANGELOG|SECURITY)\.md$/,
      /^(LICENSE|package\.json)$/,
    ]
    expect(files.filter((file) => !known.some((pattern) => pattern.test(file)))).toEqual([])
  })

  it('holds every source, view and migration there is', () => {
    const sources = filesOf('src')
      .filter((path) => path.endsWith('.ts') && !/^src\/(guard|client)\//.test(path))
      .map((path) => path.replace(/\.ts$/, '.js'))
    const wanted = [...sources, ...filesOf('views'), ...filesOf('migrations'), 'LICENSE', 'README.md', 'keys/README.md']
    expect(sources.length).toBeGreaterThan(50)
    expect(wanted.filter((file) => !files.includes(file))).toEqual([])
  })

  it('depends on what it imports, at exact versions, and on no tool of ours', () => {
    const manifest = JSON.parse(readFileSync(`${folder}/package.json`, 'utf8')) as {
      bin: Record<string, string>
      dependencies: Record<string, string>
    }
    const imported = new Set<string>()
    for (const file of files.filter((path) => /^src\/.*\.m?js$/.test(path))) {
      const text = readFileSync(join(folder, file), 'utf8').replaceAll(/\/\*[^]*?\*\/|(?<=^|\s)\/\/.*$/gm, '')
      for (const [, , from = ''] of text.matchAll(/\b(?:from|import)\s*\(?\s*(['"])([^'"\s]+)\1/g)) {
        expect(from, file).not.toMatch(/\.ts$/)
        const [name = ''] = /^(@[^/]+\/)?[^/]+/.exec(from) ?? []
        if (!from.startsWith('.') && !from.startsWith('node:')) imported.add(name)
      }
    }
    expect([...imported].filter((name) => !Object.hasOwn(manifest.dependencies, name))).toEqual([])
    expect(manifest.dependencies).toHaveProperty(['@latchkey/guard'])
    expect(Object.values(manifest.dependencies).filter((version) => !/^\d+\.\d+\.\d+$/.test(version))).toEqual([])
    expect(manifest).not.toHaveProperty('devDependencies')
    expect(manifest).not.toHaveProperty('private')
    expect(files).toContain(manifest.bin['latchkey'])
  })

  it('serves, and hands out a token', { timeout: 90_000 }, async () => {
    const dataDir = makeTemporaryFolder()
    const program = [`${folder}/src/latchkey.mjs`, 'serve']
    const server = await startServer({ program, environment: { LATCHKEY_DATA_DIR: dataDir } })
    const { clients } = JSON.parse(readFileSync(join(dataDir, 'demo.json'), 'utf8')) as DemoData
    const { body } = await postForm(`${server.url}/token`, clients.service, { grant_type: 'client_credentials' })
    expect(body).toMatchObject({ token_type: 'Bearer', access_token: expect.stringMatching(/^ey/) })
    const page = await fetch(`${server.url}/`, { headers: { accept: 'text/html' } })
    expect([page.status, await page.text()]).toEqual([200, expect.stringContaining('Latchkey')])
    for (const path of ['/docs', '/docs/swagger-ui-bundle.js', '/docs/swagger-ui.css', '/openapi.json']) {
      expect([path, (await fetch(server.url + path)).status]).toEqual([path, 200])
    }
  })
})
