import { createHmac, timingSafeEqual } from 'node:crypto'
import type { SecretPurpose, SecretRing } from './secret-ring.ts'

export interface Signer {
  /** 16 bytes */
  sign(text: string): Buffer
  /** Whether any secret that is still accepted made it; in constant time. */
  verify(text: string, signature: Uint8Array): boolean
}

/** Signs what goes out and comes back, such as cursors, with a secret that is replaced now and then (HMAC-SHA-256). */
export function signer(secretRing: Pick<SecretRing, 'current' | 'all'>, purpose: SecretPurpose): Signer {
  const macOf = (secret: Buffer, text: string) => createHmac('sha256', secret).update(text).digest().subarray(0, 16)
  return {
    sign: (text) => macOf(secretRing.current(purpose), text),
    verify(text, signature) {
      if (signature.length !== 16) return false
      let matches = false
      for (const secret of secretRing.all(purpose)) {
        if (timingSafeEqual(macOf(secret, text), signature)) matches = true
      }
      return matches
    },
  }
}
