/** `latchkey config check`: what the environment comes to, without its secrets. */
import type { Command } from 'commander'
import { describeConfig } from '../config.ts'
import { printJson, printTable, type CommandContext } from './command.ts'

export function addConfig(program: Command, context: CommandContext): void {
  const { io } = context
  program
    .command('config')
    .description('the settings, which come from the environment')
    .command('check')
    .description('print every setting as it is in force, or everything that is wrong; secrets are not shown')
    .option('--json', 'print JSON')
    .action(({ json }: { json?: true }) => {
      const settings = describeConfig(context.config)
      if (json) printJson(io, settings)
      else
        printTable(
          io,
          ['setting', 'value', 'source'],
          settings.map(({ name, value, source }) => [name, value, source]),
        )
    })
}
