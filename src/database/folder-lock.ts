/**
 * One process at a time on a data folder. Two PGlite instances on one folder lose each other's committed rows without
 * an error, so the lock is the operating system's own (through SQLite's exclusive transaction on an empty file): it is
 * exclusive, it works on every platform, and it is gone the instant its process is gone, kill -9 included.
 */
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'

/** Another process holds the data folder. */
export class DataFolderInUse extends Error {
  override name = 'DataFolderInUse'
  readonly folder: string
  constructor(folder: string) {
    super(
      `Another Latchkey process is using the data folder ${folder}. ` +
        'Stop it first, or give this one a folder of its own with LATCHKEY_DATA_DIR. ' +
        'For several processes on one database, use PostgreSQL: set DATABASE_URL.',
    )
    this.folder = folder
  }
}

/**
 * Takes the folder's lock or throws {@link DataFolderInUse}; returns what releases it.
 * @param folder an existing folder
 */
export function lockDataFolder(folder: string): () => void {
  const lock = new DatabaseSync(join(folder, 'lock'))
  try {
    lock.exec('PRAGMA busy_timeout = 0; BEGIN EXCLUSIVE')
  } catch (error) {
    lock.close()
    // SQLITE_BUSY
    if (error instanceof Error && 'errcode' in error && error.errcode === 5) throw new DataFolderInUse(folder)
    throw error
  }
  return () => lock.close()
}
