/** `latchkey signals …`: the services that are told what has been revoked. */
import type { Command } from 'commander'
import { listStreamLags, mostCounted, type StreamLag } from '../signals/deliveries.ts'
import { printJson, printTable, type CommandContext } from './command.ts'

export function addSignals(program: Command, context: CommandContext): void {
  const { io } = context
  program
    .command('signals')
    .description('the feed of security events to services')
    .command('streams')
    .description('list the streams, those that are most behind first')
    .option('--json', 'print JSON')
    .action(async ({ json }: { json?: true }) => {
      const lags = await context.withDatabase(({ db }) => listStreamLags(db))
      if (json) printJson(io, lags)
      else
        printTable(
          io,
          ['stream', 'client', 'delivery', 'status', 'last heard of', 'behind', 'failing', 'refused'],
          lags.map(row),
        )
    })
}

function row(lag: StreamLag): string[] {
  return [
    lag.stream_id,
    lag.client_id,
    lag.delivery_method,
    lag.status_reason === null ? lag.status : `${lag.status}: ${lag.status_reason}`,
    lag.active_at.toISOString(),
    lag.pending === 0
      ? '-'
      : `${lag.pending}${lag.pending === mostCounted ? '+' : ''} events, ${lag.pending_seconds ?? 0} s`,
    lag.last_error === null ? '-' : `${lag.failing_since?.toISOString() ?? ''} ${lag.last_error}`.trim(),
    lag.refusals === 0
      ? '-'
      : `${lag.refusals}, last ${lag.last_refused_at?.toISOString() ?? ''} ${lag.last_refusal ?? ''}`,
  ]
}
