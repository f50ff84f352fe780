/** The table in memory is held to a plain Map, through growth, expiry, sweeping and the unluckiest fingerprints. */
import { array, assert, constantFrom, integer, property, record } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { REVOKED_KINDS, RevocationTable } from '../../../src/guard/revocation/revocation-table.ts'
import type { Fingerprint, RevokedEntry, RevokedKind } from '../../../src/guard/revocation/revocation-table.ts'

const NOW = 1_800_000_000
const LATER = NOW + 900

const claims = {
  iss: 'https://id.example.com',
  sub: 'alice',
  aud: 'https://api.example.com',
  exp: NOW + 900,
  iat: NOW,
  jti: 'token-1',
  client_id: 'web',
  sid: 'session-1',
  grant_id: 'grant-1',
  token_version: 3,
}

const { jti: _jti, sid: _sid, grant_id: _grantId, ...bare } = claims

function revokes(entry: Omit<RevokedEntry, 'expiresAt'>, token: object = {}, kid = 'key-1'): boolean {
  const table = new RevocationTable(1000)
  table.add({ ...entry, expiresAt: LATER }, NOW)
  return table.isRevoked({ ...claims, ...token }, kid, NOW)
}

describe('a token is found dead', () => {
  it.each<[RevokedKind, string]>([
    ['token', 'token-1'],
    ['session', 'session-1'],
    ['grant', 'grant-1'],
    ['key', 'key-1'],
  ])('by its %s, whenever it was issued, and no other is', (kind, id) => {
    expect(revokes({ kind, id })).toBe(true)
    expect(revokes({ kind, id }, { iat: NOW + 1_000_000 })).toBe(true)
    expect(revokes({ kind, id: `${id}0` })).toBe(false)
    for (const other of REVOKED_KINDS) if (other !== kind) expect(revokes({ kind: other, id, limit: 10 })).toBe(false)
  })

  it.each<[RevokedKind, string]>([
    ['user', 'alice'],
    ['client', 'web'],
    ['client-people', 'web'],
  ])('by its %s, when it was issued at that moment or before', (kind, id) => {
    expect(revokes({ kind, id, limit: NOW - 1 })).toBe(false)
    expect(revokes({ kind, id, limit: NOW })).toBe(true)
    expect(revokes({ kind, id, limit: NOW + 0.9 })).toBe(true)
    expect(revokes({ kind, id, limit: NOW + 0.2 }, { iat: NOW + 0.7 })).toBe(true)
    expect(revokes({ kind, id, limit: NOW + 0.9 }, { iat: NOW + 1 })).toBe(false)
  })

  it('that is its client’s own, by its version alone, whenever it was issued', () => {
    const table = new RevocationTable(100)
    table.add({ kind: 'client-version', id: 'web', limit: 3, expiresAt: NOW + 100 }, NOW)
    table.add({ kind: 'client-people', id: 'web', limit: NOW, expiresAt: NOW + 100 }, NOW)
    const isDead = (more: object): boolean =>
      table.isRevoked({ ...bare, sub: 'web', client_id: 'web', iat: NOW, ...more }, undefined, NOW)
    expect(isDead({ token_version: 3 })).toBe(false)
    expect(isDead({ token_version: 4, iat: NOW - 900 })).toBe(false)
    expect(isDead({ token_version: 2 })).toBe(true)
    // Issued by a transaction that did not see the change yet, a second after it was made.
    expect(isDead({ token_version: 2, iat: NOW + 1 })).toBe(true)
    expect(isDead({ token_version: undefined, iat: NOW + 1 })).toBe(true)
    expect(isDead({ token_version: '3' })).toBe(true)
    // Those that it holds for people have versions of those people.
    expect(isDead({ sub: 'alice', token_version: 3 })).toBe(true)
    expect(isDead({ sub: 'alice', token_version: 1, iat: NOW + 1 })).toBe(false)
    expect(isDead({ sub: 'alice', client_id: 'app' })).toBe(false)
  })

  it('that is its client’s own, by the moment too, when an event said no version', () => {
    const table = new RevocationTable(100)
    table.add({ kind: 'client-version', id: 'web', limit: 3, expiresAt: NOW + 100 }, NOW)
    table.add({ kind: 'client', id: 'web', limit: NOW, expiresAt: NOW + 100 }, NOW)
    const own = { ...bare, sub: 'web', client_id: 'web', token_version: 3 }
    expect(table.isRevoked({ ...own, iat: NOW }, undefined, NOW)).toBe(true)
    expect(table.isRevoked({ ...own, iat: NOW + 1 }, undefined, NOW)).toBe(false)
  })

  it('by its version, when that is lower, or not said', () => {
    expect(revokes({ kind: 'version', id: 'alice', limit: 3 })).toBe(false)
    expect(revokes({ kind: 'version', id: 'alice', limit: 4 })).toBe(true)
    expect(revokes({ kind: 'version', id: 'alice', limit: 1 }, { token_version: undefined })).toBe(true)
    expect(revokes({ kind: 'version', id: 'alice', limit: 0 }, { token_version: undefined })).toBe(true)
    expect(revokes({ kind: 'version', id: 'alice', limit: 1 }, { token_version: '9' })).toBe(true)
    expect(revokes({ kind: 'version', id: 'bob', limit: 4 })).toBe(false)
  })

  it('not by what it does not say of itself', () => {
    const bare = { jti: undefined, sid: undefined, grant_id: 7, client_id: undefined }
    for (const kind of REVOKED_KINDS) {
      if (kind === 'user' || kind === 'version') continue
      expect(revokes({ kind, id: 'undefined', limit: LATER }, bare, 'undefined '), kind).toBe(false)
      expect(revokes({ kind, id: '7', limit: LATER }, bare, ''), kind).toBe(false)
    }
  })
})

describe('an entry only grows stricter', () => {
  const table = (...entries: readonly [limit: number, expiresAt: number][]): RevocationTable => {
    const made = new RevocationTable(1000)
    for (const [limit, expiresAt] of entries) made.add({ kind: 'user', id: 'alice', limit, expiresAt }, NOW)
    return made
  }
  const isDead = (made: RevocationTable, iat: number, at: number): boolean =>
    made.isRevoked({ ...claims, iat }, undefined, at)

  it('whatever order it comes in', () => {
    for (const made of [table([NOW, LATER], [NOW - 50, LATER + 50]), table([NOW - 50, LATER + 50], [NOW, LATER])]) {
      expect(isDead(made, NOW, NOW)).toBe(true)
      expect(isDead(made, NOW, LATER + 49)).toBe(true)
      expect(made.size).toBe(1)
    }
  })

  it('and says whether it changed', () => {
    const made = table([NOW, LATER])
    const add = (limit: number, expiresAt: number) => made.add({ kind: 'user', id: 'alice', limit, expiresAt }, NOW)
    expect([add(NOW, LATER), add(NOW - 1, LATER - 1), add(NOW, NOW)]).toEqual(['known', 'known', 'known'])
    expect([add(NOW + 1, LATER - 1), add(0, LATER + 1)]).toEqual(['changed', 'changed'])
    expect(isDead(made, NOW + 1, LATER)).toBe(true)
  })

  it('until it has run out: then it counts no more, and is no more when swept', () => {
    const made = table([NOW, LATER])
    expect(isDead(made, NOW, LATER - 1)).toBe(true)
    expect(isDead(made, NOW, LATER)).toBe(false)
    expect(made.size).toBe(1)
    made.sweep(LATER)
    expect(made.size).toBe(0)
    expect(made.add({ kind: 'user', id: 'alice', limit: 5, expiresAt: LATER + 9 }, LATER)).toBe('changed')
    expect(isDead(made, 6, LATER)).toBe(false)
  })
})

it('keeps no more entries than it was told to, and takes new ones again when old ones have run out', () => {
  const table = new RevocationTable(2000)
  const add = (id: number, expiresAt: number, now: number) =>
    table.add({ kind: 'token', id: `token-${id}`, expiresAt }, now)
  for (let id = 0; id < 2000; id += 1) expect(add(id, NOW + (id < 1000 ? 100 : 900), NOW)).toBe('changed')
  expect(add(2000, LATER, NOW)).toBe('full')
  // One that is there already needs no room.
  expect(add(1999, LATER + 5, NOW)).toBe('changed')
  expect(table.isRevoked({ ...claims, jti: 'token-2000' }, undefined, NOW)).toBe(false)
  expect(add(2000, LATER, NOW + 100)).toBe('changed')
  expect(table.size).toBe(1001)
  expect(table.isRevoked({ ...claims, jti: 'token-999' }, undefined, NOW + 100)).toBe(false)
  expect(table.isRevoked({ ...claims, jti: 'token-1000' }, undefined, NOW + 100)).toBe(true)
})

it('grows with what is in it, stays under 43 bytes an entry, and shrinks when most has run out', () => {
  const table = new RevocationTable(1_000_000)
  const atFirst = table.bytes
  for (let id = 0; id < 100_000; id += 1) {
    table.add({ kind: 'token', id: `token-${id}`, expiresAt: id < 99_000 ? LATER : LATER + 900 }, NOW)
    if (id > 2000 && id % 97 === 0) expect(table.bytes / table.size).toBeLessThan(43)
  }
  expect(table.bytes / table.size).toBeGreaterThan(21)
  for (let slice = 0; slice < 200; slice += 1) table.sweep(LATER)
  expect(table.size).toBe(1000)
  expect(table.bytes).toBeLessThan(10 * atFirst)
  for (let id = 98_990; id < 100_000; id += 1) {
    expect(table.isRevoked({ ...claims, jti: `token-${id}` }, undefined, LATER), String(id)).toBe(id >= 99_000)
  }
})

/** What the table should do, in the plainest words. */
class Model {
  readonly entries = new Map<string, { limit: number; expiresAt: number }>()

  add(name: string, limit: number, expiresAt: number, now: number): void {
    if (expiresAt <= now) return
    const before = this.entries.get(name)
    const isKnown = before !== undefined && before.expiresAt > now
    this.entries.set(name, {
      limit: isKnown ? Math.max(limit, before.limit) : limit,
      expiresAt: isKnown ? Math.max(expiresAt, before.expiresAt) : expiresAt,
    })
  }

  limitOf(name: string, now: number): number {
    const entry = this.entries.get(name)
    return entry !== undefined && entry.expiresAt > now ? entry.limit : -1
  }
}

/** Fingerprints from kind and number; the name of the entry in the model is what the fingerprint tells apart. */
const fingerprints: readonly (readonly [string, (kind: number, id: number) => readonly [number, number]])[] = [
  ['all of them in one place', (kind, id) => [7, kind * 1_000_000 + id]],
  ['in a few places at the end of the table', (kind, id) => [0xffff_ffff - (id % 3), kind * 1_000_000 + id]],
  ['in a row', (kind, id) => [id, kind]],
  ['all zero for some', (kind, id) => (id % 4 === 0 ? [0, kind] : [id, kind])],
  ['the same for every two', (kind, id) => [id >>> 1, kind]],
]

describe('the table answers as a Map would', () => {
  const step = record({
    kind: constantFrom<RevokedKind>('user', 'client', 'client-version', 'client-people', 'version'),
    id: integer({ min: 0, max: 1500 }),
    limit: integer({ min: 0, max: 100 }),
    lasts: integer({ min: -2, max: 3000 }),
    passes: constantFrom(0, 0, 0, 0, 0, 0, 0, 1, 7),
    sweeps: constantFrom(0, 0, 0, 0, 3, 50, 1024),
  })

  it.each(fingerprints)('with fingerprints %s', (_name, place) => {
    const numbered: Fingerprint = (kind, id, out) => out.set(place(REVOKED_KINDS.indexOf(kind), Number(id)))
    const nameOf = (kind: RevokedKind, id: number): string => place(REVOKED_KINDS.indexOf(kind), id).join(' ')
    let largest = 0
    assert(
      property(array(step, { minLength: 2000, maxLength: 3000, size: 'max' }), (steps) => {
        const table = new RevocationTable(100_000, numbered)
        const model = new Model()
        let now = 1000
        const compare = (sub: number, client: number, iat: number, version: number): void => {
          const asked = { ...bare, sub: String(sub), client_id: String(client), iat, token_version: version }
          const expected =
            model.limitOf(nameOf('user', sub), now) >= iat ||
            model.limitOf(nameOf('version', sub), now) > version ||
            model.limitOf(nameOf('client', client), now) >= iat ||
            (sub === client
              ? model.limitOf(nameOf('client-version', client), now) > version
              : model.limitOf(nameOf('client-people', client), now) >= iat)
          if (table.isRevoked(asked, undefined, now) === expected) return
          throw new Error(`not ${expected} of ${JSON.stringify(asked)} at ${now}`)
        }
        for (const [at, { kind, id, limit, lasts, passes, sweeps }] of steps.entries()) {
          now += passes
          table.add({ kind, id: String(id), limit, expiresAt: now + lasts }, now)
          model.add(nameOf(kind, id), limit, now + lasts, now)
          if (sweeps > 0) table.sweep(now, sweeps)
          compare(id, steps[at >> 1]?.id ?? 0, limit, limit)
          compare(steps[at >> 1]?.id ?? 0, id, limit + 1, limit + 1)
          compare(id, id, limit, limit)
        }
        largest = Math.max(largest, table.size)
        for (let id = 0; id <= 1500; id += 1) compare(id, 1500 - id, (id * 7) % 101, (id * 11) % 101)
        table.sweep(now + 10_000, 20_000)
        // Counted right all along, it is empty now.
        if (table.size !== 0) throw new Error(`${table.size} left`)
      }),
      { numRuns: 5, seed: 20_261_201 },
    )
    // Else nothing was said about growing.
    expect(largest).toBeGreaterThan(768)
  })
})
