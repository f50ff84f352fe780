import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { ConfigError, readConfig } from '../src/config.ts'
import { makeTemporaryFolder } from './support/temporary-folder.ts'

const production = {
  NODE_ENV: 'production',
  DATABASE_URL: 'postgres://latchkey@db.example.com/latchkey',
  LATCHKEY_ISSUER: 'https://id.example.com',
  LATCHKEY_KEY_ENCRYPTION_KEY: Buffer.alloc(32, 1).toString('base64'),
}

function problemsOf(environment: Record<string, string>): readonly string[] {
  try {
    readConfig(environment)
    return []
  } catch (error) {
    if (error instanceof ConfigError) return error.problems
    throw error
  }
}

describe('production', () => {
  it('refuses to start without a database, an issuer and a key, and names all three in one message', () => {
    expect(problemsOf({ NODE_ENV: 'production' })).toEqual([
      expect.stringContaining('DATABASE_URL is required in production'),
      expect.stringContaining('LATCHKEY_ISSUER is required in production'),
      expect.stringContaining('LATCHKEY_KEY_ENCRYPTION_KEY (or …_FILE) is required in production'),
    ])
  })

  it('refuses an http issuer off loopback, and allows one on it', () => {
    expect(problemsOf({ ...production, LATCHKEY_ISSUER: 'http://id.example.com' })).toEqual([
      expect.stringMatching(/^LATCHKEY_ISSUER must be https in production/),
    ])
    expect(readConfig({ ...production, LATCHKEY_ISSUER: 'http://localhost:3000' }).issuer).toBe('http://localhost:3000')
  })

  it('refuses a key of another size, without showing it', () => {
    const short = Buffer.alloc(16, 7).toString('base64')
    const problems = problemsOf({ ...production, LATCHKEY_KEY_ENCRYPTION_KEY: short })
    expect(problems).toEqual([expect.stringContaining('must be base64 of 32 bytes')])
    expect(problems.join()).not.toContain(short)
  })

  it('takes a secret from a file, and refuses it from both', () => {
    const file = join(makeTemporaryFolder(), 'key')
    writeFileSync(file, `${production.LATCHKEY_KEY_ENCRYPTION_KEY}\n`)
    const { LATCHKEY_KEY_ENCRYPTION_KEY: key, ...rest } = production
    const fromFile = { ...rest, LATCHKEY_KEY_ENCRYPTION_KEY_FILE: file }
    expect(readConfig(fromFile).keyEncryptionKeys?.[0]?.key.toString('base64')).toBe(key)
    expect(problemsOf({ ...fromFile, LATCHKEY_KEY_ENCRYPTION_KEY: key })).toContainEqual(
      'LATCHKEY_KEY_ENCRYPTION_KEY and LATCHKEY_KEY_ENCRYPTION_KEY_FILE are both set: keep one',
    )
    expect(problemsOf({ ...rest, LATCHKEY_KEY_ENCRYPTION_KEY_FILE: `${file}.gone` })).toContainEqual(
      expect.stringContaining('LATCHKEY_KEY_ENCRYPTION_KEY_FILE cannot be read'),
    )
  })
})

describe('the environment', () => {
  it('refuses an unknown LATCHKEY_ name and suggests the right one, where one is near', () => {
    expect(problemsOf({ LATCHKEY_ISUER: 'https://id.example.com', LATCHKEY_QWERTYUIOP: '1' })).toEqual([
      'LATCHKEY_ISUER is not a setting of Latchkey: did you mean LATCHKEY_ISSUER?',
      'LATCHKEY_QWERTYUIOP is not a setting of Latchkey',
    ])
  })

  it('lets pass what Kubernetes sets for a Service that is named latchkey', () => {
    expect(
      problemsOf({
        LATCHKEY_PORT: 'tcp://10.0.0.1:80',
        LATCHKEY_PORT_80_TCP_ADDR: '10.0.0.1',
        LATCHKEY_SERVICE_HOST: '10.0.0.1',
        LATCHKEY_SERVICE_PORT: '80',
      }),
    ).toEqual([])
  })

  it('counts a bad port as one problem, and not the issuer that would be made of it as another', () => {
    expect(problemsOf({ PORT: '99999' })).toEqual(["PORT must be at most 65535, not '99999'"])
  })

  it('refuses more than one worker on the embedded database', () => {
    expect(problemsOf({ LATCHKEY_WORKERS: '2' })).toEqual([expect.stringContaining('needs PostgreSQL')])
  })

  it('refuses copies of the keys that are kept longer than a key is published ahead', () => {
    expect(problemsOf({ LATCHKEY_JWKS_MAX_AGE_SECONDS: '60', LATCHKEY_KEY_PUBLISH_AHEAD_SECONDS: '60' })).toEqual([
      'LATCHKEY_JWKS_MAX_AGE_SECONDS must be less than LATCHKEY_KEY_PUBLISH_AHEAD_SECONDS',
    ])
  })

  it('refuses time limits that do not descend, and names all three', () => {
    for (const [edge, handler, statement] of [
      ['30', '30', '20'],
      ['30', '25', '25'],
      ['20', '25', '20'],
      ['30', '25', '60'],
    ] as const) {
      const problems = problemsOf({
        LATCHKEY_EDGE_TIMEOUT_SECONDS: edge,
        LATCHKEY_HANDLER_TIMEOUT_SECONDS: handler,
        LATCHKEY_DATABASE_STATEMENT_TIMEOUT_SECONDS: statement,
      })
      expect(problems).toEqual([
        `LATCHKEY_EDGE_TIMEOUT_SECONDS (${edge}) must be more than LATCHKEY_HANDLER_TIMEOUT_SECONDS (${handler}), and that more than LATCHKEY_DATABASE_STATEMENT_TIMEOUT_SECONDS (${statement}): raise the ones before or lower the ones behind`,
      ])
    }
    expect(problemsOf({ LATCHKEY_DATABASE_STATEMENT_TIMEOUT_SECONDS: '60' })).toHaveLength(1)
    const { edgeTimeoutSeconds, handlerTimeoutSeconds, databaseStatementTimeoutSeconds } = readConfig({})
    expect([edgeTimeoutSeconds, handlerTimeoutSeconds, databaseStatementTimeoutSeconds]).toEqual([30, 25, 20])
  })

  it('counts a bad time limit as one problem', () => {
    expect(problemsOf({ LATCHKEY_HANDLER_TIMEOUT_SECONDS: 'soon' })).toEqual([
      expect.stringMatching(/^LATCHKEY_HANDLER_TIMEOUT_SECONDS must be a whole number/),
    ])
  })

  it('refuses a management port that is everybody’s port', () => {
    expect(problemsOf({ PORT: '3000', LATCHKEY_MANAGEMENT_PORT: '3000' })).toEqual([
      expect.stringMatching(/^LATCHKEY_MANAGEMENT_PORT must not be PORT \(3000\)/),
    ])
    expect(readConfig({}).managementPort).toBeUndefined()
  })

  it('refuses an issuer with a path, a query, a fragment or credentials', () => {
    for (const issuer of ['https://x.example/a', 'https://x.example/', 'https://x.example?', 'https://a:b@x.example']) {
      expect(problemsOf({ LATCHKEY_ISSUER: issuer })).toEqual([expect.stringMatching(/^LATCHKEY_ISSUER must/)])
    }
  })
})

describe('password hashing', () => {
  it('must leave a thread for signing tokens', () => {
    expect(problemsOf({ UV_THREADPOOL_SIZE: '4', LATCHKEY_HASHING_CONCURRENCY: '4' })).toEqual([
      expect.stringContaining('LATCHKEY_HASHING_CONCURRENCY must be less than UV_THREADPOOL_SIZE (4)'),
    ])
    expect(problemsOf({ UV_THREADPOOL_SIZE: '4', LATCHKEY_HASHING_CONCURRENCY: '3' })).toEqual([])
  })
})
