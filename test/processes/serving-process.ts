/** A server with nothing in it but the life of its processes: what the tests beside it start. */
import type { RequestListener } from 'node:http'
import { exitOnCrash, listen, stopOnSignals } from '../../src/lifecycle.ts'
import { openLog } from '../../src/log.ts'
import { isWorker, reportToPrimary, superviseWorkers } from '../../src/workers.ts'

const setting = (name: string, fallback: number) => Number(process.env[name] ?? fallback)
const log = openLog({ logLevel: 'info', logFormat: 'json' })
const times = { drainSeconds: setting('DRAIN', 0), stopTimeoutSeconds: setting('STOP_TIMEOUT', 10) }
const workers = setting('WORKERS', 1)
exitOnCrash(log)

if (workers > 1 && !isWorker()) {
  process.exit(await superviseWorkers({ log, workers, ...times, hungAfterSeconds: setting('HUNG_AFTER', 2) }))
}

const listening = await listen({
  host: process.env['HOST'] ?? '127.0.0.1',
  port: setting('PORT', 0),
  keepAliveTimeoutSeconds: setting('KEEP_ALIVE', 65),
  requestTimeoutSeconds: setting('REQUEST_TIMEOUT', 30),
}).catch((error: unknown) => {
  process.stderr.write(`${String(error)}\n`)
  process.exit(1)
})

const routes: Readonly<Record<string, RequestListener>> = {
  '/health/ready': (_req, res) => res.writeHead(listening.phase() === 'ready' ? 200 : 503).end(listening.phase()),
  '/pid': (_req, res) => res.end(String(process.pid)),
  '/slow': (req, res) => {
    const ms = Number(new URL(req.url ?? '', 'http://localhost').searchParams.get('ms'))
    setTimeout(() => res.end(String(process.pid)), ms)
  },
  '/never': () => undefined,
  '/hang': () => {
    for (;;);
  },
  '/crash': () => {
    setImmediate(() => {
      throw new Error('the fault of this handler')
    })
  },
  '/log': (_req, res) => {
    for (let i = 0; i < 10_000; i += 1) log.info({ filler: 'x'.repeat(1_000) }, 'a line')
    res.end(String(process.memoryUsage().rss))
  },
}

setTimeout(
  () => {
    const stop = stopOnSignals(listening, { ...times, log, close: async () => log.info('closed') })
    listening.ready((req, res) => {
      const handle = routes[(req.url ?? '').split('?')[0] ?? '']
      if (handle === undefined) res.writeHead(404).end()
      else handle(req, res)
    })
    reportToPrimary(stop)
  },
  setting('START_MS', 0),
)
