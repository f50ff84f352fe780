/** `latchkey migrate`: brings the database's schema up to date. Starting a server does the same. */
import type { Command } from 'commander'
import { migrate } from '../database/migrate.ts'
import { printJson, type CommandContext } from './command.ts'

export function addMigrate(program: Command, { io, withDatabase }: CommandContext): void {
  program
    .command('migrate')
    .description("bring the database's schema up to date")
    .option('--json', 'print JSON')
    .action(async ({ json }: { json?: true }) => {
      const { applied } = await withDatabase(({ db }) => migrate(db), 'as it is')
      if (json) printJson(io, { applied })
      else
        io.out(
          applied.length === 0 ? 'The schema was up to date.' : applied.map((name) => `applied ${name}`).join('\n'),
        )
    })
}
