/**
 * Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07): whoever sends the same request again under the same
 * key gets the first answer again, and there is one effect, over any number of processes.
 *
 * A claim is a row that is inserted in a transaction of its own before the effect. The answer is written into it in the
 * effect's own transaction, sealed, so that there is never an effect without its answer: a crash before the commit
 * leaves neither, a crash after it leaves both, and the next request with the key is answered from the row. The claim
 * of a process that died may be taken over once its lock has run out.
 */
import { createHash } from 'node:crypto'
import type { Logger } from 'pino'
import type { Db, Trx } from '../database/database.ts'

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

export function openIdempotency(_parts: {
  readonly db: Db
  readonly sealer: AnswerSealer
  readonly log: Logger
}): Idempotency {
  throw new Error('not yet')
}

/** In lower case: the headers of an answer that are part of what is replayed. */
export const storedHeaders: readonly string[] = ['content-type', 'location', 'etag', 'last-modified', 'link']

/**
 * Reads Idempotency-Key: 1 to 255 visible ASCII characters, bare or as the quoted string of the draft (RFC 9651 §3.3.3).
 *
 * @returns undefined when the header was not sent
 * @throws Problem VALIDATION_ERROR
 */
export function readIdempotencyKey(_header: string | undefined): string | undefined {
  throw new Error('not yet')
}

/**
 * What two requests must have in common to be the same: SHA-256 of all that decides the effect.
 *
 * @param request.url path and query, as sent
 * @param request.body the bytes, as sent
 */
export function fingerprintRequest(_request: {
  readonly method: string
  readonly url: string
  readonly contentType: string
  readonly body: Uint8Array
}): Buffer {
  return createHash('sha256').digest()
}
