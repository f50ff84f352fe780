/**
 * Keeps a copy of rows up to date: reads them when opened, again when a change is announced, and every so often in case
 * the announcement was lost. One read at a time; a change during a read causes one more, so that the copy never rests
 * on what was read before it.
 */
import type { Logger } from 'pino'
import type { Changes, Topic } from '../database/changes.ts'

export interface Reloading {
  /** Reads now; what was committed before is in the copy when it returns, unless the read fails, which is logged. */
  readonly reload: () => Promise<void>
  /** Ends it, once a read under way is over. */
  readonly close: () => Promise<void>
}

/**
 * @param load reads the rows. When it fails later, the copy stays as it was and the next change or poll tries again
 * @param everySeconds how often to read without having been told, in seconds
 * @throws what the first `load` throws
 */
export async function openReloading(
  { changes, topic, everySeconds, log }: { changes: Changes; topic: Topic; everySeconds: number; log: Logger },
  load: () => Promise<void>,
): Promise<Reloading> {
  const stopped = new AbortController()
  let isWanted = false
  let running: Promise<void> | undefined

  async function run(): Promise<void> {
    while (isWanted && !stopped.signal.aborted) {
      isWanted = false
      try {
        await load()
      } catch (error) {
        log.error({ error_message: error instanceof Error ? error.message : String(error), topic }, 'reload failed')
      }
    }
    running = undefined
  }
  const reload = () => {
    isWanted = true
    return (running ??= run())
  }
  const request = () => void reload()

  // Listening begins before the first read, so that no change falls between the two.
  const unsubscribe = changes.on(topic, request)
  try {
    running = load()
    await running
  } catch (error) {
    unsubscribe()
    throw error
  }
  running = undefined
  if (isWanted) request()
  const timer = setInterval(request, everySeconds * 1_000)
  timer.unref()
  return {
    reload,
    async close() {
      stopped.abort()
      unsubscribe()
      clearInterval(timer)
      await running
    },
  }
}
