/**
 * A PostgreSQL of the tests' own: found among the machine's programs, made in a temporary folder, on a free port of the
 * loopback address, and gone with the process that started it. The tests' common server is started by global-setup.ts;
 * a test that has to stop, kill or restart its database starts one for itself.
 */
import { execFile } from 'node:child_process'
import { chmodSync, chownSync, existsSync, mkdtempSync, readFileSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { Client } from 'pg'
import { startKeeper } from './keeper.ts'
import { findFreePort } from './ports.ts'

const run = promisify(execFile)

export interface TestPostgres {
  /** of the superuser, to the database `postgres` */
  readonly url: string
  /** Ends the server: INT as an operator would, QUIT at once as a crash does. It can be started again. */
  halt(signal: 'INT' | 'QUIT'): Promise<void>
  /** Starts a halted server again, on the same port and with the same data. */
  resume(): Promise<void>
  /** Ends the server and removes its folder. */
  remove(): Promise<void>
}

/** The folder that holds `initdb` and `postgres`, the newest first; undefined where there is none. */
export function findPostgresPrograms(): string | undefined {
  const packaged = ['/usr/lib/postgresql', '/usr/pgsql', '/opt/homebrew/opt', '/usr/local/opt']
    .filter((folder) => existsSync(folder))
    .flatMap((folder) =>
      readdirSync(folder)
        .filter((name) => folder.endsWith('postgresql') || name.startsWith('postgresql'))
        .sort((a, b) => versionOf(b) - versionOf(a))
        .map((name) => join(folder, name, 'bin')),
    )
  return [...packaged, ...(process.env['PATH'] ?? '').split(delimiter)].find(
    (folder) => existsSync(join(folder, 'initdb')) && existsSync(join(folder, 'postgres')),
  )
}

function versionOf(name: string): number {
  return Number(/\d+/.exec(name)?.[0] ?? 0)
}

// Runs the server, and again after a halt; the end of its input ends the server and removes the folder.
const keeperScript = `
  folder=$1; shift
  while :; do
    "$@" >>"$folder/log" 2>&1 &
    read signal || signal=QUIT
    kill -s "$signal" $!
    wait $!
    : >"$folder/halted"
    read again || { rm -rf "$folder"; exit; }
    rm -f "$folder/halted"
  done`

/**
 * @param options.durable true: commits survive a power loss (fsync), as in production; false is several times faster
 * @throws Error when there are no programs, or the server does not start
 */
export async function startPostgres(options: { durable: boolean }): Promise<TestPostgres> {
  const programs = findPostgresPrograms()
  if (programs === undefined) throw new Error('PostgreSQL is not installed here: no folder holds initdb and postgres')
  const folder = mkdtempSync(join(tmpdir(), 'latchkey-postgres-'))
  // PostgreSQL refuses to run as root.
  const user = process.getuid?.() === 0 ? await findUnprivilegedUser() : undefined
  if (user !== undefined) chownSync(folder, user.uid, user.gid)
  chmodSync(folder, 0o700)
  const data = join(folder, 'data')
  await run(
    join(programs, 'initdb'),
    ['-D', data, '-U', 'latchkey', '--auth=trust', '--no-locale', '--encoding=UTF8', '--no-sync'],
    { ...user, cwd: '/' },
  )
  const port = await findFreePort()
  const settings = {
    listen_addresses: '127.0.0.1',
    max_connections: '300',
    log_min_messages: 'warning',
    log_min_error_statement: 'panic',
    ...(options.durable ? {} : { fsync: 'off', synchronous_commit: 'off', full_page_writes: 'off' }),
  }
  const keeper = startKeeper(
    keeperScript,
    [folder, join(programs, 'postgres'), '-D', data, '-p', String(port), '-k', folder].concat(
      Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
    ),
    user,
  )
  const url = `postgres://latchkey@127.0.0.1:${port}/postgres`
  const started = () =>
    waitUntilAnswering(url).catch(async (error: unknown) => {
      const log = readFileSync(join(folder, 'log'), 'utf8').slice(-2_000)
      await keeper.end()
      throw new Error(`PostgreSQL did not start; its log ends:\n${log}`, { cause: error })
    })
  await started()
  return {
    url,
    async halt(signal) {
      keeper.say(signal)
      while (!existsSync(join(folder, 'halted'))) await sleep(10)
    },
    async resume() {
      keeper.say('again')
      await started()
    },
    remove: () => keeper.end(),
  }
}

async function findUnprivilegedUser(): Promise<{ uid: number; gid: number }> {
  for (const name of ['postgres', 'nobody']) {
    try {
      const [uid, gid] = await Promise.all([run('id', ['-u', name]), run('id', ['-g', name])])
      return { uid: Number(uid.stdout), gid: Number(gid.stdout) }
    } catch (error) {
      // The next name may be known; the last one decides.
      if (name === 'nobody') throw error
    }
  }
  throw new Error('no user to run PostgreSQL as')
}

async function waitUntilAnswering(url: string): Promise<void> {
  for (let attempts = 0; ; attempts += 1) {
    const client = new Client({ connectionString: url, connectionTimeoutMillis: 2_000 })
    client.on('error', () => undefined)
    try {
      await client.connect()
      await client.end()
      return
    } catch (error) {
      if (attempts === 300) throw error
      await sleep(50)
    }
  }
}

/** Runs one statement on a connection of its own, such as CREATE DATABASE, which takes no transaction. */
export async function runStatement(url: string, statement: string): Promise<void> {
  const client = new Client({ connectionString: url })
  client.on('error', () => undefined)
  await client.connect()
  try {
    await client.query(statement)
  } finally {
    await client.end()
  }
}

/** The same server's URL for another of its databases. */
export function withDatabase(url: string, database: string): string {
  const changed = new URL(url)
  changed.pathname = `/${database}`
  return changed.href
}
