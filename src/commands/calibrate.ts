/** `latchkey calibrate`: measures what a password hash costs here, and finds the work factor to use. */
import type { Command } from 'commander'
import { calibrate, type CalibrationRow } from '../users/calibration.ts'
import { describeWorkFactor, storeWorkFactor } from '../users/work-factor.ts'
import { printJson, printTable, UsageError, type CommandContext } from './command.ts'

export function addCalibrate(program: Command, context: CommandContext): void {
  const { io } = context
  program
    .command('calibrate')
    .description('measure password hashing on this host, within half a minute, and print the work factor to set')
    .option('--target-ms <ms>', 'how long one hash should take (default: LATCHKEY_PASSWORD_TARGET_MS)')
    .option('--store', 'keep the result in the database, for every process that uses it')
    .option('--json', 'print JSON')
    .action(async ({ targetMs, store, json }: { targetMs?: string; store?: true; json?: true }) => {
      const target = targetMs === undefined ? context.config.passwordTargetMs : Number(targetMs)
      if (!Number.isInteger(target) || target < 10 || target > 5_000) {
        throw new UsageError('--target-ms must be a whole number from 10 to 5000')
      }
      const { chosen, rows, isWithinTarget, endedEarly } = store
        ? await context.withDatabase(async ({ db }) => {
            const found = await calibrate({ targetMs: target })
            await db.transaction().execute((trx) => storeWorkFactor(trx, context.actor, found.chosen.workFactor))
            return found
          })
        : await calibrate({ targetMs: target })

      const { memoryKib, timeCost, parallelism } = chosen.workFactor
      const settings = {
        LATCHKEY_PASSWORD_MEMORY_KIB: memoryKib,
        LATCHKEY_PASSWORD_TIME_COST: timeCost,
        LATCHKEY_PASSWORD_PARALLELISM: parallelism,
      }
      if (!isWithinTarget) {
        io.err(`No work factor that is strong enough takes ${target} ms or less here: this is the cheapest allowed.`)
      }
      if (endedEarly) io.err('Time ran out before the search had ended: a higher work factor might fit as well.')
      if (json) {
        printJson(io, {
          target_ms: target,
          chosen: describe(chosen),
          settings,
          stored: store === true,
          within_target: isWithinTarget,
          ended_early: endedEarly,
          measured: rows.map(describe),
        })
        return
      }
      printTable(
        io,
        ['cost', 'ms per hash', 'guesses per day'],
        rows.map((row) => [
          `${describeWorkFactor(row.workFactor)}${row === chosen ? ' *' : ''}`,
          row.msPerHash.toFixed(0),
          row.guessesPerDay.toLocaleString('en'),
        ]),
      )
      io.out('')
      io.out(
        store
          ? `Stored ${describeWorkFactor(chosen.workFactor)} (*). Passwords are hashed anew with it as people sign in.`
          : `For ${target} ms set these (*), or run this again with --store:`,
      )
      if (!store)
        io.out(
          Object.entries(settings)
            .map(([name, value]) => `${name}=${value}`)
            .join('\n'),
        )
    })
}

function describe({ workFactor, msPerHash, guessesPerDay }: CalibrationRow) {
  return {
    memory_kib: workFactor.memoryKib,
    time_cost: workFactor.timeCost,
    parallelism: workFactor.parallelism,
    ms_per_hash: Math.round(msPerHash * 10) / 10,
    guesses_per_day: guessesPerDay,
  }
}
