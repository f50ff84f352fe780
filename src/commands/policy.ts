/**
 * `latchkey policy …`: policy files, tried out on the spot. Needs no database and no server: what reads the files and
 * decides is the guard itself, the same as in the services that use them.
 */
import { readFileSync } from 'node:fs'
import type {
  Explanation,
  ImportSource,
  Plan,
  PlainQuestion,
  PolicySet,
  PolicyTestResult,
  Resource,
} from '@latchkey/guard'
import type { AttributeMap } from '@latchkey/guard/kysely'
import { Option, type Command } from 'commander'
import { z } from 'zod'
import {
  CommandFailed,
  parsePair,
  printable,
  printJson,
  printTable,
  repeated,
  UsageError,
  type CommandContext,
  type CommandIo,
} from './command.ts'

/** Loaded when one of these commands runs: it brings a CEL library and a YAML parser, which no other command needs. */
const loadGuard = () => import('@latchkey/guard')

export function addPolicy(program: Command, { io }: CommandContext): void {
  const policy = program.command('policy').description('policy files: test, explain, import')

  policy
    .command('test')
    .description('run the tests in policy files; exit code 1 when one fails or a file does not load')
    .argument('<file...>')
    .option('--json', 'print JSON')
    .action(async (files: string[], { json }: { json?: true }) => {
      const reports = []
      for (const file of files) reports.push(await testFile(file))
      if (json) printJson(io, reports)
      else for (const report of reports) printReport(io, report)
      const tests = reports.flatMap(({ results }) => results)
      const failed = tests.filter(({ passed }) => !passed).length
      const broken = reports.filter(({ error }) => error !== undefined).length
      if (broken > 0) throw new CommandFailed(`${broken} of ${countOf(files.length, 'file')} cannot be loaded.`)
      if (failed > 0) throw new CommandFailed(`${failed} of ${countOf(tests.length, 'test')} failed.`)
    })

  policy
    .command('explain')
    .description('say what a policy file answers, and why; exit code 0 whether it allows or denies')
    .argument('<file>')
    .requiredOption('--subject <who>', 'user:<id>, client:<id>, or JSON with whatever attributes')
    .requiredOption('--action <action>', 'what is to be done')
    .requiredOption('--resource <what>', '<type>, <type>:<id>, or JSON with whatever attributes')
    .option('--role <role>', 'a role of the subject; may be repeated', repeated, [])
    .option('--group <group>', 'a group of the subject; may be repeated', repeated, [])
    .option('--context <json>', 'time, hour, clock, day, ip, network, request_type, …')
    .option('--list', 'say which resources of the type a list would show')
    .option('--sql <attributes.json>', 'print that list as SQL; the file says which attribute is which column')
    .option('--json', 'print JSON')
    .action(async (file: string, options: ExplainOptions) => {
      const { explainDecision, readQuestion } = await loadGuard()
      const question = readQuestion(questionOf(options))
      const attributes = options.sql === undefined ? undefined : readAttributeMap(options.sql)
      const policies = await loadPolicyFile(file)
      const explanation = explainDecision(policies, question)
      const { subject, action, resource, context = {} } = question
      const list =
        options.list || attributes !== undefined
          ? policies.plan({ subject, action, resourceType: resource.type, context })
          : undefined
      const query = list === undefined || attributes === undefined ? undefined : await sqlOf(list, attributes)
      if (options.json) {
        const { decision, version, policies: asked } = explanation
        printJson(io, {
          ...decision,
          version,
          policies: asked,
          ...(list && { list: { ...outlineOf(list), ...query } }),
        })
        return
      }
      printExplanation(io, explanation)
      if (list !== undefined) io.out(`\n${printable(listInWords(list, resource.type))}`)
      if (query !== undefined) {
        io.out(`\nwhere ${query.sql}`)
        for (const [index, parameter] of query.parameters.entries()) {
          io.out(`  $${index + 1} = ${printable(JSON.stringify(parameter))}`)
        }
      }
    })

  policy
    .command('import')
    .description('turn a policy document of a cloud into a policy file, which is printed')
    .argument('<file>')
    .addOption(
      new Option('--from <cloud>', 'whose document it is').choices(['aws', 'gcp', 'azure']).makeOptionMandatory(),
    )
    .option('--role <name=action,…>', 'what a role allows that is not known here; may be repeated', repeated, [])
    .action(async (file: string, { from, role }: { from: ImportSource; role: string[] }) => {
      const roles = Object.fromEntries(role.map(parsePair).map(([name, actions]) => [name, actions.split(',')]))
      const { importPolicies } = await loadGuard()
      const document = readFile(file)
      const { yaml } = await failingWith(file, () => importPolicies(from, document, { roles }))
      io.out(yaml.trimEnd())
    })
}

interface Report {
  readonly file: string
  readonly version?: string
  readonly policies?: number
  readonly results: readonly PolicyTestResult[]
  /** Policies that decided none of the tests. */
  readonly untested?: readonly string[]
  readonly error?: string
}

async function testFile(file: string): Promise<Report> {
  const { PolicyError, loadPolicies, runPolicyTests } = await loadGuard()
  try {
    const policies = loadPolicies({ path: file })
    const results = runPolicyTests(policies)
    const deciding = new Set(results.map(({ decision }) => decision.policy))
    const untested = policies.policies.map(({ id }) => id).filter((id) => !deciding.has(id))
    return { file, version: policies.version, policies: policies.policies.length, results, untested }
  } catch (error) {
    if (error instanceof PolicyError) return { file, results: [], error: error.message }
    throw error
  }
}

function printReport(io: CommandIo, { file, policies = 0, results, untested = [], error }: Report): void {
  if (error !== undefined) {
    io.err(`error: ${printable(error)}`)
    return
  }
  const failed = results.filter(({ passed }) => !passed)
  for (const { where, name, message } of failed) io.out(printable(`FAILED ${where}: ${name}: ${message}`))
  const tests =
    results.length === 0 ? 'no tests' : `${results.length - failed.length} of ${results.length} tests passed`
  io.out(printable(`${file}: ${countOf(policies, 'policy', 'policies')}, ${tests}`))
  if (results.length > 0 && untested.length > 0) io.err(printable(`No test is decided by: ${untested.join(', ')}`))
}

interface ExplainOptions {
  readonly subject: string
  readonly action: string
  readonly resource: string
  readonly role: readonly string[]
  readonly group: readonly string[]
  readonly context?: string
  readonly list?: true
  readonly sql?: string
  readonly json?: true
}

function questionOf({ subject, action, resource, role, group, context }: ExplainOptions): PlainQuestion {
  const who = subjectOf(subject)
  return {
    subject: {
      ...who,
      ...(role.length > 0 && { roles: role }),
      ...(group.length > 0 && { groups: group }),
    },
    action,
    resource: resourceOf(resource),
    ...(context === undefined ? {} : { context: parseData('--context', context) }),
  }
}

function subjectOf(text: string): Record<string, unknown> {
  if (text.startsWith('{')) return parseData('--subject', text)
  if (/^(role|group):/.test(text)) throw new UsageError('a subject is a user or a client; add --role or --group to it')
  const [, type = 'user', id = text] = /^(user|client):(.*)$/s.exec(text) ?? []
  return { type, id }
}

function resourceOf(text: string): Record<string, unknown> {
  if (text.startsWith('{')) {
    const data = parseData('--resource', text)
    if (typeof data['type'] !== 'string') throw new UsageError('--resource needs a "type"')
    return data
  }
  const colon = text.indexOf(':')
  return colon < 1 ? { type: text } : { type: text.slice(0, colon), id: text.slice(colon + 1) }
}

function parseData(option: string, text: string): Record<string, unknown> {
  try {
    return z.record(z.string(), z.unknown()).parse(JSON.parse(text))
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof z.ZodError)) throw error
    throw new UsageError(`${option} is a JSON object, such as '{"id":"alice","department":"legal"}'`)
  }
}

function printExplanation(io: CommandIo, { decision, policies }: Explanation): void {
  const { allowed, policy, reason } = decision
  const why = {
    allowed: `by ${policy}`,
    'denied-by-policy': `by ${policy}`,
    'no-matching-policy': 'no policy allows it',
  }
  io.out(printable(`${allowed ? 'allow' : 'deny'}: ${why[reason]}`))
  if (policies.length > 0) io.out('')
  printTable(
    io,
    ['effect', 'policy', 'outcome', 'where', 'condition'],
    policies.map(({ effect, policy: id, outcome, message, where, condition = '' }) => [
      effect,
      id,
      message === undefined ? outcome : `${outcome}: ${message}`,
      where,
      condition.replaceAll(/\s+/g, ' ').trim(),
    ]),
  )
}

/** A plan without the trees of its conditions. */
function outlineOf(plan: Plan): { kind: Plan['kind']; allow?: string[]; deny?: string[] } {
  if (plan.kind !== 'condition') return { kind: plan.kind }
  return {
    kind: plan.kind,
    allow: plan.allow.map(({ policy }) => policy),
    deny: plan.deny.map(({ policy }) => policy),
  }
}

function listInWords(plan: Plan, type: Resource['type']): string {
  if (plan.kind === 'all') return `A list shows every ${type}.`
  if (plan.kind === 'none') return `A list shows no ${type}.`
  const { allow = [], deny = [] } = outlineOf(plan)
  const unless = deny.length === 0 ? '' : `, and that none of these denies: ${deny.join(', ')}`
  return `A list shows each ${type} that one of these allows: ${allow.join(', ')}${unless}.`
}

const column = z.strictObject({
  type: z.enum(['string', 'int', 'double', 'bool', 'timestamp', 'list<string>', 'list<int>']),
  column: z.string(),
})
const rows = z.strictObject({
  type: z.literal('rows'),
  table: z.string(),
  on: z.record(z.string(), z.string()),
  attributes: z.record(z.string(), column),
})
const attributeMap = z.record(z.string(), z.union([column, rows, z.literal('absent')]))

function readAttributeMap(path: string): AttributeMap {
  try {
    return attributeMap.parse(JSON.parse(readFile(path)))
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof z.ZodError)) throw error
    const why = error instanceof z.ZodError ? z.prettifyError(error).replaceAll(/\s+/g, ' ') : error.message
    throw new CommandFailed(
      `${path} is no attribute map, such as {"owner":{"type":"string","column":"models.owner_id"}}: ${why}`,
    )
  }
}

async function sqlOf(plan: Plan, attributes: AttributeMap): Promise<{ sql: string; parameters: unknown[] }> {
  const { toWhere } = await import('@latchkey/guard/kysely')
  const { DummyDriver, Kysely, PostgresAdapter, PostgresIntrospector, PostgresQueryCompiler, sql } =
    await import('kysely')
  const nowhere = new Kysely<Record<string, never>>({
    dialect: {
      createAdapter: () => new PostgresAdapter(),
      createDriver: () => new DummyDriver(),
      createIntrospector: (db) => new PostgresIntrospector(db),
      createQueryCompiler: () => new PostgresQueryCompiler(),
    },
  })
  const compiled = await failingWith('--sql', () => sql`${toWhere(plan, attributes)}`.compile(nowhere))
  // JSON has no integers of 64 bits.
  const parameters = compiled.parameters.map((value) => (typeof value === 'bigint' ? String(value) : value))
  return { sql: compiled.sql, parameters }
}

async function loadPolicyFile(path: string): Promise<PolicySet> {
  const { loadPolicies } = await loadGuard()
  return failingWith(path, () => loadPolicies({ path }))
}

/** What a policy file or a document may be wrong about is said in one line. */
async function failingWith<T>(what: string, work: () => T): Promise<T> {
  const { PolicyError } = await loadGuard()
  try {
    return work()
  } catch (error) {
    if (!(error instanceof PolicyError)) throw error
    throw new CommandFailed(printable(error.file === undefined ? `${what}: ${error.message}` : error.message))
  }
}

function readFile(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    throw new CommandFailed(`${path} cannot be read: ${error instanceof Error ? error.message : String(error)}`)
  }
}

function countOf(count: number, one: string, many = `${one}s`): string {
  return `${count} ${count === 1 ? one : many}`
}
