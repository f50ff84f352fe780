import { readFileSync } from 'node:fs'
import { z } from 'zod'

/**
 * The package.json that a workspace is published with: where its exports name TypeScript, they name what was made of it.
 *
 * @param path of the workspace's own package.json
 * @returns its text
 */
export function publishedManifest(path: string): string {
  const { devDependencies: _ours, ...manifest } = z
    .looseObject({ exports: z.record(z.string(), z.string().endsWith('.ts')) })
    .parse(JSON.parse(readFileSync(path, 'utf8')))
  const exports = Object.fromEntries(
    Object.entries(manifest.exports).map(([name, file]) => {
      const stem = file.slice(0, -'.ts'.length)
      return [name, { types: `${stem}.d.ts`, default: `${stem}.js` }]
    }),
  )
  const published = { ...manifest, exports: { ...exports, './package.json': './package.json' }, types: './index.d.ts' }
  return `${JSON.stringify(published, null, 2)}\n`
}
