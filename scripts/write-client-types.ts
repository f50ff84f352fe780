/**
 * Writes src/client/api.ts from docs/openapi.json: `npm run build:client-types`, and at the end of `npm run openapi`. A
 * test fails when the two say different things. The generator needs the compiler API of an older TypeScript, which the
 * client's workspace has for it alone.
 */
import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const generator = `${root}src/client/node_modules/.bin/openapi-typescript`

/**
 * @param document an OpenAPI document, as text
 * @returns TypeScript
 */
export function clientTypes(document: string): string {
  // What has a default may be left out of a request.
  return execFileSync(generator, ['--default-non-nullable=false', '--empty-objects-unknown'], {
    input: JSON.stringify(JSON.parse(document, withoutExample)),
    encoding: 'utf8',
    stdio: ['pipe', 'pipe', 'inherit'],
    maxBuffer: 2 ** 26,
  })
}

/** The examples of whole bodies would be two thirds of the file; those of single members stay. */
function withoutExample(_name: string, value: unknown): unknown {
  if (typeof value !== 'object' || value === null || !('example' in value)) return value
  const { example, ...rest } = value
  return 'schema' in rest || (typeof example === 'object' && example !== null) ? rest : value
}

if (import.meta.main) {
  writeFileSync(`${root}src/client/api.ts`, clientTypes(readFileSync(`${root}docs/openapi.json`, 'utf8')))
}
