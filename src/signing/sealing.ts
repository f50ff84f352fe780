/**
 * What a secret of the ring is used for where it does more than be compared: sealing what must not lie readable in the
 * database, and signing what callers carry and hand back. Both follow the ring: what was made with a secret that was
 * replaced still counts for as long as the ring accepts it.
 */
import {
  createCipheriv,
  createDecipheriv,
  createHmac,
  createSecretKey,
  hkdfSync,
  randomBytes,
  timingSafeEqual,
  type KeyObject,
} from 'node:crypto'
import type { SecretPurpose, SecretRing } from './secret-ring.ts'

type Ring = Pick<SecretRing, 'current' | 'all'>

export interface Sealer {
  /** @param boundTo what the value belongs to; bound to anything else it does not open */
  seal(boundTo: readonly string[], bytes: Uint8Array): Buffer
  /** undefined when no secret that is still accepted opens it, or it was altered or belongs to something else */
  open(boundTo: readonly string[], sealed: Uint8Array): Buffer | undefined
}

const version = 1
const saltLength = 16
const nonceLength = 12
const tagLength = 16

/**
 * AES-256-GCM under a key of its own for each value (HKDF with a random salt, RFC 5869), since the number of random
 * nonces that one key may see is limited (NIST SP 800-38D §8.3), and the number of values is not. A sealed value is
 *   version (1 byte) ‖ salt (16 bytes) ‖ nonce (12 bytes) ‖ tag (16 bytes) ‖ ciphertext
 */
export function sealer(secretRing: Ring, purpose: SecretPurpose): Sealer {
  const keyFrom = (secret: Buffer, salt: Uint8Array) =>
    Buffer.from(hkdfSync('sha256', secret, salt, `latchkey seal ${purpose}`, 32))
  return {
    seal(boundTo, bytes) {
      const salt = randomBytes(saltLength)
      const nonce = randomBytes(nonceLength)
      const key = keyFrom(secretRing.current(purpose), salt)
      const cipher = createCipheriv('aes-256-gcm', key, nonce, { authTagLength: tagLength })
      cipher.setAAD(additionalData(boundTo))
      const ciphertext = Buffer.concat([cipher.update(bytes), cipher.final()])
      return Buffer.concat([Buffer.of(version), salt, nonce, cipher.getAuthTag(), ciphertext])
    },
    open(boundTo, sealed) {
      const bytes = Buffer.from(sealed)
      const headLength = 1 + saltLength + nonceLength + tagLength
      if (bytes[0] !== version || bytes.length < headLength) return undefined
      const salt = bytes.subarray(1, 1 + saltLength)
      const nonce = bytes.subarray(1 + saltLength, 1 + saltLength + nonceLength)
      const tag = bytes.subarray(headLength - tagLength, headLength)
      for (const secret of secretRing.all(purpose)) {
        const decipher = createDecipheriv('aes-256-gcm', keyFrom(secret, salt), nonce, { authTagLength: tagLength })
        decipher.setAAD(additionalData(boundTo))
        decipher.setAuthTag(tag)
        try {
          return Buffer.concat([decipher.update(bytes.subarray(headLength)), decipher.final()])
        } catch {
          // Another secret may have sealed it; when none did, the caller is told so.
          continue
        }
      }
      return undefined
    },
  }
}

function additionalData(boundTo: readonly string[]): Buffer {
  return Buffer.from(JSON.stringify(boundTo), 'utf8')
}

export interface Signer {
  /** 16 bytes */
  sign(text: string): Buffer
  /** Whether any secret that is still accepted made it; in constant time. */
  verify(text: string, signature: Uint8Array): boolean
}

const signatureLength = 16

/** HMAC-SHA-256, cut to 128 bits (RFC 2104 §5). */
export function signer(secretRing: Ring, purpose: SecretPurpose): Signer {
  // Made once for each secret: making one takes longer than signing.
  const keys = new WeakMap<Buffer, KeyObject>()
  const keyOf = (secret: Buffer): KeyObject => {
    const key = keys.get(secret) ?? createSecretKey(secret)
    keys.set(secret, key)
    return key
  }
  const signWith = (secret: Buffer, text: string) =>
    createHmac('sha256', keyOf(secret)).update(text).digest().subarray(0, signatureLength)
  return {
    sign: (text) => signWith(secretRing.current(purpose), text),
    verify: (text, signature) =>
      signature.length === signatureLength &&
      secretRing.all(purpose).some((secret) => timingSafeEqual(signWith(secret, text), signature)),
  }
}
