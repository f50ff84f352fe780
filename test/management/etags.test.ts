/**
 * What is read at one path changes by what is done at others, and with time: each time there is another ETag, so that
 * nobody is told 304 of what is no more; and nobody goes on from a version that is past.
 */
import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import { grantPermission } from '../../src/access/roles.ts'
import { systemActor } from '../../src/audit/audit.ts'
import type { Trx } from '../../src/database/database.ts'
import { updateClient } from '../../src/oauth/clients.ts'
import { openTargets, type Targets } from '../support/api-targets.ts'
import { eachDatabase, onPostgres } from '../support/databases.ts'
import { openManagement, type Called, type CallOptions, type Management } from '../support/management.ts'

const permissions = [{ permission: 'models:read' }, { permission: 'models:write' }]
const addressOf = (resource: string) => `/v1/resources/${encodeURIComponent(resource)}`
const tagOf = ({ headers }: Called) => headers.get('etag') ?? ''

interface Subject {
  /** where it is read */
  readonly path: string
  /** what happens elsewhere */
  readonly change: () => Promise<unknown>
  /** what somebody does who has read it before */
  readonly edit: CallOptions
}

eachDatabase((_open, engine) => {
  let api: Management
  let targets: Targets
  beforeAll(async () => {
    api = await openManagement(engine)
    targets = openTargets(api)
  })

  async function done(path: string, options: CallOptions): Promise<Called> {
    const answer = await api.call(path, options)
    if (answer.status >= 300) throw new Error(`${path}: ${answer.status} ${answer.text}`)
    return answer
  }
  const put = (path: string, body?: unknown) => done(path, { method: 'PUT', ...(body === undefined ? {} : { body }) })
  const patch = (path: string, body: unknown) => done(path, { method: 'PATCH', body })
  const post = (path: string, body: unknown) => done(path, { method: 'POST', body })
  const remove = (path: string) => done(path, { method: 'DELETE' })

  /** somebody with a role, and the role */
  async function holder() {
    const role = await targets.role()
    const id = await targets.user(role)
    return { role, rolePath: `/v1/roles/${role}`, path: `/v1/users/${id}`, id }
  }
  /** a resource, and a role and a client that may do everything there */
  async function allowed() {
    const resource = `https://${targets.unique('resource')}.example`
    await put(addressOf(resource), { permissions })
    const all = permissions.map(({ permission }) => ({ resource, permission }))
    const role = `/v1/roles/${targets.unique('role')}`
    await put(role, { permissions: all })
    const { client_id: id } = await targets.client()
    await patch(`/v1/clients/${id}`, { permissions: all })
    return { resource: addressOf(resource), id: resource, role, client: `/v1/clients/${id}` }
  }
  const fewer = (resource: string) => put(resource, { permissions: permissions.slice(1) })
  const setsRoles: CallOptions = { method: 'PUT', body: { roles: ['support'] } }
  const putsRole: CallOptions = { method: 'PUT', body: { description: 'Changed' } }
  const renames: CallOptions = { method: 'PATCH', body: { name: 'Changed' } }

  async function clientWithSecret() {
    const { client_id: id, secret_id } = await targets.client()
    return { id, secret_id, path: `/v1/clients/${id}` }
  }

  const changes: Readonly<Record<string, () => Promise<Subject>>> = {
    'the roles of a person, when one of them is deleted': async () => {
      const { path, rolePath } = await holder()
      return { path: `${path}/roles`, change: () => remove(rolePath), edit: setsRoles }
    },
    'the roles of a person, when they are given another': async () => {
      const { path } = await holder()
      return { path: `${path}/roles`, change: () => put(`${path}/roles/member`), edit: setsRoles }
    },
    'the roles of a person, when one is taken away': async () => {
      const { path, role } = await holder()
      return { path: `${path}/roles`, change: () => remove(`${path}/roles/${role}`), edit: setsRoles }
    },
    'a role, when a resource loses a permission': async () => {
      const { role, resource } = await allowed()
      return { path: role, change: () => fewer(resource), edit: putsRole }
    },
    'a role, when the resource of its permissions is deleted': async () => {
      const { role, resource } = await allowed()
      return { path: role, change: () => remove(resource), edit: putsRole }
    },
    'a client, when a resource loses a permission': async () => {
      const { client, resource } = await allowed()
      return { path: client, change: () => fewer(resource), edit: renames }
    },
    'a client, when the resource of its permissions is deleted': async () => {
      const { client, resource } = await allowed()
      return { path: client, change: () => remove(resource), edit: renames }
    },
    'a client, when its default resource is deleted': async () => {
      const resource = await targets.resource()
      const { path } = await clientWithSecret()
      await patch(path, { default_resource: resource })
      return { path, change: () => remove(addressOf(resource)), edit: renames }
    },
    'a client, when it is put on a usage plan': async () => {
      const { path } = await clientWithSecret()
      const plan = await targets.plan()
      return { path, change: () => put(`${path}/plan`, { plan }), edit: renames }
    },
    'a client, when its secret is rotated': async () => {
      const { path } = await clientWithSecret()
      return { path, change: () => post(`${path}/secrets`, {}), edit: renames }
    },
    'a client, when its secret is revoked': async () => {
      const { path, secret_id } = await clientWithSecret()
      return { path, change: () => remove(`${path}/secrets/${secret_id}`), edit: renames }
    },
    'a person, when they are given another password': async () => {
      const { path } = await holder()
      return { path, change: () => put(`${path}/password`, { password: 'a long enough phrase' }), edit: renames }
    },
    'a role that is deleted and made again': async () => {
      const { rolePath: path } = await holder()
      return { path, change: () => remove(path).then(() => put(path, {})), edit: putsRole }
    },
    'a client that is deleted and registered again': async () => {
      const { path, id } = await clientWithSecret()
      const again = { client_id: id, type: 'machine', name: 'Target' }
      return { path, change: () => remove(path).then(() => post('/v1/clients', again)), edit: renames }
    },
    'a resource that is deleted and registered again': async () => {
      const path = addressOf(await targets.resource())
      const edit: CallOptions = { method: 'PUT', body: { name: 'Changed' } }
      return { path, change: () => remove(path).then(() => put(path, {})), edit }
    },
    'a usage plan that is deleted and made again': async () => {
      const name = await targets.plan()
      const path = `/v1/plans/${name}`
      const edit: CallOptions = { method: 'PUT', body: { name, quota: { limit: 1, period: 'DAY' } } }
      return { path, change: () => remove(path).then(() => put(path, { name })), edit }
    },
  }

  /** Of the thing itself nothing has changed. */
  const surroundings: Readonly<Record<string, () => Promise<Subject>>> = {
    'a role, when another person has it': async () => {
      const { rolePath: path, role } = await holder()
      const other = await targets.user()
      return { path, change: () => put(`/v1/users/${other}/roles/${role}`), edit: putsRole }
    },
    'a role, when it is taken from a person': async () => {
      const { rolePath, role, path } = await holder()
      return { path: rolePath, change: () => remove(`${path}/roles/${role}`), edit: putsRole }
    },
    'a role, when somebody who has it is deleted': async () => {
      const { rolePath, path } = await holder()
      return { path: rolePath, change: () => remove(path), edit: putsRole }
    },
    'a client, when the time of a secret is over': async () => {
      const { path, id } = await clientWithSecret()
      await post(`${path}/secrets`, { overlap_seconds: 60 })
      const { db } = api.provider.database
      const past = sql<Date>`now() - interval '1 second'`
      const age = () =>
        db
          .updateTable('client_secrets')
          .set({ expires_at: past })
          .where('client_id', '=', id)
          .where('expires_at', 'is not', null)
          .execute()
      return { path, change: age, edit: renames }
    },
  }

  /** @returns the tag from before, once what is read has been seen to differ, under another tag */
  async function seeChange({ path, change }: Subject): Promise<string> {
    const before = await api.call(path)
    expect(before.status).toBe(200)
    const condition = { headers: { 'if-none-match': tagOf(before) } }
    expect((await api.call(path, condition)).status).toBe(304)
    await change()
    const after = await api.call(path, condition)
    expect(after.status).toBe(200)
    expect(after.text).not.toBe(before.text)
    expect(tagOf(after)).not.toBe(tagOf(before))
    return tagOf(before)
  }

  describe('another ETag, and 412 for whoever goes on from the one before:', () => {
    it.each(Object.entries(changes))('%s', async (_name, make) => {
      const subject = await make()
      const tag = await seeChange(subject)
      const past = await api.call(subject.path, { ...subject.edit, headers: { 'if-match': tag } })
      expect([past.status, past.body.error?.code]).toEqual([412, 'PRECONDITION_FAILED'])
      const present = { 'if-match': tagOf(await api.call(subject.path)) }
      expect((await api.call(subject.path, { ...subject.edit, headers: present })).status).toBe(200)
    })
  })

  describe('another ETag, and nothing in the way of whoever goes on from the one before:', () => {
    it.each(Object.entries(surroundings))('%s', async (_name, make) => {
      const subject = await make()
      const tag = await seeChange(subject)
      expect((await api.call(subject.path, { ...subject.edit, headers: { 'if-match': tag } })).status).toBe(200)
    })
  })

  it('one and the same path that means another person says so: nobody is told that they are who was here before', async () => {
    for (const path of ['/v1/users/me', '/v1/users/me/roles']) {
      const mine = await api.call(path, { token: api.user.token })
      const theirs = await api.call(path, {
        token: api.otherUser.token,
        headers: { 'if-none-match': tagOf(mine) },
      })
      expect([path, theirs.status, theirs.body?.['user_id']]).toEqual([path, 200, api.otherUser.id])
    }
  })
})

onPostgres(() => {
  let api: Management
  let targets: Targets
  beforeAll(async () => {
    api = await openManagement('postgres')
    targets = openTargets(api)
  })

  /** Waits until somebody waits for a lock. */
  async function untilWaiting(): Promise<void> {
    for (;;) {
      const { rows } = await sql`
        SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`.execute(
        api.provider.database.db,
      )
      if (rows.length > 0) return
    }
  }

  /** Holds a change open until what is done beside it waits. */
  async function beside(change: (trx: Trx) => Promise<unknown>, other: () => Promise<Called>): Promise<Called> {
    const { answer } = await api.provider.database.db.transaction().execute(async (trx) => {
      await change(trx)
      const answer = other()
      await untilWaiting()
      return { answer }
    })
    return answer
  }

  it('a role that is just given what its resource loses is in another version than the one that had it', async () => {
    const id = `https://${targets.unique('resource')}.example`
    await api.call(addressOf(id), { method: 'PUT', body: { permissions } })
    const role = await targets.role()
    const version = async () =>
      (
        await api.provider.database.db
          .selectFrom('roles')
          .select('row_version')
          .where('name', '=', role)
          .executeTakeFirstOrThrow()
      ).row_version
    const before = await version()
    const answer = await beside(
      (trx) => grantPermission(trx, systemActor, { role, resource: id, permission: 'models:read' }),
      () => api.call(addressOf(id), { method: 'PUT', body: { permissions: permissions.slice(1) } }),
    )
    expect(answer.status).toBe(200)
    expect((await api.call(`/v1/roles/${role}`)).body['permissions']).toEqual([])
    expect(await version()).toBe(before + 2)
  })

  it('a role that is given something while its resource loses all that it has: neither waits for the other for ever', async () => {
    const id = `https://${targets.unique('resource')}.example`
    await api.call(addressOf(id), { method: 'PUT', body: { permissions } })
    const role = await targets.role()
    const given = { role, resource: id }
    const { answer } = await api.provider.database.db.transaction().execute(async (trx) => {
      const { db } = api.provider.database
      await db
        .transaction()
        .execute((first) => grantPermission(first, systemActor, { ...given, permission: 'models:read' }))
      await sql`SELECT 1 FROM roles WHERE name = ${role} FOR NO KEY UPDATE`.execute(trx)
      const answer = api.call(addressOf(id), { method: 'PUT', body: { permissions: [] } })
      await untilWaiting()
      await grantPermission(trx, systemActor, { ...given, permission: 'models:write' })
      return { answer }
    })
    expect((await answer).status).toBe(200)
    expect((await api.call(`/v1/roles/${role}`)).body['permissions']).toEqual([])
  })

  it('a client whose default resource goes while it is just made that is in another version', async () => {
    const resource = await targets.resource()
    const { client_id: id } = await targets.client()
    const tag = tagOf(await api.call(`/v1/clients/${id}`))
    const version = Number(/\d+/.exec(tag)?.[0])
    const answer = await beside(
      (trx) => updateClient(trx, systemActor, { id, default_resource: resource }),
      () => api.call(addressOf(resource), { method: 'DELETE' }),
    )
    expect(answer.status).toBe(204)
    const after = await api.call(`/v1/clients/${id}`)
    expect(after.body['default_resource']).toBeNull()
    expect(tagOf(after)).toContain(`"${version + 2}.`)
  })

  it('a permission that is just being removed is given to nobody: 400', async () => {
    const id = `https://${targets.unique('resource')}.example`
    await api.call(addressOf(id), { method: 'PUT', body: { permissions } })
    const role = await targets.role()
    const { client_id: client } = await targets.client()
    const given = { permissions: [{ resource: id, permission: 'models:read' }] }
    const gives: (readonly [string, CallOptions])[] = [
      [`/v1/roles/${role}`, { method: 'PUT', body: given }],
      [`/v1/clients/${client}`, { method: 'PATCH', body: given }],
      ['/v1/clients', { method: 'POST', body: { type: 'machine', name: 'Late', ...given } }],
    ]
    for (const [path, options] of gives) {
      const answer = await beside(
        async (trx) => {
          await sql`DELETE FROM permissions WHERE resource = ${id} AND permission = 'models:read'`.execute(trx)
        },
        () => api.call(path, options),
      )
      expect([path, answer.status, answer.body.error.code]).toEqual([path, 400, 'VALIDATION_ERROR'])
      await api.call(addressOf(id), { method: 'PUT', body: { permissions } })
    }
  })

  it('a resource that is just deleted becomes nobody’s default: 400', async () => {
    const resource = await targets.resource()
    const { client_id: id } = await targets.client()
    const answer = await beside(
      async (trx) => {
        await sql`DELETE FROM resources WHERE id = ${resource}`.execute(trx)
      },
      () => api.call(`/v1/clients/${id}`, { method: 'PATCH', body: { default_resource: resource } }),
    )
    expect([answer.status, answer.body.error.code]).toEqual([400, 'VALIDATION_ERROR'])
  })
})
