/**
 * The two formats of PATCH, applied to a JSON document: merge patch (RFC 7396) and JSON Patch (RFC 6902). Both leave the
 * document that they are given as it was, and give another or refuse all of it; whether the result is a valid resource
 * is for its schema to say.
 *
 * Of our own, since what npm has goes on after an operation that failed, finds `toString` and an array's `length` in
 * documents that hold neither, or sets prototypes. Members are own members here, and none is called `__proto__`.
 */
import { z } from 'zod'
import { checkInput, Problem, type FieldError } from '../problems.ts'

export type JsonValue = string | number | boolean | null | readonly JsonValue[] | JsonObject
export interface JsonObject {
  readonly [member: string]: JsonValue
}

/** What a PATCH may be sent as; `application/json` is a merge patch. Also the value of Accept-Patch (RFC 5789 §3.1). */
export const patchMediaTypes = [
  'application/merge-patch+json',
  'application/json-patch+json',
  'application/json',
] as const
export type PatchMediaType = (typeof patchMediaTypes)[number]

const mostOperations = 100
const longestPointer = 1_000
/** In characters of JSON: since `copy` can double a document, a short patch could make a huge one. */
const largestDocument = 256 * 1_024
const deepest = 64

/**
 * A resource as it shall be, by a patch in either format.
 *
 * @param document what of the resource can be patched, as JSON
 * @throws Problem VALIDATION_ERROR for what is no patch, naming the operation by its place (`[3].path`); CONFLICT when
 *   a path is not there, or a `test` fails (RFC 5789 §2.2); PAYLOAD_TOO_LARGE when the result would be
 */
export function applyPatch(document: JsonObject, mediaType: PatchMediaType, patch: unknown): JsonObject {
  if (mediaType === 'application/json-patch+json') {
    const result = applyJsonPatch(document, patch)
    if (!isObject(result)) throw invalid([{ field: '', constraint: 'type', message: 'The result must be an object' }])
    return result
  }
  requireJson(patch, '')
  if (!isObject(patch)) throw invalid([{ field: '', constraint: 'type', message: 'A merge patch is an object' }])
  const result = mergePatch(document, patch)
  requireSize(JSON.stringify(result).length)
  return result as JsonObject
}

/** RFC 7396 §2. */
export function mergePatch(target: JsonValue, patch: JsonValue): JsonValue {
  if (!isObject(patch)) return patch
  const merged = new Map(Object.entries(isObject(target) ? target : {}))
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) merged.delete(name)
    else merged.set(name, mergePatch(merged.get(name) ?? null, value))
  }
  return Object.fromEntries(merged)
}

/**
 * Whether a patch says what a member of the document shall be, even if it says what is so already. A `test` says nothing.
 *
 * @param patch one that `applyPatch` takes
 */
export function setsMember(mediaType: PatchMediaType, patch: unknown, member: string): boolean {
  const names = (value: unknown) => isObject(value) && Object.hasOwn(value, member)
  if (mediaType !== 'application/json-patch+json') return names(patch)
  return operationsSchema.parse(patch).some((operation) => {
    if (operation.op === 'test') return false
    if (operation.path === '') return 'value' in operation && names(operation.value)
    const changed = operation.op === 'move' ? [operation.path, operation.from] : [operation.path]
    return changed.some((pointer) => readPointer(pointer)[0] === member)
  })
}

// ---- JSON Patch ----

const pointer = z
  .string()
  .max(longestPointer)
  .refine((text) => /^(\/([^~/]|~[01])*)*$/.test(text) && !readPointer(text).includes('__proto__'), {
    message: 'Must be a JSON Pointer (RFC 6901) to a member of the document, such as /name',
    params: { constraint: 'format' },
  })
const anyValue = z.unknown().refine((value) => value !== undefined, {
  message: 'Required property missing',
  params: { constraint: 'required' },
})

/** RFC 6902 §4: one `op`, one `path`; members that it does not define are ignored. */
const operationsSchema = z
  .array(
    z.discriminatedUnion('op', [
      z.object({ op: z.literal('add'), path: pointer, value: anyValue }),
      z.object({ op: z.literal('remove'), path: pointer }),
      z.object({ op: z.literal('replace'), path: pointer, value: anyValue }),
      z.object({ op: z.literal('move'), path: pointer, from: pointer }),
      z.object({ op: z.literal('copy'), path: pointer, from: pointer }),
      z.object({ op: z.literal('test'), path: pointer, value: anyValue }),
    ]),
  )
  .max(mostOperations)

type Operation = z.output<typeof operationsSchema>[number]

/**
 * RFC 6902: all of the operations, or none.
 *
 * @throws Problem as {@link applyPatch} does
 */
export function applyJsonPatch(document: JsonValue, operations: unknown): JsonValue {
  const checked = checkInput(operationsSchema, operations)
  if (!checked.success) throw invalid(checked.details)
  const root: Root = { document: structuredClone(document) as Mutable }
  let size = JSON.stringify(document).length
  for (const [i, operation] of checked.data.entries()) {
    if ('value' in operation) requireJson(operation.value, `[${i}].value`)
    size += apply(root, operation, i)
    requireSize(size)
  }
  return root.document
}

type Mutable = string | number | boolean | null | Mutable[] | { [member: string]: Mutable }

interface Root {
  document: Mutable
}

/** @returns by how many characters the document may have grown */
function apply(root: Root, operation: Operation, i: number): number {
  const path = readPointer(operation.path)
  switch (operation.op) {
    case 'add':
      return add(root, path, structuredClone(operation.value) as Mutable, `[${i}].path`)
    case 'remove':
      remove(root, path, `[${i}].path`)
      return 0
    case 'replace': {
      find(root, path, `[${i}].path`)
      return put(root, path, structuredClone(operation.value) as Mutable)
    }
    case 'move': {
      const from = readPointer(operation.from)
      const value = find(root, from, `[${i}].from`)
      if (from.length < path.length && from.every((token, at) => token === path[at])) {
        const message = 'Must not be inside of what is moved'
        throw invalid([{ field: `[${i}].path`, constraint: 'format', message }])
      }
      if (operation.from === operation.path) return 0
      remove(root, from, `[${i}].from`)
      add(root, path, value, `[${i}].path`)
      return 0
    }
    case 'copy': {
      const value = find(root, readPointer(operation.from), `[${i}].from`)
      return add(root, path, structuredClone(value), `[${i}].path`)
    }
  }
  const value = find(root, path, `[${i}].path`)
  if (isSame(value, operation.value as JsonValue)) return 0
  throw conflict({ field: `[${i}]`, constraint: 'test', message: `The value at ${shown(path)} is another` })
}

function add(root: Root, path: readonly string[], value: Mutable, field: string): number {
  const parent = path.length === 0 ? undefined : find(root, path.slice(0, -1), field)
  const key = path.at(-1) ?? ''
  if (Array.isArray(parent)) {
    const index = key === '-' ? parent.length : readIndex(key)
    if (index === undefined || index > parent.length) throw missing(path, field)
    parent.splice(index, 0, value)
    return sizeOf(value)
  }
  if (parent !== undefined && !isObject(parent)) throw missing(path, field)
  return put(root, path, value)
}

function remove(root: Root, path: readonly string[], field: string): void {
  find(root, path, field)
  const key = path.at(-1)
  if (key === undefined) {
    throw invalid([{ field, constraint: 'format', message: 'The whole document cannot be removed' }])
  }
  const parent = find(root, path.slice(0, -1), field)
  if (Array.isArray(parent)) parent.splice(Number(key), 1)
  else if (isObject(parent)) delete parent[key]
}

/** Sets what is known to have a place. */
function put(root: Root, path: readonly string[], value: Mutable): number {
  const key = path.at(-1)
  const parent = key === undefined ? undefined : find(root, path.slice(0, -1), '')
  if (key === undefined) root.document = value
  else if (Array.isArray(parent)) parent[Number(key)] = value
  else (parent as { [member: string]: Mutable })[key] = value
  return sizeOf(value)
}

/** @throws Problem CONFLICT when there is nothing at that path */
function find(root: Root, path: readonly string[], field: string): Mutable {
  let at = root.document
  for (const token of path) {
    const index = Array.isArray(at) ? readIndex(token) : undefined
    const next = Array.isArray(at) ? at[index ?? -1] : isObject(at) && Object.hasOwn(at, token) ? at[token] : undefined
    if (next === undefined) throw missing(path, field)
    at = next
  }
  return at
}

/** RFC 6901 §4: digits without leading zeros. */
function readIndex(token: string): number | undefined {
  return /^(0|[1-9]\d{0,8})$/.test(token) ? Number(token) : undefined
}

/** RFC 6901 §4: `~1` first, so that `~01` is `~1` and not a slash. */
function readPointer(text: string): string[] {
  return text
    .split('/')
    .slice(1)
    .map((token) => token.replaceAll('~1', '/').replaceAll('~0', '~'))
}

function shown(path: readonly string[]): string {
  return path.length === 0 ? 'the root' : `/${path.join('/')}`.slice(0, 100)
}

function sizeOf(value: Mutable): number {
  return JSON.stringify(value).length
}

// ---- refusals ----

function invalid(details: readonly FieldError[]): Problem {
  return new Problem('VALIDATION_ERROR', 'The patch is not valid.', { details })
}

function conflict(detail: FieldError): Problem {
  return new Problem('CONFLICT', 'The patch does not fit the resource as it is.', { details: [detail] })
}

function missing(path: readonly string[], field: string): Problem {
  return conflict({ field, constraint: 'exists', message: `There is no place ${shown(path)}` })
}

function requireSize(characters: number): void {
  if (characters > largestDocument) {
    throw new Problem('PAYLOAD_TOO_LARGE', `A patched document may have ${largestDocument} characters.`)
  }
}

/** @throws Problem VALIDATION_ERROR for what is nested too deeply, or holds a member `__proto__` */
function requireJson(value: unknown, field: string, depth = 0): asserts value is JsonValue {
  if (typeof value !== 'object' || value === null) return
  if (depth > deepest) {
    throw invalid([{ field: field.slice(0, 200), constraint: 'maximum', message: `Nested deeper than ${deepest}` }])
  }
  for (const [name, member] of Object.entries(value)) {
    const inside = Array.isArray(value) ? `${field}[${name}]` : field === '' ? name : `${field}.${name}`
    if (name === '__proto__') {
      throw invalid([{ field: inside.slice(0, 200), constraint: 'unknown', message: 'There is no such field' }])
    }
    requireJson(member, inside, depth + 1)
  }
}

// ---- comparing ----

function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** RFC 6902 §4.6: numbers by their value, arrays in order, objects in any. */
function isSame(a: JsonValue, b: JsonValue): boolean {
  if (Array.isArray(a) && Array.isArray(b)) {
    return a.length === b.length && a.every((item, i) => isSame(item as JsonValue, b[i] as JsonValue))
  }
  if (isObject(a) && isObject(b)) {
    const names = Object.keys(a)
    return (
      names.length === Object.keys(b).length &&
      names.every((name) => Object.hasOwn(b, name) && isSame(a[name] ?? null, b[name] ?? null))
    )
  }
  return a === b
}
