/** `/v1/audit`: who did what, as whom. To be read only. */
import { sql, type SqlBool } from 'kysely'
import { z } from 'zod'
import { describeAuditEvent } from '../audit/audit-log.ts'
import type { CursorSigner } from '../http/cursor.ts'
import { endpoint, holdersOf, reply, type Endpoint } from '../http/endpoint.ts'
import { filter, listOf } from '../http/list-query.ts'
import { pageBody } from '../http/page-body.ts'
import { readPage } from '../http/pagination.ts'
import { choiceParameter, textParameter, timestampParameter } from '../http/query-parameters.ts'
import { notFound } from '../problems.ts'

const eventExample = {
  audit_event_id: 'aud_4711',
  occurred_at: '2026-01-20T10:00:00.000Z',
  action: 'user.updated',
  actor: { type: 'user', id: 'usr_2Kx8mQ4vTz9LrN1cYp7WfA', on_behalf_of: null },
  target: { type: 'user', id: 'usr_9LrN1cYp7WfA2Kx8mQ4vTz' },
  request_id: '7f3c6b2a-5d9e-4f8b-a1c3-9e8d7c6b5a4f',
  details: { before: { name: 'Carol' }, after: { name: 'Carol Chen' } },
  sequence: 4_711,
  hash: '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08',
} as const
const actorTypes = ['user', 'client', 'operator', 'system', 'anonymous'] as const
const eventBody = z
  .object({
    audit_event_id: z.string(),
    occurred_at: z.iso.datetime(),
    action: z.string(),
    actor: z.object({ type: z.enum(actorTypes), id: z.string(), on_behalf_of: z.string().nullable() }),
    target: z.object({ type: z.string(), id: z.string() }),
    request_id: z.string().nullable(),
    details: z.record(z.string(), z.unknown()).meta({ description: 'Before and after, never of a secret' }),
    sequence: z
      .int()
      .nullable()
      .meta({ description: 'Its place in the chain; null until it is sealed, within a second' }),
    hash: z.string().nullable(),
  })
  .meta({ id: 'AuditEvent', example: eventExample })

const eventList = listOf({
  name: 'audit_events',
  sort: { occurred_at: { column: sql.ref('audit_events.occurred_at'), type: 'timestamp' } },
  defaultSort: '-audit_event_id',
  tieBreak: { name: 'audit_event_id', column: sql.ref('audit_events.id'), type: 'integer' },
  filters: {
    action: filter(
      textParameter(64, { description: 'Only events of this kind', example: 'user.updated' }),
      (action) => sql<SqlBool>`audit_events.action = ${action}`,
    ),
    actor_type: filter(
      choiceParameter(actorTypes, 'Only events of actors of this kind'),
      (type) => sql<SqlBool>`audit_events.actor_type = ${type}`,
    ),
    actor_id: filter(
      textParameter(256, {
        description: 'Only what this one did, or was done for them',
        example: eventExample.actor.id,
      }),
      (id) => sql<SqlBool>`(audit_events.actor_id = ${id} OR audit_events.on_behalf_of = ${id})`,
    ),
    target_type: filter(
      textParameter(64, { description: 'Only changes of things of this kind', example: 'user' }),
      (type) => sql<SqlBool>`audit_events.target_type = ${type}`,
    ),
    target_id: filter(
      textParameter(600, { description: 'Only changes of this one', example: eventExample.target.id }),
      (id) => sql<SqlBool>`audit_events.target_id = ${id}`,
    ),
    request_id: filter(
      textParameter(128, { description: 'Only what this request did', example: eventExample.request_id }),
      (id) => sql<SqlBool>`audit_events.request_id = ${id}`,
    ),
    occurred_after: filter(
      timestampParameter('Only events at this moment or later'),
      (at) => sql<SqlBool>`audit_events.occurred_at >= ${at}::timestamptz`,
    ),
    occurred_before: filter(
      timestampParameter('Only events before this moment'),
      (at) => sql<SqlBool>`audit_events.occurred_at < ${at}::timestamptz`,
    ),
  },
  fields: ['audit_event_id', 'occurred_at', 'action', 'actor', 'target', 'request_id', 'details', 'sequence', 'hash'],
})

const params = z.object({
  audit_event_id: z
    .string()
    .regex(/^aud_\d{1,15}$/)
    .meta({ description: 'The event', example: eventExample.audit_event_id }),
})

export function auditRoutes({ cursors }: { readonly cursors: CursorSigner }): readonly Endpoint[] {
  return [
    endpoint({
      method: 'GET',
      path: '/v1/audit',
      name: 'listAuditEvents',
      summary: 'The audit record, the newest first, in pages',
      tag: 'Audit',
      access: holdersOf('audit:read'),
      query: eventList.query,
      responses: { 200: pageBody('audit_events', eventBody, 'audit_event_id', '/v1/audit') },
      async handle({ db, query, path }) {
        const base = db.selectFrom('audit_events').selectAll()
        const { items, pagination } = await readPage(db, eventList, base, query, { signer: cursors, path })
        const events = items.map((row) => eventList.pickFields(describeAuditEvent(row), query.fields))
        return reply(200, { audit_events: events, pagination })
      },
    }),
    endpoint({
      method: 'GET',
      path: '/v1/audit/{audit_event_id}',
      name: 'getAuditEvent',
      summary: 'One event of the audit record',
      tag: 'Audit',
      access: holdersOf('audit:read'),
      params,
      responses: { 200: eventBody },
      async handle({ db, params }) {
        const id = Number(params.audit_event_id.slice(4))
        const row = await db.selectFrom('audit_events').selectAll().where('id', '=', id).executeTakeFirst()
        if (row === undefined) throw notFound('audit event', params.audit_event_id, '/v1/audit')
        return reply(200, describeAuditEvent(row))
      },
    }),
  ]
}
