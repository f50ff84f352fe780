/**
 * oidc-provider's Adapter over the artifacts table: sessions, interactions, grants, codes and tokens. What is handed
 * out is never stored: rows are keyed by its SHA-256. Single use is one conditional UPDATE, since the provider checks
 * `consumed` and only later calls `consume()`, whose result it ignores. A session or grant is dead as soon as its
 * person is disabled or has signed out everywhere, whatever its own row says.
 */
import { createHash, createHmac, timingSafeEqual } from 'node:crypto'
import { decodeJwt } from 'jose'
import { sql, type RawBuilder } from 'kysely'
import { errors, type Adapter, type AdapterPayload } from 'oidc-provider'
import { writeAudit, type Actor } from '../audit/audit.ts'
import type { Db } from '../database/database.ts'
import type { SecretRing } from '../signing/secret-ring.ts'
import { clientMetadata, isPublicClient } from './client-metadata.ts'
import type { ClientDirectory, ClientEntry } from './client-directory.ts'
import { revokeFamily } from './families.ts'
import { whileSaving } from './session-lock.ts'
import { findTokenTransaction, requestDb, type TokenTransaction } from './token-transaction.ts'

export interface StoreSettings {
  readonly refreshReplayPublicSeconds: number
  readonly refreshReplayConfidentialSeconds: number
  readonly deviceFlow: boolean
}

export interface Store {
  readonly adapter: new (kind: string) => Adapter
  /** A client that may ask for something; a disabled one is an unknown one, at every endpoint. */
  findActiveClient(id: string): Promise<ClientEntry | undefined>
  /** One INSERT decides whether a proof or assertion was seen before (RFC 7523 §3, RFC 9449 §11.1). */
  isFirstUse(issuer: string, jti: string, expiresAtSeconds: number): Promise<boolean>
}

export interface StoreParts {
  readonly db: Db
  readonly directory: ClientDirectory
  readonly secretRing: SecretRing
  readonly settings: StoreSettings
}

export function openStore({ db, directory, secretRing, settings }: StoreParts): Store {
  /** The id of an artifact at rest. A Grant is no credential: its id stands in tokens as `grant_id`. */
  function artifactId(kind: string, value: string): string {
    if (kind === 'Grant') return value
    return (kind === 'DeviceCode' && openAlias(value)) || createHash('sha256').update(value).digest('base64url')
  }

  // A person types a device's user code; the device code, which only the device has, is stored as its hash. Between the
  // pages the row goes by an alias that nobody can make who merely reads the database.
  const sign = (secret: Buffer, id: string) =>
    createHmac('sha256', secret).update(`device code ${id}`).digest('base64url')
  const aliasOf = (id: string) => `~${id}.${sign(secretRing.current('devices'), id)}`
  function openAlias(value: string): string | undefined {
    const [, id = '', signature = ''] = /^~([\w-]{43})\.([\w-]{43})$/.exec(value) ?? []
    const isOurs = secretRing.all('devices').some((secret) => {
      const expected = Buffer.from(sign(secret, id))
      return expected.length === signature.length && timingSafeEqual(expected, Buffer.from(signature))
    })
    return isOurs ? id : undefined
  }

  class ArtifactStore implements Adapter {
    readonly #kind: string

    constructor(kind: string) {
      this.#kind = kind
    }

    async upsert(id: string, payload: AdapterPayload, expiresIn?: number): Promise<void> {
      const kind = this.#kind
      const stored = toJson(forStorage(kind, payload))
      const grantId = kind === 'Grant' ? id : (payload.grantId ?? null)
      const userId = payload.accountId ?? null
      const signInVersion = typeof payload['signInVersion'] === 'number' ? payload['signInVersion'] : null
      const clientId = clientOf(kind, payload)
      const rowId = artifactId(kind, id)
      const ended = endOf(kind, id, payload)
      // Nothing is kept for a person who is gone or shut out, nothing begins for a client that is, and what was ended
      // does not come back by being saved.
      const { numAffectedRows } = await sql`
        INSERT INTO artifacts (kind, id, grant_id, session_uid, user_id, client_id, user_code, sign_in_version, payload, expires_at)
        SELECT ${kind}, ${rowId}, ${grantId}, ${sessionUid(kind, payload)}, ${userId}, ${clientId},
          ${payload.userCode ?? null},
          coalesce(${signInVersion}::integer, (SELECT sign_in_version FROM users WHERE id = ${userId})),
          ${stored}::jsonb, now() + make_interval(secs => ${expiresIn ?? 0})
        WHERE NOT EXISTS (SELECT 1 FROM revocations WHERE kind = ${ended?.kind ?? ''} AND subject = ${ended?.subject ?? ''})
          AND (${userId}::text IS NULL OR EXISTS (SELECT 1 FROM users WHERE id = ${userId} AND account_status = 'active'))
          ${ended?.kind === 'session' ? sql`AND ${whileSaving(ended.subject)}` : sql``}
          ${isBeginning(kind) ? sql`AND ${whileActive(clientId)}` : sql``}
        ON CONFLICT (kind, id) DO UPDATE SET payload = excluded.payload, expires_at = excluded.expires_at,
          -- a device code belongs to nobody until somebody types it in
          grant_id = excluded.grant_id, user_id = excluded.user_id, session_uid = excluded.session_uid,
          sign_in_version = coalesce(artifacts.sign_in_version, excluded.sign_in_version)`.execute(requestDb(db))
      if (numAffectedRows === 0n || (ended !== undefined && (await this.#removeEnded(rowId, ended)))) {
        throw refusalToSave(kind)
      }
    }

    /**
     * An INSERT that waits for a row which is just being deleted goes on as if nothing had ended, since it looked before
     * it waited: only another statement sees what was committed meanwhile.
     */
    async #removeEnded(rowId: string, { kind, subject }: Ended): Promise<boolean> {
      const { numAffectedRows } = await sql`
        DELETE FROM artifacts WHERE kind = ${this.#kind} AND id = ${rowId}
          AND EXISTS (SELECT 1 FROM revocations WHERE kind = ${kind} AND subject = ${subject})`.execute(requestDb(db))
      return numAffectedRows !== 0n
    }

    async find(id: string): Promise<AdapterPayload | undefined> {
      const kind = this.#kind
      if (kind === 'Client') return findClientMetadata(id)
      const transaction = findTokenTransaction()
      if (isSpentOnce(kind)) await transaction?.beforeFinding(artifactId(kind, id))
      // Inside a token request the Grant row is the family's lock, whoever comes first.
      const lock = kind === 'Grant' && transaction?.trx !== undefined ? sql`FOR UPDATE OF a` : sql``
      const { rows } = await sql<ArtifactRow>`
        SELECT a.payload, a.consumed_at AS "consumedAt", a.sign_in_version AS "signInVersion",
          extract(epoch FROM now() - a.consumed_at)::float8 AS "consumedSecondsAgo"
        FROM artifacts a LEFT JOIN users u ON u.id = a.user_id
        WHERE a.kind = ${kind} AND a.id = ${artifactId(kind, id)} AND a.expires_at > now()
          AND (a.user_id IS NULL OR (u.account_status = 'active' AND u.sign_in_version = a.sign_in_version))
          AND (a.kind <> 'Session' OR a.consumed_at IS NULL)
        ${lock}`.execute(requestDb(db))
      return rows[0] === undefined ? undefined : fromStorage(kind, rows[0], id)
    }

    async findByUid(uid: string): Promise<AdapterPayload | undefined> {
      const { rows } = await sql<ArtifactRow>`
        SELECT a.payload, a.consumed_at AS "consumedAt", a.sign_in_version AS "signInVersion"
        FROM artifacts a JOIN users u ON u.id = a.user_id
        WHERE a.kind = ${this.#kind} AND a.session_uid = ${uid} AND a.expires_at > now() AND a.consumed_at IS NULL
          AND u.account_status = 'active' AND u.sign_in_version = a.sign_in_version`.execute(requestDb(db))
      return rows[0] === undefined ? undefined : fromStorage(this.#kind, rows[0])
    }

    async findByUserCode(userCode: string): Promise<AdapterPayload | undefined> {
      const { rows } = await sql<ArtifactRow & { id: string }>`
        SELECT id, payload, consumed_at AS "consumedAt", sign_in_version AS "signInVersion"
        FROM artifacts WHERE kind = ${this.#kind} AND user_code = ${userCode} AND expires_at > now()`.execute(
        requestDb(db),
      )
      return rows[0] === undefined ? undefined : fromStorage(this.#kind, rows[0], aliasOf(rows[0].id))
    }

    async consume(id: string): Promise<void> {
      const kind = this.#kind
      const tokenId = artifactId(kind, id)
      const transaction = findTokenTransaction()
      if (isSpentOnce(kind)) {
        // Without one, reuse would end nothing and a crash would lose the family: whatever led here is a mistake of ours.
        if (transaction === undefined) throw new Error(`a ${kind} is spent inside the token transaction only`)
        await transaction.beforeSpending()
      }
      const { rows } = await sql<{ grantId: string | null; clientId: string; isBound: boolean; clientVersion: number }>`
        UPDATE artifacts SET consumed_at = now()
        WHERE kind = ${kind} AND id = ${tokenId} AND consumed_at IS NULL
        RETURNING grant_id AS "grantId", client_id AS "clientId", (payload ? 'jkt') AS "isBound",
          (SELECT token_version FROM clients WHERE id = client_id) AS "clientVersion"`.execute(requestDb(db))
      const [row] = rows
      if (row !== undefined) {
        if (transaction !== undefined) transaction.clientVersion = row.clientVersion
        if (kind === 'RefreshToken' && transaction !== undefined && row.grantId !== null) {
          const replaySeconds = await replayWindow(row.clientId, row.isBound)
          transaction.spent = { tokenId, grantId: row.grantId, replaySeconds }
        }
        return
      }
      if (kind === 'PushedAuthorizationRequest') throw new errors.InvalidRequest('this request_uri was already used')
      const grantId = await this.#grantOf(tokenId)
      if (kind === 'RefreshToken' && transaction !== undefined && grantId !== undefined) {
        transaction.lost = { tokenId, grantId }
      } else if (isSpentOnce(kind) && transaction !== undefined && grantId !== undefined) {
        // RFC 6749 §4.1.2: a code used twice has leaked, so what was issued for it goes too.
        transaction.keepRefusal()
        await transaction.revokeFamily(actorOf(transaction), { grantId, reason: `${kind} used twice` })
      }
      throw new errors.InvalidGrant(`this ${kind} was already used`)
    }

    async #grantOf(tokenId: string): Promise<string | undefined> {
      const row = await requestDb(db)
        .selectFrom('artifacts')
        .select('grant_id')
        .where('kind', '=', this.#kind)
        .where('id', '=', tokenId)
        .executeTakeFirst()
      return row?.grant_id ?? undefined
    }

    async destroy(id: string): Promise<void> {
      const kind = this.#kind
      const transaction = findTokenTransaction()
      if (kind === 'Grant') return this.revokeByGrantId(id)
      // The provider then revokes its family, by the family's lock; deleting this row first could deadlock with a refresh.
      if (kind === 'RefreshToken' && transaction !== undefined) return
      if (kind === 'AccessToken' && transaction !== undefined) return this.#revokeOpaqueToken(transaction, id)
      if (kind === 'Session') return this.#putAside(id)
      await requestDb(db)
        .deleteFrom('artifacts')
        .where('kind', '=', kind)
        .where('id', '=', artifactId(kind, id))
        .execute()
    }

    /**
     * A session that gets a new id is taken away under the old one, and then saved under the new one. Whoever ends it in
     * between must find it, so that it does not come back; nobody else does.
     */
    async #putAside(id: string): Promise<void> {
      await sql`
        UPDATE artifacts SET consumed_at = now(), expires_at = least(expires_at, now() + interval '1 minute')
        WHERE kind = 'Session' AND id = ${artifactId('Session', id)}`.execute(requestDb(db))
    }

    /** It alone: the provider then asks for the end of its family, in vain. */
    async #revokeOpaqueToken(transaction: TokenTransaction, id: string): Promise<void> {
      transaction.revokedOneToken = true
      const trx = await transaction.begin()
      const token = await trx
        .deleteFrom('artifacts')
        .where('kind', '=', 'AccessToken')
        .where('id', '=', artifactId('AccessToken', id))
        .returning([
          'id',
          'client_id',
          'user_id',
          'grant_id',
          sql<string | null>`payload->>'scope'`.as('scope'),
          'expires_at',
        ])
        .executeTakeFirst()
      if (token === undefined) return
      const { id: tokenId, ...before } = token
      const actor: Actor = { type: 'client', id: token.client_id ?? '', requestId: transaction.requestId }
      await writeAudit(trx, actor, {
        action: 'access-token.revoked',
        target: { type: 'token', id: tokenId },
        details: { before },
      })
    }

    /** The provider calls this once for each kind of token: the first call ends the family, the others find it gone. */
    async revokeByGrantId(grantId: string): Promise<void> {
      const transaction = findTokenTransaction()
      if (transaction?.revokedOneToken === true) return
      if (transaction !== undefined) {
        await transaction.revokeFamily(actorOf(transaction), { grantId, reason: transaction.revocationReason })
      } else {
        await db.transaction().execute((trx) => revokeFamily(trx, storeActor, { grantId, reason: 'revoked' }))
      }
    }
  }

  async function findActiveClient(id: string): Promise<ClientEntry | undefined> {
    // PostgreSQL's text cannot hold it, so nobody has such a name.
    if (id.includes('\0')) return undefined
    const entry = await directory.findClient(id)
    return entry?.row.status === 'active' ? entry : undefined
  }

  async function findClientMetadata(id: string): Promise<AdapterPayload | undefined> {
    const entry = await findActiveClient(id)
    return entry === undefined ? undefined : clientMetadata(entry, settings)
  }

  async function replayWindow(clientId: string, isSenderConstrained: boolean): Promise<number> {
    const entry = await directory.findClient(clientId)
    const isPublic = entry === undefined || isPublicClient(entry)
    return isPublic && !isSenderConstrained
      ? settings.refreshReplayPublicSeconds
      : settings.refreshReplayConfidentialSeconds
  }

  async function fromStorage(kind: string, row: ArtifactRow, id?: string): Promise<AdapterPayload> {
    const payload: AdapterPayload = { ...row.payload, ...(id === undefined ? {} : { jti: id }) }
    if (row.signInVersion !== null) payload['signInVersion'] = row.signInVersion
    if (row.consumedAt === null) return payload
    if (kind === 'RefreshToken' && row.consumedSecondsAgo !== undefined) {
      const replaySeconds = await replayWindow(payload.clientId ?? '', payload['jkt'] !== undefined)
      // Inside the window it looks unspent: consume() then tells the loser apart, after every other check has run.
      if (row.consumedSecondsAgo <= replaySeconds) return payload
    }
    const transaction = findTokenTransaction()
    if (transaction !== undefined) transaction.revocationReason = `${kind} used twice`
    return { ...payload, consumed: Math.floor(row.consumedAt.getTime() / 1_000) }
  }

  return {
    adapter: ArtifactStore,
    findActiveClient,
    async isFirstUse(issuer, jti, expiresAtSeconds) {
      const id = createHash('sha256')
        .update(JSON.stringify([issuer, jti]))
        .digest('base64url')
      const { rows } = await sql<{ id: string }>`
        INSERT INTO artifacts (kind, id, payload, expires_at)
        VALUES ('ReplayDetection', ${id}, '{}', to_timestamp(${expiresAtSeconds}))
        ON CONFLICT (kind, id) DO UPDATE SET expires_at = excluded.expires_at WHERE artifacts.expires_at < now()
        RETURNING id`.execute(requestDb(db))
      return rows.length === 1
    },
  }
}

/** The revocation that says of a session or grant that it has ended. */
interface Ended {
  readonly kind: 'session' | 'grant'
  readonly subject: string
}

function endOf(kind: string, id: string, payload: AdapterPayload): Ended | undefined {
  if (kind === 'Grant') return { kind: 'grant', subject: id }
  // A device need not wait until the page is told whether the session could be saved.
  const uid = kind === 'Session' || kind === 'DeviceCode' ? sessionUid(kind, payload) : null
  return uid === null ? undefined : { kind: 'session', subject: uid }
}

/** What a client, or somebody at one, starts with; the rest comes from it. */
function isBeginning(kind: string): boolean {
  return (
    kind === 'Grant' || kind === 'AuthorizationCode' || kind === 'DeviceCode' || kind === 'PushedAuthorizationRequest'
  )
}

/**
 * Waits for whoever is just disabling or deleting the client. Not in the token request: it holds its family's lock, which
 * they need; but a family that they ended issues nothing.
 */
function whileActive(clientId: string | null): RawBuilder<boolean> {
  return sql<boolean>`EXISTS (SELECT 1 FROM clients WHERE id = ${clientId} AND status = 'active' FOR SHARE)`
}

/** A pushed request names its client inside, as the issuer of what was made of it. */
function clientOf(kind: string, payload: AdapterPayload): string | null {
  if (kind === 'PushedAuthorizationRequest') return decodeJwt(String(payload['request'])).iss ?? null
  return payload.clientId ?? null
}

function refusalToSave(kind: string): Error {
  if (kind === 'Session') return new errors.LoginRequired('this session has just ended')
  if (kind === 'RefreshToken' || kind === 'AccessToken') return new errors.InvalidGrant('this person is signed out')
  return new errors.AccessDenied('this authorization has just been withdrawn')
}

/** What the token endpoint exchanges for tokens, once. */
function isSpentOnce(kind: string): boolean {
  return kind === 'RefreshToken' || kind === 'AuthorizationCode' || kind === 'DeviceCode'
}

interface ArtifactRow {
  payload: Record<string, unknown>
  consumedAt: Date | null
  signInVersion: number | null
  consumedSecondsAgo?: number
}

const storeActor: Actor = { type: 'system', id: 'token-endpoint' }

function actorOf({ requestId }: TokenTransaction): Actor {
  return { ...storeActor, requestId }
}

/**
 * What a request says is kept as it was said, but for two things that jsonb cannot hold: the null character, and half
 * of a surrogate pair. JSON.stringify escapes both, and escapes a backslash by another one.
 */
function toJson(payload: Record<string, unknown>): string {
  const json = JSON.stringify(payload)
  if (/(?<!\\)(?:\\\\)*\\u(?:0000|d[89a-f])/.test(json)) {
    throw new errors.InvalidRequest('a parameter holds a character that is not text')
  }
  return json
}

function sessionUid(kind: string, payload: AdapterPayload): string | null {
  return (kind === 'Session' ? payload.uid : payload.sessionUid) ?? null
}

/** Strips what must not rest in the database: the value itself, and the session cookie that an interaction carries. */
function forStorage(kind: string, payload: AdapterPayload): Record<string, unknown> {
  const { jti: _value, signInVersion: _column, ...stored } = payload
  if (kind === 'Interaction' && typeof stored['session'] === 'object' && stored['session'] !== null) {
    const { cookie: _cookie, ...session } = stored['session'] as Record<string, unknown>
    stored['session'] = session
  }
  // The session ends with sign-out, which ends its families by name; it must not end them by falling idle.
  delete stored['expiresWithSession']
  return stored
}
