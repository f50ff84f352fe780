/**
 * A policy file that may change while the service runs. The file is read again every second, because that notices every
 * way in which files change: edited, replaced, or swapped behind a symbolic link as Kubernetes does, where change
 * notifications stay silent. A file that does not load changes nothing: the last good set stays and the refusal is
 * reported.
 */
import { PolicyError } from './policy-error.ts'
import { policySet, readPolicyFile } from './policy-set.ts'
import type { PolicySet } from './policy-set.ts'

/** Options of {@link watchPolicies}. */
export interface WatchOptions {
  /** Milliseconds between two looks at the file. @defaultValue 1000 */
  readonly intervalMs?: number
  /** Called with each new set that took over. */
  readonly onReload?: (policies: PolicySet) => void
  /** Called once for each version of the file that was refused; the set in use has not changed. */
  readonly onRefused?: (error: PolicyError) => void
}

/** A watched file. */
export interface PolicyWatch {
  /** The last set that loaded. */
  readonly current: PolicySet
  /** Why the file as it is now is not the set in use; undefined when it is. */
  readonly refused: PolicyError | undefined
  /** Looks at the file now instead of at the next second. */
  reload(): void
  close(): void
}

/**
 * Loads a policy file and follows it.
 *
 * @throws PolicyError when the file does not load the first time: a service must not start without its policies
 *
 * @example
 * ```ts
 * import { watchPolicies } from '@latchkey/guard'
 *
 * const watched = watchPolicies({ path: './policies.yaml' }, { onRefused: (error) => console.error(error.message) })
 * console.log(watched.current.version)
 * watched.close()
 * ```
 */
export function watchPolicies(source: { readonly path: string }, options: WatchOptions = {}): PolicyWatch {
  const { path } = source
  let seen: string | undefined = readPolicyFile(path)
  let current = policySet(seen, path)
  let refused: PolicyError | undefined

  function refuse(error: unknown): void {
    if (!(error instanceof PolicyError)) throw error
    const known = refused?.message === error.message
    refused = error
    if (!known) options.onRefused?.(error)
  }

  function reload(): void {
    let text: string
    try {
      text = readPolicyFile(path)
    } catch (error) {
      // Even if it comes back as it was, it has to be read again.
      seen = undefined
      refuse(error)
      return
    }
    if (text === seen) return
    seen = text
    try {
      current = policySet(text, path)
    } catch (error) {
      refuse(error)
      return
    }
    refused = undefined
    options.onReload?.(current)
  }

  const timer = setInterval(reload, options.intervalMs ?? 1_000)
  // Watching alone must not keep a process alive.
  timer.unref()
  return {
    get current() {
      return current
    },
    get refused() {
      return refused
    },
    reload,
    close: () => clearInterval(timer),
  }
}
