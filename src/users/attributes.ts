/**
 * What a deployment declares about its people, beyond the standard claims: department, clearance … A resource may map an
 * attribute into its tokens, where policies read it. The declaration is a JSON Schema of an object; what it does not
 * name is refused, so that a misspelt attribute cannot sit unnoticed beside the policy that asks for the right one.
 */
import { readFileSync, statSync } from 'node:fs'
import { z } from 'zod'
import { checkInput, invalidFields, type CheckedInput } from '../problems.ts'

declare const declared: unique symbol
/** Attributes that fit the deployment's declaration. */
export type UserAttributes = Readonly<Record<string, unknown>> & { readonly [declared]: true }

export interface AttributeDeclaration {
  /** the declared names, in the order of the declaration */
  readonly names: readonly string[]
  /** the declaration itself, as JSON Schema */
  readonly schema: Readonly<Record<string, unknown>>
  /** Names every attribute that is unknown or does not fit, and repeats no value. */
  check(attributes: unknown): CheckedInput<UserAttributes>
  /** @throws Problem VALIDATION_ERROR, by the same names */
  parse(attributes: unknown): UserAttributes
}

/** The file of the declaration cannot be used; the message says why. */
export class AttributeDeclarationError extends Error {
  override name = 'AttributeDeclarationError'
}

/** The attributes of the example policies: enough to begin with. */
const defaultSchema = {
  type: 'object',
  properties: {
    department: { type: 'string', minLength: 1, maxLength: 64, description: 'where this person works' },
    seniority: { type: 'integer', minimum: 0, maximum: 100, description: 'the higher, the more experienced' },
    clearance: { type: 'integer', minimum: 0, maximum: 100, description: 'the higher, the more may be seen' },
  },
}

const maxFileBytes = 256 * 1_024
/** A person's attributes, in bytes of JSON: some of them travel in every token. */
const maxAttributesBytes = 8_192

const declarationShape = z.looseObject({
  type: z.literal('object'),
  properties: z.record(z.string().regex(/^[A-Za-z_][\w-]{0,63}$/), z.union([z.boolean(), z.looseObject({})])),
  additionalProperties: z.literal(false).optional(),
})

/**
 * @param file a JSON Schema whose keywords zod understands; the default declaration when left out
 * @throws AttributeDeclarationError when it cannot be read or used
 */
export function openAttributes(file?: string): AttributeDeclaration {
  const source = file === undefined ? defaultSchema : readSchema(file)
  try {
    const schema = { ...declarationShape.parse(source), additionalProperties: false as const }
    // Throws on the keywords that it cannot hold people to, instead of passing over them.
    const validator = z.object({ attributes: z.fromJSONSchema(schema as z.core.JSONSchema.JSONSchema) })
    const check = (attributes: unknown): CheckedInput<UserAttributes> => {
      const checked = checkInput(validator, { attributes })
      if (!checked.success) {
        return { success: false, details: checked.details.map(({ value: _value, ...detail }) => detail) }
      }
      const { attributes: parsed } = checked.data
      if (Buffer.byteLength(JSON.stringify(parsed)) > maxAttributesBytes) {
        const message = `Must be at most ${maxAttributesBytes} bytes of JSON together`
        return { success: false, details: [{ field: 'attributes', constraint: 'maximum', message }] }
      }
      return { success: true, data: parsed as UserAttributes }
    }
    return {
      names: Object.keys(schema.properties),
      schema,
      check,
      parse(attributes) {
        const checked = check(attributes)
        if (!checked.success) throw invalidFields(checked.details)
        return checked.data
      },
    }
  } catch (error) {
    const reason = error instanceof z.ZodError ? z.prettifyError(error) : String(error)
    throw new AttributeDeclarationError(
      `The declaration of user attributes ${file ?? ''} must be a JSON Schema of an object that names every property: ${reason}`,
      { cause: error },
    )
  }
}

function readSchema(file: string): unknown {
  try {
    if (statSync(file).size > maxFileBytes) throw new Error(`it is larger than ${maxFileBytes} bytes`)
    return JSON.parse(readFileSync(file, 'utf8'))
  } catch (error) {
    throw new AttributeDeclarationError(
      `The declaration of user attributes ${file} cannot be read: ${error instanceof Error ? error.message : String(error)}`,
      { cause: error },
    )
  }
}
