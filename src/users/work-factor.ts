/**
 * How much work one password hash is: Argon2id's memory, passes and lanes (RFC 9106 §3.1). What the environment says
 * wins over what `calibrate --store` stored, which wins over the default; each of the three on its own.
 */
import { isDeepStrictEqual } from 'node:util'
import { z } from 'zod'
import { writeAudit, type Actor } from '../audit/audit.ts'
import type { Config } from '../config.ts'
import type { Db, Trx } from '../database/database.ts'

export interface WorkFactor {
  /** memory of one hash, in KiB */
  readonly memoryKib: number
  /** passes over that memory */
  readonly timeCost: number
  /** lanes, each with a thread of its own */
  readonly parallelism: number
}

/** Memory and passes of RFC 9106 §4's second recommended option, in one lane: the gate counts hashes, not threads. */
export const defaultWorkFactor: WorkFactor = { memoryKib: 65_536, timeCost: 3, parallelism: 1 }

/** The least that OWASP's Password Storage Cheat Sheet allows: settings of equal strength, memory traded for passes. */
export const workFactorFloor: readonly Pick<WorkFactor, 'memoryKib' | 'timeCost'>[] = [
  { memoryKib: 47_104, timeCost: 1 },
  { memoryKib: 19_456, timeCost: 2 },
  { memoryKib: 12_288, timeCost: 3 },
  { memoryKib: 9_216, timeCost: 4 },
  { memoryKib: 7_168, timeCost: 5 },
]

/**
 * The most, for what is configured and for what is read back from a stored hash: whoever can write one row must not be
 * able to stop the server with it.
 */
export const workFactorCeiling = {
  memoryKib: 1_048_576,
  timeCost: 1_000,
  parallelism: 16,
  /** memory × passes: 8 GiB written once, or 64 MiB 128 times */
  totalKib: 8_388_608,
} as const

/** A work factor that must not be used; the message says what to set. */
export class WorkFactorError extends Error {
  override name = 'WorkFactorError'
}

const settingName = 'password-work-factor'
const storedWorkFactor = z.strictObject({
  memory_kib: z.int().positive(),
  time_cost: z.int().positive(),
  parallelism: z.int().positive(),
})

/** Whether a hash of this work factor may be made or checked at all, however weak it is. */
export function isWithinCeiling({ memoryKib, timeCost, parallelism }: WorkFactor): boolean {
  return (
    memoryKib <= workFactorCeiling.memoryKib &&
    timeCost <= workFactorCeiling.timeCost &&
    parallelism <= workFactorCeiling.parallelism &&
    memoryKib * timeCost <= workFactorCeiling.totalKib &&
    // RFC 9106 §3.1: at least 8 KiB a lane
    memoryKib >= 8 * parallelism &&
    timeCost >= 1 &&
    parallelism >= 1
  )
}

/**
 * @returns the same work factor
 * @throws WorkFactorError when it is weaker than OWASP's floor or dearer than the ceiling
 */
export function checkWorkFactor(workFactor: WorkFactor): WorkFactor {
  const { memoryKib, timeCost } = workFactor
  if (!isWithinCeiling(workFactor)) {
    const { memoryKib: memory, parallelism, totalKib } = workFactorCeiling
    throw new WorkFactorError(
      `The password work factor ${describeWorkFactor(workFactor)} is too high: at most ${memory} KiB, ${parallelism} lanes, and memory × passes ${totalKib} KiB`,
    )
  }
  if (!workFactorFloor.some((least) => memoryKib >= least.memoryKib && timeCost >= least.timeCost)) {
    const choices = workFactorFloor.map((least) => `${least.memoryKib} KiB × ${least.timeCost}`).join(', ')
    throw new WorkFactorError(
      `The password work factor ${describeWorkFactor(workFactor)} is too low: at least one of ${choices}`,
    )
  }
  return workFactor
}

/** As people read it: `65536 KiB × 3, 1 lane`. */
export function describeWorkFactor({ memoryKib, timeCost, parallelism }: WorkFactor): string {
  return `${memoryKib} KiB × ${timeCost}, ${parallelism} ${parallelism === 1 ? 'lane' : 'lanes'}`
}

/**
 * The work factor in force.
 * @throws WorkFactorError when what is configured or stored must not be used
 */
export async function readWorkFactor(
  db: Db,
  config: Pick<Config, 'passwordMemoryKib' | 'passwordTimeCost' | 'passwordParallelism'>,
): Promise<WorkFactor> {
  const row = await db.selectFrom('settings').select('value').where('name', '=', settingName).executeTakeFirst()
  const stored = row === undefined ? undefined : parseStored(row.value)
  return checkWorkFactor({
    memoryKib: config.passwordMemoryKib ?? stored?.memoryKib ?? defaultWorkFactor.memoryKib,
    timeCost: config.passwordTimeCost ?? stored?.timeCost ?? defaultWorkFactor.timeCost,
    parallelism: config.passwordParallelism ?? stored?.parallelism ?? defaultWorkFactor.parallelism,
  })
}

/**
 * Makes a work factor that of every process that reads this database, unless its environment says otherwise. Nothing
 * happens when it is so already.
 * @throws WorkFactorError when it must not be used
 */
export async function storeWorkFactor(trx: Trx, actor: Actor, workFactor: WorkFactor): Promise<void> {
  const after = storedForm(checkWorkFactor(workFactor))
  const value = JSON.stringify(after)
  const before = await trx.selectFrom('settings').select('value').where('name', '=', settingName).executeTakeFirst()
  if (isDeepStrictEqual(before?.value, after)) return
  await trx
    .insertInto('settings')
    .values({ name: settingName, value })
    .onConflict((conflict) => conflict.column('name').doUpdateSet({ value, updated_at: new Date() }))
    .execute()
  await writeAudit(trx, actor, {
    action: 'setting.changed',
    target: { type: 'setting', id: settingName },
    details: { before: before?.value ?? null, after },
  })
}

/** As it is stored, and as the audit record shows it. */
export function storedForm({ memoryKib, timeCost, parallelism }: WorkFactor): z.input<typeof storedWorkFactor> {
  return { memory_kib: memoryKib, time_cost: timeCost, parallelism }
}

function parseStored(value: unknown): WorkFactor {
  const parsed = storedWorkFactor.safeParse(value)
  if (!parsed.success) {
    throw new WorkFactorError(`The stored setting ${settingName} cannot be read: run latchkey calibrate --store again`)
  }
  const { memory_kib, time_cost, parallelism } = parsed.data
  return { memoryKib: memory_kib, timeCost: time_cost, parallelism }
}
