import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, it } from 'vitest'

it('a keeper is waited for by a process that has nothing else to do', async () => {
  const program = `
    import { startKeeper } from ${JSON.stringify(join(import.meta.dirname, 'keeper.ts'))}
    await startKeeper('cat >/dev/null; sleep 0.2', []).end()
    console.log('ended')
  `
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '--eval', program])
  expect(stdout).toBe('ended\n')
})
