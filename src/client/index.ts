/**
 * The management API of Latchkey for programs. It owns what a caller of that API should not have to write: types of every
 * operation, access tokens, retries that have one effect, refusals as errors, walks over lists.
 *
 * The flow of one call: `client.ts` builds the request by openapi-fetch, typed by `api.ts`, which is made from the
 * document of the API and never edited. `credentials.ts` says who calls. The guard's calls to other services carry it:
 * time limits, retries, the circuit breaker. `api-error.ts` reads a refusal, `deprecation.ts` what an answer says of its
 * own end; `paginate.ts` and `etag.ts` are for lists and for changes that must not overwrite another's. What may be
 * called, and what it means, is the server's to say: nothing of the server is in here.
 */
export type { components, operations, paths } from './api.ts'
export { LatchkeyApiError } from './api-error.ts'
export type { ErrorBody, ErrorCode, FieldError } from './api-error.ts'
export { createClient } from './client.ts'
export type { Answer, Call, CallInit, ClientOptions, DataOf, LatchkeyClient, Method, PathWith } from './client.ts'
export type { ClientAuth } from './credentials.ts'
export type { DeprecationNotice } from './deprecation.ts'
export { ifMatch } from './etag.ts'
export { paginate } from './paginate.ts'
export type { ItemOf, ListPath } from './paginate.ts'
export { OutboundError } from '@latchkey/guard/outbound'
