/**
 * Who is signed in (`/v1/sessions`) and what applications may do for whom (`/v1/grants`), both also beneath their person;
 * and the end of everything that a person has begun, in one act (`/v1/users/{user_id}/revocations`).
 */
import { sql, type SqlBool } from 'kysely'
import type { Provider } from 'oidc-provider'
import { z } from 'zod'
import { requireRightsOver } from '../access/rights.ts'
import { userParams } from '../access/routes.ts'
import type { Actor } from '../audit/audit.ts'
import type { Db, Trx } from '../database/database.ts'
import type { CursorSigner } from '../http/cursor.ts'
import { endpoint, holdersOf, holdersOrSelf, reply, type Endpoint } from '../http/endpoint.ts'
import { filter, listOf } from '../http/list-query.ts'
import { pageBody } from '../http/page-body.ts'
import { readPage } from '../http/pagination.ts'
import { textParameter } from '../http/query-parameters.ts'
import { notFound } from '../problems.ts'
import { findUser, revokeEverythingOfUser } from '../users/users.ts'
import { findOwnerOfFamily, revokeFamily } from './families.ts'
import { managementResourceId } from './own-entries.ts'
import { endSession, tellClients } from './sessions.ts'

export interface SessionRoutesParts {
  readonly issuer: string
  readonly cursors: CursorSigner
  readonly provider: () => Provider
  /** told of a client that could not be reached with word of a session's end */
  readonly onUnreachable: (clientId: string, error: unknown) => void
}

const sessionExample = {
  session_id: 'kJ2v8Qx0aPzLmN4c',
  user_id: 'usr_2Kx8mQ4vTz9LrN1cYp7WfA',
  client_ids: ['demo-web'],
  authenticated_at: '2026-01-15T10:30:00.000Z',
  amr: ['pwd'],
  created_at: '2026-01-15T10:30:00.000Z',
  expires_at: '2026-01-15T22:30:00.000Z',
}
const sessionBody = z
  .object({
    session_id: z.string().meta({ description: 'The `sid` of its tokens' }),
    user_id: z.string(),
    client_ids: z.array(z.string()).meta({ description: 'The applications that were signed in to' }),
    authenticated_at: z.iso.datetime().nullable(),
    amr: z.array(z.string()).meta({ description: 'How the person proved who they are (RFC 8176)' }),
    created_at: z.iso.datetime(),
    expires_at: z.iso.datetime(),
  })
  .meta({ id: 'Session', example: sessionExample })

const grantExample = {
  grant_id: 'Xw0c7T5uPq9LmN4cYp7WfA2Kx8mQ4vTz9LrN1cYp7Wf',
  user_id: 'usr_2Kx8mQ4vTz9LrN1cYp7WfA',
  client_id: 'demo-web',
  openid_scope: 'openid profile',
  scopes: { 'https://api.example.com': 'models:read models:write' },
  created_at: '2026-01-15T10:30:00.000Z',
  expires_at: '2026-02-14T10:30:00.000Z',
}
const grantBody = z
  .object({
    grant_id: z.string(),
    user_id: z.string(),
    client_id: z.string(),
    openid_scope: z.string().meta({ description: 'What the client may know of the person' }),
    scopes: z.record(z.string(), z.string()).meta({ description: 'Resource → what the client may do there' }),
    created_at: z.iso.datetime(),
    expires_at: z.iso.datetime(),
  })
  .meta({ id: 'Grant', example: grantExample })

const sessionPage = pageBody('sessions', sessionBody, 'session_id', '/v1/sessions')
const grantPage = pageBody('grants', grantBody, 'grant_id', '/v1/grants')

interface SessionRow {
  readonly session_uid: string | null
  readonly user_id: string | null
  readonly payload: Record<string, unknown>
  readonly created_at: Date
  readonly expires_at: Date
}

const sessionPayload = z.object({
  loginTs: z.number().optional(),
  amr: z.array(z.string()).optional(),
  authorizations: z.record(z.string(), z.unknown()).optional(),
})

function describeSession(row: SessionRow): z.input<typeof sessionBody> {
  const { loginTs, amr = [], authorizations = {} } = sessionPayload.parse(row.payload)
  return {
    session_id: row.session_uid ?? '',
    user_id: row.user_id ?? '',
    client_ids: Object.keys(authorizations).sort(),
    authenticated_at: loginTs === undefined ? null : new Date(loginTs * 1_000).toISOString(),
    amr,
    created_at: row.created_at.toISOString(),
    expires_at: row.expires_at.toISOString(),
  }
}

interface GrantRow {
  readonly id: string
  readonly user_id: string | null
  readonly client_id: string | null
  readonly payload: Record<string, unknown>
  readonly created_at: Date
  readonly expires_at: Date
}

const grantPayload = z.object({
  openid: z.object({ scope: z.string().optional() }).optional(),
  resources: z.record(z.string(), z.string()).optional(),
})

function describeGrant(row: GrantRow): z.input<typeof grantBody> {
  const { openid, resources = {} } = grantPayload.parse(row.payload)
  return {
    grant_id: row.id,
    user_id: row.user_id ?? '',
    client_id: row.client_id ?? '',
    openid_scope: openid?.scope ?? '',
    scopes: resources,
    created_at: row.created_at.toISOString(),
    expires_at: row.expires_at.toISOString(),
  }
}

/** Those that still stand: a person who is shut out, or signed out everywhere, has none, whatever the rows say. */
function living(db: Db, kind: 'Session' | 'Grant') {
  return db
    .selectFrom('artifacts')
    .innerJoin('users', 'users.id', 'artifacts.user_id')
    .select([
      'artifacts.id',
      'artifacts.session_uid',
      'artifacts.user_id',
      'artifacts.client_id',
      'artifacts.payload',
      'artifacts.created_at',
      'artifacts.expires_at',
    ])
    .where('artifacts.kind', '=', kind)
    .where(sql<SqlBool>`artifacts.expires_at > now() AND artifacts.consumed_at IS NULL`)
    .where('users.account_status', '=', 'active')
    .whereRef('users.sign_in_version', '=', 'artifacts.sign_in_version')
}

const userFilter = filter(
  textParameter(128, { description: 'Only those of this person', example: sessionExample.user_id }),
  (id) => sql<SqlBool>`artifacts.user_id = ${id}`,
)
const sort = {
  created_at: { column: sql.ref('artifacts.created_at'), type: 'timestamp' },
  expires_at: { column: sql.ref('artifacts.expires_at'), type: 'timestamp' },
} as const
const sessionFields = [
  'session_id',
  'user_id',
  'client_ids',
  'authenticated_at',
  'amr',
  'created_at',
  'expires_at',
] as const
const grantFields = ['grant_id', 'user_id', 'client_id', 'openid_scope', 'scopes', 'created_at', 'expires_at'] as const
const clientFilter = filter(
  textParameter(128, { description: 'Only those of this client', example: 'demo-web' }),
  (id) => sql<SqlBool>`artifacts.client_id = ${id}`,
)
const sessionTieBreak = { name: 'session_id', column: sql.ref('artifacts.session_uid'), type: 'text' } as const
const grantTieBreak = { name: 'grant_id', column: sql.ref('artifacts.id'), type: 'text' } as const

const sessionList = listOf({
  name: 'sessions',
  sort,
  defaultSort: '-created_at',
  tieBreak: sessionTieBreak,
  filters: { user_id: userFilter },
  fields: sessionFields,
})
const sessionsOfUserList = listOf({
  name: 'sessions',
  sort,
  defaultSort: '-created_at',
  tieBreak: sessionTieBreak,
  filters: {},
  fields: sessionFields,
})
const grantList = listOf({
  name: 'grants',
  sort,
  defaultSort: '-created_at',
  tieBreak: grantTieBreak,
  filters: { user_id: userFilter, client_id: clientFilter },
  fields: grantFields,
})
const grantsOfUserList = listOf({
  name: 'grants',
  sort,
  defaultSort: '-created_at',
  tieBreak: grantTieBreak,
  filters: { client_id: clientFilter },
  fields: grantFields,
})

const id = z.string().regex(/^[\w~-]{1,128}$/)
const sessionParams = z.object({
  session_id: id.meta({ description: 'The session', example: sessionExample.session_id }),
})
const grantParams = z.object({ grant_id: id.meta({ description: 'The grant', example: grantExample.grant_id }) })

async function findSession(db: Db, sessionId: string) {
  return living(db, 'Session').where('artifacts.session_uid', '=', sessionId).executeTakeFirst()
}

async function findGrant(db: Db, grantId: string) {
  return living(db, 'Grant').where('artifacts.id', '=', grantId).executeTakeFirst()
}

const ownerOfSession = async (params: Readonly<Record<string, string>>, db: Db) =>
  (await findSession(db, params['session_id'] ?? ''))?.user_id ?? undefined
const ownerOfGrant = async (params: Readonly<Record<string, string>>, db: Db) =>
  (await findGrant(db, params['grant_id'] ?? ''))?.user_id ?? undefined

async function requireUser(db: Db, userId: string): Promise<void> {
  if ((await findUser(db, userId)) === undefined) throw notFound('user', userId, '/v1/users')
}

const revokeBody = z
  .strictObject({
    reason: z.string().min(1).max(200).default('revoked at the management API'),
    consents: z
      .boolean()
      .default(false)
      .meta({ description: 'Also forget what the person agreed that applications may do' }),
  })
  .meta({ id: 'RevokeUser', example: { reason: 'the account was taken over', consents: true } })
const revokedBody = z
  .object({
    user_id: z.string(),
    sessions_ended: z.int(),
    grants_ended: z.int(),
    consents_forgotten: z.int(),
  })
  .meta({
    id: 'RevokedUser',
    example: { user_id: sessionExample.user_id, sessions_ended: 2, grants_ended: 3, consents_forgotten: 1 },
  })

const sessions = 'Sessions'
const grants = 'Grants'

export function sessionRoutes({ issuer, cursors, provider, onUnreachable }: SessionRoutesParts): readonly Endpoint[] {
  /**
   * Support signs people out whatever they may do elsewhere; but not those who may do more here, whom it could keep out for
   * as long as it likes.
   */
  const requireMaySignOut = (trx: Trx, actor: Actor, userId: string) =>
    requireRightsOver(trx, actor, userId, { at: managementResourceId(issuer) })
  return [
    endpoint({
      method: 'GET',
      path: '/v1/sessions',
      name: 'listSessions',
      summary: 'Who is signed in, in pages',
      tag: sessions,
      access: holdersOf('sessions:read'),
      query: sessionList.query,
      responses: { 200: sessionPage },
      async handle({ db, query, path }) {
        const page = await readPage(db, sessionList, living(db, 'Session'), query, { signer: cursors, path })
        const found = page.items.map((row) => sessionList.pickFields(describeSession(row), query.fields))
        return reply(200, { sessions: found, pagination: page.pagination })
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/users/{user_id}/sessions',
      name: 'listSessionsOfUser',
      summary: 'Where a person is signed in',
      tag: sessions,
      access: holdersOrSelf('sessions:read', 'self:read', 'user_id'),
      params: userParams,
      query: sessionsOfUserList.query,
      responses: { 200: sessionPage },
      async handle({ db, params, query, path }) {
        await requireUser(db, params.user_id)
        const base = living(db, 'Session').where('artifacts.user_id', '=', params.user_id)
        const settings = { signer: cursors, path, scope: params.user_id }
        const { items, pagination } = await readPage(db, sessionsOfUserList, base, query, settings)
        const found = items.map((row) => sessionsOfUserList.pickFields(describeSession(row), query.fields))
        return reply(200, { sessions: found, pagination })
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/sessions/{session_id}',
      name: 'getSession',
      summary: 'One session',
      tag: sessions,
      access: holdersOrSelf('sessions:read', 'self:read', ownerOfSession, '/v1/users/me/sessions'),
      params: sessionParams,
      responses: { 200: sessionBody },
      async handle({ db, params }) {
        const row = await findSession(db, params.session_id)
        if (row === undefined) throw notFound('session', params.session_id, '/v1/sessions')
        return reply(200, describeSession(row))
      },
    }),
    endpoint({
      method: 'DELETE',
      path: '/v1/sessions/{session_id}',
      name: 'endSession',
      summary: 'Sign a person out of one session',
      description:
        'Its tokens are dead in every service within a second; offline access lives on. Clients that asked for back-channel logout are told.',
      tag: sessions,
      access: holdersOrSelf('sessions:write', 'self:write', ownerOfSession, '/v1/users/me/sessions'),
      params: sessionParams,
      responses: { 204: null },
      async handle({ db, params, write }) {
        const session = await findSession(db, params.session_id)
        if (session === undefined) throw notFound('session', params.session_id, '/v1/sessions')
        let ended: Awaited<ReturnType<typeof endSession>>
        const done = await write(async (trx, actor) => {
          await requireMaySignOut(trx, actor, session.user_id ?? '')
          ended = await endSession(trx, actor, { sessionUid: params.session_id, reason: 'ended at the management API' })
          if (ended === undefined) throw notFound('session', params.session_id, '/v1/sessions')
          return reply(204, undefined)
        })
        if (ended !== undefined) await tellClients(provider(), ended, onUnreachable)
        return done
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/grants',
      name: 'listGrants',
      summary: 'What applications may do for people, in pages',
      tag: grants,
      access: holdersOf('grants:read'),
      query: grantList.query,
      responses: { 200: grantPage },
      async handle({ db, query, path }) {
        const page = await readPage(db, grantList, living(db, 'Grant'), query, { signer: cursors, path })
        const found = page.items.map((row) => grantList.pickFields(describeGrant(row), query.fields))
        return reply(200, { grants: found, pagination: page.pagination })
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/users/{user_id}/grants',
      name: 'listGrantsOfUser',
      summary: 'What applications may do for a person',
      tag: grants,
      access: holdersOrSelf('grants:read', 'self:read', 'user_id'),
      params: userParams,
      query: grantsOfUserList.query,
      responses: { 200: grantPage },
      async handle({ db, params, query, path }) {
        await requireUser(db, params.user_id)
        const base = living(db, 'Grant').where('artifacts.user_id', '=', params.user_id)
        const settings = { signer: cursors, path, scope: params.user_id }
        const { items, pagination } = await readPage(db, grantsOfUserList, base, query, settings)
        const found = items.map((row) => grantsOfUserList.pickFields(describeGrant(row), query.fields))
        return reply(200, { grants: found, pagination })
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/grants/{grant_id}',
      name: 'getGrant',
      summary: 'One grant',
      tag: grants,
      access: holdersOrSelf('grants:read', 'self:read', ownerOfGrant, '/v1/users/me/grants'),
      params: grantParams,
      responses: { 200: grantBody },
      async handle({ db, params }) {
        const row = await findGrant(db, params.grant_id)
        if (row === undefined) throw notFound('grant', params.grant_id, '/v1/grants')
        return reply(200, describeGrant(row))
      },
    }),
    endpoint({
      method: 'DELETE',
      path: '/v1/grants/{grant_id}',
      name: 'revokeGrant',
      summary: 'Take from an application what it may do for a person on one device',
      description: 'Its refresh and access tokens are dead in every service within a second.',
      tag: grants,
      access: holdersOrSelf('grants:write', 'self:write', ownerOfGrant, '/v1/users/me/grants'),
      params: grantParams,
      responses: { 204: null },
      async handle({ params, write }) {
        return write(async (trx, actor) => {
          const reason = 'revoked at the management API'
          const userId = await findOwnerOfFamily(trx, params.grant_id)
          if (userId !== undefined) await requireMaySignOut(trx, actor, userId)
          if (!(await revokeFamily(trx, actor, { grantId: params.grant_id, reason }))) {
            throw notFound('grant', params.grant_id, '/v1/grants')
          }
          return reply(204, undefined)
        })
      },
    }),
    endpoint({
      method: 'POST',
      path: '/v1/users/{user_id}/revocations',
      name: 'revokeUser',
      summary: 'End everything that a person has begun, at once',
      description:
        'Sessions, codes, refresh tokens and access tokens, in every service within a second. The account stays open.',
      tag: sessions,
      access: holdersOrSelf('sessions:write', 'self:write', 'user_id'),
      params: userParams,
      body: revokeBody,
      responses: { 201: revokedBody },
      async handle({ params, body, write }) {
        return write(async (trx, actor) => {
          await requireMaySignOut(trx, actor, params.user_id)
          const { ended } = await revokeEverythingOfUser(trx, actor, { userId: params.user_id, ...body })
          return reply(
            201,
            {
              user_id: params.user_id,
              sessions_ended: ended.sessions,
              grants_ended: ended.grants,
              consents_forgotten: ended.consents,
            },
            { headers: { Location: `/v1/users/${params.user_id}/sessions` } },
          )
        })
      },
    }),
  ]
}
