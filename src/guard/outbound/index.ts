/**
 * Calls to other services. It owns what a service owes those it calls and those that wait for it: connections, time
 * limits, retries, circuit breakers, and the tokens by which a service proves who it is.
 *
 * The flow of one call: `outbound.ts` prepares it (request id, trace, deadline) and then makes attempts. An attempt
 * asks the host's `breaker.ts`, waits for one of its `connection-slots.ts`, and is sent and read to its end by
 * `send.ts`. `retry.ts` says whether and when there is another. `client-credentials.ts` keeps the token, `call-context.ts`
 * reads what a request being served hands on, `settings.ts` holds the defaults and their bounds.
 *
 * undici (connections) and cockatiel (the breaker's states) are optional peers: install them to use this entry.
 * Deciding who may call *us* is left to the rest of the guard.
 */
export type { BreakerState } from './breaker.ts'
export { DEADLINE_HEADER, callContext } from './call-context.ts'
export type { CallContext, IncomingHeaders } from './call-context.ts'
export { clientCredentials } from './client-credentials.ts'
export type { ClientCredentialsOptions } from './client-credentials.ts'
export { createOutbound } from './outbound.ts'
export type { CallOptions, Destination, HostMetrics, Outbound, OutboundMetrics, TokenSource } from './outbound.ts'
export { OutboundError } from './outbound-error.ts'
export type { OutboundErrorDetails, OutboundReason } from './outbound-error.ts'
export type { ReplayableBody } from './send.ts'
export type { AttemptLog, OutboundOptions } from './settings.ts'
