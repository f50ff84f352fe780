/**
 * Partial evaluation: what is left of a condition when subject, action and context are known and the resource is not.
 * The same tree the evaluator runs is walked once while loading; whatever has no resource in it is later computed by
 * the evaluator itself, operator by operator, so that both can only agree. The rest becomes a small language
 * (`Residual`) that a database understands. What does not fit that language is refused while loading, by name.
 *
 * An error stays an error: it behaves as SQL's NULL does, absorbed by `false &&` and `true ||` and by nothing else.
 */
import type { ASTNode, ParseResult } from '@marcbachmann/cel-js'
import type { Condition } from './condition.ts'
import { attributePath, celEnvironment, COMPREHENSIONS, ExpressionError } from './expression.ts'
import type { Activation, CelValue } from './facts.ts'
import type { NamePattern } from './patterns.ts'

export type Comparison = '==' | '!=' | '<' | '<=' | '>' | '>='
export type Arithmetic = '+' | '-' | '*' | '/' | '%'
export type TextTest = 'startsWith' | 'endsWith' | 'contains'

/** An attribute of the resource, or of one row of a list of it. */
export interface AttributeResidual {
  readonly kind: 'attribute'
  /** `department`, or `location.city`; empty for an item that is itself the value. */
  readonly path: string
  /** The comprehension variable it belongs to; absent for the resource's own. */
  readonly of?: string
}

/** What remains to be asked of each resource. */
export type Residual =
  | { readonly kind: 'error' }
  | { readonly kind: 'value'; readonly value: unknown }
  | AttributeResidual
  | { readonly kind: 'and' | 'or'; readonly operands: readonly Residual[] }
  | { readonly kind: 'not' | 'negate' | 'size'; readonly operand: Residual }
  | { readonly kind: 'compare'; readonly operator: Comparison; readonly left: Residual; readonly right: Residual }
  | { readonly kind: 'arithmetic'; readonly operator: Arithmetic; readonly left: Residual; readonly right: Residual }
  | { readonly kind: 'in'; readonly item: Residual; readonly list: Residual }
  | { readonly kind: 'present'; readonly attribute: AttributeResidual }
  | { readonly kind: 'choose'; readonly condition: Residual; readonly yes: Residual; readonly no: Residual }
  | { readonly kind: 'text'; readonly test: TextTest; readonly text: Residual; readonly argument: Residual }
  | { readonly kind: 'lookup'; readonly entries: ReadonlyMap<string, unknown>; readonly key: Residual }
  | { readonly kind: 'some'; readonly list: AttributeResidual; readonly variable: string; readonly condition: Residual }

const ERROR: Residual = { kind: 'error' }
export const TRUE: Residual = { kind: 'value', value: true }
export const FALSE: Residual = { kind: 'value', value: false }

/** What is known when a plan is made. */
interface Known {
  readonly activation: Activation
  readonly locals: ReadonlyMap<string, unknown>
}

/** A condition prepared for planning. */
export interface Template {
  /** Whether the resource has a part in it. */
  readonly unknown: boolean
  residual(known: Known): Residual
}

/**
 * Prepares a condition for planning.
 *
 * @throws ExpressionError when a part that depends on the resource has no counterpart in a database
 */
export function residualTemplate(condition: Condition): Template {
  return template(condition.expression.ast, new Map())
}

/** What is left of the condition for these facts. `activation.resource` holds the type alone. */
export function residualOf(prepared: Template, activation: Activation): Residual {
  return truth(prepared.residual({ activation, locals: new Map() }))
}

/** `id` against a pattern of the policy's `resources`. */
export function idResidual(pattern: NamePattern | { readonly below: string }): Residual {
  const id: Residual = { kind: 'attribute', path: 'id' }
  if ('exactly' in pattern) return compare('==', id, { kind: 'value', value: pattern.exactly })
  if ('startsWith' in pattern) return textTest('startsWith', id, { kind: 'value', value: pattern.startsWith })
  return disjunction([
    compare('==', id, { kind: 'value', value: pattern.below }),
    textTest('startsWith', id, { kind: 'value', value: `${pattern.below}/` }),
  ])
}

/** True if all are; false if one is, whatever the others; else an error. */
export function conjunction(operands: readonly Residual[]): Residual {
  return junction('and', operands)
}

/** True if one is, whatever the others; false if all are; else an error. */
export function disjunction(operands: readonly Residual[]): Residual {
  return junction('or', operands)
}

function junction(kind: 'and' | 'or', operands: readonly Residual[]): Residual {
  const decisive = kind === 'or'
  const left: Residual[] = []
  let failed = false
  for (const operand of operands.map(truth)) {
    if (operand.kind === 'value' && operand.value === decisive) return operand
    if (operand.kind === 'error') failed = true
    else if (operand.kind === kind) left.push(...operand.operands)
    else if (operand.kind !== 'value') left.push(operand)
  }
  if (failed) left.push(ERROR)
  const [only] = left
  if (only === undefined) return decisive ? FALSE : TRUE
  return left.length === 1 ? only : { kind, operands: left }
}

/** In the place of a condition, anything but true and false is an error. */
function truth(residual: Residual): Residual {
  return residual.kind === 'value' && typeof residual.value !== 'boolean' ? ERROR : residual
}

const operators = celEnvironment({ a: 'dyn', b: 'dyn', c: 'dyn' })
const programs = new Map<string, ParseResult>()

/** Computes one operator on known values with the evaluator itself. `program` is written in terms of a, b and c. */
function compute(program: string, ...operands: readonly Residual[]): Residual {
  const values: unknown[] = []
  for (const operand of operands) {
    if (operand.kind !== 'value') return ERROR
    values.push(operand.value)
  }
  let run = programs.get(program)
  if (run === undefined) {
    run = operators.parse(program)
    programs.set(program, run)
  }
  try {
    const value: unknown = run({ a: values[0], b: values[1], c: values[2] })
    return { kind: 'value', value }
  } catch {
    // Why it failed is of no use in a list: the row is left out, and a decision on that row tells the reason.
    return ERROR
  }
}

function isError(...residuals: readonly Residual[]): boolean {
  return residuals.some((residual) => residual.kind === 'error')
}

function isKnown(...residuals: readonly Residual[]): boolean {
  return residuals.every((residual) => residual.kind === 'value')
}

function compare(operator: Comparison, left: Residual, right: Residual): Residual {
  if (isError(left, right)) return ERROR
  if (isKnown(left, right)) return compute(`a ${operator} b`, left, right)
  return { kind: 'compare', operator, left, right }
}

function textTest(test: TextTest, text: Residual, argument: Residual): Residual {
  if (isError(text, argument)) return ERROR
  if (isKnown(text, argument)) return compute(`a.${test}(b)`, text, argument)
  return { kind: 'text', test, text, argument }
}

function refuse(node: ASTNode, why: string): never {
  const excerpt = node.input.slice(node.start, node.end).trim()
  throw new ExpressionError(`cannot become a list filter: ${why} (at "${excerpt}")`)
}

type Scope = ReadonlyMap<string, 'known' | 'unknown'>

function template(node: ASTNode, scope: Scope): Template {
  const path = attributePath(node)
  if (path !== undefined) return pathTemplate(node, path, scope)
  switch (node.op) {
    case 'value': {
      const value: Residual = { kind: 'value', value: node.args }
      return { unknown: false, residual: () => value }
    }
    case '&&':
    case '||': {
      const left = template(node.args[0], scope)
      const right = template(node.args[1], scope)
      const join = node.op === '&&' ? conjunction : disjunction
      return {
        unknown: left.unknown || right.unknown,
        residual: (known) => join([left.residual(known), right.residual(known)]),
      }
    }
    case '!_':
    case '-_': {
      const operand = template(node.args, scope)
      const [kind, program] = node.op === '!_' ? (['not', '!a'] as const) : (['negate', '-a'] as const)
      return unary(operand, program, (inner) => ({ kind, operand: inner }))
    }
    case '==':
    case '!=':
    case '<':
    case '<=':
    case '>':
    case '>=': {
      const operator = node.op
      const left = template(node.args[0], scope)
      const right = template(node.args[1], scope)
      return {
        unknown: left.unknown || right.unknown,
        residual: (known) => compare(operator, left.residual(known), right.residual(known)),
      }
    }
    case 'in':
      return binary(node.args, scope, 'a in b', (item, list) => ({ kind: 'in', item, list }))
    case '+':
    case '-':
    case '*':
    case '/':
    case '%': {
      const operator = node.op
      return binary(node.args, scope, `a ${operator} b`, (left, right) => ({
        kind: 'arithmetic',
        operator,
        left,
        right,
      }))
    }
    case '?:':
      return choice(node.args, scope)
    case '[]':
      return indexTemplate(node, node.args, scope)
    case '.': {
      // Not a plain path (that was handled above), so something computed: known or nothing.
      const operand = template(node.args[0], scope)
      if (operand.unknown) refuse(node, 'an attribute of a computed value')
      return unary(operand, `a.${node.args[1]}`, () => ERROR)
    }
    case 'list':
      return literal(node, node.args, scope, (items) => items)
    case 'map': {
      const keys = node.args.map(([key]) => (typeof key.args === 'string' ? key.args : ''))
      const values = node.args.map(([, value]) => value)
      return literal(node, values, scope, (items) => new Map(items.map((item, index) => [keys[index] ?? '', item])))
    }
    case 'call':
      return callTemplate(node, node.args[0], node.args[1], scope)
    case 'rcall': {
      const [name, receiver, args] = node.args
      if (Object.hasOwn(COMPREHENSIONS, name)) return comprehension(node, name, receiver, args, scope)
      return methodTemplate(node, name, receiver, args, scope)
    }
    default:
      return refuse(node, 'this has no counterpart in a database')
  }
}

function pathTemplate(node: ASTNode, path: readonly string[], scope: Scope): Template {
  const [root = '', ...attributes] = path
  const of = scope.get(root)
  if (of === 'unknown') {
    const attribute: Residual = { kind: 'attribute', path: attributes.join('.'), of: root }
    return { unknown: true, residual: () => attribute }
  }
  if (of === undefined && root === 'resource') {
    if (attributes.length === 0) refuse(node, 'the resource as a whole')
    if (path.length === 2 && attributes[0] === 'type') {
      return { unknown: false, residual: ({ activation }) => orError(activation.resource.get('type')) }
    }
    const attribute: Residual = { kind: 'attribute', path: attributes.join('.') }
    return { unknown: true, residual: () => attribute }
  }
  const programs = attributes.map((attribute) => `a.${attribute}`)
  return {
    unknown: false,
    residual: (known) => {
      let at: Residual =
        of === 'known' ? orError(known.locals.get(root)) : orError(known.activation[root as keyof Activation])
      for (const program of programs) at = compute(program, at)
      return at
    },
  }
}

function orError(value: unknown): Residual {
  return value === undefined ? ERROR : { kind: 'value', value }
}

function unary(operand: Template, program: string, rest: (operand: Residual) => Residual): Template {
  return {
    unknown: operand.unknown,
    residual: (known) => {
      const inner = operand.residual(known)
      if (isError(inner)) return ERROR
      return isKnown(inner) ? compute(program, inner) : rest(inner)
    },
  }
}

function binary(
  [first, second]: readonly [ASTNode, ASTNode],
  scope: Scope,
  program: string,
  rest: (left: Residual, right: Residual) => Residual,
): Template {
  const left = template(first, scope)
  const right = template(second, scope)
  return {
    unknown: left.unknown || right.unknown,
    residual: (known) => {
      const a = left.residual(known)
      const b = right.residual(known)
      if (isError(a, b)) return ERROR
      return isKnown(a, b) ? compute(program, a, b) : rest(a, b)
    },
  }
}

function choice(parts: readonly [ASTNode, ASTNode, ASTNode], scope: Scope): Template {
  const condition = template(parts[0], scope)
  const yes = template(parts[1], scope)
  const no = template(parts[2], scope)
  return {
    unknown: condition.unknown || yes.unknown || no.unknown,
    residual: (known) => {
      const decided = truth(condition.residual(known))
      if (isError(decided)) return ERROR
      if (decided.kind === 'value') return decided.value === true ? yes.residual(known) : no.residual(known)
      return { kind: 'choose', condition: decided, yes: yes.residual(known), no: no.residual(known) }
    },
  }
}

function indexTemplate(node: ASTNode, [of, at]: readonly [ASTNode, ASTNode], scope: Scope): Template {
  const path = attributePath(of)
  if (path !== undefined && at.op === 'value' && typeof at.args === 'string' && path[0] === 'resource') {
    return pathTemplate(node, [...path, at.args], scope)
  }
  const collection = template(of, scope)
  const key = template(at, scope)
  if (collection.unknown) refuse(node, 'an item of a list or map that belongs to the resource')
  return {
    unknown: key.unknown,
    residual: (known) => {
      const a = collection.residual(known)
      const b = key.residual(known)
      if (isError(a, b)) return ERROR
      if (isKnown(a, b)) return compute('a[b]', a, b)
      if (a.kind !== 'value' || !(a.value instanceof Map)) return ERROR
      return { kind: 'lookup', entries: a.value as Map<string, unknown>, key: b }
    },
  }
}

function literal(
  node: ASTNode,
  parts: readonly ASTNode[],
  scope: Scope,
  build: (items: unknown[]) => unknown,
): Template {
  const items = parts.map((part) => template(part, scope))
  // An error in one item is an error of the whole list, which `a == x || a == y` does not say the same way.
  if (items.some((item) => item.unknown))
    refuse(node, 'an attribute of the resource inside a list or map; compare with ||')
  return {
    unknown: false,
    residual: (known) => {
      const values: unknown[] = []
      for (const item of items) {
        const residual = item.residual(known)
        if (residual.kind !== 'value') return ERROR
        values.push(residual.value)
      }
      return { kind: 'value', value: build(values) }
    },
  }
}

function callTemplate(node: ASTNode, name: string, args: readonly ASTNode[], scope: Scope): Template {
  const [argument] = args
  if (argument === undefined) return refuse(node, `${name}() without an argument`)
  if (name === 'has') return hasTemplate(node, argument, scope)
  const operand = template(argument, scope)
  if (name === 'size') return unary(operand, 'size(a)', (inner) => ({ kind: 'size', operand: inner }))
  if (name === 'dyn') return operand
  if (operand.unknown) refuse(node, `${name}() of an attribute of the resource`)
  return unary(operand, `${name}(a)`, () => ERROR)
}

function hasTemplate(node: ASTNode, argument: ASTNode, scope: Scope): Template {
  if (argument.op !== '.') return refuse(node, 'has() of something that is not an attribute')
  const [owner, name] = argument.args
  const path = attributePath(argument)
  const whole = path === undefined ? undefined : pathTemplate(argument, path, scope)
  if (whole?.unknown) {
    return {
      unknown: true,
      residual: (known) => {
        const attribute = whole.residual(known)
        return attribute.kind === 'attribute' ? { kind: 'present', attribute } : ERROR
      },
    }
  }
  if (path?.[0] === 'resource') return { unknown: false, residual: () => TRUE }
  return unary(template(owner, scope), `has(a.${name})`, () => ERROR)
}

function methodTemplate(
  node: ASTNode,
  name: string,
  receiver: ASTNode,
  args: readonly ASTNode[],
  scope: Scope,
): Template {
  const text = template(receiver, scope)
  const [argument] = args
  if (argument === undefined) {
    if (name === 'size') return unary(text, 'a.size()', (operand) => ({ kind: 'size', operand }))
    if (text.unknown) refuse(node, `${name}() of an attribute of the resource`)
    return unary(text, `a.${name}()`, () => ERROR)
  }
  const other = template(argument, scope)
  const unknown = text.unknown || other.unknown
  if (name === 'startsWith' || name === 'endsWith' || name === 'contains') {
    return { unknown, residual: (known) => textTest(name, text.residual(known), other.residual(known)) }
  }
  if (unknown) refuse(node, `${name}() with an attribute of the resource`)
  return {
    unknown: false,
    residual: (known) => compute(`a.${name}(b)`, text.residual(known), other.residual(known)),
  }
}

function comprehension(node: ASTNode, name: string, range: ASTNode, args: readonly ASTNode[], scope: Scope): Template {
  const [first, ...bodies] = args
  const variable = first?.op === 'id' ? first.args : ''
  const list = template(range, scope)
  const inner = new Map([...scope, [variable, list.unknown ? ('unknown' as const) : ('known' as const)]])
  const parts = bodies.map((body) => template(body, inner))
  const [body] = parts
  if (body === undefined) return refuse(node, `${name}() without a body`)

  if (list.unknown) {
    if (name !== 'exists' && name !== 'all')
      refuse(node, `${name}() over a list of the resource; only exists() and all()`)
    return {
      unknown: true,
      residual: (known) => {
        const attribute = list.residual(known)
        if (attribute.kind !== 'attribute') return ERROR
        const condition = truth(body.residual(known))
        if (name === 'exists') return { kind: 'some', list: attribute, variable, condition }
        // All of them, if there is none of which the contrary holds.
        const contrary: Residual = { kind: 'some', list: attribute, variable, condition: not(condition) }
        return { kind: 'not', operand: contrary }
      },
    }
  }

  if (parts.some((part) => part.unknown) && name !== 'exists' && name !== 'all') {
    refuse(node, `${name}() with an attribute of the resource; only exists() and all()`)
  }
  return {
    unknown: body.unknown,
    residual: (known) => {
      const items = itemsOf(list.residual(known))
      if (items === undefined) return ERROR
      const each = (part: Template): Residual[] =>
        items.map((item) =>
          part.residual({ activation: known.activation, locals: new Map([...known.locals, [variable, item]]) }),
        )
      if (name === 'exists') return disjunction(each(body))
      if (name === 'all') return conjunction(each(body))
      return knownComprehension(name, items, parts.map(each))
    },
  }
}

function not(residual: Residual): Residual {
  if (residual.kind === 'error') return ERROR
  return residual.kind === 'value' ? compute('!a', residual) : { kind: 'not', operand: residual }
}

function itemsOf(range: Residual): readonly unknown[] | undefined {
  if (range.kind !== 'value') return undefined
  if (Array.isArray(range.value)) return range.value as CelValue[]
  return range.value instanceof Map ? [...(range.value as Map<string, CelValue>).keys()] : undefined
}

/**
 * `exists_one`, `filter` and `map` over values that are all known: unlike `exists`, an error in one is an error of all.
 */
function knownComprehension(name: string, items: readonly unknown[], bodies: readonly Residual[][]): Residual {
  const predicate = name === 'map' && bodies.length === 1 ? undefined : bodies[0]
  const result = name === 'map' ? bodies[bodies.length - 1] : undefined
  const kept: unknown[] = []
  for (const [index, item] of items.entries()) {
    const passes = predicate === undefined ? TRUE : truth(predicate[index] ?? ERROR)
    if (passes.kind !== 'value') return ERROR
    if (passes.value !== true) continue
    const value: Residual = result === undefined ? { kind: 'value', value: item } : (result[index] ?? ERROR)
    if (value.kind !== 'value') return ERROR
    kept.push(value.value)
  }
  return { kind: 'value', value: name === 'exists_one' ? kept.length === 1 : kept }
}
