/** Whether an answer is one that the document of the API promises: its status, media type, headers, and body to the last member. */
import {
  openJudge,
  operationsOf,
  resolve,
  type Document,
  type Operation,
  type Response as DocumentedResponse,
} from '../openapi/document.ts'

export interface Answer {
  readonly status: number
  readonly headers: Headers
  readonly text: string
}

export interface Contract {
  readonly operations: readonly Operation[]
  operation(id: string): Operation
  /** What is wrong with an answer of an operation; [] for nothing. */
  faultsOf(operation: Operation, answer: Answer): string[]
  /** The same for a refusal that is no operation's, such as 405: by the response of that name. */
  faultsOfRefusal(answer: Answer): string[]
}

/** Any HTTP server's, or there for browsers and for tracing; the document speaks of none of them. */
const plainHeaders = [
  /^(date|connection|keep-alive|content-length|content-type|transfer-encoding|vary|cache-control)$/,
  /^(content-security-policy|x-content-type-options|x-frame-options|referrer-policy|strict-transport-security)$/,
  /^(cross-origin-.*|permissions-policy|access-control-.*|origin-agent-cluster|x-robots-tag)$/,
  /^traceparent$/,
]

export function openContract(document: Document): Contract {
  const judge = openJudge(document, { closed: true })
  const operations = operationsOf(document)

  function faultsOfResponse(documented: DocumentedResponse, answer: Answer): string[] {
    return [
      ...faultsOfHeaders(documented, answer.headers),
      ...faultsOfBody(documented.content ?? {}, answer),
      ...(answer.status < 400 ? [] : isPage(answer) ? faultsOfPage(answer) : faultsOfError(answer)),
    ]
  }

  function faultsOfHeaders({ headers = {} }: DocumentedResponse, given: Headers): string[] {
    const known = new Map(
      Object.entries(headers).map(([name, header]) => [name.toLowerCase(), resolve(document, header)]),
    )
    return [
      ...[...known]
        .filter(([name, { required }]) => required === true && !given.has(name))
        .map(([name]) => `lacks ${name}`),
      ...[...given.keys()]
        .filter((name) => !known.has(name) && !plainHeaders.some((pattern) => pattern.test(name)))
        .map((name) => `has ${name}, which is not documented`),
    ]
  }

  function faultsOfBody(content: NonNullable<DocumentedResponse['content']>, { headers, text }: Answer): string[] {
    const types = Object.keys(content)
    if (types.length === 0) return text === '' ? [] : [`has a body, which is not documented: ${text.slice(0, 200)}`]
    const type = (headers.get('content-type') ?? '').split(';')[0]?.trim() ?? ''
    const documented = content[type]
    if (documented === undefined) return [`is ${type || 'of no media type'}, which is not documented`]
    if (type === 'text/html') return []
    let body: unknown
    try {
      body = JSON.parse(text)
    } catch (error) {
      return [`is no JSON (${String(error)}): ${text.slice(0, 200)}`]
    }
    const fault = judge.check(documented.schema ?? {}, body)
    return fault === '' ? [] : [`is not as documented: ${fault}`]
  }

  return {
    operations,
    operation(id) {
      const found = operations.find((operation) => operation.id === id)
      if (found === undefined) throw new Error(`there is no operation ${id}`)
      return found
    },
    faultsOf({ id, responses }, answer) {
      const documented = responses[String(answer.status)]
      const faults =
        documented === undefined
          ? [`is not documented: ${answer.text.slice(0, 300)}`]
          : faultsOfResponse(resolve(document, documented), answer)
      return faults.map((fault) => `${id} ${answer.status} ${fault}`)
    },
    faultsOfRefusal(answer) {
      const documented = document.components?.responses?.[String(answer.status)]
      return documented === undefined ? ['is not documented'] : faultsOfResponse(documented, answer)
    },
  }
}

function isPage({ headers }: Answer): boolean {
  return headers.get('content-type')?.startsWith('text/html') === true
}

function faultsOfPage({ headers, text }: Answer): string[] {
  return [
    ...(/^<!doctype html>/i.test(text) ? [] : ['is no page']),
    ...(text.includes(headers.get('x-request-id') ?? 'none') ? [] : ['shows not which request it was']),
    ...showsItsInside(text),
  ]
}

function showsItsInside(text: string): string[] {
  const isShown = /\\n +at |node_modules|\bSELECT\b|\bINSERT INTO\b|argon2/i.test(text)
  return isShown ? [`shows its inside: ${text.slice(0, 300)}`] : []
}

/** What no schema can say: that the parts of one refusal agree, and that nothing of the inside is in it. */
function faultsOfError({ status, headers, text }: Answer): string[] {
  let body: Readonly<Record<string, unknown>> & {
    readonly error?: { readonly retry_after?: number; readonly code?: string }
  }
  try {
    body = JSON.parse(text) as typeof body
  } catch {
    return ['is no JSON']
  }
  const retryAfter = headers.get('retry-after')
  return [
    ...(body['status'] === status ? [] : [`says that its status is ${String(body['status'])}`]),
    ...(body['request_id'] === headers.get('x-request-id') ? [] : ['has another request_id than X-Request-Id']),
    ...(String(body['documentation']).endsWith(`/docs/errors#${body.error?.code ?? ''}`)
      ? []
      : ['leads to no documentation']),
    ...(retryAfter === null || body.error?.retry_after === Number(retryAfter) ? [] : ['has another retry_after']),
    ...(status === 401 && !headers.has('www-authenticate') ? ['says not how to authenticate'] : []),
    ...(status === 429 && retryAfter === null ? ['says not when to come back'] : []),
    ...showsItsInside(text),
  ]
}
