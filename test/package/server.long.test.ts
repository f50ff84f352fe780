/** The package `latchkey`, packed and installed in an empty folder beside the guard's, as somebody without us has it. */
import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { beforeAll, describe, expect, it } from 'vitest'
import { startServer } from '../support/server-process.ts'
import { makeTemporaryFolder } from '../support/temporary-folder.ts'

const run = promisify(execFile)
const env = { PATH: `${dirname(process.execPath)}:${process.env['PATH']}`, HOME: process.env['HOME'] }
/** Where packages come from, and whom to believe there, is this machine's affair. */
const waysToPackages = Object.fromEntries(
  Object.entries(process.env).filter(([name]) =>
    /^(node_extra_ca_certs|ssl_cert_(file|dir)|(https?|no)_proxy|npm_config_(registry|cafile|cache|(https_)?proxy|noproxy))$/i.test(
      name,
    ),
  ),
)
let project: string

const npm = (...args: string[]) => run('npm', args, { cwd: project, env: { ...waysToPackages, ...env } })
const npx = (...args: string[]) => run('npx', ['--no-install', 'latchkey', ...args], { cwd: project, env })

beforeAll(async () => {
  project = makeTemporaryFolder()
  for (const script of ['build-server', 'build-guard']) await run(process.execPath, [`scripts/${script}.ts`])
  const { stdout } = await npm('pack', resolve('dist/server'), resolve('dist/guard'), '--json')
  const tarballs = (JSON.parse(stdout) as { filename: string }[]).map(({ filename }) => `./${filename}`)
  writeFileSync(join(project, 'package.json'), JSON.stringify({ name: 'empty', private: true }))
  await npm('install', '--no-audit', '--no-fund', '--prefer-offline', ...tarballs)
}, 300_000)

describe('the server, installed', () => {
  it('says its version and its settings', async () => {
    expect((await npx('--version')).stdout).toMatch(/^\d+\.\d+\.\d+\n$/)
    expect((await npx('config', 'check')).stdout).toMatch(/^SETTING +VALUE +SOURCE\nNODE_ENV +development +default$/m)
  })

  it('refuses production without its three settings, by name', async () => {
    const refused = run('npx', ['--no-install', 'latchkey', 'serve'], {
      cwd: project,
      env: { ...env, NODE_ENV: 'production' },
    })
    await expect(refused).rejects.toMatchObject({ code: 1, stderr: expect.stringMatching(/DATABASE_URL is required/) })
  })

  it('runs the tests of a policy file', async () => {
    const { stdout } = await npx('policy', 'test', resolve('examples/models-koa/policies.yaml'))
    expect(stdout).toContain('tests passed')
  })

  it('serves', async () => {
    const server = await startServer({ program: [join(project, 'node_modules/.bin/latchkey'), 'serve'] })
    const metadata = await fetch(`${server.url}/.well-known/openid-configuration`)
    expect(await metadata.json()).toMatchObject({ issuer: server.url })
    expect(await server.stop()).toEqual({ code: 0, signal: null })
  })
})
