/**
 * Proof of possession (RFC 9449). A token bound to a key is good only in the hands that hold the key: each request
 * carries a small signed proof for this method, this address, this token and this moment, and each proof is good once.
 * That the token itself is good has been found out before; here its holder is.
 */
import { createHmac, hash } from 'node:crypto'
import { decodeSegment, readCompactJws, REFUSED_HEADER_MEMBERS } from './compact-jws.ts'
import { invalidDpopProof, unavailable, useDpopNonce } from './errors.ts'
import type { GuardRequest } from './request.ts'
import { parseStrictObject } from './strict-json.ts'
import { isAlgorithm, VerificationKey } from './verification-key.ts'
import type { Algorithm, Jwk } from './verification-key.ts'

/**
 * Remembers which proofs were used. The default remembers them in this process; several processes behind one address
 * need a store they share, or require nonces.
 */
export interface ReplayStore {
  /**
   * @param id - names one proof; opaque, of fixed length
   * @param expiresAt - seconds since 1970; after that the proof would be refused as too old anyway
   * @returns `true` for whoever comes first, `false` for everybody after
   * @throws anything when it cannot know: the request is answered 503
   */
  claim(id: string, expiresAt: number): boolean | Promise<boolean>
}

/** How proofs are checked. */
export interface DpopOptions {
  /** `optional` accepts bound and unbound tokens, `required` only bound ones. @defaultValue `'optional'` */
  readonly mode?: 'off' | 'optional' | 'required'
  /**
   * How clients reach this service, with the path prefix a proxy takes off, if any. Needed when no audience is an
   * http(s) address. It is never taken from the Host header: a proof made for somebody else could then be used here.
   */
  readonly publicUrl?: string
  /** @defaultValue `['ES256', 'EdDSA', 'Ed25519', 'PS256', 'RS256']` */
  readonly algorithms?: readonly Algorithm[]
  /** How old a proof may be, in seconds. @defaultValue 60 */
  readonly maxAgeSeconds?: number
  /**
   * At least 32 bytes, the same in every process of this service. When set, proofs must carry a nonce of ours that is
   * at most five minutes old (RFC 9449 §9).
   */
  readonly nonceSecret?: string | Uint8Array
  /** @defaultValue one in memory, for up to 100,000 proofs */
  readonly replayStore?: ReplayStore
}

export const DEFAULT_PROOF_ALGORITHMS: readonly Algorithm[] = ['ES256', 'EdDSA', 'Ed25519', 'PS256', 'RS256']
const MAX_PROOF_LENGTH = 8192
const MAX_REMEMBERED_KEYS = 1024
const MAX_REMEMBERED_PROOFS = 100_000
const NONCE_STEP_SECONDS = 150

interface ProofKey {
  readonly algorithm: Algorithm
  readonly key: VerificationKey
}

export class DpopVerifier {
  readonly algorithms: readonly Algorithm[]
  readonly #publicUrl: string
  readonly #maxAgeSeconds: number
  readonly #toleranceSeconds: number
  readonly #nonceSecret: string | Uint8Array | undefined
  readonly #replayStore: ReplayStore
  readonly #now: () => number
  /** By header segment: a client's proofs all begin alike, and making a key of a JWK is dear. */
  readonly #keys = new Map<string, ProofKey>()

  constructor(options: DpopOptions, publicUrl: string, toleranceSeconds: number, now: () => number) {
    this.algorithms = options.algorithms ?? DEFAULT_PROOF_ALGORITHMS
    this.#publicUrl = publicUrl.replace(/\/$/, '')
    this.#maxAgeSeconds = options.maxAgeSeconds ?? 60
    this.#toleranceSeconds = toleranceSeconds
    this.#nonceSecret = options.nonceSecret
    if (this.#nonceSecret !== undefined && Buffer.byteLength(this.#nonceSecret) < 32) {
      throw new TypeError('dpop.nonceSecret must have at least 32 bytes')
    }
    this.#replayStore =
      options.replayStore ??
      new MemoryReplayStore(this.#maxAgeSeconds + 2 * toleranceSeconds, MAX_REMEMBERED_PROOFS, now)
    this.#now = now
  }

  /**
   * Checks the request's proof, step by step as RFC 9449 §4.3 lists them.
   *
   * @param token - the access token the proof must be for
   * @param boundTo - thumbprint of the key the token is bound to
   * @throws GuardError 401 `invalid_dpop_proof` or `use_dpop_nonce`; 503 when replay cannot be ruled out
   */
  async verify(request: GuardRequest, token: string, boundTo: string): Promise<void> {
    const values = request.header('dpop')
    const [proof] = values
    if (proof === undefined) throw invalidDpopProof('dpop_missing')
    if (values.length > 1 || proof.length > MAX_PROOF_LENGTH) throw invalidDpopProof('dpop_malformed')
    const { jkt, claims } = this.#read(proof)
    if (jkt !== boundTo) throw invalidDpopProof('dpop_key', 'not the key the token is bound to')

    const { htm, htu, iat, jti, ath, nonce } = claims
    if (typeof jti !== 'string' || jti === '' || jti.length > 1024) throw invalidDpopProof('dpop_claims', 'jti')
    if (htm !== request.method) throw invalidDpopProof('dpop_method', `htm ${JSON.stringify(htm)?.slice(0, 40)}`)
    const here = this.#addressOf(request)
    if (typeof htu !== 'string' || plainAddress(htu) !== here) {
      throw invalidDpopProof('dpop_address', `htu ${JSON.stringify(htu)?.slice(0, 300)}, expected ${here}`)
    }
    if (ath !== hash('sha256', token, 'base64url')) throw invalidDpopProof('dpop_token', 'ath')
    const now = this.#now() / 1000
    const expiresAt = typeof iat === 'number' ? iat + this.#maxAgeSeconds + this.#toleranceSeconds : Number.NaN
    if (typeof iat !== 'number' || !(iat <= now + this.#toleranceSeconds && now < expiresAt)) {
      throw invalidDpopProof('dpop_time', `iat ${JSON.stringify(iat)}, now ${now}`)
    }
    this.#assertNonce(nonce, now)

    // Last, so that only proofs that are good in every other way take up memory (RFC 9449 §11.1).
    let first
    try {
      first = await this.#replayStore.claim(hash('sha256', `${jkt} ${jti}`, 'base64url'), expiresAt)
    } catch (error) {
      throw unavailable('replay', this.#maxAgeSeconds, 'replay cannot be ruled out', error)
    }
    if (!first) throw invalidDpopProof('dpop_replayed')
  }

  #read(proof: string): { jkt: string; claims: Readonly<Record<string, unknown>> } {
    try {
      const { head, body, seal, signed } = readCompactJws(proof)
      const { algorithm, key } = this.#readHeader(head)
      if (!key.verifies(algorithm, signed, seal)) throw new SyntaxError('signature')
      return { jkt: key.thumbprint, claims: parseStrictObject(decodeSegment(body)) }
    } catch (error) {
      throw invalidDpopProof('dpop_malformed', error instanceof Error ? error.message : String(error), error)
    }
  }

  /** @throws Error when the header is not that of a proof */
  #readHeader(segment: string): ProofKey {
    const known = this.#keys.get(segment)
    if (known !== undefined) return known
    const header = parseStrictObject(decodeSegment(segment))
    const { alg, typ, jwk } = header
    if (typ !== 'dpop+jwt') throw new SyntaxError('typ')
    if (!isAlgorithm(alg) || !this.algorithms.includes(alg)) throw new SyntaxError('alg')
    if (REFUSED_HEADER_MEMBERS.some((member) => member in header)) throw new SyntaxError('header')
    if (typeof jwk !== 'object' || jwk === null) throw new SyntaxError('jwk')
    const read: ProofKey = { algorithm: alg, key: new VerificationKey(jwk as Jwk) }
    if (this.#keys.size >= MAX_REMEMBERED_KEYS) this.#keys.clear()
    this.#keys.set(segment, read)
    return read
  }

  /** The address clients used, without query and fragment (RFC 9449 §4.2). */
  #addressOf(request: GuardRequest): string {
    // RFC 9112 §3.2.2: a request line may hold a whole address; its host is the client's claim, so only its path counts.
    const path = request.url.startsWith('/')
      ? request.url
      : (/^https?:\/\/[^/?#]*([^]*)$/i.exec(request.url)?.[1] ?? '')
    return plainAddress(this.#publicUrl + path) ?? this.#publicUrl
  }

  #assertNonce(nonce: unknown, now: number): void {
    const secret = this.#nonceSecret
    if (secret === undefined) return
    const step = Math.floor(now / NONCE_STEP_SECONDS)
    if (nonce !== nonceOf(secret, step) && nonce !== nonceOf(secret, step - 1))
      throw useDpopNonce(nonceOf(secret, step))
  }
}

/** Made from the time alone, so every process that knows the secret makes, and accepts, the same. */
function nonceOf(secret: string | Uint8Array, step: number): string {
  return createHmac('sha256', secret).update(`dpop nonce ${step}`).digest('base64url')
}

/** RFC 9449 §4.3 (9): compared after normalizing (RFC 3986 §6.2), and without query and fragment. */
function plainAddress(address: string): string | undefined {
  if (!URL.canParse(address)) return undefined
  const { origin, pathname } = new URL(address)
  return origin + pathname
}

/** Proofs used in this process, bounded in number: when there is no room for another, none is let in unremembered. */
export class MemoryReplayStore implements ReplayStore {
  readonly #windowSeconds: number
  readonly #maxProofs: number
  readonly #now: () => number
  // Two generations, each of one window: whatever is forgotten is older than any proof that would still be accepted.
  #young = new Set<string>()
  #old = new Set<string>()
  #turnsAt = 0

  constructor(windowSeconds: number, maxProofs: number, now: () => number) {
    this.#windowSeconds = windowSeconds
    this.#maxProofs = maxProofs
    this.#now = now
  }

  claim(id: string): boolean {
    const now = this.#now() / 1000
    // A clock set back must not stop the forgetting.
    if (now < this.#turnsAt - this.#windowSeconds) this.#turnsAt = now + this.#windowSeconds
    if (now >= this.#turnsAt) {
      this.#old = now >= this.#turnsAt + this.#windowSeconds ? new Set() : this.#young
      this.#young = new Set()
      this.#turnsAt = now + this.#windowSeconds
    }
    if (this.#young.has(id) || this.#old.has(id)) return false
    if (this.#young.size + this.#old.size >= this.#maxProofs) throw new Error('no room to remember another proof')
    this.#young.add(id)
    return true
  }
}
