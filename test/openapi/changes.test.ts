/** The table of breaking and compatible changes, row by row, with the lecture's own examples first. */
import { describe, expect, it } from 'vitest'
import { findChanges, neededRaise, raiseOf } from './changes.ts'
import { readCommittedDocument, type Document, type OperationObject, type Parameter, type Schema } from './document.ts'

function api(paths: Record<string, Record<string, Partial<OperationObject>>>, version = '1.0.0'): Document {
  return {
    openapi: '3.1.0',
    info: { title: 'Example', version },
    paths: Object.fromEntries(
      Object.entries(paths).map(([path, item]) => [
        path,
        Object.fromEntries(
          Object.entries(item).map(([method, operation]) => [
            method,
            { operationId: `${method} ${path}`, responses: { 200: { description: 'The answer' } }, ...operation },
          ]),
        ),
      ]),
    ),
  }
}

const object = (properties: Record<string, Schema>, required = Object.keys(properties)): Schema => ({
  type: 'object',
  properties,
  required,
})
const text: Schema = { type: 'string' }
const number: Schema = { type: 'integer' }
const json = (schema: Schema) => ({ 'application/json': { schema } })
/** A document whose one operation answers this. */
const answering = (schema: Schema, status = 200): Document =>
  api({ '/users/{user_id}': { get: { responses: { [status]: { description: '', content: json(schema) } } } } })
/** A document whose one operation takes this. */
const taking = (schema: Schema): Document =>
  api({
    '/bookings': {
      post: { requestBody: { required: true, content: json({ ...schema, additionalProperties: false }) } },
    },
  })
const asking = (...parameters: Parameter[]): Document => api({ '/flights': { get: { parameters } } })
const query = (name: string, schema: Schema = text, required = false): Parameter => ({
  in: 'query',
  name,
  required,
  schema,
})
const secured = (...security: NonNullable<OperationObject['security']>): Document => ({
  ...api({ '/users': { get: { security } } }),
  components: {
    securitySchemes: {
      oauth2: {
        type: 'oauth2',
        flows: { clientCredentials: { tokenUrl: '/token', scopes: { 'users:read': '', 'users:write': '' } } },
      },
      api_key: { type: 'apiKey', in: 'header', name: 'x-api-key' },
    },
  },
})
const statuses = (...of: number[]): Document =>
  api({
    '/users/{user_id}': { get: { responses: Object.fromEntries(of.map((status) => [status, { description: '' }])) } },
  })

type Row = readonly [example: string, rule: string, before: Document, after: Document]

const user = { user_id: number, email: text }

describe('what is breaking', () => {
  const rows: readonly Row[] = [
    // The lecture's own.
    [
      'phone is gone from the answer',
      'response member removed',
      answering(object({ ...user, phone: text })),
      answering(object(user)),
    ],
    [
      'created becomes created_at',
      'response member removed',
      answering(object({ created: text })),
      answering(object({ created_at: text })),
    ],
    [
      'count was "42" and is 42',
      'response member type changed',
      answering(object({ count: text })),
      answering(object({ count: number })),
    ],
    [
      'a booking needs seat_class',
      'required request member added',
      taking(object({ flight_id: number, user_id: number })),
      taking(object({ flight_id: number, user_id: number, seat_class: text })),
    ],
    [
      'a user who is not found was an empty 200 and is 404',
      'success status changed to 404',
      answering({ anyOf: [object(user), { type: 'null' }] }),
      api({
        '/users/{user_id}': {
          get: { responses: { 200: { content: json({ anyOf: [object(user), { type: 'null' }] }) }, 404: {} } },
        },
      }),
    ],
    [
      'an endpoint is removed',
      'operation removed',
      api({ '/users': { get: {} }, '/users/search': { get: {} } }),
      api({ '/users': { get: {} } }),
    ],
    [
      'a method is removed',
      'operation removed',
      api({ '/users': { get: {}, post: {} } }),
      api({ '/users': { get: {} } }),
    ],
    [
      'another way to authenticate',
      'authentication or scope changed',
      secured({ api_key: [] }),
      secured({ oauth2: ['users:read'] }),
    ],
    // The rest of what the same rules say.
    ['a success comes with this status no more', 'success status removed', statuses(200, 201), statuses(201)],
    ['a second success status', 'success status added', statuses(200), statuses(200, 202)],
    [
      'a member may be missing now',
      'response member is now optional',
      answering(object(user)),
      answering(object(user, ['user_id'])),
    ],
    [
      'a member may be null now',
      'response member type changed',
      answering(object({ name: text })),
      answering(object({ name: { anyOf: [text, { type: 'null' }] } })),
    ],
    [
      'a member of a member is gone',
      'response member removed',
      answering(object({ users: { type: 'array', items: object(user) } })),
      answering(object({ users: { type: 'array', items: object({ user_id: number }) } })),
    ],
    [
      'a time is no time any more',
      'response member format changed',
      answering(object({ at: { type: 'string', format: 'date-time' } })),
      answering(object({ at: text })),
    ],
    [
      'answers grow beyond what was promised',
      'response member maximum loosened',
      answering(object({ share: { type: 'number', maximum: 1 } })),
      answering(object({ share: { type: 'number', maximum: 100 } })),
    ],
    [
      'an answer is not to be had in a media type any more',
      'response media type removed',
      api({ '/a': { get: { responses: { 200: { content: { ...json(text), 'text/csv': { schema: text } } } } } } }),
      api({ '/a': { get: { responses: { 200: { content: json(text) } } } } }),
    ],
    [
      'a header is gone',
      'response header removed',
      api({ '/a': { get: { responses: { 200: { headers: { ETag: { schema: text } } } } } } }),
      api({ '/a': { get: { responses: { 200: {} } } } }),
    ],
    [
      'a member of a request is gone, and refused',
      'request member removed',
      taking(object({ a: text, b: text }, ['a'])),
      taking(object({ a: text }, ['a'])),
    ],
    [
      'an optional member is required',
      'request member is now required',
      taking(object({ a: text, b: text }, ['a'])),
      taking(object({ a: text, b: text })),
    ],
    [
      'a member of a request has another type',
      'request member type changed',
      taking(object({ a: text })),
      taking(object({ a: number })),
    ],
    [
      'null is taken no more',
      'request member type changed',
      taking(object({ a: { type: ['string', 'null'] } })),
      taking(object({ a: text })),
    ],
    [
      'a request takes one word less',
      'request member enum value removed',
      taking(object({ a: { type: 'string', enum: ['x', 'y'] } })),
      taking(object({ a: { type: 'string', enum: ['x'] } })),
    ],
    [
      'a request takes only some words now',
      'request member enum added',
      taking(object({ a: text })),
      taking(object({ a: { type: 'string', enum: ['x'] } })),
    ],
    [
      'a request must be shorter',
      'request member maxLength tightened',
      taking(object({ a: { type: 'string', maxLength: 64 } })),
      taking(object({ a: { type: 'string', maxLength: 32 } })),
    ],
    [
      'a request must be longer',
      'request member minLength tightened',
      taking(object({ a: text })),
      taking(object({ a: { type: 'string', minLength: 1 } })),
    ],
    [
      'a request must have another form',
      'request member pattern changed',
      taking(object({ a: text })),
      taking(object({ a: { type: 'string', pattern: '^x' } })),
    ],
    [
      'what is left out means something else',
      'request default changed',
      taking(object({ a: { type: 'boolean', default: false } }, [])),
      taking(object({ a: { type: 'boolean', default: true } }, [])),
    ],
    [
      'a required parameter is added',
      'required request parameter added',
      asking(query('departure')),
      asking(query('departure'), query('date', text, true)),
    ],
    [
      'a parameter is required',
      'request parameter is now required',
      asking(query('departure')),
      asking(query('departure', text, true)),
    ],
    [
      'a parameter is gone',
      'request parameter removed',
      asking(query('departure'), query('date')),
      asking(query('date')),
    ],
    [
      'a parameter takes less',
      'request value maximum tightened',
      asking(query('limit', { type: 'integer', maximum: 100 })),
      asking(query('limit', { type: 'integer', maximum: 50 })),
    ],
    [
      'a request body is needed',
      'required request body added',
      api({ '/a': { post: {} } }),
      api({ '/a': { post: { requestBody: { required: true, content: json(text) } } } }),
    ],
    [
      'a request is not taken in a media type any more',
      'request media type removed',
      api({ '/a': { patch: { requestBody: { content: { ...json(text), 'application/merge-patch+json': {} } } } } }),
      api({ '/a': { patch: { requestBody: { content: json(text) } } } }),
    ],
    [
      'another scope',
      'authentication or scope changed',
      secured({ oauth2: ['users:read'] }),
      secured({ oauth2: ['users:write'] }),
    ],
    [
      'a way to authenticate is gone',
      'authentication or scope changed',
      secured({ oauth2: ['users:read'] }, { api_key: [] }),
      secured({ oauth2: ['users:read'] }),
    ],
    [
      'what everybody could read needs authentication',
      'authentication or scope changed',
      secured(),
      secured({ oauth2: ['users:read'] }),
    ],
    [
      'an operation is called otherwise',
      'operation renamed',
      api({ '/a': { get: { operationId: 'listA' } } }),
      api({ '/a': { get: { operationId: 'getA' } } }),
    ],
    [
      'a server is gone',
      'server removed',
      { ...api({}), servers: [{ url: 'https://one.example' }] },
      { ...api({}), servers: [{ url: 'https://two.example' }] },
    ],
  ]
  it.each(rows)('%s: %s', (_example, rule, before, after) => {
    expect(breakingRules(before, after)).toEqual([rule])
    expect(neededRaise(before, after)).toBe('major')
  })

  it('is found behind references, in components and in responses that are shared', () => {
    const document = (schema: Schema): Document => ({
      ...api({
        '/users': { get: { responses: { 200: { $ref: '#/components/responses/Users' } } } },
      }),
      components: {
        schemas: { User: schema },
        responses: {
          Users: { description: '', content: json({ type: 'array', items: { $ref: '#/components/schemas/User' } }) },
        },
      },
    })
    expect(findChanges(document(object(user)), document(object({ user_id: number })))).toEqual([
      { kind: 'breaking', rule: 'response member removed', where: 'GET /users 200 body[].email' },
    ])
  })

  it('is found in schemas that hold themselves, and the search ends', () => {
    const document = (schema: Schema): Document => ({
      ...answering({ $ref: '#/components/schemas/Tree' }),
      components: {
        schemas: {
          Tree: object({ children: { type: 'array', items: { $ref: '#/components/schemas/Tree' } }, leaf: schema }),
        },
      },
    })
    expect(breakingRules(document(text), document(number))).toEqual(['response member type changed'])
    expect(findChanges(document(text), document(text))).toEqual([])
  })
})

describe('what is compatible', () => {
  const rows: readonly Row[] = [
    // The lecture's own.
    [
      'created_at is new in the answer',
      'response member added',
      answering(object(user)),
      answering(object({ ...user, created_at: text })),
    ],
    [
      'max_price may be asked for',
      'optional request parameter added',
      asking(query('departure')),
      asking(query('departure'), query('max_price', number)),
    ],
    [
      '/users/search is new',
      'operation added',
      api({ '/users': { get: {}, post: {} } }),
      api({ '/users': { get: {}, post: {} }, '/users/search': { get: {} } }),
    ],
    [
      'PATCH is new where GET was',
      'operation added',
      api({ '/users/{user_id}': { get: {} } }),
      api({ '/users/{user_id}': { get: {}, patch: {} } }),
    ],
    [
      'a request may say more',
      'optional request member added',
      taking(object({ flight_id: number })),
      taking(object({ flight_id: number, seat_class: text }, ['flight_id'])),
    ],
    ['a new case of error', 'error status added', statuses(200, 404), statuses(200, 404, 409)],
    // The rest of what the same rules say.
    ['a case of error that comes no more', 'error status removed', statuses(200, 404), statuses(200)],
    [
      'a word that answers did not hold',
      'response member enum value added',
      answering(object({ state: { type: 'string', enum: ['next'] } })),
      answering(object({ state: { type: 'string', enum: ['next', 'current'] } })),
    ],
    [
      'a word that requests may hold',
      'request member enum value added',
      taking(object({ state: { type: 'string', enum: ['next'] } })),
      taking(object({ state: { type: 'string', enum: ['next', 'current'] } })),
    ],
    [
      'a member is always there',
      'response member is now always there',
      answering(object(user, ['user_id'])),
      answering(object(user)),
    ],
    [
      'a member is null no more',
      'response member has other alternatives',
      answering(object({ name: { type: ['string', 'null'] } })),
      answering(object({ name: text })),
    ],
    [
      'null is taken too',
      'request member has other alternatives',
      taking(object({ a: text })),
      taking(object({ a: { anyOf: [text, { type: 'null' }] } })),
    ],
    [
      'a required member is optional',
      'request member is now optional',
      taking(object({ a: text })),
      taking(object({ a: text }, [])),
    ],
    [
      'a request may be longer',
      'request member maxLength loosened',
      taking(object({ a: { type: 'string', maxLength: 32 } })),
      taking(object({ a: { type: 'string', maxLength: 64 } })),
    ],
    [
      'a request may be a fraction',
      'request member type widened',
      taking(object({ a: { type: 'integer' } })),
      taking(object({ a: { type: 'number' } })),
    ],
    [
      'a header is new',
      'response header added',
      api({ '/a': { get: { responses: { 200: {} } } } }),
      api({ '/a': { get: { responses: { 200: { headers: { ETag: { schema: text } } } } } } }),
    ],
    [
      'another media type is taken',
      'request media type added',
      api({ '/a': { patch: { requestBody: { content: json(text) } } } }),
      api({ '/a': { patch: { requestBody: { content: { ...json(text), 'application/merge-patch+json': {} } } } } }),
    ],
    [
      'another way to authenticate beside the old one',
      'way of authentication added',
      secured({ oauth2: ['users:read'] }),
      secured({ oauth2: ['users:read'] }, { api_key: [] }),
    ],
    [
      'an end that is announced',
      'operation deprecated',
      api({ '/a': { get: {} } }),
      api({ '/a': { get: { deprecated: true } } }),
    ],
  ]
  it.each(rows)('%s: %s', (_example, rule, before, after) => {
    expect(findChanges(before, after)).toMatchObject([{ kind: 'compatible', rule }])
    expect(neededRaise(before, after)).toBe('minor')
  })

  it('and what a parameter of a path is called is no change at all', () => {
    const path = (name: string): Document =>
      api({
        [`/users/{${name}}`]: {
          get: { operationId: 'getUser', parameters: [{ in: 'path', name, required: true, schema: text }] },
        },
      })
    expect(findChanges(path('id'), path('user_id'))).toEqual([])
    expect(neededRaise(path('id'), path('user_id'))).toBe('patch')
  })
})

describe('the version', () => {
  it('need not be raised for nothing, and by a patch for text', () => {
    const before = api({ '/a': { get: { summary: 'One' } } })
    expect(neededRaise(before, api({ '/a': { get: { summary: 'One' } } }, '1.0.1'))).toBe('none')
    expect(neededRaise(before, api({ '/a': { get: { summary: 'Two' } } }))).toBe('patch')
  })

  it('says by its highest part how much it was raised, and never goes down', () => {
    const raised = (from: string, to: string) => raiseOf(api({}, from), api({}, to))
    expect(raised('1.9.3', '2.0.0')).toBe('major')
    expect(raised('1.9.3', '1.10.0')).toBe('minor')
    expect(raised('1.9.3', '1.9.10')).toBe('patch')
    expect(raised('1.9.3', '1.9.3')).toBe('none')
    expect(() => raised('1.9.3', '1.8.9')).toThrow('went down')
    expect(() => raised('1.9.3', '1.x')).toThrow('no semantic version')
  })
})

describe('our own document', () => {
  const document = readCommittedDocument()

  it('is not different from itself', () => {
    expect(findChanges(document, structuredClone(document))).toEqual([])
  })

  it('shows as breaking each member that is taken from an answer, and each that a request must newly have', () => {
    const changed = (change: (schemas: Record<string, Record<string, Record<string, unknown> & string[]>>) => void) => {
      const other = structuredClone(document)
      change(other.components?.schemas as never)
      return findChanges(document, other).filter(({ kind }) => kind === 'breaking')
    }
    expect(changed(({ User }) => delete User?.['properties']?.['email'])).not.toEqual([])
    expect(changed(({ CreateUser }) => CreateUser?.['required']?.push('name'))).toEqual(
      ['application/json', 'application/vnd.latchkey.v1+json'].map((type) => ({
        kind: 'breaking',
        rule: 'request member is now required',
        where: `POST /v1/users body ${type}.name`,
      })),
    )
    expect(changed(({ Error }) => delete Error?.['properties']?.['request_id']).length).toBeGreaterThan(100)
  })
})

function breakingRules(before: Document, after: Document): string[] {
  return findChanges(before, after)
    .filter(({ kind }) => kind === 'breaking')
    .map(({ rule }) => rule)
}
