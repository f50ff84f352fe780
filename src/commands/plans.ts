/** `latchkey plans …`: how often clients may call. */
import type { Command } from 'commander'
import { deletePlan, listPlans, putPlan, setClientPlan, type Plan, type PlanInput } from '../metering/plans.ts'
import { parseWholeNumber, printJson, printTable, UsageError, type CommandContext, type CommandIo } from './command.ts'

interface SetOptions {
  readonly rate?: string
  readonly burst?: string
  readonly quota?: string
  readonly period?: string
  readonly stdin?: true
  readonly json?: true
}

export function addPlans(program: Command, { io, actor, withDatabase }: CommandContext): void {
  const plans = program.command('plans').description('usage plans: how often clients may call')

  plans
    .command('list')
    .description('list the plans')
    .option('--json', 'print JSON')
    .action(async ({ json }: { json?: true }) => {
      const found = await withDatabase(({ db }) => listPlans(db))
      if (json) printJson(io, found)
      else printPlans(io, found)
    })

  plans
    .command('set')
    .description('make a plan, or replace the one of that name; what is left out is not limited')
    .argument('[name]', 'such as "Basic Plan"; not with --stdin')
    .option('--rate <n>', 'requests a second, with --burst')
    .option('--burst <n>', 'how many of them may come at once')
    .option('--quota <n>', 'requests in a period, with --period')
    .option('--period <period>', 'DAY, WEEK or MONTH, each beginning at midnight UTC')
    .option('--stdin', 'read the whole plan from standard input, as AWS API Gateway writes it')
    .option('--json', 'print JSON')
    .action(async (name: string | undefined, options: SetOptions) => {
      const given = options.stdin ? undefined : planOf(name, options)
      if (
        options.stdin &&
        (name !== undefined || Object.keys(options).some((option) => !/^(stdin|json)$/.test(option)))
      ) {
        throw new UsageError('with --stdin everything stands in the plan itself')
      }
      const { plan, created } = await withDatabase(async ({ db }) => {
        const input = given ?? parsePlan(await io.stdin())
        return db.transaction().execute((trx) => putPlan(trx, actor, input))
      })
      if (options.json) printJson(io, plan)
      else
        io.out(
          `The plan ${plan.name} is ${created ? 'made' : 'set'}: ${describeThrottle(plan)}, ${describeQuota(plan)}.`,
        )
    })

  plans
    .command('delete')
    .description('delete a plan that nobody is on')
    .argument('<name>')
    .option('--yes', 'really')
    .action(async (name: string, { yes }: { yes?: true }) => {
      if (!yes) throw new UsageError('this cannot be undone: confirm it with --yes')
      await withDatabase(({ db }) => db.transaction().execute((trx) => deletePlan(trx, actor, { name })))
      io.err(`The plan ${name} is deleted.`)
    })

  plans
    .command('assign')
    .description('put a client on a plan, or on none; running servers follow at once')
    .argument('<client_id>')
    .argument('[name]', 'the plan')
    .option('--none', 'no plan: no limit but that of the network')
    .action(async (client_id: string, name: string | undefined, { none }: { none?: true }) => {
      if ((name === undefined) === (none === undefined)) throw new UsageError('name a plan, or say --none')
      const plan = name ?? null
      const isChanged = await withDatabase(({ db }) =>
        db.transaction().execute((trx) => setClientPlan(trx, actor, { client_id, plan })),
      )
      io.err(`${client_id} is ${isChanged ? 'now' : 'already'} on ${plan === null ? 'no plan' : `the plan ${plan}`}.`)
    })
}

function planOf(name: string | undefined, { rate, burst, quota, period }: SetOptions): PlanInput {
  if (name === undefined) throw new UsageError('name the plan, or give it by --stdin')
  if ((rate === undefined) !== (burst === undefined)) throw new UsageError('--rate and --burst go together')
  if ((quota === undefined) !== (period === undefined)) throw new UsageError('--quota and --period go together')
  return {
    name,
    throttle:
      rate === undefined || burst === undefined
        ? null
        : { rateLimit: parseRate(rate), burstLimit: parseWholeNumber('--burst', burst) },
    quota:
      quota === undefined || period === undefined
        ? null
        : // What it may be is for the plan to say.
          { limit: parseWholeNumber('--quota', quota), period: period as 'DAY' },
  }
}

/** @throws UsageError when it is no number; what it may be is for the plan to say */
function parseRate(text: string): number {
  if (!/^\d{1,9}(\.\d{1,6})?$/.test(text)) throw new UsageError(`--rate must be a number, not '${text}'`)
  return Number(text)
}

function parsePlan(text: string): PlanInput {
  try {
    // Whatever it is, the plan's own schema judges it.
    return JSON.parse(text) as PlanInput
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error
    throw new UsageError(`standard input is not JSON: ${error.message}`)
  }
}

function printPlans(io: CommandIo, plans: readonly Plan[]): void {
  printTable(
    io,
    ['plan', 'throttle', 'quota'],
    plans.map((plan) => [plan.name, describeThrottle(plan), describeQuota(plan)]),
  )
}

function describeThrottle({ throttle }: Plan): string {
  return throttle === null ? 'no throttle' : `${throttle.rateLimit}/s, ${throttle.burstLimit} at once`
}

function describeQuota({ quota }: Plan): string {
  return quota === null ? 'no quota' : `${quota.limit} a ${quota.period}`
}
