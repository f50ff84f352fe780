/** Makes tokens byte by byte, so that tests can write what no library would. */
import { createHmac, generateKeyPairSync, randomUUID, sign } from 'node:crypto'
import type { KeyObject } from 'node:crypto'
import { createGuard } from '@latchkey/guard'
import type { Guard, GuardOptions, Jwk } from '@latchkey/guard'

export const ISSUER = 'https://id.example.com'
export const AUDIENCE = 'https://api.example.com/models'
export const NOW = 1_800_000_000

export const ours = generateKeyPairSync('rsa', { modulusLength: 2048 })
export const attackers = generateKeyPairSync('rsa', { modulusLength: 2048 })
export const attackersEc = generateKeyPairSync('ec', { namedCurve: 'P-256' })

export function jwkOf(key: KeyObject, more: Record<string, unknown> = {}): Jwk {
  return { ...key.export({ format: 'jwk' }), ...more }
}

export const ourJwks = { keys: [jwkOf(ours.publicKey, { kid: 'key-1', alg: 'RS256', use: 'sig' })] }

export type Members = Record<string, unknown>

export const goodHeader: Members = { alg: 'RS256', typ: 'at+jwt', kid: 'key-1' }

export function goodClaims(): Members {
  return {
    iss: ISSUER,
    sub: 'alice',
    aud: AUDIENCE,
    client_id: 'web',
    iat: NOW - 10,
    exp: NOW + 890,
    jti: randomUUID(),
    scope: 'models:read',
    roles: ['developer'],
  }
}

/** A member set to this is left out. */
export const ABSENT = undefined

export function encode(value: string | Buffer): string {
  return Buffer.from(value).toString('base64url')
}

/** Signs two texts as they are, whatever they say. */
export function sealed(header: string | Buffer, claims: string | Buffer, key: KeyObject = ours.privateKey): string {
  const signed = `${encode(header)}.${encode(claims)}`
  return `${signed}.${sign('sha256', Buffer.from(signed), key).toString('base64url')}`
}

/** A token that is good but for what is changed. */
export function token(claims: Members = {}, header: Members = {}, key: KeyObject = ours.privateKey): string {
  return sealed(JSON.stringify({ ...goodHeader, ...header }), JSON.stringify({ ...goodClaims(), ...claims }), key)
}

/** The good claims, with one more member written at the end, unescaped and unchecked. */
export function withRawMember(raw: string, without: Members = {}): string {
  const text = JSON.stringify({ ...goodClaims(), ...without })
  return sealed(JSON.stringify(goodHeader), `${text.slice(0, -1)},${raw}}`)
}

export function hmacToken(alg: string, secret: string | Buffer): string {
  const signed = `${encode(JSON.stringify({ ...goodHeader, alg }))}.${encode(JSON.stringify(goodClaims()))}`
  return `${signed}.${createHmac(`sha${alg.slice(2)}`, secret)
    .update(signed)
    .digest('base64url')}`
}

/** A guard that trusts `ours`, at the time `NOW`, without a network: whoever fetches, fails the test. */
export function guardAt(options: Partial<GuardOptions> = {}): Guard {
  return createGuard({
    issuer: { issuer: ISSUER, keys: ourJwks },
    audience: AUDIENCE,
    now: () => NOW * 1000,
    fetch: (address) => {
      throw new Error(`a token made the guard fetch ${address}`)
    },
    ...options,
  })
}

export function request(authorization: string | undefined, more: Record<string, string> = {}): Request {
  return new Request(`${AUDIENCE}/7`, {
    headers: { ...(authorization === undefined ? {} : { authorization }), ...more },
  })
}
