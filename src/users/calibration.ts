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
 * Measures work factors of the default memory with more and more passes until one takes longer than the target, then
 * halves the gap. It only ever compares whole measurements: a slope drawn from two of them is noise on a busy machine,
 * and can send the search up without end.
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
  const withPasses = (timeCost: number): WorkFactor => ({ ...defaultWorkFactor, timeCost })

  const floor = await measure(cheapest)
  let low = 0
  let high = 1
  while (isWithinCeiling(withPasses(high)) && fits(await measure(withPasses(high)))) {
    low = high
    high *= 2
  }
  while (high - low > 1 && !endedEarly) {
    const middle = Math.floor((low + high) / 2)
    if (isWithinCeiling(withPasses(middle)) && fits(await measure(withPasses(middle)))) low = middle
    else high = middle
  }

  rows.sort((a, b) => work(a.workFactor) - work(b.workFactor))
  const chosen = low === 0 ? floor : rows.find(({ workFactor }) => work(workFactor) === work(withPasses(low)))
  if (chosen === undefined) throw new Error('nothing was measured')
  return { chosen, rows, isWithinTarget: chosen.msPerHash <= targetMs, endedEarly }
}

const work = ({ memoryKib, timeCost }: WorkFactor): number => memoryKib * timeCost
