/** `npm run example` beside a provider: it starts, and the lines that it prints do what it says they do. */
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { findFreePort } from '../support/ports.ts'
import { programEnvironment } from '../support/program-environment.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { makeTemporaryFolder } from '../support/temporary-folder.ts'

const run = promisify(execFile)
const PATH = `${dirname(process.execPath)}:${process.env['PATH']}`

/** Starts the example with nothing in its environment but what is given. */
function startExample(environment: Record<string, string>) {
  const child = spawn(process.execPath, ['examples/models-koa/main.ts'], {
    env: { ...programEnvironment, PATH, ...environment },
  })
  onTestFinished(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill('SIGTERM')
    await once(child, 'exit')
  })
  let out = ''
  let err = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (out += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (err += text))
  return { ended: once(child, 'close') as Promise<[number | null]>, out: () => out, err: () => err }
}

/** What a shell prints for each of the lines, in one shell, as somebody who pastes them gets it. */
async function paste(lines: readonly string[]): Promise<string[]> {
  const { stdout } = await run('bash', ['-ec', lines.join('\necho; echo ----\n')], {
    env: { ...programEnvironment, PATH },
  })
  return stdout.split('\n----\n')
}

describe('the models service beside the provider', { timeout: 60_000 }, () => {
  let provider: TestProvider
  let demoFile: string
  beforeAll(async () => {
    provider = await openProvider('pglite')
    demoFile = join(provider.config.dataDir, 'demo.json')
  })

  it('says that the provider has to run first, without a stack trace', async () => {
    const unreadable = join(makeTemporaryFolder(), 'demo.json')
    writeFileSync(unreadable, '{"issuer": "not an address"}')
    for (const file of ['no-such-folder/demo.json', unreadable]) {
      const example = startExample({ LATCHKEY_DEMO_FILE: file })
      expect(await example.ended).toEqual([1, null])
      expect(example.err()).toContain(`${file} cannot be read. Start the provider first: npm start`)
      expect(example.err()).not.toContain('    at ')
    }
  })

  it('says that its port is taken, without a stack trace', async () => {
    const port = await findFreePort()
    const other = createServer().listen(port, '127.0.0.1')
    await once(other, 'listening')
    onTestFinished(() => void other.close())
    const example = startExample({ LATCHKEY_DEMO_FILE: demoFile, PORT: String(port) })
    expect(await example.ended).toEqual([1, null])
    expect(example.err()).toBe(
      `Port ${port} is taken: end what listens there, or choose another one: PORT=3011 npm run example\n`,
    )
  })

  it('prints a walk through 401, 403, 403, 200, a filtered list and a revocation, and walks it', async () => {
    const port = await findFreePort()
    const example = startExample({ LATCHKEY_DEMO_FILE: demoFile, PORT: String(port) })
    await expect.poll(example.out, { timeout: 30_000 }).toMatch(/\/models\n\n *\n?$/)
    const commands = example
      .out()
      .split('\n')
      .filter((line) => /^ {2}(curl|TOKEN=)/.test(line))
    expect(commands).toHaveLength(8)

    const [nobody = '', , noScope = '', notTheirs = '', shared = '', list = '', , revoked = ''] = await paste(commands)
    expect(nobody).toMatch(/^HTTP\/1.1 401 [^]*www-authenticate: Bearer resource_metadata=/i)
    expect(noScope).toMatch(/^HTTP\/1.1 403 [^]*error="insufficient_scope"[^]*scope="models:delete"/)
    expect(notTheirs).toMatch(/^HTTP\/1.1 403 /)
    expect(notTheirs).not.toMatch(/www-authenticate/i)
    expect(shared).toMatch(/^HTTP\/1.1 200 [^]*"A model that was shared with you"/)
    const { models } = JSON.parse(list) as { models: { name: string }[] }
    expect(models.map(({ name }) => name)).toEqual([
      'A model of your own',
      'A model that was shared with you',
      'A public model of somebody else',
    ])
    expect(revoked).toMatch(/^HTTP\/1.1 401 [^]*error="invalid_token"/)
  })
})
