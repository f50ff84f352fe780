/**
 * Answers that repeat the one before. What is not acknowledged is sent again at once (RFC 8936 §2.4), so a receiver that
 * acknowledges something else, or nothing, would ask and be answered without end. It is made to wait: nothing that it is
 * sent is news to it.
 */

export interface Repetitions {
  /** @returns how often in a row this process has now answered for this stream with just these events, from 1 */
  count(streamId: string, jtis: readonly string[]): number
}

/** Those that have not been polled for longest are forgotten first. */
const mostStreams = 2_000

export function openRepetitions(): Repetitions {
  const last = new Map<string, { readonly jtis: string; readonly times: number }>()
  return {
    count(streamId, jtis) {
      const joined = jtis.join(' ')
      const before = last.get(streamId)
      const times = before?.jtis === joined ? before.times + 1 : 1
      last.delete(streamId)
      if (jtis.length > 0) last.set(streamId, { jtis: joined, times })
      for (const [oldest] of last) {
        if (last.size <= mostStreams) break
        last.delete(oldest)
      }
      return times
    },
  }
}
