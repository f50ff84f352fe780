import { mkdtempSync, renameSync, rmSync, symlinkSync, unlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { PolicyError, watchPolicies } from '../../../src/guard/policy/policies.ts'
import type { PolicyWatch } from '../../../src/guard/policy/policies.ts'

function source(action: string): string {
  return `policies:\n  - { id: ${action}, effect: allow, subjects: ["*"], actions: [${action}], resources: ["*"] }\n`
}

describe('a watched policy file', () => {
  let folder: string
  let path: string
  let watched: PolicyWatch | undefined

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'latchkey-policies-'))
    path = join(folder, 'policies.yaml')
    writeFileSync(path, source('read'))
  })

  afterEach(() => {
    watched?.close()
    rmSync(folder, { recursive: true, force: true })
  })

  function allows(action: string): boolean {
    const subject = { type: 'user', id: 'alice', roles: [], groups: [] } as const
    return watched?.current.decide({ subject, action, resource: { type: 'model' } }).allowed ?? false
  }

  it('refuses to start with a file that does not load', () => {
    writeFileSync(path, 'policies: nonsense')
    expect(() => watchPolicies({ path })).toThrow(PolicyError)
    expect(() => watchPolicies({ path: join(folder, 'missing.yaml') })).toThrow(PolicyError)
  })

  it('keeps the last good set when the file breaks, tells it once, and recovers', () => {
    const refused: string[] = []
    const versions: string[] = []
    watched = watchPolicies(
      { path },
      { onRefused: (error) => refused.push(error.message), onReload: ({ version }) => versions.push(version) },
    )
    const good = watched.current.version
    writeFileSync(path, 'policies: [')
    watched.reload()
    watched.reload()
    expect(allows('read')).toBe(true)
    expect(watched.current.version).toBe(good)
    expect(watched.refused).toBeInstanceOf(PolicyError)
    expect(refused).toHaveLength(1)

    writeFileSync(path, source('write'))
    watched.reload()
    expect([allows('read'), allows('write'), watched.refused]).toEqual([false, true, undefined])
    expect(versions).toEqual([watched.current.version])
  })

  it('keeps the last good set while the file is gone, and takes it back', () => {
    watched = watchPolicies({ path })
    unlinkSync(path)
    watched.reload()
    expect(allows('read')).toBe(true)
    expect(watched.refused?.message).toContain('cannot be read')
    writeFileSync(path, source('read'))
    watched.reload()
    expect(watched.refused).toBeUndefined()
  })

  it('notices by itself, within its interval, a file that is swapped behind a symbolic link', async () => {
    const link = join(folder, 'current')
    symlinkSync(path, link)
    watched = watchPolicies({ path: link }, { intervalMs: 20 })
    const other = join(folder, 'other.yaml')
    writeFileSync(other, source('write'))
    symlinkSync(other, `${link}.new`)
    renameSync(`${link}.new`, link)
    await vi.waitFor(() => expect(allows('write')).toBe(true), { timeout: 5_000 })
    expect(allows('read')).toBe(false)
  })
})
