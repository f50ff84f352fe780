import { describe, expect, it, onTestFinished } from 'vitest'
import { createGuard, GuardError } from '@latchkey/guard'
import { OutboundError, callContext, createOutbound } from '@latchkey/guard/outbound'
import type { AttemptLog, Outbound, OutboundOptions } from '@latchkey/guard/outbound'
import { refusingOrigin, serve, serveTcp } from './local-servers.ts'

/** An outbound that does not wait between attempts, with its log and its pauses beside it. */
function open(options: OutboundOptions = {}): { outbound: Outbound; log: AttemptLog[]; pauses: number[] } {
  const log: AttemptLog[] = []
  const pauses: number[] = []
  const outbound = createOutbound({
    log: (entry) => log.push(entry),
    sleep: async (ms) => void pauses.push(ms),
    random: () => 0.5,
    ...options,
  })
  onTestFinished(() => outbound.close())
  return { outbound, log, pauses }
}

/** A clock that stands still until it is told. */
function clock(): { now: () => number; pass: (ms: number) => void } {
  let time = Date.parse('2026-01-15T10:00:00Z')
  return { now: () => time, pass: (ms) => (time += ms) }
}

async function reasonOf(call: Promise<unknown>): Promise<string> {
  const error: unknown = await call.then(
    (answer) => answer,
    (error: unknown) => error,
  )
  return error instanceof OutboundError ? error.reason : `no refusal: ${String(error)}`
}

describe('settings', () => {
  it('refuses bounds of the breaker that would switch it off or make it jumpy, naming all of them', () => {
    for (const failures of [2, 11, 4.5, Number.NaN]) {
      expect(() => createOutbound({ breaker: { failures } })).toThrow(/breaker\.failures must be a whole number from 3/)
    }
    for (const recoverySeconds of [29, 301]) {
      expect(() => createOutbound({ breaker: { recoverySeconds } })).toThrow(/recoverySeconds .* from 30 to 300/)
    }
    expect(() => createOutbound({ retries: -1, breaker: { successes: 4 } })).toThrow(/retries .*; breaker\.successes/)
    expect(() => createOutbound({ readTimeoutMs: 2 ** 31 })).toThrow(/readTimeoutMs/)
  })

  it('takes the ends of the ranges', async () => {
    for (const breaker of [
      { failures: 3, recoverySeconds: 30, successes: 1 },
      { failures: 10, recoverySeconds: 300, successes: 3 },
    ]) {
      await expect(createOutbound({ breaker }).close()).resolves.toBeUndefined()
    }
  })
})

describe('what is not sent at all', () => {
  it('refuses other schemes, credentials in the address, a GET with a body and a time that is none, without counting a failure', async () => {
    const { outbound } = open()
    await expect(outbound.fetch('file:///etc/passwd')).rejects.toThrow(TypeError)
    await expect(outbound.fetch('http://user:secret@127.0.0.1/')).rejects.toThrow(TypeError)
    await expect(outbound.fetch('http://127.0.0.1/', { body: 'x' })).rejects.toThrow(TypeError)
    await expect(outbound.fetch('http://127.0.0.1/', { timeoutMs: Number.NaN })).rejects.toThrow(TypeError)
    expect(Object.values(outbound.metrics().hosts).map((host) => host.failed)).not.toContain(1)
  })

  it('refuses a path that leaves the base URL, so that a token stays where it belongs', async () => {
    const { outbound } = open()
    const users = outbound.to('http://127.0.0.1:9999/v1')
    for (const path of ['users', '/../admin', '/%2e%2e/admin', '/users/../../admin', '@evil.example/', '/..']) {
      await expect(users.fetch(path)).rejects.toThrow(TypeError)
    }
  })

  it('refuses a port that fetch blocks, and blames no host for it', async () => {
    const { outbound, log } = open()
    await expect(outbound.fetch('http://127.0.0.1:1/')).rejects.toThrow(TypeError)
    expect(log.map((entry) => entry.status)).toEqual(['not_sendable'])
    expect(outbound.metrics().hosts['http://127.0.0.1:1']?.failed).toBe(0)
  })

  it('refuses calls after it was closed', async () => {
    const origin = await serve((_, response) => response.end())
    const { outbound } = open()
    await outbound.close()
    expect(await reasonOf(outbound.fetch(origin))).toBe('closed')
  })
})

describe('retries', () => {
  for (const status of [400, 401, 403, 404, 409, 422, 501]) {
    it(`does not repeat a GET answered with ${status}`, async () => {
      let calls = 0
      const origin = await serve((_, response) => {
        calls += 1
        response.writeHead(status).end('no')
      })
      const { outbound } = open()
      const answer = await outbound.fetch(origin)
      expect([answer.status, await answer.text(), calls]).toEqual([status, 'no', 1])
    })
  }

  for (const status of [429, 500, 502, 503, 504]) {
    it(`repeats a GET answered with ${status} three times and then hands the last answer back`, async () => {
      let calls = 0
      const origin = await serve((_, response) => {
        calls += 1
        response.writeHead(status).end(`answer ${calls}`)
      })
      const { outbound } = open()
      const answer = await outbound.fetch(origin)
      expect([answer.status, await answer.text(), calls]).toEqual([status, 'answer 4', 4])
    })
  }

  for (const method of ['POST', 'PATCH']) {
    it(`does not repeat a ${method} that may have taken effect`, async () => {
      let calls = 0
      const origin = await serve((_, response) => {
        calls += 1
        response.writeHead(503).end()
      })
      const { outbound } = open()
      expect((await outbound.fetch(origin, { method, body: 'charge' })).status).toBe(503)
      expect(calls).toBe(1)
    })
  }

  it('does not repeat a POST whose connection broke after it was sent', async () => {
    let calls = 0
    const origin = await serve((request) => {
      calls += 1
      request.socket.destroy()
    })
    const { outbound } = open()
    expect(await reasonOf(outbound.fetch(origin, { method: 'POST', body: 'charge' }))).toBe('connection_lost')
    expect(calls).toBe(1)
  })

  it('does not repeat a POST that was not answered in time', async () => {
    let calls = 0
    const origin = await serve(() => {
      calls += 1
    })
    const { outbound } = open({ readTimeoutMs: 80 })
    expect(await reasonOf(outbound.fetch(origin, { method: 'POST', body: 'charge' }))).toBe('read_timeout')
    expect(calls).toBe(1)
  })

  it('repeats a POST that carries an Idempotency-Key, with the same key and the same body', async () => {
    const seen: string[] = []
    const origin = await serve((request, response) => {
      let body = ''
      request.on('data', (chunk: Buffer) => (body += chunk.toString()))
      request.on('end', () => {
        seen.push(`${String(request.headers['idempotency-key'])} ${body}`)
        response.writeHead(seen.length < 3 ? 503 : 201).end()
      })
    })
    const { outbound } = open()
    const headers = { 'idempotency-key': 'k-1' }
    const answer = await outbound.fetch(origin, { method: 'POST', body: '{"amount":50}', headers })
    expect(answer.status).toBe(201)
    expect(seen).toEqual(['k-1 {"amount":50}', 'k-1 {"amount":50}', 'k-1 {"amount":50}'])
  })

  it('repeats what the caller calls "not yet", if it may be sent again, and asks of no other answer', async () => {
    for (const [key, answers] of [
      ['k-1', ['409 wait', '409 wait', '200 done']],
      ['k-2', ['409 wait', '409 conflict']],
      [undefined, ['409 wait']],
    ] as const) {
      const left = [...answers]
      const asked: string[] = []
      const origin = await serve((_, response) => {
        const [status, text] = (left.shift() ?? '500 too often').split(' ')
        response.writeHead(Number(status), { 'retry-after': '1' }).end(text)
      })
      const { outbound, pauses } = open()
      const answer = await outbound.fetch(origin, {
        method: 'POST',
        headers: key === undefined ? {} : { 'idempotency-key': key },
        async retryOn(answer) {
          asked.push(String(answer.status))
          return answer.status === 409 && (await answer.text()) === 'wait'
        },
      })
      expect(`${answer.status} ${await answer.text()}`).toBe(answers.at(-1))
      expect(left).toEqual([])
      expect(asked).toEqual(key === undefined ? [] : ['409', '409'])
      expect(pauses).toEqual([1500, 2000].slice(0, answers.length - 1))
    }
  })

  it('repeats a PUT and a DELETE, which mean the same when done twice', async () => {
    for (const method of ['PUT', 'DELETE']) {
      let calls = 0
      const origin = await serve((_, response) => {
        calls += 1
        response.writeHead(calls === 1 ? 500 : 204).end()
      })
      expect((await open().outbound.fetch(origin, { method })).status).toBe(204)
    }
  })

  it('repeats a POST whose connection was refused, because nothing was sent', async () => {
    const { outbound, log } = open()
    expect(await reasonOf(outbound.fetch(await refusingOrigin(), { method: 'POST', body: 'charge' }))).toBe(
      'connect_failed',
    )
    expect(log.map((entry) => [entry.attempt, entry.status])).toEqual([
      [0, 'connect_failed'],
      [1, 'connect_failed'],
      [2, 'connect_failed'],
      [3, 'connect_failed'],
    ])
  })

  it('repeats a POST whose connection was not made in time', async () => {
    // The TLS handshake is part of connecting; this server accepts and then says nothing.
    const silent = await serveTcp(() => undefined)
    const { outbound, log } = open({ connectTimeoutMs: 100, retries: 1 })
    expect(await reasonOf(outbound.fetch(`https://${silent}/`, { method: 'POST', body: 'charge' }))).toBe(
      'connect_timeout',
    )
    expect(log.map((entry) => entry.status)).toEqual(['connect_timeout', 'connect_timeout'])
  })

  it('pauses longer each time, by any part of the bound (full jitter)', async () => {
    const origin = await serve((_, response) => response.writeHead(503).end())
    const half = open({ random: () => 0.5 })
    await half.outbound.fetch(origin)
    expect(half.pauses).toEqual([500, 1000, 2000])
    const none = open({ random: () => 0 })
    await none.outbound.fetch(origin)
    expect(none.pauses).toEqual([0, 0, 0])
    const most = open({ random: () => 0.999_999, maxBackoffMs: 1500 })
    await most.outbound.fetch(origin)
    expect(most.pauses).toEqual([999, 1499, 1499])
  })

  it('waits as long as Retry-After says, in seconds or until a date, and a little more', async () => {
    const time = clock()
    const asked = ['2', 'Thu, 15 Jan 2026 10:00:07 GMT', 'soon']
    const origin = await serve((_, response) => {
      const value = asked.shift()
      response.writeHead(value === undefined ? 200 : 503, value === undefined ? {} : { 'retry-after': value }).end()
    })
    const { outbound, pauses } = open({ now: time.now })
    expect((await outbound.fetch(origin)).status).toBe(200)
    expect(pauses).toEqual([2500, 8000, 2000])
  })

  it('hands the 429 back at once when the host asks for more time than is left', async () => {
    let calls = 0
    const origin = await serve((_, response) => {
      calls += 1
      response.writeHead(429, { 'retry-after': '31' }).end()
    })
    const { outbound, pauses } = open()
    expect((await outbound.fetch(origin)).status).toBe(429)
    expect([calls, pauses]).toEqual([1, []])
  })

  it('really waits, and a cancelled wait ends at once with the reason given', async () => {
    const origin = await serve((_, response) => response.writeHead(503).end())
    const outbound = createOutbound({ backoffMs: 60_000, maxBackoffMs: 60_000, random: () => 0.4 })
    onTestFinished(() => outbound.close())
    const cancel = new AbortController()
    const reason = new Error('the user went away')
    const startedAt = performance.now()
    setTimeout(() => cancel.abort(reason), 100)
    await expect(outbound.fetch(origin, { signal: cancel.signal })).rejects.toBe(reason)
    expect(performance.now() - startedAt).toBeGreaterThanOrEqual(95)
    expect(performance.now() - startedAt).toBeLessThan(5000)
  })
})

describe('time limits', () => {
  it('ends an attempt at a host that accepts and never answers', async () => {
    const origin = await serve(() => undefined)
    const { outbound, log } = open({ readTimeoutMs: 100, retries: 1 })
    expect(await reasonOf(outbound.fetch(origin))).toBe('read_timeout')
    expect(log).toHaveLength(2)
    for (const { duration_ms: duration } of log) {
      expect(duration).toBeGreaterThanOrEqual(95)
      expect(duration).toBeLessThan(2000)
    }
  })

  it('ends an attempt whose answer comes drop by drop', async () => {
    const origin = await serve((_, response) => {
      response.writeHead(200)
      const drip = setInterval(() => response.write('.'), 20)
      response.on('close', () => clearInterval(drip))
    })
    const { outbound } = open({ readTimeoutMs: 150, retries: 0 })
    expect(await reasonOf(outbound.fetch(origin))).toBe('read_timeout')
  })

  it('gives a connection three seconds, unless told', async () => {
    const silent = await serveTcp(() => undefined)
    const { outbound, log } = open({ retries: 0 })
    expect(await reasonOf(outbound.fetch(`https://${silent}/`))).toBe('connect_timeout')
    expect(log[0]?.duration_ms).toBeGreaterThanOrEqual(2500)
    expect(log[0]?.duration_ms).toBeLessThan(6000)
  })

  it('gives each retry two seconds less, down to five, all inside what is left of the whole call', async () => {
    const time = clock()
    const announced: number[] = []
    const origin = await serve((request, response) => {
      announced.push(Number(request.headers['x-envoy-expected-rq-timeout-ms']))
      response.writeHead(503).end()
    })
    const { outbound } = open({ now: time.now, retries: 4 })
    await outbound.fetch(origin)
    expect(announced).toEqual([10_000, 8000, 6000, 5000, 5000])

    announced.length = 0
    const slow = open({ now: time.now, totalTimeoutMs: 12_000, sleep: async () => time.pass(5000) })
    await slow.outbound.fetch(origin)
    expect(announced).toEqual([10_000, 7000, 2000])
  })

  it('makes no call for a request whose deadline has passed', async () => {
    let calls = 0
    const origin = await serve((_, response) => {
      calls += 1
      response.end()
    })
    const { outbound } = open()
    const context = callContext({ 'x-envoy-expected-rq-timeout-ms': '100' })
    expect(await reasonOf(outbound.fetch(origin, { context }))).toBe('deadline_exceeded')
    expect(calls).toBe(0)
  })

  it('never outlives the deadline of the request it is made for', async () => {
    const origin = await serve(() => undefined)
    const { outbound } = open()
    const startedAt = performance.now()
    const context = callContext({ 'x-envoy-expected-rq-timeout-ms': '300' })
    expect(await reasonOf(outbound.fetch(origin, { context }))).toBe('deadline_exceeded')
    expect(performance.now() - startedAt).toBeLessThan(1500)
  })

  it('tells the next service how long it has, less what this one keeps for itself', async () => {
    let announced = 0
    const origin = await serve((request, response) => {
      announced = Number(request.headers['x-envoy-expected-rq-timeout-ms'])
      response.end()
    })
    const { outbound } = open()
    const context = callContext({ 'x-envoy-expected-rq-timeout-ms': '4000' }, { reserveMs: 500 })
    await outbound.fetch(origin, { context })
    expect(announced).toBeLessThanOrEqual(3500)
    expect(announced).toBeGreaterThan(3000)
  })

  it('does not blame a host for deadlines that were too short for anybody', async () => {
    const origin = await serve((_, response) => setTimeout(() => response.end('late'), 200))
    const { outbound } = open()
    for (let call = 0; call < 8; call += 1) {
      const context = callContext({ 'x-envoy-expected-rq-timeout-ms': '120' })
      expect(await reasonOf(outbound.fetch(origin, { context }))).toBe('deadline_exceeded')
    }
    expect(outbound.metrics().hosts[origin]?.breaker).toBe('closed')
    expect(await (await outbound.fetch(origin)).text()).toBe('late')
  })
})

describe('answers', () => {
  it('refuses an answer larger than the bound, also when it arrives compressed', async () => {
    const { gzipSync } = await import('node:zlib')
    const bomb = gzipSync(Buffer.alloc(200_000))
    const origin = await serve((request, response) => {
      if (request.url === '/gzip') response.writeHead(200, { 'content-encoding': 'gzip' }).end(bomb)
      else response.end(Buffer.alloc(200_000))
    })
    expect(bomb.byteLength).toBeLessThan(1000)
    const { outbound, log } = open({ maxResponseBytes: 100_000 })
    expect(await reasonOf(outbound.fetch(`${origin}/`))).toBe('response_too_large')
    expect(await reasonOf(outbound.fetch(`${origin}/gzip`))).toBe('response_too_large')
    expect(log).toHaveLength(2)
  })

  it('refuses a status that is none', async () => {
    const host = await serveTcp((socket) => socket.end('HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n'))
    expect(await reasonOf(open().outbound.fetch(`http://${host}/`))).toBe('response_invalid')
  })

  it('treats what is not HTTP as a broken connection', async () => {
    const host = await serveTcp((socket) => socket.end('SSH-2.0-OpenSSH_9.6\r\n'))
    expect(await reasonOf(open({ retries: 0 }).outbound.fetch(`http://${host}/`))).toBe('connection_lost')
  })

  it('follows no redirect: it hands it back', async () => {
    let followed = false
    const elsewhere = await serve((_, response) => {
      followed = true
      response.end()
    })
    const origin = await serve((_, response) => response.writeHead(302, { location: elsewhere }).end())
    const answer = await open().outbound.fetch(origin)
    expect([answer.status, answer.headers.get('location'), followed]).toEqual([302, elsewhere, false])
  })

  it('hands back a decoded body without the headers of the encoded one, an empty 204, and every cookie', async () => {
    const { gzipSync } = await import('node:zlib')
    const origin = await serve((request, response) => {
      if (request.url === '/empty') {
        response.writeHead(204).end()
      } else {
        response.writeHead(200, { 'content-encoding': 'gzip', 'set-cookie': ['a=1', 'b=2'] })
        response.end(gzipSync('{"user_id":123}'))
      }
    })
    const { outbound } = open()
    const answer = await outbound.fetch(`${origin}/`)
    expect(await answer.json()).toEqual({ user_id: 123 })
    expect(answer.headers.has('content-encoding')).toBe(false)
    expect(answer.headers.getSetCookie()).toEqual(['a=1', 'b=2'])
    expect((await outbound.fetch(`${origin}/empty`)).body).toBeNull()
  })
})

describe('circuit breaker', () => {
  it('opens after five failures in a row and then refuses at once, without a connection', async () => {
    let calls = 0
    const origin = await serve((_, response) => {
      calls += 1
      response.writeHead(500).end()
    })
    const time = clock()
    const { outbound, log } = open({ retries: 0, now: time.now })
    for (let call = 0; call < 5; call += 1) expect((await outbound.fetch(origin)).status).toBe(500)
    expect(outbound.metrics().hosts[origin]).toMatchObject({ breaker: 'open', opened: 1, attempts: 5, failed: 5 })

    const error = await outbound.fetch(origin).catch((error: unknown) => error)
    expect(error).toMatchObject({ reason: 'circuit_open', host: origin, retryAfterSeconds: 60, status: 503 })
    expect(error).toBeInstanceOf(GuardError)
    expect(error).toMatchObject({ name: 'OutboundError', code: 'SERVICE_UNAVAILABLE' })
    expect(calls).toBe(5)
    // The service's guard tells of it among its own figures.
    const guard = createGuard({ issuer: 'https://id.example.com', audience: 'https://api.example.com', outbound })
    onTestFinished(() => guard.close())
    expect(guard.metrics()).toMatchObject({ outbound: { hosts: { [origin]: { breaker: 'open', opened: 1 } } } })
    expect(log.at(-1)).toMatchObject({ status: 'circuit_open', duration_ms: null, circuit_breaker_state: 'open' })
  })

  it('opens in the middle of a call and spares the rest of its retries', async () => {
    let calls = 0
    const origin = await serve((_, response) => {
      calls += 1
      response.writeHead(503).end()
    })
    const { outbound } = open()
    expect((await outbound.fetch(origin)).status).toBe(503)
    expect((await outbound.fetch(origin)).status).toBe(503)
    expect(calls).toBe(5)
  })

  it('does not open for refusals, throttling or a success in between', async () => {
    const statuses = [500, 500, 500, 500, 200, 500, 500, 500, 500, 404, 429, 429, 429, 429, 429, 429]
    const origin = await serve((_, response) => response.writeHead(statuses.shift() ?? 200).end())
    const { outbound } = open({ retries: 0 })
    for (let left = statuses.length; left > 0; left -= 1) await outbound.fetch(origin)
    expect(outbound.metrics().hosts[origin]?.breaker).toBe('closed')
  })

  it('opens for connections refused and for hosts that hang', async () => {
    const refused = await refusingOrigin()
    const hanging = await serve(() => undefined)
    const { outbound } = open({ readTimeoutMs: 50 })
    for (const origin of [refused, hanging]) {
      await reasonOf(outbound.fetch(origin))
      await reasonOf(outbound.fetch(origin))
      expect(await reasonOf(outbound.fetch(origin))).toBe('circuit_open')
    }
  })

  it('is one for each host: a failing one does not touch another', async () => {
    const bad = await serve((_, response) => response.writeHead(500).end())
    const good = await serve((_, response) => response.end('fine'))
    const { outbound } = open()
    await outbound.fetch(bad)
    await outbound.fetch(bad)
    expect(await reasonOf(outbound.fetch(bad))).toBe('circuit_open')
    expect(await (await outbound.fetch(good)).text()).toBe('fine')
  })

  it('lets one probe through after sixty seconds, refuses everybody else meanwhile, and closes on its success', async () => {
    const time = clock()
    let healthy = false
    let calls = 0
    const held: (() => void)[] = []
    const origin = await serve((_, response) => {
      calls += 1
      if (healthy) held.push(() => response.end('back'))
      else response.writeHead(500).end()
    })
    const { outbound, log } = open({ retries: 0, now: time.now })
    for (let call = 0; call < 5; call += 1) await outbound.fetch(origin)
    healthy = true
    time.pass(59_999)
    expect(await reasonOf(outbound.fetch(origin))).toBe('circuit_open')
    time.pass(1)
    const probe = outbound.fetch(origin)
    await expect.poll(() => held.length).toBe(1)
    expect(outbound.metrics().hosts[origin]?.breaker).toBe('half_open')
    expect(await reasonOf(outbound.fetch(origin))).toBe('circuit_open')
    expect(log.at(-1)?.circuit_breaker_state).toBe('half_open')
    expect(calls).toBe(6)
    held[0]?.()
    expect(await (await probe).text()).toBe('back')
    expect(outbound.metrics().hosts[origin]?.breaker).toBe('closed')
  })

  it('opens for another sixty seconds when the probe fails, and retries no probe', async () => {
    const time = clock()
    let calls = 0
    const origin = await serve((_, response) => {
      calls += 1
      response.writeHead(500).end()
    })
    const { outbound } = open({ now: time.now })
    await outbound.fetch(origin)
    await outbound.fetch(origin)
    expect(calls).toBe(5)
    time.pass(60_000)
    for (let round = 1; round <= 3; round += 1) {
      expect((await outbound.fetch(origin)).status).toBe(500)
      expect([calls, outbound.metrics().hosts[origin]?.opened]).toEqual([5 + round, 1 + round])
      time.pass(59_999)
      expect(await reasonOf(outbound.fetch(origin))).toBe('circuit_open')
      time.pass(1)
    }
  })

  it('takes a probe that its caller gave up as no answer: the next call is the probe', async () => {
    const time = clock()
    let mode: 'failing' | 'hanging' | 'healthy' = 'failing'
    const origin = await serve((_, response) => {
      if (mode === 'failing') response.writeHead(500).end()
      if (mode === 'healthy') response.end('back')
    })
    const { outbound } = open({ retries: 0, now: time.now })
    for (let call = 0; call < 5; call += 1) await outbound.fetch(origin)
    time.pass(60_000)
    mode = 'hanging'
    const reason = new Error('the user went away')
    const cancel = new AbortController()
    setTimeout(() => cancel.abort(reason), 50)
    await expect(outbound.fetch(origin, { signal: cancel.signal })).rejects.toBe(reason)
    expect(outbound.metrics().hosts[origin]?.breaker).toBe('open')
    mode = 'healthy'
    expect(await (await outbound.fetch(origin)).text()).toBe('back')
    expect(outbound.metrics().hosts[origin]?.breaker).toBe('closed')
  })

  it('closes after as many successful probes as it was told', async () => {
    const time = clock()
    let healthy = false
    const origin = await serve((_, response) => response.writeHead(healthy ? 200 : 500).end())
    const { outbound } = open({
      retries: 0,
      now: time.now,
      breaker: { failures: 3, successes: 3, recoverySeconds: 30 },
    })
    for (let call = 0; call < 3; call += 1) await outbound.fetch(origin)
    healthy = true
    time.pass(30_000)
    const states: (string | undefined)[] = []
    for (let call = 0; call < 3; call += 1) {
      await outbound.fetch(origin)
      states.push(outbound.metrics().hosts[origin]?.breaker)
    }
    expect(states).toEqual(['half_open', 'half_open', 'closed'])
  })
})

describe('connections', () => {
  it('opens at most twenty to a host; who finds none free waits, but not for ever', async () => {
    let most = 0
    let open20 = 0
    const answers: (() => void)[] = []
    const origin = await serve((_, response) => {
      open20 += 1
      most = Math.max(most, open20)
      answers.push(() => {
        open20 -= 1
        response.end('ok')
      })
    })
    const { outbound } = open({ maxWaitMs: 300, retries: 0 })
    const first = Array.from({ length: 20 }, () => outbound.fetch(origin))
    await expect.poll(() => answers.length).toBe(20)
    const startedAt = performance.now()
    const impatient = outbound.fetch(origin)
    expect(outbound.metrics().hosts[origin]).toMatchObject({ inFlight: 20, waiting: 1 })
    expect(await reasonOf(impatient)).toBe('no_connection_free')
    expect(performance.now() - startedAt).toBeGreaterThanOrEqual(295)

    const second = [outbound.fetch(origin), outbound.fetch(origin)]
    for (const answer of answers.splice(0)) answer()
    await Promise.all(first)
    await expect.poll(() => answers.length).toBe(2)
    for (const answer of answers) answer()
    await Promise.all(second)
    expect(most).toBe(20)
    expect(outbound.metrics().hosts[origin]).toMatchObject({ inFlight: 0, waiting: 0, breaker: 'closed' })
  })

  it('lets only so many wait, and a cancelled one frees its place', async () => {
    const answers: (() => void)[] = []
    const origin = await serve((_, response) => answers.push(() => response.end('ok')))
    const { outbound } = open({ connectionsPerHost: 1, maxWaiting: 1, maxWaitMs: 10_000, retries: 0 })
    const busy = outbound.fetch(origin)
    await expect.poll(() => answers.length).toBe(1)
    const cancel = new AbortController()
    const waiting = outbound.fetch(origin, { signal: cancel.signal })
    expect(await reasonOf(outbound.fetch(origin))).toBe('no_connection_free')
    const reason = new Error('no longer needed')
    cancel.abort(reason)
    await expect(waiting).rejects.toBe(reason)
    const next = outbound.fetch(origin)
    answers[0]?.()
    await busy
    await expect.poll(() => answers.length).toBe(2)
    answers[1]?.()
    expect((await next).status).toBe(200)
  })

  it('keeps connections for the next call', async () => {
    const ports = new Set<number | undefined>()
    const origin = await serve((request, response) => {
      ports.add(request.socket.remotePort)
      response.end('ok')
    })
    const { outbound } = open()
    for (let call = 0; call < 5; call += 1) await outbound.fetch(origin)
    expect(ports.size).toBeLessThanOrEqual(2)
  })

  it('remembers a bounded number of hosts, and forgets none whose circuit is open', async () => {
    const bad = await refusingOrigin()
    const { outbound } = open({ maxHosts: 2, retries: 4 })
    await reasonOf(outbound.fetch(bad))
    const good = await Promise.all([1, 2, 3].map(() => serve((_, response) => response.end())))
    for (const origin of good) await outbound.fetch(origin)
    expect(Object.keys(outbound.metrics().hosts)).toEqual([bad, good[2]])
    expect(await reasonOf(outbound.fetch(bad))).toBe('circuit_open')
  })
})

describe('fallback', () => {
  it('answers in place of a host that is out of reach, hangs, keeps failing or has an open circuit', async () => {
    const reasons: string[] = []
    const failing = await serve((_, response) => response.writeHead(503, { 'retry-after': '9' }).end('broken'))
    const hanging = await serve(() => undefined)
    const { outbound } = open({ readTimeoutMs: 60, retries: 4, maxBackoffMs: 1, totalTimeoutMs: 60_000 })
    for (const origin of [await refusingOrigin(), hanging, failing, failing]) {
      const answer = await outbound.fetch(origin, {
        fallback: (error) => {
          reasons.push(error.reason)
          return Response.json(['a default'])
        },
      })
      expect(await answer.json()).toEqual(['a default'])
    }
    expect(reasons).toEqual(['connect_failed', 'read_timeout', 'still_failing', 'circuit_open'])
    expect(outbound.metrics().hosts[failing]?.fallbacks).toBe(2)
  })

  it('is not asked for answers that are none of the host’s failing, nor for our own mistakes', async () => {
    const origin = await serve((_, response) => response.writeHead(404).end())
    const { outbound } = open({ maxResponseBytes: 1 })
    const fallback = () => Response.json('never')
    expect((await outbound.fetch(origin, { fallback })).status).toBe(404)
    const large = await serve((_, response) => response.end('large'))
    expect(await reasonOf(outbound.fetch(large, { fallback }))).toBe('response_too_large')
    await expect(outbound.fetch(origin, { body: 'x', fallback })).rejects.toThrow(TypeError)
  })

  it('is asked once, and its own failure is let through, also when it is one of another call', async () => {
    const failing = await serve((_, response) => response.writeHead(503).end())
    const refusing = await refusingOrigin()
    const { outbound } = open({ retries: 0 })
    for (const origin of [failing, refusing]) {
      let asked = 0
      const fallback = () => {
        asked += 1
        return outbound.fetch(`${refusing}/cache`)
      }
      expect(await reasonOf(outbound.fetch(origin, { fallback }))).toBe('connect_failed')
      expect(asked).toBe(1)
    }
  })
})

describe('what is passed on and written down', () => {
  it('sends the request id, the trace and the caller’s name, the same in every attempt', async () => {
    const seen: unknown[] = []
    const origin = await serve((request, response) => {
      const { 'x-request-id': id, traceparent, tracestate, 'user-agent': agent } = request.headers
      seen.push([id, traceparent, tracestate, agent])
      response.writeHead(seen.length === 1 ? 503 : 200).end()
    })
    const { outbound } = open({ caller: 'booking-service/2.1.0' })
    const trace = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
    const context = callContext({ 'x-request-id': '7f3c6b2a-5d9e', traceparent: trace, tracestate: 'vendor=1' })
    await outbound.fetch(origin, { context })
    const expected = ['7f3c6b2a-5d9e', trace, 'vendor=1', 'booking-service/2.1.0']
    expect(seen).toEqual([expected, expected])
  })

  it('writes the seven fields for each attempt, and neither query nor token', async () => {
    let calls = 0
    const origin = await serve((_, response) => {
      calls += 1
      response.writeHead(calls === 1 ? 503 : 200).end()
    })
    const { outbound, log } = open()
    const context = callContext({ 'x-request-id': '7f3c6b2a-5d9e' })
    const headers = { authorization: 'Bearer secret-token' }
    await outbound.fetch(`${origin}/users/123?email=alice@example.com`, { context, headers })
    const entry = { request_id: '7f3c6b2a-5d9e', service: origin, endpoint: '/users/123' }
    const duration = expect.any(Number) as number
    expect(log).toEqual([
      { ...entry, attempt: 0, duration_ms: duration, status: 'http_503', circuit_breaker_state: 'closed' },
      { ...entry, attempt: 1, duration_ms: duration, status: 'success', circuit_breaker_state: 'closed' },
    ])
    expect(JSON.stringify(log)).not.toMatch(/secret-token|alice/)
  })

  it('logs a cancelled attempt as such and blames nobody', async () => {
    const origin = await serve(() => undefined)
    const { outbound, log } = open({ retries: 0 })
    for (let call = 0; call < 6; call += 1) {
      const signal = AbortSignal.timeout(20)
      await expect(outbound.fetch(origin, { signal })).rejects.toThrow(/timeout/)
    }
    expect(log.map((entry) => entry.status)).toEqual(Array.from({ length: 6 }, () => 'cancelled'))
    expect(outbound.metrics().hosts[origin]).toMatchObject({ breaker: 'closed', failed: 0, inFlight: 0 })
  })

  it('counts calls, attempts and retries for each host', async () => {
    const statuses = [503, 200, 404]
    const origin = await serve((_, response) => response.writeHead(statuses.shift() ?? 200).end())
    const { outbound } = open()
    await outbound.fetch(origin)
    await outbound.fetch(origin)
    expect(outbound.metrics().hosts).toEqual({
      [origin]: {
        breaker: 'closed',
        opened: 0,
        calls: 2,
        attempts: 3,
        retries: 1,
        answered: 2,
        failed: 1,
        refused: 0,
        fallbacks: 0,
        inFlight: 0,
        waiting: 0,
      },
    })
  })

  it('is answered by the guard’s own 503 when nobody catches it, naming no host', async () => {
    const origin = await refusingOrigin()
    const error: unknown = await open({ retries: 0 })
      .outbound.fetch(origin)
      .catch((error: unknown) => error)
    if (!(error instanceof OutboundError)) throw error
    const answer = error.toResponse()
    expect([answer.status, answer.headers.get('retry-after')]).toEqual([503, '1'])
    expect(await answer.text()).not.toContain('127.0.0.1')
    expect(error.message).toContain(origin)
  })
})

describe('callContext', () => {
  it('replaces a request id that could forge a log line or an address, and keeps a good one', () => {
    for (const id of ['', 'a'.repeat(129), 'a b c d e f g', 'abcdefgh\n{"level":"INFO"}', '../../etc/passwd']) {
      expect(callContext({ 'x-request-id': id }).requestId).toMatch(/^[0-9a-f-]{36}$/)
    }
    expect(callContext({ 'x-request-id': ['one-two-three', 'four-five-six'] }).requestId).toMatch(/^[0-9a-f-]{36}$/)
    expect(callContext({}).requestId).not.toBe(callContext({}).requestId)
    expect(callContext(new Headers({ 'X-Request-ID': '550e8400-e29b' })).requestId).toBe('550e8400-e29b')
  })

  it('drops a malformed trace, and a tracestate without a trace', () => {
    const good = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
    for (const traceparent of [
      'ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01',
      '00-00000000000000000000000000000000-00f067aa0ba902b7-01',
      '00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01',
      `${good}-extra`,
      good.toUpperCase(),
    ]) {
      const context = callContext({ traceparent, tracestate: 'vendor=1' })
      expect(Object.keys(context)).toEqual(['requestId'])
    }
    expect(callContext({ traceparent: good, tracestate: 'a=1' })).toMatchObject({
      traceparent: good,
      tracestate: 'a=1',
    })
    expect(callContext({ traceparent: good, tracestate: 'x'.repeat(513) })).not.toHaveProperty('tracestate')
  })

  it('ignores a deadline that is no plain number', () => {
    for (const value of ['', '-1', '1e3', '0x10', ' 5', '5s', '99999999999', 'NaN']) {
      expect(callContext({ 'x-envoy-expected-rq-timeout-ms': value })).not.toHaveProperty('deadlineAt')
    }
    const now = () => 1_000_000
    expect(callContext({ 'x-envoy-expected-rq-timeout-ms': '5000' }, { now }).deadlineAt).toBe(1_004_900)
  })
})
