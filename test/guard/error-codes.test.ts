/** A client that talks to the provider and to an API behind the guard meets one set of codes. */
import { GuardError } from '@latchkey/guard'
import { describe, expect, it } from 'vitest'
import {
  accessDenied,
  insufficientAuthentication,
  insufficientScope,
  invalidDpopProof,
  invalidRequest,
  invalidToken,
  missingCredentials,
  notFound,
  unavailable,
  useDpopNonce,
} from '../../src/guard/errors.ts'
import { OutboundError } from '../../src/guard/outbound/outbound-error.ts'
import { problemCatalogue } from '../../src/problems.ts'

const refusals: readonly GuardError[] = [
  missingCredentials(),
  invalidRequest('two tokens'),
  invalidToken('expired'),
  invalidDpopProof('signature'),
  useDpopNonce('n'),
  insufficientAuthentication({ maxAgeSeconds: 60 }),
  insufficientScope(['models:read']),
  accessDenied('policy'),
  notFound(),
  unavailable('keys', 1),
  new OutboundError('circuit_open', 'asked too often'),
]

describe('the codes of the guard', () => {
  it.each(refusals.map((refusal) => [refusal.code, refusal.reason, refusal] as const))(
    '%s (%s) is in the provider’s catalogue, with the same status',
    (code, _reason, { status }) => {
      expect(problemCatalogue[code].status).toBe(status)
    },
  )
})
