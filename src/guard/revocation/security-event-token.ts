/**
 * Security event tokens (RFC 8417), as the Shared Signals Framework 1.0 profiles them: is this one from our issuer and
 * for us, and what does it say is revoked? Nothing is believed of a token that is not signed with a key of the issuer.
 * The forms of subjects are those of RFC 9493; the README lists what each means.
 */
import type { Algorithm, VerificationKey } from '../verification-key.ts'
import { isAlgorithm } from '../verification-key.ts'
import { decodeSegment, readCompactJws, REFUSED_HEADER_MEMBERS } from '../compact-jws.ts'
import { parseStrictObject } from '../strict-json.ts'
import type { RevokedEntry } from './revocation-table.ts'

/** Why a token was not taken, in the words of RFC 8935 §2.4, which RFC 8936 §2.6 uses too. */
export type SetErrorCode =
  | 'invalid_request'
  | 'invalid_key'
  | 'invalid_issuer'
  | 'invalid_audience'
  | 'authentication_failed'

/** A token that was not taken; the transmitter is told so. */
export class SetError extends Error {
  override readonly name = 'SetError'
  readonly code: SetErrorCode

  constructor(code: SetErrorCode, message: string) {
    super(message)
    this.code = code
  }

  /** Whether another key may tell: what the transmitter sent need not be wrong, it cannot be verified yet. */
  get isUnverified(): boolean {
    return this.code === 'invalid_key' || this.code === 'authentication_failed'
  }
}

/** Whose tokens are taken, and for whom. */
export interface SetRules {
  readonly issuer: string
  readonly audiences: ReadonlySet<string>
  readonly algorithms: ReadonlySet<Algorithm>
  /** Rejects with a `SetError` when there is no such key, with anything else when that cannot be known right now. */
  readonly keyFor: (kid: string | undefined, algorithm: Algorithm) => VerificationKey | Promise<VerificationKey>
  /** Longest life of an access token, in seconds: how long an entry is kept that does not say how long. */
  readonly maxLifetimeSeconds: number
}

/** What a token says, as far as it concerns a guard. */
export interface SecurityEvents {
  readonly jti: string
  /** Seconds since 1970, on the issuer's clock: when it happened. */
  readonly happenedAt: number
  readonly revoked: readonly RevokedEntry[]
  /** Events, or subjects, of kinds that mean nothing here. */
  readonly ignored: number
  /** `state` of a verification event (SSF 1.0 §8.1.4). */
  readonly verification: string | undefined
  /** `status` of a stream-updated event (SSF 1.0 §8.1.5): unless `enabled`, nothing more will come. */
  readonly streamStatus: string | undefined
}

const CAEP = 'https://schemas.openid.net/secevent/caep/event-type/'
const SSF = 'https://schemas.openid.net/secevent/ssf/event-type/'
const SESSION_REVOKED = `${CAEP}session-revoked`
const VERIFICATION = `${SSF}verification`
const STREAM_UPDATED = `${SSF}stream-updated`
/** Events about a person (CAEP 1.0 §3) after which their tokens are stale. */
const ABOUT_USERS: ReadonlySet<string> = new Set([
  SESSION_REVOKED,
  `${CAEP}token-claims-change`,
  `${CAEP}credential-change`,
])

/** What a guard asks a transmitter for; verification needs no asking (SSF 1.0 §8.1.4). */
export const REQUESTED_EVENTS: readonly string[] = [...ABOUT_USERS]

const MAX_SET_LENGTH = 16_384
const FOR_EVER = 0xffff_ffff

/**
 * @param token - as it came
 * @throws SetError when it is not to be taken; whatever `keyFor` rejects with when that cannot be known now
 */
export async function readSecurityEventToken(token: unknown, rules: SetRules): Promise<SecurityEvents> {
  if (typeof token !== 'string' || token.length > MAX_SET_LENGTH) throw malformed('no token, or too large')
  const { head, body, seal, signed } = orMalformed(() => readCompactJws(token))
  const header = orMalformed(() => parseStrictObject(decodeSegment(head)))
  const { alg, typ, kid } = header
  // RFC 8417 §2.3, RFC 8725 §3.11: without its type, an access token or an ID token would do as well.
  if (typeof typ !== 'string' || typ.toLowerCase().replace(/^application\//, '') !== 'secevent+jwt') {
    throw malformed('not of type secevent+jwt')
  }
  if (!isAlgorithm(alg)) throw malformed('alg is no signature')
  if (!rules.algorithms.has(alg)) throw new SetError('invalid_key', `${alg} is not accepted here`)
  if (kid !== undefined && typeof kid !== 'string') throw malformed('kid is no string')
  for (const member of [...REFUSED_HEADER_MEMBERS, 'jwk']) {
    if (member in header) throw malformed(`the header has ${member}`)
  }
  const claims = orMalformed(() => parseStrictObject(decodeSegment(body)))
  if (claims['iss'] !== rules.issuer) throw new SetError('invalid_issuer', 'iss is not the issuer of this stream')
  if (![claims['aud']].flat().some((one) => typeof one === 'string' && rules.audiences.has(one))) {
    throw new SetError('invalid_audience', 'aud is not the audience of this stream')
  }
  const key = await rules.keyFor(kid, alg)
  if (!key.verifies(alg, signed, seal)) {
    throw new SetError('authentication_failed', 'the signature does not fit')
  }
  return eventsOf(claims, rules)
}

function eventsOf(claims: Readonly<Record<string, unknown>>, rules: SetRules): SecurityEvents {
  const { jti, iat, events, sub_id: subject } = claims
  if (typeof jti !== 'string' || jti === '') throw malformed('no jti')
  if (!isObject(events)) throw malformed('no events')
  const revoked: RevokedEntry[] = []
  let happenedAt = seconds(iat) ?? 0
  let ignored = 0
  let verification: string | undefined
  let streamStatus: string | undefined
  for (const [type, event] of Object.entries(events)) {
    if (!isObject(event)) throw malformed('an event is no object')
    if (type === VERIFICATION) {
      verification = text(event['state'])
    } else if (type === STREAM_UPDATED) {
      streamStatus = text(event['status'])
    } else {
      // RFC 8417 §2.2: iat is when the token was made, which is never before what it tells of.
      happenedAt = seconds(event['event_timestamp']) ?? seconds(iat) ?? Number.NaN
      const entries = revokedBy(type, event, subject, happenedAt, rules)
      if (entries.length === 0) ignored += 1
      revoked.push(...entries)
    }
  }
  return { jti, happenedAt, revoked, ignored, verification, streamStatus }
}

function revokedBy(
  type: string,
  event: Readonly<Record<string, unknown>>,
  subject: unknown,
  happenedAt: number,
  { issuer, maxLifetimeSeconds }: SetRules,
): RevokedEntry[] {
  if (!isObject(subject) || !ABOUT_USERS.has(type)) return []
  // Neither says when: then there is nothing by which to tell old tokens from new ones.
  if (Number.isNaN(happenedAt)) throw malformed('neither event_timestamp nor iat')
  const until = seconds(event['expires_at']) ?? happenedAt + maxLifetimeSeconds
  const version = seconds(event['token_version'])
  if (version === undefined && event['token_version'] !== undefined) throw malformed('token_version is no number')

  const user = subject['format'] === 'complex' && isOnly(subject, 'user') ? subject['user'] : subject
  if (isObject(user) && user['format'] === 'iss_sub') {
    const id = text(user['sub'])
    if (id === undefined || user['iss'] !== issuer) return []
    if (version === undefined) return [{ kind: 'user', id, limit: happenedAt, expiresAt: until }]
    return [{ kind: 'version', id, limit: version, expiresAt: until }]
  }
  if (type !== SESSION_REVOKED) return []
  if (subject['format'] === 'jwt_id') {
    const id = text(subject['jti'])
    return id === undefined || subject['iss'] !== issuer ? [] : [{ kind: 'token', id, expiresAt: until }]
  }
  if (subject['format'] !== 'complex') return []
  // SSF 1.0 §3.3: one subject, described by one or more members. A session, a family and a key are named exactly by
  // their own member, whatever else is said of them.
  const session = opaque(subject['session'])
  if (session !== undefined) return [{ kind: 'session', id: session, expiresAt: until }]
  const grant = opaque(subject['grant'])
  if (grant !== undefined) return [{ kind: 'grant', id: grant, expiresAt: until }]
  const key = opaque(subject['key'])
  // Not even a token that is made now may count, so that it is no token's life that ends this entry.
  if (key !== undefined) return [{ kind: 'key', id: key, expiresAt: seconds(event['expires_at']) ?? FOR_EVER }]
  const client = opaque(subject['application'])
  // With a user beside it, it would be some of the client's tokens, and there is no entry for those.
  if (client === undefined || !isOnly(subject, 'application')) return []
  if (version === undefined) return [{ kind: 'client', id: client, limit: happenedAt, expiresAt: until }]
  return [
    { kind: 'client-version', id: client, limit: version, expiresAt: until },
    { kind: 'client-people', id: client, limit: happenedAt, expiresAt: until },
  ]
}

/** Whether a complex subject is described by that member alone. */
function isOnly(subject: Readonly<Record<string, unknown>>, member: string): boolean {
  return Object.keys(subject).every((name) => name === 'format' || name === member)
}

function opaque(value: unknown): string | undefined {
  return isObject(value) && value['format'] === 'opaque' ? text(value['id']) : undefined
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' && value !== '' ? value : undefined
}

function seconds(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0 ? value : undefined
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function malformed(message: string): SetError {
  return new SetError('invalid_request', message)
}

/** @throws SetError */
function orMalformed<T>(read: () => T): T {
  try {
    return read()
  } catch (error) {
    throw malformed(error instanceof Error ? error.message : String(error))
  }
}
