/** Milliseconds on the machine's own clock, which no setting moves: the same in every process of it (clock_gettime(2)). */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6
}
