/**
 * The booking service: `POST /bookings`, for whoever holds a token with `bookings:write` for it. Before it books it
 * asks the user service whether the user is active, with a token of its own, under the same request id and within the
 * time its own caller will wait.
 */
import { randomInt } from 'node:crypto'
import { Router } from '@koa/router'
import type { Guard } from '@latchkey/guard'
import { authenticate, requireScopes } from '@latchkey/guard/koa'
import type { Destination } from '@latchkey/guard/outbound'
import Koa from 'koa'
import { z } from 'zod'
import { contextOf, logRequests } from './request-log.ts'
import type { WriteLog } from './request-log.ts'

const Booking = z.object({
  user_id: z.int().positive(),
  flight_id: z.int().positive(),
  seat: z.string().max(4).optional(),
})

/** What of a user is needed here. Fields that the user service adds tomorrow do no harm. */
const ActiveUser = z.object({ is_active: z.boolean() })

export function createBookingService(options: { guard: Guard; users: Destination; log: WriteLog }): Koa {
  const { guard, users, log } = options
  let lastId = 788
  const router = new Router()
  router.post('/bookings', requireScopes('bookings:write'), async (ctx) => {
    const booking = Booking.safeParse(await readJson(ctx.req))
    if (!booking.success) {
      ctx.status = 400
      ctx.body = { error: 'A booking needs user_id and flight_id' }
      return
    }
    const { user_id } = booking.data
    // When there is no answer at all this throws, and the guard makes it a 503 with Retry-After.
    const answer = await users.fetch(`/users/${user_id}`, { context: contextOf(ctx) })
    if (answer.status === 404) {
      ctx.status = 404
      ctx.body = { error: 'User not found', user_id }
      return
    }
    const user = answer.ok ? ActiveUser.safeParse(await answer.json()) : undefined
    if (user?.success !== true) {
      // Their failure, or our own wrong set-up: nothing the caller could mend.
      ctx.status = 502
      ctx.body = { error: 'The user service gave no usable answer' }
      return
    }
    if (!user.data.is_active) {
      ctx.status = 409
      ctx.body = { error: 'User is not active', user_id }
      return
    }
    lastId += 1
    ctx.status = 201
    ctx.set('Location', `/bookings/${lastId}`)
    ctx.body = { booking_id: lastId, status: 'confirmed', confirmation_code: confirmationCode() }
  })
  const app = new Koa()
  app.use(logRequests('booking-service', log))
  app.use(authenticate(guard))
  app.use(router.routes())
  return app
}

/** The body as JSON, or undefined when it is none or larger than a booking can be. */
async function readJson(body: AsyncIterable<Buffer>): Promise<unknown> {
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of body) {
    bytes += chunk.byteLength
    if (bytes > 10_000) return undefined
    chunks.push(chunk)
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString())
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}

/** Six letters and digits, without those that are taken for one another. */
function confirmationCode(): string {
  const alphabet = 'ABCDEFGHJKMNPQRSTUVWXYZ23456789'
  return Array.from({ length: 6 }, () => alphabet[randomInt(alphabet.length)]).join('')
}
