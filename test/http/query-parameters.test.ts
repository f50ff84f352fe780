import { sql } from 'kysely'
import { describe, expect, it } from 'vitest'
import { createDocument } from 'zod-openapi'
import { z } from 'zod'
import { filter, listOf } from '../../src/http/list-query.ts'
import {
  booleanParameter,
  checkQuery,
  choiceParameter,
  dateParameter,
  integerParameter,
  textParameter,
  timestampParameter,
  type Parameter,
} from '../../src/http/query-parameters.ts'

const list = listOf({
  name: 'users',
  sort: {
    created_at: { column: sql.ref('users.created_at'), type: 'timestamp' },
    email: { column: sql.ref('users.email'), type: 'text' },
    name: { column: sql.ref('users.name'), type: 'text', nullable: true },
  },
  defaultSort: '-created_at',
  tieBreak: { name: 'user_id', column: sql.ref('users.id'), type: 'text' },
  filters: {
    is_active: filter(booleanParameter('Only those that are active'), (isActive) => sql`${isActive}`),
    created_after: filter(timestampParameter('Only those made after this'), (at) => sql`${at}`),
    joined_on: filter(dateParameter('Only those who joined on this day'), (day) => sql`${day}`),
    status: filter(choiceParameter(['active', 'disabled'], 'Only those in this state'), (status) => sql`${status}`),
    email: filter(
      textParameter(20, { description: 'Only this one', example: 'a@example.com' }),
      (email) => sql`${email}`,
    ),
  },
  fields: ['user_id', 'email', 'created_at'],
})

function refusalsOf(querystring: string) {
  const checked = checkQuery(list.query, querystring)
  if (checked.success) throw new Error(`${querystring} was let pass`)
  return checked.details
}

function read(querystring: string) {
  const checked = checkQuery(list.query, querystring)
  if (!checked.success) throw new Error(JSON.stringify(checked.details))
  return checked.data
}

describe('a query string is refused', () => {
  it('for a parameter that nobody knows, with the name that was probably meant', () => {
    expect(refusalsOf('is_actve=true')).toEqual([
      {
        field: 'is_actve',
        constraint: 'unknown',
        message: 'There is no such parameter: did you mean is_active?',
        suggestion: 'is_active',
      },
    ])
    expect(refusalsOf('zzzzzz=1')).toEqual([
      { field: 'zzzzzz', constraint: 'unknown', message: 'There is no such parameter' },
    ])
    expect(refusalsOf(`${'limit'.repeat(100)}=1`)[0]?.field).toHaveLength(60)
  })

  it.each(['__proto__', 'constructor', 'toString', 'hasOwnProperty'])('for a parameter %s', (name) => {
    expect(refusalsOf(`${name}=1`)).toMatchObject([{ field: name, constraint: 'unknown' }])
  })

  it.each(['limit=10&limit=10', 'is_active=true&is_active=false'])('for a parameter that is sent twice: %s', (sent) => {
    const [name = ''] = sent.split('=')
    expect(refusalsOf(sent)).toEqual([{ field: name, constraint: 'repeated', message: 'Must be given once' }])
  })

  it.each(['email=a%00b', 'cursor=%00', 'created_after=%00'])('for a null character: %s', (sent) => {
    expect(refusalsOf(sent)).toMatchObject([{ constraint: 'format' }])
  })

  it('for a date in another format, naming the right one', () => {
    expect(refusalsOf('created_after=Feb-15-2025&joined_on=15.02.2025')).toEqual([
      {
        field: 'created_after',
        constraint: 'format',
        value: 'Feb-15-2025',
        message: 'Must be a date and time with its zone, such as 2026-01-31T00:00:00Z',
        expected_format: 'YYYY-MM-DDTHH:MM:SSZ',
      },
      {
        field: 'joined_on',
        constraint: 'format',
        value: '15.02.2025',
        message: 'Must be a day, such as 2026-01-31',
        expected_format: 'YYYY-MM-DD',
      },
    ])
  })

  it.each([
    '2026-01-31',
    '2026-01-31T00:00:00',
    '2026-02-30T00:00:00Z',
    '2026-01-31T24:00:00Z',
    '2026-01-31T00:00:60Z',
    '0000-01-01T00:00:00Z',
    '0001-01-01T00:00:00+01:00',
    '9999-12-31T23:59:59-01:00',
    '2026-01-31T00:00:00+25:00',
    '2026-01-31T00:00:00.1234567890Z',
    '2026-01-31T00:00:00.Z',
    'infinity',
    'now',
    '',
  ])('for %s, which is no moment that RFC 3339 knows', (at) => {
    expect(refusalsOf(`created_after=${encodeURIComponent(at)}`)).toMatchObject([{ constraint: 'format' }])
  })

  it.each([
    ['limit=0', 'minimum'],
    ['limit=101', 'maximum'],
    ['limit=ten', 'type'],
    ['limit=1e1', 'type'],
    ['limit=', 'type'],
    ['limit=%2010', 'type'],
    ['limit=99999999999999999999', 'type'],
    ['offset=-1', 'minimum'],
    ['offset=100001', 'maximum'],
    ['cursor=a.b', 'format'],
    ['cursor=', 'format'],
    [`cursor=${'a'.repeat(6_001)}`, 'format'],
    ['is_active=1', 'format'],
    ['status=actve', 'enum'],
    ['email=', 'minimum'],
    [`email=${'a'.repeat(21)}`, 'maximum'],
    ['sort=', 'enum'],
    ['sort=password_hash', 'enum'],
    ['sort=users.id', 'enum'],
    ['sort=--email', 'enum'],
    ['sort=email,', 'enum'],
    ['sort=email,-email', 'unique'],
    ['sort=email,name,created_at,user_id', 'maximum'],
    ['fields=password_hash', 'enum'],
    ['fields=email,email', 'unique'],
  ])('for %s', (sent, constraint) => {
    expect(refusalsOf(sent)).toMatchObject([{ field: sent.split('=')[0], constraint }])
  })

  it('for a cursor beside an offset', () => {
    expect(refusalsOf('cursor=abc&offset=0')).toEqual([
      { field: 'cursor', constraint: 'exclusive', message: 'A cursor excludes an offset: send one of them' },
    ])
  })

  it('for everything that is wrong with it, at once', () => {
    const details = refusalsOf(
      'limit=0&offset=x&cursor=abc&sort=emial,nme&fields=x&is_actve=1&created_after=x&email=a&email=b',
    )
    expect(details.map(({ field, constraint, suggestion }) => [field, constraint, suggestion])).toEqual([
      ['is_actve', 'unknown', 'is_active'],
      ['email', 'repeated', undefined],
      ['limit', 'minimum', undefined],
      ['offset', 'type', undefined],
      ['sort', 'enum', 'email'],
      ['sort', 'enum', 'name'],
      ['fields', 'enum', undefined],
      ['created_after', 'format', undefined],
      ['cursor', 'exclusive', undefined],
    ])
  })

  it('with a bounded answer, however much is wrong', () => {
    const sent = Array.from({ length: 900 }, (_, i) => `x${i}=1`).join('&')
    expect(refusalsOf(sent)).toHaveLength(50)
  })
})

describe('a query string', () => {
  it('that says nothing means the first fifty, in the order of the list', () => {
    expect(read('')).toEqual({ limit: 50, sort: [{ name: 'created_at', descending: true }] })
  })

  it('becomes values', () => {
    expect(
      read(
        'limit=100&offset=100000&sort=-email,user_id&fields=email,user_id&is_active=false&status=disabled&email=a%2Bb@example.com',
      ),
    ).toEqual({
      limit: 100,
      offset: 100_000,
      sort: [
        { name: 'email', descending: true },
        { name: 'user_id', descending: false },
      ],
      fields: ['email', 'user_id'],
      is_active: false,
      status: 'disabled',
      email: 'a+b@example.com',
    })
  })

  it.each([
    ['2026-01-31T00:00:00Z', '2026-01-31T00:00:00.000000Z'],
    ['2026-01-31t00:00:00z', '2026-01-31T00:00:00.000000Z'],
    ['2026-01-31T00:00:00.1+02:00', '2026-01-30T22:00:00.100000Z'],
    ['2026-01-31T00:00:00.123456789-00:30', '2026-01-31T00:30:00.123456Z'],
    ['0001-01-01T00:00:00Z', '0001-01-01T00:00:00.000000Z'],
    ['2024-02-29T23:59:59.999999Z', '2024-02-29T23:59:59.999999Z'],
  ])('%s is a moment to the microsecond, which means the same when it is sent again', (sent, at) => {
    const { created_after: value = '' } = read(`created_after=${encodeURIComponent(sent)}`)
    expect(value).toBe(at)
    expect(read(`created_after=${value}`).created_after).toBe(value)
  })

  it('has values of the types of its parameters', () => {
    const { data } = checkQuery(
      z.strictObject({ n: integerParameter({ minimum: 1, maximum: 3 }, { description: 'n', example: 1 }) }),
      'n=2',
    ) as { data: { n: number } }
    const n: Parameter<number> = integerParameter({ minimum: 1, maximum: 3 }, { description: 'n', example: 1 })
    expect(data.n + n.parse('1')).toBe(3)
  })
})

describe('a list', () => {
  it('cannot have a filter that is called as what every list has', () => {
    const filters = { limit: filter(booleanParameter('no'), () => sql`true`) }
    expect(() => listOf({ ...list.declaration, filters })).toThrow('users cannot have a filter limit')
  })

  it('cannot be sorted by default by something that it cannot be sorted by', () => {
    expect(() => listOf({ ...list.declaration, defaultSort: 'password_hash' })).toThrow('cannot be sorted by')
  })

  it('gives the chosen fields, and always the identifier', () => {
    const item = { user_id: 'usr_1', email: 'a@example.com', created_at: 'now' }
    expect(list.pickFields(item, ['email'])).toEqual({ user_id: 'usr_1', email: 'a@example.com' })
    expect(list.pickFields(item, undefined)).toEqual(item)
  })

  it('says in OpenAPI what each parameter takes', () => {
    const document = createDocument({
      openapi: '3.1.1',
      info: { title: 'test', version: '1.0.0' },
      paths: { '/v1/users': { get: { requestParams: { query: list.query }, responses: {} } } },
    })
    const parameters = z
      .array(
        z.looseObject({ name: z.string(), description: z.string(), example: z.unknown(), schema: z.looseObject({}) }),
      )
      .parse(document.paths?.['/v1/users']?.get?.parameters)
    expect(parameters.map(({ name }) => name)).toEqual([
      'limit',
      'offset',
      'cursor',
      'sort',
      'fields',
      ...Object.keys(list.declaration.filters),
    ])
    const schemaOf = (wanted: string) => parameters.find(({ name }) => name === wanted)?.schema
    expect(schemaOf('limit')).toMatchObject({ type: 'integer', minimum: 1, maximum: 100, default: 50 })
    expect(schemaOf('created_after')).toMatchObject({ type: 'string', format: 'date-time' })
    expect(schemaOf('status')).toMatchObject({ type: 'string', enum: ['active', 'disabled'] })
    // The patterns take exactly what the server does.
    const sort = new RegExp(String(schemaOf('sort')?.['pattern']))
    expect(['-created_at,email', 'user_id'].every((text) => sort.test(text))).toBe(true)
    expect(['--email', 'x', 'email,', 'a,email', 'email,name,created_at,user_id'].some((text) => sort.test(text))).toBe(
      false,
    )
    // Every example is a value.
    for (const { name, example } of parameters) {
      expect(checkQuery(list.query, `${name}=${encodeURIComponent(String(example))}`)).toMatchObject({ success: true })
    }
  })
})
