/**
 * The language of conditions: CEL, and the gate in front of it. The library `@marcbachmann/cel-js` parses, type-checks
 * and evaluates; this file decides what may reach it. The library has no budget at run time and its `matches` is a
 * backtracking regular expression, so everything whose cost cannot be bounded beforehand is refused while loading: only
 * functions on a list, no comprehension inside another one's body, bounded length and depth. What passes comes with its
 * cost as a polynomial in the size of the data, which `facts.ts` charges before each evaluation.
 */
import { Environment, EvaluationError, ParseError } from '@marcbachmann/cel-js'
import type { ASTNode, ParseResult } from '@marcbachmann/cel-js'
import { network, Network } from './network.ts'

/** Longest condition, in characters. */
export const MAX_SOURCE_LENGTH = 4_096
const MAX_DEPTH = 64
const MAX_NODES = 1_000
const MAX_LITERAL_ITEMS = 1_000

/** A condition that is refused. The loader adds policy, file and line. */
export class ExpressionError extends Error {
  override readonly name = 'ExpressionError'
}

/**
 * What one evaluation costs at most, in steps (about a node of the tree visited once): with lists of at most L items
 * and texts of at most S characters, `fixed + perItem·L + perPair·L² + (searches + searchesPerItem·L)·S²/2000`.
 */
export interface Cost {
  fixed: number
  perItem: number
  perPair: number
  searches: number
  searchesPerItem: number
  /** `a + a + a` makes texts and lists longer: L and S are multiplied by this. */
  growth: number
  /** Longest list and longest text written in the condition itself. */
  longestList: number
  longestText: number
}

/** An expression that passed the gate. */
export interface Expression {
  readonly source: string
  readonly ast: ASTNode
  readonly evaluate: ParseResult
  /** `bool`, `int`, …; `dyn` where only the data can tell. */
  readonly type: string
  readonly cost: Cost
}

/** Functions and methods a condition may call, and with how many arguments (besides the receiver). */
const FUNCTIONS: Readonly<Record<string, readonly number[]>> = {
  has: [1],
  size: [1],
  int: [1],
  double: [1],
  string: [1],
  bool: [1],
  dyn: [1],
  timestamp: [1],
  duration: [1],
  cidr: [1],
}
const METHODS: Readonly<Record<string, readonly number[]>> = {
  size: [0],
  startsWith: [1],
  endsWith: [1],
  contains: [1],
  containsIP: [1],
  getFullYear: [0],
  getMonth: [0],
  getDate: [0],
  getDayOfMonth: [0],
  getDayOfWeek: [0],
  getHours: [0],
  getMinutes: [0],
  getSeconds: [0],
  getMilliseconds: [0],
}
/** Comprehensions: one body, or (`map`) a filter and a body, after the variable. */
export const COMPREHENSIONS: Readonly<Record<string, readonly number[]>> = {
  all: [2],
  exists: [2],
  exists_one: [2],
  filter: [2],
  map: [2, 3],
}

/** Why a well-known function is missing, for whoever looks for it. */
const REFUSED_FUNCTIONS: Readonly<Record<string, string>> = {
  matches: 'a regular expression can take time without bound; use startsWith, endsWith, contains or a list',
  getDayOfYear: 'it depends on the time zone of the machine',
}

/** Roots whose attributes are never null: see `facts.ts`. */
const DATA_ROOTS = new Set(['subject', 'resource', 'context'])

/**
 * An environment with these variables and nothing else from outside.
 *
 * @param variables - name to CEL type, such as `{ subject: 'map', action: 'string' }`
 */
export function celEnvironment(variables: Readonly<Record<string, string>>): Environment {
  const environment = new Environment({
    // A list of mixed values is only a list of dyn; the specification allows it.
    homogeneousAggregateLiterals: false,
    limits: {
      maxAstNodes: MAX_NODES,
      maxDepth: MAX_DEPTH,
      maxListElements: MAX_LITERAL_ITEMS,
      maxMapEntries: MAX_LITERAL_ITEMS,
      maxCallArguments: 3,
    },
  })
  // Named after the network extension of the CEL specification (network_ext.textproto).
  environment.registerType('net.CIDR', Network)
  environment.registerFunction('cidr(string): net.CIDR', (text: string) => network(text), { async: false })
  environment.registerFunction(
    'net.CIDR.containsIP(string): bool',
    (range: Network, address: string) => range.contains(address),
    { async: false },
  )
  for (const [name, type] of Object.entries(variables)) environment.registerVariable(name, type)
  return environment
}

/**
 * Parses, gates and type-checks one expression.
 *
 * @param variables - what `environment` knows by name; anything else is refused
 * @throws ExpressionError naming what is refused
 */
export function parseExpression(environment: Environment, variables: ReadonlySet<string>, text: string): Expression {
  if (text.length > MAX_SOURCE_LENGTH) {
    throw new ExpressionError(`a condition has at most ${MAX_SOURCE_LENGTH} characters, this one has ${text.length}`)
  }
  const { source, usesNot } = plainCel(text)
  let evaluate: ParseResult
  try {
    evaluate = environment.parse(source)
  } catch (error) {
    throw new ExpressionError(celMessage(error, source), { cause: error })
  }
  const cost = gate(evaluate.ast, variables, usesNot)
  const checked = evaluate.check()
  if (!checked.valid) throw new ExpressionError(celMessage(checked.error, source), { cause: checked.error })
  return { source, ast: evaluate.ast, evaluate, type: checked.type ?? 'dyn', cost }
}

const TOKEN =
  /(?:"""(?:\\[^]|(?!""")[^])*"""|'''(?:\\[^]|(?!''')[^])*'''|"(?:\\[^]|[^"\\])*"|'(?:\\[^]|[^'\\])*')|\/\/[^\n]*|[A-Za-z_]\w*|[^]/y
const DATE_ONLY = /timestamp\(\s*(["'])(\d{4}-\d\d-\d\d)\1\s*\)/y

/**
 * Two things people write that are not CEL: `AND`, `OR` and `NOT` (outside strings: `"R AND D"` stays), and a day as a
 * timestamp, `timestamp("2024-01-01")`, which means its first moment in UTC.
 */
function plainCel(text: string): { source: string; usesNot: boolean } {
  let source = ''
  let usesNot = false
  let before = ''
  TOKEN.lastIndex = 0
  for (let at = 0; at < text.length;) {
    TOKEN.lastIndex = at
    const token = TOKEN.exec(text)?.[0] ?? ''
    let written = token
    let length = token.length
    if (before !== '.') {
      if (token === 'AND') written = '&&'
      else if (token === 'OR') written = '||'
      else if (token === 'NOT') {
        written = '!'
        usesNot = true
      } else if (token === 'timestamp') {
        DATE_ONLY.lastIndex = at
        const match = DATE_ONLY.exec(text)
        if (match !== null) {
          written = `timestamp("${match[2]}T00:00:00Z")`
          length = match[0].length
        }
      }
    }
    source += written
    at += length
    if (token.trim() !== '') before = token
  }
  return { source, usesNot }
}

const RFC3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)$/
const RESERVED_KEYS = new Set(['__proto__', 'constructor', 'prototype'])

/** Walks the tree once: refuses what cannot be bounded, adds up what can. */
function gate(root: ASTNode, variables: ReadonlySet<string>, usesNot: boolean): Cost {
  const cost: Cost = {
    fixed: 0,
    perItem: 0,
    perPair: 0,
    searches: 0,
    searchesPerItem: 0,
    growth: 1,
    longestList: 0,
    longestText: 0,
  }
  const local = new Set<string>()

  function spend(inBody: boolean, perList: boolean): void {
    if (inBody) cost.perItem += 1
    else cost.fixed += 1
    if (perList && inBody) cost.perPair += 1
    else if (perList) cost.perItem += 1
  }

  function call(node: ASTNode, name: string, count: number, known: Readonly<Record<string, readonly number[]>>): void {
    if (Object.hasOwn(known, name) && known[name]?.includes(count)) return
    if (Object.hasOwn(known, name)) refuse(node, `${name}() does not take ${count} arguments here`)
    const why = Object.hasOwn(REFUSED_FUNCTIONS, name) ? `: ${REFUSED_FUNCTIONS[name]}` : ''
    refuse(node, `there is no function ${name}()${why}`)
  }

  function comprehension(node: ASTNode, name: string, range: ASTNode, args: readonly ASTNode[], inBody: boolean): void {
    call(node, name, args.length, COMPREHENSIONS)
    if (inBody) refuse(node, `${name}() inside another comprehension: its cost would be a product of two lists`)
    const variable = args[0]
    if (variable?.op !== 'id') refuse(node, `${name}() needs the name of a variable first`)
    if (variables.has(variable.args)) refuse(node, `${name}() cannot call its variable '${variable.args}'`)
    visit(range, inBody)
    local.add(variable.args)
    cost.perItem += 1
    for (const body of args.slice(1)) visit(body, true)
    local.delete(variable.args)
  }

  function visit(node: ASTNode, inBody: boolean): void {
    switch (node.op) {
      case 'value':
        spend(inBody, false)
        if (typeof node.args === 'string') cost.longestText = Math.max(cost.longestText, node.args.length)
        else if (typeof node.args === 'object' && node.args !== null) {
          refuse(node, 'bytes and unsigned numbers have no place in a condition')
        } else if (typeof node.args === 'bigint' && node.args > 2n ** 63n)
          refuse(node, 'an integer has at most 64 bits')
        return
      case 'id':
        spend(inBody, false)
        if (!variables.has(node.args) && !local.has(node.args)) {
          refuse(node, `nothing is called '${node.args}' here; there are ${[...variables].join(', ')}`)
        }
        return
      case '.':
        spend(inBody, false)
        visit(node.args[0], inBody)
        return
      case 'call': {
        const [name, args] = node.args
        call(node, name, args.length, FUNCTIONS)
        spend(inBody, false)
        if (name === 'timestamp') requireTimestamp(args[0])
        for (const argument of args) visit(argument, inBody)
        return
      }
      case 'rcall': {
        const [name, receiver, args] = node.args
        if (Object.hasOwn(COMPREHENSIONS, name)) {
          comprehension(node, name, receiver, args, inBody)
          return
        }
        call(node, name, args.length, METHODS)
        spend(inBody, false)
        if (name === 'contains' && inBody) cost.searchesPerItem += 1
        else if (name === 'contains') cost.searches += 1
        visit(receiver, inBody)
        for (const argument of args) visit(argument, inBody)
        return
      }
      case 'list':
        spend(inBody, false)
        cost.longestList = Math.max(cost.longestList, node.args.length)
        for (const item of node.args) visit(item, inBody)
        return
      case 'map': {
        spend(inBody, false)
        const keys = new Set<string>()
        for (const [key, value] of node.args) {
          if (key.op !== 'value' || typeof key.args !== 'string' || RESERVED_KEYS.has(key.args)) {
            refuse(key, 'the keys of a map are plain strings')
          }
          if (keys.has(key.args)) refuse(key, `the key "${key.args}" is there twice`)
          keys.add(key.args)
          visit(value, inBody)
        }
        cost.longestList = Math.max(cost.longestList, keys.size)
        return
      }
      case '==':
      case '!=':
        if (isNull(node.args[0]) || isNull(node.args[1])) refuseNull(node, node.args[0], node.args[1])
        if (usesNot && (node.args[0].op === '!_' || node.args[1].op === '!_')) {
          refuse(node, 'NOT binds tighter than a comparison; write NOT (a == b)')
        }
        spend(inBody, true)
        visit(node.args[0], inBody)
        visit(node.args[1], inBody)
        return
      case '+':
        cost.growth += 1
        spend(inBody, true)
        visit(node.args[0], inBody)
        visit(node.args[1], inBody)
        return
      case 'in':
        spend(inBody, true)
        visit(node.args[0], inBody)
        visit(node.args[1], inBody)
        return
      case '[]':
      case '-':
      case '*':
      case '/':
      case '%':
      case '<':
      case '<=':
      case '>':
      case '>=':
      case '&&':
      case '||':
        spend(inBody, false)
        visit(node.args[0], inBody)
        visit(node.args[1], inBody)
        return
      case '?:':
        spend(inBody, false)
        for (const part of node.args) visit(part, inBody)
        return
      case '!_':
      case '-_':
        spend(inBody, false)
        visit(node.args, inBody)
        return
      case '.?':
      case '[?]':
        refuse(node, 'optional values are not supported; use has()')
        return
      default:
        refuse(node, 'this is not understood')
    }
  }

  visit(root, false)
  return cost
}

function requireTimestamp(argument: ASTNode | undefined): void {
  if (argument?.op !== 'value' || typeof argument.args !== 'string') return
  // The library reads with `new Date`, which takes much that is no timestamp, and some of it in the machine's zone.
  if (!RFC3339.test(argument.args) || Number.isNaN(Date.parse(argument.args))) {
    refuse(argument, `'${argument.args}' is no timestamp (RFC 3339), such as 2024-01-01T00:00:00Z`)
  }
}

function isNull(node: ASTNode): boolean {
  return node.op === 'value' && node.args === null
}

/** Null counts as missing, so a comparison with null would always be an error, and a policy with it a trap. */
function refuseNull(node: ASTNode, left: ASTNode, right: ASTNode): void {
  const path = attributePath(isNull(left) ? right : left)
  if (path !== undefined && DATA_ROOTS.has(path[0] ?? '')) {
    refuse(node, `null counts as missing: ask has(${path.join('.')}) or !has(${path.join('.')})`)
  }
}

/** `resource.a.b` as `['resource', 'a', 'b']`; undefined for anything that is not such a path. */
export function attributePath(node: ASTNode): string[] | undefined {
  const path: string[] = []
  let at = node
  while (at.op === '.') {
    path.unshift(at.args[1])
    at = at.args[0]
  }
  if (at.op !== 'id') return undefined
  return [at.args, ...path]
}

function refuse(node: ASTNode, why: string): never {
  const excerpt = node.input.slice(node.start, node.end).trim()
  throw new ExpressionError(`${why} (at "${excerpt.length > 60 ? `${excerpt.slice(0, 60)}…` : excerpt}")`)
}

/** What the library says, in one line and with the place: its own messages draw a picture over several lines. */
export function celMessage(error: unknown, source: string): string {
  // Nesting can exhaust the stack before the library's own limit counts it.
  if (error instanceof RangeError && error.message.includes('call stack')) return 'nested too deeply'
  if (error instanceof EvaluationError || error instanceof ParseError) {
    const at = error.range === undefined ? '' : ` (at "${source.slice(error.range.start, error.range.start + 40)}")`
    return `${error.summary}${at}`
  }
  if (error instanceof Error) return 'summary' in error ? String(error.summary) : error.message
  return String(error)
}
