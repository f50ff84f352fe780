/**
 * Is this token good here, now? The flow, in the order it runs: size, then (for a token not seen before) form, header,
 * issuer, key, signature, claims, caller; then, for every token every time, its times and its revocation. Rules are
 * those of RFC 9068 §4 and RFC 8725 §3. Where the token was found is `request.ts`, whether its sender may use it
 * (proof of possession) is `dpop.ts`, which keys count is `issuer.ts`.
 *
 * A token seen before is known by the SHA-256 of the whole of it (a signature alone would let other claims ride on it),
 * and costs that hash, a look-up and a few comparisons.
 */
import { hash } from 'node:crypto'
import { callerOf } from './caller.ts'
import type { AccessTokenClaims, Caller } from './caller.ts'
import { decodeSegment, readCompactJws, REFUSED_HEADER_MEMBERS } from './compact-jws.ts'
import { GuardError, invalidRequest, invalidToken, unavailable } from './errors.ts'
import type { Issuer } from './issuer.ts'
import type { RevocationCheck, RevocationVerdict } from './revocation/revocation-check.ts'
import { parseStrictObject } from './strict-json.ts'
import { isAlgorithm } from './verification-key.ts'
import type { Algorithm, VerificationKey } from './verification-key.ts'

/** What a token must be like; see `GuardOptions` for the meaning and the defaults. */
export interface AccessTokenRules {
  readonly audiences: ReadonlySet<string>
  readonly algorithms: ReadonlySet<Algorithm>
  /** Lower case, without `application/`. */
  readonly types: ReadonlySet<string>
  readonly requiredClaims: readonly string[]
  readonly clockToleranceSeconds: number
  readonly maxLifetimeSeconds: number
  readonly maxTokenBytes: number
  /** How many verified tokens are remembered; 0 turns that off. */
  readonly cacheEntries: number
}

/** A good token. All of it is frozen, and shared by all requests that carry the same token. */
export interface VerifiedToken extends Caller {
  readonly claims: AccessTokenClaims
  /** RFC 7638 thumbprint of the key the token is bound to (RFC 9449 §6). */
  readonly boundTo: string | undefined
}

interface RememberedToken extends VerifiedToken {
  readonly issuer: Issuer
  readonly key: VerificationKey
  /** The revocation check's version when this token was last found active. */
  checkedAtVersion: number | undefined
}

interface TokenHeader {
  readonly algorithm: Algorithm
  readonly kid: string | undefined
}

const MAX_HEADER_LENGTH = 4096
const MAX_REMEMBERED_HEADERS = 64
const MAX_NAME_LENGTH = 1024
/** The year 9999: beyond it a time is an accident or a trick (`1e999` is read as Infinity). */
const LAST_SECOND = 253_402_300_799
export class AccessTokenVerifier {
  cacheHits = 0
  cacheMisses = 0
  readonly #rules: AccessTokenRules
  readonly #issuers: ReadonlyMap<string, Issuer>
  readonly #revocation: RevocationCheck | undefined
  readonly #now: () => number
  readonly #headers = new Map<string, TokenHeader>()
  // Two generations: when the young one is full it becomes the old one, and what nobody used since is forgotten.
  #young = new Map<string, RememberedToken>()
  #old = new Map<string, RememberedToken>()

  constructor(
    rules: AccessTokenRules,
    issuers: ReadonlyMap<string, Issuer>,
    revocation: RevocationCheck | undefined,
    now: () => number,
  ) {
    this.#rules = rules
    this.#issuers = issuers
    this.#revocation = revocation
    this.#now = now
  }

  /**
   * @param token - as it stood in the request
   * @returns at once for a token seen before, unless its revocation has to be looked up
   * @throws GuardError 400 when it is too large, 401 when it is not good here, 503 when that cannot be known
   */
  verify(token: string): VerifiedToken | Promise<VerifiedToken> {
    if (token.length > this.#rules.maxTokenBytes) throw invalidRequest('The access token is too large.')
    const digest = hash('sha256', token, 'base64')
    const now = this.#now()
    const known = this.#recall(digest)
    if (known === undefined || known.key.withdrawn || !known.issuer.vouches(now)) {
      this.cacheMisses += 1
      return this.#meet(token, digest, now)
    }
    this.cacheHits += 1
    this.#assertTimes(known.claims, now / 1000)
    if (this.#revocation === undefined) return known
    const version = this.#revocation.version?.()
    if (version !== undefined && version === known.checkedAtVersion) return known
    return this.#assertNotRevoked(known, token, this.#revocation)
  }

  /** A token that was not seen before, or whose key is gone since. */
  async #meet(token: string, digest: string, now: number): Promise<VerifiedToken> {
    const verified = await this.#verifyAnew(token)
    this.#assertTimes(verified.claims, now / 1000)
    const judgement = this.#revocation && this.#assertNotRevoked(verified, token, this.#revocation)
    if (judgement instanceof Promise) await judgement
    this.#remember(digest, verified)
    return verified
  }

  async #verifyAnew(token: string): Promise<RememberedToken> {
    const { head, body, seal, signed } = orMalformed('token', () => readCompactJws(token))
    const header = this.#readHeader(head)
    const claims = parse(body, 'claims')
    // The issuer is not believed yet: its name only picks which of the configured issuers' keys must fit.
    const { iss } = claims
    const issuer = typeof iss === 'string' ? this.#issuers.get(iss) : undefined
    if (issuer === undefined) throw invalidToken('issuer', `iss ${JSON.stringify(iss)?.slice(0, 200)}`)
    const found = issuer.keyFor(header.kid, header.algorithm)
    const key = found instanceof Promise ? await found : found
    if (!key.verifies(header.algorithm, signed, seal)) throw invalidToken('signature')
    this.#assertClaims(claims)
    const boundTo = bindingOf(claims)
    const { subject, scopes } = callerOf(claims, issuer.claimNames, issuer.subjectPrefix)
    return { claims, subject, scopes, boundTo, issuer, key, checkedAtVersion: undefined }
  }

  #readHeader(segment: string): TokenHeader {
    const known = this.#headers.get(segment)
    if (known !== undefined) return known
    if (segment.length > MAX_HEADER_LENGTH) throw invalidToken('malformed', 'header too large')
    const header = parse(segment, 'header')
    const { alg, typ, kid } = header
    if (!isAlgorithm(alg) || !this.#rules.algorithms.has(alg)) {
      throw invalidToken('algorithm', `alg ${JSON.stringify(alg)?.slice(0, 100)}`)
    }
    // RFC 9068 §4: an ID token or a logout token from the same issuer is no access token.
    const type = typeof typ === 'string' ? typ.toLowerCase().replace(/^application\//, '') : undefined
    if (type === undefined || !this.#rules.types.has(type)) {
      throw invalidToken('type', `typ ${JSON.stringify(typ)?.slice(0, 100)}`)
    }
    if (kid !== undefined && (typeof kid !== 'string' || kid.length > MAX_NAME_LENGTH)) throw invalidToken('kid')
    for (const member of [...REFUSED_HEADER_MEMBERS, 'jwk']) {
      if (member in header) throw invalidToken('header', `has ${member}`)
    }
    if (this.#headers.size >= MAX_REMEMBERED_HEADERS) this.#headers.clear()
    const read: TokenHeader = { algorithm: alg, kid }
    this.#headers.set(segment, read)
    return read
  }

  /** Everything about the claims that does not change with time. */
  #assertClaims(claims: Readonly<Record<string, unknown>>): asserts claims is AccessTokenClaims {
    const { aud, sub, exp, iat, nbf, jti, client_id: clientId, auth_time: signedInAt } = claims
    for (const name of this.#rules.requiredClaims) {
      if (!Object.hasOwn(claims, name)) throw invalidToken('claim_missing', name)
    }
    // RFC 9068 §4: the audience must be us, whole and exact; RFC 7519 §4.1.3 allows one string or a list.
    const audiences: readonly unknown[] = Array.isArray(aud) ? aud : [aud]
    if (!audiences.every((one) => typeof one === 'string')) throw invalidToken('audience', 'not strings')
    if (!audiences.some((one) => this.#rules.audiences.has(one))) {
      throw invalidToken('audience', `aud ${JSON.stringify(aud).slice(0, 500)}`)
    }
    if (typeof sub !== 'string' || sub === '' || sub.length > MAX_NAME_LENGTH) throw invalidToken('claim_shape', 'sub')
    if (!isTime(exp) || !isTime(iat)) throw invalidToken('claim_shape', 'exp or iat')
    for (const time of [nbf, signedInAt]) {
      if (time !== undefined && !isTime(time)) throw invalidToken('claim_shape', 'nbf or auth_time')
    }
    if (exp <= iat || exp - iat > this.#rules.maxLifetimeSeconds) {
      throw invalidToken('lifetime', `${exp - iat} s`)
    }
    if (jti !== undefined && (typeof jti !== 'string' || jti === '')) throw invalidToken('claim_shape', 'jti')
    if (clientId !== undefined && (typeof clientId !== 'string' || clientId === '')) {
      throw invalidToken('claim_shape', 'client_id')
    }
  }

  #assertTimes({ exp, iat, nbf }: AccessTokenClaims, now: number): void {
    const tolerance = this.#rules.clockToleranceSeconds
    if (now >= exp + tolerance) throw invalidToken('expired', `exp ${exp}, now ${now}`)
    if (iat > now + tolerance) throw invalidToken('not_yet_valid', `iat ${iat}, now ${now}`)
    if (nbf !== undefined && nbf > now + tolerance) throw invalidToken('not_yet_valid', `nbf ${nbf}, now ${now}`)
  }

  /** At once when the check answers at once, as a table in memory does. */
  #assertNotRevoked(
    known: RememberedToken,
    token: string,
    revocation: RevocationCheck,
  ): VerifiedToken | Promise<VerifiedToken> {
    // Read before the look-up: what arrives in between must be looked up again.
    const version = revocation.version?.()
    let verdict
    try {
      verdict = revocation.check(known.claims, { kid: known.key.kid, token })
    } catch (error) {
      throw uncheckable(error)
    }
    if (typeof verdict === 'string') return judged(known, verdict, version)
    return Promise.resolve(verdict).then(
      (answer) => judged(known, answer, version),
      (error: unknown) => {
        throw uncheckable(error)
      },
    )
  }

  #recall(digest: string): RememberedToken | undefined {
    const young = this.#young.get(digest)
    if (young !== undefined) return young
    const old = this.#old.get(digest)
    if (old !== undefined) this.#remember(digest, old)
    return old
  }

  #remember(digest: string, token: RememberedToken): void {
    const half = this.#rules.cacheEntries / 2
    if (half < 1) return
    if (this.#young.size >= half) {
      this.#old = this.#young
      this.#young = new Map()
    }
    this.#young.set(digest, token)
  }
}

/** @throws GuardError 401 for a token that is revoked, 503 for any answer that is none */
function judged(token: RememberedToken, verdict: RevocationVerdict, version: number | undefined): VerifiedToken {
  if (verdict === 'revoked') throw invalidToken('revoked')
  if (verdict !== 'active') throw unavailable('revocation', 1, 'not known whether the token was revoked')
  token.checkedAtVersion = version
  return token
}

function uncheckable(error: unknown): GuardError {
  return error instanceof GuardError ? error : unavailable('revocation', 1, 'the check failed', error)
}

/**
 * RFC 7800: a token with `cnf` is worth nothing without the proof it names. Only a DPoP key (RFC 9449 §6.1) can be
 * proved here, so any other binding is refused rather than overlooked.
 */
function bindingOf({ cnf }: AccessTokenClaims): string | undefined {
  if (cnf === undefined) return undefined
  const { jkt, ...others } = typeof cnf === 'object' && cnf !== null ? cnf : { jkt: undefined }
  if (typeof jkt !== 'string' || jkt === '' || Object.keys(others).length > 0) {
    throw invalidToken('binding', 'cnf of a kind that cannot be proved here')
  }
  return jkt
}

function isTime(value: unknown): value is number {
  return typeof value === 'number' && value >= 0 && value <= LAST_SECOND
}

/** @throws GuardError 401 */
function parse(segment: string, what: string): Readonly<Record<string, unknown>> {
  return orMalformed(what, () => parseStrictObject(decodeSegment(segment)))
}

/** @throws GuardError 401 */
function orMalformed<T>(what: string, read: () => T): T {
  try {
    return read()
  } catch (error) {
    throw invalidToken('malformed', `${what}: ${error instanceof Error ? error.message : String(error)}`)
  }
}
