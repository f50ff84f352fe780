/**
 * Runs once, before all tests: prepares the embedded database's template, starts a PostgreSQL, finds a Chromium, and
 * hands the tests where they are. What cannot be had is named at the end of the run, and fails it where CI is set:
 * a run that leaves out half of the tests must not look like one that passed them.
 */
import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import type { TestProject } from 'vitest/node'
import { openDatabase } from '../../src/database/database.ts'
import { migrate } from '../../src/database/migrate.ts'
import { findChromium } from './chromium.ts'
import { startKeeper } from './keeper.ts'
import { preparePgliteTemplate } from './pglite-template.ts'
import { findPostgresPrograms, runStatement, startPostgres, withDatabase } from './postgres.ts'

declare module 'vitest' {
  export interface ProvidedContext {
    /** a folder for temporary files, removed after the run */
    temporaryFolder: string
    pgliteTemplate: string
    /** '' where there is no PostgreSQL */
    postgresUrl: string
    postgresTemplate: string
    /** '' where there is no Chromium */
    chromium: string
    /** what this run cannot test, and how to mend that */
    notTested: string[]
  }
}

export default async function prepare(project: TestProject): Promise<() => Promise<void>> {
  const undo: (() => Promise<void>)[] = []
  const notTested: string[] = []

  const temporaryFolder = mkdtempSync(join(tmpdir(), 'latchkey-test-'))
  const keeper = startKeeper('cat >/dev/null; rm -rf "$1"', [temporaryFolder])
  undo.push(() => keeper.end())
  project.provide('temporaryFolder', temporaryFolder)
  // For the programs that tests start: program-environment.ts.
  process.env['NODE_COMPILE_CACHE'] ??= join(temporaryFolder, 'compile-cache')

  try {
    const chromium = findChromium() ?? ''
    if (chromium === '') notTested.push('Pages in a real browser: no Chromium was found. Install one, or set CHROMIUM.')
    project.provide('chromium', chromium)

    const [template, postgresUrl] = await Promise.all([
      preparePgliteTemplate(),
      startCommonPostgres(project.name === 'long', undo),
    ])
    project.provide('pgliteTemplate', template)
    if (postgresUrl === '') {
      notTested.push('PostgreSQL, and so every race: none was found. Install it, or set TEST_DATABASE_URL.')
    }
    project.provide('postgresUrl', postgresUrl)
    const postgresTemplate = `latchkey_template_${process.pid}`
    project.provide('postgresTemplate', postgresTemplate)
    if (postgresUrl !== '') {
      await makePostgresTemplate(postgresUrl, postgresTemplate)
      undo.push(() => runStatement(postgresUrl, `DROP DATABASE ${postgresTemplate} WITH (FORCE)`))
    }
    project.provide('notTested', notTested)
    if (notTested.length > 0 && process.env['CI'] !== undefined) {
      throw new Error(`CI is set, and this run cannot test everything:\n${notTested.join('\n')}`)
    }
  } catch (error) {
    await undoAll(undo)
    throw error
  }
  return () => undoAll(undo)
}

async function undoAll(undo: (() => Promise<void>)[]): Promise<void> {
  for (const step of undo.toReversed()) await step()
}

async function startCommonPostgres(durable: boolean, undo: (() => Promise<void>)[]): Promise<string> {
  const given = process.env['TEST_DATABASE_URL'] ?? ''
  if (given !== '' || findPostgresPrograms() === undefined) return given
  const postgres = await startPostgres({ durable })
  undo.push(() => postgres.remove())
  return postgres.url
}

async function makePostgresTemplate(postgresUrl: string, name: string): Promise<void> {
  await runStatement(postgresUrl, `CREATE DATABASE ${name}`)
  const database = await openDatabase(
    {
      databaseUrl: withDatabase(postgresUrl, name),
      dataDir: '',
      poolSize: 2,
      connectTimeoutSeconds: 10,
      statementTimeoutSeconds: 60,
    },
    pino({ level: 'silent' }),
  )
  await migrate(database.db)
  await database.close()
}
