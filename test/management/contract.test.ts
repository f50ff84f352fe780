/**
 * The management API does what its document says, both ways: every operation is walked, each success and each refusal
 * that can be brought about, and nothing is answered that is not documented, nor documented that is not answered.
 */
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { text } from 'node:stream/consumers'
import { gzipSync } from 'node:zlib'
import { beforeAll, describe, expect, it, vi } from 'vitest'
import { fingerprintRequest } from '../../src/http/idempotency.ts'
import { fillPath, openTargets } from '../support/api-targets.ts'
import { openContract, type Answer, type Contract } from '../support/contract.ts'
import { eachDatabase } from '../support/databases.ts'
import { openManagement, type Management } from '../support/management.ts'
import {
  documentFile,
  openJudge,
  readCommittedDocument,
  resolve,
  type Document,
  type Operation,
  type Schema,
} from '../openapi/document.ts'
import { complete, scenarios, sendRequest, successOf, type Request, type World } from './scenarios.ts'

/** What only a fault of ours, a load that no test wants, or the end of a version brings about; proven elsewhere. */
const notProvoked = ['410', '500', '503', '504']
/** What a deadline brings about, for which all operations wait at once: at the end. */
const provokedTogether = ['408']

const committed = readCommittedDocument()
const declared = openContract(committed)

describe('the scenarios', () => {
  it('are there for every operation, with every success that it documents', () => {
    for (const { id, responses } of declared.operations) {
      const successes = Object.keys(responses).filter((status) => status.startsWith('2'))
      expect([id, Object.keys(scenarios[id] ?? {}).filter((status) => status.startsWith('2'))]).toEqual([id, successes])
    }
  })

  it('are of no operation that there is not', () => {
    const known = declared.operations.map(({ id }) => id)
    expect(Object.keys(scenarios).filter((id) => !known.includes(id))).toEqual([])
  })
})

describe('what the judge finds', () => {
  const operation = declared.operation('getRole')
  const example = operation.responses['200']?.content?.['application/json']?.example as object
  const headers = { 'content-type': 'application/json', 'api-version': '1', 'x-request-id': 'r-1' }
  const faultsOf = (status: number, body: unknown, more: Readonly<Record<string, string>> = {}) =>
    declared.faultsOf(operation, {
      status,
      headers: new Headers({ ...headers, ...more }),
      text: typeof body === 'string' ? body : JSON.stringify(body),
    })

  it('is nothing in an answer like the example', () => {
    expect(faultsOf(200, example)).toEqual([])
  })

  it.each([
    ['a status', () => faultsOf(202, example), '202 is not documented'],
    ['a member', () => faultsOf(200, { ...example, password_hash: '' }), 'must NOT have additional properties'],
    [
      'a member inside',
      () => faultsOf(200, { ...example, permissions: [{ resource: 'r', permission: 'p', x: 1 }] }),
      'x',
    ],
    ['a missing member', () => faultsOf(200, { ...example, name: undefined }), "required property 'name'"],
    ['a type', () => faultsOf(200, { ...example, user_count: '12' }), 'must be integer'],
    ['a format', () => faultsOf(200, { ...example, created_at: 'yesterday' }), 'must match format'],
    ['a media type', () => faultsOf(200, example, { 'content-type': 'text/html' }), 'is text/html'],
    ['a header', () => faultsOf(200, example, { 'x-powered-by': 'Koa' }), 'has x-powered-by'],
    ['no JSON', () => faultsOf(200, 'OK'), 'is no JSON'],
    ['a body where there is none', () => faultsOf(304, example), 'has a body'],
  ])('%s that is not documented', (_what, find, fault) => {
    expect(find().join()).toContain(fault)
  })

  it('headers that are missing, and refusals whose parts disagree', () => {
    const response = operation.responses['404']
    const { content } = committed.components?.responses?.[String(response?.$ref).split('/').at(-1) ?? ''] ?? {}
    const refusal = content?.['application/json']?.example as Record<string, unknown>
    expect(faultsOf(404, { ...refusal, request_id: 'r-1' })).toEqual([])
    expect(faultsOf(404, refusal).join()).toContain('another request_id')
    expect(faultsOf(404, { ...refusal, request_id: 'r-1', status: 400 }).join()).toContain('status is 400')
    const { 'x-request-id': _id, ...fewer } = headers
    expect(declared.faultsOf(operation, { status: 200, headers: new Headers(fewer), text: '{}' }).join()).toContain(
      'lacks x-request-id',
    )
  })
})

eachDatabase((_open, engine) => {
  let world: World
  let contract: Contract
  let served: string
  /** tokens of machines: one that may do nothing that is asked of it, one that has called too often */
  let powerless: string
  let reader: string
  let exhausted: string

  beforeAll(async () => {
    const api = await openManagement(engine)
    const targets = openTargets(api)
    const tagOf = async (path: string) => (await api.call(path)).headers.get('etag') ?? ''
    world = { api, targets, tagOf }
    served = (await api.call('/openapi.json', { token: null })).text
    contract = openContract(JSON.parse(served) as Document)
    powerless = (await api.newMachine(['usage:read'])).token
    reader = (await api.newMachine(['audit:read'])).token
    exhausted = await exhaustedToken(world)
  })

  it('serves the document that is committed; else run npm run openapi', () => {
    const { issuer } = world.api.provider
    const normalized = JSON.parse(served.replaceAll(issuer, 'http://localhost:3000')) as Document
    expect(normalized).toEqual(committed)
    // To the letter too: the order of members is that of the code.
    expect(readFileSync(documentFile, 'utf8')).toBe(`${JSON.stringify(normalized, null, 2)}\n`)
  })

  describe.each(declared.operations.map(({ id, method, path }) => ({ id, method, path })))(
    '$id',
    ({ id, method, path }) => {
      it(`answers ${method} ${path} as it is documented, and refuses it so`, async () => {
        const operation = contract.operation(id)
        const seen = new Set<string>()
        const send = async (request: Request, status: number, what: string) => {
          const answer = await sendRequest(world, operation, request)
          seen.add(String(answer.status))
          expect([what, answer.status, answer.status === status ? '' : answer.text]).toEqual([what, status, ''])
          expect([what, contract.faultsOf(operation, answer)]).toEqual([what, []])
          return answer
        }
        const own = scenarios[id] ?? {}
        const { status, make } = successOf(id)
        const succeed = (request: Request, expected = status, what = 'a success') => send(request, expected, what)

        // Refusals first.
        const valid = await complete(world, operation, await make(world))
        for (const [what, expected, change] of refusalsOf(operation, { powerless, reader, exhausted })) {
          await send({ ...valid, ...change, headers: { ...valid.headers, ...change.headers } }, expected, what)
        }
        for (const [what, expected, change] of unknownThings(operation, valid)) {
          await send({ ...valid, ...change }, expected, what)
        }
        for (const [own409, makeOther] of Object.entries(own).filter(([each]) => each.startsWith('4'))) {
          await send(await complete(world, operation, await makeOther(world)), Number(own409), `its own ${own409}`)
        }
        if ('412' in operation.responses) {
          await send(
            { ...valid, headers: { ...valid.headers, 'if-match': '"999999999"' } },
            412,
            'a version of long ago',
          )
          // A read that has it already is 304.
          if (operation.method !== 'GET') {
            await send({ ...valid, headers: { ...valid.headers, 'if-none-match': '*' } }, 412, 'only if there is none')
          }
        }
        if ('428' in operation.responses) {
          const { 'if-match': _unsent, ...headers } = valid.headers ?? {}
          await send({ ...valid, headers }, 428, 'no version at all')
        }
        if ('422' in operation.responses) {
          await occupyKey(world, operation, valid, 'in-progress')
          await send(
            { ...valid, headers: { ...valid.headers, 'idempotency-key': `${id}-in-progress` } },
            409,
            'a key under way',
          )
          await occupyKey(world, operation, valid, 'another')
          await send(
            { ...valid, headers: { ...valid.headers, 'idempotency-key': `${id}-another` } },
            422,
            'a key of another request',
          )
        }

        // Then each success, and what comes of asking again.
        const first = await succeed(valid)
        if (operation.method === 'GET') {
          await vi.waitUntil(async () => {
            // What counts requests may have counted this one in between.
            const { headers } = await succeed(valid)
            const tag = headers.get('etag') ?? ''
            const again = await sendRequest(world, operation, { ...valid, headers: { 'if-none-match': tag } })
            seen.add(String(again.status))
            expect(contract.faultsOf(operation, again)).toEqual([])
            return again.status === 304
          })
          const head = await sendRequest(world, { ...operation, method: 'HEAD' }, valid)
          expect([head.status, head.text]).toEqual([200, ''])
        }
        for (const [other, makeOther] of Object.entries(own).filter(
          ([each]) => each.startsWith('2') && each !== String(status),
        )) {
          await succeed(
            await complete(world, operation, await makeOther(world)),
            Number(other),
            `its other success ${other}`,
          )
        }
        const vendor = 'application/vnd.latchkey.v1+json'
        const another = operation.method === 'GET' ? valid : await complete(world, operation, await make(world))
        // A PATCH has media types of its own.
        const isTyped = operation.requestBody !== undefined && operation.method !== 'PATCH'
        const byName = {
          ...another.headers,
          accept: vendor,
          'api-version': '1',
          ...(isTyped ? { 'content-type': vendor } : {}),
        }
        const named = await succeed({ ...another, headers: byName }, status, 'the version by name')
        if (named.text !== '') expect(named.headers.get('content-type')).toBe(vendor)
        if ('422' in operation.responses) {
          const keyed = await complete(world, operation, await make(world), { 'idempotency-key': `${id}-twice` })
          const once = await succeed(keyed, status, 'with a key')
          const again = await succeed(keyed, status, 'the same again')
          expect([again.text, again.headers.get('idempotency-replayed')]).toEqual([once.text, 'true'])
        }
        if (status === 201) {
          expect((await world.api.call(first.headers.get('location') ?? '')).status).toBe(200)
        }

        const elsewhere = [...notProvoked, ...provokedTogether]
        const documented = Object.keys(operation.responses).filter((each) => !elsewhere.includes(each))
        expect([...seen].sort()).toEqual(documented.sort())
      })
    },
  )

  it.each(declared.operations.filter(({ method }) => method === 'PATCH').map(({ id, path }) => ({ id, path })))(
    'takes null in a merge patch for whatever $id documents it for, and for nothing else',
    async ({ id, path }) => {
      const operation = contract.operation(id)
      const { schema = {} } = operation.requestBody?.content['application/merge-patch+json'] ?? {}
      const judge = openJudge(JSON.parse(served) as Document)
      const parameters = await world.targets.parametersOf(path)
      const seen = { 200: 0, 400: 0 }
      for (const member of membersOf(resolve(committed, schema))) {
        const body = member.reduceRight<unknown>((inside, name) => ({ [name]: inside }), null)
        const answer = await sendRequest(world, operation, { parameters, body })
        const status = judge.check(schema, body) === '' ? 200 : 400
        expect([body, answer.status]).toEqual([body, status])
        seen[status] += 1
      }
      expect(seen[200]).toBeGreaterThan(10)
      expect(seen[400]).toBeGreaterThan(0)
    },
  )

  describe.each(Object.keys(committed.paths))('%s', (path) => {
    it('answers any other method with 405 and those that there are', async () => {
      const documented = contract.operations.filter((operation) => operation.path === path).map(({ method }) => method)
      const allowed = documented.includes('GET') ? [...documented, 'HEAD'] : documented
      const others = ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'PROPFIND'].filter((method) => !allowed.includes(method))
      const target = path.replaceAll(/\{\w+\}/g, 'anything')
      for (const method of others) {
        const answer = await world.api.call(target, { method })
        expect([method, answer.status]).toEqual([method, 405])
        expect(answer.headers.get('allow')?.split(', ').sort()).toEqual(allowed.sort())
        expect(contract.faultsOfRefusal(answer)).toEqual([])
      }
    })
  })

  it('answers what is nowhere in the document with 404, in the same body', async () => {
    for (const path of [
      '/v1',
      '/v1/',
      '/v1/nothing',
      '/v1/users/usr_1/nothing',
      '/v2/users',
      '/V1/users',
      '/v1/users/',
    ]) {
      const answer = await world.api.call(path)
      expect([path, answer.status, contract.faultsOfRefusal(answer)]).toEqual([path, 404, []])
    }
  })

  it('wrote nothing to its log that nobody expected', () => {
    const errors = world.api.provider
      .log()
      .split('\n')
      .filter((line) => line.includes('"level":"ERROR"'))
    expect(errors).toEqual([])
  })
})

describe('a body that does not come', () => {
  it('is answered with 408 at the deadline, as every operation that takes one documents it', async () => {
    const api = await openManagement('pglite', {
      environment: {
        LATCHKEY_DATABASE_STATEMENT_TIMEOUT_SECONDS: '1',
        LATCHKEY_HANDLER_TIMEOUT_SECONDS: '2',
        LATCHKEY_EDGE_TIMEOUT_SECONDS: '3',
      },
    })
    const withBody = declared.operations.filter(({ requestBody }) => requestBody !== undefined)
    const answers = await Promise.all(withBody.map((operation) => sendHalf(api, operation)))
    for (const [i, operation] of withBody.entries()) {
      const answer = answers[i] ?? { status: 0, headers: new Headers(), text: '' }
      expect([operation.id, answer.status]).toEqual([operation.id, 408])
      expect(declared.faultsOf(operation, answer)).toEqual([])
    }
    const documented = declared.operations.filter(({ responses }) => '408' in responses)
    expect(documented.map(({ id }) => id)).toEqual(withBody.map(({ id }) => id))
  })
})

/** A body that begins, and never ends. */
async function sendHalf(api: Management, { method, path, requestBody }: Operation): Promise<Answer> {
  const [type = ''] = Object.keys(requestBody?.content ?? {})
  const outgoing = httpRequest(api.provider.issuer + path.replaceAll(/\{\w+\}/g, 'usr_anything'), {
    method,
    headers: {
      authorization: `Bearer ${api.administrator.token}`,
      'content-type': type,
      'content-length': 100,
      'if-match': '*',
    },
  })
  outgoing.write('{')
  const [incoming] = (await once(outgoing, 'response')) as [IncomingMessage]
  const answer = {
    status: incoming.statusCode ?? 0,
    headers: new Headers(Object.entries(incoming.headers).map(([name, value]) => [name, String(value)])),
    text: await text(incoming),
  }
  outgoing.destroy()
  return answer
}

/** Each member of an object, and those of the objects inside, by the names that lead there. */
function membersOf({ properties = {}, anyOf = [] }: Schema): string[][] {
  return [
    ...Object.entries(properties).flatMap(([name, member]) => [
      [name],
      ...membersOf(member).map((inside) => [name, ...inside]),
    ]),
    ...anyOf.flatMap(membersOf),
  ]
}

/** One of its own parameters, nearly: the refusal then says which was meant. */
function misspelt({ parameters = [] }: Operation): string {
  return `${parameters.find((parameter) => parameter.in === 'query')?.name ?? 'surprise'}x`
}

interface Machines {
  readonly powerless: string
  readonly reader: string
  readonly exhausted: string
}

/** What any operation refuses, whatever it is about. */
function refusalsOf(
  operation: Operation,
  { powerless, reader, exhausted }: Machines,
): [what: string, status: number, change: Request][] {
  const lacking = operation.id === 'getUsage' ? reader : powerless
  const anything: [string, number, Request][] = [
    ['nobody', 401, { token: null }],
    ['a token that is none', 401, { token: 'eyJhbGciOiJub25lIn0.e30.' }],
    ['a token by another scheme', 401, { token: null, headers: { authorization: 'Basic eDp5' } }],
    ['a token without the scope', 403, { token: lacking }],
    ['an API key that is none', 403, { token: null, headers: { 'x-api-key': 'lk_key_nothing' } }],
    ['a token and an API key', 400, { headers: { 'x-api-key': 'lk_key_nothing' } }],
    ['somebody who calls too often', 429, { token: exhausted }],
    ['a parameter that nobody knows', 400, { query: `${misspelt(operation)}=1` }],
    ['two versions at once', 400, { headers: { 'api-version': '2' } }],
    ['an image', 406, { headers: { accept: 'image/png' } }],
    ['a page', 406, { headers: { accept: 'text/html' } }],
    [
      'a browser that is not known',
      401,
      { token: null, headers: { accept: 'text/html,application/xml;q=0.9,*/*;q=0.8' } },
    ],
    ['a condition that is none', 400, { headers: { 'if-match': 'yesterday' } }],
  ]
  if (operation.requestBody === undefined) return anything
  const types = operation.method === 'PATCH' ? 'application/merge-patch+json' : 'application/json'
  const raw = (rawBody: string | Uint8Array<ArrayBuffer>, headers: Record<string, string> = {}): Request => ({
    rawBody,
    headers: { 'content-type': types, ...headers },
  })
  return [
    ...anything,
    ['no body', 400, raw('')],
    ['no JSON', 400, raw('{"a":')],
    ['no UTF-8', 400, raw(new Uint8Array([0x22, 0xff, 0x22]))],
    ['a list', 400, raw('[1]')],
    ['a member that nobody knows', 400, raw('{"surprise":1}')],
    ['a null character', 400, raw('{"surprise":"\\u0000"}')],
    ['half of a surrogate pair', 400, raw('{"surprise":"\\ud800"}')],
    ['a body as deep as a well', 400, raw(`${'['.repeat(1_000)}${']'.repeat(1_000)}`)],
    ['a body of text', 415, raw('{}', { 'content-type': 'text/plain' })],
    ['a body in another charset', 415, raw('{}', { 'content-type': `${types}; charset=latin1` })],
    ['a compressed body', 415, raw(new Uint8Array(gzipSync('{}')), { 'content-encoding': 'gzip' })],
    ['a body that is too large', 413, raw(`"${'x'.repeat(300 * 1_024)}"`)],
  ]
}

/** Each parameter of the path as something that is not there, or cannot be; whoever chooses it is told what is wrong. */
function unknownThings(
  operation: Operation,
  { parameters = {} }: Request,
): [what: string, status: number, change: Request][] {
  const isChosen = operation.method === 'PUT' && '201' in operation.responses
  const unknown: Readonly<Record<string, string>> = {
    user_id: 'usr_nobody',
    resource_id: 'https://nothing.example',
    audit_event_id: 'aud_999999999999',
  }
  return Object.keys(parameters).flatMap((name) => {
    const as = (value: string): Request => ({ parameters: { ...parameters, [name]: value } })
    const refused = isChosen ? 400 : 404
    const impossible: [string, number, Request][] = [
      [`a ${name} that cannot be`, refused, as(`!${'x'.repeat(600)}`)],
      [`a ${name} with a null character`, refused, as('a\0b')],
    ]
    return isChosen ? impossible : [[`an unknown ${name}`, 404, as(unknown[name] ?? 'nothing')], ...impossible]
  })
}

/** Claims a key in the caller's name as another request would: the same one that is still running, or a different one. */
async function occupyKey(
  { api }: World,
  operation: Operation,
  { parameters = {}, body }: Request,
  kind: 'in-progress' | 'another',
): Promise<void> {
  const { db } = api.provider.database
  const fingerprint = fingerprintRequest({
    method: operation.method,
    url: decodeURI(fillPath(operation.path, parameters)),
    contentType: operation.method === 'PATCH' ? 'application/merge-patch+json' : 'application/json',
    body: Buffer.from(kind === 'another' ? '"another"' : JSON.stringify(body)),
  })
  const later = new Date(Date.now() + 3_600_000)
  await db
    .insertInto('idempotency_keys')
    .values({
      caller_id: `console ${api.administrator.id}`,
      key: `${operation.id}-${kind}`,
      fingerprint,
      claimed_by: 'another process',
      locked_until: later,
      expires_at: later,
    })
    .execute()
}

/** Of a machine whose plan lets it call once, and which has. */
async function exhaustedToken({ api, targets }: World): Promise<string> {
  const { client_id, token } = await api.newMachine(['usage:read'])
  const name = targets.unique('once')
  const throttle = { rateLimit: 0.001, burstLimit: 1 }
  expect((await api.call(`/v1/plans/${name}`, { method: 'PUT', body: { name, throttle } })).status).toBe(201)
  const put = await api.call(`/v1/clients/${client_id}/plan`, { method: 'PUT', body: { plan: name } })
  expect(put.status).toBe(200)
  await vi.waitUntil(async () => (await api.call('/v1/usage', { token })).status === 429, { timeout: 10_000 })
  return token
}
