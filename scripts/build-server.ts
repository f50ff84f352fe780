/**
 * Makes the folder that `latchkey` is published from: `npm run build:server`, then `npm pack ./dist/server`. The
 * repository in small, with JavaScript in place of TypeScript, which Node does not run inside node_modules. The guard is
 * a package of its own, which this one depends on.
 */
import { execFileSync } from 'node:child_process'
import { copyFileSync, cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { z } from 'zod'

const root = fileURLToPath(new URL('..', import.meta.url))
const target = `${root}dist/server/`

rmSync(target, { recursive: true, force: true })
execFileSync(`${root}node_modules/.bin/tsc`, ['--project', 'tsconfig.server.json'], { cwd: root, stdio: 'inherit' })
// The compiler follows imports of the guard into its sources.
rmSync(`${target}src/guard`, { recursive: true, force: true })

for (const folder of ['views', 'migrations']) cpSync(`${root}${folder}`, target + folder, { recursive: true })
// What the page at /docs is made of: those files of it that are served, and its licence.
mkdirSync(`${target}views/swagger-ui`)
for (const file of ['swagger-ui-bundle.js', 'swagger-ui.css', 'oauth2-redirect.js', 'LICENSE', 'NOTICE']) {
  copyFileSync(`${root}node_modules/swagger-ui-dist/${file}`, `${target}views/swagger-ui/${file}`)
}
mkdirSync(`${target}keys`)
for (const file of ['src/latchkey.mjs', 'keys/README.md', 'README.md', 'CHANGELOG.md', 'SECURITY.md', 'LICENSE']) {
  copyFileSync(root + file, target + file)
}

const { name, version, description, license, bin, type, dependencies, engines } = z
  .looseObject({ name: z.string(), version: z.string(), dependencies: z.record(z.string(), z.string()) })
  .parse(JSON.parse(readFileSync(`${root}package.json`, 'utf8')))
// It is a program: nothing in it is there to be imported.
const exports = { './package.json': './package.json' }
const published = { name, version, description, license, type, bin, exports, dependencies, engines }
writeFileSync(`${target}package.json`, `${JSON.stringify(published, null, 2)}\n`)
