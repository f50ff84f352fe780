/**
 * The third party of the story: a machine client that books a flight, under a request id of its own. Grep that id in
 * its log and in those of both services, and the whole request lies before you.
 */
import { randomUUID } from 'node:crypto'
import type { Destination } from '@latchkey/guard/outbound'

/** @returns the request id it used and what the booking service answered */
export async function bookFlight(
  bookings: Destination,
  booking: { user_id: number; flight_id: number; seat?: string },
  requestId: string = randomUUID(),
): Promise<{ requestId: string; status: number; body: unknown }> {
  const answer = await bookings.fetch('/bookings', {
    method: 'POST',
    headers: { 'content-type': 'application/json', accept: 'application/json' },
    body: JSON.stringify(booking),
    context: { requestId },
  })
  return { requestId, status: answer.status, body: await answer.json() }
}
