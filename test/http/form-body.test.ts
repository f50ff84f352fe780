import { once } from 'node:events'
import { request } from 'node:http'
import { BlockList, connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it } from 'vitest'
import { parseForm, readForm } from '../../src/http/form-body.ts'
import { problemResponse } from '../../src/http/problem-response.ts'
import { requestContext } from '../../src/http/request-context.ts'
import { openTestLog, serveApp } from '../support/serve-app.ts'

const issuer = 'http://localhost:3000'
const form = 'application/x-www-form-urlencoded'

async function serveForm(seen: unknown[] = []): Promise<string> {
  return serveApp(
    requestContext({ trustProxy: new BlockList(), issuer }),
    problemResponse({ issuer, log: openTestLog().log }),
    async (ctx) => {
      try {
        ctx.body = Object.entries(await readForm(ctx))
      } catch (error) {
        seen.push(error)
        throw error
      }
    },
  )
}

async function post(body: string | Uint8Array<ArrayBuffer>, headers: Record<string, string> = {}): Promise<Response> {
  return fetch(await serveForm(), { method: 'POST', body, headers: { 'Content-Type': form, ...headers } })
}

describe('a form is refused', () => {
  for (const type of [
    'application/json',
    'multipart/form-data; boundary=x',
    'text/plain',
    '',
    `${form}; charset=latin1`,
    `${form}x`,
  ]) {
    it(`as ${type === '' ? 'nothing at all' : type}`, async () => {
      const answer = await post('a=1', { 'Content-Type': type })
      expect(answer.status).toBe(415)
      expect(await answer.json()).toMatchObject({ error: { code: 'UNSUPPORTED_MEDIA_TYPE' } })
    })
  }

  it('when it is compressed', async () => {
    expect((await post('a=1', { 'Content-Encoding': 'gzip' })).status).toBe(415)
  })

  it('when it is larger than 64 KiB, whether it says so or not', async () => {
    const url = await serveForm()
    const announced = await fetch(url, {
      method: 'POST',
      headers: { 'Content-Type': form },
      body: `a=${'x'.repeat(65_535)}`,
    })
    expect(announced.status).toBe(413)
    expect(announced.headers.get('connection')).toBe('close')

    const chunked = request(url, { method: 'POST', headers: { 'Content-Type': form } })
    chunked.on('error', () => undefined)
    const answered = once(chunked, 'response') as Promise<[{ statusCode: number }]>
    for (let i = 0; i < 65; i += 1) chunked.write('x'.repeat(1_024))
    const [{ statusCode }] = await answered
    expect(statusCode).toBe(413)
    chunked.destroy()
  })

  for (const [what, text] of Object.entries({
    'a field comes twice': 'login=a&login=b',
    'a field comes twice in two spellings': 'login=a&l%6Fgin=b',
    'an escape is cut off': 'login=%4',
    'an escape is none': 'login=%zz',
    'a value is not UTF-8': 'login=%ff',
    'a value is an unpaired surrogate': 'login=%ED%A0%80',
    'a value holds NUL': 'login=a%00b',
    'a name holds NUL': 'lo%00gin=a',
    'it has more than 100 fields': Array.from({ length: 101 }, (_, i) => `f${i}=`).join('&'),
  })) {
    it(`when ${what}`, async () => {
      const answer = await post(text)
      expect(answer.status).toBe(400)
      expect(await answer.json()).toMatchObject({ error: { code: 'MALFORMED_REQUEST' } })
    })
  }

  it('when its bytes are not UTF-8', async () => {
    expect((await post(new Uint8Array([0x61, 0x3d, 0xff, 0xfe]))).status).toBe(400)
  })

  it('when the caller leaves in the middle, without waiting for the rest', async () => {
    const seen: unknown[] = []
    const { port } = new URL(await serveForm(seen))
    const socket = connect(Number(port), '127.0.0.1')
    socket.write(`POST / HTTP/1.1\r\nHost: x\r\nContent-Type: ${form}\r\nContent-Length: 100\r\n\r\nlogin=a`)
    await sleep(100)
    socket.destroy()
    await expect.poll(() => seen).toMatchObject([{ code: 'MALFORMED_REQUEST' }])
  })
})

describe('a form is read', () => {
  it('with its escapes, plus signs and UTF-8', async () => {
    const answer = await post('login=ada%40example.com&password=p%2B+%C3%A9%F0%9F%94%91&empty=&bare', {
      'Content-Type': `${form}; charset="UTF-8"`,
    })
    expect(await answer.json()).toEqual([
      ['login', 'ada@example.com'],
      ['password', 'p+ é🔑'],
      ['empty', ''],
      ['bare', ''],
    ])
  })

  it('with UTF-8 that is not escaped', async () => {
    expect(await (await post('name=Zoë')).json()).toEqual([['name', 'Zoë']])
  })

  it('when it is empty', async () => {
    expect(await (await post('')).json()).toEqual([])
  })

  it('with the names of prototypes as names like any other', () => {
    const fields = parseForm('__proto__=1&constructor=2')
    expect(Object.keys(fields)).toEqual(['__proto__', 'constructor'])
    expect(fields['__proto__']).toBe('1')
    expect(parseForm('a=1')['constructor']).toBeUndefined()
    expect(parseForm('a=1')['toString']).toBeUndefined()
    expect(({} as Record<string, unknown>)['1']).toBeUndefined()
  })

  it('up to exactly 64 KiB', async () => {
    expect((await post(`a=${'x'.repeat(64 * 1024 - 2)}`)).status).toBe(200)
  })
})
