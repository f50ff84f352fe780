/**
 * Streams that wait for something to be sent, in this process: long polls, and the pusher's. All of them are woken by one
 * notification and asked about by one query, so a hundred that wait cost little more than one. Nothing is remembered of
 * what was sent: the query says what each is still to be sent (deliveries.ts).
 *
 * An answer without events is no guess either: it is only given by a query that found none, so that a receiver may take
 * it as proof that it knows everything, unless it says that more is available: then the stream stands still, and something
 * is held back.
 */
import type { Logger } from 'pino'
import type { Changes } from '../database/changes.ts'
import type { Db } from '../database/database.ts'
import type { Phase } from '../http/health.ts'
import { Problem } from '../problems.ts'
import { findPending, mendOrder, type Pending, type StatusEvent } from './deliveries.ts'
import type { SignedEvent, SignedEvents } from './signed-events.ts'
import { noStream } from './streams.ts'

export interface NextEvents {
  readonly streamId: string
  /** at most so many events */
  readonly most: number
  /** how long to wait for the first of them, in milliseconds; 0: not at all */
  readonly holdMs: number
  /** aborted when nobody waits any more */
  readonly signal: AbortSignal
}

/** An event on its way to a stream. */
export interface NextEvent extends SignedEvent {
  /** It tells of the stream, and so of what comes before it and behind it: it is not to be overtaken, nor to overtake. */
  readonly isAboutStream: boolean
}

export interface Events {
  readonly events: readonly NextEvent[]
  readonly moreAvailable: boolean
}

export interface Waiting {
  /**
   * What a stream is to be sent next: at once when there is something, else as soon as there is. One at a time of each
   * stream: a second one ends the first.
   * @throws Problem RESOURCE_NOT_FOUND when the stream is gone, CONFLICT to the first of two, SERVICE_UNAVAILABLE when
   *   too many wait or this process is going; the database's errors; `signal`'s reason
   */
  next(wanted: NextEvents): Promise<Events>
  close(): void
}

interface Waiter extends NextEvents {
  readonly resolve: (events: Events) => void
  readonly reject: (error: unknown) => void
  /** the first look has been taken, and there was nothing */
  isWaiting: boolean
  /** the next look is the last: whatever it finds is the answer */
  isLast: boolean
}

const mostWaiting = 2_000
/** A burst of revocations wakes everybody once. In milliseconds. */
const gatherMs = 10
const retryMs = 250
const lookAtPhaseEveryMs = 100
const mendEveryMs = 1_000

function asNext(event: SignedEvent | undefined): NextEvent[] {
  return event === undefined ? [] : [{ jti: event.jti, token: event.token, isAboutStream: false }]
}

/** What is held back is nothing to wake anybody for. */
function isSomething({ events, statusEvent, verification }: Pending): boolean {
  return events.length > 0 || statusEvent !== undefined || verification !== undefined
}

export function openWaiting({
  db,
  changes,
  signedEvents,
  resource,
  signVerification,
  signStatus,
  phase,
  log,
}: {
  readonly db: Db
  readonly changes: Pick<Changes, 'on'>
  readonly signedEvents: SignedEvents
  /** the feed's own, which a client needs a permission of */
  readonly resource: string
  /** the token of a verification event of this stream */
  readonly signVerification: (streamId: string, jti: string, state: string | null) => Promise<SignedEvent>
  /** the token that tells of this stream's status */
  readonly signStatus: (streamId: string, event: StatusEvent) => Promise<SignedEvent>
  readonly phase: () => Phase
  readonly log: Logger
}): Waiting {
  const waiters = new Map<string, Waiter>()
  let toLookAt = new Set<Waiter>()
  let isLooking = false
  let gathering: NodeJS.Timeout | undefined
  let mendedAt = -Infinity
  let isClosed = false

  function look(these: Iterable<Waiter>): void {
    for (const waiter of these) toLookAt.add(waiter)
    if (!isLooking) void lookUntilDone()
  }

  async function lookUntilDone(): Promise<void> {
    isLooking = true
    while (toLookAt.size > 0) {
      const batch = [...toLookAt].filter((waiter) => waiters.get(waiter.streamId) === waiter)
      toLookAt = new Set()
      if (batch.length === 0) continue
      try {
        await mendSometimes()
        const pending = await findPending(db, batch, resource)
        for (const waiter of batch) settle(waiter, pending.get(waiter.streamId))
      } catch (error) {
        postpone(batch, error)
      }
    }
    isLooking = false
  }

  function settle(waiter: Waiter, pending: Pending | undefined): void {
    // It may have left meanwhile.
    if (waiters.get(waiter.streamId) !== waiter) return
    if (pending === undefined) {
      waiters.delete(waiter.streamId)
      waiter.reject(noStream(waiter.streamId))
    } else if (waiter.isLast || isSomething(pending)) {
      waiters.delete(waiter.streamId)
      void render(waiter, pending).then(waiter.resolve, waiter.reject)
    } else {
      waiter.isWaiting = true
    }
  }

  async function render({ streamId, most }: Waiter, pending: Pending): Promise<Events> {
    const { hasMore, statusEvent, verification } = pending
    const events: NextEvent[] = []
    const tell = async (signed: Promise<SignedEvent>) => void events.push({ ...(await signed), isAboutStream: true })
    // SSF 1.0 §8.1.5: before anything else of a stream that goes on, and alone of one that stands still.
    if (statusEvent !== undefined && most > 0) await tell(signStatus(streamId, statusEvent))
    const next = pending.events.slice(0, most - events.length)
    const found = await signedEvents.find(next)
    events.push(...next.flatMap(({ id }) => asNext(found.get(id))))
    const isMore = hasMore || next.length < pending.events.length
    const isDue = verification !== undefined && !isMore
    if (isDue && events.length < most) {
      await tell(signVerification(streamId, verification.jti, verification.state))
      return { events, moreAvailable: false }
    }
    return { events, moreAvailable: isMore || isDue || (statusEvent !== undefined && most === 0) }
  }

  /** Whoever has only just asked is told; whoever waits may as well wait for the database. */
  function postpone(batch: readonly Waiter[], error: unknown): void {
    const patient = batch.filter((waiter) => waiter.isWaiting && !waiter.isLast)
    if (patient.length > 0) log.warn({ error_message: String(error) }, 'what the streams wait for could not be read')
    for (const waiter of batch) {
      if (patient.includes(waiter) || waiters.get(waiter.streamId) !== waiter) continue
      waiters.delete(waiter.streamId)
      waiter.reject(error)
    }
    setTimeout(() => look(patient), retryMs).unref()
  }

  async function mendSometimes(): Promise<void> {
    if (performance.now() - mendedAt < mendEveryMs) return
    mendedAt = performance.now()
    if (await mendOrder(db)) log.warn('the transactions of this database began anew: every stream does too')
  }

  function wake(): void {
    if (waiters.size === 0) return
    gathering ??= setTimeout(() => {
      gathering = undefined
      look(waiters.values())
    }, gatherMs)
  }

  function answerAll(): void {
    for (const waiter of waiters.values()) waiter.isLast = true
    look(waiters.values())
  }

  // Nobody may wait for an event while the process waits for them.
  const phaseTimer = setInterval(() => {
    if (waiters.size > 0 && phase() === 'draining') answerAll()
  }, lookAtPhaseEveryMs)
  phaseTimer.unref()
  const unsubscribe = [changes.on('revocations', wake), changes.on('signals', wake)]

  async function next(wanted: NextEvents): Promise<Events> {
    wanted.signal.throwIfAborted()
    const isDraining = isClosed || phase() === 'draining'
    if ((isDraining && wanted.holdMs > 0) || waiters.size >= mostWaiting) {
      throw new Problem(
        'SERVICE_UNAVAILABLE',
        isDraining ? 'This process is going.' : 'Too many streams wait here already.',
        { retryAfterSeconds: 1 },
      )
    }
    const { promise, resolve, reject } = Promise.withResolvers<Events>()
    const waiter: Waiter = { ...wanted, resolve, reject, isWaiting: false, isLast: wanted.holdMs <= 0 }
    waiters
      .get(wanted.streamId)
      ?.reject(new Problem('CONFLICT', 'Another request for the same stream took the place of this one.'))
    waiters.set(wanted.streamId, waiter)
    const leave = () => {
      if (waiters.get(waiter.streamId) === waiter) waiters.delete(waiter.streamId)
      reject(wanted.signal.reason)
    }
    wanted.signal.addEventListener('abort', leave, { once: true })
    const timer = setTimeout(() => {
      waiter.isLast = true
      look([waiter])
    }, wanted.holdMs)
    look([waiter])
    try {
      return await promise
    } finally {
      clearTimeout(timer)
      wanted.signal.removeEventListener('abort', leave)
    }
  }

  return {
    next,
    close() {
      isClosed = true
      for (const end of unsubscribe) end()
      clearInterval(phaseTimer)
      clearTimeout(gathering)
      for (const waiter of waiters.values()) {
        waiter.reject(new Problem('SERVICE_UNAVAILABLE', 'This process is going.', { retryAfterSeconds: 1 }))
      }
      waiters.clear()
    },
  }
}
