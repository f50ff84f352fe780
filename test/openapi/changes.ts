/**
 * What a change of the document means to those who call the API, by the table of docs/api.md: each difference is
 * breaking or compatible, and everything that is neither is text. Schemas are compared by what they let pass: a request
 * that was valid must stay valid, and an answer must be one that could have come before, but for new members.
 */
import {
  resolve,
  type Document,
  type Flow,
  type OperationObject,
  type Parameter,
  type Response,
  type Schema,
  type SecurityScheme,
} from './document.ts'

export interface Change {
  readonly kind: 'breaking' | 'compatible'
  /** a row of the table: `response member removed` */
  readonly rule: string
  /** `GET /users/{} 200 body.phone` */
  readonly where: string
}

type Direction = 'request' | 'response'

interface Side {
  readonly document: Document
  readonly schema: Schema
}

/** Everything that is different between two documents and is more than text. */
export function findChanges(before: Document, after: Document): Change[] {
  const was = operationsByPlace(before)
  const is = operationsByPlace(after)
  return [
    ...[...was.keys()].filter((place) => !is.has(place)).map((place) => breaking('operation removed', place)),
    ...[...is.keys()].filter((place) => !was.has(place)).map((place) => compatible('operation added', place)),
    ...[...was].flatMap(([place, operation]) => {
      const now = is.get(place)
      return now === undefined ? [] : compareOperations(place, [before, operation], [after, now])
    }),
    ...compareServers(before, after),
    ...compareSecuritySchemes(before, after),
  ]
}

const breaking = (rule: string, where: string): Change => ({ kind: 'breaking', rule, where })
const compatible = (rule: string, where: string): Change => ({ kind: 'compatible', rule, where })

interface PlacedOperation extends OperationObject {
  readonly path: string
}

/** By method and path; what a path's parameters are called is nobody's business but the document's. */
function operationsByPlace({ paths }: Document): Map<string, PlacedOperation> {
  return new Map(
    Object.entries(paths).flatMap(([path, item]) =>
      Object.entries(item).map(([method, operation]): [string, PlacedOperation] => [
        `${method.toUpperCase()} ${path.replaceAll(/\{[^}]*\}/g, '{}')}`,
        { ...operation, path },
      ]),
    ),
  )
}

function compareOperations(
  place: string,
  [before, was]: [Document, PlacedOperation],
  [after, is]: [Document, PlacedOperation],
): Change[] {
  return [
    ...(was.operationId === is.operationId ? [] : [breaking('operation renamed', `${place} ${was.operationId ?? ''}`)]),
    ...(was.deprecated !== true && is.deprecated === true ? [compatible('operation deprecated', place)] : []),
    ...compareParameters(place, [before, was], [after, is]),
    ...compareRequestBodies(place, [before, was], [after, is]),
    ...compareResponses(place, [before, was], [after, is]),
    ...compareSecurity(place, was.security ?? before.security ?? [], is.security ?? after.security ?? []),
  ]
}

// ---- requests ----

function compareParameters(
  place: string,
  [before, was]: [Document, PlacedOperation],
  [after, is]: [Document, PlacedOperation],
): Change[] {
  const old = parametersByName(was)
  const now = parametersByName(is)
  return [
    ...[...old]
      .filter(([name]) => !now.has(name))
      .map(([name]) => breaking('request parameter removed', `${place} ${name}`)),
    ...[...now]
      .filter(([name]) => !old.has(name))
      .map(([name, { required }]) =>
        required === true
          ? breaking('required request parameter added', `${place} ${name}`)
          : compatible('optional request parameter added', `${place} ${name}`),
      ),
    ...[...old].flatMap(([name, parameter]) => {
      const other = now.get(name)
      if (other === undefined) return []
      const where = `${place} ${name}`
      return [
        ...compareNeed(where, 'request parameter', parameter.required === true, other.required === true),
        ...compareSchemas(
          'request',
          where,
          { document: before, schema: parameter.schema ?? {} },
          { document: after, schema: other.schema ?? {} },
        ),
      ]
    }),
  ]
}

/** Those of the path by their place in it. */
function parametersByName({ path, parameters = [] }: PlacedOperation): Map<string, Parameter> {
  const inPath = [...path.matchAll(/\{([^}]*)\}/g)].map(([, name]) => name)
  return new Map(
    parameters.map((parameter) => [
      parameter.in === 'path' ? `path[${inPath.indexOf(parameter.name)}]` : `${parameter.in} ${parameter.name}`,
      parameter,
    ]),
  )
}

function compareNeed(where: string, what: string, was: boolean, is: boolean): Change[] {
  if (was === is) return []
  return [is ? breaking(`${what} is now required`, where) : compatible(`${what} is now optional`, where)]
}

function compareRequestBodies(
  place: string,
  [before, { requestBody: was }]: [Document, OperationObject],
  [after, { requestBody: is }]: [Document, OperationObject],
): Change[] {
  const where = `${place} body`
  if (was === undefined && is === undefined) return []
  if (was === undefined) {
    return [
      is?.required === true
        ? breaking('required request body added', where)
        : compatible('optional request body added', where),
    ]
  }
  if (is === undefined) return [breaking('request body removed', where)]
  return [
    ...compareNeed(where, 'request body', was.required === true, is.required === true),
    ...compareContents('request', where, [before, was.content], [after, is.content]),
  ]
}

// ---- answers ----

function compareResponses(
  place: string,
  [before, was]: [Document, OperationObject],
  [after, is]: [Document, OperationObject],
): Change[] {
  const changes: Change[] = []
  for (const status of Object.keys(was.responses)) {
    if (is.responses[status] === undefined) {
      changes.push(
        isSuccess(status)
          ? breaking('success status removed', `${place} ${status}`)
          : compatible('error status removed', `${place} ${status}`),
      )
    }
  }
  for (const [status, response] of Object.entries(is.responses)) {
    const old = was.responses[status]
    const where = `${place} ${status}`
    if (old !== undefined) {
      changes.push(...compareResponse(where, [before, resolve(before, old)], [after, resolve(after, response)]))
    } else if (isSuccess(status)) changes.push(breaking('success status added', where))
    // What is not there was answered somehow: 404 takes the place of that answer, as of an empty 200.
    else if (status === '404') changes.push(breaking('success status changed to 404', where))
    else changes.push(compatible('error status added', where))
  }
  return changes
}

const isSuccess = (status: string) => status.startsWith('2')

function compareResponse(
  where: string,
  [before, was]: [Document, Response],
  [after, is]: [Document, Response],
): Change[] {
  const headers = is.headers ?? {}
  const old = was.headers ?? {}
  return [
    ...Object.entries(old).flatMap(([name, given]) => {
      const place = `${where} header ${name}`
      if (headers[name] === undefined) return [breaking('response header removed', place)]
      const header = resolve(before, given)
      const now = resolve(after, headers[name])
      return [
        ...(header.required === true && now.required !== true
          ? [breaking('response header is now optional', place)]
          : []),
        ...compareSchemas(
          'response',
          place,
          { document: before, schema: header.schema ?? {} },
          { document: after, schema: now.schema ?? {} },
        ),
      ]
    }),
    ...Object.keys(headers)
      .filter((name) => old[name] === undefined)
      .map((name) => compatible('response header added', `${where} header ${name}`)),
    ...compareContents('response', `${where} body`, [before, was.content ?? {}], [after, is.content ?? {}]),
  ]
}

type Content = Readonly<Record<string, { readonly schema?: Schema }>>

function compareContents(
  direction: Direction,
  where: string,
  [before, was]: [Document, Content],
  [after, is]: [Document, Content],
): Change[] {
  return [
    ...Object.entries(was).flatMap(([type, { schema }]) => {
      const now = is[type]
      if (now === undefined) return [breaking(`${direction} media type removed`, `${where} ${type}`)]
      return compareSchemas(
        direction,
        Object.keys(was).length === 1 ? where : `${where} ${type}`,
        { document: before, schema: schema ?? {} },
        { document: after, schema: now.schema ?? {} },
      )
    }),
    ...Object.keys(is)
      .filter((type) => was[type] === undefined)
      .map((type) =>
        // Where there was no body at all, one is no help to clients that read none, and no harm.
        compatible(`${direction} media type added`, `${where} ${type}`),
      ),
  ]
}

// ---- schemas ----

function compareSchemas(direction: Direction, where: string, before: Side, after: Side): Change[] {
  const seen = new Set<string>()
  const found = compare(before, after, { direction, where, seen })
  // Two alternatives may say the same of one place.
  return [...new Map(found.map((change) => [JSON.stringify(change), change])).values()]
}

interface Walk {
  readonly direction: Direction
  readonly where: string
  /** pairs of references that are being compared: schemas may hold themselves */
  readonly seen: ReadonlySet<string>
}

function compare(beforeSide: Side, afterSide: Side, walk: Walk): Change[] {
  const pair = `${beforeSide.schema.$ref ?? ''} ${afterSide.schema.$ref ?? ''}`
  if (pair !== ' ' && walk.seen.has(pair)) return []
  const inner: Walk = pair === ' ' ? walk : { ...walk, seen: new Set([...walk.seen, pair]) }
  const before = { ...beforeSide, schema: resolve(beforeSide.document, beforeSide.schema) }
  const after = { ...afterSide, schema: resolve(afterSide.document, afterSide.schema) }
  if (JSON.stringify(alternativesOf(before)) === JSON.stringify(alternativesOf(after)) && !holdsReference(before)) {
    return compareDefaults(before.schema, after.schema, walk)
  }
  return [...compareAlternatives(before, after, inner), ...compareDefaults(before.schema, after.schema, walk)]
}

function holdsReference({ schema }: Side): boolean {
  return JSON.stringify(schema).includes('"$ref"')
}

/** A schema is one of several things: `anyOf`, a list of types, or simply itself. */
function alternativesOf({ document, schema }: Side): Schema[] {
  const { anyOf, oneOf, default: _default, description: _d, example: _e, ...rest } = schema
  const union = anyOf ?? oneOf
  if (union !== undefined) {
    return union.flatMap((one) => alternativesOf({ document, schema: { ...rest, ...resolve(document, one) } }))
  }
  if (Array.isArray(rest.type)) return (rest.type as string[]).map((type) => ({ ...rest, type }))
  return [rest]
}

/** Each alternative must have one on the other side that it fits into; of the best fit it is told what is in the way. */
function compareAlternatives(before: Side, after: Side, walk: Walk): Change[] {
  const was = alternativesOf(before)
  const is = alternativesOf(after)
  const { direction, where } = walk
  const pairOf = (old: Schema, now: Schema) =>
    compareOne({ document: before.document, schema: old }, { document: after.document, schema: now }, walk)
  if (was.length === 1 && is.length === 1) return pairOf(was[0] ?? {}, is[0] ?? {})

  const [mustFit, offered] = direction === 'request' ? [was, is] : [is, was]
  const changes = mustFit.flatMap((one): Change[] => {
    const fits = offered.map((other) => (direction === 'request' ? pairOf(one, other) : pairOf(other, one)))
    const best = fits.sort((a, b) => costOf(a) - costOf(b))[0] ?? []
    return costOf(best) < wrongType ? best : [breaking(`${direction} ${whatOf(where)} type changed`, where)]
  })
  const unmatched = offered.filter((other) =>
    mustFit.every((one) => costOf(direction === 'request' ? pairOf(one, other) : pairOf(other, one)) > 0),
  )
  const isOnlyMore = changes.every(({ kind }) => kind === 'compatible') && unmatched.length > 0
  return isOnlyMore ? [...changes, compatible(`${direction} ${whatOf(where)} has other alternatives`, where)] : changes
}

const wrongType = 1_000

function costOf(changes: readonly Change[]): number {
  return changes
    .filter(({ kind }) => kind === 'breaking')
    .reduce((cost, { rule }) => cost + (rule.endsWith('type changed') ? wrongType : 1), 0)
}

function compareOne(before: Side, after: Side, walk: Walk): Change[] {
  const { direction, where } = walk
  const old = before.schema
  const now = after.schema
  const what = whatOf(where)
  const typeChange = compareTypes(old, now, walk)
  if (typeChange.some(({ kind }) => kind === 'breaking')) return typeChange
  return [
    ...typeChange,
    ...compareWords(old, now, walk),
    ...bounds.flatMap(({ keyword, isUpper }) => compareBound(keyword, isUpper, old, now, walk)),
    ...exact.flatMap((keyword) => {
      if (old[keyword] === now[keyword]) return []
      const isAdded = old[keyword] === undefined
      const isRemoved = now[keyword] === undefined
      if ((direction === 'request' && isRemoved) || (direction === 'response' && isAdded)) {
        return [compatible(`${direction} ${what} ${keyword} changed`, where)]
      }
      return [breaking(`${direction} ${what} ${keyword} changed`, where)]
    }),
    ...composed
      .filter((keyword) => JSON.stringify(old[keyword]) !== JSON.stringify(now[keyword]))
      .map((keyword) => breaking(`${direction} ${what} ${keyword} changed`, where)),
    ...compareMembers(before, after, walk),
    ...(old.items === undefined && now.items === undefined
      ? []
      : compare(
          { ...before, schema: old.items ?? {} },
          { ...after, schema: now.items ?? {} },
          { ...walk, where: `${where}[]` },
        )),
  ]
}

/** `member` inside a body, and otherwise the parameter, header or body itself. */
function whatOf(where: string): string {
  return /body\b.*[.[]/.test(where) ? 'member' : 'value'
}

function compareTypes({ type: was, const: oldConst, enum: oldEnum }: Schema, now: Schema, walk: Walk): Change[] {
  const { direction, where } = walk
  const { type: is } = now
  if (was === is) return []
  const changed = `${direction} ${whatOf(where)} type changed`
  // An enum of strings need not say that they are.
  if (was === undefined && (oldConst !== undefined || oldEnum !== undefined)) return []
  const isWider = is === undefined || (was === 'integer' && is === 'number')
  const isNarrower = was === undefined || (was === 'number' && is === 'integer')
  if (direction === 'request' ? isWider : isNarrower) {
    return [compatible(`${direction} ${whatOf(where)} type ${direction === 'request' ? 'widened' : 'narrowed'}`, where)]
  }
  return [breaking(changed, where)]
}

/** Words that an answer may newly hold are like new members: clients let pass what they do not know. */
function compareWords(old: Schema, now: Schema, { direction, where }: Walk): Change[] {
  const was = wordsOf(old)
  const is = wordsOf(now)
  const what = `${direction} ${whatOf(where)}`
  if (was === undefined && is === undefined) return []
  if (was === undefined) {
    return [direction === 'request' ? breaking(`${what} enum added`, where) : compatible(`${what} enum added`, where)]
  }
  if (is === undefined) return [compatible(`${what} enum removed`, where)]
  return [
    ...was
      .filter((word) => !is.includes(word))
      .map((word) =>
        direction === 'request'
          ? breaking(`${what} enum value removed`, `${where} ${word}`)
          : compatible(`${what} enum value removed`, `${where} ${word}`),
      ),
    ...is
      .filter((word) => !was.includes(word))
      .map((word) => compatible(`${what} enum value added`, `${where} ${word}`)),
  ]
}

function wordsOf({ enum: words, const: word }: Schema): string[] | undefined {
  const all = words ?? (word === undefined ? undefined : [word])
  return all?.map((one) => JSON.stringify(one))
}

const bounds = [
  { keyword: 'maximum', isUpper: true },
  { keyword: 'exclusiveMaximum', isUpper: true },
  { keyword: 'maxLength', isUpper: true },
  { keyword: 'maxItems', isUpper: true },
  { keyword: 'maxProperties', isUpper: true },
  { keyword: 'minimum', isUpper: false },
  { keyword: 'exclusiveMinimum', isUpper: false },
  { keyword: 'minLength', isUpper: false },
  { keyword: 'minItems', isUpper: false },
  { keyword: 'minProperties', isUpper: false },
] as const

const exact = ['pattern', 'format', 'multipleOf', 'uniqueItems'] as const
/** Which of two is the wider cannot be told. */
const composed = ['allOf', 'propertyNames'] as const

/** Tighter is breaking in a request, looser in an answer. */
function compareBound(
  keyword: (typeof bounds)[number]['keyword'],
  isUpper: boolean,
  old: Schema,
  now: Schema,
  { direction, where }: Walk,
): Change[] {
  const none = isUpper ? Infinity : -Infinity
  const was = old[keyword] ?? none
  const is = now[keyword] ?? none
  if (was === is) return []
  const isTighter = isUpper ? is < was : is > was
  const rule = `${direction} ${whatOf(where)} ${keyword} ${isTighter ? 'tightened' : 'loosened'}`
  return [isTighter === (direction === 'request') ? breaking(rule, where) : compatible(rule, where)]
}

function compareMembers(before: Side, after: Side, walk: Walk): Change[] {
  const { direction, where } = walk
  const old = before.schema
  const now = after.schema
  const was = old.properties ?? {}
  const is = now.properties ?? {}
  const isRequired = ({ required = [] }: Schema, name: string) => required.includes(name)
  const place = (name: string) => `${where}.${name}`
  return [
    ...Object.keys(was)
      .filter((name) => is[name] === undefined)
      .map((name) => breaking(`${direction} member removed`, place(name))),
    ...Object.keys(is)
      .filter((name) => was[name] === undefined)
      .map((name) =>
        direction === 'request' && isRequired(now, name)
          ? breaking('required request member added', place(name))
          : compatible(`${direction === 'request' ? 'optional request' : 'response'} member added`, place(name)),
      ),
    ...Object.keys(was).flatMap((name) => {
      const other = is[name]
      if (other === undefined) return []
      const need = isRequired(now, name)
      return [
        ...(isRequired(old, name) === need
          ? []
          : direction === 'request'
            ? compareNeed(place(name), 'request member', !need, need)
            : [
                need
                  ? compatible('response member is now always there', place(name))
                  : breaking('response member is now optional', place(name)),
              ]),
        ...compare(
          { ...before, schema: was[name] ?? {} },
          { ...after, schema: other },
          { ...walk, where: place(name) },
        ),
      ]
    }),
    ...compareOtherMembers(before, after, walk),
  ]
}

function compareOtherMembers(before: Side, after: Side, walk: Walk): Change[] {
  const { direction, where } = walk
  const was = before.schema.additionalProperties ?? true
  const is = after.schema.additionalProperties ?? true
  // Answers may always hold more, whatever the document says.
  if (typeof was === 'object' && typeof is === 'object') {
    return compare({ ...before, schema: was }, { ...after, schema: is }, { ...walk, where: `${where}.*` })
  }
  if (direction === 'response' || was === is) return []
  if (is === false) return [breaking('request members are now closed', where)]
  if (was === true && typeof is === 'object') {
    return Object.keys(is).length === 0 ? [] : [breaking('request members are now bound', where)]
  }
  return [compatible('request members are now open', where)]
}

/** What an old request means that leaves something out. */
function compareDefaults(old: Schema, now: Schema, { direction, where }: Walk): Change[] {
  if (direction === 'response' || JSON.stringify(old.default) === JSON.stringify(now.default)) return []
  return [breaking('request default changed', where)]
}

// ---- who may call, and where ----

type Security = NonNullable<OperationObject['security']>

/** Whoever could call must still be able to: each old way must hold all that some present way asks for. */
function compareSecurity(place: string, was: Security, is: Security): Change[] {
  const mayCall = (held: Security[number], asked: Security[number]) =>
    Object.entries(asked).every(
      ([scheme, scopes]) =>
        scopes.every((scope) => held[scheme]?.includes(scope) === true) && held[scheme] !== undefined,
    )
  const shown = (way: Security[number]) =>
    Object.entries(way)
      .map(([scheme, scopes]) => [scheme, ...scopes].join(' '))
      .join(' and ')
  const old = was.length === 0 ? [{}] : was
  const now = is.length === 0 ? [{}] : is
  return [
    ...old
      .filter((way) => !now.some((asked) => mayCall(way, asked)))
      .map((way) => breaking('authentication or scope changed', `${place}: ${shown(way) || 'nobody in particular'}`)),
    ...now
      .filter((way) => !old.some((held) => mayCall(held, way)))
      .map((way) => compatible('way of authentication added', `${place}: ${shown(way) || 'nobody in particular'}`)),
  ]
}

function compareServers(before: Document, after: Document): Change[] {
  const urls = (after.servers ?? []).map(({ url }) => url)
  return (before.servers ?? [])
    .filter(({ url }) => !urls.includes(url))
    .map(({ url }) => breaking('server removed', url))
}

function compareSecuritySchemes(before: Document, after: Document): Change[] {
  const now = after.components?.securitySchemes ?? {}
  return Object.entries(before.components?.securitySchemes ?? {}).flatMap(([name, was]) => {
    const is = now[name]
    if (is === undefined) return [breaking('authentication method removed', name)]
    return compareSecurityScheme(name, was, is)
  })
}

function compareSecurityScheme(name: string, was: SecurityScheme, is: SecurityScheme): Change[] {
  const isSame = was.type === is.type && was.in === is.in && was.name === is.name && was.scheme === is.scheme
  if (!isSame) return [breaking('authentication method changed', name)]
  return Object.entries(was.flows ?? {}).flatMap(([flow, old]): Change[] => {
    const other = is.flows?.[flow]
    const where = `${name} ${flow}`
    return other === undefined ? [breaking('authentication method removed', where)] : compareFlow(where, old, other)
  })
}

function compareFlow(where: string, was: Flow, is: Flow): Change[] {
  const moved = (['authorizationUrl', 'tokenUrl', 'refreshUrl'] as const).filter((url) => was[url] !== is[url])
  return [
    ...moved.map((url) => breaking('authentication method changed', `${where} ${url}`)),
    ...Object.keys(was.scopes)
      .filter((scope) => is.scopes[scope] === undefined)
      .map((scope) => breaking('scope removed', `${where} ${scope}`)),
    ...Object.keys(is.scopes)
      .filter((scope) => was.scopes[scope] === undefined)
      .map((scope) => compatible('scope added', `${where} ${scope}`)),
  ]
}

// ---- versions ----

/** How much of the version a change must raise (semver.org): `none` for documents that are the same but for it. */
export function neededRaise(before: Document, after: Document): 'major' | 'minor' | 'patch' | 'none' {
  const changes = findChanges(before, after)
  if (changes.some(({ kind }) => kind === 'breaking')) return 'major'
  if (changes.length > 0) return 'minor'
  return withoutVersion(before) === withoutVersion(after) ? 'none' : 'patch'
}

function withoutVersion({ info: { version: _version, ...info }, ...rest }: Document): string {
  return JSON.stringify({ info, ...rest })
}

/** Which part of a version is higher, the greatest first; `none` when it is the same. @throws Error when it is lower */
export function raiseOf(before: Document, after: Document): 'major' | 'minor' | 'patch' | 'none' {
  const was = partsOf(before)
  const is = partsOf(after)
  for (const [i, part] of (['major', 'minor', 'patch'] as const).entries()) {
    const [old = 0, now = 0] = [was[i], is[i]]
    if (now > old) return part
    if (now < old) throw new Error(`the version went down from ${was.join('.')} to ${is.join('.')}`)
  }
  return 'none'
}

function partsOf({ info: { version } }: Document): number[] {
  const [, ...parts] = /^(\d+)\.(\d+)\.(\d+)$/.exec(version) ?? []
  if (parts.length === 0) throw new Error(`${version} is no semantic version`)
  return parts.map(Number)
}
