import { argon2Sync, randomBytes } from 'node:crypto'
import { pino } from 'pino'
import { describe, expect, it } from 'vitest'
import { readConfig } from '../../src/config.ts'
import { HashingOverloaded } from '../../src/users/hashing-gate.ts'
import { maxPasswordBytes } from '../../src/users/password-blocklist.ts'
import { openPasswords, UnhashablePassword, type Passwords } from '../../src/users/password.ts'
import { WorkFactorError, type WorkFactor } from '../../src/users/work-factor.ts'

const floor: WorkFactor = { memoryKib: 19_456, timeCost: 2, parallelism: 1 }
const password = 'seven purple otters'

function open(workFactor: WorkFactor = floor, environment: Record<string, string> = {}) {
  const lines: string[] = []
  const log = pino({ level: 'trace' }, { write: (line: string) => void lines.push(line) })
  const config = readConfig({ NODE_ENV: 'test', ...environment })
  return { passwords: openPasswords({ config, workFactor, log }), lines }
}

const base64 = (bytes: number) => randomBytes(bytes).toString('base64').replaceAll('=', '')
const phc = (parameters: string, scheme = 'argon2id$v=19') => `$${scheme}$${parameters}$${base64(16)}$${base64(32)}`

/** The median processor time of each work, in microseconds, taken in turns: other processes disturb it least. */
async function medianCpu(rounds: number, ...works: (() => Promise<unknown>)[]): Promise<number[]> {
  const times = works.map((): number[] => [])
  for (let round = 0; round < rounds; round += 1) {
    for (const [i, work] of works.entries()) {
      const before = process.cpuUsage()
      await work()
      const { user, system } = process.cpuUsage(before)
      times[i]?.push(user + system)
    }
  }
  return times.map((all) => all.sort((a, b) => a - b)[Math.floor(all.length / 2)] ?? 0)
}

describe('a work factor', () => {
  it.each([
    { memoryKib: 19_456, timeCost: 1, parallelism: 1 },
    { memoryKib: 8_192, timeCost: 3, parallelism: 1 },
    { memoryKib: 64, timeCost: 100, parallelism: 1 },
  ])('below the floor of OWASP is refused, in tests too: $memoryKib KiB × $timeCost', (workFactor) => {
    expect(() => open(workFactor)).toThrow(/too low/)
    const { passwords } = open()
    expect(() => passwords.useWorkFactor(workFactor)).toThrow(WorkFactorError)
    expect(passwords.workFactor).toEqual(floor)
  })

  it.each([
    { memoryKib: 2_097_152, timeCost: 1, parallelism: 1 },
    { memoryKib: 65_536, timeCost: 500, parallelism: 1 },
    { memoryKib: 65_536, timeCost: 3, parallelism: 17 },
  ])('that would stop the server is refused: $memoryKib KiB × $timeCost, $parallelism lanes', (workFactor) => {
    expect(() => open(workFactor)).toThrow(/too high/)
  })
})

describe('checking a password', () => {
  it('refuses another password, and one that differs in case or in a space', async () => {
    const { passwords } = open()
    const hash = await passwords.hash(password)
    for (const wrong of ['', 'seven purple otter', 'Seven purple otters', `${password} `, `${password}\0`]) {
      expect(await passwords.verify(hash, wrong)).toEqual({ matches: false, needsRehash: false })
    }
    expect(await passwords.verify(hash, password)).toEqual({ matches: true, needsRehash: false })
  })

  it.each([
    ['nothing', undefined],
    ['null', null],
    ['an empty text', ''],
    ['the password itself', password],
    ['bcrypt', '$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW'],
    ['argon2i', phc('m=19456,t=2,p=1', 'argon2i$v=19')],
    ['the old version of Argon2', phc('m=19456,t=2,p=1', 'argon2id$v=16')],
    ['no version', phc('m=19456,t=2,p=1', 'argon2id')],
    ['other data', phc('m=19456,t=2,p=1,data=AAAA')],
    ['4 GiB of memory', phc('m=4194304,t=1,p=1')],
    ['a thousand passes', phc('m=65536,t=1000,p=1')],
    ['64 lanes', phc('m=65536,t=1,p=64')],
    ['less memory than its lanes need', phc('m=8,t=1,p=2')],
    ['a number beyond all', phc('m=99999999999999999999,t=1,p=1')],
    ['a hash of one byte', `$argon2id$v=19$m=19456,t=2,p=1$${base64(16)}$AA`],
    ['a hash of a megabyte', `$argon2id$v=19$m=19456,t=2,p=1$${base64(16)}$${base64(1_000_000)}`],
  ])('never matches %s in place of a hash, and costs one hash of today', async (_name, stored) => {
    const { passwords } = open()
    const startedAt = performance.now()
    expect(await passwords.verify(stored, password)).toEqual({ matches: false, needsRehash: false })
    // No machine makes this hash in less; an early answer would take none.
    expect(performance.now() - startedAt).toBeGreaterThan(5)
    expect(passwords.stats().completed).toBe(1)
  })

  it('logs a hash that it cannot read, without salt or hash', async () => {
    const { passwords, lines } = open()
    const stored = phc('m=4194304,t=1,p=1')
    await passwords.verify(stored, password)
    expect(lines.join('')).toContain('argon2id$v=19$m=4194304,t=1,p=1')
    for (const secret of [...stored.split('$').slice(4), password]) expect(lines.join('')).not.toContain(secret)
    await passwords.verify('hunter2hunter2', password)
    expect(lines.join('')).not.toContain('hunter2')
  })

  it('takes as long for a wrong password behind an old cheap hash as for a person who does not exist', async () => {
    const { passwords: before } = open()
    const old = await before.hash(password)
    const { passwords } = open({ memoryKib: 19_456, timeCost: 10, parallelism: 1 })
    const [known = 0, unknown = 0] = await medianCpu(
      7,
      () => passwords.verify(old, 'another password'),
      () => passwords.verify(undefined, 'another password'),
    )
    // The old hash alone would take a fifth.
    expect(known / unknown).toBeGreaterThan(0.6)
    expect(known / unknown).toBeLessThan(1.6)
  })

  it('reads a hash that another implementation made, its parameters in either order', async () => {
    const { passwords } = open()
    const nonce = randomBytes(16)
    const hash = argon2Sync('argon2id', {
      message: password,
      nonce,
      parallelism: 2,
      tagLength: 32,
      memory: 8_192,
      passes: 2,
    })
    const [salt, tag] = [nonce, hash].map((bytes) => bytes.toString('base64').replaceAll('=', ''))
    for (const parameters of ['m=8192,t=2,p=2', 'm=8192,p=2,t=2']) {
      const stored = `$argon2id$v=19$${parameters}$${salt}$${tag}`
      expect(await passwords.verify(stored, password)).toEqual({ matches: true, needsRehash: true })
      expect(await passwords.verify(stored, 'wrong password')).toEqual({ matches: false, needsRehash: false })
    }
  })

  it('asks for a new hash when the work factor was another, in either direction, and only of the right person', async () => {
    const { passwords } = open()
    const hash = await passwords.hash(password)
    passwords.useWorkFactor({ memoryKib: 19_456, timeCost: 3, parallelism: 1 })
    expect(await passwords.verify(hash, 'wrong password')).toEqual({ matches: false, needsRehash: false })
    expect(await passwords.verify(hash, password)).toEqual({ matches: true, needsRehash: true })
    const dearer = await passwords.hash(password)
    expect(await passwords.verify(dearer, password)).toEqual({ matches: true, needsRehash: false })
    passwords.useWorkFactor(floor)
    expect(await passwords.verify(dearer, password)).toEqual({ matches: true, needsRehash: true })
  })

  it('takes a password for the same however its letters were composed', async () => {
    const { passwords } = open()
    const hash = await passwords.hash('Zoë drinks café au lait'.normalize('NFD'))
    expect(await passwords.verify(hash, 'Zoë drinks café au lait'.normalize('NFC'))).toMatchObject({ matches: true })
    expect(await passwords.verify(hash, 'Zoe drinks cafe au lait')).toMatchObject({ matches: false })
  })
})

describe('making a hash', () => {
  it('refuses what is too long after normalisation, and what is not Unicode', async () => {
    const { passwords } = open()
    await expect(passwords.hash('x'.repeat(maxPasswordBytes + 1))).rejects.toThrow(UnhashablePassword)
    await expect(passwords.hash('é'.repeat(maxPasswordBytes / 2 + 1))).rejects.toThrow(UnhashablePassword)
    await expect(passwords.hash('x'.repeat(100_000_000))).rejects.toThrow(UnhashablePassword)
    await expect(passwords.hash('half a pair \ud83d')).rejects.toThrow(UnhashablePassword)
    expect(await passwords.verify(undefined, 'x'.repeat(100_000_000))).toEqual({ matches: false, needsRehash: false })
  })

  it('reads the whole password, up to 1,024 bytes: nothing is cut off', async () => {
    const { passwords } = open()
    const longest = 'x'.repeat(maxPasswordBytes)
    const hash = await passwords.hash(longest)
    expect(await passwords.verify(hash, longest)).toMatchObject({ matches: true })
    expect(await passwords.verify(hash, `${longest.slice(0, -1)}y`)).toMatchObject({ matches: false })
  })

  it('gives each its own salt, and writes the parameters into it', async () => {
    const { passwords } = open()
    const hashes = [await passwords.hash(password), await passwords.hash(password)]
    expect(hashes[0]).not.toBe(hashes[1])
    for (const hash of hashes) {
      expect(hash).toMatch(/^\$argon2id\$v=19\$m=19456,t=2,p=1\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$/)
    }
  })
})

describe('a flood of passwords', () => {
  it('is refused beyond the queue within 100 ms, checking and hashing counted together', async () => {
    const { passwords } = open(floor, { LATCHKEY_HASHING_CONCURRENCY: '1', LATCHKEY_HASHING_QUEUE: '2' })
    const outcome = async (work: Promise<unknown>) => {
      const startedAt = performance.now()
      const error = await work.then(
        () => undefined,
        (error: unknown) => error,
      )
      return { error, took: performance.now() - startedAt }
    }
    const work = (i: number) => (i % 2 === 0 ? passwords.hash(password) : passwords.verify(undefined, password))
    const outcomes = await Promise.all(Array.from({ length: 20 }, (_, i) => outcome(work(i))))
    const refused = outcomes.filter(({ error }) => error !== undefined)
    expect(refused).toHaveLength(17)
    for (const { error, took } of refused) {
      expect(error).toBeInstanceOf(HashingOverloaded)
      expect(took).toBeLessThan(100)
    }
    expect(passwords.stats()).toMatchObject({ running: 0, waiting: 0, completed: 3, refused: 17 })
  })
})

describe('a new password', () => {
  const check = (passwords: Passwords, plain: string) => passwords.check(plain).map(({ constraint }) => constraint)

  it('is checked against the name of the product and of the host', () => {
    const { passwords } = open(floor, { LATCHKEY_ISSUER: 'https://login.wonderland.example' })
    expect(check(passwords, 'latchkey2026')).toEqual(['context_words'])
    expect(check(passwords, 'wonderland.login')).toEqual(['context_words'])
    expect(check(passwords, password)).toEqual([])
  })
})
