/**
 * Tells services what has been revoked: the transmitter of the Shared Signals Framework. A service makes a stream
 * (routes.ts, streams.ts) and polls it, or has it pushed (poll.ts, push.ts); repetitions.ts slows a poll that gets nowhere.
 * What is sent is the table of revocations, each row as one signed event (events.ts, signed-events.ts); how far a stream
 * is, is in the database (deliveries.ts, receipts.ts), and those that wait in a process are woken together (waiting.ts).
 * What is revoked, and why, is for others to decide: they write the row, in the transaction that makes it true.
 * docs/signals.md says what receivers may rely on.
 */
import type { JWTPayload } from 'jose'
import type { Middleware } from 'koa'
import type { Logger } from 'pino'
import type { Config } from '../config.ts'
import type { Changes } from '../database/changes.ts'
import type { Database } from '../database/database.ts'
import type { Phase } from '../http/health.ts'
import { openOutgoing } from '../http/outgoing.ts'
import { openOwnGuard } from '../revocation/own-guard.ts'
import type { KeyEncryption } from '../signing/key-encryption.ts'
import type { KeyRing } from '../signing/key-ring.ts'
import { mendOrder } from './deliveries.ts'
import { describeStreamUpdate, describeVerification, tokenType } from './events.ts'
import { startPushing, type PushFailureReason } from './push.ts'
import { openReceipts } from './receipts.ts'
import { signalRoutes } from './routes.ts'
import { openSignedEvents, type SignedEvent } from './signed-events.ts'
import { openWaiting } from './waiting.ts'

export interface Signals {
  /** `/.well-known/ssf-configuration`, `/ssf/…` */
  readonly routes: Middleware
  close(): Promise<void>
}

export interface SignalsParts {
  readonly config: Pick<
    Config,
    'issuer' | 'isProduction' | 'jwksMaxAgeSeconds' | 'signalsPollSeconds' | 'handlerTimeoutSeconds'
  >
  readonly database: Pick<Database, 'db'>
  readonly changes: Changes
  readonly keyRing: KeyRing
  readonly encryption: KeyEncryption
  /** the feed's own resource, which its tokens are for: `{issuer}/ssf` */
  readonly audience: string
  readonly jwksUri: string
  readonly phase: () => Phase
  readonly log: Logger
  /** told of events that were sent: by an answer to a poll, repetitions too, or by a push that was accepted */
  readonly onDelivered: (way: 'poll' | 'push', count: number) => void
  /** told of every push that was not accepted: this event was refused, or the receiver could not be had */
  readonly onPushFailed: (reason: PushFailureReason) => void
}

/** How long a receiver may take to answer a push, in milliseconds. */
const pushTimeoutMs = 5_000

export async function openSignals(parts: SignalsParts): Promise<Signals> {
  const { config, changes, keyRing, encryption, audience, log } = parts
  const { db } = parts.database
  const { issuer } = config
  if (await mendOrder(db)) log.warn('this database was restored or taken over: every stream begins anew')

  const signedEvents = openSignedEvents({ db, keyRing, issuer, audience })
  const sign = async (jti: string, claims: JWTPayload): Promise<SignedEvent> => ({
    jti,
    token: (await keyRing.sign(tokenType, claims)).jwt,
  })
  const waiting = openWaiting({
    db,
    changes,
    signedEvents,
    resource: audience,
    signVerification: (streamId, jti, state) =>
      sign(jti, describeVerification(streamId, state, { issuer, audience, jti })),
    signStatus: (streamId, event) =>
      sign(event.jti, describeStreamUpdate(streamId, event, { issuer, audience, jti: event.jti })),
    phase: parts.phase,
    log,
  })
  const outgoing = openOutgoing({ allowLoopback: !config.isProduction, timeoutMs: pushTimeoutMs })
  const stopPushing = startPushing({
    db,
    changes,
    waiting,
    encryption,
    fetch: outgoing.fetch,
    resource: audience,
    log,
    onPushed: (count) => parts.onDelivered('push', count),
    onFailed: parts.onPushFailed,
  })
  const guard = openOwnGuard({
    db,
    issuer,
    audience,
    keys: () => keyRing.publicJwks(),
    onKeysChange: (listener) => keyRing.onChange(listener),
  })
  const routes = signalRoutes({
    db,
    issuer,
    audience,
    jwksUri: parts.jwksUri,
    maxAgeSeconds: config.jwksMaxAgeSeconds,
    guard,
    receipts: openReceipts(db),
    waiting,
    streams: { encryption, allowLoopback: !config.isProduction },
    holdMs: Math.min(config.signalsPollSeconds, config.handlerTimeoutSeconds - 1) * 1_000,
    log,
    onPolled: (count) => parts.onDelivered('poll', count),
  })
  return {
    routes,
    async close() {
      waiting.close()
      await stopPushing()
      await outgoing.close()
      await guard.close()
    },
  }
}
