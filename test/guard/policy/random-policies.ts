/**
 * Random policies, rows and callers for the comparison of lists with decisions. Deliberately full of what goes wrong: missing
 * attributes, nulls, values of the wrong kind, negations of all that. The same seed makes the same sequence.
 */
import type { Subject } from '../../../src/guard/caller.ts'

/** A small generator of random numbers (mulberry32). */
export class Random {
  #state: number

  constructor(seed: number) {
    this.#state = seed >>> 0
  }

  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let t = this.#state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296
  }

  chance(probability: number): boolean {
    return this.next() < probability
  }

  below(limit: number): number {
    return Math.floor(this.next() * limit)
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)] as T
  }

  some<T>(items: readonly T[], most: number): T[] {
    return Array.from({ length: this.below(most + 1) }, () => this.pick(items))
  }
}

const USERS = ['alice', 'bob', 'carol', 'm1']
const DEPARTMENTS = ['ml', 'ops', 'R AND D', '']
const TAGS = ['red', 'green', 'redder', 'm1', '']
const LEVELS = [0, 1, 2, 3, -1, 10]
const SCORES = [0, 0.5, 1, 2.5, 3, -1.25, Number.NaN, Number.POSITIVE_INFINITY, 1e300]
const TIMES = ['2024-01-01T00:00:00.000Z', '2024-06-01T12:30:00.123Z', '2025-01-01T00:00:00.000Z']
const CLASSES = ['public', 'internal', 'secret', 'unheard-of']

/** A row of the table `models`, with its shares. */
export interface ModelRow {
  id: string
  owner: string | null
  department: string | null
  classification: string | null
  level: number | null
  quota: number | null
  score: number | null
  public: boolean | null
  created_at: Date | null
  tags: (string | null)[] | null
  ranks: number[] | null
  shares: { user: string; permission: string | null; level: number | null }[]
}

export function randomRow(random: Random, id: string): ModelRow {
  const orNull = <T>(make: () => T): T | null => (random.chance(0.25) ? null : make())
  return {
    id,
    owner: orNull(() => random.pick(USERS)),
    department: orNull(() => random.pick(DEPARTMENTS)),
    classification: orNull(() => random.pick(CLASSES)),
    level: orNull(() => random.pick(LEVELS)),
    quota: orNull(() => random.pick(LEVELS)),
    score: orNull(() => random.pick(SCORES)),
    public: orNull(() => random.chance(0.5)),
    created_at: orNull(() => new Date(random.pick(TIMES))),
    tags: orNull(() => random.some<string | null>([...TAGS, null], 4)),
    ranks: orNull(() => random.some(LEVELS, 3)),
    shares: random.some(USERS, 3).map((user) => ({
      user,
      permission: orNull(() => random.pick(['read', 'write'])),
      level: orNull(() => random.pick(LEVELS)),
    })),
  }
}

export function randomSubject(random: Random): Subject {
  const attributes: Record<string, unknown> = {}
  const maybe = (name: string, make: () => unknown): void => {
    if (random.chance(0.75)) attributes[name] = make()
    else if (random.chance(0.3)) attributes[name] = null
  }
  maybe('department', () => random.pick(DEPARTMENTS))
  maybe('level', () => random.pick<unknown>([...LEVELS, ...SCORES, 'high']))
  maybe('projects', () => random.some<unknown>([...TAGS, 3, null], 4))
  maybe('limits', () => ({ ml: random.pick(LEVELS), ops: random.pick(LEVELS) }))
  maybe('staff', () => random.chance(0.5))
  // No column of PostgreSQL can hold these; a decision compares them like any other text.
  maybe('odd', () => random.pick(['a\0b', '\ud800', 'red', '']))
  return {
    ...attributes,
    type: random.chance(0.85) ? 'user' : 'client',
    id: random.pick(USERS),
    roles: random.some(['admin', 'viewer'], 2),
    groups: random.some(['team'], 1),
  }
}

export function randomContext(random: Random): Record<string, unknown> {
  const context: Record<string, unknown> = { hour: random.below(24) }
  if (random.chance(0.8)) context['time'] = new Date(random.pick(TIMES))
  if (random.chance(0.8)) context['ip'] = random.pick(['10.1.2.3', '192.0.2.7', 'nonsense'])
  return context
}

type Kind = 'text' | 'whole' | 'number' | 'flag' | 'time'

/** An expression of a kind, nearly always: now and then one of another kind, which a condition has to survive. */
function term(random: Random, kind: Kind, row?: string): string {
  if (random.chance(0.04)) kind = random.pick<Kind>(['text', 'whole', 'number', 'flag', 'time'])
  if (row !== undefined && random.chance(0.6)) {
    if (kind === 'text') return random.pick([`${row}.user`, `${row}.permission`])
    if (kind === 'whole') return `${row}.level`
  }
  switch (kind) {
    case 'text':
      return random.pick([
        'resource.owner',
        'resource.department',
        'resource.id',
        'resource.classification',
        'resource.nowhere',
        'subject.id',
        'subject.department',
        'subject.odd',
        'action',
        '"ml"',
        '"R AND D"',
        '"alice"',
        '""',
        'resource.type',
        '(resource.owner + resource.department)',
        '("m" + resource.id)',
      ])
    case 'whole':
      return random.pick([
        'resource.level',
        'resource.quota',
        'subject.level',
        'context.hour',
        '2',
        '-1',
        'size(resource.tags)',
        'size(resource.owner)',
        'resource.shares.size()',
        'size(subject.projects)',
        '(resource.level + resource.quota)',
        '(resource.level - 3)',
        '(resource.level * resource.quota)',
        '(resource.level / resource.quota)',
        '(resource.quota % resource.level)',
        '(resource.level * 9223372036854775807)',
        '-resource.level',
        '{"public": 0, "internal": 1, "secret": 3}[resource.classification]',
        'subject.limits[resource.department]',
        'int(subject.level)',
        '(resource.public ? resource.level : 2)',
      ])
    case 'number':
      return random.pick(['resource.score', '1.5', '-resource.score', '0.5', 'resource.score'])
    case 'flag':
      return random.pick(['resource.public', 'subject.staff', 'true', 'false', '(resource.level > 1)'])
    default:
      return random.pick([
        'resource.created_at',
        'context.time',
        'timestamp("2024-06-01")',
        'resource.created_at',
        '(context.time - duration("24h"))',
        '(resource.created_at + duration("1h"))',
      ])
  }
}

function comparison(random: Random, row?: string): string {
  const kind = random.pick<Kind>(['text', 'text', 'whole', 'whole', 'number', 'flag', 'time'])
  const operators = kind === 'text' || kind === 'flag' ? ['==', '!='] : ['==', '!=', '<', '<=', '>', '>=']
  // A double attribute may be compared with anything but an int one, which is refused.
  const right =
    kind === 'number' ? random.pick(['1', '2.5', '0.5', 'resource.score', 'subject.level']) : term(random, kind, row)
  return `${term(random, kind, row)} ${random.pick(operators)} ${right}`
}

/** A random condition. */
export function randomCondition(random: Random, depth = 3, row?: string): string {
  if (depth > 0 && random.chance(0.6)) {
    const inner = (): string => randomCondition(random, depth - 1, row)
    switch (random.below(6)) {
      case 0:
      case 1:
        return `(${inner()} && ${inner()})`
      case 2:
      case 3:
        return `(${inner()} || ${inner()})`
      case 4:
        return `!(${inner()})`
      default:
        return `(${inner()} ? ${inner()} : ${inner()})`
    }
  }
  if (row === undefined && random.chance(0.2)) {
    const body = randomCondition(random, 1, 's')
    const each = random.pick(['exists', 'all'])
    switch (random.below(3)) {
      case 0:
        return `resource.shares.${each}(s, ${body})`
      case 1:
        return `resource.tags.${each}(s, ${random.pick(['s == subject.department', 's.startsWith("re")', 's != "red"', 's == resource.owner'])})`
      default:
        return `subject.projects.${each}(s, ${random.pick(['s == resource.department', 's in resource.tags', 's != resource.owner', 's == "red"'])})`
    }
  }
  switch (random.below(9)) {
    case 0:
      return random.pick([
        'has(resource.owner)',
        'has(resource.level)',
        'has(resource.nowhere)',
        'has(subject.department)',
      ])
    case 1:
      return random.pick(['resource.public', 'subject.staff', 'true', 'resource.owner', 'resource.nowhere'])
    case 2:
      return `${term(random, 'text', row)} in ${random.pick(['["ml", "alice", "red"]', 'subject.projects', 'resource.tags', '[]', 'subject.limits', '(resource.tags + ["ml"])', '(resource.public ? subject.projects : ["ml"])'])}`
    case 3:
      return (
        random.pick(['resource.level', 'subject.level', '3']) +
        ' in ' +
        random.pick(['[1, 2, 3]', 'resource.ranks', '[0.5, 2.0]', 'subject.projects'])
      )
    case 4:
      return `${random.pick(['resource.owner', 'resource.department', 'resource.id'])}.${random.pick(['startsWith', 'endsWith', 'contains'])}(${random.pick(['"m"', '"l"', '""', 'subject.id', 'subject.odd', 'resource.department'])})`
    case 5:
      return `cidr("10.0.0.0/8").containsIP(context.ip)`
    default:
      return comparison(random, row)
  }
}

/** A policy file with random policies in it. */
export function randomPolicies(random: Random): string {
  const policies = Array.from({ length: 1 + random.below(5) }, (_, index) => ({
    id: `p${index}`,
    effect: random.chance(0.7) ? 'allow' : 'deny',
    subjects: [
      random.pick(['*', 'user:*', 'client:*', 'user:alice', 'user:bob', 'role:admin', 'role:viewer', 'group:team']),
    ],
    actions: [random.pick(['*', 'read', 'read', 're*', 'write'])],
    resources: [random.pick(['*', 'model', 'model', 'model:*', 'model:m1*', 'model:m3', 'model:m/1/**', 'dataset'])],
    ...(random.chance(0.9) ? { condition: randomCondition(random) } : {}),
  }))
  return JSON.stringify({ policies })
}
