/**
 * What the documentation tells people to paste: each `sh` block under `<!-- run -->` is carried out as it is printed, in
 * a folder that looks like the repository and holds the data of a server of its own.
 */
import { execFile } from 'node:child_process'
import { mkdirSync, readFileSync, symlinkSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { beforeAll, describe, expect, inject, it } from 'vitest'
import { programEnvironment } from '../support/program-environment.ts'
import { startServer } from '../support/server-process.ts'

const run = promisify(execFile)
const root = join(import.meta.dirname, '..', '..')

describe('commands of the documentation', () => {
  let folder: string
  beforeAll(async () => {
    folder = join(inject('temporaryFolder'), 'documentation')
    mkdirSync(join(folder, 'data'), { recursive: true, mode: 0o700 })
    mkdirSync(join(folder, 'keys'), { mode: 0o700 })
    for (const name of ['examples', 'node_modules', 'package.json', 'src'])
      symlinkSync(join(root, name), join(folder, name))
    await startServer({
      environment: { LATCHKEY_DATA_DIR: join(folder, 'data'), LATCHKEY_KEYS_DIR: join(folder, 'keys') },
    })
  })

  it('a block that fails is noticed, and so is one whose server says no', async () => {
    await expect(paste(folder, ['false'])).rejects.toThrow('Command failed')
    await expect(
      paste(folder, ['curl -fsS "$(node -p "require(\'./data/demo.json\').issuer")/nowhere"']),
    ).rejects.toThrow('404')
  })

  it('README.md: the list of clients of a new installation is the one it shows', async () => {
    const [, shown] = /^```text\n(CLIENT_ID[^]*?)```/m.exec(readFileSync(join(root, 'README.md'), 'utf8')) ?? []
    expect(await paste(folder, ['npm run --silent latchkey -- clients list'])).toBe(shown)
  }, 60_000)

  it('README.md: a token, its end, the metadata, the keys, the health, and the commands', async () => {
    const blocks = findBlocks('README.md')
    expect(blocks).toHaveLength(3)
    const printed = await paste(folder, blocks)
    expect(printed).toContain("aud: 'http://localhost:3001'")
    expect(printed).toContain("scope: 'models:read'")
    // Good, then revoked: in this order.
    expect(printed).toMatch(/"active":true[^]*\{"active":false\}/)
    expect(printed).toContain('"jwks_uri"')
    expect(printed).toContain('"kty":"RSA"')
    expect(printed).toContain('"email":"admin@example.com","is_active":true}')
    expect(printed).toMatch(/"next_cursor":"[\w-]+"|"has_more":false/)
    expect(printed).toContain('This needs the scope roles:read.')
    expect(printed).toContain('{"status":"healthy"}')
    expect(printed).toMatch(/^client_secret {2}lk_secret_/m)
    expect(printed).toMatch(/^member$/m)
    expect(printed).toMatch(/ current /)
    expect(printed).toContain('4 of 4 tests passed')
  }, 180_000)

  it('docs/concepts.md: the API, line by line, and once more', async () => {
    const blocks = findBlocks('docs/concepts.md').slice(1)
    for (let i = 0; i < 2; i += 1) {
      expect((await paste(folder, blocks)).trim().split(/ ?\n/)).toEqual([
        // Methods, conditions, content negotiation, errors
        'null',
        'Dana D.',
        '304 412 200',
        '415 406',
        'email,name',
        'There is no such parameter: did you mean limit?',
        // Idempotency, pages, versions
        'one effect, one answer',
        'IDEMPOTENCY_KEY_REUSED',
        '/v1/users?sort=-created_at&fields=email&limit=2&offset=2',
        '200 400',
        '1',
        '400',
        // Tracing, limits, CORS, DELETE
        'walk-1',
        'Traced',
        '200 200 429 403',
        '1',
        '0',
        '204 404 204',
      ])
    }
  }, 180_000)

  it('docs/api.md: a first call, from a client of its own to a person who comes and goes', async () => {
    const blocks = findBlocks('docs/api.md')
    expect(blocks).toHaveLength(1)
    const printed = await paste(folder, blocks)
    expect(printed).toMatch(/"email":"carol@example.com","name":"Carol Chen"\}\n/)
    expect(printed).toContain('"name":"Carol C."')
    expect(printed).toContain('"next_cursor":"')
  }, 180_000)

  it('docs/concepts.md: the whole flow, to the successor of a refresh token and the end of its family', async () => {
    const blocks = findBlocks('docs/concepts.md')
    expect(blocks).toHaveLength(2)
    const lines = (await paste(folder, blocks.slice(0, 1))).trim().split('\n')
    expect(lines).toEqual([
      expect.stringMatching(/\/demo\/spa\/callback\?code=[\w-]+&state=of-this-browser&iss=/),
      'models:read',
      'the same successor',
      expect.stringContaining('"error":"invalid_grant"'),
      expect.stringContaining('"error":"invalid_grant"'),
    ])
  }, 180_000)
})

/** The blocks to be run of a page, in their order. */
function findBlocks(page: string): string[] {
  const text = readFileSync(join(root, page), 'utf8')
  return [...text.matchAll(/^<!-- run -->\n```sh\n([^]*?)^```$/gm)].map(([, block = '']) => block)
}

/** Carries blocks out one after the other in one shell, as somebody does who pastes them; the first failure ends it. */
async function paste(folder: string, blocks: readonly string[]): Promise<string> {
  const { stdout } = await run('bash', ['-euo', 'pipefail', '-c', blocks.join('\n')], {
    cwd: folder,
    // The Node that comes with the packages, as in `npm run`; nothing else of the tests' environment.
    env: {
      ...programEnvironment,
      PATH: `${dirname(process.execPath)}:${process.env['PATH'] ?? ''}`,
      HOME: folder,
      TMPDIR: folder,
    },
    timeout: 170_000,
    maxBuffer: 4 * 1024 * 1024,
  })
  return stdout
}
