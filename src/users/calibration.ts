/** Finds the work factor that suits this host, in bounded time. Whether the one in force still does: `measureOnce`. */
import { measureOnce } from './password.ts'
import { defaultWorkFactor, isWithinCeiling, type WorkFactor } from './work-factor.ts'

export interface CalibrationSettings {
  /** how long one hash should take, in milliseconds */
  readonly targetMs: number
  /** when to stop measuring, in seconds; the hash that is then running still ends. 20 by default */
  readonly maxSeconds?: number
}

/** What one work factor costs here: a line of the table that `latchkey calibrate` prints. */
export interface CalibrationRow {
  readonly workFactor: WorkFactor
  /** the median of the measurements, in milliseconds */
  readonly msPerHash: number
  /** how many passwords one thread of this host can try in a day */
  readonly guessesPerDay: number
}

export interface Calibration {
  /** the dearest work factor measured that stays within the target; the cheapest one allowed when none does */
  readonly chosen: CalibrationRow
  /** everything that was measured, the cheapest first */
  readonly rows: readonly CalibrationRow[]
  /** false when even the cheapest work factor allowed takes longer than the target */
  readonly isWithinTarget: boolean
  /** true when time ran out: a dearer work factor might have fitted */
  readonly endedEarly: boolean
}

const msPerDay = 86_400_000
const measurements = 3
/** For hosts on which one pass over the default memory is too slow: OWASP's floor. */
const cheapest: WorkFactor = { memoryKib: 19_456, timeCost: 2, parallelism: 1 }

/**
 * Measures work factors of the default memory, or of less where that is too slow here, with more and more passes until
 * one takes longer than the target, then halves the gap. It only ever compares whole measurements: a slope drawn from
 * two of them is noise on a busy machine, and can send the search up without end.
 * @param measureHash makes one hash and says how long it took, in milliseconds
 */
export async function calibrate(
  { targetMs, maxSeconds = 20 }: CalibrationSettings,
  measureHash: (workFactor: WorkFactor) => Promise<number> = measureOnce,
): Promise<Calibration> {
  const deadline = performance.now() + maxSeconds * 1_000
  const rows: CalibrationRow[] = []
  let endedEarly = false

  /** The row of one work factor; undefined when there is no time for it. */
  async function measure(workFactor: WorkFactor): Promise<CalibrationRow | undefined> {
    const times: number[] = []
    while (times.length < measurements) {
      if (performance.now() >= deadline && rows.length > 0) break
      times.push(await measureHash(workFactor))
    }
    if (times.length < measurements && rows.length > 0) {
      endedEarly = true
      return undefined
    }
    const msPerHash = times.sort((a, b) => a - b)[Math.floor(times.length / 2)] ?? 0
    const row = { workFactor, msPerHash, guessesPerDay: Math.floor(msPerDay / msPerHash) }
    rows.push(row)
    return row
  }

  const fits = (row: CalibrationRow | undefined): boolean => row !== undefined && row.msPerHash <= targetMs

  /** The dearest that fits of a work factor with as many passes or more; undefined when not even that one does. */
  async function mostPasses(least: WorkFactor): Promise<CalibrationRow | undefined> {
    const withPasses = async (timeCost: number): Promise<CalibrationRow | undefined> => {
      const workFactor = { ...least, timeCost }
      const known = rows.find((row) => isSame(row.workFactor, workFactor))
      const row = known ?? (isWithinCeiling(workFactor) ? await measure(workFactor) : undefined)
      return fits(row) ? row : undefined
    }
    let best = await withPasses(least.timeCost)
    if (best === undefined) return undefined
    let high = least.timeCost * 2
    for (let row = await withPasses(high); row !== undefined; row = await withPasses(high)) {
      best = row
      high *= 2
    }
    while (high - best.workFactor.timeCost > 1) {
      const middle = Math.floor((best.workFactor.timeCost + high) / 2)
      const row = await withPasses(middle)
      if (row === undefined) high = middle
      else best = row
    }
    return best
  }

  const floor = await measure(cheapest)
  // Memory first, as far as the host allows: it is what makes guessing dear on other hardware (RFC 9106 §4).
  const chosen = (await mostPasses({ ...defaultWorkFactor, timeCost: 1 })) ?? (await mostPasses(cheapest)) ?? floor
  if (chosen === undefined) throw new Error('nothing was measured')
  rows.sort((a, b) => work(a.workFactor) - work(b.workFactor))
  return { chosen, rows, isWithinTarget: chosen.msPerHash <= targetMs, endedEarly }
}

const isSame = (a: WorkFactor, b: WorkFactor): boolean =>
  a.memoryKib === b.memoryKib && a.timeCost === b.timeCost && a.parallelism === b.parallelism
const work = ({ memoryKib, timeCost }: WorkFactor): number => memoryKib * timeCost
