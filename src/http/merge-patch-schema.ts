/**
 * What a merge patch (RFC 7396) of a document may hold, as JSON Schema, from the schema of the whole document: every member
 * may be left out and then stays as it is, so that no default is true any more; and null removes a member, which is
 * allowed wherever the whole can be without it. An array is no document but replaced as a whole: what is said of its
 * items stays.
 */
import type { z } from 'zod'

type JsonSchema = z.core.JSONSchema.BaseSchema

/** @param whole the schema of a document, as input: a member that has a default is not required */
export function mergePatchOf(whole: JsonSchema): JsonSchema {
  const { default: _default, required = [], ...patch } = whole
  const { properties, additionalProperties, anyOf } = patch
  // No document has any so far: parts of these may fit more of them, or none.
  for (const keyword of ['oneOf', 'allOf', '$ref']) {
    if (keyword in whole) throw new Error(`nobody has said what a merge patch of ${keyword} is`)
  }
  if (properties !== undefined) {
    patch.properties = Object.fromEntries(
      Object.entries(properties).map(([name, member]) => [
        name,
        required.includes(name) ? withoutNull(memberOf(member)) : withNull(memberOf(member)),
      ]),
    )
  }
  if (typeof additionalProperties === 'object') {
    patch.additionalProperties = withNull(mergePatchOf(additionalProperties))
  }
  if (anyOf !== undefined) patch.anyOf = anyOf.map(memberOf)
  return patch
}

function memberOf(schema: JsonSchema | boolean): JsonSchema {
  if (typeof schema === 'boolean') throw new Error('a member of a document is of a schema that says what it is')
  return mergePatchOf(schema)
}

const isNull = ({ type }: JsonSchema) => type === 'null'

function withNull(schema: JsonSchema): JsonSchema {
  const { type, anyOf } = schema
  if (anyOf !== undefined) {
    return anyOf.some(isNull) ? schema : { ...schema, anyOf: [...anyOf, { type: 'null' }] }
  }
  if (schema.enum !== undefined || schema.const !== undefined) return { anyOf: [schema, { type: 'null' }] }
  // Of no type: anything.
  return type === undefined || isNull(schema) ? schema : { ...schema, type: [type, 'null'].flat() as typeof type }
}

/** What the whole has to have cannot be removed, not even where the whole may say that it is null. */
function withoutNull(schema: JsonSchema): JsonSchema {
  const { anyOf, ...rest } = schema
  if (anyOf === undefined) return schema
  const others = anyOf.filter((one) => !isNull(one))
  return others.length === 1 ? { ...rest, ...others[0] } : { ...schema, anyOf: others }
}
