/**
 * The two formats of PATCH, applied to a JSON document: merge patch (RFC 7396) and JSON Patch (RFC 6902). Both leave the
 * document that they are given as it was, and give another or refuse all of it; whether the result is a valid resource
 * is for its schema to say.
 */
import { Problem } from '../problems.ts'

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

/**
 * A resource as it shall be, by a patch in either format.
 *
 * @param document what of the resource can be patched, as JSON
 * @throws Problem VALIDATION_ERROR for what is no patch, naming the operation by its place (`[3].path`); CONFLICT when
 *   a path is not there, or a `test` fails (RFC 5789 §2.2); PAYLOAD_TOO_LARGE when the result would be
 */
export function applyPatch(_document: JsonObject, _mediaType: PatchMediaType, _patch: unknown): JsonObject {
  throw new Problem('SERVER_ERROR')
}

/** RFC 7396 §2. */
export function mergePatch(_target: JsonValue, _patch: JsonValue): JsonValue {
  throw new Problem('SERVER_ERROR')
}

/** RFC 6902: all of the operations, or none. */
export function applyJsonPatch(_document: JsonValue, _operations: unknown): JsonValue {
  throw new Problem('SERVER_ERROR')
}

/**
 * Which members at the top differ, with their new values; null for those that are gone. An update function so gets only
 * what changes.
 */
export function diffForMerge<T extends object>(_before: T, _after: T): { [K in keyof T]?: T[K] | null } {
  throw new Problem('SERVER_ERROR')
}
