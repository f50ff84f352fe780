/**
 * docs/policies.md, as it is printed: each file loads and passes its tests, or is refused in the words above it; each
 * program runs and each command is carried out, and what they print stands below them.
 */
import { execFile } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { loadPolicies, PolicyError, runPolicyTests } from '@latchkey/guard'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'

const run = promisify(execFile)
// Inside the repository, so that imports resolve as they do for everybody here; ignored by git.
const folder = resolve('dist/policies-page')

interface Block {
  readonly language: string
  readonly text: string
  /** What the page says that it is refused with. */
  readonly refused: string | undefined
  /** The `text` block right below it. */
  readonly prints: string | undefined
  readonly line: number
}

const page = readFileSync('docs/policies.md', 'utf8')
const fence = /(?:^<!-- refused: ([^\n]*) -->\n)?^```(\w+)\n([^]*?)^```$/gm
const below = /\n\n```text\n([^]*?)^```$/my
const blocks = [...page.matchAll(fence)].map(([all, refused, language = '', text = ''], index, every): Block => {
  const start = every[index]?.index ?? 0
  below.lastIndex = start + all.length
  return { language, text, refused, prints: below.exec(page)?.[1], line: page.slice(0, start).split('\n').length }
})
const of = (language: string) => blocks.filter((block) => block.language === language)
const nameOf = ({ text }: Block): string => /^# (\S+\.yaml)$/m.exec(text)?.[1] ?? ''

beforeAll(() => {
  mkdirSync(folder, { recursive: true })
  for (const block of of('yaml')) writeFileSync(join(folder, nameOf(block)), block.text)
  for (const { text } of of('json')) writeFileSync(join(folder, 'attributes.json'), text)
})

afterAll(() => rmSync(folder, { recursive: true, force: true }))

describe('docs/policies.md', () => {
  it('has examples of every sort', () => {
    const counts = ['json', 'sh', 'text', 'ts', 'yaml'].map((language) => [language, of(language).length])
    expect(counts).toEqual([
      ['json', 1],
      ['sh', 4],
      ['text', 7],
      ['ts', 3],
      ['yaml', 6],
    ])
    expect(blocks).toHaveLength(21)
    expect(of('yaml').map(nameOf)).not.toContain('')
  })

  it.each(of('yaml').filter(({ refused }) => refused !== undefined))(
    'the file in line $line is refused as it says',
    (block) => {
      const name = nameOf(block)
      let message: string | undefined
      try {
        loadPolicies(block.text, { file: name })
      } catch (error) {
        if (!(error instanceof PolicyError)) throw error
        message = error.message
      }
      expect(message).toBe(block.refused)
    },
  )

  it.each(of('yaml').filter(({ refused, text }) => refused === undefined && !text.includes('bindings:')))(
    'the file in line $line passes its tests',
    (block) => {
      const policies = loadPolicies(block.text, { file: nameOf(block) })
      const results = runPolicyTests(policies)
      expect(results.length).toBeGreaterThan(0)
      expect(results.filter(({ passed }) => !passed)).toEqual([])
    },
  )

  it.each(of('ts'))(
    'the program in line $line prints what it says',
    { timeout: 60_000 },
    async ({ text, prints, line }) => {
      const file = join(folder, `line-${line}.ts`)
      writeFileSync(file, text)
      const { stdout } = await run(process.execPath, [file], { cwd: folder, env: { NO_COLOR: '1' } })
      expect(stdout).toBe(prints)
    },
  )

  it.each(of('sh'))('the command in line $line prints what it says', { timeout: 60_000 }, async ({ text, prints }) => {
    const command = text.replace(/^latchkey /, `"${process.execPath}" "${resolve('src/latchkey.mjs')}" `)
    const { stdout } = await run('bash', ['-ec', command], { cwd: folder })
    expect(stdout).toBe(prints)
  })
})
