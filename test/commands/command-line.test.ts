import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { describe, expect, it } from 'vitest'
import { lockDataFolder } from '../../src/database/folder-lock.ts'
import { createDatabase, onPostgres, openLocation } from '../support/databases.ts'
import { startServer } from '../support/server-process.ts'
import { latchkeyProcess } from './running.ts'

/** Each test starts several, on a machine that may be busy. */
const processes = { timeout: 120_000 }

describe('latchkey, as a process', processes, () => {
  it('refuses an old Node, and says how to get a newer one', async () => {
    const oldNode = `Object.defineProperty(process, 'versions', { value: { ...process.versions, node: '20.20.2' } })`
    const ran = await latchkeyProcess(['--version'], { node: ['--import', `data:text/javascript,${oldNode}`] })
    expect(ran).toMatchObject({ exitCode: 1, out: '' })
    expect(ran.err).toMatch(/needs Node 24 or newer, and this is Node 20\.20\.2[^]*npm ci[^]*nodejs\.org/)
  })

  it('reports every bad setting at once, and shows no secret', async () => {
    const environment = {
      PORT: 'http',
      DATABASE_URL: 'mysql://root:hunter2@localhost/x',
      LATCHKEY_ISUER: 'https://id.example.com',
    }
    const ran = await latchkeyProcess(['config', 'check'], { environment })
    expect(ran).toMatchObject({ exitCode: 1, out: '' })
    expect(ran.err).toContain('PORT')
    expect(ran.err).toContain('DATABASE_URL')
    expect(ran.err).toContain('did you mean LATCHKEY_ISSUER')
    expect(ran.err).not.toContain('hunter2')
    expect(ran.err).not.toContain('    at ')
  })

  it('needs no sound environment for help and version', async () => {
    const environment = { PORT: 'http' }
    expect(await latchkeyProcess(['--version'], { environment })).toMatchObject({
      exitCode: 0,
      out: expect.stringMatching(/^\d+\.\d+\.\d+\n$/),
    })
    expect(await latchkeyProcess(['clients', '--help'], { environment })).toMatchObject({ exitCode: 0, err: '' })
  })

  it('prints the settings in force, without secrets', async () => {
    const environment = { DATABASE_URL: 'postgres://latchkey:hunter2@localhost/latchkey', PORT: '4000' }
    const ran = await latchkeyProcess(['config', 'check', '--json'], { environment })
    expect(ran.exitCode).toBe(0)
    expect(ran.out).not.toContain('hunter2')
    const settings = JSON.parse(ran.out) as { name: string; value: string; source: string }[]
    expect(settings).toContainEqual({ name: 'PORT', value: '4000', source: 'set' })
    expect(settings.find(({ name }) => name === 'DATABASE_URL')?.source).toBe('set')
  })

  it('says that the database is away, without its password and without a stack trace', async () => {
    const environment = { DATABASE_URL: 'postgres://latchkey:hunter2@127.0.0.1:1/latchkey' }
    const ran = await latchkeyProcess(['users', 'list'], { environment })
    expect(ran).toMatchObject({ exitCode: 1, out: '' })
    expect(ran.err).toMatch(/^error: The database cannot be reached/)
    expect(ran.err).not.toContain('hunter2')
    expect(ran.err).not.toContain('    at ')
  })
})

describe('commands on the embedded database', processes, () => {
  it('are carried out one after the other when there are two at once', async () => {
    const location = await createDatabase('pglite')
    const environment = { LATCHKEY_DATA_DIR: location.dataDir }
    const create = (name: string) => latchkeyProcess(['users', 'create', `${name}@example.com`], { environment })
    expect(await Promise.all([create('a'), create('b')])).toMatchObject([{ exitCode: 0 }, { exitCode: 0 }])
    const opened = await openLocation(location)
    const users = await opened.db.selectFrom('users').select('email').orderBy('email').execute()
    await opened.close()
    expect(users).toEqual([{ email: 'a@example.com' }, { email: 'b@example.com' }])
  })

  it('wait for the process that has the folder for a moment', async () => {
    const { dataDir } = await createDatabase('pglite')
    const unlock = lockDataFolder(dataDir)
    const listing = latchkeyProcess(['users', 'list'], { environment: { LATCHKEY_DATA_DIR: dataDir } })
    await sleep(6_000)
    unlock()
    expect(await listing).toEqual({ exitCode: 0, out: '', err: expect.stringMatching(/^Waiting for the process/) })
  })

  it('are carried out by the server that has it, with standard input and the operator’s name', async () => {
    const database = await createDatabase('pglite')
    const server = await startServer({ database })
    const environment = { LATCHKEY_DATA_DIR: database.dataDir }
    const run = (args: string[], stdin?: string) =>
      latchkeyProcess(args, { environment, ...(stdin === undefined ? {} : { stdin }) })

    const stdin = 'three unrelated words: tram, quince, ledger\n'
    const created = await run(['users', 'create', 'a@example.com', '--password-stdin', '--json'], stdin)
    expect(created).toMatchObject({ exitCode: 0, err: '' })
    expect(JSON.parse(created.out)).toMatchObject({ email: 'a@example.com' })
    expect(await run(['users', 'create', 'a@example.com'])).toMatchObject({ exitCode: 1, out: '' })
    expect(await run(['clients', 'lst'])).toMatchObject({ exitCode: 2, out: '' })
    expect((await run(['users', 'list'])).out).toContain('a@example.com')
    expect(server.stdout()).not.toContain('quince')
    await server.stop()

    const opened = await openLocation(database)
    const event = await opened.db
      .selectFrom('audit_events')
      .select(['actor_type', 'actor_id'])
      .where('action', '=', 'user.created')
      .where('target_id', '=', (JSON.parse(created.out) as { id: string }).id)
      .executeTakeFirstOrThrow()
    expect(event).toEqual({ actor_type: 'operator', actor_id: expect.stringMatching(/\S/) })
    await opened.close()
  })

  it('do not start a second server, which ends at once', async () => {
    const database = await createDatabase('pglite')
    await startServer({ database })
    const second = await startServer({ database, waitUntilReady: false })
    expect(await second.ended).toEqual({ code: 1, signal: null })
    expect(second.stderr()).toMatch(/^error: Another Latchkey process is using the data folder/m)
  })
})

onPostgres((open) => {
  it('commands refuse a schema that is not up to date, until migrate has run', processes, async () => {
    const { db, location } = await open()
    const environment = { DATABASE_URL: location.databaseUrl ?? '' }
    await sql`DROP SCHEMA public CASCADE`.execute(db)
    await sql`CREATE SCHEMA public`.execute(db)
    const refused = await latchkeyProcess(['users', 'list'], { environment })
    expect(refused).toMatchObject({
      exitCode: 1,
      out: '',
      err: expect.stringMatching(/lacks 0001-users.*latchkey migrate/),
    })
    expect(await latchkeyProcess(['migrate'], { environment })).toMatchObject({
      exitCode: 0,
      out: expect.stringContaining('applied 0001-users'),
    })
    expect(await latchkeyProcess(['users', 'list'], { environment })).toEqual({ exitCode: 0, out: '', err: '' })
  })
})
