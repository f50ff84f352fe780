/**
 * A short cut for the conditions people write most: attributes, names and numbers, compared and joined. They become
 * functions that read the caller's objects directly, without the copies the evaluator needs and without its exceptions:
 * a missing attribute is one, and it costs many times a decision. Whatever is not a plain text, number or boolean, at any
 * moment, is handed to the evaluator: a direct condition answers as it would, or says `BEYOND`.
 */
import type { ASTNode } from '@marcbachmann/cel-js'
import type { Facts } from './facts.ts'
import { MAX_ITEMS, MAX_TEXT, SPENT } from './facts.ts'

/** The evaluator has to do it. */
export const BEYOND: unique symbol = Symbol('beyond')

/** An error of the condition. */
export class Failure {
  readonly message: string

  constructor(message: string) {
    this.message = message
  }
}

type Value = boolean | string | number | Failure | typeof BEYOND

/** A condition, or a part of one. */
export type Direct = (facts: Facts) => Value

const NOT_BOOLEAN = new Failure('a logical operator takes only true and false')
const BUDGET = new Failure(SPENT)

/** The condition as a function; undefined where the evaluator has to do it in any case. */
export function directCondition(node: ASTNode): Direct | undefined {
  switch (node.op) {
    case 'value':
      return constant(node.args)
    case '-_': {
      const value = node.args.op === 'value' ? plainNumber(node.args.args) : undefined
      return value === undefined ? undefined : () => -value
    }
    case 'id':
      return node.args === 'action' ? ({ action }) => action : undefined
    case '.':
      return attribute(node)
    case 'call':
      return presence(node.args[0], node.args[1])
    case '!_': {
      const operand = directCondition(node.args)
      return operand === undefined ? undefined : negation(operand)
    }
    case '&&':
    case '||':
      return both(node.args, node.op === '&&' ? conjunction : disjunction)
    case '==':
    case '!=':
      return both(node.args, node.op === '==' ? equality : inequality)
    case '<':
    case '<=':
    case '>':
    case '>=': {
      const operator = node.op
      return both(node.args, (left, right) => ordering(operator, left, right))
    }
    case 'in':
      return membership(node.args)
    default:
      return undefined
  }
}

function constant(value: unknown): Direct | undefined {
  if (typeof value === 'string' || typeof value === 'boolean') return () => value
  const number = plainNumber(value)
  return number === undefined ? undefined : () => number
}

function plainNumber(value: unknown): number | undefined {
  if (typeof value === 'number') return value
  return typeof value === 'bigint' && Number.isSafeInteger(Number(value)) ? Number(value) : undefined
}

/** Reads an own property; null, NaN and the infinities count as missing, as they do in `facts.ts`. */
function property(from: object, name: string, missing: Failure): Value {
  if (!Object.hasOwn(from, name)) return missing
  const value = (from as Record<string, unknown>)[name]
  if (typeof value === 'string') return value.length > MAX_TEXT ? BEYOND : value
  if (typeof value === 'boolean') return value
  if (typeof value === 'number') return Number.isFinite(value) ? value : missing
  return value === null || value === undefined ? missing : BEYOND
}

function attribute(node: ASTNode): Direct | undefined {
  if (node.op !== '.') return undefined
  const [root, name] = node.args
  const missing = new Failure(`No such key: ${name}`)
  if (root.op !== 'id') return undefined
  if (root.args === 'subject') return ({ subject }) => property(subject, name, missing)
  if (root.args === 'resource') return ({ resource }) => property(resource, name, missing)
  if (root.args === 'context') return ({ context }) => property(context, name, missing)
  return undefined
}

function presence(name: string, [argument]: readonly ASTNode[]): Direct | undefined {
  const read = name === 'has' && argument !== undefined ? attribute(argument) : undefined
  if (read === undefined) return undefined
  return (facts) => {
    const value = read(facts)
    return value === BEYOND ? BEYOND : !(value instanceof Failure)
  }
}

function both(
  [first, second]: readonly [ASTNode, ASTNode],
  join: (left: Direct, right: Direct) => Direct,
): Direct | undefined {
  const left = directCondition(first)
  const right = directCondition(second)
  return left === undefined || right === undefined ? undefined : join(left, right)
}

function negation(operand: Direct): Direct {
  return (facts) => {
    const value = operand(facts)
    if (typeof value === 'boolean') return !value
    return value === BEYOND || value instanceof Failure ? value : NOT_BOOLEAN
  }
}

function conjunction(left: Direct, right: Direct): Direct {
  return (facts) => {
    const first = left(facts)
    if (first === false || first === BEYOND) return first
    const second = right(facts)
    if (second === false || second === BEYOND) return second
    return first === true && second === true ? true : failureOf(first, second)
  }
}

function disjunction(left: Direct, right: Direct): Direct {
  return (facts) => {
    const first = left(facts)
    if (first === true || first === BEYOND) return first
    const second = right(facts)
    if (second === true || second === BEYOND) return second
    return first === false && second === false ? false : failureOf(first, second)
  }
}

function failureOf(first: Value, second: Value): Failure {
  if (first instanceof Failure) return first
  return second instanceof Failure ? second : NOT_BOOLEAN
}

function equality(left: Direct, right: Direct): Direct {
  return (facts) => {
    const first = left(facts)
    if (typeof first === 'object' || first === BEYOND) return first
    const second = right(facts)
    if (typeof second === 'object' || second === BEYOND) return second
    // Values of different kinds are not equal; all numbers are of one kind here.
    return first === second
  }
}

function inequality(left: Direct, right: Direct): Direct {
  const equal = equality(left, right)
  return (facts) => {
    const value = equal(facts)
    return typeof value === 'boolean' ? !value : value
  }
}

function ordering(operator: '<' | '<=' | '>' | '>=', left: Direct, right: Direct): Direct {
  const unordered = new Failure(`${operator} compares numbers with numbers and texts with texts`)
  return (facts) => {
    const first = left(facts)
    if (typeof first === 'object' || first === BEYOND) return first
    const second = right(facts)
    if (typeof second === 'object' || second === BEYOND) return second
    if (typeof first !== typeof second) return unordered
    if (operator === '<') return first < second
    if (operator === '<=') return first <= second
    return operator === '>' ? first > second : first >= second
  }
}

/** `x in subject.list`, and `x in ["a", "b"]`. */
function membership([itemNode, listNode]: readonly [ASTNode, ASTNode]): Direct | undefined {
  const item = directCondition(itemNode)
  if (item === undefined) return undefined
  if (listNode.op === 'list') {
    const values = listNode.args.map((value) => (value.op === 'value' ? directCondition(value) : undefined))
    if (values.some((value) => value === undefined)) return undefined
    return (facts) => {
      const wanted = item(facts)
      if (typeof wanted === 'object' || wanted === BEYOND) return wanted
      return values.some((value) => value?.(facts) === wanted)
    }
  }
  if (listNode.op !== '.' || listNode.args[0].op !== 'id') return undefined
  const [{ args: root }, name] = [listNode.args[0], listNode.args[1]]
  if (root !== 'subject' && root !== 'resource' && root !== 'context') return undefined
  return (facts) => {
    const wanted = item(facts)
    if (typeof wanted === 'object' || wanted === BEYOND) return wanted
    const from: object = facts[root]
    const list = Object.hasOwn(from, name) ? (from as Record<string, unknown>)[name] : undefined
    if (!Array.isArray(list) || list.length > MAX_ITEMS) return BEYOND
    if (!facts.spend(list.length)) return BUDGET
    for (const value of list as unknown[]) {
      if (value === wanted) return true
      if (typeof value === 'bigint') return BEYOND
    }
    return false
  }
}
