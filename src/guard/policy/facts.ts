/**
 * What conditions get to see of a question. Nothing of the caller's objects reaches the evaluator itself: attributes
 * that a condition reads are copied, own properties only, into plain values of CEL. Whole numbers become integers, so
 * that arithmetic means the same here and in SQL; `null` and `undefined` are left out, which makes them what SQL's NULL
 * is: neither equal nor unequal to anything, and an error to compute with. Sizes are bounded, and every evaluation is
 * paid for before it runs.
 */
import type { Subject } from '../caller.ts'
import type { Resource } from './decision.ts'
import type { Cost } from './expression.ts'

/** Longest list or largest map, in items, that a condition may read. */
export const MAX_ITEMS = 1_000
/** Longest text, in characters. */
export const MAX_TEXT = 65_536
const MAX_VALUE_DEPTH = 8
/** All values of one decision together, in items. */
const MAX_VALUES = 20_000
/** Steps of one decision, all its conditions together; about a hundredth of a second. */
export const MAX_STEPS = 100_000

/** A value too large, too deep or of a kind that has no place in a decision; or a budget used up. */
export class FactsError extends Error {
  override readonly name = 'FactsError'
}

/** What CEL computes with. */
export type CelValue = null | boolean | bigint | number | string | Date | CelValue[] | Map<string, CelValue>

/** What is said when the budget is used up. */
export const SPENT = 'the conditions of this decision cost more than their budget'

const ROOTS = ['subject', 'resource', 'context'] as const
type Root = (typeof ROOTS)[number]

/** An attribute a condition reads, or a whole root that it reads in a way only the data can tell. */
export interface Read {
  readonly root: Root
  /** Absent: all of it. */
  readonly attribute?: string
}

/** The variables of one evaluation. */
export interface Activation {
  readonly subject: Map<string, CelValue>
  readonly resource: Map<string, CelValue>
  readonly context: Map<string, CelValue>
  readonly action: string
}

/** Searching texts up to this long costs less than a step. */
const SHORT_TEXT = 40

interface Size {
  readonly items: number
  readonly text: number
}

const NOTHING: Readonly<Record<string, unknown>> = Object.freeze({})

/** The facts of one question, copied as conditions ask for them. */
export class Facts {
  readonly subject: Subject
  readonly action: string
  readonly resource: Resource
  readonly context: Readonly<Record<string, unknown>>
  #activation: Activation | undefined
  // Only of attributes that are long, which few are.
  #sizes: Map<string, Size> | undefined
  #complete = ''
  #steps = MAX_STEPS
  #values = MAX_VALUES
  // Of the attribute that is being copied.
  #longestList = 0
  #longestText = 0

  constructor(
    subject: Subject,
    action: string,
    resource: Resource,
    context: Readonly<Record<string, unknown>> | undefined,
  ) {
    this.subject = subject
    this.action = action
    this.resource = resource
    this.context = context ?? NOTHING
  }

  /** Takes steps from the budget; false when it is spent. */
  spend(steps: number): boolean {
    this.#steps -= steps
    return this.#steps >= 0
  }

  /**
   * Copies what a condition reads and takes its cost from the budget.
   *
   * @returns the variables for the evaluator
   * @throws FactsError when a value is beyond its bounds, or the budget is spent
   */
  prepare(reads: readonly Read[], cost: Cost): Activation {
    if (this.#steps < 0) throw new FactsError(SPENT)
    this.#activation ??= { subject: new Map(), resource: new Map(), context: new Map(), action: this.action }
    const activation = this.#activation
    for (const { root, attribute } of reads) {
      if (attribute === undefined) this.#copyAll(root, activation[root])
      else if (!activation[root].has(attribute)) this.#copyAttribute(root, attribute, activation[root])
    }
    let steps = cost.fixed
    if (this.#sizes !== undefined || cost.longestList > 0 || cost.searches > 0 || cost.searchesPerItem > 0) {
      steps += this.#costOfSizes(reads, cost)
    }
    if (!this.spend(steps)) throw new FactsError(SPENT)
    return activation
  }

  /** What the lengths of lists and texts add to the fixed cost. */
  #costOfSizes(reads: readonly Read[], cost: Cost): number {
    let items = cost.longestList
    let text = cost.longestText
    for (const { root, attribute } of reads) {
      for (const [name, size] of this.#sizes ?? []) {
        if (attribute === undefined ? !name.startsWith(`${root}.`) : name !== `${root}.${attribute}`) continue
        items = Math.max(items, size.items)
        text = Math.max(text, size.text)
      }
    }
    items *= cost.growth
    text *= cost.growth
    // Searching a text for another takes the product of their lengths at worst; measured, 2,000 products are a step.
    const searching = ((cost.searches + cost.searchesPerItem * items) * text * text) / 2_000
    return items * (cost.perItem + items * cost.perPair) + searching
  }

  #copyAll(root: Root, target: Map<string, CelValue>): void {
    if (this.#complete.includes(root)) return
    const names = Object.keys(this[root])
    this.#countItems(names.length)
    for (const name of names) if (!target.has(name)) this.#copyAttribute(root, name, target)
    this.#remember(`${root}.`, { items: names.length, text: 0 })
    this.#complete += root
  }

  #copyAttribute(root: Root, name: string, target: Map<string, CelValue>): void {
    const from = this[root]
    // Own properties only: a condition must never find `constructor` or anything else that comes with every object.
    if (!Object.hasOwn(from, name)) return
    this.#longestList = 0
    this.#longestText = 0
    const value = this.#copy(from[name], 0)
    if (value === undefined) return
    target.set(name, value)
    if (this.#longestList > 0 || this.#longestText > SHORT_TEXT) {
      this.#remember(`${root}.${name}`, { items: this.#longestList, text: this.#longestText })
    }
  }

  #remember(name: string, size: Size): void {
    this.#sizes ??= new Map()
    this.#sizes.set(name, size)
  }

  #copy(value: unknown, depth: number): CelValue | undefined {
    if (typeof value === 'string') {
      if (value.length > MAX_TEXT) throw new FactsError(`a text of ${value.length} characters; ${MAX_TEXT} are allowed`)
      if (value.length > this.#longestText) this.#longestText = value.length
      return value
    }
    if (typeof value === 'boolean') return value
    if (typeof value === 'number') {
      // JSON does not tell 2 from 2.0; beyond 2^53 a number is no longer exact, so it is not taken for an integer.
      if (Number.isSafeInteger(value)) return BigInt(value)
      return Number.isFinite(value) ? value : undefined
    }
    if (typeof value === 'bigint') {
      if (BigInt.asIntN(64, value) !== value) throw new FactsError('an integer of more than 64 bits')
      return value
    }
    if (value === null || value === undefined) return undefined
    if (typeof value !== 'object') throw new FactsError(`a ${typeof value} is no attribute`)
    if (value instanceof Date) return Number.isNaN(value.getTime()) ? undefined : value
    if (depth === MAX_VALUE_DEPTH) throw new FactsError(`an attribute nested more than ${MAX_VALUE_DEPTH} levels deep`)
    if (Array.isArray(value) || value instanceof Set) return this.#copyList(value, depth)
    return this.#copyMap(value, depth)
  }

  #copyList(list: readonly unknown[] | ReadonlySet<unknown>, depth: number): CelValue[] {
    this.#countItems(Array.isArray(list) ? list.length : (list as ReadonlySet<unknown>).size)
    const copy: CelValue[] = []
    for (const item of list) {
      const value = this.#copy(item, depth + 1)
      if (value !== undefined) copy.push(value)
    }
    return copy
  }

  #copyMap(object: object, depth: number): Map<string, CelValue> {
    const copy = new Map<string, CelValue>()
    const names = Object.keys(object)
    this.#countItems(names.length)
    for (const name of names) {
      const value = this.#copy((object as Record<string, unknown>)[name], depth + 1)
      if (value !== undefined) copy.set(name, value)
    }
    return copy
  }

  #countItems(count: number): void {
    if (count > MAX_ITEMS) {
      // Looking at it was not free, and the next condition would look again.
      this.spend(count)
      throw new FactsError(`a list of ${count} items; ${MAX_ITEMS} are allowed`)
    }
    this.#values -= count
    if (this.#values < 0) throw new FactsError(`more than ${MAX_VALUES} values in one decision`)
    if (count > this.#longestList) this.#longestList = count
  }
}
