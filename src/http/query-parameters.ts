/**
 * Query strings, checked as strictly as bodies: a parameter that nobody knows is refused with the name that was probably
 * meant, one that is sent twice is refused, and one in a wrong format is told the right one. Here are also the schemas
 * of single parameters, from text to value, each with what OpenAPI is to say of it.
 */
import { z } from 'zod'
import { findNearest } from '../config.ts'
import { checkInput, type CheckedInput, type FieldError } from '../problems.ts'
import { isStorableText } from './json-body.ts'

/**
 * What a schema makes of a query string; everything that is wrong with it comes at once.
 *
 * @param schema its members are the parameters, and each takes a string
 * @param querystring as it came, without the question mark
 */
export function checkQuery<S extends z.ZodType>(schema: S, querystring: string): CheckedInput<z.output<S>> {
  if (!(schema instanceof z.ZodObject)) throw new Error('the schema of a query string is an object')
  if (querystring === '') return checkInput(schema, {})
  const known = Object.keys(schema.shape)
  const given = new Map<string, string>()
  const refused = new Map<string, FieldError>()
  for (const [name, value] of new URLSearchParams(querystring)) {
    const field = name.slice(0, 60)
    if (!known.includes(name)) refused.set(name, { field, ...unknownParameter(name, known) })
    else if (given.has(name)) refused.set(name, { field, constraint: 'repeated', message: 'Must be given once' })
    else if (!isStorableText(value)) {
      refused.set(name, { field, constraint: 'format', message: 'Holds a character that is not text (U+0000)' })
    }
    given.set(name, value)
  }
  const checked = checkInput(schema, Object.fromEntries([...given].filter(([name]) => known.includes(name))))
  if (checked.success && refused.size === 0) return checked
  const found = checked.success ? [] : checked.details.filter(({ field }) => !refused.has(field))
  return { success: false, details: [...refused.values(), ...found].slice(0, mostDetails) }
}

const mostDetails = 50

function unknownParameter(name: string, known: readonly string[]): Omit<FieldError, 'field'> {
  const suggestion = findNearest(name, known)
  const message = 'There is no such parameter'
  return suggestion === undefined
    ? { constraint: 'unknown', message }
    : { constraint: 'unknown', message: `${message}: did you mean ${suggestion}?`, suggestion }
}

/** A parameter as text from outside and as a value inside. */
export type Parameter<T> = z.ZodType<T, string>

/** What OpenAPI says of a parameter: JSON Schema, beside the description and an example. */
export interface ParameterDocument {
  readonly description: string
  readonly example: string | number | boolean
  readonly [keyword: string]: unknown
}

/** Why a text is no value of a parameter. */
export interface Refusal {
  readonly message: string
  /** `format` when left out */
  readonly constraint?: string
  /** the format in a few characters: `YYYY-MM-DD` */
  readonly expected_format?: string
  readonly suggestion?: string
}

export type Read<T> = { readonly value: T } | { readonly refusals: readonly Refusal[] }

/**
 * Makes a parameter of a function that reads it.
 *
 * @example
 * parameter((text) => (/^#[\da-f]{6}$/.test(text) ? { value: text } : { refusals: [{ message: 'Must be a colour' }] }), {
 *   description: 'The colour', example: '#ff0000', type: 'string',
 * })
 */
export function parameter<T>(read: (text: string) => Read<T>, document: ParameterDocument): Parameter<T> {
  const { description, example } = document
  return z
    .string()
    .transform((text, context) => {
      const found = read(text)
      if ('value' in found) return found.value
      for (const { message, ...params } of found.refusals) {
        context.issues.push({ code: 'custom', input: text, message, params: { constraint: 'format', ...params } })
      }
      return z.NEVER
    })
    .meta({
      description,
      example,
      param: { example },
      override: ({ jsonSchema }: { jsonSchema: Record<string, unknown> }) => {
        for (const keyword of Object.keys(jsonSchema)) delete jsonSchema[keyword]
        Object.assign(jsonSchema, document)
      },
    })
}

/** A parameter that need not be given, documented as the parameter is. */
export function optional<P extends Parameter<unknown>>(required: P): z.ZodOptional<P> {
  return required.optional().meta(documentOf(required))
}

/** A parameter that has a value all the same when it is not given. */
export function withDefault<T>(required: Parameter<T>, value: T): z.ZodDefault<Parameter<T>> {
  return required.default(value as never).meta(documentOf(required))
}

/** OpenAPI's description of a parameter is taken from the outermost schema alone. */
function documentOf(schema: z.ZodType) {
  const { description, param } = schema.meta() ?? {}
  return { ...(description === undefined ? {} : { description }), ...(param === undefined ? {} : { param }) }
}

/** A whole number in decimal digits. */
export function integerParameter(
  range: { readonly minimum: number; readonly maximum: number },
  document: Omit<ParameterDocument, 'type' | 'minimum' | 'maximum'> & {
    readonly description: string
    readonly example: number
  },
): Parameter<number> {
  const { minimum, maximum } = range
  const message = `Must be a whole number from ${minimum} to ${maximum}`
  return parameter(
    (text) => {
      if (!/^-?\d{1,15}$/.test(text)) {
        return { refusals: [{ constraint: 'type', message, expected_format: 'a whole number' }] }
      }
      const value = Number(text)
      if (value < minimum) return { refusals: [{ constraint: 'minimum', message }] }
      if (value > maximum) return { refusals: [{ constraint: 'maximum', message }] }
      return { value }
    },
    { ...document, type: 'integer', minimum, maximum },
  )
}

/** `true` or `false`. */
export function booleanParameter(description: string): Parameter<boolean> {
  return parameter(
    (text) =>
      text === 'true' || text === 'false'
        ? { value: text === 'true' }
        : { refusals: [{ message: 'Must be true or false', expected_format: 'true|false' }] },
    { description, example: true, type: 'boolean' },
  )
}

/** Any text that is not empty, of at most `maxLength` characters. */
export function textParameter(
  maxLength: number,
  document: { readonly description: string; readonly example: string },
): Parameter<string> {
  return parameter(
    (text) => {
      if (text === '') return { refusals: [{ constraint: 'minimum', message: 'Must not be empty' }] }
      return text.length > maxLength
        ? { refusals: [{ constraint: 'maximum', message: `Must have at most ${maxLength} characters` }] }
        : { value: text }
    },
    { ...document, type: 'string', minLength: 1, maxLength },
  )
}

/** One of a few words. */
export function choiceParameter<const Choice extends string>(
  choices: readonly [Choice, ...Choice[]],
  description: string,
): Parameter<Choice> {
  const message = `Must be one of: ${choices.join(', ')}`
  return parameter(
    (text) => {
      const value = choices.find((choice) => choice === text)
      return value === undefined
        ? { refusals: [{ constraint: 'enum', message, ...suggestionOf(text, choices) }] }
        : { value }
    },
    { description, example: choices[0], type: 'string', enum: choices },
  )
}

function suggestionOf(text: string, known: readonly string[]): { suggestion?: string } {
  const suggestion = findNearest(text, known)
  return suggestion === undefined ? {} : { suggestion }
}

const timestampExample = '2026-01-31T00:00:00Z'

/**
 * A moment by RFC 3339, in any zone and to the microsecond.
 *
 * @returns it in UTC, as text that PostgreSQL reads exactly: a JavaScript date would drop the microseconds
 */
export function timestampParameter(description: string): Parameter<string> {
  const refusal = {
    message: `Must be a date and time with its zone, such as ${timestampExample}`,
    expected_format: 'YYYY-MM-DDTHH:MM:SSZ',
  }
  return parameter(
    (text) => {
      const value = readTimestamp(text)
      return value === undefined ? { refusals: [refusal] } : { value }
    },
    { description, example: timestampExample, type: 'string', format: 'date-time' },
  )
}

const timestamp = z.iso.datetime({ offset: true })

/** The same moment in UTC with microseconds, as PostgreSQL reads it; undefined for what is none, or out of its range. */
export function readTimestamp(text: string): string | undefined {
  // RFC 3339 §5.6: `t` and `z` may be in lower case.
  const [whole, fraction = ''] = splitFraction(text.toUpperCase())
  if (!timestamp.safeParse(whole).success || !/^(\.\d{1,9})?$/.test(fraction)) return undefined
  const at = new Date(whole)
  // Years that PostgreSQL and RFC 3339 both know, in UTC too.
  if (Number.isNaN(at.getTime()) || at.getUTCFullYear() < 1 || at.getUTCFullYear() > 9_999) return undefined
  return `${at.toISOString().slice(0, 19)}.${fraction.slice(1, 7).padEnd(6, '0')}Z`
}

function splitFraction(text: string): [whole: string, fraction: string | undefined] {
  const fraction = /\.\d*/.exec(text)?.[0]
  return fraction === undefined ? [text, undefined] : [text.replace(fraction, ''), fraction]
}

/** A day of the calendar. */
export function dateParameter(description: string): Parameter<string> {
  const isDate = z.iso.date()
  return parameter(
    (text) =>
      isDate.safeParse(text).success && !text.startsWith('0000')
        ? { value: text }
        : { refusals: [{ message: 'Must be a day, such as 2026-01-31', expected_format: 'YYYY-MM-DD' }] },
    { description, example: '2026-01-31', type: 'string', format: 'date' },
  )
}
