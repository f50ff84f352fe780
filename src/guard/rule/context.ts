/**
 * What a request adds to a decision: when it comes, from where, and how. Times are of a configured zone and an injected
 * clock, networks are ranges with names, so that policies say `context.network == "corporate"` and not which addresses
 * those are this year.
 */
import { isIP } from 'node:net'
import { Network } from '../policy/network.ts'

/** Settings of a context builder. */
export interface ContextOptions {
  /** @defaultValue the system's clock */
  readonly now?: () => Date
  /** IANA name of the zone in which `hour`, `day` and `clock` are meant. @defaultValue `'UTC'` */
  readonly timeZone?: string
  /** Name to address ranges. The first network that contains an address gives its name. */
  readonly networks?: Readonly<Record<string, readonly string[]>>
}

/** What is known of one request. */
export interface RequestFacts {
  /** The client's address, already taken from whatever proxy is trusted. */
  readonly ip?: string | undefined
  /** `api`, `web`, `batch`, … as the service calls it. */
  readonly requestType?: string | undefined
}

/**
 * What conditions find under `context`. What is not known is left out, so that a policy that asks for it fails safe.
 */
export interface RequestContext {
  /** This moment, a timestamp. */
  readonly time: Date
  /** Hours of the day, 0 to 23. */
  readonly hour: number
  /** `14:30`. */
  readonly clock: string
  readonly day: 'weekday' | 'weekend'
  /** `monday` to `sunday`. */
  readonly day_of_week: string
  readonly ip?: string
  /** Name of the network the address belongs to; `other` when to none. */
  readonly network?: string
  readonly request_type?: string
  readonly [name: string]: unknown
}

/**
 * A function that makes the context of a request.
 *
 * @throws RangeError when the time zone is none, or a range is none
 *
 * @example
 * ```ts
 * import { contextBuilder } from '@latchkey/guard'
 *
 * const contextOf = contextBuilder({ timeZone: 'Europe/Berlin', networks: { corporate: ['10.0.0.0/8'] } })
 * const { hour, day, network } = contextOf({ ip: '10.0.1.5', requestType: 'api' })
 * ```
 */
export function contextBuilder(options: ContextOptions = {}): (request: RequestFacts) => RequestContext {
  const now = options.now ?? (() => new Date())
  const format = new Intl.DateTimeFormat('en-US', {
    timeZone: options.timeZone ?? 'UTC',
    weekday: 'long',
    hour: '2-digit',
    minute: '2-digit',
    // Midnight is 00, not 24.
    hourCycle: 'h23',
  })
  const networks = Object.entries(options.networks ?? {}).map(
    ([name, ranges]) => [name, ranges.map((range) => new Network(range))] as const,
  )

  // Formatting costs more than a decision, and within one second it comes out the same in every zone there is.
  let second = Number.NaN
  let local: LocalTime | undefined
  const localTimeOf = (time: Date): LocalTime => {
    const at = Math.floor(time.getTime() / 1000)
    if (local === undefined || at !== second) {
      local = localTime(format, time)
      second = at
    }
    return local
  }

  return ({ ip, requestType }) => {
    const time = now()
    const known = ip !== undefined && isIP(ip) !== 0 ? ip : undefined
    return {
      time,
      ...localTimeOf(time),
      ...(known === undefined ? {} : { ip: known, network: networkOf(known, networks) }),
      ...(requestType === undefined ? {} : { request_type: requestType }),
    }
  }
}

type LocalTime = Pick<RequestContext, 'hour' | 'clock' | 'day' | 'day_of_week'>

function localTime(format: Intl.DateTimeFormat, time: Date): LocalTime {
  const parts = new Map(format.formatToParts(time).map(({ type, value }) => [type, value]))
  const weekday = (parts.get('weekday') ?? '').toLowerCase()
  const hour = parts.get('hour') ?? ''
  return {
    hour: Number(hour),
    clock: `${hour}:${parts.get('minute') ?? ''}`,
    day: weekday === 'saturday' || weekday === 'sunday' ? 'weekend' : 'weekday',
    day_of_week: weekday,
  }
}

function networkOf(ip: string, networks: readonly (readonly [string, readonly Network[]])[]): string {
  return networks.find(([, ranges]) => ranges.some((range) => range.contains(ip)))?.[0] ?? 'other'
}
