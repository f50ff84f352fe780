/**
 * An issuer for tests: real keys, real tokens, the real guard, no network. Give `idp.options` to `createGuard` and the
 * guard asks this issuer for its keys and its news of revocations as it would ask any other, so that what a test shows is
 * what production does: expiry, revocation, rotation and outages included.
 */
import { constants, generateKeyPairSync, hash, randomUUID, sign } from 'node:crypto'
import type { KeyObject } from 'node:crypto'
import type { GuardOptions } from './guard-options.ts'
import type { Fetch, Jwks } from './issuer.ts'
import type { RevocationFeedOptions } from './revocation/feed-options.ts'
import { MemoryTransmitter } from './revocation/memory-transmitter.ts'
import type { StreamStatus } from './revocation/memory-transmitter.ts'
import type { AccessTokenClaims } from './caller.ts'

/** What a test issuer may sign with. */
export type TestAlgorithm = 'RS256' | 'PS256' | 'ES256' | 'EdDSA'

/** How a test issuer is made. */
export interface TestIssuerOptions {
  /** @defaultValue `'https://issuer.test'` */
  readonly issuer?: string
  /** Audience of its tokens, and of `options`. @defaultValue `'https://api.test'` */
  readonly audience?: string
  /** @defaultValue `'RS256'` */
  readonly algorithm?: TestAlgorithm
}

/** What a token says. Everything has a default. */
export interface MintOptions {
  /** @defaultValue `'alice'` */
  readonly sub?: string
  /** @defaultValue `'test-client'`; the same as `sub` makes a client's own token. */
  readonly clientId?: string
  /** Words separated by spaces, or a list. @defaultValue none */
  readonly scope?: string | readonly string[]
  readonly roles?: readonly string[]
  readonly groups?: readonly string[]
  readonly audience?: string | readonly string[]
  /** From now on: seconds, or `'90s'`, `'15m'`, `'2h'`, `'1d'`; negative for a token that has expired. @defaultValue `'15m'` */
  readonly expiresIn?: number | string
  /** Who acts for `sub` (RFC 8693 §4.1). */
  readonly act?: AccessTokenClaims['act']
  /** Bind the token to the key that `dpop()` proves. @defaultValue false */
  readonly bound?: boolean
  /** Any other claim, or another value for one of the above; `undefined` leaves a claim out. */
  readonly claims?: Readonly<Record<string, unknown>>
  /** Any header member, or another value for one; `undefined` leaves it out. */
  readonly header?: Readonly<Record<string, unknown>>
}

/** What can be revoked: every token that fits all of what is said. */
export interface TestRevocation {
  readonly sub?: string
  readonly jti?: string
  readonly sid?: string
  /** The family, claim `grant_id`. */
  readonly grantId?: string
  readonly clientId?: string
  /** Of the key that tokens are signed with: those that are still to come are dead, too. */
  readonly kid?: string
}

/** How guards are told of a revocation. Everything has a default. */
export interface TestRevocationEvent {
  /** Of a user (`sub` alone) whose password or roles changed, the others. @defaultValue `'session-revoked'` */
  readonly event?: 'session-revoked' | 'credential-change' | 'token-claims-change'
  /**
   * Of a user, or of a client (`clientId` alone), whose own tokens it counts: the lowest `token_version` that is still
   * good, which tokens minted later have. `false`: there are no versions, all tokens issued until now are dead.
   * @defaultValue for a user one more than there ever was, for a client `false`
   */
  readonly tokenVersion?: number | false
  /** How long new guards are told of it: seconds, or `'90s'`, `'15m'`, `'2h'`, `'1d'`. @defaultValue `'1d'` */
  readonly expiresIn?: number | string
}

/**
 * Parts of the issuer that can be out of order: `jwks`, its keys (and discovery); `stale-jwks`, the same as now whatever
 * keys come, as if a cache in between served them; `events`, the news of revocations, introspection included; `feed`,
 * the feed alone, so that guards have to ask about each token; `verification`, requests for verification events. A guard
 * goes on with what it knows until that is older than `maxStaleness`: `idp.advance('61s')`.
 */
export type Outage = 'jwks' | 'stale-jwks' | 'events' | 'feed' | 'verification'

/** What `createTestIssuer` makes. */
export interface TestIssuer {
  readonly issuer: string
  readonly audience: string
  /** For `createGuard`: this issuer, its audience, its clock, its keys, its revocations. */
  readonly options: Pick<GuardOptions, 'issuer' | 'audience' | 'fetch' | 'now' | 'algorithms'> & {
    readonly revocation: RevocationFeedOptions
  }
  /** Answers for the issuer's documents, keys and feed of revocations, as the issuer itself would over HTTP. */
  readonly fetch: Fetch
  /** Makes an access token (RFC 9068). */
  readonly mint: (options?: MintOptions) => Promise<string>
  /** Makes a DPoP proof (RFC 9449 §4.2) with the key that bound tokens are bound to. */
  readonly dpop: (
    token: string,
    method: string,
    url: string,
    claims?: Readonly<Record<string, unknown>>,
  ) => Promise<string>
  /**
   * From now on, tokens issued until now that fit are revoked. Resolves when every guard that listens has heard of it;
   * during an outage of the feed, or when streams are paused, at once. A guard that cannot take it in is waited for, for
   * 5 seconds.
   */
  readonly revoke: (what: TestRevocation, how?: TestRevocationEvent) => Promise<void>
  /**
   * Pauses, disables or enables all streams of events there are, as an administrator of the issuer would; a guard that
   * hears of it, or hears nothing for too long, opens another. `silently`: without the event that says so.
   */
  readonly setStreams: (status: StreamStatus, options?: { readonly silently?: boolean }) => void
  /** Forgets all streams of events there are: guards find theirs gone. */
  readonly loseStreams: () => void
  /** Signs with a new key. The old one stays published, unless `withdraw` takes it away. */
  readonly rotateKeys: (options?: { readonly withdraw?: boolean }) => void
  /** Breaks a part of the issuer. @returns mends it again */
  readonly outage: (part: Outage) => () => void
  /** Moves the clock of the issuer and of its guards on: seconds, or `'15m'`. */
  readonly advance: (time: number | string) => void
  /** Milliseconds since 1970, on that clock. */
  readonly now: () => number
  /** How often the keys were asked for. */
  readonly keyRequests: number
  /** The key that tokens are signed with now. */
  readonly kid: string
}

interface MintedToken {
  readonly token: string
  readonly claims: Readonly<Record<string, unknown>>
  readonly kid: string
}

interface SigningKey {
  readonly kid: string
  readonly privateKey: KeyObject
  readonly publicKey: KeyObject
}

/**
 * Makes an issuer for tests.
 *
 * @example
 * ```ts
 * import { createGuard } from '@latchkey/guard'
 * import { createTestIssuer } from '@latchkey/guard/testing'
 *
 * const idp = await createTestIssuer()
 * const guard = createGuard({ ...idp.options })
 * const token = await idp.mint({ sub: 'alice', roles: ['admin'], scope: 'models:read' })
 * const request = new Request('https://api.test/models', { headers: { authorization: `Bearer ${token}` } })
 * const auth = await guard.authenticate(request)
 * ```
 */
export async function createTestIssuer(options: TestIssuerOptions = {}): Promise<TestIssuer> {
  const { issuer = 'https://issuer.test', audience = 'https://api.test', algorithm = 'RS256' } = options
  const holder = signingKey('ES256')
  const holderJwk = publicJwk(holder.publicKey)
  const outages = new Set<Outage>()
  const minted: MintedToken[] = []
  const revoked = new Set<unknown>()
  const revokedKeys = new Set<unknown>()
  /** Lowest `token_version` that counts, by `sub`; who was never revoked has none. */
  const versions = new Map<string, number>()
  /** Seconds since 1970, by client and by `sub`: tokens issued until then are dead. */
  const revokedClients = new Map<string, number>()
  const revokedUsers = new Map<string, number>()
  let signing = signingKey(algorithm)
  let published = [signing]
  let offset = 0
  let keyRequests = 0

  const now = (): number => Date.now() + offset

  /** What a cache in between serves. */
  let cached: SigningKey[] | undefined
  const jwks = (): Jwks => ({
    keys: (cached ?? published).map((key) => ({
      ...publicJwk(key.publicKey),
      kid: key.kid,
      alg: algorithm,
      use: 'sig',
    })),
  })

  const transmitter = new MemoryTransmitter({
    issuer,
    now,
    sign: (header, claims) =>
      jws(signing.privateKey, algorithm, { alg: algorithm, kid: signing.kid, ...header }, claims),
    isActive: (token) => {
      const known = minted.find((one) => one.token === token)
      if (known === undefined || revoked.has(known.claims['jti']) || revokedKeys.has(known.kid)) return false
      return Number(known.claims['exp']) > now() / 1000
    },
  })

  const fetch: Fetch = async (address, init) => {
    const answer = transmitter.answer(address, init)
    if (answer !== undefined) return answer
    if (outages.has('jwks')) throw new TypeError('the issuer is out of order')
    if (address === `${issuer}/.well-known/openid-configuration`) {
      return Response.json({ issuer, jwks_uri: `${issuer}/jwks`, ...transmitter.metadata })
    }
    const { origin, pathname } = new URL(issuer)
    if (address === `${origin}/.well-known/ssf-configuration${pathname.replace(/\/$/, '')}`) {
      return Response.json(transmitter.configuration)
    }
    if (address !== `${issuer}/jwks`) return new Response('not found', { status: 404 })
    keyRequests += 1
    return Response.json(jwks(), { headers: { 'cache-control': 'max-age=600' } })
  }

  return {
    issuer,
    audience,
    fetch,
    now,
    get keyRequests() {
      return keyRequests
    },
    get kid() {
      return signing.kid
    },
    options: {
      // No cooldown: a test that rotates twice in a second must not wait for it.
      issuer: { issuer, keyCaching: { cooldownSeconds: 0 } },
      audience,
      algorithms: [algorithm],
      fetch,
      now,
      revocation: transmitter.client,
    },
    async mint(mint = {}) {
      const { sub = 'alice', clientId = 'test-client', scope, roles, groups, act, expiresIn = '15m', bound } = mint
      const second = Math.floor(now() / 1000)
      const lifetime = seconds(expiresIn)
      // A token of the very second in which its client was revoked would be dead: it waits for the next.
      const issuedAt = Math.max(second, 1 + (revokedClients.get(clientId) ?? 0), 1 + (revokedUsers.get(sub) ?? 0))
      const claims = {
        iss: issuer,
        sub,
        aud: mint.audience ?? audience,
        client_id: clientId,
        // A token that has expired was issued before it did.
        iat: lifetime > 0 ? issuedAt : second + lifetime - 900,
        exp: second + lifetime,
        jti: randomUUID(),
        scope: Array.isArray(scope) ? scope.join(' ') : scope,
        roles,
        groups,
        act,
        token_version: versions.get(sub),
        cnf: bound === true ? { jkt: thumbprint(holderJwk) } : undefined,
        ...mint.claims,
      }
      const header = { alg: algorithm, typ: 'at+jwt', kid: signing.kid, ...mint.header }
      const token = jws(signing.privateKey, algorithm, header, claims)
      minted.push({ token, claims, kid: signing.kid })
      return token
    },
    async dpop(token, method, url, claims = {}) {
      const { origin, pathname } = new URL(url)
      return jws(
        holder.privateKey,
        'ES256',
        { alg: 'ES256', typ: 'dpop+jwt', jwk: holderJwk },
        {
          jti: randomUUID(),
          htm: method,
          htu: origin + pathname,
          iat: Math.floor(now() / 1000),
          ath: hash('sha256', token, 'base64url'),
          ...claims,
        },
      )
    },
    async revoke(what, { event: type = 'session-revoked', tokenVersion, expiresIn = '1d' } = {}) {
      const said = Object.entries(what)
        .filter(([, value]) => value !== undefined)
        .map(([name]) => name)
      if (said.length === 0) throw new TypeError('Revoke what? Say sub, jti, …')
      const { sub = '', sid, grantId, clientId = '', kid, jti } = what
      const isOnly = (...names: string[]): boolean => said.every((name) => names.includes(name))
      if (type !== 'session-revoked' && !isOnly('sub')) throw new TypeError(`${type} is about a sub alone`)
      if (tokenVersion !== undefined && !isOnly('sub') && !isOnly('clientId')) {
        throw new TypeError('tokenVersion is of a sub alone, or of a clientId alone')
      }
      const fitting = minted.filter((token) => fits(what, token))
      const send = (subject: object, more: object = {}): Promise<void> =>
        transmitter.revoke(subject, { type, more, expiresInSeconds: seconds(expiresIn) })
      const kill = (tokens: readonly MintedToken[]): void => {
        for (const { claims } of tokens) revoked.add(claims['jti'])
      }
      const isBelow = (version: number, { claims }: MintedToken): boolean =>
        Number(claims['token_version'] ?? -1) < version
      if (isOnly('sub')) {
        const subject = { format: 'iss_sub', iss: issuer, sub }
        if (tokenVersion === false) {
          revokedUsers.set(sub, Math.floor(now() / 1000))
          kill(fitting)
          return send(subject, membersOf(type))
        }
        const versionsSoFar = fitting.map(({ claims }) => Number(claims['token_version'] ?? 0))
        const version = tokenVersion ?? 1 + Math.max(versions.get(sub) ?? 0, ...versionsSoFar)
        versions.set(sub, version)
        kill(fitting.filter((token) => isBelow(version, token)))
        return send(subject, { token_version: version, ...membersOf(type, version) })
      }
      if (isOnly('clientId')) {
        revokedClients.set(clientId, Math.floor(now() / 1000))
        const subject = { format: 'complex', application: { format: 'opaque', id: clientId } }
        if (tokenVersion === undefined || tokenVersion === false) {
          kill(fitting)
          return send(subject)
        }
        versions.set(clientId, tokenVersion)
        kill(fitting.filter((token) => token.claims['sub'] !== clientId || isBelow(tokenVersion, token)))
        return send(subject, { token_version: tokenVersion })
      }
      kill(fitting)
      if (sid !== undefined && isOnly('sid', 'sub')) {
        const user = what.sub === undefined ? {} : { user: { format: 'iss_sub', iss: issuer, sub } }
        return send({ format: 'complex', session: { format: 'opaque', id: sid }, ...user })
      }
      if (isOnly('grantId')) return send({ format: 'complex', grant: { format: 'opaque', id: grantId } })
      if (isOnly('jti')) return send({ format: 'jwt_id', iss: issuer, jti })
      if (isOnly('kid')) {
        revokedKeys.add(kid)
        return send({ format: 'complex', key: { format: 'opaque', id: kid } })
      }
      // There is no one subject for what fits several: each token by itself.
      await Promise.all(fitting.map(({ claims }) => send({ format: 'jwt_id', iss: issuer, jti: claims['jti'] })))
    },
    setStreams(status, { silently = false } = {}) {
      transmitter.setStatus(status, !silently)
    },
    loseStreams() {
      transmitter.loseStreams()
    },
    rotateKeys({ withdraw = false } = {}) {
      signing = signingKey(algorithm)
      published = withdraw ? [signing] : [signing, ...published]
    },
    outage(part) {
      const tell = (): void =>
        transmitter.setOutage({
          feed: outages.has('events') || outages.has('feed'),
          introspection: outages.has('events'),
          verification: outages.has('verification'),
        })
      outages.add(part)
      if (part === 'stale-jwks') cached = published
      tell()
      return () => {
        outages.delete(part)
        if (part === 'stale-jwks') cached = undefined
        tell()
      }
    },
    advance(time) {
      offset += seconds(time) * 1000
      transmitter.elapse()
    },
  }
}

/** What CAEP 1.0 §3.2 and §3.3 ask of an event beside its time. */
function membersOf(type: NonNullable<TestRevocationEvent['event']>, version?: number): object {
  if (type === 'credential-change') return { credential_type: 'password', change_type: 'update' }
  return type === 'token-claims-change' ? { claims: { token_version: version } } : {}
}

function fits(what: TestRevocation, { claims, kid }: MintedToken): boolean {
  const pairs = [
    [what.sub, claims['sub']],
    [what.jti, claims['jti']],
    [what.sid, claims['sid']],
    [what.grantId, claims['grant_id']],
    [what.clientId, claims['client_id']],
    [what.kid, kid],
  ]
  return pairs.every(([wanted, claimed]) => wanted === undefined || wanted === claimed)
}

function signingKey(algorithm: TestAlgorithm): SigningKey {
  const pair =
    algorithm === 'ES256'
      ? generateKeyPairSync('ec', { namedCurve: 'P-256' })
      : algorithm === 'EdDSA'
        ? generateKeyPairSync('ed25519')
        : generateKeyPairSync('rsa', { modulusLength: 2048 })
  return { kid: randomUUID(), ...pair }
}

function publicJwk(key: KeyObject): Record<string, unknown> {
  return { ...key.export({ format: 'jwk' }) }
}

/** RFC 7638 for the one kind of key that proofs are made with here. */
function thumbprint({ crv, kty, x, y }: Record<string, unknown>): string {
  return hash('sha256', JSON.stringify({ crv, kty, x, y }), 'base64url')
}

function jws(key: KeyObject, algorithm: TestAlgorithm, header: object, claims: object): string {
  const signed = [header, claims].map((part) => Buffer.from(JSON.stringify(part)).toString('base64url')).join('.')
  const data = Buffer.from(signed)
  const signature =
    algorithm === 'EdDSA'
      ? sign(null, data, key)
      : algorithm === 'ES256'
        ? sign('sha256', data, { key, dsaEncoding: 'ieee-p1363' })
        : algorithm === 'PS256'
          ? sign('sha256', data, { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 32 })
          : sign('sha256', data, key)
  return `${signed}.${signature.toString('base64url')}`
}

const UNITS: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 86_400 }

function seconds(time: number | string): number {
  if (typeof time === 'number') return time
  const [, amount, unit] = /^(-?\d+)([smhd])$/.exec(time) ?? []
  const factor = UNITS[unit ?? '']
  if (factor === undefined) throw new TypeError(`${time} is no time: say '90s', '15m', '2h' or '1d'`)
  return Number(amount) * factor
}
