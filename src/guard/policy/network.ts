/**
 * Addresses and ranges of them, by Node's own `BlockList`: an IPv4 address is the same address when it is written the
 * IPv6 way (`::ffff:10.0.0.1`). Used by the function `cidr()` of conditions and by the context's named networks.
 */
import { BlockList, isIP } from 'node:net'

/** A range of addresses. */
export class Network {
  readonly text: string
  readonly #list: BlockList

  /** @throws RangeError when the text is no address range */
  constructor(text: string) {
    const slash = text.lastIndexOf('/')
    const address = slash === -1 ? text : text.slice(0, slash)
    const family = isIP(address)
    const bits = family === 6 ? 128 : 32
    const prefix = slash === -1 ? String(bits) : text.slice(slash + 1)
    if (family === 0 || address.includes('%') || !/^\d{1,3}$/.test(prefix) || Number(prefix) > bits) {
      throw new RangeError(`'${text}' is no address range, such as 10.0.0.0/8 or 2001:db8::/32`)
    }
    this.text = text
    this.#list = new BlockList()
    this.#list.addSubnet(address, Number(prefix), family === 6 ? 'ipv6' : 'ipv4')
  }

  /** @throws RangeError when the text is no address */
  contains(address: string): boolean {
    const family = isIP(address)
    if (family === 0) throw new RangeError(`'${address.slice(0, 64)}' is no IP address`)
    return this.#list.check(address, family === 6 ? 'ipv6' : 'ipv4')
  }
}

// Ranges in conditions are nearly always literals: reading the same few again for each decision would be waste. A range
// that comes with a request may be anything, so the store is bounded.
const KNOWN_LIMIT = 1_000
const known = new Map<string, Network>()

/** The range a text names. */
export function network(text: string): Network {
  const found = known.get(text)
  if (found !== undefined) return found
  const made = new Network(text)
  if (known.size >= KNOWN_LIMIT) known.clear()
  known.set(text, made)
  return made
}
