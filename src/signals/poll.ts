/** One poll of a stream (RFC 8936 §2): what has arrived is taken down, and what is next is answered, now or later. */
import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'
import type { Db } from '../database/database.ts'
import { Problem } from '../problems.ts'
import { readRefusalCode, recordReceipt, type Receipts } from './receipts.ts'
import type { Repetitions } from './repetitions.ts'
import { noStream, renewStream } from './streams.ts'
import type { Waiting } from './waiting.ts'

/** As many as one answer holds, and as many as it holds when nobody says how many. */
const mostEvents = 500
const usualEvents = 100
const mostReceipts = 5_000

/** The same answer is given so often without a pause: whoever lost one and asks again is not kept waiting. */
const mostRepetitions = 3
const repetitionPauseMs = 1_000

const jti = z.string().min(1).max(200)

/** Members that are not known are left alone, as JSON of the IETF's protocols demands. */
export const pollSchema = z.object({
  maxEvents: z.int().min(0).optional(),
  returnImmediately: z.boolean().default(false),
  ack: z.array(jti).max(mostReceipts).default([]),
  setErrs: z
    .record(jti, z.object({ err: z.string().max(200), description: z.string().max(2_000).optional() }))
    .refine((errors) => Object.keys(errors).length <= mostReceipts, {
      error: `must have ${mostReceipts} members at most`,
      params: { constraint: 'maximum' },
    })
    .default({}),
})

export interface PollParts {
  readonly db: Db
  readonly receipts: Receipts
  readonly waiting: Pick<Waiting, 'next'>
  readonly repetitions: Repetitions
}

export interface PollAnswer {
  readonly sets: Readonly<Record<string, string>>
  readonly moreAvailable: boolean
}

/**
 * @param poll.holdMs how long a poll that finds nothing waits, in milliseconds
 * @param poll.signal aborted when the caller has left
 * @param poll.onRefused told what a receiver could not make use of
 * @throws Problem RESOURCE_NOT_FOUND when this client has no such stream, CONFLICT when it is pushed to or polled by
 *   another request, SERVICE_UNAVAILABLE
 */
export async function pollStream(
  { db, receipts, waiting, repetitions }: PollParts,
  poll: {
    readonly clientId: string
    readonly streamId: string
    readonly request: z.output<typeof pollSchema>
    readonly holdMs: number
    readonly signal: AbortSignal
    readonly onRefused: (errors: Readonly<Record<string, { readonly err: string }>>) => void
  },
): Promise<PollAnswer> {
  const { streamId, request } = poll
  const refused = Object.fromEntries(
    Object.entries(request.setErrs).map(([jti, { err }]) => [jti, readRefusalCode(err)]),
  )
  const receipt = { acknowledged: request.ack, refused }
  const stream = await receipts.take({ clientId: poll.clientId, streamId, receipt })
  if (stream === undefined) throw noStream(streamId)
  if (Object.keys(refused).length > 0) poll.onRefused(request.setErrs)
  if (stream.delivery_method !== 'poll') throw new Problem('CONFLICT', 'The events of this stream are pushed.')
  await renewStream(db, stream)
  const most = Math.min(request.maxEvents ?? usualEvents, mostEvents)
  // Without room for an event there is nothing to wait for: it is sent to acknowledge (RFC 8936 §2.4.2).
  const holdMs = request.returnImmediately || most === 0 ? 0 : poll.holdMs
  const { events, moreAvailable } = await waiting.next({ streamId, most, holdMs, signal: poll.signal })
  const times = repetitions.count(
    streamId,
    events.map(({ jti }) => jti),
  )
  if (events.length > 0 && times > mostRepetitions && holdMs > 0) await pause(repetitionPauseMs, poll.signal)
  // Nothing has come for long: time to leave behind what is not for this stream, and what had to wait for others.
  if (events.length === 0 && holdMs > 0) {
    await recordReceipt(db, stream, { acknowledged: [] })
  }
  return { sets: Object.fromEntries(events.map((event) => [event.jti, event.token])), moreAvailable }
}

/** @throws the signal's reason */
async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await sleep(ms, undefined, { signal }).catch(() => signal.throwIfAborted())
}
