import { once } from 'node:events'
import { createServer } from 'node:net'

/**
 * A port of the loopback address that nothing listens on at this moment, below those that outgoing connections take: one
 * of these could otherwise have it before the test does.
 */
export async function findFreePort(): Promise<number> {
  for (;;) {
    const port = 10_240 + Math.floor(Math.random() * 20_000)
    const server = createServer()
    const listening = once(server, 'listening')
    server.listen(port, '127.0.0.1')
    const isFree = await listening.then(
      () => true,
      () => false,
    )
    if (!isFree) continue
    server.close()
    await once(server, 'close')
    return port
  }
}
