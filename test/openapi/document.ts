/**
 * The OpenAPI document as the tests of it read it, and ajv as the judge of what it promises: independent of zod, from
 * which the document is made, so that a mistake in the making shows.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import ajvFormats from 'ajv-formats'
import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js'

export const documentFile = 'docs/openapi.json'
const root = join(import.meta.dirname, '..', '..')

/** JSON Schema 2020-12, as far as anybody here looks into it. */
export interface Schema {
  readonly $ref?: string
  readonly type?: string | readonly string[]
  readonly properties?: Readonly<Record<string, Schema>>
  readonly required?: readonly string[]
  readonly additionalProperties?: boolean | Schema
  readonly propertyNames?: Schema
  readonly items?: Schema
  readonly anyOf?: readonly Schema[]
  readonly oneOf?: readonly Schema[]
  readonly allOf?: readonly Schema[]
  readonly enum?: readonly unknown[]
  readonly const?: unknown
  readonly pattern?: string
  readonly format?: string
  readonly default?: unknown
  readonly minLength?: number
  readonly maxLength?: number
  readonly minimum?: number
  readonly maximum?: number
  readonly exclusiveMinimum?: number
  readonly exclusiveMaximum?: number
  readonly multipleOf?: number
  readonly minItems?: number
  readonly maxItems?: number
  readonly uniqueItems?: boolean
  readonly minProperties?: number
  readonly maxProperties?: number
  readonly example?: unknown
  readonly description?: string
}

export interface MediaType {
  readonly schema?: Schema
  readonly example?: unknown
}

export interface Parameter {
  readonly in: 'path' | 'query' | 'header' | 'cookie'
  readonly name: string
  readonly required?: boolean
  readonly schema?: Schema
  readonly example?: unknown
  readonly description?: string
}

export interface Header {
  readonly $ref?: string
  readonly required?: boolean
  readonly schema?: Schema
  readonly description?: string
}

export interface Response {
  readonly $ref?: string
  readonly description?: string
  readonly headers?: Readonly<Record<string, Header>>
  readonly content?: Readonly<Record<string, MediaType>>
}

export interface OperationObject {
  readonly operationId?: string
  readonly summary?: string
  readonly description?: string
  readonly tags?: readonly string[]
  readonly deprecated?: boolean
  readonly parameters?: readonly Parameter[]
  readonly requestBody?: { readonly required?: boolean; readonly content: Readonly<Record<string, MediaType>> }
  readonly responses: Readonly<Record<string, Response>>
  /** alternatives, each of scheme → scopes */
  readonly security?: readonly Readonly<Record<string, readonly string[]>>[]
}

export interface SecurityScheme {
  readonly type: string
  readonly in?: string
  readonly name?: string
  readonly scheme?: string
  readonly flows?: Readonly<Record<string, Flow>>
}

export interface Flow {
  readonly authorizationUrl?: string
  readonly tokenUrl?: string
  readonly refreshUrl?: string
  readonly scopes: Readonly<Record<string, string>>
}

export interface Document {
  readonly openapi: string
  readonly info: { readonly title: string; readonly version: string }
  readonly servers?: readonly { readonly url: string }[]
  readonly tags?: readonly { readonly name: string }[]
  readonly paths: Readonly<Record<string, Readonly<Record<string, OperationObject>>>>
  readonly components?: {
    readonly schemas?: Readonly<Record<string, Schema>>
    readonly responses?: Readonly<Record<string, Response>>
    readonly headers?: Readonly<Record<string, Header>>
    readonly securitySchemes?: Readonly<Record<string, SecurityScheme>>
  }
  readonly security?: OperationObject['security']
}

export interface Operation extends OperationObject {
  readonly id: string
  /** in upper case */
  readonly method: string
  readonly path: string
}

export function readCommittedDocument(): Document {
  return JSON.parse(readFileSync(join(root, documentFile), 'utf8')) as Document
}

const methods = ['get', 'put', 'post', 'delete', 'options', 'head', 'patch', 'trace']

/** In the order of the document. */
export function operationsOf(document: Document): Operation[] {
  return Object.entries(document.paths).flatMap(([path, item]) =>
    Object.entries(item)
      .filter(([method]) => methods.includes(method))
      .map(([method, operation]) => ({
        ...operation,
        id: operation.operationId ?? `${method} ${path}`,
        method: method.toUpperCase(),
        path,
      })),
  )
}

/** What a reference inside the document points at, or the thing itself. */
export function resolve<T extends { readonly $ref?: string }>(document: Document, thing: T): T {
  if (thing.$ref === undefined) return thing
  let found: unknown = document
  for (const step of thing.$ref.replace(/^#\//, '').split('/')) {
    found = (found as Record<string, unknown> | undefined)?.[step.replaceAll('~1', '/').replaceAll('~0', '~')]
  }
  if (found === undefined) throw new Error(`the document refers to ${thing.$ref}, which is not there`)
  return resolve(document, found as T)
}

export interface Judge {
  /** What is wrong with a value, in a few words; '' for nothing. */
  check(schema: Schema, value: unknown): string
}

/**
 * @param closed objects whose members the document names have no others: it leaves answers open, so that clients let
 *   pass what is added later, and a test wants to know of everything that is not in it
 */
export function openJudge(document: Document, { closed = false }: { readonly closed?: boolean } = {}): Judge {
  const ajv = new Ajv2020({ strict: false, allErrors: true, validateFormats: true })
  ajvFormats.default(ajv)
  const seen = closed ? (closeObjects(document) as Document) : document
  ajv.addSchema({ $id: 'document', components: seen.components })
  const compiled = new Map<string, ValidateFunction>()
  return {
    check(schema, value) {
      const text = JSON.stringify(closed ? closeObjects(schema) : schema)
      const validate =
        compiled.get(text) ??
        ajv.compile(JSON.parse(text.replaceAll('"#/components/', '"document#/components/')) as object)
      compiled.set(text, validate)
      if (validate(value)) return ''
      return (validate.errors ?? [])
        .slice(0, 5)
        .map(({ instancePath, message, params }) => `${instancePath} ${message ?? ''} ${JSON.stringify(params)}`)
        .join('; ')
    },
  }
}

function closeObjects(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(closeObjects)
  if (typeof value !== 'object' || value === null) return value
  const inside = Object.fromEntries(
    Object.entries(value).map(([name, member]) => [name, name === 'example' ? member : closeObjects(member)]),
  )
  const isOpenObject =
    inside['type'] === 'object' && inside['properties'] !== undefined && inside['additionalProperties'] === undefined
  return isOpenObject ? { ...inside, additionalProperties: false } : inside
}
