import { setTimeout } from 'node:timers/promises'
import { describe, expect, it, onTestFinished } from 'vitest'
import { OutboundError, callContext, clientCredentials, createOutbound } from '@latchkey/guard/outbound'
import type { ClientCredentialsOptions, Outbound, TokenSource } from '@latchkey/guard/outbound'
import type { IncomingHttpHeaders, ServerResponse } from 'node:http'
import { serve } from './local-servers.ts'

/** What the token endpoint was sent. */
interface Seen {
  readonly headers: IncomingHttpHeaders
  readonly form: URLSearchParams
}

/** A token endpoint that answers as it is told, and a source of tokens that asks it. */
async function open(
  options: Partial<ClientCredentialsOptions> = {},
  answer: (response: ServerResponse, count: number) => void = (response, count) =>
    response
      .writeHead(200, { 'content-type': 'application/json' })
      .end(JSON.stringify({ access_token: `token-${count}`, token_type: 'Bearer', expires_in: 900 })),
) {
  const seen: Seen[] = []
  const origin = await serve((request, response) => {
    let body = ''
    request.on('data', (chunk: Buffer) => (body += chunk.toString()))
    request.on('end', () => {
      seen.push({ headers: request.headers, form: new URLSearchParams(body) })
      answer(response, seen.length)
    })
  })
  let time = Date.parse('2026-01-15T10:00:00Z')
  const outbound: Outbound = createOutbound({ sleep: async () => undefined })
  onTestFinished(() => outbound.close())
  const source: TokenSource = clientCredentials({
    outbound,
    tokenEndpoint: `${origin}/token`,
    clientId: 'booking-service',
    clientSecret: 'a secret: 100% + "ours"',
    now: () => time,
    ...options,
  })
  return { source, seen, outbound, pass: (seconds: number) => (time += seconds * 1000) }
}

async function refusalOf(token: Promise<string>): Promise<OutboundError> {
  const error: unknown = await token.then(
    (value) => `got ${value}`,
    (error: unknown) => error,
  )
  if (!(error instanceof OutboundError)) throw new Error(`Expected a refusal: ${String(error)}`)
  return error
}

describe('what is refused', () => {
  it('does not send a secret over plain http to another machine', () => {
    const outbound = createOutbound()
    onTestFinished(() => outbound.close())
    const options = { outbound, clientId: 'a', clientSecret: 'b' }
    for (const host of ['id.example.com', '127.0.0.1.example.com', 'localhost.example.com', '10.0.0.1']) {
      expect(() => clientCredentials({ ...options, tokenEndpoint: `http://${host}/token` })).toThrow(
        /tokenEndpoint http:.* must be https/,
      )
    }
    for (const host of ['localhost:3000', '127.0.0.1:3000', '[::1]:3000']) {
      expect(() => clientCredentials({ ...options, tokenEndpoint: `http://${host}/token` })).not.toThrow()
    }
    expect(() => clientCredentials({ ...options, tokenEndpoint: 'http://id:80/token', allowHttp: true })).not.toThrow()
    for (const address of ['https://me@id.example.com/token', 'https://id.example.com/token#a', 'token']) {
      expect(() => clientCredentials({ ...options, tokenEndpoint: address })).toThrow(TypeError)
    }
  })

  it('says why the provider refused, and neither the secret nor what else it sent', async () => {
    for (const [status, error] of [
      [401, 'invalid_client'],
      [400, 'invalid_scope'],
    ] as const) {
      const { source } = await open({}, (response) =>
        response.writeHead(status).end(JSON.stringify({ error, error_description: 'text from outside' })),
      )
      const refusal = await refusalOf(source.get())
      expect(refusal).toMatchObject({ reason: 'token_refused', upstreamStatus: status })
      expect(refusal.message).toContain(error)
      expect(refusal.message).not.toMatch(/text from outside|ours/)
    }
    const forged = await open({}, (response) => response.writeHead(400).end('{"error":"line\\nbreak"}'))
    expect((await refusalOf(forged.source.get())).message).not.toContain('\n')
  })

  it('does not repeat a refused request with every call', async () => {
    const { source, seen, pass } = await open({}, (response) => response.writeHead(401).end('{}'))
    for (let call = 0; call < 10; call += 1) expect((await refusalOf(source.get())).reason).toBe('token_refused')
    expect(seen).toHaveLength(1)
    pass(1)
    await refusalOf(source.get())
    expect(seen).toHaveLength(2)
  })

  it('takes no answer that is not a bearer token', async () => {
    const good = { access_token: 'abc', token_type: 'Bearer', expires_in: 60 }
    for (const body of [
      'not json',
      '[]',
      'null',
      JSON.stringify({ ...good, access_token: undefined }),
      JSON.stringify({ ...good, access_token: 'a\r\nX-Admin: 1' }),
      JSON.stringify({ ...good, access_token: 'a'.repeat(16_385) }),
      JSON.stringify({ ...good, token_type: 'DPoP' }),
      JSON.stringify({ ...good, token_type: undefined }),
      JSON.stringify({ ...good, expires_in: '60' }),
      JSON.stringify({ ...good, expires_in: 0 }),
      '{"access_token":"abc","token_type":"Bearer","expires_in":1e999}',
    ]) {
      const { source } = await open({}, (response) => response.end(body))
      expect((await refusalOf(source.get())).reason).toBe('token_unavailable')
    }
  })

  it('is unavailable, and not refused, when the endpoint fails', async () => {
    const { source, seen } = await open({}, (response) => response.writeHead(503).end('{"error":"invalid_client"}'))
    expect((await refusalOf(source.get())).reason).toBe('token_unavailable')
    expect(seen).toHaveLength(4)
  })
})

describe('tokens', () => {
  it('asks as RFC 6749 §4.4 says, with both halves of the credentials encoded', async () => {
    const { source, seen } = await open({ scope: 'users:read', resource: 'https://users.example.com' })
    await source.get(callContext({ 'x-request-id': '7f3c6b2a-5d9e' }))
    const [request] = seen
    expect(Object.fromEntries(request?.form ?? [])).toEqual({
      grant_type: 'client_credentials',
      scope: 'users:read',
      resource: 'https://users.example.com',
    })
    const [scheme, pair] = (request?.headers.authorization ?? '').split(' ')
    expect(scheme).toBe('Basic')
    expect(Buffer.from(pair ?? '', 'base64').toString()).toBe('booking-service:a+secret%3A+100%25+%2B+%22ours%22')
    expect(request?.headers['x-request-id']).toBe('7f3c6b2a-5d9e')
    expect(request?.headers['content-type']).toBe('application/x-www-form-urlencoded')
  })

  it('puts the credentials into the body where the provider wants them there', async () => {
    const { source, seen } = await open({
      authentication: 'client_secret_post',
      parameters: { audience: 'users', grant_type: 'password' },
    })
    await source.get()
    expect(Object.fromEntries(seen[0]?.form ?? [])).toEqual({
      grant_type: 'client_credentials',
      audience: 'users',
      client_id: 'booking-service',
      client_secret: 'a secret: 100% + "ours"',
    })
    expect(seen[0]?.headers.authorization).toBeUndefined()
  })

  it('asks once for fifty callers at the same time, and not at all for those after them', async () => {
    const { source, seen } = await open()
    const tokens = await Promise.all(Array.from({ length: 50 }, () => source.get()))
    expect(new Set(tokens)).toEqual(new Set(['token-1']))
    expect(await source.get()).toBe('token-1')
    expect(seen).toHaveLength(1)
  })

  it('refreshes ahead, once, while the old token still serves', async () => {
    const { source, seen, pass } = await open()
    await source.get()
    pass(719)
    expect(await source.get()).toBe('token-1')
    expect(seen).toHaveLength(1)
    pass(1)
    expect(await Promise.all([source.get(), source.get(), source.get()])).toEqual(['token-1', 'token-1', 'token-1'])
    await expect.poll(() => source.get()).toBe('token-2')
    expect(seen).toHaveLength(2)
  })

  it('keeps the old token while the endpoint fails, tries again each second, and gives none that has expired', async () => {
    const errors: unknown[] = []
    const { source, seen, pass } = await open({ onRefreshError: (error) => errors.push(error) }, (response, count) => {
      if (count > 1) response.writeHead(404).end()
      else response.end(JSON.stringify({ access_token: 'first', token_type: 'bearer', expires_in: 900 }))
    })
    await source.get()
    pass(800)
    expect(await source.get()).toBe('first')
    await expect.poll(() => errors.length).toBe(1)
    expect(await source.get()).toBe('first')
    await setTimeout(50)
    expect(seen).toHaveLength(2)
    pass(1)
    expect(await source.get()).toBe('first')
    await expect.poll(() => errors.length).toBe(2)
    pass(88)
    expect(await source.get()).toBe('first')
    await expect.poll(() => errors.length).toBe(3)
    pass(1)
    expect((await refusalOf(source.get())).reason).toBe('token_unavailable')
  })

  it('keeps a token of unknown lifetime for a minute, and none longer than a day', async () => {
    const unknown = await open({}, (response, count) =>
      response.end(JSON.stringify({ access_token: `t${count}`, token_type: 'bearer' })),
    )
    await unknown.source.get()
    unknown.pass(54)
    expect(await unknown.source.get()).toBe('t2')

    const endless = await open({}, (response, count) =>
      response.end(JSON.stringify({ access_token: `t${count}`, token_type: 'bearer', expires_in: 1e12 })),
    )
    await endless.source.get()
    endless.pass(86_400)
    expect(await endless.source.get()).toBe('t2')
  })
})

describe('a token that the resource refuses', () => {
  /** A resource that takes one token only. */
  async function resource(accepts: string) {
    const tokens: (string | undefined)[] = []
    const origin = await serve((request, response) => {
      tokens.push(request.headers.authorization)
      response.writeHead(request.headers.authorization === `Bearer ${accepts}` ? 200 : 401).end()
    })
    return { origin, tokens }
  }

  it('is dropped, and the call is made once more with a new one, even a POST', async () => {
    const { source, outbound, pass, seen } = await open()
    const { origin, tokens } = await resource('token-2')
    await source.get()
    pass(5)
    const answer = await outbound.to(origin, { token: source }).fetch('/bookings', { method: 'POST', body: '{}' })
    expect(answer.status).toBe(200)
    expect(tokens).toEqual(['Bearer token-1', 'Bearer token-2'])
    expect(seen).toHaveLength(2)
  })

  it('is dropped once only: the second 401 is the answer', async () => {
    const { source, outbound, pass } = await open()
    const { origin, tokens } = await resource('another')
    await source.get()
    pass(5)
    expect((await outbound.to(origin, { token: source }).fetch('/')).status).toBe(401)
    expect(tokens).toEqual(['Bearer token-1', 'Bearer token-2'])
  })

  it('is asked for once more even from a source that always has another', async () => {
    const { outbound } = await open()
    const { origin, tokens } = await resource('none of them')
    let made = 0
    const token: TokenSource = { get: async () => `made-${(made += 1)}`, drop: () => true }
    expect((await outbound.to(origin, { token }).fetch('/')).status).toBe(401)
    expect(tokens).toEqual(['Bearer made-1', 'Bearer made-2'])
  })

  it('costs the provider one request a second at most, however many calls are refused', async () => {
    const { source, outbound, seen, pass } = await open()
    const { origin } = await resource('another')
    const users = outbound.to(origin, { token: source })
    for (let call = 0; call < 20; call += 1) expect((await users.fetch('/')).status).toBe(401)
    expect(seen).toHaveLength(1)
    pass(1)
    await Promise.all(Array.from({ length: 15 }, () => users.fetch('/')))
    expect(seen).toHaveLength(2)
  })

  it('is not replaced when it is the caller’s own', async () => {
    const { source, outbound, seen } = await open()
    const { origin, tokens } = await resource('another')
    const headers = { authorization: 'Bearer of-the-user' }
    expect((await outbound.to(origin, { token: source }).fetch('/', { headers })).status).toBe(401)
    expect(tokens).toEqual(['Bearer of-the-user'])
    expect(seen).toHaveLength(0)
  })

  it('leaves other calls alone: their tokens never go to a host they are not for', async () => {
    const { source, outbound } = await open()
    const { tokens, origin } = await resource('token-1')
    outbound.to('http://127.0.0.1:9999', { token: source })
    expect((await outbound.fetch(origin)).status).toBe(401)
    expect(tokens).toEqual([undefined])
  })
})

describe('waiting for a token', () => {
  it('ends with the deadline of the call, and the token still comes for the next', async () => {
    let release: (() => void) | undefined
    const { source, outbound } = await open({}, (response) => {
      release = () => response.end(JSON.stringify({ access_token: 'late', token_type: 'bearer', expires_in: 60 }))
    })
    let token: string | undefined
    const origin = await serve((request, response) => {
      token = request.headers.authorization
      response.end()
    })
    const users = outbound.to(origin, { token: source })
    const context = callContext({ 'x-envoy-expected-rq-timeout-ms': '200' })
    await expect(users.fetch('/', { context })).rejects.toMatchObject({ reason: 'deadline_exceeded' })
    await setTimeout(100)
    const next = users.fetch('/')
    release?.()
    expect((await next).status).toBe(200)
    expect(token).toBe('Bearer late')
  })

  it('ends when the caller gives up', async () => {
    let release: (() => void) | undefined
    const { source, outbound } = await open({}, (response) => {
      release = () => response.end('{}')
    })
    const reason = new Error('the user went away')
    const cancel = new AbortController()
    const call = outbound.to('http://127.0.0.1:9999', { token: source }).fetch('/', { signal: cancel.signal })
    await expect.poll(() => release).toBeDefined()
    cancel.abort(reason)
    await expect(call).rejects.toBe(reason)
    release?.()
  })

  it('does not begin for a caller who has given up already, and leaves nothing behind', async () => {
    const { outbound } = await open()
    const reason = new Error('the user went away')
    let asked = 0
    const token: TokenSource = { get: async () => `made-${(asked += 1)}`, drop: () => true }
    const call = outbound
      .to('http://127.0.0.1:9999', { token })
      .fetch('/', { signal: AbortSignal.abort(reason), timeoutMs: 20 })
    await expect(call).rejects.toBe(reason)
    // A timer left behind would reject with nobody listening, which fails the run.
    await setTimeout(60)
    expect(asked).toBe(0)
  })
})
