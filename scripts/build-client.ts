/**
 * Makes the folder that `@latchkey/client` is published from: `npm run build:client`, then `npm pack ./dist/client`.
 * JavaScript and declarations, as for the guard, which it depends on.
 */
import { execFileSync } from 'node:child_process'
import { copyFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { publishedManifest } from './published-manifest.ts'

const root = join(import.meta.dirname, '..')
const source = join(root, 'src', 'client')

/** @param target the folder, which is made anew */
export function buildClient(target: string): void {
  const compiled = `${target}-compiled`
  for (const folder of [compiled, target]) rmSync(folder, { recursive: true, force: true })
  const options = ['--project', 'tsconfig.client.json', '--outDir', compiled]
  execFileSync(join(root, 'node_modules', '.bin', 'tsc'), options, { cwd: root, stdio: 'inherit' })
  // The compiler follows imports of the guard into its sources, so that it makes a folder of each.
  renameSync(join(compiled, 'client'), target)
  rmSync(compiled, { recursive: true })
  writeFileSync(join(target, 'package.json'), publishedManifest(join(source, 'package.json')))
  copyFileSync(join(source, 'README.md'), join(target, 'README.md'))
  copyFileSync(join(root, 'LICENSE'), join(target, 'LICENSE'))
}

if (import.meta.main) buildClient(join(root, 'dist', 'client'))
