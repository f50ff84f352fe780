/**
 * A PostgreSQL of its own for one test file: a new cluster in a temporary folder, on a free port of 127.0.0.1, stopped
 * and removed afterwards. PostgreSQL refuses to run as root, so there the user `postgres` runs it.
 */
import { execFileSync } from 'node:child_process'
import { chmodSync, chownSync, existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const INSTALLATIONS = '/usr/lib/postgresql'

export interface TemporaryPostgres {
  readonly connectionString: string
  close(): void
}

/** Where the programs are; undefined (and said aloud) where there is no PostgreSQL. */
export function postgresPrograms(): string | undefined {
  const versions = existsSync(INSTALLATIONS) ? readdirSync(INSTALLATIONS).sort((a, b) => Number(b) - Number(a)) : []
  const programs = versions
    .map((version) => join(INSTALLATIONS, version, 'bin'))
    .find((path) => existsSync(join(path, 'initdb')))
  if (programs === undefined)
    console.warn(`SKIPPED: no PostgreSQL under ${INSTALLATIONS}; these tests ran on PGlite only`)
  return programs
}

export async function openTemporaryPostgres(programs: string): Promise<TemporaryPostgres> {
  const folder = mkdtempSync(join(tmpdir(), 'latchkey-postgres-'))
  const asRoot = process.getuid?.() === 0
  const owner = asRoot ? { uid: numeric('-u'), gid: numeric('-g') } : undefined
  if (owner !== undefined) chownSync(folder, owner.uid, owner.gid)
  chmodSync(folder, 0o700)
  const run = (program: string, args: string[]): void => {
    execFileSync(join(programs, program), args, { stdio: 'pipe', cwd: folder, ...owner })
  }
  const data = join(folder, 'data')
  const port = await freePort()
  run('initdb', ['-D', data, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-sync'])
  const settings = `-p ${port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off`
  run('pg_ctl', ['-D', data, '-l', join(folder, 'log'), '-w', '-o', settings, 'start'])
  return {
    connectionString: `postgres://postgres@127.0.0.1:${port}/postgres`,
    close() {
      run('pg_ctl', ['-D', data, '-m', 'immediate', '-w', 'stop'])
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

function numeric(flag: '-u' | '-g'): number {
  return Number(execFileSync('id', [flag, 'postgres'], { encoding: 'utf8' }))
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer()
    server.once('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as AddressInfo
      server.close(() => resolve(port))
    })
  })
}
