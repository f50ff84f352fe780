import type { Logger } from 'pino'
import type { Changes } from '../database/changes.ts'
import type { Db } from '../database/database.ts'

export interface RegisteredOrigins {
  /** Whether an active client has a redirect URI of exactly this origin. Never throws. */
  readonly isRegisteredOrigin: (origin: string) => Promise<boolean>
  close(): void
}

/**
 * Where registered clients run, so where browsers may call the API from. Kept in memory, read anew after any change of a
 * client. While the database does not answer, the last copy counts: this guards no data, and a program that may read
 * that the service is away knows what to do.
 */
export function openRegisteredOrigins(db: Db, changes: Changes, log: Logger): RegisteredOrigins {
  let last: ReadonlySet<string> = new Set()
  let reading: Promise<ReadonlySet<string>> | undefined
  let isReading = false
  const close = changes.on('clients', () => {
    reading = undefined
  })

  async function read(): Promise<ReadonlySet<string>> {
    isReading = true
    try {
      last = await readOrigins(db)
    } catch (error) {
      log.warn({ error }, 'the origins of clients could not be read')
      reading = undefined
    } finally {
      isReading = false
    }
    return last
  }

  return {
    async isRegisteredOrigin(origin) {
      // One that began before a change is no answer after it; while news may be late, each answer is read.
      if (reading === undefined || (!changes.isFresh() && !isReading)) reading = read()
      return (await reading).has(origin)
    },
    close,
  }
}

async function readOrigins(db: Db): Promise<ReadonlySet<string>> {
  const clients = await db.selectFrom('clients').select('redirect_uris').where('status', '=', 'active').execute()
  return new Set(
    clients
      .flatMap(({ redirect_uris: uris }) => uris)
      .map((uri) => URL.parse(uri)?.origin ?? 'null')
      // An app's own scheme has no origin.
      .filter((origin) => origin !== 'null'),
  )
}
