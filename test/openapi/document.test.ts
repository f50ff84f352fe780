/** What can be said of the document without a server: that it is valid, well named, and true in its examples. */
import { Validator } from '@seriousme/openapi-schema-validator'
import { describe, expect, it } from 'vitest'
import type { Endpoint } from '../../src/http/endpoint.ts'
import { describeApi } from '../../src/http/openapi.ts'
import { listEndpoints, type ManagementApiParts } from '../../src/management/management-api.ts'
import { problemCatalogue, type ProblemCode } from '../../src/problems.ts'
import {
  openJudge,
  operationsOf,
  readCommittedDocument,
  resolve,
  type Document,
  type MediaType,
  type Operation,
} from './document.ts'

const document = readCommittedDocument()
const operations = operationsOf(document)
const judge = openJudge(document)

describe('the document', () => {
  it('is OpenAPI 3.1, says somebody else', async () => {
    const validator = new Validator()
    const { valid, errors } = await validator.validate({ ...document })
    expect(errors ?? []).toEqual([])
    expect(valid).toBe(true)
    expect(validator.version).toBe('3.1')
    const broken = { ...document, info: { version: '1.0.0' } }
    expect((await new Validator().validate(broken)).valid).toBe(false)
  })

  it('is the one of the default issuer, and names no machine', () => {
    expect(document.servers).toEqual([{ url: 'http://localhost:3000' }])
    const text = JSON.stringify(document)
    expect(text.match(/http:\/\/(localhost|127\.0\.0\.1):(?!3000\b)\d+/g) ?? []).toEqual([])
    expect(text.match(/\/(home|root|tmp|work|Users)\/[\w.-]+/g) ?? []).toEqual([])
  })

  it('refers to nothing that is not there, and holds no schema that nothing refers to', () => {
    const text = JSON.stringify(document)
    const referred = new Set([...text.matchAll(/"\$ref":"([^"]+)"/g)].map(([, to = '']) => to))
    for (const $ref of referred) expect(resolve(document, { $ref })).toBeDefined()
    const kept = Object.keys(document.components?.schemas ?? {}).map((name) => `#/components/schemas/${name}`)
    expect(kept.filter((name) => !referred.has(name))).toEqual([])
  })
})

/** Words that are singular because there is only one, or because they cannot be counted. */
const singletons = ['audit', 'usage', 'password', 'plan', 'me']
const verbs =
  /^(get|list|create|make|add|new|update|change|set|put|patch|replace|delete|remove|revoke|rotate|search|find|enable|disable|activate|deactivate|login|logout|send|verify|check|reset|run|start|stop|assign|unassign|import|export)$/

function faultsOfPath(path: string): string[] {
  const [, version = '', ...rest] = path.split('/')
  const nouns = rest.filter((step) => !step.startsWith('{'))
  const faults = [
    ...(/^v\d+$/.test(version) ? [] : ['has no version']),
    ...(nouns.length > 3 ? ['has more than three levels'] : []),
    ...(nouns.length === 0 ? ['has no noun'] : []),
    ...(path.endsWith('/') ? ['ends in a slash'] : []),
    ...rest
      .filter((step) => !/^([a-z]+(-[a-z]+)*|\{[a-z]+(_[a-z]+)*\})$/.test(step))
      .map((step) => `${step} is not in kebab-case`),
    ...nouns.filter((noun) => noun.split('-').some((word) => verbs.test(word))).map((noun) => `${noun} is a verb`),
    ...nouns
      .filter((noun) => !singletons.includes(noun) && (!noun.endsWith('s') || noun.endsWith('ss')))
      .map((noun) => `${noun} is not plural`),
    ...rest
      .filter((step, i) => step.startsWith('{') && rest[i - 1]?.startsWith('{') !== false)
      .map((step) => `${step} follows no noun`),
  ]
  return faults.map((fault) => `${path} ${fault}`)
}

describe('a path', () => {
  it.each([
    ['/users', 'has no version'],
    ['/v1/users/{user_id}/roles/{name}/permissions/{id}/history', 'has more than three levels'],
    ['/v1/getUsers', 'getUsers is not in kebab-case'],
    ['/v1/users/{userId}', '{userId} is not in kebab-case'],
    ['/v1/users/{user_id}/disable', 'disable is a verb'],
    ['/v1/rotate-keys', 'rotate-keys is a verb'],
    ['/v1/user', 'user is not plural'],
    ['/v1/{tenant}/users', '{tenant} follows no noun'],
    ['/v1/users/', 'ends in a slash'],
  ])('like %s is found: %s', (path, fault) => {
    expect(faultsOfPath(path)).toContain(`${path} ${fault}`)
  })

  it('of ours is under the major version that the document has', () => {
    const major = document.info.version.split('.')[0] ?? ''
    expect(Object.keys(document.paths).filter((path) => !path.startsWith(`/v${major}/`))).toEqual([])
  })

  it('of ours is nouns, plural, in kebab-case, at most three levels deep, under a version', () => {
    expect(Object.keys(document.paths).flatMap(faultsOfPath)).toEqual([])
  })

  it('has parameters that each of its operations describes', () => {
    for (const { id, path, parameters = [] } of operations) {
      const named = [...path.matchAll(/\{(\w+)\}/g)].map(([, name = '']) => name)
      const described = parameters.filter((parameter) => parameter.in === 'path')
      expect([id, described.map(({ name }) => name).sort()]).toEqual([id, named.sort()])
      expect(described.every(({ required }) => required === true)).toBe(true)
    }
  })
})

describe('an operation', () => {
  it('has a name of its own in camelCase', () => {
    const names = operations.map(({ operationId }) => operationId ?? '')
    expect(names.filter((name) => !/^[a-z]+([A-Z][a-z]+)*$/.test(name))).toEqual([])
    expect(names.filter((name, i) => names.indexOf(name) !== i)).toEqual([])
  })

  it('says in one line what it does, stands under one known heading, and says who may call it', () => {
    const headings = document.tags?.map(({ name }) => name) ?? []
    for (const { id, summary = '', tags = [], security = [] } of operations) {
      expect([id, summary.length > 5 && summary.length <= 120 && !summary.endsWith('.')]).toEqual([id, true])
      expect([id, tags.length, headings.includes(tags[0] ?? '')]).toEqual([id, 1, true])
      expect([id, security.length > 0 && security.every((way) => Object.keys(way).length > 0)]).toEqual([id, true])
    }
    expect(headings.filter((name) => !operations.some(({ tags }) => tags?.includes(name)))).toEqual([])
  })

  it('asks for scopes that the document explains', () => {
    const { oauth2 } = document.components?.securitySchemes ?? {}
    const known = Object.values(oauth2?.flows ?? {}).map(({ scopes }) => Object.keys(scopes).sort())
    const asked = new Set(operations.flatMap(({ security = [] }) => security.flatMap((way) => way['oauth2'] ?? [])))
    for (const scopes of known) expect(scopes).toEqual([...asked].sort())
  })

  it('describes its parameters, each with an example that fits', () => {
    for (const { id, parameters = [] } of operations) {
      for (const { name, schema = {}, example, description = '' } of parameters) {
        expect([id, name, description !== '']).toEqual([id, name, true])
        expect([id, name, judge.check(schema, example ?? schema.example)]).toEqual([id, name, ''])
      }
    }
  })

  it('has an example of every body, and each fits its schema', () => {
    let examples = 0
    for (const operation of operations) {
      for (const [place, { schema = {}, example }] of bodiesOf(operation)) {
        // The version's own media type leaves it to its schema, which is that of application/json.
        const own = example ?? (place.includes('vnd.') ? resolve(document, schema).example : undefined)
        expect([place, own !== undefined]).toEqual([place, true])
        expect([place, judge.check(schema, own)]).toEqual([place, ''])
        examples += 1
      }
    }
    expect(examples).toBeGreaterThan(operations.length * 10)
  })

  it('has an example for every status that it refuses with, which says that status', () => {
    for (const { id, responses } of operations) {
      for (const [status, response] of Object.entries(responses)) {
        if (Number(status) < 400) continue
        const { 'text/html': page, ...bodies } = resolve(document, response).content ?? {}
        expect([id, Object.keys(bodies)]).toEqual([id, ['application/json', 'application/problem+json']])
        for (const { example } of Object.values(bodies)) {
          expect([id, (example as { status?: number }).status]).toEqual([id, Number(status)])
        }
        expect([id, page?.example]).toEqual([id, expect.stringMatching(/^<!doctype html>/)])
      }
    }
  })
})

/** Which operations the API can answer with an error of the catalogue, whatever they are about. */
type Rule = (endpoint: Endpoint) => boolean
const any: Rule = () => true
const none: Rule = () => false
const withBody: Rule = ({ body }) => body !== undefined
const withKey: Rule = ({ method }) => method === 'POST' || method === 'PATCH'

const rules: Readonly<Record<ProblemCode, Rule>> = {
  // A parameter that nobody knows; two versions at once.
  VALIDATION_ERROR: any,
  // A token and an API key.
  MALFORMED_REQUEST: any,
  AUTHENTICATION_ERROR: any,
  AUTHORIZATION_ERROR: any,
  // Of pages.
  FORM_EXPIRED: none,
  // Whoever chooses an identifier finds nothing missing.
  RESOURCE_NOT_FOUND: ({ method, path, responses }) => path.includes('{') && !(method === 'PUT' && 201 in responses),
  // Of paths.
  METHOD_NOT_ALLOWED: none,
  NOT_ACCEPTABLE: any,
  REQUEST_TIMEOUT: withBody,
  // A JSON Patch that does not fit; the rest is what operations say themselves.
  CONFLICT: ({ method }) => method === 'PATCH',
  IDEMPOTENCY_IN_PROGRESS: withKey,
  GONE: ({ lifecycle }) => lifecycle?.goneAt !== undefined,
  PRECONDITION_FAILED: ({ method }) => method !== 'POST',
  PAYLOAD_TOO_LARGE: withBody,
  UNSUPPORTED_MEDIA_TYPE: withBody,
  IDEMPOTENCY_KEY_REUSED: withKey,
  PRECONDITION_REQUIRED: ({ requiresMatch }) => requiresMatch === true,
  RATE_LIMIT_EXCEEDED: any,
  SERVER_ERROR: any,
  SERVICE_UNAVAILABLE: any,
  GATEWAY_TIMEOUT: any,
}
const codes = Object.keys(rules) as ProblemCode[]

describe('the statuses of an operation', () => {
  // Nothing is asked of them.
  const endpoints = listEndpoints({ config: { issuer: 'http://localhost:3000' } } as unknown as ManagementApiParts)

  it('are those that its declaration succeeds with, and those of every error that it can be answered with', () => {
    const expected = endpoints.map((endpoint) => {
      const errors = [...codes.filter((code) => rules[code](endpoint)), ...(endpoint.problems ?? [])]
      const statuses = [
        ...Object.keys(endpoint.responses).map(Number),
        ...(endpoint.method === 'GET' ? [304] : []),
        ...errors.map((code) => problemCatalogue[code].status),
      ]
      return [endpoint.name, [...new Set(statuses)].sort((a, b) => a - b)]
    })
    expect(operations.map(({ id, responses }) => [id, Object.keys(responses).map(Number)])).toEqual(expected)
  })

  it('are all described, and so is what the API answers where there is no operation', () => {
    const answered = codes.filter((code) => code !== 'FORM_EXPIRED' && code !== 'GONE')
    const statuses = answered.map((code) => String(problemCatalogue[code].status))
    expect(Object.keys(document.components?.responses ?? {})).toEqual(expect.arrayContaining(statuses))
    expect(Object.keys(document.components?.responses?.['405']?.headers ?? {})).toContain('Allow')
  })

  it.each([
    [{}, [false, false, false]],
    [{ deprecatedAt: new Date(0) }, [true, false, false]],
    [{ deprecatedAt: new Date(0), readOnlyAt: new Date(1) }, [true, false, true]],
    [{ goneAt: new Date(2) }, [false, true, true]],
  ])('are 410 too where the end of its version has a day: %j', (end, [isDeprecated, readEnds, changeEnds]) => {
    const { paths } = describeApi({
      issuer: 'http://localhost:3000',
      version: '1.0.0',
      title: 'Roles',
      description: '',
      scopes: {},
      tags: {},
      apiVersion: { version: '1', ...end },
      endpoints: endpoints.filter(({ name }) => name === 'getRole' || name === 'putRole'),
    }) as unknown as Document
    const { get, put } = paths['/v1/roles/{name}'] ?? {}
    for (const [operation, ends] of [
      [get, readEnds],
      [put, changeEnds],
    ] as const) {
      expect(operation?.deprecated ?? false).toBe(isDeprecated)
      expect('410' in (operation?.responses ?? {})).toBe(ends)
      expect('Sunset' in (operation?.responses['200']?.headers ?? {})).toBe(isDeprecated)
    }
  })
})

describe('a condition', () => {
  it('is a parameter of every operation that can be answered with 304, 412 or 428', () => {
    const found = operations.map(({ id, parameters = [] }) => [
      id,
      parameters.filter(({ name }) => name.startsWith('If-')).map(({ name, required }) => [name, required ?? false]),
    ])
    const expected = operations.map(({ id, method, responses }) => [
      id,
      method === 'POST'
        ? []
        : [
            ['If-Match', '428' in responses],
            ['If-None-Match', false],
          ],
    ])
    expect(found).toEqual(expected)
  })

  it('is described by what it does there', () => {
    const textOf = (id: string, header: string) =>
      operations.find((one) => one.id === id)?.parameters?.find(({ name }) => name === header)?.description
    expect(textOf('putRole', 'If-None-Match')).toContain('create, never replace')
    expect(textOf('updateUser', 'If-None-Match')).toContain('412 when it names')
    expect(textOf('getUser', 'If-None-Match')).toContain('304')
    expect(textOf('getUser', 'If-Match')).toContain('412')
    expect(textOf('endSession', 'If-Match')).toContain('Nothing here has a version')
  })
})

describe('a media type', () => {
  const vendor = 'application/vnd.latchkey.v1+json'

  it('of the version stands beside application/json, with the same schema, in every success and in bodies of POST and PUT', () => {
    for (const { id, method, requestBody, responses } of operations) {
      const successes = Object.entries(responses)
        .filter(([status]) => status.startsWith('2'))
        .map(([, { content }]) => content)
      const bodies = [...successes, ...(method === 'PATCH' ? [] : [requestBody?.content])]
      for (const content of bodies.filter((one) => one !== undefined)) {
        expect([id, Object.keys(content)]).toEqual([id, ['application/json', vendor]])
        // By reference: the document does not grow by it.
        expect([id, content[vendor]]).toEqual([id, { schema: { $ref: expect.any(String) as string } }])
        expect([id, content[vendor]?.schema]).toEqual([id, content['application/json']?.schema])
      }
    }
  })
})

describe('a merge patch', () => {
  const patches = operations.flatMap(({ requestBody }) => {
    const { schema } = requestBody?.content['application/merge-patch+json'] ?? {}
    return schema === undefined ? [] : [schema]
  })

  it('has no defaults: what is left out stays as it is', () => {
    expect(patches.length).toBeGreaterThan(0)
    expect(patches.filter((schema) => JSON.stringify(resolve(document, schema)).includes('"default"'))).toEqual([])
  })

  it('may hold nothing, and null for what can be removed', () => {
    const patchUser = { $ref: '#/components/schemas/PatchUser' }
    for (const patch of [{}, { profile: null }, { profile: { given_name: null, address: { country: null } } }]) {
      expect(judge.check(patchUser, patch)).toBe('')
    }
    expect(judge.check(patchUser, { email: null })).toContain('must be string')
    expect(judge.check(patchUser, { name: '' })).toContain('fewer than 1')
    const patchClient = { $ref: '#/components/schemas/PatchClient' }
    expect(judge.check(patchClient, { jwks: null, redirect_uris: null, jwks_uri: null })).toBe('')
    expect(judge.check(patchClient, { jwks: { keys: null } })).not.toBe('')
    // Not a document of its own: an array is replaced as a whole.
    expect(judge.check(patchClient, { permissions: [{ resource: 'https://api.example.com' }] })).not.toBe('')
  })
})

describe('a component', () => {
  it('is named in PascalCase, and a response by its status', () => {
    const { schemas = {}, responses = {} } = document.components ?? {}
    expect(Object.keys(schemas).filter((name) => !/^([A-Z][a-z]+)+$/.test(name))).toEqual([])
    expect(Object.keys(responses).filter((name) => !/^[345]\d\d$/.test(name))).toEqual([])
  })

  it('has an example that fits, where it has one', () => {
    for (const [name, schema] of Object.entries(document.components?.schemas ?? {})) {
      if (schema.example !== undefined) expect([name, judge.check(schema, schema.example)]).toEqual([name, ''])
    }
  })

  it('of a request is closed, so that nothing is set that nobody meant to be', () => {
    const open = operations.flatMap(({ id, requestBody }) =>
      Object.values(requestBody?.content ?? {}).flatMap(({ schema = {} }) => {
        const { type, additionalProperties } = resolve(document, schema)
        return type === 'object' && additionalProperties !== false ? [id] : []
      }),
    )
    expect(open).toEqual([])
  })
})

/** Each body that goes either way, under its media type. */
function bodiesOf({ id, requestBody, responses }: Operation): [place: string, body: MediaType][] {
  return [
    ...Object.entries(requestBody?.content ?? {}).map(([type, body]): [string, MediaType] => [
      `${id} request ${type}`,
      body,
    ]),
    ...Object.entries(responses).flatMap(([status, response]) =>
      Object.entries(resolve(document, response).content ?? {}).map(([type, body]): [string, MediaType] => [
        `${id} ${status} ${type}`,
        body,
      ]),
    ),
  ]
}
