import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders } from 'node:http'
import { afterAll } from 'vitest'

export interface LogoutReceiver {
  readonly uri: string
  /** the logout tokens that came, oldest first */
  readonly tokens: string[]
  /** the headers that came with each */
  readonly headers: IncomingHttpHeaders[]
  /** what it answers with; 200 unless set */
  answerWith: number
}

/** A client's back-channel logout endpoint on loopback, until the file's last test. */
export async function openLogoutReceiver(): Promise<LogoutReceiver> {
  const tokens: string[] = []
  const headers: IncomingHttpHeaders[] = []
  const server = createServer((req, res) => {
    const chunks: Buffer[] = []
    req.on('data', (chunk: Buffer) => chunks.push(chunk))
    req.on('end', () => {
      headers.push(req.headers)
      tokens.push(new URLSearchParams(Buffer.concat(chunks).toString()).get('logout_token') ?? '')
      res.writeHead(receiver.answerWith, { 'cache-control': 'no-store' }).end()
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  afterAll(async () => {
    server.closeAllConnections()
    server.close()
    await once(server, 'close')
  })
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('a listening TCP server has no port')
  const receiver: LogoutReceiver = { uri: `http://127.0.0.1:${address.port}/logout`, tokens, headers, answerWith: 200 }
  return receiver
}
