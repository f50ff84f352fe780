import { readFileSync } from 'node:fs'
import { join } from 'node:path'

export type Fate = 'dead' | 'lives'

/** The table of docs/revocation.md: what happened → artefact → what becomes of it. */
export function readKillMatrix(): ReadonlyMap<string, Readonly<Record<string, Fate>>> {
  const page = readFileSync(join(import.meta.dirname, '..', '..', '..', 'docs', 'revocation.md'), 'utf8')
  const [, table = ''] = /<!-- kill matrix -->\n([^]*?)\n<!-- end -->/.exec(page) ?? []
  const [heading = [], , ...rows] = table
    .trim()
    .split('\n')
    .map((line) =>
      line
        .split('|')
        .slice(1, -1)
        .map((cell) => cell.trim()),
    )
  const artefacts = heading.slice(1)
  return new Map(
    rows.map(([trigger = '', ...cells]) => {
      const fates = artefacts.map((artefact, i): [string, Fate] => {
        const fate = cells[i]?.replaceAll('*', '')
        if (fate !== 'dead' && fate !== 'lives') throw new Error(`${trigger}: ${artefact} is neither dead nor alive`)
        return [artefact, fate]
      })
      return [trigger, Object.fromEntries(fates)]
    }),
  )
}
