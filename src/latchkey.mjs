#!/usr/bin/env node
// The `latchkey` program. Plain JavaScript, so that a Node which cannot read what follows still gets as far as saying so.
import { existsSync } from 'node:fs'
import { availableParallelism } from 'node:os'

const leastNode = 24

if (Number(process.versions.node.split('.')[0]) < leastNode) {
  console.error(
    [
      `Latchkey needs Node ${leastNode} or newer, and this is Node ${process.versions.node}.`,
      `In its repository: run \`npm ci\`, which brings Node ${leastNode} along (without --ignore-scripts),`,
      'then `npm start`, or `npm run latchkey -- <command>`.',
      `Installed as a package: install Node ${leastNode} from https://nodejs.org, and run it with that.`,
    ].join('\n'),
  )
  process.exit(1)
}

// Password hashes and signatures share libuv's threads. As many hashes run at once as there are processors, so there
// must be more threads than those, or no token is signed while people sign in. Read once, before their first use.
process.env['UV_THREADPOOL_SIZE'] ??= String(Math.max(4, availableParallelism() + 2))

const source = new URL('main.ts', import.meta.url)
const { main } = await import(existsSync(source) ? source.href : new URL('main.js', import.meta.url).href)
process.exitCode = await main(process.argv.slice(2))
