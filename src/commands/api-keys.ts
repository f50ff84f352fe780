/** `latchkey api-keys …`: keys for callers that cannot do OAuth. */
import type { Command } from 'commander'
import { createApiKey, listApiKeys, revokeApiKey } from '../metering/api-keys.ts'
import { parseWholeNumber, printJson, printTable, UsageError, type CommandContext } from './command.ts'

interface CreateOptions {
  readonly plan?: string
  readonly days?: string
  readonly json?: true
}

export function addApiKeys(program: Command, context: CommandContext): void {
  const { io, actor, withDatabase } = context
  const keys = program.command('api-keys').description('keys for callers that cannot do OAuth')

  keys
    .command('list')
    .description('list the keys, by the first characters of each')
    .option('--client <client_id>', 'of this client alone')
    .option('--json', 'print JSON')
    .action(async ({ client, json }: { client?: string; json?: true }) => {
      const found = await withDatabase(({ db }) => listApiKeys(db, client))
      if (json) {
        printJson(io, found)
        return
      }
      printTable(
        io,
        ['id', 'key', 'client', 'name', 'plan', 'last used', 'ends'],
        found.map(({ api_key_id, prefix, client_id, name, plan, last_used_at, expires_at }) => [
          api_key_id,
          `${prefix}…`,
          client_id,
          name,
          plan ?? "its client's",
          last_used_at?.toISOString() ?? 'never',
          expires_at?.toISOString() ?? 'never',
        ]),
      )
    })

  keys
    .command('create')
    .description('make a key that may do what its client may do; it is shown this once')
    .argument('<client_id>')
    .argument('<name>', 'what it is for')
    .option('--plan <name>', "a plan of its own, instead of its client's")
    .option('--days <n>', 'how long it works (default: until it is revoked)')
    .option('--json', 'print JSON')
    .action(async (client_id: string, name: string, { plan, days, json }: CreateOptions) => {
      const expires_at = days === undefined ? null : endOf(context.now(), parseWholeNumber('--days', days))
      const made = await withDatabase(({ db }) =>
        db
          .transaction()
          .execute((trx) => createApiKey(trx, actor, { client_id, name, plan: plan ?? null, expires_at })),
      )
      if (json) {
        printJson(io, made)
        return
      }
      io.out(`api_key_id  ${made.api_key.api_key_id}\napi_key     ${made.key}`)
      io.err('The key is not shown again. It goes into the header x-api-key.')
    })

  keys
    .command('revoke')
    .description('end a key at once')
    .argument('<id>', 'as `api-keys list` shows it')
    .option('--yes', 'really')
    .action(async (api_key_id: string, { yes }: { yes?: true }) => {
      if (!yes) throw new UsageError('whoever uses this key is refused from now on: confirm it with --yes')
      await withDatabase(({ db }) => db.transaction().execute((trx) => revokeApiKey(trx, actor, { api_key_id })))
      io.err(`The key ${api_key_id} is revoked.`)
    })
}

function endOf(now: Date, days: number): string {
  if (days > 36_500) throw new UsageError(`--days may be at most 36500, not ${days}`)
  return new Date(now.getTime() + days * 86_400_000).toISOString()
}
