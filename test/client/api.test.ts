import { readFileSync } from 'node:fs'
import { expect, it } from 'vitest'
import { clientTypes } from '../../scripts/write-client-types.ts'
import { version } from '../../src/client/version.ts'

it('the types of the API are those of its document; else run npm run build:client-types', () => {
  // Not by toEqual: the difference of two files of this size takes minutes to print.
  expect(readFileSync('src/client/api.ts', 'utf8') === clientTypes(readFileSync('docs/openapi.json', 'utf8'))).toBe(
    true,
  )
})

it('the package calls itself by its version, and comes with the guard that it was built with', () => {
  const manifest = (name: string) =>
    JSON.parse(readFileSync(`src/${name}/package.json`, 'utf8')) as {
      version: string
      dependencies: Record<string, string>
      peerDependencies: Record<string, string>
    }
  const client = manifest('client')
  const guard = manifest('guard')
  expect(client.version).toBe(version)
  expect(client.version).toBe(guard.version)
  expect(client.dependencies['@latchkey/guard']).toBe(guard.version)
  // What the guard's calls to other services need.
  for (const peer of ['undici', 'cockatiel']) {
    expect(guard.peerDependencies[peer]).toBe(`^${client.dependencies[peer]}`)
  }
})
