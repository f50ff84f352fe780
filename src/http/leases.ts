/** Whose lease it is, and how much is left of it. */
export interface LeaseHolder<L, S> {
  readonly key: string
  /** as the last caller said */
  readonly limits: L
  /** lent by the database, and not used yet */
  readonly left: number
  /** what the database said last; undefined before its first answer */
  readonly seen: S | undefined
}

/** What the database answers to the wish for more. */
export interface Loan<S> {
  /** 0: there is less than the cost, and nothing was taken */
  readonly lent: number
  /** for how long it counts, in milliseconds */
  readonly endsInMs: number
  /** for how long there is nothing more to be had, for a cost of `emptyFor` or more, in milliseconds; 0: there may be */
  readonly emptyForMs: number
  readonly emptyFor: number
  readonly seen: S
}

export interface LeasesSettings<L, S> {
  readonly now: () => number
  /** beyond it, the key that was used longest ago is forgotten */
  readonly maxKeys: number
  /** Hands back `holder.left` and takes the next lease, of `cost` at least: one statement. */
  readonly lend: (holder: LeaseHolder<L, S>, cost: number) => Promise<Loan<S>>
  /** Is told what was left to a key that is forgotten; without it that counts as used. */
  readonly onForget?: (holder: LeaseHolder<L, S>) => void
}

export interface Leases<L, S> {
  /** @throws what `lend` throws */
  take(key: string, limits: L, cost: number): Promise<{ readonly allowed: boolean; readonly holder: LeaseHolder<L, S> }>
  giveBack(key: string, cost: number): void
  /** What is left of leases that have ended; it is in the caller's hands from then on. */
  collectExpired(): LeaseHolder<L, S>[]
  /** What is left of all, when the statements under way have ended. */
  collectAll(): Promise<LeaseHolder<L, S>[]>
  size(): number
}

interface Entry<L, S> extends LeaseHolder<L, S> {
  limits: L
  left: number
  seen: S | undefined
  /** of `now`: what is left then is handed back */
  endsAt: number
  /** of `now`: for a cost of `emptyFor` or more there is nothing before */
  emptyUntil: number
  emptyFor: number
  /** the statement under way, for which everybody waits who finds nothing left */
  lending: Promise<void> | undefined
}

/**
 * What a process has taken ahead of use, counted down in memory: for each key one lease, and one statement at a time. It
 * never lets more through than was lent to it; what is forgotten or lost with the process counts as used.
 */
export function openLeases<L, S>({ now, maxKeys, lend, onForget }: LeasesSettings<L, S>): Leases<L, S> {
  /** those used last at the end, once there are so many that some may have to go */
  const entries = new Map<string, Entry<L, S>>()

  function use(key: string, limits: L): Entry<L, S> {
    const known = entries.get(key)
    if (known !== undefined) {
      known.limits = limits
      // As long as nobody is about to be forgotten, the order says nothing.
      if (entries.size * 2 > maxKeys) {
        entries.delete(key)
        entries.set(key, known)
      }
      return known
    }
    const [oldest] = entries.size < maxKeys ? [] : entries.values()
    if (oldest !== undefined) {
      entries.delete(oldest.key)
      if (oldest.left > 0) onForget?.(collect(oldest))
    }
    const entry: Entry<L, S> = {
      key,
      limits,
      left: 0,
      seen: undefined,
      endsAt: -Infinity,
      emptyUntil: -Infinity,
      emptyFor: 0,
      lending: undefined,
    }
    entries.set(key, entry)
    return entry
  }

  async function borrow(entry: Entry<L, S>, cost: number): Promise<void> {
    const handedBack = collect(entry)
    const { lent, endsInMs, emptyForMs, emptyFor, seen } = await lend(handedBack, cost)
    const at = now()
    entry.seen = seen
    entry.left += lent
    entry.endsAt = at + endsInMs
    entry.emptyUntil = at + emptyForMs
    entry.emptyFor = emptyFor
  }

  /** From then on what is left is the caller's: nobody else can use it. */
  function collect(entry: Entry<L, S>): LeaseHolder<L, S> {
    const collected = asItIs(entry)
    entry.left = 0
    return collected
  }

  /** Before those who wait beside this one take from it too. */
  function asItIs({ key, limits, left, seen }: Entry<L, S>): LeaseHolder<L, S> {
    return { key, limits, left, seen }
  }

  return {
    async take(key, limits, cost) {
      // The same one to the end, also when it is forgotten meanwhile: a flood of keys makes nobody ask twice.
      const entry = use(key, limits)
      for (;;) {
        const at = now()
        if (entry.left >= cost && at < entry.endsAt) {
          entry.left -= cost
          return { allowed: true, holder: asItIs(entry) }
        }
        if (at < entry.emptyUntil && cost >= entry.emptyFor) return { allowed: false, holder: asItIs(entry) }
        entry.lending ??= borrow(entry, cost).finally(() => {
          entry.lending = undefined
        })
        await entry.lending
      }
    },
    giveBack(key, cost) {
      const entry = entries.get(key)
      if (entry !== undefined) entry.left += cost
    },
    collectExpired() {
      const at = now()
      const expired = [...entries.values()].filter(
        ({ left, endsAt, lending }) => left > 0 && at >= endsAt && lending === undefined,
      )
      return expired.map(collect)
    },
    async collectAll() {
      await Promise.allSettled([...entries.values()].flatMap(({ lending }) => lending ?? []))
      return [...entries.values()].filter(({ left }) => left > 0).map(collect)
    },
    size: () => entries.size,
  }
}
