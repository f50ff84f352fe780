/** The contract is kept over time: what was published under a version stays true under its major version. */
import { execFileSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { makeTemporaryFolder } from '../support/temporary-folder.ts'
import { readCommittedDocument, type Document, type Schema } from './document.ts'
import { findBrokenPromises, readHistory } from './history.ts'

/** The document is a promise from this moment on, as it was committed last by then; before, it was being made. */
const contractSince = new Date('2026-11-28T00:00:00Z')

describe('the document of this repository', () => {
  it('raised its version with every change, and by as much as the change needs', (context) => {
    const history = readHistory(join(import.meta.dirname, '..', '..'), contractSince)
    if (history === undefined) {
      console.warn('The history of docs/openapi.json was not looked at: this is no clone of a git repository.')
      context.skip('no git history here')
    }
    expect(findBrokenPromises(history ?? [])).toEqual([])
  })
})

const day = (n: number) => new Date(Date.UTC(2_030, 0, n))

describe('a history', () => {
  it('is kept by additions under a minor version, text under a patch, breaking changes under a major one', () => {
    const { commit, promises } = openRepository()
    commit(day(1), { version: '1.0.0', members: ['a'] })
    commit(day(2), { version: '1.1.0', members: ['a', 'b'] })
    commit(day(3), { version: '1.1.1', members: ['a', 'b'], text: 'better words' })
    commit(day(4), { version: '2.0.0', members: ['b'] })
    expect(promises(day(1))).toEqual([])
  })

  it('is broken by any change under the same version', () => {
    const { commit, promises } = openRepository()
    commit(day(1), { version: '1.0.0', members: ['a'] })
    commit(day(2), { version: '1.0.0', members: ['a', 'b'] })
    expect(promises(day(1))).toEqual([
      expect.stringContaining('needs a minor version: response member added: GET /things 200 body.b'),
    ])
  })

  it('is broken by a breaking change under a minor version, although the change before it was as bad', () => {
    const { commit, promises } = openRepository()
    commit(day(1), { version: '1.0.0', members: ['a', 'b', 'c'] })
    commit(day(2), { version: '1.1.0', members: ['a', 'b'] })
    commit(day(3), { version: '1.2.0', members: ['a'] })
    expect(promises(day(1))).toEqual([
      expect.stringContaining('(1.0.0 → 1.1.0) needs a major version: response member removed'),
      expect.stringContaining('(1.1.0 → 1.2.0) needs a major version: response member removed'),
    ])
  })

  it('is broken by what has not been committed yet', () => {
    const { commit, write, promises } = openRepository()
    commit(day(1), { version: '1.0.0', members: ['a'] })
    write({ version: '1.0.1', members: [] })
    expect(promises(day(1))).toEqual([expect.stringMatching(/^the working tree .* needs a major version/)])
  })

  it('begins with the document as it was when the contract began: what was before may be anything', () => {
    const { commit, promises } = openRepository()
    commit(day(1), { version: '1.0.0', members: ['a'] })
    commit(day(3), { version: '1.0.0', members: ['b'] })
    expect(promises(day(4))).toEqual([])
    // Nobody's clock says when the next commit comes: the one before the beginning binds it.
    expect(promises(day(2))).not.toEqual([])
    expect(promises(day(1))).not.toEqual([])
  })

  it('has not begun before its time', () => {
    const { commit, promises } = openRepository()
    commit(day(1), { version: '1.0.0', members: ['a'] })
    commit(day(3), { version: '1.0.0', members: ['b'] })
    expect(promises(day(2), day(1))).toEqual([])
  })

  it('takes a merge as the one change that it brings', () => {
    const { commit, git, promises } = openRepository()
    commit(day(1), { version: '1.0.0', members: ['a'] })
    git('checkout', '-q', '-b', 'work')
    commit(day(2), { version: '1.0.0', members: ['b'] })
    commit(day(3), { version: '1.1.0', members: ['a', 'c'] })
    git('checkout', '-q', 'main')
    git('merge', '-q', '--no-ff', '-m', 'merge', 'work')
    expect(promises(day(1))).toEqual([])
  })

  it('cannot be read where there is none', () => {
    const folder = makeTemporaryFolder()
    writeDocument(folder, { version: '1.0.0', members: [] })
    expect(readHistory(folder, day(1))).toBeUndefined()
  })
})

interface Sketch {
  readonly version: string
  /** of the answer of the one operation */
  readonly members: readonly string[]
  readonly text?: string
}

function openRepository() {
  const folder = makeTemporaryFolder()
  const git = (...args: string[]) => gitAt(folder, new Date(), args)
  const write = (sketch: Sketch) => writeDocument(folder, sketch)
  const commit = (at: Date, sketch: Sketch) => {
    write(sketch)
    git('add', '.')
    gitAt(folder, at, ['commit', '-q', '-m', 'a change'])
  }
  const promises = (since: Date, now = day(9)) => {
    const history = readHistory(folder, since, now)
    if (history === undefined) throw new Error('no history')
    return findBrokenPromises(history)
  }
  git('init', '-q', '-b', 'main')
  return { git, write, commit, promises }
}

function gitAt(folder: string, at: Date, args: readonly string[]): void {
  execFileSync('git', ['-C', folder, '-c', 'user.name=Alice', '-c', 'user.email=alice@example.com', ...args], {
    env: { PATH: process.env['PATH'], GIT_COMMITTER_DATE: at.toISOString(), GIT_AUTHOR_DATE: at.toISOString() },
  })
}

function writeDocument(folder: string, { version, members, text = '' }: Sketch): void {
  const schema: Schema = {
    type: 'object',
    properties: Object.fromEntries(members.map((name) => [name, { type: 'string' }])),
    required: members,
  }
  const document: Document = {
    ...readCommittedDocument(),
    info: { title: text, version },
    paths: {
      '/things': { get: { responses: { 200: { description: '', content: { 'application/json': { schema } } } } } },
    },
  }
  mkdirSync(join(folder, 'docs'), { recursive: true })
  writeFileSync(join(folder, 'docs', 'openapi.json'), JSON.stringify(document))
}
