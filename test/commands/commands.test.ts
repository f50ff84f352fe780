import { describe, expect, it } from 'vitest'
import type { Client } from '../../src/oauth/clients.ts'
import { ensureOwnEntries } from '../../src/oauth/own-entries.ts'
import { emptiedEachTime, eachDatabase } from '../support/databases.ts'
import { json, latchkey } from './running.ts'

const api = 'https://api.example.com'
const goodPassword = 'three unrelated words: tram, quince, ledger'

/** A command line without spaces inside its words. */
const words = (text: TemplateStringsArray, ...values: string[]): string[] => String.raw(text, ...values).split(' ')

eachDatabase((openNew) => {
  const open = emptiedEachTime(openNew)
  describe('a command line that is wrong', () => {
    it('exits with 2, says what was meant, and prints no data', async () => {
      const database = await open()
      const wrong: [string[], RegExp][] = [
        [[], /Usage: latchkey/],
        [['clients'], /Usage: latchkey clients/],
        [['clinets', 'list'], /unknown command 'clinets'[^]*Did you mean clients/],
        [['clients', 'lst'], /unknown command 'lst'[^]*Did you mean list/],
        [['clients', 'list', '--jsn'], /unknown option '--jsn'[^]*Did you mean --json/],
        [['clients', 'list', 'extra'], /too many arguments/],
        [['clients', 'create', 'x'], /--type/],
        [['clients', 'create', 'x', '--type', 'wbe'], /Allowed choices are web, spa, native, machine/],
        [['clients', 'rotate-secret', 'x', '--overlap', '1d'], /--overlap must be a whole number/],
        [['roles', 'grant', 'editor', 'models:read'], /write type:action@resource/],
        [['resources', 'delete', api], /--yes/],
        [['roles', 'delete', 'editor'], /--yes/],
        [['clients', 'delete', 'x'], /--yes/],
        [['users', 'revoke', 'x', '--reason', 'x'.repeat(201)], /--reason must be 200 characters/],
        [['clients', 'revoke', 'x', '--reason', 'x'.repeat(201)], /--reason must be 200 characters/],
        [['users', 'create', 'a@example.com', '--attribute', 'clearance'], /write name=value/],
        [['users', 'create', 'a@example.com', '--password-stdin', '--generate-password'], /exclude each other/],
        [['calibrate', '--target-ms', '1'], /from 10 to 5000/],
      ]
      for (const [args, message] of wrong) {
        const ran = await latchkey(database, args)
        expect({ args, ...ran }).toEqual({ args, exitCode: 2, out: '', err: expect.stringMatching(message) })
      }
    })

    it('takes no password as an argument', async () => {
      const database = await open()
      const ran = await latchkey(database, ['users', 'create', 'a@example.com', '--password', goodPassword])
      expect(ran).toMatchObject({ exitCode: 2, out: '' })
      expect(await database.db.selectFrom('users').select('id').execute()).toEqual([])
    })

    it('is helped with what there is', async () => {
      const help = await latchkey(await open(), ['--help'])
      expect(help.exitCode).toBe(0)
      expect(help.out).toContain('clients')
    })
  })

  describe('a command that fails', () => {
    it('exits with 1 and one message, without a stack trace', async () => {
      const database = await open()
      const failing: [string[], RegExp][] = [
        [['clients', 'show', 'nobody'], /^error: Client 'nobody' not found$/],
        [['users', 'disable', 'nobody@example.com'], /^error: There is no user nobody@example\.com\.$/],
        [['users', 'disable', 'usr_nobody'], /^error: There is no user usr_nobody\.$/],
        [['users', 'revoke', 'usr_nobody'], /^error: There is no user usr_nobody\.$/],
        [['clients', 'revoke', 'nobody'], /^error: Client 'nobody' not found$/],
        [['clients', 'delete', 'nobody', '--yes'], /^error: Client 'nobody' not found$/],
        [['roles', 'assign', 'editor', 'usr_nobody'], /^error: There is no user usr_nobody\.$/],
        [['resources', 'create', 'not a uri'], /^error: id: must be an absolute URI/],
        [['clients', 'create', 'x', '--type', 'web'], /^error: redirect_uris: must have a member/],
        [['clients', 'create', 'x', '--type', 'machine', '--grant', 'password'], /^error: grant_types\[0\]/],
      ]
      for (const [args, message] of failing) {
        const ran = await latchkey(database, args)
        expect({ args, ...ran }).toEqual({ args, exitCode: 1, out: '', err: expect.stringMatching(message) })
      }
    })

    it('names every field that is wrong', async () => {
      const address = 'javascript:alert(1)'
      const args = ['clients', 'create', 'x', '--type', 'spa', '--redirect-uri', address, '--client-uri', address]
      const { exitCode, err } = await latchkey(await open(), args)
      expect(exitCode).toBe(1)
      expect(err).toMatch(/2 fields[^]*redirect_uris\[0\]: [^]*client_uri: /)
    })
  })

  describe('latchkey users', () => {
    it('refuses a bad password, an address that is taken, an unknown role or attribute, and then adds nobody', async () => {
      const database = await open()
      const create = (args: string[], stdin?: string) => latchkey(database, ['users', 'create', ...args], stdin)
      expect(await create(['a@example.com', '--password-stdin'], 'short\n')).toMatchObject({ exitCode: 1, out: '' })
      expect(await create(['a@example.com', '--password-stdin'], 'password123\n')).toMatchObject({ exitCode: 1 })
      expect(await create(['a@example.com', '--role', 'pilot'])).toMatchObject({ exitCode: 1 })
      expect(await create(['a@example.com', '--attribute', 'shoesize=44'])).toMatchObject({ exitCode: 1 })
      expect(await create(['nonsense'])).toMatchObject({ exitCode: 1 })
      expect(await database.db.selectFrom('users').select('id').execute()).toEqual([])

      expect(await create(['a@example.com'])).toMatchObject({ exitCode: 0 })
      expect(await create([' A@Example.COM '])).toMatchObject({ exitCode: 1, out: '' })
    })

    it('adds a person with a generated password, roles and attributes, and shows the password this once', async () => {
      const database = await open()
      await json(database, ['resources', 'create', api, '--permission', 'models:read=Read models'])
      await json(database, ['roles', 'create', 'viewer', '--permission', `models:read@${api}`])
      const args = ['a@example.com', '--name', 'Ada', '--role', 'viewer', '--generate-password']
      const created = await json<{ id: string; password: string; attributes: unknown; roles: string[] }>(database, [
        'users',
        'create',
        ...args,
        '--attribute',
        'clearance=3',
        '--attribute',
        'department=legal',
      ])
      expect(created).toMatchObject({ attributes: { clearance: 3, department: 'legal' }, roles: ['viewer'] })
      expect(created.password.length).toBeGreaterThanOrEqual(24)

      const listed = await latchkey(database, ['users', 'list', '--json'])
      expect(listed.out).toContain(created.id)
      expect(listed.out).not.toContain(created.password)
      expect(listed.out).not.toContain('argon2')
      expect(await json(database, ['users', 'roles', 'A@example.com'])).toEqual({
        id: created.id,
        email: 'a@example.com',
        roles: ['viewer'],
        permissions: [{ resource: api, permission: 'models:read' }],
      })
    })

    it('sets a password from standard input, which ends sessions and tokens', async () => {
      const database = await open()
      await latchkey(database, ['users', 'create', 'a@example.com'])
      const set = await latchkey(database, ['users', 'set-password', 'a@example.com'], `${goodPassword}\n`)
      expect(set).toMatchObject({ exitCode: 0, out: '' })
      const user = await database.db.selectFrom('users').selectAll().executeTakeFirstOrThrow()
      expect(user).toMatchObject({ token_version: 2, sign_in_version: 2 })
      expect(user.password_hash).toMatch(/^\$argon2id\$/)
      const revocations = await database.db.selectFrom('revocations').select(['kind', 'subject']).execute()
      expect(revocations).toEqual([{ kind: 'user', subject: user.id }])
    })

    it('shuts a person out, and lets them in again, with the operator on record', async () => {
      const database = await open()
      await latchkey(database, ['users', 'create', 'a@example.com'])
      const disable = ['users', 'disable', 'a@example.com', '--reason', 'left']
      expect(await json(database, disable)).toMatchObject({ account_status: 'disabled' })
      expect(await json(database, ['users', 'enable', 'a@example.com'])).toMatchObject({ account_status: 'active' })
      const events = await database.db.selectFrom('audit_events').select(['action', 'actor_id']).orderBy('id').execute()
      expect(events).toEqual([
        { action: 'user.created', actor_id: 'ada' },
        { action: 'user.disabled', actor_id: 'ada' },
        { action: 'user.enabled', actor_id: 'ada' },
      ])
    })

    it('signs a person out everywhere, and forgets what they agreed to when that is asked', async () => {
      const database = await open()
      const { id: user_id } = await json<{ id: string }>(database, ['users', 'create', 'a@example.com'])
      const { id: client_id } = await json<Client>(database, ['clients', 'create', 'x', '--type', 'machine'])
      const expires_at = new Date(Date.now() + 60_000)
      const artifacts = ['Session', 'Grant', 'Grant'].map((kind, i) => ({
        kind,
        id: `${kind} ${i}`,
        user_id,
        payload: '{}',
        expires_at,
      }))
      await database.db.insertInto('artifacts').values(artifacts).execute()
      await database.db.insertInto('consents').values({ user_id, client_id, resource: '', scope: 'email' }).execute()
      const revoke = ['users', 'revoke', 'a@example.com', '--reason', 'a stolen laptop']
      expect(await json(database, revoke)).toEqual({
        id: user_id,
        email: 'a@example.com',
        ended: { sessions: 1, grants: 2, consents: 0 },
      })
      expect(await json(database, [...revoke, '--consents'])).toMatchObject({
        ended: { sessions: 0, grants: 0, consents: 1 },
      })
      const last = await database.db.selectFrom('audit_events').selectAll().orderBy('id', 'desc').executeTakeFirst()
      expect(last).toMatchObject({
        action: 'user.access-revoked',
        actor_id: 'ada',
        details: {
          reason: 'a stolen laptop',
          before: { consents: [{ client_id, resource: '', scope: 'email' }] },
          after: { consents: [] },
        },
      })
    })

    it('lists a page at a time, and says where the next begins', async () => {
      const database = await open()
      for (const name of ['a', 'b', 'c']) await latchkey(database, ['users', 'create', `${name}@example.com`])
      const first = await latchkey(database, ['users', 'list', '--limit', '2'])
      expect(first.out.split('\n')).toHaveLength(3)
      const [, after = ''] = /--after (\S+)/.exec(first.err) ?? []
      const second = await latchkey(database, ['users', 'list', '--limit', '2', '--after', after])
      expect(second.out).toContain('c@example.com')
      expect(second.err).toBe('')
      expect(await latchkey(database, ['users', 'list', '--limit', '201'])).toMatchObject({ exitCode: 1 })
    })
  })

  describe('latchkey clients', () => {
    it('shows a secret when it is made, and never again', async () => {
      const database = await open()
      await json(database, ['resources', 'create', api, '--permission', 'models:read'])
      const made = await json<Client & { client_secret: string }>(
        database,
        words`clients create nightly --type machine --permission models:read@${api}`,
      )
      expect(made).toMatchObject({
        name: 'nightly',
        permissions: [{ resource: api, permission: 'models:read' }],
      })
      expect(made.client_secret).toMatch(/^lk_secret_/)
      const rotated = await json<{ client_secret: string; secrets: unknown[] }>(
        database,
        words`clients rotate-secret ${made.id} --overlap 60`,
      )
      expect(rotated.secrets).toHaveLength(2)
      for (const args of [['list'], ['list', '--json'], ['show', made.id], ['show', made.id, '--json']]) {
        const { exitCode, out } = await latchkey(database, ['clients', ...args])
        expect(exitCode).toBe(0)
        expect(out).toContain(made.id)
        expect(out).not.toContain('lk_secret_')
        expect(out).not.toContain('secret_hash')
      }
    })

    it('registers one with public keys from standard input, and refuses what is no key set', async () => {
      const database = await open()
      const args = ['clients', 'create', 'x', '--type', 'machine', '--jwks-stdin']
      expect(await latchkey(database, args, 'not JSON')).toMatchObject({ exitCode: 2, out: '' })
      expect(await latchkey(database, args, '{"keys":[]}')).toMatchObject({ exitCode: 1, out: '' })
      expect(await latchkey(database, args, '[]')).toMatchObject({ exitCode: 1, out: '' })
      const jwk = { kty: 'OKP', crv: 'Ed25519', x: '11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo' }
      const made = await json(database, args, JSON.stringify({ keys: [jwk] }))
      expect(made).toMatchObject({ token_endpoint_auth_method: 'private_key_jwt', jwks: { keys: [jwk] }, secrets: [] })
    })

    it('changes nothing of those of the provider itself, and registers none under their names', async () => {
      const database = await open()
      await ensureOwnEntries(database.db, 'https://id.example')
      for (const id of ['latchkey-account', 'latchkey-docs']) {
        const before = (await latchkey(database, ['clients', 'show', id, '--json'])).out
        for (const args of [
          ['clients', 'disable', id],
          ['clients', 'delete', id, '--yes'],
          ['clients', 'rotate-secret', id],
          ['clients', 'revoke-secret', id, 'sec_none'],
          ['clients', 'set-permissions', id, 'users:read@https://id.example/v1'],
          ['clients', 'create', 'Another', '--type', 'machine', '--id', id],
          ['plans', 'assign', id, 'Nothing'],
          ['api-keys', 'create', id, 'A key'],
        ]) {
          const { exitCode, err } = await latchkey(database, args)
          expect([args, exitCode, err]).toEqual([
            args,
            1,
            expect.stringContaining('Clients of the provider itself stay as they are.'),
          ])
        }
        expect((await latchkey(database, ['clients', 'show', id, '--json'])).out).toBe(before)
        // What was got by them may have been stolen.
        expect(await json(database, ['clients', 'revoke', id])).toEqual({ client_id: id, ended: { grants: 0 } })
      }
    })

    it('disables and enables, replaces permissions, and revokes a secret', async () => {
      const database = await open()
      await json(database, ['resources', 'create', api, '--permission', 'models:read', '--permission', 'models:write'])
      const made = await json<Client>(database, ['clients', 'create', 'x', '--type', 'machine'])
      const on = (verb: string, ...args: string[]) => json<Client>(database, ['clients', verb, made.id, ...args])
      expect(await on('disable')).toMatchObject({ status: 'disabled' })
      expect(await on('enable')).toMatchObject({ status: 'active' })
      expect((await on('set-permissions', `models:write@${api}`)).permissions).toEqual([
        { resource: api, permission: 'models:write' },
      ])
      expect((await on('set-permissions')).permissions).toEqual([])
      expect((await on('revoke-secret', made.secrets[0]?.id ?? '')).secrets).toEqual([])
    })

    it('ends everything that one was given, and removes one', async () => {
      const database = await open()
      const { id } = await json<Client>(database, ['clients', 'create', 'x', '--type', 'machine'])
      expect(await json(database, ['clients', 'revoke', id])).toEqual({ client_id: id, ended: { grants: 0 } })
      expect(await json(database, ['clients', 'show', id])).toMatchObject({ status: 'active', token_version: 2 })
      expect(await json(database, ['clients', 'delete', id, '--yes'])).toEqual({ client_id: id, deleted: true })
      expect(await latchkey(database, ['clients', 'show', id])).toMatchObject({ exitCode: 1 })
      const revocations = await database.db.selectFrom('revocations').select(['kind', 'subject']).execute()
      expect(revocations).toEqual([1, 2].map(() => ({ kind: 'client', subject: id })))
    })

    it('lets no name move the cursor or colour the terminal', async () => {
      const database = await open()
      await json(database, ['clients', 'create', 'red\u001B[31m\u0007\u202E', '--type', 'machine'])
      const { out } = await latchkey(database, ['clients', 'list'])
      expect(out).toContain('red')
      // oxlint-disable-next-line no-control-regex -- control characters are what must not be there
      expect(out).not.toMatch(/[\u0000-\u0009\u000B-\u001F\u007F-\u009F\u202E]/)
    })
  })

  describe('latchkey resources and roles', () => {
    it('make, list, change and remove them', async () => {
      const database = await open()
      const created = await json(database, [
        ...words`resources create ${api} --name Models --lifetime 300 --attribute-claim dept=department`,
        ...words`--permission models:write --permission`,
        'models:read=Read models',
      ])
      expect(created).toMatchObject({
        name: 'Models',
        access_token_lifetime_seconds: 300,
        attribute_claims: { dept: 'department' },
        permissions: [
          { permission: 'models:read', description: 'Read models' },
          { permission: 'models:write', description: '' },
        ],
      })
      const permissions = [`models:read@${api}`, `models:write@${api}`]
      await json(database, ['roles', 'create', 'editor'])
      expect(await json(database, ['roles', 'grant', 'editor', ...permissions])).toMatchObject({
        permissions: [{ permission: 'models:read' }, { permission: 'models:write' }],
      })
      await latchkey(database, ['users', 'create', 'a@example.com'])
      expect(await json(database, ['roles', 'assign', 'editor', 'a@example.com'])).toMatchObject({ roles: ['editor'] })
      expect((await latchkey(database, ['roles', 'list'])).out).toMatch(/editor +1 +models:read@/)

      await json(database, ['resources', 'update', api, '--permission', 'models:read=Read models'])
      expect(await json(database, ['roles', 'list'])).toMatchObject([{ permissions: [{ permission: 'models:read' }] }])
      expect(await json(database, ['roles', 'revoke', 'editor', `models:read@${api}`])).toMatchObject({
        permissions: [],
      })
      expect(await json(database, ['roles', 'unassign', 'editor', 'a@example.com'])).toMatchObject({ roles: [] })
      expect(await latchkey(database, ['roles', 'delete', 'editor', '--yes'])).toMatchObject({ exitCode: 0 })
      expect(await latchkey(database, ['resources', 'delete', api, '--yes'])).toMatchObject({ exitCode: 0 })
      expect(await json(database, ['roles', 'list'])).toEqual([])
      expect(await json(database, ['resources', 'list'])).toEqual([])
    })

    it('include roles in others and take that back, and refuse what no role may include', async () => {
      const database = await open()
      await json(database, ['resources', 'create', api, '--permission', 'models:read=Read models'])
      await json(database, ['roles', 'create', 'viewer', '--permission', `models:read@${api}`])
      const made = await latchkey(database, ['roles', 'create', 'editor', '--include', 'viewer', '--include', 'viewer'])
      expect(made).toMatchObject({ exitCode: 0, out: 'The role editor is made, with 1 permissions.' })
      const failing: [string[], RegExp][] = [
        [words`roles create owner --include nobody`, /^error: includes\[0\]: There is no role nobody/],
        [words`roles include viewer viewer`, /^error: included: A role does not include itself/],
        [words`roles include editor administrator`, /^error: included: cannot be included: who is an administrator/],
        [words`roles include viewer editor`, /^error: Roles cannot [^]*: viewer → editor → viewer\./],
        [words`roles include nobody viewer`, /^error: Role 'nobody' not found$/],
      ]
      for (const [args, message] of failing) {
        const ran = await latchkey(database, args)
        expect({ args, ...ran }).toEqual({ args, exitCode: 1, out: '', err: expect.stringMatching(message) })
      }

      await json(database, ['roles', 'create', 'owner'])
      expect(await json(database, ['roles', 'include', 'owner', 'editor', 'viewer'])).toMatchObject({
        includes: ['editor', 'viewer'],
        permissions: [],
        effective_permissions: [{ resource: api, permission: 'models:read' }],
      })
      expect((await latchkey(database, ['roles', 'list'])).out).toMatch(/owner +0 +editor viewer/)
      expect(await latchkey(database, ['roles', 'exclude', 'owner', 'viewer'])).toMatchObject({
        exitCode: 0,
        out: 'owner includes: editor',
      })
      expect(await latchkey(database, ['roles', 'exclude', 'owner', 'viewer'])).toMatchObject({
        err: 'owner did not include that: viewer',
      })
      await latchkey(database, ['users', 'create', 'a@example.com', '--role', 'owner'])
      expect(await json(database, ['users', 'roles', 'a@example.com'])).toMatchObject({
        roles: ['owner'],
        permissions: [{ permission: 'models:read' }],
      })
    })

    it('print nothing but a list’s rows, and nothing for none', async () => {
      const database = await open()
      for (const noun of ['users', 'clients', 'resources', 'roles']) {
        expect(await latchkey(database, [noun, 'list'])).toEqual({ exitCode: 0, out: '', err: '' })
      }
    })
  })

  describe('latchkey migrate', () => {
    it('has nothing to do the second time', async () => {
      expect(await json(await open(), ['migrate'])).toEqual({ applied: [] })
    })
  })

  describe('latchkey calibrate', () => {
    it('stores what it chose, for every process that uses the database', async () => {
      const database = await open()
      const { chosen, settings } = await json<{
        chosen: { memory_kib: number; time_cost: number; parallelism: number }
        settings: Record<string, number>
      }>(database, ['calibrate', '--target-ms', '10', '--store'])
      const { memory_kib, time_cost, parallelism } = chosen
      expect(settings['LATCHKEY_PASSWORD_MEMORY_KIB']).toBe(memory_kib)
      const stored = await database.db.selectFrom('settings').select('value').executeTakeFirstOrThrow()
      expect(stored.value).toEqual({ memory_kib, time_cost, parallelism })
    })
  })
})
