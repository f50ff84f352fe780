import type { Changes } from './changes.ts'

/** Rows kept in memory, by id. */
export interface Copy<T> {
  /** @returns undefined for what does not exist, which is asked anew every time */
  find(id: string): Promise<T | undefined>
  /** To be called when the rows have changed. */
  forget(): void
}

const maxEntries = 10_000

/**
 * A copy of rows that are needed by every request and change rarely. While news of changes may be late, nothing is
 * served from it. Whoever opens it subscribes to the topic and calls `forget`.
 *
 * @param read one row, from the database
 * @example
 * const plans = openCopy(changes, (name: string) => readPlan(db, name))
 * changes.on('clients', plans.forget)
 */
export function openCopy<T>(changes: Changes, read: (id: string) => Promise<T | undefined>): Copy<T> {
  const entries = new Map<string, T>()
  // A read that began before a change must not put its old row back after it.
  let generation = 0
  return {
    forget: () => {
      entries.clear()
      generation += 1
    },
    find: async (id: string): Promise<T | undefined> => {
      // Ids come out of requests and tokens; PostgreSQL's text cannot hold this character, so nothing has such a name.
      if (id.includes('\0')) return undefined
      const known = entries.get(id)
      if (known !== undefined && changes.isFresh()) return known
      const generationBefore = generation
      const entry = await read(id)
      if (entry !== undefined && generation === generationBefore) {
        if (entries.size >= maxEntries) entries.clear()
        entries.set(id, entry)
      }
      return entry
    },
  }
}
