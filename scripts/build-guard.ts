/**
 * Makes the folder that `@latchkey/guard` is published from: `npm run build:guard`, then `npm pack ./dist/guard`.
 * Node does not run TypeScript inside node_modules, so what is published is JavaScript and declarations, with a
 * package.json whose exports point at those.
 */
import { execFileSync } from 'node:child_process'
import { copyFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { publishedManifest } from './published-manifest.ts'

const root = join(import.meta.dirname, '..')
const source = join(root, 'src', 'guard')

/** @param target the folder, which is made anew */
export function buildGuard(target: string): void {
  rmSync(target, { recursive: true, force: true })
  const options = ['--project', 'tsconfig.guard.json', '--outDir', target]
  execFileSync(join(root, 'node_modules', '.bin', 'tsc'), options, { cwd: root, stdio: 'inherit' })
  writeFileSync(join(target, 'package.json'), publishedManifest(join(source, 'package.json')))
  copyFileSync(join(source, 'README.md'), join(target, 'README.md'))
  copyFileSync(join(root, 'LICENSE'), join(target, 'LICENSE'))
}

if (import.meta.main) buildGuard(join(root, 'dist', 'guard'))
