/**
 * Public keys that can verify, made once from JWKs. A key is a `KeyObject` with its parameters ready, because parsing
 * one per token costs more than verifying with it. Which key a token may use is decided by `issuer.ts`; here an
 * algorithm and a key are only ever brought together when they belong together (RFC 8725 §3.1, RFC 7517 §4).
 */
import { constants, createPublicKey, hash, verify } from 'node:crypto'
import type { KeyObject, VerifyKeyObjectInput } from 'node:crypto'

/** A key as issuers publish it (RFC 7517). */
export interface Jwk {
  readonly kty?: unknown
  readonly kid?: unknown
  readonly alg?: unknown
  readonly use?: unknown
  readonly key_ops?: unknown
  readonly [member: string]: unknown
}

interface SignatureAlgorithm {
  readonly kty: 'RSA' | 'EC' | 'OKP'
  readonly crv?: string
  readonly digest: string | null
  readonly pss?: true
}

/** Every algorithm there is here: asymmetric ones. `none` and HMAC cannot be allowed, because they cannot be named. */
const ALGORITHMS = {
  RS256: { kty: 'RSA', digest: 'sha256' },
  RS384: { kty: 'RSA', digest: 'sha384' },
  RS512: { kty: 'RSA', digest: 'sha512' },
  PS256: { kty: 'RSA', digest: 'sha256', pss: true },
  PS384: { kty: 'RSA', digest: 'sha384', pss: true },
  PS512: { kty: 'RSA', digest: 'sha512', pss: true },
  ES256: { kty: 'EC', crv: 'P-256', digest: 'sha256' },
  ES384: { kty: 'EC', crv: 'P-384', digest: 'sha384' },
  ES512: { kty: 'EC', crv: 'P-521', digest: 'sha512' },
  EdDSA: { kty: 'OKP', crv: 'Ed25519', digest: null },
  Ed25519: { kty: 'OKP', crv: 'Ed25519', digest: null },
} as const satisfies Record<string, SignatureAlgorithm>

/** Signature algorithms a token or a proof may be signed with (RFC 7518 §3.1, RFC 8037, RFC 9864). */
export type Algorithm = keyof typeof ALGORITHMS

export function isAlgorithm(name: unknown): name is Algorithm {
  return typeof name === 'string' && Object.hasOwn(ALGORITHMS, name)
}

/** The members that make a public key, in the order RFC 7638 §3.2 hashes them. */
const PUBLIC_MEMBERS: Readonly<Record<string, readonly string[]>> = {
  RSA: ['e', 'kty', 'n'],
  EC: ['crv', 'kty', 'x', 'y'],
  OKP: ['crv', 'kty', 'x'],
}

const MIN_RSA_BITS = 2048
// Verifying grows with the square of the modulus; nobody's tokens need more than this.
const MAX_RSA_BITS = 8192
const MAX_KID_LENGTH = 256

/** One public key, ready to verify. */
export class VerificationKey {
  readonly kid: string | undefined
  /** RFC 7638: what the key is, whatever it is called. */
  readonly thumbprint: string
  /** Set when the issuer no longer publishes the key: what it verified before counts no more. */
  withdrawn = false
  readonly #key: KeyObject
  readonly #kty: string
  readonly #crv: unknown
  readonly #alg: unknown

  /**
   * @throws TypeError when the JWK is no public key for signatures, or too weak a one
   */
  constructor(jwk: Jwk) {
    const { kty, kid, alg, use, key_ops: operations } = jwk
    const members = typeof kty === 'string' && Object.hasOwn(PUBLIC_MEMBERS, kty) ? PUBLIC_MEMBERS[kty] : undefined
    if (typeof kty !== 'string' || members === undefined) throw new TypeError(`no key type to verify with`)
    if ('d' in jwk || 'k' in jwk) throw new TypeError('a private key')
    if (use !== undefined && use !== 'sig') throw new TypeError('not for signatures')
    if (operations !== undefined && !(Array.isArray(operations) && operations.includes('verify'))) {
      throw new TypeError('not for verifying')
    }
    if (kid !== undefined && (typeof kid !== 'string' || kid.length > MAX_KID_LENGTH)) throw new TypeError('bad kid')
    const own: Record<string, string> = {}
    for (const member of members) {
      const value = jwk[member]
      if (typeof value !== 'string') throw new TypeError(`no ${member}`)
      own[member] = value
    }
    this.#key = createPublicKey({ key: own, format: 'jwk' })
    const bits = this.#key.asymmetricKeyDetails?.modulusLength
    if (kty === 'RSA' && (bits === undefined || bits < MIN_RSA_BITS || bits > MAX_RSA_BITS)) {
      throw new TypeError(`an RSA key of ${bits} bits`)
    }
    this.kid = kid
    this.thumbprint = hash('sha256', JSON.stringify(own), 'base64url')
    this.#kty = kty
    this.#crv = jwk['crv']
    this.#alg = alg
  }

  /** Whether this key may be used with that algorithm at all. */
  fits(algorithm: Algorithm): boolean {
    const { kty, crv }: SignatureAlgorithm = ALGORITHMS[algorithm]
    if (kty !== this.#kty || (crv !== undefined && crv !== this.#crv)) return false
    return this.#alg === undefined || plain(this.#alg) === plain(algorithm)
  }

  /** Whether the signature over the data was made with this key and that algorithm. */
  verifies(algorithm: Algorithm, data: Buffer, signature: Buffer): boolean {
    if (!this.fits(algorithm)) return false
    const { kty, digest, pss }: SignatureAlgorithm = ALGORITHMS[algorithm]
    if (kty === 'RSA' && pss === undefined) return verify(digest, data, this.#key, signature)
    const input: VerifyKeyObjectInput = { key: this.#key }
    // JOSE writes ECDSA signatures as r || s (RFC 7518 §3.4), OpenSSL as DER.
    if (kty === 'EC') input.dsaEncoding = 'ieee-p1363'
    if (pss) {
      input.padding = constants.RSA_PKCS1_PSS_PADDING
      input.saltLength = constants.RSA_PSS_SALTLEN_DIGEST
    }
    return verify(digest, data, input, signature)
  }
}

/** EdDSA and Ed25519 are two names of one algorithm here (RFC 9864 §2.2). */
function plain(algorithm: unknown): unknown {
  return algorithm === 'EdDSA' ? 'Ed25519' : algorithm
}
