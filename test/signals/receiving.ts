/** What a receiver of security events does, over HTTP: it gets a token, makes streams, and polls them. */
import { createRemoteJWKSet, jwtVerify, type JWTPayload } from 'jose'
import { systemActor } from '../../src/audit/audit.ts'
import { signalsPermission, signalsResourceId } from '../../src/oauth/own-entries.ts'
import { createClient } from '../../src/oauth/clients.ts'
import type { Db } from '../../src/database/database.ts'
import { postForm } from '../support/user-agent.ts'

export const pollMethod = 'urn:ietf:rfc:8936'
export const pushMethod = 'urn:ietf:rfc:8935'
export const caep = 'https://schemas.openid.net/secevent/caep/event-type/'
export const verificationEvent = 'https://schemas.openid.net/secevent/ssf/event-type/verification'

export interface ReceiverClient {
  readonly client_id: string
  readonly client_secret: string
}

/** @param permissions of the client at the feed; [] for one that may not receive */
export async function registerReceiver(
  db: Db,
  issuer: string,
  permissions: readonly string[] = [signalsPermission],
): Promise<ReceiverClient> {
  const { client, secret } = await db.transaction().execute((trx) =>
    createClient(trx, systemActor, {
      type: 'machine',
      name: 'Receiver',
      permissions: permissions.map((permission) => ({ resource: signalsResourceId(issuer), permission })),
    }),
  )
  return { client_id: client.id, client_secret: secret ?? '' }
}

export interface Answer {
  readonly status: number
  readonly headers: Headers
  readonly body: Readonly<Record<string, unknown>>
}

export interface Polled extends Answer {
  readonly sets: Readonly<Record<string, string>>
  readonly moreAvailable: boolean
}

/** The claims of an event, whose signature has been checked. */
export interface ReceivedEvent {
  readonly jti: string
  readonly claims: JWTPayload & { readonly sub_id: Readonly<Record<string, unknown>>; readonly txn?: string }
  /** `session-revoked`, `verification` … */
  readonly type: string
  readonly event: Readonly<Record<string, unknown>>
}

/** One receiver at one address of the provider; the issuer may be reached at several. */
export class Receiver {
  readonly at: string
  readonly issuer: string
  readonly client: ReceiverClient
  readonly #keys
  #token = ''

  constructor(at: string, client: ReceiverClient, issuer = at) {
    this.at = at
    this.issuer = issuer
    this.client = client
    this.#keys = createRemoteJWKSet(new URL(`${at}/.well-known/jwks.json`), { cooldownDuration: 0 })
  }

  /** The same receiver, talking to another process. */
  elsewhere(at: string): Receiver {
    const other = new Receiver(at, this.client, this.issuer)
    other.#token = this.#token
    return other
  }

  async signIn(): Promise<this> {
    const { status, body } = await postForm(`${this.at}/token`, this.client, {
      grant_type: 'client_credentials',
      resource: signalsResourceId(this.issuer),
      scope: signalsPermission,
    })
    if (status !== 200) throw new Error(`no token: ${JSON.stringify(body)}`)
    this.#token = body.access_token ?? ''
    return this
  }

  get token(): string {
    return this.#token
  }

  async request(method: string, path: string, body?: unknown, init: RequestInit = {}): Promise<Answer> {
    const response = await fetch(`${this.at}${path}`, {
      method,
      headers: {
        authorization: `Bearer ${this.#token}`,
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...init,
    })
    const text = await response.text()
    return {
      status: response.status,
      headers: response.headers,
      body: text === '' ? {} : (JSON.parse(text) as Answer['body']),
    }
  }

  async createStream(settings: object = {}): Promise<string> {
    const { status, body } = await this.request('POST', '/ssf/streams', {
      delivery: { method: pollMethod },
      ...settings,
    })
    if (status !== 201) throw new Error(`no stream: ${status} ${JSON.stringify(body)}`)
    return body['stream_id'] as string
  }

  async poll(
    streamId: string,
    request: {
      readonly maxEvents?: number
      readonly returnImmediately?: boolean
      readonly ack?: readonly string[]
      readonly setErrs?: object
    } = {},
    init: RequestInit = {},
  ): Promise<Polled> {
    const answer = await this.request('POST', `/ssf/streams/${streamId}/events`, request, {
      ...init,
    })
    return {
      ...answer,
      sets: (answer.body['sets'] ?? {}) as Polled['sets'],
      moreAvailable: answer.body['moreAvailable'] === true,
    }
  }

  async verify(jti: string, set: string): Promise<ReceivedEvent> {
    const { payload } = await jwtVerify(set, this.#keys, {
      issuer: this.issuer,
      audience: signalsResourceId(this.issuer),
      typ: 'secevent+jwt',
    })
    if (payload.jti !== jti) throw new Error(`${jti} holds ${payload.jti}`)
    const events = Object.entries(payload['events'] as Record<string, Record<string, unknown>>)
    const [uri, event] = events[0] ?? []
    if (uri === undefined || event === undefined || events.length !== 1) throw new Error('not one event')
    return { jti, claims: payload as ReceivedEvent['claims'], type: uri.split('/').at(-1) ?? '', event }
  }

  /** Polls and acknowledges until nothing is left. */
  async drain(streamId: string, maxEvents = 100): Promise<ReceivedEvent[]> {
    const received: ReceivedEvent[] = []
    let ack: string[] = []
    for (;;) {
      const { status, sets, body } = await this.poll(streamId, { returnImmediately: true, maxEvents, ack })
      if (status !== 200) throw new Error(`not polled: ${status} ${JSON.stringify(body)}`)
      ack = Object.keys(sets)
      if (ack.length === 0) return received
      received.push(...(await Promise.all(Object.entries(sets).map(([jti, set]) => this.verify(jti, set)))))
    }
  }
}

/** The subject of an event in one word, for comparing. */
export function subjectOf({ claims: { sub_id } }: ReceivedEvent): string {
  const { format, ...rest } = sub_id
  if (format === 'jwt_id') return `token ${String(rest['jti'])}`
  if (format === 'iss_sub') return `user ${String(rest['sub'])}`
  if (format === 'opaque') return `stream ${String(rest['id'])}`
  const [[member, identifier] = ['', {}]] = Object.entries(rest)
  return `${member} ${String((identifier as { id?: unknown }).id)}`
}
