/**
 * Policy decisions beside CASL, casbin and Cedar, and beside the same rules written by hand as indexed functions, which
 * is as fast as JavaScript gets. Everybody answers the same questions from the same policies, and every answer is
 * compared before anything is timed. CPU time decides, in rounds that alternate between the candidates; the last line
 * is JSON.
 *
 *     node bench/policy.ts
 */
import { createMongoAbility, subject as caslSubject } from '@casl/ability'
import type { MongoAbility, RawRuleOf } from '@casl/ability'
import * as cedar from '@cedar-policy/cedar-wasm/nodejs'
import type { CedarValueJson } from '@cedar-policy/cedar-wasm/nodejs'
import { newEnforcer, newModelFromString, StringAdapter } from 'casbin'
import type { Subject } from '../src/guard/caller.ts'
import { loadPolicies } from '../src/guard/policy/policies.ts'
import type { Resource } from '../src/guard/policy/policies.ts'

interface Caller extends Subject {
  readonly type: 'user'
  readonly id: string
  readonly roles: readonly string[]
  readonly groups: readonly string[]
  readonly department: string
  readonly seniority: number
  readonly clearance: number
  readonly projects: string[]
}

interface Thing extends Resource {
  readonly type: string
  readonly id: string
  readonly owner: string
  readonly department: string
  readonly sensitivity: number
  readonly project: string
}

type Condition = 'none' | 'owner' | 'department' | 'senior' | 'clearance' | 'project'

interface Rule {
  readonly id: string
  readonly effect: 'allow' | 'deny'
  readonly who: string
  readonly action: string
  readonly type: string
  readonly condition: Condition
}

interface Question {
  readonly subject: Caller
  readonly action: string
  readonly resource: Thing
}

interface Candidate {
  readonly name: string
  /** Questions asked in one round: fewer of the slow ones. */
  readonly questions: number
  decide(question: Question): boolean
}

const QUESTIONS = 10_000
const ROUNDS = Number(process.env['BENCH_ROUNDS'] ?? 7)
const TYPES = Array.from({ length: 20 }, (_, index) => `type${index}`)
const ROLES = Array.from({ length: 50 }, (_, index) => `role${index}`)
const ACTIONS = ['read', 'write', 'delete', 'share']
const DEPARTMENTS = ['ml', 'ops', 'sales', 'legal']
const PROJECTS = ['alpha', 'beta', 'gamma', 'delta', 'epsilon']

let state = 42
function random(limit: number): number {
  state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
  return Math.floor((state / 4_294_967_296) * limit)
}
function pick<T>(items: readonly T[]): T {
  return items[random(items.length)] as T
}

const SEED_RULES: Rule[] = [
  { id: 'admin-full-access', effect: 'allow', who: 'role:admin', action: '*', type: '*', condition: 'none' },
  { id: 'owner-full-access', effect: 'allow', who: 'user:*', action: '*', type: '*', condition: 'owner' },
  { id: 'department-read-access', effect: 'allow', who: 'user:*', action: 'read', type: '*', condition: 'department' },
  { id: 'senior-write-access', effect: 'allow', who: 'user:*', action: 'write', type: '*', condition: 'senior' },
]

function rules(count: number): Rule[] {
  const more = Array.from({ length: count - SEED_RULES.length }, (_, index): Rule => {
    const effect = index % 10 === 0 ? 'deny' : 'allow'
    const condition = pick<Condition>(
      effect === 'deny' ? ['clearance', 'project'] : ['none', 'department', 'senior', 'clearance', 'project'],
    )
    return {
      id: `rule-${index}`,
      effect,
      who: `role:${pick(ROLES)}`,
      action: pick(ACTIONS),
      type: pick(TYPES),
      condition,
    }
  })
  return [...SEED_RULES, ...more]
}

// The guard freezes a caller and hands in the same one for every request with the same token, as here.
const callers = Array.from({ length: 100 }, (_, index): Caller =>
  Object.freeze({
    type: 'user',
    id: `user${index}`,
    roles: Object.freeze(index % 25 === 0 ? ['admin'] : [pick(ROLES), pick(ROLES), pick(ROLES)]),
    groups: Object.freeze([]),
    department: pick(DEPARTMENTS),
    seniority: random(6),
    clearance: random(5),
    projects: [pick(PROJECTS), pick(PROJECTS)],
  }),
)
const questions = Array.from({ length: QUESTIONS }, (_, index): Question => ({
  subject: pick(callers),
  action: pick(ACTIONS),
  resource: {
    type: pick(TYPES),
    id: `thing${index}`,
    owner: pick(callers).id,
    department: pick(DEPARTMENTS),
    sensitivity: random(5),
    project: pick(PROJECTS),
  },
}))

// --- Latchkey -------------------------------------------------------------------------------------------------------

const CEL: Record<Condition, string | undefined> = {
  none: undefined,
  owner: 'resource.owner == subject.id',
  department: 'resource.department == subject.department',
  senior: 'resource.department == subject.department AND subject.seniority > 2',
  clearance: 'resource.sensitivity > subject.clearance',
  project: 'resource.project in subject.projects',
}

function latchkey(list: readonly Rule[], name: string): Candidate {
  const policies = loadPolicies(
    JSON.stringify({
      policies: list.map(({ id, effect, who, action, type, condition }) => ({
        id,
        effect,
        subjects: [who],
        actions: [action],
        resources: [type],
        ...(CEL[condition] === undefined ? {} : { condition: CEL[condition] }),
      })),
    }),
  )
  return {
    name,
    questions: QUESTIONS,
    decide: ({ subject, action, resource }) => policies.decide({ subject, action, resource }).allowed,
  }
}

// --- by hand --------------------------------------------------------------------------------------------------------

const BY_HAND: Record<Condition, (subject: Caller, resource: Thing) => boolean> = {
  none: () => true,
  owner: (subject, resource) => resource.owner === subject.id,
  department: (subject, resource) => resource.department === subject.department,
  senior: (subject, resource) => resource.department === subject.department && subject.seniority > 2,
  clearance: (subject, resource) => resource.sensitivity > subject.clearance,
  project: (subject, resource) => subject.projects.includes(resource.project),
}

function byHand(list: readonly Rule[]): Candidate {
  type Test = (subject: Caller, resource: Thing) => boolean
  const index = { allow: new Map<string, Map<string, Test[]>>(), deny: new Map<string, Map<string, Test[]>>() }
  for (const rule of list) {
    for (const type of rule.type === '*' ? TYPES : [rule.type]) {
      for (const action of rule.action === '*' ? ACTIONS : [rule.action]) {
        const cell = index[rule.effect].get(`${type} ${action}`) ?? new Map<string, Test[]>()
        index[rule.effect].set(`${type} ${action}`, cell)
        cell.set(rule.who, [...(cell.get(rule.who) ?? []), BY_HAND[rule.condition]])
      }
    }
  }
  const roleKeys = new Map(ROLES.concat('admin').map((role) => [role, `role:${role}`]))
  const any = (effect: 'allow' | 'deny', { subject, action, resource }: Question): boolean => {
    const cell = index[effect].get(`${resource.type} ${action}`)
    if (cell === undefined) return false
    for (const test of cell.get('user:*') ?? []) if (test(subject, resource)) return true
    for (const role of subject.roles) {
      for (const test of cell.get(roleKeys.get(role) ?? '') ?? []) if (test(subject, resource)) return true
    }
    return false
  }
  return {
    name: 'by hand',
    questions: QUESTIONS,
    decide: (question) => !any('deny', question) && any('allow', question),
  }
}

// --- CASL, one ability per caller, kept -------------------------------------------------------------------------------

function casl(list: readonly Rule[], told: boolean): Candidate {
  const conditions: Record<Condition, (subject: Caller) => Record<string, unknown> | undefined | false> = {
    none: () => undefined,
    owner: ({ id }) => ({ owner: id }),
    department: ({ department }) => ({ department }),
    senior: ({ department, seniority }) => (seniority > 2 ? { department } : false),
    clearance: ({ clearance }) => ({ sensitivity: { $gt: clearance } }),
    project: ({ projects }) => ({ project: { $in: projects } }),
  }
  const abilities = new Map<string, MongoAbility>()
  for (const caller of callers) {
    const own = list.filter(({ who }) => who === 'user:*' || caller.roles.some((role) => who === `role:${role}`))
    const raw: RawRuleOf<MongoAbility>[] = []
    // Later rules win in CASL, so the denies come last.
    for (const rule of [...own].sort((a, b) => a.effect.localeCompare(b.effect))) {
      const when = conditions[rule.condition](caller)
      if (when === false) continue
      raw.push({
        action: rule.action === '*' ? 'manage' : rule.action,
        subject: rule.type === '*' ? 'all' : rule.type,
        inverted: rule.effect === 'deny',
        ...(when === undefined ? {} : { conditions: when }),
      })
    }
    abilities.set(caller.id, createMongoAbility(raw, told ? { detectSubjectType: ({ type }) => type as string } : {}))
  }
  // A plain object says what it is by `subject()`, which marks it; a request brings a new one, so a new one is marked.
  // Or the ability is told where the type stands, which is CASL's fastest way.
  return {
    name: told ? 'CASL, told the types' : 'CASL, cached abilities',
    questions: QUESTIONS,
    decide: ({ subject, action, resource }) =>
      abilities.get(subject.id)?.can(action, told ? resource : caslSubject(resource.type, { ...resource })) ?? false,
  }
}

// --- casbin -----------------------------------------------------------------------------------------------------------

const CASBIN_MODEL = `
[request_definition]
r = sub, obj, act
[policy_definition]
p = who, type, act, rule, eft
[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))
[matchers]
m = (p.act == "*" || p.act == r.act) && (p.type == "*" || p.type == r.obj.type) && holds(r.sub, p.who) && eval(p.rule)
`

async function casbin(list: readonly Rule[]): Promise<Candidate> {
  const rule: Record<Condition, string> = {
    none: 'true',
    owner: 'r.obj.owner == r.sub.id',
    department: 'r.obj.department == r.sub.department',
    senior: 'r.obj.department == r.sub.department && r.sub.seniority > 2',
    clearance: 'r.obj.sensitivity > r.sub.clearance',
    project: 'includes(r.sub.projects, r.obj.project)',
  }
  const lines = list.map(
    ({ who, type, action, condition, effect }) => `p, ${who}, ${type}, ${action}, "${rule[condition]}", ${effect}`,
  )
  const enforcer = await newEnforcer(newModelFromString(CASBIN_MODEL), new StringAdapter(lines.join('\n')))
  await enforcer.addFunction(
    'holds',
    (subject: Caller, who: string) => who === 'user:*' || subject.roles.some((role) => who === `role:${role}`),
  )
  await enforcer.addFunction('includes', (items: string[], item: string) => items.includes(item))
  return {
    name: 'casbin',
    questions: list.length > 100 ? 30 : 500,
    decide: ({ subject, action, resource }) => enforcer.enforceSync(subject, resource, action),
  }
}

// --- Cedar ------------------------------------------------------------------------------------------------------------

function cedarCandidate(list: readonly Rule[]): Candidate {
  const when: Record<Condition, string> = {
    none: '',
    owner: 'when { resource.owner == principal.id }',
    department: 'when { resource.department == principal.department }',
    senior: 'when { resource.department == principal.department && principal.seniority > 2 }',
    clearance: 'when { resource.sensitivity > principal.clearance }',
    project: 'when { principal.projects.contains(resource.project) }',
  }
  const text = list.map(({ effect, who, action, type, condition }) => {
    const principal = who === 'user:*' ? 'principal' : `principal in Role::"${who.slice(5)}"`
    const toDo = action === '*' ? 'action' : `action == Action::"${action}"`
    const resource = type === '*' ? 'resource' : `resource is ${type}`
    return `${effect === 'allow' ? 'permit' : 'forbid'}(${principal}, ${toDo}, ${resource}) ${when[condition]};`
  })
  const id = `set-${list.length}`
  const parsed = cedar.preparsePolicySet(id, { staticPolicies: text.join('\n') })
  if (parsed.type !== 'success') throw new Error(JSON.stringify(parsed))
  return {
    name: 'Cedar, preparsed',
    questions: list.length > 100 ? 60 : 500,
    decide: ({ subject, action, resource }) => {
      const { type: _user, roles, groups: _groups, ...attributes } = subject
      const { type, ...fields } = resource
      const principal = { type: 'User', id: subject.id }
      const thing = { type, id: resource.id }
      const answer = cedar.statefulIsAuthorized({
        principal,
        action: { type: 'Action', id: action },
        resource: thing,
        context: {},
        preparsedPolicySetId: id,
        entities: [
          {
            uid: principal,
            attrs: attributes as Record<string, CedarValueJson>,
            parents: roles.map((role) => ({ type: 'Role', id: role })),
          },
          { uid: thing, attrs: fields as Record<string, CedarValueJson>, parents: [] },
        ],
      })
      if (answer.type !== 'success') throw new Error(JSON.stringify(answer))
      return answer.response.decision === 'allow'
    },
  }
}

// --- measuring --------------------------------------------------------------------------------------------------------

/** Microseconds of CPU per decision in one round. */
function measure(candidate: Candidate, repetitions: number): number {
  const asked = questions.slice(0, candidate.questions)
  const before = process.cpuUsage()
  let allowed = 0
  for (let repetition = 0; repetition < repetitions; repetition += 1) {
    for (const question of asked) if (candidate.decide(question)) allowed += 1
  }
  const { user, system } = process.cpuUsage(before)
  if (allowed < 0) throw new Error('unreachable')
  return (user + system) / (asked.length * repetitions)
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN
}

async function run(count: number): Promise<Record<string, number>> {
  const list = rules(count)
  const reference = byHand(list)
  const candidates = [
    reference,
    latchkey(list, 'Latchkey'),
    // The same again: how far the two are apart is what the measurement cannot tell.
    latchkey(list, 'Latchkey again (control)'),
    casl(list, false),
    casl(list, true),
    await casbin(list),
    cedarCandidate(list),
  ]
  let allowed = 0
  for (const candidate of candidates) {
    for (const question of questions.slice(0, candidate.questions)) {
      const answer = candidate.decide(question)
      if (candidate === reference && answer) allowed += 1
      if (answer !== reference.decide(question)) {
        throw new Error(`${candidate.name} answers ${answer}: ${JSON.stringify(question)}`)
      }
    }
  }
  const times = new Map<string, number[]>(candidates.map(({ name }) => [name, []]))
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const candidate of candidates)
      times.get(candidate.name)?.push(measure(candidate, candidate.questions === QUESTIONS ? 30_000 / QUESTIONS : 1))
  }
  const result: Record<string, number> = {}
  const ours = median(times.get('Latchkey') ?? [])
  console.log(
    `\n${count} policies, ${allowed} of ${questions.length} questions allowed; CPU per decision, median of ${ROUNDS} rounds`,
  )
  for (const [name, values] of times) {
    const microseconds = median(values)
    result[name] = Number(microseconds.toFixed(3))
    console.log(
      `  ${name.padEnd(26)} ${microseconds.toFixed(2).padStart(10)} µs   ${Math.round(1e6 / microseconds)
        .toLocaleString('en')
        .padStart(10)}/s   Latchkey is ${(microseconds / ours).toFixed(2)}x as fast`,
    )
  }
  return result
}

const few = await run(4)
const many = await run(1_000)
const ratio = (over: number | undefined, under: number | undefined): number =>
  Number(((over ?? 0) / (under ?? 1)).toFixed(2))
const bars = {
  overCasl: ratio(many['CASL, cached abilities'], many['Latchkey']),
  overCaslToldTypes: ratio(many['CASL, told the types'], many['Latchkey']),
  overByHand: ratio(many['by hand'], many['Latchkey']),
  slowdown: ratio(many['Latchkey'], few['Latchkey']),
  slowdownByHand: ratio(many['by hand'], few['by hand']),
}
console.log(
  `\nat 1,000 policies, times CASL with cached abilities: ${bars.overCasl} (bar: 2); told the types: ${bars.overCaslToldTypes}`,
)
console.log(`1,000 policies, times the time of 4: ${bars.slowdown} (bar: 2); by hand: ${bars.slowdownByHand}`)
console.log(JSON.stringify({ bench: 'policy', few, many, bars, met: bars.overCasl >= 2 && bars.slowdown <= 2 }))
