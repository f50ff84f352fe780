/**
 * One RS256 key: made, sealed, opened. The public half is always computed from the sealed private one, never believed
 * from its own column, so that whoever can write to the database still cannot have a key of theirs published.
 */
import { createPrivateKey, createPublicKey, generateKeyPair, sign, type KeyObject } from 'node:crypto'
import { promisify } from 'node:util'
import { calculateJwkThumbprint } from 'jose'
import { z } from 'zod'
import { KeyEncryptionError, signingKeyRow, type KeyEncryption } from './key-encryption.ts'

/** RFC 7517, with the parameters of RFC 7518 §6.3.1. */
export interface PublicJwk {
  readonly kty: 'RSA'
  readonly use: 'sig'
  readonly alg: 'RS256'
  /** the key's SHA-256 thumbprint (RFC 7638) */
  readonly kid: string
  readonly n: string
  readonly e: string
}

/** A key that has been made and sealed, and is not in the database yet. */
export interface PreparedKey {
  readonly kid: string
  readonly publicJwk: PublicJwk
  readonly sealedPrivateJwk: Buffer
}

/** A key as those who sign with it are handed it. */
export interface Signer {
  readonly publicJwk: PublicJwk
  /** the public half, for verifying */
  readonly publicKey: KeyObject
  /** The signature of RS256 over these bytes (RFC 7518 §3.3); made in libuv's pool, so that other requests go on. */
  readonly sign: (bytes: Uint8Array) => Promise<Uint8Array>
}

/** A key ready for use. */
export interface SigningKey extends Signer {
  readonly privateKey: KeyObject
}

const signAsync = promisify(sign)
const generateKeyPairAsync = promisify(generateKeyPair)

const numbers = z.object({
  n: z.string(),
  e: z.string(),
  d: z.string(),
  p: z.string(),
  q: z.string(),
  dp: z.string(),
  dq: z.string(),
  qi: z.string(),
})

/**
 * Makes a key pair. It takes a tenth of a second and more, so it is done before the transaction that writes it.
 * @param rsaBits the size of the modulus, in bits
 */
export async function prepareSigningKey({
  encryption,
  rsaBits,
}: {
  encryption: KeyEncryption
  rsaBits: number
}): Promise<PreparedKey> {
  const { privateKey } = await generateKeyPairAsync('rsa', { modulusLength: rsaBits })
  const jwk = numbers.parse(privateKey.export({ format: 'jwk' }))
  const kid = await thumbprint(jwk)
  // One in 64 would be taken for an option by every command line that it is pasted into.
  if (kid.startsWith('-')) return prepareSigningKey({ encryption, rsaBits })
  return {
    kid,
    publicJwk: publicJwkOf(kid, jwk),
    sealedPrivateJwk: encryption.seal(signingKeyRow(kid), Buffer.from(JSON.stringify(jwk), 'utf8')),
  }
}

/**
 * Opens a sealed private key.
 * @throws KeyEncryptionError when it does not open, or holds another key than the row says
 */
export async function openSigningKey(encryption: KeyEncryption, kid: string, sealed: Uint8Array): Promise<SigningKey> {
  const jwk = numbers.parse(JSON.parse(encryption.open(signingKeyRow(kid), sealed).toString('utf8')))
  if ((await thumbprint(jwk)) !== kid) {
    throw new KeyEncryptionError(`The signing key ${kid} is not the key that its kid names: revoke it`)
  }
  const publicJwk = publicJwkOf(kid, jwk)
  const privateKey = createPrivateKey({ format: 'jwk', key: { kty: 'RSA', ...jwk } })
  return Object.freeze({
    publicJwk,
    privateKey,
    publicKey: createPublicKey(privateKey),
    sign: (bytes: Uint8Array) => signAsync('sha256', bytes, privateKey),
  })
}

function publicJwkOf(kid: string, { n, e }: { n: string; e: string }): PublicJwk {
  return Object.freeze({ kty: 'RSA', use: 'sig', alg: 'RS256', kid, n, e })
}

function thumbprint({ n, e }: { n: string; e: string }): Promise<string> {
  return calculateJwkThumbprint({ kty: 'RSA', n, e }, 'sha256')
}
