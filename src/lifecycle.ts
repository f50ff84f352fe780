/**
 * The life of one serving process: it binds its port at once and answers 503 while the rest is opened, serves, and on
 * SIGTERM goes so that nobody notices: it says that it is going, answers what is under way, and only then closes.
 * Several processes on one port are workers.ts's.
 */
import cluster from 'node:cluster'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Config } from './config.ts'
import type { Phase } from './http/health.ts'
import type { Logger } from './log.ts'

/** What answers a request, such as Koa's `app.callback()`. It deals with its own errors. */
export type Handler = (req: IncomingMessage, res: ServerResponse) => unknown

export interface Listening {
  readonly server: Server
  /** where the process is in its life */
  readonly phase: () => Phase
  /** Gives every request from now on to `handler`. */
  ready(handler: Handler): void
  /**
   * Answers for `drainSeconds` more, with `Connection: close`, while load balancers learn that it is going; then takes
   * no more connections, and ends when the last is done, or cuts it `stopTimeoutSeconds` after the call.
   */
  stop(times: { readonly drainSeconds: number; readonly stopTimeoutSeconds: number }): Promise<void>
}

/** The address cannot be listened on; the message says what to do. */
export class CannotListen extends Error {
  override name = 'CannotListen'
}

export type ListenSettings = Pick<Config, 'host' | 'port' | 'keepAliveTimeoutSeconds' | 'requestTimeoutSeconds'>

/** Longer request lines and headers than these are answered with 431. */
const maxHeaderBytes = 16 * 1024
const maxConnections = 10_000
const maxManagementConnections = 100

/** @throws CannotListen */
export async function listen(settings: ListenSettings): Promise<Listening> {
  let phase: Phase = 'starting'
  let handle: Handler = answerStarting
  const underWay = new Set<ServerResponse>()

  const server = createServer(
    {
      maxHeaderSize: maxHeaderBytes,
      keepAliveTimeout: settings.keepAliveTimeoutSeconds * 1_000,
      requestTimeout: settings.requestTimeoutSeconds * 1_000,
      headersTimeout: Math.min(15, settings.requestTimeoutSeconds) * 1_000,
      connectionsCheckingInterval: 1_000,
    },
    (req, res) => {
      underWay.add(res)
      res.once('close', () => underWay.delete(res))
      if (phase === 'draining') res.setHeader('Connection', 'close')
      handle(req, res)
    },
  )
  server.maxConnections = maxConnections

  await bind(server, settings, { port: 'PORT', host: 'HOST' })

  return {
    server,
    phase: () => phase,
    ready(handler) {
      handle = handler
      if (phase === 'starting') phase = 'ready'
    },
    async stop({ drainSeconds, stopTimeoutSeconds }) {
      phase = 'draining'
      for (const res of underWay) if (!res.headersSent) res.setHeader('Connection', 'close')
      const cut = setTimeout(() => server.closeAllConnections(), stopTimeoutSeconds * 1_000)
      await sleep(Math.min(drainSeconds, stopTimeoutSeconds) * 1_000)
      // Also ends the connections that are idle.
      await new Promise<void>((resolve) => {
        server.close(() => resolve())
      })
      clearTimeout(cut)
    },
  }
}

/**
 * The management port, if there is one. What it has open does not keep the process alive.
 *
 * @throws CannotListen
 */
export async function listenForManagement(
  { managementPort: port, managementHost: host }: Pick<Config, 'managementPort' | 'managementHost'>,
  handler: Handler,
): Promise<void> {
  if (port === undefined) return
  const server = createServer({ requestTimeout: 5_000, connectionsCheckingInterval: 1_000 }, handler)
  server.maxConnections = maxManagementConnections
  server.on('connection', (socket) => socket.unref())
  await bind(server, { host, port }, { port: 'LATCHKEY_MANAGEMENT_PORT', host: 'LATCHKEY_MANAGEMENT_HOST' })
  server.unref()
}

interface Address {
  readonly host: string
  readonly port: number
}

/** @param names of the settings that say where */
async function bind(server: Server, { host, port }: Address, names: Record<keyof Address, string>): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  server.once('error', reject)
  server.listen({ host, port }, resolve)
  try {
    await promise
  } catch (error) {
    throw readable(error, { host, port }, names)
  } finally {
    server.off('error', reject)
  }
}

function readable(error: unknown, { host, port }: Address, names: Record<keyof Address, string>): unknown {
  if (!(error instanceof Error) || !('code' in error)) return error
  const at = `port ${port} of ${host}`
  const advice: Readonly<Record<string, string>> = {
    EADDRINUSE: `Another program is listening on ${at}. Stop it, or choose another port: ${names.port}=${port + 1}.`,
    EACCES: `This account may not listen on ${at}. Choose a port from 1024 up with ${names.port}.`,
    EADDRNOTAVAIL: `${host} is not an address of this machine. Correct ${names.host}.`,
    ENOTFOUND: `${host} is not known as an address. Correct ${names.host}.`,
  }
  const message = advice[String(error.code)]
  return message === undefined ? error : new CannotListen(message, { cause: error })
}

/** While the rest opens: alive, and not ready. */
const answerStarting: Handler = (req, res) => {
  const isLive = req.url === '/health/live'
  const body = JSON.stringify({ status: isLive ? 'live' : 'starting' })
  res.writeHead(isLive ? 200 : 503, {
    'Content-Type': 'application/json',
    'Content-Length': body.length,
    'Cache-Control': 'no-store',
    ...(isLive ? {} : { 'Retry-After': '1' }),
  })
  res.end(req.method === 'HEAD' ? undefined : body)
}

export interface StopSettings extends Pick<Config, 'drainSeconds' | 'stopTimeoutSeconds'> {
  /** Closes what the process has open, after its last answer. */
  readonly close: () => Promise<void>
  readonly log: Logger
}

/**
 * From now on SIGTERM and SIGINT stop the process: `listening` first, then `close`, exit code 0. A second signal ends it
 * at once. After Ctrl-C nobody has to learn that it is going, so it does not wait for `drainSeconds`.
 *
 * @returns what stops it as SIGTERM does
 */
export function stopOnSignals(listening: Listening, settings: StopSettings): () => void {
  const { log } = settings
  let isStopping = false

  async function stop(drainSeconds: number): Promise<void> {
    isStopping = true
    log.info('stopping: answering what is under way')
    try {
      await listening.stop({ drainSeconds, stopTimeoutSeconds: settings.stopTimeoutSeconds })
      await settings.close()
      log.info('stopped')
      process.exit(0)
    } catch (error) {
      log.fatal({ error }, 'stopping failed')
      process.exit(1)
    }
  }

  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.on(signal, () => {
      // A worker may be told by a signal to its whole group and by its primary too; the primary alone cuts it short.
      if (isStopping && cluster.isWorker) return
      if (isStopping) process.exit(signal === 'SIGINT' ? 130 : 143)
      void stop(signal === 'SIGINT' ? 0 : settings.drainSeconds)
    })
  }
  return () => {
    if (!isStopping) void stop(settings.drainSeconds)
  }
}

/**
 * An error that nobody caught leaves the process in a state that nobody knows: it is logged in full and the process
 * ends, for its supervisor to start another.
 */
export function exitOnCrash(log: Logger): void {
  process.on('uncaughtException', (error) => {
    log.fatal({ error }, 'this process crashed')
    process.exit(1)
  })
}
