/** The examples in the documentation of the guard and of the client compile, against both as they are. */
import { execFile } from 'node:child_process'
import { glob, mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import { afterAll, describe, expect, it } from 'vitest'

const run = promisify(execFile)
// Inside the repository, so that imports resolve as they do for everybody here; ignored by git.
const FOLDER = 'dist/documentation-examples'

afterAll(() => rm(FOLDER, { recursive: true, force: true }))

/** Every example that says what it imports. */
async function examples(): Promise<{ file: string; line: number; code: string }[]> {
  const found = []
  for await (const file of glob(['src/guard/**/*.ts', 'src/client/*.ts', 'src/*/README.md', 'docs/policies.md'])) {
    const text = await readFile(file, 'utf8')
    for (const match of text.matchAll(/^([ *]*)```ts\n([^]*?)^\1```$/gm)) {
      const [, margin = '', block = ''] = match
      const code = block.replaceAll(new RegExp(`^${margin.replaceAll('*', String.raw`\*`).trimEnd()} ?`, 'gm'), '')
      const line = text.slice(0, match.index).split('\n').length
      if (/^import /m.test(code)) found.push({ file, line, code })
    }
  }
  return found
}

describe('the documentation of the guard and the client', () => {
  it('has examples that compile', async () => {
    const found = await examples()
    expect(found.length).toBeGreaterThan(15)
    await mkdir(FOLDER, { recursive: true })
    const names = found.map(({ file, line }) => `${file.replaceAll(/[^a-zA-Z]+/g, '-')}-${line}.ts`)
    await Promise.all(found.map(({ code }, at) => writeFile(`${FOLDER}/${names[at]}`, `${code}\nexport {}\n`)))
    const compilerOptions = { noUnusedLocals: false, noUnusedParameters: false }
    await writeFile(
      `${FOLDER}/tsconfig.json`,
      JSON.stringify({ extends: '../../tsconfig.json', compilerOptions, include: ['*.ts'], exclude: [] }),
    )
    await expect(run('node_modules/.bin/tsc', ['--project', FOLDER])).resolves.toMatchObject({ stdout: '' })
  })
})
