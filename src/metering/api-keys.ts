/**
 * API keys: for callers that cannot do OAuth, such as a script or an appliance. A key belongs to a client, and may do at
 * the management API what that client may do; a client that is disabled takes its keys with it. A key is shown once, when
 * it is made, and rests as a SHA-256. It counts on a plan of its own, or else as its client does.
 */
import { createHash, randomBytes } from 'node:crypto'
import { sql } from 'kysely'
import { z } from 'zod'
import { requireMayChangeClient, requireRightsOverClient } from '../access/rights.ts'
import { writeAudit, type Actor } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
import { readTimestamp } from '../http/query-parameters.ts'
import { fittingMembers, invalidFields, notFound, parseInput, type FieldError, type Problem } from '../problems.ts'
import { findUnknownPlan, planName } from './plans.ts'

/** A key as everyone may see it. */
export interface ApiKey {
  readonly api_key_id: string
  readonly client_id: string
  readonly name: string
  /** the first characters of its value */
  readonly prefix: string
  /** null: it counts as its client does */
  readonly plan: string | null
  readonly created_at: Date
  /** to the minute */
  readonly last_used_at: Date | null
  readonly expires_at: Date | null
}

/** The prefix lets scanners find keys that were committed by mistake. */
const valuePrefix = 'lk_key_'
const shownCharacters = 12

const notATime = 'must be a time, such as 2030-01-31T12:00:00Z'

export const createApiKeySchema = z.strictObject({
  client_id: z.string().min(1).max(128),
  name: z.string().trim().min(1).max(200),
  plan: planName.nullable().default(null),
  /** RFC 3339; never when left out */
  expires_at: z.iso
    .datetime({ offset: true, error: notATime, abort: true })
    .refine((text) => readTimestamp(text) !== undefined, { error: notATime, params: { constraint: 'format' } })
    .overwrite((text) => readTimestamp(text) ?? text)
    .nullable()
    .default(null),
})

/**
 * @returns with the key itself, which is in nobody's hands afterwards but the caller's
 * @throws Problem AUTHORIZATION_ERROR for a client that may do more, CONFLICT for one of the provider itself;
 *   VALIDATION_ERROR for a client or plan that does not exist, or an end that has passed
 */
export async function createApiKey(
  trx: Trx,
  actor: Actor,
  input: z.input<typeof createApiKeySchema>,
): Promise<{ readonly api_key: ApiKey; readonly key: string }> {
  const { client_id, name, plan, expires_at } = parseInput(createApiKeySchema, input)
  const unusable = await findUnusable(trx, { client_id, plan, expires_at })
  await requireMayChangeClient(trx, actor, client_id)
  if (unusable.length > 0) throw invalidFields(unusable)
  const key = `${valuePrefix}${randomBytes(32).toString('base64url')}`
  const id = `key_${randomBytes(12).toString('base64url')}`
  await trx
    .insertInto('api_keys')
    .values({
      id,
      client_id,
      name,
      prefix: key.slice(0, shownCharacters),
      key_hash: hashOf(key),
      plan,
      expires_at,
    })
    .execute()
  const apiKey = await getApiKey(trx, id)
  await writeAudit(trx, actor, {
    action: 'api-key.created',
    target: { type: 'api-key', id },
    details: { after: described(apiKey) },
  })
  return { api_key: apiKey, key }
}

/**
 * The key is refused from now on. What it did stays in the audit record.
 * @throws Problem RESOURCE_NOT_FOUND; AUTHORIZATION_ERROR for one of a client that may do more
 */
export async function revokeApiKey(trx: Trx, actor: Actor, input: { api_key_id: string }): Promise<void> {
  const { api_key_id } = parseInput(z.strictObject({ api_key_id: z.string().min(1).max(64) }), input)
  const key = await getApiKey(trx, api_key_id)
  await requireRightsOverClient(trx, actor, key.client_id)
  const { numDeletedRows } = await trx.deleteFrom('api_keys').where('id', '=', api_key_id).executeTakeFirstOrThrow()
  if (numDeletedRows === 0n) throw apiKeyNotFound(api_key_id)
  await writeAudit(trx, actor, {
    action: 'api-key.revoked',
    target: { type: 'api-key', id: api_key_id },
    details: { before: described(key) },
  })
}

function described({ client_id, name, plan, expires_at }: ApiKey) {
  return { client_id, name, plan, expires_at }
}

/**
 * The living key that was presented; undefined for one that is unknown, expired, or of a client that is not active. It is
 * looked up by its hash, so that the time tells nothing about how nearly it was guessed. Notes, once a minute, that the
 * key is in use.
 */
export async function findApiKeyByValue(db: Db, presented: string): Promise<ApiKey | undefined> {
  if (!/^lk_key_[\w-]{43}$/.test(presented)) return undefined
  const found = await selectApiKeys(db)
    .innerJoin('clients', 'clients.id', 'api_keys.client_id')
    .select(sql<boolean>`(last_used_at IS NULL OR last_used_at < now() - interval '1 minute')`.as('isToBeNoted'))
    .where('key_hash', '=', hashOf(presented))
    .where('clients.status', '=', 'active')
    .where(sql<boolean>`(expires_at IS NULL OR expires_at > now())`)
    .executeTakeFirst()
  if (found === undefined) return undefined
  const { isToBeNoted, ...key } = found
  if (isToBeNoted) {
    await db
      .updateTable('api_keys')
      .set({ last_used_at: sql<Date>`now()` })
      .where('id', '=', key.api_key_id)
      // Of many requests at once one is enough.
      .where(sql<boolean>`(last_used_at IS NULL OR last_used_at < now() - interval '1 minute')`)
      .execute()
  }
  return key
}

export async function findApiKey(db: Db, id: string): Promise<ApiKey | undefined> {
  return selectApiKeys(db).where('api_keys.id', '=', id).executeTakeFirst()
}

/** @throws Problem RESOURCE_NOT_FOUND */
export async function getApiKey(db: Db, id: string): Promise<ApiKey> {
  const key = await findApiKey(db, id)
  if (key === undefined) throw apiKeyNotFound(id)
  return key
}

/** @param clientId undefined: all clients' */
export async function listApiKeys(db: Db, clientId?: string): Promise<ApiKey[]> {
  const keys = selectApiKeys(db).orderBy('api_keys.created_at').orderBy('api_keys.id')
  return (clientId === undefined ? keys : keys.where('api_keys.client_id', '=', clientId)).execute()
}

/** Keys as everyone may see them. */
export function selectApiKeys(db: Db) {
  return db
    .selectFrom('api_keys')
    .select([
      'api_keys.id as api_key_id',
      'api_keys.client_id',
      'api_keys.name',
      'api_keys.prefix',
      'api_keys.plan',
      'api_keys.created_at',
      'api_keys.last_used_at',
      'api_keys.expires_at',
    ])
}

/** 256 random bits cannot be guessed, so a slow hash would only slow down every request. */
function hashOf(key: string): Buffer {
  return createHash('sha256').update(key).digest()
}

/** What a key cannot be made of; the client and plan that there are, a transaction holds from now on. */
async function findUnusable(
  db: Db,
  { client_id, plan = null, expires_at = null }: Partial<z.output<typeof createApiKeySchema>>,
): Promise<FieldError[]> {
  return [
    ...(client_id === undefined ? [] : await findUnknownClient(db, client_id)),
    ...(await findUnknownPlan(db, plan)),
    ...(expires_at === null ? [] : await findPast(db, expires_at)),
  ]
}

async function findUnknownClient(db: Db, id: string): Promise<FieldError[]> {
  const client = await db.selectFrom('clients').select('id').where('id', '=', id).forKeyShare().executeTakeFirst()
  return client === undefined ? [{ field: 'client_id', constraint: 'exists', message: `There is no client ${id}` }] : []
}

async function findPast(db: Db, time: string): Promise<FieldError[]> {
  const { rows } = await sql<{ ok: boolean }>`SELECT ${time}::timestamptz > now() AS ok`.execute(db)
  return rows[0]?.ok === true ? [] : [{ field: 'expires_at', constraint: 'minimum', message: 'must lie in the future' }]
}

/** What `createApiKey` would say of a body that its schema refuses, in the members that this lets pass. */
export function findWrongInNewKey(db: Db, body: Readonly<Record<string, unknown>>): Promise<FieldError[]> {
  return findUnusable(db, fittingMembers(createApiKeySchema, body))
}

function apiKeyNotFound(id: string): Problem {
  return notFound('api key', id, '/v1/api-keys')
}
