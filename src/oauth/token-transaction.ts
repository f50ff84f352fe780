/**
 * One request, one transaction: consuming a code or refresh token, its successor, the sealed reply, audit and
 * revocations are committed together or not at all, so that no crash between two of them spends a token twice or loses
 * a family.
 *
 * The transaction begins late, at the first look at a code or refresh token: a body that never ends, or a client that
 * fails to authenticate, must not hold a connection. From then on every query of the request goes through `db()`; on
 * PGlite, whose one connection the transaction holds, any other way would wait for ever. This is the only ambient
 * transaction, and it stays in this folder.
 */
import { AsyncLocalStorage } from 'node:async_hooks'
import type { ControlledTransaction } from 'kysely'
import type { Actor } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
import type { Tables } from '../database/tables.ts'
import { revokeFamily, type RevokeFamily } from './families.ts'

/** What the store and the endpoint tell each other about the request under way. */
export class TokenTransaction {
  readonly #db: Db
  #trx: ControlledTransaction<Tables> | undefined
  #beginning: Promise<ControlledTransaction<Tables>> | undefined
  #afterSpending: ControlledTransaction<Tables, ['spend']> | undefined

  /** The refresh token this request spent: its id at rest, its family, and how long it may ask again, in seconds. */
  spent: { readonly tokenId: string; readonly grantId: string; readonly replaySeconds: number } | undefined
  /** The refresh token this request found already spent by another, inside the replay window. */
  lost: { readonly tokenId: string; readonly grantId: string } | undefined
  /** The client's token_version when this request spent something: by then it held the family. */
  clientVersion: number | undefined
  /** A single opaque access token was revoked: the rest of its family lives on. */
  revokedOneToken = false
  /** What the audit record says when this request ends a family. */
  revocationReason: string
  readonly requestId: string | undefined
  readonly #beginsOnFinding: boolean
  #endTurn: (() => void) | undefined
  readonly #revoked = new Set<string>()
  #revoking: Promise<unknown> = Promise.resolve()

  /**
   * @param options.beginsOnFinding true at the token endpoint, where looking at a code or refresh token is the first
   *   step to spending it
   */
  constructor(
    db: Db,
    options: {
      readonly beginsOnFinding: boolean
      readonly revocationReason: string
      readonly requestId: string | undefined
    },
  ) {
    this.#db = db
    this.requestId = options.requestId
    this.#beginsOnFinding = options.beginsOnFinding
    this.revocationReason = options.revocationReason
  }

  get trx(): Trx | undefined {
    return this.#trx
  }

  async begin(): Promise<Trx> {
    this.#beginning ??= this.#db.startTransaction().execute()
    this.#trx = await this.#beginning
    return this.#trx
  }

  /** @param id of what is about to be looked at, at rest */
  async beforeFinding(id: string): Promise<void> {
    if (!this.#beginsOnFinding) return
    this.#endTurn ??= await takeTurn(id)
    await this.begin()
  }

  /** Ends a family once, however many of its kinds of token the provider asks for at the same time. */
  async revokeFamily(actor: Actor, family: RevokeFamily): Promise<void> {
    if (this.#revoked.has(family.grantId)) return void (await this.#revoking)
    this.#revoked.add(family.grantId)
    const trx = this.begin()
    // One after the other: a connection takes one statement at a time.
    this.#revoking = Promise.all([trx, this.#revoking]).then(([trx]) => revokeFamily(trx, actor, family))
    await this.#revoking
  }

  /** Marks the moment before a code or refresh token is spent: a refusal that is not about reuse goes back to it. */
  async beforeSpending(): Promise<void> {
    if (this.#trx !== undefined) this.#afterSpending = await this.#trx.savepoint('spend').execute()
  }

  /** This refusal is about reuse: what it does stays done. */
  keepRefusal(): void {
    this.#afterSpending = undefined
  }

  async unspend(): Promise<void> {
    if (this.#afterSpending === undefined) return
    await this.#afterSpending.rollbackToSavepoint('spend').execute()
    this.#afterSpending = undefined
    this.spent = undefined
  }

  /** When it fails, the connection is still held: `rollback` must follow. */
  async commit(): Promise<void> {
    const trx = await this.#beginning
    await trx?.commit().execute()
    this.#forget()
  }

  async rollback(): Promise<void> {
    // The request may have failed while the transaction was still beginning.
    const trx = await this.#beginning?.catch(() => undefined)
    this.#forget()
    await trx?.rollback().execute()
  }

  #forget(): void {
    this.#trx = undefined
    this.#beginning = undefined
  }

  /** Lets the next one have its turn; to be called whatever became of this request. */
  end(): void {
    this.#endTurn?.()
    this.#endTurn = undefined
  }
}

/**
 * Requests of this process that present the same token go one after the other. The family's lock would hold them back
 * anyway, but each with a connection in its hands: fifty tabs would leave none for anybody else.
 */
const lastTurns = new Map<string, Promise<void>>()

async function takeTurn(id: string): Promise<() => void> {
  const before = lastTurns.get(id)
  const { promise: turn, resolve: end } = Promise.withResolvers<void>()
  lastTurns.set(id, turn)
  await before
  return () => {
    if (lastTurns.get(id) === turn) lastTurns.delete(id)
    end()
  }
}

const storage = new AsyncLocalStorage<TokenTransaction>()

/** The transaction of the request under way, begun or not. */
export function findTokenTransaction(): TokenTransaction | undefined {
  return storage.getStore()
}

export function runInTokenTransaction<T>(transaction: TokenTransaction, work: () => Promise<T>): Promise<T> {
  return storage.run(transaction, work)
}

/** Where this request's queries go: its transaction once begun, else the database. */
export function requestDb(db: Db): Db {
  return storage.getStore()?.trx ?? db
}
