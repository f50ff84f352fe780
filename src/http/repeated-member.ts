/**
 * Finds a member that an object of JSON has twice: parsers disagree about which counts (RFC 8259 §4), so whoever checked a
 * request on its way may have read another one.
 *
 * One pass, from string to string, with the names of the objects that are open. Escapes are read: `"\u0061"` is `"a"`.
 *
 * @param text JSON that was parsed already: of anything else it says nothing true
 * @returns its path, such as `addresses[1].street`; undefined when each is there once
 */
export function findRepeatedMember(text: string): string | undefined {
  const open: Container[] = []
  let top: Container | undefined
  let isName = false
  for (let at = 0; at < text.length; at += 1) {
    switch (text.charCodeAt(at)) {
      case quote: {
        const end = endOfString(text, at)
        if (isName && top?.names !== undefined) {
          const written = text.slice(at + 1, end)
          const name = written.includes('\\') ? (JSON.parse(`"${written}"`) as string) : written
          top.at = name
          if (top.names.has(name)) return pathOf(open)
          top.names.add(name)
          isName = false
        }
        at = end
        break
      }
      case openBrace:
        top = { names: new Set(), at: '' }
        open.push(top)
        isName = true
        break
      case openBracket:
        top = { names: undefined, at: 0 }
        open.push(top)
        isName = false
        break
      case closeBrace:
      case closeBracket:
        open.pop()
        top = open.at(-1)
        isName = false
        break
      case comma:
        if (typeof top?.at === 'number') top.at += 1
        else isName = true
        break
    }
  }
  return undefined
}

/** An object or an array that has not ended. */
interface Container {
  /** undefined for an array */
  readonly names: Set<string> | undefined
  /** the member or the place that is being read */
  at: string | number
}

const [quote, backslash, openBrace, closeBrace, openBracket, closeBracket, comma] = [
  0x22, 0x5c, 0x7b, 0x7d, 0x5b, 0x5d, 0x2c,
]

/** The place of the quote that ends the string which begins here: the first that no backslash escapes. */
function endOfString(text: string, start: number): number {
  for (let end = text.indexOf('"', start + 1); end !== -1; end = text.indexOf('"', end + 1)) {
    let backslashes = 0
    while (text.charCodeAt(end - 1 - backslashes) === backslash) backslashes += 1
    if (backslashes % 2 === 0) return end
  }
  return text.length
}

function pathOf(open: readonly Container[]): string {
  return open.map(({ at }, i) => (typeof at === 'number' ? `[${at}]` : i === 0 ? at : `.${at}`)).join('')
}
