/**
 * The conformance tests of google/cel-spec, as `@bufbuild/cel-spec` packages them, run against the expressions of policies. A
 * test is outside our profile when our own gate refuses its expression, or when it needs protobuf messages; every other
 * one passes or fails.
 */
import { tests } from '@bufbuild/cel-spec/testdata/conformance.js'
import { celEnvironment, ExpressionError, parseExpression } from '../../../src/guard/policy/expression.ts'
import type { Expression } from '../../../src/guard/policy/expression.ts'

/** Suites of the core language; the others are extensions, protobuf or checker internals. */
export const CORE_SUITES = [
  'basic',
  'comparisons',
  'conversions',
  'fields',
  'fp_math',
  'integer_math',
  'lists',
  'logic',
  'macros',
  'namespace',
  'parse',
  'plumbing',
  'string',
  'timestamps',
]

export interface ConformanceResult {
  readonly name: string
  readonly expression: string
  readonly verdict: 'passes' | 'fails' | 'outside'
  /** Why outside, or what came out instead. */
  readonly reason: string
}

interface Suite {
  readonly name: string
  readonly suites?: readonly Suite[]
  readonly tests?: readonly { readonly original: Record<string, unknown> }[]
}

/** Runs every test of the core suites. */
export function runConformance(): ConformanceResult[] {
  const results: ConformanceResult[] = []
  const names = new Map<string, number>()

  function visit(suite: Suite, path: string): void {
    for (const { original } of suite.tests ?? []) {
      const plain = `${path}/${String(original['name'])}`
      const times = (names.get(plain) ?? 0) + 1
      names.set(plain, times)
      const name = times === 1 ? plain : `${plain}#${times}`
      results.push({ name, expression: String(original['expr']), ...verdictOn(original) })
    }
    for (const inner of suite.suites ?? []) visit(inner, `${path}/${inner.name}`)
  }

  for (const suite of (tests as Suite).suites ?? []) if (CORE_SUITES.includes(suite.name)) visit(suite, suite.name)
  return results
}

class NeedsProtobuf extends Error {}

function verdictOn(test: Record<string, unknown>): Pick<ConformanceResult, 'verdict' | 'reason'> {
  const source = String(test['expr'])
  if (/\bgoogle\.|TestAllTypes/.test(source)) return { verdict: 'outside', reason: 'protobuf messages' }
  const variables: Record<string, string> = {}
  const values: Record<string, unknown> = {}
  let expected: unknown
  try {
    for (const entry of (test['typeEnv'] as Record<string, unknown>[] | undefined) ?? []) {
      if (entry['ident'] === undefined) return { verdict: 'outside', reason: 'functions declared by the test' }
      variables[String(entry['name'])] = 'dyn'
    }
    for (const [name, binding] of Object.entries(
      (test['bindings'] as Record<string, Record<string, unknown>> | undefined) ?? {},
    )) {
      variables[name] = 'dyn'
      values[name] = valueOf((binding['value'] ?? binding) as Record<string, unknown>)
    }
    if (Object.keys(variables).some((name) => name.includes('.')))
      return { verdict: 'outside', reason: 'qualified names' }
    expected = test['value'] === undefined ? undefined : valueOf(test['value'] as Record<string, unknown>)
  } catch (error) {
    if (error instanceof NeedsProtobuf) return { verdict: 'outside', reason: 'protobuf messages' }
    throw error
  }
  const wantsError = test['evalError'] !== undefined

  let expression: Expression
  try {
    expression = parseExpression(celEnvironment(variables), new Set(Object.keys(variables)), source)
  } catch (error) {
    if (!(error instanceof ExpressionError)) throw error
    if (error.cause === undefined) return { verdict: 'outside', reason: generalReason(error.message) }
    if (wantsError) return { verdict: 'passes', reason: '' }
    return { verdict: 'fails', reason: error.message }
  }
  let value: unknown
  try {
    value = expression.evaluate(values)
  } catch (error) {
    if (wantsError) return { verdict: 'passes', reason: '' }
    return { verdict: 'fails', reason: error instanceof Error ? (error.message.split('\n')[0] ?? '') : String(error) }
  }
  if (wantsError) return { verdict: 'fails', reason: `gives ${show(value)} instead of an error` }
  const wanted = test['value'] === undefined ? true : expected
  if (show(value) === show(wanted)) return { verdict: 'passes', reason: '' }
  return { verdict: 'fails', reason: `gives ${show(value)} instead of ${show(wanted)}` }
}

/** The gate's sentence without what differs from test to test. */
function generalReason(message: string): string {
  if (/^get\w+\(\) does not take 1/.test(message)) return 'parts of a timestamp in a time zone of its own'
  if (message.startsWith('there is no function matches()')) return 'regular expressions'
  if (message.startsWith('there is no function getDayOfYear()')) return 'getDayOfYear()'
  if (message.startsWith('there is no function')) return 'functions that are not on the list'
  if (message.startsWith('nothing is called')) return 'names of types and packages'
  if (message.includes('inside another comprehension')) return 'a comprehension inside another one'
  if (message.includes('is no timestamp')) return 'text that is no timestamp'
  return message.replace(/ \(at ".*$/s, '')
}

function valueOf(value: Record<string, unknown>): unknown {
  const [entry] = Object.entries(value)
  if (entry === undefined) return null
  const [kind, content] = entry
  switch (kind) {
    case 'int64Value':
      return BigInt(content as string)
    case 'doubleValue':
      return Number(content)
    case 'stringValue':
    case 'boolValue':
      return content
    case 'nullValue':
      return null
    case 'listValue':
      return ((content as { values?: Record<string, unknown>[] }).values ?? []).map(valueOf)
    case 'mapValue': {
      const entries =
        (content as { entries?: { key: Record<string, unknown>; value: Record<string, unknown> }[] }).entries ?? []
      return new Map(entries.map(({ key, value }) => [valueOf(key), valueOf(value)]))
    }
    default:
      throw new NeedsProtobuf(kind)
  }
}

/** A value as text in which different values look different. */
function show(value: unknown): string {
  if (typeof value === 'bigint') return `${value}`
  if (typeof value === 'number') return Object.is(value, -0) ? '-0.0' : `${value}d`
  if (Array.isArray(value)) return `[${value.map(show).join(', ')}]`
  if (value instanceof Date) return value.toISOString()
  if (value instanceof Map)
    return `{${[...value]
      .map(([key, inner]) => `${show(key)}: ${show(inner)}`)
      .sort()
      .join(', ')}}`
  if (typeof value === 'object' && value !== null && Object.getPrototypeOf(value) === Object.prototype) {
    return show(new Map(Object.entries(value)))
  }
  return JSON.stringify(value) ?? String(value)
}
