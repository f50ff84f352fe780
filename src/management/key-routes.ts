/** `/v1/keys`: the keys that tokens are signed with. Making the next one sign is making another that waits. */
import { z } from 'zod'
import { endpoint, holdersOf, reply, type Endpoint } from '../http/endpoint.ts'
import { notFound, Problem } from '../problems.ts'
import type { KeyEncryption } from '../signing/key-encryption.ts'
import type { KeyRing } from '../signing/key-ring.ts'
import { findSigningKeys, revokeKey, rotateKeys, SigningKeyNotReady, type SigningKeyInfo } from '../signing/rotation.ts'
import { prepareSigningKey } from '../signing/signing-key.ts'

export interface KeyRoutesParts {
  readonly keyRing: Pick<KeyRing, 'reload'>
  readonly encryption: KeyEncryption
  readonly rsaBits: number
  readonly publishAheadSeconds: number
}

const keyExample = {
  kid: 'sP0qT5uXw9LmN4cYp7WfA2Kx8mQ4vTz9LrN1cYp7Wf8',
  state: 'next',
  algorithm: 'RS256',
  created_at: '2026-01-15T10:30:00.000Z',
  current_since: null,
  published_until: null,
} as const
const keyBody = z
  .object({
    kid: z.string(),
    state: z.enum(['next', 'current', 'retiring', 'retired', 'revoked']),
    algorithm: z.string(),
    created_at: z.iso.datetime(),
    current_since: z.iso.datetime().nullable(),
    published_until: z.iso.datetime().nullable(),
  })
  .meta({ id: 'SigningKey', example: keyExample })
const keysBody = z.object({ keys: z.array(keyBody) }).meta({ id: 'SigningKeys', example: { keys: [keyExample] } })

function describeKey(key: SigningKeyInfo): z.input<typeof keyBody> {
  return {
    kid: key.kid,
    state: key.state,
    algorithm: key.algorithm,
    created_at: key.createdAt.toISOString(),
    current_since: key.currentSince?.toISOString() ?? null,
    published_until: key.publishedUntil?.toISOString() ?? null,
  }
}

const rotateBody = z
  .strictObject({
    now: z
      .boolean()
      .default(false)
      .meta({ description: 'Even when the next key has not been published for long enough' }),
  })
  .meta({ id: 'RotateKeys', example: { now: false } })
const revokeBody = z
  .strictObject({ reason: z.string().min(1).max(200).default('revoked at the management API') })
  .meta({ id: 'RevokeKey', example: { reason: 'a backup was stolen' } })

const params = z.object({
  kid: z
    .string()
    .regex(/^[\w-]{1,128}$/)
    .meta({ description: 'The key', example: keyExample.kid }),
})
const tag = 'Keys'
const read = holdersOf('keys:read')
const write = holdersOf('keys:write')

export function keyRoutes({ keyRing, encryption, rsaBits, publishAheadSeconds }: KeyRoutesParts): readonly Endpoint[] {
  /** Whoever reads the answer finds it so at `/.well-known/jwks.json` of this process; others hear of it. */
  async function published<T>(writing: Promise<T>): Promise<T> {
    const answer = await writing
    await keyRing.reload()
    return answer
  }
  return [
    endpoint({
      method: 'GET',
      path: '/v1/keys',
      name: 'listKeys',
      summary: 'All signing keys that there ever were, the newest first',
      tag,
      access: read,
      responses: { 200: keysBody },
      async handle({ db }) {
        return reply(200, { keys: (await findSigningKeys(db)).map(describeKey) })
      },
    }),
    endpoint({
      method: 'POST',
      path: '/v1/keys',
      name: 'rotateKeys',
      summary: 'Make the next key: the one that waits signs from now on, and the new one waits',
      description:
        'Until everybody has a copy of the one that waits this is 409, with when to try again; `now` does it all the same.',
      tag,
      access: write,
      body: rotateBody,
      responses: { 201: keyBody },
      problems: ['CONFLICT'],
      async handle({ body, write }) {
        // Made before the transaction, which others may be waiting for.
        const fresh = await prepareSigningKey({ encryption, rsaBits })
        const change = write(async (trx, actor) => {
          const { next } = await rotateKeys(trx, actor, { fresh, publishAheadSeconds, now: body.now }).catch(notReady)
          const key = (await findSigningKeys(trx)).find(({ kid }) => kid === next)
          if (key === undefined) throw new Error('a key was made and is not there')
          return reply(201, describeKey(key), { headers: { Location: `/v1/keys/${key.kid}` } })
        })
        return published(change)
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/keys/{kid}',
      name: 'getKey',
      summary: 'One signing key',
      tag,
      access: read,
      params,
      responses: { 200: keyBody },
      async handle({ db, params }) {
        const key = (await findSigningKeys(db)).find(({ kid }) => kid === params.kid)
        if (key === undefined) throw notFound('key', params.kid, '/v1/keys', 'kid')
        return reply(200, describeKey(key))
      },
    }),
    endpoint({
      method: 'POST',
      path: '/v1/keys/{kid}/revocations',
      name: 'revokeKey',
      summary: 'For a key that somebody else may have: every token it signed is dead',
      description: 'It is published no more and erased; if it was the one that signs, the next one does at once.',
      tag,
      access: write,
      params,
      body: revokeBody,
      responses: { 201: keyBody },
      async handle({ params, body, write }) {
        const fresh = await prepareSigningKey({ encryption, rsaBits })
        const change = write(async (trx, actor) => {
          const isThere = (await findSigningKeys(trx)).some(({ kid }) => kid === params.kid)
          if (!isThere) throw notFound('key', params.kid, '/v1/keys', 'kid')
          await revokeKey(trx, actor, { kid: params.kid, reason: body.reason, fresh })
          const key = (await findSigningKeys(trx)).find(({ kid }) => kid === params.kid)
          if (key === undefined) throw notFound('key', params.kid, '/v1/keys', 'kid')
          return reply(201, describeKey(key), { headers: { Location: `/v1/keys/${key.kid}` } })
        })
        return published(change)
      },
    }),
  ]
}

function notReady(error: unknown): never {
  if (!(error instanceof SigningKeyNotReady)) throw error
  throw new Problem('CONFLICT', `${error.message}, or send now: true.`, {
    cause: error,
    ...(error.waitSeconds === undefined ? {} : { retryAfterSeconds: error.waitSeconds }),
  })
}
