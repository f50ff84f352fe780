/**
 * Which roles include which: whoever has a role may do what those allow too that it includes, and those that these include,
 * and so on, never in a circle. What each role comes to reach that way, itself first, stands beside it in `role_reach`
 * and is written anew with every change, so that whoever asks what somebody may do joins one table and walks nothing.
 *
 * Who changes an inclusion does so alone (`lockInclusions`), since two changes beside each other could close a circle that
 * neither of them sees. Who changes what a role allows keeps them as they are meanwhile (`keepInclusions`): all that reach
 * the role are concerned. Either comes before the locks of roles, which are taken in the order of their names.
 */
import { sql } from 'kysely'
import { z } from 'zod'
import type { Db, Trx } from '../database/database.ts'
import { Problem, type FieldError } from '../problems.ts'
import { administratorRole, everyoneRole } from './rights.ts'

export const roleName = z
  .string()
  .max(64)
  .regex(/^[a-z][a-z0-9_-]*$/, 'must be lower-case letters, digits, _ and -, beginning with a letter')

/** A role that another one may include. */
const includedRole = roleName
  .refine((name) => name !== administratorRole, {
    error: 'cannot be included: who is an administrator is said of each of them, so that the last one can be told',
    params: { constraint: 'reserved' },
  })
  .refine((name) => name !== everyoneRole, {
    error: 'cannot be included: everybody has it already',
    params: { constraint: 'reserved' },
  })

export const inclusionsSchema = z.array(includedRole).max(50)

export const inclusionSchema = z.strictObject({ role: roleName, included: includedRole })

const inclusionsLock = 0x1a7c_0015

/** Until the transaction's end nobody else changes what roles include, or what they allow. */
export async function lockInclusions(trx: Trx): Promise<void> {
  await sql`SELECT pg_advisory_xact_lock(${inclusionsLock})`.execute(trx)
}

/** Until the transaction's end nobody changes what roles include; what they allow, others may. */
export async function keepInclusions(trx: Trx): Promise<void> {
  await sql`SELECT pg_advisory_xact_lock_shared(${inclusionsLock})`.execute(trx)
}

/**
 * Locks a role and all that reach it: what it loses they lose too, and nobody is given one of them meanwhile. For
 * transactions that hold the inclusions, as those are of the moment.
 * @returns their names; none when there is no such role
 */
export async function lockRolesThatReach(trx: Trx, role: string): Promise<readonly string[]> {
  const { rows } = await sql<{ name: string }>`
    SELECT name FROM roles WHERE name IN (SELECT role FROM role_reach WHERE reached = ${role})
    ORDER BY name FOR NO KEY UPDATE`.execute(trx)
  return rows.map(({ name }) => name)
}

/** Those roles of a list as it was sent that can be included, each in its place. */
export function fittingInclusions(sent: unknown): (string | undefined)[] {
  return Array.isArray(sent) ? sent.slice(0, 50).map((one) => includedRole.safeParse(one).data) : []
}

/** What is wrong with each role of a list that does not exist, or is the one that shall include it. */
export async function findWrongInclusions(
  db: Db,
  role: unknown,
  included: readonly (string | undefined)[],
  fieldOf = (place: number) => `includes[${place}]`,
): Promise<FieldError[]> {
  const asked = included.filter((name) => name !== undefined)
  if (asked.length === 0) return []
  const rows = await db.selectFrom('roles').select('name').where('name', 'in', asked).execute()
  const known = new Set(rows.map(({ name }) => name))
  return included.flatMap((name, place) => {
    const field = fieldOf(place)
    if (name === undefined) return []
    if (name === role) return [{ field, constraint: 'self', message: 'A role does not include itself' }]
    return known.has(name) ? [] : [{ field, constraint: 'exists', message: `There is no role ${name}` }]
  })
}

/**
 * Takes a role's inclusions away and gives it others.
 * @param change.reaching the roles that reach it, of `lockRolesThatReach`
 * @returns whether there is a role that it reaches no more
 * @throws Problem CONFLICT for a circle, which it names
 */
export async function changeInclusions(
  trx: Trx,
  role: string,
  change: {
    readonly lost: readonly string[]
    readonly gained: readonly string[]
    readonly reaching: readonly string[]
  },
): Promise<boolean> {
  const before = await findReached(trx, role)
  await requireNoCircle(trx, role, change.gained)
  if (change.lost.length > 0) {
    await trx.deleteFrom('role_inclusions').where('role', '=', role).where('included', 'in', change.lost).execute()
  }
  if (change.gained.length > 0) {
    await trx
      .insertInto('role_inclusions')
      .values(change.gained.map((included) => ({ role, included })))
      .execute()
  }
  await writeReach(trx, change.reaching)
  const after = new Set(await findReached(trx, role))
  return before.some((name) => !after.has(name))
}

/** Writes anew which roles these reach. */
export async function writeReach(trx: Trx, roles: readonly string[]): Promise<void> {
  if (roles.length === 0) return
  const names = sql`SELECT jsonb_array_elements_text(${JSON.stringify(roles)}::jsonb)`
  await sql`DELETE FROM role_reach WHERE role IN (${names})`.execute(trx)
  await sql`
    INSERT INTO role_reach (role, reached)
    WITH RECURSIVE reach (role, reached) AS (
      SELECT name, name FROM roles WHERE name IN (${names})
      UNION
      SELECT reach.role, i.included FROM reach JOIN role_inclusions i ON i.role = reach.reached
    )
    SELECT role, reached FROM reach`.execute(trx)
}

async function findReached(trx: Trx, role: string): Promise<string[]> {
  const rows = await trx.selectFrom('role_reach').select('reached').where('role', '=', role).execute()
  return rows.map(({ reached }) => reached)
}

async function requireNoCircle(trx: Trx, role: string, included: readonly string[]): Promise<void> {
  if (included.length === 0) return
  // Of every role that reaches this one, the next on a way there.
  const { rows } = await sql<{ role: string; next: string }>`
    SELECT i.role, min(i.included) AS next
    FROM role_inclusions i JOIN role_reach r ON r.role = i.included AND r.reached = ${role}
    GROUP BY i.role`.execute(trx)
  const next = new Map(rows.map((row) => [row.role, row.next]))
  const closing = [...included].sort().find((name) => next.has(name))
  if (closing === undefined) return
  const circle = [role, closing]
  for (let at = closing; at !== role;) {
    at = next.get(at) ?? role
    circle.push(at)
  }
  throw new Problem(
    'CONFLICT',
    `Roles cannot include each other in a circle: ${circle.join(' → ')}. Leave ${closing} out of ${role}, or first take out one of the other inclusions.`,
  )
}
