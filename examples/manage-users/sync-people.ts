/**
 * Keeps the people of one domain as a list says: who is missing is created, who has another name is corrected, who is not
 * on the list any more is shut out. To be run as often as one likes, also while somebody else changes the same people.
 */
import { createClient, ifMatch, LatchkeyApiError, paginate, type LatchkeyClient } from '@latchkey/client'

export interface Person {
  readonly email: string
  readonly name: string
}

export interface Sync {
  readonly issuer: string
  readonly clientId: string
  readonly clientSecret: string
  /** Such as `staff.example`; people of other domains are left alone. */
  readonly domain: string
  readonly people: readonly Person[]
}

/** @returns what was done, one line for each change */
export async function syncPeople({ issuer, clientId, clientSecret, domain, people }: Sync): Promise<string[]> {
  const latchkey = createClient({
    baseUrl: issuer,
    auth: { clientId, clientSecret, scope: 'users:read users:write' },
    userAgent: 'people-sync/1.0',
  })
  try {
    const missing = new Map(people.map((person) => [person.email.toLowerCase(), person]))
    const done: string[] = []
    for await (const { user_id, email = '', name, is_active } of paginate(latchkey, '/v1/users')) {
      if (!email.toLowerCase().endsWith(`@${domain}`)) continue
      const person = missing.get(email.toLowerCase())
      missing.delete(email.toLowerCase())
      if (person === undefined && is_active === true) {
        await change(latchkey, user_id, { is_active: false })
        done.push(`shut out ${email}`)
      }
      if (person !== undefined && (person.name !== name || is_active === false)) {
        await change(latchkey, user_id, { name: person.name, is_active: true })
        done.push(`corrected ${email}`)
      }
    }
    for (const person of missing.values()) {
      await latchkey.POST('/v1/users', { body: { ...person } })
      done.push(`created ${person.email}`)
    }
    return done
  } finally {
    await latchkey.close()
  }
}

/** Based on the person as they are now; once more when somebody else was faster. */
async function change(
  latchkey: LatchkeyClient,
  user_id: string,
  body: { name?: string; is_active: boolean },
): Promise<void> {
  for (let attempt = 0; ; attempt += 1) {
    const path = { user_id }
    const { response } = await latchkey.GET('/v1/users/{user_id}', { params: { path } })
    try {
      await latchkey.PATCH('/v1/users/{user_id}', { params: { path, header: ifMatch(response) }, body })
      return
    } catch (error) {
      const isOutdated = error instanceof LatchkeyApiError && error.code === 'PRECONDITION_FAILED'
      if (!isOutdated || attempt === 3) throw error
    }
  }
}
