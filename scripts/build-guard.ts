/**
 * Makes the folder that `@latchkey/guard` is published from: `npm run build:guard`, then `npm pack ./dist/guard`.
 * Node does not run TypeScript inside node_modules, so what is published is JavaScript and declarations, with a
 * package.json whose exports point at those.
 */
import { execFileSync } from 'node:child_process'
import { copyFileSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { z } from 'zod'

const root = fileURLToPath(new URL('..', import.meta.url))
const source = `${root}src/guard/`
const target = `${root}dist/guard/`

rmSync(target, { recursive: true, force: true })
execFileSync(`${root}node_modules/.bin/tsc`, ['--project', 'tsconfig.guard.json'], { cwd: root, stdio: 'inherit' })

const manifest = z
  .looseObject({ exports: z.record(z.string(), z.string().endsWith('.ts')) })
  .parse(JSON.parse(readFileSync(`${source}package.json`, 'utf8')))
const exports = Object.fromEntries(
  Object.entries(manifest.exports).map(([name, file]) => {
    const stem = file.slice(0, -'.ts'.length)
    return [name, { types: `${stem}.d.ts`, default: `${stem}.js` }]
  }),
)
const published = { ...manifest, exports: { ...exports, './package.json': './package.json' }, types: './index.d.ts' }
writeFileSync(`${target}package.json`, `${JSON.stringify(published, null, 2)}\n`)
copyFileSync(`${source}README.md`, `${target}README.md`)
copyFileSync(`${root}LICENSE`, `${target}LICENSE`)
