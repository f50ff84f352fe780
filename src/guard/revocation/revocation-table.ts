/**
 * What is revoked, in memory: millions of entries in tens of megabytes, looked up in a fraction of a microsecond. Open
 * addressing over one array of words, sixteen bytes a slot: a fingerprint of 64 bits under a key that only this process
 * knows, what of the subject's tokens is dead, and when the entry may be forgotten. Never fuller than three quarters.
 *
 * Entries only grow stricter: whatever comes late, twice or out of order changes nothing that is known already. Two
 * subjects of one fingerprint would be one entry, so that a token could be called revoked that is not: of a million
 * entries, once in 10^13 look-ups.
 */
import { getRandomValues } from 'node:crypto'
import type { AccessTokenClaims } from '../caller.ts'
import { halfSipHash } from './half-sip-hash.ts'

/**
 * What an entry speaks of. `user`, `client` and `client-people` are dead up to a moment, `version` (of a user) and
 * `client-version` up to a number; of the others, all is dead. A client's tokens are its own (`sub` is its `client_id`)
 * or held for people: `client` speaks of both, `client-version` of its own, `client-people` of the others.
 */
export const REVOKED_KINDS = [
  'token',
  'session',
  'grant',
  'user',
  'version',
  'client',
  'client-version',
  'client-people',
  'key',
] as const

export type RevokedKind = (typeof REVOKED_KINDS)[number]

/** One thing that is revoked. */
export interface RevokedEntry {
  readonly kind: RevokedKind
  /** `jti`, `sid`, `grant_id`, `sub`, `client_id` or `kid`. */
  readonly id: string
  /**
   * `version`, `client-version`: the lowest `token_version` that still counts. `user`, `client`, `client-people`: seconds
   * since 1970; tokens issued then or before are dead. The others have none: all is dead, whenever it was issued.
   */
  readonly limit?: number
  /** Seconds since 1970: when no token is left that the entry speaks of. */
  readonly expiresAt: number
}

/** Whether an entry was new, or said nothing new, or found no room. */
export type RevocationOutcome = 'changed' | 'known' | 'full'

/** Writes the fingerprint of a subject to `out`, as two words. */
export type Fingerprint = (kind: RevokedKind, id: string, out: Uint32Array) => void

/** One bit each. */
const BITS: Readonly<Record<RevokedKind, number>> = {
  token: 1,
  session: 2,
  grant: 4,
  user: 8,
  version: 16,
  client: 32,
  key: 64,
  'client-version': 128,
  'client-people': 256,
}
const LAST = 0xffff_ffff
const MIN_CAPACITY = 1024
/** Words of a slot: fingerprint, its other half, limit, expiry. An expiry of 0 means that the slot is empty. */
const WORDS = 4
const LIMIT = 2
const EXPIRY = 3

export class RevocationTable {
  /** Entries, those among them that have run out and were not yet swept. */
  size = 0
  #slots = new Uint32Array(MIN_CAPACITY * WORDS)
  #mask = MIN_CAPACITY - 1
  #cursor = 0
  /** The kinds there may be: a service that knows of no revoked key need not look for one. */
  #kinds = 0
  #sweptWhenFullAt = 0
  readonly #maxEntries: number
  readonly #fingerprint: Fingerprint
  readonly #out = new Uint32Array(2)

  /**
   * @param maxEntries - no more than this many
   * @param fingerprint - for tests of unlucky ones; by default HalfSipHash, with a random key for each kind
   */
  constructor(maxEntries: number, fingerprint: Fingerprint = randomFingerprint()) {
    this.#maxEntries = maxEntries
    this.#fingerprint = fingerprint
  }

  /** Memory of the entries. */
  get bytes(): number {
    return this.#slots.byteLength
  }

  /**
   * From now on, what the entry speaks of is dead.
   *
   * @param now - seconds since 1970
   */
  add({ kind, id, limit, expiresAt }: RevokedEntry, now: number): RevocationOutcome {
    const expiry = clamp(Math.ceil(expiresAt))
    if (expiry <= now) return 'known'
    const value = limit === undefined ? LAST : clamp(Math.floor(limit))
    this.#fingerprint(kind, id, this.#out)
    const [low = 0, high = 0] = this.#out
    let at = this.#find(low, high)
    const slots = this.#slots
    if (slots[at + EXPIRY] !== 0) {
      const isOver = (slots[at + EXPIRY] ?? 0) <= now
      if (!isOver && value <= (slots[at + LIMIT] ?? 0) && expiry <= (slots[at + EXPIRY] ?? 0)) return 'known'
      slots[at + LIMIT] = isOver ? value : Math.max(value, slots[at + LIMIT] ?? 0)
      slots[at + EXPIRY] = isOver ? expiry : Math.max(expiry, slots[at + EXPIRY] ?? 0)
      return 'changed'
    }
    if (this.size >= this.#maxEntries && !this.#makeRoom(now)) return 'full'
    if ((this.size + 1) * 4 > (this.#mask + 1) * 3) this.#rebuild(now)
    at = this.#find(low, high)
    this.#write(at, low, high, value, expiry)
    this.size += 1
    this.#kinds |= BITS[kind]
    return 'changed'
  }

  /**
   * @param kid - of the key that the token is signed with
   * @param now - seconds since 1970
   */
  isRevoked(claims: AccessTokenClaims, kid: string | undefined, now: number): boolean {
    if (this.size === 0) return false
    const { jti, sub, client_id: clientId, sid, grant_id: grantId, token_version: version } = claims
    const issuedAt = Math.floor(claims.iat)
    // A token that names no version is older than any.
    const known = typeof version === 'number' ? version : -1
    return (
      this.#limit('token', jti, now) >= issuedAt ||
      this.#limit('session', sid, now) >= issuedAt ||
      this.#limit('grant', grantId, now) >= issuedAt ||
      this.#limit('version', sub, now) > known ||
      this.#limit('user', sub, now) >= issuedAt ||
      this.#limit('client', clientId, now) >= issuedAt ||
      // Its own are known by their version alone: one may be issued, at a later second even, while the change that kills
      // it is not committed yet.
      (sub === clientId
        ? this.#limit('client-version', clientId, now) > known
        : this.#limit('client-people', clientId, now) >= issuedAt) ||
      this.#limit('key', kid, now) >= issuedAt
    )
  }

  /**
   * Forgets entries that have run out, a slice at a time, so that no request waits for it.
   *
   * @param now - seconds since 1970
   * @param count - how many slots are looked at; by default one in 32, at least 1,024
   */
  sweep(now: number, count = Math.max(MIN_CAPACITY, (this.#mask + 1) >> 5)): void {
    for (let looked = 0; looked < count; looked += 1) {
      const at = this.#cursor * WORDS
      const expiry = this.#slots[at + EXPIRY] ?? 0
      if (expiry !== 0 && expiry <= now) {
        // What came after may move here, so this slot is looked at again.
        this.#remove(this.#cursor)
        this.size -= 1
        continue
      }
      this.#cursor = (this.#cursor + 1) & this.#mask
      if (this.#cursor === 0 && this.#mask >= MIN_CAPACITY && this.size * 8 <= this.#mask) this.#rebuild(now)
    }
  }

  /** What is dead of a subject; -1 for nothing. */
  #limit(kind: RevokedKind, id: unknown, now: number): number {
    if (typeof id !== 'string' || (this.#kinds & BITS[kind]) === 0) return -1
    this.#fingerprint(kind, id, this.#out)
    const at = this.#find(this.#out[0] ?? 0, this.#out[1] ?? 0)
    return (this.#slots[at + EXPIRY] ?? 0) > now ? (this.#slots[at + LIMIT] ?? -1) : -1
  }

  /** Where a fingerprint is, or where it would go. */
  #find(low: number, high: number): number {
    const slots = this.#slots
    for (let slot = low & this.#mask; ; slot = (slot + 1) & this.#mask) {
      const at = slot * WORDS
      if (slots[at + EXPIRY] === 0 || (slots[at] === low && slots[at + 1] === high)) return at
    }
  }

  #write(at: number, low: number, high: number, limit: number, expiry: number): void {
    const slots = this.#slots
    slots[at] = low
    slots[at + 1] = high
    slots[at + LIMIT] = limit
    slots[at + EXPIRY] = expiry
  }

  /** Without gravestones: what follows moves up, so that searches stay as short as the table is full. */
  #remove(slot: number): void {
    const slots = this.#slots
    let hole = slot
    for (let next = (slot + 1) & this.#mask; slots[next * WORDS + EXPIRY] !== 0; next = (next + 1) & this.#mask) {
      const home = (slots[next * WORDS] ?? 0) & this.#mask
      // Only what may be found when searched for from its home on.
      if (((next - home) & this.#mask) < ((next - hole) & this.#mask)) continue
      slots.copyWithin(hole * WORDS, next * WORDS, (next + 1) * WORDS)
      hole = next
    }
    slots[hole * WORDS + EXPIRY] = 0
  }

  /** At most once a minute, because it looks at all of them. */
  #makeRoom(now: number): boolean {
    if (now - this.#sweptWhenFullAt >= 60) {
      this.#sweptWhenFullAt = now
      this.#rebuild(now)
    }
    return this.size < this.#maxEntries
  }

  /** What has not run out, in a table of the right size: half empty, for there is more to come. */
  #rebuild(now: number): void {
    const old = this.#slots
    let living = 0
    for (let at = EXPIRY; at < old.length; at += WORDS) if ((old[at] ?? 0) > now) living += 1
    let capacity = MIN_CAPACITY
    while (capacity < living * 2) capacity *= 2
    this.#slots = new Uint32Array(capacity * WORDS)
    this.#mask = capacity - 1
    this.#cursor = 0
    this.size = living
    for (let at = 0; at < old.length; at += WORDS) {
      const expiry = old[at + EXPIRY] ?? 0
      if (expiry <= now) continue
      const low = old[at] ?? 0
      const high = old[at + 1] ?? 0
      this.#write(this.#find(low, high), low, high, old[at + LIMIT] ?? 0, expiry)
    }
  }
}

/** A key of its own for each kind: a session that is called like a user is not that user. */
function randomFingerprint(): Fingerprint {
  const words = getRandomValues(new Uint32Array(2 * REVOKED_KINDS.length))
  const keys = Object.fromEntries(
    REVOKED_KINDS.map((kind, at) => [kind, [words[2 * at] ?? 0, words[2 * at + 1] ?? 0] as const]),
  ) as Record<RevokedKind, readonly [number, number]>
  return (kind, id, out) => halfSipHash(keys[kind], id, out)
}

/** What fits into a word; a time beyond 2106 is as good as for ever. */
function clamp(value: number): number {
  return Math.min(Math.max(value, 0), LAST)
}
