/**
 * Somebody else's mock server (Prism) can serve the document: whoever builds against the API before there is a provider
 * gets every example from it, and is refused where the document says so.
 */
import { createLogger } from '@stoplight/prism-core'
import { getHttpOperationsFromSpec } from '@stoplight/prism-http'
import { createServer } from '@stoplight/prism-http-server'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { fillPath } from '../support/api-targets.ts'
import { documentFile, openJudge, operationsOf, readCommittedDocument, resolve, type Operation } from './document.ts'

const document = readCommittedDocument()
const judge = openJudge(document)
const operations = operationsOf(document)
let url: string
let close: () => Promise<void>

beforeAll(async () => {
  const server = createServer(await getHttpOperationsFromSpec(documentFile), {
    cors: false,
    components: { logger: createLogger('mock server', { level: 'silent' }) },
    config: {
      mock: { dynamic: false },
      checkSecurity: true,
      validateRequest: true,
      validateResponse: true,
      errors: false,
      upstreamProxy: undefined,
      isProxy: false,
    },
  })
  url = await server.listen(0, '127.0.0.1')
  close = () => server.close()
})
afterAll(() => close())

/** A request made of nothing but the document's examples. */
async function ask({ method, path, parameters = [], requestBody }: Operation, headers: Record<string, string> = {}) {
  const inPath = parameters
    .filter((parameter) => parameter.in === 'path')
    .map(({ name, example, schema }) => [name, String(example ?? schema?.example)])
  const [body] = Object.entries(requestBody?.content ?? {})
  const needed = parameters.filter(({ in: place, required }) => place === 'header' && required === true)
  return fetch(url + fillPath(path, Object.fromEntries(inPath) as Record<string, string>), {
    method,
    headers: {
      authorization: 'Bearer anything',
      ...Object.fromEntries(needed.map(({ name, schema }) => [name, String(schema?.example)])),
      ...(body === undefined ? {} : { 'content-type': body[0] }),
      ...headers,
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body[1].example) }),
  })
}

it.each(operations.map(({ id, method, path }) => ({ id, method, path })))(
  '$method $path is answered with its example',
  async ({ id }) => {
    const operation = operations.find((one) => one.id === id)
    if (operation === undefined) throw new Error(`there is no ${id}`)
    const answer = await ask(operation)
    const text = await answer.text()
    const [success = ''] = Object.keys(operation.responses).filter((status) => status.startsWith('2'))
    expect([answer.status, answer.ok ? '' : text]).toEqual([Number(success), ''])
    const content = resolve(document, operation.responses[success] ?? {}).content?.['application/json']
    if (content === undefined) return expect(text).toBe('')
    expect(JSON.parse(text)).toEqual(content.example)
    expect(judge.check(content.schema ?? {}, JSON.parse(text))).toBe('')
  },
)

it('refuses as the document says: without a token, with a parameter that does not fit, and what is asked to be refused', async () => {
  const listUsers = operations.find(({ id }) => id === 'listUsers')
  if (listUsers === undefined) throw new Error('there is no listUsers')
  const codeOf = async (answer: Response) => ((await answer.json()) as { error: { code: string } }).error.code
  const nobody = await fetch(`${url}/v1/users`)
  expect([nobody.status, await codeOf(nobody)]).toEqual([401, 'AUTHENTICATION_ERROR'])
  const unfit = await fetch(`${url}/v1/users?limit=many`, { headers: { authorization: 'Bearer anything' } })
  expect([unfit.status, await codeOf(unfit)]).toEqual([400, 'VALIDATION_ERROR'])
  const limited = await ask(listUsers, { prefer: 'code=429' })
  expect([limited.status, await codeOf(limited)]).toEqual([429, 'RATE_LIMIT_EXCEEDED'])
})
