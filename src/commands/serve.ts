/**
 * `latchkey serve`: binds the port at once, opens the rest (server.ts), and says in readable lines what there is. In
 * production it logs and prints nothing else.
 */
import { existsSync } from 'node:fs'
import { join, relative } from 'node:path'
import type { Config } from '../config.ts'
import type { Database } from '../database/database.ts'
import type { DemoData } from '../demo/demo-data.ts'
import { demoStartUrl, serviceTokenCommand } from '../demo/routes.ts'
import type { Phase } from '../http/health.ts'
import { managementListener } from '../http/management-port.ts'
import { requestLogFields } from '../http/request-context.ts'
import { exitOnCrash, listen, listenForManagement, stopOnSignals, type Listening } from '../lifecycle.ts'
import { openLog, type Logger } from '../log.ts'
import { metricsContentType, openFleetMetrics } from '../metering/metrics.ts'
import { NotServable, openServer, type OpenServer } from '../server.ts'
import {
  askWorkers,
  endWorker,
  fleetPhase,
  isFirstWorker,
  isWorker,
  reportToPrimary,
  superviseWorkers,
} from '../workers.ts'
import { CommandEnded, CommandFailed, type CommandContext } from './command.ts'
import { openControlSocket } from './control-socket.ts'
import { runCommand } from './program.ts'

/**
 * Serves until a signal ends the process.
 * @throws CommandEnded when the workers have ended; everything that keeps the server from starting
 */
export async function serve({ config, io }: CommandContext): Promise<never> {
  const log = openLog({ ...config, fields: requestLogFields })
  exitOnCrash(log)
  if (config.workers > 1 && !isWorker()) {
    await manageWorkers(config, log)
    throw new CommandEnded(await superviseWorkers({ ...config, log }))
  }
  // One of several workers speaks for all. Where the log is JSON, standard output is for it alone.
  const isSilent = config.isProduction || (isWorker() && !isFirstWorker())
  const say = (text: string) => {
    if (isSilent) return
    if (config.logFormat === 'json') io.err(text)
    else io.out(text)
  }
  const listening = await listen(config)
  say(`Latchkey listens on ${config.issuer}`)
  announceDatabase(config, say)
  const { server, socket } = await open(config, log, listening).catch(async (error: unknown) => {
    // Else the open port would keep the process alive that has nothing to serve.
    await listening.stop({ drainSeconds: 0, stopTimeoutSeconds: 0 })
    endWorker()
    throw error instanceof NotServable ? new CommandFailed(error.message, { cause: error }) : error
  })
  listening.ready(server.handle)
  const stop = stopOnSignals(listening, {
    ...config,
    log,
    async close() {
      await socket?.close()
      await server.close()
    },
  })
  reportToPrimary(stop, {
    metrics: server.metrics.snapshot,
    ping: async () => {
      await server.database.ping(pingTimeoutMs)
      return true
    },
  })
  log.info({ address: config.issuer, database: server.database.engine }, 'ready')
  if (server.demo !== undefined) announceDemo(server.demo, config, say)
  // From here on signals decide.
  return new Promise<never>(() => undefined)
}

const pingTimeoutMs = 1_000

/** The management port of a process that serves by itself; what it answers while the rest opens is empty. */
function manage(config: Config, log: Logger, phase: () => Phase, server: () => OpenServer | undefined) {
  const listener = managementListener({
    ...config,
    log,
    phase,
    ping: async (timeoutMs) => server()?.database.ping(timeoutMs),
    metrics: async () => (await server()?.metrics.text()) ?? '',
    metricsContentType,
  })
  return listenForManagement(config, listener)
}

/** The management port of several workers: the primary has no database, and nothing to count. */
function manageWorkers(config: Config, log: Logger) {
  const listener = managementListener({
    ...config,
    log,
    phase: fleetPhase,
    async ping(timeoutMs) {
      const answers = await askWorkers('ping', timeoutMs)
      if (![...answers.values()].includes(true)) throw new Error('no worker has a database that answers')
    },
    metrics: openFleetMetrics(() => askWorkers('metrics')),
    metricsContentType,
  })
  return listenForManagement(config, listener)
}

async function open(config: Config, log: Logger, { phase }: Listening) {
  let opened: OpenServer | undefined
  // With workers the primary has it.
  if (!isWorker()) await manage(config, log, phase, () => opened)
  const server = (opened = await openServer({ config, log, phase }))
  try {
    const socket = server.database.engine === 'pglite' ? await openCommands(config, server.database, log) : undefined
    return { server, socket }
  } catch (error) {
    await server.close()
    throw error
  }
}

/** Other processes cannot open the embedded database while this one has it: their commands are carried out here. */
async function openCommands(config: Config, database: Database, log: Logger) {
  return openControlSocket({
    folder: config.dataDir,
    async run({ argv, operator, io }) {
      log.info({ command: argv.slice(0, 2).join(' ') }, 'carrying out a command')
      return runCommand(argv, {
        config,
        io,
        actor: { type: 'operator', id: operator },
        now: () => new Date(),
        withDatabase: (fn) => fn(database),
      })
    },
  })
}

function announceDatabase(config: Config, say: (text: string) => void): void {
  if (config.databaseUrl !== undefined) {
    say('Opening the PostgreSQL database of DATABASE_URL')
    return
  }
  const folder = shortPath(join(config.dataDir, 'pglite'))
  const isNew = !existsSync(join(config.dataDir, 'pglite', 'PG_VERSION'))
  say(
    isNew
      ? `Creating an embedded database in ${folder} (a few seconds, this once)`
      : `Opening the embedded database in ${folder}`,
  )
}

function announceDemo(demo: DemoData, config: Config, say: (text: string) => void): void {
  const { web, spa, service } = demo.clients
  say(`
Ready. For development only, everything here also stands in ${shortPath(join(config.dataDir, 'demo.json'))}:

  Sign in as      ${demo.user.email}   ${demo.user.password}
  Administrator   ${demo.admin.email}   ${demo.admin.password}

  Web client      ${web.client_id}       secret ${web.client_secret}
  Browser client  ${spa.client_id}       no secret (PKCE)
  Service         ${service.client_id}   secret ${service.client_secret}

A token for the service:
  ${serviceTokenCommand(demo)}

Sign in as a person, and see the tokens decoded:
  ${demoStartUrl(demo)}

Stop with Ctrl-C.
`)
}

function shortPath(path: string): string {
  const short = relative(process.cwd(), path)
  return short.startsWith('..') ? path : `./${short}`
}
