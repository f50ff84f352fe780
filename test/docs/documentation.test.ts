/** What can be checked of the documentation without running it: generated pages, links, and words that give a machine away. */
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import { describe, expect, it } from 'vitest'
import { settingsReference } from '../../src/config.ts'
import { problemCatalogue } from '../../src/problems.ts'
import { referencePages } from './reference-pages.ts'

const root = join(import.meta.dirname, '..', '..')
const read = (path: string) => readFileSync(join(root, path), 'utf8')

// What git would publish, whether it is committed yet or not.
const pages = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', '*.md'], {
  cwd: root,
  encoding: 'utf8',
})
  .split('\n')
  .filter((path) => path !== '' && existsSync(join(root, path)))

describe('pages made from the source', () => {
  it.each([...referencePages])(
    '%s says what the source says; else run node test/docs/reference-pages.ts',
    (path, page) => {
      expect(read(path)).toBe(page())
    },
  )

  it('they name every setting and every error code', () => {
    for (const { name } of settingsReference()) expect(read('docs/configuration.md')).toContain(`| \`${name}\` |`)
    for (const code of Object.keys(problemCatalogue)) expect(read('docs/errors.md')).toContain(`<a id="${code}"></a>`)
  })

  it('every setting that another page names exists', () => {
    const known = new Set(
      settingsReference().flatMap(({ name }) => [name, name.replace('[_FILE]', ''), name.replace(/[[\]]/g, '')]),
    )
    // Of the examples and the tests, whose environment is their own.
    const foreign = new Set(['LATCHKEY_DEMO_FILE'])
    const unknown = pages.flatMap((path) =>
      [...read(path).matchAll(/\bLATCHKEY_[A-Z_]*[A-Z]\b/g)]
        .map(([name]) => name)
        .filter((name) => !known.has(name) && !foreign.has(name))
        .map((name) => `${path}: ${name}`),
    )
    expect(unknown).toEqual([])
  })
})

describe('links', () => {
  it('a link that leads nowhere is found', () => {
    expect(brokenLinks('README.md', '[a](docs/nowhere.md) [b](README.md#no-such-heading) [c](#neither)')).toHaveLength(
      3,
    )
    expect(brokenLinks('README.md', '[a](https://example.com) [b](LICENSE) <img src="docs/none.png">')).toHaveLength(1)
  })

  it.each(pages)('every link of %s leads to something in the repository', (path) => {
    expect(brokenLinks(path, read(path))).toEqual([])
  })
})

describe('words that do not belong into documentation', () => {
  it('a path of somebody’s machine and a registry’s address are found', () => {
    expect(foreignWords('in /home/alice/latchkey')).toHaveLength(1)
    expect(foreignWords('from https://registry.npmjs.org/koa')).toHaveLength(1)
    expect(foreignWords('in /tmp/x and /root/y and C:\\Users\\z')).toHaveLength(3)
    expect(foreignWords('stands in `data/demo.json`')).toEqual([])
  })

  it.each(pages)('%s holds none', (path) => {
    expect(foreignWords(read(path))).toEqual([])
  })
})

function foreignWords(text: string): string[] {
  const shapes = [
    /(?<![\w.}])\/(home|root|tmp|work|Users)\/[\w.-]+/g,
    /\b[A-Z]:\\\w+/g,
    /\bregistry\.[\w-]+\.\w+/g,
    /\bnpm\.pkg\.\w+/g,
  ]
  return shapes.flatMap((shape) => text.match(shape) ?? [])
}

/** Links inside the repository whose file or heading does not exist. Code is left out: it may hold brackets of its own. */
function brokenLinks(path: string, markdown: string): string[] {
  const prose = markdown.replaceAll(/^```[^]*?^```/gm, '').replaceAll(/`[^`\n]*`/g, '`')
  const targets = [...prose.matchAll(/\]\(([^)\s]+)\)|<img[^>]*\bsrc="([^"]+)"/g)].map(
    ([, link, image]) => link ?? image ?? '',
  )
  return targets.filter((target) => {
    if (/^[a-z]+:/.test(target)) return false
    const [file = '', anchor] = target.split('#')
    const found = file === '' ? path : normalize(join(dirname(path), file))
    if (found.startsWith('..') || !existsSync(join(root, found))) return true
    return anchor !== undefined && !anchorsOf(file === '' ? markdown : read(found)).has(anchor)
  })
}

/** Headings as GitHub names them, and anchors that are written out. */
function anchorsOf(markdown: string): Set<string> {
  const headings = [...markdown.replaceAll(/^```[^]*?^```/gm, '').matchAll(/^#+ (.+)$/gm)].map(([, heading = '']) =>
    heading
      .trim()
      .toLowerCase()
      .replaceAll(/[^\p{L}\p{N}\s_-]/gu, '')
      .replaceAll(/\s/g, '-'),
  )
  return new Set([...headings, ...[...markdown.matchAll(/<a id="([^"]+)">/g)].map(([, id = '']) => id)])
}
