import { createGuard } from '@latchkey/guard'
import { clientCredentials, createOutbound } from '@latchkey/guard/outbound'
import type { Destination, Outbound } from '@latchkey/guard/outbound'
import { createTestIssuer } from '@latchkey/guard/testing'
import type { TestIssuer } from '@latchkey/guard/testing'
import type Koa from 'koa'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import type { RequestListener } from 'node:http'
import { describe, expect, it, onTestFinished } from 'vitest'
import { bookFlight } from '../../../examples/booking/book-flight.ts'
import { createBookingService } from '../../../examples/booking/booking-service.ts'
import { createUserService } from '../../../examples/booking/user-service.ts'
import { refusingOrigin, serve } from './local-servers.ts'

const USERS = 'https://users.example.com'
const BOOKINGS = 'https://bookings.example.com'

interface LogLine {
  readonly request_id?: string
  readonly service?: string
  readonly endpoint?: string
}

/** A log that can be searched, as grep would. */
function logbook() {
  const lines: LogLine[] = []
  const write = (line: object) => void lines.push(line)
  const of = (requestId: string) => lines.filter((line) => line.request_id === requestId)
  return { lines, write, of }
}

function handlerOf(app: Koa): RequestListener {
  const handle = app.callback()
  return (request, response) => void handle(request, response)
}

/** The provider over HTTP: discovery, keys, and a token endpoint that knows who may have a token. */
async function serveProvider(clients: Record<string, string>): Promise<{ idp: TestIssuer; origin: string }> {
  let idp: TestIssuer | undefined
  const respond = async (path: string, authorization: string, form: URLSearchParams): Promise<Response> => {
    if (idp === undefined) throw new Error('The provider is asked before it exists')
    if (path !== '/token') return idp.fetch(`${idp.issuer}${path}`, {})
    const [, pair = ''] = authorization.split(' ')
    const [clientId = '', secret] = Buffer.from(pair, 'base64').toString().split(':')
    if (secret === undefined || clients[clientId] !== secret) {
      return Response.json({ error: 'invalid_client' }, { status: 401 })
    }
    const audience = form.get('resource') ?? ''
    const token = await idp.mint({ sub: clientId, clientId, audience, scope: form.get('scope') ?? '' })
    return Response.json({ access_token: token, token_type: 'Bearer', expires_in: 900 })
  }
  const origin = await serve((request, response) => {
    let body = ''
    request.on('data', (chunk: Buffer) => (body += chunk.toString()))
    request.on('end', () => {
      const asked = respond(request.url ?? '', request.headers.authorization ?? '', new URLSearchParams(body))
      void asked.then(async (answer) => response.writeHead(answer.status).end(await answer.text()))
    })
  })
  idp = await createTestIssuer({ issuer: origin })
  return { idp, origin }
}

/** Both services, the token endpoint and a machine client, each with a log of its own. */
async function open(options: { usersOrigin?: string; bookingSecret?: string } = {}) {
  const { idp, origin: issuer } = await serveProvider({ 'booking-service': 'b-secret', 'travel-desk': 't-secret' })
  const logs = { users: logbook(), bookings: logbook(), client: logbook() }
  const way = (log: (line: object) => void): Outbound => {
    const outbound = createOutbound({ log, sleep: async () => undefined })
    onTestFinished(() => outbound.close())
    return outbound
  }
  const fromBookings = way(logs.bookings.write)
  const fromClient = way(logs.client.write)
  const credentials = { tokenEndpoint: `${issuer}/token`, now: () => idp.now() }

  const userService = createUserService({
    guard: createGuard({ ...idp.options, audience: USERS }),
    log: logs.users.write,
  })
  const usersOrigin = options.usersOrigin ?? (await serve(handlerOf(userService)))
  const users: Destination = fromBookings.to(usersOrigin, {
    token: clientCredentials({
      ...credentials,
      outbound: fromBookings,
      clientId: 'booking-service',
      clientSecret: options.bookingSecret ?? 'b-secret',
      resource: USERS,
      scope: 'users:read',
    }),
  })
  const bookingService = createBookingService({
    guard: createGuard({ ...idp.options, audience: BOOKINGS }),
    users,
    log: logs.bookings.write,
  })
  const origin = await serve(handlerOf(bookingService))
  const bookings = fromClient.to(origin, {
    token: clientCredentials({
      ...credentials,
      outbound: fromClient,
      clientId: 'travel-desk',
      clientSecret: 't-secret',
      resource: BOOKINGS,
      scope: 'bookings:write',
    }),
  })
  const post = async (token: string | undefined, body: string): Promise<Response> =>
    fetch(`${origin}/bookings`, {
      method: 'POST',
      body,
      headers: { 'content-type': 'application/json', ...(token !== undefined && { authorization: `Bearer ${token}` }) },
    })
  return { idp, logs, bookings, post }
}

const BOOKING = { user_id: 123, flight_id: 456, seat: '12A' }

describe('the booking example', () => {
  it('refuses who has no token, a token for another service, or not the scope', async () => {
    const { idp, logs, post } = await open()
    const body = JSON.stringify(BOOKING)
    expect((await post(undefined, body)).status).toBe(401)
    expect((await post(await idp.mint({ audience: USERS, scope: 'bookings:write' }), body)).status).toBe(401)
    expect((await post(await idp.mint({ audience: BOOKINGS, scope: 'users:read' }), body)).status).toBe(403)
    expect(logs.users.lines).toEqual([])
  })

  it('refuses what is no booking, without asking anybody', async () => {
    const { idp, logs, post } = await open()
    const token = await idp.mint({ audience: BOOKINGS, scope: 'bookings:write' })
    for (const body of [
      '',
      '{',
      '[]',
      '{"user_id":"123","flight_id":456}',
      JSON.stringify({ ...BOOKING, user_id: -1 }),
    ]) {
      expect((await post(token, body)).status).toBe(400)
    }
    const large = JSON.stringify({ ...BOOKING, more: 'x'.repeat(20_000) })
    expect((await post(token, large)).status).toBe(400)
    expect(logs.users.lines).toEqual([])
  })

  it('books nothing for a user who does not exist or is not active', async () => {
    const { bookings } = await open()
    expect(await bookFlight(bookings, { ...BOOKING, user_id: 999 })).toMatchObject({
      status: 404,
      body: { error: 'User not found', user_id: 999 },
    })
    expect(await bookFlight(bookings, { ...BOOKING, user_id: 456 })).toMatchObject({
      status: 409,
      body: { error: 'User is not active', user_id: 456 },
    })
  })

  it('answers 503 with Retry-After while the user service is down, and when its own secret is wrong', async () => {
    for (const broken of [{ usersOrigin: await refusingOrigin() }, { bookingSecret: 'wrong' }]) {
      const { idp, logs, post } = await open(broken)
      const token = await idp.mint({ audience: BOOKINGS, scope: 'bookings:write' })
      const answer = await post(token, JSON.stringify(BOOKING))
      expect(answer.status).toBe(503)
      expect(Number(answer.headers.get('retry-after'))).toBeGreaterThanOrEqual(1)
      expect(await answer.text()).not.toMatch(/127\.0\.0\.1|invalid_client|secret/)
      expect(logs.bookings.lines.at(-1)).toMatchObject({ level: 'ERROR', status_code: 503 })
    }
  })

  it('books, and the one request id stands in the logs of client, booking service and user service', async () => {
    const { logs, bookings } = await open()
    const { requestId, status, body } = await bookFlight(bookings, BOOKING)
    expect(status).toBe(201)
    expect(body).toEqual({
      booking_id: 789,
      status: 'confirmed',
      confirmation_code: expect.stringMatching(/^[A-Z2-9]{6}$/) as string,
    })
    const seen = (lines: readonly LogLine[]) => lines.map((line) => line.endpoint)
    expect(seen(logs.client.of(requestId))).toEqual(['/token', '/bookings'])
    expect(seen(logs.bookings.of(requestId))).toEqual(['/token', '/users/123', 'POST /bookings'])
    expect(seen(logs.users.of(requestId))).toEqual(['GET /users/123'])
    expect(logs.users.of(requestId)).toMatchObject([{ user_id: 'booking-service', status_code: 200, level: 'INFO' }])
  })

  it('goes on when its token is revoked: it gets a new one and asks again', async () => {
    const { idp, logs, bookings } = await open()
    expect((await bookFlight(bookings, BOOKING)).status).toBe(201)
    idp.advance(5)
    await idp.revoke({ sub: 'booking-service' })
    idp.advance(2)
    const { requestId, status } = await bookFlight(bookings, BOOKING)
    expect(status).toBe(201)
    expect(logs.users.of(requestId)).toMatchObject([{ status_code: 401 }, { status_code: 200 }])
  })

  it('runs as its first lines say', async () => {
    const { origin } = await serveProvider({ demo: 'd-secret' })
    const [usersPort, bookingsPort] = [await refusingOrigin(), await refusingOrigin()].map((free) => new URL(free).port)
    const env = {
      ISSUER: origin,
      CLIENT_ID: 'demo',
      CLIENT_SECRET: 'd-secret',
      USERS_PORT: usersPort,
      BOOKINGS_PORT: bookingsPort,
    }
    const program = spawn(process.execPath, ['examples/booking/main.ts'], { env })
    onTestFinished(() => void program.kill('SIGKILL'))
    let stdout = ''
    let lastWordAt = 0
    program.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text
      lastWordAt = performance.now()
    })
    const [exitCode] = (await once(program, 'close')) as [number | null]
    expect(exitCode).toBe(0)
    // A forgotten timer would keep the process alive for ten seconds.
    expect(performance.now() - lastWordAt).toBeLessThan(5000)
    expect(stdout).toContain("status: 'confirmed'")
    const lines = stdout.split('\n').filter((line) => line.startsWith('{"'))
    const ids = new Set(lines.map((line) => (JSON.parse(line) as LogLine).request_id))
    expect([lines.length, ids.size]).toEqual([6, 1])
  })
})
