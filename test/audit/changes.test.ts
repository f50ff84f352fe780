/**
 * That every change says what was and what is, and nothing secret: one of each is made, by the functions and the requests
 * that make it anywhere, and the whole record is read.
 */
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { sql } from 'kysely'
import { pino } from 'pino'
import { beforeAll, describe, expect, it } from 'vitest'
import { assignRole, excludeRole, grantPermission, includeRole, revokePermission } from '../../src/access/roles.ts'
import { brokenChainAction } from '../../src/audit/chain.ts'
import { systemActor } from '../../src/audit/audit.ts'
import type { Trx } from '../../src/database/database.ts'
import { addClientSecret, revokeClientSecret, setClientPermissions, updateClient } from '../../src/oauth/clients.ts'
import { giveConsent, withdrawConsent } from '../../src/oauth/consents.ts'
import { createResource, updateResource } from '../../src/oauth/resources.ts'
import { endExpiredStreams } from '../../src/signals/streams.ts'
import { openKeyEncryption, reseal } from '../../src/signing/key-encryption.ts'
import { retireExpiredKeys } from '../../src/signing/rotation.ts'
import { rotateSecret } from '../../src/signing/secret-ring.ts'
import { openPasswords } from '../../src/users/password.ts'
import { createUser } from '../../src/users/users.ts'
import { readWorkFactor, storeWorkFactor } from '../../src/users/work-factor.ts'
import { complete, scenarios, sendRequest, type World } from '../management/scenarios.ts'
import { operationsOf, readCommittedDocument } from '../openapi/document.ts'
import { pushMethod, Receiver, registerReceiver } from '../signals/receiving.ts'
import { openTargets } from '../support/api-targets.ts'
import { eachDatabase, type Engine } from '../support/databases.ts'
import { openManagement } from '../support/management.ts'
import { callbackUri, registerClient, signInAt } from '../support/relying-party.ts'
import { postForm, type TokenAnswer } from '../support/user-agent.ts'

/** What happens and changes nothing that anybody set. */
const pureEvents = [
  'grant.token-issued',
  'grant.token-refreshed',
  'sign-in.refused',
  'sign-in.succeeded',
  brokenChainAction,
]
const isBeginning = (action: string) => action.endsWith('.created')
const isEnd = (action: string) =>
  /\.(deleted|ended|withdrawn|forgotten)$/.test(action) ||
  ['access-token.revoked', 'api-key.revoked', 'grant.revoked'].includes(action)

/** Every `noun.verb` in the files that write rows. */
function findActions(): string[] {
  const files = readdirSync('src', { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.ts') && !path.includes('node_modules'))
    .map((path) => readFileSync(join('src', path), 'utf8'))
    .filter((text) => text.includes('writeAudit('))
  const names = files.flatMap((text) => text.match(/(?<=')[a-z]+(-[a-z]+)*\.[a-z-]*(ed|en|wn|ing|-set)(?=')/g) ?? [])
  return [...new Set(names)].sort()
}

interface Row {
  readonly action: string
  readonly target_id: string
  readonly details: Readonly<Record<string, unknown>>
}

interface Walk {
  readonly rows: readonly Row[]
  /** what was handed out, or typed in */
  readonly secrets: readonly string[]
  readonly tokens: readonly string[]
  /** what was set to what it was already, and how many rows and versions that made */
  readonly repetitions: readonly (readonly [change: string, made: number])[]
}

/** Makes one of each change. */
async function makeOneOfEach(engine: Engine): Promise<Walk> {
  let rows: readonly Row[] = []
  const api = await openManagement(engine)
  const { provider } = api
  const { db } = provider.database
  const targets = openTargets(api)
  const tagOf = async (path: string) => (await api.call(path)).headers.get('etag') ?? ''
  const world: World = { api, targets, tagOf }
  const write = <T>(change: (trx: Trx) => Promise<T>) => db.transaction().execute(change)
  const repetitions: [string, number][] = []
  const again = async (change: string, make: () => Promise<unknown>) => {
    const count = async () => {
      const { rows: counted } = await sql<{ count: number }>`
        SELECT ((SELECT count(*) FROM audit_events) + (SELECT sum(row_version) FROM clients)
          + (SELECT sum(row_version) FROM resources))::float8 AS count`.execute(db)
      return counted[0]?.count ?? 0
    }
    const before = await count()
    await make()
    repetitions.push([change, (await count()) - before])
  }
  const handedOut: string[] = []
  const issued: string[] = []
  const noted = (answer: TokenAnswer) => {
    const { access_token: access, refresh_token: refresh, id_token: id } = answer.body
    issued.push(...[access, refresh, id].filter((token) => token !== undefined))
    return answer.body
  }

  for (const operation of operationsOf(readCommittedDocument())) {
    for (const [status, make] of Object.entries(scenarios[operation.id] ?? {})) {
      if (operation.method === 'GET' || !status.startsWith('2')) continue
      const request = await complete(world, operation, await make(world))
      const answer = await sendRequest(world, operation, request)
      expect([operation.id, answer.status]).toEqual([operation.id, Number(status)])
      const { password } = (request.body ?? {}) as { password?: string }
      const shown = answer.text === '' ? {} : (JSON.parse(answer.text) as Readonly<Record<string, unknown>>)
      const { client_secret: clientSecret, api_key: apiKey } = shown
      handedOut.push(...[password, clientSecret, apiKey].filter((value) => typeof value === 'string'))
    }
  }
  const person = await api.newPerson('recorded')
  handedOut.push(person.password)
  issued.push(person.token)
  for (const is_active of [false, true]) {
    const { status } = await api.call(`/v1/users/${person.id}`, { method: 'PATCH', body: { is_active } })
    expect(status).toBe(200)
  }
  // A hash that was made with another work factor is made anew by the next sign-in.
  const log = pino({ level: 'silent' })
  const workFactor = await readWorkFactor(db, provider.config)
  const dearer = { ...workFactor, timeCost: workFactor.timeCost + 1 }
  const passwordHash = await openPasswords({ config: provider.config, workFactor: dearer, log }).hash(person.password)
  const rehashed = { email: 'rehashed@people.example', password: person.password }
  await write((trx) => createUser(trx, systemActor, { email: rehashed.email, passwordHash }))
  issued.push(await api.signIn(rehashed))
  await write((trx) => storeWorkFactor(trx, systemActor, workFactor))
  await write((trx) => storeWorkFactor(trx, systemActor, dearer))
  await again('a work factor', () => write((trx) => storeWorkFactor(trx, systemActor, dearer)))

  const resource = 'https://recorded.example'
  const permissions = ['things:read', 'things:write'].map((permission) => ({ permission }))
  await write((trx) => createResource(trx, systemActor, { id: resource, permissions }))
  for (const given of [{ permissions: permissions.toReversed() }, { name: resource, attribute_claims: {} }, {}]) {
    await again(`a resource: ${Object.keys(given).join(' ')}`, () =>
      write((trx) => updateResource(trx, systemActor, { id: resource, ...given })),
    )
  }
  const role = await targets.role()
  const both = permissions.map(({ permission }) => ({ resource, permission }))
  const [read = { resource, permission: '' }] = both
  await write(async (trx) => {
    for (const permission of both) await grantPermission(trx, systemActor, { role, ...permission })
    await assignRole(trx, systemActor, { user_id: person.id, role })
  })
  const inclusion = { role, included: await targets.role() }
  await write((trx) => includeRole(trx, systemActor, inclusion))
  await again('an inclusion', () => write((trx) => includeRole(trx, systemActor, inclusion)))
  await write((trx) => excludeRole(trx, systemActor, inclusion))

  const client = await registerClient(provider, { first_party: false, permissions: both })
  const { client_id: clientId, client_secret: clientSecret = '' } = client
  handedOut.push(clientSecret)
  const parameters = { scope: 'openid things:read things:write', resource }
  const first = noted(await signInAt(provider, client, { person, parameters }))
  const opaque = noted(await signInAt(provider, client, { person, parameters: { scope: 'openid' } }))
  for (const token of [first.access_token, opaque.access_token]) {
    expect((await postForm(`${provider.issuer}/revoke`, client, { token: token ?? '' })).status).toBe(200)
  }
  const scopes = new Map([[resource, new Set(['things:write', 'things:read'])]])
  await again('a consent', () => write((trx) => giveConsent(trx, systemActor, { userId: person.id, clientId, scopes })))
  await write((trx) => setClientPermissions(trx, systemActor, { id: clientId, permissions: [read] }))
  await again('what a client may ask for', () =>
    write((trx) => setClientPermissions(trx, systemActor, { id: clientId, permissions: [read] })),
  )
  await again('a client', () =>
    write((trx) => updateClient(trx, systemActor, { id: clientId, redirect_uris: [callbackUri], first_party: false })),
  )
  await write((trx) => withdrawConsent(trx, systemActor, { userId: person.id, clientId }))
  noted(await signInAt(provider, client, { person, parameters: { scope: 'openid things:read', resource } }))
  await write((trx) => revokePermission(trx, systemActor, { role, ...read }))
  await write((trx) => updateResource(trx, systemActor, { id: resource, permissions: [] }))
  const { secret, client: withTwo } = await write((trx) => addClientSecret(trx, systemActor, { id: clientId }))
  handedOut.push(secret)
  const secret_id = withTwo.secrets[0]?.id ?? ''
  await write((trx) => revokeClientSecret(trx, systemActor, { id: clientId, secret_id }))
  for (const is_active of [false, true]) {
    const { status } = await api.call(`/v1/clients/${clientId}`, { method: 'PATCH', body: { is_active } })
    expect(status).toBe(200)
  }

  const receiverClient = await registerReceiver(db, provider.issuer)
  const receiver = await new Receiver(provider.issuer, receiverClient).signIn()
  handedOut.push(receiverClient.client_secret)
  issued.push(receiver.token)
  const header = 'Bearer what-the-receiver-wants-to-see'
  handedOut.push(header)
  const stream = await receiver.createStream()
  const delivery = { method: pushMethod, endpoint_url: 'http://127.0.0.1:1/', authorization_header: header }
  for (const [method, path, body] of [
    ['POST', '/ssf/status', { stream_id: stream, status: 'paused', reason: 'moving house' }],
    ['PATCH', '/ssf/streams', { stream_id: stream, delivery }],
    ['PATCH', '/ssf/streams', { stream_id: stream, description: 'another' }],
  ] as const) {
    expect([path, (await receiver.request(method, path, body)).status]).toEqual([path, 200])
    if ('delivery' in body) continue
    await again(`a stream: ${method} ${path}`, () => receiver.request(method, path, body))
  }
  const unsecret = { method: pushMethod, endpoint_url: delivery.endpoint_url }
  const replace = () =>
    receiver.request('PUT', '/ssf/streams', { stream_id: stream, delivery: unsecret, events_requested: [] })
  expect((await replace()).status).toBe(200)
  await again('a stream: PUT /ssf/streams', replace)
  expect((await receiver.request('DELETE', `/ssf/streams?stream_id=${stream}`)).status).toBe(204)
  await receiver.createStream()
  await sql`UPDATE signal_streams SET expires_at = now() - interval '1 second'`.execute(db)
  expect(await endExpiredStreams(db)).toBe(1)
  await sql`
      INSERT INTO signal_streams (stream_id, client_id, delivery_method, events_delivered, active_at)
      SELECT 'abandoned-' || n, ${receiverClient.client_id}, 'poll', '[]', now() - interval '1 hour'
      FROM generate_series(1, 1000) AS n`.execute(db)
  await receiver.createStream()

  const encryption = openKeyEncryption({ config: provider.config, log })
  for (const acceptOldForSeconds of [3_600, 0]) {
    await write((trx) => rotateSecret(trx, systemActor, { purpose: 'csrf', acceptOldForSeconds, encryption }))
  }
  // A rotation was among the operations. Nothing is asked for with the old key's tokens any more.
  await sql`UPDATE signing_keys SET published_until = now() WHERE state = 'retiring'`.execute(db)
  await write((trx) => retireExpiredKeys(trx, systemActor))
  // Undone, since the server has the old key alone.
  const [, oldId = '', old = ''] =
    /^([^:]+):(.+)$/m.exec(readFileSync(`${provider.config.keysDir}/development.key`, 'utf8')) ?? []
  const keyEncryptionKeys = [
    { id: 'new', key: Buffer.alloc(32, 7) },
    { id: oldId, key: Buffer.from(old, 'base64') },
  ]
  const undo = new Error('undo')
  await write(async (trx) => {
    await reseal(trx, systemActor, {
      encryption: openKeyEncryption({ config: { ...provider.config, keyEncryptionKeys }, log }),
    })
    rows = await trx.selectFrom('audit_events').select(['action', 'target_id', 'details']).orderBy('id').execute()
    throw undo
  }).catch((error: unknown) => expect(error).toBe(undo))
  handedOut.push(old, provider.demo.user.password, provider.demo.clients.web.client_secret)
  handedOut.push(api.console.client_secret ?? '', api.machine.client_secret ?? '', api.user.password)
  issued.push(api.administrator.token, api.user.token, api.machine.token)
  return { rows, secrets: handedOut, tokens: issued, repetitions }
}

eachDatabase((_open, engine) => {
  let walk: Walk
  beforeAll(async () => {
    walk = await makeOneOfEach(engine)
  })

  describe('the record of one of each change', () => {
    it('has a row of every kind that there is', () => {
      const seen = new Set(walk.rows.map(({ action }) => action))
      expect(findActions().filter((action) => !pureEvents.includes(action) && !seen.has(action))).toEqual([])
    })

    const actionsOf = (of: readonly Row[]) => [...new Set(of.map(({ action }) => action))].sort()

    it('says of each what was and what is: of what is made the latter, of what ends the former', () => {
      const wrong = walk.rows.filter(({ action, details: { before, after } }) => {
        if (pureEvents.includes(action)) return before !== undefined || after !== undefined
        return (before === undefined && !isBeginning(action)) || (after === undefined && !isEnd(action))
      })
      expect(actionsOf(wrong)).toEqual([])
    })

    it('says how the two differ, and leaves neither empty', () => {
      const text = JSON.stringify
      const wrong = walk.rows.filter(({ action, details: { before, after } }) => {
        if (pureEvents.includes(action)) return false
        return (
          text(before) === text(after) || [text(before), text(after)].some((side) => side === '{}' || side === '[]')
        )
      })
      expect(actionsOf(wrong)).toEqual([])
    })

    it('has nothing of what was so already, and no version is raised by it', () => {
      expect(walk.repetitions.length).toBeGreaterThan(8)
      expect(walk.repetitions.filter(([, made]) => made !== 0)).toEqual([])
    })

    it('has nothing secret in it', () => {
      const { rows, secrets, tokens } = walk
      expect(secrets.length).toBeGreaterThan(15)
      expect(tokens.length).toBeGreaterThan(8)
      const record = JSON.stringify(rows)
      const hashes = secrets.flatMap((secret) => {
        const digest = createHash('sha256').update(secret).digest()
        return [digest.toString('hex'), digest.toString('base64'), digest.toString('base64url')]
      })
      for (const secret of [...secrets, ...tokens, ...hashes]) {
        expect(secret.length).toBeGreaterThan(8)
        expect(record.includes(secret), secret).toBe(false)
      }
      const [suspicious] =
        /\$argon2|lk_secret_|lk_key_|eyJ[\w-]+\.|"(d|p|q|dp|dq|qi|sealed_\w+|\w+_hash|payload)":/.exec(record) ?? []
      expect(suspicious).toBeUndefined()
    })
  })
})
