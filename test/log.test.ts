import { PassThrough } from 'node:stream'
import { describe, expect, it } from 'vitest'
import { openLog } from '../src/log.ts'
import { openTestLog } from './support/serve-app.ts'

describe('the log holds no secret', () => {
  it('under the names that secrets come by', () => {
    const { log, text } = openTestLog()
    const names =
      'password new_password client_secret secret access_token refresh_token id_token csrf_token token authorization Authorization cookie Set-Cookie code code_verifier client_assertion privateKey private_key passphrase email login DPoP'.split(
        ' ',
      )
    for (const name of names) log.info({ [name]: 'hunter2' }, 'a line')
    expect(text()).not.toContain('hunter2')
    expect(text().match(/not logged/g)).toHaveLength(names.length)
  })

  it('in the message, stack or cause of an error, whichever way it is logged', () => {
    const { log, text, lines } = openTestLog()
    const jwt = `eyJhbGciOiJSUzI1NiJ9.${'a1'.repeat(20)}.${'b2'.repeat(20)}`
    const error = new Error(`no ada@example.com at /callback?code=12345 with ${jwt} or ${'s3cr3t'.repeat(7)}`, {
      cause: new TypeError('about eve@example.org'),
    })
    log.error({ error }, 'failed')
    log.error(error)
    log.error({ error })
    log.error({ err: error }, 'failed')
    log.warn({ error_message: error.message }, 'failed')
    expect(text()).not.toMatch(/ada@|eve@|12345|eyJ|s3cr3t/)
    expect(lines()[0]).toMatchObject({ error: { type: 'Error', cause: { type: 'TypeError' } } })
    expect(text()).toContain('log.test.ts')
  })

  it('from the fields of a database error, which repeat the row', () => {
    const { log, text } = openTestLog()
    const fields = { code: '23505', detail: 'Key (email)=(ada@example.com) already exists.', parameters: ['hunter2'] }
    log.error({ error: Object.assign(new Error('duplicate key'), fields) }, 'failed')
    expect(text()).not.toMatch(/ada|hunter2/)
    expect(text()).toContain('23505')
  })
})

describe('the log', () => {
  it('names levels in capitals, and the time in ISO 8601', () => {
    const { log, lines } = openTestLog()
    log.warn('careful')
    expect(lines()).toMatchObject([
      { level: 'WARN', message: 'careful', timestamp: expect.stringMatching(/T.*Z$/) as string },
    ])
  })

  it('leaves out what is below its level', () => {
    const { log, lines } = openTestLog({ logLevel: 'warn' })
    log.info('chatter')
    expect(lines()).toEqual([])
  })

  it('is readable where it is asked to be', () => {
    const { log, text } = openTestLog({ logFormat: 'readable' })
    log.info({ endpoint: 'GET /x', status_code: 200 }, 'request')
    expect(text()).toMatch(/^\[\d\d:\d\d:\d\d\] INFO: request \{"endpoint":"GET \/x","status_code":200\}\n$/)
  })

  it('drops lines that nobody reads, and says how many once somebody does', () => {
    const output = new PassThrough({ highWaterMark: 1024 })
    const log = openLog({ logLevel: 'info', logFormat: 'json' }, output)
    for (let i = 0; i < 10_000; i += 1) log.info({ filler: 'x'.repeat(1_000) }, 'a line')
    expect(output.writableLength).toBeLessThan(5 * 1024 * 1024)
    const read: string[] = []
    output.setEncoding('utf8').on('data', (text: string) => read.push(text))
    return expect
      .poll(() => {
        log.info('after')
        return read.join('')
      })
      .toMatch(/"message":"log lines were dropped: nobody read them","dropped":\d{4}\}\n.*"after"/)
  })
})
