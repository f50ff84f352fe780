/**
 * What a revocation is called where others read it: the claims of a security event token (RFC 8417) as SSF 1.0 §4
 * profiles it, the event of CAEP 1.0 in it, and the subject. docs/signals.md holds the same as a table.
 */
import type { JWTPayload } from 'jose'
import { sql } from 'kysely'

/** The short names of the events that there are; a URI is made of each. */
export const eventTypes = ['session-revoked', 'credential-change', 'token-claims-change'] as const
export type EventType = (typeof eventTypes)[number]

/** CAEP 1.0 §3 */
export function eventUri(type: EventType): string {
  return `https://schemas.openid.net/secevent/caep/event-type/${type}`
}

/** Which event tells of a row of `revocations AS r`: the one place that decides it. */
export const eventTypeOfRow = sql<EventType>`(
  CASE
    WHEN r.kind = 'user' AND r.cause = 'password-change' THEN 'credential-change'
    WHEN r.kind = 'user' AND r.cause = 'claims-change' THEN 'token-claims-change'
    ELSE 'session-revoked'
  END)`

/** A row of revocations, with its event. */
export interface DescribedRevocation {
  readonly kind: 'token' | 'grant' | 'session' | 'user' | 'client' | 'key'
  readonly subject: string
  readonly token_version: number | null
  readonly reason: string
  readonly initiated_by: 'admin' | 'user' | 'policy' | 'system'
  readonly request_id: string | null
  readonly revoked_at: Date
  readonly expires_at: Date
  readonly event_type: EventType
}

/** What all tokens of the feed have in common. */
export interface TokenFrame {
  readonly issuer: string
  /** the feed's own resource, the same for every receiver: an event is signed once, however many are told */
  readonly audience: string
  readonly jti: string
}

/** `typ` of every token here (SSF 1.0 §4.1.1): none can be taken for an access or ID token. */
export const tokenType = 'secevent+jwt'

/** The claims of the token that tells of a revocation. */
export function describeRevocation(row: DescribedRevocation, frame: TokenFrame): JWTPayload {
  return {
    ...claimsOf(frame, subjectOf(row, frame.issuer)),
    ...(row.request_id === null ? {} : { txn: row.request_id }),
    events: {
      [eventUri(row.event_type)]: {
        event_timestamp: timestampOf(row),
        reason_admin: { en: row.reason },
        initiating_entity: row.initiated_by,
        // Not of CAEP: by then every token that this speaks of has expired, and it can be forgotten.
        expires_at: Math.ceil(row.expires_at.getTime() / 1_000),
        // Nor is this: it tells tokens of one second apart.
        ...(row.token_version === null ? {} : { token_version: row.token_version }),
        ...detailsOf(row),
      },
    },
  }
}

/** The claims of the token that answers a request for verification (SSF 1.0 §8.1.4.1). */
export function describeVerification(streamId: string, state: string | null, frame: TokenFrame): JWTPayload {
  return aboutStream(streamId, 'verification', state === null ? {} : { state }, frame)
}

/** The claims of the token that says that a stream was stopped, or goes on (SSF 1.0 §8.1.5). */
export function describeStreamUpdate(
  streamId: string,
  { status, reason }: { readonly status: string; readonly reason: string | null },
  frame: TokenFrame,
): JWTPayload {
  return aboutStream(streamId, 'stream-updated', { status, ...(reason === null ? {} : { reason }) }, frame)
}

function aboutStream(streamId: string, event: string, payload: object, frame: TokenFrame): JWTPayload {
  return {
    ...claimsOf(frame, { format: 'opaque', id: streamId }),
    events: { [`https://schemas.openid.net/secevent/ssf/event-type/${event}`]: payload },
  }
}

/** No `sub` and no `exp` (SSF 1.0 §4.1.2, §4.1.7). */
function claimsOf({ issuer, audience, jti }: TokenFrame, subject: object): JWTPayload {
  return { iss: issuer, jti, iat: Math.floor(Date.now() / 1_000), aud: audience, sub_id: subject }
}

/** RFC 9493; `complex` and `jwt_id` are of SSF 1.0 §3. */
function subjectOf({ kind, subject }: DescribedRevocation, issuer: string): object {
  if (kind === 'token') return { format: 'jwt_id', iss: issuer, jti: subject }
  if (kind === 'user') return { format: 'iss_sub', iss: issuer, sub: subject }
  return { format: 'complex', [memberOf[kind]]: { format: 'opaque', id: subject } }
}

/** SSF 1.0 §3.3 names the first two, and lets there be others. */
const memberOf = { session: 'session', client: 'application', grant: 'grant', key: 'key' } as const

/** The members of complex subjects here: each is all that its subject has. */
export const complexMembers: readonly string[] = Object.values(memberOf)

/**
 * In whole seconds. A client's tokens are dead when they were issued until then, and `iat` counts whole seconds too, so
 * it is rounded up. Those of its own are told apart by their `token_version`.
 */
function timestampOf({ kind, revoked_at }: DescribedRevocation): number {
  const seconds = revoked_at.getTime() / 1_000
  return kind === 'client' ? Math.ceil(seconds) : Math.floor(seconds)
}

/** What CAEP demands of each event. */
function detailsOf({ event_type, token_version }: DescribedRevocation): object {
  if (event_type === 'credential-change') return { credential_type: 'password', change_type: 'update' }
  // The claim that every token of this person has, and that has changed in any case.
  if (event_type === 'token-claims-change') return { claims: { token_version } }
  return {}
}
