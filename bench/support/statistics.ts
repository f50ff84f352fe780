/** The value below which a share `q` of the values lies. */
export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? NaN
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5)
}

/** One ratio for each round, since what disturbs a round disturbs both sides of it. */
export function ratios(over: readonly number[], under: readonly number[]): number[] {
  return over.map((value, i) => value / (under[i] ?? NaN))
}

/** A bar, what was measured, and whether that is enough; `false` is printed as loudly as it deserves. */
export interface Bar {
  readonly bar: string
  readonly value: number
  readonly limit: string
  readonly isMet: boolean
}

export function printBars(bars: readonly Bar[]): void {
  for (const { bar, value, limit, isMet } of bars) {
    console.log(`${bar.padEnd(52)} ${value.toFixed(2).padStart(7)}   ${limit.padEnd(34)} ${isMet ? 'met' : 'NOT MET'}`)
  }
}
