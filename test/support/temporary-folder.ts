import { mkdtempSync } from 'node:fs'
import { join } from 'node:path'
import { inject } from 'vitest'

/** An empty folder of the caller's own, which is gone after the run, however it ends. */
export function makeTemporaryFolder(): string {
  return mkdtempSync(join(inject('temporaryFolder'), 'folder-'))
}
