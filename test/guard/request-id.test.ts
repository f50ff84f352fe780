/** One request, one id: in its refusal, in the audit and in the calls made for it, also where nobody sent one. */
import { createGuard, fromWebRequest } from '@latchkey/guard'
import type { AuditEvent, Guard } from '@latchkey/guard'
import * as guardExpress from '@latchkey/guard/express'
import { authenticate, authOf } from '@latchkey/guard/koa'
import { callContext } from '@latchkey/guard/outbound'
import { createTestIssuer } from '@latchkey/guard/testing'
import express from 'express'
import Koa from 'koa'
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { serving } from './support/plain-provider.ts'

let guard: Guard
let token: string
const events: AuditEvent[] = []

beforeAll(async () => {
  const idp = await createTestIssuer()
  guard = createGuard({ ...idp.options, audit: (event) => events.push(event) })
  token = await idp.mint({ sub: 'alice' })
})

/** Asks a service whose handler makes a context for its calls, tells it, and then refuses. */
async function ask(listener: Parameters<typeof serving>[0], headers: Record<string, string> = {}) {
  const service = await serving(listener)
  onTestFinished(() => service.close())
  const response = await fetch(service.origin, { headers: { authorization: `Bearer ${token}`, ...headers } })
  const body = (await response.json()) as { request_id: string }
  return { status: response.status, header: response.headers.get('x-request-id'), body: body.request_id }
}

function koa(passedOn: string[]): Parameters<typeof serving>[0] {
  const app = new Koa()
  app.use(authenticate(guard))
  app.use(async (ctx) => {
    passedOn.push(callContext(ctx.headers).requestId, callContext(ctx.headers).requestId)
    await guard.assert(authOf(ctx), 'read', { type: 'model' })
  })
  return app.callback()
}

function expressApp(passedOn: string[]): Parameters<typeof serving>[0] {
  const app = express()
  app.use(guardExpress.authenticate(guard))
  app.use((req, _res, next) => {
    passedOn.push(callContext(req.headers).requestId, callContext(req.headers).requestId)
    next()
  })
  app.use(guardExpress.authorize('read', () => ({ type: 'model' })))
  app.use(guardExpress.answerRefusals)
  return app
}

describe.each([
  ['Koa', koa],
  ['Express', expressApp],
])('the id of a request, in %s', (_name, listener) => {
  it('is invented once when nobody sent one, or one that may not be logged', async () => {
    for (const headers of [{}, { 'x-request-id': 'two words' }] as Record<string, string>[]) {
      const passedOn: string[] = []
      const { status, header, body } = await ask(listener(passedOn), headers)
      expect(status).toBe(403)
      expect(header).toMatch(/^[0-9a-f-]{36}$/)
      expect([body, ...passedOn]).toEqual([header, header, header])
      expect(events.at(-1)).toMatchObject({ kind: 'refusal', requestId: header })
    }
  })

  it('is another for the next request', async () => {
    const ids = [await ask(listener([])), await ask(listener([]))].map(({ header }) => header)
    expect(new Set(ids).size).toBe(2)
  })

  it('is the one that was sent', async () => {
    const passedOn: string[] = []
    expect((await ask(listener(passedOn), { 'x-request-id': 'booking-42' })).header).toBe('booking-42')
    expect(passedOn).toEqual(['booking-42', 'booking-42'])
  })
})

describe('the id of a Web request', () => {
  it('is the same in the refusal and in the calls made for it', async () => {
    const request = new Request('https://api.test/')
    const { requestId } = callContext(request.headers)
    const refusal: unknown = await guard.authenticate(request).catch((error: unknown) => error)
    expect(guard.refuse(refusal, fromWebRequest(request)).headers['X-Request-Id']).toBe(requestId)
    expect(callContext(new Request('https://api.test/').headers).requestId).not.toBe(requestId)
  })
})
