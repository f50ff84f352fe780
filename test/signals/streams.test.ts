/** Who may receive, and what may be said of a stream: SSF 1.0 §7 and §8. */
import { sql } from 'kysely'
import { pino } from 'pino'
import { beforeAll, describe, expect, it } from 'vitest'
import { assignRole, createRole } from '../../src/access/roles.ts'
import { systemActor } from '../../src/audit/audit.ts'
import type { Db } from '../../src/database/database.ts'
import { disableClient, enableClient } from '../../src/oauth/clients.ts'
import { ensureOwnEntries, signalsPermission, signalsResourceId } from '../../src/oauth/own-entries.ts'
import { updateResource } from '../../src/oauth/resources.ts'
import { openKeyEncryption, reseal, sealedUnder, signalStreamRow } from '../../src/signing/key-encryption.ts'
import { endExpiredStreams } from '../../src/signals/streams.ts'
import { eachDatabase } from '../support/databases.ts'
import { openProvider, type TestProvider } from '../support/provider.ts'
import { registerClient, signInAt } from '../support/relying-party.ts'
import { caep, pollMethod, pushMethod, Receiver, registerReceiver, type Answer } from './receiving.ts'

const nobodys = '6fdb4a7e-0000-4000-8000-000000000000'

/** Every request about one stream. */
function requestsAbout(streamId: string): [method: string, path: string, body?: object][] {
  return [
    ['GET', `/ssf/streams?stream_id=${streamId}`],
    ['PATCH', '/ssf/streams', { stream_id: streamId, description: 'mine now' }],
    ['PUT', '/ssf/streams', { stream_id: streamId }],
    ['GET', `/ssf/status?stream_id=${streamId}`],
    ['POST', '/ssf/status', { stream_id: streamId, status: 'disabled' }],
    ['POST', '/ssf/verification', { stream_id: streamId }],
    ['POST', `/ssf/streams/${streamId}/events`, { returnImmediately: true }],
    ['DELETE', `/ssf/streams?stream_id=${streamId}`],
  ]
}

const codeOf = ({ status, body }: Answer) => `${status} ${(body['error'] as { code?: string } | undefined)?.code ?? ''}`

eachDatabase((_open, engine) => {
  let provider: TestProvider
  let db: Db
  let receiver: Receiver
  let stranger: Receiver
  let stream: string

  const newReceiver = async (permissions?: string[]) =>
    new Receiver(provider.issuer, await registerReceiver(db, provider.issuer, permissions)).signIn()

  beforeAll(async () => {
    provider = await openProvider(engine)
    db = provider.database.db
    receiver = await newReceiver()
    stranger = await newReceiver()
    stream = await receiver.createStream()
  })

  describe('who may not receive', () => {
    it('nobody without a token', async () => {
      for (const [method, path, body] of [['POST', '/ssf/streams', {}] as const, ...requestsAbout(stream)]) {
        const answer = await receiver.request(method, path, body, {
          headers: { 'content-type': 'application/json' },
        })
        expect([method, path, codeOf(answer)]).toEqual([method, path, '401 AUTHENTICATION_ERROR'])
        expect(answer.headers.get('www-authenticate')).toMatch(/^Bearer/)
      }
    })

    it('nobody with a token for another resource', async () => {
      const answer = await signInAt(
        provider,
        await registerClient(provider, {
          permissions: [{ resource: provider.demo.resource, permission: 'models:read' }],
        }),
        { parameters: { scope: 'openid models:read', resource: provider.demo.resource } },
      )
      const headers = { authorization: `Bearer ${answer.body.access_token ?? ''}` }
      expect(codeOf(await receiver.request('GET', '/ssf/streams', undefined, { headers }))).toBe(
        '401 AUTHENTICATION_ERROR',
      )
    })

    it('no client without the scope', async () => {
      const resource = signalsResourceId(provider.issuer)
      await db.transaction().execute((trx) =>
        updateResource(trx, systemActor, {
          id: resource,
          permissions: [{ permission: signalsPermission }, { permission: 'signals:other' }],
        }),
      )
      const client = await registerReceiver(db, provider.issuer, ['signals:other'])
      const response = await fetch(`${provider.issuer}/token`, {
        method: 'POST',
        headers: {
          authorization: `Basic ${Buffer.from(`${client.client_id}:${client.client_secret}`).toString('base64')}`,
        },
        body: new URLSearchParams({ grant_type: 'client_credentials', resource }),
      })
      const { access_token: token } = (await response.json()) as { access_token: string }
      const answer = await receiver.request('GET', '/ssf/streams', undefined, {
        headers: { authorization: `Bearer ${token}` },
      })
      expect(codeOf(answer)).toBe('403 AUTHORIZATION_ERROR')
      expect(answer.headers.get('www-authenticate')).toContain('scope="signals:receive"')
    })

    it('no person: a stream belongs to a machine', async () => {
      const permission = { resource: signalsResourceId(provider.issuer), permission: signalsPermission }
      await db.transaction().execute(async (trx) => {
        await createRole(trx, systemActor, { name: 'listener', permissions: [permission] })
        const { id } = await trx
          .selectFrom('users')
          .select('id')
          .where('email', '=', provider.demo.user.email)
          .executeTakeFirstOrThrow()
        await assignRole(trx, systemActor, { user_id: id, role: 'listener' })
      })
      const { body } = await signInAt(provider, await registerClient(provider, { permissions: [permission] }), {
        parameters: { scope: `openid ${signalsPermission}`, resource: permission.resource },
      })
      expect(body.scope).toContain(signalsPermission)
      const answer = await receiver.request(
        'POST',
        '/ssf/streams',
        {},
        {
          headers: { authorization: `Bearer ${body.access_token ?? ''}`, 'content-type': 'application/json' },
        },
      )
      expect(codeOf(answer)).toBe('403 AUTHORIZATION_ERROR')
    })

    it('nobody else than the client that made the stream: to others it is not there', async () => {
      for (const [method, path, body] of requestsAbout(stream)) {
        const answer = await stranger.request(method, path, body)
        expect([method, path, codeOf(answer)]).toEqual([method, path, '404 RESOURCE_NOT_FOUND'])
        expect(answer.body['error']).toMatchObject({ resource_type: 'stream', resource_id: stream })
      }
      const setErrs = { 'a-jti-of-theirs': { err: 'invalid_key' } }
      expect((await stranger.poll(stream, { returnImmediately: true, setErrs })).status).toBe(404)
      expect(provider.log()).not.toContain('a-jti-of-theirs')
      expect((await stranger.request('GET', '/ssf/streams')).body).toEqual([])
      expect((await receiver.request('GET', `/ssf/status?stream_id=${stream}`)).body['status']).toBe('enabled')
    })

    it('no client that has been disabled, whose token was good a moment ago', async () => {
      const client = await newReceiver()
      const its = await client.createStream()
      expect((await client.poll(its, { returnImmediately: true })).status).toBe(200)
      const { client_id: id } = client.client
      await db.transaction().execute((trx) => disableClient(trx, systemActor, { id }))
      expect(codeOf(await client.poll(its, { returnImmediately: true }))).toBe('401 AUTHENTICATION_ERROR')
      await db.transaction().execute((trx) => enableClient(trx, systemActor, { id }))
      expect(codeOf(await client.poll(its, { returnImmediately: true }))).toBe('401 AUTHENTICATION_ERROR')
    })
  })

  describe('what is refused', () => {
    it('a stream that there is not', async () => {
      for (const [method, path, body] of requestsAbout(nobodys)) {
        const answer = await receiver.request(method, path, body)
        expect([method, path, codeOf(answer)]).toEqual([method, path, '404 RESOURCE_NOT_FOUND'])
        expect(answer.body['error']).toEqual({
          code: 'RESOURCE_NOT_FOUND',
          message: `Stream '${nobodys}' not found`,
          resource_type: 'stream',
          resource_id: nobodys,
          suggestions: ['Use GET /ssf/streams to list available streams', 'Check stream_id spelling'],
        })
      }
      expect(codeOf(await receiver.poll('%00'))).toBe('404 RESOURCE_NOT_FOUND')
      for (const query of ['', '?stream_id=', '?stream_id=%00', `?stream_id=${stream}&stream_id=${stream}`]) {
        const asked = [
          ['DELETE', '/ssf/streams'],
          ['GET', '/ssf/status'],
          // Of no stream in particular it is the list.
          ...(query === '' ? [] : [['GET', '/ssf/streams'] as const]),
        ] as const
        for (const [method, path] of asked) {
          const answer = await receiver.request(method, path + query)
          expect([method, path, query, codeOf(answer)]).toEqual([method, path, query, '400 VALIDATION_ERROR'])
          expect(answer.body['error']).toMatchObject({ details: [{ field: 'stream_id' }] })
        }
      }
    })

    it('a body that is no JSON, of another type, or too large', async () => {
      const { token } = receiver
      const send = (path: string, body: string, type = 'application/json') =>
        receiver.request('POST', path, undefined, {
          headers: { authorization: `Bearer ${token}`, 'content-type': type },
          body,
        })
      for (const path of ['/ssf/streams', '/ssf/status', '/ssf/verification', `/ssf/streams/${stream}/events`]) {
        expect(codeOf(await send(path, '{'))).toBe('400 MALFORMED_REQUEST')
        expect(codeOf(await send(path, '[]'))).toBe('400 VALIDATION_ERROR')
        expect(codeOf(await send(path, 'a=b', 'application/x-www-form-urlencoded'))).toBe('415 UNSUPPORTED_MEDIA_TYPE')
        expect(codeOf(await send(path, JSON.stringify({ x: 'x'.repeat(300_000) })))).toBe('413 PAYLOAD_TOO_LARGE')
      }
    })

    it('a method that is not there', async () => {
      const answer = await receiver.request('PUT', '/ssf/status', { stream_id: stream })
      expect(answer.status).toBe(405)
      expect(answer.headers.get('allow')).toContain('POST')
      expect((await receiver.request('GET', `/ssf/streams/${stream}/events`)).status).toBe(405)
    })

    it.each([
      ['an unknown way of delivery', { delivery: { method: 'urn:example:pigeon' } }, 'delivery.method'],
      ['a push without an address', { delivery: { method: pushMethod } }, 'delivery.endpoint_url'],
      ['a push to no web address', push('ftp://example.com/'), 'delivery.endpoint_url'],
      ['a push to an address with credentials', push('https://me:secret@example.com/'), 'delivery.endpoint_url'],
      ['a push into the network of the operator', push('https://10.0.0.1/events'), 'delivery.endpoint_url'],
      ['a push to where clouds keep credentials', push('http://169.254.169.254/'), 'delivery.endpoint_url'],
      ['a push to an internal IPv6 address', push('https://[fd00::1]/events'), 'delivery.endpoint_url'],
      [
        'a header that would become two',
        push('https://example.com/', { authorization_header: 'Bearer x\r\nHost: evil' }),
        'delivery.authorization_header',
      ],
      ['events that are no list', { events_requested: 'all' }, 'events_requested'],
      ['a description of a page', { description: 'x'.repeat(3_000) }, 'description'],
    ])('%s', async (_what, settings, field) => {
      const answer = await receiver.request('POST', '/ssf/streams', settings)
      expect(codeOf(answer)).toBe('400 VALIDATION_ERROR')
      expect((answer.body['error'] as { details: { field: string }[] }).details.map((one) => one.field)).toContain(
        field,
      )
    })

    it('a change of what the transmitter decides', async () => {
      for (const change of [{ aud: 'me' }, { iss: 'https://evil.example' }, { events_delivered: [] }]) {
        for (const method of ['PATCH', 'PUT']) {
          const answer = await receiver.request(method, '/ssf/streams', { stream_id: stream, ...change })
          expect(codeOf(answer)).toBe('400 VALIDATION_ERROR')
        }
      }
    })

    it('a verification sooner than the interval that the stream names', async () => {
      const quick = await receiver.createStream()
      const ask = () => receiver.request('POST', '/ssf/verification', { stream_id: quick, state: 'x' })
      expect((await ask()).status).toBe(204)
      const refused = await ask()
      expect(codeOf(refused)).toBe('429 RATE_LIMIT_EXCEEDED')
      expect(refused.headers.get('retry-after')).toBe('1')
      expect(refused.body['error']).toEqual({
        code: 'RATE_LIMIT_EXCEEDED',
        message: 'A verification may be asked for every 1 seconds.',
        limit: 1,
        remaining: 0,
        reset_at: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/),
        retry_after: 1,
      })
      await sql`UPDATE signal_streams SET verification_requested_at = now() - interval '1 second'`.execute(db)
      expect((await ask()).status).toBe(204)
    })

    it('more streams than a client may have, unless some of them are abandoned', async () => {
      const crowd = await newReceiver()
      await sql`
        INSERT INTO signal_streams (stream_id, client_id, delivery_method, events_delivered, active_at)
        SELECT 'crowd-' || n, ${crowd.client.client_id}, 'poll', '[]', now() FROM generate_series(1, 1000) AS n
        `.execute(db)
      const refused = await crowd.request('POST', '/ssf/streams', {})
      expect(codeOf(refused)).toBe('409 CONFLICT')
      expect(refused.body['detail']).toContain('1000 streams')
      await sql`UPDATE signal_streams SET active_at = now() - interval '11 minutes' WHERE stream_id = 'crowd-7'`.execute(
        db,
      )
      await crowd.createStream()
      expect(codeOf(await crowd.request('GET', '/ssf/status?stream_id=crowd-7'))).toBe('404 RESOURCE_NOT_FOUND')
      expect((await crowd.request('GET', '/ssf/status?stream_id=crowd-8')).status).toBe(200)
      // Somebody else's number is their own.
      expect((await stranger.request('POST', '/ssf/streams', {})).status).toBe(201)
    })
  })

  describe('a stream', () => {
    it('is found by the configuration that everybody may read', async () => {
      const { issuer } = provider
      const response = await fetch(`${issuer}/.well-known/ssf-configuration`)
      expect(response.headers.get('content-type')).toContain('application/json')
      expect(await response.json()).toEqual({
        spec_version: '1_0',
        issuer,
        jwks_uri: `${issuer}/.well-known/jwks.json`,
        delivery_methods_supported: ['urn:ietf:rfc:8936', 'urn:ietf:rfc:8935'],
        configuration_endpoint: `${issuer}/ssf/streams`,
        status_endpoint: `${issuer}/ssf/status`,
        verification_endpoint: `${issuer}/ssf/verification`,
        authorization_schemes: [{ spec_urn: 'urn:ietf:rfc:6749' }],
        default_subjects: 'ALL',
        critical_subject_members: ['session', 'application', 'grant', 'key'],
        resource: `${issuer}/ssf`,
      })
    })

    it('is polled when nobody says how, and tells all that a receiver must know', async () => {
      const { issuer } = provider
      const created = await receiver.request('POST', '/ssf/streams', { description: 'one process' })
      expect(created.status).toBe(201)
      const id = created.body['stream_id'] as string
      const events = ['session-revoked', 'credential-change', 'token-claims-change'].map((name) => `${caep}${name}`)
      expect(created.body).toEqual({
        stream_id: id,
        iss: issuer,
        aud: `${issuer}/ssf`,
        events_supported: events,
        events_requested: events,
        events_delivered: events,
        delivery: { method: pollMethod, endpoint_url: `${issuer}/ssf/streams/${id}/events` },
        min_verification_interval: 1,
        inactivity_timeout: 86_400,
        description: 'one process',
      })
      expect((await receiver.request('GET', `/ssf/streams?stream_id=${id}`)).body).toEqual(created.body)
      expect((await receiver.request('GET', '/ssf/streams')).body).toContainEqual(created.body)
    })

    it('delivers what was asked for of what there is', async () => {
      const requested = [`${caep}credential-change`, `${caep}device-compliance-change`]
      const { body } = await receiver.request('POST', '/ssf/streams', { events_requested: requested })
      expect(body).toMatchObject({ events_requested: requested, events_delivered: [`${caep}credential-change`] })
    })

    it('is changed in part by PATCH, and as a whole by PUT', async () => {
      const id = await receiver.createStream({ description: 'before' })
      const patched = await receiver.request('PATCH', '/ssf/streams', {
        stream_id: id,
        events_requested: [`${caep}session-revoked`],
        iss: provider.issuer,
      })
      expect(patched.status).toBe(200)
      expect(patched.body).toMatchObject({ description: 'before', events_delivered: [`${caep}session-revoked`] })
      const put = await receiver.request('PUT', '/ssf/streams', {
        stream_id: id,
        delivery: { method: pushMethod, endpoint_url: 'http://127.0.0.1:1/events' },
      })
      expect(put.body).toMatchObject({
        delivery: { method: pushMethod, endpoint_url: 'http://127.0.0.1:1/events' },
        events_delivered: expect.arrayContaining([`${caep}credential-change`]) as unknown,
      })
      expect(put.body).not.toHaveProperty('description')
      expect(put.body).not.toHaveProperty('inactivity_timeout')
      expect(codeOf(await receiver.poll(id))).toBe('409 CONFLICT')
      await receiver.request('DELETE', `/ssf/streams?stream_id=${id}`)
    })

    it('has a status that its receiver decides', async () => {
      const id = await receiver.createStream()
      const paused = { stream_id: id, status: 'paused', reason: 'maintenance' }
      expect((await receiver.request('POST', '/ssf/status', paused)).body).toEqual(paused)
      expect((await receiver.request('GET', `/ssf/status?stream_id=${id}`)).body).toEqual(paused)
      const enabled = { stream_id: id, status: 'enabled' }
      expect((await receiver.request('POST', '/ssf/status', enabled)).body).toEqual(enabled)
    })

    it('is gone when it was deleted, twice 404', async () => {
      const id = await receiver.createStream()
      expect((await receiver.request('DELETE', `/ssf/streams?stream_id=${id}`)).status).toBe(204)
      expect(codeOf(await receiver.request('DELETE', `/ssf/streams?stream_id=${id}`))).toBe('404 RESOURCE_NOT_FOUND')
      expect(codeOf(await receiver.poll(id))).toBe('404 RESOURCE_NOT_FOUND')
    })

    it('keeps what it needs at a receiver sealed, tells nobody, and can be sealed anew', async () => {
      const secret = 'Bearer of-a-receiver-alone'
      const created = await receiver.request(
        'POST',
        '/ssf/streams',
        push('http://127.0.0.1:1/', {
          authorization_header: secret,
        }),
      )
      const id = created.body['stream_id'] as string
      await receiver.request('POST', '/ssf/status', { stream_id: id, status: 'paused' })
      expect(JSON.stringify(created.body)).not.toContain('of-a-receiver')
      expect(JSON.stringify((await receiver.request('GET', '/ssf/streams')).body)).not.toContain('of-a-receiver')
      const sealed = async () => {
        const row = await db
          .selectFrom('signal_streams')
          .select('sealed_authorization_header')
          .where('stream_id', '=', id)
          .executeTakeFirstOrThrow()
        return row.sealed_authorization_header ?? new Uint8Array()
      }
      expect(Buffer.from(await sealed()).toString('latin1')).not.toContain('of-a-receiver')
      const { rows } = await sql<{ text: string }>`SELECT details::text AS text FROM audit_events`.execute(db)
      expect(rows.map(({ text }) => text).join()).not.toContain('of-a-receiver')

      const log = pino({ level: 'silent' })
      const old = openKeyEncryption({ config: provider.config, log })
      const oldKey = sealedUnder(await sealed())
      expect(oldKey).toBe(old.keyId)
      const { readFileSync } = await import('node:fs')
      const [, oldId = '', oldSecret = ''] =
        /^([^:]+):(.+)$/m.exec(readFileSync(`${provider.config.keysDir}/development.key`, 'utf8')) ?? []
      const both = openKeyEncryption({
        config: {
          ...provider.config,
          keyEncryptionKeys: [
            { id: 'new', key: Buffer.alloc(32, 7) },
            { id: oldId, key: Buffer.from(oldSecret, 'base64') },
          ],
        },
        log,
      })
      // Undone, since the server has the old key alone.
      await db
        .transaction()
        .execute(async (trx) => {
          await reseal(trx, systemActor, { encryption: both })
          const row = await trx
            .selectFrom('signal_streams')
            .select('sealed_authorization_header')
            .where('stream_id', '=', id)
            .executeTakeFirstOrThrow()
          const again = row.sealed_authorization_header ?? new Uint8Array()
          expect(sealedUnder(again)).toBe('new')
          expect(both.open(signalStreamRow(id), again).toString()).toBe(secret)
          throw new Error('undo')
        })
        .catch((error: unknown) => expect(String(error)).toBe('Error: undo'))
    })

    it('ends when nothing is heard of it for a day, and lasts as long as it is polled', async () => {
      const [silent, polled] = [await receiver.createStream(), await receiver.createStream()]
      await sql`
        UPDATE signal_streams SET active_at = now() - interval '1439 minutes', expires_at = now() + interval '1 minute'
        WHERE stream_id IN (${silent}, ${polled})`.execute(db)
      expect((await receiver.poll(polled, { returnImmediately: true })).status).toBe(200)
      await sql`
        UPDATE signal_streams SET expires_at = expires_at - interval '2 minutes' WHERE stream_id IN (${silent}, ${polled})
        `.execute(db)
      // Before any sweep, and after it.
      expect(codeOf(await receiver.poll(silent, { returnImmediately: true }))).toBe('404 RESOURCE_NOT_FOUND')
      expect(await endExpiredStreams(db)).toBe(1)
      const left = await db
        .selectFrom('signal_streams')
        .select('stream_id')
        .where('stream_id', 'in', [silent, polled])
        .execute()
      expect(left).toEqual([{ stream_id: polled }])
      expect((await receiver.poll(polled, { returnImmediately: true })).status).toBe(200)
    })

    it('leaves a record of who made, changed and deleted it', async () => {
      const id = await receiver.createStream()
      await receiver.request('PATCH', '/ssf/streams', { stream_id: id, description: 'other' })
      await receiver.request('POST', '/ssf/status', { stream_id: id, status: 'paused' })
      await receiver.request('DELETE', `/ssf/streams?stream_id=${id}`)
      const rows = await db
        .selectFrom('audit_events')
        .select(['action', 'actor_id'])
        .where('target_id', '=', id)
        .orderBy('id')
        .execute()
      expect(rows.map(({ action }) => action)).toEqual([
        'signal-stream.created',
        'signal-stream.updated',
        'signal-stream.status-changed',
        'signal-stream.deleted',
      ])
      expect(new Set(rows.map(({ actor_id }) => actor_id))).toEqual(new Set([receiver.client.client_id]))
    })

    it('has a resource that a database from before gets at the next start, with what else it has', async () => {
      const id = signalsResourceId(provider.issuer)
      await sql`DELETE FROM permissions WHERE resource = ${id} AND permission = ${signalsPermission}`.execute(db)
      await ensureOwnEntries(db, provider.issuer)
      const rows = await db.selectFrom('permissions').select('permission').where('resource', '=', id).execute()
      expect(rows.map(({ permission }) => permission)).toContain(signalsPermission)
      expect(rows.length).toBeGreaterThan(1)
    })
  })
})

function push(endpointUrl: string, more: object = {}): object {
  return { delivery: { method: pushMethod, endpoint_url: endpointUrl, ...more } }
}
