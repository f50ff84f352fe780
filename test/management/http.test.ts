/** HTTP as the management API speaks it, on its real routes: what is refused first, then reading, changing, and lists. */
import { request } from 'node:http'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { sql } from 'kysely'
import { beforeAll, describe, expect, it } from 'vitest'
import { writeAudit, type Actor } from '../../src/audit/audit.ts'
import { eachDatabase } from '../support/databases.ts'
import { openManagement, type Called, type CallOptions, type Json, type Management } from '../support/management.ts'

const uuid = /^[\da-f]{8}-[\da-f]{4}-4[\da-f]{3}-[89ab][\da-f]{3}-[\da-f]{12}$/
/** As the usage plan of the lecture is written, byte for byte. */
const basicPlan = readFileSync(join(import.meta.dirname, '..', 'metering', 'basic-plan.json'), 'utf8')

interface Secret {
  readonly secret_id: string
  readonly created_at: string
  readonly expires_at: string | null
}

eachDatabase((_open, engine) => {
  let api: Management
  /** an identifier that exists, for each parameter of a path */
  let known: Readonly<Record<string, string>>
  /** path → its methods, as the document says */
  let documented: ReadonlyMap<string, readonly string[]>

  beforeAll(async () => {
    api = await openManagement(engine)
    const first = async (path: string, list: string, member: string) => {
      const { body } = await api.call(path)
      return String((body[list] as Record<string, unknown>[])[0]?.[member])
    }
    for (const name of ['first', 'second', 'third']) {
      await api.call('/v1/api-keys', { method: 'POST', body: { client_id: api.machine.client_id, name } })
      await api.call(`/v1/plans/${name}`, { method: 'PUT', body: { name } })
    }
    known = {
      user_id: api.user.id,
      name: 'support',
      session_id: await first('/v1/sessions', 'sessions', 'session_id'),
      grant_id: await first('/v1/grants', 'grants', 'grant_id'),
      client_id: api.machine.client_id,
      secret_id: 'sec_any',
      resource_id: encodeURIComponent(api.provider.demo.resource),
      kid: await first('/v1/keys', 'keys', 'kid'),
      api_key_id: await first('/v1/api-keys', 'api_keys', 'api_key_id'),
      audit_event_id: await first('/v1/audit?sort=occurred_at', 'audit_events', 'audit_event_id'),
    }
    const { paths } = (await api.call('/openapi.json', { token: null })).body as unknown as {
      paths: Record<string, object>
    }
    documented = new Map(Object.entries(paths).map(([path, methods]) => [path, Object.keys(methods)]))
  })

  const concrete = (path: string) =>
    path.startsWith('/v1/plans/')
      ? '/v1/plans/first'
      : path.replaceAll(/\{(\w+)\}/g, (_, name: string) => known[name] ?? '')
  const reads = () => [...documented].flatMap(([path, methods]) => (methods.includes('get') ? [concrete(path)] : []))
  const createUser = async (name: string, more: object = {}) => {
    const created = await api.call('/v1/users', { method: 'POST', body: { email: `${name}@http.example`, ...more } })
    expect(created.status).toBe(201)
    return { path: created.headers.get('location') ?? '', tag: created.headers.get('etag') ?? '' }
  }
  const patch = (path: string, body: object, headers: Record<string, string> = {}) =>
    api.call(path, { method: 'PATCH', body, headers })
  const post = (rawBody: string | Uint8Array<ArrayBuffer>, contentType?: string, headers: object = {}) =>
    api.call('/v1/users', {
      method: 'POST',
      rawBody,
      headers: { ...(contentType === undefined ? {} : { 'content-type': contentType }), ...headers },
    })
  const refusal = ({ status, body }: Called) => [status, body.error.code]
  /** of a tag what If-Match looks at */
  const versionOf = (tag: string) => tag.replace(/\..*$/, '"')

  /** What fetch would not send: a body with GET, a body in pieces, no Accept. */
  async function send(
    path: string,
    { method = 'GET', headers = {}, body = [] }: { method?: string; headers?: object; body?: readonly string[] } = {},
  ): Promise<{ status: number; headers: NodeJS.Dict<string | string[]>; text: string }> {
    const { promise, resolve, reject } = Promise.withResolvers<Awaited<ReturnType<typeof send>>>()
    const asked = request(
      `${api.provider.issuer}${path}`,
      { method, headers: { authorization: `Bearer ${api.administrator.token}`, ...headers } },
      (answer) => {
        let text = ''
        answer
          .setEncoding('utf8')
          .on('data', (chunk: string) => (text += chunk))
          .on('end', () => resolve({ status: answer.statusCode ?? 0, headers: answer.headers, text }))
      },
    ).on('error', reject)
    for (const piece of body) asked.write(piece)
    asked.end()
    return promise
  }

  describe('what is refused', () => {
    it('is a token that is none, or stands where tokens do not belong: 401', async () => {
      const answers = await Promise.all([
        api.call('/v1/users', { token: 'nonsense' }),
        api.call('/v1/users', { token: `${api.administrator.token}x` }),
        api.call('/v1/users', { token: null, headers: { authorization: `Basic ${api.administrator.token}` } }),
        api.call(`/v1/users?access_token=${api.administrator.token}`, { token: null }),
      ])
      for (const answer of answers) {
        expect(refusal(answer)).toEqual([401, 'AUTHENTICATION_ERROR'])
        expect(answer.headers.get('www-authenticate')).toMatch(/^Bearer /)
      }
    })

    it('is a method that a path does not have: 405, with those that it has', async () => {
      for (const [path, methods] of documented) {
        const all = methods.flatMap((method) => (method === 'get' ? ['GET', 'HEAD'] : [method.toUpperCase()])).sort()
        const other = ['POST', 'PUT', 'PATCH', 'DELETE'].find((method) => !all.includes(method)) ?? 'PROPFIND'
        for (const method of [other, 'PROPFIND']) {
          const answer = await api.call(concrete(path), { method })
          const allowed = answer.headers.get('allow')?.split(', ').sort()
          expect([path, method, ...refusal(answer), allowed]).toEqual([path, method, 405, 'METHOD_NOT_ALLOWED', all])
        }
      }
    })

    it('is a path that there is not, and another spelling of one that there is: 404', async () => {
      for (const path of [
        '/v1',
        '/v1/',
        '/v1/nothing',
        '/v1/users/',
        '/V1/users',
        '/v1/Users',
        '/v1//users',
        '/v9/users',
      ]) {
        expect([path, ...refusal(await api.call(path))]).toEqual([path, 404, 'RESOURCE_NOT_FOUND'])
      }
    })

    it('is an identifier that nothing has, whatever it looks like: 404, with what it was taken for', async () => {
      const nowhere = [
        ['/v1/users/usr_nobody', 'user', 'usr_nobody'],
        ['/v1/users/457', 'user', '457'],
        ['/v1/users/usr_%00', 'user', ''],
        ['/v1/users/%E4%F6', 'user', '%E4%F6'],
        [`/v1/users/${'x'.repeat(3_000)}`, 'user', 'x'.repeat(200)],
        ['/v1/roles/Not%20a%20role', 'role', 'Not a role'],
        ['/v1/plans/a%2Fb', 'plan', 'a/b'],
        ['/v1/resources/https%3A%2F%2Fnowhere.example', 'resource', 'https://nowhere.example'],
        ['/v1/resources/a%00b', 'resource', ''],
        ['/v1/clients/nobody', 'client', 'nobody'],
        ['/v1/clients/nobody/secrets', 'client', 'nobody'],
        ['/v1/sessions/none', 'session', 'none'],
        ['/v1/grants/none', 'grant', 'none'],
        ['/v1/keys/none', 'key', 'none'],
        ['/v1/api-keys/none', 'api key', 'none'],
        ['/v1/audit/aud_0', 'audit event', 'aud_0'],
        ['/v1/audit/4711', 'audit event', '4711'],
      ] as const
      for (const [path, type, id] of nowhere) {
        const answer = await api.call(path)
        expect([path, ...refusal(answer)]).toEqual([path, 404, 'RESOURCE_NOT_FOUND'])
        expect(answer.body.error).toMatchObject({ resource_type: type, resource_id: id })
      }
    })

    it('is an identifier by the name that its parameter has, with a list that there is', async () => {
      const parametersOf = (path: string): readonly string[] => path.match(/(?<=\{)\w+(?=\})/g) ?? []
      const parameters = new Set([...documented.keys()].flatMap(parametersOf))
      const nothing: Readonly<Record<string, string>> = {
        user_id: 'usr_nobody',
        resource_id: 'https%3A%2F%2Fnothing.example',
        audit_event_id: 'aud_999999999999',
      }
      const suggested = new Set<string>()
      for (const [path, methods] of documented) {
        const names = parametersOf(path)
        for (const [id, own] of [
          ['nothing', nothing],
          ['!%20', {}],
        ] as const) {
          for (const method of methods.filter((one) => names.length > 0 && ['get', 'delete'].includes(one))) {
            const target = path.replaceAll(/\{(\w+)\}/g, (_, name: string) =>
              name === 'client_id' && names.includes('secret_id')
                ? api.machine.client_id
                : ((own as typeof nothing)[name] ?? id),
            )
            const answer = await api.call(target, { method: method.toUpperCase() })
            expect([method, target, answer.status]).toEqual([method, target, 404])
            const [list, spelling] = answer.body.error['suggestions'] as [string, string]
            const parameter = /^Check (\w+) spelling$/.exec(spelling)?.[1] ?? ''
            expect([target, names.includes(parameter)]).toEqual([target, true])
            suggested.add(parameter)
            const collection = /^Use GET (\S+) to list available [\w-]+$/.exec(list)?.[1] ?? ''
            const isListed = [...documented].some(
              ([one, has]) =>
                has.includes('get') && new RegExp(`^${one.replaceAll(/\{\w+\}/g, '[^/]+')}$`).test(collection),
            )
            expect([target, collection, isListed]).toEqual([target, collection, true])
          }
        }
      }
      expect(suggested).toEqual(parameters)
    })

    it('is somebody else’s session or grant to a person, as one that there is not, in every word', async () => {
      const others = [
        ['session', 'sessions', known['session_id'] ?? ''],
        ['grant', 'grants', known['grant_id'] ?? ''],
      ] as const
      const { token } = await api.newPerson('curious')
      for (const [type, list, id] of others) {
        for (const method of ['GET', 'DELETE']) {
          const ask = async (asked: string) => {
            const answer = await api.call(`/v1/${list}/${asked}`, { method, token })
            return [
              answer.status,
              answer.text.replaceAll(asked, '(id)').replaceAll(/"(request_id|timestamp)":"[^"]+"/g, ''),
            ]
          }
          expect((await api.call(`/v1/${list}/${id}`)).status).toBe(200)
          expect(await ask(id)).toEqual(await ask('nothing-at-all'))
          // What no database can hold is nobody's.
          const unstorable = await api.call(`/v1/${list}/a%00b`, { method, token })
          expect([list, method, ...refusal(unstorable)]).toEqual([list, method, 404, 'RESOURCE_NOT_FOUND'])
          const { body } = await api.call(`/v1/${list}/${id}`, { method, token })
          expect(body.error).toEqual({
            code: 'RESOURCE_NOT_FOUND',
            message: `${type.replace(/^./, (letter) => letter.toUpperCase())} '${id}' not found`,
            resource_type: type,
            resource_id: id,
            suggestions: [`Use GET /v1/users/me/${list} to list available ${list}`, `Check ${type}_id spelling`],
          })
          expect((await api.call(`/v1/users/me/${list}`, { token })).status).toBe(200)
        }
      }
    })

    it('is a version that there is not, or two at once: 400, and the answer says which version gave it', async () => {
      const asked = [
        ['/v1/users', { 'api-version': '2' }, 400],
        ['/v1/users', { 'x-api-version': 'banana' }, 400],
        ['/v1/users', { accept: 'application/vnd.latchkey.v2+json' }, 400],
        ['/v1', { 'api-version': '2' }, 400],
        ['/v1', {}, 404],
        ['/v1/', {}, 404],
        ['/v1/nothing', {}, 404],
        ['/users', { 'api-version': '7' }, 400],
        ['/users', { 'api-version': '1', 'x-api-version': '2' }, 400],
        ['/users', { accept: 'application/vnd.latchkey.v7+json' }, 400],
        ['/users/usr_1/nothing', {}, 404],
      ] as const
      for (const [path, headers, status] of asked) {
        const answer = await api.call(path, { headers })
        expect([path, headers, answer.status, answer.headers.get('api-version')]).toEqual([path, headers, status, '1'])
        const vary = answer.headers.get('vary')?.toLowerCase().split(', ') ?? []
        const chosenBy = ['api-version', 'x-api-version', 'accept'].filter((name) => vary.includes(name))
        expect([path, chosenBy.length]).toEqual([path, path.startsWith('/v1') ? 1 : 3])
      }
      for (const path of ['/v9/users', '/v9', '/nothing']) {
        const answer = await api.call(path, { headers: { 'api-version': '1' } })
        expect([path, answer.status, answer.headers.has('api-version')]).toEqual([path, 404, false])
      }
    })

    it('is to change what describes the API: 405 with Allow, and OPTIONS says the same', async () => {
      const paths = ['/openapi.json', '/docs', '/docs/', '/docs/init.js', '/.well-known/oauth-protected-resource/v1']
      for (const path of paths) {
        expect([path, (await api.call(path, { token: null })).status]).toEqual([path, 200])
        for (const method of ['POST', 'PUT', 'PATCH', 'DELETE', 'PROPFIND']) {
          const answer = await api.call(path, { method, token: null })
          expect([path, method, ...refusal(answer)]).toEqual([path, method, 405, 'METHOD_NOT_ALLOWED'])
          expect(answer.headers.get('allow')).toBe('GET, HEAD')
        }
        const asked = await api.call(path, { method: 'OPTIONS', token: null })
        expect([path, asked.status, asked.headers.get('allow'), asked.text]).toEqual([path, 200, 'GET, HEAD', ''])
      }
    })

    it('is any method where there is nothing: 404, and never an empty Allow', async () => {
      for (const path of ['/v1/nothing', '/v1', '/users/usr_1/nothing', '/nowhere', '/docs/nothing']) {
        for (const method of ['GET', 'POST', 'PROPFIND', 'TRACE', 'QUERY', 'REPORT']) {
          const { status, headers, text } = await send(path, { method })
          expect([path, method, status, headers['allow']]).toEqual([path, method, 404, undefined])
          expect(JSON.parse(text)).toMatchObject({ error: { code: 'RESOURCE_NOT_FOUND' } })
        }
      }
      for (const [path, allow] of [
        ['/token', 'POST'],
        ['/v1/usage', 'HEAD, GET'],
      ] as const) {
        const { status, headers } = await send(path, { method: 'PROPFIND' })
        expect([path, status, headers['allow']]).toEqual([path, 405, allow])
      }
    })

    it('is a media type that the answer cannot have: 406', async () => {
      for (const accept of [
        'text/plain',
        'application/xml',
        'image/*',
        'application/json;q=0',
        'application/json;charset=latin1',
        'application/json;charset=utf-8;q=0',
      ]) {
        const answer = await api.call('/v1/users', { headers: { accept } })
        expect([accept, ...refusal(answer)]).toEqual([accept, 406, 'NOT_ACCEPTABLE'])
      }
    })

    it('is a body in another media type, charset or coding: 415, with Accept-Patch for a PATCH', async () => {
      const json = '{"email":"media@http.example"}'
      const refused = [
        undefined,
        'text/plain',
        'application/x-www-form-urlencoded',
        'application/json; charset=iso-8859-1',
        'application/json; charset=utf-16',
        'application/jsonp',
      ]
      for (const type of refused) {
        // A text has the type text/plain of itself; bytes have none.
        expect([type, ...refusal(await post(Buffer.from(json), type))]).toEqual([type, 415, 'UNSUPPORTED_MEDIA_TYPE'])
      }
      for (const coding of ['gzip', 'br', 'identity, gzip']) {
        const answer = await post(json, 'application/json', { 'content-encoding': coding })
        expect([coding, answer.status]).toEqual([coding, 415])
      }
      for (const type of ['text/plain', 'application/vnd.latchkey.v1+json', 'application/json; charset=latin1']) {
        const answer = await api.call(`/v1/users/${api.user.id}`, {
          method: 'PATCH',
          rawBody: '{}',
          headers: { 'content-type': type },
        })
        expect([type, answer.status, answer.headers.get('accept-patch')]).toEqual([
          type,
          415,
          'application/merge-patch+json, application/json-patch+json, application/json',
        ])
      }
    })

    it('is a body that cannot be read: 400', async () => {
      const malformed = [
        '',
        '{',
        'email=a@http.example',
        '{"email":"a@http.example"} {}',
        Buffer.from([0xff, 0xfe, 0x7b, 0x7d]),
        Buffer.concat([Buffer.from('{"email":"'), Buffer.from([0xe4]), Buffer.from('@http.example"}')]),
        '['.repeat(100) + ']'.repeat(100),
        `{"attributes":${'{"a":'.repeat(99)}1${'}'.repeat(100)}`,
        '['.repeat(100_000) + ']'.repeat(100_000),
      ]
      for (const [i, body] of malformed.entries()) {
        expect([i, ...refusal(await post(body, 'application/json'))]).toEqual([i, 400, 'MALFORMED_REQUEST'])
      }
    })

    it('is a member that is there twice, in whatever spelling and depth: 400 that names it, and nothing is changed', async () => {
      const repeated = [
        ['{"email":"twice@http.example","email":"twice-2@http.example"}', 'email'],
        [String.raw`{"email":"twice@http.example","\u0065mail":"twice-2@http.example"}`, 'email'],
        ['{"email":"twice@http.example","attributes":{"a":{"b":1},"c":[{"d":1},{"b":1,"b":1}]}}', 'attributes.c[1].b'],
        [String.raw`{"email":"twice@http.example","name":"\\\"{\"","name":"\\"}`, 'name'],
      ] as const
      for (const [body, field] of repeated) {
        const answer = await post(body, 'application/json')
        expect([body, ...refusal(answer)]).toEqual([body, 400, 'MALFORMED_REQUEST'])
        expect(answer.body.error.message).toBe(`${field}: Must be given once`)
        expect(answer.body.error.details).toMatchObject([{ field, constraint: 'repeated' }])
      }
      const patch = await api.call(`/v1/users/${api.user.id}`, {
        method: 'PATCH',
        rawBody: '{"name":"A","name":"B"}',
        headers: { 'content-type': 'application/merge-patch+json' },
      })
      expect(refusal(patch)).toEqual([400, 'MALFORMED_REQUEST'])
      // The same name in two objects, as a value, or inside of one is none.
      const once = String.raw`{"email":"once@http.example","name":"\"email\":\\","profile":{"profile":"https://http.example/email"},"attributes":{"department":"email"}}`
      expect((await post(once, 'application/json')).status).toBe(201)
      const permissions = ['users:read', 'users:write'].map((permission) => ({
        resource: `${api.provider.issuer}/v1`,
        permission,
      }))
      const list = await api.call('/v1/roles/of-two-permissions', { method: 'PUT', body: { permissions } })
      expect(list.status).toBe(201)
    })

    it('is text that no database holds, and members that nobody declared: 400, with the field', async () => {
      const invalid = [
        [String.raw`{"email":"a\u0000@http.example"}`, 'email', 'format'],
        [String.raw`{"email":"a@http.example","name":"\ud83d"}`, 'name', 'format'],
        [String.raw`{"email":"a@http.example","attributes":{"\u0000":1}}`, 'attributes', 'format'],
        ['{"email":"a@http.example","__proto__":{"is_active":false}}', '__proto__', 'unknown'],
        ['{"email":"a@http.example","attributes":{"__proto__":{"clearance":9}}}', 'attributes.__proto__', 'unknown'],
        ['{"email":"a@http.example","profile":{"__proto__":{}}}', 'profile.__proto__', 'unknown'],
        ['{"email":"a@http.example","constructor":{"prototype":{}}}', 'constructor', 'unknown'],
        ['[]', '', 'type'],
        ['null', '', 'type'],
        ['"a@http.example"', '', 'type'],
      ] as const
      for (const [body, field, constraint] of invalid) {
        const answer = await post(body, 'application/json')
        expect([body, ...refusal(answer)]).toEqual([body, 400, 'VALIDATION_ERROR'])
        expect(answer.body.error.details).toEqual([expect.objectContaining({ field, constraint })])
      }
      // Nor by a patch.
      const answer = await api.call(`/v1/users/${api.user.id}`, {
        method: 'PATCH',
        rawBody: '{"__proto__":{"is_active":false}}',
        headers: { 'content-type': 'application/merge-patch+json' },
      })
      expect(refusal(answer)).toEqual([400, 'VALIDATION_ERROR'])
    })

    it('is a body that is too large, whether it says so or not: 413', async () => {
      const body = JSON.stringify({ email: 'large@http.example', name: 'x'.repeat(300_000) })
      expect(refusal(await post(body, 'application/json'))).toEqual([413, 'PAYLOAD_TOO_LARGE'])
      const pieces = await send('/v1/users', {
        method: 'POST',
        headers: { 'content-type': 'application/json', 'transfer-encoding': 'chunked' },
        body: [body.slice(0, 200_000), body.slice(200_000)],
      })
      expect(pieces.status).toBe(413)
    })

    it('is a query that nobody knows, on every path, also of a change: 400, with the name that was probably meant', async () => {
      for (const path of [...reads(), '/v1/users?fields=email']) {
        const answer = await api.call(`${path}${path.includes('?') ? '&' : '?'}nonsense=1`)
        expect([path, ...refusal(answer)]).toEqual([path, 400, 'VALIDATION_ERROR'])
        expect(answer.body.error.details).toEqual([
          expect.objectContaining({ field: 'nonsense', constraint: 'unknown' }),
        ])
      }
      const deletion = await api.call(`/v1/users/${api.user.id}?force=true`, { method: 'DELETE' })
      expect(refusal(deletion)).toEqual([400, 'VALIDATION_ERROR'])
      const typo = await api.call('/v1/users?limt=2&creatd_after=2026-01-01T00:00:00Z')
      expect(typo.body.error.details).toEqual([
        expect.objectContaining({ field: 'limt', suggestion: 'limit' }),
        expect.objectContaining({ field: 'creatd_after', suggestion: 'created_after' }),
      ])
    })

    it('is every parameter in a wrong format, at once, with the right one', async () => {
      const { status, body } = await api.call(
        '/v1/users?limit=ten&created_after=yesterday&is_active=1&sort=naem&fields=emial&role=&role=a',
      )
      expect(status).toBe(400)
      expect(Object.fromEntries(body.error.details.map((detail) => [detail.field, detail]))).toMatchObject({
        limit: { value: 'ten', expected_format: 'a whole number' },
        created_after: { value: 'yesterday', expected_format: 'YYYY-MM-DDTHH:MM:SSZ' },
        is_active: { value: '1', expected_format: 'true|false' },
        sort: { value: 'naem', suggestion: 'name' },
        fields: { value: 'emial', suggestion: 'email' },
        role: { constraint: 'repeated' },
      })
      const usage = await api.call('/v1/usage?from=01/02/2026')
      expect(usage.body.error.details).toEqual([expect.objectContaining({ expected_format: 'YYYY-MM-DD' })])
    })

    it('is a page that there cannot be', async () => {
      const { body } = await api.call('/v1/users?limit=1')
      const cursor = body.pagination.next_cursor ?? ''
      const queries = [
        'limit=0',
        'limit=101',
        'limit=1.5',
        'offset=-1',
        'offset=100001',
        `offset=1&cursor=${cursor}`,
        'cursor=',
        'cursor=AAAA',
        `cursor=${cursor.slice(0, -1)}${cursor.endsWith('A') ? 'B' : 'A'}`,
        // It was given for another order and for other filters.
        `cursor=${cursor}&sort=-email`,
        `cursor=${cursor}&is_active=true`,
      ]
      for (const query of queries) {
        expect([query, ...refusal(await api.call(`/v1/users?${query}`))]).toEqual([query, 400, 'VALIDATION_ERROR'])
      }
      // For another list.
      expect((await api.call(`/v1/clients?cursor=${cursor}`)).status).toBe(400)
      expect((await api.call(`/v1/users?limit=1&cursor=${cursor}`)).status).toBe(200)
    })

    it('is an Idempotency-Key that is none, or belongs to another request: 400, 422', async () => {
      const create = (key: string, email: string) =>
        api.call('/v1/users', { method: 'POST', body: { email }, headers: { 'idempotency-key': key } })
      for (const key of ['', 'with a space', 'x'.repeat(256)]) {
        expect([key, (await create(key, 'key@http.example')).status]).toEqual([key, 400])
      }
      expect((await create('http-1', 'key@http.example')).status).toBe(201)
      expect(refusal(await create('http-1', 'other@http.example'))).toEqual([422, 'IDEMPOTENCY_KEY_REUSED'])
      expect((await create('http-1', 'key@http.example')).headers.get('idempotency-replayed')).toBe('true')
      // The same words about something else: nobody is given another's secret.
      const headers = { 'idempotency-key': 'http-2' }
      const rotate = async (name: string) => {
        const client = { client_id: name, type: 'machine', name }
        await api.call('/v1/clients', { method: 'POST', body: client })
        return api.call(`/v1/clients/${name}/secrets`, { method: 'POST', body: {}, headers })
      }
      expect((await rotate('keyed-one')).status).toBe(201)
      expect(refusal(await rotate('keyed-two'))).toEqual([422, 'IDEMPOTENCY_KEY_REUSED'])
    })

    it('is every field of a client at once, each with the rule that it breaks', async () => {
      const resource = api.provider.demo.resource
      const detailsOf = async (method: string, path: string, body: object) => {
        const answer = await api.call(path, { method, body })
        expect(refusal(answer)).toEqual([400, 'VALIDATION_ERROR'])
        return Object.fromEntries(answer.body.error.details.map(({ field, constraint }) => [field, constraint]))
      }
      expect(
        await detailsOf('POST', '/v1/clients', {
          client_id: 'usr_posing',
          type: 'web',
          name: '',
          redirect_uris: ['https://fine.example/callback', 'nowhere#fragment'],
          client_uri: 'ftp://client.example',
          default_resource: 'https://nothing.example',
          permissions: [
            { resource, permission: 'models:read' },
            { resource, permission: 'NOT A PERMISSION' },
            { resource, permission: 'models:fly' },
          ],
        }),
      ).toEqual({
        client_id: 'format',
        name: 'minimum',
        'redirect_uris[1]': 'format',
        client_uri: 'format',
        default_resource: 'exists',
        'permissions[1].permission': 'format',
        'permissions[2]': 'exists',
      })
      // Without the schema's own the same.
      const judged = {
        token_endpoint_auth_method: 'none',
        redirect_uris: ['http://elsewhere.example/'],
        jwks_uri: 'https://keys.example/',
        permissions: [{ resource, permission: 'models:fly' }],
      }
      const wrong = {
        token_endpoint_auth_method: 'conflict',
        'redirect_uris[0]': 'format',
        jwks: 'conflict',
        'permissions[0]': 'exists',
      }
      expect(await detailsOf('POST', '/v1/clients', { type: 'web', name: 'Wrong', ...judged })).toEqual(wrong)
      expect(await detailsOf('POST', '/v1/clients', { type: 'web', name: '', ...judged })).toEqual({
        ...wrong,
        name: 'minimum',
      })
      // What is refused is not judged by its default: nobody knows which grants are meant.
      expect(await detailsOf('POST', '/v1/clients', { type: 'machine', name: 'x', grant_types: ['implicit'] })).toEqual(
        {
          'grant_types[0]': 'enum',
        },
      )
      const path = `/v1/clients/${api.machine.client_id}`
      const change = {
        grant_types: ['client_credentials'],
        redirect_uris: ['https://elsewhere.example/'],
        permissions: [
          { resource, permission: 'models:read' },
          { resource, permission: 'models:fly' },
        ],
      }
      const changeIsWrong = { redirect_uris: 'conflict', 'permissions[1]': 'exists' }
      for (const method of ['PUT', 'PATCH']) {
        expect(await detailsOf(method, path, { name: 'Fine', ...change })).toEqual(changeIsWrong)
        expect(await detailsOf(method, path, { name: '', ...change })).toEqual({ ...changeIsWrong, name: 'minimum' })
      }
    })

    it('is a permission, role, plan or client that a body names and that there is not: 400, with its place', async () => {
      const permissions = ['models:read', 'models:fly', 'models:read', 'models:swim'].map((permission) => ({
        resource: api.provider.demo.resource,
        permission,
      }))
      const detailsOf = async (method: string, path: string, body: object, headers = {}) => {
        const answer = await api.call(path, { method, body, headers })
        expect([path, ...refusal(answer)]).toEqual([path, 400, 'VALIDATION_ERROR'])
        for (const detail of answer.body.error.details) {
          expect(detail).toEqual(expect.objectContaining({ message: expect.stringMatching(/\w/) }))
        }
        return answer.body.error.details.map(({ field, constraint }) => [field, constraint])
      }
      const missing = [
        ['permissions[1]', 'exists'],
        ['permissions[3]', 'exists'],
      ]
      await api.call('/v1/roles/flyer', { method: 'PUT', body: {} })
      expect(await detailsOf('POST', '/v1/roles', { name: 'flier', permissions })).toEqual(missing)
      expect(await detailsOf('PUT', '/v1/roles/flier', { permissions })).toEqual(missing)
      expect(await detailsOf('PUT', '/v1/roles/flyer', { permissions })).toEqual(missing)
      expect(await detailsOf('POST', '/v1/roles', { name: 'A flier', permissions })).toEqual([
        ['name', 'format'],
        ...missing,
      ])
      expect(await detailsOf('PUT', '/v1/roles/A%20flier', { permissions })).toEqual([['name', 'format'], ...missing])

      const path = `/v1/users/${api.otherUser.id}/roles`
      const match = { 'if-match': (await api.call(path)).headers.get('etag') ?? '' }
      expect(await detailsOf('PUT', path, { roles: ['support', 'nope'] }, match)).toEqual([['roles[1]', 'exists']])
      expect(await detailsOf('PUT', path, { roles: ['nope', 'NOPE'] }, match)).toEqual([
        ['roles[1]', 'format'],
        ['roles[0]', 'exists'],
      ])
      expect((await api.call(path)).body['roles']).toEqual([])
      const nobody = await api.call('/v1/users/usr_nobody/roles', {
        method: 'PUT',
        body: { roles: ['nope'] },
        headers: match,
      })
      expect([nobody.status, nobody.body.error['resource_type']]).toEqual([404, 'user'])

      const key = { client_id: 'none', plan: 'none', expires_at: '2020-01-01T00:00:00Z' }
      const unusable = [
        ['client_id', 'exists'],
        ['plan', 'exists'],
        ['expires_at', 'minimum'],
      ]
      expect(await detailsOf('POST', '/v1/api-keys', { ...key, name: 'Key' })).toEqual(unusable)
      expect(await detailsOf('POST', '/v1/api-keys', { ...key, name: '' })).toEqual([['name', 'minimum'], ...unusable])
      expect(await detailsOf('POST', '/v1/api-keys', { client_id: 'none', name: 'Key' })).toEqual([
        ['client_id', 'exists'],
      ])
      const plan = { name: 'Another', quota: { limit: 0, period: 'DAY' } }
      expect(await detailsOf('PUT', '/v1/plans/One', plan)).toEqual([
        ['quota.limit', 'minimum'],
        ['name', 'matches'],
      ])
    })

    it('is a resource whose address is none, by the name that the path has for it, beside all else', async () => {
      const answer = await api.call('/v1/resources/not-a-uri', {
        method: 'PUT',
        body: {
          access_token_lifetime_seconds: 1,
          attribute_claims: { sub: 'department', '1x': 'department' },
          permissions: [{ permission: 'a:b' }, { permission: 'a:b' }],
        },
      })
      expect(refusal(answer)).toEqual([400, 'VALIDATION_ERROR'])
      expect(answer.body.error.details.map(({ field, constraint }) => [field, constraint])).toEqual([
        ['resource_id', 'format'],
        ['access_token_lifetime_seconds', 'minimum'],
        ['attribute_claims.sub', 'reserved'],
        ['attribute_claims.1x', 'format'],
        ['permissions', 'unique'],
      ])
      expect(refusal(await api.call('/v1/resources/not-a-uri'))).toEqual([404, 'RESOURCE_NOT_FOUND'])
    })

    it('has one body, and the media type that was asked for', async () => {
      const ask = (accept: string) => api.call('/v1/users/usr_nobody', { headers: { accept } })
      const asked = [
        ['*/*', 'application/json'],
        ['application/json', 'application/json'],
        ['application/problem+json', 'application/problem+json'],
        ['application/problem+json, application/json', 'application/problem+json'],
        ['application/vnd.latchkey.v1+json', 'application/json'],
      ] as const
      for (const [accept, type] of asked) {
        const answer = await ask(accept)
        expect([accept, answer.headers.get('content-type')?.split(';')[0]]).toEqual([accept, type])
        expect(Object.keys(answer.body)).toEqual([
          'type',
          'title',
          'status',
          'detail',
          'instance',
          'error',
          'request_id',
          'timestamp',
          'documentation',
        ])
        expect(answer.body).toMatchObject({
          status: 404,
          instance: '/v1/users/usr_nobody',
          request_id: answer.headers.get('x-request-id'),
          documentation: `${api.provider.issuer}/docs/errors#RESOURCE_NOT_FOUND`,
        })
        expect(answer.headers.get('cache-control')).toBe('no-store')
      }
      const page = await api.call('/docs/errors', { token: null, headers: { accept: 'text/html' } })
      expect(page.text).toContain('id="RESOURCE_NOT_FOUND"')
    })
  })

  describe('reading', () => {
    /** Twice, until both agree: the record is sealed and use is counted meanwhile. */
    async function steadily<T>(ask: () => Promise<T>, isSo: (answer: T) => boolean): Promise<T> {
      for (let tries = 0; ; tries += 1) {
        const answer = await ask()
        if (isSo(answer) || tries === 5) return answer
      }
    }

    it('of anything says which version answered, how long it may be kept, and its ETag', async () => {
      for (const path of reads()) {
        const { status, headers } = await api.call(path)
        expect([path, status]).toEqual([path, 200])
        expect(Object.fromEntries(headers)).toMatchObject({
          'api-version': '1',
          'cache-control': 'private, no-cache',
          'content-type': 'application/json',
          etag: expect.stringMatching(/^(W\/)?"[\w.-]+"$/),
          'x-content-type-options': 'nosniff',
        })
        expect(headers.get('vary')?.toLowerCase().split(', ')).toEqual(expect.arrayContaining(['origin', 'accept']))
      }
    })

    it('of anything again costs 304 and no body, when nothing has changed', async () => {
      for (const path of reads()) {
        const again = await steadily(
          async () => {
            const tag = (await api.call(path)).headers.get('etag') ?? ''
            return { tag, ...(await api.call(path, { headers: { 'if-none-match': tag } })) }
          },
          ({ status }) => status === 304,
        )
        expect([path, again.status, again.text]).toEqual([path, 304, ''])
        expect(again.headers.get('etag')).toBe(again.tag)
        expect(again.headers.get('cache-control')).toBe('private, no-cache')
        expect(again.headers.has('content-type')).toBe(false)
      }
    })

    it('of the head alone gives what GET would, without the body', async () => {
      for (const path of reads()) {
        const { head, get } = await steadily(
          async () => ({ get: await api.call(path), head: await api.call(path, { method: 'HEAD' }) }),
          ({ get, head }) => get.headers.get('etag') === head.headers.get('etag'),
        )
        expect([path, head.status, head.text]).toEqual([path, 200, ''])
        for (const name of ['etag', 'content-type', 'content-length', 'cache-control', 'api-version']) {
          expect([path, name, head.headers.get(name)]).toEqual([path, name, get.headers.get(name)])
        }
      }
      const { tag, path } = await createUser('head')
      const unchanged = await api.call(path, { method: 'HEAD', headers: { 'if-none-match': tag } })
      expect(unchanged.status).toBe(304)
      expect((await api.call('/v1/users', { method: 'HEAD', token: null })).status).toBe(401)
    })

    it('compares If-None-Match weakly, in lists, and with *', async () => {
      const { path, tag } = await createUser('none-match')
      const conditions = [
        [tag, 304],
        [`W/${tag}`, 304],
        [`"another", ${tag}`, 304],
        [`W/"another",W/${tag},"third"`, 304],
        ['*', 304],
        ['"another"', 200],
        ['""', 200],
        ['garbage', 400],
        [`${tag}, garbage`, 400],
        ['"unfinished', 400],
      ] as const
      for (const [condition, status] of conditions) {
        const answer = await api.call(path, { headers: { 'if-none-match': condition } })
        expect([condition, answer.status]).toEqual([condition, status])
      }
      await patch(path, { name: 'Changed' })
      expect((await api.call(path, { headers: { 'if-none-match': tag } })).status).toBe(200)
    })

    it('goes on only with what If-Match names, which is never a list', async () => {
      const { path, tag } = await createUser('read-match')
      const conditions = [
        [path, tag, 200],
        [path, `"999", ${tag}`, 200],
        [path, '*', 200],
        [path, '"999"', 412],
        [path, `W/${tag}`, 412],
        [path, 'garbage', 400],
        ['/v1/users', '*', 200],
        ['/v1/users', '"999"', 412],
        ['/v1/users', (await api.call('/v1/users')).headers.get('etag') ?? '', 412],
        ['/v1/users/usr_nobody', '"999"', 404],
        ['/v1/users/usr_nobody', '*', 404],
      ] as const
      for (const method of ['GET', 'HEAD']) {
        for (const [target, condition, status] of conditions) {
          const answer = await api.call(target, { method, headers: { 'if-match': condition } })
          expect([method, target, condition, answer.status]).toEqual([method, target, condition, status])
          if (status === 412 && target === path) expect(answer.headers.get('etag')).toBe(tag)
        }
      }
      // First the one, then the other (RFC 9110 §13.2.2).
      const both = (match: string) => api.call(path, { headers: { 'if-match': match, 'if-none-match': tag } })
      expect([(await both(tag)).status, (await both('"999"')).status]).toEqual([304, 412])
    })

    it('of chosen fields is another representation with another ETag, good for If-Match all the same', async () => {
      const { path, tag } = await createUser('fields', { name: 'Fields' })
      const some = await api.call(`${path}?fields=email`)
      expect(some.body).toEqual({ user_id: path.split('/').at(-1), email: 'fields@http.example' })
      const someTag = some.headers.get('etag') ?? ''
      expect(someTag).not.toBe(tag)
      expect((await api.call(path, { headers: { 'if-none-match': someTag } })).status).toBe(200)
      expect((await patch(path, { name: 'New' }, { 'if-match': someTag })).status).toBe(200)
      const list = await api.call('/v1/users?fields=name,email&limit=1')
      expect(Object.keys((list.body['users'] as object[])[0] ?? {}).sort()).toEqual(['email', 'name', 'user_id'])
      const unknown = await api.call(`${path}?fields=emial,password_hash`)
      expect(
        unknown.body.error.details.map(({ field, ...detail }) => [
          field,
          'suggestion' in detail ? detail.suggestion : null,
        ]),
      ).toEqual([
        ['fields', 'email'],
        ['fields', null],
      ])
    })

    it('answers in the version’s own media type when that is asked for', async () => {
      const asked = [
        [undefined, 'application/json'],
        ['*/*', 'application/json'],
        ['application/*', 'application/json'],
        ['text/html, application/json;q=0.5', 'application/json'],
        ['application/vnd.latchkey.v1+json', 'application/vnd.latchkey.v1+json'],
        ['application/vnd.latchkey.v1+json;q=0.4, application/json', 'application/json'],
        ['application/problem+json', 'application/json'],
        ['application/json; charset=utf-8', 'application/json'],
        ['text/html, application/json;charset="UTF-8";q=0.5', 'application/json'],
        ['*/*;charset=utf-8', 'application/json'],
        ['application/vnd.latchkey.v1+json; charset=utf-8', 'application/vnd.latchkey.v1+json'],
      ] as const
      for (const [accept, type] of asked) {
        const { status, headers } = await send('/v1/users', { headers: accept === undefined ? {} : { accept } })
        expect([accept, status, headers['content-type']]).toEqual([accept, 200, type])
      }
      for (const headers of [{ 'api-version': '1' }, { accept: 'application/vnd.latchkey.v1+json' }]) {
        const answer = await api.call('/users', { headers })
        expect([answer.status, answer.headers.get('api-version')]).toEqual([200, '1'])
        expect(answer.headers.get('vary')).toContain('API-Version')
      }
    })

    it('of use is of the last seven days, today and the first of them included', async () => {
      const { body } = await api.call('/v1/usage')
      const [from, to] = [Date.parse(String(body['from'])), Date.parse(String(body['to']))]
      expect((to - from) / 86_400_000 + 1).toBe(7)
      expect(Math.abs(Date.now() - to)).toBeLessThan(2 * 86_400_000)
    })

    it('of use up to a day is of the seven that end with it; a time that ends before it begins is refused', async () => {
      const { body } = await api.call('/v1/usage?to=2026-03-03')
      expect([body['from'], body['to']]).toEqual(['2026-02-25', '2026-03-03'])
      const one = await api.call('/v1/usage?from=2026-03-03&to=2026-03-03')
      expect([one.status, one.body['from'], one.body['to']]).toEqual([200, '2026-03-03', '2026-03-03'])
      for (const query of ['from=2026-03-04&to=2026-03-03', 'from=9999-12-31']) {
        const answer = await api.call(`/v1/usage?${query}`)
        expect([query, ...refusal(answer)]).toEqual([query, 400, 'VALIDATION_ERROR'])
        expect(answer.body.error.details).toMatchObject([{ field: 'from', constraint: 'maximum' }])
      }
    })

    it('does not look at a body that came along', async () => {
      const { status } = await send('/v1/plans', {
        headers: { 'content-type': 'text/plain', 'content-length': '8' },
        body: ['not JSON'],
      })
      expect(status).toBe(200)
    })

    it('is asked about by OPTIONS', async () => {
      const { status, headers } = await api.call('/v1/users', { method: 'OPTIONS', token: null })
      expect([status, headers.get('allow')?.split(', ').sort()]).toEqual([200, ['GET', 'HEAD', 'POST']])
      expect((await api.call('/v1/nothing', { method: 'OPTIONS', token: null })).status).toBe(404)
    })
  })

  describe('changing', () => {
    it('takes JSON under its own and the version’s media type, in any case, in UTF-8', async () => {
      const types = [
        'application/json',
        'application/json; charset=utf-8',
        'Application/JSON;charset="UTF-8"',
        'application/vnd.latchkey.v1+json',
      ]
      for (const [i, type] of types.entries()) {
        const answer = await post(JSON.stringify({ email: `type-${i}@http.example`, name: 'Ünï \u{1f511}' }), type, {
          'content-encoding': 'identity',
        })
        expect([type, answer.status, answer.body['name']]).toEqual([type, 201, 'Ünï \u{1f511}'])
      }
      const { path } = await createUser('patched')
      for (const type of [
        'application/json',
        'application/merge-patch+json',
        'application/merge-patch+json;charset=UTF-8',
      ]) {
        const answer = await api.call(path, {
          method: 'PATCH',
          rawBody: JSON.stringify({ name: type }),
          headers: { 'content-type': type },
        })
        expect([answer.status, answer.body['name']]).toEqual([200, type])
      }
    })

    it('happens only to what If-Match names: strongly, in lists, with *', async () => {
      const { path } = await createUser('match')
      const current = async () => (await api.call(path)).headers.get('etag') ?? ''
      const conditions: readonly (readonly [(tag: string) => string, number])[] = [
        [(tag) => tag, 200],
        [(tag) => versionOf(tag), 200],
        [(tag) => `"0", ${tag}`, 200],
        [() => '*', 200],
        [(tag) => `W/${tag}`, 412],
        [() => '"0"', 412],
        [() => '"0", "another"', 412],
        [() => 'garbage', 400],
      ]
      for (const [condition, status] of conditions) {
        const tag = await current()
        const answer = await patch(path, { name: `after ${tag}` }, { 'if-match': condition(tag) })
        expect([condition(tag), answer.status]).toEqual([condition(tag), status])
        expect((await current()) === tag).toBe(status !== 200)
        // Whoever is refused learns which version there is now.
        if (status === 412) expect(answer.headers.get('etag')).toBe(versionOf(tag))
      }
      expect((await patch('/v1/users/usr_nobody', {}, { 'if-match': '*' })).status).toBe(404)
    })

    it('must say what it is based on where something could be lost unseen: 428', async () => {
      const path = `/v1/users/${api.otherUser.id}/roles`
      const put = (roles: readonly string[], headers: Record<string, string> = {}) =>
        api.call(path, { method: 'PUT', body: { roles }, headers })
      expect(refusal(await put(['member']))).toEqual([428, 'PRECONDITION_REQUIRED'])
      const seen = (await api.call(path)).headers.get('etag') ?? ''
      const done = await put(['member', 'support'], { 'if-match': seen })
      expect([done.status, done.body['roles']]).toEqual([200, ['member', 'support']])
      expect(refusal(await put(['member'], { 'if-match': seen }))).toEqual([412, 'PRECONDITION_FAILED'])
      // It is so already: the answer may have been lost.
      expect((await put(['support', 'member'], { 'if-match': seen })).status).toBe(200)
      expect((await put([], { 'if-match': done.headers.get('etag') ?? '' })).body['roles']).toEqual([])
    })

    it('by a PUT that was made already is answered as the first time, whatever its If-Match', async () => {
      const { path, tag } = await createUser('put-again')
      const put = () =>
        api.call(path, {
          method: 'PUT',
          body: { email: 'put-again@http.example', name: 'P' },
          headers: { 'if-match': tag },
        })
      const first = await put()
      const again = await put()
      expect([first.status, again.status]).toEqual([200, 200])
      expect(again.text).toBe(first.text)
      expect(again.headers.get('etag')).toBe(first.headers.get('etag'))
      const other = await api.call(path, {
        method: 'PUT',
        body: { email: 'put-again@http.example', name: 'Q' },
        headers: { 'if-match': tag },
      })
      expect(other.status).toBe(412)
    })

    describe.each(['role', 'plan', 'resource'] as const)('a %s, whose id its maker chooses', (type) => {
      const upserts: Record<typeof type, () => { path: string; first: CallOptions; second: CallOptions }> = {
        role: () => ({
          path: '/v1/roles/made-by-put',
          first: { body: { description: 'First' } },
          second: {
            body: {
              description: 'Second',
              permissions: [{ resource: api.provider.demo.resource, permission: 'models:read' }],
            },
          },
        }),
        plan: () => ({
          path: '/v1/plans/Gold%20Plan',
          first: {
            rawBody: basicPlan.replace('Basic Plan', 'Gold Plan'),
            headers: { 'content-type': 'application/json' },
          },
          second: { body: { name: 'Gold Plan', throttle: { rateLimit: 1_000, burstLimit: 2_000 } } },
        }),
        resource: () => ({
          path: `/v1/resources/${encodeURIComponent('https://api.example.com/things?of=ours&more')}`,
          first: { body: { permissions: [{ permission: 'things:read', description: 'see things' }] } },
          second: { body: { name: 'Things', access_token_lifetime_seconds: 60 } },
        }),
      }
      const put = ({ path }: { path: string }, options: CallOptions, headers: Record<string, string> = {}) =>
        api.call(path, { method: 'PUT', ...options, headers: { ...options.headers, ...headers } })

      it('is not made where one was expected, nor under an id that cannot be', async () => {
        const upsert = upserts[type]()
        expect((await put(upsert, upsert.first, { 'if-match': '*' })).status).toBe(412)
        expect((await put(upsert, upsert.first, { 'if-match': '"1"' })).status).toBe(412)
        expect((await api.call(upsert.path)).status).toBe(404)
        const impossible = { role: '/v1/roles/UPPER', plan: '/v1/plans/%20', resource: '/v1/resources/no-address' }
        const body = type === 'plan' ? { name: ' ' } : {}
        const answer = await api.call(impossible[type], { method: 'PUT', body })
        expect(refusal(answer)).toEqual([400, 'VALIDATION_ERROR'])
      })

      it('is made by PUT: 201 with Location, then 200; the same again changes nothing', async () => {
        const upsert = upserts[type]()
        const created = await put(upsert, upsert.first, { 'if-none-match': '*' })
        expect([created.status, created.headers.get('location')]).toEqual([201, upsert.path])
        const again = await put(upsert, upsert.first)
        expect([again.status, again.text]).toEqual([200, created.text])
        expect(again.headers.get('etag')).toBe(created.headers.get('etag'))
        expect(again.headers.has('location')).toBe(false)
        expect(refusal(await put(upsert, upsert.first, { 'if-none-match': '*' }))).toEqual([412, 'PRECONDITION_FAILED'])

        const changed = await put(upsert, upsert.second, { 'if-match': created.headers.get('etag') ?? '' })
        expect(changed.status).toBe(200)
        expect(changed.headers.get('etag')).not.toBe(created.headers.get('etag'))
        const stale = await put(upsert, upsert.first, { 'if-match': created.headers.get('etag') ?? '' })
        const present = versionOf(changed.headers.get('etag') ?? '')
        expect([stale.status, stale.headers.get('etag')]).toEqual([412, present])
        const read = await api.call(upsert.path)
        expect([read.text, read.headers.get('etag')]).toEqual([changed.text, changed.headers.get('etag')])
      })

      it('is deleted in the version that was seen: 412, 204, then 404', async () => {
        const { path } = upserts[type]()
        const tag = (await api.call(path)).headers.get('etag') ?? ''
        const stale = await api.call(path, { method: 'DELETE', headers: { 'if-match': '"0"' } })
        expect([stale.status, stale.headers.get('etag')]).toEqual([412, versionOf(tag)])
        const deleted = await api.call(path, { method: 'DELETE', headers: { 'if-match': tag } })
        expect([deleted.status, deleted.text, deleted.headers.get('cache-control')]).toEqual([204, '', 'no-store'])
        const again = await api.call(path, { method: 'DELETE', headers: { 'if-match': tag } })
        expect([again.status, again.body.error['resource_type']]).toEqual([404, type])
      })
    })

    it('the plan of the lecture is put as it is: unchanged on the demo’s own', async () => {
      const options = { method: 'PUT', rawBody: basicPlan, headers: { 'content-type': 'application/json' } }
      const tag = (await api.call('/v1/plans/Basic%20Plan')).headers.get('etag')
      const put = await api.call('/v1/plans/Basic%20Plan', options)
      expect([put.status, put.headers.get('etag')]).toEqual([200, tag])
      expect(put.body).toMatchObject(JSON.parse(basicPlan) as object)
      const elsewhere = await api.call('/v1/plans/Another', options)
      expect(elsewhere.body.error.details).toEqual([expect.objectContaining({ field: 'name', constraint: 'matches' })])
    })

    it('people, clients and API keys are deleted in the version that was seen, and once', async () => {
      const { path: person } = await createUser('deleted')
      const client = await api.call('/v1/clients', { method: 'POST', body: { type: 'machine', name: 'To be deleted' } })
      const key = await api.call('/v1/api-keys', {
        method: 'POST',
        body: { client_id: api.machine.client_id, name: 'To be deleted' },
      })
      for (const path of [person, client.headers.get('location') ?? '']) {
        const stale = await api.call(path, { method: 'DELETE', headers: { 'if-match': '"0"' } })
        expect([path, ...refusal(stale)]).toEqual([path, 412, 'PRECONDITION_FAILED'])
      }
      // What has no version is in none that anybody could have seen.
      const keyPath = key.headers.get('location') ?? ''
      const asked = await api.call(keyPath, { method: 'DELETE', headers: { 'if-match': '"1"' } })
      expect(refusal(asked)).toEqual([412, 'PRECONDITION_FAILED'])
      for (const path of [person, client.headers.get('location') ?? '', keyPath]) {
        const statuses = []
        for (let i = 0; i < 2; i += 1) statuses.push((await api.call(path, { method: 'DELETE' })).status)
        expect([path, ...statuses]).toEqual([path, 204, 404])
      }
    })

    it('creates nothing where it changes: If-None-Match: * is then 412', async () => {
      const { path, tag } = await createUser('not-created')
      for (const method of ['PUT', 'PATCH', 'DELETE']) {
        const body = method === 'DELETE' ? {} : { body: { email: 'not-created@http.example', name: 'Changed' } }
        const answer = await api.call(path, { method, ...body, headers: { 'if-none-match': '*' } })
        expect([method, ...refusal(answer)]).toEqual([method, 412, 'PRECONDITION_FAILED'])
      }
      expect((await api.call(path)).headers.get('etag')).toBe(tag)
    })

    it('happens to nothing that If-None-Match names, weakly, whatever has versions or not: 412', async () => {
      const { path } = await createUser('unwanted')
      const tagNow = async (of = path) => (await api.call(of)).headers.get('etag') ?? ''
      const variant = (await api.call(`${path}?fields=email`)).headers.get('etag') ?? ''
      const conditions = [
        [await tagNow(), 412],
        [`"999", W/${await tagNow()}`, 412],
        [variant, 412],
        ['garbage', 400],
        ['"999"', 200],
      ] as const
      for (const [condition, status] of conditions) {
        for (const method of ['DELETE', 'PUT', 'PATCH']) {
          const tag = await tagNow()
          if (method === 'DELETE' && status === 200) continue
          const body = method === 'DELETE' ? {} : { body: { email: 'unwanted@http.example', name: `${method} done` } }
          const answer = await api.call(path, { method, ...body, headers: { 'if-none-match': condition } })
          expect([method, condition, answer.status]).toEqual([method, condition, status])
          expect((await tagNow()) === tag).toBe(status !== 200)
          if (status === 412) expect(answer.headers.get('etag')).toBe(tag)
        }
      }
      const replaced = { method: 'PUT', body: { email: 'unwanted@http.example', name: 'PATCH done' } }
      const again = await api.call(path, { ...replaced, headers: { 'if-none-match': await tagNow() } })
      expect(refusal(again)).toEqual([412, 'PRECONDITION_FAILED'])

      const key = await api.call('/v1/api-keys', {
        method: 'POST',
        body: { client_id: api.machine.client_id, name: 'Unwanted' },
      })
      const keyPath = key.headers.get('location') ?? ''
      const remove = (tag: string) => api.call(keyPath, { method: 'DELETE', headers: { 'if-none-match': tag } })
      expect(refusal(await remove(await tagNow(keyPath)))).toEqual([412, 'PRECONDITION_FAILED'])
      expect((await api.call(keyPath)).status).toBe(200)
      expect((await remove('"another"')).status).toBe(204)
      // Of what is not there nothing is named, and what is refused anyhow is refused so.
      expect((await remove('"another"')).status).toBe(404)
      const make = (tag: string) =>
        api.call('/v1/roles/unwanted', { method: 'PUT', body: {}, headers: { 'if-none-match': tag } })
      const made = await make('"1"')
      expect(made.status).toBe(201)
      expect((await make(made.headers.get('etag') ?? '')).status).toBe(412)
      const builtIn = { 'if-none-match': await tagNow('/v1/roles/administrator') }
      expect((await api.call('/v1/roles/administrator', { method: 'DELETE', headers: builtIn })).status).toBe(409)
    })

    it('makes a secret beside the present one, and says how long that is still accepted: a day, or as asked', async () => {
      const rotate = async (name: string, body: object) => {
        const client = { client_id: name, type: 'machine', name }
        await api.call('/v1/clients', { method: 'POST', body: client })
        const path = `/v1/clients/${name}`
        const [old] = (await api.call(path)).body['secrets'] as Secret[]
        const made = await api.call(`${path}/secrets`, { method: 'POST', body })
        const { secrets } = (await api.call(`${path}/secrets`)).body as unknown as { secrets: Secret[] }
        return { old, made, secrets }
      }
      for (const [name, body, seconds] of [
        ['rotated-by-day', {}, 86_400],
        ['rotated-by-hour', { overlap_seconds: 3_600 }, 3_600],
      ] as const) {
        const { old, made, secrets } = await rotate(name, body)
        const { client_secret: _secret, ...shown } = made.body as unknown as Secret & { client_secret: string }
        expect(secrets).toEqual([{ ...old, expires_at: expect.any(String) }, shown])
        expect(shown.expires_at).toBeNull()
        const ends = Date.parse(secrets[0]?.expires_at ?? '') - Date.parse(shown.created_at)
        expect(Math.abs(ends / 1_000 - seconds)).toBeLessThan(60)
      }
      for (const overlap of [30 * 86_400 + 1, -1, 0.5]) {
        const { made } = await rotate('rotated-by-day', { overlap_seconds: overlap })
        expect([overlap, ...refusal(made)]).toEqual([overlap, 400, 'VALIDATION_ERROR'])
      }
    })

    it('replaces a client by PUT, but for its permissions, secrets and status', async () => {
      const { client_id: id } = await api.newMachine(['users:read'], 'to-be-replaced')
      const path = `/v1/clients/${id}`
      const before = await api.call(path)
      await patch(path, { client_uri: 'https://machine.example/' })
      const put = (name: string, tag: string | null) =>
        api.call(path, {
          method: 'PUT',
          body: { name, grant_types: ['client_credentials'] },
          headers: { 'if-match': tag ?? '' },
        })
      // Seen before the patch, which would be lost.
      expect(refusal(await put('Replaced', before.headers.get('etag')))).toEqual([412, 'PRECONDITION_FAILED'])
      const replaced = await put('Replaced', (await api.call(path)).headers.get('etag'))
      expect(replaced.body).toMatchObject({
        name: 'Replaced',
        client_uri: null,
        default_resource: null,
        is_active: true,
        permissions: before.body['permissions'],
        secrets: before.body['secrets'],
      })
      const off = await patch(
        path,
        { is_active: false, permissions: [] },
        { 'if-match': replaced.headers.get('etag') ?? '' },
      )
      expect(off.body).toMatchObject({ is_active: false, permissions: [] })
      expect((await patch(path, { is_active: true }, { 'if-match': replaced.headers.get('etag') ?? '' })).status).toBe(
        412,
      )
    })
  })

  describe('lists', () => {
    const lists = [
      ['/v1/users', 'users', 'user_id'],
      ['/v1/roles', 'roles', 'name'],
      ['/v1/sessions', 'sessions', 'session_id'],
      ['/v1/grants', 'grants', 'grant_id'],
      ['/v1/clients', 'clients', 'client_id'],
      ['/v1/resources', 'resources', 'resource_id'],
      ['/v1/plans', 'plans', 'name'],
      ['/v1/api-keys', 'api_keys', 'api_key_id'],
      ['/v1/audit?action=role.permission-granted', 'audit_events', 'audit_event_id'],
    ] as const
    const idsOf = (body: Json, list: string, id: string) =>
      (body[list] as Record<string, unknown>[]).map((item) => String(item[id]))

    async function walk(
      start: string,
      list: string,
      id: string,
      next: (body: Json) => string | null,
    ): Promise<string[]> {
      const ids: string[] = []
      for (let path: string | null = start; path !== null;) {
        const { status, body } = await api.call(path)
        expect([path, status]).toEqual([path, 200])
        ids.push(...idsOf(body, list, id))
        expect(body.pagination.has_more).toBe(next(body) !== null)
        path = next(body)
      }
      return ids
    }

    it.each(lists)('%s comes in pages, by its links and by cursor, and each item once', async (path, list, id) => {
      const whole = await api.call(`${path}${path.includes('?') ? '&' : '?'}limit=100`)
      const all = idsOf(whole.body, list, id)
      expect(all.length).toBeGreaterThan(2)
      expect(whole.body.pagination).toEqual({
        limit: 100,
        offset: 0,
        total: all.length,
        has_more: false,
        next: null,
        previous: null,
        next_cursor: null,
      })
      const two = `${path}${path.includes('?') ? '&' : '?'}limit=2`
      expect(await walk(two, list, id, ({ pagination }) => pagination.next)).toEqual(all)
      const byCursor = ({ pagination: { next_cursor: cursor } }: Json) =>
        cursor === null ? null : `${two}&cursor=${cursor}`
      expect(await walk(two, list, id, byCursor)).toEqual(all)
      // A page by cursor does not count them all.
      const first = await api.call(two)
      const second = await api.call(byCursor(first.body) ?? '')
      expect(Object.keys(second.body.pagination).sort()).toEqual(['has_more', 'limit', 'next', 'next_cursor'])
      const back = await api.call((await api.call(first.body.pagination.next ?? '')).body.pagination.previous ?? '')
      expect(back.text).toBe(first.text)
    })

    it('are sorted by several members in both directions, those without a value last, and filtered at once', async () => {
      const made = await Promise.all(
        [
          ['sort-a', { name: 'Zoe' }],
          ['sort-b', { name: 'Zoe' }],
          ['sort-c', {}],
          ['sort-d', { name: 'Adam', email_verified: true }],
        ].map(([name, more]) => createUser(name as string, more as object)),
      )
      await patch(made[1]?.path ?? '', { is_active: false })
      // They were made at once, in whatever order.
      const times = await Promise.all(made.map(async ({ path }) => String((await api.call(path)).body['created_at'])))
      const since = times.toSorted()[0] ?? ''
      const emails = async (query: string) => {
        const { body } = await api.call(`/v1/users?${query}&limit=100`)
        return idsOf(body, 'users', 'email').flatMap((email) => /^(sort-.)@/.exec(email)?.[1] ?? [])
      }
      expect(await emails('sort=name,-email')).toEqual(['sort-d', 'sort-b', 'sort-a', 'sort-c'])
      expect(await emails('sort=-name,email')).toEqual(['sort-a', 'sort-b', 'sort-d', 'sort-c'])
      expect(await emails('sort=-email')).toEqual(['sort-d', 'sort-c', 'sort-b', 'sort-a'])
      expect(await emails('is_active=false&sort=email')).toEqual(['sort-b'])
      expect(await emails('is_active=true&email_verified=true')).toEqual(['sort-d'])
      expect(await emails('email=%20SORT-C@HTTP.example')).toEqual(['sort-c'])
      expect(await emails(`created_before=${since}`)).toEqual([])
      expect((await emails(`created_after=${since}&email_verified=false`)).length).toBeGreaterThanOrEqual(1)
      expect(await emails('role=administrator')).toEqual([])
    })

    it('by time begin with the moment that is named, to the microsecond, and end before it', async () => {
      const { path } = await createUser('bounded')
      const id = path.split('/').at(-1) ?? ''
      const moment = (column: string) =>
        sql<string>`to_char(${sql.ref(column)} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`
      const { db } = api.provider.database
      const created = await db
        .selectFrom('users')
        .select(moment('created_at').as('at'))
        .where('id', '=', id)
        .executeTakeFirstOrThrow()
      const occurred = await db
        .selectFrom('audit_events')
        .select(moment('occurred_at').as('at'))
        .where('target_id', '=', id)
        .executeTakeFirstOrThrow()
      const totals = async (list: string, name: string, { at }: { at: string }) => {
        const total = async (query: string) => (await api.call(`${list}&${query}`)).body.pagination.total
        return [await total(`${name}_after=${at}`), await total(`${name}_before=${at}`)]
      }
      expect(await totals('/v1/users?email=bounded@http.example', 'created', created)).toEqual([1, 0])
      expect(await totals(`/v1/audit?target_id=${id}`, 'occurred', occurred)).toEqual([1, 0])
    })

    it('keep filters, order and fields in their links', async () => {
      const { body } = await api.call('/v1/users?is_active=true&sort=-email&fields=email&limit=1&offset=1')
      const { next, previous } = body.pagination
      expect(next).toBe('/v1/users?is_active=true&sort=-email&fields=email&limit=1&offset=2')
      expect(previous).toBe('/v1/users?is_active=true&sort=-email&fields=email&limit=1&offset=0')
    })

    it('of the record are filtered by who, what, which and when', async () => {
      const { path } = await createUser('recorded')
      const id = path.split('/').at(-1) ?? ''
      await api.call(path, { method: 'PATCH', body: { name: 'R' }, headers: { 'x-request-id': 'of-the-record-1' } })
      const actions = async (query: string) => {
        const { status, body } = await api.call(`/v1/audit?${query}`)
        expect([query, status]).toEqual([query, 200])
        return idsOf(body, 'audit_events', 'action')
      }
      expect(await actions(`target_id=${id}`)).toEqual(['user.updated', 'user.created'])
      expect(await actions(`target_id=${id}&action=user.created`)).toEqual(['user.created'])
      expect(await actions('request_id=of-the-record-1')).toEqual(['user.updated'])
      expect(await actions(`target_id=${id}&actor_id=${api.administrator.id}&actor_type=user`)).toHaveLength(2)
      expect(await actions(`target_id=${id}&actor_type=client`)).toEqual([])
      expect(await actions(`target_type=user&target_id=${id}&occurred_after=2020-01-01T00:00:00%2B01:00`)).toHaveLength(
        2,
      )
      expect(await actions(`target_id=${id}&occurred_before=2020-01-01T00:00:00Z`)).toEqual([])
      expect(await actions(`target_id=${id}&sort=occurred_at`)).toEqual(['user.created', 'user.updated'])
      const actor: Actor = { type: 'operator', id: 'olga', onBehalfOf: id }
      await api.provider.database.db
        .transaction()
        .execute((trx) =>
          writeAudit(trx, actor, { action: 'done.for', target: { type: 'thing', id: 'of-the-record' } }),
        )
      expect(await actions(`actor_id=${id}`)).toEqual(['done.for'])
      expect(await actions(`actor_id=olga&target_type=thing`)).toEqual(['done.for'])
      expect(await actions(`actor_id=olga&target_type=user`)).toEqual([])
    })

    it('of clients are filtered by whether they are active, whose they are, and their plan', async () => {
      const machine = async (name: string) => {
        const client = { client_id: `filtered-${name}`, type: 'machine', name: 'Filtered' }
        expect((await api.call('/v1/clients', { method: 'POST', body: client })).status).toBe(201)
        return `/v1/clients/${client.client_id}`
      }
      await patch(await machine('off'), { is_active: false })
      await patch(await machine('own'), { first_party: true })
      await api.call(`${await machine('planned')}/plan`, { method: 'PUT', body: { plan: 'Basic Plan' } })
      const found = async (query: string) => {
        const { status, body } = await api.call(`/v1/clients?${query}&sort=client_id&limit=100`)
        expect([query, status]).toEqual([query, 200])
        return idsOf(body, 'clients', 'client_id').flatMap((id) => /^filtered-(.*)$/.exec(id)?.[1] ?? [])
      }
      expect(await found('is_active=false')).toEqual(['off'])
      expect(await found('is_active=true')).toEqual(['own', 'planned'])
      expect(await found('first_party=true')).toEqual(['own'])
      expect(await found('first_party=false&is_active=true')).toEqual(['planned'])
      expect(await found('plan=Basic%20Plan')).toEqual(['planned'])
      expect(await found('plan=Basic')).toEqual([])
    })
  })

  describe('which request it was', () => {
    it('is told back: the caller’s id when it is harmless, else one of ours', async () => {
      const asked = await api.call('/v1/users/me', { headers: { 'x-request-id': 'booking-42_a.b' } })
      expect(asked.headers.get('x-request-id')).toBe('booking-42_a.b')
      for (const id of ['with a space', 'x'.repeat(129), 'a,b', '"quoted"']) {
        const answer = await api.call('/v1/users/me', { headers: { 'x-request-id': id } })
        expect(answer.headers.get('x-request-id')).toMatch(uuid)
      }
    })

    it('stands in the record beside every change that it made, and in the log', async () => {
      const { path } = await createUser('traced')
      await api.call(path, {
        method: 'PATCH',
        body: { name: 'Traced', is_active: false },
        headers: {
          'x-request-id': 'trace-me-1',
          traceparent: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01',
        },
      })
      const { body } = await api.call('/v1/audit?request_id=trace-me-1')
      expect(body['audit_events']).toEqual([
        expect.objectContaining({ action: 'user.disabled', request_id: 'trace-me-1' }),
        expect.objectContaining({ action: 'user.updated', request_id: 'trace-me-1' }),
      ])
      const line = api.provider
        .log()
        .split('\n')
        .find((line) => line.includes('"trace-me-1"'))
      expect(JSON.parse(line ?? '{}')).toMatchObject({
        request_id: 'trace-me-1',
        trace_id: '4bf92f3577b34da6a3ce929d0e0e4736',
        endpoint: 'PATCH /v1/users/:user_id',
        user_id: api.administrator.id,
        client_id: 'console',
        status_code: 200,
      })
    })

    it('belongs to a trace, which goes on under a span of ours', async () => {
      const traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
      const { headers } = await api.call('/v1/users/me', { headers: { traceparent } })
      expect(headers.get('traceparent')).toMatch(
        /^00-4bf92f3577b34da6a3ce929d0e0e4736-(?!00f067aa0ba902b7)[\da-f]{16}-01$/,
      )
      const broken = await api.call('/v1/users/me', { headers: { traceparent: traceparent.replace('4bf9', 'wxyz') } })
      expect(broken.headers.get('traceparent')).toMatch(/^00-(?!4bf9)[\da-f]{32}-[\da-f]{16}-00$/)
    })
  })

  it('browsers may ask from the origins of registered clients, and are never told to send cookies', async () => {
    const origin = 'https://rp.example.test'
    const preflight = await fetch(`${api.provider.issuer}/v1/users/${api.user.id}`, {
      method: 'OPTIONS',
      headers: {
        origin,
        'access-control-request-method': 'PATCH',
        'access-control-request-headers': 'authorization,content-type,if-match',
      },
    })
    expect(preflight.status).toBe(204)
    expect(preflight.headers.get('access-control-allow-origin')).toBe(origin)
    expect(preflight.headers.get('access-control-allow-methods')).toContain('PATCH')
    expect(preflight.headers.get('access-control-allow-headers')?.toLowerCase()).toContain('authorization')
    expect(Number(preflight.headers.get('access-control-max-age'))).toBeGreaterThan(0)
    const answers = [
      preflight,
      ...(await Promise.all(
        [{}, { token: null }, { headers: { 'if-none-match': '*' } }].map(({ headers = {}, ...options }: CallOptions) =>
          api.call('/v1/users', { ...options, headers: { origin, ...headers } }),
        ),
      )),
    ]
    expect(answers.map(({ status }) => status)).toEqual([204, 200, 401, 304])
    for (const { headers } of answers) {
      expect(headers.get('access-control-allow-origin')).toBe(origin)
      expect(headers.has('access-control-allow-credentials')).toBe(false)
      expect(headers.get('vary')?.toLowerCase()).toContain('origin')
    }
    const foreign = await api.call('/v1/users', { headers: { origin: 'https://evil.example' } })
    expect([foreign.status, foreign.headers.has('access-control-allow-origin')]).toEqual([200, false])
  })
})
