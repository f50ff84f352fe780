/** The document as it was committed over time, and whether each step of it kept what the step before had promised. */
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { findChanges, neededRaise, raiseOf } from './changes.ts'
import { documentFile, type Document } from './document.ts'

export interface CommittedDocument {
  /** the commit's name in short, or `the working tree` */
  readonly at: string
  readonly document: Document
}

const mostCommits = 50

/**
 * The document of each commit that changed it, the oldest first, and at last as it lies in the folder. A merge counts as
 * the one change that it brings.
 *
 * @param since when the contract begins: with the document as it was committed last by then
 * @returns undefined where there is no history to be read: no git, or a folder that is no clone
 */
export function readHistory(folder: string, since: Date, now = new Date()): CommittedDocument[] | undefined {
  const git = (...args: string[]) =>
    execFileSync('git', ['-C', folder, ...args], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
      maxBuffer: 64 * 1_024 * 1_024,
    })
  let log: string
  try {
    log = git('log', `-${mostCommits}`, '--first-parent', '--format=%h %cI', '--', documentFile)
  } catch (error) {
    if (existsSync(join(folder, '.git'))) throw error
    return undefined
  }
  const all = log
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => line.split(' '))
    .toReversed()
  const first = all.findLastIndex(([, at = '']) => new Date(at) <= since)
  const commits = now < since ? [] : all.slice(Math.max(0, first)).map(([name = '']) => name)
  const present = JSON.parse(readFileSync(join(folder, documentFile), 'utf8')) as Document
  return [
    ...commits.map((at) => ({ at, document: JSON.parse(git('show', `${at}:${documentFile}`)) as Document })),
    { at: 'the working tree', document: present },
  ]
}

const parts = ['none', 'patch', 'minor', 'major']

/**
 * Each change that raised its version by less than it should have, with what it broke; and whatever the present document
 * breaks of the first one under its major version, should that take more than one step to see.
 */
export function findBrokenPromises(history: readonly CommittedDocument[]): string[] {
  const steps = history.slice(1).flatMap((now, i) => describeStep(history[i] ?? now, now))
  const present = history.at(-1)
  const first = history.find(({ document }) => present !== undefined && majorOf(document) === majorOf(present.document))
  if (steps.length > 0 || present === undefined || first === undefined) return steps
  return neededRaise(first.document, present.document) === 'major' ? describeStep(first, present) : []
}

function describeStep({ document: before }: CommittedDocument, { at, document: after }: CommittedDocument): string[] {
  const needed = neededRaise(before, after)
  if (parts.indexOf(raiseOf(before, after)) >= parts.indexOf(needed)) return []
  const changes = findChanges(before, after)
    .filter(({ kind }) => needed !== 'major' || kind === 'breaking')
    .map(({ rule, where }) => `${rule}: ${where}`)
  const versions = `${before.info.version} → ${after.info.version}`
  return [`${at} (${versions}) needs a ${needed} version: ${changes.slice(0, 10).join('; ') || 'text'}`]
}

function majorOf({ info: { version } }: Document): string {
  return version.split('.')[0] ?? ''
}
