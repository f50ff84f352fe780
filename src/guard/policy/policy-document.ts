/**
 * A policy file, read strictly: YAML 1.2 without anchors, aliases and tags, no field that is not known, no id twice,
 * every refusal with file, line and column. What comes out is data that needs no second look: patterns are patterns and
 * conditions are conditions.
 *
 * A file holds `policies:`, and if wanted `roles:` (role → resource type → actions, each cell an allow policy of its
 * own) and `tests:` (questions with the answers they must get).
 */
import { isAlias, isMap, isScalar, isSeq, LineCounter, parseDocument } from 'yaml'
import type { ParsedNode } from 'yaml'
import { parseCondition } from './condition.ts'
import type { Condition } from './condition.ts'
import { ExpressionError } from './expression.ts'
import { actionPattern, PatternError, resourcePattern, subjectPattern } from './patterns.ts'
import type { NamePattern, ResourcePattern, SubjectPattern } from './patterns.ts'
import { PolicyError } from './policy-error.ts'
import type { PolicyPosition } from './policy-error.ts'
import { residualTemplate } from './residual.ts'
import type { Template } from './residual.ts'

/** Largest policy file, in bytes (characters, which is never more). */
export const MAX_FILE_LENGTH = 4 * 1024 * 1024
/** Most policies in one set, those of `roles:` included. */
export const MAX_POLICIES = 20_000

/** One policy, read. */
export interface Policy {
  readonly id: string
  readonly description: string | undefined
  readonly effect: 'allow' | 'deny'
  readonly subjects: readonly SubjectPattern[]
  readonly actions: readonly NamePattern[]
  readonly resources: readonly ResourcePattern[]
  readonly condition: Condition | undefined
  /** How it takes part in lists; undefined where `filterable: false` says that it does not. */
  readonly template: Template | undefined
  readonly filterable: boolean
  readonly position: PolicyPosition
}

/** One entry of `tests:`. */
export interface PolicyTest {
  readonly name: string
  readonly subject: Readonly<Record<string, unknown>>
  readonly action: string
  readonly resource: Readonly<Record<string, unknown>>
  readonly context: Readonly<Record<string, unknown>>
  readonly expect: 'allow' | 'deny'
  /** The policy that must have decided. */
  readonly policy: string | undefined
  readonly position: PolicyPosition
}

/** A policy file, read. */
export interface PolicyDocument {
  readonly policies: readonly Policy[]
  readonly tests: readonly PolicyTest[]
}

const POLICY_FIELDS = ['id', 'description', 'effect', 'subjects', 'actions', 'resources', 'condition', 'filterable']
const TEST_FIELDS = ['name', 'subject', 'action', 'resource', 'context', 'expect', 'policy']
const TOP_FIELDS = ['policies', 'roles', 'tests']

/**
 * Reads a policy file.
 *
 * @param text - the file's content
 * @param file - its name, for error messages
 * @throws PolicyError with file, line and column
 */
export function readPolicyDocument(text: string, file: string): PolicyDocument {
  return new Reader(text, file).document()
}

class Reader {
  readonly #file: string
  readonly #lines = new LineCounter()
  readonly #root: ParsedNode | null
  // Generated policies repeat the same few conditions; parsing each once makes a thousand of them load quickly.
  readonly #conditions = new Map<string, Condition>()

  constructor(text: string, file: string) {
    this.#file = file
    if (text.length > MAX_FILE_LENGTH) {
      throw new PolicyError(`a policy file has at most ${MAX_FILE_LENGTH} characters, this one has ${text.length}`, {
        position: { file, line: 1, column: 1 },
      })
    }
    this.#root = this.#parse(text)
  }

  #parse(text: string): ParsedNode | null {
    try {
      const document = parseDocument(text, {
        version: '1.2',
        schema: 'core',
        merge: false,
        strict: true,
        uniqueKeys: true,
        prettyErrors: false,
        // 'silent' would also keep quiet about a second document in the file.
        logLevel: 'error',
        lineCounter: this.#lines,
      })
      const [problem] = [...document.errors, ...document.warnings]
      if (problem !== undefined) throw this.#error(problem.pos[0], problem.message.replaceAll(/\s+/g, ' '))
      return document.contents
    } catch (error) {
      // The parser is recursive: a few thousand brackets exhaust the stack before any limit is seen.
      if (error instanceof RangeError) {
        throw new PolicyError('nested too deeply', { position: { file: this.#file, line: 1, column: 1 }, cause: error })
      }
      throw error
    }
  }

  document(): PolicyDocument {
    const fields = this.#fields(this.#root, 'a policy file', TOP_FIELDS, [])
    const policies: Policy[] = []
    const roles = fields.get('roles')
    if (roles !== undefined) policies.push(...this.#roles(roles))
    const list = fields.get('policies')
    if (list !== undefined) {
      for (const item of this.#sequence(list, 'policies')) policies.push(this.#policy(item))
    }
    if (list === undefined && roles === undefined) throw this.#error(0, 'a policy file has policies: or roles:')
    if (policies.length > MAX_POLICIES) throw this.#error(0, `more than ${MAX_POLICIES} policies`)
    const seen = new Map<string, Policy>()
    for (const policy of policies) {
      const other = seen.get(policy.id)
      if (other !== undefined) {
        throw new PolicyError(`this id is already taken in line ${other.position.line}`, {
          position: policy.position,
          policy: policy.id,
        })
      }
      seen.set(policy.id, policy)
    }
    const tests = fields.get('tests')
    return {
      policies,
      tests: tests === undefined ? [] : this.#sequence(tests, 'tests').map((item) => this.#test(item, seen)),
    }
  }

  /** The role table: role → resource type → actions, each cell an allow policy named after it. */
  #roles(node: ParsedNode): Policy[] {
    const policies: Policy[] = []
    for (const [role, types] of this.#entries(node, 'roles')) {
      for (const [type, actions] of this.#entries(types, `role '${role}'`)) {
        const id = `role:${role}/${type}`
        policies.push({
          id,
          description: undefined,
          effect: 'allow',
          subjects: [this.#pattern(types, id, () => subjectPattern(`role:${role}`))],
          actions: this.#texts(actions, 'actions').map(([text, at]) =>
            this.#pattern(at, id, () => actionPattern(text)),
          ),
          resources: [this.#pattern(actions, id, () => resourcePattern(type))],
          condition: undefined,
          template: undefined,
          filterable: true,
          position: this.#position(actions),
        })
      }
    }
    return policies
  }

  #policy(node: ParsedNode): Policy {
    const fields = this.#fields(node, 'a policy', POLICY_FIELDS, ['id', 'effect', 'subjects', 'actions', 'resources'])
    const need = (name: string): ParsedNode => fields.get(name) ?? node
    const id = this.#text(need('id'), 'id')
    const effect = this.#text(need('effect'), 'effect')
    if (effect !== 'allow' && effect !== 'deny') {
      throw this.#error(need('effect'), `effect is allow or deny, not '${effect}'`, id)
    }
    const patterns = <T>(name: string, read: (text: string) => T): T[] =>
      this.#texts(need(name), name).map(([text, at]) => this.#pattern(at, id, () => read(text)))
    const filterable = fields.has('filterable') ? this.#flag(need('filterable'), 'filterable') : true
    const description = fields.get('description')
    const source = fields.get('condition')
    const condition = source === undefined ? undefined : this.#condition(source, id)
    return {
      id,
      description: description === undefined ? undefined : this.#text(description, 'description'),
      effect,
      subjects: patterns('subjects', subjectPattern),
      actions: patterns('actions', actionPattern),
      resources: patterns('resources', resourcePattern),
      condition,
      template: condition === undefined || !filterable ? undefined : this.#template(condition, need('condition'), id),
      filterable,
      position: this.#position(node),
    }
  }

  #condition(node: ParsedNode, policy: string): Condition {
    const text = this.#text(node, 'condition')
    const known = this.#conditions.get(text)
    if (known !== undefined) return known
    try {
      const condition = parseCondition(text)
      this.#conditions.set(text, condition)
      return condition
    } catch (error) {
      if (error instanceof ExpressionError) throw this.#error(node, error.message, policy, error)
      throw error
    }
  }

  #template(condition: Condition, node: ParsedNode, policy: string): Template {
    try {
      return residualTemplate(condition)
    } catch (error) {
      if (!(error instanceof ExpressionError)) throw error
      throw this.#error(
        node,
        `${error.message}; rewrite it, or keep it out of lists with filterable: false`,
        policy,
        error,
      )
    }
  }

  #test(node: ParsedNode, policies: ReadonlyMap<string, Policy>): PolicyTest {
    const fields = this.#fields(node, 'a test', TEST_FIELDS, ['name', 'subject', 'action', 'resource', 'expect'])
    const need = (name: string): ParsedNode => fields.get(name) ?? node
    const expect = this.#text(need('expect'), 'expect')
    if (expect !== 'allow' && expect !== 'deny')
      throw this.#error(need('expect'), `expect is allow or deny, not '${expect}'`)
    const policy = fields.has('policy') ? this.#text(need('policy'), 'policy') : undefined
    if (policy !== undefined && !policies.has(policy))
      throw this.#error(need('policy'), `there is no policy '${policy}'`)
    const data = (name: string): Record<string, unknown> => this.#data(need(name), name)
    return {
      name: this.#text(need('name'), 'name'),
      subject: data('subject'),
      action: this.#text(need('action'), 'action'),
      resource: data('resource'),
      context: fields.has('context') ? data('context') : {},
      expect,
      policy,
      position: this.#position(node),
    }
  }

  #data(node: ParsedNode, name: string): Record<string, unknown> {
    if (!isMap(node)) throw this.#error(node, `${name} is a mapping`)
    this.#plain(node, 0)
    return Object.fromEntries(this.#entries(node, name).map(([key, value]) => [key, plainValue(value)]))
  }

  /** Refuses anchors, aliases and tags wherever they hide. */
  #plain(node: ParsedNode | null, depth: number): void {
    if (node === null) return
    if (depth > 32) throw this.#error(node, 'nested too deeply')
    if (isAlias(node)) throw this.#error(node, `aliases are not allowed (*${node.source})`)
    if (node.anchor !== undefined) throw this.#error(node, `anchors are not allowed (&${node.anchor})`)
    if (node.tag !== undefined) throw this.#error(node, `tags are not allowed (${node.tag})`)
    if (isMap(node)) {
      for (const pair of node.items) {
        this.#plain(pair.key, depth + 1)
        this.#plain(pair.value, depth + 1)
      }
    } else if (isSeq(node)) {
      for (const item of node.items) this.#plain(item, depth + 1)
    }
  }

  #fields(
    node: ParsedNode | null,
    what: string,
    known: readonly string[],
    required: readonly string[],
  ): Map<string, ParsedNode> {
    if (node === null) throw this.#error(0, `${what} is empty`)
    const fields = new Map(this.#entries(node, what))
    for (const [name, value] of fields) {
      if (!known.includes(name))
        throw this.#error(value, `${what} has no field '${name}'; there are ${known.join(', ')}`)
    }
    for (const name of required) if (!fields.has(name)) throw this.#error(node, `${what} needs '${name}'`)
    return fields
  }

  #entries(node: ParsedNode, what: string): [string, ParsedNode][] {
    if (!isMap(node)) throw this.#error(node, `${what} is a mapping of names`)
    this.#undecorated(node)
    return node.items.map(({ key, value }) => {
      const name = this.#text(key, `a name in ${what}`)
      if (value === null) throw this.#error(key, `'${name}' has no value`)
      return [name, value]
    })
  }

  #sequence(node: ParsedNode, what: string): ParsedNode[] {
    if (!isSeq(node)) throw this.#error(node, `${what} is a list`)
    this.#undecorated(node)
    return node.items
  }

  #texts(node: ParsedNode, what: string): [string, ParsedNode][] {
    const items = this.#sequence(node, what)
    if (items.length === 0) throw this.#error(node, `${what} is empty; nothing would ever match`)
    return items.map((item) => [this.#text(item, `an entry of ${what}`), item])
  }

  #text(node: ParsedNode, what: string): string {
    this.#undecorated(node)
    if (!isScalar(node) || typeof node.value !== 'string') throw this.#error(node, `${what} is a text; quote it`)
    if (node.value.trim() === '') throw this.#error(node, `${what} is empty`)
    return node.value
  }

  #flag(node: ParsedNode, what: string): boolean {
    if (!isScalar(node) || typeof node.value !== 'boolean') throw this.#error(node, `${what} is true or false`)
    this.#undecorated(node)
    return node.value
  }

  #undecorated(node: ParsedNode): void {
    if (isAlias(node)) throw this.#error(node, 'aliases are not allowed')
    if (node.anchor !== undefined) throw this.#error(node, `anchors are not allowed (&${node.anchor})`)
    // The parser notes a tag on a node only when the file wrote one.
    if (node.tag !== undefined) throw this.#error(node, `tags are not allowed (${node.tag})`)
  }

  #pattern<T>(node: ParsedNode, policy: string, read: () => T): T {
    try {
      return read()
    } catch (error) {
      if (error instanceof PatternError) throw this.#error(node, error.message, policy, error)
      throw error
    }
  }

  #position(at: ParsedNode | number): PolicyPosition {
    const { line, col } = this.#lines.linePos(typeof at === 'number' ? at : at.range[0])
    return { file: this.#file, line: Math.max(line, 1), column: Math.max(col, 1) }
  }

  #error(at: ParsedNode | number, summary: string, policy?: string, cause?: unknown): PolicyError {
    return new PolicyError(summary, {
      position: this.#position(at),
      ...(policy === undefined ? {} : { policy }),
      ...(cause === undefined ? {} : { cause }),
    })
  }
}

/** A test's data as plain values; numbers, booleans and nulls keep their kind. */
function plainValue(node: ParsedNode | null): unknown {
  if (node === null) return null
  if (isMap(node)) {
    return Object.fromEntries(
      node.items.map(({ key, value }) => [String(isScalar(key) ? key.value : key), plainValue(value)]),
    )
  }
  if (isSeq(node)) return node.items.map((item) => plainValue(item))
  return isScalar(node) ? node.value : null
}
