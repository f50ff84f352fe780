/** `latchkey audit …`: the record of who did what, and whether it was changed. */
import type { Command } from 'commander'
import { pino } from 'pino'
import { describeAuditEvent, findAuditEvents, type AuditEventDescription } from '../audit/audit-log.ts'
import { nameHead } from '../audit/chain.ts'
import { findAuditHead, verifyAuditChain, type AuditHead } from '../audit/verify.ts'
import type { Db } from '../database/database.ts'
import { openKeyEncryption } from '../signing/key-encryption.ts'
import { findSecrets } from '../signing/secret-ring.ts'
import {
  CommandEnded,
  CommandFailed,
  parseWholeNumber,
  printJson,
  printTable,
  UsageError,
  type CommandContext,
} from './command.ts'

export function addAudit(program: Command, context: CommandContext): void {
  const audit = program.command('audit').description('the record of who did what, and whether it was changed')
  addVerify(audit, context)
  addHead(audit, context)
  addList(audit, context)
}

interface VerifyCommandOptions {
  readonly from: string
  readonly expectHead?: string
  /** false: --no-seal */
  readonly seal: boolean
  readonly json?: true
}

function addVerify(audit: Command, context: CommandContext): void {
  const { io } = context
  audit
    .command('verify')
    .description('look for the first row that was changed, removed or put in by somebody else')
    .option('--from <sequence>', 'begin at this row; what is before it is taken on trust', '1')
    .option('--expect-head <sequence:hash>', 'also refuse a record without this row: a head that was noted before')
    .option('--no-seal', 'where the key-encryption key is not: leave out the check that needs it')
    .option('--json', 'print JSON')
    .action(async (options: VerifyCommandOptions) => {
      const { expectHead: expected, seal, json } = options
      const from = parseWholeNumber('--from', options.from)
      if (from < 1) throw new UsageError('--from must be 1 or more')
      const expectedHead = expected === undefined ? undefined : parseHead(expected)
      if (expectedHead !== undefined && expectedHead.sequence < from) {
        throw new UsageError('--expect-head is before --from: it would not be looked at')
      }
      const verified = await context.withDatabase(async ({ db }) => {
        const keys = seal ? await findKeys(db, context) : undefined
        return verifyAuditChain(db, { from, keys, expectedHead })
      })
      if (!verified.isSound) {
        const { kind, sequence, id, message } = verified.problem
        if (!json) throw new CommandFailed(`The audit record is not sound. ${kind}: ${message}.`)
        printJson(io, { sound: false, problem: { kind, sequence: sequence ?? null, id: id ?? null, message } })
        throw new CommandEnded(1)
      }
      const { count, head } = verified
      if (json) printJson(io, { sound: true, count, head: nameHead(head), seal_checked: seal })
      else io.out(`${count} ${count === 1 ? 'row is' : 'rows are'} as sealed. The head is ${nameHead(head)}`)
    })
}

function addHead(audit: Command, { io, withDatabase }: CommandContext): void {
  audit
    .command('head')
    .description('print where the record ends, to be noted elsewhere and given to verify --expect-head')
    .option('--json', 'print JSON')
    .action(async ({ json }: { json?: true }) => {
      const head = await withDatabase(({ db }) => findAuditHead(db))
      if (head === undefined)
        throw new CommandFailed('The audit record has lost its head: run `latchkey audit verify`.')
      if (json) printJson(io, { sequence: head.sequence, hash: head.hash, sealed_at: head.sealedAt })
      else io.out(nameHead(head))
    })
}

interface ListOptions {
  readonly actor?: string
  readonly action?: string
  readonly target?: string
  readonly since?: string
  readonly limit: string
  readonly json?: true
}

function addList(audit: Command, context: CommandContext): void {
  const { io, withDatabase } = context
  audit
    .command('list')
    .description('list what was done, the newest first')
    .option('--actor <id>', 'by whom, or on whose behalf')
    .option('--action <noun.verb>', 'what, such as user.created')
    .option('--target <id>', 'to whom or what')
    .option('--since <time>', 'not before: 2026-01-31T00:00:00Z, or how long ago: 90m, 24h, 7d')
    .option('--limit <n>', 'how many at most', '50')
    .option('--json', 'print JSON')
    .action(async ({ actor, action, target, since, limit, json }: ListOptions) => {
      const filter = {
        actor,
        action,
        target,
        since: since === undefined ? undefined : parseSince(since, context.now()),
        limit: parseWholeNumber('--limit', limit),
      }
      const found = await withDatabase(({ db }) => findAuditEvents(db, filter))
      const events = found.map(describeAuditEvent)
      if (json) printJson(io, events)
      else
        printTable(
          io,
          ['sequence', 'time', 'actor', 'action', 'target', 'details'],
          events.map((event) => [
            String(event.sequence ?? '-'),
            event.occurred_at,
            describeActor(event),
            event.action,
            `${event.target.type} ${event.target.id}`,
            JSON.stringify(event.details),
          ]),
        )
    })
}

function describeActor({ actor }: AuditEventDescription): string {
  return `${actor.type} ${actor.id}${actor.on_behalf_of === null ? '' : ` for ${actor.on_behalf_of}`}`
}

async function findKeys(db: Db, { config }: CommandContext): Promise<Buffer[]> {
  const encryption = () => openKeyEncryption({ config, log: pino({ level: 'silent' }) })
  return findSecrets(db, { purpose: 'audit', encryption })
}

/** Reads what {@link nameHead} writes. */
function parseHead(text: string): AuditHead {
  const [, sequence, hash] = /^(\d{1,15}):([0-9a-f]{64})$/.exec(text) ?? []
  if (sequence === undefined || hash === undefined) {
    throw new UsageError(`--expect-head must be what \`latchkey audit head\` printed, not '${text}'`)
  }
  return { sequence: Number(sequence), hash }
}

const milliseconds = { m: 60_000, h: 3_600_000, d: 86_400_000 } as const

function parseSince(text: string, now: Date): Date {
  const [, count, unit] = /^(\d{1,6})([mhd])$/.exec(text) ?? []
  const since =
    count === undefined
      ? new Date(/^\d{4}-\d\d-\d\d(T[\d:.]+(Z|[+-]\d\d:\d\d))?$/.test(text) ? text : Number.NaN)
      : new Date(now.getTime() - Number(count) * milliseconds[unit as keyof typeof milliseconds])
  if (Number.isNaN(since.getTime())) {
    throw new UsageError(`--since must be a time such as 2026-01-31T00:00:00Z, or 90m, 24h, 7d, not '${text}'`)
  }
  return since
}
