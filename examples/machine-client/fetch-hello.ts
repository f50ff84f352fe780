/**
 * A program that calls an API as itself: it gets a token by client credentials, keeps it until it is nearly over, and
 * tries again where that is safe.
 */
import { clientCredentials, createOutbound } from '@latchkey/guard/outbound'

export interface MachineClient {
  readonly issuer: string
  readonly clientId: string
  readonly clientSecret: string
  /** The API: its address is also the resource the token is for. */
  readonly api: string
}

/** @returns what the API answered */
export async function fetchHello({ issuer, clientId, clientSecret, api }: MachineClient): Promise<unknown> {
  const outbound = createOutbound({ caller: 'machine-client/1.0' })
  try {
    const token = clientCredentials({
      outbound,
      tokenEndpoint: `${issuer}/token`,
      clientId,
      clientSecret,
      resource: api,
      scope: 'models:read',
    })
    const answer = await outbound.to(api, { token }).fetch('/hello')
    if (!answer.ok) throw new Error(`${api} answered ${answer.status}`)
    return await answer.json()
  } finally {
    await outbound.close()
  }
}
