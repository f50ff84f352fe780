/**
 * Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07): whoever sends the same request again under the same
 * key gets the first answer again, and there is one effect, over any number of processes.
 *
 * A claim is a row that is inserted in a transaction of its own before the effect. The answer is written into it in the
 * effect's own transaction, sealed, so that there is never an effect without its answer: a crash before the commit
 * leaves neither, a crash after it leaves both, and the next request with the key is answered from the row. The claim
 * of a process that died may be taken over once its lock has run out.
 */
import { createHash, randomUUID } from 'node:crypto'
import { sql } from 'kysely'
import type { Logger } from 'pino'
import { z } from 'zod'
import type { Db, Trx } from '../database/database.ts'
import { Problem } from '../problems.ts'

/** Seals answers at rest; what is sealed for one caller and key does not open for another. */
export interface AnswerSealer {
  seal(boundTo: readonly string[], bytes: Uint8Array): Buffer
  /** undefined when none of the secrets that are still accepted opens it */
  open(boundTo: readonly string[], sealed: Uint8Array): Buffer | undefined
}

/** What is kept of an answer. */
export interface StoredAnswer {
  readonly status: number
  /** only those of {@link storedHeaders} are kept */
  readonly headers: Readonly<Record<string, string>>
  /** '' for an answer without a body */
  readonly body: string
}

export interface Claim {
  /**
   * Writes the answer, in the transaction of the effect that it reports.
   * @throws Problem IDEMPOTENCY_IN_PROGRESS when another process has taken the claim over: the effect must roll back
   */
  complete(trx: Trx, answer: StoredAnswer): Promise<void>
  /** Gives the key back when nothing happened. Never throws; after {@link complete} has been committed it does nothing. */
  abandon(): Promise<void>
}

export type Begun =
  | { readonly kind: 'new'; readonly claim: Claim }
  | { readonly kind: 'replay'; readonly answer: StoredAnswer }

export interface Idempotency {
  /**
   * Call it before the effect's transaction, never inside one.
   * @param request.caller who sends it: keys of different callers have nothing to do with each other
   * @param request.key of {@link readIdempotencyKey}
   * @param request.fingerprint of {@link fingerprintRequest}
   * @throws Problem IDEMPOTENCY_KEY_REUSED, IDEMPOTENCY_IN_PROGRESS, or CONFLICT when the answer can be read no more
   */
  begin(request: { readonly caller: string; readonly key: string; readonly fingerprint: Buffer }): Promise<Begun>
}

/** How long a claim is its holder's alone; longer than a request may take. */
const lockSeconds = 60
/** How long an answer is given again. */
const keptHours = 24
const retryAfterSeconds = 1

export function openIdempotency({
  db,
  sealer,
  log,
}: {
  readonly db: Db
  readonly sealer: AnswerSealer
  readonly log: Logger
}): Idempotency {
  return {
    async begin({ caller, key, fingerprint }) {
      // Again only when the row was given back or swept between the two statements.
      for (let attempt = 0; attempt < 3; attempt += 1) {
        const claimedBy = randomUUID()
        if (await takeClaim(db, { caller, key, fingerprint, claimedBy })) {
          return { kind: 'new', claim: openClaim({ db, sealer, log }, { caller, key, claimedBy }) }
        }
        const row = await db
          .selectFrom('idempotency_keys')
          .select(['fingerprint', 'sealed_answer'])
          .where('caller_id', '=', caller)
          .where('key', '=', key)
          .executeTakeFirst()
        if (row === undefined) continue
        if (!fingerprint.equals(row.fingerprint)) throw new Problem('IDEMPOTENCY_KEY_REUSED')
        if (row.sealed_answer === null) break
        return { kind: 'replay', answer: openAnswer(sealer, [caller, key], row.sealed_answer) }
      }
      throw new Problem('IDEMPOTENCY_IN_PROGRESS', undefined, { retryAfterSeconds })
    },
  }
}

/**
 * Inserts the claim, or takes over one that is dead: expired, or of the same request and with its lock run out. One
 * statement decides, so that there is one winner.
 */
async function takeClaim(
  db: Db,
  { caller, key, fingerprint, claimedBy }: { caller: string; key: string; fingerprint: Buffer; claimedBy: string },
): Promise<boolean> {
  const lockedUntil = sql<Date>`clock_timestamp() + make_interval(secs => ${lockSeconds})`
  const expiresAt = sql<Date>`clock_timestamp() + make_interval(hours => ${keptHours})`
  const { rows } = await sql<{ claimed_by: string }>`
    INSERT INTO idempotency_keys AS kept (caller_id, key, fingerprint, claimed_by, locked_until, expires_at)
    VALUES (${caller}, ${key}, ${fingerprint}, ${claimedBy}, ${lockedUntil}, ${expiresAt})
    ON CONFLICT (caller_id, key) DO UPDATE SET
      fingerprint = excluded.fingerprint,
      claimed_by = excluded.claimed_by,
      locked_until = excluded.locked_until,
      sealed_answer = NULL,
      created_at = now(),
      expires_at = excluded.expires_at
    WHERE kept.expires_at <= clock_timestamp()
      OR (kept.sealed_answer IS NULL AND kept.locked_until <= clock_timestamp()
          AND kept.fingerprint = excluded.fingerprint)
    RETURNING claimed_by`.execute(db)
  return rows[0]?.claimed_by === claimedBy
}

function openClaim(
  { db, sealer, log }: { readonly db: Db; readonly sealer: AnswerSealer; readonly log: Logger },
  { caller, key, claimedBy }: { readonly caller: string; readonly key: string; readonly claimedBy: string },
): Claim {
  return {
    async complete(trx, answer) {
      const { numUpdatedRows } = await trx
        .updateTable('idempotency_keys')
        .set({
          sealed_answer: sealer.seal([caller, key], Buffer.from(JSON.stringify(keptOf(answer)), 'utf8')),
          expires_at: sql<Date>`clock_timestamp() + make_interval(hours => ${keptHours})`,
        })
        .where('caller_id', '=', caller)
        .where('key', '=', key)
        .where('claimed_by', '=', claimedBy)
        .where('sealed_answer', 'is', null)
        .executeTakeFirstOrThrow()
      if (numUpdatedRows !== 1n) throw new Problem('IDEMPOTENCY_IN_PROGRESS', undefined, { retryAfterSeconds })
    },
    async abandon() {
      try {
        await db
          .deleteFrom('idempotency_keys')
          .where('caller_id', '=', caller)
          .where('key', '=', key)
          .where('claimed_by', '=', claimedBy)
          // The commit may have arrived although its confirmation did not.
          .where('sealed_answer', 'is', null)
          .execute()
      } catch (error) {
        // What made the caller give up is the answer; the key is free again when the lock has run out.
        log.warn({ error }, 'an idempotency key could not be given back')
      }
    },
  }
}

/** In lower case: the headers of an answer that are part of what is replayed. */
export const storedHeaders: readonly string[] = ['content-type', 'location', 'etag', 'last-modified', 'link']

function keptOf({ status, headers, body }: StoredAnswer): StoredAnswer {
  const kept = Object.entries(headers).filter(([name]) => storedHeaders.includes(name.toLowerCase()))
  return { status, headers: Object.fromEntries(kept), body }
}

const answerSchema = z.object({ status: z.int(), headers: z.record(z.string(), z.string()), body: z.string() })

function openAnswer(sealer: AnswerSealer, boundTo: readonly string[], sealed: Uint8Array): StoredAnswer {
  const opened = sealer.open(boundTo, sealed)
  if (opened === undefined) {
    // Its secret was replaced and is accepted no more. It must not be carried out twice for that.
    throw new Problem('CONFLICT', 'This request was carried out, but its answer can be read no more.')
  }
  return answerSchema.parse(JSON.parse(opened.toString('utf8')))
}

/**
 * Reads Idempotency-Key: 1 to 255 visible ASCII characters, bare or as the quoted string of the draft (RFC 9651 §3.3.3).
 *
 * @returns undefined when the header was not sent
 * @throws Problem VALIDATION_ERROR
 */
export function readIdempotencyKey(header: string | undefined): string | undefined {
  if (header === undefined) return undefined
  const text = header.trim()
  const quoted = /^"((?:[\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"$/.exec(text)?.[1]
  const key = quoted?.replaceAll(/\\(["\\])/g, '$1') ?? (text.startsWith('"') ? '' : text)
  if (/^[\x21-\x7e]{1,255}$/.test(key)) return key
  const message = 'Must be 1 to 255 visible ASCII characters, such as a UUID'
  throw new Problem('VALIDATION_ERROR', `Idempotency-Key: ${message}`, {
    details: [{ field: 'Idempotency-Key', constraint: 'format', message }],
  })
}

/**
 * What two requests must have in common to be the same: SHA-256 of all that decides the effect.
 *
 * @param request.url path and query, as sent
 * @param request.body the bytes, as sent
 */
export function fingerprintRequest({
  method,
  url,
  contentType,
  body,
}: {
  readonly method: string
  readonly url: string
  readonly contentType: string
  readonly body: Uint8Array
}): Buffer {
  // JSON ends where the body begins, so that nothing can move from one to the other.
  return createHash('sha256')
    .update(JSON.stringify([method, url, contentType]))
    .update(body)
    .digest()
}
