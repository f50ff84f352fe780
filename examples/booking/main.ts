/**
 * Starts both services and books one flight:
 *
 *   ISSUER=http://localhost:3000 CLIENT_ID=… CLIENT_SECRET=… node examples/booking/main.ts
 *
 * The provider must know the two resources, `http://localhost:8001` and `http://localhost:8002` (their ports can be set
 * by USERS_PORT and BOOKINGS_PORT), and let the client ask for `users:read` and `bookings:write` there. For brevity one
 * client plays both the booking service and whoever calls it.
 */
import { createGuard } from '@latchkey/guard'
import { clientCredentials, createOutbound } from '@latchkey/guard/outbound'
import { bookFlight } from './book-flight.ts'
import { createBookingService } from './booking-service.ts'
import { createUserService } from './user-service.ts'

function setting(name: string, otherwise?: string): string {
  const value = process.env[name] ?? otherwise
  if (value === undefined) throw new Error(`${name} is not set`)
  return value
}

const issuer = setting('ISSUER')
const usersPort = Number(setting('USERS_PORT', '8001'))
const bookingsPort = Number(setting('BOOKINGS_PORT', '8002'))
const usersAddress = `http://localhost:${usersPort}`
const bookingsAddress = `http://localhost:${bookingsPort}`
const log = (line: object) => console.log(JSON.stringify(line))

const outbound = createOutbound({ caller: 'booking-service/2.1.0', log })
const tokenFor = (resource: string, scope: string) =>
  clientCredentials({
    outbound,
    tokenEndpoint: `${issuer}/token`,
    clientId: setting('CLIENT_ID'),
    clientSecret: setting('CLIENT_SECRET'),
    resource,
    scope,
  })

const userService = createUserService({ guard: createGuard({ issuer, audience: usersAddress }), log }).listen(usersPort)
const bookingService = createBookingService({
  guard: createGuard({ issuer, audience: bookingsAddress }),
  users: outbound.to(usersAddress, { token: tokenFor(usersAddress, 'users:read') }),
  log,
}).listen(bookingsPort)

const bookings = outbound.to(bookingsAddress, { token: tokenFor(bookingsAddress, 'bookings:write') })
try {
  console.log(await bookFlight(bookings, { user_id: 123, flight_id: 456, seat: '12A' }))
} finally {
  userService.close()
  bookingService.close()
  await outbound.close()
}
