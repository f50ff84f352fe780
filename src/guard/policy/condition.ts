/**
 * One policy's condition: read once, evaluated against the facts of a question. Three outcomes: true, false, or an
 * error, which is also what a value other than true and false is; what an error means is for the policy's effect to
 * say.
 */
import type { ASTNode } from '@marcbachmann/cel-js'
import { BEYOND, directCondition, Failure } from './direct.ts'
import type { Direct } from './direct.ts'
import {
  attributePath,
  celEnvironment,
  celMessage,
  COMPREHENSIONS,
  ExpressionError,
  parseExpression,
} from './expression.ts'
import type { Expression } from './expression.ts'
import { FactsError } from './facts.ts'
import type { Facts, Read } from './facts.ts'

/** What every condition knows by name. */
export const VARIABLES: Readonly<Record<string, string>> = Object.freeze({
  subject: 'map',
  action: 'string',
  resource: 'map',
  context: 'map',
})
const VARIABLE_NAMES = new Set(Object.keys(VARIABLES))
const environment = celEnvironment(VARIABLES)

/** True, false, or why neither. */
export type Outcome = boolean | { readonly error: string }

const NEITHER: Outcome = { error: 'the condition came out as neither true nor false' }

/** A condition ready to be evaluated. */
export interface Condition {
  readonly expression: Expression
  readonly reads: readonly Read[]
  /** The short cut, where there is one. */
  readonly direct: Direct | undefined
}

/**
 * Reads a condition.
 *
 * @throws ExpressionError when it is not CEL, costs more than can be bounded, or cannot be true or false
 */
export function parseCondition(text: string): Condition {
  const expression = parseExpression(environment, VARIABLE_NAMES, text)
  if (expression.type !== 'bool' && expression.type !== 'dyn') {
    throw new ExpressionError(`a condition is true or false, this one is a ${expression.type}`)
  }
  return { expression, reads: readsOf(expression.ast), direct: directCondition(expression.ast) }
}

/** Evaluates a condition; never throws for anything a policy or a request may contain. */
export function evaluateCondition(condition: Condition, facts: Facts): Outcome {
  if (condition.direct !== undefined && facts.spend(condition.expression.cost.fixed)) {
    const value = condition.direct(facts)
    if (typeof value === 'boolean') return value
    if (value instanceof Failure) return { error: value.message }
    if (value !== BEYOND) return NEITHER
  }
  return evaluateByLibrary(condition, facts)
}

/** The same by the evaluator alone: slower, and the judge of what is right. */
export function evaluateByLibrary(condition: Condition, facts: Facts): Outcome {
  try {
    const activation = facts.prepare(condition.reads, condition.expression.cost)
    const value: unknown = condition.expression.evaluate(activation)
    return typeof value === 'boolean' ? value : NEITHER
  } catch (error) {
    if (error instanceof FactsError) return { error: error.message }
    return { error: celMessage(error, condition.expression.source) }
  }
}

function readsOf(root: ASTNode): Read[] {
  const reads = new Map<string, Read>()

  function read(name: string, attribute: string | undefined): void {
    if (name !== 'subject' && name !== 'resource' && name !== 'context') return
    reads.set(`${name}.${attribute ?? ''}`, attribute === undefined ? { root: name } : { root: name, attribute })
  }

  function visit(node: ASTNode): void {
    const path = attributePath(node)
    if (path !== undefined) {
      read(path[0] ?? '', path[1])
      return
    }
    switch (node.op) {
      case 'value':
      case 'id':
        return
      case '.':
      case '.?':
        visit(node.args[0])
        return
      case '!_':
      case '-_':
        visit(node.args)
        return
      case 'call':
        for (const argument of node.args[1]) visit(argument)
        return
      case 'rcall': {
        const [name, receiver, args] = node.args
        visit(receiver)
        // The first argument of a comprehension is the name of its variable, not something it reads.
        for (const argument of Object.hasOwn(COMPREHENSIONS, name) ? args.slice(1) : args) visit(argument)
        return
      }
      case 'map':
        for (const [key, value] of node.args) {
          visit(key)
          visit(value)
        }
        return
      default:
        for (const argument of node.args) visit(argument)
    }
  }

  visit(root)
  return [...reads.values()]
}
